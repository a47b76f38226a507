package agent

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

// Other settings are in force at once, and what is open stays.
func TestAdoptSettings(t *testing.T) {
	w := observingWorld(t)
	s := w.Settings
	s.Mode = Enforce
	if err := w.adopt(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.wantRecord("agent.reloaded")
	w.wantMode(Enforce)
	w.wantOpen(alice, true)
	w.wantOpen(bob, false)

	// Not the ports of a host that has a policy.
	s.Guard = fwtest.Ports(t, "2222/tcp")
	if err := w.adopt(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.wantOpen(bob, false)
	w.wantRecord("agent.reloaded")

	bare := newWorld(t)
	bare.mustPass(0)
	s = bare.Settings
	s.Guard = fwtest.Ports(t, "2222/tcp")
	if err := bare.adopt(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if bare.fake.Admits(fwtest.Door(t, bob, "2222/tcp")) || !bare.fake.Admits(fwtest.Door(t, bob, "22/tcp")) {
		t.Error("the guard has not the ports of the settings")
	}
}

// What an agent cannot take while it runs changes nothing.
func TestAdoptRefused(t *testing.T) {
	for name, edit := range map[string]func(*Settings){
		"host_id":   func(s *Settings) { s.HostID = "another" },
		"trust_pin": func(s *Settings) { s.TrustPin = policy.Digest{1} },
		"inbox_dir": func(s *Settings) { s.InboxDir += "2" },
		"state_dir": func(s *Settings) { s.StateDir += "2" },
		"socket":    func(s *Settings) { s.Socket += "2" },
	} {
		t.Run(name, func(t *testing.T) {
			w := observingWorld(t)
			s := w.Settings
			s.Mode = Enforce
			edit(&s)
			if err := w.adopt(t.Context(), s); err == nil || !strings.Contains(err.Error(), name+" changes only when the agent starts") {
				t.Errorf("%v", err)
			}
			w.mustPass(time.Second)
			w.wantMode(Observe)
			w.wantRecord()
		})
	}
	w := observingWorld(t)
	s := w.Settings
	s.Mode = Enforce
	w.record.fail = errors.New("disk full")
	if err := w.adopt(t.Context(), s); policy.CodeOf(err) != policy.NotDurable {
		t.Errorf("not recorded: %v", err)
	}
	w.wantMode(Observe)
	w.wantOpen(bob, true)
}
