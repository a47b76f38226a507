// Package firewall describes a guard and the changes that lead to it. It is
// pure: a Backend (firewall/nft, firewall/winfw) translates a Plan to one
// platform and does the I/O.
//
// The caller says the whole desired state as a Ruleset; Diff compares it with
// what a Backend observed and returns the smallest Plan. Applying the same
// Ruleset twice changes nothing the second time.
package firewall

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Protocol is an IP protocol number (IANA). Zero stands for any.
type Protocol uint8

// The guarded protocols.
const (
	TCP Protocol = 6
	UDP Protocol = 17
)

func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	}
	return fmt.Sprintf("protocol-%d", uint8(p))
}

// Port is a guarded range of ports: a packet to one of them is dropped unless
// an Opening admits it.
type Port struct {
	Protocol    Protocol
	First, Last uint16 // inclusive
	// Cut ends established sessions together with the opening that let them
	// in. Without it they go on.
	Cut bool
}

func (p Port) String() string {
	s := fmt.Sprintf("%d/%s", p.First, p.Protocol)
	if p.First != p.Last {
		s = fmt.Sprintf("%d-%d/%s", p.First, p.Last, p.Protocol)
	}
	if p.Cut {
		s += " cut"
	}
	return s
}

// BootTime is an instant on the clock that counts since boot, suspend
// included (CLOCK_BOOTTIME), which nobody can set.
type BootTime time.Duration

// Never is the end of an element that has none. No Ruleset asks for it; an
// observed one is a mistake somebody made by hand, and is closed.
const Never BootTime = 1<<63 - 1

// Sub returns the time from u to t.
func (t BootTime) Sub(u BootTime) time.Duration { return time.Duration(t - u) }

// Add returns the instant d after t.
func (t BootTime) Add(d time.Duration) BootTime { return t + BootTime(d) }

// Door identifies an opening: packets from Source to Port. The zero Protocol
// and Port stand for every guarded port.
type Door struct {
	Source   netip.Prefix // masked; never an IPv4-mapped IPv6 prefix
	Protocol Protocol
	Port     uint16
}

func (d Door) String() string {
	if d.Protocol == 0 {
		return fmt.Sprintf("%s to every guarded port", d.Source)
	}
	return fmt.Sprintf("%s to %d/%s", d.Source, d.Port, d.Protocol)
}

func (d Door) compare(o Door) int {
	return cmp.Or(
		cmp.Compare(d.Protocol, o.Protocol),
		cmp.Compare(d.Port, o.Port),
		d.Source.Addr().Compare(o.Source.Addr()),
		cmp.Compare(d.Source.Bits(), o.Source.Bits()),
	)
}

// End is when an opening ends and what it is called. The platform closes it
// on time by itself where it can (nftables), with the agent dead or alive;
// elsewhere (Windows) the Backend does, and an opening ends with its process.
type End struct {
	Until BootTime
	Label string // for people who list the platform's rules: the grant's id
}

// Ruleset is a whole guard. The zero Ruleset guards nothing.
type Ruleset struct {
	Ports []Port // in the order Union gives them
	// Observe counts what a guard would drop, and drops nothing.
	Observe bool
	// Trial, if not zero, is when a guard that drops begins to observe: the
	// platform goes back by itself where it can, with the agent dead.
	Trial    BootTime
	Openings map[Door]End
}

// Drops reports whether the guard drops for good.
func (r Ruleset) Drops() bool { return r.DropsAt(Never) }

// DropsAt reports whether the guard drops at t: whether it does not observe,
// and is on no trial that is over by then.
func (r Ruleset) DropsAt(t BootTime) bool {
	return len(r.Ports) > 0 && !r.Observe && (r.Trial == 0 || t < r.Trial)
}

// Observed is what a Backend found on the platform.
type Observed struct {
	Ruleset
	// Intact says that every rule is as Ports and Observe ask, and nothing
	// else stands in the guard. If not, the rules are written again.
	Intact bool
	// Passed counts what each opening has let in since it was last set: of a
	// session that is kept, the packets that began it; else every one. It is
	// evidence that somebody came, not how much he did: a platform may count a
	// packet at each place where it looks at it.
	Passed map[Door]uint64
}

