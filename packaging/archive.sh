#!/bin/sh
# Packs what make cross built into one archive a platform, with the licence,
# the same bytes every time.
#   archive.sh DIST
set -eu
dist=$1
stamp=@$(git log -1 --format=%ct 2>/dev/null || echo 0)

# The licences of the modules in the program ask that their notices go with it.
licences=$(mktemp -d)
trap 'rm -rf "$licences"' EXIT
for goos in linux windows; do
	GOOS=$goos go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' .
done | sort -u | while read -r module dir; do
	mkdir -p "$licences/$module"
	for notice in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE* "$dir"/PATENTS*; do
		[ ! -f "$notice" ] || install -m 644 "$notice" "$licences/$module/"
	done
	[ -n "$(ls "$licences/$module")" ] || { echo "archive: $module has no licence file" >&2; exit 1; }
done
for program in "$dist"/jitgate-*-*; do
	case $program in *.tar.gz) continue ;; esac
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
