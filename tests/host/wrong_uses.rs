// SPDX-License-Identifier: GPL-2.0

//! What people do wrong, and what they are told.

use crate::tool::Place;

/// A place with files of all kinds, none of which a wrong use may change.
fn place() -> Place {
    let place = Place::new();
    place.formatted(2);
    let sound = place.image();
    let mut damaged = sound.clone();
    damaged[4096 + 77] = 1;
    place.write("damaged.img", &damaged);
    let mut broken = sound.clone();
    broken[4096 + 77] = 1;
    broken[(480 - 1 - 4) * 4096 + 77] = 1;
    place.write("broken.img", &broken);
    place.write("short.img", &sound[..300 * 4096]);
    place.write("other.img", vec![0xaa; 480 * 4096]);
    place.blank("blank.img", 480);
    place.blank("tiny.img", 3);
    place.write("list", "5\nfive\n");
    place.write("good", "5\n");
    place.write("text", "hello\n");
    place
}

/// Arguments, exit status, and what standard error says.
const USES: &[(&str, i32, &str)] = &[
    // No such command or option, too much, too little.
    ("", 64, "Usage: dmremap [OPTIONS] <COMMAND>"),
    ("chekc s.img", 64, "unrecognized subcommand 'chekc'\n\n  tip: a similar subcommand exists: 'check'"),
    ("s.img", 64, "unrecognized subcommand 's.img'"),
    ("check", 64, "the following required arguments were not provided:\n  <SPARE>"),
    ("check s.img s.img", 64, "unexpected argument 's.img' found"),
    ("check s.img --yes", 64, "unexpected argument '--yes' found"),
    ("check s.img --dry-run", 64, "unexpected argument '--dry-run' found"),
    ("check s.img --jsn", 64, "a similar argument exists: '--json'"),
    ("check s.img --main-start 8", 64, "not provided:\n  --main <DEVICE>"),
    ("dump s.img --spare-start", 64, "a value is required for '--spare-start <SECTOR>'"),
    ("check s.img -q -v", 64, "the argument '--quiet' cannot be used with '--verbose'"),
    ("export s.img", 64, "not provided:\n  --format <FORMAT>"),
    ("export s.img --format csv", 64, "invalid value 'csv' for '--format <FORMAT>'\n  [possible values: badblocks"),
    ("export s.img --format sectors --which good", 64, "invalid value 'good' for '--which <KINDS>'"),
    ("open ../x /dev/a /dev/b", 4, "error: \"../x\": not a name for a device"),
    ("open x UUID=1 /dev/b", 4, "error: UUID=1: what lies inside a remap device has its name inside only"),
    ("open x /dev/a REMAP=1", 4, "error: REMAP=1: not a uuid of 32 hexadecimal digits"),
    ("open x COLOUR=red /dev/b", 4, "error: COLOUR=red: not one of PARTUUID="),
    ("open x /dev/a", 64, "<SPARE>"),
    ("open x --tab good", 4, "error: good: no line for x; give MAIN and SPARE"),
    ("open x a b --read-retries 11", 64, "11 is not in 0..=10"),
    ("setup a/b /dev/a /dev/b", 4, "error: \"a/b\": not a name for a device"),
    ("files", 64, "not provided:\n  <NAME>"),
    ("files x 5 0", 64, "there must be one sector at least"),
    ("files x five", 64, "invalid value 'five' for '[SECTOR]': not a number of sectors"),
    ("files x --json -z", 64, "'--json' cannot be used with '--null'"),
    ("mark x 5 0", 64, "there must be one sector at least"),
    ("set x frobnicate 1", 64, "[possible values: bad_on, read_retries, pending_reads]"),
    ("scrub", 64, "not provided:\n  <NAME>"),
    ("scrub safe --from x", 64, "'x' for '--from <SECTOR>': not a number of sectors"),
    ("scrub safe --to -8", 64, "'-8' for '--to <SECTOR>': not a number of sectors"),
    ("scrub safe --rate 0", 64, "'0' for '--rate <MIB/S>': not a number of MiB in a second, 0.01 at least"),
    ("scrub safe --rate 20M", 64, "'20M' for '--rate <MIB/S>': not a number of MiB in a second"),
    ("scrub safe --slow 0", 64, "'0' for '--slow <MS>': 0 is not in 1..=60000"),
    ("scrub safe --if-due 27 --from 8", 64, "'--if-due <DAYS>' cannot be used with '--from <SECTOR>'"),
    ("scrub safe --if-due soon", 64, "'soon' for '--if-due <DAYS>'"),
    ("import s.img --format sectors", 64, "not provided:\n  <LIST>"),
    ("import --device safe s.img good --format sectors", 64, "'--device <NAME>' cannot be used with '[LIST]'"),
    ("map", 64, "not provided:\n  <SPARE>"),
    ("map s.img --json -o x.svg", 64, "'--json' cannot be used with '--output <FILE>'"),
    ("rebind s.img", 64, "not provided:\n  --main <DEVICE>"),
    ("repair s.img --undo a --backup b", 64, "'--undo <FILE>' cannot be used with '--backup <FILE>'"),
    ("repair s.img --prefer one", 64, "invalid value 'one' for '--prefer <COPY>'"),
    ("completions tcsh", 64, "invalid value 'tcsh' for '<SHELL>'"),
    ("format blank.img", 64, "--main"),
    ("format --main-sectors 65536", 64, "not provided:\n  <SPARE>"),
    ("format blank.img --main-sectors 65536 --slots 5 --share 1", 64, "'--slots <N>' cannot be used with '--share <PERCENT>'"),
    // Values that cannot be.
    ("check s.img --spare-start 1x", 64, "invalid value '1x' for '--spare-start <SECTOR>': not a number of sectors"),
    ("check s.img --spare-start -8", 64, "invalid value '-8' for '--spare-start <SECTOR>': not a number of sectors"),
    ("check s.img --spare-start 1.5M", 64, "invalid value '1.5M' for '--spare-start <SECTOR>': not a number of sectors"),
    ("check s.img --spare-sectors 0", 64, "invalid value '0' for '--spare-sectors <SECTORS>': there must be one sector"),
    ("check s.img --spare-sectors 1000B", 64, "'1000B' for '--spare-sectors <SECTORS>': 1000 bytes are not whole sectors of 512"),
    ("check s.img --spare-sectors 1MB", 64, "'1MB' for '--spare-sectors <SECTORS>': 1000000 bytes are not whole sectors of 512"),
    ("check s.img --spare-sectors 9E", 64, "'9E' for '--spare-sectors <SECTORS>': more than any device has"),
    ("check s.img --main s.img --main-start 0xg", 64, "'0xg' for '--main-start <SECTOR>': not a number of sectors"),
    ("import s.img good --format sectors --offset ten", 64, "'ten' for '--offset <SECTOR>': not a number of sectors"),
    ("format blank.img --main-sectors 0", 64, "'0' for '--main-sectors <SECTORS>': there must be one sector at least"),
    ("format blank.img --main-sectors 65536 --unit-sectors 3", 64, "'3' for '--unit-sectors <SECTORS>': not a power of two from 1 to 64"),
    ("format blank.img --main-sectors 65536 --unit-sectors 64K", 64, "'64K' for '--unit-sectors <SECTORS>': not a power of two"),
    ("format blank.img --main-sectors 65536 --metadata-copies 5", 64, "'5' for '--metadata-copies <N>': not a number from 2 to 4"),
    ("format blank.img --main-sectors 65536 --slots 0", 64, "'0' for '--slots <N>': not a number of slots, 1 or more"),
    ("format blank.img --main-sectors 65536 --share 101", 64, "'101' for '--share <PERCENT>': not a number above 0 and up to 100"),
    ("format blank.img --main-sectors 65536 --share 1%", 64, "'1%' for '--share <PERCENT>': not a number above 0"),
    ("format blank.img --main-sectors 65536 --label a\u{202e}b", 64, "for '--label <TEXT>': U+202E is a control or an invisible character"),
    ("label s.img a\tb", 64, "for '[LABEL]': U+0009 is a control or an invisible character"),
    ("label s.img ßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßßß", 64, "for '[LABEL]': has 66 bytes, 64 at most"),
    ("monitor --mail a\nb", 64, "for '--mail <ADDRESS>': not an address of mail"),
    ("monitor --interval 0", 64, "'0' for '--interval <TIME>': not more than no time at all"),
    ("monitor --interval soon", 64, "not a time, like 30, 30s, 5min or infinity"),
    ("monitor --hold-off infinity", 64, "for '--hold-off <TIME>': not a time that ends"),
    ("monitor --few 101", 64, "'101' for '--few <PERCENT>': not a number above 0 and up to 100"),
    ("monitor safe", 64, "unexpected argument 'safe'"),
    // What is no spare, or not one that can be used.
    ("check nosuch.img", 4, "error: nosuch.img: No such file or directory"),
    ("check .", 4, "error: .: neither a block device nor a file"),
    ("check /dev/null", 4, "error: /dev/null: neither a block device nor a file"),
    ("check blank.img", 3, "error: blank.img: blank, no spare of dm-remap"),
    ("dump other.img", 3, "error: other.img: Spare holds foreign data"),
    ("label other.img x", 3, "error: other.img: Spare holds foreign data"),
    ("grow other.img --yes", 3, "error: other.img: Spare holds foreign data"),
    ("check short.img", 2, "error: short.img: Spare region is shorter than the one that was formatted"),
    ("check s.img --spare-start 8", 2, "error: s.img: Superblock: the spare region has another length"),
    ("check s.img --spare-start 1G", 4, "error: s.img: ends at sector 3840, before --spare-start and --spare-sectors"),
    ("label damaged.img x", 0, ""),
    ("import damaged.img good --format sectors", 1, "error: damaged.img: its metadata has damage that must be repaired first: dmremap repair damaged.img"),
    ("export broken.img --format sectors", 2, "error: broken.img: table block 0: no valid replica"),
    ("import broken.img good --format sectors", 2, "error: broken.img: table block 0: no valid replica"),
    // What is refused without being told to.
    ("format blank.img --main-sectors 65536", 4, "error: nothing was written: give --yes to go on without being asked"),
    ("format other.img --main-sectors 65536 --yes", 4, "other.img: not blank: unknown data (byte 0 is not zero); --force formats it"),
    ("format s.img --main-sectors 65536 --yes", 4, "error: s.img: not blank: a spare of dm-remap, label \"test\""),
    ("format blank.img --main blank.img --yes", 4, "error: blank.img: main and spare overlap"),
    ("format blank.img --main nosuch --yes", 4, "error: nosuch: No such file or directory"),
    ("format tiny.img --main-sectors 65536 --yes", 4, "error: tiny.img: Spare region is too small for its metadata and one slot"),
    ("format blank.img --main-sectors 65536 --slots 5000 --yes", 4, "and 5000 slots take"),
    ("repair damaged.img", 4, "error: nothing was written: give --yes to go on without being asked"),
    ("repair damaged.img --yes --backup list", 4, "error: list: nothing was repaired: File exists"),
    ("repair s.img --undo text --yes", 4, "error: text: not a backup of this version of dmremap"),
    ("repair s.img --undo nosuch --yes", 4, "error: nosuch: No such file or directory"),
    ("grow s.img --spare-sectors 2000 --yes", 2, "Spare region is shorter than the one that was formatted"),
    ("rebind s.img --main nosuch", 4, "error: nosuch: No such file or directory"),
    ("rebind s.img --main tiny.img", 4, "error: tiny.img: has 24 sectors (12.0 KiB) from sector 0 on, and main had 65531 sectors"),
    ("rebind s.img --main s.img", 4, "error: s.img: has 3840 sectors"),
    ("map blank.img", 3, "error: blank.img: blank, no spare of dm-remap"),
    ("map broken.img", 2, "error: broken.img: table block 0: no valid replica"),
    ("map nosuch", 4, "error: nosuch: No such file or directory"),
    ("map s.img -o list", 4, "error: list: File exists"),
    ("map s.img --since nosuch", 4, "error: nosuch: No such file or directory"),
    ("map s.img --since text", 4, "error: text: not what dmremap map --json or dump --json prints: expected value at line 1"),
    // Lists.
    ("import s.img list --format sectors", 4, "error: list: line 2: not a number: \"five\""),
    ("import s.img nosuch --format sectors", 4, "error: nosuch: no such file"),
    ("export s.img --format sectors -o list", 4, "error: list: File exists"),
];

#[test]
fn a_wrong_use_is_told_what_is_wrong() {
    let place = place();
    let files = [
        "s.img",
        "damaged.img",
        "broken.img",
        "short.img",
        "other.img",
        "blank.img",
        "tiny.img",
        "list",
    ];
    let read = |name: &&str| std::fs::read(place.path(name)).unwrap();
    let mut before: Vec<_> = files.iter().map(read).collect();
    let mut wrong = String::new();
    for (line, status, sentence) in USES {
        let arguments: Vec<&str> = line.split(' ').filter(|word| !word.is_empty()).collect();
        let done = place.run(&arguments);
        if done.status != *status || !done.err.contains(sentence) {
            wrong += &format!(
                "dmremap {line}: {}, not {status}: {}\nnot: {sentence}\n",
                done.status, done.err
            );
        }
        let after: Vec<_> = files.iter().map(read).collect();
        // A label can be given to a spare with a damaged table.
        if *status != 0 && after != before {
            wrong += &format!("dmremap {line}: wrote\n");
        }
        before = after;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(USES.len() > 40);
}
