#!/bin/bash
# dmremap ended by SIGINT in the middle of its work, and devices that fail there: what was there is there, or the command is
# run again and finishes.
# kernels: stock
# vm: --smp 2
# waits: for slow disks
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 12

modprobe dm-delay
disk main 16
disk spare 8
data /run/main 32768
put /run/main /dev/main
# The spare, where each request takes a while.
slow() { dmsetup create slow --table "0 16384 delay /dev/spare 0 700"; }
# begun WHEN: `slow` has taken so many writes, or that file is there.
begun() {
	local now
	if [[ $1 == /* ]]; then
		[[ -e $1 ]]
		return
	fi
	read -r _ now < <(sent slow)
	((now - was >= $1))
}
# interrupted WHEN COMMAND [ARG...]: gets SIGINT as soon as `slow` has taken so many writes of it, or a file is there.
interrupted() {
	local was pid status=0
	slow
	read -r _ was < <(sent slow)
	env --default-signal=INT "${@:2}" >/run/said 2>&1 &
	pid=$!
	while [[ -e /proc/$pid/fd ]] && ! begun "$1"; do sleep 0.02; done
	kill -INT $pid || true
	wait $pid || status=$?
	cat /run/said
	dmsetup remove --retry slow
	((status == 130))
}
fresh() {
	blank /dev/spare
	dmremap format /dev/spare --main /dev/main --spare-sectors 8192 --yes
}
# The spare is sound, after a repair if need be.
sound() {
	local status
	run dmremap check /dev/spare "$@"
	((status == 0)) && return
	((status == 1))
	rm -f /run/backup
	dmremap repair /dev/spare "$@" --yes --backup /run/backup
	dmremap check /dev/spare "$@"
}

formats() {
	local status
	blank /dev/spare
	interrupted "$1" dmremap format /dev/mapper/slow --main /dev/main --yes
	run dmremap check /dev/spare
	((status == 0)) || dmremap format /dev/spare --main /dev/main --yes
	dmremap check /dev/spare
}
check "format, early" formats 1
check "format, late" formats 4
seq 0 8 24000 >/run/list
imports() {
	fresh
	interrupted "$1" dmremap import /dev/mapper/slow /run/half --format sectors --spare-sectors 8192
	sound --spare-sectors 8192
	dmremap import /dev/spare /run/half --format sectors --spare-sectors 8192
	expect 900 eval 'dmremap dump --json /dev/spare --spare-sectors 8192 | python3 -c "import json, sys; print(len(json.load(sys.stdin)[\"entries\"]))"'
}
head -n 900 /run/list >/run/half
check "import, early" imports 1
check "import, late" imports 5
grows() {
	local status
	fresh
	dmremap import /dev/spare /run/half --format sectors --spare-sectors 8192
	interrupted "$1" dmremap grow /dev/mapper/slow --yes
	run dmremap check /dev/spare
	((status == 0)) || dmremap grow /dev/spare --yes
	dmremap check /dev/spare
	dmremap export /dev/spare --format sectors | awk '{ n += $2 ? $2 : 1 } END { exit n != 7200 }'
}
check "grow, early" grows 1
check "grow, late" grows 6
repairs() {
	fresh
	dmremap import /dev/spare /run/half --format sectors --spare-sectors 8192
	dd if=/dev/urandom of=/dev/spare bs=4096 count=3 oflag=direct status=none
	rm -f /run/old
	interrupted /run/old dmremap repair /dev/mapper/slow --spare-sectors 8192 --yes --backup /run/old
	sound --spare-sectors 8192
}
check "repair" repairs
checks() {
	local status=0 pid
	fresh
	cp /dev/spare /run/before
	slow
	env --default-signal=INT dmremap check /dev/mapper/slow --spare-sectors 8192 &
	pid=$!
	sleep 0.3
	kill -INT $pid
	wait $pid || status=$?
	dmsetup remove --retry slow
	((status == 130))
	cmp /dev/spare /run/before
}
check "check" checks

# On a device in use: what is done is done.
some() { (($(field r relocated) > 20)); }
remaps() {
	dmsetup create slow --table "0 32768 delay /dev/main 0 20 /dev/main 0 0"
	blank /dev/spare
	dmremap open r /dev/mapper/slow /dev/spare
	local pid status=0
	env --default-signal=INT dmremap remap r 0 8M &
	pid=$!
	soon some
	kill -INT $pid
	wait $pid || status=$?
	((status))
	idle r
	(($(field r relocated) < 2048))
	same /run/main /dev/mapper/r
	dmremap restore r 0 16M
	expect "0 0" field r relocated pending
	dmremap close r
	dmsetup remove slow
}
check "remap" remaps

# --- Devices that fail in the middle

last=$(($(blockdev --getsz /dev/spare) - 8))
superblock() {
	blank /dev/spare
	bad spare $((last))
	not dmremap format /dev/spare --main /dev/main --yes >/run/said 2>&1
	grep -E "^error: /dev/spare: cannot (read|write) block" /run/said
	good spare 0 16383
	dmremap format /dev/spare --main /dev/main --yes
	dmremap check /dev/spare
}
check "format, where a superblock cannot be written" superblock
table() {
	fresh
	bad spare 8 15
	not dmremap import /dev/spare /run/half --format sectors --spare-sectors 8192 >/run/said 2>&1
	grep "^error: /dev/spare" /run/said
	good spare 0 16383
	sound --spare-sectors 8192
}
check "import, where a table block cannot be read or written" table
slots() {
	blank /dev/spare
	dmremap open r /dev/main /dev/spare
	bad spare 0 16383
	says=$(dmremap remap r 0 64K 2>&1) && return 1
	[[ $says == *"r: remap"* ]]
	good spare 0 16383
	soon expect active field r mode
	same /run/main /dev/mapper/r
	dmremap close r
	sound
}
check "remap, where the spare fails" slots
