#!/bin/bash
# Whatever happens to one or two metadata blocks: activation gives right data, or refuses and names a block.
#
# damage.py explains. tests/host/damage.rs and src/engine/image.rs have thousands of cases more.
# kernels: stock (debug)
# vm: --include tests/reader.py
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh

disk main 2
disk spare 2
modprobe dm_remap
exec python3 /host/damage.py
