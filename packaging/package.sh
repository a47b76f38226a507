#!/bin/sh
# Makes the deb and the rpm of what make cross built for linux, the same bytes
# every time.
#   package.sh DIST VERSION [ARCH…]
# VERSION is what git describe says, or a number like 1.2.3.
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

STAGE=$(mktemp -d)
trap 'rm -rf "$STAGE"' EXIT
packaging/licences.sh "$STAGE/licences"
{
	echo 'jitgate, https://github.com/jitgate/jitgate'
	echo
	echo 'Copyright: the jitgate authors'
	echo 'Licence: Apache-2.0, in /usr/share/common-licenses/Apache-2.0 or'
	echo '/usr/share/licenses/jitgate/LICENSE'
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
} >"$STAGE/copyright"
{
	printf 'jitgate (%s) unstable; urgency=medium\n\n' "$VERSION"
	printf '  * https://github.com/jitgate/jitgate/blob/main/CHANGELOG.md\n\n'
	printf ' -- jitgate <jitgate@users.noreply.github.com>  %s\n' "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")"
} | gzip -n -9 >"$STAGE/changelog.gz"
export VERSION STAGE

# A module of its own: what packs the program is no dependency of it.
nfpm=$(cd packaging/tools && go tool -n nfpm)
for ARCH; do
	export ARCH PROGRAM="$dist/jitgate-linux-$ARCH"
	for kind in deb rpm; do
		"$nfpm" package --config packaging/nfpm.yaml --packager $kind --target "$dist/" | sed -n 's/^created package: //p'
	done
done
