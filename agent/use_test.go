package agent

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

// connect has a connection from source to port 22 begin now. The caller
// changes what it says and carries it again.
func (w *world) connect(source string, number uint32) firewall.Flow {
	w.t.Helper()
	f := firewall.Flow{FlowID: firewall.FlowID{Protocol: firewall.TCP, Number: number,
		From: netip.AddrPortFrom(netip.MustParsePrefix(source).Addr(), 40000+uint16(number)),
		To:   netip.MustParseAddrPort("192.0.2.1:22")}, Port: 22, Began: w.boot, Open: true}
	w.fake.Carry(f)
	return f
}

// used returns the proofs of use recorded since the last call of take.
func (w *world) used(name audit.Name) []audit.Event {
	return slices.DeleteFunc(slices.Clone(w.record.events), func(e audit.Event) bool { return e.Name != name })
}

func (w *world) wantUsed(what string, want audit.Event) audit.Event {
	w.t.Helper()
	got := w.used(audit.GrantUsed)
	if len(got) != 1 {
		w.t.Fatalf("%s: %d proofs of use: %+v", what, len(got), got)
	}
	e := got[0]
	w.record.events = nil
	if e.GrantID != want.GrantID || e.Code != want.Code || e.Connections != want.Connections || e.BytesIn != want.BytesIn || e.BytesOut != want.BytesOut ||
		e.PacketsIn != want.PacketsIn || e.PacketsOut != want.PacketsOut || e.SessionsCut != want.SessionsCut || e.AtLeast != want.AtLeast ||
		!e.First.Equal(want.First) || !e.Last.Equal(want.Last) {
		w.t.Errorf("%s: recorded\n%+v, want\n%+v", what, e, want)
	}
	return e
}

// inUse is a world with one grant of an hour in force for alice.
func inUse(t *testing.T, edit ...func(*policy.Policy)) *world {
	w := newWorld(t)
	w.deliver(edit...)
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.record.take()
	return w
}

