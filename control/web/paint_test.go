package web

import (
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jitgate/jitgate/control"
)

// BenchmarkFirstPaint has a real browser tell when it first painted a full list
// of machines, over TLS on the loopback address, in turns with a file that has
// the same bytes. It needs Node, npm and Chromium.
func BenchmarkFirstPaint(b *testing.B) {
	s := newSite(b)
	s.source = "127.0.0.1"
	for i := range pageRows {
		s.put(fmt.Sprintf("machine-%03d", i), control.VMInput{Location: "westeurope", OS: "Linux", Address: "10.0.0.4"})
	}
	const path, static = "/ui/vms?tab=NotConfigured", "/static"
	same := []byte(s.signedIn(s.owner).page(path))
	mux := http.NewServeMux()
	mux.Handle("/", s.web)
	mux.HandleFunc(static, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.Write(same)
	})
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // a browser tries, before it takes the certificate
	server.StartTLS()
	defer server.Close()

	dir, from := b.TempDir(), filepath.Join("..", "..", "e2e", "testdata", "web")
	for _, name := range []string{"package.json", "package-lock.json", "paint.mjs"} {
		text, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o644)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	run := func(env []string, name string, args ...string) string {
		cmd := exec.CommandContext(b.Context(), name, args...)
		cmd.Dir, cmd.Env = dir, append(append(os.Environ(), "HOME="+dir), env...)
		out, err := cmd.Output()
		if err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		return string(out)
	}
	run(nil, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	chromium, err := exec.LookPath("chromium")
	if err != nil {
		b.Fatal(err)
	}
	out := run([]string{"URL=" + server.URL, "TOKEN=" + s.owner, "CHROMIUM=" + chromium, "ROUNDS=" + strconv.Itoa(b.N)}, "node", "paint.mjs", path, static)
	var medians []float64
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var took []float64
		for _, word := range strings.Fields(line) {
			ms, err := strconv.ParseFloat(word, 64)
			if err != nil {
				b.Fatal(err)
			}
			took = append(took, ms)
		}
		slices.Sort(took)
		medians = append(medians, took[len(took)/2])
	}
	b.ReportMetric(medians[0], "page-ms")
	b.ReportMetric(medians[1], "file-ms")
	b.ReportMetric(medians[0]/medians[1], "ratio")
	b.ReportMetric(float64(len(same)), "bytes")
	b.ReportMetric(0, "ns/op") // it says nothing: the browser starts in it
}
