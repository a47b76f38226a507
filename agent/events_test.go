package agent

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
)

// recording is an agent whose record is a file. No pass runs: whoever reads
// the record waits for none.
func recording(t *testing.T) (*Agent, *audit.File, string) {
	w := newWorld(t)
	dir := t.TempDir()
	file := audit.NewFile(dir)
	t.Cleanup(func() { file.Close() })
	w.Audit = file
	return w.Agent, file, filepath.Join(dir, "000001.jsonl")
}

func events(ctx context.Context, a *Agent, query string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	a.handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/v1/events"+query, nil))
	return w
}

// The lines come as they stand in the file, with where it ends.
func TestEvents(t *testing.T) {
	a, file, path := recording(t)
	if w := events(t.Context(), a, ""); w.Code != 200 || w.Body.Len() > 0 || w.Header().Get(HeaderSeq) != "0" || w.Header().Get(HeaderHash) != strings.Repeat("0", 64) {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
	for range 3 {
		if err := file.Record(t.Context(), audit.Event{Name: audit.GrantOpened, Message: "<&>"}); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	for query, want := range map[string]string{"": string(text), "?after=0": string(text), "?after=2": lines[2], "?from=2": lines[2], "?after=3": "", "?after=9007199254740991&wait=0": ""} {
		w := events(t.Context(), a, query)
		if w.Code != 200 || w.Body.String() != want || w.Header().Get(HeaderSeq) != "3" || len(w.Header().Get(HeaderHash)) != 64 {
			t.Errorf("%s: %d %v %q", query, w.Code, w.Header(), w.Body)
		}
	}
	for _, query := range []string{"?after=-1", "?after=x", "?after=1&after=2", "?vm=web2", "?after=1&from=1", "?after=18446744073709551615", "?%zz"} {
		if w := events(t.Context(), a, query); w.Code != 400 {
			t.Errorf("%s: %d", query, w.Code)
		}
	}
}

// A page is bounded, and the next one goes on behind it.
func TestEventsPages(t *testing.T) {
	a, file, path := recording(t)
	for range 5 {
		if err := file.Record(t.Context(), audit.Event{Name: audit.GrantOpened, Message: strings.Repeat("x", 100<<10)}); err != nil {
			t.Fatal(err)
		}
	}
	got := ""
	for after, pages := 0, 0; after < 5; pages++ {
		w := events(t.Context(), a, "?after="+string(rune('0'+after)))
		n := strings.Count(w.Body.String(), "\n")
		if n == 0 || n > 2 || pages > 5 {
			t.Fatalf("%d lines behind %d", n, after)
		}
		got, after = got+w.Body.String(), after+n
	}
	if text, err := os.ReadFile(path); err != nil || got != string(text) {
		t.Errorf("the pages are not the file: %v", err)
	}
}

// Who waits gets the next line when it is there, and nobody waits for ever.
func TestEventsWait(t *testing.T) {
	a, file, _ := recording(t)
	answer := make(chan *httptest.ResponseRecorder, 1)
	go func() { answer <- events(t.Context(), a, "?after=0&wait=60") }()
	time.Sleep(50 * time.Millisecond)
	if err := file.Record(t.Context(), audit.Event{Name: audit.AgentStarted}); err != nil {
		t.Fatal(err)
	}
	select {
	case w := <-answer:
		if w.Header().Get(HeaderSeq) != "1" || !strings.Contains(w.Body.String(), "agent.started") {
			t.Errorf("%v %s", w.Header(), w.Body)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
	}
	if w := events(t.Context(), a, "?after=1&wait=1"); w.Code != 200 || w.Body.Len() > 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if q, err := parseEventsCall("wait=9007199254740991"); err != nil || q.wait != eventsWait {
		t.Errorf("%+v, %v", q, err)
	}
}

// Readers are bounded, and one that goes away makes room.
func TestEventsReaders(t *testing.T) {
	a, _, _ := recording(t)
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan struct{}, eventsCalls)
	for range eventsCalls {
		go func() {
			events(ctx, a, "?wait=60")
			left <- struct{}{}
		}()
	}
	for end := time.Now().Add(10 * time.Second); len(a.readers) < eventsCalls && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if w := events(t.Context(), a, ""); w.Code != 503 {
		t.Errorf("one too many gets %d", w.Code)
	}
	cancel()
	for range eventsCalls {
		<-left
	}
	if w := events(t.Context(), a, ""); w.Code != 200 {
		t.Errorf("%d", w.Code)
	}
}

// An agent without a record that can be read says so.
func TestEventsWithoutRecord(t *testing.T) {
	w := newWorld(t)
	if got := events(t.Context(), w.Agent, ""); got.Code != 404 {
		t.Errorf("%d", got.Code)
	}
}

func FuzzEventsCall(f *testing.F) {
	f.Add("after=1&wait=2")
	f.Add("after=&wait")
	f.Fuzz(func(t *testing.T, query string) {
		if q, err := parseEventsCall(query); err == nil && (q.wait < 0 || q.wait > eventsWait) {
			t.Errorf("%q is %+v", query, q)
		}
	})
}