func TestUse(t *testing.T) {
	t.Run("a kept session is spoken of again when it is over", func(t *testing.T) {
		w := inUse(t)
		first := w.boot
		one := w.connect(alice, 1)
		w.mustPass(time.Minute)
		last := w.wall
		two := w.connect(alice, 2)
		two.Established = true
		one.Established, one.Open, one.Gone, one.In, one.Out = true, false, true, firewall.Count{Packets: 10, Bytes: 1000}, firewall.Count{Packets: 20, Bytes: 9000}
		w.fake.Carry(one)
		w.fake.Carry(two)
		w.mustPass(time.Minute)
		if s := w.snapshot(t.Context()).Openings[0].Use; s == nil || s.Outcome != Used || s.Connections != 2 || s.Open != 1 {
			t.Errorf("status says %+v", s)
		}
		two.In, two.Out = firewall.Count{Packets: 1, Bytes: 100}, firewall.Count{Packets: 2, Bytes: 200}
		w.fake.Carry(two)
		w.mustPass(time.Hour)
		want := audit.Event{GrantID: "a", Code: Used, Connections: 2, First: w.wallAt(first), Last: last,
			BytesIn: 1100, BytesOut: 9200, PacketsIn: 11, PacketsOut: 22}
		if e := w.wantUsed("at the end", want); !strings.Contains(e.Message, "1 go on") {
			t.Error(e.Message)
		}
		two.Open, two.Gone, two.In = false, true, firewall.Count{Packets: 5, Bytes: 500}
		w.fake.Carry(two)
		w.mustPass(time.Minute)
		want.BytesIn, want.PacketsIn = 1500, 15
		if e := w.wantUsed("when the session is over", want); !strings.Contains(e.Message, "are over now") {
			t.Error(e.Message)
		}
		w.mustPass(time.Minute)
		if len(w.used(audit.GrantUsed)) > 0 || len(w.uses) > 0 {
			t.Error("it is not over")
		}
	})
	t.Run("a session that is cut", func(t *testing.T) {
		w := inUse(t)
		at := w.wall
		f := w.connect(alice, 1)
		f.Established, f.In = true, firewall.Count{Packets: 1, Bytes: 60}
		w.fake.Carry(f)
		w.mustPass(time.Second)
		w.list()
		f.Open = false // the reset is the agent's own
		w.mustPass(time.Second)
		w.wantUsed("revoked", audit.Event{GrantID: "a", Code: Used, Connections: 1, SessionsCut: 1, First: at, Last: at, BytesIn: 60, PacketsIn: 1})
	})
	t.Run("a session that another grant lets go on is not cut", func(t *testing.T) {
		w := newWorld(t)
		w.deliver()
		a, b := w.grant("a", alice, 0, time.Hour), w.grant("b", alice, 0, 2*time.Hour)
		w.list(a, b)
		w.mustPass(0)
		w.record.take()
		at := w.wall
		f := w.connect(alice, 1)
		f.Established = true
		w.fake.Carry(f)
		w.mustPass(time.Second)
		w.list(b)
		w.mustPass(time.Second)
		w.wantUsed("revoked", audit.Event{GrantID: "a", Code: Used, Connections: 1, First: at, Last: at})
	})
	t.Run("who came and got nowhere", func(t *testing.T) {
		w := inUse(t)
		at := w.wall
		f := w.connect(alice, 1)
		f.Open, f.Gone, f.In = false, true, firewall.Count{Packets: 1, Bytes: 60}
		w.fake.Carry(f)
		w.mustPass(time.Hour)
		w.wantUsed("at the end", audit.Event{GrantID: "a", Code: Tried, First: at, Last: at, BytesIn: 60, PacketsIn: 1})
	})
	t.Run("connections of others, and those before it", func(t *testing.T) {
		w := inUse(t)
		w.connect(bob, 1)
		for i, edit := range []func(*firewall.Flow){
			func(f *firewall.Flow) { f.Began = 0 },
			func(f *firewall.Flow) { f.Port = 3389 },
			func(f *firewall.Flow) { f.Protocol = 132 },
		} {
			f := firewall.Flow{FlowID: firewall.FlowID{Protocol: firewall.TCP, Number: uint32(10 + i),
				From: netip.AddrPortFrom(netip.MustParsePrefix(alice).Addr(), 50000), To: netip.MustParseAddrPort("192.0.2.1:22")},
				Port: 22, Began: w.boot, Established: true, Open: true}
			edit(&f)
			w.fake.Carry(f)
		}
		w.mustPass(time.Hour)
		w.wantUsed("at the end", audit.Event{GrantID: "a", Code: Unused})
	})
}

// The counter of the opening is read just before the kernel drops both.
func TestLastGlance(t *testing.T) {
	w := inUse(t)
	const left = 10 * time.Second
	w.mustPass(time.Hour - left)
	next, err := w.Step(t.Context())
	if err != nil || next != w.boot.Add(left-lastGlance) {
		t.Fatalf("next in %v, want %v (%v)", next.Sub(w.boot), left-lastGlance, err)
	}
	w.wantOpen(alice, true) // which lets a packet in
	w.mustPass(left - lastGlance)
	w.mustPass(lastGlance)
	w.wantUsed("at the end", audit.Event{GrantID: "a", Code: Tried})
}

