#!/bin/bash
# dmremap and the kernel: each reads what the other wrote, and a device in use is refused.
# kernels: stock
# vm: --smp 2 --include tests/reader.py
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 12

disk main 8
disk spare 4
data /run/main 16384
put /run/main /dev/main
bad main 1003

# What the tool finds on the spare is what the independent reader finds, and what the message `list` printed.
lists_agree() {
	dmremap dump --json /dev/spare | python3 -c 'import json, sys
dump = json.load(sys.stdin)
for e in dump["entries"]: print(e["sector"], e["state"], e["slot"], e["mask"], e["lost_mask"])
for b in dump["bad_slots"]: print("bad", b["slot"], b["lost_mask"])' >/run/dumped
	python3 /host/reader.py --all /dev/spare | cmp - /run/dumped
	grep -v ^bad /run/dumped | cut -d ' ' -f 1-4 | cmp - /run/list
}

formats() {
	dmremap format /dev/spare --main /dev/main --label test --yes
	create r /dev/main /dev/spare no_format
	expect "active 0" field r mode relocated
}
check "a spare that dmremap formatted is opened" formats

refuses() {
	local command
	for command in "check /dev/spare" "label /dev/spare x" "repair /dev/spare --yes" \
		"format /dev/spare --main /dev/main --force --yes"; do
		# shellcheck disable=SC2086  # words
		run dmremap $command >/run/said 2>&1
		((status == 4))
		grep -F "in use" /run/said
		grep -F "/dev/mapper/r " /run/said
	done
}
check "a spare that is in use is refused" refuses

imports() {
	part /run/main 1000 16 >/run/part
	put /run/part /dev/mapper/r 1000
	message r remap 2000
	printf '%s\n' '4000 20' 8008 | dmremap import --device r - --format sectors
	message r list >/run/list
	expect "4000 pending"* grep ^4000 /run/list
	expect 6 eval 'wc -l </run/list'
}
check "a list is imported into an active device" imports

dmsetup remove r
check "the tool, the reader and the kernel list the same entries" lists_agree
check "and the tool finds the metadata sound" dmremap check /dev/spare

offline() {
	printf '%s\n' 6000 1003 | dmremap import /dev/spare - --format sectors
	create r /dev/main /dev/spare
	expect "6000 pending * 0" message r query 6000
	expect "1000 partial * 8" message r query 1003
	message r list >/run/list
	dmsetup remove r
	lists_agree
}
check "a list is imported offline" offline

mends() {
	dd if=/dev/urandom of=/dev/spare bs=4096 count=2 oflag=direct status=none
	run dmremap check /dev/spare
	((status == 1))
	dmremap repair /dev/spare --yes --backup /run/backup
	dmremap check /dev/spare
	lists_agree
}
check "damaged copies are repaired" mends

together() {
	local n pids=()
	for n in {1..4}; do
		dmremap check /dev/spare &
		pids+=($!)
	done
	for n in "${pids[@]}"; do wait "$n"; done
}
check "four at a time check one spare" together
held() {
	exec 8</dev/spare
	flock -s 8
	dmremap check /dev/spare
	run dmremap label /dev/spare name >/run/said 2>&1
	cat /run/said
	((status == 4))
	grep -E "in use by tool.sh \(process [0-9]+\)" /run/said
	exec 8<&-
	dmremap label /dev/spare name
	expect name dmremap label /dev/spare
}
check "who writes waits for a moment for who reads, and names it" held

create r /dev/main /dev/spare
check "and all data is there" same /run/main /dev/mapper/r
dmsetup remove r

# --- Entries of all kinds, bad slots with and without sectors that were lost, and more replicas

# relocated SECTOR: a unit in a slot; slot_fails SECTOR OFFSET...: these sectors of it are bad.
relocated() {
	message r remap "$1"
	part /run/main "$1" 8 >/run/part
	put /run/part /dev/mapper/r "$1"
}
slot_fails() {
	local offset at
	at=$(slot_at /dev/spare "$(slot_of r "$1")")
	for offset in "${@:2}"; do bad spare $((at + offset)); done
}
all_kinds() {
	dmremap format /dev/spare --main /dev/main --metadata-copies "$1" --force --yes
	create r /dev/main /dev/spare
	expect "1 units marked" message r mark 4000
	relocated 2000
	part /run/main 1000 16 >/run/part
	put /run/part /dev/mapper/r 1000
	relocated 3000
	slot_fails 3000 1
	put /run/part /dev/mapper/r 3000
	relocated 5000
	slot_fails 5000 2 5
	not get /dev/mapper/r 5000 8
	expect "5002-5002 5005-5005" unreadable /dev/mapper/r 5000 8 /run/main
	message r list >/run/list
	dmsetup remove r
	good spare 0 8191
	lists_agree
	# The mask of what is lost, and the slot that lost it.
	expect $'1000 partial 8 0\n2000 relocated ff 0\n3000 relocated ff 0\n4000 pending 0 0\n5000 partial db 24' \
		eval "grep -v ^bad /run/dumped | cut -d ' ' -f 1,2,4,5"
	expect $'0\n24' eval "grep ^bad /run/dumped | cut -d ' ' -f 3"
	dmremap check /dev/spare
}
check "all kinds of entries and bad slots, in 3 replicas" all_kinds 3
check "and in 4" all_kinds 4
remove_disk main spare
