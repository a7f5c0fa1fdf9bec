#!/usr/bin/env python3
"""The counting part of scripts/coverage.

reduce TRACE LOG: prints the offsets in the module's text of the instructions that QEMU's log TRACE shows; where the module was
loaded stands in LOG.
report LINES OFFSETS...: of each source file, how many lines have code and how many were executed. LINES is the line
table as objdump prints it.
"""

import bisect
import collections
import re
import sys


def reduce(trace, log):
    with open(log, encoding="utf-8", errors="replace") as file:
        bases = {int(m, 16) for m in re.findall(r"# dm_remap at (0x[0-9a-f]+)", file.read())}
    offsets = set()
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("0xffffffff"):
                address = int(line[:18], 16)
                offsets.update(address - base for base in bases if 0 <= address - base < 1 << 20)
    print(*sorted(offsets), sep="\n")


def report(lines, *files):
    executed = set()
    for file in files:
        with open(file, encoding="ascii") as numbers:
            executed.update(map(int, numbers.read().split()))
    executed = sorted(executed)
    row = re.compile(r"^(\S+\.rs)\s+(\d+|-)\s+(0x[0-9a-f]+|0)\b")
    path, known, code, done = "", {}, collections.defaultdict(set), collections.defaultdict(set)
    last = None
    with open(lines, encoding="utf-8") as file:
        for line in file:
            if named := re.match(r"^(?:CU: )?(\S+\.rs):(?:\[\+\+\])?$", line.strip()):
                path = named[1]
            elif found := row.match(line):
                at = int(found[3], 16)
                if last and last[1] < at:
                    name, start, number = last
                    code[name].add(number)
                    place = bisect.bisect_left(executed, start)
                    if place < len(executed) and executed[place] < at:
                        done[name].add(number)
                last = None if found[2] in ("-", "0") else (path, at, int(found[2]))
    known = {name: name[name.index("src/"):] for name in code if re.search(r"src/(dm|engine|target)/", name)}
    total = collections.Counter()
    for name in sorted(known, key=known.get):
        part = known[name].split("/")[1]
        total[part, "code"] += len(code[name])
        total[part, "done"] += len(done[name])
        missed = ",".join(map(str, sorted(code[name] - done[name])))
        print(f"{known[name]:32} {len(done[name]):5} of {len(code[name]):5} lines  not: {missed}")
    for part in ("dm", "engine", "target"):
        n, of = total[part, "done"], total[part, "code"]
        print(f"src/{part:28} {n:5} of {of:5} lines, {100 * n / max(of, 1):.1f} %")


{"reduce": reduce, "report": report}[sys.argv[1]](*sys.argv[2:])
