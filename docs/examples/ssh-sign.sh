#!/bin/sh
# Makes a realm of SSH keys and signs its trust document, its policy and a list
# of grants for one host, with sh, jq, ssh-keygen (OpenSSH 8.1 or newer) and
# GNU coreutils alone. Two of three people sign: they pass one file around.
#
# usage: ssh-sign.sh DIR HOST
#
# DIR then holds trust.json, policy.json, grants.json and the private keys. The
# pin of the trust document is printed: a host is told it by whoever installs it.
set -eu
umask 077
cd "$1"
host=$2

# Three people and a signer of grants. -t ed25519-sk and -t ecdsa-sk make keys
# on a FIDO2 token: nothing else below changes.
ssh-keygen -q -t ed25519 -N '' -C 'Alice, laptop' -f alice
ssh-keygen -q -t ecdsa -b 256 -N '' -C 'Bob, office' -f bob
ssh-keygen -q -t ed25519 -N '' -C 'Carol, home' -f carol
ssh-keygen -q -t ed25519 -N '' -C 'grants' -f grant

# The id is the SHA-256 of the key's DER SubjectPublicKeyInfo: a fixed prefix
# for each of the two curves, and the key, which stands behind all else but the
# application of a token.
id() {
	case $(cut -d' ' -f1 "$1.pub") in
	ssh-ed25519) from=20 size=32 ;;
	sk-ssh-ed25519@openssh.com) from=35 size=32 ;;
	ecdsa-sha2-nistp256) from=40 size=65 ;;
	sk-ecdsa-sha2-nistp256@openssh.com) from=55 size=65 ;;
	esac
	{
		case $size in
		32) printf '\060\052\060\005\006\003\053\145\160\003\041\000' ;;
		65) printf '\060\131\060\023\006\007\052\206\110\316\075\002\001\006\010\052\206\110\316\075\003\001\007\003\102\000' ;;
		esac
		cut -d' ' -f2 "$1.pub" | base64 -d | tail -c +$from | head -c $size
	} | sha256sum | sed 's/^\(.\{64\}\).*/sha256:\1/'
}
key() { # NAME: the key as a trust document lists it
	jq -n --arg id "$(id "$1")" --arg public "$(cut -d' ' -f2 "$1.pub")" --arg name "$(cut -d' ' -f3- "$1.pub")" \
		'{$id, scheme: "sshsig", $public, $name}'
}

# seal TYPE wraps a payload into an envelope that nobody has signed.
seal() {
	jq -n --arg payloadType "application/vnd.jitgate.$1.v1+json" --arg payload "$(base64 -w0)" \
		'{$payloadType, $payload, signatures: []}'
}

# sign KEY FILE adds a signature to an envelope. What is signed is the
# pre-authentication encoding: the payload with its type, each with its length
# in bytes before it.
sign() {
	type=$(jq -r .payloadType "$2")
	jq -r .payload "$2" | base64 -d >payload
	{ printf 'DSSEv1 %d %s %d ' "${#type}" "$type" "$(wc -c <payload)" && cat payload; } >pae
	ssh-keygen -q -Y sign -n jitgate.v1 -f "$1" pae # asks for a passphrase or a touch
	jq --arg keyid "$(id "$1")" --arg sig "$(grep -v '^-----' pae.sig | tr -d '\n')" \
		'.signatures += [{$keyid, $sig}]' "$2" >signed
	mv signed "$2"
	rm pae pae.sig payload
}

at() { date -u -d "$1" +%Y-%m-%dT%H:%M:%SZ; } # documents hold whole seconds in UTC
head='{realm: "acme", version: 1, issued: $issued, expires: $expires}'
document() { # LIFE FILTER [OPTION...]: a payload
	life=$1 filter=$2
	shift 2
	jq -n --arg issued "$(at now)" --arg expires "$(at "$life")" --arg host "$host" "$@" "$head + $filter"
}

document '1 year' '{
	keys: [$alice, $bob, $carol, $grant],
	roles: [
		{name: "root",   keys: [$alice.id, $bob.id, $carol.id], threshold: 2},
		{name: "policy", keys: [$alice.id, $bob.id, $carol.id], threshold: 2},
		{name: "grant",  keys: [$grant.id], threshold: 1, epoch: 1}]}' \
	--argjson alice "$(key alice)" --argjson bob "$(key bob)" \
	--argjson carol "$(key carol)" --argjson grant "$(key grant)" | seal trust >trust.json
sign alice trust.json
sign bob trust.json
printf 'sha256:%s\n' "$(jq -r .payload trust.json | base64 -d | sha256sum | cut -d' ' -f1)"

document '90 days' '{
	host: {id: $host},
	ports: [{number: 22, protocol: "TCP", allowedSourceAddressPrefixes: ["203.0.113.0/24"], maxRequestAccessDuration: "PT3H"}]}' |
	seal policy >policy.json
sign bob policy.json
sign carol policy.json

document '1 day' '{
	host: {id: $host}, epoch: 1, policyVersion: 1,
	grants: [{id: "g1", number: 22, sourceAddressPrefixes: ["203.0.113.7/32"],
		startTimeUtc: $issued, endTimeUtc: $until, requestor: "alice@example.com", justification: "INC-1"}]}' \
	--arg until "$(at '1 hour')" | seal grants >grants.json
sign grant grants.json
