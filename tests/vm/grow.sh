#!/bin/bash
# A spare that has become too small grows: entries and data stay, and there are more slots.
# kernels: stock
# vm: --include tests/reader.py
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan 11

disk main 8
disk spare 4
data /run/main 16384
put /run/main /dev/main

# rewrite SECTOR COUNT: new data, there and in the model.
rewrite() {
	data /run/part "$2"
	put /run/part /dev/mapper/r "$1"
	edit /run/main "$1" /run/part
}
holds() {
	same /run/main /dev/mapper/r
	message r list | cmp - /run/list
}

# Two superblocks, two areas of one block, four slots.
create r /dev/main /dev/spare unit_sectors 8 spare_sectors 64
bad main 1000 1031
rewrite 1000 32
message r list >/run/list
check "the spare is full" expect "full 4/4" field r mode slots
check "as long as it is in use it does not grow" fails_with "in use" dmremap grow /dev/spare --spare-sectors 2048
dmsetup remove r

check "it grows" dmremap grow /dev/spare --spare-sectors 2048 --yes
interrupt() {
	# As after a cut: the first superblock says that the region grows, from 64 sectors.
	python3 -S - <<-'P'
		import struct, sys
		sys.path.insert(0, "/host")
		from reader import crc32c
		with open("/dev/spare", "r+b") as spare:
		    block = bytearray(spare.read(4096))
		    struct.pack_into("<Q", block, 64, 1)
		    struct.pack_into("<Q", block, 240, 64)
		    struct.pack_into("<I", block, 8, 0)
		    struct.pack_into("<I", block, 8, crc32c(block))
		    spare.seek(0)
		    spare.write(block)
	P
	sync /dev/spare
	refused "growing was interrupted: run dmremap grow again" create r /dev/main /dev/spare
	refused "growing was interrupted: run dmremap grow again" create r /dev/main /dev/spare spare_sectors 64
	dmremap grow /dev/spare --yes
	expect "*sound*" dmremap check /dev/spare
}
check "a growth that was interrupted is refused until it went on" interrupt

check "the length of before is refused" refused "Spare region is shorter than the one that was formatted" \
	create r /dev/main /dev/spare spare_sectors 64
opens() {
	create r /dev/main /dev/spare spare_sectors 2048 no_format
	expect "active 4/249" field r mode slots
	holds
}
check "with the new one its entries and data are there" opens

bad main 8000 9599
rewrite 8000 1600
message r list 0 2000 >/run/list
check "there is room for 200 units more" expect "active 204/249" field r mode slots
check "and they are read back" holds
dmsetup remove r
agree() {
	dmremap check /dev/spare
	python3 /host/reader.py /dev/spare 0 2048 | cmp - /run/list
	dmremap dump --json /dev/spare | python3 -c 'import json, sys
for e in json.load(sys.stdin)["entries"]: print(e["sector"], e["state"], e["slot"], e["mask"])' | cmp - /run/list
}
check "the tool, the reader and the kernel list the same entries" agree

again() {
	dmremap grow /dev/spare --yes
	create r /dev/main /dev/spare no_format
	expect "active" field r mode
	holds
}
check "it grows again, to the end of the device" again
rewrite 8000 1600
dmsetup remove r
create r /dev/main /dev/spare spare_sectors 8192
check "and what is written then is there at the next activation" holds
dmsetup remove r
remove_disk main spare
