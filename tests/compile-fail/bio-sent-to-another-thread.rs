//! A bio in `map` is this thread's, until it was given away.
//! error: E0277

// map {
send(bio);
loop {}
// }
