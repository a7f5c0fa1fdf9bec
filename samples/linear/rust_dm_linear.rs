// SPDX-License-Identifier: GPL-2.0

//! A device-mapper target in Rust: `<device> <start>`, a range of a device, as dm-linear has for plain I/O.

// In the kernel's tree: `use kernel::device_mapper as dm;`.
#[path = "../../src/dm/mod.rs"]
mod dm;

use dm::{Args, Device, DeviceVisitor, MapBio, Mapped, Refused, Setup, Stop};
use dm::{Target, TargetInfo, TextWriter};
use kernel::prelude::*;

struct RustLinear;
struct Range<'t> {
    device: Device<'t>,
    start: u64,
    info: &'t TargetInfo,
}

#[vtable]
impl Target for RustLinear {
    type Data<'t> = Range<'t>;
    type PerBio = ();
    type RegistrationData = ();
    const NAME: &'static CStr = c"rust_linear";
    const VERSION: [u32; 3] = [1, 0, 0];
    const NOWAIT: bool = true;
    const POLLED: bool = true;

    fn ctr<'t>(
        setup: &mut Setup<'t, Self>,
        args: &Args,
    ) -> Result<impl PinInit<Range<'t>, Error>, Refused> {
        let (Some(path), Some(start), None) = (args.get(0), args.number(1), args.get(2)) else {
            return Err(c"Needs <device> <start>".into());
        };
        let device = setup
            .device(path)
            .map_err(|e| Refused(c"Cannot open device", e))?;
        setup.set_num_flush_bios(1);
        setup.set_num_discard_bios(1);
        setup.set_num_write_zeroes_bios(1);
        Ok(Ok(Range {
            device,
            start,
            info: setup.info(),
        }))
    }

    fn map<'a>(range: &Range<'_>, bio: MapBio<'a, Self>) -> Mapped<'a> {
        let sector = range.start.wrapping_add(bio.sector());
        bio.remap(range.device, sector)
    }

    fn table(range: &Range<'_>, out: &mut TextWriter<'_>) {
        write!(out, "{} {}", range.device.name(), range.start);
    }

    fn iterate_devices(range: &Range<'_>, visitor: DeviceVisitor<'_>) -> Result<(), Stop> {
        visitor.visit(range.device, range.start, range.info.sectors())
    }
}

module_target! {
    type: RustLinear,
    name: "rust_dm_linear",
    authors: ["dm-remap developers"],
    description: "Device-mapper target in Rust: a range of a device",
    license: "GPL v2",
}
