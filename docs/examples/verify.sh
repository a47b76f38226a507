#!/bin/sh
# Verifies a jitgate document against a trust document with sh, jq, openssl
# (3.0 or newer) and coreutils alone, and prints its payload. For keys of scheme
# sshsig it also takes ssh-keygen (OpenSSH 8.2 or newer).
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

# spki KIND prints the DER SubjectPublicKeyInfo of the SSH key in public: a
# fixed prefix for each of the two curves, and the key, which stands behind all
# else but the application of a token.
spki() {
	case $1 in
	ssh-ed25519) from=20 size=32 ;;
	sk-ssh-ed25519@openssh.com) from=35 size=32 ;;
	ecdsa-sha2-nistp256) from=40 size=65 ;;
	sk-ecdsa-sha2-nistp256@openssh.com) from=55 size=65 ;;
	*) return 1 ;;
	esac
	case $size in
	32) printf '\060\052\060\005\006\003\053\145\160\003\041\000' ;;
	65) printf '\060\131\060\023\006\007\052\206\110\316\075\002\001\006\010\052\206\110\316\075\003\001\007\003\102\000' ;;
	esac
	tail -c +$from "$tmp/public" | head -c $size
}

# holds reports whether sig is the signature of the key in public over pae.
holds() {
	case $scheme in
	ed25519)
		openssl pkeyutl -verify -pubin -keyform DER -inkey "$tmp/public" -rawin -in "$tmp/pae" -sigfile "$tmp/sig" ;;
	ecdsa-p256-sha256)
		openssl pkeyutl -verify -pubin -keyform DER -inkey "$tmp/public" -rawin -digest sha256 -in "$tmp/pae" -sigfile "$tmp/sig" ;;
	sshsig)
		# A token says in the fifth byte from the end whether it was touched;
		# ssh-keygen does not ask for that.
		case $kind in
		sk-*) [ $(($(tail -c 5 "$tmp/sig" | od -An -tu1 -N1) & 1)) = 1 ] || return ;;
		esac
		printf '%s namespaces="jitgate.v1" %s %s\n' "$id" "$kind" "$(base64 -w0 "$tmp/public")" >"$tmp/allowed"
		{ echo '-----BEGIN SSH SIGNATURE-----' && base64 -w70 "$tmp/sig" && echo '-----END SSH SIGNATURE-----'; } >"$tmp/armoured"
		ssh-keygen -Y verify -n jitgate.v1 -I "$id" -f "$tmp/allowed" -s "$tmp/armoured" <"$tmp/pae" ;;
	*)
		false ;;
	esac >/dev/null 2>&1
}

# Each key of the role that has a valid signature counts once.
valid=0
for id in $(jq -r --arg role "$role" '.roles[] | select(.name == $role) | .keys | unique[]' "$tmp/trust"); do
	jq -r --arg id "$id" '.keys[] | select(.id == $id) | .public' "$tmp/trust" | base64 -d >"$tmp/public"
	scheme=$(jq -r --arg id "$id" '.keys[] | select(.id == $id) | .scheme' "$tmp/trust")
	case $scheme in
	sshsig)
		kind=$(tail -c +5 "$tmp/public" | head -c "$(head -c 4 "$tmp/public" | od -An -tu1 | (read -r _ _ _ n && echo "$n"))")
		spki "$kind" >"$tmp/spki" ;;
	*) cp "$tmp/public" "$tmp/spki" ;;
	esac
	[ "sha256:$(sha256sum <"$tmp/spki" | cut -d' ' -f1)" = "$id" ] # an id is computed, never chosen
	for sig in $(jq -r --arg id "$id" '.signatures[] | select(.keyid == $id) | .sig' "$1"); do
		printf %s "$sig" | base64 -d >"$tmp/sig"
		if holds; then
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
