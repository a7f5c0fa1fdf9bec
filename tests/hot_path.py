"""What `map` and `end_io` can reach in the module's object file, by direct calls: no panic, no lock, no allocation,
nothing that sleeps (DESIGN.md, invariant 7). Reads `objdump -dr` of dm-remap.ko on standard input; exits with 1 and
names what is reached that is not known to be harmless. C functions in the list may be called in any context."""

import re
import sys

HARMLESS = {
    "__fentry__", "__x86_return_thunk",
    "dm_per_bio_data", "dm_accept_partial_bio", "dm_bio_get_target_bio_nr",
    "bio_endio", "bio_associate_blkg", "queue_work_on",
    # Helpers of the kernel crate: one atomic operation or load each, or one end of an RCU section.
    "rust_helper_rcu_read_lock", "rust_helper_rcu_read_unlock", "rust_helper_atomic64_add",
    "rust_helper_atomic64_read_acquire", "rust_helper_atomic_ptr_read_acquire", "rust_helper_atomic_i8_read",
    "rust_helper_atomic64_read", "rust_helper_atomic64_try_cmpxchg", "rust_helper_atomic_read", "rust_helper_atomic64_xchg",
    "rust_helper_atomic64_set_release", "rust_helper_atomic_i8_set", "rust_helper_atomic_i8_set_release",
}


def main():
    calls, starts, section, function, previous = {}, {}, None, None, ""
    for line in sys.stdin:
        if match := re.match(r"^Disassembly of section (.*):$", line):
            section = match[1]
        elif match := re.match(r"^([0-9a-f]+) <(.*)>:$", line):
            function = match[2]
            starts[section, int(match[1], 16)] = function
            calls.setdefault(function, set())
        elif re.search(r"\t(call|j[a-z]+)\b", previous) and (
            match := re.search(r"R_X86_64_P\w+\s+([^-+\s]+)([-+]0x[0-9a-f]+)?$", line)
        ):
            calls[function].add((match[1], int(match[2] or "0", 16)))
        previous = line
    # Calls of local functions are relative to their section, and to the end of the instruction.
    calls = {f: {starts.get((to, offset + 4), to) for to, offset in targets} for f, targets in calls.items()}
    roots = [f for f in calls if re.match(r"_R.*9CallbacksNt.*E(3map|6end_io)B", f)]
    seen, todo, wrong = set(roots), [(f, ()) for f in roots], []
    while todo:
        function, path = todo.pop()
        for callee in calls[function]:
            if callee in seen or callee in HARMLESS:
                continue
            seen.add(callee)
            if callee in calls:
                todo.append((callee, (*path, function)))
            else:
                wrong.append(" -> ".join((*path, function, callee)))
    if len(roots) != 2 or len(seen) < 6:
        sys.exit(f"map and end_io not found, or nothing behind them: {sorted(seen)}")
    print("\n".join(wrong) or f"{len(seen)} functions, nothing that may sleep, lock, allocate or panic")
    sys.exit(bool(wrong))


main()
