package control_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// noon is when tests begin: with a fraction, as real clocks have.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 489_205_700, time.UTC)

const group = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/myRg1"

// vmID is a machine of the group.
func vmID(name string) control.VMID {
	id, err := control.ParseVMID(group + "/providers/Microsoft.Compute/virtualMachines/" + name)
	if err != nil {
		panic(err)
	}
	return id
}

// policyID is a policy of the group.
func policyID(name string) control.PolicyID {
	return control.PolicyID{Subscription: "20ff7fc3-e762-44dd-bd96-b71116dcdc23", Group: "myRg1", Location: "westeurope", Name: name}
}

// key is a key that is the same at every run.
func key(name string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte(name))
	return ed25519.NewKeyFromSeed(seed[:])
}

// trustOf is a trust document: keys by role, and how many have to sign policies.
func trustOf(t testing.TB, policyThreshold int, keys map[policy.Role][]ed25519.PrivateKey) (policy.Trust, []byte) {
	t.Helper()
	doc := policy.Trust{Header: policy.Header{Realm: "acme", Version: 1, Issued: noon.Truncate(time.Second), Expires: noon.Truncate(time.Second).AddDate(3, 0, 0)}}
	for _, name := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		role := policy.RoleKeys{Name: name, Threshold: 1}
		if name == policy.RolePolicy {
			role.Threshold = policyThreshold
		}
		if name == policy.RoleGrant {
			role.Epoch = 1
		}
		for _, k := range keys[name] {
			public, err := policy.NewKey(k.Public())
			if err != nil {
				t.Fatal(err)
			}
			role.Keys = append(role.Keys, public.ID)
			doc.Keys = append(doc.Keys, public)
		}
		doc.Roles = append(doc.Roles, role)
	}
	envelope := policy.Envelope{Type: policy.TypeTrust, Payload: doc.Encode()}
	if err := envelope.Sign(keys[policy.RoleRoot][0]); err != nil {
		t.Fatal(err)
	}
	return doc, envelope.Encode()
}

// realmOf is a realm whose policies one key signs: the server's.
func realmOf(t testing.TB) control.Realm {
	t.Helper()
	trust, signed := trustOf(t, 1, map[policy.Role][]ed25519.PrivateKey{
		policy.RoleRoot: {key("root")}, policy.RolePolicy: {key("policy")}, policy.RoleGrant: {key("grant")}})
	envelope, err := policy.ParseEnvelope(signed)
	if err != nil {
		t.Fatal(err)
	}
	return control.Realm{Trust: trust, Signed: signed, Pin: envelope.Digest(), Grant: key("grant"), Policy: key("policy")}
}

// plane is a control plane under test, on a real store, with its own clock.
type plane struct {
	*control.Engine
	t     testing.TB
	store control.Store
	mu    sync.Mutex
	now   time.Time
}

// Documents are the newest documents of a machine: trust, policy, grants.
func (p *plane) Documents(ctx context.Context, vm control.VMID) ([]control.Document, error) {
	return p.DocumentsFor(ctx, vm, control.Versions{Trust: p.Realm.Trust.Version - 1}, uplink.Documents[:]...)
}

// newPlane makes a plane. change may alter its configuration.
func newPlane(t testing.TB, change ...func(*control.Config)) *plane {
	t.Helper()
	p := &plane{t: t, now: noon}
	c := control.Config{Store: storetest.SQLite(t), Realm: realmOf(t), Now: p.clock, Log: hclog.NewNullLogger()}
	for _, f := range change {
		f(&c)
	}
	p.store, p.Engine = c.Store, control.New(c)
	return p
}

func (p *plane) clock() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.now
}

func (p *plane) pass(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.now = p.now.Add(d)
}

// role is a built-in role.
func role(name string) control.Role {
	for _, r := range control.BuiltinRoles() {
		if r.Name == name {
			return r
		}
	}
	panic("no role " + name)
}

// as is a person with built-in roles: "Owner" everywhere, "Owner@scope" there.
func as(name string, rights ...string) control.Caller {
	c := control.Caller{ID: "local:" + name, Name: name + "@example.com", Type: "User", Address: netip.MustParseAddr("203.0.113.7"), Request: "call-" + name}
	for _, r := range rights {
		what, where, narrow := strings.Cut(r, "@")
		scope := control.Everywhere
		if narrow {
			scope = control.Scope(strings.ToLower(where))
		}
		c.Rights = append(c.Rights, control.Right{Role: role(what), Scope: scope})
	}
	return c
}

