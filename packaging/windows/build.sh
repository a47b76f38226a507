#!/bin/sh
# Builds the program for Windows with its resources: the texts of its events and
# its version.
#   VERSION=… build.sh go build …
# VERSION is what git describe says.
set -eu
object=jitgate_windows_amd64.syso # the linker takes it by its name
trap 'rm -f "$object"' EXIT
number=$(echo "${VERSION#v}" | sed -n 's/^\([0-9]*\.[0-9]*\.[0-9]*\)\(-\([0-9]*\)-g.*\)*$/\1.\3/p' | sed 's/\.$/.0/')
GOOS='' GOARCH='' go run ./packaging/windows/resource -version "${number:-0.0.0}" -o "$object"
GOOS=windows GOARCH=amd64 "$@"
