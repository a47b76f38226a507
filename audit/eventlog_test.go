package audit

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf16"
)

// eventIDs are what Windows's event log knows events by, for ever.
var eventIDs = map[Name]uint32{
	"agent.started":      1000,
	"agent.reloaded":     1001,
	"agent.stopped":      1002,
	"install.created":    1003,
	"install.renewed":    1004,
	"guard.armed":        1005,
	"guard.confirmed":    1006,
	"guard.reverted":     1007,
	"guard.disarmed":     1008,
	"guard.lockdown":     1009,
	"guard.drift":        1010,
	"guard.repaired":     1011,
	"document.delivered": 1012,
	"document.admitted":  1013,
	"document.refused":   1014,
	"grant.opening":      1015,
	"grant.opened":       1016,
	"grant.refused":      1017,
	"grant.expired":      1018,
	"grant.revoked":      1019,
	"grant.used":         1020,
	"connection.denied":  1021,
	"audit.pruned":       1022,
	"audit.head":         1023,
	"audit.missed":       1024,
	"grant.login":        1025,
}

func TestEventIDs(t *testing.T) {
	page, err := os.ReadFile("../docs/windows.md")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[uint32]Name{}
	for name, k := range kinds {
		switch {
		case k.event != eventIDs[name]:
			t.Errorf("%s has the id %d, not %d", name, k.event, eventIDs[name])
		case k.event < FirstEventID || k.event > LastEventID || k.event == TextEventID:
			t.Errorf("%s has the id %d, which is none of jitgate's events", name, k.event)
		case seen[k.event] != "":
			t.Errorf("%s and %s have the id %d", name, seen[k.event], k.event)
		case !strings.Contains(string(page), fmt.Sprintf("\n| %d | `%s` |\n", k.event, name)):
			t.Errorf("docs/windows.md does not list %d, %s", k.event, name)
		}
		seen[k.event] = name
	}
	if len(kinds) != len(eventIDs) {
		t.Errorf("%d events, %d ids", len(kinds), len(eventIDs))
	}
	if id := (Entry{Event: Event{Name: "new.one"}}).eventID(); id != TextEventID {
		t.Errorf("an event without an id goes by %d", id)
	}
}

func TestEventStrings(t *testing.T) {
	e := Entry{Seq: 7, Prev: "p", Event: Event{Name: GrantOpened, Message: "opened", GrantID: "a", Port: 22, Time: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)}}
	got := e.eventStrings()
	var l line
	if err := json.Unmarshal([]byte(got[1]), &l); err != nil || got[0] != "opened" || l.Seq != 7 || l.Prev != "p" || l.GrantID != "a" || l.Time != "2026-11-22T12:00:00.000Z" {
		t.Errorf("%q, %v", got, err)
	}
	e.Message = "a\x00b\xff"
	if got = e.eventStrings(); strings.ContainsRune(got[0]+got[1], 0) || got[0] != "a\ufffdb\ufffd" {
		t.Errorf("%q", got)
	}
}

// No string is longer than Windows takes, or ends early, and what is left out
// is said.
func FuzzEventStrings(f *testing.F) {
	f.Add("opened", 1)
	f.Add("\x00\U0001f600\xff", 40000)
	f.Add("x", 31001)
	f.Fuzz(func(t *testing.T, text string, times int) {
		if times < 0 || times > 50000 || len(text) > 100 {
			return
		}
		e := Entry{Seq: 1, Event: Event{Name: GrantOpened, Message: strings.Repeat(text, times)}}
		for _, s := range e.eventStrings() {
			if n := len(utf16.Encode([]rune(s))); n > 31839 || strings.ContainsRune(s, 0) {
				t.Fatalf("%d units", n)
			}
		}
		if s := e.eventStrings()[1]; !json.Valid([]byte(s)) || !strings.Contains(s, string(GrantOpened)) {
			t.Fatalf("not the line: %s", s)
		}
	})
}
