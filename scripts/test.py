"""Runs the tests and counts them. Called by scripts/test, inside the toolchain tree.

A scenario is a script tests/vm/NAME.sh that scripts/vm runs. Comment lines in its head say how:

    # kernels: stock (debug)      on which of scripts/kernel's (default: stock and debug); those in parentheses only if ALL is set
    # vm: --mem 3000 --smp 2      options for scripts/vm (default: one processor, 1200 s); paths are relative to the project
    # disks: 256M 64M,scsi        empty disk images, kept from boot to boot, with what scripts/vm may be told of a disk
    # boots: 98 0                 boots the machine once per number, with the boot's number as first argument and the
                                  exit status that is expected as second (98: the script killed the machine);
                                  SOAK=n in the environment: n times the first and then the last
    # waits: for slow disks         needs little of the processor: one such runs beside the others
    # args: 60                    arguments of a script that boots once; with ALL, those of `all-args`, if there are any

It prints KTAP: a plan `1..N`, then `ok I - promise` or `not ok I - promise`; deeper levels, as KUnit prints them, are
indented by four spaces, and of those only the innermost results count. What is wrong otherwise (an unexpected exit
status, no results, fewer or more than the plan says) counts as one failed test more. tests/vm/lib.sh is /host/lib.sh there,
and the Python files beside it are in /host, too.

`compile-fail` is no scenario: programs that must not compile (tests/compile-fail).

A scenario of tests/distro, `distro-NAME`, is a program that imports scripts/distro.py: see there.

Logs: build/test/. The last line is `N passed, N failed`.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "build/test"
RESULT = re.compile(r"^( *)(not )?ok \d+\b *-? *(.*)")
PLAN = re.compile(r"^( *)1\.\.(\d+)")


class Level:
    """The results at one depth of indentation, since its plan."""

    def __init__(self, indent, failed, plan=None):
        self.indent, self.plan, self.seen = indent, plan, 0
        self.failed = len(failed)  # how many had failed before


def ktap(text, need_plan=True):
    """Counts the innermost results of KTAP output: (passed, [failed...], skipped)."""
    passed, failed, skipped = 0, [], 0
    levels = []

    def close(deeper_than):
        """Ends the levels below an indentation; returns the uppermost of them, if it has results."""
        inner = None
        while levels and levels[-1].indent > deeper_than:
            inner = levels.pop()
            if inner.plan is None and need_plan and inner.indent == 0:
                failed.append("there is no plan (1..N)")
            if inner.plan not in (None, inner.seen):
                failed.append(f"{inner.seen} results of {inner.plan} planned")
        return inner if inner and inner.seen else None

    for line in text.splitlines():
        if match := PLAN.match(line):
            indent = len(match[1])
            close(indent)
            if levels and levels[-1].indent == indent:
                levels[-1].plan = (levels[-1].plan or 0) + int(match[2])
            else:
                levels.append(Level(indent, failed, int(match[2])))
        elif match := RESULT.match(line):
            indent = len(match[1])
            inner = close(indent)
            if not levels or levels[-1].indent < indent:
                levels.append(Level(indent, failed))
            levels[-1].seen += 1
            if "# SKIP" in line:
                skipped += 1
            elif inner and (not match[2] or len(failed) > inner.failed):
                pass  # the results inside were counted
            elif match[2]:
                failed.append(match[3])
            else:
                passed += 1
    any_result = bool(levels) and levels[0].seen > 0
    close(-1)
    if not any_result and need_plan:
        failed.append("there are no results")
    return passed, failed, skipped


def header(script, key, default):
    match = re.search(rf"^# {key}: *(.*)$", script.read_text(), re.M)
    return shlex.split(match[1]) if match else default


def run(command, **options):
    """Runs a program to its end: (exit status, what it printed, seconds of processor time)."""
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True, errors="replace", **options) as process:
        text = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, text, used.ru_utime + used.ru_stime


def report(name, passed, failed, skipped, start, processor):
    """Prints the line of a scenario, with its time and the processor's, and what it said last if it failed."""
    print(f"{'FAIL' if failed else 'ok':4} {name:40} {passed:4} passed, {len(failed)} failed"
          + (f", {skipped} skipped" if skipped else "") + f"  {time.monotonic() - start:6.1f} s, {processor:.0f} of processor", flush=True)
    for promise in failed:
        print(f"       not ok: {promise}  (build/test/{name}.log)", flush=True)
    if failed:
        print("".join(f"       | {line}\n" for line in (LOGS / f"{name}.log").read_text().splitlines()[-50:]), end="", flush=True)
    return passed, len(failed)


