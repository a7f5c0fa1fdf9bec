"""What `map` and `end_io` do in the module's object file. Reads `objdump -dr --no-show-raw-insn` of dm-remap.ko on standard input;
exits with 1 and names what is wrong.

- By direct calls they reach no panic, no lock, no allocation, nothing that sleeps (DESIGN.md, invariant 7): what they reach is of the
  module, or in HARMLESS.
- Where a bio is healthy, or redirected to a slot that has all of it, they write only to what is the bio's or the CPU's: to the clone and
  its per-bio data, to the stack, and by `%gs` to the CPU's own memory. So two CPUs never write one cache line. What else there is stands
  behind functions that these bios do not come to (OFF_THE_PATH).
"""

import re
import sys

# C functions that may be called in any context.
HARMLESS = {
    "__fentry__", "__x86_return_thunk",
    "dm_per_bio_data", "dm_accept_partial_bio", "dm_bio_get_target_bio_nr",
    "bio_endio", "bio_associate_blkg", "queue_work_on", "__rcu_read_lock", "__rcu_read_unlock",
    # Helpers of the kernel crate: one atomic operation or load each.
    "rust_helper_atomic64_add", "rust_helper_atomic_fetch_add_release", "rust_helper_atomic64_read_acquire", "rust_helper_atomic_ptr_read_acquire",
    "rust_helper_atomic_i8_read", "rust_helper_atomic64_read", "rust_helper_atomic64_try_cmpxchg", "rust_helper_atomic_read",
    "rust_helper_atomic64_xchg", "rust_helper_atomic64_set_release", "rust_helper_atomic_set_release", "rust_helper_atomic_i8_set", "rust_helper_atomic_i8_set_release",
}
# Of these, those that write to nothing but the bio, the thread (sections of RCU) or the CPU (references to a blkg).
PRIVATE = {"__fentry__", "__x86_return_thunk", "dm_per_bio_data", "bio_associate_blkg", "__rcu_read_lock", "__rcu_read_unlock"}
OFF_THE_PATH = re.compile(r"11map_closely|16end_io_unsettled")

