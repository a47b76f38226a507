//go:build linux

package e2e_test

import (
	"testing"
	"time"
)

// Others on the host write into the firewall while the agent runs. Where the
// kernel lets the agent own its table they fail, or pass it by; on older ones
// the agent mends what they did, and that may take a moment.
func TestStrangers(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"), port(3389, "*"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32", alice6+"/128"))
	open := ways("22/tcp", alice4, alice6)
	shut := append(ways("22/tcp", bob4, bob6), ways("3389/udp", alice4, bob6)...)
	for _, c := range [][]string{
		{"flush", "ruleset"},
		{"delete", "table", "inet", "jitgate"},
		{"flush", "table", "inet", "jitgate"},
		{"insert", "rule", "inet", "jitgate", "pre", "accept"},
		{"add", "rule", "inet", "jitgate", "guard", "accept"},
		{"insert", "rule", "inet", "jitgate", "deny", "accept"},
		{"flush", "chain", "inet", "jitgate", "pre"},
		{"flush", "chain", "inet", "jitgate", "deny"},
		{"flush", "set", "inet", "jitgate", "g4_32"},
		{"add", "element", "inet", "jitgate", "g4_32", "{ " + bob4 + " . tcp . 22 }"},
		{"add", "element", "inet", "jitgate", "g4_32", "{ " + bob4 + " . udp . 3389 timeout 1h }"},
		{"add", "chain", "inet", "jitgate", "deny", "{ policy accept; }"},
		{"add", "table", "inet", "jitgate", "{ flags dormant; }"},
	} {
		out, err := h.vm.try("nft", c...)
		t.Logf("nft %v: %v %s", c, err, out)
		if h.status().others() {
			h.closes(2*time.Second, shut)
			h.opens(2*time.Second, open)
		}
		h.isClosed(shut)
		h.isOpen(open)
	}
	h.until("the guard should be whole", func(s status) bool { return s.Intact && s.Problem == "" })
}

// What others keep in tables of their own is theirs.
func TestOthersTablesStay(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.vm.run(t, "nft", "add table inet mine; add chain inet mine input { type filter hook input priority 0; policy accept; }; add rule inet mine input tcp dport 22 counter accept")
	before := h.ruleset("list", "table", "inet", "mine")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.isClosed(ways("22/tcp", alice4)) // their accept does not open it
	h.stop()
	if after := h.ruleset("list", "table", "inet", "mine"); after != before {
		t.Errorf("the table was\n%s\nand is\n%s", before, after)
	}
}
