#!/bin/sh
# Makes a small root directory with the real packages of our neighbours in
# the firewall (firewalld, ufw, fail2ban, iptables, nftables), and prints
# where it is. None of them is installed on the machine, where it would start
# with the next boot. Made once, about a minute and 170 MB; reused afterwards.
set -eu

packages=firewalld,ufw,fail2ban,iptables,nftables,iproute2,dbus,python3-systemd
# firewalld has NftablesTableOwner since Debian 13.
suite=trixie
components=main
label=Debian
. /etc/os-release
if [ "$ID" = ubuntu ]; then
	suite=$VERSION_CODENAME
	components=main,universe
	label=Ubuntu
fi

cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/jitgate
hash=$(echo "$packages" | sha256sum | cut -c1-8)
root=$cache/neighbours-$suite-$hash
mkdir -p "$cache"
exec 9>"$cache/neighbours.lock"
flock 9 # one makes it, others wait for it
if [ ! -d "$root" ]; then
	# The mirror this machine's own apt uses.
	mirror=$(apt-get indextargets --format '$(REPO_URI)' "Label: $label" "Created-By: Packages" | head -1)
	new=$root.new
	rm -rf --one-file-system "$new" # left by one that was interrupted
	if ! mmdebstrap --quiet --mode=root --variant=essential --components="$components" --include="$packages" \
		--aptopt='APT::Install-Recommends "false"' \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
		"$suite" "$new" ${mirror:+"$mirror"} >"$new.log" 2>&1 9>&-; then
		tail -5 "$new.log" >&2
		exit 1
	fi
	rm -f "$new.log"
	mv "$new" "$root"
fi
echo "$root"
