package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const firstFile = "000001.jsonl"

// chain checks the whole file the way an auditor would, with nothing but JSON
// and SHA-256, and returns the lines.
func chain(t *testing.T, dir string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, firstFile))
	if err != nil {
		t.Fatal(err)
	}
	if len(text) > 0 && !bytes.HasSuffix(text, []byte("\n")) {
		t.Fatal("the last line is torn")
	}
	prev := strings.Repeat("0", 64)
	var out []map[string]any
	for i, l := range bytes.Split(bytes.TrimSuffix(text, []byte("\n")), []byte("\n")) {
		var e map[string]any
		if err := json.Unmarshal(l, &e); err != nil {
			t.Fatalf("line %d: %v", i+1, err)
		}
		if e["prev"] != prev || e["seq"] != float64(i+1) {
			t.Fatalf("line %d: seq %v, prev %v, want prev %s", i+1, e["seq"], e["prev"], prev)
		}
		sum := sha256.Sum256(l)
		prev = hex.EncodeToString(sum[:])
		out = append(out, e)
	}
	return out
}

func record(t *testing.T, l *File, names ...Name) {
	t.Helper()
	var events []Event
	for _, n := range names {
		events = append(events, Event{Name: n, Message: "m"})
	}
	if err := l.Record(t.Context(), events...); err != nil {
		t.Fatal(err)
	}
}

func TestThreatEditsTheRecord(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := NewFile(dir)
	record(t, l, AgentStarted)
	record(t, l, GrantOpening, GrantOpened)
	l.Close()
	l = NewFile(dir) // the next run goes on where this one ended
	record(t, l, AgentStarted)
	lines := chain(t, dir)
	if len(lines) != 4 || lines[1]["event"] != "grant.opening" || lines[3]["event"] != "agent.started" {
		t.Errorf("%v", lines)
	}
	if info, err := os.Stat(filepath.Join(dir, firstFile)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A file cut anywhere is gone on with: whole lines stay, the torn one is set
// aside and named.
func TestTornAnywhere(t *testing.T) {
	dir := t.TempDir()
	l := NewFile(dir)
	record(t, l, AgentStarted, GrantOpening, GrantOpened)
	l.Close()
	path := filepath.Join(dir, firstFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for n := range len(whole) + 1 {
		if err := os.WriteFile(path, whole[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		l := NewFile(dir)
		record(t, l, AgentStarted)
		l.Close()
		lines := chain(t, dir)
		last := bytes.LastIndexByte(whole[:n], '\n') + 1
		if want := bytes.Count(whole[:n], []byte("\n")) + 1; len(lines) != want {
			t.Fatalf("cut at %d: %d lines, want %d", n, len(lines), want)
		}
		torn, _ := lines[len(lines)-1]["torn"].(string)
		if last == n {
			if torn != "" {
				t.Fatalf("cut at %d, between lines: torn %s", n, torn)
			}
			continue
		}
		if want := digest(whole[last:n]); torn != want {
			t.Fatalf("cut at %d: torn %q, want %s", n, torn, want)
		}
		if aside, err := os.ReadFile(path + ".torn-" + torn[:16]); err != nil || !bytes.Equal(aside, whole[last:n]) {
			t.Fatalf("cut at %d: set aside %q, %v", n, aside, err)
		}
	}
}

// Hostile text stays inside its field and its line.
func TestThreatForgesFields(t *testing.T) {
	dir := t.TempDir()
	l := NewFile(dir)
	hostile := "x\n{\"seq\":99,\"event\":\"grant.opened\"}\r\x00\x1b[2J\u2028\u202e\"\\" + strings.Repeat("A", 64<<10)
	for range 5 {
		if err := l.Record(t.Context(), Event{Name: GrantRefused, Requestor: hostile, Reason: hostile}); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	l = NewFile(dir)
	defer l.Close()
	record(t, l, AgentStarted)
	lines := chain(t, dir)
	if len(lines) != 6 || lines[4]["requestor"] != hostile {
		t.Errorf("%d lines", len(lines))
	}
}

// Where nothing can be written nothing is claimed, and the chain goes on once
// it can.
func TestUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // a file where the directory should be
		t.Fatal(err)
	}
	l := NewFile(dir)
	if err := l.Record(t.Context(), Event{Name: GrantOpening}); err == nil {
		t.Fatal("recorded into nowhere")
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	record(t, l, AgentStarted)
	// The disk fails under an open file.
	l.f.Close()
	if err := l.Record(t.Context(), Event{Name: GrantOpening}); err == nil {
		t.Fatal("recorded into a closed file")
	}
	record(t, l, AgentStopped)
	if lines := chain(t, dir); len(lines) != 2 {
		t.Errorf("%d lines, want 2: %v", len(lines), lines)
	}
}

func TestConcurrent(t *testing.T) {
	dir := t.TempDir()
	l := NewFile(dir)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 20 {
				if err := l.Record(t.Context(), Event{Name: GrantOpening}, Event{Name: GrantOpened}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	lines := chain(t, dir)
	if len(lines) != 320 {
		t.Fatalf("%d lines", len(lines))
	}
	for i, l := range lines { // events of one call stay together
		if want := []string{"grant.opening", "grant.opened"}[i%2]; l["event"] != want {
			t.Fatalf("line %d is %v, want %s", i+1, l["event"], want)
		}
	}
}

func ExampleFile() {
	dir, err := os.MkdirTemp("", "audit")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	record := NewFile(dir)
	err = record.Record(context.Background(), Event{Name: GrantOpening, GrantID: "01JD9V3K7Q", Port: 22, Source: "203.0.113.7/32"})
	fmt.Println(err)
	// Output: <nil>
}
