package agent

import (
	"fmt"
	"slices"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// story is what a pass has to record.
type story struct {
	intents []audit.Event // durable before anything opens
	opened  []audit.Event // once it has
	always  []audit.Event // whether anything may open or not
}

// narrate compares the grants in force before and after a pass.
func (a *Agent) narrate(plan firewall.Plan, w wanted) story {
	var s story
	opens := map[string]bool{} // or goes on for longer than it was to
	for _, c := range plan.Open {
		if c.Until > c.Was {
			opens[c.Label] = true
		}
	}
	held := map[string]bool{}
	for _, end := range a.have.Openings {
		held[end.Label] = true
	}
	for _, v := range w.decision.Verdicts {
		id := v.Grant.ID
		_, live := w.live[id]
		was, running := a.live[id]
		if !live || running && was.same(v.Grant) {
			continue
		}
		// After a restart the kernel still holds what was opened and recorded
		// before.
		if !a.applied && held[id] && !opens[id] {
			continue
		}
		s.intents = append(s.intents, grantEvent(audit.GrantOpening, v))
		s.opened = append(s.opened, grantEvent(audit.GrantOpened, v))
	}
	now := a.Clock.Boot()
	for id, g := range a.live {
		// A grant with another end goes on; one for other sources or another
		// port took the place of this one.
		if next, ok := w.live[id]; ok && next.Number == g.Number && slices.Equal(next.Sources, g.Sources) {
			continue
		}
		name := audit.GrantRevoked
		if g.until <= now {
			name = audit.GrantExpired
		}
		s.always = append(s.always, grantEvent(name, policy.Verdict{Grant: g.Grant, Port: g.port}))
	}
	reported := map[string]policy.Code{}
	for _, v := range w.decision.Verdicts {
		code := policy.CodeOf(v.Refusal)
		if code == "" {
			continue
		}
		reported[v.Grant.ID] = code
		if a.reported[v.Grant.ID] != code {
			s.always = append(s.always, grantEvent(audit.GrantRefused, v))
			a.Log.Warn("grant refused", "grant", v.Grant.ID, "error", v.Refusal)
		}
	}
	a.reported = reported
	return s
}

var sentences = map[audit.Name]string{
	audit.GrantOpening: "about to open port %d for %s",
	audit.GrantOpened:  "port %d is open for %s",
	audit.GrantExpired: "the time is up: port %d is closed for %s",
	audit.GrantRevoked: "port %d is closed for %s before its time",
	audit.GrantRefused: "port %d stays closed for %s",
}

func grantEvent(name audit.Name, v policy.Verdict) audit.Event {
	sources := sourcesText(v.Grant.Sources)
	e := audit.Event{
		Name: name, Message: fmt.Sprintf(sentences[name], v.Grant.Number, sources),
		GrantID: v.Grant.ID, Port: v.Grant.Number, Protocol: string(v.Port.Protocol), Source: sources,
		End: v.Grant.End, Requestor: v.Grant.Requestor, Reason: v.Grant.Justification,
	}
	if v.Refusal != nil {
		e.Code = string(policy.CodeOf(v.Refusal))
		e.Message += ": " + v.Refusal.Error()
	}
	return e
}
