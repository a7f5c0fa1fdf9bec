#!/bin/bash
# dmsetup message: what each prints and does; a bad one changes nothing.
# kernels: stock (debug)
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
	"check 0|wrong number of arguments"
	"reset now|wrong number of arguments"
	"set|wrong number of arguments"
	"set bad_on|wrong number of arguments"
	"set bad_on media io|wrong number of arguments"
	"set bad_on sunday|bad_on must be media or io"
	"set read_retries 11|read_retries must be from 0 to 10"
	"set read_retries x|read_retries must be from 0 to 10"
	"set pending_reads never|pending_reads must be retry or fail"
	"set unit_sectors 16|set knows bad_on, read_retries and pending_reads"
	"set no_format 1|set knows bad_on, read_retries and pending_reads"
	"set nonsense 1|"
	"query 16384|<sector> must be a sector of the device"
	"query +1|<sector> must be a sector of the device"
	"query x|<sector> must be a sector of the device"
	"query 18446744073709551616|<sector> must be a sector of the device"
	"list 16384|<sector> must be a sector of the device"
	"list 0 x|<max> must be a number"
)
for name in remap mark restore; do
	bad_messages+=(
		"$name|wrong number of arguments"
		"$name 1 2 3|wrong number of arguments"
		"$name 16384|<sector> must be a sector of the device"
		"$name x|<sector> must be a sector of the device"
		"$name 0 0|<count> must be 1 or more"
		"$name 0 x|<count> must be 1 or more"
		"$name 16380 5|<count> must be 1 or more and end within the device"
		"$name 8 18446744073709551615|<count> must be 1 or more and end within the device"
	)
