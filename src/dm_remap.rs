// SPDX-License-Identifier: GPL-2.0

//! dm-remap: a device-mapper target that relocates bad sectors to spare space.
//!
//! - `dm/`: safe wrappers over device-mapper and its surroundings, all of the `unsafe`;
//! - `engine/`: pure logic, also built and tested on the host;
//! - `target/`: the target, the engine's decisions carried out through `dm/`.

#![deny(
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    unreachable_pub,
    unsafe_op_in_unsafe_fn
)]

mod dm;
// Public, and used in full, as a crate on the host.
#[allow(dead_code, unreachable_pub)]
mod engine;
mod target;

module_target! {
    type: target::RemapTarget,
    registration_data: target::Claims::new(),
    name: "dm_remap",
    authors: ["dm-remap developers"],
    description: "Device-mapper target that relocates bad sectors to spare space",
    license: "GPL v2",
    alias: ["dm-remap"],
}
