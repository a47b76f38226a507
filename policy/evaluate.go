package policy

import (
	"fmt"
	"net/netip"
	"time"
)

// Phase is where a grant stands in time. Grants hold in [Start, End): at the
// instant End the port is closed.
type Phase string

// The phases of a grant.
const (
	PhasePending Phase = "pending"
	PhaseActive  Phase = "active"
	PhaseExpired Phase = "expired"
)

// Phase returns where the grant stands at now.
func (g Grant) Phase(now time.Time) Phase {
	switch {
	case now.Before(g.Start):
		return PhasePending
	case now.Before(g.End):
		return PhaseActive
	}
	return PhaseExpired
}

// Verdict is what became of one grant, and why.
type Verdict struct {
	Grant   Grant
	Port    Port  // the policy's entry for its number; zero where there is none
	Phase   Phase // by the wall clock
	Refusal error // a *Refusal where the grant is outside the policy, else nil
}

// Limit is an instant at which every opening ends, whatever its grant says.
type Limit struct {
	Name string // what ends: "policy", "grants", …
	At   time.Time
}

// Decision is what the documents in force allow at one instant. The zero
// Decision allows nothing.
type Decision struct {
	Verdicts []Verdict      // one a grant, in the document's order
	Limits   []Limit        // bounds of every opening made by a grant
	Exempt   []netip.Prefix // sources admitted to every guarded port
	// ExemptLimits bound the exempt sources: they end with the policy and the
	// trust document, not with a list of grants.
	ExemptLimits []Limit
	// Blocked says why nothing new may open now: a document is over, or the
	// clock is behind. Openings made before go on to their own ends if only
	// the clock is at fault (ClockBehind); else everything closes.
	Blocked error
	// Lease, if not zero, is how long an opening may stand without the agent.
	Lease time.Duration
}

// Evaluate judges the grants g under the policy p and the trust document t,
// all admitted in s. Zero documents are documents this host does not have.
func Evaluate(s State, t Trust, p Policy, g Grants, f Facts) Decision {
	d := Decision{Blocked: blocked(s, t, p, f), Lease: p.MaxUnattended}
	if p.Version != 0 {
		d.Exempt = p.ExemptSources
		d.ExemptLimits = []Limit{{"trust", t.Expires}, {"policy", p.Expires}}
	}
	if g.Version == 0 {
		return d
	}
	// An attacker who holds back newer lists cannot keep an old one alive
	// beyond maxGrantsAge.
	d.Limits = append(d.ExemptLimits[:len(d.ExemptLimits):len(d.ExemptLimits)],
		Limit{"grants", g.Expires}, Limit{"maxGrantsAge", g.Issued.Add(p.MaxGrantsAge)})
	d.Verdicts = make([]Verdict, len(g.Grants))
	for i, x := range g.Grants {
		port, err := p.judge(x)
		d.Verdicts[i] = Verdict{Grant: x, Port: port, Phase: x.Phase(f.Now), Refusal: err}
	}
	return d
}

func blocked(s State, t Trust, p Policy, f Facts) error {
	switch {
	case t.Version == 0:
		return Refuse(Unsigned, "no trust document is in force: run jitgate trust install")
	case !f.Now.Before(t.Expires):
		return Refuse(Expired, "the trust document ended at %s: deliver the next one", FormatTime(t.Expires))
	case p.Version == 0:
		return Refuse(StalePolicy, "no policy is in force: deliver one")
	case !f.Now.Before(p.Expires):
		return Refuse(Expired, "the policy ended at %s: deliver a new one", FormatTime(p.Expires))
	}
	return s.clockBehind(f)
}

// judge holds a grant against the policy's bounds and returns the entry for
// its number.
func (p Policy) judge(g Grant) (Port, error) {
	port, ok := p.port(g.Number)
	if !ok {
		return Port{}, Refuse(PortNotInPolicy, "port %d is not in the policy", g.Number)
	}
	if asked := g.End.Sub(g.Start); asked > port.MaxRequestAccessDuration {
		return port, Refuse(TooLong, "%s asked, port %s allows %s", FormatDuration(asked), port, FormatDuration(port.MaxRequestAccessDuration))
	}
	for _, source := range g.Sources {
		narrowest, name := p.NarrowestPrefix6, "narrowestPrefix6"
		if source.Addr().Is4() {
			narrowest, name = p.NarrowestPrefix4, "narrowestPrefix4"
		}
		if source.Bits() < narrowest {
			return port, Refuse(TooWide, "source %s asked, %s is %d", source, name, narrowest)
		}
		if !covers(port.AllowedSources, source) {
			return port, Refuse(SourceRefused, "source %s is not within %s of port %s", source, formatSome(port.AllowedSources), port)
		}
	}
	return port, nil
}

// formatSome names the first few prefixes of a list.
func formatSome(list []netip.Prefix) string {
	const most = 4
	if len(list) <= most {
		return fmt.Sprint(list)
	}
	return fmt.Sprintf("%v and %d more", list[:most], len(list)-most)
}
