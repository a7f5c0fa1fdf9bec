// SPDX-License-Identifier: GPL-2.0

//! Numbers on the command line: sizes and places in sectors, and numbers that have a range. What is wrong with a value is
//! wrong usage.

use dm_remap::engine::SECTOR_SIZE;
use std::time::Duration;

const SECTOR: u64 = SECTOR_SIZE as u64;

/// How to write a number of sectors.
const HOW: &str = "not a number of sectors, like 2048, 0x800, 2048s, 1M or 1MiB";

/// Bytes of the unit that a suffix, in capitals, stands for: as for fdisk(8) and truncate(1), K and KiB are 1024 bytes, KB is
/// 1000.
fn unit(suffix: &str) -> Option<u64> {
    let base = match suffix {
        "" | "S" => return Some(SECTOR),
        "B" => return Some(1),
        _ => match suffix.get(1..)? {
            "" | "IB" => 1024,
            "B" => 1000,
            _ => return None,
        },
    };
    let power = "KMGTPE".find(suffix.get(..1)?)?;
    u64::pow(base, 1 + power as u32).into()
}

/// A number of sectors: without a suffix, or a number of bytes in the unit of the suffix. Less than 8 EiB, more than any
/// device of Linux has.
pub(crate) fn sectors(text: &str) -> Result<u64, String> {
    let hex = text.strip_prefix("0x").or(text.strip_prefix("0X"));
    let (digits, base, unit) = match hex {
        // B and E are digits of it.
        Some(digits) => (digits, 16, Some(SECTOR)),
        None => {
            let end = text.find(|c: char| !c.is_ascii_digit());
            let (digits, suffix) = text.split_at(end.unwrap_or(text.len()));
            (digits, 10, unit(&suffix.to_ascii_uppercase()))
        }
    };
    let valid = !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
    let unit = unit.filter(|_| valid).ok_or(HOW)?;
    let number = u64::from_str_radix(digits, base).ok();
    let bytes = number.and_then(|n| n.checked_mul(unit));
    let bytes = bytes.filter(|bytes| *bytes <= i64::MAX as u64);
    let bytes = bytes.ok_or("more than any device has: it must be less than 8 EiB")?;
    if bytes % SECTOR != 0 {
        return Err(format!("{bytes} bytes are not whole sectors of {SECTOR}"));
    }
    Ok(bytes / SECTOR)
}

/// A number of sectors, one at least.
pub(crate) fn length(text: &str) -> Result<u64, String> {
    match sectors(text)? {
        0 => Err("there must be one sector at least".into()),
        sectors => Ok(sectors),
    }
}

/// Sectors of a unit.
pub(crate) fn unit_sectors(text: &str) -> Result<u32, String> {
    match sectors(text)? {
        sectors @ 1..=64 if sectors.is_power_of_two() => Ok(sectors as u32),
        _ => Err("not a power of two from 1 to 64".into()),
    }
}

/// A span of time as systemd.time(7) has it: `30`, `30s`, `1min 30s`, `infinity`; zero and infinity: for ever.
pub(crate) fn time_span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?}: not a time, like 30, 30s, 5min or infinity");
    let mut rest = text.trim();
    if rest == "infinity" {
        return Ok(Duration::ZERO);
    }
    let mut all = Duration::ZERO;
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let (number, behind) = rest.split_at(end.unwrap_or(rest.len()));
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let behind = behind.trim_start();
        let end = behind.find(|c: char| !c.is_ascii_alphabetic());
        let (unit, behind) = behind.split_at(end.unwrap_or(behind.len()));
        let milliseconds = match unit {
            "ms" | "msec" => 1,
            "" | "s" | "sec" | "second" | "seconds" => 1000,
            "m" | "min" | "minute" | "minutes" => 60_000,
            "h" | "hr" | "hour" | "hours" => 3_600_000,
            _ => return Err(wrong()),
        };
        all = number
            .checked_mul(milliseconds)
            .and_then(|span| all.checked_add(Duration::from_millis(span)))
            .ok_or_else(wrong)?;
        rest = behind.trim_start();
        if rest.is_empty() {
            return Ok(all);
        }
    }
}

/// A span of time that ends.
pub(crate) fn finite(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "infinity" => Err("not a time that ends, like 30, 30s or 5min".into()),
        _ => time_span(text),
    }
}

/// A span of time that ends, and not at once.
pub(crate) fn some_time(text: &str) -> Result<Duration, String> {
    match finite(text)? {
        Duration::ZERO => Err("not more than no time at all".into()),
        span => Ok(span),
    }
}

