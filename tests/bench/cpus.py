#!/usr/bin/env python3
"""cpus.py FILE: throughput by number of CPUs, as a part of dm-linear's in the same seconds. For `make bench`, in a machine of
`scripts/vm --smp 4` without --icount: it takes real time, on processors that other programs use, too. FILE gets the figures.

It shows whether CPUs wait for each other, as they would for a counter that all of them write. (An emulated CPU has no caches of its
own; the host's processors have.) tests/hot_path.py shows by the code that there is no such thing."""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, "/host/bench")
from machine import MOVED, MOVED_AT, UNIT, Remap, disk, log, put, run  # noqa: E402

CPUS, ROUNDS, SECONDS = ("1", "2", "4"), 5, 1
MAIN = 272 << 21  # sectors
LOADS = {
    # name: (options, whether it is of units that are in slots)
    "read": ("rw=randread size=256g", False),
    "read redirected": ("rw=randread size=4m", True),
    "write redirected": ("rw=randwrite size=4m", True),
}


def throughput(options, path, sector, cpus):
    """I/O a second by one thread on each of so many CPUs."""
    put("/run/job", "\n".join([
        "[global]", "direct=1", "thread=1", "norandommap=1", "time_based=1", "ioengine=psync", "bs=4k", "disable_lat=1", "disable_clat=1",
        "disable_slat=1", "group_reporting=1", f"numjobs={cpus}", f"cpus_allowed=0-{int(cpus) - 1}", "cpus_allowed_policy=split",
        f"runtime={SECONDS}", f"offset={sector * 512}", *options.split(), "[job]", f"filename={path}"]))
    run("fio", "--output-format=json", "--output=/run/fio", "/run/job")
    job = json.loads(Path("/run/fio").read_text(encoding="utf-8"))["jobs"][0]
    return job["read"]["iops"] + job["write"]["iops"]


def main():
    run("modprobe", "null_blk", "nr_devices=0")
    run("modprobe", "dm-remap")
    disk("main", MAIN >> 11, memory_backed=0)
    disk("peer", 160, memory_backed=1)
    run("dd", "if=/dev/zero", "of=/dev/peer", "bs=1M", "count=4", "oflag=direct", "status=none")
    run("dmsetup", "create", "linear", input=f"0 {MAIN} linear /dev/main 0")
    run("dmsetup", "create", "spare", input=f"0 {MOVED * UNIT} linear /dev/peer 0")
    remap = Remap("remap", 0, "random", 160)
    run("dmsetup", "message", remap.name, "0", "remap", str(MOVED_AT), str(MOVED * UNIT))
    result = {}
    for load, (options, is_moved) in LOADS.items():
        result[load] = {}
        linear, sector = ("/dev/mapper/spare", MOVED_AT) if is_moved else ("/dev/mapper/linear", 0)
        for cpus in CPUS:
            pairs = [(throughput(options, "/dev/mapper/remap", sector, cpus), throughput(options, linear, 0, cpus))
                     for _ in range(ROUNDS)]
            result[load][cpus] = {
                "linear": round(statistics.median(theirs for _, theirs in pairs)),
                "ratio": round(statistics.median(ours / theirs for ours, theirs in pairs), 3),
            }
            log(f"{load}, {cpus} CPUs: {result[load][cpus]}")
    put(sys.argv[1], json.dumps(result, indent=1) + "\n")


main()
