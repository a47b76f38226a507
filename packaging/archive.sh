#!/bin/sh
# Packs what make cross built into one archive a platform, with the licence,
# the same bytes every time.
#   archive.sh DIST
set -eu
dist=$1
stamp=@$(git log -1 --format=%ct 2>/dev/null || echo 0)

licences=$(mktemp -d)
trap 'rm -rf "$licences"' EXIT
packaging/licences.sh "$licences"
for program in "$dist"/jitgate-linux-amd64 "$dist"/jitgate-linux-arm64 "$dist"/jitgate-windows-amd64.exe; do
	name=$(basename "$program" .exe)
	root=$(mktemp -d)
	mkdir "$root/$name"
	case $program in *.exe) suffix=.exe ;; *) suffix= ;; esac
	install -m 755 "$program" "$root/$name/jitgate$suffix"
	install -m 644 LICENSE README.md "$root/$name/"
	cp -r "$licences" "$root/$name/third-party"
	tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime="$stamp" -cf - "$name" | gzip -n -9 >"$dist/$name.tar.gz"
	rm -r "$root"
	echo "$dist/$name.tar.gz"
done
