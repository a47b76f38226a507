package control_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// byPeople is a realm whose policies take so many of these people's keys.
func byPeople(t *testing.T, threshold int, server bool, names ...string) func(*control.Config) {
	t.Helper()
	keys := map[policy.Role][]ed25519.PrivateKey{policy.RoleRoot: {key("root")}, policy.RoleGrant: {key("grant")}}
	for _, n := range names {
		keys[policy.RolePolicy] = append(keys[policy.RolePolicy], key(n))
	}
	trust, signed := trustOf(t, threshold, keys)
	envelope, err := policy.ParseEnvelope(signed)
	if err != nil {
		t.Fatal(err)
	}
	realm := control.Realm{Trust: trust, Signed: signed, Pin: envelope.Digest(), Grant: key("grant")}
	if server {
		realm.Policy = key(names[0])
	}
	return func(c *control.Config) { c.Realm = realm }
}

// pending is the one policy document that waits.
func (p *plane) pending() control.PendingPolicy {
	p.t.Helper()
	list, err := p.PendingPolicies(p.t.Context(), owner)
	if err != nil || len(list) != 1 {
		p.t.Fatalf("%d documents wait, %v; want 1", len(list), err)
	}
	return list[0]
}

// signed is a pending document with these people's signatures.
func signed(t *testing.T, w control.PendingPolicy, names ...string) []byte {
	t.Helper()
	envelope := policy.Envelope{Type: policy.TypePolicy, Payload: w.Payload}
	for _, n := range names {
		if err := envelope.Sign(key(n)); err != nil {
			t.Fatal(err)
		}
	}
	return envelope.Encode()
}

func (p *plane) accept(c control.Caller, envelope []byte) func() error {
	return func() error {
		_, _, err := p.AcceptPolicy(p.t.Context(), c, envelope)
		return err
	}
}

// Where the control plane has no policy key, what was signed last stays in
// force until people sign what comes next.
func TestPeopleSignPolicies(t *testing.T) {
	p := newPlane(t, byPeople(t, 2, false, "ann", "ben", "cora"))
	h := host{vm: vmID("vm1")}
	put := p.put("default", machine("vm1", rule(22, "PT3H")))
	equal(t, "state", put.State, control.Updating)
	equal(t, "read", p.get().State, control.Updating)
	docs, err := p.Documents(t.Context(), vmID("vm1"))
	if err != nil || len(docs) != 2 || docs[0].Type != policy.TypeTrust || docs[1].Type != policy.TypeGrants {
		t.Fatalf("%d documents before anything is signed: %v", len(docs), err)
	}
	// A request is recorded, and opens once the policy is signed.
	p.initiate(owner, wants("vm1", 22, "", "PT3H"))

	first := p.pending()
	equal(t, "pending", fmt.Sprint(first.VM, first.Version, first.By, first.Partial == nil), fmt.Sprint(vmID("vm1"), 1, "owner@example.com", true))
	if other, err := p.PendingPolicies(t.Context(), as("nobody")); err != nil || len(other) != 0 {
		t.Errorf("who may neither read nor sign is shown %d, %v", len(other), err)
	}

	signer := as("ann", "SecurityAdmin@"+group)
	p.refused(control.Forbidden, "AuthorizationFailed", "sign/action' over scope '"+strings.ToLower(vmID("vm1").String()), p.accept(as("x", "Reader"), signed(t, first, "ann")))
	p.refused(control.Invalid, "InvalidDocument", "malformed", p.accept(signer, []byte("{")))
	p.refused(control.Invalid, "InvalidSignature", "not a key that signs policies", p.accept(signer, signed(t, first, "grant")))
	p.refused(control.Invalid, "InvalidSignature", "no signature", p.accept(signer, signed(t, first)))
	trust := policy.Envelope{Type: policy.TypeTrust, Payload: p.Realm.Trust.Encode()}
	p.refused(control.Invalid, "InvalidDocument", "payloadType", p.accept(signer, trust.Encode()))
	broken, err := policy.ParseEnvelope(signed(t, first, "ann"))
	if err != nil {
		t.Fatal(err)
	}
	broken.Signatures[0].Sig[0] ^= 1
	p.refused(control.Invalid, "InvalidSignature", "does not hold", p.accept(signer, broken.Encode()))

	got, done, err := p.AcceptPolicy(t.Context(), signer, signed(t, first, "ann"))
	if err != nil || done || got.Partial == nil {
		t.Fatalf("one of two: done %v, %v", done, err)
	}
	p.refused(control.Invalid, "InvalidSignature", "not here already", p.accept(signer, signed(t, first, "ann")))
	equal(t, "state", p.get().State, control.Updating)
	_, done, err = p.AcceptPolicy(t.Context(), signer, signed(t, first, "ben"))
	if err != nil || !done {
		t.Fatalf("two of two: done %v, %v", done, err)
	}
	equal(t, "state", p.get().State, control.Succeeded)
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp]")
	equal(t, "open", len(h.open(t, p.clock())), 1)
	equal(t, "grants name it", h.grants.PolicyVersion, 1)
	p.refused(control.NotFound, "NothingPending", "waits for a signature", p.accept(signer, signed(t, first, "cora")))

	// An edit while an edit waits: the earlier one can be signed no more, and
	// its version, which somebody may have delivered by hand, is not used again.
	p.put("default", machine("vm1", rule(22, "PT2H")))
	second := p.pending()
	p.put("default", machine("vm1", rule(22, "PT1H")))
	third := p.pending()
	equal(t, "versions", fmt.Sprint(second.Version, third.Version), "2 3")
	p.refused(control.Conflict, "PolicyChanged", "version 3", p.accept(signer, signed(t, second, "ann", "ben")))
	h.deliver(p, p.clock())
	equal(t, "in force", h.policy.Version, 1)
	if _, done, err = p.AcceptPolicy(t.Context(), signer, signed(t, third, "cora", "ann")); err != nil || !done {
		t.Fatal(done, err)
	}
	h.deliver(p, p.clock())
	equal(t, "in force", fmt.Sprint(h.policy.Version, h.policy.Ports[0].MaxRequestAccessDuration), "3 1h0m0s")

	// One that ended before it was signed.
	p.put("default", machine("vm1", rule(22, "PT2H")))
	late := p.pending()
	p.pass(366 * 24 * time.Hour)
	p.refused(control.Conflict, "PolicyChanged", "ended at", p.accept(signer, signed(t, late, "ann", "ben")))
	// Made by somebody else, with enough signatures, it is still not the one.
	doc, err := policy.ParseDocument(policy.TypePolicy, late.Payload)
	if err != nil {
		t.Fatal(err)
	}
	forged := doc.(policy.Policy)
	forged.Ports = nil
	late.Payload = forged.Encode()
	p.refused(control.Conflict, "PolicyChanged", "not the one that was signed", p.accept(signer, signed(t, late, "ann", "ben")))
}

