#!/bin/bash
# What a person sees of a disk that dies: the map of a device in use and what is new in it, and what the drive says of itself.
# kernels: stock
# disks: 64M,ata 64M,nvme
# vm: --extras --include docs/json-schema
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 10

modprobe -a ahci sd_mod nvme
until [[ -b /dev/sda && -b /dev/nvme0n1 ]]; do sleep 0.1; done
disk main 16
disk spare 8
disk other 8
# none NAME: status tells nothing of a drive.
none() {
	dmremap status "$1" --json >/run/status || true
	valid status /run/status
	expect null jq .devices[0].smart /run/status
}
valid() {
	python3 -c 'import json, jsonschema, sys
schema, document = (json.load(open(path)) for path in sys.argv[1:])
jsonschema.validate(document, schema, jsonschema.Draft202012Validator)' "/host/json-schema/$1.json" "$2"
}

# --- The map

bad main 1003 1004
bad main 5000
dmremap open r /dev/main /dev/spare
not get /dev/mapper/r 1000 8
not get /dev/mapper/r 5000 1
dmremap remap r 2000 24
maps() {
	dmremap map r --json >/run/before
	valid map /run/before
	dmremap list r >/run/list
	# A unit each, of the runs of units that it has.
	jq -r '.unit_sectors as $u | .entries[] | .state as $s | range(.sector; .sector + .count; $u) | "\(.) \($s)"' /run/before |
		cmp - <(awk '{ print $1, $2 }' /run/list)
	expect "4091 2 3 0" jq -r '"\(.units.healthy) \(.units.pending) \(.units.relocated) \(.units.lost)"' /run/before
}
check "the map of a device in use has what the kernel lists" maps
draws() {
	dmremap map r >/run/drawn
	grep "2 units: cannot be read until written" /run/drawn
	cd /run
	dmremap map r -o picture.svg
	python3 -c 'import xml.etree.ElementTree as e; print("\n".join(e.parse("/run/picture.svg").getroot().itertext()))' | grep . >/run/text
	grep -A 1 -x pending /run/text | grep -x "2 units"
}
check "it is drawn in the terminal, and as SVG that is well-formed" draws
since() {
	bad main 9000
	not get /dev/mapper/r 9000 1
	data /run/data 8
	put /run/data /dev/mapper/r 5000
	dmremap map r --since /run/before >/run/drawn
	grep ": 1 unit worse, 1 better" /run/drawn
	expect 1 eval "tr -cd '^' </run/drawn | wc -c"
	dmremap map r --since /run/before --json >/run/after
	valid map /run/after
	expect 9000 jq '.entries[] | select(.worse).sector' /run/after
}
check "what came since a report is marked" since
closed() {
	dmremap close r
	dmremap map /dev/spare --since /run/before --json >/run/closed
	expect 9000 jq '.entries[] | select(.worse).sector' /run/closed
	dmremap map /dev/spare --json | jq -e '.units.pending == 2'
	dmremap open r /dev/main /dev/spare
}
check "the map of its spare is the same when it is closed" closed
of_another() {
	dmremap open s /dev/nvme0n1 /dev/other
	fails_with "of another device" dmremap map s --since /run/before
	fails_with "No such file" dmremap map none
	dmremap close s
}
check "a report of another device is refused" of_another

# --- What drives say

printf 'label: dos\nstart=2048,size=65536\n' | sfdisk -q /dev/sda
until [[ -b /dev/sda1 ]]; do sleep 0.1; done
dmsetup create volume --table "0 65536 linear /dev/sda1 0"
blank /dev/other
dmremap open a /dev/mapper/volume /dev/other
# smart NAME: what the drive of a device says. smartctl takes its time under emulation.
smart() {
	dmremap status "$1" --json >/run/status || true
	valid status /run/status
	jq -ce '.devices[0].smart' /run/status
}
ata() {
	soon smart a
	expect '"/dev/sda"' jq .devices[0].smart.drive /run/status
	expect "false 0" jq -r '.devices[0].smart | "\(.failing) \(.reallocated)"' /run/status
	soon eval 'dmremap status a | grep "drive       /dev/sda says: not failing"'
}
check "status shows what an ATA disk says, through a volume and a partition" ata
nvme() {
	dmremap close a
	blank /dev/other
	dmremap open n /dev/nvme0n1 /dev/other
	soon smart n
	expect "false 0 0" jq -r '.devices[0].smart | "\(.failing) \(.media_errors) \(.critical_warning)"' /run/status
	dmremap close n
}
check "and what an NVMe drive says" nvme
check "a device that is on no drive has nothing to say" none r

blank /dev/other
dmremap open a /dev/mapper/volume /dev/other
# says JSON [STATUS]: what smartctl answers from now on.
mkdir -p /run/bin
says() {
	printf '#!/bin/sh\necho "$*" >>/run/asked\ncat <<"E"\n%s\nE\nexit %d\n' "$1" "${2:-0}" >/run/bin/smartctl
	chmod +x /run/bin/smartctl
}
sick() {
	PATH=/run/bin:$PATH
	says '{"device": {"type": "sat"}, "model_name": "OLD", "smart_status": {"passed": false}, "ata_smart_attributes": {"table": [
		{"id": 5, "name": "Reallocated_Sector_Ct", "raw": {"value": 24, "string": "24"}},
		{"id": 197, "name": "Current_Pending_Sector", "raw": {"value": 8, "string": "8"}}]}}' 8
	# What the drive says is no finding of ours.
	soon eval 'dmremap status a >/run/said && grep "drive  " /run/said'
	grep "drive       /dev/sda says: failing, 8 sectors pending, 24 reallocated" /run/said
	grep "it is about to fail" /run/said
	grep -- "-n standby,3 .* /dev/sda$" /run/asked
	says '{"smartctl": {"exit_status": 3, "messages": [{"string": "Device is in STANDBY mode, exit(3)"}]}}' 3
	soon eval 'dmremap status a | grep "drive       /dev/sda sleeps, and was not asked"'
}
check "pending and reallocated sectors of the drive stand beside ours" sick
silent() {
	local said
	for said in "" "smartctl 6.6" '{"smartctl": {"exit_status": 1, "messages": [{"string": "Unknown USB bridge"}]}}'; do
		PATH=/run/bin:$PATH says "$said" 1
		PATH=/run/bin:$PATH none a
	done
	# Nor is it needed.
	mkdir -p /run/few
	ln -sf "$(command -v dmsetup)" /run/few/
	PATH=/run/few "$(command -v dmremap)" status a >/run/said
	not grep drive /run/said
}
check "without smartctl, or where it cannot, status is as ever" silent
dmremap close a
dmremap close r
