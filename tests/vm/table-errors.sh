#!/bin/bash
# Every malformed table line is refused with a sentence that says what is wrong, and leaves nothing behind.
# kernels: stock (debug)
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

disk main 8
disk spare 4
disk zoned 8 zoned=1 zone_size=4
disk coarse 8 blocksize=4096
main="/dev/main 0" spare="/dev/spare 0"

# LENGTH | the line behind "remap" | the sentence
lines=(
	"16384||Needs <main_dev> <main_start> <spare_dev> <spare_start>"
	"16384|$main /dev/spare|Needs <main_dev> <main_start> <spare_dev> <spare_start>"
	"16384|/dev/main x $spare|main_start must be a number"
	"16384|/dev/main -8 $spare|main_start must be a number"
	"16384|$main /dev/spare 0x10|spare_start must be a number"
	"16384|$main /dev/spare 18446744073709551616|spare_start must be a number"
	"16384|/dev/nothing 0 $spare|Cannot open main_dev"
	"16384|$main /dev/nothing 0|Cannot open spare_dev"
	"16384|/dev/main 8 $spare|main_dev ends before main_start and the target's length"
	"16384|/dev/main 18446744073709551615 $spare|main_dev ends before main_start and the target's length"
	"16392|$main $spare|main_dev ends before main_start and the target's length"
	"16384|$main /dev/spare 9000|spare_start is past the end of spare_dev"
	"16384|$main $spare many|Number of feature arguments is not a number"
	"16384|$main $spare 1|Number of feature arguments does not match"
	"16384|$main $spare 1 no_format no_format|Number of feature arguments does not match"
	"16384|$main $spare 2 unit_sectors 0|unit_sectors must be a power of two from 1 to 64"
	"16384|$main $spare 2 unit_sectors 12|unit_sectors must be a power of two from 1 to 64"
	"16384|$main $spare 2 unit_sectors 128|unit_sectors must be a power of two from 1 to 64"
	"16384|$main $spare 1 unit_sectors|unit_sectors must be a power of two from 1 to 64"
	"16384|$main $spare 2 spare_sectors 0|spare_sectors must be a number of sectors"
	"16384|$main $spare 2 spare_sectors 8200|spare_dev ends before spare_start and spare_sectors"
	"16384|$main $spare 2 metadata_copies 1|metadata_copies must be from 2 to 4"
	"16384|$main $spare 2 metadata_copies 5|metadata_copies must be from 2 to 4"
	"16384|$main $spare 2 bad_on sunday|bad_on must be media or io"
	"16384|$main $spare 2 read_retries 11|read_retries must be from 0 to 10"
	"16384|$main $spare 2 pending_reads never|pending_reads must be retry or fail"
	"16384|$main $spare 1 nonsense|Unknown feature"
	"16384|$main $spare 4 bad_on io bad_on io|A feature is given twice"
	"16384|$main $spare 2 no_format no_format|A feature is given twice"
	"16384|$main $spare 1 no_format|Spare is blank and no_format is given"
	"16384|$main $spare 2 spare_sectors 24|Spare region is too small for its metadata and one slot"
	"8192|$main /dev/main 8000|Spare region overlaps main"
	"8192|/dev/zoned 0 $spare|Zoned devices are not supported"
	"8192|$main /dev/zoned 0|Zoned devices are not supported"
	"8192|/dev/coarse 4 $spare|main_start is not a multiple of the devices' logical block"
	"8192|/dev/main 4 /dev/coarse 0|main_start is not a multiple of the devices' logical block"
	"8192|$main /dev/coarse 4|spare_start is not a multiple of the devices' logical block"
	"8192|/dev/coarse 0 /dev/spare 4|spare_start is not a multiple of the devices' logical block"
	"8188|/dev/coarse 0 $spare|Length is not a multiple of the devices' logical block"
	"8192|/dev/coarse 0 $spare 2 unit_sectors 4|unit_sectors is less than the devices' logical block"
)
plan $((${#lines[@]} + 4))

for each in "${lines[@]}"; do
	IFS='|' read -r length line sentence <<<"$each"
	check "'$line' for $length sectors: $sentence" \
		refused ": $sentence" dmsetup create r --table "0 $length remap $line"
done
check "no device is left" expect "No devices found" dmsetup ls
check "the module can go" rmmod dm-remap
check "nothing was written to the spare" eval 'get /dev/spare 0 8192 | cmp -n 4194304 - /dev/zero'
check "a sound line still works" eval 'create r /dev/main /dev/spare && dmsetup remove r && rmmod dm-remap'
remove_disk main spare zoned coarse
