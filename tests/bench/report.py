"""report.py FROM TO: prints the figures of `machine.py full` and `cpus.py`, which are in FROM, as tables; draws what I/O costs. TO
gets bench.json and hot-path.svg."""

import json
import math
import re
import sys
from html import escape
from pathlib import Path

# DESIGN.md, section 6. ALONE: a slot and two replicas.
HEALTHY, FLOOR, REDIRECTED, GOAL, SAMPLE, ACTIVATION, MEMORY, ALONE, AT_ONCE = 60, 43, 200, 150, 15, 1000, 24, 3, 8


def entries(device):
    """How many units a device has somewhere else: half of the segments of a linear one."""
    if match := re.search(r"1e(\d)", device):
        return 10 ** int(match[1]) // (2 if device.startswith("dm-linear") else 1)
    return 0


# --- Tables


def table(head, rows):
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]
        print("  ".join(cells).rstrip())
    print()


def short(device):
    """A column's head."""
    return device.replace("dm-linear-", "lin ").replace("dm-", "").replace("md-", "").replace("remap-", "").replace(
        "random", "r").replace("clustered", "c").replace("-", " ")


def tables(figures):
    loads = figures["instructions_per_io"]
    devices = list(dict.fromkeys(d for row in loads.values() for d in row if d != "dm-linear"))
    print(f"""Instructions per I/O on {figures['environment']['kernel']}: dm-linear, and what the others are above it.
raw: the disk itself. lin n: dm-linear of n segments, half of them on another disk. 0 ... 1e6: remap with so many
entries, r at random, c in runs of 64. The bios are healthy unless the load says otherwise; redirected ones, and those over 256
units in slots, are compared with dm-linear on the spare, as is md's RAID1, without bad blocks and with one leg's recorded. Exact to 3; redirected, to 10; of 1 MiB, to 160; in slots, to 1 %.""")
    table(["", "linear", *map(short, devices)],
          [[load, f"{min(row['dm-linear']['rounds']):,.0f}",
            *(f"{row[d]['above_linear']:+,.0f}" if d in row else "" for d in devices)] for load, row in loads.items()])

    rows = []
    for device, memory in figures["memory"].items():
        count, activation, adding = memory["entries"], figures["activation"][device], figures["adding"][device]
        rows.append([
            device, f"{activation['instructions'] / 1e6:,.0f} M", f"{activation['per_entry']:,}" if count else "",
            f"{memory['kernel_kib']:,}", f"{memory['used_kib']:,}", f"{memory['bytes_per_entry'] or ''}",
            *(f"{adding[place][what]:,}" for place in ("scattered", "together") for what in ("instructions", "bytes")),
        ])
    print("""Activation: instructions in all, and for each entry what it takes above that of no entries. Memory: KiB of slab,
vmalloc and per-CPU data; KiB less free, both exact to 100; bytes for each entry above no entries. One `remap` message
more, for units far apart and for every other unit in one place: instructions above those of a `query`, and bytes that
the module allocates by kmalloc, those among them that it frees again.""")
    table(["", "activation", "an entry", "kernel KiB", "used KiB", "B an entry", "apart", "bytes", "in one", "bytes"], rows)

    for device, activation in figures["activation"].items():
        if activation["runs"] > 1:
            print(f"{device}, recorded in {activation['runs']} ascending runs, not in one: activation {activation['instructions'] / 1e6:,.0f} M.\n")

    print("""Writes that main fails, of one unit each, over a spare that flushes and has two replicas: instructions a write, above those of
the same write again, which goes to a slot (of those with 5 ms some are dm-delay's); and what the spare saw of all of them.""")
    what = ["instructions", "reads", "blocks", "flushes", "commits"]
    table(["spare answers", "writes", *what], [[kind, writes, *(f"{row[column]:,}" for column in what)]
                                               for kind, found in figures["failed_writes"].items() for writes, row in found.items()])


