// SPDX-License-Identifier: GPL-2.0

//! The map in a terminal.

use super::cells::{worst, Counts, Grid, State, LEVELS};
use super::{list, units, Map};
use anyhow::Result;
use clap::builder::styling::{AnsiColor, Style};
use std::io::Write;

/// Rows of the whole device, at most.
const ROWS: usize = 16;

/// Parts that are enlarged, at most.
const PARTS: usize = 3;

/// A character for each state and strength. They are told apart without colours, and the console has them without any font
/// being loaded.
const BLOCKS: Glyphs = [
    ['·', '·', '·'],
    ['░', '▒', '▓'],
    ['-', '=', '≡'],
    ['■', '▄', '█'],
    ['x', 'X', '#'],
];
const ASCII: Glyphs = [
    ['.', '.', '.'],
    ['r', 'r', 'R'],
    ['a', 'a', 'A'],
    ['p', 'p', 'P'],
    ['x', 'x', 'X'],
];
type Glyphs = [[char; LEVELS.len()]; State::ALL.len()];

const STYLES: [Style; State::ALL.len()] = [
    Style::new().dimmed(),
    AnsiColor::Cyan.on_default(),
    AnsiColor::Yellow.on_default(),
    AnsiColor::Red.on_default().bold(),
    AnsiColor::Magenta.on_default().bold(),
];

/// Rows of cells, with the sector at which each begins.
struct Sheet<'a, W> {
    map: &'a Map,
    out: &'a mut W,
    glyphs: &'static Glyphs,
    /// Columns of the sector, and of the cells.
    columns: [usize; 2],
}

impl<W: Write> Sheet<'_, W> {
    /// All of a grid; behind each row stands what `behind` has for the first unit of it.
    fn rows(&mut self, grid: &Grid, behind: impl Fn(u64) -> String) -> Result<()> {
        let [left, columns] = self.columns;
        for (row, cells) in grid.cells.chunks(columns).enumerate() {
            let first = grid.cell(row * columns).start;
            let sector = first * self.map.unit_sectors;
            write!(self.out, "{sector:>left$}  ")?;
            for alike in cells.chunk_by(|a, b| a.worst() == b.worst()) {
                self.run(alike)?;
            }
            let blank = columns.min(grid.cells.len()) - cells.len();
            writeln!(self.out, "{:blank$}{}", "", behind(first))?;
            if cells.iter().any(|cell| cell.worse > 0) {
                let mark = |cell: &Counts| if cell.worse > 0 { '^' } else { ' ' };
                let marks: String = cells.iter().map(mark).collect();
                writeln!(self.out, "{:left$}  {}", "", marks.trim_end())?;
            }
        }
        Ok(())
    }

    /// Cells of the same state.
    fn run(&mut self, cells: &[Counts]) -> Result<()> {
        let state = cells[0].worst() as usize;
        let glyph = |cell: &Counts| self.glyphs[state][cell.level()];
        let text: String = cells.iter().map(glyph).collect();
        let style = STYLES[state];
        write!(self.out, "{style}{text}{style:#}")?;
        Ok(())
    }
}

/// Draws it, `width` columns wide if there is room for it.
pub(super) fn draw(map: &Map, out: &mut impl Write, width: usize, is_ascii: bool) -> Result<()> {
    let (unit, _) = map.scale();
    let left = map.sectors.to_string().len().max(6);
    // As exact as for a picture of this size.
    let position = |at| map.position(at, map.units().div_ceil(ROWS as u64));
    let right = position(map.units()).len().max(unit.len());
    let columns = width.saturating_sub(left + right + 4).max(8);
    let grid = Grid::new(&map.bad, 0..map.units(), (columns * ROWS) as u64);
    let middle = columns.min(grid.cells.len());

    writeln!(out, "{}", map.title())?;
    for fact in map.facts() {
        for line in textwrap::wrap(&fact, width.saturating_sub(2).max(20)) {
            writeln!(out, "  {line}")?;
        }
    }
    writeln!(out, "\n{:>left$}  {:middle$}  {unit:>right$}", "sector", "")?;
    let mut sheet = Sheet {
        map,
        out,
        glyphs: if is_ascii { &ASCII } else { &BLOCKS },
        columns: [left, columns],
    };
    sheet.rows(&grid, |first| format!("  {:>right$}", position(first)))?;
    for zoom in worst(&map.bad, &grid, PARTS, columns as u64) {
        let counts = map.counts_of(&zoom.units);
        writeln!(
            sheet.out,
            "\n{} at {} {unit}: {}",
            map.place(&zoom.units),
            position(zoom.units.start),
            list(&counts),
        )?;
        sheet.rows(&zoom, |_| String::new())?;
        writeln!(sheet.out, "{:left$}  a cell is {}", "", map.cell(&zoom))?;
    }

    writeln!(sheet.out)?;
    let counts = map.counts();
    for state in State::ALL {
        let glyphs = sheet.glyphs[state as usize];
        let mut glyphs = glyphs.to_vec();
        glyphs.dedup();
        let glyphs: String = glyphs.into_iter().collect();
        let style = STYLES[state as usize];
        writeln!(
            sheet.out,
            "  {style}{glyphs:3}{style:#}  {:9}  {}: {}",
            state.name(),
            units(counts.of(state)),
            state.meaning()
        )?;
    }
    let text = format!(
        "A cell is {}, and shows the worst state in it, stronger the more of it is not healthy: {}.",
        map.cell(&grid),
        LEVELS.join(", ")
    );
    for line in textwrap::wrap(&text, width.max(20)) {
        writeln!(sheet.out, "{line}")?;
    }
    Ok(())
}
