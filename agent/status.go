package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// Status is what an agent says of itself on its socket. It is a copy.
type Status struct {
	Host     string           `json:"host"`
	HostFrom string           `json:"hostFrom"` // settings, machine-id, azure, ec2 or gce
	Install  string           `json:"install"`  // empty: it could not be made durable yet
	Mode     Mode             `json:"mode"`
	Trial    *TrialStatus     `json:"trial,omitempty"` // armed and not confirmed yet
	Since    time.Time        `json:"since"`
	Guarded  []string         `json:"guarded"`
	Firewall string           `json:"firewall"`
	Intact   bool             `json:"intact"`  // at the last look
	Denied   uint64           `json:"denied"`  // packets dropped, or counted in mode observe
	Denials  []Denial         `json:"denials"` // of the last day, those with the most packets first
	Openings []OpeningStatus  `json:"openings"`
	Pending  []OpeningStatus  `json:"pending"`
	Refused  []OpeningStatus  `json:"refused"`
	Exempt   []string         `json:"exempt"`
	Docs     []DocumentStatus `json:"documents"`
	Blocked  string           `json:"blocked,omitempty"` // why nothing may open now
	Problem  string           `json:"problem,omitempty"` // what the last pass could not do
}

// TrialStatus is an arming that waits for its confirmation.
type TrialStatus struct {
	SecondsLeft int       `json:"secondsLeft"`
	Back        Mode      `json:"back"`     // what follows without a confirmation
	Admitted    []Session `json:"admitted"` // for as long
}

// Denial is who was denied at a port, or would have been in mode observe.
type Denial struct {
	Source   string    `json:"source"`
	Port     uint16    `json:"port"`
	Protocol string    `json:"protocol"`
	Packets  uint64    `json:"packets"`
	Last     time.Time `json:"last"`
	// Differs says that a grant in force seems to be meant for this source, and
	// names the one it is for.
	Differs string `json:"differs,omitempty"`
}

// maxDenials bounds how many sources a status names.
const maxDenials = 100

// denials puts the firewall's count on the wall clock.
func (a *Agent) denials(d firewall.Denied) []Denial {
	out := []Denial{}
	wall, boot := a.Clock.Wall(), a.Clock.Boot()
	// Who may be meant by a grant is named before those who knock most.
	var meant, rest []firewall.Denial
	for _, by := range d.By {
		if _, ok := a.differs(by.Door); ok {
			meant = append(meant, by)
		} else {
			rest = append(rest, by)
		}
	}
	by := append(meant, rest...)
	for _, by := range by[:min(len(by), maxDenials)] {
		x := Denial{Source: by.Source.Addr().String(), Port: by.Port, Protocol: by.Protocol.String(), Packets: by.Packets,
			Last: wall.Add(by.Last.Sub(boot)).UTC().Truncate(time.Second)}
		if g, ok := a.differs(by.Door); ok {
			x.Differs = differsText(g)
		}
		out = append(out, x)
	}
	return out
}

// OpeningStatus is one grant: open, waiting for its start, or refused.
type OpeningStatus struct {
	Grant       string    `json:"grant"`
	Port        uint16    `json:"port"`
	Protocol    string    `json:"protocol,omitempty"`
	Sources     []string  `json:"sources"`
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
	SecondsLeft int       `json:"secondsLeft,omitempty"`
	Requestor   string    `json:"requestor"`
	Reason      string    `json:"reason,omitempty"`
	Refusal     string    `json:"refusal,omitempty"`
	// Use is what was made of an open one so far.
	Use *UseStatus `json:"use,omitempty"`
}

// UseStatus is what was made of a grant. Bytes of sessions that go on are
// counted when one ends.
type UseStatus struct {
	Outcome     string    `json:"outcome"` // unused, tried or used, so far
	Connections uint64    `json:"connections"`
	Open        int       `json:"open"` // that go on
	First       time.Time `json:"first,omitzero"`
	Last        time.Time `json:"last,omitzero"`
}

