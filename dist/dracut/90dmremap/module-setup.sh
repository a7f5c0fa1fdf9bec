#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# With a line in /etc/remaptab: what hides main and spare, and what opens the devices that root lies on.
# dracut sets these, and calls the functions.
# shellcheck disable=SC2154

remaptab() {
    dmremap initrd-tab --tab "$dracutsysrootdir/etc/remaptab"
}

check() {
    require_binaries dmremap dmsetup || return 1
    [[ -n $(remaptab 2> /dev/null) ]] && return 0
    return 255
}

depends() {
    echo dm
}

installkernel() {
    hostonly='' instmods dm-remap
}

install() {
    inst_multiple dmremap dmsetup
    inst_rules 63-remap.rules
    mkdir -p "$initdir/etc"
    remaptab > "$initdir/etc/remaptab"
    mark_hostonly /etc/remaptab
    if dracut_module_included "systemd"; then
        inst_multiple -o \
            "$systemdutildir/system-generators/dmremap-generator" \
            "$systemdsystemunitdir/dmremap@.service" \
            "$systemdsystemunitdir/dmremap.target"
    else
        inst_hook initqueue/settled 20 "$moddir/dmremap-attach.sh"
    fi
    dracut_need_initqueue
}
