#!/bin/bash
# The fault matrix on main: each operation, each kind of error, over one block and a unit, with the data read back; with ALL over a MiB, and more kinds.
# kernels: stock (debug)
# all-args: MiB
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

# Cells that cannot exist: a flush has no extent; dust passes discards on, and neither dust, flakey, error targets nor
# null_blk's bad blocks fail a flush; write-zeroes is a command of its own on the SCSI disk, on null_blk it is writes.
bad=(medium ioerr target error flakey null) other=(transport timeout) all=(block unit "$@")
(($#)) || bad=(medium null) other=(transport)
# The debug kernel has dust, and takes ten times as long.
[[ $VM_KERNEL == stock ]] || bad=(medium null dust) other=(transport) all=(block unit)
declare -A sectors=([block]=1 [unit]=64 [MiB]=2048 [device]=1)

cells=()
for kind in "${bad[@]}" "${other[@]}" gone-error gone-offline; do
	for operation in write zero read discard; do
		[[ $kind != dust || $operation != discard ]] || continue
		[[ $operation != zero || $kind != @(dust|error|flakey) ]] || continue
		for size in "${all[@]}"; do cells+=("$kind $operation $size"); done
	done
	[[ -z ${sense[$kind]:-} && $kind != gone-offline ]] || cells+=("$kind flush device")
done
groups=$((${#bad[@]} + ${#other[@]} + 2))
plan $((${#cells[@]} + groups))

# Of 16 MiB, main is 10 and the spare 6.
main=20480
scsi 16
disk base 16 discard=1
data /run/model $main
data /run/new $main
head -c 2M /dev/zero >/run/zero
is_bad() { [[ " ${bad[*]} " == *" $1 "* ]]; }

# begin KIND: devices on what can fail this way.
begin() {
	lower main "$(made_of "$1")" 0 $main
	lower spare "$(made_of "$1")" $main 12288
	put /run/model /dev/mapper/main
	blank /dev/mapper/spare
	create r /dev/mapper/main /dev/mapper/spare unit_sectors 64
}
end() { dmsetup remove r && dmsetup remove main && dmsetup remove spare; }

mend() {
	heal main
	soon expect active field r mode
}

# place OPERATION SIZE: sets $first and $count, what fails, and $from and $length, what is asked for: 4 sectors more
# at either end.
place() {
	local n
	case $1 in write) n=0 ;; zero) n=1 ;; read) n=2 ;; discard | flush) n=3 ;; esac
	case $2 in
	MiB) first=$(((2 * n + 1) * 2048)) ;;
	unit) first=$(((2 * n + 2) * 2048 + 1024)) ;;
	*) first=$(((2 * n + 2) * 2048 + 532)) ;;
	esac
	count=${sectors[$2]}
	from=$((first - 4)) length=$((count + 8))
}

# try OPERATION: to $from and $length.
try() {
	case $1 in
	write) part /run/new "$from" "$length" >/run/io && put /run/io /dev/mapper/r "$from" ;;
	read) get /dev/mapper/r "$from" "$length" >/run/got ;;
	zero) blkdiscard -f -z -o $((from * 512)) -l $((length * 512)) /dev/mapper/r ;;
	discard) blkdiscard -f -o $((first * 512)) -l $((count * 512)) /dev/mapper/r ;;
	flush) sync /dev/mapper/r ;;
	esac
}

# as_model: what $from and $length have is what the model says, and the rest of these units.
as_model() {
	local start=$((from - from % 64)) end=$((from + length + 64))
	part /run/model $start $((end - start)) >/run/part
	same /run/part /dev/mapper/r $start
}

# cell KIND OPERATION SIZE
cell() {
	local first count from length before text="Input/output error" units
	place "$2" "$3"
	units=$((count > 64 ? count / 64 : 1))
	before=$(list r)
	[[ -z ${sense[$1]:-} ]] || text=${sense[$1]#*|}
	fault "$1" main "$first" "$count"
	case $(if is_bad "$1"; then echo bad; else echo "${1%%-*}"; fi),$2 in
	bad,write | bad,zero)
		part /run/model "$first" "$count" >/run/old
		try "$2"
		if [[ $2 == write ]]; then part /run/new "$from" "$length"; else part /run/zero 0 "$length"; fi >/run/part
		edit /run/model "$from" /run/part
		as_model
		# What failed has entries, no unit more, no sector more; but of a MiB, past a few, main is not asked for the rest.
		list r | grep -vxF "$before" >/run/entries
		if [[ $3 == MiB ]]; then (($(wc -l </run/entries) >= units)); else expect $units eval "wc -l </run/entries"; fi
		[[ $3 != block ]] || expect "$((first - first % 64)) partial 100000" cat /run/entries
		mend
		same /run/old /dev/mapper/main "$first"
		;;
	bad,read)
		fails_with "No data available" try read
		list r | grep -vxF "$before" >/run/entries
		# What lies behind the first unit is left for other reads.
		expect 1 eval 'grep -c " pending 0$" /run/entries'
		part /run/model $((first - 4)) 4 | cmp - <(get /dev/mapper/r $((first - 4)) 4)
		part /run/model $((first + count)) 4 | cmp - <(get /dev/mapper/r $((first + count)) 4)
		mend
		;;
	bad,discard | gone,discard)
		# A hint that was not taken.
		try discard
		expect "$before" list r
		mend
		edit /run/model "$first" <(get /dev/mapper/r "$first" "$count")
		;;
	*)
		# The error as it came, and nothing made of it.
		fails_with "$text" try "$2"
		expect "$before" list r
		mend
		if [[ $2 == write || $2 == zero ]]; then
			try write
			edit /run/model "$from" /run/io
		fi
		try "$2"
		[[ $2 != zero ]] || edit /run/model "$from" <(part /run/zero 0 "$length")
		[[ $2 != discard ]] || edit /run/model "$first" <(get /dev/mapper/r "$first" "$count")
		;;
	esac
	as_model
	expect "active 0" field r mode slots_bad
}

# After re-activation, and with main good again: what was acknowledged, from the slots.
again() {
	local before
	before=$(list r)
	if is_bad "$1"; then [[ -n $before ]]; else [[ -z $before ]]; fi
	dmsetup remove r
	create r /dev/mapper/main /dev/mapper/spare
	expect "$before" list r
	same /run/model /dev/mapper/r
}

last=
for each in "${cells[@]}" end; do
	read -r kind operation size <<<"$each"
	if [[ $kind != "$last" ]]; then
		if [[ -n $last ]]; then
			check "$last: everything is as it was acknowledged after re-activation" again "$last"
			end
		fi
		[[ $kind == end ]] || begin "$kind"
		last=$kind
	fi
	[[ $kind == end ]] || check "$kind, $operation, $size" cell "$kind" "$operation" "$size"
	! dmsetup info main >/dev/null 2>&1 || mend
done
remove_disk base
rmmod scsi_debug
