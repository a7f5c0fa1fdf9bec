"""compare.py FIGURES BASELINE: judges the figures of `machine.py short`, as KTAP."""

import json
import sys
from pathlib import Path

# What DESIGN.md promises in section 6; and twice what boots of one module were seen to differ by (one I/O more or less in
# 100 ms is 1 to 3 instructions; what redirected bios cost depends a little on which pages the spare's data got).
HEALTHY, REDIRECTED, SAMPLE = (60, 5), (200, 20), (15, 3)


def main():
    new, old = (json.loads(Path(path).read_text(encoding="utf-8")) for path in sys.argv[1:])
    for what in ("kernel", "fio"):
        if new["environment"][what] != old["environment"][what]:
            print(f"# the baseline is from {what} {old['environment'][what]}; this is {new['environment'][what]}")
    rows = [(load, device) for load, devices in old["instructions_per_io"].items() for device in devices
            if device != "dm-linear"]
    print(f"KTAP version 1\n1..{len(rows)}")
    for number, (load, device) in enumerate(rows, 1):
        before, now = (f["instructions_per_io"][load][device]["above_linear"] for f in (old, new))
        promise, tolerance = REDIRECTED if "redirected" in load else SAMPLE if device == "rust-linear" else HEALTHY
        limit = before + tolerance
        if before <= promise:  # scatter alone is to fail nothing
            limit = min(limit, max(promise, before + tolerance / 2))
        verdict = "ok" if now <= limit else "not ok"
        print(f"{verdict} {number} - {load}, {device}: at most dm-linear + {limit:.1f} instructions")
        print(f"# dm-linear + {now}; baseline + {before}" + ("" if before <= promise else f"; promised + {promise}"))
        if now < before - tolerance:
            print("# cheaper than the baseline: time for a new one (make bench BASELINE=1)")


if __name__ == "__main__":
    main()
