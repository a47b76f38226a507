package policy_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// One document of each type, from the keys that sign it to what may be open.
func ExampleEvaluate() {
	// The signing side. Real keys live apart from each other, and the one
	// for policies apart from the server that signs grants.
	key := func(name string) ed25519.PrivateKey {
		seed := sha256.Sum256([]byte(name))
		return ed25519.NewKeyFromSeed(seed[:])
	}
	rootKey, policyKey, grantKey := key("root"), key("policy"), key("grant")

	noon := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	header := policy.Header{Realm: "acme", Version: 1, Issued: noon, Expires: noon.AddDate(0, 1, 0)}
	host := policy.Host{ID: "web1"}

	trust := policy.Trust{Header: header}
	for _, r := range []struct {
		role policy.Role
		key  ed25519.PrivateKey
	}{{policy.RoleRoot, rootKey}, {policy.RolePolicy, policyKey}, {policy.RoleGrant, grantKey}} {
		k, err := policy.NewKey(r.key.Public())
		if err != nil {
			log.Fatal(err)
		}
		role := policy.RoleKeys{Name: r.role, Keys: []policy.KeyID{k.ID}, Threshold: 1}
		if r.role == policy.RoleGrant {
			role.Epoch = 1
		}
		trust.Keys, trust.Roles = append(trust.Keys, k), append(trust.Roles, role)
	}
	bounds := policy.Policy{
		Header: header, Host: host, MaxGrantsAge: policy.DefaultMaxGrantsAge,
		Ports: []policy.Port{{
			Number: 22, EndNumber: 22, Protocol: policy.TCP, MaxRequestAccessDuration: 3 * time.Hour, SessionsAtEnd: policy.Keep,
			AllowedSources: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")},
		}},
	}
	grant := func(id, source string, length time.Duration) policy.Grant {
		return policy.Grant{ID: id, Number: 22, Sources: []netip.Prefix{netip.MustParsePrefix(source)},
			Start: noon, End: noon.Add(length), Requestor: "alice@example.com"}
	}
	grants := policy.Grants{Header: header, Epoch: 1, Host: host, Grants: []policy.Grant{
		grant("one", "203.0.113.7/32", time.Hour),
		grant("two", "198.51.100.1/32", time.Hour),
		grant("three", "203.0.113.7/32", 10*time.Hour),
	}}

	sign := func(typ policy.Type, payload []byte, key ed25519.PrivateKey) []byte {
		e := policy.Envelope{Type: typ, Payload: payload}
		if err := e.Sign(key); err != nil {
			log.Fatal(err)
		}
		return e.Encode()
	}
	trustFile := sign(policy.TypeTrust, trust.Encode(), rootKey)
	policyFile := sign(policy.TypePolicy, bounds.Encode(), policyKey)
	grantsFile := sign(policy.TypeGrants, grants.Encode(), grantKey)
	pin := policy.Digest(sha256.Sum256(trust.Encode()))

	// The host, half an hour later. It has the files, and the pin from
	// whoever installed it.
	facts := policy.Facts{Host: "web1", Now: noon.Add(30 * time.Minute)}
	state := policy.State{}

	t, err := policy.OpenPinnedTrust(trustFile, pin)
	if err != nil {
		log.Fatal(err)
	}
	if state, err = policy.AdmitTrust(state, t, policy.Trust{}, facts); err != nil {
		log.Fatal(err)
	}
	p, err := policy.OpenPolicy(policyFile, t.Document())
	if err != nil {
		log.Fatal(err)
	}
	if state, err = policy.AdmitPolicy(state, p, t.Document(), facts); err != nil {
		log.Fatal(err)
	}
	g, err := policy.OpenGrants(grantsFile, t.Document())
	if err != nil {
		log.Fatal(err)
	}
	if state, err = policy.AdmitGrants(state, g, t.Document(), p.Document(), facts); err != nil {
		log.Fatal(err)
	}
	// Here an agent makes state durable, and only then opens anything.

	decision := policy.Evaluate(state, t.Document(), p.Document(), g.Document(), facts)
	for _, v := range decision.Verdicts {
		if v.Refusal != nil {
			fmt.Println(v.Grant.ID, v.Refusal)
			continue
		}
		fmt.Println(v.Grant.ID, v.Phase, v.Port, v.Grant.Sources, "until", policy.FormatTime(v.Grant.End))
	}

	// Output:
	// one active 22/tcp [203.0.113.7/32] until 2026-11-22T13:00:00Z
	// two source-not-allowed: source 198.51.100.1/32 is not within [203.0.113.0/24] of port 22/tcp
	// three too-long: PT10H asked, port 22/tcp allows PT3H
}
