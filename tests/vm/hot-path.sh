#!/bin/bash
# What a healthy and a redirected bio cost in instructions, against dm-linear in the same boot: no more than when
# tests/bench/baseline.json was made, and no more than DESIGN.md promises where that was met then. Instructions are counted:
# this does not depend on the machine's speed. `make bench BASELINE=1` makes the baseline.
# kernels: stock
# vm: --icount --mem 1024 --include tests/bench
set -euo pipefail
/host/bench/machine.py short /run/bench.json
python3 /host/bench/compare.py /run/bench.json /host/bench/baseline.json