def promises(figures):
    """What DESIGN.md promises, and what was found."""
    loads = figures["instructions_per_io"]

    def worst(names, wanted):
        return max((row["above_linear"], f"{device}, {load}") for load in names for device, row in loads[load].items()
                   if wanted(device))

    healthy = ["psync read", "psync write", "io_uring read", "io_uring write", "psync read beside entries"]
    redirected = [load for load in loads if "redirected" in load]
    found = [
        ("healthy 4 KiB: dm-linear +", HEALTHY, *worst(healthy, lambda d: d.startswith("remap"))),
        ("redirected 4 KiB: dm-linear +", REDIRECTED, *worst(redirected, lambda d: d.startswith("remap"))),
        ("a Rust target that passes bios on: dm-linear +", SAMPLE, *worst(healthy[:4], lambda d: d == "rust-linear")),
        ("activation with 1e6: instructions an entry, all included", ACTIVATION,
         *max((a["instructions"] / 10 ** 6, d) for d, a in figures["activation"].items() if a["entries"] == 10 ** 6)),
        ("memory with 1e6: bytes an entry, all included", MEMORY,
         *max((m["kernel_kib"] * 1024 / 10 ** 6, d) for d, m in figures["memory"].items() if m["entries"] == 10 ** 6)),
    ]
    for what, most, is_meant, column in (
            ("a failed write alone: slot and table blocks written", ALONE, lambda w: "64" not in w, "blocks"),
            ("a failed write alone: reads", 1, lambda w: "64" not in w, "reads"),
            ("64 failed writes at once: commits", AT_ONCE, lambda w: "64" in w, "commits")):
        found.append((what, most, *max((row[column], f"spare answers {kind}, {writes}") for kind, rows in figures["failed_writes"].items()
                                       for writes, row in rows.items() if is_meant(writes))))
    peers = min((row["above_linear"], f"{device}, {load}") for load in healthy[:4] for device, row in loads[load].items()
                if device.startswith(("dm-linear-", "dm-flakey")))
    found.append(("healthy 4 KiB: ahead of the cheapest other peer", peers[0], found[0][2], f"peer: {peers[1]}"))
    print("Promised (DESIGN.md, section 6), and the worst that was found:")
    table(["", "at most", "found", "", ""],
          [[what, f"{most:,.0f}", f"{worst_found:,.0f}", "met" if worst_found <= most else "NOT MET", where]
           for what, most, worst_found, where in found])


def cpus(figures):
    """How throughput goes with CPUs."""
    counts = list(next(iter(figures.values())))
    print("Throughput of a thread on each CPU of an emulated machine, as a part of dm-linear's in the same seconds, the median of rounds;\n"
          "and dm-linear's own in I/O a second, which says how many of the CPUs the host has. This takes real time, and scatters by some %.")
    table(["CPUs", *counts, *(f"linear {n}" for n in counts)],
          [[load, *(f"{row[n]['ratio']:.3f}" for n in counts), *(f"{row[n]['linear']:,}" for n in counts)] for load, row in figures.items()])


# --- The plot

PANELS = [
    # title, load, promises
    ("4 KiB read, psync: healthy", "psync read", [(HEALTHY, "limit"), (FLOOR, "floor")]),
    ("4 KiB read, io_uring: healthy", "io_uring read", [(HEALTHY, "limit"), (FLOOR, "floor")]),
    ("4 KiB read, psync: redirected", "psync read redirected", [(REDIRECTED, "limit"), (GOAL, "goal")]),
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, GAP = 1120, 460, 62, 48, 92, 118, 86
SERIES = [
    # label, devices, load: the panel's and this, colour, dashes, radius of the dots; the first is drawn last
    ("remap, entries at random", r"remap-(0|.*-random)$", "", "#0969da", "", 2.8),
    ("remap, entries in runs of 64", r"remap-(0|.*-clustered)$", "", "#8250df", "", 4.4),
    ("remap at random, every bio near an entry", r"remap-(0|.*-random)$", " beside entries", "#0969da", "2 4", 2.8),
    ("remap in runs, every bio near an entry", r"remap-(0|.*-clustered)$", " beside entries", "#8250df", "2 4", 4.4),
    ("dm-linear, segments built by hand", r"dm-linear", "", "#bc4c00", "", 3.2),
    ("dm-flakey, all up", r"dm-flakey$", "", "#57606a", "7 4", 0),
]


def nice_step(most):
    """A round step that makes 4 to 8 of `most`."""
    power = 10 ** math.floor(math.log10(most / 4))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if most / (power * factor) <= 8)


class Drawing:
    """Pieces of SVG."""

    def __init__(self):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-size="12" fill="#1f2328"'
            ' font-family="DejaVu Sans, Verdana, Arial, sans-serif">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        ]

    def text(self, x, y, content, more=""):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {more}>{escape(content)}</text>')

    def line(self, points, colour, dashes="", width=1.0):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"'
                          + (f' stroke-dasharray="{dashes}"' if dashes else "") + ' stroke-linejoin="round"/>')

    def dot(self, x, y, colour, radius, hollow):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" stroke="{colour}" stroke-width="1.4"'
                          f' fill="{"#ffffff" if hollow else colour}"/>')


