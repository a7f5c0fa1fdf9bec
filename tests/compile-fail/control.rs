// SPDX-License-Identifier: GPL-2.0

//! A target that compiles. Each of the other files here replaces some of its parts, which stand between `// name {` and
//! `// }`, by something that must not: see run.py.

#[path = "../../src/dm/mod.rs"]
mod dm;

use dm::*;
use kernel::{prelude::*, sync::Mutex};

/// Whatever is kept for ever.
fn keep<T: Send + 'static>(_: T) {}
fn send<T: Send>(_: T) {}

struct Program;

// data {
#[pin_data]
struct Data<'t> {
    device: Device<'t>,
    linear: Linear<'t>,
    work: Work<'t>,
    info: &'t TargetInfo,
}
// }

struct Job;

impl TargetWork<Program> for Job {
    fn run(_data: &Data<'_>) {}
}

#[vtable]
impl Target for Program {
    type Data<'t> = Data<'t>;
    // per_bio {
    type PerBio = u32;
    // }
    type RegistrationData = ();
    const NAME: &'static CStr = c"program";
    const VERSION: [u32; 3] = [1, 0, 0];
    // consts {
    // }

    // ctr {
    fn ctr<'t>(
        setup: &mut Setup<'t, Self>,
        _: &Args,
    ) -> Result<impl PinInit<Data<'t>, Error>, Refused> {
        let device = setup.device(c"/dev/null")?;
        Ok(Ok(Data {
            device,
            linear: setup.linear(device, 0),
            work: setup.work::<Job>()?,
            info: setup.info(),
        }))
    }
    // }

    fn map<'a>(data: &Data<'_>, mut bio: MapBio<'a, Self>) -> Mapped<'a> {
        data.work.queue();
        if !bio.accept_partial(1) {
            return bio.complete(BlkStatus::IOERR);
        }
        // map {
        bio.remap_with(data.device, 0, 0, 1)
        // }
    }

    // process {
    fn process(data: &Data<'_>, bio: DeferredBio<'_, Self>) {
        bio.complete(BlkStatus::OK);
        data.work.cancel();
    }
    // }

    fn end_io<'a>(data: &Data<'_>, bio: EndBio<'a, Self>) -> Ended<'a> {
        let _ = data.info.sectors();
        // end_io {
        bio.pass_on()
        // }
    }
}

// items {
// }

module_target! {
    type: Program,
    name: "program",
    authors: ["dm-remap developers"],
    description: "What must not compile",
    license: "GPL v2",
}
