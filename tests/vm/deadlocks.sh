#!/bin/bash
# The preconditions of the three deadlocks of an earlier implementation, one by one, with the metadata device stalled:
# presuspend is back at once all the same, and suspend and remove end once that device answers, with nothing lost.
# The same three bugs put back: tests/mutations/deadlock-*.patch. deadlocks.sh SECTION: 1, 2 or 3 only.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
only=${1:-}
if [[ -n $only ]]; then plan 5; else plan 13; fi

# --- What happened when, from the kernel's trace (µs)

trace=/sys/kernel/tracing
modprobe dm-delay
[[ -e $trace/trace ]] || mount -t tracefs tracefs $trace
echo "p:entry dm_mod:dm_table_presuspend_targets" >$trace/kprobe_events
echo "r:exit dm_mod:dm_table_presuspend_targets" >>$trace/kprobe_events
echo 1 >$trace/events/kprobes/enable
for event in queue_work execute_start execute_end; do echo 1 >$trace/events/workqueue/workqueue_$event/enable; done
limit=1000000  # µs
forever=600000 # ms
# fresh: forgets what was traced.
fresh() { echo >$trace/trace; }
# attempt: the next device that is suspended is r. (Others are before and after that.)
attempt() { echo attempt >$trace/trace_marker; }
# presuspend: how long r's took, if it is back.
presuspend() {
	awk '{ for (i = 3; i < 6; i++) if ($i ~ /^[0-9]+\.[0-9]+:$/) at = $i * 1000000 }
		/: attempt$/ { entry = back = 0 } /: entry: / && !entry { entry = at } /: exit: / && entry && !back { back = at }
		END { if (!back) exit 1; print int(back - entry) }' $trace/trace
}
returned() {
	local us
	us=$(presuspend) && ((us < limit))
}
took() { echo "# presuspend took $(presuspend || echo more than ?) µs"; }
# works_are "QUEUED BEGUN ENDED": so often this happened to the work of the lazy sync.
works_are() {
	expect "$1" awk '!/dm_remap.*8LazySync/ { next }
		/: workqueue_queue_work:/ { queued++ } /: workqueue_execute_start:/ { begun++ } /: workqueue_execute_end:/ { ended++ }
		END { print queued + 0, begun + 0, ended + 0 }' $trace/trace
}
# recovering: a failed request is being recovered.
recovering() { grep -q 'workqueue_execute_start:.*dm_remap2dm3bio8deferred3run' $trace/trace; }

# --- Devices; answers of the metadata, all that is before the slots on the spare, can be held back

disk disk 40
disk sparedisk 16
dmsetup create main --table "0 81920 linear /dev/disk 0"
data /run/data 8
for first in 1000 2000 3000 4000 5000 6000 7000 8000; do bad disk $first $((first + 7)); done
create r /dev/mapper/main /dev/sparedisk unit_sectors 8
dmsetup remove r
slots=$(od -An -t u8 -j 112 -N 8 /dev/sparedisk)
dmsetup create metadata --table "0 $((slots)) linear /dev/sparedisk 0"
dmsetup create spare <<-TABLE
	0 $((slots)) linear /dev/mapper/metadata 0
	$((slots)) $((32768 - slots)) linear /dev/sparedisk $((slots))
TABLE
again() { create r /dev/mapper/main /dev/mapper/spare; }
again
stall() { dmsetup suspend --noflush --nolockfs metadata; }
answer() { dmsetup resume metadata; }
metadata_is() {
	dmsetup suspend --noflush --nolockfs metadata
	dmsetup load metadata --table "0 $((slots)) $*"
	dmsetup resume metadata
}

# ended PID: the process ends soon, and well.
ended() { soon eval "! kill -0 $1 2>/dev/null" && wait "$1"; }
# fails_to_read SECTOR: a read that leaves a pending entry, for the lazy sync to commit.
fails_to_read() { not get /dev/mapper/r "$1" 1; }
in_flight() { soon eval "((\$(awk '{ print \$1 + \$2 }' /sys/dev/block/$(dmsetup info -c --noheadings -o major,minor r)/inflight) >= $1))"; }
committed() { # SECTOR...: these are pending on the spare, and nothing else is new.
	local sector
	for sector; do expect "$sector pending 0" eval "list r | grep '^$sector '"; done
}

# --- (1) Teardown with metadata work running, and queued again while it runs; with work that is only queued, see (3)

