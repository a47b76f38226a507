package agents_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/cli"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/agents"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/fetch"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

// world is a control plane with a store and a realm, behind real TLS.
type world struct {
	t      *testing.T
	store  control.Store
	engine *control.Engine
	line   *agents.Line
	server *httptest.Server
	stop   func() // the line
	url    string
	ca     []byte // PEM
	roots  *x509.CertPool
	trust  policy.Trust
	keys   map[policy.Role]crypto.Signer
	lag    clock
	owner  control.Caller

	serverCert tls.Certificate
	addr       string
	log        *lines
}

// clock is the control plane's, which tests set forward.
type clock struct {
	mu sync.Mutex
	by time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.by)
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.by += d
}

// lines collects a log for when a test fails.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func must[T any](v T, err error) func(t testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// authority makes a CA.
func authority(t testing.TB, name string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(10, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)
	return must(x509.ParseCertificate(der))(t), key
}

func newWorld(t *testing.T) *world { return newWorldOn(t, storetest.SQLite(t)) }

func newWorldOn(t *testing.T, store control.Store) *world {
	w := &world{t: t, store: store, keys: map[policy.Role]crypto.Signer{}, log: &lines{},
		owner: control.Caller{ID: "local:owner", Name: "owner", Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}}}}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the control plane:\n%s", w.log)
		}
	})
	now := time.Now().UTC().Truncate(time.Second)
	w.trust = policy.Trust{Header: policy.Header{Realm: "acme", Version: 1, Issued: now.Add(-time.Minute), Expires: now.AddDate(1, 0, 0)}}
	for _, role := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		k := must(policy.NewKey(key.Public()))(t)
		holds := policy.RoleKeys{Name: role, Keys: []policy.KeyID{k.ID}, Threshold: 1}
		if role == policy.RoleGrant {
			holds.Epoch = 1
		}
		w.trust.Keys, w.trust.Roles, w.keys[role] = append(w.trust.Keys, k), append(w.trust.Roles, holds), key
	}
	signed := w.sign(policy.TypeTrust, policy.RoleRoot, w.trust.Encode())
	serverCA, serverKey := authority(t, "server")
	agentCA, agentKey := authority(t, "agents")
	w.ca = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: serverCA.Raw})
	w.roots = x509.NewCertPool()
	w.roots.AddCert(serverCA)
	leaf := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	der := must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, serverCA, leaf.Public(), serverKey))(t)
	w.serverCert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leaf}
	sum := sha256.Sum256(serverCA.Raw)
	log := hclog.New(&hclog.LoggerOptions{Output: w.log, Level: hclog.Debug})
	w.engine = control.New(control.Config{Store: w.store, Log: log, CA: agentCA, CAKey: agentKey, ServerCA: sum[:], Now: w.lag.now,
		Realm: control.Realm{Trust: w.trust, Signed: signed, Pin: policy.Envelope{Payload: w.trust.Encode()}.Digest(), Grant: w.keys[policy.RoleGrant], Policy: w.keys[policy.RolePolicy]}})
	w.serve("127.0.0.1:0")
	t.Cleanup(func() { w.stop(); w.server.Close() })
	return w
}

// serve starts a replica on addr.
func (w *world) serve(addr string) {
	w.t.Helper()
	log := hclog.New(&hclog.LoggerOptions{Output: w.log, Level: hclog.Debug})
	w.line = agents.New(agents.Config{Engine: w.engine, Store: w.store, Log: log, Registry: prometheus.NewRegistry(), Now: w.lag.now, ServerCA: w.ca})
	w.server = httptest.NewUnstartedServer(w.line)
	w.server.Listener.Close()
	w.server.Listener = must(net.Listen("tcp", addr))(w.t)
	w.server.Config.ReadTimeout, w.server.Config.WriteTimeout = 10*time.Second, 10*time.Second
	w.server.Config.ErrorLog = hclog.New(&hclog.LoggerOptions{Output: w.log}).StandardLogger(nil)
	pool := x509.NewCertPool()
	pool.AddCert(w.engine.CA)
	w.server.TLS = &tls.Config{Certificates: []tls.Certificate{w.serverCert}, ClientAuth: tls.RequestClientCert, ClientCAs: pool, NextProtos: []string{"http/1.1"}}
	w.line.Resume(w.server.TLS)
	w.server.StartTLS()
	w.addr = w.server.Listener.Addr().String()
	w.url = "https://" + w.addr
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	line := w.line
	go func() { done <- line.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the line: %v", err)
		}
	})
}

