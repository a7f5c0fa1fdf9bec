// SPDX-License-Identifier: GPL-2.0

//! The corpus of the fuzz targets, replayed without a fuzzer.

use crate::targets::TARGETS;
use crate::tool::source;
use std::fs;

#[test]
fn the_corpus_of_every_fuzz_target_keeps_the_rules() {
    for (name, target) in TARGETS {
        let (mut accepted, mut refused) = (0, 0);
        for file in fs::read_dir(source("tests/fuzz/corpus").join(name)).unwrap() {
            let path = file.unwrap().path();
            println!("{}", path.display());
            match target(&fs::read(&path).unwrap()) {
                true => accepted += 1,
                false => refused += 1,
            }
        }
        assert!(accepted > 0 && refused > 0, "{name}: {accepted} {refused}");
    }
}
