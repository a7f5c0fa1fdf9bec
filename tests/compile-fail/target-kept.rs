//! Device-mapper frees the target after its data were dropped.
//! error: borrowed data escapes outside of

// map {
keep(data.info);
bio.complete(BlkStatus::OK)
// }
