//! A target without `process` must not defer bios.
//! error: E0080

// process {
// }
// map {
bio.defer()
// }
