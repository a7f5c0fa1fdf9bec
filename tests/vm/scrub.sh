#!/bin/bash
# dmremap scrub: on a disk with unreadable, slow and healthy sectors, quiet and busy, interrupted and resumed; units and blocks of
# all sizes; what it costs others (full only: that is a matter of speed); dead places; what it finds late; devices that are
# read-only, full, or gone.
# kernels: stock
# vm: --smp 1 --extras --include docs/json-schema
# waits: for slow disks
# all-args: full
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
is_full=false
[[ ${1:-} != full ]] || is_full=true
if $is_full; then plan 22; else plan 21; fi
exec 3>&1 # for remarks

modprobe dm-delay
# Of 20 each: full. The device below serves one request after the other, 2 ms each, and nobody's priority counts.
mib=48 number=3 least=3 depth=4 at_once=40
! $is_full || mib=489 number=20 least=18 depth=16 at_once=150
disk base $mib irqmode=2 completion_nsec=2000000 hw_queue_depth=1 submit_queues=1
echo none >/sys/block/base/queue/scheduler
disk spare 8
sectors=$((mib * 2048))
# Whoever else uses the disk does so behind all that is bad.
quiet=$((sectors * 3 / 4)) step=$((sectors * 3 / 4 / number))
slow=() slow_units=() bad_units=()
for ((n = 0; n < number; n++)); do
	unit=$(((n * step + step / 3) / 8 * 8))
	slow+=("$unit" "$((unit + 7))") slow_units+=("$unit")
	unit=$(((n * step + step * 2 / 3) / 8 * 8))
	bad base $((unit + n % 8))
	bad_units+=("$unit")
done
segments "delay /dev/base @ 300 /dev/base @ 0" /dev/base "${slow[@]}" | dmsetup create main
ms() { echo $((${EPOCHREALTIME/./} / 1000)); }

begin() {
	rm -rf /var/lib/dmremap
	blank /dev/spare
	dmremap open r /dev/mapper/main /dev/spare
}
# exits STATUS COMMAND [ARG...]: the command ends with that status; what it says is in /run/said.
exits() {
	local status
	run "${@:2}" >/run/said 2>&1
	cat /run/said
	((status == $1))
}
says() { exits "$1" "${@:3}" && grep -F -- "$2" /run/said; }
# units KIND [FILE]: first sectors of the units that the report has, as `list` has those of a state.
units() { jq -r ".$1[] | range(.sector; .sector + .count; 8)" "${2:-/run/report}"; }
in_state() { dmremap list r | awk -v state="$1" '$2 == state { print $1 }'; }
scrub() {
	local start status
	start=$(ms)
	run dmremap scrub r --json "$@" >/run/report
	echo "# scrub $*: $(($(ms) - start)) ms, exit status $status" >&3
	cat /run/report
	return "$status"
}
valid() { # SCHEMA FILE...
	python3 -c 'import json, jsonschema, sys
schema, *documents = (json.load(open(path)) for path in sys.argv[1:])
for document in documents:
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)' "/host/json-schema/$1.json" "${@:2}"
}

# --- Nobody else uses the disk

begin
all_of_it() {
	exits 1 scrub
	expect "true 0 $sectors" jq -r '"\(.complete) \(.from) \(.position)"' /run/report
}
check "a scrub reads all of a device, and ends with status 1" all_of_it
pending() {
	expect "${bad_units[*]}" eval 'in_state pending | xargs'
	expect "${bad_units[*]}" eval 'units pending | xargs'
}
check "every unreadable sector is pending, and reported" pending
relocated() {
	expect "${slow_units[*]}" eval 'in_state relocated | xargs'
	expect "${slow_units[*]}" eval 'units relocated | xargs'
}
check "what is slow is relocated, and nothing else" relocated
again() {
	says 0 "nothing new was found" dmremap scrub r
	says 0 "was read 0 days ago" dmremap scrub r --if-due 27
	dmremap scrub r --json --if-due 0
}
check "read again, nothing new is found, and nothing is due" again
dmremap close r

# --- Others use it

