package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// absentee is a world whose firewall cannot be opened until it says so.
func absentee(t *testing.T) (w *world, there *error) {
	w = newWorld(t)
	why := errors.New("the engine does not run")
	there = &why
	w.Backend = Await(func() (firewall.Backend, error) { return w.fake, *there })
	return w, there
}

// Without a firewall an agent verifies and records, says that it guards
// nothing, and never that it enforces.
func TestWithoutFirewall(t *testing.T) {
	w, there := absentee(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	next, err := w.Step(t.Context())
	if !errors.Is(err, errAbsent) || !strings.Contains(err.Error(), "the engine does not run") {
		t.Fatalf("step: %v", err)
	}
	if wait := next.Sub(w.boot); wait > time.Second {
		t.Errorf("the next pass is in %s", wait)
	}
	s := w.snapshot(t.Context())
	if s.Mode != Observe || s.Firewall != "none" || s.Intact || !strings.Contains(s.Problem, "nothing is guarded") || len(s.Openings) > 0 {
		t.Errorf("status: %+v", s)
	}
	for _, d := range s.Docs {
		if d.Version == 0 {
			t.Errorf("%s is not in force: %s", d.Document, d.Refusal)
		}
	}
	if _, err := w.arm(t.Context(), "root", time.Minute, nil); !errors.Is(err, errAbsent) {
		t.Errorf("arm: %v", err)
	}
	if err := w.confirm(t.Context(), "root"); !errors.Is(err, errAbsent) {
		t.Errorf("confirm: %v", err)
	}
	if err := w.disarm(t.Context(), "root", Off); !errors.Is(err, errAbsent) {
		t.Errorf("a guard that cannot be removed is: %v", err)
	}
	if err := w.Backend.Apply(t.Context(), firewall.Plan{}); !errors.Is(err, errAbsent) {
		t.Errorf("apply: %v", err)
	}
	if err := w.Backend.Close(); err != nil {
		t.Error(err)
	}
	if *there == nil {
		t.Fatal("the firewall was there")
	}
}

// Once there is one, the agent guards as it is meant to.
func TestFirewallComesLate(t *testing.T) {
	w, there := absentee(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	if _, err := w.Step(t.Context()); !errors.Is(err, errAbsent) {
		t.Fatalf("step: %v", err)
	}
	*there = nil
	if _, err := w.Step(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := w.snapshot(t.Context())
	if s.Mode != Enforce || s.Firewall == "none" || !s.Intact || s.Problem != "" || !w.open(alice) {
		t.Errorf("status: %+v", s)
	}
	if w.open(bob) {
		t.Error("open to somebody without a grant")
	}
}
