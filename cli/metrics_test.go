package cli

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"testing"
)

// What listens on loopback passes on the metrics and nothing else.
func TestOfferMetrics(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	unix, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan string, 16)
	behind := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.URL.String()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		io.WriteString(w, "jitgate_openings 1\n")
	})}
	go behind.Serve(unix)
	defer behind.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- offerMetrics(t.Context(), l, socket) }()
	ask := func(method, path, host string) (int, string) {
		q, err := http.NewRequestWithContext(t.Context(), method, "http://"+l.Addr().String()+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if host != "" {
			q.Host = host
		}
		answer, err := http.DefaultClient.Do(q)
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(answer.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
	for _, host := range []string{"", "localhost:9477", "[::1]:9477"} {
		if code, text := ask(http.MethodGet, "/metrics?x=1", host); code != http.StatusOK || text != "jitgate_openings 1\n" {
			t.Errorf("as %q: %d %q", host, code, text)
		}
		if got := <-asked; got != "GET /metrics" {
			t.Errorf("the agent was asked %q", got)
		}
	}
	for _, c := range []struct {
		method, path, host string
		code               int
	}{
		{http.MethodGet, "/v1/status", "", http.StatusNotFound},
		{http.MethodPost, "/v1/lockdown", "", http.StatusNotFound},
		{http.MethodPost, "/metrics", "", http.StatusMethodNotAllowed},
		{http.MethodGet, "/metrics", "evil.example:9477", http.StatusMisdirectedRequest},
		{http.MethodGet, "/metrics", "192.0.2.1:9477", http.StatusMisdirectedRequest},
	} {
		if code, _ := ask(c.method, c.path, c.host); code != c.code {
			t.Errorf("%s %s as %q: %d, want %d", c.method, c.path, c.host, code, c.code)
		}
	}
	behind.Close()
	if code, _ := ask(http.MethodGet, "/metrics", ""); code != http.StatusBadGateway {
		t.Errorf("without an agent: %d", code)
	}
	if len(asked) > 0 {
		t.Errorf("the agent was asked %q", <-asked)
	}
	l.Close()
	if err := <-ended; err == nil {
		t.Error("it goes on with its socket closed")
	}
}
