#!/usr/bin/env python3
"""Makes the form that src/dm/ and samples/linear/ have in the kernel's tree, at one step of the patch series.

    scripts/upstream.py check KERNEL-SOURCE           whether dist/upstream/series.toml fits the sources, for all steps
    scripts/upstream.py steps                         how many there are
    scripts/upstream.py files STEP                    what the steps up to this one touch, in the kernel's tree
    scripts/upstream.py write STEP TREE KERNEL-SOURCE these files into TREE, made from KERNEL-SOURCE, which is not changed
    scripts/upstream.py fix KERNEL-SOURCE             the fix that goes with it, into KERNEL-SOURCE
    scripts/upstream.py message STEP|cover|fix        what the commit or the cover letter says

dist/upstream/series.toml says which step what comes in, and what is other words there. The rest is done by these rules:

- paths, visibility and names are those of the kernel crate; helpers and constants of bindings/ are in the step that first
  uses them;
- imports that a step has no use for are left out, the others are written one a line, as the kernel has them;
- a link in a comment to something that comes later is no link yet;
- comments are as wide as the kernel's.

Whatever in series.toml fits nothing is an error: so it cannot fall behind the sources unseen.
"""

import os
import re
import sys
import textwrap
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DM = ROOT / "src/dm"
SERIES = tomllib.loads((ROOT / "dist/upstream/series.toml").read_text())
STEPS = range(1, len(SERIES["step"]) + 1)
NEVER = 99
WIDTH = 100
PLACE = "rust/kernel/device_mapper"
SAMPLE = "samples/rust/rust_dm_linear.rs"


def die(text):
    sys.exit(f"upstream: {text}")


# --- Rust, as far as it is needed: text that rustfmt has formatted.


def depth(line):
    """By how much the brackets in a line open more than they close, strings, characters and comments apart."""
    line = re.sub(r"//.*", "", re.sub(r'"(\\.|[^"\\])*"', '""', re.sub(r"b?'(\\.|[^'\\])'", "' '", line)))
    return sum(map(line.count, "([{")) - sum(map(line.count, ")]}"))


def bare(line):
    """What an item begins with, without visibility and qualifiers."""
    line = re.sub(r"^\s*(pub(\([^)]*\))? )?", "", line)
    return re.sub(r'^(const (?=fn|unsafe)|unsafe (?=fn|extern)|extern "C" )+', "", line)


def is_begin(line, words):
    """Whether the line begins with these words, whole ones."""
    return any(
        begin.startswith(words) and not (words[-1].isalnum() and re.match(r"\w", begin[len(words) :]))
        for begin in (bare(line), line.lstrip())
    )


def item(lines, at):
    """The item, statement, field or arm that line `at` begins, with what stands above it: a range of lines."""
    if lines[at].lstrip().startswith(("//!", "///")):
        return doc_item(lines, at)
    first, indent = at, re.match(r"\s*", lines[at]).group()
    while first and re.match(indent + r"(//[^!]|//$|#\[)", lines[first - 1]):
        first -= 1
    definition = re.match(r"(fn|impl|struct|enum|trait|mod)\b", bare(lines[at]))
    ends = r"[;}]$" if definition else r"[;},]$"
    level, end = 0, at
    while True:
        level += depth(lines[end])
        code = re.sub(r"\s*//.*", "", lines[end])
        after = lines[end + 1].lstrip() if end + 1 < len(lines) else ""
        if level == 0 and re.search(ends, code) and not after.startswith((".", "?")):
            break
        if level < 0 or end + 1 == len(lines):
            die(f"no end of: {lines[at]}")
        end += 1
    # One of the empty lines around it.
    if end + 1 < len(lines) and not lines[end + 1] and (first == 0 or not lines[first - 1]):
        end += 1
    return first, end + 1


def doc_item(lines, at):
    """A list's item, a table's row, or a paragraph and the empty line behind it."""
    prefix, text = re.match(r"(\s*//[/!])(.*)", lines[at]).groups()
    end = at + 1
    if text.startswith(" |"):
        return at, end
    if text.startswith(" ```"):
        while not lines[end].startswith(prefix + " ```"):
            end += 1
        end += 1
    is_list = text.startswith(" - ")
    while end < len(lines) and re.match(re.escape(prefix) + (r"   " if is_list else r" (?!- |```|\|)"), lines[end]):
        end += 1
    if not is_list and end < len(lines) and lines[end] == prefix:
        end += 1
    elif not is_list and not lines[end].startswith(prefix) and lines[at - 1] == prefix:
        at -= 1
    return at, end


