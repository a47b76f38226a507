package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"
)

// native reads the journal's native protocol as its documentation says it.
func native(b []byte) (list []field, err error) {
	for len(b) > 0 {
		end := bytes.IndexAny(b, "=\n")
		if end < 0 {
			return nil, fmt.Errorf("%q ends in a name", b)
		}
		f := field{name: string(b[:end])}
		plain := b[end] == '='
		b = b[end+1:]
		size := bytes.IndexByte(b, '\n')
		if !plain {
			if len(b) < 8 {
				return nil, errors.New("no length")
			}
			size = int(binary.LittleEndian.Uint64(b))
			b = b[8:]
		}
		if size < 0 || size >= len(b) || b[size] != '\n' {
			return nil, fmt.Errorf("%s: the value does not end in a newline", f.name)
		}
		f.value, b = string(b[:size]), b[size+1:]
		list = append(list, f)
	}
	return list, nil
}

// journald is a socket that takes entries once it is told to.
type journald struct {
	t    *testing.T
	path string
	conn *net.UnixConn
}

func listenJournal(t *testing.T, path string) *journald {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &journald{t, path, conn}
}

// take reads one entry.
func (j *journald) take() map[string]string {
	j.t.Helper()
	j.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	b := make([]byte, 1<<20)
	n, err := j.conn.Read(b)
	if err != nil {
		j.t.Fatal(err)
	}
	list, err := native(b[:n])
	if err != nil {
		j.t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range list {
		if _, twice := out[f.name]; twice {
			j.t.Errorf("%s stands twice", f.name)
		}
		out[f.name] = f.value
	}
	return out
}

// told collects what a Journal says and what it logs instead.
type told struct {
	mu      sync.Mutex
	says    []string
	instead []uint64
}

func (o *told) say(what string, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.says = append(o.says, what)
}

func (o *told) log(e Entry) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.instead = append(o.instead, e.Seq)
}

func (o *told) count() (says, instead int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.says), len(o.instead)
}

func (o *told) waitFor(t *testing.T, what string, good func(says, instead int) bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !good(o.count()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: %v, %d instead", what, o.says, len(o.instead))
		}
	}
}

func TestJournal(t *testing.T) {
	j := listenJournal(t, filepath.Join(t.TempDir(), "socket"))
	var o told
	out := NewJournal(j.path, o.say, o.log)
	l := NewFile(t.TempDir())
	l.Copy = out.Copy
	end := time.Date(2026, 11, 22, 13, 0, 0, 0, time.UTC)
	e := Event{Name: GrantOpened, Message: "port 22 is open", GrantID: "g1", Port: 22, Protocol: "TCP", Source: "203.0.113.7/32", End: end, Requestor: "alice", Reason: "INC-1"}
	if err := l.Record(t.Context(), Event{Name: GrantOpening}, e); err != nil {
		t.Fatal(err)
	}
	first, second := j.take(), j.take()
	for name, want := range map[string]string{
		"MESSAGE": "port 22 is open", "MESSAGE_ID": "5a28bb93b11cb8f6a7298cb1f4fa2b3a", "PRIORITY": "5", "SYSLOG_IDENTIFIER": "jitgate", "JITGATE_EVENT": "grant.opened",
		"JITGATE_GRANT_ID": "g1", "JITGATE_PORT": "22", "JITGATE_PROTOCOL": "TCP", "JITGATE_SOURCE": "203.0.113.7/32", "JITGATE_END": "2026-11-22T13:00:00.000Z",
		"JITGATE_REQUESTOR": "alice", "JITGATE_REASON": "INC-1", "JITGATE_SEQ": "2", "JITGATE_PREV": first["JITGATE_HASH"],
	} {
		if second[name] != want || want == "" {
			t.Errorf("%s is %q, want %q", name, second[name], want)
		}
	}
	if _, ok := second["JITGATE_CODE"]; ok || first["JITGATE_EVENT"] != "grant.opening" {
		t.Errorf("%v, %v", first, second)
	}
	seq, hash, _ := l.End()
	out.Head(seq, hash)
	out.Close(5 * time.Second)
	if head := j.take(); head["JITGATE_HEAD"] != "2:"+second["JITGATE_HASH"] || head["JITGATE_EVENT"] != "audit.head" {
		t.Errorf("%v", head)
	}
	if says, instead := o.count(); says+instead > 0 {
		t.Errorf("%v, %v", o.says, o.instead)
	}
}

