#!/bin/sh
# The first process of a process namespace: a shell in a private copy of ROOT,
# with a network of its own and with the files in FILES as drive Z:, directory
# \src. All of it ends with this process.
#   start.sh ROOT FILES AT
set -eu
root=$1 files=$2 at=$3
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=$root,upperdir=$at/upper,workdir=$at/work" overlay "$at/root"
mkdir "$at/root/src"
mount --bind "$files" "$at/root/src"
mount --rbind /dev "$at/root/dev"
mount -t proc proc "$at/root/proc"
ip link set lo up
# Go preempts a goroutine by suspending its thread. Where that goes wrong the
# process stands still for good, and Wine's share of it is the least tried part
# (golang/go issues 36492 and 80665 are Windows's own): goroutines give way at
# calls instead.
exec chroot "$at/root" env -i PATH=/usr/sbin:/usr/bin HOME=/root XDG_RUNTIME_DIR=/tmp \
	WINEPREFIX=/root/wp WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES=mscoree,mshtml= GODEBUG=asyncpreemptoff=1 \
	W=/usr/lib/wine/wine64 C=/root/wp/drive_c bash
