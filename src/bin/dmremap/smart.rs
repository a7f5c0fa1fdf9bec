// SPDX-License-Identifier: GPL-2.0

//! What a drive says of itself, as smartctl(8) reads it: beside what dm-remap knows, where smartmontools is installed.
//!
//! Nothing depends on it. smartctl is given little time, as a drive that fails may not answer, and a drive that sleeps is not
//! woken.

use crate::dm::{attribute, directory, number, number_at, path_of};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long one drive may take, in all. A drive that retries a bad sector answers nothing else meanwhile.
const LIMIT: Duration = Duration::from_secs(15);

/// What smartctl is told to end with if the drive sleeps. It has no other use for this number.
const ASLEEP: u64 = 3;

/// What a drive says; `None` is what it does not say. The names are those of docs/json.md and stay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Smart {
    /// Its node.
    pub(crate) drive: String,
    pub(crate) model: Option<String>,
    /// It sleeps, and was not asked.
    pub(crate) asleep: bool,
    /// It expects to fail soon.
    pub(crate) failing: Option<bool>,
    /// Sectors that it could not read, and waits for a write of: attribute 197, or a SCSI drive's pending defects.
    pub(crate) pending: Option<u64>,
    /// Sectors that it replaced: attribute 5, or a SCSI drive's grown defects.
    pub(crate) reallocated: Option<u64>,
    /// Sectors that its own tests could not read: attribute 198.
    pub(crate) uncorrectable: Option<u64>,
    /// NVMe: errors that it could not correct.
    pub(crate) media_errors: Option<u64>,
    /// NVMe: bits, 0 is well.
    pub(crate) critical_warning: Option<u64>,
    /// NVMe: of the life that it was built for, in percent; may be more than 100.
    pub(crate) percentage_used: Option<u64>,
}

impl std::fmt::Display for Smart {
    /// For a person: `/dev/sda says: 8 sectors pending, 24 reallocated`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.asleep {
            return write!(f, "{} sleeps, and was not asked", self.drive);
        }
        let of = |number: Option<u64>, what: &str| number.map(|number| format!("{number} {what}"));
        let warning = self.critical_warning.filter(|bits| *bits != 0);
        let said = [
            self.failing
                .map(|failing| String::from(if failing { "failing" } else { "not failing" })),
            of(self.pending, "sectors pending"),
            of(self.reallocated, "reallocated"),
            of(self.uncorrectable, "uncorrectable offline"),
            of(self.media_errors, "media errors"),
            of(self.percentage_used, "% of its life used"),
            warning.map(|bits| format!("critical warning {bits:#x}")),
        ];
        let said: Vec<String> = said.into_iter().flatten().collect();
        write!(f, "{} says: {}", self.drive, said.join(", "))
    }
}

/// What the drive says that `device` lies on: through partitions, LVM and other mapped devices.
///
/// `None`: smartctl is not installed, or cannot speak to it, or takes too long, or there are several drives.
pub(crate) fn of(device: &Path) -> Option<Smart> {
    Drives::default().of(device)
}

/// What drives said, each of which is asked once.
#[derive(Default)]
pub(crate) struct Drives(HashMap<PathBuf, Option<Smart>>);

impl Drives {
    /// What the drive says that `device` lies on; see [`of`].
    pub(crate) fn of(&mut self, device: &Path) -> Option<Smart> {
        let drive = drive(device)?;
        self.said(&drive, &mut |drive| {
            ask(Path::new("smartctl"), drive, LIMIT)
        })
    }

    fn said(&mut self, drive: &Path, ask: &mut dyn FnMut(&Path) -> Option<Smart>) -> Option<Smart> {
        if !self.0.contains_key(drive) {
            self.0.insert(drive.into(), ask(drive));
        }
        self.0[drive].clone()
    }
}

/// The node of the drive that `device` lies on, if it is one.
fn drive(device: &Path) -> Option<PathBuf> {
    let mut all = Vec::new();
    drives(&directory(number_at(device)?)?, &mut all);
    let [drive] = &all[..] else { return None };
    // The virtual ones have no hardware.
    drive.join("device").exists().then_some(())?;
    Some(path_of(number(&attribute(drive, "dev")?)?))
}

