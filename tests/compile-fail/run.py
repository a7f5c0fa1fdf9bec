"""tests/compile-fail/run.py BUILD [NAME...]: programs that would break src/dm, if they compiled. Each file NAME.rs here says in its first
lines why (`//! ...`), and what the compiler has to say (`//! error: CODE OR TEXT`); the rest replaces parts of control.rs. All are
compiled as Kbuild compiled samples/linear in BUILD, a folder of scripts/build. KTAP; the control comes first and must compile."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
PART = re.compile(r"^ *// (\w+) \{\n(.*?)^ *// \}\n", re.M | re.S)


def command(build):
    """How the sample was compiled, without its source and where what came of it went: (words, environment)."""
    saved = (build / "samples/linear/.rust_dm_linear.o.cmd").read_text(encoding="utf-8")
    words = shlex.split(saved.splitlines()[0].split(":=", 1)[1])
    first = next(at for at, word in enumerate(words) if not re.match(r"[A-Z_]+=", word))
    words, environment = words[first:], dict(word.split("=", 1) for word in words[:first])
    out = words.index("--out-dir")
    del words[out:out + 2]
    environment |= {"RUSTC_BOOTSTRAP": "1", "DM_REMAP_BINDINGS": str(build / "bindings/generated.rs")}
    return [w for w in words if not w.startswith("--emit") and not w.endswith(".rs")], os.environ | environment


def program(case):
    """The control with the parts that `case` replaces."""
    text = (HERE / "control.rs").read_text(encoding="utf-8").replace('"../../src', f'"{HERE.parent.parent}/src')
    for name, body in PART.findall(case):
        text, found = re.subn(rf"^ *// {name} \{{\n.*?^ *// \}}\n", lambda _, body=body: body, text, flags=re.M | re.S)
        assert found == 1, name
    return text


def main():
    build = Path(sys.argv[1]).resolve()
    words, environment = command(build)
    cases = {"control": ""}
    cases |= {f.stem: f.read_text(encoding="utf-8") for f in sorted(HERE.glob("*.rs")) if f.stem != "control" and f.stem in (sys.argv[2:] or [f.stem])}

    def judge(name):
        wanted = re.search(r"^//! error: (.*)$|\Z", cases[name], re.M)[1]
        # Assertions about constants are looked at when code is made.
        emit = "metadata" if wanted not in (None, "E0080") else "obj"
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "program.rs"
            source.write_text(program(cases[name]), encoding="utf-8")
            run = subprocess.run([*words, f"--emit={emit}={folder}/program.o", source], cwd=build, env=environment, check=False,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = run.stdout
        if name == "control":
            return run.returncode == 0, said
        errors = re.findall(r"^error(?:\[E\d+\])?: .*$", said, re.M)
        errors = [e for e in errors if not re.match(r"error: aborting", e)]
        return run.returncode != 0 and errors and all(wanted in e for e in errors), said

    print(f"KTAP version 1\n1..{len(cases)}")
    with ThreadPoolExecutor(2) as pool:
        for number, (name, (good, said)) in enumerate(zip(cases, pool.map(judge, cases)), 1):
            why = "a target compiles" if name == "control" else f"does not compile: {name}"
            print(f"{'ok' if good else 'not ok'} {number} - {why}")
            if not good:
                print("".join(f"# {line}\n" for line in said.splitlines()), end="")


main()
