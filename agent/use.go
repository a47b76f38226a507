package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// The outcomes of a grant, as grant.used has them for its code.
const (
	Unused = "unused" // nobody came
	Tried  = "tried"  // packets were let in, and no connection came of them
	Used   = "used"
)

// use is what was made of one grant: the connections that began while it was
// in force, from its sources to its port. Where two grants let one in, it is
// counted for both.
type use struct {
	Event     audit.Event         `json:"event"` // what is known of the grant
	Since     time.Time           `json:"since"` // when it came into force
	Sources   []netip.Prefix      `json:"sources"`
	Protocols []firewall.Protocol `json:"protocols"`
	Cuts      bool                `json:"cuts,omitempty"` // its sessions end with it
	Sum       tally               `json:"sum"`
	Logins    logged              `json:"logins,omitzero"`
	Flows     []usedFlow          `json:"flows,omitempty"` // the platform still knows of
	Ended     bool                `json:"ended,omitempty"`
	Kept      int                 `json:"kept,omitempty"` // sessions that outlived it

	loaded bool                    // from an earlier agent, and not compared with the platform yet
	at     map[firewall.FlowID]int // see places
}

// tally is how often and how much.
type tally struct {
	Begun       span           `json:"begun,omitzero"`
	Established span           `json:"established,omitzero"`
	In          firewall.Count `json:"in,omitzero"` // of connections that are gone
	Out         firewall.Count `json:"out,omitzero"`
	Cut         uint64         `json:"cut,omitzero"`
	Passed      bool           `json:"passed,omitzero"`  // the opening let a packet in
	Partial     bool           `json:"partial,omitzero"` // there may have been more
}

// span counts connections, and says when the first and the last began.
type span struct {
	Count uint64    `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`
}

func (s *span) add(at time.Time) {
	if s.Count == 0 || at.Before(s.First) {
		s.First = at
	}
	if s.Count == 0 || at.After(s.Last) {
		s.Last = at
	}
	s.Count++
}

// usedFlow is a connection that is counted for a grant.
type usedFlow struct {
	ID          firewall.FlowID `json:"id"`
	Began       time.Time       `json:"began"`
	Established bool            `json:"established,omitzero"`
	Open        bool            `json:"open,omitzero"`
	LoggedIn    bool            `json:"loggedIn,omitzero"` // that somebody did is recorded
	In          firewall.Count  `json:"in,omitzero"`
	Out         firewall.Count  `json:"out,omitzero"`
}

// newUse is the use of a grant that has just come into force.
func newUse(g granted, now time.Time) *use {
	return &use{Event: grantEvent(audit.GrantUsed, policy.Verdict{Grant: g.Grant, Port: g.port}), Since: now.UTC(),
		Sources: g.Sources, Protocols: protocols(g.port.Protocol), Cuts: g.port.SessionsAtEnd == policy.Cut}
}

// of reports whether g is the grant, or the same with another end.
func (u *use) of(g granted) bool {
	return u.Event.Port == g.Number && slices.Equal(u.Sources, g.Sources)
}

// covers reports whether the grant lets packets of the door in.
func (u *use) covers(d firewall.Door) bool {
	return u.Event.Port == d.Port && slices.Contains(u.Protocols, d.Protocol) &&
		slices.ContainsFunc(u.Sources, func(p netip.Prefix) bool { return p.Bits() <= d.Source.Bits() && p.Contains(d.Source.Addr()) })
}

// begin counts a connection that began at a time.
func (u *use) begin(f firewall.Flow, at time.Time) {
	u.Sum.Begun.add(at)
	u.places()[f.FlowID] = len(u.Flows)
	u.Flows = append(u.Flows, usedFlow{ID: f.FlowID, Began: at, Open: true})
	u.update(len(u.Flows)-1, f)
}

