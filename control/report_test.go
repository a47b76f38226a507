package control_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// chain makes lines of a record, as an agent writes them.
type chain struct {
	lines [][]byte
	prev  string
}

func newChain() *chain { return &chain{prev: uplink.Genesis} }

// add adds a line with an event and more of its members.
func (c *chain) add(event, more string) *chain {
	text := fmt.Appendf(nil, `{"seq":%d,"prev":"%s","time":"%s","event":"%s"%s}`, len(c.lines)+1, c.prev, midday.Add(time.Duration(len(c.lines))*time.Second).Format("2006-01-02T15:04:05.000Z"), event, more)
	sum := sha256.Sum256(text)
	c.lines, c.prev = append(c.lines, text), hex.EncodeToString(sum[:])
	return c
}

func (c *chain) head() uplink.Head { return uplink.Head{Seq: uint64(len(c.lines)), Hash: c.prev} }

// reporting is a gate with one enrolled host and one request of it.
func reporting(t *testing.T) (*gate, control.VMID) {
	g := newGate(t)
	vm := hostNamed("web1")
	g.mustEnrol(vm, freshKey(t))
	g.put(vm, "g1", control.Initiating)
	return g, vm
}

func (g *gate) put(vm control.VMID, grant string, status control.Status) {
	g.t.Helper()
	err := g.Store.Update(g.t.Context(), func(tx control.Tx) error {
		return tx.PutRequest(control.Request{ID: "req-" + grant, Policy: control.PolicyID{Subscription: vm.Subscription, Group: vm.Group, Location: "westeurope", Name: "default"},
			Requestor: "alice@example.com", Principal: "local:alice", Start: midday,
			VMs: []control.RequestVM{{ID: vm, Ports: []control.RequestPort{{Number: 22, Status: status, Reason: control.UserRequested, GrantID: grant, End: midday.Add(time.Hour)}}}}})
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

func (g *gate) port(grant string) (p control.RequestPort) {
	g.t.Helper()
	err := g.Store.View(g.t.Context(), func(tx control.Tx) error {
		r, err := tx.Request("req-" + grant)
		if err == nil {
			p = r.VMs[0].Ports[0]
		}
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

func (g *gate) report(vm control.VMID, up uplink.Up) control.Reported {
	g.t.Helper()
	r, err := g.Report(g.t.Context(), vm, up)
	if err != nil {
		g.t.Fatal(err)
	}
	return r
}

// kept are the lines of a machine's newest record.
func (g *gate) kept(vm control.VMID) (list []control.AgentEvent) {
	g.t.Helper()
	err := g.Store.View(g.t.Context(), func(tx control.Tx) (err error) {
		list, err = tx.AgentEvents(control.Record{VM: vm, Epoch: g.vm(vm).Agent.Epoch}, 0, 1000)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return list
}

func (g *gate) everything() (n int) {
	g.t.Helper()
	err := g.Store.View(g.t.Context(), func(tx control.Tx) error {
		list, err := tx.Activity(control.ActivityFilter{})
		n = len(list)
		return err
	})
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// Only the agent's word makes a request Initiated; its end is noted, and all of
// it is in the activity log with the agent's own time.
func TestReport(t *testing.T) {
	g, vm := reporting(t)
	c := newChain().add("agent.started", "").add("document.admitted", `,"document":"grants","version":1`).
		add("grant.opening", `,"grant":"g1","port":22`)
	g.report(vm, uplink.Up{Lines: c.lines})
	if p := g.port("g1"); p.Status != control.Initiating || !p.Opened.IsZero() {
		t.Errorf("an intent opened it: %+v", p)
	}
	c.add("grant.opened", `,"grant":"g1","port":22,"source":"203.0.113.7/32","requestor":"forged","reason":"INC-1"`)
	r := g.report(vm, uplink.Up{Lines: c.lines, Head: c.head(), Have: uplink.Versions{Trust: 1, Policy: 2, Grants: 3},
		Status: &uplink.Status{Mode: "enforce", Version: "v2", Install: "i2", Open: []string{"g1"}}})
	if r.Head != control.Head(c.head()) || r.Refused != "" {
		t.Errorf("%+v", r)
	}
	at := midday.Add(3 * time.Second)
	if p := g.port("g1"); p.Status != control.Initiated || !p.Opened.Equal(midday) { // the gate's clock stands at noon
		t.Errorf("%+v", p)
	}
	v := g.vm(vm)
	if !v.LastAccess.Equal(midday) || v.LastUser != "alice@example.com" || v.Agent.Mode != "enforce" || v.Agent.Version != "v2" || v.Agent.Install != "i2" ||
		v.Agent.Versions != (control.Versions{Trust: 1, Policy: 2, Grants: 3}) || v.Agent.Head != control.Head(c.head()) || v.Agent.Note != "" {
		t.Errorf("%+v %+v", v, v.Agent)
	}
	opened := g.activity("grant.opened")
	if len(opened) != 1 || !opened[0].Time.Equal(at) || opened[0].Actor != "alice@example.com" || opened[0].Request != "req-g1" || opened[0].Source != "203.0.113.7/32" || opened[0].Reason != "INC-1" || opened[0].VM != vm.String() {
		t.Errorf("%+v", opened)
	}
	g.now = midday.Add(time.Hour)
	c.add("grant.expired", `,"grant":"g1","port":22`).
		add("grant.used", `,"grant":"g1","port":22,"reason":"INC-1","message":"port 22 was open for 203.0.113.7/32: nobody connected"`).
		add("grant.login", `,"grant":"g1","port":22,"source":"203.0.113.7","reason":"INC-1","message":"root logged in from 203.0.113.7, port 50000, by ED25519 SHA256:x"`)
	before := g.everything()
	for range 3 { // as often as it comes
		g.report(vm, uplink.Up{Lines: c.lines})
		g.report(vm, uplink.Up{Lines: c.lines[2:]})
	}
	if p := g.port("g1"); !p.Closed.Equal(midday.Add(4*time.Second)) || p.Status != control.Initiated {
		t.Errorf("%+v", p)
	}
	if n := g.everything(); n != before+3 {
		t.Errorf("%d lines for three", n-before)
	}
	// What it was used for, where one would look for it.
	if used := g.activity("grant.used"); len(used) != 1 || used[0].Request != "req-g1" || used[0].Reason != "port 22 was open for 203.0.113.7/32: nobody connected" {
		t.Errorf("%+v", used)
	}
	if in := g.activity("grant.login"); len(in) != 1 || in[0].Request != "req-g1" || !strings.HasPrefix(in[0].Reason, "root logged in from 203.0.113.7, ") {
		t.Errorf("%+v", in)
	}
	if kept := g.kept(vm); len(kept) != len(c.lines) || string(kept[4].Line) != string(c.lines[4]) {
		t.Errorf("%d lines are kept", len(kept))
	}
}

func TestReportRefusedGrant(t *testing.T) {
	g, vm := reporting(t)
	c := newChain().add("grant.refused", `,"grant":"g1","port":22,"code":"too-long","message":"port 22 stays closed: too-long: 4 h"`).
		add("document.refused", `,"document":"grants","code":"rollback","message":"rollback: version 1"`)
	g.report(vm, uplink.Up{Lines: c.lines, Status: &uplink.Status{Mode: "enforce"}, Held: []uplink.Held{{Type: policy.TypeGrants, Version: 1, Refusal: "rollback: version 1"}}})
	if p := g.port("g1"); p.Status != control.Initiating || p.Refused != "port 22 stays closed: too-long: 4 h" {
		t.Errorf("%+v", p)
	}
	if note := g.vm(vm).Agent.Note; note != "grants.json version 1 is refused: rollback: version 1" {
		t.Errorf("%q", note)
	}
	for _, event := range []string{"grant.refused", "document.refused"} {
		if got := g.activity(event); len(got) != 1 || got[0].Status != "Failed" || got[0].Code == "" || !strings.Contains(got[0].Reason, got[0].Code) {
			t.Errorf("%s: %+v", event, got)
		}
	}
}

// An agent whose record does not arrive says what is open all the same.
func TestReportByStatus(t *testing.T) {
	g, vm := reporting(t)
	g.put(vm, "over", control.Revoked)
	g.report(vm, uplink.Up{Status: &uplink.Status{Open: []string{"g1", "over", "unheard"}}})
	if p := g.port("g1"); p.Status != control.Initiated || !p.Opened.Equal(midday) {
		t.Errorf("%+v", p)
	}
	if p := g.port("over"); p.Status != control.Revoked {
		t.Errorf("%+v", p)
	}
}

// What an agent says again is no news; what opens again after it was closed is.
func TestReportOfWhatIsStillOpen(t *testing.T) {
	g, vm := reporting(t)
	g.put(vm, "g2", control.Initiating)
	open := func(grants ...string) uplink.Up { return uplink.Up{Status: &uplink.Status{Open: grants}} }
	g.report(vm, open("g1", "g2"))
	was := *g.vm(vm).Agent
	g.now = g.now.Add(time.Minute)
	g.report(vm, open("g2", "g1"))
	if is := *g.vm(vm).Agent; is != was {
		t.Errorf("the same grants in another order: %+v, was %+v", is, was)
	}
	for _, grant := range []string{"g1", "g2"} {
		if p := g.port(grant); p.Status != control.Initiated || !p.Opened.Equal(midday) {
			t.Errorf("%s: %+v", grant, p)
		}
	}
	closed := open("g2")
	closed.Lines = newChain().add("grant.expired", `,"grant":"g1"`).lines
	g.report(vm, closed)
	if p := g.port("g1"); p.Closed.IsZero() {
		t.Errorf("after its end: %+v", p)
	}
	g.report(vm, open("g1", "g2")) // it was extended
	if p := g.port("g1"); !p.Closed.IsZero() {
		t.Errorf("open again: %+v", p)
	}
	g.report(vm, open())
	g.put(vm, "g2", control.Initiating)
	g.report(vm, open("g2"))
	if p := g.port("g2"); p.Status != control.Initiated {
		t.Errorf("after nothing was open: %+v", p)
	}
}

// What comes late is noted, and brings no request back.
func TestReportLate(t *testing.T) {
	g, vm := reporting(t)
	g.put(vm, "over", control.Revoked)
	g.report(vm, uplink.Up{Lines: newChain().add("grant.opened", `,"grant":"over"`).add("grant.revoked", `,"grant":"over"`).lines})
	if p := g.port("over"); p.Status != control.Revoked || !p.Opened.Equal(midday) || p.Closed.IsZero() {
		t.Errorf("%+v", p)
	}
}

// However many requests came after the one a line is about, it is found; also
// where one of them took over from it.
func TestReportOfLongAgo(t *testing.T) {
	g, vm := reporting(t)
	for n := range 120 {
		g.put(vm, fmt.Sprintf("a%03d", n), control.Revoked)
	}
	err := g.Store.Update(t.Context(), func(tx control.Tx) error {
		q, err := tx.Request("req-g1")
		q.VMs[0].Ports[0].Earlier = []control.Term{{ID: "a001", From: midday, Until: midday.Add(time.Minute)}}
		return errors.Join(err, tx.PutRequest(q))
	})
	if err != nil {
		t.Fatal(err)
	}
	c, sent := newChain(), 0
	for _, grant := range []string{"a001", "a000"} {
		c.add("grant.opened", `,"grant":"`+grant+`"`).add("grant.revoked", `,"grant":"`+grant+`"`)
		g.report(vm, uplink.Up{Lines: c.lines[sent:]})
		sent = len(c.lines)
	}
	for _, grant := range []string{"a000", "a001"} {
		if p := g.port(grant); !p.Opened.Equal(midday) || p.Closed.IsZero() {
			t.Errorf("%s: %+v", grant, p)
		}
	}
	if told := g.activity("grant.revoked"); len(told) != 2 || told[0].Request != "req-a001" || told[1].Request != "req-a000" {
		t.Errorf("%+v", told)
	}
}

// Another machine's grant is nothing to this one.
func TestReportOfAnother(t *testing.T) {
	g, vm := reporting(t)
	other := hostNamed("web2")
	g.mustEnrol(other, freshKey(t))
	g.report(other, uplink.Up{Lines: newChain().add("grant.opened", `,"grant":"g1"`).lines, Status: &uplink.Status{Open: []string{"g1"}}})
	if p := g.port("g1"); p.Status != control.Initiating || !p.Opened.IsZero() {
		t.Errorf("web2 opened a port of web1: %+v", p)
	}
	if v := g.vm(vm); !v.LastAccess.IsZero() {
		t.Errorf("%+v", v)
	}
}

// A request for two machines: each speaks for its own port.
func TestReportOfTwoMachines(t *testing.T) {
	g, vm := reporting(t)
	other := hostNamed("web2")
	g.mustEnrol(other, freshKey(t))
	port := func(id string) []control.RequestPort {
		return []control.RequestPort{{Number: 22, Status: control.Initiating, GrantID: id, End: midday.Add(time.Hour)}}
	}
	q := control.Request{ID: "req-both", Policy: control.PolicyID{Subscription: vm.Subscription, Group: vm.Group, Location: "westeurope", Name: "default"}, Start: midday,
		VMs: []control.RequestVM{{ID: vm, Ports: port("b1")}, {ID: other, Ports: port("b2")}}}
	if err := g.Store.Update(t.Context(), func(tx control.Tx) error { return tx.PutRequest(q) }); err != nil {
		t.Fatal(err)
	}
	g.report(other, uplink.Up{Lines: newChain().add("grant.opened", `,"grant":"b1"`).add("grant.opened", `,"grant":"b2"`).lines, Status: &uplink.Status{Open: []string{"b1", "b2"}}})
	err := g.Store.View(t.Context(), func(tx control.Tx) (err error) {
		q, err = tx.Request("req-both")
		return err
	})
	if err != nil || q.VMs[0].Ports[0].Status != control.Initiating || q.VMs[1].Ports[0].Status != control.Initiated {
		t.Errorf("%+v, %v", q.VMs, err)
	}
}

// The end of a grant that another took over from is in the log of its request,
// and does not close the port.
func TestReportEarlierGrant(t *testing.T) {
	g, vm := reporting(t)
	err := g.Store.Update(t.Context(), func(tx control.Tx) error {
		q, err := tx.Request("req-g1")
		if err == nil {
			q.VMs[0].Ports[0].Earlier = []control.Term{{ID: "g0", From: midday, Until: midday.Add(time.Minute)}}
			err = tx.PutRequest(q)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	g.report(vm, uplink.Up{Lines: newChain().add("grant.opened", `,"grant":"g0"`).add("grant.opened", `,"grant":"g1"`).add("grant.expired", `,"grant":"g0"`).lines, Status: &uplink.Status{Open: []string{"g0"}}})
	if p := g.port("g1"); p.Status != control.Initiated || !p.Closed.IsZero() {
		t.Errorf("%+v", p)
	}
	if got := g.activity("grant.expired"); len(got) != 1 || got[0].Request != "req-g1" {
		t.Errorf("%+v", got)
	}
}

// A clock that is ahead does not put an access into the future.
func TestReportClockAhead(t *testing.T) {
	g, vm := reporting(t)
	g.now = midday.AddDate(0, 0, -1)
	g.report(vm, uplink.Up{Lines: newChain().add("grant.opened", `,"grant":"g1"`).lines})
	if v := g.vm(vm); !v.LastAccess.Equal(g.now) {
		t.Errorf("last access %s", v.LastAccess)
	}
}

// Lines that begin too far ahead are left, and it is said from where on.
func TestReportGap(t *testing.T) {
	g, vm := reporting(t)
	c := newChain().add("agent.started", "").add("agent.stopped", "").add("agent.started", "")
	g.report(vm, uplink.Up{Lines: c.lines[:1]})
	r := g.report(vm, uplink.Up{Lines: c.lines[2:], Head: c.head()})
	if r.Head.Seq != 1 || r.Refused != "" || len(g.kept(vm)) != 1 {
		t.Errorf("%+v", r)
	}
	if r := g.report(vm, uplink.Up{Lines: c.lines[1:]}); r.Head.Seq != 3 {
		t.Errorf("%+v", r)
	}
}

func TestReportMalformed(t *testing.T) {
	g, vm := reporting(t)
	c := newChain().add("agent.started", "").add("agent.stopped", "").add("agent.started", "")
	for what, lines := range map[string][][]byte{
		"no JSON":             {[]byte("x")},
		"a gap inside":        {c.lines[0], c.lines[2]},
		"the wrong way round": {c.lines[1], c.lines[0]},
		"twice":               {c.lines[0], c.lines[0]},
		"no JSON behind":      {c.lines[0], c.lines[1][:40]},
		"of another record":   {c.lines[0], []byte(strings.Replace(string(c.lines[1]), `"prev":"`+hashOf(c.lines[0]), `"prev":"`+uplink.Genesis, 1))},
		"a number left out":   {c.lines[0], []byte(strings.Replace(string(c.lines[1]), `"seq":2`, `"seq":3`, 1))},
	} {
		_, err := g.Report(t.Context(), vm, uplink.Up{Lines: lines})
		if refusal := control.AsError(err); refusal == nil || refusal.Code != "InvalidRecord" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if kept := g.kept(vm); len(kept) > 0 {
		t.Errorf("%d lines are kept", len(kept))
	}
}

// A record that was edited, cut or replaced after it was sent is told of once,
// never taken over, and does not keep a request from being Initiated.
// A host that was installed again has another record. That is no alarm once it
// has enrolled again, and one if it does not.
func TestReportAfterInstallingAgain(t *testing.T) {
	g, vm := reporting(t)
	before := newChain().add("agent.started", "").add("guard.armed", "")
	g.report(vm, uplink.Up{Lines: before.lines, Head: before.head()})
	// With the same installation the record goes on.
	g.mustEnrol(vm, freshKey(t))
	before = before.add("agent.stopped", "")
	if r := g.report(vm, uplink.Up{Lines: before.lines[2:], Head: before.head()}); r.Refused != "" || r.Head.Seq != 3 || g.vm(vm).Agent.Epoch != 0 {
		t.Fatalf("%+v", r)
	}
	again := newChain().add("agent.started", `,"message":"anew"`)
	if r := g.report(vm, uplink.Up{Head: again.head()}); r.Refused == "" {
		t.Fatal("another record is taken from a host that did not enrol again")
	}
	for i, epoch := range []uint64{1, 2} {
		g.mustEnrol(vm, freshKey(t))
		again = newChain().add("agent.started", fmt.Sprintf(`,"message":"anew %d"`, i)).add("guard.armed", "")
		// The fetcher sends what follows the head it was told before.
		if r := g.report(vm, uplink.Up{Lines: again.lines[1:], Head: again.head()}); r.Refused != "" || r.Head.Seq != 0 {
			t.Fatalf("%+v", r)
		}
		if r := g.report(vm, uplink.Up{Lines: again.lines, Head: again.head()}); r.Refused != "" || r.Head != control.Head(again.head()) {
			t.Fatalf("%+v", r)
		}
		a := g.vm(vm).Agent
		if kept := g.kept(vm); a.Epoch != epoch || a.Forked || a.Anew || len(kept) != 2 || string(kept[0].Line) != string(again.lines[0]) {
			t.Errorf("%+v, %d lines", a, len(kept))
		}
		if got := g.activity("audit.begun"); len(got) != i+1 {
			t.Errorf("%+v", got)
		}
	}
	if got := g.activity("audit.forked"); len(got) != 1 {
		t.Errorf("%+v", got)
	}
	other := newChain().add("agent.started", `,"message":"other"`)
	if r := g.report(vm, uplink.Up{Head: other.head()}); r.Refused == "" {
		t.Error("a second record without a second enrolment")
	}
}

// What is kept of a record outlives that its machine is forgotten: with the same
// installation it goes on, and another begins another.
func TestReportAfterForgetting(t *testing.T) {
	g, vm := reporting(t)
	forget := func() {
		t.Helper()
		if err := g.Store.Update(t.Context(), func(tx control.Tx) error { return tx.DeleteVM(vm) }); err != nil {
			t.Fatal(err)
		}
		g.mustEnrol(vm, freshKey(t))
	}
	forget()
	if a := g.vm(vm).Agent; a.Anew {
		t.Errorf("nothing was kept: %+v", a)
	}
	var c *chain
	for epoch := range uint64(3) {
		if epoch > 0 { // a machine of the same name
			forget()
		}
		c = newChain().add("agent.started", fmt.Sprintf(`,"message":"life %d"`, epoch)).add("guard.armed", "")
		for range 2 { // as a fetcher does that was told of another head
			if r := g.report(vm, uplink.Up{Lines: c.lines, Head: c.head()}); r.Refused != "" {
				t.Fatalf("life %d: %+v", epoch, r)
			}
		}
		forget() // and the same one comes back
		c.add("agent.stopped", "")
		if r := g.report(vm, uplink.Up{Lines: c.lines[2:], Head: c.head()}); r.Refused != "" || r.Head != control.Head(c.head()) {
			t.Fatalf("life %d: %+v", epoch, r)
		}
		if a, kept := g.vm(vm).Agent, g.kept(vm); a.Epoch != epoch || a.Forked || a.Anew || len(kept) != 3 || string(kept[0].Line) != string(c.lines[0]) {
			t.Errorf("life %d: %+v, %d lines", epoch, a, len(kept))
		}
	}
	if got := g.activity("audit.begun"); len(got) != 2 {
		t.Errorf("%+v", got)
	}
	if got := g.activity("audit.forked"); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	other := newChain().add("agent.started", `,"message":"other"`)
	if r := g.report(vm, uplink.Up{Head: other.head()}); r.Refused == "" {
		t.Error("another record without another enrolment")
	}
}

func TestReportFork(t *testing.T) {
	for what, fork := range map[string]func(c *chain) uplink.Up{
		"edited": func(*chain) uplink.Up {
			c := newChain().add("agent.started", "").add("guard.disarmed", "").add("agent.stopped", "").add("agent.started", "")
			return uplink.Up{Lines: c.lines[2:], Head: c.head()}
		},
		"edited, the last line": func(*chain) uplink.Up {
			c := newChain().add("agent.started", "").add("guard.armed", "").add("agent.stopped", `,"message":"other"`)
			return uplink.Up{Lines: c.lines[2:]}
		},
		"cut, and gone on": func(*chain) uplink.Up {
			c := newChain().add("agent.started", "").add("guard.armed", "").add("agent.started", `,"message":"x"`).add("guard.armed", "")
			return uplink.Up{Lines: c.lines[3:]}
		},
		"replaced": func(*chain) uplink.Up {
			c := newChain().add("agent.started", `,"message":"anew"`)
			return uplink.Up{Head: c.head()}
		},
		"replaced, all of it": func(*chain) uplink.Up {
			c := newChain().add("agent.started", `,"message":"anew"`)
			return uplink.Up{Lines: c.lines}
		},
	} {
		t.Run(what, func(t *testing.T) {
			g, vm := reporting(t)
			c := newChain().add("agent.started", "").add("guard.armed", "").add("agent.stopped", "")
			g.report(vm, uplink.Up{Lines: c.lines, Head: c.head()})
			// An old message that comes late is no fork.
			if r := g.report(vm, uplink.Up{Lines: c.lines[:1], Head: uplink.Head{Seq: 1, Hash: hashOf(c.lines[0])}}); r.Refused != "" {
				t.Fatal(r.Refused)
			}
			for range 2 {
				up := fork(c)
				up.Status = &uplink.Status{Mode: "enforce", Open: []string{"g1"}}
				r := g.report(vm, up)
				if r.Refused == "" || r.Head != control.Head(c.head()) {
					t.Errorf("%+v", r)
				}
			}
			if kept := g.kept(vm); len(kept) != 3 || string(kept[2].Line) != string(c.lines[2]) {
				t.Errorf("%d lines are kept, the last %s", len(kept), kept[len(kept)-1].Line)
			}
			if got := g.activity("audit.forked"); len(got) != 1 || got[0].Status != "Failed" || got[0].VM != vm.String() {
				t.Errorf("%+v", got)
			}
			if note := g.vm(vm).Agent.Note; !strings.Contains(note, "not the one that was sent before") {
				t.Errorf("%q", note)
			}
			if p := g.port("g1"); p.Status != control.Initiated {
				t.Errorf("%+v", p)
			}
			// The true record goes on where it was.
			c.add("agent.started", "")
			if r := g.report(vm, uplink.Up{Lines: c.lines[3:]}); r.Head != control.Head(c.head()) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func hashOf(line []byte) string {
	sum := sha256.Sum256(line)
	return hex.EncodeToString(sum[:])
}

// Nothing is written for a report that says nothing new.
func TestReportIdle(t *testing.T) {
	g, vm := reporting(t)
	up := uplink.Up{Have: uplink.Versions{Trust: 1}, Status: &uplink.Status{Mode: "enforce", Version: "v1"}}
	g.report(vm, up)
	writes := &counting{Store: g.Store}
	g.Store = writes
	g.report(vm, up)
	if writes.updates > 0 {
		t.Errorf("%d writes", writes.updates)
	}
	up.Status.Mode = "observe"
	g.report(vm, up)
	if writes.updates != 1 {
		t.Errorf("%d writes", writes.updates)
	}
}

// counting counts what is written.
type counting struct {
	control.Store
	updates int
}

func (c *counting) Update(ctx context.Context, f func(control.Tx) error) error {
	c.updates++
	return c.Store.Update(ctx, f)
}
