package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// CheckRequest asks what would become of a document.
type CheckRequest struct {
	Envelope []byte `json:"envelope"` // as it would lie in the inbox
}

// Check is what would become of a document if it were delivered now. Nothing
// has come of it.
type Check struct {
	Document string `json:"document,omitempty"`
	Version  uint64 `json:"version,omitempty"`
	Refusal  string `json:"refusal,omitempty"` // of the document as a whole: the rest is empty then
	Blocked  string `json:"blocked,omitempty"` // why nothing might open all the same
	// Openings, Pending and Refused are the grants under it, as in a Status.
	Openings []OpeningStatus `json:"openings"`
	Pending  []OpeningStatus `json:"pending"`
	Refused  []OpeningStatus `json:"refused"`
	Revoked  []OpeningStatus `json:"revoked"` // open now, and closed by it before their time
}

// check answers for one document, and changes nothing.
func (a *Agent) check(raw []byte) Check {
	c := Check{Openings: []OpeningStatus{}, Pending: []OpeningStatus{}, Refused: []OpeningStatus{}, Revoked: []OpeningStatus{}}
	e, err := policy.ParseEnvelope(raw)
	if err != nil {
		c.Refusal = err.Error()
		return c
	}
	k, ok := kindOf(e.Type)
	if !ok {
		c.Refusal = policy.Refuse(policy.WrongType, "payloadType %q is none of jitgate's", e.Type).Error()
		return c
	}
	c.Document = k.String()
	if a.unread != nil {
		c.Refusal = a.unread.Error()
		return c
	}
	f := a.facts()
	docs, state, err := a.docs.admit(a.mark.State, k, raw, a.Settings.TrustPin, f)
	if err != nil {
		c.Refusal = err.Error()
		return c
	}
	c.Version = docs.version(k)
	boot := a.Clock.Boot()
	void := stillListed(a.mark.Void, docs.grants)
	decision := policy.Evaluate(state, docs.trust, docs.policy, docs.grants, f)
	w := want(decision, pass{wall: f.Now, boot: boot, horizon: a.horizon, running: a.live, void: set(void), have: a.have.Openings})
	if decision.Blocked != nil {
		c.Blocked = decision.Blocked.Error()
	}
	c.Openings, c.Pending, c.Refused = a.grantStates(decision, w.live, void)
	c.Revoked = a.revokedBy(w.live, boot)
	return c
}

// revokedBy lists what is open and would not be with other grants in force.
func (a *Agent) revokedBy(live map[string]granted, boot firewall.BootTime) []OpeningStatus {
	out := []OpeningStatus{}
	for _, id := range slices.Sorted(maps.Keys(a.live)) {
		g := a.live[id]
		if next, ok := live[id]; ok && next.Number == g.Number && slices.Equal(next.Sources, g.Sources) || g.until <= boot {
			continue
		}
		o := grantStatus(g.Grant, g.port)
		o.SecondsLeft = secondsTo(g.until, boot)
		out = append(out, o)
	}
	slices.SortStableFunc(out, func(a, b OpeningStatus) int { return cmp.Compare(a.SecondsLeft, b.SecondsLeft) })
	return out
}

// Delivery announces a document that is about to be put into the inbox by
// hand.
type Delivery struct {
	Document string        `json:"document"`
	Version  uint64        `json:"version"`
	Digest   policy.Digest `json:"digest"` // of the payload
	From     string        `json:"from"`   // one of Origins
}

// Origins are where a document put into the inbox by hand may come from.
var Origins = []string{"terminal", "file", "standard input"}

// delivering records and logs a delivery by hand, before it is made. It opens
// nothing: the document is judged when it lies in the inbox.
func (a *Agent) delivering(ctx context.Context, by caller, d Delivery) error {
	switch {
	case !slices.Contains([]string{Trust.String(), Policy.String(), Grants.String()}, d.Document):
		return fmt.Errorf("document %q is none of trust, policy, grants", d.Document)
	case !slices.Contains(Origins, d.From):
		return fmt.Errorf("from %q is none of %q", d.From, Origins)
	}
	name, login := by.process()
	event := audit.Event{Name: audit.DocumentDeliver, Document: d.Document, Version: d.Version, Digest: d.Digest.String(),
		Requestor: by.String() + login, Process: name, PID: by.pid,
		Message: fmt.Sprintf("%s version %d is put into the inbox by hand, from: %s", d.Document, d.Version, d.From)}
	a.Log.Warn("a document is put into the inbox by hand", "document", d.Document, "version", d.Version, "digest", d.Digest, "from", d.From, "by", event.Requestor, "process", name)
	return a.recordIntents(ctx, nil, []audit.Event{event})
}
