#!/bin/bash
# A million entries, or as many as the argument says: imported, activated, listed, checked, removed; how long that takes and how much memory.
# kernels: stock
# args: 300000
# all-args: 1000000
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 9

n=$1
disk main 16000
disk spare 4200
modprobe dm-remap

# timed WHAT COMMAND [ARG...]: says how long the command took.
timed() {
	local start=${EPOCHREALTIME/./}
	"${@:2}"
	echo "# $1: $(((${EPOCHREALTIME/./} - start) / 1000)) ms" >>/run/figures
}
# KiB that the kernel has in use for itself: the least over 3 s, as some is freed after a grace period or by works.
memory() {
	sync
	for _ in {1..6}; do
		echo 3 >/proc/sys/vm/drop_caches
		sleep 0.5
		awk '/^(Slab|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo
	done | sort -n | head -n 1
}

imports() {
	# One in four units.
	seq 3 32 $((32 * n)) >/run/bad
	dmremap format /dev/spare --main /dev/main --yes
	expect "$n units marked*" timed import dmremap import /dev/spare /run/bad --format sectors
	rm /run/bad
}
check "a list of $n sectors is imported" imports
before=$(memory)
activates() {
	timed activate create r /dev/main /dev/spare no_format
	expect "active 0 $n" field r mode relocated pending
}
check "they are activated" activates
after=$(memory)
small() {
	local bytes=$(((after - before) * 1024 / n))
	echo "# memory: $bytes bytes an entry" >>/run/figures
	((bytes > 8 && bytes < 40))
}
check "they take little memory" small

changes() {
	data /run/data 1024
	put /run/data /dev/mapper/r $((16 * n))
	message r remap $((24 * n)) 4000
	same /run/data /dev/mapper/r $((16 * n))
	# 32 units were pending that the write met whole, and of the 500 units 125.
	expect "532 $((n - 32 - 125))" field r relocated pending
	timed list message r list 0 $((2 * n)) >/run/list
	expect "$((n + 375))" eval 'wc -l </run/list'
}
check "some get data, and all are listed" changes
pages() {
	local from=$((8 * n)) # in the middle of many
	timed "list of 1000" message r list $from >/run/page
	expect 1000 eval 'wc -l </run/page'
	grep -A 999 "^$from " /run/list | cmp - /run/page
}
check "a page of the list is a part of it" pages
check "all replicas are sound" expect "* blocks: 0 stale, 0 damaged, 0 repaired" timed check message r check

timed remove dmsetup remove r
# Some hundred KiB stay in half-filled slabs of others; a leak of what the entries lie in would be most of it.
freed() { (($(memory) < before + (after - before) / 5)); }
check "the memory is free again" soon freed
# What stays does so once.
first=$(memory)
again() {
	create r /dev/main /dev/spare no_format
	dmsetup remove r
}
no_more() { (($(memory) < first + (after - before) / 20)); }
check "a second time nothing more stays" eval 'again && soon no_more'
dumps() {
	timed dump dmremap dump /dev/spare >/run/dump # succeeds if all is sound
	LC_ALL=C grep '^[0-9]' /run/dump | cut -d ' ' -f 1-4 | cmp - /run/list
}
check "dmremap reads the same entries" dumps
cat /run/figures
remove_disk main spare
