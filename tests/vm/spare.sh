#!/bin/bash
# What may be a spare, what is refused and left alone, and which damage a spare survives.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 41

disk main 8
disk main2 8
disk spare 1
length=2048 # of the spare, in sectors
data /run/data 64
for sector in 1003 1030 2001; do
	bad main $sector
done

save() { get /dev/spare 0 $length >"$1"; }
restore() { put "$1" /dev/spare; }
# Writes over the three bad sectors, in three units.
three() {
	put /run/data /dev/mapper/r 1000
	put /run/data /dev/mapper/r 2000
}
three_there() {
	expect 3 field r relocated
	same /run/data /dev/mapper/r 1000
	same /run/data /dev/mapper/r 2000
}

# --- Blank and valid

formats() {
	blank /dev/spare
	create r /dev/main /dev/spare unit_sectors 8
	expect "active 0" field r mode relocated
	for copy in 0 $((length - 8)); do
		expect RMAPSUPR eval "get /dev/spare $copy 1 | head -c 8"
	done
	three
	dmsetup remove r
}
check "a blank spare is formatted" formats
check "and opened from then on" eval 'create r /dev/main /dev/spare no_format && three_there && dmsetup remove r'
save /run/good

# --- Refused

untouched() {
	save /run/before
	refused "$@"
	expect "No devices found" dmsetup ls
	same /run/before /dev/spare
}
foreign() {
	mkfs.ext4 -q /dev/spare
	untouched "Spare holds foreign data" create r /dev/main /dev/spare
	e2fsck -fn /dev/spare
}
check "a spare with a file system is refused and untouched" foreign
first_byte() {
	blank /dev/spare
	printf x | dd of=/dev/spare bs=1 seek="$1" conv=notrunc,fsync status=none
	untouched "Spare holds foreign data" create r /dev/main /dev/spare
}
check "one byte in the first block is foreign data" first_byte 4095
check "one byte in the last block is foreign data" first_byte $(((length - 8) * 512))
restore /run/good
check "a spare for a main device of another length" \
	untouched "Spare was formatted for a main device of another length" \
	dmsetup create r --table "0 8192 remap /dev/main 0 /dev/spare 0"
check "another unit_sectors" \
	untouched "Spare was formatted with another unit_sectors" create r /dev/main /dev/spare unit_sectors 16
check "another metadata_copies" \
	untouched "Spare was formatted with another metadata_copies" create r /dev/main /dev/spare metadata_copies 3
check "a region that ends before the one that was formatted" \
	untouched "Spare region is shorter than the one that was formatted" \
	create r /dev/main /dev/spare spare_sectors 1024
blank /dev/spare
check "a region without room for one slot" \
	untouched "too small" create r /dev/main /dev/spare spare_sectors 32
check "a region with room for one slot is enough" \
	eval 'create r /dev/main /dev/spare spare_sectors 40 && expect 0/1 field r slots && dmsetup remove r'
blank /dev/spare
check "a blank spare with no_format" \
	untouched "Spare is blank and no_format is given" create r /dev/main /dev/spare no_format
check "a blank spare of a read-only table" \
	untouched "Spare is blank and the table is read-only" \
	dmsetup create -r r --table "$(table /dev/main /dev/spare)"

# --- One device for both, and one region for two

overlap() {
	refused "Spare region overlaps main" dmsetup create r --table "0 8192 remap /dev/main2 0 /dev/main2 $1"
}
check "a region that begins within main overlaps it" overlap 8184
check "so does one that ends within main" \
	refused "Spare region overlaps main" \
	dmsetup create r --table "0 8192 remap /dev/main2 4096 /dev/main2 0 2 spare_sectors 4104"
beside() {
	dmsetup create r --table "0 8192 remap /dev/main2 0 /dev/main2 8192"
	put /run/data /dev/mapper/r 1000
	same /run/data /dev/main2 1000
	dmsetup remove r
}
check "main and spare on one device side by side work" beside
restore /run/good
create r /dev/main /dev/spare
second() {
	refused "Spare region belongs to another mapped device or target" create second /dev/main2 /dev/spare
	refused "Spare region belongs to another mapped device or target" \
		dmsetup create second --table "0 16384 remap /dev/main2 0 /dev/spare $((length - 8))"
	three_there
}
check "a region that serves a device is refused to a second one, in part too" second
twice() {
	refused "Spare region belongs to another mapped device or target" dmsetup create second <<-TABLE
		0 8192 remap /dev/main2 0 /dev/spare2 0
		8192 8192 remap /dev/main2 8192 /dev/spare2 0
	TABLE
	dmsetup create second <<-TABLE
		0 8192 remap /dev/main2 0 /dev/spare2 0 2 spare_sectors 2048
		8192 8192 remap /dev/main2 8192 /dev/spare2 2048 2 spare_sectors 2048
	TABLE
	put /run/data /dev/mapper/second 1000
	put /run/data /dev/mapper/second 9000
	same /run/data /dev/main2 1000
	same /run/data /dev/main2 9000
	dmsetup remove second
}
disk spare2 2
check "and to two targets of one table, unless each has a part of its own" twice
remove_disk spare2
reload() {
	dmsetup load r --table "$(table /dev/main /dev/spare)"
	dmsetup resume r
	three_there
}
check "and not to another table of the same device" reload
dmsetup remove r
check "once the device is gone another one may have it" \
	eval 'create second /dev/main /dev/spare && dmsetup remove second'

