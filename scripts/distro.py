"""A machine with a whole Debian 13, for scenarios of tests/distro (scripts/vm --distro).

    with Machine("name") as m:
        m.disk("main", "64M")
        m.boot("main")          # its own disk and these, in this order, with serial numbers
        m.run("lsblk")          # what it prints; an exit status other than 0 is an error
        m.plug("main")          # while it runs
        m.poweroff()            # or reboot(), or cut(): the power fails

The shell is QEMU's guest agent, which starts as soon as udev does: also if the machine ends in its emergency mode.
"""

import base64
import json
import os
import re
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build/test"
# A generous bound for what takes seconds on a fast machine.
LONG = 1800
REPORTS = re.compile(os.environ["REPORTS"])


def copy(disk, to):
    """A copy of a disk; its path."""
    subprocess.run(["cp", "--reflink=auto", "--sparse=always", disk, to], check=True)
    return to


def wwn(name):
    """A world wide name for the disk `name`."""
    return 0x5000 << 48 | int.from_bytes(name.encode()[:6].ljust(6, b"_"), "big")


def by_id(name):
    """The path by which udev always knows the disk `name`."""
    return f"/dev/disk/by-id/wwn-0x{wwn(name):016x}"


class Channel:
    """Lines of JSON over a socket of QEMU's."""

    def __init__(self, path, alive):
        self.path, self.alive, self.file = path, alive, None

    def connect(self, until):
        while True:
            try:
                sock = socket.socket(socket.AF_UNIX)
                sock.connect(str(self.path))
                break
            except OSError:
                sock.close()
                if not self.alive() or time.monotonic() > until:
                    raise
                time.sleep(0.1)
        sock.settimeout(2)
        self.file = sock
        self.rest = b""

    def send(self, message):
        self.file.sendall(json.dumps(message).encode() + b"\n")

    def receive(self, until):
        """The next message; None at the time `until`."""
        while b"\n" not in self.rest:
            if time.monotonic() > until:
                return None
            try:
                more = self.file.recv(65536)
            except TimeoutError:
                if not self.alive():
                    raise EOFError("the machine ended") from None
                continue
            if not more:
                raise EOFError("the machine ended")
            self.rest += more
        line, self.rest = self.rest.split(b"\n", 1)
        try:
            return json.loads(line.strip(b"\xff"))
        except ValueError:
            return {}

    def ask(self, command, timeout=LONG, **arguments):
        """The answer to a command."""
        self.send({"execute": command, "arguments": arguments})
        until = time.monotonic() + timeout
        while (answer := self.receive(until)) is not None:
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']}")
        raise TimeoutError(command)


