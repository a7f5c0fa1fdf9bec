#!/bin/bash
# Whatever is done to devices, in whatever order and by several at a time: nothing hangs, nothing is lost, nothing is left.
#
# churn.py explains. Arguments: seconds, and a seed that it printed.
# kernels: stock (debug) (race)
# args: 25
# all-args: 1800
# vm: --smp 2 --timeout 3000
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

disk disk 8
disk sparedisk 24
modprobe -a dm_delay dm_remap
exec python3 /host/churn.py "$@"
