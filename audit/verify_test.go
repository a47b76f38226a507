package audit

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// filled is a record of 40 lines in four files and a bit, and its heads by the
// number of their line.
func filled(t *testing.T) (dir string, heads []Head) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "audit")
	l := NewFile(dir)
	defer l.Close()
	l.Full = 2000
	heads = []Head{{0, genesis}}
	l.Copy = func(list []Entry) {
		for _, e := range list {
			heads = append(heads, Head{e.Seq, e.Hash})
		}
	}
	for i := range 40 {
		e := Event{Name: GrantOpened, GrantID: fmt.Sprint("g", i), Port: 22, Message: strings.Repeat("m", i)}
		if err := l.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return dir, heads
}

// lines are a file's lines, with their newlines.
func lines(t *testing.T, dir string, n uint64) [][]byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, fileName(n)))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Collect(bytes.Lines(text))
}

func rewrite(t *testing.T, dir string, n uint64, lines [][]byte) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, fileName(n)), bytes.Join(lines, nil), 0o600); err != nil {
		t.Fatal(err)
	}
}

func verdict(t *testing.T, dir string, heads ...Head) Verdict {
	t.Helper()
	v, err := Verify(dir, heads...)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestRecordGoesOnInTheNextFile(t *testing.T) {
	dir, heads := filled(t)
	numbers, err := fileNumbers(dir)
	if err != nil || len(numbers) < 4 {
		t.Fatal(numbers, err)
	}
	for _, n := range numbers {
		if info, err := os.Stat(filepath.Join(dir, fileName(n))); err != nil || info.Size() > 2000 || info.Size() == 0 {
			t.Errorf("%s: %v, %v", fileName(n), info.Size(), err)
		}
	}
	v := verdict(t, dir, heads...)
	if !v.Whole() || v.Lines != 40 || v.First != 1 || v.Head != heads[40] || v.Files != len(numbers) || len(v.Unchecked) > 0 {
		t.Errorf("%+v", v)
	}
	// Another run goes on behind it, and so does one that finds the next file
	// begun and empty, or with half a line in it.
	for _, beginning := range []string{"", `{"seq":43,"pr`} {
		next := filepath.Join(dir, fileName(numbers[len(numbers)-1]+1))
		if beginning != "" {
			next = filepath.Join(dir, fileName(numbers[len(numbers)-1]+2))
		}
		if err := os.WriteFile(next, []byte(beginning), 0o600); err != nil {
			t.Fatal(err)
		}
		l := NewFile(dir)
		l.Full = 2000
		if seq, _, err := l.End(); err != nil || seq != v.Head.Seq {
			t.Errorf("before anything is recorded it ends at %d, %v", seq, err)
		}
		record(t, l, AgentStarted)
		l.Close()
		if info, err := os.Stat(next); err != nil || info.Size() < 100 {
			t.Errorf("the next file: %v, %v", info, err)
		}
		if v = verdict(t, dir, heads...); !v.Whole() || v.Lines != v.Head.Seq {
			t.Errorf("%q: %+v", beginning, v)
		}
	}
}

// Where the next file cannot be begun nothing is claimed, and the chain goes on
// once it can.
func TestNextFileCannotBeBegun(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l := NewFile(dir)
	defer l.Close()
	l.Full = 500
	record(t, l, AgentStarted, GrantOpening)
	for _, block := range []func(path string) error{
		func(path string) error { return os.Mkdir(path, 0o700) },
		func(path string) error { return os.WriteFile(path, []byte("of another chain\n"), 0o600) },
	} {
		path := filepath.Join(dir, fileName(2))
		if err := block(path); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := l.Record(t.Context(), Event{Name: GrantOpening, Reason: strings.Repeat("r", 300)}); err == nil {
				t.Fatal("recorded")
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	record(t, l, GrantOpening, GrantOpening, GrantOpening)
	if v := verdict(t, dir); !v.Whole() || v.Lines != 5 || v.Files != 2 {
		t.Errorf("%+v", v)
	}
}

// Lines come across files, from any number on, and from where a pruned record
// begins.
func TestAfterAcrossFiles(t *testing.T) {
	dir, _ := filled(t)
	var all []string
	numbers, _ := fileNumbers(dir)
	for _, n := range numbers {
		for _, l := range lines(t, dir, n) {
			all = append(all, strings.TrimSuffix(string(l), "\n"))
		}
	}
	l := NewFile(dir)
	for after := range 41 {
		got, err := l.After(uint64(after), 15, 1<<20)
		if want := all[after:min(after+15, 40)]; err != nil || fmt.Sprintf("%s", got) != fmt.Sprint(want) {
			t.Fatalf("after %d: %v, %.200q, want %.200q", after, err, got, want)
		}
	}
	first := len(lines(t, dir, 1))
	if err := os.Remove(filepath.Join(dir, fileName(1))); err != nil {
		t.Fatal(err)
	}
	if got, err := l.After(2, 1, 1<<20); err != nil || len(got) != 1 || string(got[0]) != all[first] {
		t.Errorf("%.100q, %v, want %.100q", got, err, all[first])
	}
}

// tampering is what an editor of the record does.
type tampering struct {
	name   string
	do     func(t *testing.T, dir string)
	head   bool   // shows only against a head
	at     string // file and line
	saying string
}

func tamperings() []tampering {
	replace := func(n uint64, i int, old, new string) func(*testing.T, string) {
		return func(t *testing.T, dir string) {
			list := lines(t, dir, n)
			changed := bytes.Replace(list[i], []byte(old), []byte(new), 1)
			if bytes.Equal(changed, list[i]) {
				t.Fatalf("%s has no %q", list[i], old)
			}
			list[i] = changed
			rewrite(t, dir, n, list)
		}
	}
	return []tampering{
		{"edits a line", replace(2, 2, `"port":22`, `"port":23`), false, "000002.jsonl:4", "does not follow line 3"},
		{"edits the last line of a file", func(t *testing.T, dir string) {
			replace(1, len(lines(t, dir, 1))-1, `"port":22`, `"port":23`)(t, dir)
		}, false, "000002.jsonl:1", "does not follow 000001.jsonl:"},
		{"edits a digest", replace(2, 0, `"prev":"`, `"prev":"0`), false, "000002.jsonl:1", "no place"},
		{"edits a number", replace(2, 1, `{"seq":`, `{"seq":9`), false, "000002.jsonl:2", "missing"},
		{"edits the last line", func(t *testing.T, dir string) {
			numbers, _ := fileNumbers(dir)
			n := numbers[len(numbers)-1]
			replace(n, len(lines(t, dir, n))-1, `"port":22`, `"port":23`)(t, dir)
		}, true, "", "was edited"},
		{"deletes a line", func(t *testing.T, dir string) {
			rewrite(t, dir, 1, slices.Delete(lines(t, dir, 1), 3, 4))
		}, false, "000001.jsonl:4", "number 4 is missing"},
		{"deletes the last line of a file", func(t *testing.T, dir string) {
			list := lines(t, dir, 1)
			rewrite(t, dir, 1, list[:len(list)-1])
		}, false, "000002.jsonl:1", "is missing"},
		{"deletes a file", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, fileName(2))) }, false, "000003.jsonl:1", "are missing"},
		{"deletes the first file", func(t *testing.T, dir string) { os.Remove(filepath.Join(dir, fileName(1))) }, false, "000002.jsonl:1", "cut at the front"},
		{"empties a file", func(t *testing.T, dir string) { rewrite(t, dir, 3, nil) }, false, "000003.jsonl", "is empty"},
		{"swaps two lines", func(t *testing.T, dir string) {
			list := lines(t, dir, 2)
			list[1], list[2] = list[2], list[1]
			rewrite(t, dir, 2, list)
		}, false, "000002.jsonl:2", "is missing"},
		{"repeats a line", func(t *testing.T, dir string) {
			list := lines(t, dir, 1)
			rewrite(t, dir, 1, slices.Insert(list, 2, list[1]))
		}, false, "000001.jsonl:3", "moved, copied"},
		{"swaps two files", func(t *testing.T, dir string) {
			a, b := lines(t, dir, 2), lines(t, dir, 3)
			rewrite(t, dir, 2, b)
			rewrite(t, dir, 3, a)
		}, false, "000002.jsonl:1", "are missing"},
		{"cuts a line in the middle of the record", func(t *testing.T, dir string) {
			list := lines(t, dir, 1)
			list[len(list)-1] = list[len(list)-1][:20]
			rewrite(t, dir, 1, list)
		}, false, "000001.jsonl:", "without an end"},
		{"joins two lines", func(t *testing.T, dir string) {
			list := lines(t, dir, 1)
			list[1] = bytes.TrimSuffix(list[1], []byte("\n"))
			rewrite(t, dir, 1, list)
		}, false, "000001.jsonl:2", "no place"},
		{"puts a line of his own in", func(t *testing.T, dir string) {
			rewrite(t, dir, 1, slices.Insert(lines(t, dir, 1), 1, []byte("{\"event\":\"grant.opened\"}\n")))
		}, false, "000001.jsonl:2", "no place"},
		{"cuts the end", func(t *testing.T, dir string) {
			numbers, _ := fileNumbers(dir)
			n := numbers[len(numbers)-1]
			list := lines(t, dir, n)
			rewrite(t, dir, n, list[:len(list)-1])
		}, true, "", "it was cut"},
		{"removes the last file", func(t *testing.T, dir string) {
			numbers, _ := fileNumbers(dir)
			os.Remove(filepath.Join(dir, fileName(numbers[len(numbers)-1])))
		}, true, "", "it was cut"},
		{"writes it anew from a line on", func(t *testing.T, dir string) {
			numbers, _ := fileNumbers(dir)
			for _, n := range numbers[2:] {
				os.Remove(filepath.Join(dir, fileName(n)))
			}
			l := NewFile(dir)
			for range 60 {
				record(t, l, GrantOpened)
			}
			l.Close()
		}, true, "", "a fork"},
		{"begins it anew", func(t *testing.T, dir string) {
			os.RemoveAll(dir)
			record(t, NewFile(dir), slices.Repeat([]Name{GrantOpened}, 50)...)
		}, true, "000001.jsonl:40", "a fork"},
	}
}

