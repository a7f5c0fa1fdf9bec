#!/bin/bash
# What a spare costs depends on its entries, not on its length: 1 TiB costs what 1 GiB does, at most twice.
# kernels: stock
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 24

modprobe dm-remap
disk main 1048576
declare -A cost
# As in million.sh.
memory() {
	for _ in {1..4}; do
		echo 3 >/proc/sys/vm/drop_caches
		sleep 0.5
		awk '/^(Slab|VmallocUsed|Percpu):/ { sum += $2 } END { print sum }' /proc/meminfo
	done | sort -n | head -n 1
}
# sectors NAME: read from /dev/NAME and written to it so far.
sectors() { awk '{ print $3, $7 }' "/sys/block/$1/stat"; }
# costs WHAT COMMAND [ARG...]: notes what the command reads from the spare and writes to it, in KiB.
costs() {
	local was now
	read -ra was < <(sectors spare)
	"${@:2}"
	read -ra now < <(sectors spare)
	cost[$1 read]=$(((now[0] - was[0]) / 2))
	cost[$1 written]=$(((now[1] - was[1]) / 2))
}
activate() { dmsetup create r --table "0 $(blockdev --getsz /dev/main) remap /dev/main 0 /dev/spare 0 2 spare_sectors $1"; }
quietly() { "$@" >/run/out 2>&1 || { cat /run/out && return 1; }; }

# life NAME SECTORS: of a spare of that length, and of twice that length in the end.
life() {
	local n=$1 before
	# In MiB, and half of it is used at first.
	disk spare $(($2 / 1024))
	costs "$n kernel's format" activate "$2"
	dmsetup remove r
	remove_disk spare
	disk spare $(($2 / 1024))
	costs "$n dmremap format" quietly dmremap format /dev/spare --main /dev/main --spare-sectors "$2" --yes
	seq 4711 2000000 2000000000 >/run/bad
	costs "$n import" expect "1000 units marked*" dmremap import /dev/spare /run/bad --format sectors --spare-sectors "$2"
	before=$(memory)
	costs "$n activation" activate "$2"
	expect "active 0 1000" field r mode relocated pending
	cost[$n activation memory]=$(($(memory) - before))
	costs "$n message check" expect "* 0 stale, 0 damaged, 0 repaired" message r check
	dmsetup remove r
	costs "$n dmremap check" quietly dmremap check /dev/spare --spare-sectors "$2"
	costs "$n dmremap dump" quietly dmremap dump /dev/spare --spare-sectors "$2"
	expect 1000 eval "grep -c '^[0-9]* pending' /run/out"
	costs "$n dmremap grow" quietly dmremap grow /dev/spare --spare-sectors $((2 * $2 - 2048)) --yes
	costs "$n activation when grown" activate $((2 * $2 - 2048))
	expect "active 0 1000" field r mode relocated pending
	dmsetup remove r
	remove_disk spare
	local kind
	for kind in "${!cost[@]}"; do
		[[ $kind != "$n "* ]] || echo "${kind#"$n "}=${cost[$kind]}" >>"/run/$n"
	done
}
check "1 GiB: formatted, activated, checked, dumped, grown" life small $((1 << 21))
check "1 TiB, likewise" life large $((1 << 31))
# at_most_twice WHAT: and a few KiB.
at_most_twice() {
	local small large
	small=$(sed -n "s/^$1=//p" /run/small) large=$(sed -n "s/^$1=//p" /run/large)
	echo "# $1: 1 GiB $small KiB, 1 TiB $large KiB" >>/run/figures
	((large <= 2 * small + 8))
}
for what in "kernel's format" "dmremap format" import activation "message check" "dmremap check" "dmremap dump" "dmremap grow" \
	"activation when grown"; do
	check "$what: read" at_most_twice "$what read"
	check "$what: written" at_most_twice "$what written"
done
check "activation: memory" at_most_twice "activation memory"
formats() { (($(sed -n "s/^$1 written=//p" /run/large) < 1024)); }
check "the kernel formats 1 TiB with less than 1 MiB" formats "kernel's format"
check "and so does dmremap" formats "dmremap format"

reads() { awk '{ print $1 }' "$(sys /dev/mapper/slow)/stat"; }
# slow MS: a command of the spare takes so long.
slow() { echo "0 2097152 delay /dev/spare 0 $1 /dev/spare 0 0"; }
killed() {
	local was all pid
	disk spare 1024
	quietly dmremap format /dev/spare --main /dev/main --yes
	seq 0 8 1199999 >/run/bad # 150,000 entries
	quietly dmremap import /dev/spare /run/bad --format sectors
	dmsetup create slow --table "$(slow 0)"
	was=$(reads)
	dmsetup create r --table "$(table /dev/main /dev/mapper/slow)"
	dmsetup remove r
	all=$(($(reads) - was))
	slow 1000 | reload slow
	was=$(reads)
	dmsetup create r --table "$(table /dev/main /dev/mapper/slow)" &
	pid=$!
	soon eval "((\$(reads) - was > all / 2))"
	kill -KILL $pid
	if wait $pid; then return 1; fi
	echo "$all reads, killed after $(($(reads) - was))"
	(($(reads) - was < all - 3))
	slow 0 | reload slow
	dmsetup remove r
}
check "an activation that takes long can be killed" killed
cat /run/figures
