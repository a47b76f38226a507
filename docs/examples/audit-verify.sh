#!/bin/sh
# Verifies the record of a jitgate host with sh and sha256sum alone, and prints
# its head. What is wrong is named with file and line; then the exit code is 1.
#
# usage: audit-verify.sh DIR [NUMBER:DIGEST]
#
# DIR is /var/lib/jitgate/state/audit or a copy of it. NUMBER:DIGEST is a head
# that was noted elsewhere: that the end was cut off, or all of it written anew,
# shows only against one. `jitgate audit verify` does the same, faster.
set -eu
dir=$1 noted=${2:-}
zeros=0000000000000000000000000000000000000000000000000000000000000000
bad=0 seq=0 hash=$zeros found='' name='' row=0 begun='' line=''

fault() {
	echo "$name:$row: $*" >&2
	bad=1
}

# What a crash left of a line is set aside in a file of its own, whose name ends
# with the first 16 digits of its digest. The line behind names all of it.
check_aside() { # DIGEST
	for aside in "$dir"/[0-9]*.jsonl.torn-"${1%"${1#????????????????}"}"; do
		if [ ! -f "$aside" ] || [ -h "$aside" ]; then
			fault "a line was cut short before this one; what was left of it is not there"
			return
		fi
		digest=$(sha256sum <"$aside")
		[ "${digest%% *}" != "$1" ] || return 0
	done
	fault "${aside##*/} is not what was set aside: it was edited"
}

# A record that was pruned by its limits says up to which line, in its last line
# about that. Quotes inside a text are escaped, so that no text passes for it.
pruned=$(cat "$dir"/[0-9]*.jsonl | sed -n '/,"event":"audit\.pruned"/s/.*,"head":"\([0-9]*:[0-9a-f]*\)".*/\1/p' | tail -n 1)

for file in "$dir"/[0-9]*.jsonl; do
	[ -z "$line" ] || fault "a line without an end, and another file follows: it was cut, or written to"
	name=${file##*/} row=0
	while IFS= read -r line; do
		row=$((row + 1))
		case $line in
		'{"seq":'[1-9]*',"prev":"'*) ;;
		*) fault "has no place in a record" ;;
		esac
		rest=${line#'{"seq":'}
		number=${rest%%,*}
		rest=${rest#*'"prev":"'}
		prev=${rest%%\"*}
		if [ -z "$begun" ] && [ "$number" != 1 ]; then
			# It begins behind what was pruned, or before the end of that.
			begun=$number
			if [ "$((number - 1)):$prev" != "$pruned" ] && [ "${pruned%%:*}" -lt "$number" ] 2>/dev/null || [ -z "$pruned" ]; then
				fault "the record begins with number $number: it was cut at the front"
			fi
		elif [ "$number" != "$((seq + 1))" ]; then
			fault "number $number comes after $seq"
		elif [ "$prev" != "$hash" ]; then
			fault "number $number does not follow the line before it as that stands there"
		fi
		case $line in
		*',"torn":"'*)
			torn=${line#*',"torn":"'}
			check_aside "${torn%%\"*}"
			;;
		esac
		begun=${begun:-1} seq=$number
		hash=$(printf %s "$line" | sha256sum)
		hash=${hash%% *}
		if [ "$seq:$hash" = "$noted" ]; then
			found=1
		elif [ "$seq" = "${noted%%:*}" ]; then
			fault "number $seq is $hash, and was ${noted#*:} when its head was noted"
		fi
		if [ "$begun" != 1 ] && [ "$seq" = "${pruned%%:*}" ] && [ "$hash" != "${pruned#*:}" ]; then
			fault "number $seq is not the one up to which the record says it was pruned"
		fi
	done <"$file"
done
if [ -n "$noted" ] && [ -z "$found" ]; then
	fault "the record ends with number $seq, and $noted was noted"
fi
echo "head $seq:$hash"
exit "$bad"
