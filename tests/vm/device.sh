#!/bin/bash
# dmremap on devices in use: open, close, status, the messages, zero, and who may not use main or spare.
# kernels: stock
# vm: --extras --include docs/json-schema --include build/tools/man
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 24

disk main 16
disk spare 8
disk other 16
data /run/main 32768
put /run/main /dev/main
# valid SCHEMA FILE: the document is what docs/json-schema says.
valid() {
	python3 -c 'import json, jsonschema, sys
schema, document = (json.load(open(path)) for path in sys.argv[1:])
jsonschema.validate(document, schema, jsonschema.Draft202012Validator)' "/host/json-schema/$1.json" "$2"
}
json() { python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"; }
# exits STATUS COMMAND [ARG...]: the command ends with that status and says something; what it says is in /run/said.
exits() {
	local status
	run "${@:2}" >/run/said 2>&1
	cat /run/said
	((status == $1))
}
says() { exits "$1" "${@:3}" && grep -F -- "$2" /run/said; }

# --- Open and close

opens() {
	expect "*/dev/mapper/r: /dev/main with /dev/spare" dmremap open r /dev/main /dev/spare
	expect "active 0" field r mode relocated
	expect "REMAP-$(dmremap dump --json r | json 'd["spare"]["uuid"].replace("-", "")')" \
		dmsetup info -c --noheadings -o uuid r
}
check "open formats a blank spare, and the device has the spare's uuid" opens
check "a name that is taken is refused" says 4 "there is an active device of that name" dmremap open r /dev/main /dev/spare
check "a main that is in use is refused, by name of who uses it" \
	says 4 "below /dev/mapper/r" dmremap open s /dev/main /dev/other
check "a spare that is in use is refused" says 4 "it serves /dev/mapper/r" dmremap open s /dev/other /dev/spare
check "a bad name is refused" says 4 "not a name" dmremap open ../x /dev/other /dev/spare
check "a device that is not there is named" says 4 "/dev/none" dmremap open s /dev/none /dev/spare
closes() {
	dmremap close r
	not test -e /dev/mapper/r
}
held() {
	exec 8</dev/mapper/r
	says 4 "has it open" dmremap close r
	exec 8<&-
}
check "close says who holds the device" held
deferred() {
	exec 8</dev/mapper/r
	dmremap close --deferred r
	expect active field r mode
	exec 8<&-
	soon not dmsetup info r
}
check "close --deferred removes it later" deferred
again() {
	dmremap open r /dev/main /dev/spare --no-format --read-retries 0 --pending-reads fail --bad-on media
	expect "*no_format*" dmsetup table r
	expect "*pending_reads fail*" dmsetup table r
	expect "*read_retries 0*" dmsetup table r
	dmremap close r
}
check "features are options" again
readonly_() {
	dmremap open r /dev/main /dev/spare --readonly
	expect readonly field r mode
	expect 1 blockdev --getro /dev/mapper/r
	dmremap close /dev/mapper/r
}
check "a device is opened read-only" readonly_
check "a device that is not active cannot be closed" says 4 "no active device" dmremap close r
tab() {
	printf '%s\n' "# comment" "x /dev/none" "r /dev/main /dev/spare nofail,read-retries=1" >/run/tab
	dmremap open r --tab /run/tab
	expect "*read_retries 1*" dmsetup table r
	dmremap close r
	says 4 "line 2" dmremap open x --tab /run/tab
	says 4 "no line for y" dmremap open y --tab /run/tab
}
check "open takes devices and options from the table file" tab
tags() {
	dmremap open r /dev/main "REMAP=$(dmremap dump --json /dev/spare | json 'd["spare"]["uuid"]')"
	dmremap close r
	says 4 "no spare of that uuid" dmremap open r /dev/main REMAP=00000000-0000-0000-0000-000000000000
	says 4 "inside" dmremap open r UUID=1234 /dev/spare
}
check "a spare is found by its uuid" tags

mkdir -p /mnt
busy() {
	mkfs.ext4 -q -F /dev/other
	mount /dev/other /mnt
	says 4 "/dev/other is mounted at /mnt" dmremap open s /dev/other /dev/spare
	says 4 "/dev/other is mounted at /mnt" dmremap open s /dev/main /dev/other
	umount /mnt
	mkswap -q /dev/other
	swapon /dev/other
	says 4 "used as swap" dmremap open s /dev/other /dev/spare
	swapoff /dev/other
	dmsetup create lv --table "0 8192 linear /dev/other 0"
	says 4 "below /dev/mapper/lv" dmremap open s /dev/other /dev/spare
	dmsetup remove lv
}
check "a main that is mounted, swap or below another mapped device is refused" busy
foreign() {
	says 4 "--main-sectors" dmremap open s /dev/main /dev/spare --main-sectors 4096
	says 3 "" dmremap open s /dev/main /dev/other
	dmremap format /dev/other --main-sectors 99999 --force --yes
	says 4 "made for" dmremap open s /dev/main /dev/other
}
check "a spare that does not fit is refused" foreign

# --- Messages

bad main 1003 1004
bad main 5000
dmremap open r /dev/main /dev/spare
pending() {
	not get /dev/mapper/r 1000 8
	not get /dev/mapper/r 5000 1
	expect "1000 pending *" dmremap query r 1004
	expect "2" eval 'dmremap list r | wc -l'
	expect "?1000, 5000?" eval "dmremap list r --json | json '[e[\"sector\"] for e in d[\"entries\"]]'"
	expect "healthy" eval "dmremap query r 8 --json | json 'd[\"entry\"][\"state\"]'"
}
check "list and query show pending units" pending
status_() {
	says 1 "needs attention" dmremap status r
	grep "2 units of the disk cannot be read" /run/said
	grep "main        /dev/main, 32768 sectors" /run/said
	grep "since" /run/said
	not dmremap status --json >/run/status
	expect "1 r active 2 32768" json '" ".join(str(x) for x in (d["version"], d["devices"][0]["name"],
		d["devices"][0]["mode"], d["devices"][0]["units"]["pending"], d["devices"][0]["main"]["sectors"]))' </run/status
}
check "status says what is wrong and what to do" status_
documents() {
	valid status /run/status
	expect r jq -r '.devices[] | select(.units.pending == 2) | .name' /run/status
	dmremap dump r --json >/run/document
	valid dump /run/document
	dmremap list r --json | jq -e '.version == 1 and (.entries | length) == 2'
	dmremap query r 1000 --json | jq -e '.entry.state == "pending"'
	dmremap check r --json | jq -e '.damaged == 0'
	not valid status /run/document
}
check "what is printed as JSON is what the schemas say" documents
pages() {
	local page name
	for page in /host/man/*.8; do
		expect "" eval "groff -man -ww -z -Tutf8 $page 2>&1"
	done
	for name in $(dmremap --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ { print $1 }'); do
		[[ $name == help ]] || test -e "/host/man/dmremap-$name.8"
	done
}
check "every command has a manual page, which renders without a warning" pages
remaps() {
	expect "3 units relocated, 0 of them not readable as a whole" dmremap remap r 2000 24
	expect "2000 relocated "* dmremap query r 2000
	says 1 "1 unit relocated, 1 of them not readable as a whole" dmremap remap r 1000
	expect "100 units marked" dmremap mark r 8000 800
	expect "100 units forgotten" dmremap forget r 8000 800
	expect "3 units restored, 0 units stay" dmremap restore r 2000 24
	expect "r: * blocks: 0 stale, 0 damaged, 0 repaired" dmremap check r
}
check "ranges are relocated, marked, forgotten and restored, and the metadata is checked" remaps
outside() {
	says 4 "r has 32768 sectors" dmremap remap r 32768
	says 4 "r has 32768 sectors" dmremap query r 99999999
	says 64 "one sector at least" dmremap mark r 0 0
	says 64 "invalid value" dmremap mark r x
	says 64 "frobnicate" dmremap set r frobnicate 1
	says 4 "read_retries" dmremap set r read_retries 11
	says 4 "no active device" dmremap list none
}
check "what lies outside or is no number is refused" outside
sets() {
	dmremap set r pending_reads fail
	expect "*pending_reads fail*" dmsetup table r
	dmremap reset r
	expect "0 0" field r read_errors commits
}
check "set changes a feature, reset the counters" sets
zeroes() {
	says 4 "healthy sectors" dmremap zero r
	dmremap set r pending_reads retry
	says 4 "--yes" dmremap zero r
	says 0 "3 sectors are zeroes now" dmremap zero r --yes
	part /run/main 1000 8 >/run/part
	dd if=/dev/zero of=/run/part bs=512 seek=3 count=2 conv=notrunc status=none
	get /dev/mapper/r 1000 8 | cmp - /run/part
	says 0 "can be read" dmremap zero r --yes
	expect "*0" field r pending
}
check "zero writes to what nobody can read, and to nothing else" zeroes
dump_in_use() {
	dmremap dump r >/run/dumped
	grep "^1000 " /run/dumped
	dmremap export r --format sectors --which relocated,partial >/run/exported
	grep . /run/exported
	printf '%s\n' 20000 | dmremap import r - --format sectors
	expect "20000 pending "* dmremap query r 20000
	dmremap forget r 20000
}
check "dump, export and import work on a device in use" dump_in_use
