package winfw_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/winfw"
	"github.com/jitgate/jitgate/firewall/winfw/wfptest"
)

// host is a machine, a process that guards it, and a clock that moves by hand.
type host struct {
	t        *testing.T
	platform *wfptest.Platform
	backend  *winfw.Backend
	boot     firewall.BootTime
	warned   []string
	engine   func(winfw.Engine) winfw.Engine
}

func newHost(t *testing.T) *host {
	h := &host{t: t, platform: wfptest.New(), boot: firewall.BootTime(time.Hour)}
	h.platform.Firewall = wfptest.NewFirewall()
	h.start()
	return h
}

// open has Windows Firewall let everything through, so that the guard alone
// decides.
func (h *host) open() *host {
	h.platform.Firewall.Profiles[wfptest.Public] = wfptest.ProfileState{On: true, AllowAll: true}
	return h
}

func (h *host) start() {
	e := h.platform.Engine()
	if h.engine != nil {
		e = h.engine(e)
	}
	h.backend = winfw.New(e, h.platform.Rules(), func() firewall.BootTime { return h.boot })
	h.backend.Warn = func(err error) { h.warned = append(h.warned, err.Error()) }
}

func (h *host) observe() firewall.Observed {
	h.t.Helper()
	have, err := h.backend.Observe(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	return have
}

func (h *host) settle(want firewall.Ruleset) {
	h.t.Helper()
	if err := h.backend.Apply(context.Background(), firewall.Diff(h.observe(), want)); err != nil {
		h.t.Fatal(err)
	}
}

// pass moves the clock with nobody acting but the clock that closes.
func (h *host) pass(d time.Duration) {
	h.boot = h.boot.Add(d)
	h.backend.Expire()
}

func (h *host) ruleset(ports []string, doors ...string) firewall.Ruleset {
	r := firewall.Ruleset{Ports: fwtest.Ports(h.t, ports...), Openings: map[firewall.Door]firewall.End{}}
	for i, d := range doors {
		source, port, _ := strings.Cut(d, " ")
		r.Openings[fwtest.Door(h.t, source, port)] = firewall.End{Until: h.boot.Add(time.Hour), Label: fmt.Sprint("grant-", i)}
	}
	return r
}

func (h *host) admits(what string, want bool, packets ...string) {
	h.t.Helper()
	for _, p := range packets {
		source, port, _ := strings.Cut(p, " ")
		if got := h.platform.Admits(fwtest.Door(h.t, source, port)); got != want {
			h.t.Errorf("%s: %s passes: %t, want %t", what, p, got, want)
		}
	}
}

const (
	alice = "203.0.113.7/32"
	bob   = "203.0.113.8/32"
	six   = "2001:db8::7/128"
)

func TestGuard(t *testing.T) {
	h := newHost(t).open()
	h.admits("nothing guarded", true, alice+" 22/tcp")
	h.settle(h.ruleset([]string{"22/tcp", "5985-5986/tcp cut", "3389/udp"}, alice+" 22/tcp", "203.0.113.0/24 5986/tcp", six+" 3389/udp", "10.9.0.0/16"))
	h.admits("granted", true, alice+" 22/tcp", bob+" 5986/tcp", six+" 3389/udp", "10.9.1.2/32 22/tcp", "10.9.1.2/32 5985/tcp")
	h.admits("not granted", false, bob+" 22/tcp", alice+" 5985/tcp", "203.0.114.1/32 5986/tcp", "2001:db8::8/128 3389/udp", "10.8.0.1/32 22/tcp", "2001:db8::1/128 22/tcp")
	h.admits("not guarded", true, bob+" 80/tcp", bob+" 22/udp", bob+" 3389/tcp")
	if p := fwtest.Door(t, "127.0.0.1/32", "22/tcp"); !h.platform.Loopback(p) {
		t.Error("the host does not reach itself")
	}
}

// From the moment the kernel starts, with no agent and before the engine's
// service runs.
func TestClosedAtBoot(t *testing.T) {
	h := newHost(t).open()
	h.settle(h.ruleset([]string{"22/tcp", "3389/udp cut"}, alice+" 22/tcp"))
	h.platform.Reboot()
	h.admits("booting", false, alice+" 22/tcp", bob+" 22/tcp", six+" 3389/udp")
	h.admits("booting", true, bob+" 80/tcp")
	if !h.platform.Loopback(fwtest.Door(t, "127.0.0.1/32", "22/tcp")) {
		t.Error("the host does not reach itself at boot")
	}
	h.platform.StartService()
	h.admits("no agent", false, alice+" 22/tcp", bob+" 22/tcp", six+" 3389/udp")
	h.boot = firewall.BootTime(time.Minute)
	h.start()
	if have := h.observe(); !have.Drops() || len(have.Openings) > 0 || !have.Intact {
		t.Errorf("an agent that starts finds %+v", have)
	}
	h.settle(h.ruleset([]string{"22/tcp", "3389/udp cut"}, alice+" 22/tcp"))
	h.admits("with an agent", true, alice+" 22/tcp")
	if err := h.backend.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	for _, l := range []winfw.Lifetime{winfw.Dynamic, winfw.Persistent, winfw.BootTime} {
		if n := h.platform.Count(l); n > 0 {
			t.Errorf("removed, and %d %s filters stand", n, l)
		}
	}
	h.platform.Reboot()
	h.admits("removed, booting", true, bob+" 22/tcp")
}

// Boot-time filters follow the ports and the mode.
func TestBootTimeFilters(t *testing.T) {
	h := newHost(t).open()
	h.settle(h.ruleset([]string{"22/tcp", "80/tcp"}))
	h.settle(h.ruleset([]string{"22/tcp"}))
	h.platform.Reboot()
	h.admits("booting", false, bob+" 22/tcp")
	h.admits("booting", true, bob+" 80/tcp")
	h.platform.StartService()
	h.start()
	r := h.ruleset([]string{"22/tcp"})
	r.Observe = true
	h.settle(r)
	h.platform.Reboot()
	h.admits("observed, booting", true, bob+" 22/tcp")
}

// A process that is killed leaves the ports closed; one on trial, open.
func TestDeath(t *testing.T) {
	h := newHost(t).open()
	r := h.ruleset([]string{"22/tcp"}, alice+" 22/tcp")
	h.settle(r)
	h.platform.Kill()
	h.admits("killed", false, alice+" 22/tcp", bob+" 22/tcp")
	h.start()
	r.Trial, r.Observe = h.boot.Add(time.Minute), false
	h.settle(r)
	h.admits("on trial", false, bob+" 22/tcp")
	h.admits("on trial", true, alice+" 22/tcp")
	h.platform.Kill()
	h.admits("killed on trial", true, bob+" 22/tcp")
}

// A trial and an opening end on time although the rest of the agent hangs.
func TestEndsByItself(t *testing.T) {
	h := newHost(t).open()
	r := h.ruleset([]string{"22/tcp"}, alice+" 22/tcp")
	r.Trial = h.boot.Add(2 * time.Hour)
	h.settle(r)
	h.pass(time.Hour - time.Millisecond)
	h.admits("a millisecond before its end", true, alice+" 22/tcp")
	h.pass(time.Millisecond)
	h.admits("at its end", false, alice+" 22/tcp")
	h.pass(time.Hour)
	h.admits("after the trial", true, bob+" 22/tcp")
	if have := h.observe(); !have.Intact || !have.Observe || have.Trial != 0 {
		t.Errorf("after the trial: %+v", have)
	}
}

// What is over and cannot be closed one by one is closed with all the rest.
func TestClosingFails(t *testing.T) {
	h := newHost(t).open()
	r := h.ruleset([]string{"22/tcp"}, alice+" 22/tcp", bob+" 22/tcp")
	r.Openings[fwtest.Door(t, bob, "22/tcp")] = firewall.End{Until: h.boot.Add(time.Minute)}
	h.settle(r)
	h.platform.Fail = func() error { return errors.New("locked") }
	h.pass(time.Minute)
	h.admits("over", false, bob+" 22/tcp")
	if len(h.warned) != 1 || !strings.Contains(h.warned[0], "all were") {
		t.Errorf("warned of %q", h.warned)
	}
	h.platform.Fail = nil
	if have := h.observe(); !have.Drops() || len(have.Openings) > 0 {
		t.Errorf("what is left: %+v", have)
	}
	delete(r.Openings, fwtest.Door(t, bob, "22/tcp"))
	h.settle(r)
	h.admits("the next pass", true, alice+" 22/tcp")
}

// The same where nobody can read what stands.
func TestClosingBlind(t *testing.T) {
	h := newHost(t).open()
	r := h.ruleset([]string{"22/tcp"}, alice+" 22/tcp", bob+" 22/tcp")
	r.Openings[fwtest.Door(t, bob, "22/tcp")] = firewall.End{Until: h.boot.Add(time.Minute)}
	h.settle(r)
	h.platform.Blind = errors.New("no answer")
	if _, err := h.backend.Observe(context.Background()); err == nil {
		t.Error("nobody says that nothing could be read")
	}
	h.pass(time.Minute - time.Second)
	h.admits("a second before its end", true, alice+" 22/tcp", bob+" 22/tcp")
	h.pass(time.Second)
	h.admits("over", false, bob+" 22/tcp")
	if len(h.warned) != 2 || !strings.Contains(h.warned[1], "all were") {
		t.Errorf("warned of %q", h.warned)
	}
}

// hanging is Windows Firewall that never answers.
type hanging struct{ forever chan struct{} }

func (h hanging) Read() ([]winfw.Rule, error) { <-h.forever; return nil, nil }
func (h hanging) Write(winfw.Rule) error      { <-h.forever; return nil }
func (h hanging) Delete(string) error         { <-h.forever; return nil }

// Nothing that closes waits for Windows Firewall, nor for a change of the guard
// that failed half way.
func TestClosingWaitsForNobody(t *testing.T) {
	start := time.Now()
	now := func() firewall.BootTime { return firewall.BootTime(time.Since(start)) + 1 }
	p := wfptest.New()
	windows := hanging{make(chan struct{})}
	defer close(windows.forever)
	b := winfw.New(p.Engine(), windows, now)
	b.Start()
	t.Cleanup(func() { b.Close() })
	apply := func(want firewall.Ruleset) error {
		have, err := b.Observe(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return b.Apply(context.Background(), firewall.Diff(have, want))
	}
	want := firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp")}
	if err := apply(want); err != nil {
		t.Fatal(err)
	}
	door := fwtest.Door(t, alice, "22/tcp")
	want.Openings = map[firewall.Door]firewall.End{door: {Until: now().Add(300 * time.Millisecond)}}
	want.Ports = fwtest.Ports(t, "22/tcp", "80/tcp")
	transactions := 0
	p.Fail = func() error {
		if transactions++; transactions == 2 {
			return errors.New("refused")
		}
		return nil
	}
	if err := apply(want); err == nil || !strings.Contains(err.Error(), "change the guard: refused") {
		t.Fatalf("the second transaction was not refused: %v", err)
	}
	for until := time.Now().Add(10 * time.Second); p.Admits(door); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatal("open ten seconds later")
		}
	}
}

