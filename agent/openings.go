package agent

import (
	"net/netip"
	"slices"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// horizon remembers where on the boot clock each wall-clock end came to lie
// when it was first seen. Later looks may find it nearer, never farther: a
// wall clock set back extends nothing, and one set forward only closes.
type horizon map[string]anchor

type anchor struct {
	End time.Time         `json:"end"`
	At  firewall.BootTime `json:"at"` // nanoseconds since boot
}

// farthest keeps the sum of a boot time and a span from overflowing.
const farthest = 20 * 365 * 24 * time.Hour

// settle returns the boot-clock instant of end and notes it in next, the
// horizon of the pass under way. A document that moves the end of the same
// name starts anew.
func (h horizon) settle(next horizon, name string, end, wall time.Time, boot firewall.BootTime) firewall.BootTime {
	at := boot.Add(min(end.Sub(wall), farthest))
	if old, ok := h[name]; ok && old.End.Equal(end) && at > old.At.Add(-firewall.Slack) {
		at = old.At // within the slack it is the same instant, read with jitter
	}
	next[name] = anchor{end, at}
	return at
}

// granted is one grant in force.
type granted struct {
	policy.Grant
	port  policy.Port
	until firewall.BootTime
}

// same reports whether x is the grant in force, word for word. One that names
// another source or port under the same id is a new one.
func (g granted) same(x policy.Grant) bool {
	return g.Number == x.Number && g.Start.Equal(x.Start) && g.End.Equal(x.End) && slices.Equal(g.Sources, x.Sources)
}

// wanted is what should be open, and the grants that say so.
type wanted struct {
	horizon horizon
	// live are the grants in force, by id.
	live     map[string]granted
	openings map[firewall.Door]firewall.End
	// next is when something changes by itself.
	next     firewall.BootTime
	decision policy.Decision
}

// pass is what one look at the clocks and the past gives to want.
type pass struct {
	wall    time.Time
	boot    firewall.BootTime
	horizon horizon
	running map[string]granted // in force after the last pass
	void    map[string]bool    // ended by a lockdown
	have    map[firewall.Door]firewall.End
	peers   []firewall.Door   // admitted by arming,
	until   firewall.BootTime // until then
}

// want turns a decision into openings on the boot clock. It is pure.
func want(d policy.Decision, p pass) wanted {
	w := wanted{decision: d, horizon: horizon{}, live: map[string]granted{}, openings: map[firewall.Door]firewall.End{}, next: firewall.Never}
	clockBehind := policy.CodeOf(d.Blocked) == policy.ClockBehind
	over := d.Blocked != nil && !clockBehind
	settle := func(name string, end time.Time) firewall.BootTime {
		return p.horizon.settle(w.horizon, name, end, p.wall, p.boot)
	}
	limit := firewall.Never
	for _, l := range d.Limits {
		limit = min(limit, settle("document "+l.Name, l.At))
	}
	for _, v := range d.Verdicts {
		if v.Refusal != nil || p.void[v.Grant.ID] {
			continue
		}
		until := min(limit, settle("grant "+v.Grant.ID, v.Grant.End))
		was, running := p.running[v.Grant.ID]
		running = running && was.same(v.Grant)
		switch {
		case over, until <= p.boot:
			continue
		case running: // also where the wall clock was set back to before its start
		case clockBehind:
			continue
		case v.Phase == policy.PhasePending:
			w.wake(p.boot.Add(v.Grant.Start.Sub(p.wall)))
			continue
		}
		w.live[v.Grant.ID] = granted{v.Grant, v.Port, until}
		for _, source := range v.Grant.Sources {
			for _, protocol := range protocols(v.Port.Protocol) {
				w.open(firewall.Door{Source: source, Protocol: protocol, Port: v.Grant.Number}, until, v.Grant.ID, d.Lease, p)
			}
		}
	}
	if !over {
		w.exempt(d, p, settle, clockBehind)
	}
	for _, door := range p.peers {
		w.open(door, p.until, "arming", 0, p)
	}
	return w
}

// exempt admits the exempt sources to every guarded port until the documents
// that say so end.
func (w *wanted) exempt(d policy.Decision, p pass, settle func(string, time.Time) firewall.BootTime, clockBehind bool) {
	limit := firewall.Never
	for _, l := range d.ExemptLimits {
		limit = min(limit, settle("document "+l.Name, l.At))
	}
	for _, source := range d.Exempt {
		door := firewall.Door{Source: source}
		if _, open := p.have[door]; clockBehind && !open {
			continue
		}
		if limit > p.boot {
			w.open(door, limit, "exempt", d.Lease, p)
		}
	}
}

// open adds an opening; where two grants ask for one door, the later end
// counts. A lease bounds how long it stands without the agent, and is renewed
// when half of it has passed.
func (w *wanted) open(door firewall.Door, until firewall.BootTime, label string, lease time.Duration, p pass) {
	w.wake(until)
	if lease > 0 && until > p.boot.Add(lease) {
		full := p.boot.Add(lease)
		if had, ok := p.have[door]; ok && had.Until > p.boot.Add(lease/2) && had.Until <= full {
			full = had.Until
		}
		until = full
		w.wake(full.Add(-lease / 2))
	}
	if had, ok := w.openings[door]; !ok || until > had.Until {
		w.openings[door] = firewall.End{Until: until, Label: label}
	}
}

func (w *wanted) wake(at firewall.BootTime) { w.next = min(w.next, at) }

func protocols(p policy.Protocol) []firewall.Protocol {
	switch p {
	case policy.TCP:
		return []firewall.Protocol{firewall.TCP}
	case policy.UDP:
		return []firewall.Protocol{firewall.UDP}
	}
	return []firewall.Protocol{firewall.TCP, firewall.UDP}
}

// guardedPorts translates a policy's ports.
func guardedPorts(p policy.Policy) []firewall.Port {
	var out []firewall.Port
	for _, q := range p.Ports {
		for _, protocol := range protocols(q.Protocol) {
			out = append(out, firewall.Port{Protocol: protocol, First: q.Number, Last: q.EndNumber, Cut: q.SessionsAtEnd == policy.Cut})
		}
	}
	return firewall.Union(out, nil)
}

// sourcesText is a grant's sources as a record shows them.
func sourcesText(list []netip.Prefix) string {
	const most = 8
	text := ""
	for i, p := range list {
		if i == most {
			return text + ",…"
		}
		if i > 0 {
			text += ","
		}
		text += p.String()
	}
	return text
}
