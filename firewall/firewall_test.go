package firewall_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
)

const now = firewall.BootTime(time.Hour)

func end(d time.Duration, label string) firewall.End {
	return firewall.End{Until: now.Add(d), Label: label}
}

func TestDiff(t *testing.T) {
	host, net := fwtest.Door(t, "203.0.113.7/32", "22/tcp"), fwtest.Door(t, "203.0.113.0/24", "22/tcp")
	ports := fwtest.Ports(t, "22/tcp")
	is := func(m map[firewall.Door]firewall.End) firewall.Ruleset {
		return firewall.Ruleset{Ports: ports, Openings: m}
	}
	type openings = map[firewall.Door]firewall.End
	for name, c := range map[string]struct {
		have firewall.Observed
		want firewall.Ruleset
		plan string
	}{
		"nothing to do": {firewall.Observed{Ruleset: is(openings{host: end(time.Minute, "a")}), Intact: true}, is(openings{host: end(time.Minute, "a")}), "nothing to change\n"},
		"jitter is no change": {firewall.Observed{Ruleset: is(openings{host: end(time.Minute+firewall.Slack, "a")}), Intact: true},
			is(openings{host: end(time.Minute, "a")}), "nothing to change\n"},
		"open and close": {firewall.Observed{Ruleset: is(openings{host: end(time.Minute, "a")}), Intact: true}, is(openings{net: end(time.Hour, "b")}),
			"close 203.0.113.7/32 to 22/tcp\nopen 203.0.113.0/24 to 22/tcp for 1h0m0s (b)\n"},
		"extend and shorten": {firewall.Observed{Ruleset: is(openings{host: end(time.Minute, "a"), net: end(time.Hour, "b")}), Intact: true},
			is(openings{host: end(time.Hour, "a"), net: end(time.Minute, "b")}),
			"shorten 203.0.113.0/24 to 22/tcp for 1m0s (b)\nextend 203.0.113.7/32 to 22/tcp for 1h0m0s (a)\n"},
		"somebody made one permanent": {firewall.Observed{Ruleset: is(openings{host: {Until: firewall.Never}}), Intact: true},
			is(openings{host: end(time.Minute, "a")}), "shorten 203.0.113.7/32 to 22/tcp for 1m0s (a)\n"},
		"first time":      {firewall.Observed{}, is(nil), "guard 22/tcp\n"},
		"rules are wrong": {firewall.Observed{Ruleset: is(nil)}, is(nil), "guard 22/tcp\n"},
		"other ports": {firewall.Observed{Ruleset: is(nil), Intact: true}, firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "5985-5986/tcp cut")},
			"guard 5985-5986/tcp cut\nguard 22/tcp\n"},
		"observe":      {firewall.Observed{Ruleset: is(nil), Intact: true}, firewall.Ruleset{Ports: ports, Observe: true}, "observe 22/tcp\n"},
		"guard no one": {firewall.Observed{Ruleset: is(nil), Intact: true}, firewall.Ruleset{}, "guard no port\n"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := firewall.Diff(c.have, c.want).Describe(now); got != c.plan {
				t.Errorf("got:\n%swant:\n%s", got, c.plan)
			}
		})
	}
}

func TestClosesOnly(t *testing.T) {
	a, b, c := fwtest.Door(t, "10.0.0.1/32", "22/tcp"), fwtest.Door(t, "10.0.0.2/32", "22/tcp"), fwtest.Door(t, "10.0.0.3/32", "22/tcp")
	have := firewall.Observed{Intact: true, Ruleset: firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "3389/tcp cut"),
		Openings: map[firewall.Door]firewall.End{a: end(time.Hour, ""), b: end(time.Hour, ""), c: end(time.Minute, "")}}}
	want := firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "80/tcp"), Observe: true,
		Openings: map[firewall.Door]firewall.End{b: end(time.Minute, ""), c: end(time.Hour, ""), fwtest.Door(t, "10.0.0.4/32", "22/tcp"): end(time.Hour, "")}}
	const text = `guard 3389/tcp cut
guard 22/tcp
guard 80/tcp
close 10.0.0.1/32 to 22/tcp
shorten 10.0.0.2/32 to 22/tcp for 1m0s ()
`
	if got := firewall.Diff(have, want).ClosesOnly(have).Describe(now); got != text {
		t.Errorf("got:\n%swant:\n%s", got, text)
	}
}

