//! Per-bio data are forgotten with the bio: nobody would free what they own.
//! error: E0277

// per_bio {
type PerBio = KVec<u8>;
// }
// map {
bio.complete(BlkStatus::OK)
// }
