package audit

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// An event that was recorded is read as it was.
func TestLinesComeBack(t *testing.T) {
	dir := t.TempDir()
	l := NewFile(dir)
	defer l.Close()
	l.Full = 1000
	var want []Event
	for i := range 20 {
		e := Event{Name: GrantUsed, Message: "m<&>\n", GrantID: fmt.Sprint(i), Port: 22, Time: noon.Add(time.Duration(i) * time.Second), End: noon, First: noon, Last: noon, Connections: 3, BytesIn: 1 << 60, Count: 2}
		want = append(want, e)
		if err := l.Record(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	var got []Event
	read := func() ([]Fault, error) {
		got = nil
		return ReadDir(dir, func(l Line) error { got = append(got, l.Event); return nil })
	}
	if faults, err := read(); err != nil || len(faults) > 0 || !slices.Equal(got, want) {
		t.Errorf("%v, %v, %+v", faults, err, got)
	}
	list := lines(t, dir, 2)
	list[0] = []byte("scribble\n")
	rewrite(t, dir, 2, list)
	if faults, err := read(); err != nil || len(faults) != 1 || faults[0].File != "000002.jsonl" || faults[0].Line != 1 || len(got) != 19 {
		t.Errorf("%v, %v, %d lines", faults, err, len(got))
	}
}

func TestFilter(t *testing.T) {
	e := Event{Name: GrantOpened, Time: noon, Port: 22, GrantID: "g1", Requestor: "Alice"}
	for _, c := range []struct {
		f    Filter
		want bool
	}{
		{Filter{}, true},
		{Filter{Since: noon}, true}, {Filter{Since: noon.Add(1)}, false},
		{Filter{Until: noon}, false}, {Filter{Until: noon.Add(1)}, true},
		{Filter{Port: 22}, true}, {Filter{Port: 23}, false},
		{Filter{Grant: "g1"}, true}, {Filter{Grant: "g"}, false},
		{Filter{Requestor: "alice"}, true}, {Filter{Requestor: "bob"}, false},
		{Filter{Events: []string{"grant"}}, true}, {Filter{Events: []string{"guard", "grant.opened"}}, true},
		{Filter{Events: []string{"grant.open"}}, false}, {Filter{Events: []string{"gran"}}, false},
	} {
		if c.f.Takes(e) != c.want {
			t.Errorf("%+v: %t", c.f, !c.want)
		}
	}
}

// record as CSV has a column for each name of the record, and what others
// wrote stays a text in one cell.
func TestCSV(t *testing.T) {
	have := map[string]bool{}
	for _, c := range columns {
		have[c.name] = true
	}
	for i := range reflect.TypeFor[Event]().NumField() {
		name, _, _ := strings.Cut(reflect.TypeFor[Event]().Field(i).Tag.Get("json"), ",")
		if !have[name] {
			t.Errorf("no column %s", name)
		}
		var filled Event
		set(&filled, i)
		filled.Name, filled.Time = "x", time.Unix(1, 0)
		if slices.Equal(rowOf(t, Event{Name: "x", Time: time.Unix(1, 0)}), rowOf(t, filled)) && name != "event" && name != "time" {
			t.Errorf("%s is in no cell", name)
		}
	}
	for text, want := range map[string]string{
		"alice": "alice", "=1+1": "'=1+1", " \t=1": "'  =1", "@x": "'@x", "-1": "'-1", "+1": "'+1", "|x": "'|x", "%x": "'%x", "＝1": "'＝1", "a=1": "a=1",
		"a\r\nb": "a  b", "a\x1b[2Jb\x00": "a[2Jb", "a\u202eb\u200bc": "abc", "\u200b=1": "'=1", "a,\"b\"": "a,\"b\"", "\xff": "\ufffd", "\u00a0=1": "'\u00a0=1", "": "",
	} {
		if got := rowOf(t, Event{Name: "x", Reason: text})[9]; got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
	var b bytes.Buffer
	if c, err := NewCSV(&b); err != nil || c.Write(Line{Entry: Entry{Event: Event{Reason: "a,b"}}}) != nil || c.Flush() != nil || strings.Count(b.String(), "\r\n") != 2 || !strings.Contains(b.String(), `,"a,b",`) {
		t.Errorf("%q, %v", &b, err)
	}
}

func rowOf(t *testing.T, e Event) []string {
	t.Helper()
	var b bytes.Buffer
	c, err := NewCSV(&b)
	if err == nil {
		err = c.Write(Line{Entry: Entry{Seq: 1, Event: e}})
	}
	if err == nil {
		err = c.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil || len(rows) != 2 {
		t.Fatal(rows, err)
	}
	return rows[1]
}

func FuzzPlain(f *testing.F) {
	for _, s := range []string{"=1", "\u202e=1", "\t@", "a\x1b[31m", "\xff\xfe"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := plain(s)
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x00\x1b\r\n\t\u202e\u200b\u2028") || strings.IndexAny(strings.TrimSpace(got), formula) == 0 {
			t.Errorf("%q: %q", s, got)
		}
	})
}

// What OCSF 1.2.0 requires of each class is there.
func TestOCSF(t *testing.T) {
	required := map[int][]string{authentication: {"user", "service", "src_endpoint", "dst_endpoint"}, userAccess: {"user", "privileges"}, networkActivity: {"src_endpoint", "dst_endpoint"}, configState: {"device"}, lifecycle: {"app"}}
	for _, name := range names(t) {
		e := Event{Name: name, Time: noon, Message: "m", GrantID: "g1", Port: 22, Protocol: "TCP", Source: "203.0.113.7/32", Requestor: "alice", Code: "c", First: noon, Last: noon.Add(time.Hour), Count: 41, BytesIn: 5, PID: 7, Process: "nft"}
		text, err := json.Marshal(ToOCSF("web1", Line{Entry{9, genesis, "abc", e}, []byte("{}"), ""}))
		if err != nil {
			t.Fatal(err)
		}
		var o map[string]any
		if err := json.Unmarshal(text, &o); err != nil {
			t.Fatal(err)
		}
		class := int(o["class_uid"].(float64))
		for _, field := range append(required[class], "activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time", "type_uid", "raw_data") {
			if o[field] == nil {
				t.Errorf("%s: no %s", name, field)
			}
		}
		if len(required[class]) == 0 || o["category_uid"] != float64(class/1000) || o["type_uid"] != float64(class*100)+o["activity_id"].(float64) || o["time"] != float64(noon.UnixMilli()) {
			t.Errorf("%s: %s", name, text)
		}
	}
	for _, c := range []struct {
		e    Event
		want string
	}{
		{Event{Name: GrantOpened, Source: "203.0.113.7/32", Port: 22, Protocol: "TCP"}, `"user":{"name":"unknown"},"privileges":["access to port 22/TCP"],"resource":{"name":"22/TCP","type":"port"},"src_endpoint":{"ip":"203.0.113.7"}`},
		{Event{Name: GrantRevoked, Source: "10.0.0.0/8,…"}, `"type_uid":300502`},
		{Event{Name: GrantRefused, Source: "10.0.0.0/8", Code: "too-wide", Message: "m"}, `"status_id":2,"status_code":"too-wide","status_detail":"m"`},
		{Event{Name: GrantRefused, Source: "10.0.0.0/8"}, `"src_endpoint":{"name":"10.0.0.0/8"}`},
		{Event{Name: GrantUsed, Connections: 3, BytesIn: 5, BytesOut: 6, PacketsIn: 7, PacketsOut: 8}, `"traffic":{"bytes_in":5,"bytes_out":6,"packets_in":7,"packets_out":8}`},
		{Event{Name: GrantLogin, Source: "203.0.113.7", SourcePort: 50000, Port: 22, Account: "root", Requestor: "alice", Method: "publickey"}, `"user":{"name":"root"},"actor":{"user":{"name":"alice"}},"src_endpoint":{"ip":"203.0.113.7","port":50000},"dst_endpoint":{"hostname":"web1","port":22},"auth_protocol":"publickey","is_remote":true,"service":{"name":"sshd"}`},
		{Event{Name: ConnectionDeny, Source: "198.51.100.9", Count: 41}, `"count":41`},
		{Event{Name: GuardDrift, Process: "nft", PID: 7}, `"actor":{"process":{"name":"nft","pid":7}}`},
	} {
		text, err := json.Marshal(ToOCSF("web1", Line{Entry: Entry{Event: c.e}}))
		if err != nil || !strings.Contains(string(text), c.want) {
			t.Errorf("%s has no %s, %v", text, c.want, err)
		}
	}
}

// A night: who had what open, as the record tells it.
func TestTimeline(t *testing.T) {
	at := func(minutes int) time.Time { return noon.Add(time.Duration(minutes) * time.Minute) }
	e := func(minute int, name Name, grant, source string, end int) Event {
		return Event{Name: name, Time: at(minute), GrantID: grant, Source: source, Port: 22, End: at(end)}
	}
	used := e(61, GrantUsed, "late", "a", 60)
	used.Connections = 3
	early := e(29, GrantUsed, "cut", "b", 90)
	login := func(minute int, grant, account string) Event {
		l := e(minute, GrantLogin, grant, "192.0.2.1", 0)
		l.Account = account
		return l
	}
	got := Timeline([]Event{
		e(-5, GrantExpired, "before", "z", -5), // opened before the events begin
		e(0, GrantOpening, "late", "a", 60), e(0, GrantOpened, "late", "a", 60),
		login(5, "late", "root"), login(5, "nobody's", "root"),
		e(10, GrantOpened, "cut", "b", 90),
		e(20, GrantOpened, "moved", "c", 60),
		early, e(30, GrantRevoked, "cut", "b", 90),
		e(40, GrantOpened, "moved", "d", 60), e(40, GrantRevoked, "moved", "c", 60), // other sources, under the same id
		e(50, GrantOpened, "longer", "e", 60), e(55, GrantOpened, "longer", "e", 120),
		e(61, GrantExpired, "late", "a", 60), used,
		login(61, "late", "alice"),
		e(62, GrantExpired, "moved", "d", 60),
		e(70, GrantOpened, "cut", "b", 90), // listed again
	})
	type row struct {
		grant, source string
		from, to      int
		ended         Name
		used          bool
		accounts      string
	}
	var rows []row
	for _, p := range got {
		r := row{p.Grant, p.Source, int(p.From.Sub(noon).Minutes()), 999, p.Ended, p.Use != nil, ""}
		for _, l := range p.Logins {
			r.accounts += l.Account + " "
		}
		if !p.To.IsZero() {
			r.to = int(p.To.Sub(noon).Minutes())
		}
		rows = append(rows, r)
	}
	want := []row{
		{"before", "z", -5, -5, GrantExpired, false, ""}, {"late", "a", 0, 60, GrantExpired, true, "root alice "}, {"cut", "b", 10, 30, GrantRevoked, true, ""},
		{"moved", "c", 20, 40, GrantRevoked, false, ""}, {"moved", "d", 40, 60, GrantExpired, false, ""}, {"longer", "e", 50, 999, "", false, ""}, {"cut", "b", 70, 999, "", false, ""},
	}
	if !slices.Equal(rows, want) {
		t.Errorf("got  %v\nwant %v", rows, want)
	}
	if len(got) > 5 && !got[5].Until.Equal(at(120)) {
		t.Errorf("extended: %+v", got[5])
	}
}
