#!/bin/bash
# What the packages do when they are installed, upgraded and removed, and what they leave. scripts/deb check runs it, in a
# throw-away Debian with the kernel RELEASE; packages of two versions lie in /deb.
#
#   install.sh RELEASE OLD NEW
# shellcheck source=tests/vm/lib.sh
. /host/lib.sh
dmesg() { true; } # another machine's
release=$1 old=$2 new=$3
modules=dm-remap-modules-$release

# Every file with its kind, mode and content, without what only remembers.
files() {
	find / \( -path /proc -o -path /sys -o -path /dev -o -path /run -o -path /tmp -o -path /deb -o -path /host -o -path /var/log \
		-o -path /var/lib/dpkg -o -path /var/cache -o -path '/boot/initrd.img-*' -o -path /etc/.pwd.lock \) -prune \
		-o -printf '%p %y %m %u %l ' \( -type f -exec sh -c 'md5sum <"$1"' sh {} \; -o -printf '\n' \) | LC_ALL=C sort
}
in_initramfs() { lsinitramfs "/boot/initrd.img-$release" | grep dm-remap; } # not -q, which would end lsinitramfs
version() { dpkg-query -Wf '${Status} ${Version}' "$1"; }
deb() { echo "/deb/$1_$2_amd64.deb"; }
install() { dpkg -i "$(deb "$modules" "$1")" "$(deb dm-remap "$1")"; }

installed() {
	expect "* ok installed $1" version dm-remap
	expect "* ok installed $1" version "$modules"
	expect "dmremap $new" dmremap --version
	expect "$release *" modinfo -k "$release" -F vermagic dm-remap
	expect "*/updates/dm-remap.ko" modinfo -k "$release" -F filename dm_remap
}
installs() { install "$1" && installed "$1"; }

# stays PACKAGE SENTENCE: dpkg does not remove it, says why, and leaves it as it was.
stays() {
	local said
	not dpkg --remove "$1" >/tmp/said 2>&1
	said=$(tr -s ' \n' ' ' </tmp/said)
	[[ $said == *"$2"* ]] || { echo "$said"; return 1; }
	installed "$new"
}
tab_keeps() {
	echo "safe /dev/vda /dev/vdb" >/etc/remaptab
	stays dm-remap "/etc/remaptab has safe."
	printf '%s\n' "# safe /dev/vda /dev/vdb" "old /dev/vdc /dev/vdd noauto" >/etc/remaptab
}
device_keeps() {
	mkdir -p /sys/module/dm_remap
	echo 1 >/sys/module/dm_remap/refcnt
	stays dm-remap "a device is active."
}
# A machine that runs this kernel, without DKMS's module.
module_stays() {
	printf '#!/bin/sh\necho %s\n' "$release" >/usr/local/bin/uname && chmod +x /usr/local/bin/uname
	not env DMREMAP_FORCE='' dpkg --force-depends --remove "$modules" >/tmp/said 2>&1
	rm /usr/local/bin/uname
	grep -q "$modules is not removed: a device is active" /tmp/said
	installed "$new"
}
module_is_needed() { not dpkg --remove "$modules" && installed "$new"; }
forced() {
	DMREMAP_FORCE=1 dpkg --remove dm-remap
	rm -r /sys/module
	install "$new"
}

# A kernel is installed that has no module.
hook_says() { # PATTERN CONFIG
	mkdir -p /lib/modules/9.9-test
	echo "$2" >/lib/modules/9.9-test/config
	/etc/kernel/postinst.d/dm-remap 9.9-test >/tmp/said 2>&1
	rm -r /lib/modules/9.9-test
	expect "$1" cat /tmp/said
}
kernel_without_rust() { hook_says "dm-remap: Linux 9.9-test has no module. It is built without Rust (CONFIG_RUST)." ""; }
kernel_without_source() {
	echo "safe /dev/vda /dev/vdb" >/etc/remaptab
	hook_says "W: dm-remap: Linux 9.9-test has no module, so safe would not be there*linux-source-9.9-test,*" CONFIG_RUST=y
}
kernel_with_module() { expect "" /etc/kernel/postinst.d/dm-remap "$release"; }

removed() {
	echo "safe /dev/vda /dev/vdb x-initrd.attach" >/etc/remaptab
	update-initramfs -c -k "$release"
	in_initramfs
	echo "# nothing any more" >/etc/remaptab
	dpkg --remove dm-remap "$modules"
	not in_initramfs
	/etc/kernel/postinst.d/dm-remap "$release"
	# Only what dpkg calls conffiles, and the table.
	files | comm -13 /tmp/before - | awk '{ print $1 }' >/tmp/left
	expect $'/etc/kernel/postinst.d/dm-remap\n/etc/remaptab' grep -v '^/usr/local$' /tmp/left
}
purged() {
	dpkg --purge dm-remap "$modules"
	files | diff /tmp/before -
	test ! -e "/boot/initrd.img-$release" || initramfs | diff /tmp/before-initramfs -
	rm -f "/boot/initrd.img-$release"
}
initramfs() { lsinitramfs "/boot/initrd.img-$release" | sort; }
with_line_purged() {
	install "$new"
	echo "old /dev/vdc /dev/vdd noauto" >/etc/remaptab
	dpkg --purge dm-remap "$modules"
	expect "old *" cat /etc/remaptab
	rm /etc/remaptab
}
with_kernel() {
	dpkg -i "$(deb "$modules" "$new")"
	apt-get -y -o Debug::NoLocking=1 purge "linux-image-$release" "linux-modules-$release" "linux-base-$release"
	not dpkg-query -W "$modules"
	not test -e "/usr/lib/modules/$release/updates"
}

plan 17
rm -rf /etc/remaptab
update-initramfs -u -k "$release" >/dev/null 2>&1
files >/tmp/before
initramfs >/tmp/before-initramfs
check "the older version installs" installs "$old"
rm "/boot/initrd.img-$release" # it takes long, and dpkg's triggers would make it anew each time
check "the newer version upgrades it" installs "$new"
check "the older version can come back" installs "$old"
check "and be upgraded again" installs "$new"
check "dm-remap stays while /etc/remaptab has a line" tab_keeps
check "dm-remap stays while a device is active" device_keeps
check "the module stays while a device is active" module_stays
check "the last package of modules stays while dm-remap is there" module_is_needed
check "DMREMAP_FORCE removes it all the same" forced
check "a kernel without Rust is told of" kernel_without_rust
check "a kernel that the module was not built for is told of, and which devices it would not have" kernel_without_source
check "nothing is said of a kernel with a module" kernel_with_module
check "removing leaves the conffile and the table, and nothing in the initramfs" removed
check "purging leaves nothing, nor in the initramfs" purged
check "purging leaves a table with a device in it" with_line_purged
check "nothing is left then either" purged
check "removing the kernel removes its module" with_kernel
