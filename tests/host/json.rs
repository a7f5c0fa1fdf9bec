// SPDX-License-Identifier: GPL-2.0

//! The JSON documents are what docs/json-schema says, and docs/json.md has every field and code.

use crate::image::Image;
use crate::tool::{source, Place};
use dm_remap::engine::format::{Cause, State};
use dm_remap::engine::geometry::Geometry;
use dm_remap::engine::Unit;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;

/// Checks a value against as much of JSON Schema 2020-12 as our schemas use; any other keyword panics. Stricter than the
/// schema: no property that it does not name.
pub(crate) struct Schema {
    root: Value,
}

impl Schema {
    pub(crate) fn read(name: &str) -> Self {
        let path = source(&format!("docs/json-schema/{name}.json"));
        let root = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        Self { root }
    }

    #[track_caller]
    pub(crate) fn check(&self, document: &Value) {
        self.value(document, &self.root, "");
    }

    #[track_caller]
    fn value(&self, value: &Value, schema: &Value, at: &str) {
        let ensure = |right: bool, what: &str| assert!(right, "{at}: {value} is not {what}");
        for (keyword, wanted) in schema.as_object().unwrap() {
            match keyword.as_str() {
                "$schema" | "title" | "description" | "$defs" => (),
                "$ref" => {
                    let to = wanted.as_str().unwrap().strip_prefix('#').unwrap();
                    self.value(value, self.root.pointer(to).unwrap(), at);
                }
                "const" => ensure(value == wanted, &wanted.to_string()),
                "enum" => ensure(list(wanted).contains(value), &wanted.to_string()),
                "type" => {
                    let types = match wanted {
                        Value::Array(types) => types.clone(),
                        one => vec![one.clone()],
                    };
                    let is = |kind: &Value| match kind.as_str().unwrap() {
                        "object" => value.is_object(),
                        "array" => value.is_array(),
                        "string" => value.is_string(),
                        "integer" => value.is_u64() || value.is_i64(),
                        "boolean" => value.is_boolean(),
                        "null" => value.is_null(),
                        other => panic!("type {other}"),
                    };
                    ensure(types.iter().any(is), &wanted.to_string());
                }
                "minimum" | "maximum" => {
                    let limit = wanted.as_u64().unwrap();
                    let right = |n: u64| (n >= limit) == (keyword == "minimum") || n == limit;
                    ensure(value.as_u64().is_none_or(right), &wanted.to_string());
                }
                "pattern" | "format" if value.is_null() => (),
                "pattern" => {
                    let (text, digits) = (value.as_str().unwrap(), |base, most, text: &str| {
                        let valid = text.chars().all(|c| c.is_digit(base) && !c.is_uppercase());
                        valid && (1..=most).contains(&text.len())
                    });
                    let right = match wanted.as_str().unwrap() {
                        "^[0-9a-f]{1,16}$" => digits(16, 16, text),
                        "^[0-9]{1,20}$" => digits(10, 20, text),
                        other => panic!("pattern {other}"),
                    };
                    ensure(right, &wanted.to_string());
                }
                "format" => {
                    // x: a digit, hexadecimal in a UUID.
                    let (like, base) = match wanted.as_str().unwrap() {
                        "uuid" => ("xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx", 16),
                        "date-time" => ("xxxx-xx-xxTxx:xx:xxZ", 10),
                        other => panic!("format {other}"),
                    };
                    let text = value.as_str().unwrap();
                    let fits = |(c, like)| {
                        if like == 'x' {
                            char::is_digit(c, base)
                        } else {
                            c == like
                        }
                    };
                    let right =
                        text.len() == like.len() && text.chars().zip(like.chars()).all(fits);
                    ensure(right, like);
                }
                "properties" => {
                    for (name, value) in value.as_object().unwrap() {
                        let at = format!("{at}.{name}");
                        let schema = wanted.get(name);
                        let schema = schema.unwrap_or_else(|| panic!("{at}: not in the schema"));
                        self.value(value, schema, &at);
                    }
                }
                "required" => {
                    for name in list(wanted) {
                        ensure(
                            value.get(name.as_str().unwrap()).is_some(),
                            &name.to_string(),
                        );
                    }
                }
                "dependentRequired" => {
                    for (name, others) in wanted.as_object().unwrap() {
                        let there = |name: &Value| value.get(name.as_str().unwrap()).is_some();
                        let all = list(others).iter().all(there);
                        ensure(value.get(name).is_none() || all, &others.to_string());
                    }
                }
                "items" => {
                    for value in list(value) {
                        self.value(value, wanted, &format!("{at}[]"));
                    }
                }
                other => panic!("keyword {other}"),
            }
        }
    }
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

/// An image with everything that documents speak of: `spoil` may add what is wrong.
fn image(spoil: impl Fn(&mut Image)) -> Image {
    let g = Geometry::plan(1 << 16, 480 * 8, 8, 3).unwrap();
    let mut image = Image::new(g, [0xab; 16], "left \u{202e}disk");
    image.set_entry(0, 1, 0);
    image.set_entry(1, 3, 0b0000_1111);
    image.set_entry(2, 5, 0xff);
    let bad = |unit, lost| {
        let unit = Unit(unit);
        State::Bad { unit, lost }
    };
    image.set(3, bad(3, 0b0011_0000), Cause::Read, 1_800_000_000);
    // Its time is impossible.
    image.set(4, bad(0, 0), Cause::Import, u64::MAX);
    spoil(&mut image);
    image.seal(9);
    image
}

struct Commands {
    place: Place,
    schemas: [Schema; 2],
    codes: BTreeSet<String>,
}

impl Commands {
    fn new() -> Self {
        let schemas = ["check", "dump"].map(Schema::read);
        Self {
            place: Place::new(),
            schemas,
            codes: BTreeSet::new(),
        }
    }

