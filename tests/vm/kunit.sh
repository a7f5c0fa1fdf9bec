#!/bin/bash
# The KUnit suites inside the module run when it is loaded, and report in the kernel log.
# kernels: debug (race)
set -e
before=$(dmesg | wc -l)
modprobe dm-remap
dmesg --notime | tail -n +$((before + 1)) | grep -E '^ *(KTAP|1\.\.|ok|not ok|# )' | grep -v '\.speed:' || true
rmmod dm-remap
