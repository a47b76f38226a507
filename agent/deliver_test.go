package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/policy"
)

// ids names the grants of a part of a check.
func ids(list []OpeningStatus) (out []string) {
	for _, o := range list {
		out = append(out, o.Grant)
	}
	return out
}

// state is what lies in a directory, by name.
func state(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			files[e.Name()] = string(text)
		}
	}
	return files
}

// A check says what would open, what not, and what would be closed, and
// changes nothing: neither what is open nor what is remembered.
func TestCheck(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 0, 2*time.Hour))
	w.mustPass(0)
	w.record.take()
	files := state(t, w.Settings.StateDir)
	document := func(version uint64, grants ...policy.Grant) []byte {
		g := policy.Grants{Header: w.header(version), Epoch: 1, Host: policy.Host{ID: vm}, Grants: grants}
		return w.sign(policy.TypeGrants, policy.RoleGrant, g.Encode())
	}
	port := w.grant("port", alice, 0, time.Hour)
	port.Number = 23
	c := w.check(document(2, w.grant("b", bob, 0, time.Hour), w.grant("c", alice, 0, time.Minute), w.grant("later", alice, time.Minute, time.Hour), port, w.grant("long", alice, 0, 4*time.Hour)))
	if c.Document != "grants" || c.Version != 2 || c.Refusal != "" || c.Blocked != "" {
		t.Errorf("%+v", c)
	}
	for what, got := range map[string][2][]string{
		"open":    {ids(c.Openings), {"c", "b"}},
		"pending": {ids(c.Pending), {"later"}},
		"refused": {ids(c.Refused), {"port", "long"}},
		"revoked": {ids(c.Revoked), {"a"}}, // b is only shortened
	} {
		if !slices.Equal(got[0], got[1]) {
			t.Errorf("%s: %q, want %q", what, got[0], got[1])
		}
	}
	if left := c.Openings[0].SecondsLeft; left != 60 {
		t.Errorf("%d seconds are left", left)
	}
	if c.Revoked[0].SecondsLeft != 3600 || !strings.HasPrefix(c.Refused[1].Refusal, "too-long: ") {
		t.Errorf("%+v", c)
	}
	elsewhere := w.grant("a", bob, 0, time.Hour)
	if c := w.check(document(2, elsewhere, w.grant("b", bob, 0, 2*time.Hour))); !slices.Equal(ids(c.Revoked), []string{"a"}) {
		t.Errorf("the same id for another source: revoked %q", ids(c.Revoked))
	}

	for code, raw := range map[policy.Code][]byte{
		policy.Equivocation: document(1, w.grant("x", alice, 0, time.Hour)),
		policy.Malformed:    []byte("open sesame"),
		policy.BadSignature: w.sign(policy.TypeGrants, policy.RolePolicy, policy.Grants{Header: w.header(2), Epoch: 1, Host: policy.Host{ID: vm}}.Encode()),
	} {
		if c := w.check(raw); !strings.HasPrefix(c.Refusal, string(code)+": ") || len(c.Openings)+len(c.Pending)+len(c.Refused)+len(c.Revoked) > 0 {
			t.Errorf("%s: %+v", code, c)
		}
	}
	if c := w.check(policy.Envelope{Type: "text/plain"}.Encode()); !strings.HasPrefix(c.Refusal, "wrong-type: ") {
		t.Errorf("%+v", c)
	}

	w.wantRecord()
	if now := state(t, w.Settings.StateDir); !reflect.DeepEqual(now, files) {
		t.Errorf("the state was\n%v\nand is\n%v", files, now)
	}
	w.mustPass(0)
	w.wantOpen(alice, true)
	w.wantRecord()
	if v := w.docs.version(Grants); v != 1 {
		t.Errorf("version %d is in force", v)
	}
}

// What a check says would open does not, once a lockdown ended it; and where
// nothing may open it says why.
func TestCheckKnowsWhatMayOpen(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	if err := w.endAll(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 0, time.Hour))
	raw, err := os.ReadFile(filepath.Join(w.Settings.InboxDir, Grants.File()))
	if err != nil {
		t.Fatal(err)
	}
	if c := w.check(raw); !slices.Equal(ids(c.Openings), []string{"b"}) {
		t.Errorf("%+v", c)
	}
	w.wall = w.wall.Add(11 * time.Hour) // past maxGrantsAge, not past the list
	if c := w.check(raw); c.Refusal != "" || len(c.Openings) > 0 {
		t.Errorf("%+v", c)
	}
	w.wall = w.wall.Add(2 * time.Hour) // past the policy
	w.list(w.grant("c", bob, 0, time.Hour))
	raw, err = os.ReadFile(filepath.Join(w.Settings.InboxDir, Grants.File()))
	if err != nil {
		t.Fatal(err)
	}
	if c := w.check(raw); c.Refusal != "" || !strings.HasPrefix(c.Blocked, "expired: ") {
		t.Errorf("%+v", c)
	}
	w.unread = errors.New("not-durable: broken")
	if c := w.check(raw); c.Refusal != "not-durable: broken" {
		t.Errorf("%+v", c)
	}
}

// A delivery by hand is recorded with who made it, or not at all.
func TestDelivering(t *testing.T) {
	w := newWorld(t)
	w.mustPass(0)
	w.record.take()
	me := caller{name: "uid 0", root: true, pid: os.Getpid()}
	d := Delivery{Document: "grants", Version: 7, Digest: policy.Digest{1}, From: "terminal"}
	if err := w.delivering(t.Context(), me, d); err != nil {
		t.Fatal(err)
	}
	e := w.record.events[0]
	name, login := me.process()
	if e.Name != audit.DocumentDeliver || e.Document != "grants" || e.Version != 7 || e.Digest != d.Digest.String() || e.PID != os.Getpid() ||
		e.Process != name || e.Requestor != fmt.Sprintf("uid 0, pid %d%s", os.Getpid(), login) || !strings.Contains(e.Message, "from: terminal") {
		t.Errorf("%+v", e)
	}
	w.wantRecord("document.delivered grants")

	for _, wrong := range []Delivery{{Document: "leases", From: "file"}, {Document: "grants", From: "heaven"}, {}} {
		if err := w.delivering(t.Context(), me, wrong); err == nil {
			t.Errorf("%+v was taken", wrong)
		}
	}
	w.record.fail = errors.New("disk full")
	if err := w.delivering(t.Context(), me, d); policy.CodeOf(err) != policy.NotDurable {
		t.Error(err)
	}
	w.record.fail = nil
	w.mustPass(0)
	w.wantRecord() // it is not said later, when nobody delivered
}
