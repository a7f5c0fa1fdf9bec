#!/bin/bash
# Whatever was acknowledged before the machine was killed, at a random moment under failing writes, is there afterwards.
#
# `make soak` does it 100 times. The host survives, with all that the machine's disks were given: a flush that is missing does
# not show here, but in replay.sh; what shows is a wrong order, and what activation makes of a half-done change.
# kernels: stock
# vm: --smp 2
# disks: 32M 16M 1M
# boots: 98 98 0
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
modprobe -a dm_remap ext4
exec python3 /host/power.py "$@"