// Nobody waits for a journal that hangs. What it did not take is told, and the
// rest comes once it reads again.
func TestJournalHangs(t *testing.T) {
	j := listenJournal(t, filepath.Join(t.TempDir(), "socket"))
	var o told
	out := NewJournal(j.path, o.say, o.log)
	const count, size = 3000, 10_000 // 30 MB, more than waits
	began := time.Now()
	for i := range count {
		out.Copy([]Entry{{Seq: uint64(i + 1), Event: Event{Name: GrantOpened, Reason: strings.Repeat("r", size)}}})
	}
	if took := time.Since(began); took > journalStall {
		t.Errorf("it held up for %s", took)
	}
	out.mu.Lock()
	if out.size > maxQueue || out.missed.Count == 0 {
		t.Errorf("%d bytes wait, %d missed", out.size, out.missed.Count)
	}
	missed := int(out.missed.Count)
	out.mu.Unlock()
	o.waitFor(t, "that it hangs should be said once", func(says, instead int) bool { return says == 1 && instead == 0 })
	seen := 0
	for e := j.take(); ; e = j.take() {
		if e["JITGATE_EVENT"] == "audit.missed" {
			if e["JITGATE_COUNT"] != fmt.Sprint(missed) {
				t.Errorf("%v, want %d", e, missed)
			}
			break
		}
		if seen++; e["JITGATE_SEQ"] != fmt.Sprint(seen) {
			t.Fatalf("%s came as number %d", e["JITGATE_SEQ"], seen)
		}
	}
	for ; seen+missed < count; seen++ {
		j.take()
	}
	// It ends on time with a journal that hangs again.
	for range 5000 {
		out.Copy([]Entry{{Event: Event{Name: GrantOpened}}})
	}
	began = time.Now()
	out.Close(50 * time.Millisecond)
	if took := time.Since(began); took > journalStall {
		t.Errorf("it took %s to end", took)
	}
}

// Without a journal events go elsewhere, said once; when it comes, or comes
// back, they go there.
func TestJournalThatIsNotThere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	var o told
	out := NewJournal(path, o.say, o.log)
	defer out.Close(time.Second)
	one := func() { out.Copy([]Entry{{Seq: 7, Event: Event{Name: GrantOpened}}}) }
	one()
	one()
	o.waitFor(t, "both should be logged, and that said once", func(says, instead int) bool { return says == 1 && instead == 2 })
	j := listenJournal(t, path)
	for range 2 { // the second time it was restarted, without us noticing
		one()
		if e := j.take(); e["JITGATE_SEQ"] != "7" {
			t.Errorf("%v", e)
		}
		j.conn.Close()
		os.Remove(path)
		j = listenJournal(t, path)
	}
	j.conn.Close()
	os.Remove(path)
	one()
	o.waitFor(t, "it should be said again", func(says, instead int) bool { return says == 2 && instead == 3 })
}

var hostile = []string{
	"x\nJITGATE_EVENT=grant.opened\nMESSAGE_ID=0", "x\n\x05\x00\x00\x00\x00\x00\x00\x00hello\n", "=", "\n", "\x00", "a\r\tb", "\xff\xfe", "JITGATE_CODE\n",
	strings.Repeat("A=B\n", 16<<10), strings.Repeat("é", 20<<10), strings.Repeat("\x80", 64<<10), strings.Repeat("x", maxValue), strings.Repeat("x", maxValue+1),
}

// A value stays in its field, whatever it has in it, and an entry fits into a
// datagram.
func TestJournalFieldsAreNotForged(t *testing.T) {
	for _, value := range hostile {
		stays(t, value)
	}
}

func FuzzJournal(f *testing.F) {
	for _, value := range hostile {
		f.Add(value)
	}
	f.Fuzz(func(t *testing.T, value string) { stays(t, value) })
}

