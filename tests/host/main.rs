// SPDX-License-Identifier: GPL-2.0

//! Tests of `dmremap` as a user meets it, of `docs/format.md` and of the independent reader.

mod boot;
mod commands;
mod damage;
mod fuzz;
mod grow;
mod image;
mod import;
mod json;
mod map;
mod monitor;
mod offline;
mod reader;
mod talk;
#[path = "../fuzz/targets/mod.rs"]
#[allow(unreachable_pub)] // by the fuzzers
mod targets;
mod tool;
mod wrong_uses;
