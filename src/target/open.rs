// SPDX-License-Identifier: GPL-2.0

//! A table line becomes a target: what it names is opened, looked at, and claimed. Nothing is written.

use super::{
    area::{Main, Spare},
    claim::Claim,
    map::plain_ops,
    status::Counters,
    store::Store,
    Batch, Entries, Listed, Mode, Mover, Remap, RemapTarget, Settings, SpareCache, UnitLocks,
    Vitals, Works, MAX_LISTED,
};
use crate::dm::{Args, Device, IoBuffer, Refused, Setup};
use crate::engine::{
    args::TableLine,
    fit::{Disk, Pair},
    geometry::Geometry,
    identity::{DiskId, IdKind, Identity},
};
use kernel::{new_mutex, prelude::*, sync::atomic::Atomic};

/// Largest physical block of main that is read as one, in sectors.
const MAX_PHYSICAL: u32 = 128;

/// What a table line leads to.
pub(super) struct Opened<'t> {
    line: TableLine,
    main: Device<'t>,
    spare: Device<'t>,
    /// The larger logical block of both devices, in sectors.
    block: u32,
    /// What is known of main.
    identity: Identity,
    claim: Claim<'t>,
    geometry: Geometry,
    /// Table blocks in use.
    in_use: u64,
    /// The spare was blank, and nothing speaks against formatting it.
    may_format: bool,
}

/// What the engine has to know of a device. May sleep.
fn disk(device: Device<'_>) -> Disk {
    Disk {
        sectors: device.sectors(),
        logical_block: device.logical_block(),
        physical_block: device.physical_block(),
        is_zoned: device.is_zoned(),
    }
}

/// What the kernel knows of `main`, of which the target protects what begins at sector `start`. May sleep.
fn identity_of(main: Device<'_>, start: u64) -> Identity {
    let disk = IdKind::ALL.into_iter().find_map(|kind| {
        let (bytes, length) = main.unique_id(kind as u32)?;
        let start = main.first_sector().checked_add(start)?;
        Some((DiskId::new(kind, bytes, length)?, start))
    });
    Identity::new(main.partition_uuid(), disk).unwrap_or_default()
}

impl<'t> Opened<'t> {
    /// Opens, claims and reads what the words name, and refuses what does not fit together. May sleep.
    pub(super) fn new(setup: &mut Setup<'t, RemapTarget>, args: &Args) -> Result<Self, Refused> {
        let line = TableLine::parse(&args.words()?)?;
        let (length, writable) = (setup.info().sectors(), setup.info().is_writable());

        let path = args.get(0).ok_or(c"Missing main_dev")?;
        let refuse = |error| Refused(c"Cannot open main_dev", error);
        let main = setup.device(path).map_err(refuse)?;
        let path = args.get(2).ok_or(c"Missing spare_dev")?;
        let refuse = |error| Refused(c"Cannot open spare_dev", error);
        let spare = setup.device(path).map_err(refuse)?;

        let pair = Pair::new(&line, length, disk(main), disk(spare))?;
        let range = spare.range(line.spare_start, pair.region);
        if main.range(line.main_start, length).overlaps(&range) {
            return Err(c"Spare region overlaps main".into());
        }
        let claims = setup.registration_data();
        let claim = claims.claim(setup.info().table(), range);
        let claim = claim.map_err(|error| match error == EBUSY {
            true => Refused(
                c"Spare region belongs to another mapped device or target",
                error,
            ),
            false => error.into(),
        })?;

        let identity = identity_of(main, line.main_start);
        let found = Store::probe(spare, line.spare_start, pair.region)?;
        let (geometry, in_use) = match &found {
            None => {
                let geometry = pair.formatted(&line, writable)?;
                (geometry, geometry.first_part())
            }
            Some(found) => {
                let superblock = &found.superblock;
                let geometry = pair.opened(&line, superblock, writable)?;
                if !line.features.rebind && superblock.main.contradicts(&identity) {
                    pr_err!(
                        "{}: the spare belongs to {}, and main is {}\n",
                        setup.info().name().to_str().unwrap_or("?"),
                        superblock.main,
                        identity
                    );
                    let why = c"Main is not the one that the spare belongs to (the log names both): rebind takes it";
                    return Err(why.into());
                }
                let in_use = Store::blocks_in_use(spare, line.spare_start, superblock)?;
                (geometry, in_use)
            }
        };
        Ok(Self {
            line,
            main,
            spare,
            block: pair.block(),
            identity,
            claim,
            geometry,
            in_use,
            may_format: found.is_none(),
        })
    }

    /// The target. May sleep.
    pub(super) fn build(
        self,
        setup: &mut Setup<'t, RemapTarget>,
    ) -> Result<impl PinInit<Remap<'t>, Error> + use<'t>, Refused> {
        let Self {
            line,
            main,
            spare,
            block,
            identity,
            claim,
            geometry,
            in_use,
            may_format,
        } = self;
        // One for each device.
        setup.set_num_flush_bios(2);
        if main.can_discard() {
            setup.set_num_discard_bios(1);
            setup.set_discards_supported();
        }
        setup.set_num_write_zeroes_bios(1);
        let (ti, works) = (setup.info(), Works::new(setup)?);
        let on_main = setup.linear(main, line.main_start);
        let writable = ti.is_writable();
        let physical = main.physical_block().min(MAX_PHYSICAL).max(block);
        let features = line.features;
        Ok(try_pin_init!(Remap {
            works,
            entries <- Entries::new(&geometry, in_use),
            cache: SpareCache::new(),
            store <- Store::new(
                ti,
                Spare::new(spare, line.spare_start),
                geometry,
                block,
                identity,
                features.rebind,
            ),
            units <- UnitLocks::new(),
            vitals <- Vitals::new(physical),
            settings: Settings::new(&features),
            lazy <- new_mutex!(Listed::new()?, "dm_remap::lazy"),
            batch <- new_mutex!(Batch::new()?, "dm_remap::batch"),
            room <- new_mutex!(Batch::new()?, "dm_remap::room"),
            next_yielding: Atomic::new(0),
            marginal <- new_mutex!(
                KVec::with_capacity(MAX_LISTED, GFP_KERNEL)?,
                "dm_remap::marginal"
            ),
            mover <- new_mutex!(Mover::new(geometry.unit_sectors)?, "dm_remap::mover"),
            slot_mover <- new_mutex!(
                IoBuffer::new((geometry.unit_sectors.max(block) as usize) << 9)?,
                "dm_remap::slot_mover"
            ),
            suspending: Atomic::new(true),
            loaded: Atomic::new(false),
            reported <- new_mutex!(
                if writable { Mode::Active } else { Mode::Readonly },
                "dm_remap::reported"
            ),
            main: Main::new(main, line.main_start),
            on_main,
            geometry,
            block,
            writable,
            plain_ops: Atomic::new(plain_ops(*writable)),
            may_format,
            counters: Counters::new()?,
            ti,
            claim,
        }? Error))
    }
}
