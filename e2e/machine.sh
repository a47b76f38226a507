#!/bin/sh
# Makes the root directory of a machine that boots: Debian with systemd, and
# with what provisions a host (cloud-init, debconf, ansible, dnf). Prints where
# it is. One to three minutes and 400 MB, once.
set -eu
. "$(dirname "$0")/root.sh"

# Debian 12 boots on both kinds of cgroups. What a machine does by itself after
# booting, or waits for, is no part of these tests.
# shellcheck disable=SC2016
make_root machine bookworm minbase \
	systemd,systemd-sysv,udev,dbus,nftables,iproute2,openssh-server,rpm,dnf,debconf,cloud-init,ansible-core,python3-apt \
	--customize-hook='chroot "$1" systemctl -q mask systemd-networkd.service systemd-networkd-wait-online.service systemd-resolved.service systemd-udevd.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer console-getty.service' \
	--customize-hook='echo machine >"$1/etc/hostname"; rm -f "$1/etc/resolv.conf"'