func (w *world) sign(typ policy.Type, role policy.Role, payload []byte) []byte {
	w.t.Helper()
	e := policy.Envelope{Type: typ, Payload: payload}
	if err := e.Sign(w.keys[role]); err != nil {
		w.t.Fatal(err)
	}
	return e.Encode()
}

func (w *world) update(f func(control.Tx) error) {
	w.t.Helper()
	if err := w.store.Update(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) view(f func(control.Tx) error) {
	w.t.Helper()
	if err := w.store.View(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func vmID(name string) control.VMID {
	return control.VMID{Subscription: "10000000-0000-0000-0000-000000000001", Group: "rg", Kind: "Microsoft.Compute/virtualMachines", Name: name}
}

func (w *world) header(version uint64) policy.Header {
	now := time.Now().UTC().Truncate(time.Second)
	return policy.Header{Realm: "acme", Version: version, Issued: now, Expires: now.Add(12 * time.Hour)}
}

// policyOf writes a machine's policy: port 22 guarded.
func (w *world) policyOf(vm control.VMID, version uint64) {
	w.t.Helper()
	p := policy.Policy{Header: w.header(version), Host: policy.Host{ID: vm.String()}, MaxGrantsAge: policy.DefaultMaxGrantsAge,
		Ports: []policy.Port{{Number: 22, EndNumber: 22, Protocol: policy.TCP, AllowedSources: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0")}, MaxRequestAccessDuration: 3 * time.Hour, SessionsAtEnd: policy.Keep}}}
	w.document(vm, policy.TypePolicy, version, w.sign(policy.TypePolicy, policy.RolePolicy, p.Encode()))
}

// grantsOf writes a machine's list of grants.
func (w *world) grantsOf(vm control.VMID, version uint64, ids ...string) {
	w.t.Helper()
	w.document(vm, policy.TypeGrants, version, w.grants(vm, version, ids...))
}

func (w *world) grants(vm control.VMID, version uint64, ids ...string) []byte {
	g := policy.Grants{Header: w.header(version), Epoch: 1, Host: policy.Host{ID: vm.String()}}
	for _, id := range ids {
		g.Grants = append(g.Grants, policy.Grant{ID: id, Number: 22, Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")},
			Start: g.Issued.Add(-time.Second), End: g.Issued.Add(time.Hour), Requestor: "alice@example.com"})
	}
	return w.sign(policy.TypeGrants, policy.RoleGrant, g.Encode())
}

func (w *world) document(vm control.VMID, typ policy.Type, version uint64, signed []byte) {
	w.t.Helper()
	w.update(func(tx control.Tx) error {
		return tx.PutDocument(control.Document{VM: vm.Key(), Type: typ, Version: version, Issued: time.Now(), Expires: time.Now().Add(time.Hour), Signed: signed})
	})
}

// join makes a token.
func (w *world) join(scope control.Scope, uses int) string {
	w.t.Helper()
	token, _, err := w.engine.CreateJoin(w.t.Context(), w.owner, scope, uses, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	return token
}

// host is a machine with a real agent on a firewall in memory.
type host struct {
	t        *testing.T
	vm       control.VMID
	dir      string
	config   string
	settings agent.Settings
	agent    *agent.Agent
	stop     func()
	log      *lines
}

func (w *world) host(name string) *host {
	w.t.Helper()
	// Short: a socket's path has at most 108 bytes.
	dir := must(os.MkdirTemp("", "jg"))(w.t)
	w.t.Cleanup(func() { os.RemoveAll(dir) })
	h := &host{t: w.t, vm: vmID(name), dir: dir, config: filepath.Join(dir, "agent.toml"), log: &lines{}, stop: func() {}}
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("host %s:\n%s", name, h.log)
		}
	})
	text := fmt.Sprintf("# kept\nhost_id = %q\nmode = \"enforce\"\ninbox_dir = %q\nstate_dir = %q\nsocket = %q\n\n[control] # kept too\nurl = \"https://elsewhere.example\"\nidentity_dir = %q\n",
		h.vm, filepath.Join(dir, "inbox"), filepath.Join(dir, "state"), filepath.Join(dir, "s"), filepath.Join(dir, "fetch"))
	if err := os.WriteFile(h.config, []byte(text), 0o644); err != nil {
		w.t.Fatal(err)
	}
	return h
}

// run starts the agent.
func (h *host) run() {
	h.t.Helper()
	h.settings = must(agent.LoadSettings(h.config))(h.t)
	clock := agent.SystemClock()
	h.agent = &agent.Agent{Settings: h.settings, Backend: &fwtest.Fake{Now: clock.Boot}, Audit: audit.NewFile(filepath.Join(h.settings.StateDir, "audit")),
		Log: hclog.New(&hclog.LoggerOptions{Output: h.log}), Clock: clock}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- h.agent.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		h.t.Fatal(err)
	}
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Errorf("the agent: %v", err)
		}
	})
	h.t.Cleanup(func() { h.stop() })
}

