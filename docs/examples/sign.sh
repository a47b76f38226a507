#!/bin/sh
# Makes a realm and signs its trust document, its policy and a list of grants
# for one host, with sh, jq, openssl (3.0 or newer) and GNU coreutils alone.
#
# usage: sign.sh DIR HOST
#
# DIR then holds trust.json, policy.json, grants.json and the private keys. The
# pin of the trust document is printed: a host is told it by whoever installs it.
set -eu
umask 077
cd "$1"
host=$2

der() { openssl pkey -in "$1.pem" -pubout -outform DER; }
id() { printf 'sha256:%s' "$(der "$1" | sha256sum | cut -d' ' -f1)"; }
key() { # NAME SCHEME [OPTION...] makes a key and shows it as a trust document lists it
	name=$1 scheme=$2
	shift 2
	openssl genpkey -out "$name.pem" "$@"
	jq -n --arg id "$(id "$name")" --arg scheme "$scheme" --arg public "$(der "$name" | base64 -w0)" '{$id, $scheme, $public}'
}

# seal TYPE KEY [OPTION...] reads a payload and writes its DSSE envelope. What
# is signed is the pre-authentication encoding: the payload with its type, each
# with its length in bytes before it.
seal() {
	type=application/vnd.jitgate.$1.v1+json key=$2
	shift 2
	cat >payload
	[ -s payload ] # plain sh does not stop where the head of a pipe fails
	{ printf 'DSSEv1 %d %s %d ' "${#type}" "$type" "$(wc -c <payload)" && cat payload; } >pae
	openssl pkeyutl -sign -inkey "$key.pem" -rawin "$@" -in pae -out sig
	jq -n --arg payloadType "$type" --arg payload "$(base64 -w0 payload)" --arg keyid "$(id "$key")" \
		--arg sig "$(base64 -w0 sig)" '{$payloadType, $payload, signatures: [{$keyid, $sig}]}'
}

at() { date -u -d "$1" +%Y-%m-%dT%H:%M:%SZ; } # documents hold whole seconds in UTC
document() { # LIFE FILTER [OPTION...]: a payload
	life=$1 filter=$2
	shift 2
	jq -n --arg issued "$(at now)" --arg expires "$(at "$life")" --arg host "$host" "$@" \
		'{realm: "acme", version: 1, issued: $issued, expires: $expires} + '"$filter"
}

# One key a role. Ed25519 for people, P-256 as Azure Key Vault has it.
document '1 year' '{keys: [$root, $policy, $grant], roles: [{name: "root", keys: [$root.id], threshold: 1},
	{name: "policy", keys: [$policy.id], threshold: 1}, {name: "grant", keys: [$grant.id], threshold: 1, epoch: 1}]}' \
	--argjson root "$(key root ed25519 -algorithm ED25519)" --argjson policy "$(key policy ed25519 -algorithm ED25519)" \
	--argjson grant "$(key grant ecdsa-p256-sha256 -algorithm EC -pkeyopt ec_paramgen_curve:P-256)" | seal trust root >trust.json
printf 'sha256:%s\n' "$(sha256sum payload | cut -d' ' -f1)"
document '90 days' '{host: {id: $host}, ports: [{number: 22, protocol: "TCP",
	allowedSourceAddressPrefixes: ["203.0.113.0/24"], maxRequestAccessDuration: "PT3H"}]}' | seal policy policy >policy.json
document '1 day' '{host: {id: $host}, epoch: 1, policyVersion: 1, grants: [{id: "g1", number: 22,
	sourceAddressPrefixes: ["203.0.113.7/32"], startTimeUtc: $issued, endTimeUtc: $until, requestor: "alice@example.com",
	justification: "INC-1"}]}' --arg until "$(at '1 hour')" | seal grants grant -digest sha256 >grants.json
rm payload pae sig
