//! Its submitter has it then.
//! error: E0382

// process {
fn process(_data: &Data<'_>, bio: DeferredBio<'_, Self>) {
    bio.complete(BlkStatus::OK);
    let _ = bio.sector();
}
// }