// enroll runs jitgate enroll.
func (h *host) enroll(w *world, token string, more ...string) (string, int) {
	h.t.Helper()
	var out bytes.Buffer
	code := cli.Main(append([]string{"enroll", "--config", h.config, "--control", w.url, "--token", token}, more...), strings.NewReader(""), &out, &out)
	return out.String(), code
}

func (h *host) mustEnroll(w *world) {
	h.t.Helper()
	if out, code := h.enroll(w, w.join(h.vm.Scope(), 1)); code != 0 {
		h.t.Fatal(out)
	}
}

// fetching starts the fetcher in this process.
func (h *host) fetching(change ...func(*fetch.Config)) (stop func()) {
	h.t.Helper()
	s := must(agent.LoadSettings(h.config))(h.t)
	c := fetch.Config{URL: s.Control.URL, CA: s.Control.CA, IdentityDir: s.Control.IdentityDir, PollInterval: s.Control.PollInterval,
		InboxDir: s.InboxDir, Socket: s.Socket, Version: "test", Log: hclog.New(&hclog.LoggerOptions{Output: h.log, Level: hclog.Debug})}
	for _, f := range change {
		f(&c)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		fetch.New(c).Run(ctx)
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	h.t.Cleanup(stop)
	return stop
}

// status asks the agent.
func (h *host) status() (s agent.Status) {
	h.t.Helper()
	var out bytes.Buffer
	if code := cli.Main([]string{"status", "--json", "--config", h.config}, strings.NewReader(""), &out, &out); code != 0 {
		return s
	}
	return decoded[agent.Status](h.t, out.Bytes())
}

// versions are those in force on the host.
func (h *host) versions() (v [3]uint64) {
	for i, d := range h.status().Docs {
		v[i] = d.Version
	}
	return v
}

// identity is the fetcher's certificate, as somebody who stole it has it.
func (h *host) identity() tls.Certificate {
	h.t.Helper()
	path := filepath.Join(h.dir, "fetch", "identity.pem")
	return must(tls.LoadX509KeyPair(path, path))(h.t)
}

// client calls with a certificate, or with none.
func (w *world) client(cert *tls.Certificate) *http.Client {
	c := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13}
	if cert != nil {
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return cert, nil }
	}
	transport := &http.Transport{TLSClientConfig: c}
	w.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 70 * time.Second}
}

// vm reads what the control plane knows of a machine.
func (w *world) vm(id control.VMID) (vm control.VM) {
	w.t.Helper()
	w.view(func(tx control.Tx) (err error) {
		vm, err = tx.VM(id)
		return err
	})
	return vm
}

// activity lists the events of the log.
func (w *world) activity(event string) (list []control.Activity) {
	w.t.Helper()
	w.view(func(tx control.Tx) (err error) {
		list, err = tx.Activity(control.ActivityFilter{Event: event})
		return err
	})
	return list
}

// within waits until f holds.
func within(t testing.TB, most time.Duration, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(most); !f(); {
		if time.Now().After(end) {
			t.Fatalf("not within %s: %s", most, what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
