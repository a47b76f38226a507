//go:build linux

package e2e_test

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestClosedBeforeAnyDocument(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	everybody := []string{alice4, alice6, bob4, bob6, carol4}
	guarded := [][]way{ways("22/tcp", everybody...), ways("22/udp", everybody...)}
	free := [][]way{ways("23/tcp", everybody...), ways("23/udp", everybody...)}
	h.isOpen(guarded...) // nothing guards it yet: the knocks are real
	h.start()
	h.isClosed(guarded...)
	h.isOpen(free...)
	if s := h.status(); !s.Intact || s.Mode != "enforce" || !slices.Equal(s.Guarded, []string{"22/tcp", "22/udp"}) || !strings.Contains(s.Blocked, "policy") {
		t.Errorf("status says %+v", s)
	}
}

// Without a pin, whoever can write the inbox could bring a realm along.
func TestClosedWithoutPin(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	delete(h.settings, "trust_pin")
	h.start()
	h.deliver("policy.json", h.realm.sign("policy", h.realm.rules(1, port(22, "TCP"))))
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1, grant("g1", 22, time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "trust", "unsigned")
	h.recorded("document.refused", "grants", "unsigned")
	h.isClosed(ways("22/tcp", alice4))
}

func TestGrantOpensExactlyThat(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"), port(3389, "*"), with(port(5985, "TCP"), object{"endNumber": 5986}), port(53, "UDP"))
	all := slices.Concat(ways("22/tcp", alice4, alice6, bob4, bob6), ways("3389/tcp", alice4, bob6), ways("3389/udp", alice4, bob6),
		ways("5985/tcp", alice4), ways("5986/tcp", alice4, alice6), ways("53/udp", alice4, alice6))
	h.isClosed(all)
	h.isOpen(ways("22/udp", bob4), ways("53/tcp", bob4), ways("5984/tcp", bob4), ways("5987/tcp", bob4)) // not in the policy

	h.allow(1,
		grant("v4", 22, time.Minute, alice4+"/32"), grant("v6", 22, time.Minute, alice6+"/128"),
		grant("both", 3389, time.Minute, alice4+"/32", alice6+"/128"),
		grant("in-range", 5985, time.Minute, alice4+"/32", alice6+"/128"),
		grant("udp", 53, time.Minute, alice6+"/128"))
	h.isOpen(ways("22/tcp", alice4, alice6), ways("3389/tcp", alice4, alice6), ways("3389/udp", alice4, alice6),
		ways("5985/tcp", alice4, alice6), ways("53/udp", alice6))
	h.isClosed(ways("22/tcp", bob4, bob6, carol4), ways("3389/tcp", bob4, bob6), ways("3389/udp", bob4, bob6),
		ways("5985/tcp", bob4), ways("5986/tcp", alice4, alice6), ways("53/udp", alice4, bob6))

	// A net, the neighbour outside it, and everybody.
	h.allow(2, grant("net", 22, time.Minute, "10.77.0.0/30", "fd77::/127"), grant("any4", 5986, time.Minute, "0.0.0.0/0"), grant("any", 3389, time.Minute, "*"))
	h.isOpen(ways("22/tcp", alice4, bob4), ways("5986/tcp", alice4, bob4, carol4), ways("3389/tcp", alice4, bob6, carol4), ways("3389/udp", bob4, bob6))
	h.isClosed(ways("22/tcp", carol4, alice6, bob6), ways("5986/tcp", alice6), ways("5985/tcp", alice4), ways("53/udp", alice6))
}

func TestGrantEndsByItself(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	h.allow(1, with(grant("short", 22, 0, alice4+"/32"), object{"endTimeUtc": stamp(end)}), grant("long", 22, time.Minute, bob4+"/32"))
	stop := h.watch(way{"22/tcp", alice4})
	time.Sleep(time.Until(end.Add(-2 * answerTime))) // it must stay until then
	stop()
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", alice4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.recorded("grant.expired", "short", "")
	h.isOpen(ways("22/tcp", bob4))
}

func TestGrantBeginsByItself(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	start := time.Now().Add(3 * time.Second).Truncate(time.Second)
	h.allow(1, with(grant("later", 22, time.Minute, alice4+"/32"), object{"startTimeUtc": stamp(start)}))
	if s := h.status(); len(s.Pending) != 1 || s.Pending[0].Grant != "later" || len(s.Openings) != 0 {
		t.Errorf("status says %+v", s)
	}
	h.isClosed(ways("22/tcp", alice4))
	h.opens(time.Until(start.Add(2*time.Second)), ways("22/tcp", alice4))
	if early := time.Until(start); early > 0 {
		t.Errorf("opened %s before its start", early)
	}
}

