package agents_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gobwas/ws"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// dial opens the line with a certificate, as any program could.
func (w *world) dial(cert *tls.Certificate) (*uplink.Socket, net.Conn, error) {
	w.t.Helper()
	c := &tls.Config{RootCAs: w.roots, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	conn, err := tls.Dial("tcp", w.addr, c)
	if err != nil {
		return nil, nil, err
	}
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	u := must(url.Parse("wss://" + w.addr + uplink.PathLine))(w.t)
	early, _, err := ws.Dialer{}.Upgrade(struct{ io.ReadWriter }{conn}, u)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	w.t.Cleanup(func() { conn.Close() })
	return uplink.NewSocket(conn, early, true), conn, nil
}

func (w *world) mustDial(cert tls.Certificate) *uplink.Socket {
	w.t.Helper()
	s, _, err := w.dial(&cert)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func say(t testing.TB, s *uplink.Socket, up uplink.Up) {
	t.Helper()
	if err := s.Write(uplink.Encode(up)); err != nil {
		t.Fatal(err)
	}
}

func hear(t testing.TB, s *uplink.Socket) uplink.Down {
	t.Helper()
	text, err := s.Read(uplink.MaxDown)
	if err != nil {
		t.Fatal(err)
	}
	return must(uplink.ParseDown(text))(t)
}

// documents hears until it has a document of each of these types.
func documents(t testing.TB, s *uplink.Socket, types ...policy.Type) map[policy.Type]uplink.Document {
	t.Helper()
	got := map[policy.Type]uplink.Document{}
	for missing := len(types); missing > 0; {
		for _, d := range hear(t, s).Documents {
			got[d.Type] = d
		}
		missing = 0
		for _, typ := range types {
			if _, ok := got[typ]; !ok {
				missing++
			}
		}
	}
	return got
}

// call makes a call with or without a certificate.
func (w *world) call(cert *tls.Certificate, method, path string, body []byte, headers ...string) (int, http.Header, string) {
	w.t.Helper()
	q := must(http.NewRequestWithContext(w.t.Context(), method, w.url+path, bytes.NewReader(body)))(w.t)
	for i := 0; i+1 < len(headers); i += 2 {
		q.Header.Set(headers[i], headers[i+1])
	}
	a := must(w.client(cert).Do(q))(w.t)
	defer a.Body.Close()
	return a.StatusCode, a.Header, string(must(io.ReadAll(a.Body))(w.t))
}

// A join token that was used is of no use to whoever finds it, and what they
// are told does not say why.
func TestThreatReplayedJoinToken(t *testing.T) {
	w := newWorld(t)
	h, thief := w.host("web1"), w.host("web1")
	token := w.join(h.vm.Scope(), 1)
	if out, code := h.enroll(w, token); code != 0 {
		t.Fatal(out)
	}
	before := w.vm(h.vm).Agent.Key
	out, code := thief.enroll(w, token)
	if code != 1 || !strings.Contains(out, "join token is not valid") || strings.Contains(out, "was used") {
		t.Errorf("%d: %s", code, out)
	}
	if after := w.vm(h.vm).Agent.Key; after != before {
		t.Error("the thief has taken the host's place")
	}
	failed := w.activity("host.enrolled")
	if last := failed[len(failed)-1]; last.Status != "Failed" || last.Reason != "the join token was used" || last.Address != "127.0.0.1" {
		t.Errorf("%+v", last)
	}
	// Nothing is left on the thief's host but a key of its own.
	if text := string(must(os.ReadFile(thief.config))(t)); !strings.Contains(text, "https://elsewhere.example") || strings.Contains(text, "trust_pin") {
		t.Errorf("settings:\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(thief.dir, "fetch", "identity.pem")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// The host itself may ask again.
	if out, code := h.enroll(w, token); code != 0 {
		t.Errorf("%d: %s", code, out)
	}
}

// A stolen certificate gets what its own machine gets, whatever is asked.
func TestThreatStolenCertificateAsksForAnotherVM(t *testing.T) {
	w := newWorld(t)
	h, other := w.host("web1"), w.host("web2")
	h.mustEnroll(w)
	other.mustEnroll(w)
	w.policyOf(h.vm, 1)
	w.policyOf(other.vm, 7)
	w.grantsOf(other.vm, 9, "theirs")
	w.initiating(other.vm, "theirs")
	cert := h.identity()

	for _, path := range []string{"policy.json", "policy.json?vm=" + url.QueryEscape(other.vm.String()), "policy.json?host=web2"} {
		status, _, text := w.call(&cert, "GET", uplink.PathDocuments+path, nil, "X-Forwarded-For", "web2", "X-Host", other.vm.String(), "X-SSL-Client-Cert", "web2")
		if status != 200 || !strings.Contains(payload(t, text), "/virtualMachines/web1") {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	for _, path := range []string{"grants.json", "../web2/grants.json", "web2%2Fgrants.json", ".grants.json", "audit.json"} {
		if status, _, text := w.call(&cert, "GET", uplink.PathDocuments+path, nil); status != 404 {
			t.Errorf("%s: %d %s", path, status, text)
		}
	}
	if status, _, text := w.call(&cert, "POST", uplink.PathPoll, []byte(`{"vm":"`+other.vm.String()+`"}`)); status != 400 {
		t.Errorf("%d %s", status, text)
	}
	// It reports for its own machine only.
	status, _, text := w.call(&cert, "POST", uplink.PathPoll, uplink.Encode(uplink.Up{Status: &uplink.Status{Mode: "off", Open: []string{"theirs"}}}))
	if status != 200 || strings.Contains(text, "theirs") {
		t.Errorf("%d %s", status, text)
	}
	if p := w.port("theirs"); p.Status != control.Initiating {
		t.Errorf("%+v", p)
	}
	if v := w.vm(other.vm); v.Agent.Mode != "" {
		t.Errorf("%+v", v.Agent)
	}
	s := w.mustDial(cert)
	say(t, s, uplink.Up{})
	w.grantsOf(other.vm, 10)
	w.grantsOf(h.vm, 3)
	if got := documents(t, s, policy.TypeGrants); got[policy.TypeGrants].Version != 3 {
		t.Errorf("%+v", got)
	}
}

func payload(t testing.TB, envelope string) string {
	t.Helper()
	e, err := policy.ParseEnvelope([]byte(envelope))
	if err != nil {
		t.Fatalf("%v in %s", err, envelope)
	}
	return string(e.Payload)
}

// Who shows no certificate, a forged one or one of another CA gets nothing.
func TestThreatNoCertificate(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	elsewhere := newWorld(t)
	h2 := elsewhere.host("web1")
	h2.mustEnroll(elsewhere)
	foreign := h2.identity()
	for what, cert := range map[string]*tls.Certificate{"none": nil, "another control plane's": &foreign} {
		for _, c := range [][2]string{{"GET", uplink.PathLine}, {"POST", uplink.PathPoll}, {"POST", uplink.PathRenew}, {"GET", uplink.PathDocuments + "policy.json"}} {
			if status, _, text := w.call(cert, c[0], c[1], []byte("{}")); status != 401 || strings.Contains(text, "payload") {
				t.Errorf("%s, %s: %d %s", what, c[1], status, text)
			}
		}
		if _, _, err := w.dial(cert); err == nil {
			t.Errorf("%s: the line is open", what)
		}
	}
}

// Revoking an agent closes its socket within seconds, and its poll, and it
// gets nothing that is committed afterwards.
func TestThreatRevokedAgentIsCutOff(t *testing.T) {
	w := newWorld(t)
	h, other := w.host("web1"), w.host("web2")
	h.mustEnroll(w)
	other.mustEnroll(w)
	s, bystander := w.mustDial(h.identity()), w.mustDial(other.identity())
	say(t, s, uplink.Up{})
	say(t, bystander, uplink.Up{})
	documents(t, s, policy.TypeTrust)
	documents(t, bystander, policy.TypeTrust)
	cert := h.identity()
	polled := make(chan int, 1)
	go func() {
		status, _, _ := w.call(&cert, "POST", uplink.PathPoll, uplink.Encode(uplink.Up{Have: uplink.Versions{Trust: 1}, Wait: 50}))
		polled <- status
	}()
	time.Sleep(200 * time.Millisecond) // the poll is there
	if err := w.engine.RevokeAgent(t.Context(), w.owner, h.vm, "stolen"); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	w.grantsOf(h.vm, 1)
	for {
		text, err := s.Read(uplink.MaxDown)
		if err != nil {
			closed := &uplink.Closed{}
			if !errors.As(err, &closed) || closed.Code != uplink.CloseRefused {
				t.Errorf("%v", err)
			}
			break
		}
		if d := must(uplink.ParseDown(text))(t); time.Since(begun) > 5*time.Second {
			t.Fatalf("still there: %+v", d)
		}
	}
	select {
	case status := <-polled:
		if status != 401 {
			t.Errorf("the poll got %d", status)
		}
	case <-time.After(10 * time.Second):
		t.Error("the poll is still waiting")
	}
	if _, _, err := w.dial(&cert); err == nil {
		t.Error("it came in again")
	}
	w.policyOf(other.vm, 1)
	documents(t, bystander, policy.TypePolicy)
}

// Nonsense ends the connection it came on, and no other; nothing is kept of
// it.
func TestThreatGarbageFrames(t *testing.T) {
	w := newWorld(t)
	h, other := w.host("web1"), w.host("web2")
	h.mustEnroll(w)
	other.mustEnroll(w)
	bystander := w.mustDial(other.identity())
	say(t, bystander, uplink.Up{})
	documents(t, bystander, policy.TypeTrust)
	masked := func(f ws.Frame) []byte { return ws.MustCompileFrame(ws.MaskFrame(f)) }
	cert := h.identity()
	for what, bad := range map[string][]byte{
		"no frames":         []byte(strings.Repeat("GET / HTTP/1.1\r\n\r\n", 10)),
		"no JSON":           masked(ws.NewTextFrame([]byte("hello"))),
		"an unknown name":   masked(ws.NewTextFrame([]byte(`{"vm":"web2"}`))),
		"binary":            masked(ws.NewBinaryFrame([]byte("{}"))),
		"unmasked":          ws.MustCompileFrame(ws.NewTextFrame([]byte("{}"))),
		"8 EiB":             {0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4},
		"one byte too long": masked(ws.NewTextFrame(make([]byte, uplink.MaxUp+1)))[:20],
	} {
		_, conn, err := w.dial(&cert)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(bad); err != nil {
			t.Fatal(err)
		}
		conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the connection stays", what)
		}
	}
	if v := w.vm(h.vm); v.Agent.Mode != "" || v.Agent.Head.Seq != 0 {
		t.Errorf("%+v", v.Agent)
	}
	// A spoilt record is told, and kept from nobody's documents.
	s := w.mustDial(cert)
	say(t, s, uplink.Up{Lines: [][]byte{[]byte("x")}})
	for refused := ""; refused == ""; {
		refused = hear(t, s).Refused
	}
	w.policyOf(h.vm, 1)
	documents(t, s, policy.TypePolicy)
	if head := w.vm(h.vm).Agent.Head; head.Seq != 0 {
		t.Errorf("%+v", head)
	}
	for _, body := range []string{"", "x", `{"token":1}`, strings.Repeat("x", uplink.MaxSmall+1)} {
		if status, _, _ := w.call(nil, "POST", uplink.PathEnroll, []byte(body)); status != 400 {
			t.Errorf("%.20q: %d", body, status)
		}
	}
	w.policyOf(other.vm, 1)
	documents(t, bystander, policy.TypePolicy)
}

// An agent that does not read holds up nobody, and costs no more than one
// document of each type.
func TestThreatSlowReader(t *testing.T) {
	w := newWorld(t)
	slow, other := w.host("web1"), w.host("web2")
	slow.mustEnroll(w)
	other.mustEnroll(w)
	cert := slow.identity()
	s, conn, err := w.dial(&cert)
	if err != nil {
		t.Fatal(err)
	}
	conn.(*tls.Conn).NetConn().(*net.TCPConn).SetReadBuffer(128 << 10)
	say(t, s, uplink.Up{})
	bystander := w.mustDial(other.identity())
	say(t, bystander, uplink.Up{})
	documents(t, bystander, policy.TypeTrust)
	var ids []string
	for i := range 400 {
		ids = append(ids, fmt.Sprintf("grant-%d", i))
	}
	const last = 100
	for v := range uint64(last) {
		w.document(slow.vm, policy.TypeGrants, v+1, w.grants(slow.vm, v+1, ids...))
	}
	w.policyOf(other.vm, 1)
	documents(t, bystander, policy.TypePolicy)
	// It gets the newest, and not all it missed.
	count := 0
	for {
		down := hear(t, s)
		if len(down.Documents) == 0 {
			continue
		}
		if count++; down.Documents[len(down.Documents)-1].Version == last {
			break
		}
	}
	if count > last-10 {
		t.Errorf("%d lists of %d were queued", count, last)
	}
}

// A record that was changed on the host shows, and what was sent before stays.
func TestThreatForkedRecord(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	h.run()
	stop := h.fetching()
	within(t, 10*time.Second, "the record is here", func() bool { return w.vm(h.vm).Agent.Head.Seq >= 3 })
	h.stop()
	within(t, 10*time.Second, "the end is here", func() bool { return len(w.activity("agent.stopped")) == 1 || w.vm(h.vm).Agent.Head.Seq >= 3 })
	stop()
	path := filepath.Join(h.dir, "state/audit/000001.jsonl")
	text := must(os.ReadFile(path))(t)
	kept := w.vm(h.vm).Agent.Head
	// Root takes out the second line and puts the numbers right.
	lines := strings.SplitAfter(string(text), "\n")
	if err := os.WriteFile(path, []byte(lines[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	h.run()
	h.fetching()
	within(t, 15*time.Second, "it is told", func() bool { return len(w.activity("audit.forked")) == 1 })
	if now := w.vm(h.vm); now.Agent.Head != kept || !now.Agent.Forked {
		t.Errorf("%+v, was %+v", now.Agent, kept)
	}
	within(t, 10*time.Second, "the host is told", func() bool { return strings.Contains(h.log.String(), "does not take the record of this host") })
	// The documents come all the same.
	w.policyOf(h.vm, 1)
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
}

// Somebody between a host and the control plane, with a certificate of his
// own, learns no token and is not trusted.
func TestThreatEnrolmentThroughSomebodyElse(t *testing.T) {
	w, evil := newWorld(t), newWorld(t)
	h := w.host("web1")
	token := w.join(h.vm.Scope(), 1)
	var asked []string
	var mu sync.Mutex
	inner := evil.server.Config.Handler
	evil.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		mu.Unlock()
		inner.ServeHTTP(rw, r)
	})
	out, code := h.enroll(evil, token)
	if code != 1 || !strings.Contains(out, "another CA") {
		t.Errorf("%d: %s", code, out)
	}
	// He passes the true CA on: his own certificate is still not of it.
	evil.server.Config.Handler = http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.URL.Path)
		mu.Unlock()
		rw.Write(w.ca)
	})
	out, code = h.enroll(evil, token)
	if code != 1 || !strings.Contains(out, "certificate") {
		t.Errorf("%d: %s", code, out)
	}
	mu.Lock()
	defer mu.Unlock()
	if strings.Join(asked, ", ") != "GET "+uplink.PathCA+", GET "+uplink.PathCA {
		t.Errorf("he was asked %q", asked)
	}
	if out, code := h.enroll(w, token); code != 0 {
		t.Error(out)
	}
}

// A control plane that gives another trust document than the one the token
// names is not followed, and nothing of it stays.
func TestThreatEnrolmentWithAnotherTrust(t *testing.T) {
	w, other := newWorld(t), newWorld(t)
	h := w.host("web1")
	token := w.join(h.vm.Scope(), 1)
	w.engine.Realm.Signed = other.engine.Realm.Signed
	out, code := h.enroll(w, token)
	if code != 1 || !strings.Contains(out, "not the one the token names") {
		t.Errorf("%d: %s", code, out)
	}
	if text := string(must(os.ReadFile(h.config))(t)); strings.Contains(text, "trust_pin") || strings.Contains(text, w.url) {
		t.Errorf("settings:\n%s", text)
	}
	if _, err := os.Stat(filepath.Join(h.dir, "inbox", "trust.json")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
