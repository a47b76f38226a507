package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"
)

// The realm of the tests. Two of two keys sign trust documents and policies,
// one of each kind, so that a test which forgets a threshold fails.
var (
	rootA    = edKey("root-a")
	rootB    = p256Key("root-b")
	rootNew  = edKey("root-new") // takes over in trust version 2, where a test says so
	policyA  = edKey("policy-a")
	policyB  = p256Key("policy-b")
	grantA   = p256Key("grant-a") // Azure Key Vault has no Ed25519
	grantNew = edKey("grant-new") // takes over in epoch 2, where a test says so
	mallory  = edKey("mallory")   // in no role

	// Of the trust document sshTrustDoc.
	sshEd   = sshKey(sshEd25519, edKey("ssh-ed25519"))
	sshEC   = sshKey(sshECDSA, p256Key("ssh-p256"))
	sshSKEd = sshKey(sshSKEd25519, edKey("ssh-sk-ed25519"))
	sshSKEC = sshKey(sshSKECDSA, p256Key("ssh-sk-p256"))
)

// testKeys are published below testdata/keys, for other implementations.
var testKeys = map[string]crypto.Signer{
	"root-a": rootA, "root-b": rootB, "root-new": rootNew, "policy-a": policyA, "policy-b": policyB,
	"grant-a": grantA, "grant-new": grantNew, "mallory": mallory,
	"ssh-ed25519": sshEd, "ssh-p256": sshEC, "ssh-sk-ed25519": sshSKEd, "ssh-sk-p256": sshSKEC,
}

// seed makes a test key the same key in every run: worthless as a secret.
func seed(name string) []byte {
	sum := sha256.Sum256([]byte("jitgate test key " + name))
	return sum[:]
}

func edKey(name string) crypto.Signer { return ed25519.NewKeyFromSeed(seed(name)) }

func p256Key(name string) crypto.Signer {
	k, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), seed(name))
	if err != nil {
		panic(err)
	}
	return deterministic{k}
}

// deterministic signs with the nonce of RFC 6979, so that a vector comes out
// the same every time.
type deterministic struct{ *ecdsa.PrivateKey }

func (k deterministic) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.PrivateKey.Sign(nil, digest, opts)
}

func describe(s crypto.Signer) Key {
	k, err := NewKey(s.Public())
	if s, ok := s.(sshSigner); ok {
		k, err = NewSSHKey(s.blob())
	}
	if err != nil {
		panic(err)
	}
	return k
}

func idOf(s crypto.Signer) KeyID { return describe(s).ID }

const (
	realm   = "acme"
	scope   = "/subscriptions/s1/resourceGroups/web/providers/Microsoft.Compute/virtualMachines"
	hostID  = scope + "/web1"
	install = "6f1ed002ab5595859014ebf0951522d9"
)

var (
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC) // when the documents below are issued
	here = Facts{Host: hostID, Install: install, Now: noon.Add(time.Minute), Built: noon.AddDate(0, -1, 0)}
)

const (
	sec = time.Second
	day = 24 * time.Hour
)

func header(version uint64, life time.Duration) Header {
	return Header{Realm: realm, Version: version, Issued: noon, Expires: noon.Add(life)}
}

func build[D any](d D, edits []func(*D)) D {
	for _, edit := range edits {
		edit(&d)
	}
	return d
}

func ids(signers ...crypto.Signer) []KeyID {
	var out []KeyID
	for _, s := range signers {
		out = append(out, idOf(s))
	}
	return out
}

func trustDoc(edits ...func(*Trust)) Trust {
	t := Trust{Header: header(1, 365*day), Roles: []RoleKeys{
		{Name: RoleRoot, Keys: ids(rootA, rootB), Threshold: 2},
		{Name: RolePolicy, Keys: ids(policyA, policyB), Threshold: 2},
		{Name: RoleGrant, Keys: ids(grantA), Threshold: 1, Epoch: 1},
	}}
	for _, s := range []crypto.Signer{rootA, rootB, rootNew, policyA, policyB, grantA, grantNew} {
		t.Keys = append(t.Keys, describe(s))
	}
	return build(t, edits)
}