// update takes note of what became of its i-th connection.
func (u *use) update(i int, f firewall.Flow) {
	known := &u.Flows[i]
	if f.Established && !known.Established {
		known.Established = true
		u.Sum.Established.add(known.Began)
	}
	if known.Open = f.Open; f.In.Packets >= known.In.Packets {
		known.In, known.Out = f.In, f.Out
	}
	if f.Gone {
		u.fold(i)
	}
}

// fold ends its i-th connection with what is known of it. The last one takes
// its place.
func (u *use) fold(i int) {
	at, gone, last := u.places(), u.Flows[i], len(u.Flows)-1
	u.Sum.In, u.Sum.Out = u.Sum.In.Plus(gone.In), u.Sum.Out.Plus(gone.Out)
	u.Flows[i] = u.Flows[last]
	at[u.Flows[i].ID] = i
	delete(at, gone.ID)
	u.Flows = u.Flows[:last]
}

// places says where each connection is among Flows. Whoever is let in can make
// thousands a second: none is searched for.
func (u *use) places() map[firewall.FlowID]int {
	if u.at == nil {
		u.at = make(map[firewall.FlowID]int, len(u.Flows))
		for i, f := range u.Flows {
			u.at[f.ID] = i
		}
	}
	return u.at
}

// open counts the sessions that go on.
func (u *use) open() (n int) {
	for _, f := range u.Flows {
		if f.Open && f.Established {
			n++
		}
	}
	return n
}

// total is what is known so far.
func (u *use) total() tally {
	t := u.Sum
	for _, f := range u.Flows {
		t.In, t.Out = t.In.Plus(f.In), t.Out.Plus(f.Out)
	}
	return t
}

func (t tally) outcome() string {
	switch {
	case t.Established.Count > 0:
		return Used
	case t.Begun.Count > 0 || t.Passed:
		return Tried
	}
	return Unused
}

// event is the proof of use.
func (u *use) event() audit.Event {
	t := u.total()
	e := u.Event
	e.Code, e.AtLeast = t.outcome(), t.Partial
	e.BytesIn, e.BytesOut, e.PacketsIn, e.PacketsOut = t.In.Bytes, t.Out.Bytes, t.In.Packets, t.Out.Packets
	e.SessionsCut, e.Logins = t.Cut, u.Logins.Count
	what := ""
	when := t.Begun
	switch e.Code {
	case Unused:
		what = "nobody came"
	case Tried:
		what = "somebody came, and no connection was established"
	case Used:
		when = t.Established
		e.Connections = when.Count
		what = fmt.Sprintf("%d connections, %d bytes in and %d out", when.Count, t.In.Bytes, t.Out.Bytes)
	}
	e.First, e.Last = when.First, when.Last
	if t.Cut > 0 {
		what += fmt.Sprintf("; its end cut %d of them", t.Cut)
	}
	switch n := u.open(); {
	case n > 0:
		what += fmt.Sprintf("; %d go on", n)
	case u.Kept > 0:
		what += fmt.Sprintf("; %d went on, and are over now", u.Kept)
	}
	if e.Logins > 0 {
		what += fmt.Sprintf("; %d logins", e.Logins)
	}
	if t.Partial {
		what += "; there may have been more that was not seen"
	}
	e.Message = fmt.Sprintf("port %d was open for %s: %s", e.Port, e.Source, what)
	return e
}

// maxUseFlows bounds the connections that are followed at once. Of more only
// those are counted that end while the grant is in force.
const maxUseFlows = 1 << 12

// uses are the grants in force, and those that ended whose connections the
// platform still knows of.
type uses []*use

// take counts what a backend told. A connection whose beginning nobody saw
// was there before, unless adopt says that it may have been missed.
func (l uses) take(list []firewall.Flow, adopt func(*use) bool, wall func(firewall.BootTime) time.Time, now firewall.BootTime) {
	followed := 0
	for _, u := range l {
		followed += len(u.Flows)
	}
	for _, f := range list {
		known := false
		for _, u := range l {
			if i, is := u.places()[f.FlowID]; is {
				known = true
				u.update(i, f)
			}
		}
		if known {
			continue
		}
		for _, u := range l {
			at := f.Began
			switch {
			case u.Ended || !u.covers(f.Door()):
				continue
			case at == 0 && !adopt(u):
				continue
			case at == 0:
				at = now
			}
			if followed++; followed > maxUseFlows && !f.Gone {
				u.Sum.Partial = true
				continue
			}
			u.begin(f, wall(at))
		}
	}
}

