#!/bin/sh
# Makes the disk of a virtual machine: Debian 12 with its own kernel, driven
# through the QEMU guest agent, so that no firewall in it is in the way. Prints
# the directory of vmlinuz, initrd and disk. One to three minutes and 900 MB,
# once.
set -eu
. /etc/os-release
if [ "$ID-$(dpkg --print-architecture)" != debian-amd64 ]; then
	echo "vm.sh: run this on a Debian on amd64" >&2
	exit 1
fi
. "$(dirname "$0")/root.sh"

# The initrd has what finds the disk and nothing else: no hardware is emulated
# that would need more. What a machine does by itself after booting is no part
# of these tests.
# shellcheck disable=SC2016
make_root vm bookworm minbase \
	systemd,systemd-sysv,udev,dbus,nftables,iproute2,openssh-server,kmod,debconf,qemu-guest-agent,initramfs-tools,zstd,linux-image-cloud-amd64 \
	--essential-hook='cd "$1" && mkdir -p etc/initramfs-tools/conf.d usr/share/initramfs-tools/modules.d && echo MODULES=list >etc/initramfs-tools/conf.d/vm && printf "%s\n" virtio_pci virtio_blk ext4 >usr/share/initramfs-tools/modules.d/vm' \
	--customize-hook='cd "$1" && printf "[Match]\nName=eth0\n[Network]\nAddress=10.77.0.1/24\nAddress=fd77::1/64\nLinkLocalAddressing=no\nIPv6AcceptRA=no\nConfigureWithoutCarrier=yes\n" >etc/systemd/network/eth0.network && echo "/dev/vda / ext4 defaults 0 1" >etc/fstab && mkdir -p var/log/journal && echo machine >etc/hostname && echo "127.0.0.1 localhost machine" >etc/hosts && rm -f etc/resolv.conf' \
	--customize-hook='chroot "$1" systemctl -q enable systemd-networkd.service' \
	--customize-hook='chroot "$1" systemctl -q mask systemd-networkd-wait-online.service apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer getty@tty1.service serial-getty@ttyS0.service' >&2

exec 9>"$root.vm.lock"
flock 9
if [ ! -d "$root.vm" ]; then
	new=$root.vm.new
	rm -rf "$new"
	mkdir "$new"
	cp -L "$root"/boot/vmlinuz-* "$new/vmlinuz"
	cp -L "$root"/boot/initrd.img-* "$new/initrd"
	truncate -s 3G "$new/disk"
	mke2fs -q -t ext4 -d "$root" "$new/disk"
	mv "$new" "$root.vm"
fi
echo "$root.vm"
