#!/bin/bash
# `degraded` and `tripped` end by themselves; each change of mode, a main that takes no writes and a replica that fails are told,
# by an event and by a line that no flood of other lines drops.
# kernels: stock (debug)
# waits: for the spare to be asked again
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 33

modprobe dm-flakey
main=32768 spare=8192
disk base 20
data /run/model $main
data /run/data 8
begin() { # [FEATURE...]
	lower main /dev/base 0 $main
	lower spare /dev/base $main $spare
	put /run/model /dev/mapper/main
	blank /dev/mapper/spare
	create r /dev/mapper/main /dev/mapper/spare unit_sectors 8 "$@"
}
end() {
	dmsetup remove r
	dmsetup remove main
	dmsetup remove spare
	good base 0 40959
}

# flood COMMAND...: while it runs, lines about bad sectors go to the log as fast as they can; it begins when a limit has dropped
# some. The sectors are 16384 to 20479. Their units are forgotten after each pass: so there are always some that are new, and
# half of the slots stay free.
flood() {
	local flooding status
	bad base 16384 20479
	cat >/run/flood.py <<-'P'
		import mmap, os
		fd, buffer = os.open("/dev/mapper/r", os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
		while os.path.exists("/run/flooding"):
		    for sector in range(16384, 20480, 8):
		        try:
		            os.preadv(fd, [buffer], sector * 512)
		        except OSError:
		            pass
		    # Not while the spare refuses writes.
		    os.system("dmsetup message r 0 forget 16384 4096")
	P
	mark
	: >/run/flooded
	touch /run/flooding
	python3 -S /run/flood.py >>/run/flooded &
	flooding=$!
	# The first pass is through.
	run soon test -s /run/flooded
	((status)) || run "$@"
	rm /run/flooding
	wait $flooding
	return "$status"
}
says() { soon eval "log | grep -F '$1'"; }
told() { # TEXT COUNT
	local count
	count=$(log | grep -cF "$1" || true)
	expect "$2" echo "$count"
}

# --- Degraded

begin
bad base 1003
put /run/data /dev/mapper/r 1000
refuse() { patch spare 0 $spare flakey /dev/base @ 0 3600 1 error_writes; }
before=$(events r)
mark
degrades() {
	refuse
	bad base 2003
	not put /run/data /dev/mapper/r 2000
	expect degraded field r mode
	soon eval '(($(events r) > before))'
	says "mode is now degraded"
}
check "the spare refuses writes: a write that needs a slot fails, and the mode is degraded" degrades
check "what is in slots is read, and what is healthy" eval '
	same /run/data /dev/mapper/r 1000 && put /run/data /dev/mapper/r 3000 && same /run/data /dev/mapper/r 3000'
stays() { # it is asked again and again, to no avail
	sleep 5
	expect degraded field r mode
	told "mode is now active" 0
}
check "as long as the spare refuses, it stays so" stays
before=$(events r)
ends() {
	patch spare
	soon expect active field r mode
}
check "the spare takes writes again: active, without a message or a write" ends
check "an event says so" eval '(($(events r) > before))'
check "and a line in the log, one for each change" eval '
	says "mode is now active" && told "mode is now active" 1 && told "mode is now degraded" 1'
needs_slot() {
	put /run/data /dev/mapper/r 2000
	same /run/data /dev/mapper/r 2000
	expect 2 field r relocated
}
check "a write that needs a slot gets one" needs_slot
suspended() {
	refuse
	bad base 2103
	not put /run/data /dev/mapper/r 2100
	expect degraded field r mode
	dmsetup suspend r
	patch spare
	sleep 3
	dmsetup resume r
	soon expect active field r mode
}
check "also if it was suspended meanwhile" suspended
removed() {
	refuse
	not put /run/data /dev/mapper/r 2100
	expect degraded field r mode
	dmsetup remove r
	patch spare
	create r /dev/mapper/main /dev/mapper/spare
	expect "active 2" field r mode relocated
}
check "and it can be removed then" removed
replicas() { # good|bad
	local k area
	for k in 0 1; do
		area=$(($(od -An -t u8 -j $((136 + 8 * k)) -N 8 /dev/mapper/spare) * 8 + main))
		"$1" base $area $((area + 8 * $(od -An -t u8 -j 104 -N 8 /dev/mapper/spare) - 1))
	done
}
tables() {
	replicas bad
	not put /run/data /dev/mapper/r 2100
	expect degraded field r mode
	replicas good
	soon expect active field r mode
	put /run/data /dev/mapper/r 2100
	same /run/data /dev/mapper/r 2100
}
check "just the table blocks cannot be written, and then they can: the same" tables
gone() {
	patch spare 0 $spare error
	bad base 2203
	not put /run/data /dev/mapper/r 2200
	patch spare
	soon expect active field r mode
	put /run/data /dev/mapper/r 2200
}
check "the spare is gone, and comes back: the same" gone

# --- In a flood

in_flood() {
	local n
	for n in 1 2 3 4; do
		refuse
		bad base $((2300 + 8 * n))
		not put /run/data /dev/mapper/r $((2300 + 8 * n))
		soon told "mode is now degraded" $n
		patch spare
		soon told "mode is now active" $n
		soon expect active field r mode
	done
}
check "degraded and its end are told while the log is flooded" flood in_flood
was_flood() {
	local told made
	told=$(log | grep -c "sector .*pending" || true)
	made=$(awk '{ units += $1 } END { print units }' /run/flooded)
	echo "$told of $made were told"
	((told * 10 < made))
}
check "it was a flood: most of its lines were dropped" was_flood
end

begin
trips() {
	patch main 0 $main error
	says "mode is now tripped"
	patch main
	says "mode is now active"
	soon expect active field r mode
}
before=$(events r)
check "tripped and its end, too" flood trips
check "events say so" eval '(($(events r) > before))'
end

begin
resets() {
	patch main 0 $main error
	soon expect tripped field r mode
	# A main that does not answer trips again, after the reset.
	mark
	message r reset
	says "mode is now active"
	says "mode is now tripped"
	patch main
	soon expect active field r mode
}
check "reset, and tripped again: each is told" flood resets
end

begin spare_sectors 512
slots=$(field r slots)
slots=${slots#*/}
fills() {
	local n
	mark
	bad base 8192 16383
	for ((n = 0; n < slots; n++)); do put /run/data /dev/mapper/r $((8192 + 8 * n)); done
	expect full field r mode
	says "mode is now full"
	(($(log | grep -c "sector .*relocated") < slots))
}
check "full is told, and many lines about sectors are not" fills
not_full() {
	good base 8192 8199
	message r restore 8192 8
	dmsetup suspend r
	dmsetup resume r
	says "mode is now active"
}
check "so is its end" not_full
end

# --- A main that takes no writes

begin
refuse_main() { patch main 0 $main flakey /dev/base @ 0 3600 1 error_writes; }
cat >/run/writes.py <<'P'
"""Writes to so many units, one by one, from a sector on: how many succeeded and can be read back."""
import mmap, os, sys
fd, buffer, done = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096), 0
for n in range(int(sys.argv[2])):
    at = (int(sys.argv[1]) + 80 * n) * 512
    data = (b"%15d\n" % at) * 256
    try:
        buffer[:] = data
        os.pwritev(fd, [buffer], at)
        buffer[:] = bytes(4096)
        os.preadv(fd, [buffer], at)
        done += buffer[:] == data
    except OSError:
        pass
print(done)
P
writes() { python3 -S /run/writes.py "$@"; }
mark
some() {
	local n
	for ((n = 0; n < 40; n++)); do bad base $((80 * n)); done
	expect 80 writes 0 80
	told "takes no writes" 0
	good base 0 $((main - 1))
}
check "forty bad sectors among writes that succeed: nothing is said of main" some
before=$(events r)
no_writes() {
	refuse_main
	expect 200 writes 8 200
	expect "active" field r mode
}
check "main refuses all writes: they go to slots, and are read back" no_writes
check "the log says once that it takes no writes" eval 'says "takes no writes" && told "takes no writes" 1'
check "an event was raised" test "$(events r)" -gt "$before"
until_full() {
	local slots
	slots=$(field r slots)
	slots=$((${slots#*/} - ${slots%/*}))
	# In each unit that has no slot yet.
	python3 -S - $slots <<-'P'
		import mmap, os, sys
		fd, buffer, left = os.open("/dev/mapper/r", os.O_RDWR | os.O_DIRECT), mmap.mmap(-1, 4096), int(sys.argv[1])
		for unit in range(4096):
		    if unit % 10 > 1:
		        try:
		            os.pwritev(fd, [buffer], unit * 4096)
		            left -= 1
		        except OSError:
		            break
		assert left == 0, f"{left} slots left"
	P
	expect full field r mode
	says "mode is now full"
	told "takes no writes" 1
}
check "until the slots are full, and that is said as well" until_full
check "reads work, of slots and of main" eval '
	get /dev/mapper/r 8 8 | cmp -n 16 - <(printf "%15d\n" $((8 * 512))) && get /dev/mapper/r 8000 8 >/dev/null'
flooded() {
	end
	begin
	refuse_main
	flood eval 'expect 100 writes 8 100 && says "takes no writes" && told "takes no writes" 1'
}
check "it is said in a flood, too" flooded
end

# --- A replica

begin
areas=()
for k in 0 1; do areas+=($(($(od -An -t u8 -j $((136 + 8 * k)) -N 8 /dev/mapper/spare) * 8 + main))); done
blocks=$(od -An -t u8 -j 104 -N 8 /dev/mapper/spare)
replica() { "$1" base "${areas[$2]}" $((areas[$2] + 8 * blocks - 1)); }
mark
fails() { # REPLICA UNIT
	replica bad "$1"
	message r mark "$2"
	message r mark $(($2 + 8))
	message r mark $(($2 + 16))
	expect active field r mode
	says "metadata replica $1 cannot be written"
	told "cannot be written" 1
}
check "a replica that fails: the log says which, once" fails 1 4000
recovers() { # REPLICA UNIT
	told "can be written again" 0
	replica good "$1"
	message r mark "$2"
	message r mark $(($2 + 8))
	says "metadata replica $1 can be written again"
	told "can be written again" 1
}
check "and when it can be written again" recovers 1 4100
mark
check "the other one" fails 0 4200
check "and its end" recovers 0 4300
mark
check "again: it is said again" fails 0 4400
equal() {
	replica good 0
	message r check
	cmp <(get /dev/base "${areas[0]}" $((8 * blocks))) <(get /dev/base "${areas[1]}" $((8 * blocks)))
}
check "check makes both equal" equal
mark
told_in_flood() {
	replica bad 1
	message r mark 4500
	says "metadata replica 1 cannot be written"
	replica good 1
	message r mark 4600
	says "metadata replica 1 can be written again"
}
check "both are told in a flood" flood told_in_flood
end

# --- Lost

begin
mark
lost() {
	message r remap 800 8
	bad base $((main + $(slot_at /dev/mapper/spare "$(slot_of r 800)") + 2)) \
		$((main + $(slot_at /dev/mapper/spare "$(slot_of r 800)") + 4))
	not get /dev/mapper/r 800 8 >/dev/null
	# What was not tried when it was copied counts until it is read.
	expect "802-804" unreadable /dev/mapper/r 800 8 /run/model
	expect "active 3" field r mode lost_sectors
	message r reset
	expect "active 3" field r mode lost_sectors
}
check "status counts lost sectors" lost
end
remove_disk base
