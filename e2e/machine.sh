#!/bin/sh
# Makes the root directory of a machine that boots: Debian with systemd, and
# with what provisions a host (cloud-init, debconf, ansible). Prints where it
# is. None of it is installed on this machine. Made once, one to three minutes
# and 320 MB; reused afterwards.
set -eu

packages=systemd,systemd-sysv,udev,dbus,nftables,iproute2,openssh-server,debconf,cloud-init,ansible-core,python3-apt
# Debian 12 boots on both kinds of cgroups.
suite=bookworm
components=main
label=Debian
. /etc/os-release
if [ "$ID" = ubuntu ]; then
	suite=$VERSION_CODENAME
	components=main,universe
	label=Ubuntu
fi

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/jitgate
hash=$(cat "$0" | sha256sum | cut -c1-8)
root=$cache/machine-$suite-$hash
mkdir -p "$cache"
exec 9>"$cache/machine.lock"
flock 9 # one makes it, others wait for it
if [ ! -d "$root" ]; then
	# The mirror this machine's own apt uses.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Label: $label" "Created-By: Packages" | head -1)
	new=$root.new
	rm -rf --one-file-system "$new" # left by one that was interrupted
	# What a machine does by itself after booting, or waits for, is no part of
	# these tests.
	# shellcheck disable=SC2016
	if ! mmdebstrap --quiet --mode=root --variant=minbase --components="$components" --include="$packages" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		--customize-hook='chroot "$1" systemctl -q mask systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service systemd-udevd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer console-getty.service' \
		--customize-hook='echo machine >"$1/etc/hostname"; rm -f "$1/etc/resolv.conf"' \
		"$suite" "$new" ${mirror:+"$mirror"} >"$new.log" 2>&1 9>&-; then
		tail -5 "$new.log" >&2
		exit 1
	fi
	rm -f "$new.log"
	mv "$new" "$root"
fi
echo "$root"
