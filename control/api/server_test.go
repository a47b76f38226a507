package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
)

const (
	subscription = "20ff7fc3-e762-44dd-bd96-b71116dcdc23"
	group        = "myRg1"
	region       = "westeurope"
	groupPath    = "/subscriptions/" + subscription + "/resourceGroups/" + group
	policiesPath = groupPath + "/providers/Microsoft.Security/locations/" + region + "/jitNetworkAccessPolicies"
	defaultPath  = policiesPath + "/default"
	version      = "?api-version=2020-01-01"
	metricsToken = "scrape-me"
)

func machine(name string) string {
	return groupPath + "/providers/Microsoft.Compute/virtualMachines/" + name
}

// clock is a time that tests move.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) forward(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// logged is what the server wrote into its log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

// String is all of it.
func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// server is the real thing on a real port: TLS, SQLite, identities, engine.
type server struct {
	t        testing.TB
	clock    *clock
	store    control.Store
	engine   *control.Engine
	identity *identity.Identity
	api      *API
	http     *httptest.Server
	owner    string // token of the Owner of everything
	log      *logged
	realm    control.Realm
	client   *http.Client // checks all that goes in and out against openapi.json
	checks   *checks
}

// options change what newServer makes.
type options struct {
	config   func(*Config)
	identity func(*identity.Config)
	store    func(control.Store) control.Store
	beside   *server // a replica of this one, on the store that store returns
	engine   func(*control.Config)
	serve    func(*API, *http.Server)
	now      time.Time
	unsigned bool // no policy key on the server
}

func newServer(t testing.TB, o options) *server {
	t.Helper()
	if o.now.IsZero() {
		o.now = time.Now().UTC().Truncate(time.Second)
	}
	s := &server{t: t, clock: &clock{now: o.now}, log: &logged{}}
	if o.beside != nil {
		s.clock, s.owner, s.realm = o.beside.clock, o.beside.owner, o.beside.realm
		s.store = o.store(nil)
	} else {
		s.store, s.realm = storetest.SQLite(t), storetest.Realm(t, s.clock.Now())
		if o.store != nil {
			s.store = o.store(s.store)
		}
	}
	log := hclog.New(&hclog.LoggerOptions{Output: s.log, Level: hclog.Debug})
	realm := s.realm
	if o.unsigned {
		realm.Policy = nil
	}
	ec := control.Config{Store: s.store, Realm: realm, Now: s.clock.Now, Log: log}
	if o.engine != nil {
		o.engine(&ec)
	}
	s.engine = control.New(ec)
	ic := identity.Config{Store: s.store, Rate: 10000, Burst: 10000, Now: s.clock.Now}
	if o.identity != nil {
		o.identity(&ic)
	}
	var err error
	if s.identity, err = identity.New(ic); err != nil {
		t.Fatal(err)
	}
	if o.beside == nil {
		token, hash := identity.NewToken()
		if given, err := control.Bootstrap(t.Context(), s.store, hash, s.clock.Now()); err != nil || !given {
			t.Fatal(given, err)
		}
		s.owner = token
	}
	c := Config{Engine: s.engine, Identity: s.identity, Store: s.store, Log: log, Registry: prometheus.NewRegistry(), MetricsToken: metricsToken, Now: s.clock.Now}
	if o.config != nil {
		o.config(&c)
	}
	if s.api, err = New(c); err != nil {
		t.Fatal(err)
	}
	s.http = httptest.NewUnstartedServer(s.api)
	s.http.Config = Server(s.api)
	s.http.Config.ErrorLog = log.StandardLogger(nil)
	if o.serve != nil {
		o.serve(s.api, s.http.Config)
	}
	s.http.EnableHTTP2 = true
	s.http.StartTLS()
	t.Cleanup(func() {
		s.http.Close()
		if strings.Contains(s.log.String(), s.owner) {
			t.Error("a token is in the log")
		}
	})
	s.checks = newChecks(t, s.http.URL, s.api.document, s.http.Client().Transport)
	s.client = &http.Client{Transport: s.checks}
	return s
}

