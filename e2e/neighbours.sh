#!/bin/sh
# Makes a small root directory with the real packages of our neighbours in
# the firewall (firewalld, ufw, fail2ban, iptables, nftables), and prints
# where it is. None of them is installed on the machine, where it would start
# with the next boot. About a minute and 170 MB, once.
set -eu
. "$(dirname "$0")/root.sh"

# firewalld has NftablesTableOwner since Debian 13.
make_root neighbours trixie essential firewalld,ufw,fail2ban,iptables,nftables,iproute2,dbus,python3-systemd
