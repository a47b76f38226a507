#!/bin/sh
# Makes the installer of jitgate.exe with wixl and msibuild, the same bytes every
# time, and signs it if a certificate is given.
#   msi.sh DIST VERSION
# VERSION is what git describe says. CERT and KEY in the environment name a
# certificate and its key in PEM; the program is signed too. TIMESTAMP is the
# address of a timestamp server.
set -eu
dist=$(cd "$1" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
describe=${2#v}

# Windows compares three numbers. Between releases it is that of the release
# before, which may be installed over itself; a tree without a release counts its
# commits.
case $describe in
[0-9]*.[0-9]*.[0-9]*) version=$(echo "$describe" | sed 's/^\([0-9]*\.[0-9]*\.[0-9]*\).*/\1/') ;;
*) version=0.0.$(($(git rev-list --count HEAD 2>/dev/null || echo 0) % 65536)) ;;
esac
epoch=$(git log -1 --format=%ct 2>/dev/null || echo 0)

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp "$dist/jitgate-windows-amd64.exe" "$stage/jitgate.exe"

sign() { # FILE DESCRIPTION [OPTION…]
	file=$1 what=$2
	shift 2
	[ -n "${CERT:-}" ] || return 0
	[ -n "${KEY:-}" ] || { echo "msi: CERT is given without KEY" >&2; exit 1; }
	[ -z "${TIMESTAMP:-}" ] || set -- "$@" -ts "$TIMESTAMP"
	# Without a server's time, that of the commit: the same bytes again.
	[ -n "${TIMESTAMP:-}" ] || set -- "$@" -time "$epoch"
	osslsigncode sign -certs "$CERT" -key "$KEY" -h sha256 -n "$what" -i https://github.com/jitgate/jitgate "$@" -in "$file" -out "$file.signed" >/dev/null
	mv "$file.signed" "$file"
}

sign "$stage/jitgate.exe" jitgate
sed 's/$/\r/' LICENSE >"$stage/LICENSE.txt"
packaging/licences.sh "$stage/licences"
(cd "$stage/licences" && find . -type f | LC_ALL=C sort) | while read -r notice; do
	printf '== %s\n\n' "${notice#./}"
	cat "$stage/licences/$notice"
	echo
done | sed 's/\r*$/\r/' >"$stage/THIRD-PARTY.txt"
rm -r "$stage/licences"
touch -d "@$epoch" "$stage"/*

# uuid TEXT: a name-based UUID, so that the same content has the same codes.
uuid() {
	printf 'jitgate msi %s' "$1" | sha1sum |
		sed 's/^\(.\{8\}\)\(.\{4\}\).\(.\{3\}\).\(.\{3\}\)\(.\{12\}\).*/\1-\2-5\3-8\4-\5/' | tr a-f A-F
}
content=$(cat "$stage"/* "$here/jitgate.wxs" "$0" | sha256sum)
name=jitgate-$version-amd64.msi
out=$stage/$name

# Clocks stand still: both tools write the time of day into the file.
frozen() { faketime -f "$(date -u -d "@$epoch" '+%Y-%m-%d %H:%M:%S')" "$@"; }
export TZ=UTC
(cd "$stage" && frozen wixl -a x64 -D "VERSION=$version" -D "PRODUCT=$(uuid "product $content")" -o "$out" "$here/jitgate.wxs" 2>"$stage/said") || {
	cat "$stage/said" >&2
	exit 1
}
if grep -q 'has no property named' "$stage/said"; then
	sed -n "s/.*object class/msi: wixl drops: object class/p" "$stage/said" >&2
	exit 1
fi

# What wixl leaves out.
mend() { frozen msibuild "$out" "$@"; }
# A version may be installed over itself: 512 is
# msidbUpgradeAttributesVersionMaxInclusive. What is replaced is asked for by its
# feature: REMOVE="Main" is no removal, where an installer makes it "ALL" by
# itself (Windows) that one also says UPGRADINGPRODUCTCODE.
msiinfo export "$out" Upgrade | sed '/WIX_UPGRADE_DETECTED/s/\t1\t\t/\t513\tMain\t/' >"$stage/Upgrade.idt"
grep -q '513.Main' "$stage/Upgrade.idt"
mend -i "$stage/Upgrade.idt"
# The old product goes first, and all of it: right behind InstallInitialize.
mend -q "UPDATE InstallExecuteSequence SET Sequence=1501 WHERE Action='RemoveExistingProducts'"
# These set a property, and are nothing to defer.
mend -q "UPDATE CustomAction SET Type=51 WHERE Source='ARPCOMMENTS'"
# Who may set them from outside.
mend -q "UPDATE Property SET Value='CONTROLURL;HOSTID;KEEPDATA;REALM;TRUSTPIN;WIX_DOWNGRADE_DETECTED;WIX_UPGRADE_DETECTED' WHERE Property='SecureCustomProperties'"
# jitgate is found by its name, and no longer after an uninstallation.
printf 'Environment\tName\tValue\tComponent_\r\ns72\tl255\tL255\ts72\r\nEnvironment\tEnvironment\r\nPath\t=-*PATH\t[~];[INSTALLDIR]\tAgent\r\n' >"$stage/Environment.idt"
mend -i "$stage/Environment.idt"
mend -q "INSERT INTO InstallExecuteSequence (Action, Sequence) VALUES ('WriteEnvironmentStrings', 5200)"
mend -q "INSERT INTO InstallExecuteSequence (Action, Sequence) VALUES ('RemoveEnvironmentStrings', 3300)"
mend -s 'Just-in-time access to management ports' jitgate 'x64;1033' "{$(uuid "package $content")}"

sign "$out" "jitgate $version" -add-msi-dse
mv "$out" "$dist/$name"
echo "$dist/$name"