func TestRevocationClosesAtOnce(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	stays := grant("stays", 22, time.Minute, bob4+"/32")
	h.allow(1, grant("goes", 22, time.Minute, alice4+"/32"), stays)
	h.isOpen(ways("22/tcp", alice4, bob4))
	stop := h.watch(way{"22/tcp", bob4})
	h.allow(2, stays)
	h.isClosed(ways("22/tcp", alice4))
	stop()
	h.recorded("grant.revoked", "goes", "")
	h.allow(3)
	h.isClosed(ways("22/tcp", bob4))
}

func TestExtensionHasNoGap(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 3*time.Second, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	stop := h.watch(way{"22/tcp", alice4})
	h.allow(2, grant("g1", 22, time.Minute, alice4+"/32"))
	time.Sleep(4 * time.Second) // past the first end
	stop()
	h.allow(3, grant("g1", 22, time.Second, alice4+"/32")) // and shorter again
	h.closes(3*time.Second, ways("22/tcp", alice4))
}

// Where two grants ask for the same, the later end counts, until its grant goes.
func TestOverlappingGrants(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	short := with(grant("short", 22, 0, alice4+"/32"), object{"endTimeUtc": stamp(end)})
	h.allow(1, short, grant("long", 22, time.Minute, alice4+"/32"))
	stop := h.watch(way{"22/tcp", alice4})
	h.allow(2, short)
	h.recorded("grant.revoked", "long", "")
	time.Sleep(time.Until(end.Add(-2 * answerTime)))
	stop()
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", alice4))
}

// A container's published port is guarded too: what rewrites destinations
// comes after the guard.
func TestPublishedPort(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.vm.run(t, "nft", "add table ip nat; add chain ip nat pre { type nat hook prerouting priority dstnat; }; add rule ip nat pre tcp dport 2222 redirect to :8022")
	h.start()
	h.put(1, h.realm.rules(1, port(2222, "TCP")))
	h.isClosed(ways("2222/tcp", alice4, bob4))
	h.allow(1, grant("g1", 2222, time.Minute, alice4+"/32"))
	h.isOpen(ways("2222/tcp", alice4))
	h.isClosed(ways("2222/tcp", bob4))
}

func TestLockdown(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	first := grant("first", 22, time.Minute, alice4+"/32")
	start := time.Now().Add(3 * time.Second)
	later := with(grant("later", 22, time.Minute, bob4+"/32"), object{"startTimeUtc": stamp(start)})
	h.allow(1, first, later)
	h.isOpen(ways("22/tcp", alice4))
	h.must("lockdown", "--config", h.config())
	h.isClosed(ways("22/tcp", alice4))
	h.recorded("guard.lockdown", "", "")
	if by := h.events("guard.lockdown")[0].By; !strings.HasPrefix(by, "uid 0, pid ") {
		t.Errorf("the record says %q did it", by)
	}
	h.stop()
	h.start()
	h.isClosed(ways("22/tcp", alice4))

	// What was listed stays shut, even on a newer list; what is new opens.
	h.allow(2, first, later, grant("second", 22, time.Minute, bob6+"/128"))
	h.isOpen(ways("22/tcp", bob6))
	h.isClosed(ways("22/tcp", alice4))
	time.Sleep(time.Until(start.Add(answerTime)))
	h.isClosed(ways("22/tcp", alice4, bob4))
}

func TestExemptSourceEndsWithPolicy(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.isClosed(ways("22/tcp", alice4, bob4))
	end := time.Now().Add(4 * time.Second).Truncate(time.Second)
	h.put(2, with(h.realm.rules(2, port(22, "TCP"), port(3389, "*")), object{
		"expires": stamp(end), "exemptSourceAddressPrefixes": []string{bob4 + "/32", bob6 + "/128"}}))
	h.isOpen(ways("22/tcp", bob4, bob6), ways("3389/udp", bob4))
	h.isClosed(ways("22/tcp", alice4, alice6))
	if s := h.status(); len(s.Exempt) != 2 {
		t.Errorf("status shows the exempt sources %v", s.Exempt)
	}
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", bob4, bob6), ways("3389/udp", bob4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.isClosed(ways("3389/tcp", alice4)) // a policy that is over goes on guarding
}

func TestObserveDropsNothing(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.settings["mode"] = quote("observe")
	h.start()
	before := h.status()
	h.isOpen(ways("22/tcp", alice4, alice6), ways("22/udp", bob4))
	h.until("what would be dropped should be counted", func(s status) bool { return s.Denied >= before.Denied+3 })
	if before.Mode != "observe" {
		t.Errorf("mode %s", before.Mode)
	}
	// The same settings with mode enforce, and the other way round.
	h.stop()
	h.settings["mode"] = quote("enforce")
	h.start()
	h.isClosed(ways("22/tcp", alice4))
	h.stop()
	h.settings["mode"] = quote("observe")
	h.start()
	h.isOpen(ways("22/tcp", alice4))
}
