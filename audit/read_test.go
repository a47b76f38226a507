package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Lines come out as they stand in the file, from any number on.
func TestAfter(t *testing.T) {
	l := NewFile(t.TempDir())
	defer l.Close()
	if lines, err := l.After(0, 10, 1<<20); err != nil || lines != nil {
		t.Fatalf("%q, %v", lines, err)
	}
	if seq, hash, err := l.End(); seq != 0 || hash != genesis || err != nil {
		t.Fatal(seq, hash, err)
	}
	const count = 300
	for i := range count {
		// Lines of many lengths, one longer than a buffer.
		e := Event{Name: GrantOpened, Message: strings.Repeat("x", i*i%5000+i/299*70_000), Port: uint16(i)}
		if err := l.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(filepath.Join(l.dir, firstFile))
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	for after := range count + 2 {
		lines, err := l.After(uint64(after), 3, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		want := all[min(after, count):min(after+3, count)]
		if fmt.Sprintf("%s", lines) != fmt.Sprint(want) {
			t.Fatalf("after %d: %.200q, want %.200q", after, lines, want)
		}
	}
	// A page has no more bytes than asked, but one line in any case.
	if lines, err := l.After(0, 100, len(all[0])+len(all[1])); err != nil || len(lines) != 2 {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	if lines, err := l.After(count-1, 100, 10); err != nil || len(lines) != 1 || string(lines[0]) != all[count-1] {
		t.Errorf("%d lines, %v", len(lines), err)
	}
	// Another run finds the same end before it records anything.
	again := NewFile(l.dir)
	defer again.Close()
	if seq, hash, err := again.End(); seq != count || hash != digest([]byte(all[count-1])) || err != nil {
		t.Error(seq, hash, err)
	}
}

// What is not durable, or only half there, is not handed out.
func TestAfterLeavesTheTornLine(t *testing.T) {
	l := NewFile(t.TempDir())
	defer l.Close()
	if err := l.Record(t.Context(), Event{Name: AgentStarted}, Event{Name: AgentStopped}); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(l.dir, firstFile), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tail := range []string{`{"seq":3,"pr`, "ev\":\"\"}\n"} {
		if _, err := f.WriteString(tail); err != nil {
			t.Fatal(err)
		}
		if lines, err := l.After(1, 10, 1<<20); err != nil || len(lines) != 1 {
			t.Errorf("behind %q: %q, %v", tail, lines, err)
		}
	}
}

func TestChanged(t *testing.T) {
	l := NewFile(t.TempDir())
	defer l.Close()
	changed := l.Changed()
	select {
	case <-changed:
		t.Fatal("nothing was recorded")
	default:
	}
	if err := l.Record(t.Context(), Event{Name: AgentStarted}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	case <-time.After(5 * time.Second):
		t.Fatal("nobody was told")
	}
}
