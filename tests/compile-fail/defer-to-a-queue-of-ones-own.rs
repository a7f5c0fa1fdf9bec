//! A bio is deferred to the target's queue, which the layer drains before the data are dropped. There is no other one.
//! error: E0061

// end_io {
bio.defer(kernel::workqueue::system())
// }