var owner = as("owner", "Owner")

// rule is a rule of a port for any source.
func rule(number uint16, longest string) control.PortRule {
	return control.PortRule{Number: number, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "*"}, MaxDuration: longest}
}

// machine is the entry of a machine.
func machine(name string, rules ...control.PortRule) control.PolicyVM {
	return control.PolicyVM{ID: vmID(name), Ports: rules}
}

// put writes a policy as the owner.
func (p *plane) put(name string, vms ...control.PolicyVM) control.PolicyView {
	p.t.Helper()
	view, err := p.PutPolicy(p.t.Context(), owner, policyID(name), control.PolicyInput{VMs: vms})
	if err != nil {
		p.t.Fatalf("put policy %s: %v", name, err)
	}
	return view
}

// wants is a request for one port of one machine.
func wants(vm string, number uint16, source, duration string) control.InitiateInput {
	port := control.InitiatePort{Number: number, Duration: duration}
	if source != "" {
		port.Prefixes.One = source
	}
	return control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID(vm).String(), Ports: []control.InitiatePort{port}}}}
}

// initiate asks under the policy "default".
func (p *plane) initiate(c control.Caller, in control.InitiateInput) control.Request {
	p.t.Helper()
	r, err := p.Initiate(p.t.Context(), c, policyID("default"), in)
	if err != nil {
		p.t.Fatalf("initiate: %v", err)
	}
	return r
}

// get reads the policy "default" as the owner.
func (p *plane) get() control.PolicyView {
	p.t.Helper()
	view, err := p.GetPolicy(p.t.Context(), owner, policyID("default"))
	if err != nil {
		p.t.Fatal(err)
	}
	return view
}

func (p *plane) sweep() {
	p.t.Helper()
	if err := p.Sweep(p.t.Context()); err != nil {
		p.t.Fatalf("sweep: %v", err)
	}
}

// activity is the log, as "event status code" a line.
func (p *plane) activity() (lines []string) {
	p.t.Helper()
	for _, a := range p.log() {
		lines = append(lines, strings.TrimSpace(a.Event+" "+a.Status+" "+a.Code))
	}
	return lines
}

func (p *plane) log() (list []control.Activity) {
	p.t.Helper()
	p.view(func(tx control.Tx) (err error) {
		list, err = tx.Activity(control.ActivityFilter{})
		return err
	})
	return list
}

func (p *plane) view(f func(control.Tx) error) {
	p.t.Helper()
	if err := p.store.View(p.t.Context(), f); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) update(f func(control.Tx) error) {
	p.t.Helper()
	if err := p.store.Update(p.t.Context(), f); err != nil {
		p.t.Fatal(err)
	}
}

// digest is everything the control plane knows but for the activity log: what
// a refused call must leave alone.
func (p *plane) digest() (out string) {
	p.view(func(tx control.Tx) error {
		policies, err := tx.Policies(control.PolicyFilter{}, "", 0)
		if err != nil {
			return err
		}
		requests, err := tx.Requests(control.RequestFilter{})
		if err != nil {
			return err
		}
		documents, err := tx.DocumentsAfter(0, 0)
		if err != nil {
			return err
		}
		vms, err := tx.VMs(control.VMFilter{})
		if err != nil {
			return err
		}
		pending, err := tx.PendingPolicies()
		if err != nil {
			return err
		}
		text, err := json.Marshal([]any{policies, requests, documents, vms, pending})
		out = string(text)
		return err
	})
	return out
}

// refused checks that f is refused so, and changes nothing.
func (p *plane) refused(kind control.Kind, code, words string, f func() error) {
	p.t.Helper()
	before := p.digest()
	err := f()
	e := control.AsError(err)
	switch {
	case err == nil:
		p.t.Errorf("not refused: want %s", code)
	case e == nil:
		p.t.Errorf("a failure of ours, not a refusal: %v", err)
	case e.Kind != kind || e.Code != code || !strings.Contains(e.Message, words):
		p.t.Errorf("refused with kind %d, %s: %q; want kind %d, %s and %q", e.Kind, e.Code, e.Message, kind, code, words)
	}
	if p.digest() != before {
		p.t.Errorf("a refused call (%s) changed something", code)
	}
}

