package agent

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// scrape returns what Prometheus reads.
func (w *world) scrape() string {
	w.t.Helper()
	answer := httptest.NewRecorder()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.handler().ServeHTTP(answer, httptest.NewRequestWithContext(w.t.Context(), http.MethodGet, "/metrics", nil))
	}()
	for {
		select {
		case call := <-w.calls:
			call()
		case <-done:
			if answer.Code != http.StatusOK || !strings.HasPrefix(answer.Header().Get("Content-Type"), "text/plain; version=0.0.4") {
				w.t.Fatalf("%d %v: %s", answer.Code, answer.Header(), answer.Body)
			}
			return answer.Body.String()
		}
	}
}

func (w *world) wantMetrics(lines ...string) {
	w.t.Helper()
	text := w.scrape()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			w.t.Errorf("no %q in\n%s", line, text)
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t)
	w.wantMetrics(`jitgate_openings 0`, `jitgate_events_total{event="guard.drift"} 0`, `jitgate_document_version{document="grants"} 0`)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Minute), w.grant("b", bob, 0, 1000*time.Hour))
	w.mustPass(0)
	w.denied(bob, 3)
	w.put(Policy, []byte("{"))
	w.mustPass(time.Second)
	w.wantMetrics(`jitgate_openings 1`, `jitgate_denied_packets_total 3`, `jitgate_denied_sources 1`, `jitgate_guard_enforces 1`, `jitgate_guard_intact 1`,
		`jitgate_documents_total{code="admitted",document="grants"} 1`, `jitgate_documents_total{code="malformed",document="policy"} 1`,
		`jitgate_document_refused{document="policy"} 1`, `jitgate_document_refused{document="grants"} 0`, `jitgate_document_version{document="policy"} 1`,
		`jitgate_grants_refused_total{code="too-long"} 1`, `jitgate_events_total{event="grant.opened"} 1`, `jitgate_problem 0`, `jitgate_audit_unrecorded_events 0`)
	if text := w.scrape(); !regexp.MustCompile(`\njitgate_apply_seconds_count [1-9]`).MatchString(text) ||
		!regexp.MustCompile(`\njitgate_document_expires_timestamp_seconds{document="grants"} 1\.\d+e\+09\n`).MatchString(text) {
		t.Error(text)
	}

	// What cannot be recorded is not counted, and waits.
	w.record.fail = policy.Refuse(policy.NotDurable, "full")
	w.pass(time.Minute)
	w.wantMetrics(`jitgate_openings 0`, `jitgate_grants_ended_total{outcome="unused"} 0`, `jitgate_audit_unrecorded_events 2`, `jitgate_problem 1`)
	w.record.fail = nil
	w.fake.Tamper(true)
	w.doubt()
	w.mustPass(time.Second)
	w.wantMetrics(`jitgate_grants_ended_total{outcome="unused"} 1`, `jitgate_events_total{event="guard.drift"} 1`, `jitgate_events_total{event="guard.repaired"} 1`)
}

// Nothing that others write becomes a label, so that nobody fills the memory of
// whoever reads the metrics.
func TestMetricsAreBounded(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	var grants []policy.Grant
	for i := range 200 {
		g := w.grant("grant-"+string(rune('A'+i%26))+strings.Repeat("x", i/26), alice, 0, time.Hour)
		g.Requestor = g.ID
		grants = append(grants, g)
	}
	w.list(grants...)
	w.mustPass(0)
	before := strings.Count(w.scrape(), "\n")
	for i := range 300 {
		w.fake.Admits(firewall.Door{Source: wide(i), Protocol: firewall.TCP, Port: 22})
	}
	w.knock(time.Minute)
	w.list()
	w.mustPass(time.Second)
	if after := strings.Count(w.scrape(), "\n"); after > before+4 {
		t.Errorf("%d lines, and %d after others came", before, after)
	}
	if text := w.scrape(); strings.Contains(text, "grant-A") || strings.Contains(text, "198.18.") {
		t.Errorf("a label is somebody else's:\n%s", text)
	}
}

func TestHeadNumber(t *testing.T) {
	for head, want := range map[string]float64{"": 0, "fffffffffffff0000": 1<<52 - 1, "0000000000001fff": 1} {
		if got := headNumber(head); got != want {
			t.Errorf("%q: %v, want %v", head, got, want)
		}
	}
}

// What the examples and the documentation ask for is what an agent offers.
func TestMetricsOfTheExamples(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Minute), w.grant("b", bob, 0, 1000*time.Hour))
	w.mustPass(0)
	offered := w.scrape()
	const examples = "../docs/examples/prometheus"
	for path, least := range map[string]int{examples + "/alerts.yml": 10, examples + "/grafana.json": 10, "../docs/metrics.md": 12} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, name := range regexp.MustCompile(`jitgate_[a-z_]+`).FindAllString(string(text), -1) {
			if name = strings.TrimSuffix(name, "_bucket"); !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		for _, name := range names {
			if !strings.Contains(offered, "# TYPE "+name+" ") {
				t.Errorf("%s asks for %s, which no agent offers", path, name)
			}
		}
		if len(names) < least {
			t.Errorf("%s names %d metrics: this test looks at nothing", path, len(names))
		}
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	text, err := os.ReadFile(examples + "/grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &board); err != nil || len(board.Panels) == 0 {
		t.Fatalf("%d panels, %v", len(board.Panels), err)
	}
	for _, p := range board.Panels {
		if len(p.Targets) == 0 || slices.ContainsFunc(p.Targets, func(x struct{ Expr string }) bool { return x.Expr == "" }) {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
	}
	// What is written for Prometheus is shown to it; setup.sh fetches promtool.
	promtool, err := exec.LookPath("promtool")
	switch {
	case err == nil:
	case os.Getenv("JITGATE_CI") != "":
		t.Fatal(err)
	default:
		t.Skip(err)
	}
	lint := exec.Command(promtool, "check", "metrics")
	lint.Stdin = strings.NewReader(offered)
	check := exec.Command(promtool, "check", "rules", "alerts.yml")
	test := exec.Command(promtool, "test", "rules", "alerts_test.yml")
	check.Dir, test.Dir = filepath.FromSlash(examples), filepath.FromSlash(examples)
	for _, cmd := range []*exec.Cmd{lint, check, test} {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", cmd, err, out)
		}
	}
}
