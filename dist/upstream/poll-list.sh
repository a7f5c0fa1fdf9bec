#!/bin/bash
# Shows the fault that build/upstream/dm-poll-list/ mends: the kernel follows a null pointer, and this never ends.
#
#   scripts/vm dist/upstream/poll-list.sh                              the kernel as it is
#   scripts/vm --include dm-mod.ko dist/upstream/poll-list.sh FIXED    with a dm-mod.ko that has the patch
#
# A bio that is polled for is cut in two where one target of the device "upper" ends. The second part comes to "lower" as if it had a
# list of what it was split into.
set -euo pipefail
# (First the kernel's own, for the modules that it needs.)
modprobe dm-mod
if [[ ${1:-} == FIXED ]]; then
	rmmod dm-mod
	insmod /host/dm-mod.ko
fi
modprobe null_blk nr_devices=0
null=/sys/kernel/config/nullb/polled
mkdir $null
echo 16 >$null/size
echo 1 >$null/memory_backed
echo 2 >$null/poll_queues
echo 1 >$null/power
export DM_DISABLE_UDEV=1
dmsetup create lower --table "0 32768 linear /dev/polled 0"
printf '%s\n' "0 8 linear /dev/mapper/lower 0" "8 8 linear /dev/mapper/lower 8" | dmsetup create upper
cat /sys/block/dm-*/queue/io_poll
dd if=/dev/urandom of=/dev/mapper/lower bs=8k count=1 oflag=direct status=none
fio --name=polled --filename=/dev/mapper/upper --rw=read --bs=8k --size=8k --loops=1000 --direct=1 --ioengine=io_uring --hipri \
	--output-format=terse --terse-version=3 | cut -d';' -f1-8
echo "still here"
