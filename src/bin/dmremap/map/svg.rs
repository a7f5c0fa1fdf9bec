// SPDX-License-Identifier: GPL-2.0

//! The map as SVG, for a browser and for paper. The states are told apart by shape, so that no colour is needed; the colours
//! are those of Okabe and Ito, which colour-blind people can tell apart. Its size does not depend on the number of entries.

use super::cells::{worst, Counts, Grid, State, LEVELS};
use super::{list, units, Map};
use std::fmt::Write as _;

/// Width and height of a cell, with the gap to its neighbour.
const CELL: usize = 11;
/// Cells of a row.
const COLUMNS: usize = 64;
/// Rows of the whole device, and of a part that is enlarged, at most.
const ROWS: usize = 16;
const ZOOM_ROWS: usize = 4;
/// Parts that are enlarged, at most.
const PARTS: usize = 3;

/// Where the cells begin and end, and how wide all is.
const LEFT: usize = 122;
const RIGHT: usize = LEFT + COLUMNS * CELL;
const WIDTH: usize = RIGHT + 102;

/// What the cells are made of: a symbol for each state and strength, `r0` to `l2`, in a cell whose corner is at 0, 0.
const SYMBOLS: &str = r##"<style>
text { font: 11px sans-serif; fill: #222 }
.t { font: bold 17px sans-serif }
.b { font-weight: bold }
.s { fill: #555 }
.n { font: 10px monospace; text-anchor: end; fill: #555 }
.r { fill: #0072b2 }
.a { fill: #e69f00; stroke: #6b4a00; stroke-width: 0.8 }
.p { fill: #fff; stroke: #d55e00 }
.l { fill: none; stroke: #000; stroke-linecap: square }
</style>
<defs>
<pattern id="h" width="11" height="11" patternUnits="userSpaceOnUse"><rect width="10" height="10" fill="#e4e4e4"/></pattern>
<rect id="r0" class="r" x="3" y="3" width="4" height="4"/>
<rect id="r1" class="r" x="1.5" y="1.5" width="7" height="7"/>
<rect id="r2" class="r" width="10" height="10"/>
<path id="a0" class="a" d="M2.5 2.5v5h5z"/>
<path id="a1" class="a" d="M1 1v8h8z"/>
<path id="a2" class="a" d="M0.4 0.4v9.2h9.2z"/>
<circle id="p0" class="p" cx="5" cy="5" r="2" stroke-width="1.4"/>
<circle id="p1" class="p" cx="5" cy="5" r="3.2" stroke-width="1.8"/>
<g id="p2"><rect width="10" height="10" fill="#d55e00"/><circle cx="5" cy="5" r="2.4" fill="#fff"/></g>
<path id="l0" class="l" stroke-width="1.6" d="M3 3l4 4m0-4l-4 4"/>
<path id="l1" class="l" stroke-width="2.2" d="M2 2l6 6m0-6l-6 6"/>
<g id="l2"><rect width="10" height="10"/><path d="M2.5 2.5l5 5m0-5l-5 5" stroke="#fff" stroke-width="1.6"/></g>
<path id="v" d="M4.6 0h5.4v5.4z" stroke="#fff" stroke-width="0.8"/>
</defs>
"##;

/// Text that may have any character, as it must stand in XML.
fn xml(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            // Those that XML cannot have at all.
            _ if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                escaped.extend(c.escape_unicode());
            }
            _ => escaped.push(c),
        }
    }
    escaped
}

struct Sheet<'a> {
    map: &'a Map,
    text: String,
    /// Where the next thing is drawn.
    y: usize,
}

impl Sheet<'_> {
    fn add(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{line}");
    }

    fn text(&mut self, x: usize, class: &str, text: &str) {
        let (y, text) = (self.y, xml(text));
        self.add(format_args!(
            r#"<text x="{x}" y="{y}" class="{class}">{text}</text>"#
        ));
    }

    /// The symbol of a cell.
    fn symbol(&mut self, x: usize, y: usize, state: State, level: usize) {
        let letter = match state {
            State::Healthy => return,
            State::Relocated => 'r',
            State::Partial => 'a',
            State::Pending => 'p',
            State::Lost => 'l',
        };
        let _ = write!(
            self.text,
            "<use xlink:href=\"#{letter}{level}\" x=\"{x}\" y=\"{y}\"/>"
        );
    }

    /// The mark of what is worse than it was.
    fn worse(&mut self, x: usize, y: usize) {
        let _ = write!(self.text, "<use xlink:href=\"#v\" x=\"{x}\" y=\"{y}\"/>");
    }

    /// Rows of cells, with where each begins on both sides.
    fn rows(&mut self, grid: &Grid) {
        let top = self.y;
        // The pattern begins where the cells do.
        self.add(format_args!(r#"<g transform="translate({LEFT} {top})">"#));
        let (whole, rest) = (grid.cells.len() / COLUMNS, grid.cells.len() % COLUMNS);
        for (row, rows, cells) in [(0, whole, COLUMNS), (whole, 1, rest)] {
            if rows * cells > 0 {
                let (y, width, height) = (row * CELL, cells * CELL, rows * CELL);
                self.add(format_args!(
                    "<rect y=\"{y}\" width=\"{width}\" height=\"{height}\" fill=\"url(#h)\"/>"
                ));
            }
        }
        for (at, cell) in grid.cells.iter().enumerate() {
            if cell.bad() > 0 {
                self.cell(at % COLUMNS * CELL, at / COLUMNS * CELL, cell, grid, at);
            }
        }
        self.add(format_args!("</g>"));
        let map = self.map;
        for row in 0..grid.cells.len().div_ceil(COLUMNS) {
            let first = grid.cell(row * COLUMNS).start;
            self.y = top + row * CELL + 9;
            self.text(LEFT - 8, "n", &(first * map.unit_sectors).to_string());
            let position = map.position(first, grid.step * COLUMNS as u64);
            self.text(WIDTH - 16, "n", &position);
        }
        self.y = top + grid.cells.len().div_ceil(COLUMNS) * CELL;
    }

    /// A cell that is not healthy; a browser says what is in it.
    fn cell(&mut self, x: usize, y: usize, cell: &Counts, grid: &Grid, at: usize) {
        let place = self.map.place(&grid.cell(at));
        let _ = write!(self.text, "<g><title>{place}: {}", list(cell));
        if cell.worse > 0 {
            let _ = write!(self.text, "; {} worse", cell.worse);
        }
        self.text += "</title>";
        self.symbol(x, y, cell.worst(), cell.level());
        if cell.worse > 0 {
            self.worse(x, y);
        }
        self.text += "</g>\n";
    }

    /// Around the cells of the whole device that a part is in, and its letter beside them.
    fn frame(
        &mut self,
        top: usize,
        grid: &Grid,
        part: &std::ops::Range<u64>,
        letter: char,
        x: usize,
    ) {
        let (from, to) = (grid.at(part.start), grid.at(part.end - 1));
        for row in from / COLUMNS..=to / COLUMNS {
            let first = from.max(row * COLUMNS) % COLUMNS;
            let last = to.min(row * COLUMNS + COLUMNS - 1) % COLUMNS;
            let (x, y) = (LEFT + first * CELL, top + row * CELL);
            let width = (last - first + 1) * CELL + 1;
            self.add(format_args!(
                "<rect x=\"{}\" y=\"{}\" width=\"{width}\" height=\"12\" fill=\"none\" stroke=\"#000\" stroke-width=\"1.5\"/>",
                x - 1, y - 1
            ));
        }
        self.y = top + from / COLUMNS * CELL + 9;
        self.text(x, "b", &letter.to_string());
    }

    /// What the symbols mean, and how many units there are of each.
    fn legend(&mut self, counts: &Counts) {
        let top = self.y;
        for (at, state) in State::ALL.into_iter().enumerate() {
            let x = 16 + at * 180;
            self.y = top;
            self.add(format_args!(
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"#e4e4e4\"/>",
                top - 9
            ));
            self.symbol(x, top - 9, state, 1);
            self.text(x + 16, "b", state.name());
            self.y += 15;
            self.text(x + 16, "", &units(counts.of(state)));
            self.y += 15;
            self.text(x + 16, "s", state.meaning());
        }
    }

    /// What the strengths mean.
    fn strengths(&mut self, grid: &Grid) {
        let text = format!(
            "A cell is {}; it shows the worst state in it, and by the size how much of it is not healthy:",
            self.map.cell(grid)
        );
        self.text(16, "s", &text);
        self.y += 16;
        let mut x = 16;
        for (level, name) in LEVELS.into_iter().enumerate() {
            for state in &State::ALL[1..] {
                self.symbol(x, self.y - 9, *state, level);
                x += 14;
            }
            self.text(x + 4, "s", name);
            x += 124;
        }
        if self.map.since.is_some() {
            self.add(format_args!(
                "<rect x=\"{x}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"#e4e4e4\"/>",
                self.y - 9
            ));
            self.worse(x, self.y - 9);
            self.text(x + 16, "s", "worse than then");
        }
    }
}

/// The whole picture.
pub(super) fn draw(map: &Map) -> String {
    let mut sheet = Sheet {
        map,
        text: String::new(),
        y: 30,
    };
    let grid = Grid::new(&map.bad, 0..map.units(), (COLUMNS * ROWS) as u64);
    sheet.text(16, "t", &map.title());
    for fact in map.facts() {
        sheet.y += 17;
        sheet.text(16, "", &fact);
    }
    sheet.y += 30;
    sheet.legend(&map.counts());
    sheet.y += 28;
    sheet.text(LEFT - 8, "n", "sector");
    sheet.text(WIDTH - 16, "n", map.scale().0);
    sheet.y += 6;
    let top = sheet.y;
    sheet.rows(&grid);
    let bottom = sheet.y;
    let parts = worst(&map.bad, &grid, PARTS, (COLUMNS * ZOOM_ROWS) as u64);
    for ((part, letter), x) in parts.iter().zip('A'..).zip((RIGHT + 6..).step_by(10)) {
        sheet.frame(top, &grid, &part.units, letter, x);
    }
    sheet.y = bottom + 18;
    sheet.strengths(&grid);
    for (part, letter) in parts.iter().zip('A'..) {
        let counts = map.counts_of(&part.units);
        sheet.y += 30;
        let place = format!("{letter}: {}: {}", map.place(&part.units), list(&counts));
        sheet.text(16, "b", &place);
        sheet.y += 14;
        sheet.text(16, "s", &format!("a cell is {}", map.cell(part)));
        sheet.y += 8;
        sheet.rows(part);
    }
    let height = sheet.y + 16;
    let name = xml(&map.title());
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
         viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{name}</title>\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n{SYMBOLS}{}</svg>\n",
        sheet.text
    )
}
