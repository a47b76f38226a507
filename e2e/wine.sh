#!/bin/sh
# Makes the root directory of a machine with Wine, and prints where it is. One
# to three minutes and 900 MB, once. Debian 12's Wine 8 has no
# bcryptprimitives.dll, without which no program of Go starts.
set -eu
. "$(dirname "$0")/root.sh"

# The prefix is whole once the server has written it.
# shellcheck disable=SC2016
make_root wine trixie minbase wine,wine64,iproute2 \
	--customize-hook='chroot "$1" env WINEPREFIX=/root/wp WINEARCH=win64 WINEDEBUG=-all WINEDLLOVERRIDES=mscoree,mshtml= XDG_RUNTIME_DIR=/tmp HOME=/root sh -c "/usr/lib/wine/wine64 wineboot --init >/dev/null 2>&1 </dev/null; /usr/lib/wine/wineserver64 -w; test -e /root/wp/system.reg"'