    /// What `check`, `dump --header` and `dump` print of `s.img`, each of that form.
    #[track_caller]
    fn all(&mut self, more: &[&str]) -> [(i32, Value); 3] {
        [&["check"][..], &["dump", "--header"], &["dump"]].map(|command| {
            let more = if command[0] == "check" { more } else { &[] };
            let command = [command, &["--json", "s.img"], more].concat();
            let done = self.place.run(&command);
            let document: Value = serde_json::from_str(&done.out).unwrap();
            let schema = &self.schemas[usize::from(command[0] == "dump")];
            schema.check(&document);
            let status = ["sound", "damaged", "unusable", "no-spare"][done.status as usize];
            assert_eq!(document["status"], status);
            let codes = list(&document["findings"]).iter();
            let codes = codes.map(|finding| finding["code"].as_str().unwrap().into());
            self.codes.extend(codes);
            // Without a superblock that counts, people are told why, too.
            let refused = document.get("main").is_none();
            assert_eq!(done.err.contains("error: s.img: "), refused, "{}", done.err);
            (done.status, document)
        })
    }

    /// The first finding of `check` for an image of these bytes; `dump` says the same.
    #[track_caller]
    fn first(&mut self, bytes: &[u8]) -> (i32, Value) {
        self.place.write("s.img", bytes);
        let [check, _, dump] = self.all(&[]);
        assert_eq!(
            (check.0, &check.1["findings"]),
            (dump.0, &dump.1["findings"])
        );
        (check.0, check.1["findings"][0].clone())
    }
}

#[test]
fn documents_of_a_sound_spare_have_every_field_of_their_schema() {
    let mut commands = Commands::new();
    commands.place.write("s.img", image(|_| ()).bytes());
    let [check, header, dump] = commands.all(&[]);
    assert_eq!([check.0, header.0, dump.0], [0; 3]);
    for (schema, document) in commands.schemas.iter().zip([&check.1, &dump.1]) {
        let names = |value: &Value| {
            value
                .as_object()
                .unwrap()
                .keys()
                .cloned()
                .collect::<Vec<_>>()
        };
        assert_eq!(names(document), names(&schema.root["properties"]));
    }
    let dump = dump.1;
    assert_eq!(dump["spare"]["device"], "s.img");
    assert_eq!(dump["spare"]["label"], "left \\u{202e}disk");
    assert_eq!(dump["spare"]["created"], "2027-01-15T08:00:00Z");
    assert_eq!(
        dump["slots"],
        serde_json::json!({"used": 3, "total": 466, "bad": 2})
    );
    assert_eq!(
        dump["units"],
        serde_json::json!({"relocated": 2, "pending": 1})
    );
    assert_eq!(dump["lost_sectors"], 2);
    assert_eq!(dump["bad_slots"][1]["changed"], Value::Null);
    assert!(header.1.get("slots").is_none() && header.1.get("entries").is_none());
    // A part of a file, in a place of its own.
    let mut bytes = vec![0xaa; 8 * 512];
    bytes.extend(image(|_| ()).bytes());
    commands.place.write("s.img", &bytes);
    let said = commands
        .place
        .run(&["check", "s.img", "--json", "--spare-start", "4K"])
        .ok();
    let document: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        (&document["spare"]["start"], &document["spare"]["sectors"]),
        (&8.into(), &3840.into())
    );
}

