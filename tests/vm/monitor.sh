#!/bin/bash
# dmremap monitor: a flood is one mail; a change of mode is never missed, whatever comes and goes; the metrics are such that
# Prometheus takes them at any moment. Argument: how many versions of them are read.
# kernels: stock
# vm: --smp 2 --extras --include docs/json-schema
# waits: for what is told later
# args: 100
# all-args: 1000
# shellcheck source=tests/vm/lib.sh disable=SC2016
. /host/lib.sh
plan 15

versions=$1

# 16384 units, and some more than 10,800 slots.
disk main 64
disk spare 43
dmremap open r /dev/main /dev/spare

# Journald's place, as far as one who writes to it can tell.
mkdir -p /run/systemd/journal
cat >/run/journald.py <<'P'
import json, socket
listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
listener.bind("/run/systemd/journal/socket")
with open("/run/journal", "w", buffering=1) as out:
    while True:
        lines = listener.recv(1 << 20).decode().splitlines()
        print(json.dumps(dict(line.split("=", 1) for line in lines)), file=out)
P
python3 /run/journald.py &
journald=$!
until [[ -S /run/systemd/journal/socket ]]; do sleep 0.1; done

cat >/usr/local/bin/sendmail <<'S'
#!/bin/sh
mail=$(mktemp /run/half.XXXXXX)
cat >"$mail"
mkdir -p /run/mails
mv "$mail" "/run/mails/$(ls /run/mails | wc -l)"
S
cat >/run/tell <<'S'
#!/bin/sh
echo "$1 $2 $DMREMAP_NEW $DMREMAP_MODE" >>/run/calls
S
chmod +x /usr/local/bin/sendmail /run/tell
: >/run/calls
mails() { find /run/mails -type f 2>/dev/null | wc -l; }
calls() { grep -c "^$1" /run/calls; }
told() { soon grep -q "$1" /run/calls; }

# --- Metrics, written as fast as it goes, and read all the time, by promtool, too

# reader.py FILE COUNT: reads the file until so many versions of it were seen, each of which must be whole. Each is a line of
# /run/progress.
cat >/run/reader.py <<'P'
import os, sys, time
path, wanted = sys.argv[1], int(sys.argv[2])
last = ("dm_remap_metadata_errors_total{", "# TYPE dm_remap_metadata_errors_total counter")
seen = set()
progress = open("/run/progress", "a", buffering=1)
while len(seen) < wanted:
    with open(path) as file:
        stat, text = os.fstat(file.fileno()), file.read()
    version = (stat.st_ino, stat.st_mtime_ns)
    if version not in seen:
        print("read", file=progress)
    seen.add(version)
    time.sleep(0.05)
    assert text.endswith("\n") and text.splitlines()[-1].startswith(last), text
P
gunzip /usr/bin/promtool.gz
# It tells nothing of counts, which are the other's matter.
dmremap monitor --state /run/state --interval 100ms --collect 10h --textfile /run/second.prom >/dev/null &
writer=$!
soon test -e /run/second.prom
{
	status=0
	python3 /run/reader.py /run/second.prom "$versions" || status=$?
	echo $status
} >/run/read 2>&1 &
reader=$!
{
	times=0 status=0
	while ((status == 0)) && { ((times < 5)) || [[ -e /proc/$reader ]]; }; do
		promtool check metrics </run/second.prom || status=$?
		times=$((times + 1))
		echo checked >>/run/progress
		sleep 3
	done
	kill $writer
	echo "$status $times"
} >/run/checked 2>&1 &
checker=$!

# --- What is told

# It looks by itself once an hour: all that it sees in time, it sees by events.
dmremap monitor --mail root --program /run/tell --interval 1h --textfile /run/first.prom --json >/run/told &
monitor=$!
soon test -e /run/first.prom
sees_new_device() {
	grep 'dm_remap_info{device="r",uuid="REMAP-.*",main="/dev/main",spare="/dev/spare"} 1' /run/first.prom
	expect "" cat /run/told
}
check "a device that is well is nothing to tell of" sees_new_device

# --- 10,000 new entries