def code(text):
    """Without comments and imports."""
    text = re.sub(r"(?m)(?<![\"\w])//.*$", "", text)
    return re.sub(r"(?ms)^\s*(pub(\([^)]*\))? )?use [^;]*;", "", text)


# --- Imports.


def leaves(tree):
    """The paths of a `use` tree."""
    tree = tree.strip()
    opened = tree.find("{")
    if opened < 0:
        return [re.sub(r"::self$", "", tree)] if tree else []
    head, inner, out, level, start = tree[:opened], tree[opened + 1 : tree.rindex("}")], [], 0, 0
    for at, char in enumerate(inner + ","):
        level += {"{": 1, "}": -1}.get(char, 0)
        if char == "," and level == 0:
            out += [re.sub(r"::self$", "", head + leaf) for leaf in leaves(inner[start:at])]
            start = at + 1
    return out


def order(path):
    """As rustfmt sorts names: its own first, then functions and modules, types, constants."""
    name = path.split("::")[0]
    kind = 0 if name in ("self", "super", "crate") else 4 if name == "*" else 1 if name.islower() else 3 if name.isupper() else 2
    return kind, name, path


def tree_of(paths, indent=""):
    """The paths as the kernel writes them: one name a line, braces around more than one."""
    heads = {}
    for path in sorted(set(paths), key=order):
        head, _, rest = path.partition("::")
        heads.setdefault(head, []).append(rest)
    parts = []
    for head, rests in heads.items():
        below = [rest for rest in rests if rest]
        if not below:
            parts.append(head)
        else:
            inner = tree_of([rest or "self" for rest in rests], indent + ("    " if len(heads) > 1 else ""))
            parts.append(f"{head}::{inner}")
    if len(parts) == 1:
        return parts[0]
    within = indent + "    "
    return "{\n" + within + f",\n{within}".join(parts) + f", //\n{indent}}}"


def write_imports(visibility, paths, roots):
    """`use` declarations, one for each crate or for `super`."""
    out = []
    for root in roots:
        mine = [p for p in paths if p.split("::")[0] == root]
        if mine:
            out.append(f"{visibility}use {tree_of(mine)};")
    return out


