#!/bin/bash
# The fault matrix on metadata: table blocks that cannot be written or read, flushes that fail, a spare that is gone.
# Argument: all kinds of error, and not only the most frequent ones.
# kernels: stock (debug)
# all-args: all
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

# What a bio makes the metadata area see: writes with a flush, when an entry is made; reads, when one is made in a block
# that is not in memory, and at activation. Write-zeroes and discards never go there. An area is two blocks here, less
# than a unit, so it takes the unit's place; the MiB has a superblock and slots as well.
kinds=(medium ioerr transport timeout error flakey null)
(($#)) || kinds=(medium transport null)
# The debug kernel has dust, and takes ten times as long.
[[ $VM_KERNEL == stock ]] || kinds=(medium transport dust)
cells=()
for kind in "${kinds[@]}"; do
	for operation in commit load; do
		for where in "sector 0" "sector 1" "area 1" "MiB 0"; do cells+=("$kind $operation $where"); done
	done
	[[ -z ${sense[$kind]:-} ]] || cells+=("$kind flush spare 0")
done
for kind in gone-error gone-offline; do cells+=("$kind commit spare 0" "$kind load spare 0" "$kind check spare 0"); done
plan ${#cells[@]}

main=8192 spare=12288
scsi 16
disk base 16
data /run/data 64

begin() {
	blank /dev/mapper/spare
	create r /dev/mapper/main /dev/mapper/spare unit_sectors 64
	patch main 650 3 error
	put /run/data /dev/mapper/r 640
}
again() { dmsetup remove r && create r /dev/mapper/main /dev/mapper/spare; }

u64() { get /dev/mapper/spare 0 1 | od -An -t u8 -j "$1" -N 8 | tr -d ' '; }
area() { get /dev/mapper/spare $(($(u64 $((136 + 8 * $1))) * 8)) $(($(u64 104) * 8)); }
alike() { cmp <(area 0) <(area 1); }

break_spare() { # KIND SIZE REPLICA
	local start
	start=$(($(u64 $((136 + 8 * $3))) * 8))
	case $1,$2 in
	gone-*) fault "$1" spare 0 $spare ;;
	*,spare)
		patch spare 0 $spare linear "$sick" @
		arm "$1" 35
		;;
	*,sector) fault "$1" spare $((start + 3)) 1 ;;
	*,area) fault "$1" spare $start 16 ;;
	*,MiB) fault "$1" spare $(($3 * (spare - 2048))) 2048 ;;
	esac
}
# cell KIND OPERATION SIZE REPLICA
cell() {
	local before
	begin
	before=$(list r)
	expect 2 u64 104
	# A bad block on main, for one more entry.
	patch main 1290 3 error
	case $2,$3 in
	commit,spare | flush,spare)
		break_spare "$1" "$3" "$4"
		fails_with "Input/output error" put /run/data /dev/mapper/r 1280
		# A replica might say that the unit has a slot, so it may stay pending.
		expect "degraded 1" field r mode relocated
		expect "$before" eval 'list r | grep -v "^1280 pending 0$"'
		heal spare
		message r sync
		expect active field r mode
		put /run/data /dev/mapper/r 1280
		;;
	commit,MiB)
		# A slot's error of this kind goes up, too. (The first slots are in the first MiB.)
		break_spare "$1" "$3" "$4"
		if [[ $4 == 0 && $1 == t[ri]* ]]; then
			fails_with "${sense[$1]#*|}" put /run/data /dev/mapper/r 1280
			expect "$before" list r
			heal spare
		fi
		put /run/data /dev/mapper/r 1280
		heal spare
		;;
	commit,*)
		break_spare "$1" "$3" "$4"
		put /run/data /dev/mapper/r 1280
		same /run/data /dev/mapper/r 1280
		expect "active 2" field r mode relocated
		(($(field r metadata_errors) > 0))
		# Also while the other replica is all there is.
		again
		same /run/data /dev/mapper/r 1280
		heal spare
		;;
	check,spare)
		# It finds no replica of any block, and may write none of them as long as one waits to be written.
		break_spare "$1" "$3" "$4"
		message r check
		expect degraded field r mode
		heal spare
		message r sync
		expect "active 1" field r mode relocated
		put /run/data /dev/mapper/r 1280
		;;
	load,spare)
		dmsetup remove r
		break_spare "$1" "$3" "$4"
		not create r /dev/mapper/main /dev/mapper/spare
		heal spare
		create r /dev/mapper/main /dev/mapper/spare
		expect "$before" list r
		;;
	load,*)
		break_spare "$1" "$3" "$4"
		again
		expect "active 1" field r mode relocated
		expect "$before" list r
		heal spare
		;;
	esac
	again
	alike
	same /run/data /dev/mapper/r 640
	[[ $2 == load ]] || same /run/data /dev/mapper/r 1280
	# Nothing was taken for bad that is not, and all goes on.
	[[ $3 == MiB ]] || expect 0 field r slots_bad
	put /run/data /dev/mapper/r 1280
	same /run/data /dev/mapper/r 1280
}

last=
for each in "${cells[@]}"; do
	read -r kind operation size replica <<<"$each"
	if [[ $kind != "$last" ]]; then
		[[ -z $last ]] || dmsetup remove main spare
		lower main "$(made_of "$kind")" 0 $main
		lower spare "$(made_of "$kind")" $main $spare
		last=$kind
	fi
	check "$kind, $operation, $size${replica/#[01]/ at replica &}" cell "$kind" "$operation" "$size" "$replica"
	heal spare
	! dmsetup info r >/dev/null 2>&1 || dmsetup remove r
done
dmsetup remove main spare
remove_disk base
rmmod scsi_debug