#[test]
fn every_finding_has_a_code_and_a_place() {
    let mut commands = Commands::new();
    let good = image(|_| ());
    let at = |copy, number| good.geometry.table_sector(copy, number) as usize * 512;
    let mut cases: Vec<(Vec<u8>, i32, &str, [Value; 5])> = Vec::new();
    let null = || Value::Null;
    let of = |block: u64, replica: Value| [block.into(), replica, null(), null(), null()];
    let first = |copy: u64| [null(), copy.into(), null(), null(), null()];
    // Superblocks and replicas.
    let mut bytes = good.bytes();
    bytes[4000] ^= 1;
    cases.push((bytes, 1, "superblock-damaged", first(0)));
    let mut bytes = good.bytes();
    bytes[at(2, 1) + 100] ^= 1;
    cases.push((bytes, 1, "replica-damaged", of(1, 2.into())));
    let mut other = image(|_| ());
    other.seal(8);
    let mut bytes = good.bytes();
    bytes[at(1, 3)..][..4096].copy_from_slice(&other.bytes()[at(1, 3)..][..4096]);
    cases.push((bytes, 1, "replica-stale", of(3, 1.into())));
    let other = image(|i| i.set_entry(9, 77, 1)).bytes();
    let mut bytes = good.bytes();
    bytes[at(1, 0)..][..4096].copy_from_slice(&other[at(1, 0)..][..4096]);
    cases.push((bytes, 2, "replica-differs", of(0, 1.into())));
    let mut bytes = good.bytes();
    (0..3).for_each(|copy| bytes[at(copy, 2) + 5] ^= 1);
    cases.push((bytes, 2, "no-valid-replica", of(2, null())));
    let renamed = |label: &str| Image::new(good.geometry, [0xab; 16], label).bytes();
    let mut bytes = renamed("a");
    bytes[479 * 4096..].copy_from_slice(&renamed("b")[479 * 4096..]);
    cases.push((bytes, 2, "superblock-differs", first(1)));
    // Records.
    let records = |spoil: &dyn Fn(&mut Image)| image(spoil).bytes();
    let bad = |unit, lost| {
        let unit = Unit(unit);
        State::Bad { unit, lost }
    };
    let of_unit = |unit: u64, slot: u32| [null(), null(), null(), unit.into(), slot.into()];
    let bytes = records(&|i| i.set_entry(130, 1 << 13, 1));
    let place = [1.into(), null(), 4.into(), null(), 130.into()];
    cases.push((bytes, 2, "record-impossible", place));
    let bytes = records(&|i| i.set_entry(131, 5, 1));
    cases.push((bytes, 2, "two-slots", of_unit(5, 2)));
    let bytes = records(&|i| i.set(7, bad(6, 1), Cause::Read, 0));
    cases.push((bytes, 2, "lost-without-entry", of_unit(6, 7)));
    let bytes = records(&|i| i.set(7, bad(3, 0b0001_0000), Cause::Read, 0));
    cases.push((bytes, 2, "lost-twice", of_unit(3, 3)));
    let (unit, mask) = (Unit(5), 1);
    let bytes = records(&|i| i.set(300, State::Moved { unit, mask }, Cause::Write, 0));
    cases.push((bytes, 1, "slot-replaced", of_unit(5, 2)));
    // No spare.
    cases.push((
        vec![0; 480 * 4096],
        3,
        "blank",
        of_unit(0, 0).map(|_| null()),
    ));
    cases.push((
        vec![0xaa; 480 * 4096],
        3,
        "foreign-data",
        of_unit(0, 0).map(|_| null()),
    ));
    let mut bytes = good.bytes();
    [0, 479]
        .iter()
        .for_each(|block| bytes[block * 4096 + 1000] ^= 1);
    cases.push((
        bytes,
        2,
        "superblock-unusable",
        of_unit(0, 0).map(|_| null()),
    ));
    for (bytes, status, code, place) in cases {
        let (ended, finding) = commands.first(&bytes);
        assert_eq!(ended, status, "{finding}");
        assert_eq!(finding["code"], code, "{finding}");
        let severity = if status == 1 { "mendable" } else { "fatal" };
        assert_eq!(finding["severity"], severity, "{finding}");
        let found =
            ["block", "replica", "record", "unit", "slot"].map(|name| finding[name].clone());
        assert_eq!(found, place, "{finding}");
    }
    // Those that need more than an image.
    let place = &commands.place;
    place.formatted(2);
    let old = place.image();
    place.run(&["label", "s.img", "x"]).ok();
    let mut bytes = place.image();
    bytes[479 * 4096..].copy_from_slice(&old[479 * 4096..]);
    let (status, finding) = commands.first(&bytes);
    assert_eq!((status, &finding["code"]), (1, &"superblock-stale".into()));
    // The documents name each, and each was seen but for those that the engine's own tests make.
    let text = fs::read_to_string(source("docs/json.md")).unwrap();
    let known = &commands.schemas[0].root["$defs"]["finding"]["properties"]["code"]["enum"];
    for code in list(known) {
        let code = code.as_str().unwrap();
        assert!(text.contains(&format!("| `{code}` |")), "{code}");
        let elsewhere = [
            "blocks-in-use-impossible",
            "growing-interrupted",
            "another-main",
        ];
        assert!(
            commands.codes.contains(code) != elsewhere.contains(&code),
            "{code}"
        );
    }
}

#[test]
fn the_text_has_every_field_of_the_schemas() {
    fn names(schema: &Value, into: &mut BTreeSet<String>) {
        match schema {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                if let ("properties", Some(properties)) = (key.as_str(), value.as_object()) {
                    into.extend(properties.keys().cloned());
                }
                names(value, into);
            }),
            Value::Array(items) => items.iter().for_each(|item| names(item, into)),
            _ => (),
        }
    }
    let text = fs::read_to_string(source("docs/json.md")).unwrap();
    let mut all = BTreeSet::new();
    [
        "check", "dump", "files", "map", "monitor", "scrub", "status",
    ]
    .iter()
    .for_each(|name| names(&Schema::read(name).root, &mut all));
    let whole = |name: &String| {
        let quoted = ["`", ".", "[].", "/"]
            .iter()
            .any(|before| text.contains(&format!("{before}{name}`")));
        quoted || text.contains(&format!("`{name}.")) || text.contains(&format!("`{name}[]"))
    };
    let missing: Vec<_> = all.iter().filter(|name| !whole(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
