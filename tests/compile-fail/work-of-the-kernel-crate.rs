//! The queue does not give itself away: a work that is queued on it by other means would not end with the target.
//! error: E0603

// items {
fn queue(_: dm::work::Queue) {}
// }
