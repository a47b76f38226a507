#!/bin/sh
# Installs what building and testing need, and says what it installed.
#
#   ./setup.sh        install what is missing (Debian, Ubuntu; as root)
#   ./setup.sh vm     and what make e2e-vm needs
#   ./setup.sh path   print where the Go is that will be used, and other tools, as PATH has it
set -eu

# go.mod has the version: the newest patches of the release this is built with.
go=$(sed -n 's/^toolchain go//p' "$(dirname "$0")/go.mod")
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/jitgate
own=$cache/go$go

# recent DIRECTORY: is there that Go in it, or a newer one?
recent() {
	[ -x "$1/go" ] || return 1
	version=$(cd / && GOTOOLCHAIN=local "$1/go" env GOVERSION 2>/dev/null) || return 1
	[ "$(printf '%s\n' "go$go" "${version%% *}" | sort -V | head -n 1)" = "go$go" ]
}

# Go as found in the PATH, or where its own installer puts it.
found() {
	for d in "$(dirname "$(command -v go || echo /usr/local/go/bin/go)")" /usr/local/go/bin; do
		if recent "$d"; then
			echo "$d"
			return
		fi
	done
	echo "$own/bin"
}

if [ "${1:-}" = path ]; then
	echo "$(found):$cache/bin"
	exit
fi

# The packages of Debian that hold the commands the tests and the demo use.
want=
need() { # COMMAND PACKAGE
	command -v "$1" >/dev/null || [ -x "/usr/sbin/$1" ] || want="$want $2"
}
need nft nftables
need mmdebstrap mmdebstrap
need systemd-nspawn systemd-container
need iptables-nft iptables
need ip iproute2
need sshd openssh-server
need ssh openssh-client
need jq jq
need xz xz-utils
need lintian lintian
need rpmlint rpmlint
need rpm rpm
need apt-ftparchive apt-utils
need createrepo_c createrepo-c
need gpg gpg
need gpg-agent gpg-agent
need zbarimg zbar-tools
need wixl wixl
need msibuild msitools
need osslsigncode osslsigncode
need faketime faketime
need curl curl
need openssl openssl
need setpriv util-linux
need gcc gcc
if [ "${1:-}" = vm ]; then
	need qemu-system-x86_64 qemu-system-x86
	need qemu-img qemu-utils
	need mke2fs e2fsprogs
fi
need git git
need rsync rsync
# The official SDK for JavaScript is driven by tests; its releases need Node 18.
recent_node() {
	command -v node >/dev/null && [ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ]
}
recent_node || want="$want nodejs"
need npm npm
# Tests open the page in a browser; Ubuntu has Chromium as a snap only.
command -v google-chrome >/dev/null || need chromium "chromium fonts-dejavu-core"
# Tests start a PostgreSQL of their own: its programs are not in the PATH.
postgres=
[ -n "$(find /usr/lib/postgresql -path '*/bin/initdb' 2>/dev/null)" ] || postgres=postgresql
[ -e /usr/include/stdlib.h ] || want="$want libc6-dev"
[ -d /etc/ssl/certs ] && [ -n "$(ls /etc/ssl/certs)" ] || want="$want ca-certificates"
go_dir=$(found)
if ! recent "$go_dir"; then
	# Any Go can fetch the one we need: toolchains are modules, checked
	# against the checksum database like all others.
	need go golang-go
fi
if [ -n "$want$postgres" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "setup: these packages are missing, install them or run this as root:$want $postgres" >&2
		exit 1
	fi
	echo "setup: installing$want $postgres"
	export DEBIAN_FRONTEND=noninteractive
	# Installing sshd or a database here must not start one.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
		trap 'rm -f $policy' EXIT
	fi
	apt-get update -qq
	if [ -n "$postgres" ]; then
		# Nor make a cluster that nobody asked for.
		apt-get install -y -qq --no-install-recommends postgresql-common >/dev/null
		sed -i 's/^#* *create_main_cluster .*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
	fi
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends $want $postgres >/dev/null
	if ! recent_node; then
		echo "setup: install Node 18 or newer by hand: this system's is $(node --version)" >&2
		exit 1
	fi
fi
# Its package would enable a daemon and bring a web page: one program is wanted.
if ! command -v promtool >/dev/null && [ ! -x "$cache/bin/promtool" ] && [ "$(id -u)" = 0 ]; then
	echo "setup: fetching promtool into $cache/bin"
	mkdir -p "$cache/bin"
	(
		tmp=$(mktemp -d)
		trap 'rm -rf "$tmp"' EXIT
		chmod 755 "$tmp" # apt fetches as a user of its own
		cd "$tmp"
		apt-get download -qq prometheus >/dev/null 2>&1 || { apt-get update -qq && apt-get download -qq prometheus; }
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool
		mv usr/bin/promtool "$cache/bin/"
	)
fi
if ! recent "$go_dir"; then
	case $(uname -m) in
	x86_64) arch=amd64 ;;
	aarch64) arch=arm64 ;;
	*) echo "setup: install Go $go or newer by hand on $(uname -m)" >&2; exit 1 ;;
	esac
	echo "setup: installing Go $go into $own"
	module=golang.org/toolchain@v0.0.1-go$go.linux-$arch
	answer=$(cd / && GO111MODULE=on GOFLAGS=-mod=mod GOTOOLCHAIN=local go mod download -json $module) || true
	dir=$(printf '%s\n' "$answer" | sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p')
	if [ -z "$dir" ]; then
		echo "setup: Go $go could not be fetched: $answer" >&2
		exit 1
	fi
	mkdir -p "$own.new"
	cp -r "$dir/." "$own.new/"
	chmod -R u+w "$own.new"
	# Archives of modules carry no permissions.
	chmod 755 "$own.new"/bin/* "$own.new"/pkg/tool/*/*
	rm -rf "$own"
	mv "$own.new" "$own"
fi