// What an editor of the record does is found, and where.
func TestTamperedRecord(t *testing.T) {
	for _, c := range tamperings() {
		t.Run(c.name, func(t *testing.T) {
			dir, heads := filled(t)
			c.do(t, dir)
			v := verdict(t, dir)
			if c.head {
				if !v.Whole() {
					t.Fatalf("without a head: %v", v.Faults)
				}
				v = verdict(t, dir, heads[40])
			}
			if v.Whole() {
				t.Fatal("nothing was found")
			}
			if first := v.Faults[0].String(); !strings.HasPrefix(first, c.at) || !strings.Contains(first, c.saying) {
				t.Errorf("%s\nshould begin with %s and say %q", first, c.at, c.saying)
			}
		})
	}
}

// Retention removes whole old files, says so, and no line whose head was not
// told.
func TestPrune(t *testing.T) {
	dir, heads := filled(t)
	numbers, _ := fileNumbers(dir)
	first := uint64(len(lines(t, dir, 1)))
	aside := filepath.Join(dir, fileName(1)+".torn-0123456789abcdef")
	if err := os.WriteFile(aside, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l := NewFile(dir)
	defer l.Close()
	files := func() int { n, _ := fileNumbers(dir); return len(n) }
	for _, told := range []uint64{0, first - 1} {
		if err := l.Prune(t.Context(), Keep{Bytes: 1}, told); err != nil || files() != len(numbers) {
			t.Fatalf("told %d: %d files, %v", told, files(), err)
		}
	}
	if err := l.Prune(t.Context(), Keep{}, 40); err != nil || files() != len(numbers) {
		t.Fatalf("without bounds: %d files, %v", files(), err)
	}
	if err := l.Prune(t.Context(), Keep{Bytes: 1}, first); err != nil || files() != len(numbers)-1 {
		t.Fatalf("%d files, %v", files(), err)
	}
	if _, err := os.Lstat(aside); !os.IsNotExist(err) {
		t.Errorf("what was set aside: %v", err)
	}
	v := verdict(t, dir, heads...)
	if !v.Whole() || v.First != first+1 || v.Head.Seq != 41 || len(v.Unchecked) != int(first)-1 {
		t.Errorf("%+v", v)
	}
	// Against another head of what was removed last, it is another record.
	if v := verdict(t, dir, Head{first, strings.Repeat("1", 64)}); v.Whole() {
		t.Error("another head was taken")
	}
	// A crash left more than it says; cutting more by hand is not like it.
	kept := lines(t, dir, 2)
	if err := l.Prune(t.Context(), Keep{For: time.Hour}, 41); err != nil || files() != len(numbers)-1 {
		t.Fatalf("younger than an hour: %d files, %v", files(), err)
	}
	l.Now = func() time.Time { return time.Now().Add(2 * time.Hour) }
	if err := l.Prune(t.Context(), Keep{For: time.Hour}, 41); err != nil || files() != 1 {
		t.Fatalf("older than an hour: %d files, %v", files(), err)
	}
	if v := verdict(t, dir); !v.Whole() {
		t.Errorf("%v", v.Faults)
	}
	rewrite(t, dir, 2, kept)
	if v := verdict(t, dir); v.Whole() {
		t.Error("a hole was not found")
	}
	os.Remove(filepath.Join(dir, fileName(2)))
	list := lines(t, dir, numbers[len(numbers)-1])
	rewrite(t, dir, numbers[len(numbers)-1], list[1:])
	if v := verdict(t, dir); v.Whole() || !strings.Contains(v.Faults[0].String(), "cut at the front") {
		t.Errorf("%v", v.Faults)
	}
}

// A pruning that a crash ended after some of the files is not a cut.
func TestPruneEndsEarly(t *testing.T) {
	dir, _ := filled(t)
	numbers, _ := fileNumbers(dir)
	saved := map[uint64][][]byte{}
	for _, n := range numbers {
		saved[n] = lines(t, dir, n)
	}
	l := NewFile(dir)
	defer l.Close()
	if err := l.Prune(t.Context(), Keep{Bytes: 1}, 40); err != nil {
		t.Fatal(err)
	}
	for _, n := range slices.Backward(numbers[:len(numbers)-1]) {
		rewrite(t, dir, n, saved[n])
		if v := verdict(t, dir); !v.Whole() {
			t.Errorf("with %s still there: %v", fileName(n), v.Faults)
		}
	}
}

// What was set aside must be there, as it was.
func TestVerifyWhatWasSetAside(t *testing.T) {
	dir, heads := filled(t)
	numbers, _ := fileNumbers(dir)
	path := filepath.Join(dir, fileName(numbers[len(numbers)-1]))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString("half a li"); err != nil {
		t.Fatal(err)
	}
	if v := verdict(t, dir, heads[40]); !v.Whole() || v.Torn != 9 {
		t.Errorf("before the next start: %+v", v)
	}
	record(t, NewFile(dir), AgentStarted)
	if v := verdict(t, dir, heads[40]); !v.Whole() || v.Torn != 0 {
		t.Errorf("%+v", v)
	}
	aside := tornName(path, digest([]byte("half a li")))
	for what, do := range map[string]func() error{
		"it was edited":     func() error { return os.WriteFile(aside, []byte("half a lie"), 0o600) },
		"which is not ther": func() error { return os.Remove(aside) },
	} {
		if err := os.WriteFile(aside, []byte("half a li"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := do(); err != nil {
			t.Fatal(err)
		}
		if v := verdict(t, dir); v.Whole() || !strings.Contains(v.Faults[0].String(), what) {
			t.Errorf("%s: %v", what, v.Faults)
		}
	}
}

func TestParseHead(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	for text, good := range map[string]bool{
		"7:" + hash: true, "0:" + genesis: true, "": false, "7": false, ":" + hash: false, "7:" + hash[1:]: false,
		"7:" + strings.ToUpper(hash): false, "-7:" + hash: false, "0:" + hash: false, "7:" + genesis: false, "18446744073709551616:" + hash: false,
	} {
		if h, err := ParseHead(text); (err == nil) != good || good && h.String() != text {
			t.Errorf("%s: %v, %v", text, h, err)
		}
	}
}

// Whatever lies in the directory, verification ends, and takes nothing for a
// record but a chain.
func FuzzVerify(f *testing.F) {
	line1 := `{"seq":1,"prev":"` + genesis + `","time":"2026-11-22T12:00:00.000Z","event":"agent.started"}`
	f.Add([]byte(line1+"\n"), []byte(`{"seq":2,"prev":"`+digest([]byte(line1))+`"}`+"\n"))
	f.Add([]byte(`{"seq":1,"prev":"`+genesis+`","torn":"ab"}`+"\n"), []byte("x"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		dir := t.TempDir()
		rewrite(t, dir, 1, [][]byte{one})
		rewrite(t, dir, 2, [][]byte{two})
		v, err := Verify(dir)
		if err != nil || !v.Whole() {
			return
		}
		prev := genesis
		for text := range bytes.Lines(append(slices.Clip(one), two...)) {
			text, whole := bytes.CutSuffix(text, []byte("\n"))
			if whole && !bytes.Contains(text, []byte(prev)) {
				t.Fatalf("%q does not follow", text)
			}
			prev = digest(text)
		}
	})
}