// After kill -9 the connections go on in the kernel, and so does the count.
func TestUseAcrossARestart(t *testing.T) {
	w := inUse(t)
	at := w.wall
	on, off := w.connect(alice, 1), w.connect(alice, 2)
	on.Established, off.Established = true, true
	off.In = firewall.Count{Packets: 3, Bytes: 300}
	w.fake.Carry(on)
	w.fake.Carry(off)
	w.mustPass(0)
	w.restart()
	// While nobody looks: one goes on, one is forgotten, one begins.
	on.In = firewall.Count{Packets: 7, Bytes: 700}
	w.fake = &fwtest.Fake{Now: w.fake.Now}
	on.Began = 0
	w.fake.Carry(on)
	late := w.connect(alice, 3)
	late.Began, late.Established, late.Out = 0, true, firewall.Count{Packets: 1, Bytes: 50}
	w.fake.Carry(late)
	w.Backend = w.fake
	w.mustPass(time.Minute)
	w.record.take()
	w.mustPass(time.Hour)
	w.wantUsed("at the end", audit.Event{GrantID: "a", Code: Used, Connections: 3, First: at, Last: at.Add(time.Minute),
		BytesIn: 1000, PacketsIn: 10, BytesOut: 50, PacketsOut: 1, AtLeast: true})

	// What was saved is damaged: the next proof of use says that it may be less.
	w = inUse(t)
	if err := os.WriteFile(filepath.Join(w.Settings.StateDir, usesFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.mustPass(time.Hour - time.Second)
	w.record.take()
	w.mustPass(time.Second)
	w.wantUsed("damaged", audit.Event{GrantID: "a", Code: Unused, AtLeast: true})
}

// A record that fails does not lose the proof of use.
func TestUseWithAFullDisk(t *testing.T) {
	w := inUse(t)
	w.record.fail = errors.New("no space left on device")
	if err := w.pass(time.Hour); err == nil {
		t.Error("no error")
	}
	w.record.fail = nil
	w.mustPass(time.Second)
	w.wantUsed("once there is room", audit.Event{GrantID: "a", Code: Unused})
}

// However many connections begin, what is remembered of them is bounded, and
// every one that ends is counted.
func TestManyConnections(t *testing.T) {
	w := inUse(t)
	const many = 2 * maxUseFlows
	for i := range many {
		f := w.connect(alice, uint32(i))
		f.Established = true
		w.fake.Carry(f)
	}
	w.mustPass(time.Second)
	if n := len(w.uses[0].Flows); n != maxUseFlows {
		t.Errorf("%d are followed", n)
	}
	for i := range many {
		f := w.connect(alice, uint32(i))
		f.Began = w.boot.Add(-time.Second)
		f.Established, f.Open, f.Gone, f.In = true, false, true, firewall.Count{Packets: 1, Bytes: 10}
		w.fake.Carry(f)
	}
	w.mustPass(time.Second)
	w.mustPass(time.Hour)
	at := w.wall.Add(-time.Hour - 2*time.Second)
	w.wantUsed("at the end", audit.Event{GrantID: "a", Code: Used, Connections: many, First: at, Last: at, BytesIn: 10 * many, PacketsIn: many, AtLeast: true})
}

// denied sends packets to port 22 that the guard drops.
func (w *world) denied(source string, n int) {
	w.t.Helper()
	for range n {
		if w.open(source) {
			w.t.Fatalf("%s is let in", source)
		}
	}
}

func (w *world) knock(d time.Duration) []audit.Event {
	w.t.Helper()
	w.wall, w.boot = w.wall.Add(d), w.boot.Add(d)
	w.record.events = nil
	if err := w.tellKnocks(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	return w.used(audit.ConnectionDeny)
}

func TestKnocks(t *testing.T) {
	w := inUse(t)
	w.knock(0)
	start := w.wall
	w.denied(bob, 3)
	got := w.knock(10 * time.Second)
	if len(got) != 1 || got[0].Count != 3 || got[0].Source != netip.MustParsePrefix(bob).Addr().String() || got[0].Port != 22 || got[0].Protocol != "tcp" ||
		!got[0].First.Equal(start) || !got[0].Last.Equal(start) {
		t.Fatalf("recorded %+v", got)
	}
	if got := w.knock(10 * time.Second); len(got) != 0 {
		t.Errorf("told twice: %+v", got)
	}
	// One line a while, which speaks of all since the last.
	from := w.wall
	for range 5 {
		w.denied(bob, 2)
		if got := w.knock(10 * time.Second); len(got) != 0 {
			t.Errorf("told at once: %+v", got)
		}
	}
	// Also by the next agent.
	w.keepUses()
	w.restart()
	w.mustPass(0)
	got = w.knock(knockAgain)
	if len(got) != 1 || got[0].Count != 10 || got[0].First.Before(from) || !got[0].First.Before(got[0].Last) {
		t.Errorf("recorded %+v, want 10 packets from %v", got, from)
	}
	if got := w.knock(time.Hour); len(got) != 0 {
		t.Errorf("told twice: %+v", got)
	}
}

// However many knock, and however long: few lines, and every packet is in one.
func TestKnocksAreBounded(t *testing.T) {
	w := inUse(t)
	w.knock(0)
	const hours = 1
	lines, packets, sent := 0, uint64(0), uint64(0)
	for round := range hours * 360 {
		for i := range 100 {
			w.denied(fmt.Sprintf("198.18.%d.%d/32", (round/7+i)%250, i), 1)
			sent++
		}
		for _, e := range w.knock(10 * time.Second) {
			lines++
			packets += e.Count
		}
	}
	if most := knockBurst + hours*60 + 1; lines > most {
		t.Errorf("%d lines in %d hours, at most %d are allowed", lines, hours, most)
	}
	for _, e := range append(w.knock(time.Hour), w.knock(time.Hour)...) {
		packets += e.Count
	}
	if packets != sent {
		t.Errorf("%d packets are recorded of %d", packets, sent)
	}
}

// A denied source that a grant seems to be meant for is named, first of all.
func TestYourAddressDiffers(t *testing.T) {
	w := inUse(t)
	w.knock(0)
	near := netip.MustParsePrefix(alice).Addr().Prev().String()
	w.denied(near+"/32", 1)
	for i := range 100 {
		w.denied(fmt.Sprintf("198.18.0.%d/32", i), 5)
	}
	got := w.knock(time.Minute)
	if len(got) != knockBurst || got[0].Source != near || got[0].GrantID != "a" || !strings.Contains(got[0].Reason, "your address differs") || !strings.Contains(got[0].Reason, alice) {
		t.Errorf("recorded %d lines, first %+v", len(got), got[0])
	}
	if got[1].Reason != "" || got[1].GrantID != "" {
		t.Errorf("a stranger: %+v", got[1])
	}
	status := w.snapshot(t.Context())
	named := 0
	for _, d := range status.Denials {
		if d.Differs != "" {
			named++
		}
	}
	if named != 1 || status.Denials[0].Source != near || len(status.Denials) != maxDenials {
		t.Errorf("status names %d of %d, first %+v", named, len(status.Denials), status.Denials[0])
	}

	// Who knocked before the port was open has no other address.
	w = newWorld(t)
	w.deliver()
	w.mustPass(0)
	w.knock(0)
	w.denied(alice, 5)
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	if got := w.knock(time.Minute); len(got) != 1 || got[0].Reason != "" || got[0].GrantID != "" {
		t.Errorf("recorded %+v", got)
	}

	// Bob had a grant for one address, and has one for another far away.
	w = newWorld(t)
	w.deliver()
	w.list(w.grant("a", bob, 0, time.Minute))
	w.mustPass(0)
	w.mustPass(time.Minute)
	w.list(w.grant("b", "10.99.0.1/32", time.Minute, time.Hour))
	w.mustPass(time.Minute)
	w.restart()
	w.mustPass(0)
	w.denied(bob, 1)
	if got := w.knock(time.Minute); len(got) != 1 || got[0].GrantID != "b" {
		t.Errorf("recorded %+v", got)
	}
	if d := w.snapshot(t.Context()).Denials; len(d) != 1 || !strings.Contains(d[0].Differs, "grant b of ") {
		t.Errorf("status says %+v", d)
	}
}

// wide is the i-th of many strangers.
func wide(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32)
}