// Sessions: kept ones outlive an opening that runs out, and the agent; they end
// with one that is taken back. Cut ones end with both.
func TestSessions(t *testing.T) {
	for name, firewalled := range map[string]bool{"Windows Firewall lets all through": false, "jitgate's rule is the only one": true} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			if !firewalled {
				h.open()
			}
			ports := []string{"22/tcp", "3389/tcp cut"}
			session := func(source, port string) *wfptest.Flow {
				t.Helper()
				f := h.platform.Connect(fwtest.Door(t, source, port))
				if f == nil {
					t.Fatalf("%s is not let in to %s", source, port)
				}
				return f
			}
			goes := func(what string, f *wfptest.Flow, want bool) {
				t.Helper()
				if got := f.Goes(); got != want {
					t.Errorf("%s: the session goes on: %t, want %t", what, got, want)
				}
			}
			h.settle(h.ruleset(ports, alice+" 22/tcp", alice+" 3389/tcp", bob+" 22/tcp"))
			kept, cut, taken := session(alice, "22/tcp"), session(alice, "3389/tcp"), session(bob, "22/tcp")
			// Something else changes: everybody is asked about again.
			h.settle(h.ruleset(ports, alice+" 22/tcp", alice+" 3389/tcp", bob+" 22/tcp", "10.0.0.1/32 22/tcp"))
			goes("others change", kept, true)
			goes("others change", cut, true)
			h.settle(h.ruleset(ports, alice+" 22/tcp", alice+" 3389/tcp"))
			goes("taken back", taken, false)
			h.pass(time.Hour)
			goes("ran out", kept, true)
			goes("ran out, cut", cut, false)
			h.admits("ran out", false, alice+" 22/tcp")
			h.settle(h.ruleset(ports, bob+" 22/tcp"))
			again := session(bob, "22/tcp")
			h.pass(time.Hour)
			goes("granted again and ran out", again, true)
			h.settle(h.ruleset(ports))
			goes("later", kept, true)
			if !firewalled {
				h.platform.Kill()
				goes("agent killed", kept, true)
				h.start()
				h.settle(h.ruleset(ports))
				goes("agent restarted", kept, true)
			}
			// A revocation outlives the agent, and reaches a session that said
			// nothing meanwhile.
			h.settle(h.ruleset(ports, alice+" 22/tcp"))
			idle := session(alice, "22/tcp")
			h.settle(h.ruleset(ports))
			h.platform.Kill()
			h.start()
			h.settle(h.ruleset(ports))
			goes("taken back while idle", idle, false)
			// For a week.
			h.pass(8 * 24 * time.Hour)
			h.settle(h.ruleset(ports, "10.0.0.1/32 22/tcp"))
			if n := h.platform.Delete(func(f winfw.Filter) bool { return strings.Contains(f.Data, `"revoked"`) }); n > 0 {
				t.Errorf("%d filters of what was taken back stand after a week", n)
			}
		})
	}
}

