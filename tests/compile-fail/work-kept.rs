//! A work ends with its target.
//! error: borrowed data escapes outside of

// map {
keep(data.work);
bio.complete(BlkStatus::OK)
// }
