package winfw

import (
	"context"
	"fmt"

	"github.com/jitgate/jitgate/firewall"
)

// Absent stands in for a platform that is not there. It takes a guard that only
// observes, as nothing would be dropped then anyway, and refuses one that
// drops: an agent on it stays up, and never says that it guards.
type Absent struct {
	Why error

	rules firewall.Ruleset
	there bool
}

var _ firewall.Backend = (*Absent)(nil)

func (a *Absent) why() error { return fmt.Errorf("nothing is guarded here: %w", a.Why) }

// Observe implements firewall.Backend.
func (a *Absent) Observe(context.Context) (firewall.Observed, error) {
	return firewall.Observed{Ruleset: a.rules, Intact: a.there}, nil
}

// Apply implements firewall.Backend.
func (a *Absent) Apply(_ context.Context, p firewall.Plan) error {
	if p.Empty() {
		return nil
	}
	next := p.Apply(a.rules)
	if !next.Observe && len(next.Ports) > 0 {
		return a.why()
	}
	a.rules, a.there = next, true
	return nil
}

// Changes implements firewall.Backend.
func (a *Absent) Changes() <-chan firewall.Alteration { return nil }

// Denied implements firewall.Backend. Its error keeps a status from looking
// well, and an agent from being armed.
func (a *Absent) Denied(context.Context) (firewall.Denied, error) {
	return firewall.Denied{}, a.why()
}

// Flows implements firewall.Backend.
func (a *Absent) Flows(context.Context, bool) (firewall.Flows, error) {
	return firewall.Flows{Incomplete: true}, nil
}

// Remove implements firewall.Backend: there is nothing.
func (a *Absent) Remove(context.Context) error {
	a.rules, a.there = firewall.Ruleset{}, false
	return nil
}

// Describe implements firewall.Backend.
func (a *Absent) Describe() string { return a.why().Error() }

// Close implements firewall.Backend.
func (a *Absent) Close() error { return nil }