// In mode observe nothing is cut, and what was taken back meanwhile is once the
// guard drops.
func TestObserveCutsNothing(t *testing.T) {
	h := newHost(t).open()
	r := h.ruleset([]string{"22/tcp"}, alice+" 22/tcp")
	r.Observe = true
	h.settle(r)
	f := h.platform.Connect(fwtest.Door(t, alice, "22/tcp"))
	r = h.ruleset([]string{"22/tcp"})
	r.Observe = true
	h.settle(r)
	if !f.Goes() {
		t.Error("observing, and a session was cut")
	}
	r.Observe, r.Trial = false, h.boot.Add(time.Minute)
	h.settle(r)
	if f.Goes() {
		t.Error("armed, and the session of a grant taken back goes on")
	}
}

// What others say in their sublayers: they may block what is granted, and
// cannot permit what is not.
func TestOthers(t *testing.T) {
	everything := func(block, hard bool) wfptest.Foreign {
		return wfptest.Foreign{Filter: winfw.Filter{Layer: winfw.AcceptV4, Block: block}, Hard: hard}
	}
	for name, c := range map[string]struct {
		others           wfptest.Sublayer
		granted, another bool
	}{
		"soft permit":           {wfptest.Sublayer{Weight: 0xfffe, Filters: []wfptest.Foreign{everything(false, false)}}, true, false},
		"hard permit":           {wfptest.Sublayer{Weight: 0xfffe, Filters: []wfptest.Foreign{everything(false, true)}}, true, false},
		"soft block":            {wfptest.Sublayer{Weight: 1, Filters: []wfptest.Foreign{everything(true, false)}}, false, false},
		"hard block":            {wfptest.Sublayer{Weight: 1, Filters: []wfptest.Foreign{everything(true, true)}}, false, false},
		"permit heavier within": {wfptest.Sublayer{Weight: 1, Filters: []wfptest.Foreign{everything(true, true), {Filter: winfw.Filter{Layer: winfw.AcceptV4, Weight: 1}}}}, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t).open()
			h.settle(h.ruleset([]string{"22/tcp"}, alice+" 22/tcp"))
			h.platform.Others(c.others)
			h.admits("granted", c.granted, alice+" 22/tcp")
			h.admits("not granted", c.another, bob+" 22/tcp")
		})
	}
}

