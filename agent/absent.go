package agent

import (
	"context"
	"errors"
	"fmt"

	"github.com/jitgate/jitgate/firewall"
)

// errAbsent is the error of whatever takes a firewall while there is none.
var errAbsent = errors.New("nothing is guarded by this agent: the firewall cannot be opened")

// Await is a backend for a host whose firewall may come up later than the
// agent, or not at all: it is opened when that can be done. Until then an agent
// verifies and records what is delivered, says that it guards nothing, and
// tries again with each pass. What an earlier agent left closed stays closed.
func Await(open func() (firewall.Backend, error)) firewall.Backend {
	w := &awaited{open: open}
	_ = w.try() // said by whatever takes the firewall
	return w
}

// awaited passes calls on to the real backend once there is one.
type awaited struct {
	open func() (firewall.Backend, error)
	real firewall.Backend // nil: not yet
	why  error
}

func (w *awaited) try() error {
	if w.real != nil {
		return nil
	}
	real, err := w.open()
	if err != nil {
		w.why = fmt.Errorf("%w: %w", errAbsent, err)
		return w.why
	}
	w.real, w.why = real, nil
	return nil
}

func (w *awaited) Observe(ctx context.Context) (firewall.Observed, error) {
	if err := w.try(); err != nil {
		return firewall.Observed{}, err
	}
	return w.real.Observe(ctx)
}

func (w *awaited) Apply(ctx context.Context, p firewall.Plan) error {
	if err := w.try(); err != nil {
		return err
	}
	return w.real.Apply(ctx, p)
}

func (w *awaited) Remove(ctx context.Context) error {
	if err := w.try(); err != nil {
		return err
	}
	return w.real.Remove(ctx)
}

func (w *awaited) Changes() <-chan firewall.Alteration {
	if w.real == nil {
		return nil
	}
	return w.real.Changes()
}

// Denied is nothing while there is no firewall: who asks to change something
// hears of that.
func (w *awaited) Denied(ctx context.Context) (firewall.Denied, error) {
	if w.real == nil {
		return firewall.Denied{}, nil
	}
	return w.real.Denied(ctx)
}

func (w *awaited) Flows(ctx context.Context, look bool) (firewall.Flows, error) {
	if w.real == nil {
		return firewall.Flows{}, nil
	}
	return w.real.Flows(ctx, look)
}

func (w *awaited) Describe() string {
	if w.real == nil {
		return "none"
	}
	return w.real.Describe()
}

func (w *awaited) Close() error {
	if w.real == nil {
		return nil
	}
	return w.real.Close()
}

// absent says why there is no firewall, or nil.
func (a *Agent) absent() error {
	if w, ok := a.Backend.(*awaited); ok {
		return w.why
	}
	return nil
}

// toldMode is the mode as it is said to people: an agent without a firewall
// enforces nothing, whatever it is meant to.
func (a *Agent) toldMode() Mode {
	if mode := a.mode().Mode; mode != Enforce || a.absent() == nil {
		return mode
	}
	return Observe
}
