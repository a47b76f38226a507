#!/bin/sh
# Makes the debs and the rpms of what make cross built for linux, the same bytes
# every time: jitgate, and jitgate-control where its program is there.
#   package.sh DIST VERSION [ARCH…]
# VERSION is what git describe says, or a number like 1.2.3. The program for this
# machine has to be among them: it is asked for its pages and completions.
set -eu
dist=$1
version=${2#v}
shift 2
[ $# -gt 0 ] || set -- amd64 arm64

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct 2>/dev/null || echo 0)
export SOURCE_DATE_EPOCH
# As packages sort versions: what comes before a release after ~, what comes
# after it after +. A tree without a release comes before all of them.
case $version in
[0-9]*.[0-9]*.[0-9]*-*-g*) version=$(echo "$version" | sed 's/-\([0-9]*\)-g/+\1.g/') ;;
[0-9]*.[0-9]*.[0-9]*) ;;
*) version=0.0.0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$version ;;
esac
VERSION=$(echo "$version" | sed 's/-dirty$/.dirty/; s/-/~/; s/[^0-9A-Za-z.+~]/./g')
export VERSION

stages=$(mktemp -d)
trap 'rm -rf "$stages"' EXIT
# A module of its own: what packs the program is no dependency of it.
nfpm=$(cd packaging/tools && go tool -n nfpm)

# notices NAME PACKAGE prints whose work is in a program.
notices() {
	packaging/licences.sh "$STAGE/licences" "$2"
	echo "$1, https://github.com/jitgate/jitgate"
	echo
	echo 'Copyright: the jitgate authors'
	echo 'Licence: Apache-2.0, in /usr/share/common-licenses/Apache-2.0 or'
	echo "/usr/share/licenses/$1/LICENSE"
	echo
	echo 'The program contains the following modules.'
	(cd "$STAGE/licences" && find . -type f | LC_ALL=C sort) | while read -r notice; do
		printf '\n== %s\n\n' "${notice#./}"
		if grep -q 'Apache License' "$STAGE/licences/$notice"; then
			echo 'Apache-2.0, as above'
		else
			cat "$STAGE/licences/$notice"
		fi
	done
}

# stage NAME PACKAGE prepares what goes beside a program, for every platform.
stage() {
	STAGE=$stages/$1
	export STAGE
	mkdir -p "$STAGE/bin" "$STAGE/man"
	notices "$1" "$2" >"$STAGE/copyright"
	{
		printf '%s (%s) unstable; urgency=medium\n\n' "$1" "$VERSION"
		printf '  * https://github.com/jitgate/jitgate/blob/main/CHANGELOG.md\n\n'
		printf ' -- jitgate <jitgate@users.noreply.github.com>  %s\n' "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
	} | gzip -n -9 >"$STAGE/changelog.gz"
	here=$(cd "$dist" && pwd)/$1-linux-$(go env GOARCH)
	[ -x "$here" ] || { echo "package: $here is missing" >&2; exit 1; }
	ln -s "$here" "$STAGE/bin/$1"
	GOOS='' GOARCH='' go run ./packaging/manual "$STAGE/bin/$1" "$STAGE/man" "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y-%m-%d)"
	gzip -n -9 "$STAGE"/man/*
	for shell in bash zsh fish; do
		"$STAGE/bin/$1" completion $shell >"$STAGE/$shell"
	done
}

# pack NAME ARCH makes one package of each kind.
pack() {
	export ARCH="$2" PROGRAM="$dist/$1-linux-$2"
	packaging/sbom.sh "$1" "$VERSION" "$PROGRAM" >"$STAGE/sbom.cdx.json"
	for kind in deb rpm; do
		said=$("$nfpm" package --config "packaging/$1.yaml" --packager $kind --target "$dist/") || {
			echo "package: $said" >&2
			exit 1
		}
		made=${said##*created package: }
		# dpkg's own xz makes a quarter less of a large program.
		if [ "$1-$kind" = jitgate-control-deb ]; then
			rm -rf "$STAGE/deb"
			dpkg-deb --raw-extract "$made" "$STAGE/deb"
			dpkg-deb --root-owner-group -Zxz --build "$STAGE/deb" "$made" >/dev/null
		fi
		if [ "$1-$kind" = jitgate-control-rpm ]; then
			GOOS='' GOARCH='' go run ./packaging/repack "$made"
		fi
		echo "$made"
	done
}

for name in jitgate jitgate-control; do
	[ -e "$dist/$name-linux-$1" ] || continue
	case $name in
	jitgate) stage $name . ;;
	*) stage $name ./cmd/$name ;;
	esac
	for arch; do
		pack $name "$arch"
	done
done
