package control_test

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

func TestSweepEndsRequestsOnTime(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")))
	r := p.initiate(owner, control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: []control.InitiatePort{
		{Number: 22, Duration: "PT1H"}, {Number: 23, Duration: "PT2H"}}}}})
	stored := func() string {
		var out []string
		p.view(func(tx control.Tx) error {
			got, err := tx.Request(r.ID)
			for _, port := range got.VMs[0].Ports {
				out = append(out, fmt.Sprint(port.Status, "/", port.Reason))
			}
			return err
		})
		return strings.Join(out, " ")
	}
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	version := h.grants.Version
	p.pass(time.Hour - time.Second)
	p.sweep()
	equal(t, "before", stored(), "Initiating/UserRequested Initiating/UserRequested")
	p.pass(time.Second)
	p.sweep()
	equal(t, "after the first end", stored(), "Revoked/Expired Initiating/UserRequested")
	p.pass(time.Hour)
	lines := len(p.log())
	p.sweep()
	equal(t, "after the last end", stored(), "Revoked/Expired Revoked/Expired")
	last := p.log()[len(p.log())-1]
	equal(t, "line", fmt.Sprint(len(p.log())-lines, last.Event, " ", last.Port, " ", last.Reason, last.Actor, " ", last.Request == r.ID), "1request.revoked 23 the time is up true")
	before := p.digest()
	p.sweep()
	equal(t, "again", fmt.Sprint(len(p.log())-lines, p.digest() == before), "1 true")
	// An end that was signed takes no new list.
	h.deliver(p, p.clock())
	equal(t, "version", h.grants.Version, version)
}

// What ended a moment ago stays on the list: an agent whose clock is behind
// would take its absence for a revocation, and cut the sessions.
func TestEndedGrantsLeaveTheListLate(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	r := p.initiate(owner, wants("vm1", 22, "192.0.2.1", "PT1H"))
	on := func() bool {
		h := host{vm: vmID("vm1")}
		h.deliver(p, p.clock())
		for _, g := range h.grants.Grants {
			if g.ID == r.VMs[0].Ports[0].GrantID {
				return true
			}
		}
		return false
	}
	p.pass(time.Hour)
	p.sweep()
	p.initiate(owner, wants("vm1", 22, "192.0.2.2", "PT1H"))
	equal(t, "at its end", on(), true)
	p.pass(policy.Skew - time.Second)
	p.initiate(owner, wants("vm1", 22, "192.0.2.3", "PT1H"))
	equal(t, "a little later", on(), true)
	p.pass(time.Second)
	p.initiate(owner, wants("vm1", 22, "192.0.2.4", "PT1H"))
	equal(t, "two minutes later", on(), false)
}

// One that an edit put outside the bounds since is not brought back: the agent
// would record a refusal of what ended in good order.
func TestEndedGrantsOutsideAreDropped(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")))
	p.initiate(owner, wants("vm1", 22, "", "PT1H"))
	p.initiate(owner, wants("vm1", 23, "", "PT1H"))
	p.pass(time.Hour)
	p.put("default", machine("vm1", rule(23, "PT3H")))
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	h.open(t, p.clock()) // fails if the agent refuses one
	equal(t, "on the list", len(h.grants.Grants), 1)
}

func TestSweepRenewsGrants(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "P1D")), machine("vm2", rule(22, "P1D")))
	p.initiate(owner, wants("vm1", 22, "", "PT23H"))
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	version := h.grants.Version
	for hour := range 24 {
		p.sweep()
		h.deliver(p, p.clock())
		if age := p.clock().Sub(h.grants.Issued); age > 7*time.Hour {
			t.Fatalf("hour %d: the list is %s old", hour, age)
		}
		equal(t, "open", len(h.open(t, p.clock())), map[bool]int{true: 1, false: 0}[hour < 23])
		p.pass(time.Hour)
	}
	equal(t, "renewed", h.grants.Version-version, 3)
	// Where nothing is open, nothing is renewed.
	idle := host{vm: vmID("vm2")}
	docs, err := p.Documents(t.Context(), idle.vm)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "idle", docs[2].Version, 1)
}

func TestSweepRenewsPolicies(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	version := func() uint64 {
		h := host{vm: vmID("vm1")}
		h.deliver(p, p.clock())
		equal(t, "guarded", h.policy.Ports, "[22/tcp]")
		return h.policy.Version
	}
	p.pass(334 * 24 * time.Hour)
	p.sweep()
	p.pass(24*time.Hour + 2*time.Second)
	p.sweep()
	equal(t, "renewed", version(), 2)
	p.sweep()
	equal(t, "once", version(), 2)

	// Where people sign, it waits for them, once.
	q := newPlane(t, byPeople(t, 1, false, "ann"))
	q.put("default", machine("vm1", rule(22, "PT3H")))
	if _, _, err := q.AcceptPolicy(t.Context(), owner, signed(t, q.pending(), "ann")); err != nil {
		t.Fatal(err)
	}
	q.pass(340 * 24 * time.Hour)
	q.sweep()
	w := q.pending()
	equal(t, "waits", w.Version, 2)
	q.pass(time.Hour)
	q.sweep()
	equal(t, "the same", q.pending().Version, w.Version)
	equal(t, "provisioned", q.get().State, control.Succeeded) // what was written is in force
}

