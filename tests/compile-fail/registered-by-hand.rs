//! A target type that is not unregistered when the module is unloaded would be called after that: `module_target!` sees to it.
//! error: E0133

// items {
fn register(module: &'static ThisModule) {
    core::mem::forget(Registration::<Program>::new(module, Ok(())));
}
// }