func stays(t *testing.T, value string) {
	t.Helper()
	e := Entry{Seq: 1, Prev: genesis, Hash: genesis, Event: Event{Name: GrantRefused, Message: value, GrantID: value, Source: value, Requestor: value, Reason: value, Code: value}}
	b := e.datagram()
	if len(b) > 212_992-32 {
		t.Fatalf("%d bytes", len(b))
	}
	got, err := native(b)
	if err != nil {
		t.Fatalf("%.100q: %v", value, err)
	}
	want := e.fields()
	if len(got) != len(want) {
		t.Fatalf("%.100q: %d fields, want %d", value, len(got), len(want))
	}
	for i, f := range want {
		if got[i].name != f.name || got[i].value != f.value && !(len(f.value) > maxValue && strings.HasPrefix(f.value, strings.TrimSuffix(got[i].value, "…"))) {
			t.Errorf("%.100q: %s is %.100q, want %s %.100q", value, got[i].name, got[i].value, f.name, f.value)
		}
	}
}

// No field of an event is left out of the journal.
func TestJournalHasEveryField(t *testing.T) {
	none := len(Entry{}.fields())
	for i := range reflect.TypeFor[Event]().NumField() {
		var e Entry
		set(&e.Event, i)
		if more := len(e.fields()) - none; more < 1 {
			t.Errorf("%s is not in the journal", reflect.TypeFor[Event]().Field(i).Name)
		}
	}
}

// set gives a field of an event some value.
func set(e *Event, i int) {
	switch f := reflect.ValueOf(e).Elem().Field(i); f.Interface().(type) {
	case time.Time:
		f.Set(reflect.ValueOf(time.Unix(1, 0)))
	default:
		switch f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Int, reflect.Int64:
			f.SetInt(7)
		case reflect.Bool:
			f.SetBool(true)
		default:
			f.SetUint(7)
		}
	}
}

// names are the constants of type Name that the package declares.
func names(t *testing.T) map[string]Name {
	t.Helper()
	out := map[string]Name{}
	for _, path := range []string{"audit.go", "kinds.go"} {
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			if v, ok := n.(*ast.ValueSpec); ok {
				if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "Name" {
					out[v.Names[0].Name] = Name(strings.Trim(v.Values[0].(*ast.BasicLit).Value, `"`))
				}
			}
			return true
		})
	}
	if len(out) < 20 {
		t.Fatalf("%d events found: this looks at nothing", len(out))
	}
	return out
}

// Every event has an id of its own, which the catalog explains, with fields
// that there are.
func TestCatalog(t *testing.T) {
	text, err := os.ReadFile("../packaging/journal/jitgate.catalog")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	e := Entry{Seq: 1, Prev: "p", Hash: "h"}
	for i := range reflect.TypeFor[Event]().NumField() {
		set(&e.Event, i)
	}
	for _, f := range e.fields() {
		known[f.name] = true
	}
	explained := map[string]string{}
	for _, part := range strings.Split("\n"+string(text), "\n-- ")[1:] {
		id, rest, _ := strings.Cut(part, "\n")
		if _, twice := explained[id]; twice {
			t.Errorf("%s is explained twice", id)
		}
		explained[id] = rest
		header, body, _ := strings.Cut(rest, "\n\n")
		if !strings.HasPrefix(header, "Subject: ") || !strings.Contains(header, "\nDefined-By: jitgate\n") || len(strings.TrimSpace(body)) < 40 {
			t.Errorf("%s: %s", id, rest)
		}
		for _, m := range regexp.MustCompile("@([A-Z_]+)@").FindAllStringSubmatch(rest, -1) {
			if !known[m[1]] {
				t.Errorf("%s: there is no field %s", id, m[1])
			}
		}
	}
	ids := map[string]bool{}
	for _, name := range names(t) {
		k, ok := kinds[name]
		if !ok || !regexp.MustCompile("^[0-9a-f]{32}$").MatchString(k.id) || ids[k.id] {
			t.Errorf("%s: its id is %q", name, k.id)
		}
		ids[k.id] = true
		if explained[k.id] == "" {
			t.Errorf("%s: the catalog does not explain %s", name, k.id)
		}
	}
	if len(kinds) != len(names(t)) || len(explained) != len(kinds) {
		t.Errorf("%d events, %d kinds, %d explained", len(names(t)), len(kinds), len(explained))
	}
}