// Windows Firewall blocks what no rule is about: granted sources get in by the
// rule group, and by it nobody else does.
func TestRuleGroup(t *testing.T) {
	h := newHost(t)
	r := h.ruleset([]string{"22/tcp", "5985-5986/tcp cut"}, alice+" 22/tcp", bob+" 5986/tcp", "10.9.0.4/32")
	group := func() (out []string) {
		for _, x := range h.platform.Firewall.Rules {
			if x.Group == winfw.Group {
				out = append(out, fmt.Sprintf("%s: %s from %s, %t", x.Name, x.Ports, x.Sources, x.Enabled))
			}
		}
		slices.Sort(out)
		return out
	}
	same := func(what string, want ...string) {
		t.Helper()
		if got := group(); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	observed := r
	observed.Observe = true
	h.settle(observed)
	same("observed")
	onTrial := r
	onTrial.Trial = h.boot.Add(time.Minute)
	h.settle(onTrial)
	same("on trial")
	h.settle(r)
	same("dropping", "jitgate 22/tcp: 22 from 10.9.0.4/32,203.0.113.7/32, true", "jitgate 5985-5986/tcp: 5985-5986 from 10.9.0.4/32,203.0.113.8/32, true")
	h.admits("granted", true, alice+" 22/tcp", bob+" 5986/tcp", "10.9.0.4/32 22/tcp")
	h.admits("the rule is wider than the grant", false, bob+" 5985/tcp")
	h.settle(h.ruleset([]string{"22/tcp", "5985-5986/tcp cut"}))
	same("taken back", "jitgate 22/tcp: 22 from 127.0.0.1, false", "jitgate 5985-5986/tcp: 5985-5986 from 127.0.0.1, false")
	h.settle(h.ruleset([]string{"22/tcp"}, "0.0.0.0/0 22/tcp"))
	same("any source, and one port fewer", "jitgate 22/tcp: 22 from *, true")
	h.platform.Firewall.Rules = append(h.platform.Firewall.Rules, wfptest.FirewallRule{Rule: winfw.Rule{Name: "OpenSSH", Protocol: firewall.TCP, Ports: "22", Sources: "*", Enabled: true}})
	h.platform.Firewall.Rules[0].Enabled = false // by hand, in wf.msc
	h.boot = h.boot.Add(10 * time.Minute)
	h.observe()
	same("changed by hand", "jitgate 22/tcp: 22 from *, true")
	h.platform.Firewall.Rules = append(h.platform.Firewall.Rules, wfptest.FirewallRule{Rule: winfw.Rule{Name: "no SSH", Protocol: firewall.TCP, Ports: "22", Sources: "*", Enabled: true}, Block: true})
	h.admits("a rule blocks", false, alice+" 22/tcp")
	if err := h.backend.Remove(context.Background()); err != nil {
		t.Fatal(err)
	}
	same("disarmed")
	if n := len(h.platform.Firewall.Rules); n != 2 {
		t.Errorf("%d rules of others are left of 2", n)
	}
}

// Too many sources for a rule: the guard alone decides.
func TestManySources(t *testing.T) {
	h := newHost(t)
	r := h.ruleset([]string{"22/tcp"})
	for i := range 600 {
		a := netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
		r.Openings[firewall.Door{Source: netip.PrefixFrom(a, 32), Protocol: firewall.TCP, Port: 22}] = firewall.End{Until: h.boot.Add(time.Hour)}
	}
	h.settle(r)
	if s := h.platform.Firewall.Rules[0].Sources; s != "*" {
		t.Errorf("a rule of %d letters", len(s))
	}
	h.admits("granted", true, "10.7.2.87/32 22/tcp")
	h.admits("not granted", false, "10.7.2.88/32 22/tcp")
}

// Without Windows Firewall the guard guards; that is said once.
func TestWindowsFirewallDoesNotAnswer(t *testing.T) {
	h := newHost(t).open()
	h.platform.Firewall.Fail = errors.New("no answer")
	h.settle(h.ruleset([]string{"22/tcp"}, alice+" 22/tcp"))
	h.settle(h.ruleset([]string{"22/tcp"}, bob+" 22/tcp"))
	h.admits("granted", true, bob+" 22/tcp")
	h.admits("not granted", false, alice+" 22/tcp")
	if len(h.warned) != 1 {
		t.Errorf("warned of %q", h.warned)
	}
	if err := h.backend.Remove(context.Background()); err != nil {
		t.Error(err)
	}
	h.admits("disarmed", true, alice+" 22/tcp")
}

// A stranger takes filters away, or adds some: the guard is not whole, and is
// once the rules are written.
func TestStrangers(t *testing.T) {
	for name, tamper := range map[string]func(*host){
		"everything": func(h *host) { h.platform.Delete(func(winfw.Filter) bool { return true }) },
		"the blocks": func(h *host) { h.platform.Delete(func(f winfw.Filter) bool { return f.Block }) },
		"one family": func(h *host) { h.platform.Delete(func(f winfw.Filter) bool { return f.Layer == winfw.AcceptV6 }) },
		"an opening": func(h *host) { h.platform.Delete(func(f winfw.Filter) bool { return f.Lifetime == winfw.Dynamic }) },
		"a permit, added": func(h *host) {
			h.platform.Insert(winfw.Filter{Key: winfw.GUID{Data1: 7}, Name: "mine", Layer: winfw.AcceptV4, Weight: 1 << 60})
		},
		"another's opening":   func(h *host) { h.platform.Insert(stolen(h)) },
		"what will be gone":   func(h *host) { h.platform.Kill() },
		"nothing but its end": func(h *host) { h.boot = h.boot.Add(time.Minute) },
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t).open()
			want := h.ruleset([]string{"22/tcp", "3389/tcp cut"}, alice+" 22/tcp")
			h.settle(want)
			tamper(h)
			have := h.observe()
			if name != "nothing but its end" && firewall.Diff(have, want).Empty() {
				t.Error("nobody notices")
			}
			h.settle(want)
			if have := h.observe(); !have.Intact || !firewall.Diff(have, want).Empty() {
				t.Errorf("not mended: %+v", have)
			}
			h.admits("mended", true, alice+" 22/tcp")
			h.admits("mended", false, bob+" 22/tcp", bob+" 3389/tcp", six+" 22/tcp")
		})
	}
}

