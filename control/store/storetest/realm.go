package storetest

import (
	"crypto"
	"crypto/ed25519"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// Realm makes a realm whose keys are in memory, and good for a year from now.
func Realm(t testing.TB, now time.Time) control.Realm {
	t.Helper()
	trust := policy.Trust{Header: policy.Header{Realm: "test", Version: 1, Issued: now, Expires: now.Add(365 * 24 * time.Hour)}, Roles: []policy.RoleKeys{
		{Name: policy.RoleRoot, Threshold: 1}, {Name: policy.RolePolicy, Threshold: 1}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1}}}
	signers := map[policy.Role]crypto.Signer{}
	for _, role := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := policy.NewKey(private.Public())
		if err == nil {
			err = trust.Give(role, key)
		}
		if err != nil {
			t.Fatal(err)
		}
		signers[role] = private
	}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: trust.Encode()}
	if err := e.Sign(signers[policy.RoleRoot]); err != nil {
		t.Fatal(err)
	}
	if _, err := policy.OpenPinnedTrust(e.Encode(), e.Digest()); err != nil {
		t.Fatal(err)
	}
	return control.Realm{Trust: trust, Signed: e.Encode(), Pin: e.Digest(), Grant: signers[policy.RoleGrant], Policy: signers[policy.RolePolicy]}
}
