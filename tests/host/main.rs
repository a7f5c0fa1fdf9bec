// SPDX-License-Identifier: GPL-2.0

//! Tests of `dmremap` as a user meets it, of `docs/format.md` and of the independent reader.

mod commands;
mod damage;
mod grow;
mod image;
mod import;
mod reader;
mod tool;