// stolen is a filter as another process of jitgate would have written it.
func stolen(h *host) (out winfw.Filter) {
	other := newHost(h.t)
	other.boot = h.boot
	other.settle(other.ruleset([]string{"22/tcp"}, bob+" 22/tcp"))
	other.platform.Delete(func(f winfw.Filter) bool {
		if strings.Contains(f.Data, `"open"`) {
			out = f
		}
		return false
	})
	return out
}

// between calls something after every transaction.
type between struct {
	winfw.Engine
	after func()
}

func (b between) Commit(dynamic bool, del []winfw.GUID, add []winfw.Filter) error {
	err := b.Engine.Commit(dynamic, del, add)
	if b.after != nil {
		b.after()
	}
	return err
}

// From any ruleset to any other, with transactions refused: what is dropped before and after is dropped in between, and what is
// admitted before and after is admitted in between.
func TestNothingLeaksInBetween(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	steps := 0
	for range 150 {
		h := newHost(t).open()
		b := between{}
		h.engine = func(e winfw.Engine) winfw.Engine { b.Engine = e; return &b }
		h.start()
		was := randomGuard(r, h.boot)
		h.settle(was)
		for range 4 {
			next, refused := randomGuard(r, h.boot), false
			b.after = func() {
				steps++
				for _, p := range probes {
					before, after, now := passes(was, p, h.boot), passes(next, p, h.boot), h.platform.Admits(p)
					// Where a change was refused, closing does not wait for it.
					if before == after && now != before && (now || !refused) {
						t.Fatalf("seed %d: %s passes: %t, in the midst of the way\nfrom %+v\nto %+v", seed, p, now, was, next)
					}
				}
			}
			n := r.IntN(5)
			h.platform.Fail = func() error {
				if n--; n == 0 {
					refused = true
					return errors.New("refused")
				}
				return nil
			}
			err := h.backend.Apply(context.Background(), firewall.Diff(h.observe(), next))
			h.platform.Fail, b.after = nil, nil
			if err != nil {
				h.settle(next)
			}
			if left := firewall.Diff(h.observe(), next); !left.Empty() {
				t.Fatalf("seed %d: left to do:\n%s", seed, left.Describe(h.boot))
			}
			for _, p := range probes {
				if got, want := h.platform.Admits(p), passes(next, p, h.boot); got != want {
					t.Fatalf("seed %d: %s passes: %t, want %t, with %+v", seed, p, got, want, next)
				}
			}
			was = next
		}
	}
	if steps < 300 {
		t.Errorf("%d transactions: this looks at nothing", steps)
	}
}

