"""Data disks across reboots: file systems, LVM, swap and LUKS on remap devices, from the packages.

What is relocated has other content on the raw disk, so whoever mounts that is found out.
"""

import os
import re

from distro import Machine, Report, by_id

r = Report()

# Ext4 by UUID, LVM, swap, LUKS, and a spare that is a logical volume.
SET_UP = r"""
udevadm settle

mkfs.ext4 -q -U 11111111-1111-1111-1111-111111111111 @main@
echo 'UUID=11111111-1111-1111-1111-111111111111 /data ext4 nofail,x-systemd.device-timeout=600 0 2' >>/etc/fstab
mkdir -p /data /vol /secret /onlv /plain
dmremap setup --yes safe @main@ @spare@
dmremap setup --yes pv @main2@ @spare2@
pvcreate -q /dev/mapper/pv
dmremap hide --yes pv
vgcreate -q vg /dev/mapper/pv
lvcreate -q -n vol -L 24M vg
lvcreate -q -n spare3 -L 8M vg
mkfs.ext4 -q -U 22222222-2222-2222-2222-222222222222 /dev/vg/vol
echo 'UUID=22222222-2222-2222-2222-222222222222 /vol ext4 x-systemd.device-timeout=600 0 2' >>/etc/fstab

dmremap setup --yes onlv @main3@ /dev/vg/spare3
mkfs.ext4 -q -U 33333333-3333-3333-3333-333333333333 /dev/mapper/onlv
dmremap hide --yes onlv
echo 'UUID=33333333-3333-3333-3333-333333333333 /onlv ext4 x-systemd.device-timeout=600 0 2' >>/etc/fstab

dmremap setup --yes swap @main4@ @spare4@
mkswap -q -U 44444444-4444-4444-4444-444444444444 /dev/mapper/swap
dmremap hide --yes swap
echo 'UUID=44444444-4444-4444-4444-444444444444 none swap x-systemd.device-timeout=600 0 0' >>/etc/fstab

dmremap setup --yes crypt @main5@ @spare5@
(umask 77; head -c 64 /dev/urandom >/etc/key)
cryptsetup -q luksFormat --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --uuid 55555555-5555-5555-5555-555555555555 /dev/mapper/crypt /etc/key
dmremap hide --yes crypt
echo 'secret UUID=55555555-5555-5555-5555-555555555555 /etc/key luks,x-systemd.device-timeout=600' >>/etc/crypttab
cryptsetup open --key-file /etc/key /dev/mapper/crypt secret
mkfs.ext4 -q -U 66666666-6666-6666-6666-666666666666 /dev/mapper/secret
echo '/dev/mapper/secret /secret ext4 x-systemd.device-timeout=600 0 2' >>/etc/fstab
dmremap setup --yes plain @main6@ @spare6@
mkfs.ext4 -q -U 77777777-7777-7777-7777-777777777777 /dev/mapper/plain
dmremap hide --yes plain
echo 'UUID=77777777-7777-7777-7777-777777777777 /plain ext4 nofail,x-systemd.device-timeout=600 0 2' >>/etc/fstab
# As long as the slowest machine takes.
sed -i 's/defaults$/x-systemd.device-timeout=600/' /etc/remaptab
systemctl daemon-reload
mount -a
cat /etc/remaptab
"""

# Files of 4 MiB. Their first content stays on the raw disk in as many units, which are relocated before they get their second.
FILL = r"""
fill() { # DEVICE DIRECTORY SECTORS-BEFORE UNITS
    head -c 4M /dev/urandom >$2/file
    sync
    filefrag -v -b512 $2/file | awk -F'[ .:]+' -v before=$3 '$2 ~ /^[0-9]+$/ {for (s = $5; s + 7 <= $6; s += 32) print s + before}' | head -n $4 |
        while read -r s; do dmsetup message $1 0 remap $s 8; done >/dev/null
    head -c 4M /dev/urandom >/tmp/new
    dd if=/tmp/new of=$2/file bs=1M conv=notrunc oflag=direct status=none
    (cd $2; md5sum file) >>/root/sums.$1
    sync
    dmsetup status $1
}
fill safe /data 0 200
fill onlv /onlv 0 20
# Where the volume begins.
fill pv /vol $(dmsetup table vg-vol | awk '{print $5}') 20
sync
"""