// sshTrustDoc gives the roles root and policy to SSH keys of every kind.
func sshTrustDoc(edits ...func(*Trust)) Trust {
	t := Trust{Header: header(1, 365*day), Roles: []RoleKeys{
		{Name: RoleRoot, Keys: ids(sshSKEd, sshSKEC), Threshold: 2},
		{Name: RolePolicy, Keys: ids(sshEd, sshEC, sshSKEd, sshSKEC), Threshold: 1},
		{Name: RoleGrant, Keys: ids(grantA), Threshold: 1, Epoch: 1},
	}}
	for _, holder := range []struct {
		name string
		key  crypto.Signer
	}{{"Alice, laptop", sshEd}, {"Bob, agent", sshEC}, {"Carol, token", sshSKEd}, {"Dan, token", sshSKEC}, {"", grantA}} {
		k := describe(holder.key)
		k.Name = holder.name
		t.Keys = append(t.Keys, k)
	}
	return build(t, edits)
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		if s == "*" {
			out = append(out, any4, any6)
			continue
		}
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func policyDoc(edits ...func(*Policy)) Policy {
	return build(Policy{
		Header: header(1, 90*day),
		Host:   Host{ID: hostID},
		Ports: []Port{
			{Number: 22, EndNumber: 22, Protocol: TCP, AllowedSources: prefixes("203.0.113.0/24", "2001:db8::/32"),
				MaxRequestAccessDuration: 3 * time.Hour, SessionsAtEnd: Keep},
			{Number: 5985, EndNumber: 5986, Protocol: Both, AllowedSources: prefixes("*"),
				MaxRequestAccessDuration: time.Hour, SessionsAtEnd: Cut},
		},
		ExemptSources: prefixes("10.9.0.4/32"),
		MaxGrantsAge:  day, NarrowestPrefix4: 24, NarrowestPrefix6: 48,
	}, edits)
}

func grantsDoc(edits ...func(*Grants)) Grants {
	return build(Grants{
		Header: header(1, 2*day), Epoch: 1, Host: Host{ID: hostID}, PolicyVersion: 1,
		Grants: []Grant{grant("g1")},
	}, edits)
}

func grant(id string, edits ...func(*Grant)) Grant {
	return build(Grant{
		ID: id, Number: 22, Sources: prefixes("203.0.113.7/32"), Start: noon, End: noon.Add(time.Hour),
		Requestor: "alice@example.com", Justification: "INC-1",
	}, edits)
}

// typeOf is the payload type of a document.
func typeOf(doc any) Type {
	switch doc.(type) {
	case Trust:
		return TypeTrust
	case Policy:
		return TypePolicy
	case Grants:
		return TypeGrants
	}
	panic(fmt.Sprintf("%T is not a document", doc))
}

// sealBytes signs any payload, and unlike Envelope.Sign also what no agent
// should take.
func sealBytes(typ Type, payload []byte, signers ...crypto.Signer) []byte {
	e := Envelope{Type: typ, Payload: payload}
	for _, s := range signers {
		e.Signatures = append(e.Signatures, Signature{idOf(s), signature(s, PAE(typ, payload))})
	}
	return e.Encode()
}

func seal(doc interface{ Encode() []byte }, signers ...crypto.Signer) []byte {
	return sealBytes(typeOf(doc), doc.Encode(), signers...)
}

// verified is what Open returns for doc.
func verified[D interface {
	Trust | Policy | Grants
	Encode() []byte
}](doc D) Verified[D] {
	return Verified[D]{doc: doc, digest: sha256.Sum256(doc.Encode())}
}

// replaced is data with one spelling in place of another.
func replaced(data []byte, old, new string) []byte {
	if !bytes.Contains(data, []byte(old)) {
		panic(fmt.Sprintf("nothing to replace: no %q in\n%s", old, data))
	}
	return bytes.Replace(data, []byte(old), []byte(new), 1)
}

func wantCode(t *testing.T, err error, want Code) {
	t.Helper()
	if want == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	if got := CodeOf(err); got != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func parses(t *testing.T, typ Type, payload []byte) any {
	t.Helper()
	doc, err := ParseDocument(typ, payload)
	if err != nil {
		t.Fatalf("%v in\n%s", err, payload)
	}
	return doc
}

func sha(b []byte) Digest { return sha256.Sum256(b) }

// fuzzing reports whether this process runs a fuzz engine, which keeps the
// seeds for its workers.
func fuzzing() bool { return flag.Lookup("test.fuzz").Value.String() != "" }

// The shortest documents: every optional name left out.
const (
	minimalPolicy = `{"realm":"acme","version":1,"issued":"2026-11-22T12:00:00Z","expires":"2026-11-23T12:00:00Z","host":{"id":"vm1"},"ports":[]}`
	minimalGrants = `{"realm":"acme","version":1,"epoch":1,"issued":"2026-11-22T12:00:00Z","expires":"2026-11-23T12:00:00Z","host":{"id":"vm1"},"grants":[]}`
)
