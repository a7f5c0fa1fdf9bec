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
	echo "# at $(cut -d ' ' -f 1 /proc/uptime): $(awk '/^cpu / { print "user", $2 + $3, "system", $4 + $7 + $8 }' /proc/stat)"
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

# blank DEVICE [SECTORS]: all zero, or so many sectors, a multiple of 8, as a new spare is.
blank() {
	dd if=/dev/zero of="$1" bs=1M count=$((${2:-$(blockdev --getsz "$1")} * 512)) iflag=count_bytes \
		oflag=direct conv=notrunc status=none
}

# lower NAME DEVICE FIRST COUNT: /dev/mapper/NAME is these sectors of DEVICE.
lower() {
	echo "$2 $3 $4" >"/run/lower.$1"
	dmsetup create "$1" --table "0 $4 linear $2 $3"
}

# patch NAME [FIRST COUNT TARGET [ARG...]]: from now on these sectors of NAME, as `lower` made it, are what TARGET makes
# of them, and the others are good; without FIRST all are. In ARG, `@` stands for their place on the device below.
patch() {
	local device start length args=${*:5}
	read -r device start length <"/run/lower.$1"
	if (($# == 1)); then
		echo "0 $length linear $device $start"
	else
		(($2 == 0)) || echo "0 $2 linear $device $start"
		echo "$2 $3 $4 ${args//@/$((start + $2))}"
		(($2 + $3 == length)) || echo "$(($2 + $3)) $((length - $2 - $3)) linear $device $((start + $2 + $3))"
	fi | dmsetup load "$1"
	dmsetup resume "$1"
}

# segments BAD DEVICE [FIRST LAST]...: the table of a linear device over DEVICE whose given sectors, in ascending order,
# are served by the target that BAD says; @ in it is the first of them.
segments() {
	local bad=$1 device=$2 at=0 end
	end=$(blockdev --getsz "$device")
	shift 2
	while (($#)); do
		((at == $1)) || echo "$at $(($1 - at)) linear $device $at"
		echo "$1 $(($2 - $1 + 1)) ${bad//@/$1}"
		at=$(($2 + 1))
		shift 2
	done
	((at == end)) || echo "$at $((end - at)) linear $device $at"
}

# holes DEVICE [FIRST LAST]...: the given sectors are bad.
holes() { segments error "$@"; }

# stale DEVICE [FIRST LAST]...: the given sectors cannot be written; reading them gives what they had before.
stale() { segments "flakey $1 @ 0 3600 1 error_writes" "$@"; }

# reload NAME: gives a device the table that stands in standard input.
reload() {
	dmsetup load "$1"
	dmsetup resume "$1"
}

# scsi MIB [PARAMETER...]: $good and $sick, SCSI disks with the same content and a write cache each. On $sick, `arm` makes
# commands fail.
scsi() {
	local disks=()
	echo 5 >/proc/sys/kernel/printk # it logs each command that it fails; not on the console, please
	modprobe scsi_debug dev_size_mb="$1" max_luns=2 delay=0 lbpu=1 "${@:2}"
	until ((${#disks[@]} == 2)); do
		sleep 0.1
		disks=(/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*)
	done
	# shellcheck disable=SC2034  # for scenarios
	good=/dev/${disks[0]##*/} sick=/dev/${disks[1]##*/}
	errors=/sys/kernel/debug/scsi_debug/$(basename "${disks[1]%/block/*}")/error
}

# Host byte, driver byte, status, sense key, code and qualifier; and what a program is told.
declare -A sense=(
	[medium]="0 0 2 3 11 0|No data available"
	[ioerr]="0 0 2 9 80 0|Input/output error" # vendor specific. (Of write errors, 3 c 0, Linux makes this too, slowly.)
	[target]="0 0 2 4 44 0|Remote I/O error"
	[transport]="f 0 0 0 0 0|Link has been severed"
	[timeout]="0 0 2 b 2e 1|Timer expired"
	[reservation]="0 0 18 0 0 0|Invalid exchange"
	[nospc]="0 0 2 7 27 7|No space left on device"
	[protection]="0 0 2 5 10 1|Invalid or incomplete multibyte or wide character"
)

# arm KIND [OPCODE...]: these commands, or all that carry data and flushes, fail; `disarm`: none does.
arm() { commands 1000000000 "${sense[$1]%|*}" "${@:2}"; }
disarm() { commands 0 "0 0 0 0 0 0"; }
commands() {
	local opcode opcodes="${*:3}"
	for opcode in ${opcodes:-28 2a 88 8a 41 93 42 35}; do echo "2 $1 $opcode $2" >"$errors"; done
}

# pluggable MIB [PARAMETER...]: $plugged, a SCSI disk with a write cache; `unplug` takes it away from whoever uses it, `plug`
# brings it back with its content, under another name as long as somebody holds the old one. Not beside `scsi`.
pluggable() {
	echo 5 >/proc/sys/kernel/printk
	modprobe scsi_debug dev_size_mb="$1" delay=0 "${@:2}"
	appears
}
unplug() { echo 1 >"/sys/block/${plugged##*/}/device/delete"; }
plug() {
	local host
	for host in /sys/bus/pseudo/drivers/scsi_debug/adapter0/host*; do
		echo "- - -" >"/sys/class/scsi_host/${host##*/}/scan"
	done
	appears
}
appears() {
	local found=()
	until [[ -e ${found[0]:-} ]]; do
		sleep 0.1
		found=(/sys/bus/pseudo/drivers/scsi_debug/adapter0/host*/target*/*/block/*)
	done
	plugged=/dev/${found[0]##*/}
	until [[ -b $plugged ]]; do sleep 0.1; done
}

# requests DEVICE: how many commands a SCSI disk was sent so far, successful or not.
requests() { echo $(($(<"/sys/block/${1##*/}/device/iorequest_cnt"))); }

# Kinds of faults are those of `sense`, on $good; error, flakey, dust and null, on /dev/base, a null_blk disk; and, of a
# device as a whole, gone-error and gone-offline. made_of KIND: what a `lower` device with such faults is made of.
made_of() {
	if [[ -n ${sense[$1]:-} || $1 == gone-offline ]]; then echo "$good"; else echo /dev/base; fi
}
# fault KIND NAME FIRST COUNT: these sectors of NAME fail, for reads and writes at least; heal NAME: no more.
fault() {
	local kind=$1 name=$2 start length block first n
	read -r _ start length <"/run/lower.$2"
	first=$((start + $3))
	case $kind in
	error) patch "${@:2}" error ;;
	flakey) patch "${@:2}" flakey /dev/base @ 0 3600 ;;
	dust)
		# It numbers blocks from the start of the device below. Each fails 255 writes.
		block=$(($4 < 64 ? $4 : 64))
		dmsetup create dusty --table "0 $4 linear /dev/base $first"
		patch "${@:2}" dust /dev/mapper/dusty 0 $((block * 512))
		for ((n = 0; n < $4 / block; n++)); do dmsetup message "$name" "$3" addbadblock $n 255; done
		dmsetup message "$name" "$3" enable
		;;
	null) bad base $first $((first + $4 - 1)) ;;
	gone-error) patch "$name" 0 "$length" error ;;
	gone-offline)
		patch "$name" 0 "$length" linear "$sick" @
		echo offline >"/sys/block/${sick##*/}/device/state"
		;;
	*)
		patch "${@:2}" linear "$sick" @
		arm "$kind"
		;;
	esac
}
heal() {
	if [[ -n ${sick:-} ]]; then
		echo running >"/sys/block/${sick##*/}/device/state"
		disarm
	fi
	patch "$1"
	[[ ! -e /dev/mapper/dusty ]] || dmsetup remove dusty
	[[ ! -e $nullb/base ]] || good base 0 $(($(blockdev --getsz /dev/base) - 1))
}

# faults KIND: with faults injected (failslab, fail_page_alloc, fail_make_request), all that can fail may, but for what the
# kernel's own checks allocate. On the debug kernel.
faults() {
	local dir=/sys/kernel/debug/$1 cache
	if [[ $1 == failslab ]]; then
		for cache in /sys/kernel/slab/*; do
			[[ $cache == */@(kmemleak_*|debug_objects_cache) ]] || echo 1 >"$cache/failslab"
		done
		echo Y >"$dir/cache-filter"
	fi
	[[ ! -e $dir/ignore-gfp-wait ]] || echo N >"$dir/ignore-gfp-wait"
	[[ ! -e $dir/min-order ]] || echo 0 >"$dir/min-order"
	echo 0 >"$dir/verbose"
}
# fault_below KIND require|reject MODULE: only below this module's functions, or not below them.
fault_below() {
	local dir=/sys/kernel/debug/$1 symbols
	symbols=$(awk -v module="[$3]" '$4 == module && tolower($2) == "t" { print $1 }' /proc/kallsyms | sort)
	echo "0x$(head -n 1 <<<"$symbols")" >"$dir/$2-start"
	printf '0x%x\n' $((16#$(tail -n 1 <<<"$symbols") + 4096)) >"$dir/$2-end"
}

# fails_with TEXT COMMAND [ARG...]: the command fails and says so.
fails_with() {
	not "${@:2}" 2>/run/said
	cat /run/said
	grep -qF "$1" /run/said
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
	writes_recovered reads_redirected writes_redirected commits metadata_errors activity lost_sectors)

# field NAME FIELD...: words of `dmsetup status`.
field() {
	local words wanted i found=()
	read -ra words < <(dmsetup status "$1")
	for wanted in "${@:2}"; do
		for i in "${!fields[@]}"; do
			[[ ${fields[i]} != "$wanted" ]] || found+=("${words[i + 3]:-none}")
		done
	done
	echo "${found[*]}"
}

# soon COMMAND [ARG...]: the command succeeds within 400 s. (A busy machine may take long; only what hangs takes longer.)
soon() {
	local end=$((SECONDS + 400))
	until "$@"; do
		((SECONDS < end)) || return 1
		sleep 0.1
	done
}
idle() { soon expect idle field "$1" activity; }

# sys DEVICE: its directory in sysfs.
sys() { echo "/sys/dev/block/$((0x$(stat -c %t "$1"))):$((0x$(stat -c %T "$1")))"; }

# queue NAME ATTRIBUTE: of the request queue of /dev/mapper/NAME.
queue() { cat "$(sys "/dev/mapper/$1")/queue/$2"; }

# sent NAME: how many reads and how many writes (write-zeroes and flushes are writes) the device-mapper device NAME was
# sent and has answered so far, successfully or not.
sent() { awk '{ print $1, $5 }' "$(sys "/dev/mapper/$1")/stat"; }

# costs READS WRITES NAME COMMAND [ARG...]: the command succeeds, and sends NAME at most so many.
costs() {
	local was now
	read -ra was < <(sent "$3")
	"${@:4}"
	read -ra now < <(sent "$3")
	echo "$3: $((now[0] - was[0])) reads, $((now[1] - was[1])) writes; at most $1, $2"
	((now[0] - was[0] <= $1 && now[1] - was[1] <= $2))
}

# slot_of NAME SECTOR: the number of the slot; slot_at SPARE SLOT: the sector of SPARE that a slot begins at.
slot_of() { message "$1" query "$2" | awk '{ print $3 }'; }
slot_at() { od -An -t u4 -j 88 -N 32 "$1" | awk -v slot="$2" '{ word[n + 0] = $0; n++ }
	END { split(word[0], a); split(word[1], b); print b[3] + slot * a[1] }'; }

# Events so far.
events() { dmsetup info -c --noheadings -o events "$1"; }

# --- Data

# data FILE SECTORS: random bytes.
data() { head -c $(($2 * 512)) /dev/urandom >"$1"; }

# put FILE DEVICE [SECTOR [DD_OPTION...]]: writes FILE to DEVICE in MiB, or in one go if it is less than two, past the
# page cache. (dd would write a short last block through it.)
put() {
	local size
	size=$(stat -c %s "$1")
	dd if="$1" of="$2" bs=$((size < 2 << 20 ? size : 1 << 20)) oflag=direct,seek_bytes seek=$((${3:-0} * 512)) \
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

# unreadable DEVICE SECTOR COUNT [FILE]: prints the ranges of sectors, `first-last`, that cannot be read one by one;
# fails if one can be whose content is not what FILE has for this sector.
unreadable() {
	python3 -S - "$@" <<-'P'
		import mmap, os, sys
		device, first, count = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), int(sys.argv[2]), int(sys.argv[3])
		model = os.open(sys.argv[4], os.O_RDONLY) if len(sys.argv) > 4 else None
		buffer, failed = mmap.mmap(-1, 512), []
		for sector in range(first, first + count):
		    try:
		        os.preadv(device, [buffer], sector * 512)
		    except OSError:
		        if not failed or failed[-1][1] != sector - 1:
		            failed.append([sector, sector])
		        failed[-1][1] = sector
		    else:
		        if model is not None and buffer[:] != os.pread(model, 512, sector * 512):
		            print(f"sector {sector} has not what it should")
		            sys.exit(1)
		print(*(f"{a}-{b}" for a, b in failed))
	P
}

# edit FILE SECTOR PART: puts PART into FILE.
edit() { dd if="$3" of="$1" bs=512 seek="$2" conv=notrunc status=none; }

# part FILE SECTOR COUNT: prints sectors of FILE.
part() { dd if="$1" bs=512 skip="$2" count="$3" status=none; }
