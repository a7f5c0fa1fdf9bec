"""The monitor as its package brings it: started by udev, in the journal, while udev restarts, and across a reboot."""
# soak: 6 minutes

import json

from distro import Machine, Report, by_id

r = Report()

SET_UP = r"""
cat >/usr/local/sbin/sendmail <<'S'
#!/bin/sh
cat >>/root/mails
S
cat >/usr/local/sbin/tell <<'S'
#!/bin/sh
echo "$1 $2 $DMREMAP_NEW $DMREMAP_MODE" >>/root/calls
S
chmod +x /usr/local/sbin/sendmail /usr/local/sbin/tell
touch /root/mails /root/calls
echo 'OPTIONS="--mail=root --program=tell --textfile=/var/lib/dmremap/dm_remap.prom --collect=10s"' >/etc/default/dmremap-monitor
udevadm settle
"""


def entries(m, what):
    """What the journal has of this boot."""
    return [json.loads(line) for line in m.run(f"journalctl -b -o json {what}").splitlines()]


def events(m):
    return [(e["DMREMAP_EVENT"], e["DMREMAP_NAME"], e["DMREMAP_MODE"]) for e in entries(m, "SYSLOG_IDENTIFIER=dmremap") if "DMREMAP_EVENT" in e]


with Machine("distro-watch") as m:
    m.disk("main", "64M")
    m.disk("spare", "16M")
    m.boot("main", "spare")
    m.run(SET_UP)
    r.check("without a device nothing watches", m.ask("systemctl is-active dmremap-monitor")[0] != 0)
    r.equal("the unit is sound", m.run("systemd-analyze verify --man=no dmremap-monitor.service 2>&1"), "")

    m.run(f"dmremap setup --yes safe {by_id('main')} {by_id('spare')}")
    m.wait("systemctl is-active -q dmremap-monitor")
    m.wait("grep -q 'dm_remap_mode{device=\"safe\",mode=\"active\"} 1' /var/lib/dmremap/dm_remap.prom")
    r.check("with the first one udev starts the monitor", True)

    # The spare has some 4000 slots, main more units. Udev restarts all the time meanwhile.
    m.run("""
(while [ ! -e /tmp/enough ]; do systemctl reset-failed systemd-udevd; systemctl restart systemd-udevd; udevadm trigger --subsystem-match=block; done) >/dev/null 2>&1 &
sleep 2
dmremap mark safe 0 64M || true
(dmremap status safe || true) | grep 'mode *full'
""")
    m.wait("grep 'mode /dev/mapper/safe 1 full' /root/calls && grep '^pending' /root/calls && grep '^low-slots' /root/calls")
    m.run("dmremap forget safe 0 64M")
    m.wait("grep 'mode /dev/mapper/safe 1 active' /root/calls")
    # It has seen that they are gone, so that what becomes pending later is new.
    m.wait("grep -q 'dm_remap_units{device=\"safe\",state=\"pending\"} 0' /var/lib/dmremap/dm_remap.prom")
    m.run("touch /tmp/enough; systemctl reset-failed systemd-udevd; udevadm settle")
    r.equal("changes of mode are told while udev restarts", [e for e in events(m) if e[0] == "mode"],
            [("mode", "safe", "full"), ("mode", "safe", "active")])

    found = entries(m, "DMREMAP_EVENT=mode DMREMAP_MODE=full")
    expected = {"_SYSTEMD_UNIT": "dmremap-monitor.service", "PRIORITY": "3", "DMREMAP_DEVICE": "/dev/mapper/safe", "DMREMAP_MODE_BEFORE": "active"}
    r.equal("the journal has an entry with fields", [{key: e.get(key) for key in expected} for e in found], [expected])
    r.check("and no line twice", len(entries(m, "_SYSTEMD_UNIT=dmremap-monitor.service | grep safe: || true")) == len(events(m)),
            m.run("journalctl -b -u dmremap-monitor"))
    mails = m.run("grep -c ^Subject: /root/mails; grep 'mode is full' /root/mails")
    r.check("mail was sent", "Subject: dm-remap on debian: safe: mode is full, it was active" in mails, mails)

    # In the hold-off.
    calls = m.run("dmremap mark safe 1M 1M >/dev/null; cat /root/calls")
    m.reboot()
    m.boot("main", "spare")
    m.wait("systemctl is-active -q dmremap-monitor")
    m.wait("[ $(wc -l </root/calls) -gt %d ]" % len(calls.splitlines()))
    r.equal("after a reboot it tells what it had held back, and nothing else", m.run("cat /root/calls")[len(calls):],
            "pending /dev/mapper/safe 256 active\n")

    m.run("systemctl kill -s KILL dmremap-monitor")
    m.wait("systemctl is-active -q dmremap-monitor && [ $(systemctl show -P NRestarts dmremap-monitor) = 1 ]")
    r.check("killed, it is started again", True)
    m.run("systemctl stop dmremap-monitor")
    r.equal("it ends in order", m.run("systemctl show -P Result dmremap-monitor"), "success\n")
    m.poweroff()
    r.equal("the kernel reports nothing", m.reports(), [])
r.end()
