package control_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// restore puts the documents of a backup back, from before a request was there.
func (p *plane) restore(backup []control.Document, lost control.Request) {
	p.t.Helper()
	p.update(func(tx control.Tx) error {
		lost.VMs[0].Ports[0].Status = control.Revoked
		err := tx.PutRequest(lost)
		for _, d := range backup {
			if d.Type != policy.TypeTrust {
				err = errors.Join(err, tx.PutDocument(d))
			}
		}
		return err
	})
}

// A store that was restored from a backup has older documents than a host. The
// host takes the next ones all the same, whether it or the next request comes
// first, and a port that nobody knows of any more closes.
func TestRestoredBackup(t *testing.T) {
	for name, asksFirst := range map[string]bool{"the host comes first": false, "a request comes first": true} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			h := &host{vm: vmID("vm1")}
			p.put("default", machine("vm1", rule(22, "PT3H")))
			p.update(func(tx control.Tx) error {
				return tx.PutVM(control.VM{ID: h.vm, Agent: &control.Agent{Key: "k", Enrolled: p.clock()}})
			})
			backup, err := p.Documents(t.Context(), h.vm)
			if err != nil {
				t.Fatal(err)
			}
			lost := p.initiate(owner, wants("vm1", 22, "203.0.113.7", "PT1H"))
			h.deliver(p, p.clock())
			has := reportOf(t, p, h)

			p.restore(backup, lost)
			if asksFirst {
				p.initiate(owner, wants("vm1", 22, "203.0.113.9", "PT1H"))
			}
			for range 2 {
				if r, err := p.Report(t.Context(), h.vm, has); err != nil || r.Refused != "" {
					t.Fatalf("%+v %v", r, err)
				}
			}
			if !asksFirst {
				p.initiate(owner, wants("vm1", 22, "203.0.113.9", "PT1H"))
			}
			h.deliver(p, p.clock())
			open := h.open(t, p.clock())
			if _, there := open["22 203.0.113.9/32"]; !there || len(open) != 1 {
				t.Errorf("open: %v", open)
			}
			told := 0
			for _, l := range p.log() {
				if l.Event == "host.ahead" {
					told++
				}
			}
			if told != 1 {
				t.Errorf("told %d times", told)
			}
		})
	}
}

// A backup that is older than the last edit has another policy and another list:
// both are made anew, also where the list is empty, where the host is known to be
// ahead and the next edit would leave the list as it is, and where by now there are
// others of the same versions.
func TestRestoredBackupFromBeforeAnEdit(t *testing.T) {
	for _, c := range []struct {
		name   string
		before bool // something was granted before the backup
		edits  bool // somebody edits the policy, and the host has said no more than what it has
		after  bool // the same happens before the host comes as happened after the backup, for another source
	}{
		{"an empty list", false, false, false}, {"a list with a grant", true, false, false},
		{"an empty list, an edit", false, true, false}, {"a list with a grant, an edit", true, true, false},
		{"other documents of the same versions", false, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlane(t)
			h := &host{vm: vmID("vm1")}
			p.put("default", machine("vm1", rule(22, "PT3H")))
			p.update(func(tx control.Tx) error {
				return tx.PutVM(control.VM{ID: h.vm, Agent: &control.Agent{Key: "k", Enrolled: p.clock()}})
			})
			if c.before {
				p.initiate(owner, wants("vm1", 22, "203.0.113.9", "PT1H"))
			}
			backup, err := p.Documents(t.Context(), h.vm)
			if err != nil {
				t.Fatal(err)
			}
			p.put("default", machine("vm1", rule(22, "PT4H")))
			lost := p.initiate(owner, wants("vm1", 22, "203.0.113.7", "PT1H"))
			h.deliver(p, p.clock())
			has := reportOf(t, p, h)
			p.restore(backup, lost)
			if c.after {
				p.put("default", machine("vm1", rule(22, "PT5H")))
				p.initiate(owner, wants("vm1", 22, "203.0.113.9", "PT1H"))
			}
			if c.edits {
				p.update(func(tx control.Tx) error {
					vm, err := tx.VM(h.vm)
					vm.Agent.Versions = control.Versions(has.Have)
					return errors.Join(err, tx.PutVM(vm))
				})
				p.put("default", machine("vm1", rule(22, "PT5H")))
			} else if _, err := p.Report(t.Context(), h.vm, has); err != nil {
				t.Fatal(err)
			}
			h.deliver(p, p.clock())
			open, want := slices.Sorted(maps.Keys(h.open(t, p.clock()))), "[]"
			if c.before || c.after {
				want = "[22 203.0.113.9/32]"
			}
			equal(t, "open", open, want)
		})
	}
}

