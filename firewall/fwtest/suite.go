package fwtest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Trait is what a platform may be unlike the others in.
type Trait int

// EndsWithProcess says that openings, and the drop of a trial, are gone with
// the process that made them: another one takes over no more than the guard.
const EndsWithProcess Trait = 1

// Run is the conformance suite. open gives a Backend on an empty platform, or
// with again set another one on the same platform, as a process that starts
// after the first has ended. now is the clock the platform counts with.
func Run(t *testing.T, now func() firewall.BootTime, open func(t *testing.T, again bool) firewall.Backend, traits ...Trait) {
	s := suite{now: now, open: open, endsWithProcess: slices.Contains(traits, EndsWithProcess)}
	t.Run("empty", s.empty)
	t.Run("any state to any other", s.anyToAny)
	t.Run("another process takes over", s.takeOver)
	t.Run("an opening ends by itself", s.ends)
	t.Run("an end is moved", s.moves)
	t.Run("a trial ends by itself", s.trialEnds)
	t.Run("an opening already over does not open", s.alreadyOver)
	t.Run("changing openings leaves the others alone", s.neighbours)
	t.Run("ten thousand openings", s.many)
	t.Run("remove", s.remove)
}

type suite struct {
	now  func() firewall.BootTime
	open func(*testing.T, bool) firewall.Backend

	endsWithProcess bool
}

// Door makes a door from "203.0.113.7/32 22/tcp", or one to every guarded
// port from a prefix alone.
func Door(t testing.TB, source string, port string) firewall.Door {
	t.Helper()
	d := firewall.Door{Source: netip.MustParsePrefix(source)}
	if port != "" {
		p, err := firewall.ParsePort(port)
		if err != nil {
			t.Fatal(err)
		}
		d.Protocol, d.Port = p.Protocol, p.First
	}
	return d
}