// Keys and epochs of a realm change; what agents would refuse from then on is
// made anew.
func TestSweepAfterKeysChanged(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.initiate(owner, wants("vm1", 22, "", "PT3H"))
	q := newPlane(t, func(c *control.Config) { c.Store, c.Realm = p.store, p.rotated() })
	h := host{vm: vmID("vm1")}
	q.sweep()
	h.deliver(q, q.clock())
	equal(t, "versions", fmt.Sprint(h.trust.Version, h.policy.Version, h.policy.Epoch, h.grants.Epoch), "2 2 1 2")
	equal(t, "open", len(h.open(t, q.clock())), 1)
	q.view(func(tx control.Tx) error {
		d, err := tx.Document("", policy.TypeTrust)
		equal(t, "trust that is handed out", d.Version, 2)
		return err
	})
	// A replica that was not given the new keys signs nothing any more.
	p.refused(control.Unavailable, "TrustOutdated", "version 1", func() error {
		_, err := p.Initiate(t.Context(), owner, policyID("default"), wants("vm1", 22, "192.0.2.1", "PT1H"))
		return err
	})
	before := p.digest()
	if err := p.Sweep(t.Context()); err == nil || !strings.Contains(err.Error(), "trust document") {
		t.Errorf("its sweep: %v", err)
	}
	equal(t, "unchanged", p.digest() == before, true)
}

