#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Where systemd is not in the initramfs: opens the remap devices that root lies on, as soon as they are there.
dmremap attach --patience 0