flood() {
	local at
	for ((at = 0; at < 9800; at += 200)); do message r mark $((at * 8)) 1600; done >/dev/null
	message r remap $((9800 * 8)) 1600
	expect "200 9800" field r relocated pending
}
check "10,000 new entries within a minute" flood
one_mail() {
	told "pending"
	told "relocated"
	soon expect 1 mails
	expect "3" eval 'wc -l </run/calls'
	expect "1" calls "pending /dev/mapper/r 9800 active$"
	expect "1" calls "relocated /dev/mapper/r 200 active$"
	expect "1" calls "low-slots /dev/mapper/r"
	grep "9800 new units cannot be read (pending), 9800 in all; 10000 new in 24 h, the spare is full in" /run/told
	grep "^Subject: dm-remap on .*: r: only .* slots of .* left on the spare, .* (and 2 more)$" /run/mails/0
	grep "^r: needs attention$" /run/mails/0
}
check "are one mail, and one call of the program for each kind of change" one_mail
documents() {
	python3 -c 'import json, jsonschema, sys
schema = json.load(open("/host/json-schema/monitor.json"))
documents = [json.loads(line) for line in open("/run/told")]
for document in documents: jsonschema.validate(document, schema, jsonschema.Draft202012Validator)
assert [d["event"] for d in documents] == ["low-slots", "pending", "relocated"]'
}
check "what is printed as JSON is what the schema says" documents
journal() {
	expect "r 9800 4 active REMAP-*" jq -r 'select(.DMREMAP_EVENT == "pending") |
		[.DMREMAP_NAME, .DMREMAP_NEW, .PRIORITY, .DMREMAP_MODE, .DMREMAP_UUID] | join(" ")' /run/journal
	expect "3" eval 'wc -l </run/journal'
}
check "and in the journal there is an entry with fields for each" journal

# --- Another table, which reads its entries

# The spare takes 5 s for each read: all that is to be seen meanwhile takes less.
slow() { echo "0 $(blockdev --getsz /dev/spare) delay /dev/spare 0 5000 /dev/spare 0 0" | dmsetup create slow; }
load() { # SPARE
	dmsetup load r --table "0 131072 remap /dev/main 0 $1 0"
	dmsetup resume r
}
# looks: the monitor has looked at all devices, and began that after now. Any device that comes or goes makes it look.
looks() {
	local before
	# The first one may have begun before.
	for _ in 1 2; do
		before=$(version)
		dmsetup create nudge --table "0 8 error"
		dmsetup remove nudge
		soon eval '[[ $(version) != "$before" ]]'
	done
}
version() { stat -c "%i %y" /run/first.prom; }
unread() {
	local before
	before=$(</run/calls)
	slow
	load /dev/mapper/slow &
	# It is in its place, and knows nothing yet.
	soon expect "active 0 0 " eval 'echo "$(field r mode pending relocated) $(dmsetup info -c --noheadings -o suspended r | sed s/Suspended//)"'
	looks
	expect "active 0 0" field r mode pending relocated
	grep 'dm_remap_units{device="r",state="pending"} 9800' /run/first.prom
	wait $!
	expect "active 9800 200" field r mode pending relocated
	looks
	grep 'dm_remap_units{device="r",state="pending"} 9800' /run/first.prom
	load /dev/spare
	dmsetup remove slow
	for _ in {1..20}; do load /dev/spare; done
	looks
	grep 'dm_remap_units{device="r",state="pending"} 9800' /run/first.prom
	expect "$before" cat /run/calls
}
check "a table that has not read its entries is no news" unread

# --- Modes

u64() { od -An -t u8 -j "$1" -N 8 /dev/spare | tr -d ' '; }
areas=("$(u64 144)" "$(u64 136)" "$(u64 104)")
spare_fails() { # bad|good
	local copy
	for copy in "${areas[@]:0:2}"; do "$1" spare $((copy * 8)) $((8 * (copy + areas[2]) - 1)); done
}
degraded() {
	spare_fails bad
	not message r mark $((12000 * 8))
	expect degraded field r mode
	told "mode /dev/mapper/r 1 degraded"
	soon expect 2 mails
	grep "^Subject: .*: r: mode is degraded, it was active$" /run/mails/1
	grep "does not take writes" /run/mails/1
}
check "another mode is told at once, in the hold-off, too" degraded
recovers() {
	spare_fails good
	told "mode /dev/mapper/r 1 active"
	soon expect active field r mode
}
check "and so is its end" recovers