// A host that has the store's own documents is not taken for one that has
// others, whether its agent tells digests or not.
func TestSameDocuments(t *testing.T) {
	p := newPlane(t)
	h := &host{vm: vmID("vm1")}
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.update(func(tx control.Tx) error {
		return tx.PutVM(control.VM{ID: h.vm, Agent: &control.Agent{Key: "k", Enrolled: p.clock()}})
	})
	h.deliver(p, p.clock())
	c := newChain()
	for i, line := range reportOf(t, p, h).Lines {
		_, digest, _ := strings.Cut(string(line), `"digest":`)
		word := []string{"trust", "policy", "grants"}[i]
		c.add("document.admitted", fmt.Sprintf(`,"document":%q,"version":1,"digest":%s`, word, strings.TrimSuffix(digest, "}")))
		c.add("document.admitted", fmt.Sprintf(`,"document":%q,"version":1`, word))
	}
	before := p.digest()
	up := uplink.Up{Lines: c.lines, Head: c.head(), Status: &uplink.Status{Mode: "enforce"}, Have: uplink.Versions{Trust: 1, Policy: h.policy.Version, Grants: h.grants.Version}}
	if _, err := p.Report(t.Context(), h.vm, up); err != nil {
		t.Fatal(err)
	}
	for _, l := range p.log() {
		if l.Event == "host.ahead" {
			t.Errorf("%+v", l)
		}
	}
	docs, err := p.Documents(t.Context(), h.vm)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		if d.Version != 1 {
			t.Errorf("%s is made anew as version %d; before:\n%s", d.Type, d.Version, before)
		}
	}
}

// A host cannot use up the versions of its documents by what it says of them,
// and what the store does not have is not made from nothing.
func TestAheadIsBounded(t *testing.T) {
	p := newPlane(t)
	vm, stranger := vmID("vm1"), vmID("vm2")
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.update(func(tx control.Tx) error {
		for _, id := range []control.VMID{vm, stranger} {
			if err := tx.PutVM(control.VM{ID: id, Agent: &control.Agent{Key: "k", Enrolled: p.clock()}}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, id := range []control.VMID{vm, stranger} {
		up := uplink.Up{Have: uplink.Versions{Policy: policy.MaxVersion, Grants: policy.MaxVersion}, Status: &uplink.Status{Mode: "enforce"}}
		if id == stranger {
			up.Have = uplink.Versions{Policy: 7, Grants: 7}
		}
		if _, err := p.Report(t.Context(), id, up); err != nil {
			t.Fatal(err)
		}
	}
	p.initiate(owner, wants("vm1", 22, "203.0.113.7", "PT1H"))
	docs, err := p.Documents(t.Context(), vm)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range docs {
		if d.Version > 10 {
			t.Errorf("%s is at version %d", d.Type, d.Version)
		}
	}
	if docs, err = p.Documents(t.Context(), stranger); err != nil || len(docs) != 1 {
		t.Errorf("%d documents of a machine in no policy, %v", len(docs), err)
	}
	p.pass(time.Second)
}

// reportOf is what a host's fetcher says once the newest documents of the
// store are in force there.
func reportOf(t *testing.T, p *plane, h *host) uplink.Up {
	t.Helper()
	docs, err := p.Documents(t.Context(), h.vm)
	if err != nil {
		t.Fatal(err)
	}
	c := newChain()
	for _, d := range docs {
		envelope, err := policy.ParseEnvelope(d.Signed)
		if err != nil {
			t.Fatal(err)
		}
		word := map[policy.Type]string{policy.TypeTrust: "trust", policy.TypePolicy: "policy", policy.TypeGrants: "grants"}[d.Type]
		c.add("document.admitted", fmt.Sprintf(`,"document":%q,"version":%d,"digest":%q`, word, d.Version, envelope.Digest()))
	}
	return uplink.Up{Lines: c.lines, Head: c.head(), Status: &uplink.Status{Mode: "enforce"},
		Have: uplink.Versions{Trust: h.trust.Version, Policy: h.policy.Version, Grants: h.grants.Version}}
}
