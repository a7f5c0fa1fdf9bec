#!/bin/bash
# dmsetup message: what each prints and does; a bad one changes nothing.
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

# Words of bad messages, and the sentence in the log.
bad_messages=(
	"nonsense|unknown message"
	"LIST|unknown message"
	"query|wrong number of arguments"
	"query 1 2|wrong number of arguments"
	"sync now|wrong number of arguments"
	"help me|wrong number of arguments"
	"list 0 1 2|wrong number of arguments"
	"remap|wrong number of arguments"
	"remap 1 2 3|wrong number of arguments"
	"query 16384|<sector> must be a sector of the device"
	"query +1|<sector> must be a sector of the device"
	"query x|<sector> must be a sector of the device"
	"query 18446744073709551616|<sector> must be a sector of the device"
	"list 16384|<sector> must be a sector of the device"
	"list 0 x|<max> must be a number"
	"remap 16384|<sector> must be a sector of the device"
	"remap 0 0|<count> must be 1 or more"
	"remap 16380 5|<count> must be 1 or more and end within the device"
	"remap 8 18446744073709551615|<count> must be 1 or more and end within the device"
)
plan $((14 + ${#bad_messages[@]}))

disk main 8
disk spare 4
data /run/main 16384
put /run/main /dev/main
bad main 100 107
bad main 203 204
bad main 5000
create r /dev/main /dev/spare unit_sectors 8
part /run/main 96 16 >/run/part
put /run/part /dev/mapper/r 96
part /run/main 200 8 >/run/part
put /run/part /dev/mapper/r 200
not get /dev/mapper/r 5000 1 2>/dev/null

check "query: a healthy unit" expect "0 healthy - -" message r query 7
check "query: a unit with a slot for some sectors" expect "96 partial [0-9]* f0" message r query 100
check "query: a unit whose sector cannot be read" expect "5000 pending [0-9]* 0" message r query 5007
check "list: an entry a line, ascending" expect "96 partial f0
104 partial f
200 partial 18
5000 pending 0" list r
check "list from a sector on" expect "200 partial * 18
5000 pending * 0" message r list 112
check "list from within a unit has that unit" expect "104 partial * f" message r list 107 1
check "list of a number" expect "96 * f0
104 * f" message r list 0 2
check "list of none" expect "" message r list 0 0
check "sync commits the pending entry" eval 'message r sync && dmsetup status r'
synced() {
	# The table on the spare, read through a second device, read-only, is not to be had: so ask the spare itself.
	dmsetup suspend r
	python3 - /dev/spare <<'P'
import struct, sys
spare = open(sys.argv[1], "rb").read()
records = [struct.unpack_from("<QQII", spare, 4096 + 64 + 32 * i) for i in range(126)]
units = sorted((unit * 8, mask) for unit, mask, state, cause in records if state == 1)
assert units == [(96, 0xF0), (104, 0xF), (200, 0x18), (5000, 0)], units
P
	dmsetup resume r
}
check "the spare has what list shows" synced
help() {
	local name
	for name in remap query list sync help; do
		message r help | grep "^$name"
	done
}
check "help names every message" help

# --- remap

remap() {
	dmsetup suspend r
	message r remap 1001 30
	dmsetup resume r
	expect "1000 relocated ff
1008 relocated ff
1016 relocated ff
1024 relocated ff" eval 'list r | grep "^10.. "'
	part /run/main 1000 32 >/run/part
	same /run/part /dev/mapper/r 1000
}
check "remap relocates every unit that the range touches, and the data stays the same" remap
from_slot() {
	# What main has does not matter any more.
	dd if=/dev/zero of=/dev/main bs=512 seek=1000 count=32 oflag=direct conv=notrunc status=none
	same /run/part /dev/mapper/r 1000
	not cmp -n 512 /run/part /dev/zero
}
part /run/main 1000 32 >/run/part
check "after that the data comes from the slots" from_slot
unreadable() {
	dmsetup suspend r
	message r remap 200 8
	message r remap 5000
	dmsetup resume r
	expect "200 relocated ff
5000 partial fe" eval 'list r | grep -E "^(200|5000) "'
	part /run/main 200 8 >/run/part
	same /run/part /dev/mapper/r 200
	not get /dev/mapper/r 5000 1
	part /run/main 5001 7 >/run/part
	same /run/part /dev/mapper/r 5001
}
check "remap copies what main can read; what was lost stays an error" unreadable

# --- Bad messages

refused_unchanged() {
	local before
	before=$(list r && dmsetup status r)
	# shellcheck disable=SC2086  # words
	refused "message: $2" message r $1
	expect 1 eval 'log | grep -c .'
	expect "$before" eval 'list r && dmsetup status r'
}
for each in "${bad_messages[@]}"; do
	IFS='|' read -r words sentence <<<"$each"
	check "'$words' is refused with one line, and changes nothing: $sentence" refused_unchanged "$words" "$sentence"
done
dmsetup remove r
remove_disk main spare