class Tree:
    """All files of the layer at one step."""

    def __init__(self, step, source):
        self.step, self.source = step, source
        self.modules = {self.module(name) for name, what in SERIES["file"].items() if what["step"] <= step}
        self.texts = {}
        # By the names of their modules: () for mod.rs, ("bio", "raw").
        for name, what in SERIES["file"].items():
            if what["step"] <= step:
                self.texts[self.module(name)] = self.strip(name, what)
        self.texts = {module: self.rename(text) for module, text in self.texts.items()}
        self.texts = {module: self.imports(module, text) for module, text in self.texts.items()}
        self.delink()
        self.texts = {module: wrap(text) for module, text in self.texts.items()}

    @staticmethod
    def module(name):
        return tuple(part for part in name.removesuffix(".rs").split("/") if part != "mod")

    def has(self, configuration):
        """As Kbuild finds out."""
        kbuild = (ROOT / "Kbuild").read_text()
        found = re.search(rf"dmr-has,{configuration},([^,]*),(.*)\)\n", kbuild)
        if not found:
            die(f"Kbuild has no {configuration}")
        return re.search(found[2], (self.source / found[1]).read_text(), re.M) is not None

    def resolve(self, lines):
        """What the series decides: `#[cfg(dmr_...)]`."""
        at = 0
        while at < len(lines):
            found = re.match(r"\s*#\[cfg\((not\()?(dmr_\w+)\)*\]", lines[at])
            if not found:
                at += 1
            elif self.has(found[2]) != bool(found[1]):
                del lines[at]
            else:
                first = at + 1
                while re.match(r"\s*//", lines[first]):
                    first += 1
                _, end = item(lines, first)
                del lines[at:end]
        return lines

    @staticmethod
    def remove(name, lines, text):
        """The items that begin with these words. "outer > words": in one that begins with others."""
        first, end, words = 0, len(lines), text
        while " > " in words:
            outer, words = words.split(" > ", 1)
            at = [n for n in range(first, end) if is_begin(lines[n], outer)]
            if len(at) != 1:
                die(f"series.toml: {name} has no, or more than one: {outer}")
            first, end = item(lines, at[0])
            first = at[0] + 1
        found = [n for n in range(first, end) if is_begin(lines[n], words)]
        if not found:
            die(f"series.toml: {name} has no: {text}")
        for at in reversed(found):
            first, end = item(lines, at)
            del lines[first:end]

    def strip(self, name, what):
        """Without what comes later."""
        path = ROOT / what.get("from", f"src/dm/{name}")
        lines = self.resolve(path.read_text().splitlines())
        for move in what.get("move", []):
            if move["step"] <= self.step:
                other = self.resolve((DM / move["from"]).read_text().splitlines())
                at = [n for n, line in enumerate(other) if is_begin(line, move["item"])]
                if len(at) != 1:
                    die(f"series.toml: {move['from']} has no: {move['item']}")
                first, end = item(other, at[0])
                lines += ["", *other[first:end]]
        text = "\n".join(lines) + "\n"
        for change in what.get("change", []):
            if change.get("from", 1) <= self.step < change.get("before", NEVER):
                if "if" in change and not self.has(change["if"]) or "unless" in change and self.has(change["unless"]):
                    continue
                if change["old"] not in text:
                    die(f"series.toml: {name} has no: {change['old']}")
                text = text.replace(change["old"], change["new"])
        lines = text.splitlines()
        # The last ones first: they may lie in what comes earlier.
        for step in sorted((int(key) for key in what if key.isdigit()), reverse=True):
            if step > self.step or step == 0:
                for words in what[str(step)]:
                    self.remove(name, lines, words)
        for at in reversed([n for n, line in enumerate(lines) if re.fullmatch(r"mod (\w+);", bare(line))]):
            if (*self.module(name), bare(lines[at])[4:-1]) not in self.modules:
                first, end = item(lines, at)
                del lines[first:end]
        return "\n".join(lines) + "\n"

    def rename(self, text):
        text = re.sub(r"\bpub\(crate\)", "pub", text)
        text = re.sub(r"(?<![\w:$])kernel::", "crate::", text)
        text = re.sub(r"(?<![\w:$])(super::)+bindings::", "bindings::", text)
        text = text.replace("crate::bindings::", "bindings::")
        text = re.sub(r"\bbindings::dmr_(\w+)", lambda m: "bindings::" + helper_name(m[1]), text)
        text = text.replace("$crate::dm::", "$crate::device_mapper::")
        text = re.sub(r"(?<!\w)module_target\b", "module_dm_target", text)
        text = re.sub(r"\bCONFIG_KUNIT\b", "CONFIG_RUST_DEVICE_MAPPER_KUNIT_TEST", text)
        return text.replace("kunit_tests(dm_remap_", "kunit_tests(rust_device_mapper_")

    def defines(self, module, name, seen=()):
        """Whether the module has that name, or hands it on."""
        text = self.texts.get(module)
        if text is None or module in seen:
            return False
        if re.search(rf"\b(fn|struct|enum|trait|type|const|static|mod|macro_rules!) {name}\b", text):
            return True
        for path in re.findall(r"(?ms)^(?:pub(?:\([^)]*\))? )use ([^;]*);", text):
            for leaf in leaves(re.sub(r"\s+", "", path.replace("//", ""))):
                if leaf.split("::")[-1] == name and self.exists(module, leaf, (*seen, module)):
                    return True
        return False

    def exists(self, module, leaf, seen=()):
        """Whether there is what `leaf` names, seen from `module`; `True` of what is not the layer's."""
        at, parts = list(module), leaf.split("::")
        if parts[0] not in ("super", "self") and (*module, parts[0]) not in ALL_MODULES:
            return True
        while parts and parts[0] in ("super", "self"):
            if parts.pop(0) == "super":
                if not at:
                    return True
                at.pop()
        while len(parts) > 1 and (*at, parts[0]) in ALL_MODULES:
            at.append(parts.pop(0))
        if not parts or parts == ["*"]:
            return tuple(at) in self.texts or not parts
        return (*at, parts[0]) in self.texts or self.defines(tuple(at), parts[0], seen)

    def imports(self, module, text):
        """Prunes the imports, and writes them as the kernel does."""
        rest = code(text)
        def one(found):
            indent, visibility, tree = found[1], found[2] or "", found[3]
            own = visibility != ""
            kept = []
            for leaf in leaves(re.sub(r"\s+", "", re.sub(r"//.*", "", tree))):
                leaf = re.sub(r"^(super::)+bindings\b", "crate::bindings", leaf)
                leaf = re.sub(r"^bindings\b", "crate::bindings", leaf)
                name = leaf.split("::")[-1]
                if not self.exists(module, leaf):
                    continue
                if leaf == "crate::prelude::*":
                    name = PRELUDE
                if name == "*" or own or re.search(rf"\b{name}\b", rest):
                    kept.append(leaf)
            # It is a crate of its own, and needs no import.
            kept = [leaf for leaf in kept if leaf != "crate::bindings"]
            return "".join(
                f"\n{indent}USE {'own' if own else 'use'} {visibility}|{leaf}" for leaf in kept
            )

        text = re.sub(r"(?ms)\n([ ]*)(pub(?:\([^)]*\))? )?use (?!::)([^;]*);(?=\n)", one, text)
        # Now one a line: group those that stand together.
        out, group = [], []

        def flush():
            if not group:
                return
            indent, visibility = group[0][0], group[0][1]
            paths = [g[2] for g in group]
            roots = sorted({p.split("::")[0] for p in paths}, key=lambda r: ("core", "kernel", "crate").index(r) if r in ("core", "kernel", "crate") else 9)
            for number, declaration in enumerate(write_imports(visibility, paths, roots)):
                if number and not visibility and not indent:
                    out.append("")
                out.extend(indent + line for line in declaration.splitlines())
            group.clear()

        for line in text.split("\n"):
            found = re.match(r"([ ]*)USE (own|use) (.*)\|(.*)$", line)
            key = found and (found[1], found[3], found[4])
            if key and group and (group[0][0], group[0][1]) != (key[0], key[1]):
                flush()
            # What is handed on stays in declarations of its own, one for each module.
            if key and key[1] and group and group[0][2].split("::")[0] != key[2].split("::")[0]:
                flush()
            if key:
                group.append(key)
            else:
                flush()
                out.append(line)
        flush()
        return "\n".join(out)

    def delink(self):
        """No links to what comes later."""
        everything = "\n".join(self.texts.values())

        def defined(name):
            return re.search(rf"\b(fn|struct|enum|trait|type|const|mod|macro_rules!) {name}\b", everything)

        def one(found):
            target = (found[3] or found[1]).strip("`")
            name = re.sub(r"[()!<>].*", "", target).split("::")[-1]
            if name not in OURS or defined(name):
                return found[0]
            return found[1]

        for module, text in self.texts.items():
            self.texts[module] = re.sub(r"\[(`?[\w:!<>()]+`?|[a-z ]+)\](\(([\w:]+)\))?(?=[^(\w]|$)", one, text, flags=re.M)


