#!/bin/bash
# Builds the module with DKMS. scripts/deb check-dkms runs it, in a throw-away Debian with compilers, kernel headers and
# sources; the package lies in /deb. Each kernel is given as RELEASE=built or RELEASE=skipped.
#
#   dkms.sh VERSION RELEASE=WHAT...
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
dmesg() { true; } # another machine's
version=$1
kernels=("${@:2}")

files() { find /usr/src/dm-remap* /var/lib/dkms/dm-remap /var/lib/dm-remap-dkms /lib/modules/*/updates /etc/kernel -name '*dm-remap*' 2>/dev/null || true; }
installs() { dpkg -i "/deb/dm-remap-dkms_${version}_all.deb" >/tmp/said 2>&1 || { cat /tmp/said /var/lib/dkms/dm-remap/*/build/make.log; return 1; }; }
module() { find "/lib/modules/$1/" -name 'dm-remap.ko*'; }
built() {
	expect "/lib/modules/$1/updates/dkms/dm-remap.ko*" module "$1"
	expect "$1 *" modinfo -F vermagic "$(module "$1")"
	expect "DKMS module signing key" modinfo -F signer "$(module "$1")"
}
skipped() {
	grep -Fx "dm-remap: no module for Linux $1: it is built without Rust (CONFIG_RUST)." /tmp/said
	expect "" module "$1"
	/etc/kernel/postinst.d/dkms "$1" # as its package does, which must not fail
}
kept() { # What was prepared is not prepared again.
	mv /usr/src/linux-source-*.tar.xz /tmp
	dkms remove -m dm-remap -v "$version" --all
	dkms add -m dm-remap -v "$version"
	for kernel in "${kernels[@]}"; do
		[[ $kernel != *=built ]] || dkms install -m dm-remap -v "$version" -k "${kernel%=*}" || return
	done
}
# Without the source, a kernel is skipped with a sentence.
no_source() {
	rm -r /var/lib/dm-remap-dkms
	not dkms build --force -m dm-remap -v "$version" -k "$1"
	cat /var/lib/dkms/dm-remap/*/build/make.log
	grep -F "dm-remap: no module for Linux $1: install linux-source-" /var/lib/dkms/dm-remap/*/build/make.log
}
kernel_goes() {
	test -d "/var/lib/dm-remap-dkms/$1"
	dkms kernel_prerm -k "$1"
	/etc/kernel/postrm.d/dm-remap-dkms "$1"
	not test -e "/var/lib/dm-remap-dkms/$1"
	expect "" module "$1"
}
purges() {
	dpkg --purge dm-remap-dkms
	expect "" files
}

plan $((${#kernels[@]} + 5))
check "the package installs" installs
for kernel in "${kernels[@]}"; do
	check "$kernel" "${kernel#*=}" "${kernel%=*}"
	[[ $kernel != *=built ]] || last=${kernel%=*}
done
check "what was prepared for a kernel serves again, without its source" kept
check "a kernel that goes takes with it what was prepared for it" kernel_goes "$last"
check "without its source, a kernel is skipped, with a sentence" no_source "$last"
check "purging leaves nothing" purges