// Plan is the way from what was observed to what is wanted. It is a value:
// print it, test it, hand it to a Backend.
type Plan struct {
	// Rules says that the rules are to be written as Ports, Observe and Trial
	// say. Openings that are not in Open or Close stay as they are.
	Rules   bool
	Ports   []Port
	Observe bool
	Trial   BootTime
	Close   []Closing
	Open    []Change
}

// Closing ends one opening. Where it would have gone on, somebody took it
// back, and the sessions that came in through it are cut too, kept or not:
// only those of an opening that ran out may be kept.
type Closing struct {
	Door
	Was BootTime // its end so far
}

// Early reports whether the opening is closed before its time.
func (c Closing) Early(now BootTime) bool { return c.Was > now.Add(Slack) }

// Change sets the end of one opening.
type Change struct {
	Door
	End
	Was BootTime // its end so far; 0: it was closed
}

// Slack is how far an observed end may lie from the wanted one before the
// opening is set again. Kernels count in ticks of up to 10 ms and start when
// the message arrives.
const Slack = 250 * time.Millisecond

// Diff returns the plan that leads from have to want.
func Diff(have Observed, want Ruleset) Plan {
	p := Plan{Ports: want.Ports, Observe: want.Observe, Trial: want.Trial}
	p.Rules = !have.Intact || have.Observe != want.Observe || off(have.Trial, want.Trial) || !slices.Equal(have.Ports, want.Ports)
	for door, end := range want.Openings {
		had, ok := have.Openings[door]
		if !ok {
			p.Open = append(p.Open, Change{Door: door, End: end})
		} else if off(had.Until, end.Until) {
			p.Open = append(p.Open, Change{Door: door, End: end, Was: had.Until})
		}
	}
	for door, had := range have.Openings {
		if _, ok := want.Openings[door]; !ok {
			p.Close = append(p.Close, Closing{Door: door, Was: had.Until})
		}
	}
	slices.SortFunc(p.Open, func(a, b Change) int { return a.compare(b.Door) })
	slices.SortFunc(p.Close, func(a, b Closing) int { return a.compare(b.Door) })
	return p
}

// off reports whether an end is not where it should be.
func off(have, want BootTime) bool { return want.Sub(have).Abs() > Slack }

// Empty reports whether there is nothing to do.
func (p Plan) Empty() bool { return !p.Rules && len(p.Close) == 0 && len(p.Open) == 0 }

// ClosesOnly returns the part of the plan that needs no record: what closes
// or ends sooner. have is what the plan starts from. A port guarded so far
// stays guarded, and a guard that drops for good goes on dropping.
func (p Plan) ClosesOnly(have Observed) Plan {
	q := p
	q.Open = nil
	for _, c := range p.Open {
		if c.Was != 0 && c.Until < c.Was {
			q.Open = append(q.Open, c)
		}
	}
	if p.Rules {
		if have.Drops() {
			q.Observe, q.Trial = false, 0
		}
		q.Ports = Union(p.Ports, have.Ports)
	}
	return q
}

// Union returns ports that guard what a or b guards. Where both do, the entry
// that cuts sessions stands first, and the first entry for a packet decides.
func Union(a, b []Port) []Port {
	all := slices.Concat(a, b)
	slices.SortFunc(all, comparePort)
	return slices.Compact(all)
}

func comparePort(p, q Port) int {
	rank := func(p Port) int {
		if p.Cut {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(p), rank(q)), cmp.Compare(p.Protocol, q.Protocol),
		cmp.Compare(p.First, q.First), cmp.Compare(p.Last, q.Last))
}

// Apply returns the ruleset that holds after p. It is what a Backend does,
// less the platform: fakes and callers that remember use it.
func (p Plan) Apply(have Ruleset) Ruleset {
	out := Ruleset{Ports: have.Ports, Observe: have.Observe, Trial: have.Trial, Openings: make(map[Door]End, len(have.Openings)+len(p.Open))}
	if p.Rules {
		out.Ports, out.Observe, out.Trial = p.Ports, p.Observe, p.Trial
	}
	for door, end := range have.Openings {
		out.Openings[door] = end
	}
	for _, c := range p.Close {
		delete(out.Openings, c.Door)
	}
	for _, c := range p.Open {
		out.Openings[c.Door] = c.End
	}
	return out
}