// person makes somebody with a role at a scope, and returns their token.
func (s *server) person(name, role string, scope control.Scope) string {
	s.t.Helper()
	token, hash := identity.NewToken()
	err := s.store.Update(s.t.Context(), func(tx control.Tx) error {
		if role != "" {
			if err := tx.PutAssignment(control.Assignment{Principal: "local:" + name, Role: role, Scope: scope}); err != nil {
				return err
			}
		}
		return tx.PutToken(control.Token{Hash: hash, ID: hash[:12], Principal: "local:" + name, Name: name + "@contoso.com", Created: s.clock.Now()})
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

// answer is what came back, read to its end.
type answered struct {
	status int
	header http.Header
	body   []byte
}

// in decodes the answer.
func (a answered) in(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(a.body, v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
}

// code is that of a refusal, which must stand in the header and in the body.
func (a answered) code(t testing.TB) string {
	t.Helper()
	var e errorBody
	a.in(t, &e)
	if h := a.header.Get("x-ms-error-code"); e.Error.Code == "" || e.Error.Message == "" || h != e.Error.Code {
		t.Errorf("the header says %q, the body %s", h, a.body)
	}
	return e.Error.Code
}

// want checks the status.
func (a answered) want(t testing.TB, status int) answered {
	t.Helper()
	if a.status != status {
		t.Fatalf("%d, want %d: %s", a.status, status, a.body)
	}
	return a
}

// refused checks that a call was refused, and how.
func (a answered) refused(t testing.TB, status int, code string) answered {
	t.Helper()
	if got := a.code(t); a.status != status || got != code {
		t.Fatalf("%d %s, want %d %s: %s", a.status, got, status, code, a.body)
	}
	return a
}

// call makes a call as the Owner.
func (s *server) call(method, path, body string, headers ...string) answered {
	s.t.Helper()
	return s.as(s.owner, method, path, body, headers...)
}

// as makes a call with a token. headers are names and values in turn.
func (s *server) as(token, method, path, body string, headers ...string) answered {
	s.t.Helper()
	return s.with(s.client, token, method, path, body, headers...)
}

// unchecked makes a call that openapi.json says nothing of, such as a bad one.
func (s *server) unchecked(token, method, path, body string, headers ...string) answered {
	s.t.Helper()
	return s.with(s.http.Client(), token, method, path, body, headers...)
}

func (s *server) with(client *http.Client, token, method, path, body string, headers ...string) answered {
	s.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	if !strings.HasPrefix(path, "https://") {
		path = s.http.URL + path
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, path, reader)
	if err != nil {
		s.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i < len(headers); i += 2 {
		switch {
		case headers[i] == "":
		case headers[i+1] == "":
			r.Header.Del(headers[i])
		default:
			r.Header.Set(headers[i], headers[i+1])
		}
	}
	w, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return answered{w.StatusCode, w.Header, b}
}

// lines are those of the activity log, oldest first.
func (s *server) lines() []control.Activity {
	s.t.Helper()
	var all []control.Activity
	err := s.store.View(s.t.Context(), func(tx control.Tx) (err error) {
		all, err = tx.Activity(control.ActivityFilter{Scope: control.Everywhere})
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// ca is a file with the certificate that clients have to trust.
func (s *server) ca() string {
	s.t.Helper()
	path := filepath.Join(s.t.TempDir(), "ca.pem")
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.http.Certificate().Raw})
	if err := os.WriteFile(path, block, 0o644); err != nil {
		s.t.Fatal(err)
	}
	return path
}

func (s *server) roots() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(s.http.Certificate())
	return &tls.Config{RootCAs: pool}
}

// checks is a RoundTripper that holds every call and every answer against
// openapi.json.
type checks struct {
	t      testing.TB
	router routers.Router
	next   http.RoundTripper
	mu     sync.Mutex
	seen   map[string]bool // operations that were answered with a success
}

func newChecks(t testing.TB, base string, document []byte, next http.RoundTripper) *checks {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(document)
	if err != nil {
		t.Fatal(err)
	}
	doc.Servers = openapi3.Servers{{URL: base}}
	router, err := gorillamux.NewRouter(doc)
	if err != nil {
		t.Fatal(err)
	}
	return &checks{t: t, router: router, next: next, seen: map[string]bool{}}
}

var plainText = openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, IncludeResponseStatus: true}

func (c *checks) RoundTrip(r *http.Request) (*http.Response, error) {
	route, params, err := c.router.FindRoute(r)
	if err != nil {
		return nil, fmt.Errorf("openapi.json has no %s %s: %w", r.Method, r.URL, err)
	}
	in := &openapi3filter.RequestValidationInput{Request: r, PathParams: params, Route: route, Options: &plainText}
	bad := openapi3filter.ValidateRequest(context.WithoutCancel(r.Context()), in)
	w, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if bad != nil && w.StatusCode < 300 {
		return nil, fmt.Errorf("%s %s was answered with %d, and openapi.json refuses it: %w", r.Method, r.URL, w.StatusCode, bad)
	}
	if strings.HasPrefix(w.Header.Get("Content-Type"), "text/event-stream") {
		c.note(route.Operation.OperationID)
		return w, nil
	}
	body, err := io.ReadAll(w.Body)
	if err = errors.Join(err, w.Body.Close()); err != nil {
		return nil, err
	}
	w.Body = io.NopCloser(bytes.NewReader(body))
	if w.StatusCode == http.StatusNotModified {
		return w, nil
	}
	header := w.Header.Clone()
	if strings.HasPrefix(header.Get("Content-Type"), "text/") { // text is text
		header.Set("Content-Type", strings.Split(header.Get("Content-Type"), ";")[0])
	}
	out := &openapi3filter.ResponseValidationInput{RequestValidationInput: in, Status: w.StatusCode, Header: header, Options: &plainText}
	out.SetBodyBytes(body)
	if err := openapi3filter.ValidateResponse(context.WithoutCancel(r.Context()), out); err != nil {
		return nil, fmt.Errorf("the answer to %s %s is not as openapi.json has it: %w\n%s", r.Method, r.URL, err, body)
	}
	if w.StatusCode < 300 {
		c.note(route.Operation.OperationID)
	}
	return w, nil
}

func (c *checks) note(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen[id] = true
}

// all are the operations seen so far.
func (c *checks) all() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.seen)
}
