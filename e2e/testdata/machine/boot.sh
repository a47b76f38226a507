#!/bin/sh
# The first process of a process namespace, in which it boots a private copy
# of ROOT with what is in FILES over it, again whenever that asks for a
# restart. The machine has the network namespace this runs in. What it writes
# lies in memory. All of it ends with this process.
#   boot.sh NAME ROOT FILES AT
set -eu
name=$1 root=$2 files=$3 at=$4
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs "$at"
mkdir "$at/upper" "$at/work" "$at/root"
mount -t overlay -o "lowerdir=$files:$root,upperdir=$at/upper,workdir=$at/work" overlay "$at/root"

# nspawn puts a machine beside its own cgroup: without one each, two machines
# would meet there.
for tree in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
	[ -e "$tree/cgroup.procs" ] || continue
	mkdir "$tree/$name"
	echo $$ >"$tree/$name/cgroup.procs"
done

again=133 # how nspawn ends for a restart
status=$again
while [ $status = $again ]; do
	status=0
	# The namespace outlives the machine. A kernel that starts has no rules, and
	# no network before somebody sets it up.
	nft flush ruleset
	[ ! -e "$files/unplugged" ] || ip link set v0 down
	# CAP_NET_ADMIN reaches only that network namespace.
	systemd-nspawn --quiet --register=no --keep-unit --machine="$name" \
		--network-namespace-path=/proc/self/ns/net --capability=CAP_NET_ADMIN \
		--resolv-conf=off --timezone=off --link-journal=no --kill-signal=SIGRTMIN+3 --console=read-only \
		--directory="$at/root" --boot </dev/null || status=$?
done
exit $status
