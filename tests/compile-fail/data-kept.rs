//! The data are dropped when the target goes away.
//! error: borrowed data escapes outside of

// map {
keep(data);
bio.complete(BlkStatus::OK)
// }
