#!/bin/bash
# What docs/usage.md shows of a disk that begins to fail is what a person sees, screen for screen, on SCSI disks with unreadable
# sectors.
# kernels: stock
# disks: 64M,scsi,wwn=0x5000c500a1b2c3d4,serial=SYSTEM
# vm: --include docs/usage.md
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
echo "KTAP version 1"

modprobe -a virtio_scsi sd_mod
until [[ -b /dev/sda ]]; do sleep 0.1; done
# /dev/sda has the spare, /dev/sdb fails.
printf 'label: gpt\nstart=2048,size=16384\nstart=18432,size=16384\nstart=34816,size=16384\n' | sfdisk -q /dev/sda
modprobe scsi_debug dev_size_mb=64 delay=0 opts=2 medium_error_start=0x7fffffff medium_error_count=0 lbpu=1
until [[ -b /dev/sdb ]]; do sleep 0.1; done
echo 3 >/proc/sys/kernel/printk
printf 'label: dos\nstart=2048,type=83\n' | sfdisk -q /dev/sdb
until [[ -b /dev/sdb1 && -b /dev/sda3 ]]; do sleep 0.1; done
mkdir -p /mnt /root
cd /root
# As where the packages are installed.
for file in /usr/lib/systemd/system-generators/dmremap-generator /usr/sbin/update-initramfs; do
	mkdir -p "${file%/*}"
	: >"$file"
done
# unreadable FIRST COUNT: these sectors of /dev/sdb1 cannot be read.
cat >/run/session.sh <<'S'
set -e
unreadable() {
	echo $((2048 + $1)) >/sys/module/scsi_debug/parameters/medium_error_start
	echo "$2" >/sys/module/scsi_debug/parameters/medium_error_count
	echo 3 >/proc/sys/vm/drop_caches
}
# The first sector on the partition of a file on /mnt.
sector_of() {
	local block size
	size=$(dumpe2fs -h /dev/mapper/safe 2>/dev/null | awk '/^Block size:/ { print $3 }')
	read -r block _ < <(debugfs -R "blocks ${1#/mnt}" /dev/mapper/safe 2>/dev/null)
	echo $((block * size / 512))
}
S
python3 /host/session.py /host/usage.md
