#!/bin/bash
# The KUnit suites inside the module run when it is loaded, and report in the kernel log. On a kernel without KUnit
# they are run by the module built with tests/kunit.
# kernels: debug (race) previous-kunit (stock-kunit)
# vm: --smp 2
set -e
before=$(dmesg | wc -l)
modprobe dm-remap
run=/sys/module/dm_remap/parameters/kunit
[[ ! -e $run ]] || echo 1 >$run
dmesg --notime | tail -n +$((before + 1)) | grep -E '^ *(KTAP|1\.\.|ok|not ok|# )' | grep -v '\.speed:' || true
rmmod dm-remap