// Ports parses a list of ports into the order backends report.
func Ports(t testing.TB, list ...string) []firewall.Port {
	t.Helper()
	var out []firewall.Port
	for _, s := range list {
		p, err := firewall.ParsePort(s)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return firewall.Union(out, nil)
}

// rulesets are states of all kinds: a backend must get from each to each.
func (s suite) rulesets(t *testing.T) map[string]firewall.Ruleset {
	until := s.now().Add(time.Hour)
	open := func(doors ...firewall.Door) map[firewall.Door]firewall.End {
		m := map[firewall.Door]firewall.End{}
		for i, d := range doors {
			m[d] = firewall.End{Until: until.Add(time.Duration(i) * time.Minute), Label: fmt.Sprintf("grant-%d", i)}
		}
		return m
	}
	ssh := Ports(t, "22/tcp")
	all := Ports(t, "22/tcp", "3389/tcp", "3389/udp", "5985-5986/tcp cut", "1-3/udp cut", "60000-65535/tcp")
	host := Door(t, "203.0.113.7/32", "22/tcp")
	return map[string]firewall.Ruleset{
		"nothing":         {},
		"closed":          {Ports: ssh},
		"closed, cut":     {Ports: Ports(t, "22/tcp cut")},
		"one host":        {Ports: ssh, Openings: open(host)},
		"later end":       {Ports: ssh, Openings: open(Door(t, "203.0.113.8/32", "22/tcp"), host)},
		"any source":      {Ports: ssh, Openings: open(Door(t, "0.0.0.0/0", "22/tcp"), Door(t, "::/0", "22/tcp"))},
		"nested prefixes": {Ports: all, Openings: open(Door(t, "10.0.0.0/8", "22/tcp"), Door(t, "10.255.0.0/16", "22/tcp"), Door(t, "10.255.255.255/32", "22/tcp"), Door(t, "fd77::/64", "5986/tcp"), Door(t, "fd77::1/128", "5986/tcp"))},
		"exempt":          {Ports: all, Openings: open(Door(t, "10.9.0.4/32", ""), Door(t, "fd00::/8", ""), host)},
		"observed":        {Ports: ssh, Observe: true, Openings: open(host)},
		"on trial":        {Ports: all, Trial: until, Openings: open(host)},
		"longer trial":    {Ports: all, Trial: until.Add(time.Minute), Openings: open(host)},
		"udp and tcp":     {Ports: all, Openings: open(Door(t, "192.0.2.1/32", "3389/tcp"), Door(t, "192.0.2.1/32", "3389/udp"), Door(t, "192.0.2.128/25", "65535/tcp"))},
	}
}

func (s suite) observe(t *testing.T, b firewall.Backend) firewall.Observed {
	t.Helper()
	have, err := b.Observe(context.Background())
	if err != nil {
		t.Fatalf("Observe: %v", err)
	}
	return have
}

// settle applies want and checks that there is nothing left to do.
func (s suite) settle(t *testing.T, b firewall.Backend, want firewall.Ruleset) {
	t.Helper()
	plan := firewall.Diff(s.observe(t, b), want)
	if err := b.Apply(context.Background(), plan); err != nil {
		t.Fatalf("Apply: %v\n%s", err, plan.Describe(s.now()))
	}
	s.same(t, b, want)
}

func (s suite) same(t *testing.T, b firewall.Backend, want firewall.Ruleset) {
	t.Helper()
	have := s.observe(t, b)
	if !have.Intact {
		t.Fatal("the guard is not intact")
	}
	if left := firewall.Diff(have, want); !left.Empty() {
		t.Fatalf("left to do:\n%s", left.Describe(s.now()))
	}
	for door, end := range want.Openings {
		if have.Openings[door].Label != end.Label {
			t.Errorf("%s is labelled %q, want %q", door, have.Openings[door].Label, end.Label)
		}
	}
}

func (s suite) empty(t *testing.T) {
	b := s.open(t, false)
	have := s.observe(t, b)
	if have.Intact || len(have.Ports) > 0 || len(have.Openings) > 0 {
		t.Errorf("on an empty platform: %+v", have)
	}
	if err := b.Apply(context.Background(), firewall.Plan{}); err != nil {
		t.Errorf("an empty plan: %v", err)
	}
	if s.observe(t, b).Intact {
		t.Error("an empty plan made something")
	}
}

func (s suite) anyToAny(t *testing.T) {
	states := s.rulesets(t)
	for from, a := range states {
		for to, z := range states {
			t.Run(from+" to "+to, func(t *testing.T) {
				b := s.open(t, false)
				s.settle(t, b, a)
				s.settle(t, b, z)
			})
		}
	}
}

func (s suite) takeOver(t *testing.T) {
	for name, r := range s.rulesets(t) {
		t.Run(name, func(t *testing.T) {
			first := s.open(t, false)
			s.settle(t, first, r)
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			second := s.open(t, true)
			if s.endsWithProcess {
				s.ended(t, s.observe(t, second), r)
			} else {
				s.same(t, second, r)
			}
			// As an agent does at its start: it writes the rules again.
			plan := firewall.Diff(s.observe(t, second), r)
			plan.Rules = true
			if err := second.Apply(context.Background(), plan); err != nil {
				t.Fatal(err)
			}
			s.same(t, second, r)
		})
	}
}

// ended checks what a process leaves that r hung on.
func (s suite) ended(t *testing.T, have firewall.Observed, r firewall.Ruleset) {
	t.Helper()
	left := firewall.Ruleset{Ports: r.Ports, Observe: r.Observe || r.Trial != 0}
	if plan := firewall.Diff(have, left); !plan.Empty() {
		t.Errorf("after the process that guarded, this is left to do:\n%s", plan.Describe(s.now()))
	}
}

func (s suite) ends(t *testing.T) {
	b := s.open(t, false)
	door, other := Door(t, "203.0.113.7/32", "22/tcp"), Door(t, "203.0.113.0/24", "22/tcp")
	s.settle(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp"), Openings: map[firewall.Door]firewall.End{
		door: {Until: s.now().Add(2 * time.Second)}, other: {Until: s.now().Add(time.Hour)},
	}})
	s.eventually(t, "the opening is still there", func() bool {
		_, open := s.observe(t, b).Openings[door]
		return !open
	})
	have := s.observe(t, b)
	if _, open := have.Openings[other]; !open || !have.Intact {
		t.Error("something else ended with it")
	}
	// Closing what has just ended by itself is no error.
	if err := b.Apply(context.Background(), firewall.Plan{Ports: have.Ports, Close: []firewall.Closing{{Door: door}}}); err != nil {
		t.Errorf("closing an opening that is over: %v", err)
	}
	if _, open := s.observe(t, b).Openings[door]; open {
		t.Error("closing opened it")
	}
}

// eventually waits up to ten seconds for something that takes one.
func (s suite) eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for range 1000 {
		if done() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal(what)
}

