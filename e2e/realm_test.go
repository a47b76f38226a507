//go:build linux

package e2e_test

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"
)

// object is a JSON object.
type object = map[string]any

// with returns o with some names set, or taken away where the value is nil.
func with(o object, changes object) object {
	out := maps.Clone(o)
	for name, value := range changes {
		if out[name] = value; value == nil {
			delete(out, name)
		}
	}
	return out
}

// stamp is an instant as documents write it, cut to the second.
func stamp(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05Z") }

// in is the stamp of an instant from now.
func in(d time.Duration) string { return stamp(time.Now().Add(d)) }

type key struct {
	private ed25519.PrivateKey
	id      string
	der     []byte
}

func newKey(t *testing.T) key {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return key{private, fmt.Sprintf("sha256:%x", sha256.Sum256(der)), der}
}

// public is the key as a trust document lists it.
func (k key) public() object {
	return object{"id": k.id, "scheme": "ed25519", "public": base64.StdEncoding.EncodeToString(k.der)}
}

// realm is a realm's name and keys.
type realm struct {
	name                string
	root, policy, grant key
	epoch               int // of the grant key
	policyEpoch         int // of the policy key; 0: none
}

func newRealm(t *testing.T, name string) realm {
	return realm{name: name, root: newKey(t), policy: newKey(t), grant: newKey(t), epoch: 1}
}

// signer is the key whose role signs a type.
func (r realm) signer(kind string) key {
	return map[string]key{"trust": r.root, "policy": r.policy, "grants": r.grant}[kind]
}

// hostID is who every host in these tests is.
const hostID = "/subscriptions/1/virtualMachines/web1"

// trust says which keys the realm has.
func (r realm) trust(version int) object {
	keys, roles := []object{}, []object{}
	for name, k := range map[string]key{"root": r.root, "policy": r.policy, "grant": r.grant} {
		keys = append(keys, k.public())
		role := object{"name": name, "keys": []string{k.id}, "threshold": 1}
		switch {
		case name == "grant":
			role["epoch"] = r.epoch
		case name == "policy" && r.policyEpoch > 0:
			role["epoch"] = r.policyEpoch
		}
		roles = append(roles, role)
	}
	return object{"realm": r.name, "version": version, "issued": in(0), "expires": in(time.Hour), "keys": keys, "roles": roles}
}

// rules is a policy for ports.
func (r realm) rules(version int, ports ...object) object {
	rules := object{"realm": r.name, "version": version, "issued": in(0), "expires": in(time.Hour), "host": object{"id": hostID}, "ports": ports}
	if r.policyEpoch > 0 {
		rules["epoch"] = r.policyEpoch
	}
	return rules
}

// port is a policy's entry: a number or a range, from anywhere, for an hour.
func port(number int, protocol string) object {
	return object{"number": number, "protocol": protocol, "allowedSourceAddressPrefixes": []string{"*"}, "maxRequestAccessDuration": "PT1H"}
}

// list is a list of grants.
func (r realm) list(version int, grants ...object) object {
	if grants == nil {
		grants = []object{}
	}
	return object{"realm": r.name, "version": version, "epoch": r.epoch, "issued": in(0), "expires": in(time.Hour),
		"host": object{"id": hostID}, "policyVersion": 1, "grants": grants}
}

// grant opens a port from now on.
func grant(id string, number int, length time.Duration, sources ...string) object {
	return object{"id": id, "number": number, "sourceAddressPrefixes": sources, "startTimeUtc": in(-time.Second), "endTimeUtc": in(length),
		"requestor": "alice@example.com", "justification": "INC-1"}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only plain values come here
	}
	return b
}

// sign makes the file for a document, signed by the key whose role that is.
func (r realm) sign(kind string, document object) []byte {
	return seal(kind, encode(document), r.signer(kind))
}

// seal signs any bytes as a document of a kind: a DSSE v1 envelope, made here
// by the book and not by the product.
func seal(kind string, payload []byte, keys ...key) []byte {
	return encode(envelope(kind, payload, keys...))
}

func envelope(kind string, payload []byte, keys ...key) object {
	typ := "application/vnd.jitgate." + kind + ".v1+json"
	signed := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(typ), typ, len(payload), payload)
	signatures := []object{}
	for _, k := range keys {
		signatures = append(signatures, object{"keyid": k.id, "sig": base64.StdEncoding.EncodeToString(ed25519.Sign(k.private, signed))})
	}
	return object{"payloadType": typ, "payload": base64.StdEncoding.EncodeToString(payload), "signatures": signatures}
}
