package agent

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
)

// The kernel counts each denied packet under its source and port. The agent
// reads the counts, and records few lines of them however many packets there
// are: at most knockBurst at once, and one more for every knockRefill that
// passes. What gets no line of its own is summed up in one for all.
const (
	knockEvery  = 10 * time.Second // the counts are read with a pass, at most that often
	knockBurst  = 60
	knockRefill = time.Minute
	knockAgain  = 10 * time.Minute // until the same source and port get another line
)

// knocks is what was recorded of denied packets.
type knocks struct {
	told   map[firewall.Door]knock
	total  uint64 // all that were denied, at the last look
	summed uint64 // of these, those that lines speak of
	looked firewall.BootTime
	lines  int               // that may be recorded now
	filled firewall.BootTime // when the last was added to these
}

// knock is what was recorded of one source at one port.
type knock struct {
	packets uint64
	at      firewall.BootTime
	since   firewall.BootTime // packets that no line speaks of came after that; 0: there are none
}

// denial is what is to be said of one source at one port.
type denial struct {
	firewall.Denial
	fresh uint64 // that no line speaks of yet
	since firewall.BootTime
	first bool // before the others
}

// look compares the counts with what was told, and returns what to tell: of
// named sources, and of all others together. first picks those that may not
// be left to the others. It is pure but for what it remembers.
func (k *knocks) look(d firewall.Denied, now firewall.BootTime, first func(firewall.Door) bool) (named []denial, others denial, sources int) {
	if k.told == nil {
		k.told, k.lines, k.filled = map[firewall.Door]knock{}, knockBurst, now
	}
	if n := now.Sub(k.filled) / knockRefill; n > 0 {
		k.lines, k.filled = min(knockBurst, k.lines+int(min(n, knockBurst))), k.filled.Add(n*knockRefill)
	}
	if d.Packets < k.total { // the guard was made anew
		clear(k.told)
		k.total, k.summed = 0, 0
	}
	k.total = d.Packets
	before := k.looked
	k.looked = now
	next := make(map[firewall.Door]knock, len(d.By))
	waiting := uint64(0)
	for _, by := range d.By {
		was, known := k.told[by.Door]
		if by.Packets < was.packets {
			was.packets = 0 // forgotten by the kernel meanwhile
		}
		x := denial{Denial: by, fresh: by.Packets - was.packets, since: was.since}
		if x.fresh > 0 && x.since == 0 {
			if x.since = before; x.fresh == 1 {
				x.since = by.Last
			}
			was.since = x.since
		}
		switch {
		case x.fresh == 0:
		case known && now.Sub(was.at) < knockAgain && was.at != 0:
			waiting += x.fresh
		default:
			x.first = first(by.Door)
			named = append(named, x)
		}
		next[by.Door] = was
	}
	k.told = next
	slices.SortFunc(named, func(x, y denial) int {
		return cmp.Or(compareFirst(x.first, y.first), cmp.Compare(y.fresh, x.fresh), firewall.CompareDenials(x.Denial, y.Denial))
	})
	all := waiting
	for _, x := range named {
		all += x.fresh
	}
	// Those the kernel has no room to name.
	if nameless := k.total - min(k.total, k.summed+all); nameless > 0 {
		others.fresh, others.since, others.Last = nameless, before, now
	}
	room := k.lines
	if len(named) > room || others.fresh > 0 {
		room--
	}
	if room < 0 {
		return nil, denial{}, 0
	}
	if len(named) > room {
		for _, x := range named[room:] {
			others.fresh += x.fresh
			if sources++; others.since == 0 || x.since < others.since {
				others.since = x.since
			}
			others.Last = max(others.Last, x.Last)
			k.tell(x, now)
		}
		named = named[:room]
	}
	for _, x := range named {
		k.tell(x, now)
		k.lines--
	}
	if others.fresh > 0 {
		k.lines--
		k.summed += others.fresh
	}
	for _, x := range named {
		k.summed += x.fresh
	}
	return named, others, sources
}

// compareFirst sorts what is first before what is not.
func compareFirst(x, y bool) int {
	switch {
	case x && !y:
		return -1
	case y && !x:
		return 1
	}
	return 0
}

// nothingNew reports whether lines speak of all packets that were denied.
func (k *knocks) nothingNew(total uint64, now firewall.BootTime) bool {
	if k.told == nil || total != k.total || k.summed < total {
		return false
	}
	k.looked = now
	return true
}

func (k *knocks) tell(x denial, now firewall.BootTime) {
	k.told[x.Door] = knock{packets: x.Packets, at: now}
}

// savedKnocks is what the next agent of the same boot needs, so that nothing
// is told twice.
type savedKnocks struct {
	Total  uint64            `json:"total"`
	Summed uint64            `json:"summed"`
	Looked firewall.BootTime `json:"looked"`
	Lines  int               `json:"lines"`
	Filled firewall.BootTime `json:"filled"`
	Told   []savedKnock      `json:"told"`
}

type savedKnock struct {
	Source   netip.Prefix      `json:"source"`
	Protocol firewall.Protocol `json:"protocol"`
	Port     uint16            `json:"port"`
	Packets  uint64            `json:"packets"`
	At       firewall.BootTime `json:"at"`
	Since    firewall.BootTime `json:"since,omitzero"`
}