// Describe writes the plan for people, with times counted from now.
func (p Plan) Describe(now BootTime) string {
	if p.Empty() {
		return "nothing to change\n"
	}
	var b strings.Builder
	if p.Rules {
		verb := "guard"
		if p.Observe {
			verb = "observe"
		}
		for _, port := range p.Ports {
			fmt.Fprintf(&b, "%s %s\n", verb, port)
		}
		if p.Trial != 0 {
			fmt.Fprintf(&b, "for %s, then only observe\n", p.Trial.Sub(now).Round(time.Second))
		}
		if len(p.Ports) == 0 {
			b.WriteString("guard no port\n")
		}
	}
	for _, c := range p.Close {
		fmt.Fprintf(&b, "close %s\n", c.Door)
	}
	for _, c := range p.Open {
		verb := "open"
		if c.Was != 0 && c.Until < c.Was {
			verb = "shorten"
		} else if c.Was != 0 {
			verb = "extend"
		}
		fmt.Fprintf(&b, "%s %s for %s (%s)\n", verb, c.Door, c.Until.Sub(now).Round(time.Second), c.Label)
	}
	return b.String()
}

// Alteration is a change of the guard by somebody else.
type Alteration struct {
	At      BootTime // when it was noticed
	Process string   // the name of the process that did it; empty if unknown
	PID     int      // 0 if unknown
}

// Denied is what a guard dropped, or would have where it only observes.
type Denied struct {
	Packets uint64
	// By names the sources, those with the most packets first. A platform
	// remembers a bounded number, for a day from the last packet.
	By []Denial
}

// Denial is one source that was denied at one port.
type Denial struct {
	Door
	Packets uint64
	Last    BootTime
}

// CompareDenials sorts those with the most packets first.
func CompareDenials(a, b Denial) int {
	return cmp.Or(cmp.Compare(b.Packets, a.Packets), a.compare(b.Door))
}

// ErrConflict is returned by Apply when the platform holds something else
// than was applied: somebody writes there too, or an answer was lost. Observe
// again.
var ErrConflict = errors.New("the firewall is not as written")

// Backend keeps one guard on one platform. It is used by one goroutine.
type Backend interface {
	// Observe reads the guard. A platform without one gives the zero
	// Observed and no error.
	Observe(ctx context.Context) (Observed, error)
	// Apply carries out p, all or nothing. After an error the state of the
	// platform is unknown until the next Observe.
	Apply(ctx context.Context, p Plan) error
	// Changes receives after somebody else changed the guard. It is nil where
	// the platform lets nobody, or tells of nothing. A change that comes while another waits to be
	// received is not told.
	Changes() <-chan Alteration
	// Denied returns what the guard has dropped, or would have where it only
	// observes, since it was made.
	Denied(ctx context.Context) (Denied, error)
	// Flows returns the connections that began, changed or ended since the last
	// call, those that ended with their counts. With look it returns all there
	// are, with their counts so far: it reads the whole table of connections.
	// What is tracked begins with the first call.
	Flows(ctx context.Context, look bool) (Flows, error)
	// Remove takes the guard away and leaves nothing behind.
	Remove(ctx context.Context) error
	// Describe says in a few words what holds the guard, for status.
	Describe() string
	// Close lets go of the platform. The guard stays, and so do its openings
	// where they do not hang on the process.
	Close() error
}

// ParsePort reads what Port.String writes.
func ParsePort(s string) (Port, error) {
	bad := fmt.Errorf("%q is not a port like 22/tcp or 5985-5986/tcp cut", s)
	var p Port
	s, p.Cut = strings.CutSuffix(s, " cut")
	numbers, protocol, ok := strings.Cut(s, "/")
	switch {
	case ok && protocol == "tcp":
		p.Protocol = TCP
	case ok && protocol == "udp":
		p.Protocol = UDP
	default:
		return Port{}, bad
	}
	first, last, isRange := strings.Cut(numbers, "-")
	if !isRange {
		last = first
	}
	a, err1 := strconv.ParseUint(first, 10, 16)
	z, err2 := strconv.ParseUint(last, 10, 16)
	if err1 != nil || err2 != nil || a == 0 || z < a {
		return Port{}, bad
	}
	p.First, p.Last = uint16(a), uint16(z)
	return p, nil
}
