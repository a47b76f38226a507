#!/bin/sh
# The first process of a machine for the neighbours' programs: a private copy
# of ROOT, over AT, in mount and process namespaces of its own. With it ends
# all that runs in the machine.
set -eu
root=$1 at=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=$root,upperdir=$at/upper,workdir=$at/work" overlay "$at/root"
cd "$at/root"
mount -t proc proc proc
# Of the kernel's settings only those of the network namespace.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
mount -t sysfs -o ro sysfs sys
mount --rbind /dev dev
mount -t tmpfs -o mode=755 tmpfs run
mkdir run/dbus run/lock run/fail2ban
# shellcheck disable=SC2016
exec chroot . /bin/sh -c 'echo ready; while :; do sleep 3600 & wait $!; done'
