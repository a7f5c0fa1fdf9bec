# shellcheck shell=bash
# For the scenarios, which source it as /host/lib.sh: results, disks with bad sectors, remap devices, comparing.
#
# A scenario is `plan N`, set-up, and N times `check`. Set-up that fails ends it, and then the plan is not kept.
set -euo pipefail

# On the debug kernel the module's KUnit suites would run each time it is loaded, 4 s; kunit.sh is there for that.
kunit=/sys/module/kunit/parameters/filter_glob
[[ ! -e $kunit ]] || echo none >$kunit

# --- Results, as KTAP

checks=0

plan() { printf 'KTAP version 1\n1..%d\n' "$1"; }

# run COMMAND [ARG...]: as if it were a scenario of its own: the first command that fails ends it; sets $status.
run() {
	set +e
	(
		set -e
		"$@"
	)
	status=$?
	set -e
}

# not COMMAND [ARG...]: the command fails.
not() {
	local status
	run "$@"
	((status))
}

# check PROMISE COMMAND [ARG...]: one result. In a function the first command that fails decides (set -e).
check() {
	local status
	checks=$((checks + 1))
	run "${@:2}" >/run/check 2>&1 </dev/null
	if ((status == 0)); then
		echo "ok $checks - $1"
	else
		echo "not ok $checks - $1"
		{ echo "status $status of: ${*:2}" && tail -n 20 /run/check && dmesg | tail -n 8; } | sed 's/^/# /'
	fi
}

# expect PATTERN COMMAND [ARG...]: the command succeeds and prints nothing but what fits the pattern of [[ ]].
expect() {
	local printed
	printed=$("${@:2}")
	# shellcheck disable=SC2053  # a pattern
	[[ $printed == $1 ]] || { printf '%s\n' "expected: $1" "printed: $printed" && return 1; }
}

# mark, log: `log` prints the kernel log from the last `mark` on.
mark() { echo "scenario: mark" >/dev/kmsg; }
log() { dmesg | awk '/scenario: mark$/ { text = ""; next } { text = text $0 "\n" } END { printf "%s", text }'; }

# refused SENTENCE COMMAND [ARG...]: the command fails, and the kernel log has the sentence.
refused() {
	mark
	not "${@:2}"
	log | grep -F "$1" || { echo "the log does not say: $1" && log && return 1; }
}

# --- Disks

nullb=/sys/kernel/config/nullb

# disk NAME MIB [ATTRIBUTE=VALUE...]: /dev/NAME, in memory, of 512 byte blocks. Attributes: those of null_blk.
disk() {
	local attribute
	[[ -d $nullb ]] || modprobe null_blk nr_devices=0
	mkdir "$nullb/$1"
	for attribute in memory_backed=1 blocksize=512 size="$2" "${@:3}" power=1; do
		echo "${attribute#*=}" >"$nullb/$1/${attribute%%=*}"
	done
}

remove_disk() {
	local name
	for name; do
		echo 0 >"$nullb/$name/power"
		rmdir "$nullb/$name"
	done
}

# bad NAME FIRST [LAST]: neither reads nor writes of these sectors succeed; good: they do again.
bad() { echo "+$2-${3:-$2}" >"$nullb/$1/badblocks"; }
good() { echo "-$2-${3:-$2}" >"$nullb/$1/badblocks"; }

# blank DEVICE: all zero, as a new spare is.
blank() { dd if=/dev/zero of="$1" bs=1M count=$(($(blockdev --getsz "$1") / 2048)) oflag=direct status=none; }

# holes DEVICE FIRST LAST [FIRST LAST]...: the table of a linear device over DEVICE whose given sectors, in ascending
# order, are bad.
holes() {
	local device=$1 at=0 end
	end=$(blockdev --getsz "$device")
	shift
	while (($#)); do
		((at == $1)) || echo "$at $(($1 - at)) linear $device $at"
		echo "$1 $(($2 - $1 + 1)) error"
		at=$(($2 + 1))
		shift 2
	done
	((at == end)) || echo "$at $((end - at)) linear $device $at"
}

# --- Remap devices

# table MAIN SPARE [FEATURE...]: a table line over all of both devices.
table() { echo "0 $(blockdev --getsz "$1") remap $1 0 $2 0${3:+ $(($# - 2)) ${*:3}}"; }

# create NAME MAIN SPARE [FEATURE...]
create() { dmsetup create "$1" --table "$(table "${@:2}")"; }

message() { dmsetup message "$1" 0 "${@:2}"; }

# list NAME: `list` without the numbers of the slots.
list() { message "$1" list | awk '{ print $1, $2, $4 }'; }

fields=(mode unit_sectors slots slots_bad relocated pending read_errors write_errors reads_recovered
	writes_recovered reads_redirected writes_redirected commits metadata_errors activity)

# field NAME FIELD...: words of `dmsetup status`.
field() {
	local words wanted i found=()
	read -ra words < <(dmsetup status "$1")
	for wanted in "${@:2}"; do
		for i in "${!fields[@]}"; do
			[[ ${fields[i]} != "$wanted" ]] || found+=("${words[i + 3]}")
		done
	done
	echo "${found[*]}"
}

# Events so far.
events() { dmsetup info -c --noheadings -o events "$1"; }

# --- Data

# data FILE SECTORS: random bytes.
data() { head -c $(($2 * 512)) /dev/urandom >"$1"; }

# put FILE DEVICE [SECTOR [DD_OPTION...]]: writes FILE to DEVICE in MiB, or in one go if it is smaller, past the page
# cache. (dd would write a short last block through it.)
put() {
	local size
	size=$(stat -c %s "$1")
	dd if="$1" of="$2" bs=$((size < 1 << 20 ? size : 1 << 20)) oflag=direct,seek_bytes seek=$((${3:-0} * 512)) \
		conv=notrunc status=none "${@:4}"
}

# get DEVICE SECTOR COUNT [BLOCK_SIZE]: prints sectors of DEVICE, read past the page cache.
get() {
	dd if="$1" bs="${4:-1M}" iflag=direct,skip_bytes,count_bytes skip=$(($2 * 512)) count=$(($3 * 512)) status=none
}

# same FILE DEVICE [SECTOR [BLOCK_SIZE]]: FILE is what DEVICE has from SECTOR on.
same() {
	get "$2" "${3:-0}" $(($(stat -c %s "$1") / 512)) "${4:-1M}" >/run/same
	cmp "$1" /run/same
}

# part FILE SECTOR COUNT: prints sectors of FILE.
part() { dd if="$1" bs=512 skip="$2" count="$3" status=none; }
