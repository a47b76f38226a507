package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// armedBy is what the host of a test is armed through.
var armedBy = Session{netip.MustParseAddr("10.0.0.9"), 22}

const peer9 = "10.0.0.9/32"

// observingWorld is a host that was never armed, with a grant for alice.
func observingWorld(t *testing.T) *world {
	w := newWorld(t)
	w.Settings.Mode = Observe
	w.restart()
	w.deliver()
	w.list(w.grant("a", alice, 0, 3*time.Hour))
	w.mustPass(0)
	w.wantOpen(bob, true)
	w.record.take()
	return w
}

func (w *world) mustArm(within time.Duration, own ...Session) Arming {
	w.t.Helper()
	a, err := w.arm(w.t.Context(), "uid 0", within, own)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

func (w *world) wantMode(want Mode) {
	w.t.Helper()
	if got := w.snapshot(w.t.Context()).Mode; got != want {
		w.t.Errorf("mode %s, want %s", got, want)
	}
}

func TestArming(t *testing.T) {
	w := observingWorld(t) // bob knocks at noon
	w.mustPass(10 * time.Minute)
	a := w.mustArm(time.Minute, armedBy, Session{netip.MustParseAddr("::ffff:10.0.0.9"), 22}, Session{netip.MustParseAddr("10.0.0.8"), 23})
	if !slices.Equal(a.Admitted, []Session{armedBy}) || a.Back != Observe || a.Mode != Enforce || len(a.Denied) != 1 || a.Denied[0].Source != "10.0.0.2" || !a.Denied[0].Last.Equal(noon) {
		t.Errorf("armed: %+v", a)
	}
	w.wantRecord("guard.armed")
	w.wantOpen(alice, true)
	w.wantOpen(peer9, true)
	w.wantOpen(bob, false)
	w.mustPass(59 * time.Second)
	w.wantOpen(peer9, true)
	w.wantOpen(bob, false)
	if next, err := w.Step(t.Context()); err != nil || next != w.boot.Add(time.Second) {
		t.Errorf("the next pass is in %v (%v), want when the trial ends", next.Sub(w.boot), err)
	}
	w.mustPass(time.Second)
	w.wantOpen(bob, true)
	w.wantRecord("guard.reverted")
	w.wantMode(Observe)
	w.mustPass(time.Minute)
	w.wantRecord()

	// The kernel goes back with no agent to tell it.
	w.mustArm(20 * time.Second)
	if w.next != w.boot.Add(20*time.Second) {
		t.Errorf("the next pass is in %v, want when the trial ends", w.next.Sub(w.boot))
	}
	w.mustArm(time.Minute)
	w.wantOpen(bob, false)
	w.boot, w.wall = w.boot.Add(time.Minute), w.wall.Add(time.Minute)
	w.wantOpen(bob, true)
	w.restart()
	w.mustPass(0)
	w.wantOpen(bob, true)
	w.wantMode(Observe)
	w.wantRecord("guard.armed", "guard.armed", "guard.reverted")

	// A disk that takes nothing keeps no trial from ending.
	w.mustArm(time.Minute)
	w.record.fail = errors.New("disk full")
	for range 3 {
		w.pass(time.Minute)
		w.wantOpen(bob, true)
	}
}

// What was confirmed stands, over restarts and reboots; who armed stays
// admitted for the time that was said.
func TestConfirming(t *testing.T) {
	w := observingWorld(t)
	if err := w.confirm(t.Context(), "uid 0"); err == nil || !strings.Contains(err.Error(), "run jitgate arm first") {
		t.Errorf("confirming nothing: %v", err)
	}
	w.mustArm(time.Minute, armedBy)
	w.mustPass(10 * time.Second)
	for range 2 {
		if err := w.confirm(t.Context(), "uid 0"); err != nil {
			t.Fatal(err)
		}
	}
	w.wantRecord("guard.armed", "guard.confirmed")
	w.mustPass(49 * time.Second)
	w.wantOpen(peer9, true)
	w.mustPass(time.Second)
	w.wantOpen(peer9, false)
	w.wantOpen(bob, false)
	w.restart()
	w.mustPass(time.Hour)
	w.wantOpen(bob, false)
	w.wantOpen(alice, true)
	w.wantMode(Enforce)
	if a := w.mustArm(time.Minute, armedBy); !a.Until.IsZero() || len(a.Admitted) > 0 {
		t.Errorf("armed while it stands for good: %+v", a)
	}
	w.wantOpen(peer9, false)
}

// anotherBoot is a restart of the machine: no rules, a boot clock that begins
// anew.
func (w *world) anotherBoot() {
	w.t.Helper()
	if err := w.fake.Remove(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	w.boot = firewall.BootTime(20 * time.Second)
	w.restart()
	w.Clock.BootID = "another boot"
	w.Load()
}

func TestArmingAcrossReboot(t *testing.T) {
	w := observingWorld(t)
	w.mustArm(time.Hour, armedBy)
	w.anotherBoot()
	w.mustPass(0)
	w.wantOpen(bob, true)
	w.wantMode(Observe)
	if got := w.record.take(); !slices.Contains(got, "guard.reverted") {
		t.Errorf("recorded %q", got)
	}

	w = observingWorld(t)
	w.mustArm(time.Hour, armedBy)
	if err := w.confirm(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.wantOpen(peer9, true)
	w.anotherBoot()
	w.mustPass(0)
	w.wantOpen(bob, false)
	w.wantOpen(peer9, false) // that time was on another clock
}

// A wall clock that is set neither lengthens a trial nor ends it, and a sleep
// counts.
func TestArmingAndClocks(t *testing.T) {
	for _, step := range []time.Duration{-24 * time.Hour, 24 * time.Hour} {
		w := observingWorld(t)
		w.mustArm(10*time.Minute, armedBy)
		w.wall = w.wall.Add(step)
		w.mustPass(10*time.Minute - time.Second)
		w.wantOpen(bob, false)
		w.wantOpen(peer9, true)
		w.mustPass(time.Second)
		w.wantOpen(bob, true)
	}
	w := observingWorld(t)
	w.mustArm(10 * time.Minute)
	w.fake.Sleep(time.Hour)
	w.mustPass(time.Hour)
	w.wantOpen(bob, true)
}

// What cannot be recorded or saved is not armed; what can is, as soon as the
// kernel takes it, and not for longer.
func TestArmingFails(t *testing.T) {
	w := observingWorld(t)
	w.record.fail = errors.New("disk full")
	if _, err := w.arm(t.Context(), "uid 0", time.Minute, nil); err == nil {
		t.Error("armed without a record")
	}
	w.wantOpen(bob, true)
	w.record.fail = nil
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(bob, true)
	w.wantRecord()

	state := w.Settings.StateDir
	w.Settings.StateDir = filepath.Join(state, "mark.json") // not a directory
	w.store.dir = w.Settings.StateDir
	if _, err := w.arm(t.Context(), "uid 0", time.Minute, nil); err == nil {
		t.Error("armed without a memory")
	}
	w.Settings.StateDir, w.store.dir = state, state
	w.wantOpen(bob, true)
	w.wantRecord()

	for _, within := range []time.Duration{0, MinConfirm - 1, MaxConfirm + 1, -time.Hour} {
		if _, err := w.arm(t.Context(), "uid 0", within, nil); err == nil {
			t.Errorf("armed for %s", within)
		}
	}
	w.wantOpen(bob, true)

	w.fake.Fail = func(firewall.Plan) error { return errors.New("ENOBUFS") }
	if _, err := w.arm(t.Context(), "uid 0", time.Minute, nil); err == nil {
		t.Error("the kernel refused, and the call says that it is armed")
	}
	w.fake.Fail = nil
	w.mustPass(time.Second)
	w.wantOpen(bob, false)
	w.mustPass(time.Minute)
	w.wantOpen(bob, true)

	// Nothing could be opened afterwards: the mark cannot be read.
	if err := os.WriteFile(filepath.Join(state, markFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.pass(time.Second)
	if _, err := w.arm(t.Context(), "uid 0", time.Minute, nil); err == nil || policy.CodeOf(err) != policy.NotDurable {
		t.Errorf("armed though nothing can open: %v", err)
	}
	w.wantOpen(bob, true)
}

func TestDisarming(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, 3*time.Hour))
	w.mustPass(0)
	w.wantOpen(bob, false)
	w.record.take()
	for range 2 {
		if err := w.disarm(t.Context(), "uid 0", Off); err != nil {
			t.Fatal(err)
		}
		w.wantOpen(bob, true)
	}
	w.wantRecord("guard.disarmed", "grant.used a unused")
	w.restart()
	w.mustPass(Resync)
	w.wantOpen(bob, true)
	w.wantMode(Off)
	w.mustArm(time.Minute)
	w.wantOpen(bob, false)
	w.wantOpen(alice, true)
	w.mustPass(time.Minute)
	w.wantOpen(bob, true)
	w.wantMode(Off)
	w.wantRecord("guard.armed", "grant.opening a", "grant.opened a", "guard.reverted", "grant.used a tried")

	// With a disk that takes nothing it works all the same, and says so.
	w = newWorld(t)
	w.mustPass(0)
	w.wantOpen(bob, false)
	w.record.fail = errors.New("disk full")
	if err := w.disarm(t.Context(), "uid 0", Off); err == nil || strings.Count(err.Error(), "disk full") != 1 {
		t.Errorf("disarmed, not recorded: %v", err)
	}
	w.wantOpen(bob, true)

	w = newWorld(t)
	w.mustPass(0)
	w.record.fail = errors.New("disk full")
	if err := w.disarm(t.Context(), "uid 0", Observe); err == nil || strings.Count(err.Error(), "disk full") != 1 {
		t.Errorf("disarmed, not recorded: %v", err)
	}
	w.wantOpen(bob, true)
}

// A saved mode that cannot be read is the one that drops.
func TestBrokenMode(t *testing.T) {
	for _, text := range []string{"{", `{"mode": "ajar"}`, ""} {
		w := observingWorld(t)
		if err := os.WriteFile(filepath.Join(w.Settings.StateDir, modeFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.restart()
		w.mustPass(time.Second)
		w.wantOpen(bob, false)
		w.wantOpen(alice, true)
		if err := w.disarm(t.Context(), "uid 0", Observe); err != nil {
			t.Fatal(err)
		}
		w.restart()
		w.mustPass(time.Second)
		w.wantOpen(bob, true)
	}
}

// A first start in mode observe with a full disk drops nothing.
func TestObserveOnFullDisk(t *testing.T) {
	w := newWorld(t)
	w.Settings.Mode = Observe
	w.restart()
	w.record.fail = errors.New("disk full")
	w.deliver()
	w.pass(0)
	w.wantOpen(bob, true)
}

// While a machine sleeps its timeouts stand still. As it wakes they are set
// right, and nothing is open for longer than was granted.
func TestThreatSuspends(t *testing.T) {
	for _, asleep := range []time.Duration{20 * time.Second, 40 * time.Minute, 2 * time.Hour} {
		w := newWorld(t)
		w.deliver()
		w.list(w.grant("a", alice, 0, time.Hour))
		w.mustPass(0)
		opened := w.boot
		w.mustPass(10 * time.Minute)
		w.fake.Sleep(asleep)
		w.doubt() // stepWatch tells of the wake-up
		w.mustPass(asleep)
		for w.boot.Sub(opened) < 2*time.Hour {
			if late := w.boot.Sub(opened) - time.Hour; w.open(alice) != (late < 0) {
				t.Fatalf("%s asleep: %s after the end, open %t", asleep, late, w.open(alice))
			}
			// The next pass is when the agent wanted it.
			d := min(w.next.Sub(w.boot), Resync)
			w.mustPass(d)
		}
	}
}

// A restored snapshot goes on where it was, and then its wall clock is set: the
// agent hears of it, and closes at once what is over by then.
func TestThreatRestoresASnapshot(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 0, 3*time.Hour))
	w.mustPass(0)
	w.wantOpen(alice, true)
	w.wall = w.wall.Add(2 * time.Hour) // the boot clock and the kernel stood still
	w.doubt()
	w.mustPass(0)
	w.wantOpen(alice, false)
	w.wantOpen(bob, true)
	w.boot, w.wall = w.boot.Add(time.Hour), w.wall.Add(time.Hour)
	w.wantOpen(bob, false) // the kernel knows by now
}

func TestOwnSessions(t *testing.T) {
	all := parseConnections(`  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0000000000000000 100 0 0 10 0
   1: 0101A8C0:0016 0700CB00:D431 01 00000000:00000000 02:000AC4E8 00000000     0        0 101 4 0000000000000000 20 4 30 10 -1
   2: 0101A8C0:0016 0800CB00:D432 01 00000000:00000000 02:000AC4E8 00000000     0        0 102 4 0000000000000000 20 4 30 10 -1
   3: 0101A8C0:0016 0900CB00:D432 06 00000000:00000000 02:000AC4E8 00000000     0        0 103 4 0000000000000000 20 4 30 10 -1
   4: short
   5: xyz:0016 0900CB00:D432 01 00000000:00000000 02:000AC4E8 00000000     0        0 104 4
`)
	all = append(all, parseConnections(`  sl  local_address                         remote_address                        st
   0: 0000000000000000FFFF00000101A8C0:0016 0000000000000000FFFF00000A00CB00:D433 01 00000000:00000000 02:000AC4E8 00000000     0        0 105 4
   1: 000077FD000000000000000001000000:0016 000077FD000000000000000002000000:D434 01 00000000:00000000 02:000AC4E8 00000000     0        0 106 4
`)...)
	if len(all) != 4 {
		t.Fatalf("%+v", all)
	}
	for name, c := range map[string]struct {
		held        []string
		environment string
		want        []string
	}{
		"held":                       {[]string{"socket:[101]"}, "", []string{"0.203.0.7 to 22/tcp"}},
		"held counts first":          {[]string{"socket:[102]"}, "0.203.0.7 54321 192.168.1.1 22", []string{"0.203.0.8 to 22/tcp"}},
		"mapped":                     {[]string{"socket:[105]"}, "", []string{"0.203.0.10 to 22/tcp"}},
		"IPv6":                       {[]string{"socket:[106]"}, "", []string{"fd77::2 to 22/tcp"}},
		"by environment":             {nil, "0.203.0.7 54321 192.168.1.1 22", []string{"0.203.0.7 to 22/tcp"}},
		"environment of the past":    {nil, "0.203.0.7 54320 192.168.1.1 22", nil},
		"environment that is a tale": {nil, "0.0.0.0 0 0.0.0.0 0", nil},
		"console":                    {[]string{"socket:[103]", "/dev/tty1"}, "", nil},
	} {
		held := map[string]bool{}
		for _, s := range c.held {
			held[s] = true
		}
		var got []string
		for _, s := range ownSessions(all, held, c.environment) {
			got = append(got, s.String())
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