/// Replicas of the metadata.
pub(crate) fn copies(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(copies @ 2..=4) => Ok(copies),
        _ => Err("not a number from 2 to 4".into()),
    }
}

/// A number of slots.
pub(crate) fn slots(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("not a number of slots, 1 or more".into()),
        Ok(slots) => Ok(slots),
    }
}

/// MiB in a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (0.01..=1e6).contains(&rate) => Ok(rate),
        _ => Err("not a number of MiB in a second, 0.01 at least".into()),
    }
}

/// A share in percent.
pub(crate) fn percent(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("not a number above 0 and up to 100".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_systemd() {
        for (text, seconds) in [
            ("30", 30),
            ("90s", 90),
            ("1min 30s", 90),
            ("5min", 300),
            ("2h", 7200),
            ("1500ms", 1),
            ("0", 0),
            ("infinity", 0),
        ] {
            assert_eq!(time_span(text).unwrap().as_secs(), seconds, "{text}");
        }
        for text in ["", "s", "-1", "1.5", "3 weeks", "99999999999999999999"] {
            time_span(text).unwrap_err();
        }
    }

    #[test]
    fn some_times_must_end_and_others_must_also_last() {
        assert_eq!(finite("0"), Ok(Duration::ZERO));
        assert_eq!(some_time("1ms"), Ok(Duration::from_millis(1)));
        assert!(finite(" infinity ").is_err() && some_time("infinity").is_err());
        assert!(some_time("0s").is_err() && some_time("x").is_err());
    }

    #[test]
    fn sectors_may_have_a_suffix() {
        for (text, expected) in [
            ("0", 0),
            ("8", 8),
            ("08", 8),
            ("8s", 8),
            ("8S", 8),
            ("0x10", 16),
            ("0X1b", 27),
            ("0xE", 14),
            ("4096B", 8),
            ("4K", 8),
            ("4k", 8),
            ("4KiB", 8),
            ("1M", 2048),
            ("1mib", 2048),
            ("2G", 1 << 22),
            ("1T", 1 << 31),
            ("1P", 1 << 41),
            ("7EiB", 7 << 51),
            ("64KB", 125),
            ("1GB", 1_953_125),
            ("1TB", 1_953_125_000),
            ("18014398509481983", (1 << 54) - 1),
        ] {
            assert_eq!(sectors(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_of_sectors_is_refused_with_a_reason() {
        for text in [
            "", " ", " 8", "8 ", "-8", "+8", "8x", "K", "s", "8ss", "1.5G", "1,5G", "0x", "0x8K",
            "0xg", "8Ki", "8iB", "8Kb8", "٣", "8µ", "8KiBs", "1e3",
        ] {
            assert_eq!(sectors(text), Err(HOW.into()), "{text:?}");
        }
        for text in [
            "8E",
            "8EiB",
            "99999999999999999999",
            "18014398509481984",
            "0xffffffffffffffff",
        ] {
            assert!(sectors(text).unwrap_err().contains("8 EiB"), "{text}");
        }
        for (text, bytes) in [("1B", 1), ("1KB", 1000), ("1MB", 1_000_000)] {
            let why = format!("{bytes} bytes are not whole sectors of 512");
            assert_eq!(sectors(text), Err(why), "{text}");
        }
        assert_eq!(length("1"), Ok(1));
        assert!(length("0K").is_err());
    }

    #[test]
    fn units_copies_slots_and_shares_have_a_range() {
        assert_eq!(unit_sectors("4K"), Ok(8));
        assert_eq!(unit_sectors("64"), Ok(64));
        for text in ["0", "3", "128", "64K", "x"] {
            assert!(unit_sectors(text).is_err(), "{text}");
        }
        assert_eq!((copies("2"), copies("4")), (Ok(2), Ok(4)));
        assert!(["1", "5", "", "2s"]
            .iter()
            .all(|text| copies(text).is_err()));
        assert_eq!(slots("1"), Ok(1));
        assert!(["0", "-1", "1K"].iter().all(|text| slots(text).is_err()));
        assert_eq!(percent("0.01"), Ok(0.01));
        assert_eq!(percent("100"), Ok(100.0));
        let wrong = ["0", "-1", "100.1", "nan", "inf", "1%"];
        assert!(wrong.iter().all(|text| percent(text).is_err()));
        assert_eq!((rate("0.5"), rate("20")), (Ok(0.5), Ok(20.0)));
        let wrong = ["0", "-1", "nan", "inf", "1MiB", ""];
        assert!(wrong.iter().all(|text| rate(text).is_err()));
    }
}
