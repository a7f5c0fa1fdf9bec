// SPDX-License-Identifier: GPL-2.0

//! Whether a table line, two devices, and what lies on the spare fit together.

use super::{
    args::TableLine,
    format::Superblock,
    geometry::{Geometry, BLOCK_SECTORS, MAX_UNIT_SECTORS, MIN_COPIES},
    Refusal,
};

/// What is to be known of a device.
#[derive(Clone, Copy, Debug)]
pub struct Disk {
    /// Its length in sectors.
    pub sectors: u64,
    /// Its logical block in sectors, a power of two.
    pub logical_block: u32,
    /// Its physical block in sectors, a power of two.
    pub physical_block: u32,
    /// It is a zoned device.
    pub is_zoned: bool,
}

/// Main and spare of a table line for a target of `length` sectors.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    length: u64,
    main: Disk,
    spare: Disk,
    /// Length of the spare region in sectors: whole blocks of metadata.
    pub region: u64,
}

impl Pair {
    /// What the table line says of the two devices, if they are as they must be.
    pub fn new(line: &TableLine, length: u64, main: Disk, spare: Disk) -> Result<Self, Refusal> {
        if main.is_zoned || spare.is_zoned {
            return Err(c"Zoned devices are not supported");
        }
        let main_end = line.main_start.checked_add(length);
        if main_end.is_none_or(|end| end > main.sectors) {
            return Err(c"main_dev ends before main_start and the target's length");
        }
        let rest = spare.sectors.checked_sub(line.spare_start);
        let rest = rest.ok_or(c"spare_start is past the end of spare_dev")?;
        let region = line.features.spare_sectors.unwrap_or(rest);
        if region > rest {
            return Err(c"spare_dev ends before spare_start and spare_sectors");
        }
        let pair = Self {
            length,
            main,
            spare,
            region: region - region % BLOCK_SECTORS,
        };
        let aligned = |sector: u64| sector & (u64::from(pair.block()) - 1) == 0;
        if u64::from(spare.logical_block) > BLOCK_SECTORS {
            return Err(c"spare_dev has logical blocks of more than 4096 bytes");
        }
        if !aligned(line.main_start) {
            return Err(c"main_start is not a multiple of the devices' logical block");
        }
        if !aligned(line.spare_start) {
            return Err(c"spare_start is not a multiple of the devices' logical block");
        }
        if !aligned(length) {
            return Err(c"Length is not a multiple of the devices' logical block");
        }
        Ok(pair)
    }

    /// The larger logical block of both devices, in sectors.
    pub fn block(&self) -> u32 {
        self.main.logical_block.max(self.spare.logical_block)
    }

    /// The layout of a spare that has this superblock, if the table line wants it like that.
    pub fn opened(
        &self,
        line: &TableLine,
        found: &Superblock,
        is_writable: bool,
    ) -> Result<Geometry, Refusal> {
        let (g, f) = (found.geometry, &line.features);
        if g.main_sectors != self.length {
            return Err(c"Spare was formatted for a main device of another length");
        }
        if f.unit_sectors.is_some_and(|n| n != g.unit_sectors) {
            return Err(c"Spare was formatted with another unit_sectors");
        }
        if f.metadata_copies.is_some_and(|n| n != g.copies) {
            return Err(c"Spare was formatted with another metadata_copies");
        }
        if f.spare_sectors.is_some() && g.spare_sectors != self.region {
            return Err(c"Spare was formatted with another spare_sectors");
        }
        if found.read_only && is_writable {
            return Err(c"Superblock: unknown feature that allows read-only use only");
        }
        self.checked(g)
    }

    /// The layout of a spare that is blank, if it may be formatted.
    pub fn formatted(&self, line: &TableLine, is_writable: bool) -> Result<Geometry, Refusal> {
        let f = &line.features;
        if f.no_format {
            return Err(c"Spare is blank and no_format is given");
        }
        if !is_writable {
            return Err(c"Spare is blank and the table is read-only");
        }
        let physical = self.main.physical_block.max(self.spare.physical_block);
        let default = physical.clamp(BLOCK_SECTORS as u32, MAX_UNIT_SECTORS);
        let unit = f.unit_sectors.unwrap_or(default);
        let copies = f.metadata_copies.unwrap_or(MIN_COPIES);
        self.checked(Geometry::plan(self.length, self.region, unit, copies)?)
    }

