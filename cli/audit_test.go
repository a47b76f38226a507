//go:build unix

package cli

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
)

// Through the agent the record comes page by page, and says nothing about who
// has it: old files may go only once a control plane has them.
func TestAuditThroughTheAgent(t *testing.T) {
	dir := t.TempDir()
	record := audit.NewFile(filepath.Join(dir, "audit"))
	defer record.Close()
	for i := range 7 {
		if err := record.Record(t.Context(), audit.Event{Name: audit.GrantOpened, GrantID: fmt.Sprint("g", i), Port: 22, Message: "m\x1b[31m"}); err != nil {
			t.Fatal(err)
		}
	}
	l, err := net.Listen("unix", filepath.Join(dir, "agent.sock"))
	if err != nil {
		t.Fatal(err)
	}
	pages := 0
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		pages++
		from, err := strconv.ParseUint(r.URL.Query().Get("from"), 10, 64)
		if err != nil || r.URL.Path != "/v1/events" || len(r.URL.Query()) != 1 {
			http.Error(w, r.URL.String()+" was asked for", http.StatusBadRequest)
			return
		}
		lines, err := record.After(from, 3, 1<<20)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		for _, line := range lines {
			fmt.Fprintf(w, "%s\n", line)
		}
	})}
	go server.Serve(l) // returns when it is closed
	defer server.Close()
	config := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(config, fmt.Appendf(nil, "host_id = \"web1\"\nsocket = %q\n", l.Addr()), 0o644); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) string {
		t.Helper()
		var out, complaints bytes.Buffer
		if code := Main(append([]string{"audit"}, append(args, "--socket", "--config", config)...), strings.NewReader(""), &out, &complaints); code != exitDone {
			t.Fatalf("%v: %d, %s", args, code, &complaints)
		}
		return out.String()
	}
	if out := run("list"); strings.Count(out, "[g") != 7 || strings.Contains(out, "\x1b") || pages != 4 {
		t.Errorf("%d pages:\n%s", pages, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, "audit", "000001.jsonl"))
	if out := run("export"); err != nil || out != string(text) {
		t.Errorf("exported\n%s", out)
	}
	if out := run("export", "--grant", "g5"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"g5"`) {
		t.Errorf("exported\n%s", out)
	}
}

func TestParseMoment(t *testing.T) {
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.FixedZone("", 3600))
	for text, want := range map[string]time.Time{
		"": {}, "2h": now.Add(-2 * time.Hour), "7d": now.AddDate(0, 0, -7), "2026-11-22T12:00:00Z": time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC),
		"2026-11-22": time.Date(2026, 11, 22, 0, 0, 0, 0, now.Location()), "2026-11-22 15:04": time.Date(2026, 11, 22, 15, 4, 0, 0, now.Location()), "2026-11-22T15:04": time.Date(2026, 11, 22, 15, 4, 0, 0, now.Location()),
	} {
		if got, err := parseMoment("since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"yesterday", "-2h", "7", "2026-13-01", "123456d", "d"} {
		if got, err := parseMoment("since", text, now); err == nil {
			t.Errorf("%s: %v", text, got)
		}
	}
}
