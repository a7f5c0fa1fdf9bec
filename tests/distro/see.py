"""What a person sees of a sector that died, on a machine that has the packages: scrub by its unit, files, map, status, the journal."""
# soak: 3 minutes

from distro import Machine, Report, by_id

r = Report()

SET_UP = rf"""
echo 'OPTIONS="--collect=5s"' >/etc/default/dmremap-monitor
udevadm settle
mkfs.ext4 -q -U 11111111-1111-1111-1111-111111111111 {by_id('main')}
echo 'UUID=11111111-1111-1111-1111-111111111111 /data ext4 defaults 0 2' >>/etc/fstab
mkdir /data
dmremap setup --yes safe {by_id('main')} {by_id('spare')}
systemctl daemon-reload
mount /data
head -c 1M /dev/urandom >/data/letter
sync
"""

with Machine("distro-see") as m:
    m.disk("main", "64M")
    m.disk("spare", "16M")
    m.boot("main", "spare")
    m.run(SET_UP)
    r.equal("scrub finds nothing on a sound disk", m.ask("systemctl start dmremap-scrub@safe")[0], 0)
    m.run("systemctl enable --now dmremap-scrub@safe.timer")
    block = int(m.run("filefrag -v -b512 /data/letter | awk -F'[ .:]+' '$2 == 0 {print $5}'"))
    m.poweroff()

    m.bad["main"] = [block + 11]
    m.boot("main", "spare")
    m.wait("systemctl is-active -q dmremap-monitor")
    r.check("the timer waits", "dmremap-scrub@safe" in m.run("systemctl list-timers --no-pager"), m.run("systemctl list-timers --no-pager"))
    status, text = m.ask("dmremap scrub safe --restart")
    r.check("scrub finds a sector that cannot be read", status == 1 and "pending from now on: 1 unit" in text, f"{status}: {text}")
    status, text = m.ask("dmremap files safe")
    r.check("files says which file it is in, and where", status == 0 and f"{block + 11} 1 pending /data/letter, byte {11 * 512}" in text, f"{status}: {text}")
    text = m.run("dmremap map safe")
    r.check("map shows it", "1 pending" in text, text)
    status, text = m.ask("dmremap status safe")
    r.check("status says so, and what to do", status == 1 and "1 pending" in text and "dmremap files safe" in text, f"{status}: {text}")
    m.wait("journalctl -b -t dmremap DMREMAP_EVENT=pending | grep 'safe: 1 new unit cannot be read'")
    r.check("the monitor has told the journal", True)
    m.poweroff()
    r.equal("the kernel reports nothing", m.reports(), [])
r.end()
