"""Root on a remap device, over bad sectors: by initramfs-tools; with ALL also after a kernel upgrade, and by dracut."""
# soak: 6 minutes, with ALL 20

import os
import re

from pathlib import Path

from distro import ROOT, Machine, Report, by_id, copy, installed

r = Report()
ALL = "ALL" in os.environ

# From another system, as the documentation says.
SET_UP = r"""
umount /boot
disk=$(readlink -f @target@)
spare=@spare@
e2fsck -fy ${disk}2 >/dev/null || [ $? = 1 ]
dmremap setup --yes --no-tab root ${disk}2 $spare
mount /dev/mapper/root /mnt
mount ${disk}1 /mnt/boot
echo "root PARTUUID=$(udevadm info -q property --property=ID_PART_ENTRY_UUID --value ${disk}2) $spare x-initrd.attach" >/mnt/etc/remaptab

# Units of what every boot reads are relocated, and what main has there is not theirs any more.
cd /mnt
files=$(ls usr/lib/systemd/systemd usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-*.so usr/lib/x86_64-linux-gnu/libc.so.6 usr/bin/bash usr/bin/udevadm usr/sbin/dmremap)
sha256sum $files >/mnt/root/sums
for file in $files; do
    filefrag -v -b512 $file | awk -F'[ .:]+' '$2 ~ /^[0-9]+$/ {for (s = $5; s + 7 <= $6; s += 128) print s}' | head -n 40
done | sort -nu >/root/units
while read -r s; do dmsetup message root 0 remap $s 8 >/dev/null; done </root/units
cd /
for d in dev proc sys run; do mount --bind /$d /mnt/$d; done
chroot /mnt update-initramfs -u
lsinitramfs /mnt/boot/initrd.img | grep -E 'remap' | sort
for d in dev proc sys run; do umount /mnt/$d; done
umount /mnt/boot /mnt
dmremap status root
dmremap close root
first=$(cat /sys/class/block/${disk##*/}2/start)
sectors=$(while read -r s; do dd if=/dev/urandom of=${disk}2 bs=512 seek=$s count=8 conv=notrunc,fsync oflag=direct status=none; echo $((first + s)); done </root/units)
echo SECTORS $sectors
"""

CHECK = r"""
findmnt -no SOURCE /
cd / && sha256sum --quiet -c /root/sums
"""


def check(m, what):
    status, text = m.ask("set -e\n" + CHECK)
    r.check(f"{what}: root is the mapped device, and every byte is right", status == 0 and text.split() == ["/dev/mapper/root"], f"{status}: {text}")
    status, text = m.ask("systemctl --failed --no-legend; journalctl -b -p err --no-pager -q -t dmremap-generator -u 'dmremap@*'")
    r.check(f"{what}: no unit failed", text.strip() == "", text)


def upgrade(m):
    """The kernel for machines that are not virtual, and then its module, are installed and booted."""
    for name in ["kernel", "module"]:
        m.plug(name)
        m.wait(f"ls {by_id(name)}")
    print(text := m.run(f"mkdir /root/debs; cd /root/debs; tar -xf $(realpath {by_id('kernel')}); dpkg -i *.deb", timeout=3600))
    r.check("a kernel that has no module is installed, with a warning that names the device", "W: dm-remap: Linux" in text and ", so root would not be there" in text, text)
    print(m.run(f"cd /root/debs; rm *; tar -xf $(realpath {by_id('module')}); dpkg -i *.deb; ls -l /boot"))
    before = m.run("uname -r")
    m.reboot()
    m.boot("spare")
    after = m.run("uname -r")
    r.check("another kernel is booted", before != after and after.strip().endswith("-amd64") and "cloud" not in after, f"{before} {after}")
    check(m, "after a kernel upgrade")


with Machine("distro-root-setup") as rescue:
    target = rescue.dir / "target"
    rescue.disk("spare", "32M")
    rescue.disks["target"] = copy(installed(), target)
    rescue.boot("spare")
    rescue.plug("target")
    rescue.wait(f"ls {by_id('target')}-part2")
    print(text := rescue.run(re.sub("@(.*?)@", lambda disk: by_id(disk[1]), SET_UP)))
    rescue.poweroff()
    bad = [int(s) for s in text.split("SECTORS")[1].split()]

    with Machine("distro-root", own=target) as m:
        m.disks["spare"] = rescue.disks["spare"]
        if ALL:
            m.archive("kernel", Path(os.environ["DISTRO_UPGRADE"]).glob("*.deb"))
            m.archive("module", ROOT.glob("build/deb/dm-remap-modules-*[0-9]-amd64_*.deb"))
        # Some of them cannot even be read.
        m.bad["own"] = bad[::8]
        m.boot("spare")
        check(m, "first boot")
        m.run("systemctl --no-block emergency")
        m.wait("systemctl is-active -q emergency.target")
        r.check("emergency mode keeps root", m.ask("findmnt -no SOURCE /; dmsetup info -c --noheadings -o name")[1].split()[0] == "/dev/mapper/root")
        m.reboot()
        m.boot("spare")
        check(m, "after a reboot from emergency mode")
        if ALL:
            upgrade(m)
            print(m.run("dpkg -r --force-depends initramfs-tools; dpkg -i /var/cache/dracut/*.deb 2>&1 | grep -v ^Creating; "
                        "dracut --force 2>&1 | tail -n 3; lsinitrd /boot/initrd.img-$(uname -r) | grep remap", timeout=3600))
            m.reboot()
            m.boot("spare")
            check(m, "by dracut")
            m.reboot()
            m.boot("spare")
            check(m, "by dracut, after a reboot")
        m.poweroff()
        r.equal("the kernel reports nothing", m.reports(), [])
r.end()
