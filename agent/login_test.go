package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/logins"
	"github.com/jitgate/jitgate/policy"
)

const fingerprint = "SHA256:Qd3TxJ0nHPvW4fLTRrV9RwhNvHfNQ7oFGg2yVtJZ9aE"

// accepts has sshd let root in from a source and a port there.
func (w *world) accepts(source string, port uint16) logins.Login {
	return logins.Login{Time: w.wall, Account: "root", Source: netip.AddrPortFrom(netip.MustParsePrefix(source).Addr(), port),
		Method: "publickey", Key: fingerprint, Credential: "ED25519 " + fingerprint}
}

// tell tells of logins, and returns what was recorded of them.
func (w *world) tell(list ...logins.Login) []audit.Event {
	w.t.Helper()
	w.record.events = nil
	if err := w.loggedIn(w.t.Context(), LoginsReport{"c=1", list}); err != nil {
		w.t.Fatal(err)
	}
	return w.used(audit.GrantLogin)
}

func TestLogins(t *testing.T) {
	t.Run("over a connection", func(t *testing.T) {
		w := inUse(t)
		f := w.connect(alice, 1) // no pass has heard of it
		l := w.accepts(alice, f.From.Port())
		got := w.tell(l, w.accepts(bob, 1), w.accepts(alice, f.From.Port()))
		if len(got) != 1 {
			t.Fatalf("recorded %+v", got)
		}
		want := audit.Event{Name: audit.GrantLogin, GrantID: "a", Port: 22, Protocol: "TCP", Source: "10.0.0.1", SourcePort: 40001, Requestor: "alice", End: got[0].End, First: l.Time, Time: w.wall,
			Account: "root", Method: "publickey", Key: fingerprint, Credential: "ED25519 " + fingerprint,
			Message: "root logged in from 10.0.0.1, port 40001, by ED25519 " + fingerprint}
		if got[0] != want {
			t.Errorf("recorded\n%+v, want\n%+v", got[0], want)
		}
		// The agent is killed, and told again.
		w.restart()
		w.mustPass(0)
		if w.loginsUpTo != "c=1" {
			t.Errorf("logins are told up to %q", w.loginsUpTo)
		}
		if again := w.tell(l); len(again) > 0 {
			t.Errorf("told again: %+v", again)
		}
		w.mustPass(time.Hour)
		if used := w.used(audit.GrantUsed); len(used) != 1 || used[0].Logins != 1 || !strings.Contains(used[0].Message, "; 1 logins") {
			t.Errorf("the proof of use is %+v", used)
		}
	})
	t.Run("over a session that outlived its grant", func(t *testing.T) {
		w := inUse(t)
		f := w.connect(alice, 1)
		f.Established = true
		w.fake.Carry(f)
		w.mustPass(time.Hour)
		if got := w.tell(w.accepts(alice, f.From.Port())); len(got) != 1 || got[0].GrantID != "a" {
			t.Errorf("recorded %+v", got)
		}
	})
	t.Run("over a connection that was not seen", func(t *testing.T) {
		w := inUse(t)
		early := w.accepts(alice, 7)
		early.Time = w.wall.Add(-time.Second)
		if got := w.tell(early); len(got) > 0 {
			t.Errorf("before its grant: %+v", got)
		}
		got := w.tell(w.accepts(alice, 7))
		if len(got) != 1 || got[0].GrantID != "a" || !strings.HasSuffix(got[0].Message, "; its connection was not seen") {
			t.Errorf("recorded %+v", got)
		}
	})
	t.Run("not over a grant for another port", func(t *testing.T) {
		w := newWorld(t)
		w.deliver(func(p *policy.Policy) {
			other := p.Ports[0]
			other.Number, other.EndNumber = 3389, 3389
			p.Ports = append(p.Ports, other)
		})
		g := w.grant("a", alice, 0, time.Hour)
		g.Number = 3389
		w.list(g)
		w.mustPass(0)
		if len(w.live) != 1 {
			t.Fatal("nothing is in force")
		}
		if got := w.tell(w.accepts(alice, 7)); len(got) > 0 {
			t.Errorf("recorded %+v", got)
		}
		// Unless sshd listens there.
		f := w.connect(alice, 1)
		f.Port, f.To = 3389, netip.MustParseAddrPort("192.0.2.1:3389")
		w.fake.Carry(f)
		if got := w.tell(w.accepts(alice, f.From.Port())); len(got) != 1 || got[0].Port != 3389 {
			t.Errorf("recorded %+v", got)
		}
	})
}