ARGUMENTS = {"map": {"rsi": "bio"}, "end_io": {"rsi": "bio", "rdx": "status"}}
OURS = {"bio", "per-bio data", "status", "stack"}
SCRATCH = {"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}
READERS = re.compile(r"(cmp|test|bt|lea|call|j\w+|nop|push|ret|int3|endbr|data16|cs)")
PARTS = {f"{prefix}{name}{suffix}": f"r{name}{'x' if name in 'abcd' else ''}"
         for name in ("a", "b", "c", "d", "si", "di", "bp", "sp")
         for prefix, suffix in ([("e", "x"), ("", "x"), ("", "l")] if name in "abcd" else [("e", ""), ("", ""), ("", "l")])}


def whole(register):
    """The register of 64 bits that one is a part of."""
    name = register.lstrip("%")
    return PARTS.get(name) or re.sub(r"^(r\d+)[dwb]$", r"\1", name)


class Code:
    """The functions of an object file: name -> [(address, mnemonic, operands, what is called or jumped to)...]."""

    def __init__(self, lines):
        self.functions, starts, section, body = {}, {}, None, None
        for line in lines:
            if match := re.match(r"^Disassembly of section (.*):$", line):
                section = match[1]
            elif match := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
                starts[section, int(match[1], 16)] = match[2]
                body = self.functions.setdefault(match[2], [])
            elif match := re.match(r"^ *([0-9a-f]+):\s+(.*?)\s*(<.*)?$", line):
                words = match[2].split("#")[0].split()
                if words[0] in ("lock", "rep", "repz", "notrack", "bnd"):
                    words = [" ".join(words[:2]), *words[2:]]
                body.append([int(match[1], 16), words[0], re.findall(r"[^,(]*\([^)]*\)|[^,]+", "".join(words[1:])), None])
            elif match := re.search(r"R_X86_64_P\w+\s+([^-+\s]+)([-+]0x[0-9a-f]+)?$", line):
                if re.match(r"call|j", body[-1][1]):
                    body[-1][3] = match[1], int(match[2] or "0", 16)
        # Calls of local functions are relative to their section, and to the end of the instruction.
        for body in self.functions.values():
            for line in body:
                if line[3]:
                    line[3] = starts.get((line[3][0], line[3][1] + 4), line[3][0])


def unknown_calls(code, roots):
    """The chains of calls from `roots` that leave the module for something that is not in HARMLESS; and what was reached."""
    seen, todo, wrong = set(roots), [(f, ()) for f in roots], []
    while todo:
        function, path = todo.pop()
        for *_, callee in code.functions[function]:
            if callee is None or callee in seen or callee in HARMLESS:
                continue
            seen.add(callee)
            if callee in code.functions:
                todo.append((callee, (*path, function)))
            else:
                wrong.append(" -> ".join((*path, function, callee)))
    return wrong, seen


class Stores:
    """Follows what registers point to, from a function's arguments on, and judges where it writes."""

    def __init__(self, code):
        self.code, self.done, self.wrong, self.to = code, set(), [], {}

    def base(self, operand, state):
        """What an operand in memory belongs to."""
        if "%gs:" in operand:
            return "cpu"
        match = re.search(r"\((%\w+)", operand)
        return state.get(whole(match[1]), "other") if match else "other"

    def place(self, operand, state):
        """The key under which a word on the stack is known, if it is one: as its distance from where the function began."""
        match = re.fullmatch(r"(-?0x[0-9a-f]+)?\(%rsp\)", operand)
        return ("stack", int(match[1] or "0", 16) + state["depth"]) if match else None

    def value(self, operand, state):
        if place := self.place(operand, state):
            return state.get(place, "other")
        return state.get(whole(operand), "other") if operand.startswith("%") else "other"

    def call(self, function, callee, state):
        arguments = tuple(sorted((r, v) for r, v in state.items() if r in ("rdi", "rsi", "rdx", "rcx", "r8", "r9")))
        if OFF_THE_PATH.search(callee) or callee in PRIVATE:
            return
        if callee not in self.code.functions:
            self.wrong.append(f"{function} calls {callee}")
        elif (callee, arguments) not in self.done:
            self.done.add((callee, arguments))
            self.run(callee, dict(arguments))

    def step(self, function, line, state):
        """The state behind an instruction."""
        address, name, operands, callee = line
        state = dict(state)
        target = operands[-1] if operands else ""
        if name.startswith("lock") or name.startswith("xchg") and "(" in "".join(operands):
            self.wrong.append(f"{function}: {address:x}: {name} {','.join(operands)}")
        elif "(" in target or "%gs:" in target:
            if not READERS.match(name):
                base = self.base(target, state)
                self.to[base] = self.to.get(base, 0) + 1
                if base not in OURS | {"cpu"}:
                    self.wrong.append(f"{function}: {address:x}: {name} {','.join(operands)} writes to what is neither the bio's nor the CPU's")
                if (place := self.place(target, state)) and len(operands) == 2:
                    state[place] = self.value(operands[0], state) if name == "mov" else "other"
        if callee:
            self.call(function, callee, state)
            if name == "call":
                for register in SCRATCH:
                    state.pop(register, None)
                if callee == "dm_per_bio_data":
                    state["rax"] = "per-bio data"
        elif name == "push":
            state["depth"] -= 8
            state["stack", state["depth"]] = self.value(target, state)
        elif name == "pop":
            state[whole(target)] = state.get(("stack", state["depth"]), "other")
            state["depth"] += 8
        elif target == "%rsp":
            amount = int(operands[0].lstrip("$"), 16)
            state["depth"] += {"sub": -amount, "add": amount}[name]
        elif target.startswith("%") and not re.match(r"cmp|test|bt$|j|call", name):
            if name == "mov" and len(operands) == 2:
                state[whole(target)] = self.value(operands[0], state)
            elif name == "lea":
                state[whole(target)] = self.base(operands[0], state)
            elif not (name in ("add", "sub") and operands[0].startswith("$")):
                state[whole(target)] = "other"
        return state

    def run(self, function, arguments):
        """Goes through all of a function's ways until nothing new is known."""
        body = self.code.functions[function]
        at = {line[0]: number for number, line in enumerate(body)}
        states, todo = {0: {"rsp": "stack", "depth": 0, **arguments}}, [0]
        while todo:
            number = todo.pop()
            line = body[number]
            state = self.step(function, line, states[number])
            _, name, operands, callee = line
            then = []
            if not re.match(r"jmp|ret|ud2|int3", name):
                then.append(number + 1)
            if name.startswith("j") and callee is None:
                then.append(at[int(operands[0], 16)])
            for n in then:
                if n >= len(body):
                    continue
                old = states.get(n)
                new = state if old is None else {key: value for key, value in old.items() if state.get(key) == value}
                if new != old:
                    states[n] = new
                    todo.append(n)


def main():
    code = Code(sys.stdin)
    roots = {m[1]: f for f in code.functions if (m := re.match(r"_R.*9CallbacksNt.*E(?:3|6)(map|end_io)B", f))}
    if len(roots) != 2:
        sys.exit(f"map and end_io not found: {sorted(roots)}")
    wrong, seen = unknown_calls(code, roots.values())
    stores = Stores(code)
    for name, function in roots.items():
        stores.run(function, ARGUMENTS[name])
    # A function may be gone through several times before all is known of it.
    wrong += sorted(set(stores.wrong))
    found = {to for to in stores.to if to in OURS | {"cpu"}}
    if len(seen) < 6 or not {"bio", "per-bio data", "cpu"} <= found:
        wrong.append(f"not all is found that is known to be there: {sorted(seen)}, writes to {stores.to}")
    print("\n".join(wrong) or f"{len(seen)} functions, nothing that may sleep, lock, allocate or panic; "
          f"bios that succeed have {', '.join(sorted(found))} written to")
    sys.exit(bool(wrong))


main()