# What the layer takes from the prelude of the kernel crate.
PRELUDE = r"(Result|Error|K?V?Box|K?V?Vec|GFP_KERNEL|E[A-Z]{2,}|c_\w+|CStr|Pin|PinInit|(try_)?pin_init|pin_data|ThisModule|vtable|build_error|kunit_tests)"
ALL_MODULES = {Tree.module(name) for name in SERIES["file"]} | {
    Tree.module(str(path.relative_to(DM))) for path in DM.rglob("*.rs")
}
OURS = set(re.findall(r"\b(?:fn|struct|enum|trait|type|const|mod|macro_rules!) (\w+)", "\n".join(p.read_text() for p in DM.rglob("*.rs"))))
OURS |= {"module_dm_target"}


# --- Comments.


def wrap(text):
    """Comments with a line that is too long are set anew, paragraph by paragraph."""
    out, block = [], []
    fence = False

    def flush():
        if any(len(prefix + line) > WIDTH for prefix, line in block):
            prefix, first = block[0]
            hang = re.match(r" *(- |\d+\. )?", first).group()
            room = WIDTH - len(prefix)
            words = " ".join(line.strip() for _, line in block).split(" ")
            lines, current = [], " " * (len(hang) - len(hang.lstrip()))
            for word in words:
                if current.strip() and len(current) + 1 + len(word) > room:
                    lines.append(current)
                    current = " " * len(hang) + word
                else:
                    current += ("" if not current.strip() else " ") + word
            out.extend(prefix + line for line in [*lines, current])
        else:
            out.extend(prefix + line for prefix, line in block)
        block.clear()

    for line in text.split("\n"):
        found = re.match(r"(\s*//[/!]?)( .*)$", line)
        if not found or found[2].startswith(" ```") or fence or found[2].startswith(" |"):
            flush()
            if found and found[2].startswith(" ```"):
                fence = not fence
            out.append(line)
            continue
        if block and (block[0][0] != found[1] or re.match(r" *(- |\d+\. |#)", found[2]) or re.match(r" (INVARIANT|SAFETY|PANIC|TODO):", found[2])):
            flush()
        block.append((found[1], found[2]))
    flush()
    return "\n".join(out)


