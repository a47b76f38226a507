package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
	"github.com/jitgate/jitgate/policy"
)

// closesAtBoot requires that the machine closes these ports when it starts,
// and no others; none: that it closes nothing.
func (w *world) closesAtBoot(what string, ports ...string) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.Settings.StateDir, baselineFile))
	if len(ports) == 0 {
		if !errors.Is(err, fs.ErrNotExist) {
			w.t.Errorf("%s: the machine closes at its start (%v)\n%s", what, err, text)
		}
		return
	}
	if want := nft.Baseline(fwtest.Ports(w.t, ports...)); err != nil || string(text) != string(want) {
		w.t.Errorf("%s: %v\n%s\nwant\n%s", what, err, text, want)
	}
}

// What a machine closes when it starts follows the guard, and only one that
// stands for good: a trial, and a guard that observes or is gone, close nothing.
func TestBaselineFollowsTheGuard(t *testing.T) {
	w := observingWorld(t)
	w.closesAtBoot("observing")
	w.mustArm(time.Minute)
	w.closesAtBoot("on trial")
	if err := w.confirm(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.closesAtBoot("confirmed", "22/tcp")
	w.restart()
	w.mustPass(0)
	w.closesAtBoot("confirmed and restarted", "22/tcp")
	if err := os.Remove(filepath.Join(w.Settings.StateDir, baselineFile)); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.mustPass(0)
	w.closesAtBoot("removed by somebody, and restarted", "22/tcp")
	for _, mode := range []Mode{Observe, Off} {
		if err := w.disarm(t.Context(), "uid 0", mode); err != nil {
			t.Fatal(err)
		}
		w.closesAtBoot("disarmed: " + string(mode))
		w.mustArm(time.Minute)
		if err := w.confirm(t.Context(), "uid 0"); err != nil {
			t.Fatal(err)
		}
		w.closesAtBoot("armed again", "22/tcp")
	}
	w.mustPass(0)
	if err := w.disarm(t.Context(), "uid 0", Observe); err != nil {
		t.Fatal(err)
	}
	w.mustArm(time.Minute)
	w.mustPass(2 * time.Minute)
	w.closesAtBoot("a trial that nobody confirmed")
}

// The ports are those of the policy admitted last, and are on the disk before
// the guard has them.
func TestBaselineFollowsThePolicy(t *testing.T) {
	w := newWorld(t)
	w.mustPass(0)
	w.closesAtBoot("no policy", "22/tcp", "22/udp")
	w.deliver(func(p *policy.Policy) { p.Ports[0].EndNumber = 25 })
	w.fake.Fail = func(firewall.Plan) error { return errors.New("the kernel refuses") }
	if err := w.pass(time.Second); err == nil {
		t.Fatal("the kernel takes what it should refuse")
	}
	w.closesAtBoot("the guard has not come that far", "22-25/tcp")
}

// An agent that does not know how the guard stood leaves the file as it is.
func TestBaselineOfADamagedState(t *testing.T) {
	for name, damaged := range map[string]string{"mark": markFile, "mode": modeFile} {
		t.Run(name, func(t *testing.T) {
			for _, armed := range []bool{true, false} {
				w := newWorld(t)
				w.Settings.Mode = Observe
				if armed {
					w.Settings.Mode = Enforce
				}
				w.restart()
				w.deliver()
				w.mustPass(0)
				path := filepath.Join(w.Settings.StateDir, baselineFile)
				before, _ := os.ReadFile(path)
				if armed != (before != nil) {
					t.Fatalf("armed %t: %s", armed, before)
				}
				if err := os.WriteFile(filepath.Join(w.Settings.StateDir, damaged), []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
				w.restart()
				_ = w.pass(0)
				if after, _ := os.ReadFile(path); string(after) != string(before) {
					t.Errorf("armed %t: it was\n%s\nand is\n%s", armed, before, after)
				}
			}
		})
	}
}

// A file that cannot be removed would close a disarmed machine: that is said.
func TestBaselineThatStays(t *testing.T) {
	w := newWorld(t)
	w.mustPass(0)
	path := filepath.Join(w.Settings.StateDir, baselineFile)
	if err := errors.Join(os.Remove(path), os.MkdirAll(filepath.Join(path, "in the way"), 0o700)); err != nil {
		t.Fatal(err)
	}
	err := w.disarm(t.Context(), "uid 0", Observe)
	if err == nil || !strings.Contains(err.Error(), baselineFile) {
		t.Errorf("disarming with a baseline that stays: %v", err)
	}
	w.wantOpen(bob, true)
	if problem := w.snapshot(t.Context()).Problem; !strings.Contains(problem, baselineFile) {
		t.Errorf("problem %q", problem)
	}
	if w.next.Sub(w.boot) > time.Second {
		t.Errorf("tried again after %s", w.next.Sub(w.boot))
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	w.mustPass(time.Second)
	if problem := w.snapshot(t.Context()).Problem; problem != "" {
		t.Errorf("problem %q", problem)
	}
	w.closesAtBoot("disarmed")
}