func (s suite) moves(t *testing.T) {
	b := s.open(t, false)
	door := Door(t, "203.0.113.7/32", "22/tcp")
	for _, length := range []time.Duration{time.Hour, 3 * time.Hour, time.Minute, 2 * time.Minute} {
		s.settle(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp"), Openings: map[firewall.Door]firewall.End{
			door: {Until: s.now().Add(length), Label: length.String()},
		}})
	}
	// From an opening that is over by the time the change arrives.
	s.settle(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp"), Openings: map[firewall.Door]firewall.End{
		door: {Until: s.now().Add(2 * time.Second), Label: "short"},
	}})
	was := s.now().Add(2 * time.Second)
	s.eventually(t, "the opening is still there", func() bool { return s.now() > was.Add(50*time.Millisecond) })
	change := firewall.Change{Door: door, End: firewall.End{Until: s.now().Add(time.Hour), Label: "again"}, Was: was}
	if err := b.Apply(context.Background(), firewall.Plan{Ports: Ports(t, "22/tcp"), Open: []firewall.Change{change}}); err != nil {
		t.Fatalf("extending an opening that is over: %v", err)
	}
	s.same(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp"), Openings: map[firewall.Door]firewall.End{door: change.End}})
}

func (s suite) trialEnds(t *testing.T) {
	b := s.open(t, false)
	want := firewall.Ruleset{Ports: Ports(t, "22/tcp"), Trial: s.now().Add(2 * time.Second)}
	s.settle(t, b, want)
	s.eventually(t, "the trial goes on", func() bool { return !firewall.Diff(s.observe(t, b), want).Empty() })
	if s.now() < want.Trial {
		t.Errorf("over %v too early", want.Trial.Sub(s.now()))
	}
	if s.observe(t, b).Drops() {
		t.Error("a guard on trial drops for good")
	}
	s.settle(t, b, firewall.Ruleset{Ports: want.Ports, Observe: true})
	// A trial that is over when it arrives does not begin.
	if err := b.Apply(context.Background(), firewall.Plan{Rules: true, Ports: want.Ports, Trial: s.now()}); err != nil && !errors.Is(err, firewall.ErrConflict) {
		t.Fatal(err)
	}
	if have := s.observe(t, b); !have.Observe && have.Trial > s.now() || have.Drops() {
		t.Errorf("a trial that was over began: %+v", have)
	}
}

func (s suite) alreadyOver(t *testing.T) {
	b := s.open(t, false)
	s.settle(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp")})
	// A kernel that counts milliseconds takes the last for zero: for ever.
	for _, left := range []time.Duration{-time.Hour, 0, 900 * time.Microsecond} {
		door := Door(t, "203.0.113.7/32", "22/tcp")
		plan := firewall.Plan{Ports: Ports(t, "22/tcp"), Open: []firewall.Change{{Door: door, End: firewall.End{Until: s.now().Add(left)}}}}
		if err := b.Apply(context.Background(), plan); err != nil {
			t.Errorf("%v left: %v", left, err)
		}
		time.Sleep(20 * time.Millisecond)
		if end, open := s.observe(t, b).Openings[door]; open {
			t.Errorf("an opening with %v left is open until %v", left, end.Until)
		}
	}
}

func (s suite) neighbours(t *testing.T) {
	b := s.open(t, false)
	want := s.rulesets(t)["nested prefixes"]
	s.settle(t, b, want)
	extra := Door(t, "10.255.0.0/17", "22/tcp") // a prefix length not in use yet
	for range 3 {
		want.Openings[extra] = firewall.End{Until: s.now().Add(time.Hour), Label: "extra"}
		s.settle(t, b, want)
		delete(want.Openings, extra)
		s.settle(t, b, want)
	}
}

func (s suite) many(t *testing.T) {
	b := s.open(t, false)
	want := firewall.Ruleset{Ports: Ports(t, "22/tcp"), Openings: map[firewall.Door]firewall.End{}}
	for i := range 10_000 {
		a := netip.AddrFrom4([4]byte{10, 7, byte(i >> 8), byte(i)})
		want.Openings[firewall.Door{Source: netip.PrefixFrom(a, 32), Protocol: firewall.TCP, Port: 22}] = firewall.End{Until: s.now().Add(time.Hour), Label: "list"}
	}
	s.settle(t, b, want)
	if n := len(s.observe(t, b).Openings); n != 10_000 {
		t.Errorf("%d openings, want 10,000", n)
	}
	s.settle(t, b, firewall.Ruleset{Ports: Ports(t, "22/tcp")})
}

func (s suite) remove(t *testing.T) {
	b := s.open(t, false)
	ctx := context.Background()
	if err := b.Remove(ctx); err != nil {
		t.Errorf("removing nothing: %v", err)
	}
	s.settle(t, b, s.rulesets(t)["exempt"])
	if err := b.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	if have := s.observe(t, b); have.Intact || len(have.Ports)+len(have.Openings) > 0 {
		t.Errorf("after removal: %+v", have)
	}
	s.settle(t, b, s.rulesets(t)["one host"])
}