/// The directories in sysfs of the drives below the device of `directory`, each once.
fn drives(directory: &Path, all: &mut Vec<PathBuf>) {
    let Ok(directory) = fs::canonicalize(directory) else {
        return;
    };
    if directory.join("partition").exists() {
        return directory
            .parent()
            .into_iter()
            .for_each(|disk| drives(disk, all));
    }
    let slaves = fs::read_dir(directory.join("slaves"))
        .into_iter()
        .flatten()
        .flatten();
    let slaves: Vec<PathBuf> = slaves.map(|slave| slave.path()).collect();
    if slaves.is_empty() && !all.contains(&directory) {
        all.push(directory);
    } else {
        slaves.iter().for_each(|slave| drives(slave, all));
    }
}

/// Asks `drive` by `smartctl`, for so long in all.
fn ask(smartctl: &Path, drive: &Path, limit: Duration) -> Option<Smart> {
    let begin = Instant::now();
    let run = |what: &[&str]| {
        let rest = limit.saturating_sub(begin.elapsed());
        run(smartctl, what, drive, rest)
    };
    let document = run(&["-H", "-A", "-i"])?;
    let mut smart = Smart {
        drive: drive.display().to_string(),
        ..read(&document)
    };
    // ATA drives have that in an attribute; some of them, and bridges, do not bear being asked for the log.
    if document.pointer("/device/type").and_then(Value::as_str) == Some("scsi") {
        let defects = run(&["-l", "defects"]);
        smart.pending = defects.and_then(|defects| read(&defects).pending);
    }
    let says_nothing = Smart {
        drive: smart.drive.clone(),
        model: smart.model.clone(),
        ..Smart::default()
    };
    (smart != says_nothing).then_some(smart)
}

/// What smartctl prints.
fn run(smartctl: &Path, what: &[&str], drive: &Path, limit: Duration) -> Option<Value> {
    let mut child = Command::new(smartctl)
        .args(["--json=c", "-n", &format!("standby,{ASLEEP}")])
        .args(what)
        .arg(drive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let mut out = child.stdout.take()?;
    let (said, hear) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        let _ = out.read_to_end(&mut text);
        let _ = said.send(text);
    });
    let text = hear.recv_timeout(limit);
    let _ = child.kill();
    // One that waits for the drive in the kernel cannot be killed before that answers.
    thread::spawn(move || child.wait());
    serde_json::from_slice(&text.ok()?).ok()
}

/// What is said in what smartctl prints. Fields may be missing, and of any type.
fn read(document: &Value) -> Smart {
    let number = |path: &str| document.pointer(path).and_then(Value::as_u64);
    let nvme = |name: &str| number(&format!("/nvme_smart_health_information_log/{name}"));
    let text = |path: &str| {
        document
            .pointer(path)
            .and_then(Value::as_str)
            .map(String::from)
    };
    Smart {
        drive: String::new(),
        model: text("/model_name").or_else(|| text("/scsi_model_name")),
        asleep: number("/smartctl/exit_status") == Some(ASLEEP),
        failing: document
            .pointer("/smart_status/passed")
            .and_then(Value::as_bool)
            .map(|passed| !passed),
        // Some SSDs have something else there, and smartctl knows of which.
        pending: attribute_of(document, 197, "pending")
            .or_else(|| number("/scsi_pending_defects/count")),
        reallocated: attribute_of(document, 5, "").or_else(|| number("/scsi_grown_defect_list")),
        uncorrectable: attribute_of(document, 198, "unc"),
        media_errors: nvme("media_errors"),
        critical_warning: nvme("critical_warning"),
        percentage_used: nvme("percentage_used"),
    }
}

