#!/bin/bash
# fio verifies what it writes while entries come and go, tables are loaded, and sectors go bad.
# kernels: (stock) (debug) (race)
# vm: --smp 2 --timeout 1800
# args: 45
# all-args: 300
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 9

# Faults are such that no error may reach fio:
# - ranges of main become unwritable, but reading them gives what they had. So nothing is lost when a sector goes bad
#   that only main holds; and main's answer where the slot's is due would be old data, which fio sees.
# - the next access to some sectors fails, once, be it a read or a write, on main or in a slot. Repeated, it succeeds.
#   A slot that refused a write is not used again; so no more than two of those that share a table block refuse, the
#   number that is kept in reserve.
modprobe dm-flakey
seconds=$1 sectors=65536 seed=${2:-$((SRANDOM % 10000))}
disk disk $((sectors / 2048)) badblocks_once=1
disk spare 48 badblocks_once=1
stale /dev/disk | dmsetup create main
create r /dev/mapper/main /dev/spare unit_sectors 8

passes=0
# Leaves its words behind if it fails.
pass() {
	fio --name=pass --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=64 --rw=randwrite --numjobs=4 \
		--size=$((sectors / 8))k --offset_increment=$((sectors / 8))k --bssplit=512/5:4k/40:12k/10:32k/20:64k/15:256k/10 \
		--verify=crc32c --verify_backlog=32 --verify_fatal=1 --randseed="$1" --group_reporting --output=/run/fio
}

# below LIMIT: sets $number to a random one.
below() { number=$(((RANDOM << 15 | RANDOM) % $1)); }

# Unwritable ranges, FIRST LAST: one more, or from time to time half of them.
worn=()
wear() {
	local first
	((${#worn[@]} < 60)) || worn=("${worn[@]::30}")
	below $((sectors - 100)) && first=$number
	below 60
	worn+=("$first $((first + number))")
	# Those that overlap become one.
	# shellcheck disable=SC2046  # words
	stale /dev/disk $(printf '%s\n' "${worn[@]}" | sort -n |
		awk 'NR > 1 && $1 > last { print first, last; first = $1; last = 0 }
			NR == 1 { first = $1 } $2 > last { last = $2 } END { print first, last }') | reload main
}
data_start=$(od -An -t u8 -j 112 -N 8 /dev/spare | tr -d ' ')
declare -A slot_faults=()
slot_fault() { # SECTOR: of the next unit that has a slot
	local slot
	slot=$(message r list "$1" 1 | cut -d ' ' -f 3)
	[[ -n $slot ]] && ((++slot_faults[$((slot / 126))] <= 2)) || return 0
	bad spare $((data_start + 8 * slot + RANDOM % 8))
}
load() { dmsetup load r --table "$(table /dev/mapper/main /dev/spare)"; }

# One thing after the other until /run/go goes; the first one that fails ends it.
churn() {
	local at count from
	RANDOM=$1
	while [[ -e /run/go ]]; do
		below $sectors && at=$number
		below 200 && count=$((number < sectors - at ? number + 1 : sectors - at))
		case $((RANDOM % 16)) in
		0 | 1 | 2) message r remap $at $count ;;
		3 | 4 | 5)
			# From the next unit on that has an entry.
			from=$(message r list $at 1 | cut -d ' ' -f 1)
			message r restore "${from:=0}" $((sectors - from < 1000 ? sectors - from : 1000))
			;;
		6) message r mark $at $((count % 64 + 1 < sectors - at ? count % 64 + 1 : 1)) ;;
		7) expect "* 0 stale, 0 damaged, 0 repaired" message r check ;;
		8) message r sync ;;
		9) dmsetup suspend r && dmsetup resume r ;;
		10)
			dmsetup suspend --noflush --nolockfs r
			message r remap $at $((count % 9 + 1 < sectors - at ? count % 9 + 1 : 1))
			dmsetup resume r
			;;
		11) load && dmsetup resume r ;;
		12) load && dmsetup suspend --noflush --nolockfs r && dmsetup resume r ;;
		13) wear ;;
		14) bad disk $at $((at + count % 20 < sectors ? at + count % 20 : at)) ;;
		15) slot_fault $at ;;
		esac
		# Failed requests, in this table's life.
		field r read_errors write_errors reads_recovered writes_recovered
	done
}

# count WORDS: the number that stands before them, summed up.
count() { awk -v words=" $1" 'i = index($0, words) { sum += substr($0, 1, i) } END { print sum + 0 }' /run/churn; }
plenty() { (($(count "units relocated") > 20 && $(count "units restored") > 5 && $(count "units marked") > 0)); }

echo "# seed $seed (the scenario's second argument)"
touch /run/go
churn "$seed" >/run/churn 2>&1 &
churner=$! failed=0
# A machine that is busy with something else gets some time more.
while ((!failed)) && { ((SECONDS < seconds)) || { ! plenty && ((SECONDS < 4 * seconds)); }; } && kill -0 $churner 2>/dev/null; do
	passes=$((passes + 1))
	pass $((seed + passes)) || failed=1
done
rm /run/go
churned=0
wait $churner || churned=$?
echo "# $passes passes; units relocated by message: $(count "units relocated"), restored: $(count "units restored")," \
	"stayed: $(sed -n 's/.*, \([0-9]* units stay\)/\1/p' /run/churn | awk '{ n += $1 } END { print n + 0 }')," \
	"marked: $(count "units marked"); $(grep -c '^[0-9]* [0-9]* [0-9]* [0-9]*$' /run/churn) messages and loads"

none_failed() { # FAILED LOG
	(($1 == 0)) || { tail -n 20 "$2" && return 1; }
}
check "no pass found an error (seed $seed)" none_failed "$failed" /run/fio
check "no message, suspend or load failed" none_failed "$churned" /run/churn
check "units were relocated, restored and marked meanwhile" plenty
failures() {
	awk '/^[0-9]+ [0-9]+ [0-9]+ [0-9]+$/ { n += $3 + $4 } END { exit !n }' /run/churn
	expect "$(field r read_errors write_errors)" field r reads_recovered writes_recovered
}
check "requests failed, and all of them were recovered" failures
check "mode active, no metadata errors" expect "active 0" field r mode metadata_errors
check "check finds nothing to repair" expect "* 0 stale, 0 damaged, 0 repaired" message r check
get /dev/mapper/r 0 $sectors >/run/all
again() {
	dmsetup remove r
	create r /dev/mapper/main /dev/spare
	same /run/all /dev/mapper/r
}
check "the same data after re-activation" again
back() {
	stale /dev/disk | reload main
	good disk 0 $((sectors - 1))
	good spare 0 98303
	expect "* units restored, 0 units stay" message r restore 0 $sectors
	expect "" message r list
	# They are free from the next suspend on.
	dmsetup suspend r
	dmsetup resume r
	expect "0/*" field r slots
}
check "a sound main takes all of it back, and no slot stays in use" back
check "and has the same data then" same /run/all /dev/disk
dmsetup remove r
dmsetup remove main
remove_disk disk spare