// passed takes note that openings let packets in.
func (l uses) passed(counts, before map[firewall.Door]uint64) {
	for door, n := range counts {
		if n == before[door] {
			continue
		}
		for _, u := range l {
			u.Sum.Passed = u.Sum.Passed || !u.Ended && u.covers(door)
		}
	}
}

// proven reports whether something is known of a grant that is in force.
func (l uses) proven(id string) bool {
	return slices.ContainsFunc(l, func(u *use) bool {
		return u.Event.GrantID == id && !u.Ended && u.Sum.outcome() != Unused
	})
}

// wallAt puts an instant of the boot clock on the wall clock.
func (a *Agent) wallAt(t firewall.BootTime) time.Time {
	return a.Clock.Wall().Add(t.Sub(a.Clock.Boot())).UTC().Truncate(time.Millisecond)
}

// hear counts what the platform tells of connections. With look it reads
// all there are.
func (a *Agent) hear(ctx context.Context, look bool) {
	flows, err := a.Backend.Flows(ctx, look)
	if err != nil && (a.blind == nil || a.blind.Error() != err.Error()) {
		a.Log.Warn("what grants are used for is not known for sure", "error", err)
	}
	a.blind = err
	a.uses.take(flows.List, func(u *use) bool { return flows.Incomplete || look && u.loaded }, a.wallAt, a.Clock.Boot())
	there := map[firewall.FlowID]bool{}
	for _, f := range flows.List {
		there[f.FlowID] = true
	}
	for _, u := range a.uses {
		if !u.Ended && (err != nil || flows.Incomplete) {
			u.Sum.Partial = true
		}
		if !look || !u.loaded || err != nil {
			continue
		}
		// What was there when the last agent looked, and is gone.
		u.loaded = false
		for i := len(u.Flows) - 1; i >= 0; i-- {
			if f := u.Flows[i]; !there[f.ID] {
				u.Sum.Partial = u.Sum.Partial || f.Open
				u.fold(i)
			}
		}
	}
	a.usesChanged = a.usesChanged || len(flows.List) > 0
}

// lastGlance is how long before the end of an opening its counter is read: the
// platform drops both together. A look that is no older than recently then is
// enough, so that many ends do not take as many looks.
const (
	lastGlance = 500 * time.Millisecond
	recently   = 1500 * time.Millisecond
)

// glance returns when the counters are to be read before something ends that
// nobody is known to have used, and has the pass do so whose time that is.
func (a *Agent) glance() firewall.BootTime {
	now, next := a.Clock.Boot(), firewall.Never
	for id, g := range a.live {
		at := g.until.Add(-lastGlance)
		switch {
		case a.uses.proven(id):
		case now < at:
			next = min(next, at)
		case a.observed < at.Add(-recently):
			a.doubt()
		}
	}
	return next
}

