"""Runs the sessions of docs/usage.md and compares what is on the screen with what stands there.

    session.py FILE

A session is a block that begins with "```console". In it, a line "$ COMMAND" is typed at a terminal; what follows is what must
come. "[y/N] y" is an answer typed there. A comment "<!-- test: COMMAND -->" before a block is run unseen. What differs from
run to run (uuids, times, counters, progress bars) counts as equal.
"""

import os
import pty
import re
import select
import subprocess
import sys

ANY = [
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uuid>"),
    (r"\b\d{4}-\d\d-\d\d([T ]\d\d:\d\d:\d\dZ?)?", "<time>"),
    (r"\b[0-9a-f]{8}-(\d\d)\b", r"<partition>-\1"),
    (r"^( *(errors|recovered|redirected) ).*", r"\1<numbers>"),  # how often the page cache asks is its matter
    (r"\x1b\[[0-9;?]*[a-zA-Z]", ""),
    (r"[^\n]*\r", ""),  # a progress bar
    (r" read in \d+ s", " read in <time>"),
    (r" +\n", "\n"),
]


def plain(text):
    for pattern, by in ANY:
        text = re.sub(pattern, by, text, flags=re.M)
    return text.strip()


def typed(command, answers):
    """What a terminal of 100 columns shows of a command."""
    pid, fd = pty.fork()
    if pid == 0:
        os.environ.update(TERM="dumb", COLUMNS="100", LC_ALL="C.UTF-8", HOME="/root")
        os.execvp("bash", ["bash", "-c", f"stty -echo cols 100; {command}"])
    seen, answers = b"", list(answers)
    while select.select([fd], [], [], 600)[0]:
        try:
            more = os.read(fd, 4096)
        except OSError:
            break
        if not more:
            break
        seen += more
        if seen.endswith(b"[y/N] "):
            answer = answers.pop(0) if answers else ""
            os.write(fd, answer.encode() + b"\n")
            seen += answer.encode() + b"\n"
    os.waitpid(pid, 0)
    return seen.decode().replace("\r\n", "\n")


def main():
    text = open(sys.argv[1]).read()
    number, failed, steps = 0, 0, []
    for match in re.finditer(r"<!-- test: (.*?) -->|```console\n(.*?)```", text, re.S):
        if match[1]:
            steps.append((None, match[1]))
            continue
        for part in re.split(r"^\$ ", match[2], flags=re.M)[1:]:
            command, _, expected = part.partition("\n")
            while command.endswith("\\"):
                more, _, expected = expected.partition("\n")
                command = command[:-1] + more.strip()
            steps.append((command, expected))
    print(f"1..{sum(command is not None for command, _ in steps)}")
    for command, rest in steps:
        if command is None:
            subprocess.run(["bash", "-c", ". /run/session.sh; " + rest], check=True)
            continue
        number += 1
        answers = re.findall(r"\[y/N\] (\w*)$", rest, re.M)
        seen = typed(command, answers)
        same = plain(seen) == plain(rest)
        failed += not same
        print(f"{'ok' if same else 'not ok'} {number} - {command}", flush=True)
        if not same:
            print("# --- docs\n" + re.sub(r"^", "#   ", plain(rest), flags=re.M))
            print("# --- seen\n" + re.sub(r"^", "#   ", seen.strip(), flags=re.M), flush=True)


main()