func (l uses) status(id string) *UseStatus {
	for _, u := range l {
		if u.Event.GrantID == id && !u.Ended {
			t := u.total()
			return &UseStatus{t.outcome(), t.Established.Count, u.open(), t.Established.First, t.Established.Last}
		}
	}
	return nil
}

// DocumentStatus tells the document in force and the last one refused apart.
type DocumentStatus struct {
	Document string    `json:"document"`
	Version  uint64    `json:"version"` // in force; 0: none
	Issued   time.Time `json:"issued,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	// Refusal says why what lies in the inbox is not in force.
	Refusal string    `json:"refusal,omitempty"`
	Refused time.Time `json:"refused,omitzero"`
}

// snapshot makes the status of now.
func (a *Agent) snapshot(ctx context.Context) Status {
	mode := a.mode()
	s := Status{
		Host: a.Settings.HostID, HostFrom: a.Settings.HostFrom, Install: a.install.id(), Mode: a.toldMode(), Since: a.started.UTC(), Guarded: formatPorts(a.guarded()),
		Firewall: a.Backend.Describe(), Intact: a.have.Intact,
		Exempt: []string{},
	}
	denied, err := a.Backend.Denied(ctx)
	s.Denied, s.Denials = denied.Packets, a.denials(denied)
	if err := errors.Join(also(a.problem, a.install.err), a.modeErr, err); err != nil {
		s.Problem = err.Error()
	}
	if a.decision.Blocked != nil {
		s.Blocked = a.decision.Blocked.Error()
	} else {
		for _, p := range a.decision.Exempt {
			s.Exempt = append(s.Exempt, p.String())
		}
	}
	now := a.Clock.Boot()
	if mode.trial != 0 && a.absent() == nil {
		s.Trial = &TrialStatus{secondsTo(mode.trial, now), a.standing.at(a.Settings.Mode, mode.trial).Mode, append([]Session{}, a.standing.Peers...)}
	}
	s.Openings, s.Pending, s.Refused = a.grantStates(a.decision, a.live, a.mark.Void)
	for k, h := range [kinds]policy.Header{a.docs.trust.Header, a.docs.policy.Header, a.docs.grants.Header} {
		d := DocumentStatus{Document: Kind(k).String(), Version: h.Version, Issued: h.Issued, Expires: h.Expires}
		if r := a.refusals[k]; r.err != nil {
			d.Refusal, d.Refused = r.err.Error(), r.when.UTC()
		}
		s.Docs = append(s.Docs, d)
	}
	return s
}

// grantStates sorts the verdicts of a decision: those in force, soonest end
// first, those that have not begun, and those outside the policy.
func (a *Agent) grantStates(d policy.Decision, live map[string]granted, void []string) (openings, pending, refused []OpeningStatus) {
	openings, pending, refused = []OpeningStatus{}, []OpeningStatus{}, []OpeningStatus{}
	now := a.Clock.Boot()
	for _, v := range d.Verdicts {
		o := grantStatus(v.Grant, v.Port)
		held, open := live[v.Grant.ID]
		switch {
		case v.Refusal != nil:
			o.Refusal = v.Refusal.Error()
			refused = append(refused, o)
		case open && held.until > now:
			o.SecondsLeft, o.Use = secondsTo(held.until, now), a.uses.status(v.Grant.ID)
			openings = append(openings, o)
		case v.Phase == policy.PhasePending && !slices.Contains(void, v.Grant.ID):
			pending = append(pending, o)
		}
	}
	slices.SortStableFunc(openings, func(a, b OpeningStatus) int { return cmp.Compare(a.SecondsLeft, b.SecondsLeft) })
	return openings, pending, refused
}

// grantStatus is a grant of which nothing else is known.
func grantStatus(g policy.Grant, p policy.Port) OpeningStatus {
	o := OpeningStatus{Grant: g.ID, Port: g.Number, Protocol: string(p.Protocol), Start: g.Start, End: g.End, Requestor: g.Requestor, Reason: g.Justification}
	for _, p := range g.Sources {
		o.Sources = append(o.Sources, p.String())
	}
	return o
}

func secondsTo(end, now firewall.BootTime) int {
	return int(end.Sub(now).Round(time.Second) / time.Second)
}