/// The raw value of an ATA drive's attribute, if its name has `word` in it.
fn attribute_of(document: &Value, id: u64, word: &str) -> Option<u64> {
    let table = document
        .pointer("/ata_smart_attributes/table")?
        .as_array()?;
    let is_it = |row: &&Value| {
        let name = row["name"].as_str().unwrap_or_default();
        row["id"].as_u64() == Some(id) && name.to_ascii_lowercase().contains(word)
    };
    let raw = &table.iter().find(is_it)?["raw"];
    // As a number it may have more numbers in its upper bytes; as text they come behind it.
    let digits = raw["string"].as_str().and_then(|text| {
        let end = text.find(|c: char| !c.is_ascii_digit());
        text[..end.unwrap_or(text.len())].parse().ok()
    });
    digits.or_else(|| raw["value"].as_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;

    fn attribute(id: u64, name: &str, value: u64, text: &str) -> Value {
        json!({
            "id": id, "name": name, "value": 100, "worst": 100, "thresh": 10, "when_failed": "",
            "flags": { "value": 51, "string": "PO--CK ", "prefailure": true },
            "raw": { "value": value, "string": text },
        })
    }

    /// As smartctl 7.3 prints of an ATA disk with `-H -A -i`.
    fn ata(attributes: Vec<Value>, passed: bool) -> Value {
        json!({
            "json_format_version": [1, 0],
            "smartctl": {
                "version": [7, 3], "svn_revision": "5338", "argv": ["smartctl"], "exit_status": 0
            },
            "device": { "name": "/dev/sda", "info_name": "/dev/sda [SAT]", "type": "sat", "protocol": "ATA" },
            "model_family": "Seagate Barracuda 7200.14 (AF)",
            "model_name": "ST2000DM001-1CH164",
            "user_capacity": { "blocks": 3_907_029_168_u64, "bytes": 2_000_398_934_016_u64 },
            "smart_status": { "passed": passed },
            "ata_smart_attributes": { "revision": 10, "table": attributes },
            "power_on_time": { "hours": 34_011 },
            "temperature": { "current": 33 },
        })
    }

    fn refused(messages: &str, status: u64) -> Value {
        json!({
            "json_format_version": [1, 0],
            "smartctl": {
                "version": [7, 4],
                "messages": [{ "string": messages, "severity": "error" }],
                "exit_status": status,
            },
        })
    }

    #[test]
    fn an_ata_drive_says_what_is_in_its_attributes() {
        let document = ata(
            vec![
                attribute(1, "Raw_Read_Error_Rate", 119_837_104, "119837104"),
                attribute(5, "Reallocated_Sector_Ct", 24, "24"),
                attribute(197, "Current_Pending_Sector", 8, "8"),
                attribute(198, "Offline_Uncorrectable", 7, "7"),
            ],
            true,
        );
        let expected = Smart {
            model: Some("ST2000DM001-1CH164".into()),
            failing: Some(false),
            pending: Some(8),
            reallocated: Some(24),
            uncorrectable: Some(7),
            ..Smart::default()
        };
        assert_eq!(read(&document), expected);
    }

    #[test]
    fn numbers_in_the_upper_bytes_of_an_attribute_are_not_counted() {
        let crowded = attribute(5, "Reallocated_Sector_Ct", 5 + (1 << 32), "5 (0 1)");
        let plain = json!({ "id": 197, "name": "Current_Pending_Sector", "raw": { "value": 9 } });
        let smart = read(&ata(vec![crowded, plain], false));
        assert_eq!((smart.reallocated, smart.pending), (Some(5), Some(9)));
        assert_eq!(smart.failing, Some(true));
    }

    #[test]
    fn attributes_that_mean_something_else_are_not_taken() {
        let document = ata(
            vec![
                attribute(5, "Retired_Block_Count", 0, "0"),
                attribute(197, "Total_Unc_Read_Failures", 3, "3"),
                attribute(198, "Host_Reads_GiB", 4711, "4711"),
            ],
            true,
        );
        let smart = read(&document);
        assert_eq!((smart.pending, smart.uncorrectable), (None, None));
        assert_eq!(smart.reallocated, Some(0));
    }

    #[test]
    fn an_nvme_drive_says_what_is_in_its_health_log() {
        let document = json!({
            "smartctl": { "version": [7, 4], "exit_status": 8 },
            "device": { "name": "/dev/nvme0n1", "type": "nvme", "protocol": "NVMe" },
            "model_name": "Samsung SSD 970 EVO Plus 1TB",
            "smart_status": { "passed": false, "nvme": { "value": 4, "reliability_degraded": true } },
            "nvme_smart_health_information_log": {
                "critical_warning": 4, "temperature": 41, "available_spare": 97, "percentage_used": 103,
                "media_errors": 12, "num_err_log_entries": 900,
            },
        });
        let expected = Smart {
            model: Some("Samsung SSD 970 EVO Plus 1TB".into()),
            failing: Some(true),
            media_errors: Some(12),
            critical_warning: Some(4),
            percentage_used: Some(103),
            ..Smart::default()
        };
        assert_eq!(read(&document), expected);
    }

    #[test]
    fn what_it_says_is_told_in_a_line() {
        let smart = Smart {
            drive: "/dev/sda".into(),
            failing: Some(true),
            pending: Some(8),
            reallocated: Some(24),
            ..Smart::default()
        };
        assert_eq!(
            smart.to_string(),
            "/dev/sda says: failing, 8 sectors pending, 24 reallocated"
        );
        let smart = Smart {
            drive: "/dev/nvme0n1".into(),
            failing: Some(false),
            media_errors: Some(0),
            critical_warning: Some(0),
            percentage_used: Some(3),
            ..Smart::default()
        };
        assert_eq!(
            smart.to_string(),
            "/dev/nvme0n1 says: not failing, 0 media errors, 3 % of its life used"
        );
        let smart = Smart {
            drive: "/dev/sda".into(),
            asleep: true,
            ..Smart::default()
        };
        assert_eq!(smart.to_string(), "/dev/sda sleeps, and was not asked");
    }

    #[test]
    fn what_is_missing_or_of_another_type_is_not_known() {
        for document in [
            json!({}),
            json!(null),
            json!([]),
            json!({
                "smart_status": "passed", "ata_smart_attributes": { "table": 5 }, "scsi_grown_defect_list": "0",
                "nvme_smart_health_information_log": null, "model_name": 7, "smartctl": { "exit_status": -3 },
            }),
            json!({ "ata_smart_attributes": { "table": [null, 7, {}, { "id": 197 }, { "id": 5, "raw": 3 }] } }),
        ] {
            assert_eq!(read(&document), Smart::default(), "{document}");
        }
    }

    /// A program that prints `what` for each way it is called in that has the word.
    fn fake(place: &Path, answers: &[(&str, &str)]) -> PathBuf {
        let path = place.join("smartctl");
        let cases: String = answers
            .iter()
            .map(|(word, answer)| format!("*\" {word} \"*) cat <<'END'\n{answer}\nEND\n;;\n"))
            .collect();
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{}\ncase \" $* \" in\n{cases}esac\n",
            place.join("asked").display()
        );
        write_program(&path, &script);
        path
    }

    /// A child writes it: what this process has open for writing, other threads' children have for a moment, too, and then it
    /// cannot be run.
    fn write_program(path: &Path, script: &str) {
        let mut child = Command::new("sh")
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut into = child.stdin.take().unwrap();
        into.write_all(script.as_bytes()).unwrap();
        drop(into);
        assert!(child.wait().unwrap().success());
    }

    fn answer(answers: &[(&str, &str)]) -> (Option<Smart>, String) {
        let place = tempfile::tempdir().unwrap();
        let program = fake(place.path(), answers);
        let smart = ask(&program, Path::new("/dev/sdx"), LIMIT);
        let asked = fs::read_to_string(place.path().join("asked")).unwrap();
        (smart, asked)
    }

    #[test]
    fn a_scsi_drive_is_asked_for_its_pending_defects_too() {
        let first = json!({
            "smartctl": { "version": [7, 4], "exit_status": 0 },
            "device": { "name": "/dev/sdx", "type": "scsi", "protocol": "SCSI" },
            "scsi_model_name": "SEAGATE ST16000NM004J",
            "smart_status": { "passed": true },
            "scsi_grown_defect_list": 3,
        });
        let second =
            json!({ "scsi_pending_defects": { "count": 2, "table": [null, { "lba": 11 }] } });
        let (smart, asked) =
            answer(&[("defects", &second.to_string()), ("-A", &first.to_string())]);
        let expected = Smart {
            drive: "/dev/sdx".into(),
            model: Some("SEAGATE ST16000NM004J".into()),
            failing: Some(false),
            pending: Some(2),
            reallocated: Some(3),
            ..Smart::default()
        };
        assert_eq!(smart, Some(expected));
        assert_eq!(asked.lines().count(), 2);
        // It may be asleep either time.
        assert!(asked.lines().all(|line| line.contains("-n standby,3 ")));
    }

    #[test]
    fn an_ata_drive_is_asked_once_and_never_woken() {
        let (smart, asked) = answer(&[("-A", &ata(vec![], true).to_string())]);
        assert_eq!(smart.unwrap().failing, Some(false));
        assert_eq!(asked, "--json=c -n standby,3 -H -A -i /dev/sdx\n");
        let asleep = refused("Device is in STANDBY mode, exit(3)", 3);
        let (smart, _) = answer(&[("-A", &asleep.to_string())]);
        let smart = smart.unwrap();
        assert!(smart.asleep && smart.pending.is_none() && smart.failing.is_none());
    }

    #[test]
    fn a_drive_that_cannot_be_asked_says_nothing() {
        let bridge = "/dev/sdx: Unknown USB bridge [0x152d:0x0578 (0x508)]";
        for said in [
            refused(bridge, 1).to_string(),
            refused("Smartctl open device: /dev/sdx failed: No such device", 2).to_string(),
            // A bridge that answers as a SCSI disk, but has no SMART.
            json!({
                "device": { "type": "scsi" }, "scsi_model_name": "Generic Flash Disk",
                "smart_support": { "available": false }, "smartctl": { "exit_status": 4 },
            })
            .to_string(),
            // smartctl 6.
            "=======> UNRECOGNIZED OPTION: json=c\n\nUse smartctl -h to get a usage summary".into(),
            String::new(),
            "{\"smart_status\": {\"passed\": tr".into(),
        ] {
            let (smart, _) = answer(&[("-A", &said), ("defects", "{}")]);
            assert_eq!(smart, None, "{said}");
        }
        assert_eq!(
            ask(Path::new("/nonexistent"), Path::new("/dev/sdx"), LIMIT),
            None
        );
    }

    #[test]
    fn a_drive_that_does_not_answer_is_given_up() {
        let place = tempfile::tempdir().unwrap();
        let fifo = place.path().join("fifo");
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let program = fake(place.path(), &[]);
        let mut script = fs::read_to_string(&program).unwrap();
        // Nobody ever writes there.
        script += &format!("exec cat {}\n", fifo.display());
        write_program(&program, &script);
        // On a busy machine it may take longer until the program has begun.
        for seconds in [1, 4, 16, 64] {
            let limit = Duration::from_secs(seconds);
            let begin = Instant::now();
            assert_eq!(ask(&program, Path::new("/dev/sdx"), limit), None);
            assert!(begin.elapsed() >= limit);
            if place.path().join("asked").exists() {
                break;
            }
        }
        let asked = fs::read_to_string(place.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 1);
    }

    #[test]
    fn a_drive_has_so_long_for_all_that_it_is_asked() {
        let place = tempfile::tempdir().unwrap();
        let first = json!({ "device": { "type": "scsi" }, "smart_status": { "passed": true } });
        let second = json!({ "scsi_pending_defects": { "count": 2 } });
        let program = fake(
            place.path(),
            &[("defects", &second.to_string()), ("-A", &first.to_string())],
        );
        let fifo = place.path().join("fifo");
        let mode = rustix::fs::Mode::from(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let script = fs::read_to_string(&program).unwrap();
        // The first answer comes at once; for the second, nobody ever writes there.
        let slow = format!(
            "case \"$*\" in *defects*) exec cat {};; esac\n",
            fifo.display()
        );
        write_program(&program, &(script + &slow));
        let limit = Duration::from_secs(8);
        let begin = Instant::now();
        let smart = ask(&program, Path::new("/dev/sdx"), limit);
        assert!(begin.elapsed() >= limit);
        assert_eq!(smart.map(|smart| smart.pending), Some(None));
        let asked = fs::read_to_string(place.path().join("asked")).unwrap();
        assert_eq!(asked.lines().count(), 2);
    }

    #[test]
    fn each_drive_is_asked_once() {
        let mut drives = Drives::default();
        let mut asked = Vec::new();
        for drive in ["/dev/sda", "/dev/sdb", "/dev/sda", "/dev/sdb"] {
            let smart = drives.said(Path::new(drive), &mut |drive| {
                asked.push(drive.to_path_buf());
                (drive == Path::new("/dev/sda")).then(Smart::default)
            });
            assert_eq!(smart.is_some(), drive == "/dev/sda");
        }
        assert_eq!(asked, ["/dev/sda", "/dev/sdb"].map(PathBuf::from));
    }

    #[test]
    fn the_drive_is_found_below_partitions_and_mapped_devices() {
        let root = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(root.path()).unwrap();
        let make = |name: &str| {
            fs::create_dir_all(root.join(name).join("slaves")).unwrap();
            root.join(name)
        };
        let [a, a1, a2, b] = ["sda", "sda/sda1", "sda/sda2", "nvme0n1"].map(make);
        for partition in [&a1, &a2] {
            fs::remove_dir(partition.join("slaves")).unwrap();
            fs::write(partition.join("partition"), "1\n").unwrap();
        }
        let above = |name: &str, below: &[&Path]| {
            let device = make(name);
            for slave in below {
                symlink(
                    slave,
                    device.join("slaves").join(slave.file_name().unwrap()),
                )
                .unwrap();
            }
            device
        };
        let volume = above("dm-0", &[&a1, &a2]);
        let crypt = above("dm-1", &[&volume]);
        let two = above("dm-2", &[&a2, &b]);
        let found = |device: &Path| {
            let mut all = Vec::new();
            drives(device, &mut all);
            all.sort();
            all
        };
        for device in [&a, &a1, &volume, &crypt] {
            assert_eq!(
                found(device),
                std::slice::from_ref(&a),
                "{}",
                device.display()
            );
        }
        assert_eq!(found(&two), [b, a]);
        assert!(found(Path::new("/nonexistent")).is_empty());
    }
}
