//go:build linux

package e2e_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// nudge makes the agent look at its inbox, where the kernel knows of no change.
func nudge(t *testing.T, r *remote) {
	t.Helper()
	now := time.Now()
	for _, name := range []string{"trust.json", "policy.json", "grants.json"} {
		if err := os.Chtimes(r.dir+"/"+name, now, now); err != nil {
			t.Fatal(err)
		}
	}
}

// What a file server may do wrong short of being silent. What was in force
// stays, and once it is well what it holds counts.
func TestThreatRunsTheFileServer(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("good", 22, 30*time.Minute, alice4+"/32"))
	h.stop()
	server := mountRemote(t, h.path("inbox"))
	h.start()
	h.until("the agent should read from the server", func(s status) bool { return s.isOpen("good") && s.document("grants").Refusal == "" })
	version := uint64(1)
	for _, c := range []struct {
		name, want string // in the refusal; "": it is read
		day        badDay
	}{
		{"gone stale before the open", "stale", badDay{open: unix.ESTALE}},
		{"gone stale", "stale", badDay{read: unix.ESTALE}},
		{"a read fails in the middle", "input/output error", badDay{read: unix.EIO}},
		{"files are nobody's", "belongs to uid 65534", badDay{owner: 65534}},
		{"everything is nobody's", "", badDay{owner: 65534, inbox: 65534}}, // then it is nobody who delivers
		{"short reads", "", badDay{short: true}},
		{"a file that says it is empty", "", badDay{empty: true}},
		{"a file that says it is longer", "", badDay{size: 100 << 10}},
		{"a file that says it has 1 TiB", "too-large", badDay{size: 1 << 40}},
		{"a file without an end", "too-large", badDay{endless: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			version++
			server.has(c.day)
			server.put("grants.json", h.realm.sign("grants", h.realm.list(int(version),
				grant("good", 22, 30*time.Minute, alice4+"/32"), grant(fmt.Sprint("bob", version), 22, 30*time.Minute, bob4+"/32"))))
			nudge(t, server)
			if c.want == "" {
				h.until("it should be in force", func(s status) bool { return s.document("grants").Version == version })
				h.isOpen(ways("22/tcp", alice4, bob4))
				return
			}
			h.until("it should be refused", func(s status) bool { return strings.Contains(s.document("grants").Refusal, c.want) })
			if s := h.status(); s.document("grants").Version != version-1 || !s.isOpen("good") {
				t.Errorf("status says %+v", s)
			}
			h.isOpen(ways("22/tcp", alice4))
			server.has(badDay{})
			nudge(t, server)
			h.until("it should be in force", func(s status) bool { return s.document("grants").Version == version })
		})
	}
	h.t = t
}

// A file server that never answers. The agent goes on: it renews leases, ends
// what ends, takes a lockdown, and starts; and when the server answers again it
// reads what lies there then. No more than one reader waits for a document.
func TestInboxNeverAnswers(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"maxUnattended": "PT3S"}))
	stays, end := grant("stays", 22, 30*time.Minute, alice4+"/32"), time.Now().Add(12*time.Second).Truncate(time.Second)
	h.allow(1, stays, with(grant("ends", 22, 0, bob4+"/32"), object{"endTimeUtc": stamp(end)}))
	server := mountRemote(t, h.path("inbox"))
	server.has(badDay{silent: true})
	stop := h.watch(way{"22/tcp", alice4})
	h.until("status should say what is wrong", func(s status) bool {
		return strings.Contains(s.document("grants").Refusal, "no answer from") && s.document("grants").Version == 1
	})
	h.closes(time.Until(end)+patience, ways("22/tcp", bob4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	stop()
	if n := server.waiting(); n < 1 || n > 3 {
		t.Errorf("%d requests wait for an answer", n)
	}
	for _, document := range []string{"trust", "policy", "grants"} {
		n := 0
		for _, e := range h.events("document.refused") {
			if e.Document == document {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d refusals of %s are recorded", n, document)
		}
	}

	// It answers, and has a list without the grant.
	server.put("grants.json", h.realm.sign("grants", h.realm.list(2, grant("comes", 22, 30*time.Minute, bob4+"/32"))))
	server.has(badDay{})
	h.closes(patience, ways("22/tcp", alice4))
	h.opens(patience, ways("22/tcp", bob4))

	// Silent again, and locked down.
	server.has(badDay{silent: true})
	h.must("lockdown", "--config", h.config())
	h.isClosed(ways("22/tcp", bob4))
	server.has(badDay{})

	// An agent that starts with a silent server guards, and opens what it has
	// saved.
	server.put("grants.json", h.realm.sign("grants", h.realm.list(3, stays)))
	h.until("it should be in force", func(s status) bool { return s.isOpen("stays") })
	h.stop()
	server.has(badDay{silent: true})
	h.vm.run(t, "nft", "delete", "table", "inet", "jitgate")
	h.start()
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	server.put("grants.json", h.realm.sign("grants", h.realm.list(4)))
	server.has(badDay{})
	h.closes(patience, ways("22/tcp", alice4))
}
