//go:build linux

package e2e_test

import (
	"testing"
	"time"
)

// The grant key was stolen, and the thief used up the versions. The next trust
// document names another key and raises the epoch: from then on the thief's
// lists are worth nothing, and counting begins anew.
func TestStolenGrantKey(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	thief := h.realm
	h.allow(1<<53-1, grant("thief", 22, 30*time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))

	h.realm.grant, h.realm.epoch = newKey(t), 2
	h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(2)))
	h.until("the next trust document should be in force", func(s status) bool { return s.document("trust").Version == 2 })
	h.isClosed(ways("22/tcp", bob4, alice4))

	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	thief.epoch = 3
	h.deliver("grants.json", thief.sign("grants", thief.list(1, grant("thief", 22, 30*time.Minute, bob4+"/32"))))
	h.recorded("document.refused", "grants", "bad-signature")

	// All of that outlives the agent.
	h.kill()
	h.start()
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
}

// A change of root keys needs the old ones and the new ones.
func TestNewRootKey(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	stop := h.watch(way{"22/tcp", alice4})
	old := h.realm.root
	h.realm.root = newKey(t)
	h.deliver("trust.json", seal("trust", encode(h.realm.trust(2)), old, h.realm.root))
	h.until("the next trust document should be in force", func(s status) bool { return s.document("trust").Version == 2 })
	h.deliver("trust.json", seal("trust", encode(h.realm.trust(3)), old))
	h.recorded("document.refused", "trust", "bad-signature")
	h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(3)))
	h.until("the next trust document should be in force", func(s status) bool { return s.document("trust").Version == 3 })
	stop() // none of that concerned the grant
	h.stop()
	h.start()
	h.isOpen(ways("22/tcp", alice4))
}
