//! Device-mapper clones the rest of a polled bio that was cut with a mark that drivers take for theirs.
//! error: E0080

// consts {
const POLLED: bool = true;
// }
