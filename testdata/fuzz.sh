#!/bin/sh
# Fuzzes every target of every package for the time, or the number of inputs,
# given each. A number ends without the race between the clock and the last
# input that fails a good run now and then (https://go.dev/issue/75804, mended in Go 1.27): CI
# gives one.
#   fuzz.sh 20s
#   fuzz.sh 20000x
set -eu
for package in $(go list ./...); do
	for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
		echo "$package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$1" "$package"
	done
done
