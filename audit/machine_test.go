//go:build journald

package audit

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// What the journal of this machine has of hostile values is what was sent, and
// nothing beside it. The e2e tests run this on a machine of theirs.
func TestJournalOfThisMachine(t *testing.T) {
	var o told
	j := NewJournal(JournalSocket, o.say, o.log)
	var sent []Entry
	for i, value := range hostile {
		sent = append(sent, Entry{Seq: uint64(i + 1), Prev: genesis, Hash: genesis, Event: Event{Name: GrantRefused, Message: fmt.Sprint("value ", i), GrantID: fmt.Sprint("hostile-", i), Requestor: value, Reason: value, Code: value}})
	}
	j.Copy(sent)
	j.Close(10 * time.Second)
	if says, instead := o.count(); says+instead > 0 {
		t.Fatalf("%v, %d logged instead", o.says, instead)
	}
	for i, e := range sent {
		var lines []string
		for end := time.Now().Add(10 * time.Second); len(lines) == 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			out, err := exec.Command("journalctl", "--all", "--no-pager", "-o", "json", "JITGATE_GRANT_ID="+e.GrantID).Output()
			if err != nil {
				t.Fatal(err)
			}
			lines = strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
		}
		if len(lines) != 1 || lines[0] == "" {
			t.Fatalf("value %d: %d entries", i, len(lines))
		}
		var got map[string]any
		if err := json.Unmarshal([]byte(lines[0]), &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]string{}
		for _, f := range e.fields() {
			want[f.name] = clip(f.value)
		}
		for name, value := range got {
			text := journalText(value)
			if w, ok := want[name]; ok && text != w {
				t.Errorf("value %d: %s is %.100q, want %.100q", i, name, text, w)
			} else if !ok && !strings.HasPrefix(name, "_") {
				t.Errorf("value %d: there is a field %s", i, name)
			}
			delete(want, name)
		}
		if len(want) > 0 {
			t.Errorf("value %d: not there: %.300v", i, want)
		}
	}
}

// journalText is a value as journalctl shows it: bytes where they are no text.
// A field that stands twice is a list of texts, and no such value.
func journalText(value any) string {
	if list, ok := value.([]any); ok {
		var b []byte
		for _, n := range list {
			n, ok := n.(float64)
			if !ok {
				return fmt.Sprint("twice: ", value)
			}
			b = append(b, byte(n))
		}
		return string(b)
	}
	return fmt.Sprint(value)
}
