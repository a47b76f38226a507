//go:build linux

package e2e_test

import (
	"crypto/sha256"
	"fmt"
	"os"
	"regexp"
	"slices"
	"testing"
	"time"
)

func TestThreatKillsTheAgent(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	h.allow(1, with(grant("g1", 22, 0, alice4+"/32"), object{"endTimeUtc": stamp(end)}))
	h.kill()
	stop := h.watch(way{"22/tcp", alice4})
	h.isClosed(ways("22/tcp", bob4, bob6))
	time.Sleep(time.Until(end.Add(-2 * answerTime)))
	stop()
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", alice4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.isClosed(ways("22/tcp", bob4, bob6)) // the guard stays with nobody behind it
}

// timeouts are those of the set elements: made anew, they would be shorter.
var timeouts = regexp.MustCompile(`timeout \S+ expires`)

func TestRestartKeepsOpenings(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(*host){"stopped": (*host).stop, "killed": (*host).kill} {
		t.Run(name, func(t *testing.T) {
			h := guarding(t, port(22, "TCP"))
			h.allow(1, grant("g1", 22, time.Minute, alice4+"/32"))
			before := timeouts.FindAllString(h.ruleset("list", "set", "inet", "jitgate", "g4_32"), -1)
			opened := len(h.events("grant.opened"))
			stop := h.watch(way{"22/tcp", alice4})
			for range 3 {
				end(h)
				h.start()
				if s := h.status(); !s.isOpen("g1") || s.document("grants").Version != 1 {
					t.Errorf("after the restart status says %+v", s)
				}
			}
			stop()
			h.isClosed(ways("22/tcp", bob4))
			after := timeouts.FindAllString(h.ruleset("list", "set", "inet", "jitgate", "g4_32"), -1)
			if len(before) != 1 || !slices.Equal(before, after) {
				t.Errorf("the element was made anew: %v, then %v", before, after)
			}
			if again := len(h.events("grant.opened")); again != opened {
				t.Errorf("%d grants recorded as opened, after the restarts %d", opened, again)
			}
		})
	}
}

// What an agent has admitted it knows by heart.
func TestRestartWithEmptyInbox(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"), port(3389, "*"))
	h.allow(1, grant("g1", 22, time.Minute, alice4+"/32"))
	h.kill()
	for _, name := range []string{"trust.json", "policy.json", "grants.json"} {
		if err := os.Remove(h.path("inbox", name)); err != nil {
			t.Fatal(err)
		}
	}
	h.vm.run(t, "nft", "delete", "table", "inet", "jitgate") // the kernel forgets at a reboot
	h.start()
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4), ways("3389/tcp", bob4), ways("3389/udp", alice4))
	if s := h.status(); s.document("trust").Version != 1 || s.document("policy").Version != 1 || s.document("grants").Version != 1 || !s.isOpen("g1") {
		t.Errorf("status says %+v", s)
	}
	// The mark came along too: what was admitted before does not come back.
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1)))
	h.recorded("document.refused", "grants", "equivocation")
}

// Another pin is another realm: nothing of the old one counts, and its ports
// stay closed all the same.
func TestRestartWithOtherPin(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(3389, "TCP"))
	h.allow(7, grant("g1", 3389, time.Minute, alice4+"/32"))
	h.isOpen(ways("3389/tcp", alice4))
	old := h.realm
	h.stop()

	h.realm = newRealm(t, "umbrella")
	trust := encode(h.realm.trust(1))
	h.settings["trust_pin"] = quote(fmt.Sprintf("sha256:%x", sha256.Sum256(trust)))
	h.start()
	h.isClosed(ways("3389/tcp", alice4, bob4))
	h.recorded("document.refused", "trust", "bad-signature")
	if s := h.status(); s.document("trust").Version != 0 || s.document("grants").Version != 0 {
		t.Errorf("status says %+v", s)
	}
	h.deliver("trust.json", seal("trust", trust, h.realm.root))
	h.put(1, h.realm.rules(1, port(3389, "TCP")))
	h.allow(1, grant("g2", 3389, time.Minute, bob4+"/32"))
	h.isOpen(ways("3389/tcp", bob4))
	h.isClosed(ways("3389/tcp", alice4))
	h.deliver("grants.json", old.sign("grants", old.list(8, grant("g1", 3389, time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "grants", "bad-signature")
	h.isClosed(ways("3389/tcp", alice4))
}

// A clock that stands before the newest signed time is wrong: nothing opens.
// The program itself is such a time.
func TestClockBehind(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	var err error
	if h.program, err = build("jitgate-of-2099", "-X github.com/jitgate/jitgate/cli.built=2099-01-01T00:00:00Z"); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.deliver("policy.json", h.realm.sign("policy", h.realm.rules(1, port(22, "TCP"))))
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1, grant("g1", 22, time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "trust", "clock-behind")
	h.isClosed(ways("22/tcp", alice4, bob6))
}
