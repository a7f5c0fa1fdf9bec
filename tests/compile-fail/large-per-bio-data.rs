//! Device-mapper adds up what lies in front of each clone in 32 bits, and believes the sum.
//! error: E0080

// per_bio {
type PerBio = [u8; 1 << 33];
// }
// map {
bio.complete(BlkStatus::OK)
// }
