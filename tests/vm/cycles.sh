#!/bin/bash
# A device created, used and removed thousands of times leaves no memory, no reference and no thread behind.
#
# cycles.py explains. On the debug kernel, a tenth of the cycles: there kmemleak looks for what they leave.
# kernels: stock (debug)
# args: 300
# all-args: 10000
# vm: --smp 2 --timeout 1800
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

for n in 0 1 2; do
	disk main$n 4
	disk spare$n 1
done
modprobe dm_remap
# Else each cycle waits for several grace periods.
echo 1 >/sys/kernel/rcu_expedited
[[ $VM_KERNEL == stock ]] || set -- $(($1 / 10))
exec python3 /host/cycles.py "$1"
