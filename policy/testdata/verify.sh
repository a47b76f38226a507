#!/bin/sh
# Verifies a jitgate document against a trust document with sh, jq, openssl
# (3.0 or newer) and coreutils alone, and prints its payload.
#
# usage: verify.sh FILE TRUST
#
# It checks the signatures and the threshold of the role, not dates, versions
# or the host: `jitgate verify` does. TRUST itself is taken as it is; compare
# the SHA-256 of its payload with the pin you were told:
#
#	jq -r .payload trust.json | base64 -d | sha256sum
set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

type=$(jq -r .payloadType "$1")
case $type in
application/vnd.jitgate.trust.v1+json) role=root ;;
application/vnd.jitgate.policy.v1+json) role=policy ;;
application/vnd.jitgate.grants.v1+json) role=grant ;;
*) echo "payloadType is $type" >&2 && exit 1 ;;
esac
jq -r .payload "$2" | base64 -d >"$tmp/trust"
jq -r .payload "$1" | base64 -d >"$tmp/payload"

# What was signed: the payload with its type, each with its length before it.
{ printf 'DSSEv1 %d %s %d ' "${#type}" "$type" "$(wc -c <"$tmp/payload")" && cat "$tmp/payload"; } >"$tmp/pae"

# Each key of the role that has a valid signature counts once.
valid=0
for id in $(jq -r --arg role "$role" '.roles[] | select(.name == $role) | .keys | unique[]' "$tmp/trust"); do
	jq -r --arg id "$id" '.keys[] | select(.id == $id) | .public' "$tmp/trust" | base64 -d >"$tmp/public"
	[ "sha256:$(sha256sum <"$tmp/public" | cut -d' ' -f1)" = "$id" ] # an id is computed, never chosen
	case $(jq -r --arg id "$id" '.keys[] | select(.id == $id) | .scheme' "$tmp/trust") in
	ed25519) digest= ;;
	ecdsa-p256-sha256) digest='-digest sha256' ;;
	*) continue ;;
	esac
	for sig in $(jq -r --arg id "$id" '.signatures[] | select(.keyid == $id) | .sig' "$1"); do
		printf %s "$sig" | base64 -d >"$tmp/sig"
		# shellcheck disable=SC2086 # $digest is two words or none
		if openssl pkeyutl -verify -pubin -keyform DER -inkey "$tmp/public" -rawin $digest \
			-in "$tmp/pae" -sigfile "$tmp/sig" >/dev/null 2>&1; then
			valid=$((valid + 1))
			break
		fi
	done
done

threshold=$(jq --arg role "$role" '.roles[] | select(.name == $role) | .threshold' "$tmp/trust")
if [ "$valid" -lt "$threshold" ]; then
	echo "$valid valid signatures of role $role, $threshold needed" >&2
	exit 1
fi
cat "$tmp/payload"
