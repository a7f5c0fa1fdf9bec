//! A deferred bio is completed before `process` returns.
//! error: E0277

// process {
fn process(_data: &Data<'_>, bio: DeferredBio<'_, Self>) {
    keep(bio);
}
// }
