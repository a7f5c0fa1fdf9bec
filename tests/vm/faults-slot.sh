#!/bin/bash
# The fault matrix on slots that hold data: each operation, each kind of error, over one block and a unit; with ALL over a MiB, and more kinds.
# kernels: stock (debug)
# all-args: MiB
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

# Cells that cannot exist: a flush has no extent, and of what is here only SCSI disks and a spare that is gone fail
# one; of a discard nothing reaches a slot, of whatever size it is; write-zeroes is a command of its own on the SCSI
# disk only. The device-mapper targets say what null_blk says, IOERR, and the timeout is like the transport error: these
# are tried on a unit.
bad=(medium ioerr null error flakey) other=(transport timeout) all=(block unit "$@")
(($#)) || bad=(medium null) other=(transport)
# The debug kernel has dust, and takes ten times as long.
[[ $VM_KERNEL == stock ]] || bad=(medium dust) other=(transport) all=(block unit)
declare -A sectors=([block]=1 [unit]=64 [MiB]=2048 [device]=1)

cells=()
for kind in "${bad[@]}" "${other[@]}" gone-error gone-offline; do
	sizes=("${all[@]}")
	[[ $kind != error && $kind != flakey && $kind != dust && $kind != timeout ]] || sizes=(unit)
	for size in "${sizes[@]}"; do
		cells+=("$kind write $size" "$kind read $size")
		[[ -z ${sense[$kind]:-} && $kind != gone-* ]] || cells+=("$kind zero $size")
	done
	[[ -z ${sense[$kind]:-} && $kind != gone-* ]] || cells+=("$kind discard unit")
	[[ -z ${sense[$kind]:-} && $kind != gone-offline ]] || cells+=("$kind flush device")
done
plan ${#cells[@]}

# Of 16 MiB, main is 10 and the spare 6. Units from `start` on are relocated, and main has other data there.
main=20480 spare=12288 start=1024
scsi 16
disk base 16 discard=1
data /run/model $main
data /run/new $main
data /run/stale 2048
head -c 2M /dev/zero >/run/zero
is_bad() { [[ " ${bad[*]} " == *" $1 "* ]]; }

# begin UNITS: their data is in slots that are consecutive.
begin() {
	part /run/model $((start - 64)) $((128 + 64 * $1)) >/run/part
	put /run/part /dev/mapper/main $((start - 64))
	blank /dev/mapper/spare
	create r /dev/mapper/main /dev/mapper/spare unit_sectors 64
	message r remap $start $((64 * $1))
	part /run/stale 0 $((64 * $1)) >/run/part
	put /run/part /dev/mapper/main $start
	message r list | awk '$3 != slot + NR { exit 1 }' slot=$(($(slot_of r $start) - 1))
}
again() { dmsetup remove r && create r /dev/mapper/main /dev/mapper/spare; }

# try OPERATION: to the sectors that fail, for writes and reads with 4 more at either end.
try() {
	case $1 in
	write) part /run/new "$from" "$length" >/run/io && put /run/io /dev/mapper/r "$from" ;;
	read) get /dev/mapper/r "$from" "$length" >/run/got ;;
	zero) blkdiscard -f -z -o $((from * 512)) -l $((length * 512)) /dev/mapper/r ;;
	discard) blkdiscard -f -o $((first * 512)) -l $((count * 512)) /dev/mapper/r ;;
	flush) sync /dev/mapper/r ;;
	esac
}
tried() {
	try "$1"
	if [[ $1 == zero ]]; then part /run/zero 0 "$length"; else part /run/new "$from" "$length"; fi >/run/part
	edit /run/model "$from" /run/part
}
as_model() {
	part /run/model $((start - 64)) $((units * 64 + 128)) >/run/part
	same /run/part /dev/mapper/r $((start - 64))
}

# cell KIND OPERATION SIZE
cell() {
	local count=${sectors[$3]} first=$start units=1 from length before text="Input/output error" lost
	[[ -z ${sense[$1]:-} ]] || text=${sense[$1]#*|}
	[[ $3 != MiB ]] || units=32
	[[ $3 != block ]] || first=$((start + 20))
	from=$((first - 4)) length=$((count + 8)) lost=$first-$((first + count - 1))
	begin $units
	before=$(message r list)
	if [[ $2 == flush ]]; then
		# Something that the spare has to make durable.
		part /run/model $start 64 >/run/part
		put /run/part /dev/mapper/r $start
	fi
	fault "$1" spare $(($(slot_at /dev/mapper/spare "$(slot_of r $start)") + first - start)) "$count"
	case $(is_bad "$1" && echo bad),$2 in
	*,discard)
		# Nothing goes to the slot, so nothing fails.
		try discard
		heal spare
		;;
	bad,write | bad,zero)
		tried "$2"
		as_model
		expect "active $units $units 0" field r mode slots_bad relocated pending
		again
		;;
	bad,read)
		fails_with "No data available" try read
		expect $lost unreadable /dev/mapper/r $from $length
		expect "active $units" field r mode slots_bad
		# What was lost is not what main has.
		expect $lost unreadable /dev/mapper/r $((start - 64)) $((units * 64 + 128))
		again
		expect $lost unreadable /dev/mapper/r $((start - 64)) $((units * 64 + 128))
		# It is there again when the slot can be read again.
		heal spare
		as_model
		expect 0 field r lost_sectors
		again
		tried write
		;;
	*)
		fails_with "$text" try "$2"
		expect "$before" message r list
		heal spare
		[[ $2 != write && $2 != zero ]] || tried "$2"
		[[ $2 != flush ]] || try flush
		expect "$before" message r list
		as_model
		expect 0 field r slots_bad
		message r sync
		expect active field r mode
		;;
	esac
	as_model
	heal spare
	again
	as_model
}

last=
for each in "${cells[@]}"; do
	read -r kind operation size <<<"$each"
	if [[ $kind != "$last" ]]; then
		[[ -z $last ]] || dmsetup remove main spare
		lower main "$(made_of "$kind")" 0 $main
		lower spare "$(made_of "$kind")" $main $spare
		last=$kind
	fi
	check "$kind, $operation, $size" cell "$kind" "$operation" "$size"
	heal spare
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
done
dmsetup remove main spare
remove_disk base
rmmod scsi_debug
