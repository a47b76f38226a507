//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRecordOfAGrant(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 2*time.Second, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	h.recorded("grant.expired", "g1", "")
	h.stop()
	var names []string
	for _, e := range h.audit() {
		names = append(names, e.Name)
		if e.Grant != "" && (e.Grant != "g1" || e.Port != 22 || e.Source != alice4+"/32" || e.Time.IsZero() || e.Message == "") {
			t.Errorf("recorded %+v", e)
		}
	}
	want := []string{"agent.started", "install.created", "document.admitted", "document.admitted", "document.admitted",
		"grant.opening", "grant.opened", "grant.expired", "grant.used", "agent.stopped"}
	if !slices.Equal(names, want) {
		t.Errorf("recorded %v, want %v", names, want)
	}
}

// A line that a crash cut short is set aside, and the chain says so.
func TestTornRecord(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.stop()
	whole, torn := len(h.audit()), []byte(`{"seq":99,"prev":"`)
	f, err := os.OpenFile(h.path("state", "audit", "000001.jsonl"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(torn)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.allow(1, grant("g1", 22, time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	digest := fmt.Sprintf("%x", sha256.Sum256(torn))
	if next := h.audit()[whole]; next.Torn != digest {
		t.Errorf("the line after the torn one is %+v, want the digest %s in it", next, digest)
	}
	aside, err := os.ReadFile(h.path("state", "audit", "000001.jsonl.torn-"+digest[:16]))
	if err != nil || !bytes.Equal(aside, torn) {
		t.Errorf("set aside was %q: %v", aside, err)
	}
}

// A record that cannot be continued is like a full disk: nothing opens.
func TestUnreadableRecord(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.stop()
	if err := os.WriteFile(h.path("state", "audit", "000001.jsonl"), []byte("scribble\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.allow(1, grant("g1", 22, time.Minute, alice4+"/32"))
	h.isClosed(ways("22/tcp", alice4))
	if s := h.status(); s.isOpen("g1") || !strings.Contains(s.Problem, "not-durable: ") {
		t.Errorf("status says %+v", s)
	}
	if err := os.Remove(h.path("state", "audit", "000001.jsonl")); err != nil {
		t.Fatal(err)
	}
	h.opens(5*time.Second, ways("22/tcp", alice4))
	h.intentsPrecede()
}

// An agent killed at any moment leaves a chain that verifies, and its memory
// never goes back.
func TestKilledAgainAndAgain(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	version := func() (v uint64) {
		var mark struct{ Grants struct{ Version uint64 } }
		if err := json.Unmarshal([]byte(h.mark()), &mark); err != nil {
			t.Fatalf("the mark: %v", err)
		}
		return mark.Grants.Version
	}
	const rounds = 20
	newest := uint64(0)
	for i := range rounds {
		id := fmt.Sprintf("g%d", i)
		h.deliver("grants.json", h.realm.sign("grants", h.realm.list(i+1, grant(id, 22, 30*time.Minute, alice4+"/32"))))
		time.Sleep(time.Duration(i) * time.Millisecond / 4) // another moment each time
		h.kill()
		if v := version(); v < newest {
			t.Fatalf("the mark went from %d back to %d", newest, v)
		} else {
			newest = v
		}
		h.audit() // verifies the chain, as far as its lines are whole
		h.start()
		h.until("the list should be in force", func(s status) bool { return s.isOpen(id) })
	}
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	h.intentsPrecede()
	if v := version(); v != rounds {
		t.Errorf("the mark is at version %d, want %d", v, rounds)
	}
}