// rotated is the realm with other keys for policies and grants, and the epochs
// after those it has.
func (p *plane) rotated() control.Realm {
	t := p.t
	t.Helper()
	next := p.Realm.Trust.Next(p.clock(), 365*24*time.Hour)
	for name, k := range map[policy.Role]ed25519.PrivateKey{policy.RolePolicy: key("policy 2"), policy.RoleGrant: key("grant 2")} {
		public, err := policy.NewKey(k.Public())
		if err != nil {
			t.Fatal(err)
		}
		old, _ := next.Role(name)
		for _, err := range []error{next.Give(name, public), next.Take(name, old.Keys[0]), next.Restart(name)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	envelope := policy.Envelope{Type: policy.TypeTrust, Payload: next.Encode()}
	if err := envelope.Sign(key("root")); err != nil {
		t.Fatal(err)
	}
	return control.Realm{Trust: next, Signed: envelope.Encode(), Pin: envelope.Digest(), Grant: key("grant 2"), Policy: key("policy 2")}
}

// A server that comes back looks at every document at once where its keys are
// others than before, and else when its fleet is back.
func TestRunLooksAtDocuments(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")), machine("vm2", rule(22, "PT3H")))
	p.sweep()
	run := func(p *plane, f func()) {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var done sync.WaitGroup
		done.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		f()
		cancel()
		done.Wait()
	}
	wait := func(what string, is func() bool) {
		t.Helper()
		for end := time.Now().Add(time.Minute); !is(); time.Sleep(10 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("not ", what)
			}
		}
	}
	version := func(p *plane) (n uint64) {
		p.view(func(tx control.Tx) error {
			d, err := tx.Document(vmID("vm1").Key(), policy.TypePolicy)
			n = d.Version
			return err
		})
		return n
	}
	// swept is when a sweep that began after now has ended: the next has ended
	// something.
	swept := func(p *plane) {
		t.Helper()
		for n := range 2 {
			r := p.initiate(owner, wants("vm2", 22, fmt.Sprint("192.0.2.", n+1), "PT1S"))
			p.pass(11 * time.Second)
			wait("ended", func() (ended bool) {
				p.view(func(tx control.Tx) error {
					now, err := tx.Request(r.ID)
					ended = err == nil && now.VMs[0].Ports[0].Status == control.Revoked
					return err
				})
				return ended
			})
		}
	}
	p.pass(340 * 24 * time.Hour) // the policy is about to end
	run(p, func() {
		swept(p)
		equal(t, "not looked at yet", version(p), 1)
		p.pass(5 * time.Minute)
		wait("looked at", func() bool { return version(p) == 2 })
	})
	q := newPlane(t, func(c *control.Config) { c.Store, c.Realm = p.store, p.rotated() })
	q.now = p.clock()
	run(q, func() { wait("made anew", func() bool { return version(q) == 3 }) })
}

// However many documents there are, and whatever page it stands on: one that agents
// would refuse is made anew.
func TestSweepGoesThroughAllPages(t *testing.T) {
	p := newPlane(t)
	var some []control.PolicyVM
	for n := range 300 {
		some = append(some, machine(fmt.Sprintf("vm%03d", n), rule(22, "PT3H")))
	}
	p.put("default", some...)
	vm := vmID("vm007")
	err := p.store.Update(t.Context(), func(tx control.Tx) error {
		d, err := tx.Document(vm.Key(), policy.TypeGrants)
		if err != nil {
			return err
		}
		e, err := policy.ParseEnvelope(d.Signed)
		if err != nil {
			return err
		}
		e.Signatures[0].Sig[0] ^= 1
		d.Signed = e.Encode()
		return tx.PutDocument(d) // the newest of 600
	})
	if err != nil {
		t.Fatal(err)
	}
	p.sweep()
	h := host{vm: vm}
	h.deliver(p, p.clock())
	equal(t, "made anew", h.grants.Version, 2)
	// All of them are about to end.
	p.pass(340 * 24 * time.Hour)
	p.sweep()
	for _, v := range some {
		h := host{vm: v.ID}
		h.deliver(p, p.clock())
		if h.policy.Version != 2 {
			t.Fatalf("%s has version %d of its policy", v.ID.Name, h.policy.Version)
		}
	}
}

func TestSweepTellsOfLostHosts(t *testing.T) {
	p := newPlane(t)
	enrolled := p.clock().Add(-time.Hour)
	p.update(func(tx control.Tx) error {
		for name, a := range map[string]*control.Agent{
			"none":    nil,
			"never":   {Enrolled: enrolled},
			"alive":   {Enrolled: enrolled, LastSeen: p.clock().Add(-10*time.Minute + time.Second)},
			"lost":    {Enrolled: enrolled, LastSeen: p.clock().Add(-10 * time.Minute)},
			"revoked": {Enrolled: enrolled, Revoked: true},
		} {
			if err := tx.PutVM(control.VM{ID: vmID(name), Agent: a}); err != nil {
				return err
			}
		}
		return nil
	})
	told := func() string {
		var out []string
		for _, a := range p.log() {
			if a.Event != "host.lost" || a.Actor != "" {
				t.Errorf("line %+v", a)
			}
			out = append(out, a.VM[strings.LastIndex(a.VM, "/")+1:])
		}
		return strings.Join(out, " ")
	}
	p.sweep()
	equal(t, "told", told(), "lost never")
	p.pass(time.Hour)
	p.update(func(tx control.Tx) error { return tx.Seen(map[string]time.Time{vmID("lost").Key(): p.clock()}) })
	p.sweep()
	equal(t, "told", told(), "lost never alive")
	p.pass(9 * time.Minute)
	p.sweep()
	equal(t, "told", told(), "lost never alive")
	p.pass(time.Minute)
	p.sweep()
	equal(t, "told again, of a second loss", told(), "lost never alive lost")
}

// overtaken is a store on which somebody else does something between what a
// replica reads and what it writes.
type overtaken struct {
	control.Store
	by func()
}

func (s *overtaken) Update(ctx context.Context, f func(control.Tx) error) error {
	if by := s.by; by != nil {
		s.by = nil
		by()
	}
	return s.Store.Update(ctx, f)
}

// A replica that another one overtakes in the middle of a sweep does nothing a
// second time.
func TestReplicasSweepTogether(t *testing.T) {
	for name, prepare := range map[string]func(p *plane){
		"requests": func(p *plane) {
			p.initiate(owner, wants("vm1", 22, "", "PT1H"))
			p.initiate(owner, wants("vm2", 22, "", "PT1H"))
			p.pass(2 * time.Hour)
		},
		"lists": func(p *plane) {
			p.initiate(owner, wants("vm1", 22, "", "P1D"))
			p.pass(7 * time.Hour)
		},
		"hosts": func(p *plane) {
			p.update(func(tx control.Tx) error {
				return tx.PutVM(control.VM{ID: vmID("vm3"), Agent: &control.Agent{Enrolled: p.clock()}})
			})
			p.pass(time.Hour)
		},
		"policies": func(p *plane) { p.pass(340 * 24 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			p.put("default", machine("vm1", rule(22, "P1D")), machine("vm2", rule(22, "P1D")))
			p.sweep() // the trust document is kept
			prepare(p)
			before := p.digest()
			var after string
			var told int
			between := &overtaken{Store: p.store, by: func() {
				p.sweep()
				after, told = p.digest(), len(p.log())
			}}
			second := control.New(control.Config{Store: between, Realm: p.Realm, Now: p.clock, Log: hclog.NewNullLogger()})
			if err := second.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			if after == "" || after == before {
				t.Fatal("nobody was overtaken")
			}
			equal(t, "done once", p.digest() == after, true)
			equal(t, "told once", len(p.log()), told)
		})
	}
}

// Run sweeps, and ends when it is told to.
func TestRun(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	r := p.initiate(owner, wants("vm1", 22, "", "PT1H"))
	p.pass(2 * time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		over := false
		p.view(func(tx control.Tx) error {
			got, err := tx.Request(r.ID)
			over = !got.Open()
			return err
		})
		if over {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("Run swept nothing")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}
