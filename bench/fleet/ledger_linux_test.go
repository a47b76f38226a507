package main

import (
	"bytes"
	"crypto/ed25519"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// What was acknowledged and did not arrive is told, and nothing else is.
func TestLedgerMissing(t *testing.T) {
	now := time.Now()
	told := func(l *ledger, e event, machine, number int) {
		l.hear(news{Event: e, Machine: machine, Request: number, At: now})
	}
	for what, c := range map[string]struct {
		happens func(l *ledger, n int)
		lost    string
	}{
		"nothing was acknowledged": {func(*ledger, int) {}, ""},
		"granted and not there":    {func(l *ledger, n int) { l.acknowledged(n, 1) }, "granted and never came"},
		"granted and there":        {func(l *ledger, n int) { l.acknowledged(n, 1); told(l, opened, 7, n) }, ""},
		"there on another machine": {func(l *ledger, n int) { l.acknowledged(n, 1); told(l, opened, 8, n) }, "granted and never came"},
		"closed by nobody": {func(l *ledger, n int) {
			l.acknowledged(n, 1)
			told(l, opened, 7, n)
			told(l, closed, 7, n)
		}, "closed by nobody"},
		"revoked and open": {func(l *ledger, n int) {
			l.acknowledged(n, 1)
			told(l, opened, 7, n)
			l.change(n, func(a *ask) { a.asked, a.back = now, now })
		}, "still open"},
		"revoked and closed": {func(l *ledger, n int) {
			l.acknowledged(n, 1)
			told(l, opened, 7, n)
			l.change(n, func(a *ask) { a.asked, a.back = now, now })
			told(l, closed, 7, n)
		}, ""},
	} {
		l := &ledger{}
		l.begin([]int{1}) // another one, without an answer
		n, sources := l.begin([]int{7, 7})
		for i, source := range sources {
			if numberOf(source) != n+i {
				t.Fatalf("source %s is of request %d", source, n+i)
			}
		}
		c.happens(l, n)
		err := l.missing(0)
		if (err == nil) != (c.lost == "") || err != nil && !strings.Contains(err.Error(), c.lost) {
			t.Errorf("%s: %v", what, err)
		}
		if err := l.missing(n + 1); err != nil {
			t.Errorf("%s, of what came later: %v", what, err)
		}
	}
}

// A machine that has another version than is stored, or other bytes, is told of;
// so is one that has nothing.
func TestHolders(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	list := policy.Grants{Header: policy.Header{Realm: "acme", Version: 2, Issued: now, Expires: now.Add(time.Hour)}, Epoch: 1, Host: policy.Host{ID: "a"}, PolicyVersion: 1}
	e := policy.Envelope{Type: policy.TypeGrants, Payload: list.Encode()}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.Sign(key); err != nil {
		t.Fatal(err)
	}
	stored := control.Document{Type: e.Type, Version: 2, Signed: e.Encode()}
	same := policy.State{Grants: policy.Mark{Version: 2, Digest: e.Digest()}}
	for what, c := range map[string]struct {
		vm   string
		have map[string]policy.State
		n    int // 0: an error
	}{
		"its own":       {"a", map[string]policy.State{"a": same, "b": {}}, 1},
		"everybody's":   {"", map[string]policy.State{"a": same, "b": same}, 2},
		"not all":       {"", map[string]policy.State{"a": same, "b": {}}, 0},
		"an older one":  {"a", map[string]policy.State{"a": {Grants: policy.Mark{Version: 1, Digest: e.Digest()}}}, 0},
		"other bytes":   {"a", map[string]policy.State{"a": {Grants: policy.Mark{Version: 2}}}, 0},
		"another kind":  {"a", map[string]policy.State{"a": {Policy: same.Grants}}, 0},
		"nobody has it": {"a", map[string]policy.State{"b": same}, 0},
	} {
		stored.VM = c.vm
		if n, err := holders(c.have, stored); n != c.n || (err == nil) != (c.n > 0) {
			t.Errorf("%s: %d, %v", what, n, err)
		}
	}
}

// The picture is well formed, and has every number of agents in every panel.
func TestDraw(t *testing.T) {
	for _, curve := range [][]figures{{{agents: 1000}}, {{agents: 1000, inUse: 20e3}, {agents: 30000, inUse: 1e6}}} {
		text := draw(curve)
		for d := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(string(text), ">1000<"); n != len(panels) {
			t.Errorf("a thousand agents in %d of %d panels", n, len(panels))
		}
		if strings.Contains(string(text), "NaN") || strings.Contains(string(text), "Inf") {
			t.Error("a place that is none")
		}
	}
}