class Machine:
    """`own`: the file of its disk, which it changes; otherwise a copy of the one with our packages."""

    def __init__(self, name, own=None, mem=1024):
        self.name, self.mem = name, mem
        self.dir = Path(tempfile.mkdtemp(prefix="run.", dir=os.environ["DISTRO_CACHE"]))
        self.own = own or copy(installed(), self.dir / "own")
        self.disks = {}  # name: file
        self.bad = {}  # name: sectors that cannot be read
        self.process, self.boots = None, 0
        LOGS.mkdir(parents=True, exist_ok=True)
        self.log = LOGS / f"{name}.console"
        self.log.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()
        subprocess.run(["rm", "-rf", self.dir], check=True)

    def disk(self, name, size):
        """A new disk without data; its serial number is its name."""
        self.disks[name] = self.dir / f"{name}.disk"
        subprocess.run(["truncate", "-s", size, self.disks[name]], check=True)

    def archive(self, name, files):
        """A new disk that is a tar archive of these files."""
        self.disks[name] = self.dir / f"{name}.disk"
        with tarfile.open(self.disks[name], "w") as archive:
            for file in files:
                archive.add(file, Path(file).name)

    # ---- Power

    def is_on(self):
        return self.process is not None and self.process.poll() is None

    def start(self, *disks):
        """Turns it on, with these disks, and waits for nothing. `own`, its own disk, is the first unless named."""
        assert not self.is_on()
        self.boots += 1
        console = self.dir / "console"
        console.unlink(missing_ok=True)
        if "own" not in disks:
            disks = ("own", *disks)
        args = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
                "-accel", os.environ.get("VM_ACCEL", "tcg,thread=multi"), "-cpu", "Nehalem", "-smp", "1", "-m", str(self.mem),
                "-serial", f"file:{console}", "-device", "virtio-scsi-pci,id=scsi", "-device", "virtio-serial-pci", "-device", "virtio-rng-pci",
                "-chardev", f"socket,id=agent,path={self.dir}/agent,server=on,wait=off", "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
                "-qmp", f"unix:{self.dir}/qmp,server=on,wait=off"]
        for name, file in [("own", self.own), *self.disks.items()]:
            below = f"driver=file,node-name=file-{name},filename={file},cache.no-flush=on,discard=unmap"
            above = {"driver": "raw", "node-name": f"disk-{name}", "file": f"file-{name}", "discard": "unmap"}
            if bad := self.bad.get(name):
                errors = [{"event": "read_aio", "errno": 5, "sector": sector} for sector in bad]
                above["file"] = {"driver": "blkdebug", "image": f"file-{name}", "inject-error": errors}
            args += ["-blockdev", below, "-blockdev", json.dumps(above)]
        for name in disks:
            args += ["-device", ",".join(f"{key}={value}" for key, value in self.device(name).items())]
        with open(self.dir / "qemu", "wb") as out:
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *args], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        self.agent = None
        self.qmp = Channel(self.dir / "qmp", self.is_on)
        self.qmp.connect(time.monotonic() + 60)
        self.qmp.receive(time.monotonic() + 60)
        self.qmp.ask("qmp_capabilities")

    def device(self, name):
        """What QEMU is to make of the disk `name`."""
        return {"driver": "scsi-hd", "id": name, "bus": "scsi.0", "drive": f"disk-{name}", "serial": name, "wwn": wwn(name),
                **({"bootindex": 0} if name == "own" else {})}

    def boot(self, *disks, wait=True):
        """Turns it on, and waits until the shell is there and, with `wait`, until the boot has come to an end of some kind."""
        self.start(*disks)
        self.connect()
        if wait:
            self.settle()

    def connect(self, timeout=LONG):
        until = time.monotonic() + timeout
        self.agent = Channel(self.dir / "agent", self.is_on)
        self.agent.connect(until)
        while time.monotonic() < until:
            # Answers of an earlier question may come first.
            number = time.monotonic_ns() & 0x7FFFFFFF
            try:
                # The byte makes it forget what came of a question before.
                self.agent.file.sendall(b"\xff")
                self.agent.send({"execute": "guest-sync", "arguments": {"id": number}})
            except TimeoutError:
                continue  # there is nobody yet, and no more room
            answer = self.agent.receive(time.monotonic() + 3)
            while answer is not None and answer.get("return") != number:
                answer = self.agent.receive(time.monotonic() + 3)
            if answer:
                return
        raise TimeoutError(f"{self.name}: no shell after {timeout} s; the console ends with: {self.console()[-2000:]}")

    def settle(self, timeout=LONG):
        """Waits until systemd has no more to do, or is in emergency mode."""
        self.wait("! systemctl is-system-running | grep -qE 'initializing|starting' || systemctl is-active -q emergency.target", timeout)

    def end(self, timeout):
        """Waits until QEMU has ended."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name}: still on after {timeout} s; the console ends with: {self.console()[-3000:]}") from None
        finally:
            self.keep_console()

    def poweroff(self, timeout=LONG, how="poweroff"):
        self.run(f"systemctl --no-block {how}")
        self.end(timeout)

    def reboot(self, timeout=LONG):
        """As far as the firmware."""
        self.poweroff(timeout, "reboot")

    def cut(self):
        """The power fails."""
        if self.is_on():
            self.process.kill()
            self.end(60)

    def console(self):
        try:
            return (self.dir / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def keep_console(self):
        with open(self.log, "a", encoding="utf-8") as log:
            log.write(f"==== boot {self.boots}\n{self.console()}\n")

    def reports(self):
        """What the kernel said in any of its boots that it should not have."""
        return [line for line in self.log.read_text().splitlines() if REPORTS.search(line)]

    # ---- Inside

    def ask(self, script, timeout=LONG):
        """Runs a shell script as root; (exit status, what it printed)."""
        pid = self.agent.ask("guest-exec", path="/bin/bash", arg=["-c", "exec 2>&1\nexport HOME=/root\n" + script], **{"capture-output": True})["pid"]
        start = time.monotonic()
        while True:
            status = self.agent.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                text = base64.b64decode(status.get("out-data", "")).decode(errors="replace")
                return status.get("exitcode", 128 + status.get("signal", 0)), text
            # To ask costs the machine something, too.
            if (lasted := time.monotonic() - start) > timeout:
                raise TimeoutError(f"{self.name}: {script!r} runs for more than {timeout} s")
            time.sleep(min(0.1 + lasted / 10, 2))

    def run(self, script, timeout=LONG):
        """Runs a shell script; what it printed. It must end well."""
        status, text = self.ask("set -e -o pipefail\n" + script, timeout)
        if status:
            raise RuntimeError(f"{self.name}: {script!r}: status {status}: {text}")
        return text

    def wait(self, script, timeout=LONG):
        """Runs a script again and again until it ends well; what it printed."""
        until = time.monotonic() + timeout
        while True:
            start = time.monotonic()
            status, text = self.ask(script, timeout)
            if status == 0:
                return text
            if (now := time.monotonic()) > until:
                raise TimeoutError(f"{self.name}: {script!r}: still status {status} after {timeout} s: {text}")
            time.sleep(1 + 2 * (now - start))

    def plug(self, name):
        """Connects a disk."""
        self.qmp.ask("device_add", **self.device(name))

    def unplug(self, name):
        self.qmp.ask("device_del", id=name)


def installed():
    """The disk with our packages, which scripts/distro has made."""
    disk, = (ROOT / "build/distro").glob("*.disk")
    return disk


class Report:
    """Counts promises; KTAP."""

    def __init__(self):
        self.lines = []

    def check(self, promise, good, why=""):
        self.lines.append(f"{'ok' if good else 'not ok'} {len(self.lines) + 1} - {promise}")
        print(f"# {self.lines[-1]}" + ("" if good else f": {why}"), flush=True)
        return good

    def equal(self, promise, found, expected):
        return self.check(promise, found == expected, f"{found!r}, not {expected!r}")

    def end(self):
        print("KTAP version 1", f"1..{len(self.lines)}", *self.lines, sep="\n", flush=True)
        sys.exit(0)

