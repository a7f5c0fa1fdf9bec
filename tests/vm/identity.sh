#!/bin/bash
# A spare serves the main device that it was made for, whatever that is called today, and no other one.
# kernels: stock
# disks: 33M,scsi,wwn=0x5000c500a1b2c301 33M,scsi,wwn=0x5000c500a1b2c302 33M,scsi 33M,ata,wwn=0x5000c500a1b2c303
# shellcheck disable=SC2016,SC2034,SC2054,SC2086,SC2178  # what eval is given; names of devices
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 49

modprobe -a virtio_scsi sd_mod ahci nvme_loop
disk spare 8
# QEMU's NVMe disks have numbers that Linux does not believe. These are served by this machine to itself.
target=/sys/kernel/config/nvmet
nvme() { # NAME [NGUID]
	local nqn=nqn.2026-11.example:$1
	disk "$1" 33
	mkdir "$target/subsystems/$nqn" "$target/subsystems/$nqn/namespaces/1"
	echo 1 >"$target/subsystems/$nqn/attr_allow_any_host"
	echo "/dev/$1" >"$target/subsystems/$nqn/namespaces/1/device_path"
	echo "${2:-00000000-0000-0000-0000-000000000000}" >"$target/subsystems/$nqn/namespaces/1/device_nguid"
	echo 1 >"$target/subsystems/$nqn/namespaces/1/enable"
	ln -s "$target/subsystems/$nqn" "$target/ports/1/subsystems/$nqn"
	echo "transport=loop,nqn=$nqn" >/dev/nvme-fabrics
}
mkdir "$target/ports/1"
echo loop >"$target/ports/1/addr_trtype"
nguid=52540011-2233-4455-6677-8899aabbccdd
nvme with $nguid
nvme without
# wwid NAME: the whole disk of that number.
wwid() { # not all of them have one
	(grep -lx "$1" /sys/block/sd*/device/wwid /sys/block/nvme?n1/nguid 2>/dev/null || true) | cut -d / -f 4 | sed 's#^#/dev/#'
}
plugged() {
	for id in naa.5000c500a1b2c301 naa.5000c500a1b2c302 naa.5000c500a1b2c303 $nguid; do [[ -b $(wwid $id) ]] || return 1; done
	[[ $(echo /sys/block/sd* /sys/block/nvme?n1 | wc -w) == 6 ]]
}
soon plugged
# Disks a and b are alike but for their numbers; c and the second NVMe namespace, n, have none.
a=$(wwid naa.5000c500a1b2c301) b=$(wwid naa.5000c500a1b2c302) ata=$(wwid naa.5000c500a1b2c303) eui=$(wwid $nguid)
c=$(for d in /sys/block/sd*; do grep -q naa "$d/device/wwid" || echo "/dev/${d##*/}"; done)
n=$(for d in /sys/block/nvme?n1; do [[ $d == */${eui##*/} ]] || echo "/dev/${d##*/}"; done)
echo "# a $a, b $b, without a number $c, ata $ata, nvme $eui, $n"
length=65536

fresh() { blank /dev/spare; }
line() { echo "0 ${3:-$length} remap $1 0 /dev/spare 0${2:+ 1 $2}"; }
# on MAIN [FEATURE [SECTORS]]: the device is made, and is gone again.
on() {
	dmsetup create r --table "$(line "$@")"
	dmsetup remove r
}
main_is() { dmremap dump /dev/spare | grep '^main ' | cut -d , -f 2- | sed 's/^ //'; }
# refuses MAIN WHAT [SECTORS]: with the recorded main and this one named, and nothing written.
refuses() {
	local before
	before=$(sha256sum /dev/spare "$1" $a $b)
	refused "the spare belongs to $(main_is), and main is $2" dmsetup create r --table "$(line "$1" "" "${3:-}")"
	log | grep -F "Main is not the one that the spare belongs to"
	expect "$before" sha256sum /dev/spare "$1" $a $b
}
disk_is() { echo "disk $1 from sector ${2:-0}"; }
A=$(disk_is naa.5000c500a1b2c301) B=$(disk_is naa.5000c500a1b2c302)

# --- Whole disks

# A different sector 1000 each.
for d in $a $b $c $ata $eui $n; do
	data "/run/${d##*/}" 8
	put "/run/${d##*/}" $d 1000
done
entry() {
	dmsetup create r --table "$(line $a)"
	message r remap 1000
	dmsetup remove r
}
check "the kernel formats the spare, and a unit gets an entry" entry
check "the number of the disk is recorded" expect "$A" main_is
check "another disk is refused" refuses $b "$B"
check "also if it is read-only" eval 'not dmsetup create r --readonly --table "$(line $b)"'
check "also as a table for the active device" eval '
	dmsetup create r --table "$(line $a)" && not dmsetup load r --table "$(line $b)" && dmsetup remove r'
check "the right one is accepted, and has its sectors" eval '
	dmsetup create r --table "$(line $a)" && same "/run/${a##*/}" /dev/mapper/r 1000; dmsetup remove r'
check "a disk without a number is accepted: behind a bridge, for instance" on $c
check "and what is recorded stays" expect "$A" main_is
check "rebind takes the other disk" on $b rebind
check "and records it" expect "$B" main_is
check "the one before is refused now" refuses $a "$A"
listed() {
	dmsetup create r --table "$(line $b rebind)"
	expect "0 $length remap *:* 0 *:* 0 1 rebind" dmsetup table r
	dmsetup table r | dmsetup load r
	dmsetup remove r
}
check "a table with rebind is printed as it was loaded" listed
only() { not dmsetup create r --readonly --table "$(line $a)" && dmsetup create r --readonly --table "$(line $a rebind)" && dmsetup remove r; }
check "read-only, rebind is for once" eval 'only && expect "$B" main_is'
check "dmremap check names both" fails_with "belongs to another main: $B, and $a is $A" dmremap check /dev/spare --main $a
check "and exits with 2, or 0 if it is the right one" eval '
	dmremap check /dev/spare --main $b; dmremap check /dev/spare --main $a || (($? == 2))'
check "dmremap rebind takes the first one again" eval 'dmremap rebind /dev/spare --main $a && expect "$A" main_is'
check "both superblocks are sound, and the device works" eval 'dmremap check /dev/spare --main $a && on $a && refuses $b "$B"'
check "one that is too short is refused" fails_with "has " dmremap rebind /dev/spare --main $a --main-start 4096
check "as JSON" eval '
	dmremap dump --json /dev/spare | grep -F "\"disk_id\": \"naa.5000c500a1b2c301\""'

# Renumbered: the first to be found has the first name. Which had it before was chance.
renumber() {
	local host ids="1 0 2"
	[[ $a < $b ]] || ids="0 1 2"
	host=$(readlink -f /sys/block/${a##*/}/device)
	host=${host%/target*} host=${host##*/host}
	for d in $a $b $c; do echo 1 >/sys/block/${d##*/}/device/delete; done
	for id in $ids; do
		echo "0 $id 0" >/sys/class/scsi_host/host$host/scan
		soon compgen -G "/sys/bus/scsi/devices/$host:0:$id:0/block/sd*"
	done
	soon plugged
}
was="$a $b"
renumber
a=$(wwid naa.5000c500a1b2c301) b=$(wwid naa.5000c500a1b2c302)
c=$(for d in /sys/block/sd*; do grep -q naa "$d/device/wwid" || echo "/dev/${d##*/}"; done)
check "after the disks changed names" expect "${was#* } ${was% *}" echo $a $b
check "the one that has the name of the right one is refused" refuses $b "$B"
check "and the right one is accepted" on $a

for kind in ata eui; do
	main=${!kind}
	[[ $kind == ata ]] && number=$(disk_is naa.5000c500a1b2c303) || number=$(disk_is eui.525400112233445566778899aabbccdd)
	fresh
	check "$kind: recorded by the kernel" eval 'on $main && expect "$number" main_is'
	check "$kind: another disk is refused" refuses $a "$A"
	fresh
	check "$kind: recorded by dmremap format, the same" eval '
		dmremap format /dev/spare --main $main --main-sectors $length --main-start 0 --yes && expect "$number" main_is'
	check "$kind: the kernel agrees" eval 'on $main && refuses $a "$A"'
done

# --- Nothing known

nothing="a device of which nothing is known"
fresh
check "a disk without a number: nothing is recorded" eval 'on $c && expect "$nothing" main_is'
check "another without a number is accepted, as it must be" on $n
check "a read-only activation records nothing" eval '
	dmsetup create r --readonly --table "$(line $a)" && dmsetup remove r && expect "$nothing" main_is'
check "the first writable activation on a disk with a number does" eval 'on $a && expect "$A" main_is'
check "from then on" refuses $b "$B"

# --- Partitions: two alike on each disk

part() { # DISK NUMBER
	case $1 in *[0-9]) echo "$1p$2" ;; *) echo "$1$2" ;; esac
}
partitions() { # DISK LABEL LABEL-ID FIRST SECOND: the starts; a third line names the order
	local uuids=('uuid=11111111-aaaa-4aaa-8aaa-111111111111' 'uuid=22222222-aaaa-4aaa-8aaa-222222222222')
	[[ $2 == gpt ]] || uuids=(type=83 type=83)
	printf '%s\n' "label: $2" "label-id: $3" "$(part "$1" 1) : start=$4, size=20000, ${uuids[0]}" \
		"$(part "$1" 2) : start=$5, size=20000, ${uuids[1]}" | sfdisk -q "$1"
	soon test -b "$(part "$1" 2)"
}
for label in gpt dos; do
	fresh
	if [[ $label == gpt ]]; then
		id=33333333-aaaa-4aaa-8aaa-333333333333 first=11111111-aaaa-4aaa-8aaa-111111111111 second=22222222-aaaa-4aaa-8aaa-222222222222
	else
		id=0xc001cafe first=c001cafe-01 second=c001cafe-02
	fi
	partitions $a $label $id 2048 30720
	P="PARTUUID=$first on disk naa.5000c500a1b2c301 from sector 2048"
	Q="PARTUUID=$second on disk naa.5000c500a1b2c301 from sector 30720"
	check "$label: the partition's UUID is recorded, and its place" eval 'on "$(part $a 1)" "" 20000 && expect "$P" main_is'
	check "$label: the tool finds the same" eval 'fresh && dmremap format /dev/spare --main "$(part $a 1)" --yes && expect "$P" main_is'
	check "$label: its neighbour of the same length is refused" refuses "$(part $a 2)" "$Q" 20000
	# A copy of the whole disk, on one with another number and on one without.
	for copy in $b $n; do
		dd if=$a of=$copy bs=1M oflag=direct status=none
		blockdev --rereadpt $copy
		soon test -b "$(part $copy 2)"
	done
	check "$label: a copy of the disk is accepted by its UUID" eval 'on "$(part $b 1)" "" 20000 && on "$(part $n 1)" "" 20000'
	check "$label: and of that the neighbour is refused" refuses "$(part $n 2)" "PARTUUID=$second" 20000
	check "$label: the whole disk, with the place of the partition, is the same place" eval '
		dmsetup create r --table "0 20000 remap $a 2048 /dev/spare 0" && dmsetup remove r'
done

# --- A mapped device

fresh
dmsetup create over --table "0 $length linear $a 0"
check "a mapped device has the number of the disk below" eval 'on /dev/mapper/over && expect "$A" main_is'
dmsetup remove over
dmsetup create over --table "0 $length linear $b 0"
check "over another disk it is refused" refuses /dev/mapper/over "$B"
dmsetup remove over
remove_disk spare