# --- Damage

# damage SECTOR [COUNT [SOURCE]]
damage() {
	dd if="${3:-/dev/urandom}" of=/dev/spare bs=512 seek="$1" count="${2:-8}" oflag=direct conv=notrunc status=none
}
survives() {
	restore /run/good
	"$@"
	create r /dev/main /dev/spare
	three_there
	dmsetup remove r
	same /run/good /dev/spare
}
dies() {
	local sentence=$1
	restore /run/good
	"${@:2}"
	untouched "$sentence" create r /dev/main /dev/spare
}
last=$((length - 8))
u64() { od -An -t u8 -j "$1" -N 8 /run/good | tr -d ' '; }
areas=("$(u64 136)" "$(u64 144)") # in blocks
check "the second area lies behind the slots" test "${areas[1]}" -gt "${areas[0]}"
check "a first superblock of garbage is repaired, byte for byte" survives damage 0
check "so is one of zeroes" survives damage 0 8 /dev/zero
check "and one that is half written" survives damage 4 4
check "and the last one" survives damage $last
check "and the last one of zeroes" survives damage $last 8 /dev/zero
check "and its checksum's last byte" survives eval 'printf x | dd of=/dev/spare bs=1 seek=11 conv=notrunc,fsync status=none'
both() { damage 0 "$@" && damage $last "$@"; }
check "two bad superblocks are refused" dies "Spare holds foreign data" both
half() { damage 7 1 && damage $((last + 7)) 1; }
check "two half written ones too" dies "Superblock: wrong checksum" half
check "a damaged block of the first replica is repaired" survives damage $((areas[0] * 8))
check "and of the second" survives damage $((areas[1] * 8))
check "a torn one too" survives damage $((areas[0] * 8 + 1)) 1
check "a replica that is lost as a whole is written anew" \
	survives damage $((areas[0] * 8)) $(($(u64 104) * 8)) /dev/zero
mixed() { damage $((areas[0] * 8)) && damage $((areas[1] * 8 + 8)) && damage 0; }
check "different blocks may be damaged in different replicas" survives mixed
no_replica() {
	restore /run/good
	damage $((areas[0] * 8 + 8))
	damage $((areas[1] * 8 + 8))
	damage $((areas[0] * 8)) # could be repaired, but not here
	untouched "table block 1: no valid replica: wrong magic, wrong magic" create r /dev/main /dev/spare
}
check "a block that is damaged in both replicas is refused by its number, and nothing else is repaired" no_replica
two_histories() {
	restore /run/good
	create r /dev/main /dev/spare
	message r mark 4000
	dmsetup remove r
	get /dev/spare $((areas[0] * 8)) 8 >/run/other
	restore /run/good
	create r /dev/main /dev/spare
	message r mark 4800
	dmsetup remove r
	put /run/other /dev/spare $((areas[0] * 8))
	untouched "table block 0, replica 1: same generation as another copy, other content" create r /dev/main /dev/spare
}
check "two replicas of one generation that differ are refused" two_histories

# --- Read-only tables

restore /run/good
readonly_table() {
	dmsetup create -r r --table "$(table /dev/main /dev/spare)"
	expect readonly field r mode
	three_there
	bad main 3000
	not get /dev/mapper/r 3000 1
	not put /run/data /dev/mapper/r 4000
	message r sync
	expect "3 0" field r relocated pending
	dmsetup remove r
	same /run/good /dev/spare
}
check "a read-only table serves its entries, makes none, and writes nothing" readonly_table
readonly_damaged() {
	damage 0
	damage $((areas[1] * 8))
	save /run/damaged
	dmsetup create -r r --table "$(table /dev/main /dev/spare)"
	three_there
	dmsetup remove r
	same /run/damaged /dev/spare
}
check "not even where the spare is damaged" readonly_damaged

# --- Replicas

copies() {
	local copies=$1 keep k area
	blank /dev/spare
	create r /dev/main /dev/spare unit_sectors 8 metadata_copies "$copies"
	three
	dmsetup remove r
	save /run/good
	for ((keep = 0; keep < copies; keep++)); do
		restore /run/good
		for ((k = 0; k < copies; k++)); do
			area=$(u64 $((136 + 8 * k)))
			((k == keep)) || damage $((area * 8)) $(($(u64 104) * 8))
		done
		create r /dev/main /dev/spare
		three_there
		dmsetup remove r
		same /run/good /dev/spare
	done
}
for copies in 2 3 4; do
	check "with $copies replicas, all but any one may be lost" copies $copies
done
remove_disk main main2 spare
