// SPDX-License-Identifier: GPL-2.0

//! The manual pages, of dmremap and of each command, made from the command line's own help.

use crate::{cli, Status};
use anyhow::{Context as _, Result};
use clap_mangen::roff::{bold, roman, Roff};
use clap_mangen::Man;
use std::fs;
use std::path::Path;

/// Writes the pages to a directory.
pub(crate) fn write(directory: &Path) -> Result<Status> {
    // There is no page of "help".
    let mut all = cli::command().disable_help_subcommand(true);
    all.build();
    for command in all.get_subcommands().filter(|c| !c.is_hide_set()) {
        write_page(command, directory)?;
    }
    write_page(&all, directory)?;
    let path = directory.join("remaptab.5");
    fs::write(&path, of_table_file()?).with_context(|| path.display().to_string())?;
    Ok(Status::Done)
}

/// The page of the table file.
fn of_table_file() -> Result<Vec<u8>> {
    let mut page = Vec::new();
    let source = concat!("dmremap ", env!("CARGO_PKG_VERSION"));
    let mut title = Roff::new();
    title.control("TH", ["remaptab", "5", " ", source, "File Formats"]);
    title.to_writer(&mut page)?;
    sections(include_str!("remaptab.txt")).to_writer(&mut page)?;
    Ok(page)
}

fn write_page(command: &clap::Command, directory: &Path) -> Result<()> {
    let man = Man::new(command.clone())
        .section("8")
        // None; an empty one would be left out.
        .date(" ")
        .source(concat!("dmremap ", env!("CARGO_PKG_VERSION")))
        .manual("System Administration");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut after = command
        .get_after_help()
        .map_or(String::new(), |help| help.to_string());
    if !command.has_subcommands() {
        after += "\n\nSee also:\n  dmremap(8), dmsetup(8)";
    }
    sections(&after).to_writer(&mut page)?;
    let path = directory.join(man.get_filename());
    fs::write(&path, page).with_context(|| path.display().to_string())
}

/// What the help has below the options: a line with a colon at its end heads a section, lines that are indented are
/// examples, or an exit status each.
fn sections(help: &str) -> Roff {
    let mut roff = Roff::new();
    let mut is_literal = false;
    let mut literal = |roff: &mut Roff, wanted: bool| {
        if is_literal != wanted {
            roff.control(if wanted { "EX" } else { "EE" }, []);
            is_literal = wanted;
        }
    };
    let mut heading = "";
    for line in help.lines().filter(|line| !line.is_empty()) {
        let text = line.trim_start();
        let is_indented = text.len() < line.len();
        literal(&mut roff, is_indented && heading == "Examples");
        match text.split_once("  ") {
            _ if !is_indented => match text.strip_suffix(':') {
                Some(head) => {
                    heading = head;
                    roff.control("SH", [head.to_uppercase().as_str()]);
                }
                None => {
                    roff.control("PP", []);
                    roff.text([roman(text)]);
                }
            },
            Some((status, meaning)) if ["Exit status", "Options"].contains(&heading) => {
                roff.control("TP", []);
                roff.text([bold(status)]);
                roff.text([roman(meaning.trim_start())]);
            }
            _ => {
                roff.text([roman(text)]);
            }
        }
    }
    literal(&mut roff, false);
    roff
}