done
plan $((33 + ${#bad_messages[@]}))

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
	for name in remap mark restore query list check sync set reset help; do
		message r help | grep "^$name"
	done
}
check "help names every message" help

# --- remap

remap() {
	expect "4 units relocated, 0 of them not readable as a whole" message r remap 1001 30
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
	expect "1 units relocated, 0 of them not readable as a whole" message r remap 200 8
	expect "1 units relocated, 1 of them not readable as a whole" message r remap 5000
	expect "200 relocated ff
5000 partial fe" eval 'list r | grep -E "^(200|5000) "'
	part /run/main 200 8 >/run/part
	same /run/part /dev/mapper/r 200
	not get /dev/mapper/r 5000 1
	part /run/main 5001 7 >/run/part
	same /run/part /dev/mapper/r 5001
}
check "remap copies what main can read; what was lost stays an error" unreadable
twice() {
	local before
	before=$(message r list && field r slots commits)
	expect "4 units relocated, 0 of them not readable as a whole" message r remap 1000 32
	expect "$before" eval 'message r list && field r slots commits'
}
check "remap of units that are relocated changes nothing" twice

# --- mark

mark_units() {
	expect "3 units marked" message r mark 2007 10
	expect "2000 pending 0
2008 pending 0
2016 pending 0" eval 'list r | grep "^20.. "'
}
check "mark makes pending entries" mark_units
check "mark leaves entries alone that are there" eval \
	'expect "0 units marked" message r mark 1000 32 && expect "1000 relocated * ff" message r query 1000'
marked_data() {
	part /run/main 2000 24 >/run/part
	same /run/part /dev/mapper/r 2000
	put /run/part /dev/mapper/r 2000
	same /run/part /dev/mapper/r 2000
	expect "2000 relocated ff
2008 relocated ff
2016 relocated ff" eval 'list r | grep "^20.. "'
}
check "their data is main's until it is written, which relocates them" marked_data
range() {
	expect "100 units marked" message r mark 8000 800
	expect 100 eval 'message r list 8000 | grep -c "pending .* 0$"'
}
check "a whole range is marked" range

# --- restore

restores() {
	expect "4 units restored, 0 units stay" message r restore 1001 30
	expect "1000 healthy - -" message r query 1000
	part /run/main 1000 32 >/run/part
	same /run/part /dev/mapper/r 1000
	same /run/part /dev/main 1000
}
check "restore puts the data back on main" restores
freed() {
	local used
	used=$(field r slots)
	expect "100 units restored, 0 units stay" message r restore 8000 800
	expect $((${used%/*} - 100)) eval 'field r slots | cut -d / -f 1'
}
check "restore frees pending units that main can hold, and their slots" freed
stay() {
	local before
	before=$(list r | grep -E "^(96|104) ")
	part /run/main 96 16 >/run/part
	expect "0 units restored, 2 units stay" message r restore 96 16
	expect "$before" eval 'list r | grep -E "^(96|104) "'
	same /run/part /dev/mapper/r 96
}
check "units that main cannot hold stay" stay
check "units without an entry count in neither" expect "0 units restored, 0 units stay" message r restore 7000 200
good_again() {
	good main 100 107
	expect "2 units restored, 0 units stay" message r restore 0 200
	part /run/main 96 16 >/run/part
	same /run/part /dev/mapper/r 96
	same /run/part /dev/main 96
}
check "once main can, they are restored" good_again
durable() {
	local before
	message r mark 3000
	message r remap 3008 8
	message r restore 2000 8
	before=$(message r list)
	dmsetup remove r
	create r /dev/main /dev/spare
	expect "$before" message r list
}
check "what these messages did is there after re-activation" durable

# --- check

u64() { od -An -t u8 -j "$1" -N 8 /dev/spare | tr -d ' '; }
areas=("$(u64 136)" "$(u64 144)") # in blocks
blocks=$((2 * 4 + 2)) # so many are in use of a new table
well="$blocks blocks: 0 stale, 0 damaged, 0 repaired"
check "check reads all metadata blocks, and they are well" expect "$well" message r check
damaged() {
	get /dev/spare 0 8192 >/run/spare
	# Of the first table block one copy, of the second the other, and a superblock.
	dd if=/dev/urandom of=/dev/spare bs=512 seek=$((8 * areas[0] + 3)) count=1 oflag=direct conv=notrunc status=none
	dd if=/dev/urandom of=/dev/spare bs=512 seek=$((8 * areas[1] + 8)) count=8 oflag=direct conv=notrunc status=none
	dd if=/dev/zero of=/dev/spare bs=512 seek=$((8192 - 8)) count=8 oflag=direct conv=notrunc status=none
	expect "$blocks blocks: 0 stale, 3 damaged, 3 repaired" message r check
	expect "$blocks blocks: 0 stale, 0 damaged, 0 repaired" message r check
	cmp <(get /dev/spare $((8 * areas[0])) 16) <(get /dev/spare $((8 * areas[1])) 16)
}
check "check rewrites what is damaged" damaged
stale_copy() {
	get /dev/spare $((8 * areas[1])) 8 >/run/old
	message r mark 3100
	put /run/old /dev/spare $((8 * areas[1]))
	expect "$blocks blocks: 1 stale, 0 damaged, 1 repaired" message r check
	cmp <(get /dev/spare $((8 * areas[0])) 8) <(get /dev/spare $((8 * areas[1])) 8)
}
check "check rewrites what is stale" stale_copy
cannot() {
	dd if=/dev/urandom of=/dev/spare bs=512 seek=$((8 * areas[1] + 3)) count=1 oflag=direct conv=notrunc status=none
	bad spare $((8 * areas[1]))
	expect "$blocks blocks: 0 stale, 1 damaged, 0 repaired" message r check
	good spare $((8 * areas[1]))
	expect "$blocks blocks: 0 stale, 1 damaged, 1 repaired" message r check
}
check "check says what it cannot repair" cannot

# --- set and reset

settings() {
	expect "" message r set read_retries 3
	expect "" message r set pending_reads fail
	expect "" message r set bad_on media
	dmsetup table r | grep -w "read_retries 3" | grep -w "pending_reads fail" | grep -w "bad_on media"
	message r set bad_on io
}
check "set changes features, which table shows" settings
counters() {
	(($(field r commits)))
	expect "" message r reset
	expect "0 0 0 0 0 0 0 0" field r read_errors write_errors reads_recovered writes_recovered reads_redirected \
		writes_redirected commits metadata_errors
}
check "reset clears the counters" counters

# --- A table that is read-only, or was never resumed

readonly_table() {
	local before each
	dmsetup remove r
	get /dev/spare 0 8192 >/run/spare
	dmsetup create -r r --table "$(table /dev/main /dev/spare)"
	before=$(message r list)
	for each in "remap 6000" "mark 6000" "restore 3000" check; do
		# shellcheck disable=SC2086  # words
		refused "read-only" message r $each
	done
	message r sync
	expect "$before" message r list
	dmsetup remove r
	same /run/spare /dev/spare
	create r /dev/main /dev/spare
}
check "a read-only table refuses what changes entries, and nothing is written" readonly_table
never_resumed() {
	dmsetup create --notable n
	dmsetup load n --table "$(table /dev/main /dev/spare)"
	not message n list
	dmsetup remove n
}
dmsetup remove r
check "a table that was never resumed refuses messages" never_resumed
create r /dev/main /dev/spare

# --- Bad messages

state() { message r list && dmsetup status r; }
before=$(state)
refused_unchanged() {
	# shellcheck disable=SC2086  # words
	refused "message: $2" message r $1
	expect 1 eval 'log | grep -c .'
	expect "$before" state
}
for each in "${bad_messages[@]}"; do
	IFS='|' read -r words sentence <<<"$each"
	check "'$words' is refused with one line, and changes nothing: $sentence" refused_unchanged "$words" "$sentence"
done
dmsetup remove r
remove_disk main spare