// The server's own key may be one of several.
func TestServersKeyIsOneOfTwo(t *testing.T) {
	p := newPlane(t, byPeople(t, 2, true, "policy", "ann"))
	p.put("default", machine("vm1", rule(22, "PT3H")))
	w := p.pending()
	if w.Partial == nil {
		t.Fatal("the server did not sign")
	}
	_, done, err := p.AcceptPolicy(t.Context(), owner, signed(t, w, "ann"))
	if err != nil || !done {
		t.Fatal(done, err)
	}
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp]")
}

// slow makes a realm's keys slow ones, with before run before each signature.
func slow(t *testing.T, before func() error) func(*control.Config) {
	return func(c *control.Config) {
		c.Realm.Grant = slowSigner{key("grant"), before}
		c.Realm.Policy = slowSigner{key("policy"), before}
	}
}

// A signer that is slow holds nobody up, and what it signs is what is stored,
// whatever others change meanwhile.
func TestSlowSigner(t *testing.T) {
	var p *plane
	var signatures atomic.Int64
	disturb := func() {}
	p = newPlane(t, slow(t, func() error {
		signatures.Add(1)
		disturb()
		return nil
	}))
	p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")), machine("vm2", rule(22, "PT3H")))
	equal(t, "signatures", signatures.Load(), 4)
	// Others write while it signs: something else, and the same machine once.
	fast := control.New(control.Config{Store: p.store, Realm: realmOf(t), Now: p.clock, Log: p.Log})
	ran := false
	disturb = func() {
		if ran {
			return
		}
		ran = true
		if _, err := fast.Initiate(t.Context(), as("bob", "Owner"), policyID("default"), wants("vm1", 23, "", "PT1H")); err != nil {
			t.Errorf("while another signs: %v", err)
		}
	}
	signatures.Store(0)
	r := p.initiate(owner, wants("vm1", 22, "", "PT1H"))
	equal(t, "signatures", signatures.Load(), 2) // once in vain
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32 23 203.0.113.7/32]")
	equal(t, "requests", len(p.get().Requests), 2)
	lines := 0
	for _, a := range p.log() {
		if a.Request == r.ID {
			lines++
		}
	}
	equal(t, "lines", lines, 1)

	// Somebody is always faster: told so, with nothing changed by the request.
	n := 0
	disturb = func() {
		n++
		if n > 20 {
			t.Fatal("no end of trying")
		}
		if _, err := fast.Initiate(t.Context(), as("bob", "Owner"), policyID("default"), wants("vm1", 23, fmt.Sprint("192.0.2.", n), "PT1H")); err != nil {
			t.Error(err)
		}
	}
	_, err := p.Initiate(t.Context(), owner, policyID("default"), wants("vm1", 22, "192.0.2.200", "PT1H"))
	if e := control.AsError(err); e == nil || e.Kind != control.Unavailable || e.Code != "ServerBusy" {
		t.Errorf("always disturbed: %v", err)
	}
	if doors := strings.Join(p.openAt("vm1", 0), " "); strings.Contains(doors, "192.0.2.200") {
		t.Error("the request that was refused is open")
	}
}

