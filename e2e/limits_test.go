//go:build linux

package e2e_test

import (
	"testing"
	"time"
)

func TestPolicyEndsItsOpenings(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	end := time.Now().Add(3 * time.Second).Truncate(time.Second)
	h.put(2, with(h.realm.rules(2, port(22, "TCP")), object{"expires": stamp(end)}))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", alice4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.until("the policy should be over", func(s status) bool { return s.Blocked != "" })
	h.put(3, h.realm.rules(3, port(22, "TCP"))) // and a new one lets the grant in again
	h.isOpen(ways("22/tcp", alice4))
}

// With maxUnattended an opening is a lease: the living agent renews it, a dead
// one does not.
func TestUnattendedOpeningsEnd(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"maxUnattended": "PT2S"}))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	stop := h.watch(way{"22/tcp", alice4})
	time.Sleep(3500 * time.Millisecond)
	stop()
	h.kill()
	h.closes(4*time.Second, ways("22/tcp", alice4))
}

// One grant outside the policy is dropped alone, and recorded.
func TestThreatExceedsThePolicy(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1,
		with(port(22, "TCP"), object{"allowedSourceAddressPrefixes": []string{"10.77.0.0/24", "fd77::/64"}, "maxRequestAccessDuration": "PT1H"}),
	), object{"narrowestPrefix4": 24, "narrowestPrefix6": 128}))
	h.allow(1,
		grant("other-port", 3389, time.Minute, bob4+"/32"),
		grant("other-source", 22, time.Minute, carol4+"/32"),
		grant("one-of-two-sources", 22, time.Minute, bob4+"/32", carol4+"/32"),
		grant("long", 22, 2*time.Hour, bob4+"/32"),
		grant("wide", 22, time.Minute, "10.77.0.0/16"),
		grant("anybody", 22, time.Minute, "*"),
		grant("wide-v6", 22, time.Minute, "fd77::/127"),
		with(grant("for-ever", 22, time.Minute, bob4+"/32"), object{"endTimeUtc": "9999-12-31T23:59:59Z"}),
		grant("back-dated", 22, time.Minute, bob6+"/128"),
		grant("good", 22, time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4, bob6))
	h.isClosed(ways("22/tcp", bob4, carol4, alice6))
	refused := map[string]string{
		"other-port": "port-not-in-policy", "other-source": "source-not-allowed", "one-of-two-sources": "source-not-allowed",
		"long": "too-long", "wide": "too-wide", "anybody": "too-wide", "wide-v6": "too-wide", "for-ever": "too-long",
	}
	for id, code := range refused {
		h.recorded("grant.refused", id, code)
	}
	if events := h.events("grant.refused"); len(events) != len(refused) {
		t.Errorf("%d refusals recorded, want %d: %v", len(events), len(refused), events)
	}
	if s := h.status(); len(s.Refused) != len(refused) || len(s.Openings) != 2 {
		t.Errorf("status says %+v", s)
	}
}
