#!/bin/bash
# What an administrator's scripts see: dmsetup wait returns for new entries and changes of mode; each number of dmsetup
# status; set and reset.
# kernels: stock (debug)
# vm: --smp 2
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 42

modprobe dm-delay
# Main's first half fails once where it is bad, the second half always.
disk shaky 4 badblocks_once=1
disk bad 4
disk spare 4
data /run/data 64
part /run/data 0 8 >/run/unit
part /run/data 0 1 >/run/sector
half=8192
# main [WORDS]: of the first half's target.
main() { echo "0 $half ${*:-linear /dev/shaky 0}" && echo "$half $half linear /dev/bad 0"; }
main | dmsetup create main
put /run/data /dev/mapper/main 2000
put /run/data /dev/mapper/main 3000
create r /dev/mapper/main /dev/spare unit_sectors 8 spare_sectors 1024
u64() { od -An -t u8 -j "$1" -N 8 /dev/spare | tr -d ' '; }
slot_sector() { echo $(($(u64 112) + 8 * $(message r query "$1" | cut -d ' ' -f 3))); }

# --- The numbers of status

# settled: status, once nothing changes it any more.
settled() {
	local now last=''
	for ((;;)); do
		now=$(dmsetup status r)
		[[ $now != "$last" || $now != *idle* ]] || break
		last=$now
		sleep 0.4
	done
	echo "${now//\// }"
}
# changes "FIELD±N..." COMMAND...: the command changes these numbers by so much, in status's order, and no others but
# commits.
changes() {
	local i before after found=()
	read -ra before < <(settled)
	"${@:2}"
	read -ra after < <(settled)
	after=("${after[@]:3:3}" "${after[@]:7}") before=("${before[@]:3:3}" "${before[@]:7}")
	for i in "${!fields[@]}"; do
		[[ ${after[i]} != "${before[i]}" && ${fields[i]} != commits ]] || continue
		found+=("${fields[i]}$(printf %+d $((after[i] - before[i])))")
	done
	expect "$1" echo "${found[*]}"
}
reading() { get /dev/mapper/r "$1" "$2" >/dev/null; }

sound() { put /run/data /dev/mapper/r 0 && same /run/data /dev/mapper/r 0; }
check "nothing that a sound disk does counts" changes "" sound
for n in 3 20 50; do bad bad $((1000 + n)); done
check "one read over three bad units: those behind the first are left for other reads" \
	changes "slots+1 pending+1 read_errors+1" not reading $((half + 1000)) 64
check "a read of a pending unit" changes "read_errors+1" not reading $((half + 1000)) 8
check "a write of a pending unit" \
	changes "relocated+1 pending-1 writes_redirected+1" put /run/unit /dev/mapper/r $((half + 1000))
for n in 3 20; do bad bad $((2000 + n)); done
check "one write over two bad units" changes "slots+2 relocated+2 write_errors+1 writes_recovered+1" \
	put /run/data /dev/mapper/r $((half + 2000))
check "a read of a relocated sector" changes "reads_redirected+1" reading $((half + 2003)) 1
check "a write of one" changes "writes_redirected+1" put /run/sector /dev/mapper/r $((half + 2003))
check "a flush" changes "" eval 'dd if=/run/data of=/dev/mapper/r bs=4096 conv=notrunc,fsync count=1 status=none'
bad shaky 2001
bad shaky 2005
check "a read of one unit that fails, and once more: relocated in the background" \
	changes "slots+1 relocated+1 read_errors+1 reads_recovered+1" reading 2000 8
check "with its data" eval 'part /run/data 0 8 >/run/part && same /run/part /dev/mapper/r 2000'
bad shaky 3003
check "a long read that fails once is recovered, and that is all" \
	changes "read_errors+1 reads_recovered+1" reading 3000 64
bad shaky 4003
check "a write that fails once" changes "write_errors+1 writes_recovered+1" put /run/data /dev/mapper/r 4000
check "mark" changes "slots+2 pending+2" message r mark 5000 16
check "restore" changes "slots-2 pending-2" message r restore 5000 16
check "remap" changes "slots+2 relocated+2" message r remap 5000 16
commits() {
	local before
	before=$(field r commits)
	message r mark 5200
	expect $((before + 1)) field r commits
	message r sync
	expect $((before + 1)) field r commits
}
check "commits: one for a marked unit, none for a sync with nothing to do" commits
bad spare "$(slot_sector $((half + 2003)))" $(($(slot_sector $((half + 2003))) + 7))
check "a write to a slot that fails" changes "slots_bad+1 write_errors+1 writes_recovered+1 writes_redirected+1" \
	put /run/sector /dev/mapper/r $((half + 2003))
area=$(($(u64 144) * 8))
bad spare $area $((area + 8 * $(u64 104) - 1))
check "a replica that fails" changes "slots+1 pending+1 metadata_errors+1" message r mark 5400
good spare $area $((area + 8 * $(u64 104) - 1))
message r sync
relocating() {
	local n
	main delay /dev/shaky 0 300 | reload main
	bad shaky 2201
	bad shaky 2205
	reading 2200 8
	for ((n = 0; n < 20; n++)); do
		[[ $(field r activity) != relocating ]] || break
		sleep 0.05
	done
	expect relocating field r activity
	settled
	expect "2200 relocated * ff" message r query 2200
}
check "activity says relocating while that goes on, and then idle" relocating
main | reload main
cleared() {
	(($(field r read_errors) && $(field r write_errors) && $(field r reads_redirected) && $(field r metadata_errors)))
	local kept
	kept=$(field r mode slots slots_bad relocated pending)
	message r reset
	expect "0 0 0 0 0 0 0 0" field r read_errors write_errors reads_recovered writes_recovered reads_redirected \
		writes_redirected commits metadata_errors
	expect "$kept" field r mode slots slots_bad relocated pending
}
check "reset clears counters, and nothing else" cleared