# Devices come, go and get other names all the time.
come_and_go() {
	local n
	for ((n = 0; ; n++)); do
		dmsetup create "busy$n" --table "0 8 error"
		dmsetup rename "busy$n" "other$n"
		dmsetup remove "other$n"
		# On an emulated processor that is often enough, and leaves something for others.
		sleep 0.2
	done
}
come_and_go >/dev/null 2>&1 &
busy=$!
renamed() {
	dmsetup rename r new
	dmsetup suspend new
	dmsetup resume new
	dd if=/dev/zero of=/dev/mapper/new bs=4096 count=1 oflag=direct status=none
	# Full is a mode of its own.
	not message new mark 0 131072
	expect full field new mode
	told "mode /dev/mapper/new 1 full"
}
check "of a device that got another name while others come and go, it is not missed" renamed
reloaded() {
	local table
	table=$(dmsetup table new)
	message new forget 0 131072
	echo "0 131072 error" | dmsetup create gone
	dmsetup load new --table "0 131072 remap /dev/mapper/gone 0 /dev/spare 0"
	dmsetup suspend new
	dmsetup resume new
	not get /dev/mapper/new 8000 8
	local unit
	for unit in {0..11}; do not dd if=/dev/zero of=/dev/mapper/new bs=4096 seek=$((1000 + unit * 9)) count=1 oflag=direct status=none; done
	expect tripped field new mode
	told "mode /dev/mapper/new [0-9]* tripped"
	dmsetup load new --table "$table"
	dmsetup suspend --noflush new
	dmsetup resume new
}
check "nor after another table was loaded" reloaded
kill $busy
wait $busy || true
closed() {
	dmsetup remove new
	dmsetup remove gone
	soon not grep -q 'device="new"' /run/first.prom
	dmremap open back /dev/main /dev/spare
	soon grep -q 'device="back"' /run/first.prom
}
check "a device that is closed and opened again is the same one" closed

# --- The end

kill -TERM $monitor
status=0
wait $monitor || status=$?
check "it ends when it is told to" test $status = 0
once() {
	# What was held back: a mode that was told before, and the unit that was written.
	not dmremap monitor --once >/run/said
	expect "back: mode is active, it was tripped
back: 1 new unit relocated, 201 in all; *" cat /run/said
	expect 2 eval 'wc -l </run/said'
	message back mark $((16000 * 8))
	not dmremap monitor --once >/run/said
	# 10,000, what there was room for, and this one; none of them twice.
	expect "back: 1 new unit cannot be read (pending), *; 108[34][0-9] new in 24 h, the spare is full in *" cat /run/said
	expect 1 eval 'wc -l </run/said'
	expect "" dmremap monitor --once
}
check "the next one knows what was told" once

# --- Metrics

progress() { stat -c %s /run/progress; }
metrics() {
	local before
	# As long as it gets on, however slow this machine is.
	while [[ -e /proc/$checker ]]; do
		before=$(progress)
		soon eval '[[ ! -e /proc/$checker ]] || (($(progress) > before))'
	done
	cat /run/checked /run/read
	local status times
	read -r status times < <(tail -n 1 /run/checked)
	((status == 0 && times >= 5))
	expect "0" tail -n 1 /run/read
}
check "promtool accepts the metrics while they are written $versions times" metrics
escaped() {
	dmremap close back
	# Dmsetup writes what is special in a name in its own way.
	dmsetup create 'a"b\c' --table "$(table /dev/main /dev/spare)"
	not dmremap monitor --once --state /run/state2 --textfile /run/third.prom
	promtool check metrics </run/third.prom
	grep 'dm_remap_mode{device="a.*,mode="active"} 1' /run/third.prom
	dmsetup remove 'a"b\c'
}
check "and those of a device with a strange name" escaped
kill $journald