# busy OPTION...: $foreground reads and writes where nothing is bad.
busy() {
	fio --name=busy --filename=/dev/mapper/r --offset=$((quiet * 512)) --size=$(((sectors - quiet) * 512)) --direct=1 \
		--bs=4k --time_based --runtime=100000 --output=/run/fio "$@" >/run/fio.said 2>&1 </dev/null &
	foreground=$!
	# Its worker.
	soon eval 'worker=$(pgrep -P $foreground) && (($(moved) > 0))'
	worker=$(pgrep -P $foreground)
}
moved() { awk '/^(read|write)_bytes/ { sum += $2 } END { print sum }' "/proc/${worker:-$(pgrep -P $foreground)}/io"; }
enough() {
	kill $foreground
	wait $foreground || true
}

begin
busy --ioengine=libaio --iodepth=$depth --rw=randrw --thinktime=300ms --thinktime_blocks=$at_once
position() { jq .position /var/lib/dmremap/scrub-r.state; }
past() { # POSITION; no process, as this is asked often
	local state
	mapfile -t state 2>/dev/null </var/lib/dmremap/scrub-r.state || return 1
	[[ ${state[*]} =~ \"position\":\ ([0-9]+) ]] && ((BASH_REMATCH[1] > $1))
}
interrupted() { # SIGNAL STATUS POSITION: once it is past that
	local scrub status=0
	# Slow enough not to be at the end before it is seen to be past that.
	dmremap scrub r --json --rate 4 >/run/partly &
	scrub=$!
	soon past "$3"
	kill -s "$1" $scrub
	wait $scrub || status=$?
	((status == $2))
}
by_hand() {
	interrupted INT 130 0
	expect "false $(position)" jq -r '"\(.complete) \(.position)"' /run/partly
}
check "under load, it is interrupted by SIGINT and says how far it was" by_hand
check "what it has said up to now is what the schema says" valid scrub /run/report /run/partly
killed() { interrupted KILL 137 "$(position)"; }
check "or killed, as by a power cut" killed
goes_on() {
	local at
	at=$(position)
	says 1 "going on at sector $at of $sectors" dmremap scrub r
	expect "true 0 $sectors" jq -r '"\(.complete) \(.from) \(.position)"' /var/lib/dmremap/scrub-r.json
	not test -e /var/lib/dmremap/scrub-r.state
}
check "it goes on where it was" goes_on
all_pending() { expect "${bad_units[*]}" eval 'in_state pending | xargs'; }
check "every unreadable sector is pending" all_pending
units relocated /var/lib/dmremap/scrub-r.json >/run/relocated
there() { printf '%s\n' "${slow_units[@]}" | sort | comm -12 - <(sort /run/relocated) | wc -l; }
most() {
	echo "found: $(there)"
	(($(there) >= least))
}
check "what is slow is relocated, $least of $number at least" most
# At most one in 100,000.
healthy() {
	echo "healthy, but relocated: $(($(wc -l </run/relocated) - $(there)))"
	(($(wc -l </run/relocated) - $(there) <= sectors / 8 / 100000))
}
check "of what is healthy, at most one unit in 100,000" healthy
enough
dmremap close r

dmsetup remove main
remove_disk base

# What it costs: others read, one request after the other. In turn a scrub beside them stands still, and reads. Nothing is bad
# there, and it takes longer than that to read all.
has_read() { awk '/^read_bytes/ { print $2 }' "/proc/$1/io"; }
# during SECONDS: sets $others and $own to what others, and the scrub, move meanwhile, in bytes a second.
during() {
	local others_before own_before start
	others_before=$(moved) own_before=$(has_read "$scrub") start=$(ms)
	sleep "$1"
	others=$(($(moved) - others_before)) own=$(($(has_read "$scrub") - own_before)) time=$(($(ms) - start))
	others=$((others * 1000 / time)) own=$((own * 1000 / time))
}
costs_others() {
	local scrub with=0 without=0 reads=0 others own time n
	dmremap scrub r &
	scrub=$!
	soon eval '(($(has_read "$scrub") > 1 << 20))'
	for ((n = 0; n < 4; n++)); do
		kill -STOP $scrub
		sleep 0.2
		during 4
		without=$((without + others))
		kill -CONT $scrub
		# The time that it stood still it may take for a slow read, and pause.
		sleep 5.2
		during 4
		with=$((with + others)) reads=$((reads + own))
	done
	# All the time.
	kill -KILL $scrub
	wait $scrub || true
	echo "# bytes a second of others, without a scrub: $((without / 4)), with one that reads $((reads / 4)): $((with / 4))" >&3
	((reads / 4 > 1 << 18))
	((with * 10 >= without * 8))
}
if $is_full; then
	disk base 4096 irqmode=2 completion_nsec=8000000 hw_queue_depth=1 submit_queues=1
	echo none >/sys/block/base/queue/scheduler
	sectors=$((4096 * 2048))
	quiet=$((sectors * 3 / 4))
	lower main /dev/base 0 $sectors
	begin
	busy --ioengine=psync --rw=randread
	check "others get 0.8 of what they get without a scrub" costs_others
	enough
	dmremap close r
	dmsetup remove main
	remove_disk base
fi

# --- Units and blocks of all sizes

# granule NAME BLOCK UNIT BAD SLOW: a device with units of so many sectors, of which these are bad and slow. All are scrubbed at once.
granules=()
granule() {
	disk "base-$1" 8 blocksize="$2"
	disk "spare-$1" 4
	bad "base-$1" $(($4 + $3 / 2))
	segments "delay /dev/base-$1 @ 200 /dev/base-$1 @ 0" "/dev/base-$1" "$5" $(($5 + $3 - 1)) | dmsetup create "main-$1"
	dmremap open "$1" "/dev/mapper/main-$1" "/dev/spare-$1" --unit-sectors "$3"
	granules+=("$*")
}
granule single 512 1 6001 10003
granule large 512 64 6016 10048
granule 4kn 4096 8 6008 10048
scrub_granule() {
	run dmremap scrub "$1" --json >"/run/report-$1"
	echo "$status" >"/run/status-$1"
}
for granule in "${granules[@]}"; do scrub_granule "${granule%% *}" & done
wait
of_any_size() {
	local granule name unit bad slow
	for granule in "${granules[@]}"; do
		read -r name _ unit bad slow <<<"$granule"
		cat "/run/report-$name"
		expect 1 cat "/run/status-$name"
		expect "true $unit $bad,$unit $slow,$unit" jq -r '[.pending, .relocated | map("\(.sector),\(.count)") | join(" ")] as $found |
			"\(.complete) \(.unit_sectors) \($found | join(" "))"' "/run/report-$name"
		expect "$bad pending $slow relocated" eval "dmremap list $name | awk '{ print \$1, \$2 }' | xargs"
	done
}
check "with units of 1 and of 64 sectors, and on a disk with blocks of 4 KiB" of_any_size
for granule in "${granules[@]}"; do
	name=${granule%% *}
	dmremap close "$name"
	dmsetup remove "main-$name"
	remove_disk "base-$name" "spare-$name"
done

# --- Places that are dead

# One that turns: what is slow is read again after all else. Around it there is little but what is dead.
disk base 16 rotational=1
dmsetup create dead --table "0 6144 error"
lower failing /dev/mapper/dead 0 6144 # counts
lower main /dev/base 0 32768
slow=15360
reload main <<-T
	0 8192 linear /dev/base 0
	8192 6144 linear /dev/mapper/failing 0
	14336 1024 linear /dev/base 14336
	$slow 8 delay /dev/base $slow 300 /dev/base $slow 0
	15368 17400 linear /dev/base 15368
T
begin
# 3 MiB: 32, 16 and 8 failing reads, and 4 before them to know what is usual, of 4 commands each.
bounded() {
	costs $((4 * (32 + 16 + 8 + 4))) 0 failing exits 1 dmremap scrub r
	grep "left out" /run/said
	expect "0 $slow" jq -r '"\(.unreadable | length) \(.relocated[].sector)"' /var/lib/dmremap/scrub-r.json
}
check "a dead place costs few failing reads, however often what is slow near it is read, and is reported as left out" bounded
patch main 8192 6144 linear /dev/mapper/failing 0
thorough() {
	dmremap forget r 0 16M
	says 1 "left out" dmremap scrub r --from 8192 --to 8704
	says 1 "pending from now on" dmremap scrub r --from 8192 --to 8704 --thorough
	not grep "left out" /run/said
	expect 64 eval 'in_state pending | wc -l'
}
check "all of it is read where that is asked for" thorough
dmremap close r

# --- What it finds late

# 60 bad units, each of which takes more than a second to fail: nobody finds all of them before it is killed.
begin
for ((n = 0; n < 60; n++)); do bad base $((16384 + n * 16)); done
patch main 16384 960 delay /dev/base @ 1000
place=(--from 16384 --to 18432 --slow 60000 --thorough)
reported_later() {
	local scrub status=0
	dmremap scrub r "${place[@]}" >/dev/null &
	scrub=$!
	soon eval '(($(field r pending) >= 3))'
	# It runs still.
	kill -KILL $scrub
	wait $scrub || status=$?
	((status == 137))
	in_state pending | sort >/run/found
	patch main
	not scrub "${place[@]}"
	expect 60 field r pending
	units pending | sort >/run/reported
	echo "pending when it was killed: $(wc -l </run/found), reported: $(wc -l </run/reported)"
	# All, also what it met while it only wanted to know what is usual, but for the one that was being found.
	(($(comm -23 /run/found /run/reported | wc -l) <= 1))
	(($(wc -l </run/reported) >= 59))
}
check "what it had found before it was killed is reported by the one that goes on" reported_later
good base 16384 18431
patch main
dmremap close r

# It cannot be read at first, and the spare takes its time.
disk shaky 1 badblocks_once=1
lower late /dev/spare 0 16384
blank /dev/spare
dmremap open r /dev/mapper/main /dev/mapper/late
patch main 16384 2048 linear /dev/shaky 0
for n in 0 4; do bad shaky $((1000 + n)); done
patch late 0 16384 delay /dev/spare @ 0 /dev/spare @ 1500
in_background() {
	exits 1 dmremap scrub r --from 16384 --to 18432
	grep -A 1 "relocated from now on: 1 unit" /run/said
	grep -x "    17384 8" /run/said
}
check "what the kernel relocates in the background is in the report, although that takes longer than the scrub" in_background
patch late
patch main
dmremap close r
dmsetup remove late
remove_disk shaky

# --- Devices that cannot record anything

begin
patch main 8192 6144 linear /dev/mapper/failing 0
fails() {
	dmremap set r pending_reads fail
	says 1 "pending from now on" dmremap scrub r --from 8192 --to 8208
	expect 2 eval 'in_state pending | wc -l'
	costs 0 0 failing says 0 "nothing new" dmremap scrub r --from 8192 --to 8208
	dmremap set r pending_reads retry
	dmremap forget r 0 16M
}
check "with pending_reads fail: the same, and what is pending is not read again" fails
full() {
	not dmremap mark r 16384 16384
	expect full field r mode
	says 1 "The spare is full" dmremap scrub r --from 8192 --to 8208
	grep -x "    8192 16" /run/said
}
check "with a full spare, it says what cannot be read" full
dmremap close r
dmremap open r /dev/mapper/main /dev/spare --readonly
readonly_() {
	says 1 "read-only" dmremap scrub r --from 8192 --to 8208
	grep "cannot be read" /run/said
	expect readonly field r mode
}
check "nor does a device opened read-only hide it" readonly_
dmremap close r
begin
gone() {
	echo "0 32768 error" | reload main
	says 4 "does not answer (tripped)" dmremap scrub r
	expect tripped field r mode
	says 4 "does not answer (tripped)" dmremap scrub r

	patch main
	dmremap reset r
	expect "active 0 0" field r mode relocated pending
	says 0 "nothing new" dmremap scrub r
}
check "a disk that is gone is no disk of bad sectors, and when it is back the scrub goes on" gone
has_lock() { grep ":$(stat -c %i "$1") " /proc/locks; }
alone() {
	local scrub status=0
	rm -f /run/dmremap/r.scrub
	dmremap scrub r --rate 1 >/dev/null &
	scrub=$!
	soon has_lock /run/dmremap/r.scrub
	says 4 "is being scrubbed already" dmremap scrub r
	kill $scrub
	wait $scrub || status=$?
	((status == 143))
	says 4 "there is nothing from sector 5 to before 5" dmremap scrub r --from 5 --to 5
	says 4 "there is nothing from" dmremap scrub r --to 1G
	dmsetup suspend r
	says 4 "is suspended" dmremap scrub r
	dmsetup resume r
}
check "a device is scrubbed by one at a time, and within its bounds" alone
dmremap close r
dmsetup remove main
dmsetup remove failing
dmsetup remove dead
remove_disk base spare