// passes is the rule of the guard, with its modes.
func passes(r firewall.Ruleset, packet firewall.Door, now firewall.BootTime) bool {
	return fwtest.Admits(r, packet) || !r.DropsAt(now)
}

var probes = func() (out []firewall.Door) {
	for _, a := range []string{"10.0.0.1", "10.0.0.2", "10.0.1.1", "fd00::1", "fd00::2"} {
		for _, port := range []uint16{20, 22, 23, 24} {
			for _, protocol := range []firewall.Protocol{firewall.TCP, firewall.UDP} {
				ip := netip.MustParseAddr(a)
				out = append(out, firewall.Door{Source: netip.PrefixFrom(ip, ip.BitLen()), Protocol: protocol, Port: port})
			}
		}
	}
	return out
}()

func randomGuard(r *rand.Rand, now firewall.BootTime) firewall.Ruleset {
	out := firewall.Ruleset{Openings: map[firewall.Door]firewall.End{}}
	protocol := func() firewall.Protocol { return [...]firewall.Protocol{firewall.TCP, firewall.UDP}[r.IntN(2)] }
	for range r.IntN(4) {
		first := uint16(22 + r.IntN(3))
		out.Ports = append(out.Ports, firewall.Port{Protocol: protocol(), First: first, Last: first + uint16(r.IntN(2)), Cut: r.IntN(2) == 0})
	}
	out.Ports = firewall.Union(out.Ports, nil)
	switch r.IntN(4) {
	case 0:
		out.Observe = true
	case 1:
		if len(out.Ports) > 0 {
			out.Trial = now.Add(time.Duration(1+r.IntN(3)) * time.Hour)
		}
	}
	for range r.IntN(5) {
		p := probes[r.IntN(len(probes))]
		if r.IntN(3) == 0 {
			p.Source = netip.PrefixFrom(p.Source.Addr(), [...]int{0, 8, 24, 31}[r.IntN(4)]).Masked()
		}
		if r.IntN(5) == 0 {
			p.Protocol, p.Port = 0, 0
		}
		out.Openings[p] = firewall.End{Until: now.Add(time.Duration(1+r.IntN(100)) * time.Minute), Label: fmt.Sprint(r.IntN(3))}
	}
	return out
}
