#!/bin/bash
# dmremap zero overwrites only what the disk itself cannot read now: not what is in memory, what is written meanwhile, or what a
# disk does not answer for.
# kernels: stock
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 6

modprobe dm-delay
disk main 16
disk spare 8
sectors=$(blockdev --getsz /dev/main)
lower low /dev/main 0 "$sectors"
dmremap open r /dev/mapper/low /dev/spare
data /run/main "$sectors"
put /run/main /dev/mapper/r
mkdir -p /dev/pts
mountpoint -q /dev/pts || mount -t devpts devpts /dev/pts

# says STATUS TEXT COMMAND [ARG...]
says() {
	local status
	run "${@:3}" >/run/said 2>&1
	cat /run/said
	((status == $1))
	grep -F -- "$2" /run/said
}
# kept SECTOR: it can be read, and has what it had.
kept() { get /dev/mapper/r "$1" 1 | cmp - <(part /run/main "$1" 1); }
# fails SECTOR: from now on it cannot be read, and is pending.
fails() {
	bad main "$1"
	not get /dev/mapper/r "$1" 1
}
gone() { patch low 0 "$sectors" error; }
# back: main answers again.
back() {
	patch low
	dmremap reset r
}
# asks: zero, at a terminal, up to its question. What it says is in /run/said.
asks() {
	rm -f /run/answer /run/said /run/ended
	python3 -S - <<-'P' &
		import os, pty, select
		child, terminal = pty.fork()
		if not child:
		    os.execvp("dmremap", ["dmremap", "zero", "r"])
		with open("/run/said", "wb", buffering=0) as said:
		    answered = False
		    while True:
		        if select.select([terminal], [], [], 0.1)[0]:
		            try:
		                said.write(os.read(terminal, 1000).replace(b"\r", b""))
		            except OSError:
		                break
		        elif not answered and os.path.exists("/run/answer"):
		            answered = True
		            os.write(terminal, b"y\n")
		status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
		with open("/run/ended", "w") as ended:
		    ended.write(str(status))
	P
	soon grep -qsF "[y/N]" /run/said
}
# slowly: from now on each read of main takes five seconds; and yes is answered.
slowly() {
	echo "0 $sectors delay /dev/main 0 5000 /dev/main 0 0" | reload low
	touch /run/answer
}
# ends STATUS TEXT
ends() {
	soon test -s /run/ended
	cat /run/said
	expect "$1" cat /run/ended
	grep -F -- "$2" /run/said
}

remembered() {
	# While it is open, it keeps its page cache.
	exec 8</dev/mapper/r
	dd if=/dev/mapper/r of=/dev/null bs=4K skip=125 count=1 status=none
	fails 1003
	says 0 "kept what was still in memory, and wrote that: 1 sector" dmremap zero r --yes
	grep -x "r: 0 sectors are zeroes now" /run/said
	exec 8<&-
	kept 1003
}
check "what is still in memory is written, no zeroes" remembered

# A read of main is held back.
is_reading() { expect "* delay [1-9]*" dmsetup status low; }
meanwhile() {
	fails 2003
	asks
	slowly
	soon is_reading
	data /run/new 1
	put /run/new /dev/mapper/r 2004
	ends 0 "left alone what was written or moved meanwhile: 1 sector"
	grep "r: 0 sectors are zeroes now" /run/said
	patch low
	same /run/new /dev/mapper/r 2004
	not get /dev/mapper/r 2003 1
	good main 2003
	kept 2003
}
check "what is written after it was looked at is left alone" meanwhile

other_error() {
	dmremap mark r 3000
	dmremap set r bad_on media
	patch low 3000 8 error
	says 4 "not because the disk says that they are bad" dmremap zero r --yes
	patch low
	dmremap set r bad_on io
	expect "3000 pending *" message r query 3000
	kept 3003
}
check "what fails with another error than that of a bad sector is not overwritten" other_error

silent() {
	dmremap mark r 4000
	# As if the disk had been pulled out. A write to the unit would go to the spare.
	gone
	says 4 "the disk does not answer: near sector" dmremap zero r --yes
	back
	expect "4000 pending *" message r query 4000
	kept 4003
}
check "nothing is written where the disk does not answer" silent

vanishes() {
	fails 5003
	fails 6003
	asks
	slowly
	soon eval 'not expect "5000 pending *" message r query 5000'
	gone
	ends 4 "the disk does not answer: near sector 6003"
	grep "r: 1 sector are zeroes now" /run/said
	back
	good main 5000 6007
	expect "6000 pending *" message r query 6000
	kept 6003
	not kept 5003
}
check "the disk must answer before each write, not only before the first" vanishes

tripped() {
	local sector
	gone
	for ((sector = 8000; sector < 8000 + 20 * 64; sector += 64)); do not get /dev/mapper/r $sector 1; done
	expect tripped field r mode
	says 4 "the disk does not answer (tripped)" dmremap zero r --yes
	back
	kept 6003
}
check "a device whose disk is known not to answer is refused" tripped

dmremap close r
dmsetup remove low
remove_disk main spare
