//go:build linux

package e2e_test

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// trusts delivers the realm's trust document and waits until it is in force.
func (h *host) trusts(version int) {
	h.t.Helper()
	h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(version)))
	h.until(fmt.Sprintf("trust version %d should be in force", version), func(s status) bool { return s.document("trust").Version == uint64(version) })
}

// The grant key was stolen, and the thief used up the versions. The next trust
// document names another key and raises the epoch: from then on the thief's
// lists are worth nothing, and counting begins anew.
func TestThreatBurnsTheCounter(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	thief := h.realm
	h.allow(1<<53-1, grant("thief", 22, 30*time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))

	h.realm.grant, h.realm.epoch = newKey(t), 2
	h.trusts(2)
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
	h.trusts(3)
	stop() // none of that concerned the grant
	h.stop()
	h.start()
	h.isOpen(ways("22/tcp", alice4))
}

// Policy keys were stolen, and the thieves widened the policy and used up its
// versions. The next trust document takes their word away and counts anew.
func TestThreatStealsPolicyKeys(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	thief := h.realm
	h.put(1<<53-1, with(h.realm.rules(1<<53-1, port(22, "TCP")), object{"exemptSourceAddressPrefixes": []string{bob4 + "/32"}}))
	h.isOpen(ways("22/tcp", bob4))

	h.realm.policy, h.realm.policyEpoch = newKey(t), 1
	h.trusts(2)
	h.isClosed(ways("22/tcp", bob4, alice4)) // still guarded, though no policy says so
	h.deliver("policy.json", thief.sign("policy", thief.rules(1<<53-1)))
	h.recorded("document.refused", "policy", "bad-signature")
	h.deliver("policy.json", seal("policy", encode(thief.rules(7, port(22, "TCP"))), h.realm.policy))
	h.recorded("document.refused", "policy", "rollback")

	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	h.kill()
	h.start()
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
}

// One of two grant signers is taken away: what he signed ends at once, his
// sessions with it; what the other one signs goes on.
func TestThreatRevokedSigner(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	alice, eve := h.realm, h.realm
	eve.grant = newKey(t)
	two := func(version int) object {
		trust := h.realm.trust(version)
		trust["keys"] = append(trust["keys"].([]object), eve.grant.public())
		for _, role := range trust["roles"].([]object) {
			if role["name"] == "grant" {
				role["keys"] = []string{alice.grant.id, eve.grant.id}
			}
		}
		return trust
	}
	h.deliver("trust.json", h.realm.sign("trust", two(2)))
	h.until("both signers should count", func(s status) bool { return s.document("trust").Version == 2 })
	h.deliver("grants.json", eve.sign("grants", eve.list(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))))
	h.until("her list should be in force", func(s status) bool { return s.isOpen("g1") })
	session := h.login("tcp")

	h.trusts(3) // only alice's key
	h.isClosed(ways("22/tcp", alice4))
	if !session.isReset(patience) {
		t.Error("the session goes on")
	}
	h.recorded("grant.revoked", "g1", "")
	h.deliver("grants.json", eve.sign("grants", eve.list(2, grant("g1", 22, 30*time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "grants", "bad-signature")
	h.allow(2, grant("g2", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
}

// A host that was switched off for years walks past the trust documents of
// that time one by one, works on none that is over, and takes no short cut.
func TestTrustDocumentsMissed(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	versions := map[int][]byte{}
	for v := 2; v <= 4; v++ {
		old := h.realm.root
		h.realm.root = newKey(t)
		document := h.realm.trust(v)
		if v < 4 {
			document = with(document, object{"issued": in(-2 * time.Hour), "expires": in(-time.Hour)})
		}
		versions[v] = seal("trust", encode(document), old, h.realm.root)
	}
	h.deliver("trust.json", versions[4])
	h.recorded("document.refused", "trust", "bad-signature") // its signers mean nothing here yet
	h.isOpen(ways("22/tcp", alice4))

	h.deliver("trust.json", versions[2])
	h.until("the one that is over should be taken", func(s status) bool {
		return s.document("trust").Version == 2 && strings.HasPrefix(s.Blocked, "expired")
	})
	h.isClosed(ways("22/tcp", alice4))
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(2, grant("g2", 22, 30*time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "grants", "expired")

	h.deliver("trust.json", versions[3])
	h.until("so should the next", func(s status) bool {
		return s.document("trust").Version == 3 && strings.HasPrefix(s.Blocked, "expired")
	})
	h.deliver("trust.json", versions[4])
	h.until("and the last", func(s status) bool { return s.document("trust").Version == 4 && s.Blocked == "" })
	h.isOpen(ways("22/tcp", alice4))

	// The same signers cannot leave one out either.
	h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(6)))
	h.recorded("document.refused", "trust", "not-yet")
	h.trusts(5)
	h.deliver("trust.json", versions[3])
	h.recorded("document.refused", "trust", "bad-signature")
	h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(4)))
	h.recorded("document.refused", "trust", "rollback")
}