// Many documents are signed side by side, and not all at once.
func TestSlowSignerOfManyDocuments(t *testing.T) {
	var now, most atomic.Int64
	p := newPlane(t, slow(t, func() error {
		n := now.Add(1)
		defer now.Add(-1)
		for old := most.Load(); n > old && !most.CompareAndSwap(old, n); old = most.Load() {
		}
		time.Sleep(2 * time.Millisecond)
		return nil
	}))
	var vms []control.PolicyVM
	for i := range 40 {
		vms = append(vms, machine(fmt.Sprint("vm", i), rule(22, "PT3H")))
	}
	p.put("default", vms...)
	for i := range 40 {
		h := host{vm: vmID(fmt.Sprint("vm", i))}
		h.deliver(p, p.clock())
		equal(t, "guarded", h.policy.Ports, "[22/tcp]")
	}
	if m := most.Load(); m < 2 || m > 8 {
		t.Errorf("%d signatures at once", m)
	}
}

// A signer that fails changes nothing, and whoever waits is let go.
func TestSignerFails(t *testing.T) {
	failing := errors.New("the vault is sealed")
	var fails, hangs atomic.Bool // a signer may still be at it when the caller has gone
	hang := make(chan struct{})
	p := newPlane(t, slow(t, func() error {
		if hangs.Load() {
			<-hang
		}
		if fails.Load() {
			return failing
		}
		return nil
	}))
	defer close(hang)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.initiate(owner, wants("vm1", 22, "192.0.2.1", "PT1H"))
	fails.Store(true)
	for name, try := range map[string]func() error{
		"initiate": func() error {
			_, err := p.Initiate(t.Context(), owner, policyID("default"), wants("vm1", 22, "", "PT1H"))
			return err
		},
		"put": func() error {
			_, err := p.PutPolicy(t.Context(), owner, policyID("default"), control.PolicyInput{})
			return err
		},
		"delete": func() error { _, err := p.DeletePolicy(t.Context(), owner, policyID("default")); return err },
	} {
		t.Run(name, func(t *testing.T) {
			p.t = t
			lines := len(p.log())
			p.refused(control.Unavailable, "SigningFailed", "nothing was changed", try)
			equal(t, "lines", len(p.log()), lines)
		})
	}
	p.t = t
	equal(t, "open", p.openAt("vm1", 0), "[22 192.0.2.1/32]")

	fails.Store(false)
	hangs.Store(true)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // a slow machine asks the key by then
	defer cancel()
	p.refused(control.Unavailable, "SigningFailed", "", func() error {
		_, err := p.Initiate(ctx, owner, policyID("default"), wants("vm1", 22, "", "PT1H"))
		return err
	})
}

// A key that agents do not trust publishes nothing.
func TestUntrustedKeyPublishesNothing(t *testing.T) {
	for name, c := range map[string]func(*control.Config){
		"policy": func(c *control.Config) { c.Realm.Policy = key("stranger") },
		"grant":  func(c *control.Config) { c.Realm.Grant = key("stranger") },
		"slow":   func(c *control.Config) { c.Realm.Grant = slowSigner{key("stranger"), func() error { return nil }} },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t, c)
			before := p.digest()
			_, err := p.PutPolicy(t.Context(), owner, policyID("default"), control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(22, "PT3H"))}})
			if err == nil || control.AsError(err) != nil || !strings.Contains(err.Error(), "agents would refuse") {
				t.Errorf("published: %v", err)
			}
			equal(t, "unchanged", p.digest() == before, true)
		})
	}
}
