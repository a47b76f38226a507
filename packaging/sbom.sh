#!/bin/sh
# Says what is in a program, as CycloneDX 1.5: the modules that the linker wrote
# into it, and the Go it was built with.
#   sbom.sh NAME VERSION PROGRAM
set -eu
go version -m "$3" | jq -R -s --arg name "$1" --arg version "$2" --arg time "$(date -u -d "@${SOURCE_DATE_EPOCH:-0}" +%Y-%m-%dT%H:%M:%SZ)" '
	def golang($path; $version): {type: "library", name: $path, version: $version, purl: "pkg:golang/\($path)@\($version)"};
	split("\n") as $lines |
	{
		bomFormat: "CycloneDX", specVersion: "1.5", version: 1,
		metadata: {
			timestamp: $time,
			component: {"bom-ref": $name, type: "application", name: $name, version: $version, licenses: [{license: {id: "Apache-2.0"}}]}
		},
		components: (
			[$lines[0] | capture(": (?<go>go[0-9][^ ]*)") | golang("stdlib"; .go | ltrimstr("go"))] +
			[$lines[] | split("\t") | select(.[1] == "dep") | golang(.[2]; .[3])]
		)
	}'
