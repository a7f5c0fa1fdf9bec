"""lookup.py LOG CRITERION PLOT: what `scripts/build cargo bench` found (its output; criterion in the cache), as tables in
Markdown, and the time of a look-up drawn as SVG."""

import json
import math
import re
import sys
from pathlib import Path

from report import Drawing

COLOURS = {
    "sorted array": "#57606a", "Eytzinger array": "#8250df", "B-tree (not for RCU)": "#1a7f37",
    "hash table (not for RCU)": "#bc4c00", "regions of 2,048 units": "#cf222e", "filter and small slices (ours)": "#0969da",
}
WIDTH, LEFT, TOP, BOTTOM = 440, 62, 92, 342


def times(folder):
    """(structure, what, entries, kind): nanoseconds, criterion's median."""
    result = {}
    for name in folder.glob("*/new/benchmark.json"):
        structure, what, case = json.loads(name.read_text(encoding="utf-8"))["full_id"].split("/")
        count, kind = case.split()
        estimates = json.loads((name.parent / "estimates.json").read_text(encoding="utf-8"))
        result[structure, what, int(count), kind] = estimates["median"]["point_estimate"]
    return result


def tables(found, log):
    memory = {}
    for match in re.finditer(r"^# (.*?) +(\d+) (\w+) +([\d.]+) bytes an entry, (\S+) bytes", log, re.M):
        memory[match[1], int(match[2]), match[3]] = (match[4], match[5])
    for kind in ("random", "clustered"):
        print(f"Entries {'at random' if kind == 'random' else 'in runs of 64'}: ns for a look-up that finds nothing / a hit /"
              " a range of 256 units / an update; bytes an entry; bytes an update allocates\n")
        counts = (1_000, 1_000_000, 10_000_000)
        print("| | " + " | ".join(f"{count:,}" for count in counts) + " |\n|---" * 1 + "|---" * len(counts) + "|")
        for structure in COLOURS:
            cells = []
            for count in counts:
                ns = [found.get((structure, what, count, kind)) for what in ("healthy", "hit", "256 units", "update")]
                size, update = memory.get((structure, count, kind), ("?", "?"))
                cells.append(" / ".join("–" if n is None else f"{n:,.0f}" if n >= 10 else f"{n:.1f}" for n in ns)
                             + f"; {float(size):,.1f} B; {'–' if update == '?' else f'{int(update):,} B'}")
            print(f"| {structure} | " + " | ".join(cells) + " |")
        print()


def plot(found):
    draw = Drawing()
    draw.text(LEFT, 26, "A look-up on the host, entries at random over 1 TiB", 'font-size="16" font-weight="bold"')
    draw.text(LEFT, 46, "nanoseconds, criterion's median, by the number of entries", 'fill="#57606a"')
    for index, (what, title) in enumerate([("healthy", "finds nothing: the healthy path"), ("hit", "finds an entry")]):
        left = LEFT + index * (WIDTH + 90)
        draw.text(left, TOP - 12, title, 'font-size="13.5" font-weight="bold"')

        def at(count, ns, left=left):
            return left + 20 + (WIDTH - 40) * (math.log10(count) - 3) / 4, BOTTOM - (BOTTOM - TOP) * math.log10(ns) / 3

        for exponent in range(4):
            y = at(1000, 10 ** exponent)[1]
            draw.line([(left, y), (left + WIDTH, y)], "#d8dee4")
            draw.text(left - 6, y + 4, f"{10 ** exponent:,}", 'text-anchor="end" fill="#57606a"')
        for exponent in range(3, 8):
            label = f"10{'³⁴⁵⁶⁷'[exponent - 3]}"
            draw.text(at(10 ** exponent, 1)[0], BOTTOM + 18, label, 'text-anchor="middle" fill="#57606a"')
        for structure, colour in COLOURS.items():
            points = [at(n, max(found[structure, what, n, "random"], 1)) for n in (10 ** e for e in range(3, 8))]
            draw.line(points, colour, "", 2.4 if "ours" in structure else 1.6)
            for x, y in points:
                draw.dot(x, y, colour, 2.8, False)
    for index, (structure, colour) in enumerate(COLOURS.items()):
        x, y = LEFT + index % 3 * 320, BOTTOM + 60 + index // 3 * 22
        draw.line([(x, y - 4), (x + 30, y - 4)], colour, "", 2.0)
        draw.text(x + 38, y, structure)
    draw.parts.append("</svg>")
    return "\n".join(draw.parts) + "\n"


def main():
    found = times(Path(sys.argv[2]))
    tables(found, Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[3]).write_text(plot(found), encoding="utf-8")


if __name__ == "__main__":
    main()