teardown() { # SECTOR SECTOR COMMAND...
	local remover
	fresh
	stall
	fails_to_read "$1"
	soon works_are "1 1 0"
	fails_to_read "$2"
	# The work of the read itself may still be on its way out.
	soon works_are "2 1 0"
	attempt
	"${@:3}" &
	remover=$!
	soon returned
	sleep 0.5
	kill -0 $remover # it waits for the work
	answer
	ended $remover
}
if [[ ${only:-1} == 1 ]]; then
	check "remove while metadata work runs and is queued again: presuspend is back at once" teardown 1000 2000 dmsetup remove r
	took
	again
	check "and remove waited for the spare's answer: both entries are there" committed 1000 2000
	check "suspend likewise" teardown 3000 4000 dmsetup suspend r
	took
	dmsetup remove r
	again
	check "and both entries are there" committed 3000 4000
fi

# --- (2) presuspend while a commit is slow and bios wait for it

# commit_waits COMMAND...: six writes to bad sectors, with their commit under way, while the command runs.
commit_waits() {
	local writers=() writer sector suspender
	fresh
	eval "$1"
	for sector in 10000 11000 12000 13000 14000 15000; do
		bad disk $sector
		put /run/data /dev/mapper/r $sector &
		writers+=($!)
	done
	in_flight 6
	sleep 0.5
	attempt
	"${@:3}" &
	suspender=$!
	soon returned
	for writer in "${writers[@]}"; do kill -0 "$writer"; done
	kill -0 $suspender
	eval "$2"
	ended $suspender
	for writer in "${writers[@]}"; do ended "$writer"; done
}
written() { for sector in 10000 11000 12000 13000 14000 15000; do same /run/data /dev/mapper/r $sector; done; }
if [[ ${only:-2} == 2 ]]; then
	check "suspend while a commit is stalled and bios wait for it: presuspend is back at once" \
		commit_waits stall answer dmsetup suspend r
	took
	dmsetup resume r
	check "and the writes succeeded, their entries are there" eval 'written && expect 6 field r relocated'
	message r restore 0 20000 >/run/restored || true
	# dm-delay lets go of what it holds when its table is replaced: so nothing here depends on how fast the machine is.
	check "suspend without flush, over metadata that is slow to write: likewise" \
		commit_waits "metadata_is delay /dev/sparedisk 0 0 /dev/sparedisk 0 $forever" "metadata_is linear /dev/sparedisk 0" \
		dmsetup suspend --noflush --nolockfs r
	took
	dmsetup resume r
	check "and the writes succeeded" written
fi

# --- (3) presuspend with lazy work queued that does not run: the queue runs as many works as it may, 1,024, all of them
# writes that wait for the stalled spare, and more wait for their turn

many=1200
queued() {
	local reader writers suspender
	# Each attempt at the sectors that the read is for takes a while; `gate` holds all further ones back, then fails them.
	dmsetup create late --table "0 8 delay /dev/disk 5000 2000"
	dmsetup create gate --table "0 8 linear /dev/mapper/late 0"
	reload main <<-TABLE
		0 5000 linear /dev/disk 0
		5000 8 linear /dev/mapper/gate 0
		5008 76912 linear /dev/disk 5008
	TABLE
	stall
	fresh
	fails_to_read 5000 &
	reader=$!
	soon recovering
	dmsetup suspend --noflush --nolockfs gate
	kill -0 $reader
	# A sector of each of so many units, all of them bad.
	fio --name=full --filename=/dev/mapper/r --direct=1 --ioengine=libaio --iodepth=$many --rw=write:3584 --bs=512 \
		--offset=$((32000 * 512)) --size=$((many * 4096)) --io_size=$((many * 512)) --output=/run/fio &
	writers=$!
	in_flight $((many + 1))
	works_are "0 0 0"
	dmsetup load gate --table "0 8 linear /dev/disk 5000"
	dmsetup resume gate
	ended $reader
	works_are "1 0 0"
	attempt
	dmsetup suspend r &
	suspender=$!
	soon returned
	kill -0 $suspender
	answer
	ended $suspender
	ended $writers
	works_are "1 0 0" # it was cancelled
}
if [[ ${only:-3} == 3 ]]; then
	# So many slots are in use from now on that nobody has to wait for more of the table.
	message r mark 50000 $((8 * (many + 100)))
	message r forget 50000 $((8 * (many + 100)))
	bad disk 32000 $((32000 + 8 * many - 1))
	message r set read_retries 10
	before=$(field r relocated)
	check "suspend with lazy work queued behind $many others: presuspend is back at once, and cancels it" queued
	took
	check "then remove" dmsetup remove r
	again
	check "and the entries are there: postsuspend committed the last one" committed 5000
	check "with one for each write" expect $((before + many)) field r relocated
fi

dmsetup remove r
check "the module can go" rmmod dm-remap
