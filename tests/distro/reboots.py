"""Boots in a row; the power fails at any moment from the firmware to the end of the shutdown. Arguments: how many, and a seed.

Each boot that comes to its end finds the device assembled and every file that was synced before, over sectors that were relocated.
"""
# soak: 20 boots take 40 minutes

import random
import re
import subprocess
import sys
import time

from distro import Machine, Report, by_id

BOOTS = int(sys.argv[1]) if len(sys.argv) > 1 else 20
SEED = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
print(f"# seed {SEED}")
chance = random.Random(SEED)
r = Report()

SET_UP = r"""
mkfs.ext4 -q -b 4096 -U 11111111-1111-1111-1111-111111111111 @main@
echo 'UUID=11111111-1111-1111-1111-111111111111 /data ext4 defaults 0 2' >>/etc/fstab
mkdir -p /data
dmremap setup --yes safe @main@ @spare@ >/dev/null
update-initramfs -u >/dev/null 2>&1
systemctl daemon-reload
mount -a
sync
"""

# A file whose sectors are relocated and that then gets other content; and the one before, too.
WRITE = r"""
cd /data
head -c 256K /dev/urandom >{name}
sync
for file in {name} {before}; do
    filefrag -v -b512 $file | awk -F'[ .:]+' '$2 ~ /^[0-9]+$/ {{for (s = $5; s + 7 <= $6; s += 64) print s}}' |
        while read -r s; do dmsetup message safe 0 remap $s 8; done >/dev/null
    head -c 256K /dev/urandom >/tmp/new
    dd if=/tmp/new of=$file bs=64K conv=notrunc oflag=direct status=none
done
sync
sha256sum {name} {before}
"""

sums, before, finished = {}, "", 0
with Machine("distro-reboots") as m:
    m.disk("main", "64M")
    m.disk("spare", "16M")
    m.boot("main", "spare")
    m.run(re.sub("@(.*?)@", lambda disk: by_id(disk[1]), SET_UP))
    m.reboot()
    length = 60.0  # of a boot, in seconds
    for n in range(BOOTS):
        start = time.monotonic()
        order = ["main", "spare", "own"]
        chance.shuffle(order)
        m.start(*order)
        if chance.random() < 0.5:
            time.sleep(chance.random() * length)
            m.cut()
            continue
        m.connect()
        m.settle()
        length = time.monotonic() - start
        finished += 1
        status, text = m.ask("findmnt -no SOURCE /data; cd /data && sha256sum /dev/null " + " ".join(sums))
        found = dict(reversed(line.split()) for line in text.splitlines()[1:])
        found.pop("/dev/null", None)
        if not r.check(f"boot {n + 1}: assembled, and nothing is lost",
                       text.startswith("/dev/mapper/safe\n") and found == sums, f"{status}: {text}, not {sums}"):
            break
        text = m.run(WRITE.format(name=f"file{n}", before=before))
        sums.update(reversed(line.split()) for line in text.splitlines())
        before = f"file{n}"
        m.ask("systemctl --no-block reboot")
        try:
            m.process.wait(chance.random() * length)
            m.keep_console()
        except subprocess.TimeoutExpired:
            m.cut()
    m.cut()
    r.check("enough boots came to their end", finished >= BOOTS // 4, f"{finished} of {BOOTS}")
    r.equal("the kernel reports nothing", m.reports(), [])
r.end()
