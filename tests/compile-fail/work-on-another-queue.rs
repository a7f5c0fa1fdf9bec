//! Works are queued where the layer waits for them.
//! error: E0599

// map {
data.work.enqueue_delayed(kernel::workqueue::system(), 1);
bio.complete(BlkStatus::OK)
// }