# --- The C side: bindings/ of this project.

HELPERS = (ROOT / "bindings/helpers.c").read_text()
HEADER = (ROOT / "bindings/bindings.h").read_text()


def helpers():
    """Name and text of each function of helpers.c."""
    found = re.findall(r"(?m)^((?:/\*.*\*/\n)?(?:[\w ]+[ *]+)dmr_(\w+)\([^{]*\)\n\{\n(?:.*\n)*?\}\n)", HELPERS)
    return {name: text for text, name in found}


def helper_name(name):
    """What it is called in the kernel's tree: as what it wraps, if that is all it does."""
    body = helpers().get(name) or die(f"bindings/helpers.c has no dmr_{name}")
    other = SERIES["helper"].get(name)
    if other:
        return other
    if not re.search(rf"\n\t(return )?{name}\(.*\);\n\}}", body):
        die(f"series.toml does not say what the helper dmr_{name} is called")
    return name


def c_files(step, rust):
    """rust/helpers/device_mapper.c, and the constants for bindings_helper.h."""
    used = set(re.findall(r"\bbindings::(\w+)", code(rust)))
    text, bodies = ["// SPDX-License-Identifier: GPL-2.0", ""], []
    for name, body in helpers().items():
        wanted = SERIES["helper"].get(name, name)
        if wanted in used and wanted not in SERIES["no_helper"]:
            body = re.sub(rf"(?m)^([\w ]+[ *]+)dmr_{name}\(", rf"__rust_helper \1rust_helper_{wanted}(", body)
            bodies.append(body)
    includes = {"linux/device-mapper.h"}
    for pattern, include in SERIES["include"].items():
        if any(re.search(pattern, body) for body in bodies):
            includes.add(include)
    text += [f"#include <{include}>" for include in sorted(includes)]
    c = "\n".join(text) + "\n\n" + "\n".join(align(body) for body in bodies)
    constants = []
    for line in re.findall(r"(?m)^const .*;$", HEADER):
        name = re.search(r"RUST_CONST_HELPER_(\w+)", line)[1]
        # What is plainly a number, bindgen understands by itself.
        if name in used and not name.startswith("DM_"):
            constants.append(line)
    return c, constants


