package policy

import (
	"testing"
	"time"
)

// The four instants at which a half-open interval is easily got wrong.
func TestPhase(t *testing.T) {
	g := grant("g1")
	for now, want := range map[time.Time]Phase{
		g.Start.Add(-sec): PhasePending, g.Start.Add(-1): PhasePending, g.Start: PhaseActive, g.Start.Add(sec): PhaseActive,
		g.End.Add(-sec): PhaseActive, g.End.Add(-1): PhaseActive, g.End: PhaseExpired, g.End.Add(sec): PhaseExpired,
	} {
		if got := g.Phase(now); got != want {
			t.Errorf("at %s: got %s, want %s", FormatTime(now), got, want)
		}
		f := here
		f.Now = now
		d := Evaluate(State{}, trustDoc(), policyDoc(), grantsDoc(), f)
		if got := d.Verdicts[0]; got.Phase != want || got.Refusal != nil || got.Port.Number != 22 {
			t.Errorf("at %s: verdict %+v", FormatTime(now), got)
		}
	}
}

func TestJudge(t *testing.T) {
	type edit = func(*Grant)
	from := func(list ...string) edit { return func(g *Grant) { g.Sources = prefixes(list...) } }
	on := func(n uint16, list ...string) edit { return func(g *Grant) { g.Number = n; from(list...)(g) } }
	lasting := func(d time.Duration) edit { return func(g *Grant) { g.End = g.Start.Add(d) } }
	bound := func(v4, v6 int) func(*Policy) {
		return func(p *Policy) { p.NarrowestPrefix4, p.NarrowestPrefix6 = v4, v6 }
	}
	allow := func(list ...string) func(*Policy) {
		return func(p *Policy) {
			p.NarrowestPrefix4, p.NarrowestPrefix6, p.Ports[0].AllowedSources = 0, 0, prefixes(list...)
		}
	}
	same := func(*Policy) {}
	for _, c := range []struct {
		name   string
		policy func(*Policy)
		grant  edit
		want   Code
	}{
		{"as it is", same, lasting(time.Hour), ""},
		{"the longest", same, lasting(3 * time.Hour), ""},
		{"a second longer", same, lasting(3*time.Hour + sec), TooLong},
		{"the longest of another port", same, func(g *Grant) { g.Number = 5985; lasting(3 * time.Hour)(g) }, TooLong},
		{"longer than a time.Duration holds", same, func(g *Grant) {
			g.Start, g.End = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		}, TooLong},

		{"below the range", same, on(5984, "203.0.113.7/32"), PortNotInPolicy},
		{"first of the range", same, on(5985, "203.0.113.7/32"), ""},
		{"last of the range", same, on(5986, "203.0.113.7/32"), ""},
		{"above the range", same, on(5987, "203.0.113.7/32"), PortNotInPolicy},
		{"the last port", same, on(65535, "203.0.113.7/32"), PortNotInPolicy},
		{"all ports", func(p *Policy) { p.Ports = p.Ports[1:]; p.Ports[0].Number, p.Ports[0].EndNumber = 1, 65535 }, on(65535, "203.0.113.7/32"), ""},
		{"no ports", func(p *Policy) { p.Ports = nil }, from("203.0.113.7/32"), PortNotInPolicy},

		{"IPv4 at the bound", bound(28, 0), from("203.0.113.16/28"), ""},
		{"IPv4 a bit wider", bound(28, 0), from("203.0.113.0/27"), TooWide},
		{"IPv4 single hosts only", bound(32, 0), from("203.0.113.7/32"), ""},
		{"IPv4 two hosts", bound(32, 0), from("203.0.113.6/31"), TooWide},
		{"IPv4 bound is not IPv6's", bound(32, 0), from("2001:db8::/32"), ""},
		{"IPv6 at the bound", bound(0, 64), from("2001:db8::/64"), ""},
		{"IPv6 a bit wider", bound(0, 64), from("2001:db8::/63"), TooWide},
		{"IPv6 single hosts only", bound(0, 128), from("2001:db8::1/128"), ""},
		{"IPv6 two hosts", bound(0, 128), from("2001:db8::/127"), TooWide},
		{"IPv6 bound is not IPv4's", bound(0, 128), from("203.0.113.0/24"), ""},
		{"too wide and elsewhere", bound(28, 0), from("198.51.100.0/24"), TooWide},

		{"all of the allowed net", allow("203.0.113.0/24"), from("203.0.113.0/24"), ""},
		{"wider than the allowed net", allow("203.0.113.0/24"), from("203.0.112.0/23"), SourceRefused},
		{"beside the allowed net", allow("203.0.113.0/24"), from("203.0.114.0/32"), SourceRefused},
		{"in the second allowed net", allow("203.0.113.0/24", "198.51.100.0/24"), from("198.51.100.1/32"), ""},
		{"one of two sources", allow("203.0.113.0/24"), from("203.0.113.7/32", "198.51.100.1/32"), SourceRefused},
		{"any of any", allow("*"), from("*"), ""},
		{"any of any IPv4", allow("0.0.0.0/0"), from("*"), SourceRefused},
		{"any of any IPv6", allow("::/0"), from("*"), SourceRefused},
		{"any IPv4 of any IPv4", allow("0.0.0.0/0"), from("0.0.0.0/0"), ""},
		{"any of both spelled out", allow("::/0", "0.0.0.0/0"), from("*"), ""},
		{"any of two halves", allow("0.0.0.0/1", "128.0.0.0/1"), from("0.0.0.0/0"), SourceRefused},
		{"IPv6 of any IPv4", allow("0.0.0.0/0"), from("2001:db8::1/128"), SourceRefused},
	} {
		t.Run(c.name, func(t *testing.T) {
			// A neighbour inside the policy must not be touched.
			g := grantsDoc(func(g *Grants) { g.Grants = []Grant{grant("it", c.grant), grant("other", on(1, "*"))} })
			d := Evaluate(State{}, trustDoc(), policyDoc(c.policy), g, here)
			if len(d.Verdicts) != 2 || d.Verdicts[0].Grant.ID != "it" || d.Verdicts[1].Grant.ID != "other" {
				t.Fatalf("verdicts %+v", d.Verdicts)
			}
			wantCode(t, d.Verdicts[0].Refusal, c.want)
		})
	}
}

