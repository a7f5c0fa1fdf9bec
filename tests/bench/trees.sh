#!/bin/bash
# The kernel's XArray and maple tree with as many entries as a remap device may have: instructions for each look-up and
# bytes an entry. Run by `scripts/bench trees`.
set -euo pipefail
used() { awk '$1 == "radix_tree_node" || $1 == "maple_node" { sum += $3 * $4 } END { print sum }' /proc/slabinfo; }
for count in 1000 100000 1000000; do
	for run in 1 64; do
		for maple in 0 1; do
			before=$(used)
			insmod /host/trees.ko count=$count run=$run maple=$maple
			dmesg | sed -n 's/.*trees: //p' | tail -n 1
			echo "    $((($(used) - before) / count)) bytes an entry"
			rmmod trees
			sleep 2 # nodes are freed after a grace period
		done
	done
done
