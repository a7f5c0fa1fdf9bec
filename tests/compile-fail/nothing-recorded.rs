//! A target that sees bios again needs to know how they came.
//! error: E0080

// map {
bio.remap(data.device, 0)
// }
