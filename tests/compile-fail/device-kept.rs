//! The device is closed when the target's data have been dropped.
//! error: borrowed data escapes outside of

// map {
keep(data.device);
bio.complete(BlkStatus::OK)
// }