func (k *knocks) saved() savedKnocks {
	s := savedKnocks{k.total, k.summed, k.looked, k.lines, k.filled, []savedKnock{}}
	for d, x := range k.told {
		s.Told = append(s.Told, savedKnock{d.Source, d.Protocol, d.Port, x.packets, x.at, x.since})
	}
	return s
}

func (k *knocks) load(s savedKnocks) {
	if s.Filled == 0 {
		return // nothing was ever denied
	}
	*k = knocks{told: map[firewall.Door]knock{}, total: s.Total, summed: s.Summed, looked: s.Looked, lines: min(s.Lines, knockBurst), filled: s.Filled}
	for _, x := range s.Told {
		k.told[firewall.Door{Source: x.Source, Protocol: x.Protocol, Port: x.Port}] = knock{x.Packets, x.At, x.Since}
	}
}

// tellKnocks records who was denied.
func (a *Agent) tellKnocks(ctx context.Context) error {
	now := a.Clock.Boot()
	if a.mode().Mode == Off || !a.applied || a.knocks.told != nil && now.Sub(a.knocks.looked) < knockEvery {
		return nil
	}
	d, err := a.Backend.Denied(ctx)
	if err != nil || a.knocks.nothingNew(d.Packets, now) {
		return err
	}
	named, others, sources := a.knocks.look(d, now, func(door firewall.Door) bool { _, ok := a.differs(door); return ok })
	verb := "was denied"
	if a.mode().Mode != Enforce {
		verb = "would be denied"
	}
	var events []audit.Event
	for _, x := range named {
		source := x.Source.Addr().String()
		e := audit.Event{Name: audit.ConnectionDeny, Source: source, Port: x.Port, Protocol: x.Protocol.String(),
			Message: fmt.Sprintf("%s %s port %d/%s: %d packets", source, verb, x.Port, x.Protocol, x.fresh)}
		if g, ok := a.differs(x.Door); ok {
			e.GrantID, e.Requestor, e.Reason = g.ID, g.Requestor, differsText(g)
			e.Message += "; " + e.Reason
		}
		events = append(events, a.counted(e, x))
	}
	if others.fresh > 0 {
		e := audit.Event{Name: audit.ConnectionDeny, Message: fmt.Sprintf("%d packets of others, too many for a line each: of %d sources, and of those the firewall has no room to name", others.fresh, sources)}
		events = append(events, a.counted(e, others))
	}
	a.usesChanged = true
	if len(events) == 0 {
		return nil
	}
	return a.record(ctx, events)
}

func (a *Agent) counted(e audit.Event, x denial) audit.Event {
	e.Count, e.Last = x.fresh, a.wallAt(x.Last)
	if e.First = e.Last; x.since != 0 && x.since < x.Last {
		e.First = a.wallAt(x.since)
	}
	return e
}

// formerAddress is one that somebody had a grant for.
type formerAddress struct {
	Source    netip.Prefix `json:"source"`
	Requestor string       `json:"requestor"`
}

// formerAddresses are the newest of these.
type formerAddresses []formerAddress

const maxFormer = 256

// remember notes whose the addresses of a grant that ended were. A wide prefix
// says nothing of anybody.
func (f *formerAddresses) remember(u *use) {
	for _, p := range u.Sources {
		x := formerAddress{p, u.Event.Requestor}
		if p.Bits() < neighbourhood(p.Addr()) {
			continue
		}
		*f = append(slices.DeleteFunc(*f, func(y formerAddress) bool { return y == x }), x)
	}
	if over := len(*f) - maxFormer; over > 0 {
		*f = slices.Delete(*f, 0, over)
	}
}

// neighbourhood is the length of the prefix whose addresses are often one
// household's or office's: what an address is exchanged within when a lease or
// a privacy address is renewed.
func neighbourhood(a netip.Addr) int {
	if a.Is4() {
		return 24
	}
	return 64
}

// differs returns the grant in force that a denied source seems to be meant
// by: it opens that port for another address of the same neighbourhood, or
// whoever asked for it had one for this source before. It is a guess to help
// whoever is locked out, and opens nothing.
func (a *Agent) differs(d firewall.Door) (granted, bool) {
	source := d.Source.Addr()
	best, found := granted{}, false
	for _, g := range a.live {
		if g.Number != d.Port || !slices.Contains(protocols(g.port.Protocol), d.Protocol) || found && best.ID < g.ID {
			continue
		}
		if slices.ContainsFunc(g.Sources, func(p netip.Prefix) bool { return p.Contains(source) }) {
			continue // it knocked before the port was open
		}
		near := slices.ContainsFunc(g.Sources, func(p netip.Prefix) bool {
			around, err := p.Addr().Prefix(neighbourhood(p.Addr()))
			return err == nil && p.Bits() > around.Bits() && around.Contains(source)
		})
		had := slices.ContainsFunc(a.addresses, func(f formerAddress) bool { return f.Requestor == g.Requestor && f.Source.Contains(source) })
		if near || had {
			best, found = g, true
		}
	}
	return best, found
}

func differsText(g granted) string {
	return fmt.Sprintf("your address differs: grant %s of %s is for %s", g.ID, g.Requestor, sourcesText(g.Sources))
}
