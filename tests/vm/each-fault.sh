#!/bin/bash
# Loading a table, resuming, formatting, reloading, with each allocation and each request for I/O failing in turn, and
# with devices that cannot be opened: a clean error, nothing left behind, and the next plain activation works.
#
# each-fault.py explains. It needs /proc/self/fail-nth, which the debug kernel has.
# kernels: debug
# args: 6
# all-args: 1
# vm: --smp 2 --timeout 1200
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

disk main 4
disk spare 1
blank /dev/main
modprobe dm_remap
for kind in failslab fail_page_alloc fail_make_request; do
	faults $kind
	fault_below $kind require dm_remap
done
echo 1 >/sys/block/main/make-it-fail
echo 1 >/sys/block/spare/make-it-fail
# The faults include a request that null_blk leaves to time out.
echo 200 >/sys/block/main/queue/io_timeout
echo 200 >/sys/block/spare/queue/io_timeout
# Else each device waits for several grace periods.
echo 1 >/sys/kernel/rcu_expedited
exec python3 /host/each-fault.py "$@"
