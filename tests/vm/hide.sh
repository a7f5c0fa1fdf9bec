#!/bin/bash
# hide: raw main shows nothing, the mapped device is whole, and unhide and the backup each bring raw main back byte for byte.
# A cut anywhere harms nothing.
#
# Argument: of so many system calls one is where it is killed.
# kernels: stock
# args: 32
# all-args: 1
# vm: --extras
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
# Kinds of content, and how many MiB they need.
kinds=(ext4:16 xfs:304 btrfs:112 vfat:16 swap:16 luks1:16 luks2:24 lvm:16 md-0.90:16 md-1.0:16 md-1.2:16 gpt:16)
plan $((4 * ${#kinds[@]} + 5))

disk spare 8
mkdir -p /mnt /run/backup
modprobe btrfs
modprobe vfat

# LVM takes no null_blk disk otherwise.
lvm='devices { types = [ "nullb", 16 ] }'
make() {
	case $1 in
	ext4) mkfs.ext4 -q -F -L home /dev/main ;;
	xfs) mkfs.xfs -q -f -L home /dev/main ;;
	btrfs) mkfs.btrfs -q -f -L home /dev/main ;;
	vfat) mkfs.vfat -n HOME /dev/main ;;
	swap) mkswap -L home /dev/main ;;
	luks?) echo secret | cryptsetup luksFormat -q --type "$1" --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/main - ;;
	lvm) pvcreate -qff -y --config "$lvm" --devices /dev/main /dev/main ;;
	md-*)
		mdadm --create /dev/md9 --run --level 1 --raid-devices 2 --metadata "${1#md-}" --bitmap none /dev/main missing
		mdadm --stop /dev/md9
		;;
	gpt) printf 'label: gpt\n2048,20000\n' | sfdisk -q /dev/main ;;
	esac
}
# Nothing finds anything on raw main, which nobody holds.
nothing() {
	local said
	not blkid -p /dev/main
	expect "" wipefs -n /dev/main
	expect "" eval 'lsblk -dno FSTYPE,UUID,LABEL,PTTYPE /dev/main | xargs'
	! mount /dev/main /mnt || { umount /mnt; return 1; }
	not swapon /dev/main
	not cryptsetup isLuks /dev/main
	not mdadm --examine /dev/main
	not pvs --config "$lvm" --devices /dev/main /dev/main
	not btrfs device scan /dev/main
	said=$(sfdisk --dump /dev/main 2>&1) || true
	[[ $said != *start=* ]]
}
hidden() {
	blank /dev/spare
	dmremap open r /dev/main /dev/spare
	dmremap hide r --yes --backup /run/backup
	cmp /run/before /dev/mapper/r
	dmremap close r
	nothing
}
whole() {
	dmremap open r /dev/main /dev/spare
	cmp /run/before /dev/mapper/r
	expect "*/dev/main: shows no signature any more*" dmremap hide r --yes --backup /run/backup
}
unhides() {
	dmremap unhide r
	dmremap close r
	cmp /run/before /dev/main
}
# Brings raw main back without the spare, as the manual page says.
from_backup() {
	local file name
	for file in /run/backup/wipefs-main-*.bak; do
		name=${file##*-}
		dd if="$file" of=/dev/main bs=1 seek=$((${name%.bak})) conv=notrunc status=none
	done
}
backup() {
	dmremap open r /dev/main /dev/spare
	dmremap hide r --yes --backup /run/backup
	dmremap close r
	not cmp -s /run/before /dev/main
	from_backup
	cmp /run/before /dev/main
}

for kind in "${kinds[@]}"; do
	disk main "${kind#*:}"
	kind=${kind%:*}
	make "$kind" >/run/made 2>&1 || { cat /run/made && exit 1; }
	cp --sparse=always /dev/main /run/before
	rm -f /run/backup/*
	check "$kind: nothing shows on raw main" hidden
	check "$kind: the mapped device is whole, and hiding again does nothing" whole
	check "$kind: unhide brings raw main back" unhides
	check "$kind: and so does the backup" backup
	[[ ! -e /dev/mapper/r ]] || dmsetup remove r
	remove_disk main
done

# --- What cannot be read as a whole

disk main 16
make ext4
cp --sparse=always /dev/main /run/before
blank /dev/spare
dmremap open r /dev/main /dev/spare
bad main 3
unreadable() {
	not dmremap hide r --yes --backup /run/none >/run/said 2>&1
	grep "sector 0 cannot be read" /run/said
	expect "* 0" field r pending relocated
}
check "a signature in a unit with an unreadable sector is not hidden" unreadable
good main 3
dmremap forget r 0 16M
full_backup() {
	mkdir -p /run/tiny
	mount -t tmpfs -o size=4k,nr_inodes=8 tmpfs /run/tiny
	dd if=/dev/zero of=/run/tiny/fill bs=4k count=1 status=none
	not dmremap hide r --yes --backup /run/tiny
	cmp /run/before /dev/main
	expect "/run/tiny/fill" ls -d /run/tiny/*
	rm /run/tiny/fill
	dmremap hide r --yes --backup /run/tiny
	not blkid -p /dev/main
	umount /run/tiny
	dmremap unhide r
	cmp /run/before /dev/main
}
check "without room for the backup nothing is erased, and with room it is" full_backup
readonly_() {
	dmremap close r
	dmremap open r /dev/main /dev/spare --readonly
	not dmremap hide r --yes --backup /run/backup
	cmp /run/before /dev/main
	dmremap close r
}
check "a read-only device hides nothing" readonly_

# Killed at the N-th system call that changes anything, in dmremap or in what it runs.
calls=ioctl,pwrite64,write,linkat,renameat2,unlink,fsync,fdatasync
killed() {
	local n=$((1 - $1)) status=1
	while ((status)); do
		n=$((n + $1))
		blank /dev/spare
		rm -f /run/backup/* /run/backup/.[!.]*
		put /run/before /dev/main
		dmremap open r /dev/main /dev/spare >/dev/null
		run strace -f -o /dev/null -e trace=$calls -e inject=$calls:signal=KILL:when=$n dmremap hide r --yes --backup /run/backup >/dev/null 2>&1
		# Right at once, and after a crash.
		cmp /run/before /dev/mapper/r
		dmsetup remove r
		dmremap open r /dev/main /dev/spare >/dev/null
		cmp /run/before /dev/mapper/r
		# And finished by the next attempt.
		dmremap hide r --yes --backup /run/backup >/dev/null
		cmp /run/before /dev/mapper/r
		dmremap close r
		not blkid -p /dev/main
		from_backup
		cmp /run/before /dev/main
	done
	echo $n >/run/cuts
	((n > 10))
}
remove_disk main spare
disk main 4
disk spare 3
mkfs.ext4 -q -F /dev/main
cp /dev/main /run/before
check "a kill at a system call leaves the mapped device right and main recoverable" killed "$1"
echo "# cuts: $(</run/cuts)"
many() { (($(</run/cuts) > 20)); }
check "so many cuts were made" many