# --- Events

# A line whenever something happened.
cat >/run/watch <<'S'
#!/bin/bash
while event=$(dmsetup info -c --noheadings -o events r); do
	dmsetup status r
	dmsetup wait r "$event" >/dev/null || exit
done
S
chmod +x /run/watch
/run/watch >/run/watched 2>&1 &
# quiet: sets $lines to the watcher's lines, once there are no more to come.
quiet() {
	local before=-1
	while lines=$(wc -l </run/watched) && ((lines != before)); do
		before=$lines
		sleep 0.5
	done
}
# says FIELD VALUE COMMAND...: the command makes the watcher say so.
says() {
	local lines i n
	quiet
	"${@:3}"
	for i in "${!fields[@]}"; do [[ ${fields[i]} != "$1" ]] || break; done
	for ((n = 0; n < 200; n++)); do
		! tail -n "+$((lines + 1))" /run/watched | awk -v i=$((i + 4)) -v value="$2" '{ print $i == value }' | grep -q 1 ||
			return 0
		sleep 0.1
	done
	echo "the watcher said:" && tail -n "+$((lines + 1))" /run/watched && return 1
}
silent() {
	local lines before
	quiet
	before=$lines
	"$@"
	quiet
	expect "$before" echo "$lines"
}
# one_more FIELD COMMAND...: the command makes the watcher say that there is one more.
one_more() { says "$1" $(($(field r "$1") + 1)) "${@:2}"; }

usual() { put /run/data /dev/mapper/r $((half + 2000)) && reading $((half + 2000)) 64 && message r sync; }
check "healthy and redirected I/O raises no event" silent usual
bad bad 3003
check "a read that fails does" one_more pending not reading $((half + 3000)) 8
check "so does the write that relocates it" one_more relocated put /run/unit /dev/mapper/r $((half + 3000))
bad bad 3103
check "a write that fails" one_more relocated put /run/unit /dev/mapper/r $((half + 3100))
bad shaky 2401
bad shaky 2405
check "a read that is recovered, when its unit is relocated" one_more relocated reading 2400 8
check "mark" one_more pending message r mark 2600
check "remap" one_more relocated message r remap 2700

fill() {
	local at
	for ((at = 10000; at < 12000; at += 8)); do
		message r mark $at
		[[ $(field r mode) != full ]] || break
	done
}
check "the last slot: mode full" says mode full fill
check "a slot again: mode active" says mode active message r restore 10000 2000

replicas() { # good|bad
	local copy
	for copy in 144 136; do "$1" spare $(($(u64 $copy) * 8)) $((8 * ($(u64 $copy) + $(u64 104)) - 1)); done
}
no_replica() {
	replicas bad
	bad bad 3203
	not put /run/unit /dev/mapper/r $((half + 3200))
}
check "no replica can be written: mode degraded" says mode degraded no_replica
check "one can again: mode active" says mode active eval 'replicas good && message r sync'

# A dead disk: eight units in a row, and the disk does not answer.
dead() {
	local unit
	echo "0 $((2 * half)) error" | reload main
	for unit in {0..11}; do not put /run/unit /dev/mapper/r $((6000 + 8 * unit)); done
}
slots=$(field r slots)
check "main is gone: mode tripped" says mode tripped dead
check "and no slot was used" expect "$slots" field r slots
reset() {
	message r reset
	expect active field r mode
}
check "reset leaves it" says mode active reset
check "main is still gone: tripped again" says mode tripped dead
check "main is back: active, by itself" says mode active eval 'main | reload main'
written_again() {
	put /run/unit /dev/mapper/r 6000
	same /run/unit /dev/mapper/r 6000
	expect "6000 healthy - -" message r query 6000
}
check "and main takes writes again" written_again

# --- set

shows() { # FEATURE VALUE...
	local value
	for value in "${@:2}"; do
		message r set "$1" "$value"
		dmsetup table r | grep -w "$1 $value"
	done
}
check "set changes what dmsetup table shows" eval \
	'shows pending_reads fail retry && shows read_retries 0 10 2 && shows bad_on media io'
pending_reads() {
	message r mark 6200
	put /run/unit /dev/mapper/main 6200
	same /run/unit /dev/mapper/r 6200
	message r set pending_reads fail
	not get /dev/mapper/r 6200 8
	message r set pending_reads retry
	same /run/unit /dev/mapper/r 6200
}
check "pending_reads" pending_reads
read_retries() {
	message r set read_retries 0
	bad shaky 6303
	not get /dev/mapper/r 6303 1
	message r set read_retries 1
	bad shaky 6303
	get /dev/mapper/r 6303 1 | cmp - <(head -c 512 /dev/zero)
}
check "read_retries" read_retries
bad_on() {
	message r set bad_on media
	bad bad 3303
	changes "" not put /run/unit /dev/mapper/r $((half + 3300))
	message r set bad_on io
	changes "slots+1 relocated+1 write_errors+1 writes_recovered+1" put /run/unit /dev/mapper/r $((half + 3300))
}
check "bad_on" bad_on
loads_again() {
	message r set read_retries 7
	dmsetup table r | reload r
	dmsetup table r | grep "read_retries 7"
}
check "the table with what was set loads again" loads_again
dmsetup remove r
wait # for the watcher, which ends with the device
dmsetup remove main
remove_disk shaky bad spare
