#!/bin/bash
# dmremap and the kernel: each reads what the other wrote, and a device in use is refused.
# kernels: stock
# vm: --include tests/reader.py
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 8

disk main 8
disk spare 4
data /run/main 16384
put /run/main /dev/main
bad main 1003

# What the tool and the independent reader find on the spare, as the message `list` prints it.
dumped() {
	dmremap dump --json /dev/spare | python3 -c 'import json, sys
for e in json.load(sys.stdin)["entries"]: print(e["sector"], e["state"], e["slot"], e["mask"])'
}
lists_agree() {
	dumped | cmp - /run/list
	python3 /host/reader.py /dev/spare | cmp - /run/list
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

create r /dev/main /dev/spare
check "and all data is there" same /run/main /dev/mapper/r
dmsetup remove r
remove_disk main spare
