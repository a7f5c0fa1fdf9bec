"""Mains that are hidden from everybody, whatever they are: a whole disk with partitions, a logical volume. By udev alone, with the signatures left."""
# soak: 3 minutes

import re

from distro import Machine, Report, by_id

r = Report()

SET_UP = r"""
printf 'label: gpt\nsize=20M\n' | sfdisk -q @disk@
udevadm settle
mkfs.ext4 -q -U 11111111-1111-1111-1111-111111111111 @disk@-part1
pvcreate -q @pv@
vgcreate -q vg @pv@
lvcreate -q -n main -L 24M vg
lvcreate -q -n spare -L 8M vg
mkfs.ext4 -q -U 22222222-2222-2222-2222-222222222222 /dev/vg/main
udevadm settle
ls /dev/disk/by-uuid
dmremap setup --yes --no-hide whole @disk@ @spare@
dmremap setup --yes --no-hide volume /dev/vg/main /dev/vg/spare
udevadm settle
cat /etc/remaptab
"""

HIDDEN = r"""
for device in @disk@ @disk@-part1 /dev/vg/main; do
    udevadm info -q property $device | grep -E '^(ID_FS_TYPE|ID_FS_UUID|SYSTEMD_READY|DM_REMAP_MAIN_OF)=' | xargs
done
ls /dev/disk/by-uuid
udevadm info -q property --property=ID_FS_UUID --value /dev/mapper/volume
"""
MAIN = "DM_REMAP_MAIN_OF={} ID_FS_TYPE=dm_remap_main SYSTEMD_READY=0"


def at(text):
    return re.sub("@(.*?)@", lambda disk: by_id(disk[1]), text)


def check(m, what):
    text = m.run(at(HIDDEN))
    lines = [" ".join(sorted(line.split())) for line in text.splitlines()]
    r.equal(f"{what}: the disk, its partition and the volume are hidden", lines[:3], [MAIN.format(n) for n in ("whole", "whole", "volume")])
    r.check(f"{what}: what is inside is known by the mapped device only", "11111111" not in text and text.split()[-1].startswith("22222222")
            and m.run("readlink -f /dev/disk/by-uuid/22222222-2222-2222-2222-222222222222 /dev/mapper/volume | uniq | wc -l").strip() == "1", text)


with Machine("distro-kinds") as m:
    m.disk("disk", "64M")
    m.disk("spare", "16M")
    m.disk("pv", "64M")
    m.boot(*m.disks)
    print(text := m.run(at(SET_UP)))
    r.check("setup: of a disk with partitions it says how to get at them, not how to lose them", "kpartx -a /dev/mapper/whole" in text and "mkfs" not in text, text)
    check(m, "at once")
    m.run("lvchange --refresh vg/main; dmsetup suspend vg-main; dmsetup resume vg-main; udevadm trigger --settle --subsystem-match=block")
    check(m, "after the volume was suspended, and udev asked again")
    m.reboot()
    m.boot(*m.disks)
    check(m, "after a reboot")
    m.poweroff()
    r.equal("the kernel reports nothing", m.reports(), [])
r.end()
