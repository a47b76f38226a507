#!/bin/sh
# Collects the licences of the modules in programs, a directory a module: they
# ask that their notices go with a copy.
#   licences.sh DIRECTORY [PACKAGE…]
set -eu
to=$1
shift
[ $# -gt 0 ] || set -- .
for goos in linux windows; do
	GOOS=$goos go list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Dir}}{{end}}{{end}}' "$@"
done | sort -u | while read -r module dir; do
	mkdir -p "$to/$module"
	for notice in "$dir"/LICENSE* "$dir"/COPYING* "$dir"/NOTICE* "$dir"/PATENTS*; do
		[ ! -f "$notice" ] || install -m 644 "$notice" "$to/$module/"
	done
	[ -n "$(ls "$to/$module")" ] || { echo "licences: $module has no licence file" >&2; exit 1; }
done