// settleUses compares the uses with the grants in force after a pass, and
// returns what to record of those that ended. before are the grants in force
// until then.
func (a *Agent) settleUses(ctx context.Context, before map[string]granted) []audit.Event {
	now := a.Clock.Boot()
	var ending uses
	inForce := map[string]bool{}
	for _, u := range a.uses {
		if u.Ended {
			continue
		}
		g, live := a.live[u.Event.GrantID]
		if live && u.of(g) {
			inForce[u.Event.GrantID] = true
			u.Event.End = g.End
			continue
		}
		ending = append(ending, u)
	}
	for _, u := range ending {
		was, known := before[u.Event.GrantID]
		if early := known && was.until > now; u.Cuts || early {
			a.countCut(u, ending)
		}
	}
	if look := a.mustLook(ending); look || !a.looked {
		a.hear(ctx, look)
		a.looked = true
	}
	var events []audit.Event
	for _, u := range ending {
		u.Ended, u.Kept = true, u.open()
		events = append(events, u.event())
		a.addresses.remember(u)
	}
	a.uses = slices.DeleteFunc(a.uses, func(u *use) bool {
		if !u.Ended || len(u.Flows) > 0 {
			return false
		}
		if u.Kept > 0 && !slices.Contains(ending, u) {
			events = append(events, u.event())
		}
		return true
	})
	for _, id := range slices.Sorted(maps.Keys(a.live)) {
		if !inForce[id] {
			u := newUse(a.live[id], a.Clock.Wall())
			u.Sum.Partial = a.usesLost
			a.uses = append(a.uses, u)
			a.usesChanged = true
		}
	}
	a.usesLost = false
	if len(ending) > 0 {
		a.usesChanged = true
	}
	return events
}

// mustLook reports whether the platform's whole table of connections is to be
// read, which takes milliseconds: where connections of a grant that ends go on,
// or are left from an earlier agent. Of the others it has told everything.
func (a *Agent) mustLook(ending uses) bool {
	unsure := func(u *use) bool { return len(u.Flows) > 0 || u.Sum.Partial }
	return slices.ContainsFunc(ending, unsure) || !a.looked && slices.ContainsFunc(a.uses, func(u *use) bool { return u.loaded && (!u.Ended || unsure(u)) })
}

// countCut counts the sessions that end with a grant: those open so far that
// no other grant lets go on.
func (a *Agent) countCut(u *use, ending uses) {
	if m := a.mode(); m.Mode != Enforce {
		return
	}
	for i := range u.Flows {
		f := &u.Flows[i]
		door := firewall.Flow{FlowID: f.ID, Port: u.Event.Port}.Door()
		goesOn := slices.ContainsFunc(a.uses, func(o *use) bool { return !o.Ended && !slices.Contains(ending, o) && o.covers(door) })
		if f.Open && f.Established && !goesOn {
			f.Open = false
			u.Sum.Cut++
		}
	}
}

// savedUses is what an agent that starts later needs to know of uses.
type savedUses struct {
	BootID string          `json:"bootID"`
	Uses   []*use          `json:"uses"`
	Former formerAddresses `json:"former"`
	Knocks savedKnocks     `json:"knocks"`
	Logins string          `json:"logins,omitempty"` // the journal's cursor: those up to it are counted
}

// keepUses saves them where they changed. That is not flushed: a crash of the
// machine ends the connections with it, and a grant whose use was lost says
// that there may have been more.
func (a *Agent) keepUses() {
	if !a.usesChanged {
		return
	}
	saved := savedUses{BootID: a.Clock.BootID, Uses: a.uses, Former: a.addresses, Knocks: a.knocks.saved(), Logins: a.loginsUpTo}
	if err := a.store.write(usesFile, saved, false); err != nil {
		if !a.usesUnkept {
			a.Log.Warn("what grants are used for is remembered by this process only", "error", err)
		}
		a.usesUnkept = true
		return
	}
	a.usesChanged, a.usesUnkept = false, false
}

// loadUses reads what an earlier agent saved.
func (a *Agent) loadUses() {
	var saved savedUses
	found, err := a.store.readIfThere(usesFile, &saved)
	if err != nil {
		a.Log.Warn("what grants were used for before is not known", "error", err)
		a.usesLost = true
		return
	}
	a.uses, a.addresses, a.loginsUpTo = saved.Uses, saved.Former, saved.Logins
	sameBoot := found && saved.BootID == a.Clock.BootID && saved.BootID != ""
	for _, u := range a.uses {
		u.loaded = true
		for !sameBoot && len(u.Flows) > 0 {
			u.Sum.Partial = u.Sum.Partial || u.Flows[0].Open
			u.fold(0)
		}
	}
	if sameBoot {
		a.knocks.load(saved.Knocks)
	}
}
