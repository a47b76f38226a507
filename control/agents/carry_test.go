package agents_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/fetch"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// proxy is an HTTP proxy that makes tunnels, for whom has the password.
type proxy struct {
	addr     string
	tunnels  atomic.Int64
	refused  atomic.Int64
	listener net.Listener
}

func newProxy(t *testing.T, user string) *proxy {
	t.Helper()
	p := &proxy{listener: must(net.Listen("tcp", "127.0.0.1:0"))(t)}
	p.addr = p.listener.Addr().String()
	want := "Basic " + base64.StdEncoding.EncodeToString([]byte(user))
	var all sync.WaitGroup
	serve := func(conn net.Conn) {
		defer conn.Close()
		in := bufio.NewReader(conn)
		q, err := http.ReadRequest(in)
		if err != nil {
			return
		}
		if q.Method != http.MethodConnect || q.Header.Get("Proxy-Authorization") != want {
			p.refused.Add(1)
			io.WriteString(conn, "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
			return
		}
		to, err := net.Dial("tcp", q.Host)
		if err != nil {
			io.WriteString(conn, "HTTP/1.1 502 Bad Gateway\r\n\r\n")
			return
		}
		defer to.Close()
		p.tunnels.Add(1)
		io.WriteString(conn, "HTTP/1.1 200 Connection established\r\n\r\n")
		go func() {
			io.Copy(to, in)
			to.(*net.TCPConn).CloseWrite()
		}()
		io.Copy(conn, to)
	}
	all.Go(func() {
		for {
			conn, err := p.listener.Accept()
			if err != nil {
				return
			}
			go serve(conn)
		}
	})
	t.Cleanup(func() { p.listener.Close(); all.Wait() })
	return p
}

// Everything goes through a proxy that wants a password, enrolment included.
func TestProxy(t *testing.T) {
	w := newWorld(t)
	p := newProxy(t, "user:pa:ss")
	h := w.host("web1")
	w.policyOf(h.vm, 1)
	at := "http://user:pa%3Ass@" + p.addr
	text := string(must(os.ReadFile(h.config))(t))
	if err := os.WriteFile(h.config, []byte(text+"proxy = \""+at+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.mustEnroll(w)
	if n := p.tunnels.Load(); n < 2 {
		t.Errorf("%d tunnels for ca.pem and enrolment", n)
	}
	h.run()
	before := p.tunnels.Load()
	h.fetching(func(c *fetch.Config) { c.Proxy = at })
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	if p.tunnels.Load() == before || p.refused.Load() > 0 {
		t.Errorf("%d tunnels, %d refused", p.tunnels.Load()-before, p.refused.Load())
	}
}

// A wrong password is told, and destroys nothing.
func TestProxyRefuses(t *testing.T) {
	w := newWorld(t)
	p := newProxy(t, "user:right")
	h := w.host("web1")
	h.mustEnroll(w)
	stop := h.fetching(func(c *fetch.Config) { c.Proxy = "http://user:wrong@" + p.addr })
	within(t, 10*time.Second, "it was refused", func() bool { return strings.Contains(h.log.String(), "407") })
	stop()
	if strings.Contains(h.log.String(), "wrong@") {
		t.Error("the password is in the log")
	}
	h.identity()
}

// inFront stands before a Line, has its way with attempts at a WebSocket, and
// counts them and the polls.
type inFront struct {
	http.Handler
	upgrade         func(nth int64, r *http.Request)
	upgrades, polls atomic.Int64
}

func (f *inFront) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Upgrade") != "" {
		f.upgrade(f.upgrades.Add(1), r)
	}
	if r.URL.Path == uplink.PathPoll {
		f.polls.Add(1)
	}
	f.Handler.ServeHTTP(w, r)
}

// behind is a world whose Line has such a one in front, and a host that fetches
// from it.
func behind(t *testing.T, upgrade func(nth int64, r *http.Request)) (*world, *host, *inFront) {
	t.Helper()
	w := newWorld(t)
	front := &inFront{Handler: w.server.Config.Handler, upgrade: upgrade}
	w.server.Config.Handler = front
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	h.run()
	h.fetching()
	return w, h, front
}

// Where no WebSocket gets through the host polls: it gets documents as soon as
// they are there, and its record goes up.
func TestPoll(t *testing.T) {
	w, h, proxy := behind(t, func(_ int64, r *http.Request) { // like a proxy that knows none
		r.Header.Del("Upgrade")
		r.Header.Del("Connection")
	})
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	w.initiating(h.vm, "g1")
	begun := time.Now()
	w.grantsOf(h.vm, 1, "g1")
	within(t, 20*time.Second, "the port is open", func() bool { return len(h.status().Openings) == 1 })
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("it took %s: the poll was not answered at once", took)
	}
	within(t, 10*time.Second, "the request is Initiated", func() bool { return w.port("g1").Status == control.Initiated })
	within(t, 10*time.Second, "the record is here", func() bool { return len(w.activity("grant.opened")) == 1 })
	if proxy.upgrades.Load() != 1 || proxy.polls.Load() < 2 || proxy.polls.Load() > 40 {
		t.Errorf("%d upgrades, %d polls", proxy.upgrades.Load(), proxy.polls.Load())
	}
}