CHECK = r"""
grep -q dm- /proc/swaps
for what in safe:/data onlv:/onlv pv:/vol; do
    (cd ${what#*:}; md5sum -c --quiet /root/sums.${what%:*})
done
for d in /data /vol /onlv /secret /plain; do findmnt -no SOURCE $d; done
"""


def check(m, what):
    status, text = m.ask("set -e\n" + CHECK)
    found = text.split()
    r.check(f"{what}: all is mounted from the mapped devices, with every byte right",
            status == 0 and found[-5:] == [f"/dev/mapper/{d}" for d in ("safe", "vg-vol", "onlv", "secret", "plain")],
            f"{status}: {text}" + m.ask("journalctl -b -p warning --no-pager | tail -n 40; systemctl --failed; lsblk")[1])


with Machine("distro-data") as m:
    for n, size in (("", 64), ("2", 64), ("3", 32), ("4", 16), ("5", 32), ("6", 16)):
        m.disk(f"main{n}", f"{size}M")
        if n != "3":
            m.disk(f"spare{n}", "16M")
    everything = list(m.disks)
    m.boot(*everything)
    print(m.run(re.sub("@(.*?)@", lambda disk: by_id(disk[1]), SET_UP)))
    print(m.run(FILL))
    m.disk("another", "8M")
    if "ALL" in os.environ:
        m.reboot()
        m.boot(*everything)
        check(m, "after a reboot")
        m.poweroff()
        m.boot("another", *reversed(everything), "own")
        check(m, "with all disks renumbered")

    # The power is cut. Then all disks are renumbered, and the spare of one and the main of another are missing: those are waited for 20 s.
    m.run("sed -i '/^\\(safe\\|plain\\)/s/=600/=20/' /etc/remaptab; sync")
    m.run("(while :; do dd if=/dev/urandom of=/data/other bs=1M count=8 conv=fsync; done) >/dev/null 2>&1 & sleep 2")
    m.cut()
    m.boot("another", *(d for d in reversed(everything) if d not in ("spare", "main6")), "own", wait=False)
    # (A machine so slow that the other half comes later than that starts the unit once more.)
    m.wait("systemctl is-active -q multi-user.target && journalctl -b -u dmremap@safe | grep 'safe: its spare [^ ]* is missing, and' && "
           "journalctl -b -u dmremap@plain | grep 'plain: its main [^ ]* is missing. Plug it in'")
    # As if the time of what lies on them were up.
    m.run("systemctl cancel")
    text = m.run("findmnt -n /data || true; findmnt -n /plain || true; journalctl -b -u dmremap@safe -u dmremap@plain --no-pager; ls /dev/disk/by-uuid")
    r.check("a spare is missing: nothing of main is mounted, boot goes on", not re.search("^/data ", text, re.M) and "11111111" not in text, text)
    r.check("... and the journal says what is missing, and how to go on",
            "safe: its spare /dev/disk/by-id/" in text and "Plug the spare in" in text, text)
    r.check("main is missing: boot goes on, and the journal says so",
            not re.search("^/plain ", text, re.M) and "plain: its main /dev/disk/by-id/" in text and "Plug it in" in text, text)
    for name, directory in (("spare", "data"), ("main6", "plain")):
        m.plug(name)
        m.wait(f"findmnt -n /{directory}")
    check(m, "after a power cut, with all disks renumbered, and both plugged in later")
    m.poweroff()
    r.equal("the kernel reports nothing", m.reports(), [])
r.end()