    fn checked(&self, geometry: Geometry) -> Result<Geometry, Refusal> {
        if geometry.unit_sectors < self.block() {
            return Err(c"unit_sectors is less than the devices' logical block");
        }
        Ok(geometry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: Disk = Disk {
        sectors: 1 << 20,
        logical_block: 1,
        physical_block: 8,
        is_zoned: false,
    };

    fn line(words: &str) -> TableLine {
        let words: std::vec::Vec<_> = words.split(' ').map(str::as_bytes).collect();
        TableLine::parse(&words).unwrap()
    }

    fn pair(words: &str, length: u64, main: Disk, spare: Disk) -> Result<Pair, Refusal> {
        Pair::new(&line(words), length, main, spare)
    }

    #[test]
    fn devices_that_do_not_fit_are_refused() {
        let refused = |words, length, main, spare| {
            let refusal: Refusal = pair(words, length, main, spare).unwrap_err();
            refusal.to_str().unwrap()
        };
        let zoned = Disk {
            is_zoned: true,
            ..DISK
        };
        let large = Disk {
            logical_block: 8,
            ..DISK
        };
        assert!(refused("m 0 s 0", 800, zoned, DISK).starts_with("Zoned"));
        assert!(refused("m 0 s 0", 800, DISK, zoned).starts_with("Zoned"));
        assert!(refused("m 1 s 0", 1 << 20, DISK, DISK).starts_with("main_dev ends"));
        assert!(refused("m 18446744073709551615 s 0", 8, DISK, DISK).starts_with("main_dev ends"));
        assert!(refused("m 0 s 1048577", 800, DISK, DISK).starts_with("spare_start is past"));
        assert!(refused("m 0 s 8 2 spare_sectors 1048576", 800, DISK, DISK)
            .starts_with("spare_dev ends"));
        let huge = Disk {
            logical_block: 16,
            ..DISK
        };
        assert!(refused("m 0 s 0", 800, DISK, huge).starts_with("spare_dev has"));
        assert!(refused("m 4 s 0", 800, DISK, large).starts_with("main_start is"));
        assert!(refused("m 0 s 4", 800, large, DISK).starts_with("spare_start is not"));
        assert!(refused("m 0 s 0", 804, large, DISK).starts_with("Length"));
        assert!(pair("m 8 s 8", 1 << 19, large, DISK).is_ok_and(|p| p.block() == 8));
    }

    #[test]
    fn the_region_is_whole_blocks() {
        let region = |words, sectors| {
            pair(words, 800, DISK, Disk { sectors, ..DISK })
                .unwrap()
                .region
        };
        assert_eq!(region("m 0 s 0", 4103), 4096);
        assert_eq!(region("m 0 s 8", 4103), 4088);
        assert_eq!(region("m 0 s 8 2 spare_sectors 1030", 4103), 1024);
    }

    #[test]
    fn what_lies_on_the_spare_must_be_what_the_line_says() {
        let geometry = |words: &str| {
            pair(words, 8000, DISK, DISK)
                .unwrap()
                .formatted(&line(words), true)
        };
        let g = geometry("m 0 s 0").unwrap();
        assert_eq!(
            (g.unit_sectors, g.copies, g.main_sectors),
            (8, MIN_COPIES, 8000)
        );
        assert_eq!(
            geometry("m 0 s 0 4 unit_sectors 32 metadata_copies 3")
                .unwrap()
                .unit_sectors,
            32
        );
        assert!(geometry("m 0 s 0 1 no_format").is_err());
        let l = line("m 0 s 0");
        let p = pair("m 0 s 0", 8000, DISK, DISK).unwrap();
        assert!(p.formatted(&l, false).is_err());
        let found = Superblock {
            uuid: [1; 16],
            generation: 1,
            read_only: false,
            geometry: g,
            created: 0,
            label: [0; 64],
            main: super::super::identity::Identity::default(),
        };
        assert_eq!(p.opened(&l, &found, true), Ok(g));
        for words in [
            "m 0 s 0 2 unit_sectors 16",
            "m 0 s 0 2 metadata_copies 3",
            "m 0 s 0 2 spare_sectors 8000",
        ] {
            assert!(
                pair(words, 8000, DISK, DISK)
                    .unwrap()
                    .opened(&line(words), &found, true)
                    .is_err(),
                "{words}"
            );
        }
        assert!(pair("m 0 s 0", 8008, DISK, DISK)
            .unwrap()
            .opened(&l, &found, true)
            .is_err());
        let read_only = Superblock {
            read_only: true,
            ..found.clone()
        };
        assert!(p.opened(&l, &read_only, true).is_err() && p.opened(&l, &read_only, false).is_ok());
        let large = Disk {
            logical_block: 16,
            ..DISK
        };
        assert!(pair("m 0 s 0", 8000, large, DISK)
            .unwrap()
            .opened(&l, &found, true)
            .is_err());
    }
}