// An attempt at a WebSocket that ends without an answer may mean that the server
// was killed: it is tried once more. Twice is enough: then the host polls.
func TestUpgradeUnanswered(t *testing.T) {
	for cuts, polls := range map[int64]bool{1: false, 1000: true} {
		t.Run(fmt.Sprint(cuts), func(t *testing.T) {
			_, h, cut := behind(t, func(nth int64, _ *http.Request) {
				if nth <= cuts {
					panic(http.ErrAbortHandler)
				}
			})
			within(t, 15*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
			if cut.upgrades.Load() != 2 || cut.polls.Load() > 0 != polls {
				t.Errorf("%d upgrades, %d polls", cut.upgrades.Load(), cut.polls.Load())
			}
		})
	}
}

// With the control plane dead, the same signed files come from plain places,
// over HTTP and from a directory; what is older or no document is not taken.
func TestPlain(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	h.run()
	stop := h.fetching()
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	stop()
	w.stop()
	w.server.Close()

	files := map[string][]byte{}
	var conditional atomic.Int64
	var mu sync.Mutex
	set := func(name string, text []byte) { mu.Lock(); defer mu.Unlock(); files[name] = text }
	bucket := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		mu.Lock()
		text, ok := files[strings.TrimPrefix(r.URL.Path, "/bucket/web1/")]
		mu.Unlock()
		if !ok {
			// A captive portal.
			rw.Header().Set("ETag", `"portal"`)
			io.WriteString(rw, "<html>Please log in</html>")
			return
		}
		tag := `"` + policy.Envelope{Payload: text}.Digest().String() + `"`
		rw.Header().Set("ETag", tag)
		if r.Header.Get("If-None-Match") == tag {
			conditional.Add(1)
			rw.WriteHeader(http.StatusNotModified)
			return
		}
		rw.Write(text)
	}))
	defer bucket.Close()
	share := t.TempDir()
	h.fetching(func(c *fetch.Config) {
		c.Fallback = []string{bucket.URL + "/bucket/web1/", share}
		c.PollInterval = 100 * time.Millisecond
	})
	set("grants.json", w.grants(h.vm, 2, "g2"))
	within(t, 20*time.Second, "the list from the web server is in force", func() bool { return h.versions()[2] == 2 })
	within(t, 10*time.Second, "it asks only whether there is something new", func() bool { return conditional.Load() > 0 })
	set("grants.json", w.grants(h.vm, 1, "old"))
	if err := os.WriteFile(filepath.Join(share, "grants.json"), w.grants(h.vm, 3, "g3"), 0o644); err != nil {
		t.Fatal(err)
	}
	within(t, 10*time.Second, "the list from the directory is in force", func() bool { return h.versions()[2] == 3 })
	lies := must(os.ReadFile(filepath.Join(h.dir, "inbox", "grants.json")))(t)
	if !strings.Contains(payload(t, string(lies)), `"g3"`) {
		t.Errorf("%s", payload(t, string(lies)))
	}
	h.identity()
}

