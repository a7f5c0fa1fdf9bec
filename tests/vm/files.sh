#!/bin/bash
# dmremap files: whose the bad sectors are, on what lies on a remap device; and zero (see zero.sh), which says so first.
#
# files.py explains the second part.
# Arguments: a seed, or `random`; how many sectors are bad; on what.
# kernels: stock
# vm: --extras --include docs/json-schema
# args: 8 50 ext4 vfat
# all-args: random 50 ext4 xfs vfat ext4+lvm ext4+gpt ext4+crypt ext4+lvm+crypt ext4+gpt+crypt xfs+lvm vfat+gpt
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
cases=("${@:3}") ext4=0
[[ " ${cases[*]} " != *" ext4 "* ]] || ext4=1
plan $((28 + 2 * ${#cases[@]} + ext4))
seed=$1
[[ $seed != random ]] || seed=$RANDOM$RANDOM

disk main 64
disk spare 8
mkdir -p /mnt /srv
dmremap open r /dev/main /dev/spare
mkfs.ext4 -q -b 4096 /dev/mapper/r
mount -o noatime /dev/mapper/r /mnt

# block FILE [BLOCK]: the sector that a block of a file begins at, as debugfs has it.
block() {
	local found
	found=$(debugfs -R "bmap <$(stat -c %i "$1")> ${2:-0}" /dev/mapper/r 2>/dev/null)
	found=${found% (*}
	((found))
	echo $((found * 8))
}
# has SECTOR COUNT FILTER: of what --json says of these sectors, jq's FILTER of the hits is true.
has() {
	local status
	run dmremap files r "$1" "$2" --json >/run/files.json
	cat /run/files.json
	((status <= 1))
	jq -e ".hits | $3" /run/files.json
}
# says STATUS TEXT COMMAND [ARG...]
says() {
	local status
	run "${@:3}" >/run/said 2>&1
	cat /run/said
	((status == $1))
	grep -F -- "$2" /run/said
}

mkdir /mnt/dir /mnt/under /mnt/blind
data /run/a 24
cp /run/a /mnt/a
ln /mnt/a /mnt/dir/b
data $'/mnt/line\nbreak' 8
data /mnt/under/hidden 8
data /mnt/blind/within 8
fallocate -l 64K /mnt/reserved
data /mnt/tail 9
fallocate -n -o 8192 -l 64K /mnt/tail
data /mnt/deleted 8
exec 7</mnt/deleted
for n in 0 2 4 6 8 10; do dd if=/mnt/a of=/mnt/pieces bs=4K count=1 seek=$n conv=notrunc status=none; done
ln /mnt/pieces /mnt/dir/more
sync
a=$(block /mnt/a 1)
blind=$(block /mnt/blind)
within=$(block /mnt/blind/within)
line=$(block $'/mnt/line\nbreak')
hidden=$(block /mnt/under/hidden)
deleted=$(block /mnt/deleted)
inodes=$(dumpe2fs /dev/mapper/r 2>/dev/null | awk '/Inode table at/ { split($4, a, "-"); print a[1] * 8; exit }')
list=$(debugfs -R "stat /pieces" /dev/mapper/r 2>/dev/null | sed -n 's/.*(ETB0):\([0-9]*\).*/\1/p')
list=$((list * 8))
mount -t tmpfs tmpfs /mnt/under
rm /mnt/deleted
sync

file() {
	has "$a" 8 'length == 1 and .[0].kind == "file" and .[0].state == "healthy" and .[0].offset == 4096
		and .[0].paths == ["/mnt/a", "/mnt/dir/b"] and .[0].filesystem == "ext4" and .[0].mountpoint == "/mnt"'
	has $((a + 3)) 1 '.[0].offset == 4096 + 3 * 512 and .[0].count == 1'
	dmremap files r "$a" 8 -z | tr '\0' '\n' | cmp - <(printf '%s\n' /mnt/a /mnt/dir/b)
}
check "a sector is a file's, by all its names, with the place in it" file
newline() {
	has "$line" 1 '.[0].paths == ["/mnt/line\nbreak"]'
	says 0 '/mnt/line\nbreak, byte 0' dmremap files r "$line"
}
check "a name may have a line break" newline
under() { has "$hidden" 1 '.[0].paths == ["/mnt/under/hidden"]'; }
check "a file below another mount is found" under
unused() {
	has "$(block /mnt/reserved 2)" 8 '.[0].kind == "unused" and .[0].paths == ["/mnt/reserved"]'
	has $(($(block /mnt/tail 1) + 7)) 1 '.[0].kind == "file" and .[0].offset == 4096 + 7 * 512'
	has "$(block /mnt/tail 2)" 1 '.[0].kind == "unused" and .[0].paths == ["/mnt/tail"]'
}
check "what a file has and does not use is not taken for damage" unused
deleted() { has "$deleted" 8 '.[0].kind == "file" and .[0].paths == [] and (.[0].text | test("/mnt/deleted.*process"))'; }
check "a file that is deleted and still open is named" deleted
# all_kinds: in all of the device.
all_kinds() {
	has 0 131072 '(map(.kind) | unique) == ["directory", "file", "free", "inode", "journal", "metadata", "unused"]
		and (map(.count) | add) == 131072'
}
metadata() {
	has 0 8 '.[0].kind == "metadata"'
	has "$inodes" 8 '.[0].kind == "inode" and (["/mnt", "/mnt/a", "/mnt/dir/b"] - .[0].paths) == []'
	all_kinds
}
check "metadata, journal and free space are told apart, and inodes named" metadata
valid() {
	python3 -c 'import json, jsonschema, sys
schema, document = (json.load(open(path)) for path in sys.argv[1:])
jsonschema.validate(document, schema, jsonschema.Draft202012Validator)' /host/json-schema/files.json /run/files.json
}
check "what is printed as JSON is what the schema says" valid
bad main $((a + 3))
bad_file() {
	not get /dev/mapper/r $((a + 3)) 1
	says 0 "$((a + 3)) 1 pending /mnt/a, /mnt/dir/b, byte 5632" dmremap files r
	grep -x "r: 1 sector cannot be read; 2 files or directories are damaged" /run/said
	says 0 "r: 1 sector cannot be read; 2 files or directories are damaged" dmremap files r 0 131072
	says 0 "$a 8 pending /mnt/a, /mnt/dir/b, byte 4096" dmremap files r --quick
	dmremap files r -z | tr '\0' '\n' | cmp - <(printf '%s\n' /mnt/a /mnt/dir/b)
}
check "what cannot be read is listed, sector by sector, or unit by unit without reading" bad_file
umount /mnt/under
exec 7<&-
pieces() {
	umount /mnt
	bad main "$list"
	not get /dev/mapper/r "$list" 1
	mount -o ro,noload /dev/mapper/r /mnt
	says 1 "/mnt/pieces: cannot be looked at: Input/output error" dmremap files r
	grep -F "/mnt/dir/more: cannot be looked at: Input/output error" /run/said
	{ dmremap files r -z || true; } | tr '\0' '\n' >/run/paths
	grep -x /mnt/pieces /run/paths
	grep -x /mnt/dir/more /run/paths
	not cat /mnt/pieces
	umount /mnt
	good main "$list"
	dmremap forget r "$list"
	mount -o noatime /dev/mapper/r /mnt
}
check "a file whose list of extents cannot be read is named by all its names" pieces
blind() {
	umount /mnt
	bad main "$blind"
	not get /dev/mapper/r "$blind" 1
	mount -o ro,noload /dev/mapper/r /mnt
	says 1 "/mnt/blind: cannot be looked at: Input/output error" dmremap files r
	has "$within" 1 '.[0].kind == "unknown" and .[0].paths == [] and (.[0].text | test("not all of the tree"))'
	umount /mnt
	says 1 "not all of the tree could be looked at: ncheck" dmremap files r "$within"
	has "$within" 1 '.[0].kind == "unknown" and .[0].paths == []'
	good main "$blind"
	dmremap forget r "$blind"
	mount -o noatime /dev/mapper/r /mnt
}
check "what is below a directory that cannot be read is not taken for the file system's own" blind
errors() {
	mount -o remount,errors=panic /mnt
	says 1 "no file was looked at: it is mounted with errors=panic" dmremap files r "$a"
	has "$a" 1 '.[0].kind == "unknown" and .[0].paths == []'
	mount -o remount,errors=remount-ro /mnt
	says 0 "/mnt: mounted with errors=remount-ro" dmremap files r "$a"
	mount -o remount,errors=continue /mnt
	says 0 "/mnt/a, /mnt/dir/b, byte 4096" dmremap files r "$a"
	not grep remount-ro /run/said
}
check "files are not opened where an error would end the machine" errors
bind() {
	mount --bind /mnt/dir /srv
	umount /mnt
	says 1 "only /dir is mounted here" dmremap files r "$a"
	grep -F "/srv/b, byte 4096" /run/said
	has "$line" 1 '.[0].kind == "unknown" and .[0].paths == []'
	mount -o noatime /dev/mapper/r /mnt
	umount /srv
}
check "of a file system of which only a part is mounted it is said" bind
covered() {
	mount /dev/mapper/r /srv
	mount -t tmpfs tmpfs /mnt
	has "$a" 1 '.[0].paths == ["/srv/a", "/srv/dir/b"]'
	umount /mnt
	umount /srv
}
check "of several mounts one is taken that can be seen" covered
elsewhere() {
	local other
	umount /mnt
	unshare -m sh -c 'mount /dev/mapper/r /srv && exec sleep 1000' &
	other=$!
	soon grep -q "^sleep" /proc/$other/cmdline
	has "$a" 1 '.[0].kind == "unknown" and .[0].paths == []
		and (.[0].text | test("mounted at /srv in another namespace.* nsenter -t [0-9]+ -m"))'
	kill $other
	wait $other || true
	mount -o noatime /dev/mapper/r /mnt
}
check "a mount in another namespace is named" elsewhere
not_mounted() {
	umount /mnt
	has "$a" 8 '.[0].kind == "file" and .[0].paths == ["/a", "/dir/b"] and .[0].offset == 4096 and .[0].mountpoint == null'
	has "$line" 1 '.[0].paths == ["/line\nbreak"]'
	has "$list" 1 '.[0].kind == "inode" and .[0].paths == ["/dir/more", "/pieces"]'
	all_kinds
	mount -o noatime /dev/mapper/r /mnt
}
check "ext4 that is not mounted tells the same" not_mounted
# hides SECTOR: it cannot be read, and the file system is not mounted.
hides() {
	umount /mnt
	bad main "$1"
	not get /dev/mapper/r "$1" 1
}
shows() {
	good main "$1"
	dmremap forget r "$1"
	mount -o noatime /dev/mapper/r /mnt
}
# Of a file of /mnt/many, the first sector of the block that has its inode, of 256 bytes.
inode_of() {
	local block=$((($(stat -c %i "$1") - 1) / 16))
	echo $((inodes + block * 8))
}
some_inodes() {
	local n files before hit after sector
	mkdir /mnt/many
	for n in {1..48}; do data "/mnt/many/$n" 8; done
	sync
	sector=$(inode_of /mnt/many/24)
	before=$(block /mnt/many/1) hit=$(block /mnt/many/24) after=$(block /mnt/many/48)
	for n in {1..48}; do (($(inode_of "/mnt/many/$n") != sector)) || files+=" /many/$n"; done
	hides "$sector"
	says 1 "not all of the tree could be looked at: debugfs: icheck: " dmremap files r
	has "$sector" 1 ".[0].kind == \"inode\" and .[0].paths == (\"$files\" | ltrimstr(\" \") | split(\" \") | sort)"
	has "$before" 8 'map([.kind, .paths]) == [["file", ["/many/1"]]]'
	has "$after" 8 'map([.kind, .paths]) == [["file", ["/many/48"]]]'
	has "$line" 8 'map([.kind, .paths]) == [["file", ["/line\nbreak"]]]'
	has "$hit" 8 'map([.kind, .paths]) == [["unknown", []]]'
	has 0 131072 'map(.kind) | index("free") and index("directory") and index("journal")'
	shows "$sector"
}
check "not mounted, and some inodes cannot be read: these are named, and all that others have" some_inodes
no_inodes() {
	local sector=$((inodes + 1000 * 8))
	hides "$sector"
	says 0 "$sector 1 pending inodes of ext4 on /dev/mapper/r, not in use" dmremap files r
	has "$line" 8 'map([.kind, .paths]) == [["file", ["/line\nbreak"]]]'
	all_kinds
	shows "$sector"
}
check "not mounted, and inodes that no file has cannot be read: all is named" no_inodes
no_list() {
	hides "$list"
	says 0 "list of extents of /dir/more, /pieces" dmremap files r
	has "$line" 8 'map([.kind, .paths]) == [["file", ["/line\nbreak"]]]'
	shows "$list"
}
check "not mounted, and a list of extents cannot be read: it is named by all its names" no_list
zero() {
	says 4 "1 sector: /mnt/a, /mnt/dir/b, byte 5632" dmremap zero r
	says 0 "1 sector: /mnt/a, /mnt/dir/b, byte 5632" dmremap zero r --yes
	says 0 "all that is pending or lost can be read" dmremap files r
	says 0 "$((a + 3)) 1 relocated /mnt/a, /mnt/dir/b, byte 5632" dmremap files r --relocated
	has $((a + 2)) 3 'map(.state) == ["healthy", "relocated", "healthy"]'
}
check "zero says first whose the sectors are; then they are on the spare" zero
lost() {
	local slot
	slot=$(slot_at /dev/spare "$(slot_of r "$a")")
	bad spare "$((slot + 3))"
	not get /dev/mapper/r $((a + 3)) 1
	expect 1 field r lost_sectors
	says 0 "$((a + 3)) 1 lost /mnt/a, /mnt/dir/b, byte 5632" dmremap files r
	says 0 "are zeroes now" dmremap zero r --yes
}
check "what was lost with its slot is a file's, too" lost
# fails FILE BLOCK: from now on its first sector cannot be read.
fails() {
	local sector
	sector=$(block "$1" "$2")
	bad main "$sector"
	not get /dev/mapper/r "$sector" 1
}
# is FILE OTHER: it has the same, and not in memory only.
is() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	cmp "$1" "$2"
}
restored() {
	fails /mnt/a 0
	dd if=/run/a of=/mnt/a bs=4K conv=notrunc status=none
	says 0 "all that is pending or lost can be read" dmremap zero r --yes
	is /run/a /mnt/a
}
check "what is just restored to a file, and not written yet, is not zeroed" restored
meanwhile() {
	fails /mnt/a 2
	mkdir -p /dev/pts
	mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts
	python3 - >/run/said <<-'P'
		import os, pty, subprocess
		child, terminal = pty.fork()
		if not child:
		    os.execvp("dmremap", ["dmremap", "zero", "r"])
		said = b""
		while b"[y/N]" not in said:
		    said += os.read(terminal, 1000)
		subprocess.run(["dd", "if=/run/a", "of=/mnt/a", "bs=4K", "conv=notrunc,fsync", "status=none"], check=True)
		os.write(terminal, b"y\n")
		try:
		    while more := os.read(terminal, 1000):
		        said += more
		except OSError:
		    pass
		print(said.decode().replace("\r", ""))
		assert os.waitpid(child, 0)[1] == 0
	P
	cat /run/said
	grep "r: kept what can be read by now: 1 sector" /run/said
	grep "r: 0 sectors are zeroes now" /run/said
	is /run/a /mnt/a
}
check "what is restored while it asks is not zeroed" meanwhile
umount /mnt

swap() {
	mkswap -q /dev/mapper/r
	has 100 1 '.[0].kind == "swap"'
	swapon /dev/mapper/r
	has 100 1 '.[0].kind == "swap" and (.[0].text | test(", in use"))'
	swapoff /dev/mapper/r
	wipefs -qa /dev/mapper/r
}
check "swap space is swap space, in use or not" swap
# unknown TEXT: that is said of some sectors, and nothing else.
unknown() {
	has 2048 8 'map(.kind) == ["unknown"]'
	jq -r '.hits[0].text' /run/files.json | grep -F "$1"
}
idle() {
	local holder
	unknown "nothing is on it that is known"
	modprobe vfat
	mkfs.vfat /dev/mapper/r
	unknown "vfat, not in use: mount it"
	wipefs -qa /dev/mapper/r
	echo secret | cryptsetup luksFormat -q --type luks1 --pbkdf-force-iterations 1000 /dev/mapper/r -
	unknown "cryptsetup open /dev/mapper/r"
	wipefs -qa /dev/mapper/r
	python3 -c 'import time; held = open("/dev/mapper/r"); time.sleep(1000)' &
	holder=$!
	# Before it opens the device, Python opens others.
	soon eval "find -L /proc/$holder/fd -samefile /dev/mapper/r 2>/dev/null | grep -q ."
	unknown "open in python3 (process $holder)"
	kill $holder
	wait $holder || true
	printf 'label: gpt\n2048,8192\n' | sfdisk -q --no-reread /dev/mapper/r
	unknown "partitions that are not in use"
	wipefs -qa /dev/mapper/r
}
check "what is not in use is named, and what to do" idle
opaque() {
	dmsetup create s --table "0 16384 striped 2 8 /dev/mapper/r 2048 /dev/mapper/r 32768"
	unknown "below /dev/mapper/s, a mapped device of the kind striped"
	dmsetup remove s
	modprobe raid1
	mdadm --create /dev/md9 --run --level 1 --raid-devices 2 --metadata 1.2 --bitmap none /dev/mapper/r missing
	unknown "below /dev/md9, an array of md"
	mdadm --stop /dev/md9
	wipefs -qa /dev/mapper/r
	modprobe btrfs
	mkfs.btrfs -q -f -m single /dev/mapper/r
	mount /dev/mapper/r /mnt
	unknown "btrfs scrub start /mnt"
	umount /mnt
}
check "what is not followed is named: stripes, arrays, btrfs" opaque
snapshot() {
	modprobe dm-snapshot
	wipefs -qa /dev/mapper/r
	disk cow 8
	dmsetup create o --table "0 131072 snapshot-origin /dev/mapper/r"
	dmsetup create s --table "0 131072 snapshot /dev/mapper/r /dev/cow N 8"
	has 2048 8 'map(.device) | sort == ["/dev/mapper/o", "/dev/mapper/r"]'
	jq -r '.hits[].text' /run/files.json | grep "below /dev/mapper/s, a mapped device of the kind snapshot"
	dmsetup remove s
	dmsetup remove o
	remove_disk cow
}
check "a snapshot is named beside its origin" snapshot
folder() {
	local begin sector n
	mkfs.vfat -s 4 /dev/mapper/r
	mount /dev/mapper/r /mnt
	mkdir /mnt/folder
	for n in {1..20}; do echo "$n" >"/mnt/folder/a long name $n"; done
	umount /mnt
	begin=$(fsck.fat -vn /dev/mapper/r | sed -n 's/.*Data area starts at byte .*(sector \([0-9]*\)).*/\1/p')
	for sector in "$begin" $((begin + 4)) $((begin + 8)) none; do
		[[ $(get /dev/mapper/r "$sector" 1 | head -c 11 | tr -d '\0') != ".          " ]] || break
	done
	# Not in the first sector: Linux notices if that is missing.
	sector=$((sector + 1))
	bad main "$sector"
	not get /dev/mapper/r "$sector" 1
	mount -o ro /dev/mapper/r /mnt
	test -e "/mnt/folder/a long name 20"
	not test -e "/mnt/folder/a long name 10"
	says 1 "a directory cannot be read as a whole" dmremap files r
	grep -F "$sector 1 pending a directory of vfat" /run/said
	umount /mnt
	good main "$sector"
	dmremap forget r "$sector"
	# Linux would give it free.
	sector=$((sector - 1))
	bad main "$sector"
	not get /dev/mapper/r "$sector" 1
	get /dev/mapper/r 4 128 >/run/fat
	mount /dev/mapper/r /mnt
	says 1 "the first sector of a directory cannot be read" dmremap files r 0 1024
	grep -F "$sector 1 pending a directory of vfat" /run/said
	umount /mnt
	same /run/fat /dev/mapper/r 4
	good main "$sector"
	dmremap forget r "$sector"
}
check "that FAT leaves out files of a directory that it cannot read is told, and no directory is lost" folder
wrong() {
	says 4 "no such range" dmremap files r 131072
	says 4 "no such range" dmremap files r 0 131073
	says 4 "1.0 GiB at most" dmremap files r 0 8T
	says 4 "no active device" dmremap files none
	dmsetup suspend r
	says 4 "dmsetup resume r" dmremap files r
	dmsetup resume r
}
check "what cannot be asked is refused" wrong
dmremap close r
remove_disk main spare

CHECKS=$checks exec python3 /host/files.py "$seed" "$2" "${cases[@]}"