def align(body):
    """What does not fit into a line is aligned to the parenthesis."""
    head, rest = body.split("\n{\n", 1)
    lines = head.split("\n")
    last = lines.pop()
    if len(last) > 80:
        opened = last.index("(") + 1
        out, words = last[:opened], last[opened:].rstrip(")").split(", ")
        column = len(out)
        for number, word in enumerate(words):
            word += ")" if number + 1 == len(words) else ","
            if column + 1 + len(word) > 80 and number:
                out += "\n" + "\t" * (opened // 8) + " " * (opened % 8) + word
                column = opened + len(word)
            else:
                out += (" " if number else "") + word
                column += len(word) + 1
        last = out
    return "\n".join([*lines, last]) + "\n{\n" + rest


# --- The sample.


def sample(step):
    text = (ROOT / "samples/linear/rust_dm_linear.rs").read_text()
    out = re.sub(r'// In the kernel.*\n#\[path.*\nmod dm;\n\n', "", text)
    if out == text:
        die("the sample includes the layer in another way than is known here")
    lines = out.splitlines()
    for number, items in SERIES["sample"].items():
        if int(number) > step:
            for begin in items:
                found = [n for n, line in enumerate(lines) if is_begin(line, begin)] or die(f"the sample has no: {begin}")
                for at in reversed(found):
                    first, end = item(lines, at)
                    del lines[first:end]
    out = "\n".join(lines) + "\n"
    out = re.sub(r"\bmodule_target!", "kernel::module_dm_target!", out)
    uses = re.findall(r"(?ms)^use ([^;]*);\n", out)
    paths = [leaf for use in uses for leaf in leaves(re.sub(r"\s+", "", use))]
    paths = [re.sub(r"^dm::", "kernel::device_mapper::", path) for path in paths]
    imports = "\n".join(write_imports("", paths, ["core", "kernel"])) + "\n"
    first = out.index("\nuse ") + 1
    out = re.sub(r"(?ms)^use [^;]*;\n", "", out)
    return wrap(out[:first] + imports + out[first:])


def example(step):
    """The sample as the example in the module's documentation: compiled with the documentation's tests."""
    body = sample(step)
    body = body[body.index("\nuse ") + 1 : body.index("\nkernel::module_dm_target!")]
    return "\n".join(f"//! {line}".rstrip() for line in body.rstrip().splitlines())


# --- What is in the tree already.


def insert(text, before, new, name):
    if text.count(before) != 1:
        die(f"{name} has no, or more than one: {before.strip()}")
    return text.replace(before, new + before)


def edited(step, tree, read):
    """Files of the tree with what the step adds: name and text. `read` gives them as they were."""
    rust = "\n".join(tree.texts.values())
    c, constants = c_files(step, rust)
    files = {"rust/helpers/device_mapper.c": c}
    for edit in SERIES["edit"]:
        if edit["step"] <= step:
            name = edit["file"]
            text = files.get(name) or read(name)
            new = edit["new"].replace("@CONSTANTS@\n", "".join(line + "\n" for line in constants))
            new = new.replace("@AUTHOR@", os.environ.get("AUTHOR", "Nobody <nobody@example.org>"))
            new = new.replace("@FILES@\n", "".join(f"F:\t{file}\n" for file in sorted(own_files(step))))
            files[name] = insert(text, edit["before"], new, name)
    return files


def own_files(step):
    """Files that only the series has."""
    names = ["rust/helpers/device_mapper.c"]
    for name, what in SERIES["file"].items():
        if what["step"] <= step:
            names.append(place(Tree.module(name)))
    if step >= SERIES["sample_step"]:
        names.append(SAMPLE)
    return names


def place(module):
    return "/".join((PLACE, *module)) + ".rs"


def generate(step, source, read):
    tree = Tree(step, source)
    files = edited(step, tree, read)
    for module, text in tree.texts.items():
        if not module:
            shown = step >= SERIES["sample_step"]
            old = re.search(r"(?m)^#!\[cfg_attr\(doc, doc = \"\\n(# .*)\\n\\n```ignore\"\)\]\n.*\n.*\n", text) or die("mod.rs shows no sample")
            new = f"//!\n//! {old[1]}\n//!\n//! ```\n{example(step)}\n//! ```\n" if shown else ""
            text = text.replace(old[0], new)
        files[place(module)] = text
    if step >= SERIES["sample_step"]:
        files[SAMPLE] = sample(step)
    return files


def say(what):
    """A subject, and its text with no line longer than git's and checkpatch's 75."""
    paragraphs = what["text"].strip().split("\n\n")
    # (Lists, titles, tables and commands stay as they are.)
    filled = [
        textwrap.fill(p, 74, break_on_hyphens=False) if not re.search(r"(?m)^([ \t-]|=|\d:)", p) and len(p) > 75 else p
        for p in paragraphs
    ]
    print(what["subject"], *filled, sep="\n\n")


def main():
    match sys.argv[1:]:
        case ["check", source]:
            source = Path(source)
            for step in STEPS:
                generate(step, source, lambda name: (source / name).read_text())
            known = set(SERIES["file"]) | set(SERIES["never"])
            for path in DM.rglob("*.rs"):
                if str(path.relative_to(DM)) not in known:
                    die(f"series.toml does not say which step {path.relative_to(ROOT)} comes in")
        case ["files", step]:
            print(*sorted({edit["file"] for edit in SERIES["edit"] if edit["step"] <= int(step)} | set(own_files(int(step)))), sep="\n")
        case ["write", step, source, base]:
            base = Path(base)
            for name, text in generate(int(step), base, lambda name: (base / name).read_text()).items():
                path = Path(source) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                # (Not written if it is the same: make would build it anew.)
                if not path.exists() or path.read_text() != text:
                    path.unlink(missing_ok=True)
                    path.write_text(text)
        case ["fix", tree]:
            for edit in SERIES["fix"]["edit"]:
                path = Path(tree) / edit["file"]
                path.write_text(insert(path.read_text(), edit["before"], edit["new"], edit["file"]))
        case ["message", "cover" | "fix" as which]:
            say(SERIES[which])
        case ["message", step]:
            say(SERIES["step"][int(step) - 1])
        case ["steps"]:
            print(len(STEPS))
        case _:
            die("usage: see the beginning of this file")


main()
