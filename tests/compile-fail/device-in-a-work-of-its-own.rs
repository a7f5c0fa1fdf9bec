//! A work of the kernel crate's outlives the table, and the device with it.
//! error: borrowed data escapes outside of

// process {
fn process(data: &Data<'_>, bio: DeferredBio<'_, Self>) {
    let device = data.device;
    let work = move || {
        let _ = device.sectors();
    };
    let _ = kernel::workqueue::system().try_spawn(GFP_KERNEL, work);
    bio.complete(BlkStatus::OK);
}
// }