// However many log in over one grant, what is recorded is bounded, and a key
// that none of the others had is named.
func TestManyLogins(t *testing.T) {
	w := inUse(t)
	lines := 0
	const many = 5 * loginLines
	for range many {
		lines += len(w.tell(w.accepts(alice, 7)))
	}
	if lines != loginLines {
		t.Errorf("%d lines of %d logins with one key", lines, many)
	}
	other := w.accepts(alice, 7)
	other.Account = "mallory"
	if got := w.tell(other); len(got) != 1 || got[0].Account != "mallory" {
		t.Errorf("another account: %+v", got)
	}
	for i := range many {
		other.Credential = fmt.Sprint("ED25519-CERT ID ", i)
		lines += len(w.tell(other))
	}
	if lines != 2*loginLines-1 {
		t.Errorf("%d lines", lines)
	}
	w.mustPass(time.Hour)
	if used := w.used(audit.GrantUsed); len(used) != 1 || used[0].Logins != 2*many+1 {
		t.Errorf("the proof of use is %+v", used)
	}
}

// A login that cannot be recorded is with the next events, and does not come
// twice.
func TestLoginsWithAFullDisk(t *testing.T) {
	w := inUse(t)
	w.record.fail = errors.New("no space left on device")
	if got := w.tell(w.accepts(alice, 7)); len(got) > 0 || w.loginsUpTo != "c=1" {
		t.Errorf("recorded %+v, told up to %q", got, w.loginsUpTo)
	}
	w.record.fail = nil
	w.mustPass(time.Second)
	if got := w.used(audit.GrantLogin); len(got) != 1 {
		t.Errorf("once there is room: %+v", got)
	}
}

// Whose word about logins counts, and what a report may have.
func TestThreatForgesALogin(t *testing.T) {
	w := inUse(t)
	report := func(edit func(*LoginsReport)) LoginsReport {
		r := LoginsReport{"c=1", []logins.Login{w.accepts(alice, 7)}}
		edit(&r)
		return r
	}
	whole := report(func(*LoginsReport) {})
	as := func(uid int) caller {
		return caller{name: fmt.Sprintf("uid %d", uid), root: uid == 0, self: uid == os.Geteuid(), uid: uid, pid: 1}
	}
	root, self, stranger := as(0), as(os.Geteuid()), as(4711)
	call := func(by caller, method string, r LoginsReport) (int, string) {
		var text []byte
		if method == http.MethodPost {
			var err error
			if text, err = json.Marshal(r); err != nil {
				t.Fatal(err)
			}
		}
		q := httptest.NewRequestWithContext(context.WithValue(t.Context(), callerKey{}, func() caller { return by }), method, "/v1/logins", bytes.NewReader(text))
		answer := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			w.handler().ServeHTTP(answer, q)
		}()
		for {
			select {
			case f := <-w.calls:
				f()
			case <-done:
				return answer.Code, answer.Body.String()
			}
		}
	}
	for _, by := range []caller{stranger, {}} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			if code, text := call(by, method, whole); code != http.StatusForbidden {
				t.Errorf("%s by %+v: %d %s", method, by, code, text)
			}
		}
	}
	if self.uid != 0 {
		if code, _ := call(self, http.MethodPost, whole); code != http.StatusForbidden {
			t.Errorf("the agent's own user: %d", code)
		}
	}
	for what, edit := range map[string]func(*LoginsReport){
		"no cursor":        func(r *LoginsReport) { r.Cursor = "" },
		"cursor is a flag": func(r *LoginsReport) { r.Cursor = "--file=/etc/shadow" },
		"long cursor":      func(r *LoginsReport) { r.Cursor = strings.Repeat("a", logins.MaxCursor+1) },
		"too many":         func(r *LoginsReport) { r.Logins = make([]logins.Login, logins.MostAtOnce+1) },
		"no account":       func(r *LoginsReport) { r.Logins[0].Account = "" },
		"long account":     func(r *LoginsReport) { r.Logins[0].Account = strings.Repeat("a", logins.MaxAccount+1) },
		"long method":      func(r *LoginsReport) { r.Logins[0].Method = strings.Repeat("a", logins.MaxMethod+1) },
		"long key":         func(r *LoginsReport) { r.Logins[0].Key = strings.Repeat("a", logins.MaxKey+1) },
		"long credential":  func(r *LoginsReport) { r.Logins[0].Credential = strings.Repeat("a", logins.MaxCredential+1) },
		"no source":        func(r *LoginsReport) { r.Logins[0].Source = netip.AddrPort{} },
		"no time":          func(r *LoginsReport) { r.Logins[0].Time = time.Time{} },
	} {
		if code, text := call(root, http.MethodPost, report(edit)); code != http.StatusInternalServerError {
			t.Errorf("%s: %d %s", what, code, text)
		}
	}
	if got := w.used(audit.GrantLogin); len(got) > 0 || w.loginsUpTo != "" {
		t.Errorf("recorded %+v, up to %q", got, w.loginsUpTo)
	}
	if code, text := call(root, http.MethodPost, whole); code != http.StatusNoContent {
		t.Errorf("root: %d %s", code, text)
	}
	if code, text := call(root, http.MethodGet, LoginsReport{}); code != http.StatusOK || strings.TrimSpace(text) != `{"cursor":"c=1"}` {
		t.Errorf("root asks: %d %s", code, text)
	}
	if got := w.used(audit.GrantLogin); len(got) != 1 {
		t.Errorf("recorded %+v", got)
	}
}