def scenario(script, kernel):
    """Runs one scenario on one kernel and prints its line."""
    name = f"{script.stem}-{kernel}"
    start, processor = time.monotonic(), 0
    passed, failed, skipped = 0, [], 0
    options = ["--kernel", kernel, "--timeout", "1200", "--smp", "1"]
    for helper in [ROOT / "tests/vm/lib.sh", *sorted((ROOT / "tests/vm").glob("*.py"))]:
        options += ["--include", str(helper)]
    images = []
    for number, disk in enumerate(header(script, "disks", [])):
        size, *kind = disk.split(",", 1)
        image = LOGS / f"{name}.disk{number}"
        image.unlink(missing_ok=True)
        subprocess.run(["truncate", "-s", size, image], check=True)
        images.append(image)
        options += ["--disk", ",".join([str(image), *kind])]
    options += header(script, "vm", [])
    boots = header(script, "boots", ["0"])
    if (soak := os.environ.get("SOAK")) and len(boots) > 1:
        boots = boots[:1] * int(soak) + boots[-1:]
    arguments = header(script, "args", [])
    if "ALL" in os.environ:
        arguments = header(script, "all-args", arguments)
    with open(LOGS / f"{name}.log", "w", encoding="utf-8") as log:
        for boot, expected in enumerate(boots, 1):
            console = LOGS / f"{name}.console{boot if len(boots) > 1 else ''}"
            args = [str(boot), expected] if len(boots) > 1 else arguments
            # An emulated processor now and then meets code that another one is patching while the kernel starts ("Oops:
            # int3", once in about a hundred boots); nothing of ours has run then.
            for _ in range(2):
                status, text, used = run([ROOT / "scripts/vm", *options, str(script), *args], cwd=ROOT, env={**os.environ, "VM_LOG": str(console)})
                processor += used
                if status != 125:
                    break
                log.write(f"# {text}")
            log.write(text)
            log.flush()
            # A machine that is to be killed cannot finish its plan.
            more = ktap(text, need_plan=expected != "98")
            passed, failed, skipped = passed + more[0], failed + more[1], skipped + more[2]
            if status != int(expected):
                failed.append(f"exit status {status}: " + "".join(text.splitlines()[-1:]))
                break
    for image in images:
        if not failed:
            image.unlink()
    return report(name, passed, failed, skipped, start, processor)


def vm_runs(names):
    """The scenarios to run: [(script, kernel)...], those first that take longest."""
    scripts = [s for s in sorted((ROOT / "tests/vm").glob("*.sh")) if s.stem != "lib"]
    runs = []
    for script in scripts:
        for word in header(script, "kernels", ["stock", "debug"]):
            kernel = word.strip("()")
            default = kernel == word or "ALL" in os.environ
            if f"{script.stem}-{kernel}" in names or (script.stem in names or not names) and default:
                runs.append((script, kernel))
    distro = [f"distro-{script.stem}" for script in distro_runs(names)]
    for name in names:
        if name not in (*distro, "compile-fail") and not any(name in (script.stem, f"{script.stem}-{kernel}") for script, kernel in runs):
            sys.exit(f"no such scenario: {name}")
    return sorted(runs, key=lambda run: run[1])


def distro_runs(names):
    """The scenarios of tests/distro to run; those with `# soak:` in their head only if ALL is set, or by name."""
    scripts = sorted((ROOT / "tests/distro").glob("*.py"))
    return [s for s in scripts if f"distro-{s.stem}" in names or not names and ("ALL" in os.environ or not header(s, "soak", []))]


def kernels(names):
    """The kernels that a run of these scenarios needs; object_test needs stock's module."""
    return sorted({kernel for _, kernel in vm_runs(names)} | ({"stock"} if not names or "compile-fail" in names else set()))


def host_tests():
    """cargo test, its output kept and its results added up."""
    start = time.monotonic()
    # For nobody's debugger. What models call is fast (overflow is still a panic); the tool is compiled soon.
    env = {**os.environ, "CARGO_PROFILE_DEV_DEBUG": "0"}
    fast = {**env, "CARGO_PROFILE_TEST_OPT_LEVEL": "2"}
    cargo = [ROOT / "scripts/build", "cargo", "test", "--no-fail-fast"]
    models = run([*cargo, "--lib", "--test", "publication", "--test", "lifecycle"], env=fast)
    tool = run([*cargo, "--features", "tool", "--bins", "--test", "host"], env=env)
    status, text, processor = (a + b for a, b in zip(models, tool))
    (LOGS / "host.log").write_text(text, encoding="utf-8")
    passed = sum(int(n) for n in re.findall(r"^test result: .* (\d+) passed;", text, re.M))
    failed = re.findall(r"^test (.*) \.\.\. FAILED$", text, re.M)
    if status and not failed or not passed:
        failed.append(f"exit status {status}")
    return report("host", passed, failed, 0, start, processor)