// A host that was away for days gets the newest of each, and what it had is
// not sent again.
func TestResume(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	h.run()
	stop := h.fetching()
	within(t, 10*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	stop()
	for v := range uint64(5) {
		w.grantsOf(h.vm, v+1)
	}
	s := w.mustDial(h.identity())
	say(t, s, uplink.Up{Have: uplink.Versions{Trust: 1, Policy: 1}})
	got := documents(t, s, policy.TypeGrants)
	if len(got) != 1 || got[policy.TypeGrants].Version != 5 {
		t.Errorf("%+v", got)
	}
	h.fetching()
	within(t, 10*time.Second, "the newest list is in force", func() bool { return h.versions() == [3]uint64{1, 1, 5} })
	if n := strings.Count(h.log.String(), `delivered: document=policy.json`); n != 1 {
		t.Errorf("the policy was delivered %d times", n)
	}
}

// The fetcher delivers while the agent is down, and reports when it is back.
func TestAgentDown(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	h.run()
	h.fetching()
	within(t, 10*time.Second, "the agent is heard", func() bool { return w.vm(h.vm).Agent.Mode == "enforce" })
	h.stop()
	w.policyOf(h.vm, 1)
	within(t, 10*time.Second, "the policy lies in the inbox", func() bool {
		_, err := os.Stat(filepath.Join(h.dir, "inbox", "policy.json"))
		return err == nil
	})
	h.run()
	within(t, 15*time.Second, "it is in force and known", func() bool { return w.vm(h.vm).Agent.Versions.Policy == 1 })
	if n := len(w.activity("agent.started")); n != 2 {
		t.Errorf("%d starts are recorded", n)
	}
}

// A document that could not be written is not lost: it comes again.
func TestInboxAppearsLater(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	w.policyOf(h.vm, 1)
	h.mustEnroll(w)
	inbox := filepath.Join(h.dir, "inbox")
	if err := os.RemoveAll(inbox); err != nil {
		t.Fatal(err)
	}
	h.fetching()
	within(t, 10*time.Second, "it complains", func() bool { return strings.Contains(h.log.String(), "the inbox cannot be written") })
	h.run() // makes the inbox
	within(t, 30*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
}

// Enrolments that come while the control plane is busy try again.
func TestEnrolWhileBusy(t *testing.T) {
	w := newWorld(t)
	busy := &saysBusy{Handler: w.server.Config.Handler}
	w.server.Config.Handler = busy
	h := w.host("web1")
	h.mustEnroll(w)
	if busy.asked.Load() != 3 {
		t.Errorf("asked %d times", busy.asked.Load())
	}
}

// saysBusy answers the first two enrolments with 503.
type saysBusy struct {
	http.Handler
	asked atomic.Int64
}

func (b *saysBusy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == uplink.PathEnroll && b.asked.Add(1) <= 2 {
		http.Error(w, "busy", http.StatusServiceUnavailable)
		return
	}
	b.Handler.ServeHTTP(w, r)
}

// A host takes trust documents one by one. One that was away for several
// changes of keys gets each of them, and one that is here when they come too.
func TestTrustOneByOne(t *testing.T) {
	w := newWorld(t)
	w.follow(1)
	away, here := w.host("web1"), w.host("web2")
	for _, h := range []*host{away, here} {
		h.mustEnroll(w)
		h.run()
	}
	here.fetching()
	stop := away.fetching()
	within(t, 10*time.Second, "the first is in force", func() bool { return away.versions()[0] == 1 && here.versions()[0] == 1 })
	stop()
	for version := uint64(2); version <= 4; version++ {
		w.follow(version)
	}
	within(t, 20*time.Second, "the host that is here has the last", func() bool { return here.versions()[0] == 4 })
	away.fetching()
	within(t, 20*time.Second, "the host that was away has the last", func() bool { return away.versions()[0] == 4 })
}

// follow puts the next version of the realm's trust document in force, as a
// replica does that is started with it.
func (w *world) follow(version uint64) {
	w.t.Helper()
	w.trust.Version = version
	w.trust.Issued = w.trust.Issued.Add(time.Second)
	replica := w.engine.Config
	replica.Realm.Trust, replica.Realm.Signed = w.trust, w.sign(policy.TypeTrust, policy.RoleRoot, w.trust.Encode())
	if err := control.New(replica).Sweep(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// What an agent refuses is told, and not sent again and again.
func TestRefusedDocument(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	h.run()
	h.fetching()
	within(t, 10*time.Second, "the trust document is in force", func() bool { return h.versions()[0] == 1 })
	// Signed for another machine.
	w.document(h.vm, policy.TypeGrants, 1, w.grants(vmID("web2"), 1))
	within(t, 10*time.Second, "it is told", func() bool { return strings.Contains(w.vm(h.vm).Agent.Note, "wrong-host") })
	within(t, 10*time.Second, "it is in the activity log", func() bool { return len(w.activity("document.refused")) == 1 })
	cert := h.identity()
	lies := must(os.ReadFile(filepath.Join(h.dir, "inbox", "grants.json")))(t)
	held := []uplink.Held{{Type: policy.TypeGrants, Version: 1, Digest: must(policy.ParseEnvelope(lies))(t).Digest(), Refusal: "wrong-host: x"}}
	_, _, text := w.call(&cert, "POST", uplink.PathPoll, uplink.Encode(uplink.Up{Have: uplink.Versions{Trust: 1}, Held: held}))
	if d := must(uplink.ParseDown([]byte(text)))(t); len(d.Documents) > 0 {
		t.Errorf("sent again: %+v", d)
	}
	// Where it does not lie there any more, it is.
	_, _, text = w.call(&cert, "POST", uplink.PathPoll, uplink.Encode(uplink.Up{Have: uplink.Versions{Trust: 1}}))
	if d := must(uplink.ParseDown([]byte(text)))(t); len(d.Documents) != 1 {
		t.Errorf("not sent: %+v", d)
	}
	if n := strings.Count(h.log.String(), `delivered: document=grants.json`); n != 1 {
		t.Errorf("it was delivered %d times", n)
	}
	// The next version that is right replaces it.
	w.policyOf(h.vm, 1)
	w.grantsOf(h.vm, 2)
	within(t, 10*time.Second, "the next is in force", func() bool { return h.versions()[2] == 2 })
}

// The certificate is renewed on the way, with a new key, and the former one is
// of no use afterwards.
func TestRenewal(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	former := h.identity()
	w.lag.forward(21 * 24 * time.Hour) // the control plane says that it is due
	h.run()
	h.fetching()
	within(t, 15*time.Second, "the new key is in use", func() bool { return len(w.activity("host.renewed")) == 1 })
	within(t, 10*time.Second, "it is in place", func() bool {
		_, err := os.Stat(filepath.Join(h.dir, "fetch", "next.pem"))
		return os.IsNotExist(err)
	})
	if status, _, _ := w.call(&former, "POST", uplink.PathPoll, []byte("{}")); status != 401 {
		t.Errorf("the former certificate gets %d", status)
	}
	w.policyOf(h.vm, 1)
	within(t, 10*time.Second, "documents come", func() bool { return h.versions()[1] == 1 })
}

// A renewal whose answer was lost, or that the control plane knows nothing of,
// leaves the certificate that works.
func TestRenewalLost(t *testing.T) {
	w := newWorld(t)
	h, other := w.host("web1"), w.host("web2")
	h.mustEnroll(w)
	other.mustEnroll(w)
	// What lies there as renewed is one the control plane refuses.
	if err := w.engine.RevokeAgent(t.Context(), w.owner, other.vm, ""); err != nil {
		t.Fatal(err)
	}
	revoked := must(os.ReadFile(filepath.Join(other.dir, "fetch", "identity.pem")))(t)
	next := filepath.Join(h.dir, "fetch", "next.pem")
	if err := os.WriteFile(next, revoked, 0o600); err != nil {
		t.Fatal(err)
	}
	before := must(os.ReadFile(filepath.Join(h.dir, "fetch", "identity.pem")))(t)
	h.run()
	h.fetching()
	within(t, 10*time.Second, "the agent is heard", func() bool { return w.vm(h.vm).Agent.Mode == "enforce" })
	within(t, 5*time.Second, "what is of no use is gone", func() bool { _, err := os.Stat(next); return os.IsNotExist(err) })
	if after := must(os.ReadFile(filepath.Join(h.dir, "fetch", "identity.pem")))(t); string(after) != string(before) {
		t.Error("the identity was changed")
	}
}

// A machine that was off for weeks comes back by itself.
func TestExpiredCertificate(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	w.lag.forward(60 * 24 * time.Hour)
	cert := h.identity()
	if status, _, _ := w.call(&cert, "POST", uplink.PathPoll, []byte("{}")); status != 403 {
		t.Errorf("an expired certificate gets %d", status)
	}
	h.run()
	h.fetching()
	within(t, 15*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
}

// A replica that stops sends its agents away, and they come back by
// themselves; nothing that was committed meanwhile is missed.
func TestRestart(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	h.run()
	h.fetching()
	within(t, 10*time.Second, "the agent is heard", func() bool { return w.vm(h.vm).Agent.Mode == "enforce" })
	s := w.mustDial(h.identity())
	say(t, s, uplink.Up{Have: uplink.Versions{Trust: 1}})
	hear(t, s) // it is there
	w.stop()
	for {
		if d := hear(t, s); d.BackOff > 0 {
			if d.BackOff > 21 {
				t.Errorf("back in %d s", d.BackOff)
			}
			break
		}
	}
	w.server.Close()
	w.policyOf(h.vm, 1)
	w.serve(w.addr)
	within(t, 40*time.Second, "the policy is in force", func() bool { return h.versions()[1] == 1 })
	if w.vm(h.vm).Agent.LastSeen.IsZero() {
		t.Error("when the agent was last seen was not written down at the stop")
	}
}

// Two hundred hosts come at once, and each gets its own; a stranger's calls
// are answered meanwhile.
func TestStorm(t *testing.T) {
	const count = 200
	w := newWorld(t)
	var certs []tls.Certificate
	var vms []control.VMID
	for i := range count {
		vm := vmID(fmt.Sprintf("web%d", i))
		key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
		csr := must(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))(t)
		e := must(w.engine.Enrol(t.Context(), control.EnrolInput{Token: w.join(vm.Scope(), 1), HostID: vm.String(), CSR: csr}))(t)
		block, _ := pem.Decode(e.Chain)
		certs, vms = append(certs, tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key}), append(vms, vm)
		w.policyOf(vm, 1)
		w.grantsOf(vm, uint64(i)+1)
	}
	var all sync.WaitGroup
	var good atomic.Int64
	for i := range count {
		all.Go(func() {
			s, _, err := w.dial(&certs[i])
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Write(uplink.Encode(uplink.Up{Status: &uplink.Status{Mode: "enforce"}})); err != nil {
				t.Error(err)
				return
			}
			for got := 0; got < 3; {
				text, err := s.Read(uplink.MaxDown)
				if err != nil {
					t.Error(err)
					return
				}
				d, err := uplink.ParseDown(text)
				if err != nil {
					t.Error(err)
					return
				}
				for _, doc := range d.Documents {
					if doc.Type == policy.TypeGrants && doc.Version != uint64(i)+1 {
						t.Errorf("%s gets version %d", vms[i], doc.Version)
					}
				}
				got += len(d.Documents)
			}
			good.Add(1)
		})
	}
	all.Wait()
	if good.Load() != count {
		t.Errorf("%d of %d have their documents", good.Load(), count)
	}
	if status, _, text := w.call(nil, "GET", uplink.PathCA, nil); status != 200 || text != string(w.ca) {
		t.Errorf("%d %s", status, text)
	}
}

// Enrolments beyond the budget are sent away, and told when to come back.
func TestEnrolmentBudget(t *testing.T) {
	w := newWorld(t)
	busy := 0
	for range 80 {
		status, header, _ := w.call(nil, "POST", uplink.PathEnroll, []byte("x"))
		switch {
		case status == 503 && header.Get("Retry-After") != "":
			busy++
		case status != 400:
			t.Fatalf("%d", status)
		}
	}
	if busy == 0 {
		t.Error("eighty at once are too few for the budget")
	}
}

// A file is fetched once, and then asked for by its tag.
func TestDocumentFile(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	h.mustEnroll(w)
	w.policyOf(h.vm, 1)
	cert := h.identity()
	status, header, text := w.call(&cert, "GET", uplink.PathDocuments+"policy.json", nil)
	if status != 200 || header.Get("ETag") == "" || !strings.Contains(payload(t, text), "web1") {
		t.Fatalf("%d %v %s", status, header, text)
	}
	if status, _, text := w.call(&cert, "GET", uplink.PathDocuments+"policy.json", nil, "If-None-Match", header.Get("ETag")); status != 304 || text != "" {
		t.Errorf("%d %s", status, text)
	}
	w.policyOf(h.vm, 2)
	if status, _, _ := w.call(&cert, "GET", uplink.PathDocuments+"policy.json", nil, "If-None-Match", header.Get("ETag")); status != 200 {
		t.Errorf("%d", status)
	}
	if status, _, text := w.call(&cert, "GET", uplink.PathDocuments+"trust.json", nil); status != 200 || text != string(w.engine.Realm.Signed) {
		t.Errorf("%d %s", status, text)
	}
}

// What one replica commits, agents of the other get.
func TestReplicas(t *testing.T) {
	server := storetest.Server(t)
	dsn := server.NewDatabase(t)
	w := newWorldOn(t, storetest.Open(t, dsn))
	h := w.host("web1")
	h.mustEnroll(w)
	h.run()
	h.fetching()
	within(t, 20*time.Second, "the agent is heard", func() bool { return w.vm(h.vm).Agent.Mode == "enforce" })
	other := storetest.Open(t, dsn)
	p := w.grants(h.vm, 1)
	w.policyOf(h.vm, 1)
	err := other.Update(context.Background(), func(tx control.Tx) error {
		return tx.PutDocument(control.Document{VM: h.vm.Key(), Type: policy.TypeGrants, Version: 1, Issued: time.Now(), Expires: time.Now().Add(time.Hour), Signed: p})
	})
	if err != nil {
		t.Fatal(err)
	}
	within(t, 20*time.Second, "the list of the other replica is in force", func() bool { return h.versions() == [3]uint64{1, 1, 1} })
}
