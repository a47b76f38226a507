package audit

import (
	"slices"
	"time"
)

// Period is one thing that lasted: what somebody had open.
type Period struct {
	Grant, Source, Requestor, Reason string
	Port                             uint16
	Protocol                         string
	From                             time.Time
	To                               time.Time // zero: it is open, as far as the record goes
	Until                            time.Time // when it was to end
	// Ended says how: the event that closed it. Empty: nothing did yet.
	Ended Name
	// Use is the proof of use, if there is one.
	Use *Event
	// Logins are those over it.
	Logins []Event
}

// Timeline draws from events, in their order, who had what open, and when, by
// when it began. Those whose beginning is not among the events begin when they
// were last said to be open: with their end.
func Timeline(events []Event) []Period {
	var all []*Period
	open := map[string]*Period{}
	ended := map[string]*Period{}
	begin := func(e Event) *Period {
		p := &Period{Grant: e.GrantID, Source: e.Source, Requestor: e.Requestor, Reason: e.Reason, Port: e.Port, Protocol: e.Protocol, From: e.Time, Until: e.End}
		all = append(all, p)
		return p
	}
	for _, e := range events {
		switch p := open[e.GrantID]; e.Name {
		case GrantOpened:
			if p != nil && p.Port == e.Port && p.Source == e.Source { // it goes on, with another end
				p.Until = e.End
				continue
			}
			if p != nil { // another took its place; that it was revoked is recorded behind
				ended[e.GrantID] = p
				p.To = e.Time
			}
			open[e.GrantID] = begin(e)
		case GrantExpired, GrantRevoked:
			if old := ended[e.GrantID]; old != nil && old.Ended == "" && old.Port == e.Port && old.Source == e.Source {
				old.Ended = e.Name
				continue
			}
			if p == nil {
				p = begin(e)
			}
			p.To, p.Ended = e.Time, e.Name
			if e.Name == GrantExpired && !p.Until.IsZero() && p.Until.Before(p.To) && !p.Until.Before(p.From) {
				p.To = p.Until // the kernel closed it then; the agent noticed later
			}
			delete(open, e.GrantID)
			ended[e.GrantID] = p
		case GrantLogin:
			if p == nil { // a session that outlived its grant, or was told late
				p = ended[e.GrantID]
			}
			if p != nil && p.Port == e.Port {
				p.Logins = append(p.Logins, e)
			}
		case GrantUsed:
			for _, p := range []*Period{p, ended[e.GrantID]} {
				if p != nil && p.Port == e.Port && p.Source == e.Source {
					p.Use = &e
					break
				}
			}
		}
	}
	out := make([]Period, len(all))
	for i, p := range all {
		out[i] = *p
	}
	slices.SortStableFunc(out, func(a, b Period) int { return a.From.Compare(b.From) })
	return out
}
