package api

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

var update = flag.Bool("update", false, "write what the server answers into testdata/golden")

var (
	anyID   = regexp.MustCompile(`(?i)(x-ms-(?:correlation-|routing-)?request-id"?: ?"?(?:JITGATE:[0-9TZ]+:)?)[0-9a-f-]{36}`)
	anyHost = regexp.MustCompile(`https://127\.0\.0\.1:[0-9]+`)
)

// TestGolden plays the files of testdata/golden in order, each one call as a
// client sends it and the answer, byte for byte. Lines that begin with "#" are
// for people, but for "# after PT1H", which moves the clock. <id> stands for a
// random id, https://host for the server.
func TestGolden(t *testing.T) {
	s := newServer(t, options{now: time.Date(2026, 11, 22, 18, 50, 15, 489502900, time.UTC)})
	barbara := s.person("barbara", "Owner", control.Everywhere)
	files, err := filepath.Glob("testdata/golden/*.http")
	if err != nil || len(files) < 12 {
		t.Fatalf("%d files, %v: this looks at nothing", len(files), err)
	}
	slices.Sort(files)
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".http"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			ask, want, ok := strings.Cut(string(text), "\n====\n")
			if !ok && !*update {
				t.Fatal("no answer: run with -update")
			}
			call := ask
			for strings.HasPrefix(call, "#") {
				var comment string
				comment, call, _ = strings.Cut(call, "\n")
				if d, ok := strings.CutPrefix(comment, "# after "); ok {
					wait, err := policy.ParseDuration(d)
					if err != nil {
						t.Fatal(err)
					}
					s.clock.forward(wait)
					if err := s.engine.Sweep(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
			}
			head, body, _ := strings.Cut(call, "\n\n")
			lines := strings.Split(head, "\n")
			method, target, _ := strings.Cut(lines[0], " ")
			r, err := http.NewRequestWithContext(t.Context(), method, s.http.URL+target, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range lines[1:] {
				name, value, _ := strings.Cut(line, ": ")
				r.Header.Add(name, strings.ReplaceAll(value, "<token>", barbara))
			}
			if body == "" {
				r.Body, r.ContentLength = nil, 0
			}
			w, err := s.http.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Body.Close()
			var out, content bytes.Buffer
			if _, err := content.ReadFrom(w.Body); err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&out, "%d\n", w.StatusCode)
			for _, name := range slices.Sorted(maps.Keys(w.Header)) {
				if name != "Date" {
					fmt.Fprintf(&out, "%s: %s\n", name, strings.Join(w.Header[name], ", "))
				}
			}
			fmt.Fprintf(&out, "\n%s\n", content.Bytes())
			got := anyHost.ReplaceAllString(anyID.ReplaceAllString(out.String(), "$1<id>"), "https://host")
			if *update {
				if err := os.WriteFile(path, []byte(ask+"\n====\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if got != want {
				t.Errorf("answered\n%s\nwant\n%s", got, want)
			}
		})
	}
}