// Whatever the states: the whole plan leads to the wanted one, and its
// closing part never admits a packet that was not admitted before.
func TestPlansAgainstOracle(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		have := firewall.Observed{Ruleset: randomRuleset(r), Intact: r.IntN(4) > 0}
		want := randomRuleset(r)
		plan := firewall.Diff(have, want)
		if left := firewall.Diff(firewall.Observed{Ruleset: plan.Apply(have.Ruleset), Intact: true}, want); !left.Empty() {
			t.Fatalf("left to do:\n%s", left.Describe(now))
		}
		closed := plan.ClosesOnly(have).Apply(have.Ruleset)
		for range 20 {
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(8))})
			packet := firewall.Door{Source: netip.PrefixFrom(a, 32), Protocol: firewall.TCP, Port: uint16(20 + r.IntN(6))}
			if fwtest.Admits(closed, packet) && !fwtest.Admits(have.Ruleset, packet) {
				t.Fatalf("%v passes after only closing\nfrom %+v\nto %+v", packet, have, want)
			}
		}
		for door, e := range closed.Openings {
			if e.Until > have.Openings[door].Until+firewall.BootTime(firewall.Slack) {
				t.Fatalf("%v ends later after only closing", door)
			}
		}
	}
}

func randomRuleset(r *rand.Rand) firewall.Ruleset {
	out := firewall.Ruleset{Openings: map[firewall.Door]firewall.End{}}
	for range r.IntN(3) {
		first := uint16(20 + r.IntN(5))
		out.Ports = append(out.Ports, firewall.Port{Protocol: firewall.TCP, First: first, Last: first + uint16(r.IntN(2)), Cut: r.IntN(2) == 0})
	}
	out.Ports = firewall.Union(out.Ports, nil)
	for range r.IntN(5) {
		a := netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(8))})
		d := firewall.Door{Source: netip.PrefixFrom(a, 32-r.IntN(3)).Masked(), Protocol: firewall.TCP, Port: uint16(20 + r.IntN(6))}
		if r.IntN(5) == 0 {
			d.Protocol, d.Port = 0, 0
		}
		out.Openings[d] = end(time.Duration(1+r.IntN(100))*time.Second, fmt.Sprint(r.IntN(3)))
	}
	return out
}

func TestParsePort(t *testing.T) {
	for _, s := range []string{"22/tcp", "5985-5986/tcp", "3389/udp cut", "1-65535/udp"} {
		if p, err := firewall.ParsePort(s); err != nil || p.String() != s {
			t.Errorf("%q: %v, %v", s, p, err)
		}
	}
	for _, s := range []string{"", "22", "22/sctp", "0/tcp", "65536/tcp", "2-1/tcp", "-1/tcp", "1-/tcp", "22/tcp cut cut", "22/TCP", " 22/tcp", "2 2/tcp", "+22/tcp"} {
		if p, err := firewall.ParsePort(s); err == nil {
			t.Errorf("%q: accepted as %v", s, p)
		}
	}
}

func TestUnionCutsFirst(t *testing.T) {
	a, b := fwtest.Ports(t, "22/tcp", "80/tcp"), fwtest.Ports(t, "22/tcp cut", "22/tcp")
	if got, want := firewall.Union(a, b), fwtest.Ports(t, "22/tcp cut", "22/tcp", "80/tcp"); !slices.Equal(got, want) || !got[0].Cut {
		t.Errorf("got %v, want %v", got, want)
	}
}

func ExampleDiff() {
	have := firewall.Observed{}
	want := firewall.Ruleset{
		Ports: []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}},
		Openings: map[firewall.Door]firewall.End{
			{Source: netip.MustParsePrefix("203.0.113.7/32"), Protocol: firewall.TCP, Port: 22}: {Until: now.Add(time.Hour), Label: "01JD9V3K7Q"},
		},
	}
	fmt.Print(firewall.Diff(have, want).Describe(now))
	// Output:
	// guard 22/tcp
	// open 203.0.113.7/32 to 22/tcp for 1h0m0s (01JD9V3K7Q)
}
