#!/bin/bash
# Whatever was acknowledged survives a cut at any flush or FUA write, and in the middle of any metadata write.
#
# Main and spare are slices of one dm-log-writes device; replay.py explains.
# kernels: stock
# args: 6
# all-args: 250
# vm: --smp 2 --timeout 2400
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

disk base 20
disk log 200
disk replayed0 20
disk replayed1 20
modprobe -a dm_log_writes dm_remap ext4
# Else each activation waits for several grace periods.
echo 1 >/sys/kernel/rcu_expedited
exec python3 /host/replay.py "$@"
