#!/bin/bash
# dmremap files on f2fs: as files.sh, whose Python part it is.
# kernels: (stock)
# vm: --extras --f2fs
# args: random 50 f2fs f2fs+lvm
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
plan $((2 * ($# - 2)))
mkdir -p /mnt
seed=$1
[[ $seed != random ]] || seed=$RANDOM$RANDOM
modprobe null_blk nr_devices=0
exec python3 /host/files.py "$seed" "${@:2}"