// host is an agent as far as documents go: it admits what it is given, and
// keeps what it must not forget.
type host struct {
	vm     control.VMID
	state  policy.State
	trust  policy.Trust
	policy policy.Policy
	grants policy.Grants
}

// deliver gives the newest documents to the agent at a time of its own clock.
func (h *host) deliver(p *plane, now time.Time) {
	p.t.Helper()
	if err := h.take(p, now); err != nil {
		p.t.Fatal(err)
	}
}

// take is a delivery of which the agent may refuse a document, and those after
// it.
func (h *host) take(p *plane, now time.Time) error {
	p.t.Helper()
	docs, err := p.Documents(p.t.Context(), h.vm)
	if err != nil {
		p.t.Fatal(err)
	}
	f := policy.Facts{Host: h.vm.Key(), Now: now}
	for _, d := range docs {
		switch d.Type {
		case policy.TypeTrust:
			v, err := policy.OpenPinnedTrust(d.Signed, p.Realm.Pin)
			if err == nil {
				h.state, err = policy.AdmitTrust(h.state, v, h.trust, f)
			}
			if err != nil {
				return fmt.Errorf("trust: %w", err)
			}
			h.trust = v.Document()
		case policy.TypePolicy:
			v, err := policy.OpenPolicy(d.Signed, h.trust)
			if err == nil {
				h.state, err = policy.AdmitPolicy(h.state, v, h.trust, f)
			}
			if err != nil {
				return fmt.Errorf("policy of %s: %w", h.vm, err)
			}
			h.policy = v.Document()
			if h.policy.Version != d.Version || !h.policy.Expires.Equal(d.Expires) || !h.policy.Issued.Equal(d.Issued) {
				p.t.Errorf("stored as %+v, signed as %+v", d, h.policy.Header)
			}
		case policy.TypeGrants:
			v, err := policy.OpenGrants(d.Signed, h.trust)
			if err == nil {
				h.state, err = policy.AdmitGrants(h.state, v, h.trust, h.policy, f)
			}
			if err != nil {
				return fmt.Errorf("grants of %s: %w", h.vm, err)
			}
			h.grants = v.Document()
		}
	}
	return nil
}

// open is what is open at now by the agent's clock: "22 203.0.113.7/32" and
// the latest end. A grant its own policy refuses fails the test.
func (h *host) open(t testing.TB, now time.Time) map[string]time.Time {
	t.Helper()
	d := policy.Evaluate(h.state, h.trust, h.policy, h.grants, policy.Facts{Host: h.vm.Key(), Now: now})
	open := map[string]time.Time{}
	if d.Blocked != nil {
		return open
	}
	for _, v := range d.Verdicts {
		if v.Refusal != nil {
			t.Errorf("the agent of %s refuses grant %+v: %v", h.vm.Name, v.Grant, v.Refusal)
			continue
		}
		end := v.Grant.End
		for _, l := range d.Limits {
			if l.At.Before(end) {
				end = l.At
			}
		}
		if v.Phase != policy.PhaseActive || !now.Before(end) {
			continue
		}
		for _, s := range v.Grant.Sources {
			door := fmt.Sprintf("%d %s", v.Grant.Number, s)
			if end.After(open[door]) {
				open[door] = end
			}
		}
	}
	return open
}

// openAt delivers and looks, with the agent's clock so far off the plane's.
func (p *plane) openAt(vm string, off time.Duration) []string {
	p.t.Helper()
	h := host{vm: vmID(vm)}
	now := p.clock().Add(off)
	h.deliver(p, now)
	var doors []string
	for door := range h.open(p.t, now) {
		doors = append(doors, door)
	}
	slices.Sort(doors)
	return doors
}

// slowSigner is a key behind something that takes its time.
type slowSigner struct {
	crypto.Signer
	sign func() error // called first
}

func (s slowSigner) Sign(r io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if err := s.sign(); err != nil {
		return nil, err
	}
	return s.Signer.Sign(r, digest, opts)
}

var _ crypto.Signer = slowSigner{}

func equal(t testing.TB, what string, got, want any) {
	t.Helper()
	if g, w := fmt.Sprint(got), fmt.Sprint(want); g != w {
		t.Errorf("%s: %s, want %s", what, g, w)
	}
}