def object_test():
    """What map and end_io can reach in the stock module (tests/hot_path.py)."""
    module = ROOT / "build/stock/dm-remap.ko"
    code = subprocess.run(["objdump", "-dr", "--no-show-raw-insn", module], stdout=subprocess.PIPE, check=True).stdout
    run = subprocess.run([sys.executable, ROOT / "tests/hot_path.py"], input=code, stdout=subprocess.PIPE, check=False)
    print(f"{'FAIL' if run.returncode else 'ok':4} hot path: {run.stdout.decode().strip()}", flush=True)
    return int(run.returncode == 0), int(run.returncode != 0)


def compile_fail_test():
    """Programs that would break src/dm if they compiled (tests/compile-fail)."""
    start = time.monotonic()
    status, text, processor = run([sys.executable, ROOT / "tests/compile-fail/run.py", ROOT / "build/stock"])
    (LOGS / "compile-fail.log").write_text(text, encoding="utf-8")
    passed, failed, skipped = ktap(text)
    if status:
        failed.append(f"exit status {status}")
    return report("compile-fail", passed, failed, skipped, start, processor)


def distro_test(script):
    """Runs one scenario of tests/distro and prints its line."""
    name = f"distro-{script.stem}"
    start = time.monotonic()
    status, text, processor = run([ROOT / "scripts/vm", "--distro", script])
    (LOGS / f"{name}.log").write_text(text, encoding="utf-8")
    passed, failed, skipped = ktap(text)
    if status:
        failed.append(f"exit status {status}")
    return report(name, passed, failed, skipped, start, processor)


def deb_test():
    """The results of scripts/deb check, which scripts/test runs beside us."""
    start = time.monotonic()
    log = LOGS / "deb.log"
    while not log.exists() and time.monotonic() - start < 1800:
        time.sleep(1)
    text = log.read_text() if log.exists() else ""
    passed, failed, _ = ktap(text)
    print(f"{'FAIL' if failed else 'ok':4} {'packages':40} {passed:4} passed, {len(failed)} failed", flush=True)
    for promise in failed:
        print(f"       not ok: {promise}  (build/test/deb.log)", flush=True)
    return passed, len(failed)


def mutations_test():
    """Whether the patches that tests/mutations/run applies still fit the source."""
    patches = sorted((ROOT / "tests/mutations").glob("*.patch"))
    with tempfile.TemporaryDirectory() as copy:  # outside a repository, git applies patches as patch does
        shutil.copytree(ROOT / "src", Path(copy) / "src")
        stale = [p.stem for p in patches if subprocess.run(["git", "apply", "--check", p], cwd=copy, check=False).returncode]
    print(f"{'FAIL' if stale else 'ok':4} mutations: {len(patches)} patches" + "".join(f"\n       does not apply: {p}" for p in stale), flush=True)
    return len(patches) - len(stale), len(stale)


def main():
    what, names = sys.argv[1], sys.argv[2:]
    if what == "kernels":
        print(*kernels(names[1:]))
        return
    LOGS.mkdir(parents=True, exist_ok=True)
    jobs, waiting = [host_tests] if what in ("host", "all") else [], []
    if what in ("vm", "all"):
        jobs += [] if names else [object_test, mutations_test]
        jobs += [compile_fail_test] if not names or "compile-fail" in names else []
        jobs += [lambda script=script: distro_test(script) for script in distro_runs(names)]
        for run in vm_runs(names):
            (waiting if header(run[0], "waits", []) else jobs).append(lambda run=run: scenario(*run))
    jobs += [deb_test] if what == "all" else []
    # (More, beside the one that waits, take each other's cache, and no less time.)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    at_once = int(os.environ.get("VMS") or max(1, min(os.cpu_count(), memory // 4)))
    print(f"{len(jobs) + len(waiting)} runs, {at_once} at once" + (", and one that waits" if waiting else ""), flush=True)
    with ThreadPoolExecutor(at_once) as pool, ThreadPoolExecutor(1) as beside:
        results = [job.result() for job in [pool.submit(job) for job in jobs] + [beside.submit(job) for job in waiting]]
    passed, failed = (sum(column) for column in zip(*results))
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