def panel(draw, loads, index, title, load, lines):
    width = (WIDTH - LEFT - RIGHT - 2 * GAP) / 3
    left, bottom = LEFT + index * (width + GAP), HEIGHT - BOTTOM
    rows = loads[load]

    series = []
    for _, devices, other, *style in reversed(SERIES):
        found = loads.get(load + other, {})
        points = [(entries(d), f["above_linear"]) for d, f in found.items() if re.match(devices, d)]
        if points:
            series.append((sorted(points), bool(other), *style))
    most = max([y for points, *_ in series for _, y in points if y < 1000] + [y for y, _ in lines]) * 1.08
    step = nice_step(most)

    # No entries have a place of their own at the left, where ten would be.
    def at_x(count):
        return left + 14 + (width - 24) * (max(math.log10(count), 2) - 1.2 if count else 0) / 4.8

    def at_y(value):
        return bottom - (bottom - TOP) * value / most

    draw.text(left, TOP - 22, title, 'font-size="13.5" font-weight="bold"')
    linear = min(rows["dm-linear"]["rounds"])
    note = f"dm-linear: {linear:,.0f} instructions"
    if "raw" in rows:
        note += f"; raw: {linear + rows['raw']['above_linear']:,.0f}"
    draw.text(left, TOP - 6, note, 'font-size="11" fill="#57606a"')
    value = 0
    while value <= most:
        draw.line([(left, at_y(value)), (left + width, at_y(value))], "#57606a" if value == 0 else "#d8dee4")
        draw.text(left - 6, at_y(value) + 4, f"+{value:,.0f}" if value else "0", 'text-anchor="end" fill="#57606a"')
        value += step
    for count, label in [(0, "0")] + [(10 ** e, f"10{'²³⁴⁵⁶'[e - 2]}") for e in range(2, 7)]:
        draw.line([(at_x(count), bottom), (at_x(count), bottom + 4)], "#57606a")
        draw.text(at_x(count), bottom + 18, label, 'text-anchor="middle" fill="#57606a"')
    draw.text(left + width / 2, bottom + 36, "units that are somewhere else", 'text-anchor="middle" fill="#57606a"')
    for y, label in lines:
        draw.line([(left, at_y(y)), (left + width, at_y(y))], "#1a7f37", "1 3", 1.6)
        draw.text(left + width + 5, at_y(y) + 4, label, 'font-size="10" fill="#1a7f37"')
    for points, hollow, colour, dashes, radius in series:
        if len(points) == 1:  # it has no entries
            y = points[0][1]
            if y > most:
                draw.text(left + width, TOP + 10, f"dm-flakey: +{y:,.0f} ↑",
                          f'text-anchor="end" font-size="11" fill="{colour}"')
                continue
            points = [(0, y), (10 ** 6, y)]
            draw.line([(at_x(x), at_y(y)) for x, y in points], colour, dashes, 1.4)
            continue
        draw.line([(at_x(x), at_y(y)) for x, y in points], colour, dashes, 1.8)
        for x, y in points:
            draw.dot(at_x(x), at_y(y), colour, radius, hollow)


def plot(figures):
    draw = Drawing()
    draw.text(LEFT, 26, "What a bio costs above dm-linear",
              'font-size="16" font-weight="bold"')
    draw.text(LEFT, 46, f"instructions per I/O over null_blk, counted in one boot of {figures['environment']['kernel']}",
              'fill="#57606a"')
    for index, (title, load, lines) in enumerate(PANELS):
        panel(draw, figures["instructions_per_io"], index, title, load, lines)
    for index, (label, _, other, colour, dashes, radius) in enumerate(SERIES):
        x, y = LEFT + index % 3 * 350, HEIGHT - 44 + index // 3 * 22
        draw.line([(x, y - 4), (x + 30, y - 4)], colour, dashes, 1.8)
        if radius:
            draw.dot(x + 15, y - 4, colour, radius, bool(other))
        draw.text(x + 38, y, label)
    draw.parts.append("</svg>")
    return "\n".join(draw.parts) + "\n"


def main():
    source, to = Path(sys.argv[1]), Path(sys.argv[2])
    figures = json.loads((source / "bench.json").read_text(encoding="utf-8"))
    figures["throughput_by_cpus"] = json.loads((source / "cpus.json").read_text(encoding="utf-8"))
    tables(figures)
    promises(figures)
    cpus(figures["throughput_by_cpus"])
    (to / "bench.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (to / "hot-path.svg").write_text(plot(figures), encoding="utf-8")
    print(f"The figures: {to}/bench.json; as a plot: {to}/hot-path.svg")


if __name__ == "__main__":
    main()