// A refusal names the bound and the value that broke it.
func TestRefusalsSayWhy(t *testing.T) {
	for want, edit := range map[string]func(*Grant){
		"port-not-in-policy: port 23 is not in the policy":              func(g *Grant) { g.Number = 23 },
		"too-long: PT3H1S asked, port 22/tcp allows PT3H":               func(g *Grant) { g.End = noon.Add(3*time.Hour + sec) },
		"too-wide: source 203.0.112.0/23 asked, narrowestPrefix4 is 24": func(g *Grant) { g.Sources = prefixes("203.0.112.0/23") },
		"too-wide: source 2001:db8::/47 asked, narrowestPrefix6 is 48":  func(g *Grant) { g.Sources = prefixes("2001:db8::/47") },
		"source-not-allowed: source 10.0.0.1/32 is not within [203.0.113.0/24 2001:db8::/32] of port 22/tcp": func(g *Grant) {
			g.Sources = prefixes("10.0.0.1/32")
		},
	} {
		_, err := policyDoc().judge(grant("g1", edit))
		if err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
}

func TestBlocked(t *testing.T) {
	trust, policy := trustDoc(), policyDoc()
	for _, c := range []struct {
		name   string
		trust  Trust
		policy Policy
		floor  time.Time
		now    time.Time
		want   Code
	}{
		{"in force", trust, policy, noon, here.Now, ""},
		{"no trust document", Trust{}, policy, noon, here.Now, Unsigned},
		{"no policy", trust, Policy{}, noon, here.Now, StalePolicy},
		{"nothing at all", Trust{}, Policy{}, time.Time{}, here.Now, Unsigned},
		{"policy's last second", trust, policy, noon, policy.Expires.Add(-sec), ""},
		{"policy over", trust, policy, noon, policy.Expires, Expired},
		{"trust document over", trust, policyDoc(func(p *Policy) { p.Expires = trust.Expires.Add(day) }), noon, trust.Expires, Expired},
		{"trust document's last second", trust, policyDoc(func(p *Policy) { p.Expires = trust.Expires.Add(day) }), noon, trust.Expires.Add(-sec), ""},
		{"clock at the floor less skew", trust, policy, noon, noon.Add(-Skew), ""},
		{"clock behind the floor", trust, policy, noon, noon.Add(-Skew - sec), ClockBehind},
		{"clock before the program was built", trust, policy, time.Time{}, here.Built.Add(-Skew - sec), ClockBehind},
		// Expired closes everything, a clock behind only opens nothing new:
		// the stricter one is said.
		{"over and behind", trust, policy, policy.Expires.AddDate(1, 0, 0), policy.Expires, Expired},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := here
			f.Now = c.now
			d := Evaluate(State{Floor: c.floor}, c.trust, c.policy, Grants{}, f)
			wantCode(t, d.Blocked, c.want)
			if d.Verdicts != nil || d.Limits != nil {
				t.Errorf("verdicts %v, limits %v without grants", d.Verdicts, d.Limits)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	trust := trustDoc()
	policy := policyDoc(func(p *Policy) { p.MaxGrantsAge, p.MaxUnattended = 90*time.Minute, 10*time.Minute })
	grants := grantsDoc(func(g *Grants) { g.Issued, g.Grants = noon.Add(-time.Hour), nil })
	d := Evaluate(State{}, trust, policy, grants, here)

	got := map[string]time.Time{}
	for _, l := range d.Limits {
		got[l.Name] = l.At
	}
	want := map[string]time.Time{
		"trust": trust.Expires, "policy": policy.Expires, "grants": grants.Expires,
		"maxGrantsAge": noon.Add(30 * time.Minute), // counted from issued, not from now
	}
	if len(got) != len(want) || len(d.Limits) != len(want) {
		t.Fatalf("limits %v", d.Limits)
	}
	for name, at := range want {
		if !got[name].Equal(at) {
			t.Errorf("%s: got %s, want %s", name, got[name], at)
		}
	}
	// Exempt sources outlive any list of grants.
	if len(d.ExemptLimits) != 2 || d.ExemptLimits[0] != (Limit{"trust", trust.Expires}) || d.ExemptLimits[1] != (Limit{"policy", policy.Expires}) {
		t.Errorf("exempt limits %v", d.ExemptLimits)
	}
	if d.Lease != 10*time.Minute || len(d.Exempt) != 1 || d.Exempt[0].String() != "10.9.0.4/32" {
		t.Errorf("lease %s, exempt %v", d.Lease, d.Exempt)
	}
	// Appending to one list must not write into the other.
	_ = append(d.ExemptLimits, Limit{Name: "mine"})
	if d.Limits[2].Name != "grants" {
		t.Error("the limits share memory")
	}
}

func TestZeroDecision(t *testing.T) {
	d := Evaluate(State{}, Trust{}, Policy{}, grantsDoc(), here)
	if d.Blocked == nil || d.Verdicts[0].Refusal == nil || d.Exempt != nil {
		t.Errorf("without a trust document or policy: %+v", d)
	}
}
