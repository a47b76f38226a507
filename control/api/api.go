// Package api speaks HTTP for the control plane: the REST API of Azure's
// just-in-time VM access as its clients know it, /api/v1 beside it for what
// Azure lacks, and what operators watch it by.
//
// Handlers decode, call the engine and encode; what may be is decided there.
// Every route stands in one table, which is the router, the OpenAPI document
// and the list of what is counted.
package api

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

// Config is what an API needs. Engine, Identity, Store, Log and Registry are
// required.
type Config struct {
	Engine   *control.Engine
	Identity *identity.Identity
	Store    control.Store // for readiness and idempotency keys
	// PublicURL is where clients reach the server: https://jit.example.net.
	// Without it links are made of the Host they asked.
	PublicURL string
	// TrustedProxies are those whose forwarding headers are believed.
	TrustedProxies []netip.Prefix
	Log            hclog.Logger
	Registry       *prometheus.Registry
	MetricsToken   string           // may read /metrics; empty: only callers with ActionMetrics
	TenantID       string           // of Entra ID, where its tokens are taken
	Now            func() time.Time // nil: time.Now
}

// API is an http.Handler. It answers every path: what it does not know is a
// 404 in Azure's envelope.
type API struct {
	Config
	table    []*route
	routes   routes
	document []byte // openapi.json
	metrics  metrics
	scrape   http.Handler
	// heartbeat is how often a silent stream shows that it lives, so that no
	// proxy ends it, and how often its token is looked at again.
	heartbeat time.Duration
	timeout   time.Duration // of a call that is no stream
}

// New makes an API.
func New(c Config) (*API, error) {
	if c.Engine == nil || c.Identity == nil || c.Store == nil || c.Log == nil || c.Registry == nil {
		return nil, errors.New("api: Engine, Identity, Store, Log and Registry are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.PublicURL != "" {
		u, err := url.Parse(c.PublicURL)
		if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return nil, fmt.Errorf("api: the public URL %q is not one like https://jit.example.net", c.PublicURL)
		}
		c.PublicURL = strings.TrimRight(c.PublicURL, "/")
	}
	a := &API{Config: c, table: table(), heartbeat: 15 * time.Second, timeout: CallTimeout}
	a.routes = newRoutes(a.table)
	a.document = openAPI(a.table)
	var err error
	if a.metrics, err = newMetrics(c.Registry); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	a.scrape = promhttp.HandlerFor(c.Registry, promhttp.HandlerOpts{})
	return a, nil
}

// How long the server waits for a slow client, and for how much of it.
const (
	ReadHeaderTimeout = 10 * time.Second
	ReadTimeout       = 30 * time.Second // of the whole call, body included
	WriteTimeout      = 60 * time.Second // streams move it on as they write
	CallTimeout       = 50 * time.Second // for the answer: a 503 comes out before WriteTimeout cuts the connection
	IdleTimeout       = 2 * time.Minute
	MaxHeaderBytes    = 32 << 10
)

// Server makes a server with limits a slow or greedy client cannot stretch.
func Server(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: ReadHeaderTimeout,
		ReadTimeout:       ReadTimeout,
		WriteTimeout:      WriteTimeout,
		IdleTimeout:       IdleTimeout,
		MaxHeaderBytes:    MaxHeaderBytes,
	}
}

// answerWriter notes what was answered.
type answerWriter struct {
	http.ResponseWriter
	status int
}

func (w *answerWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *answerWriter) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(b)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *answerWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// ServeHTTP answers a call.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	aw := &answerWriter{ResponseWriter: w}
	c := &call{api: a, w: aw, r: r, id: newID(), address: ClientAddress(r, a.TrustedProxies)}
	c.headers()
	timer := prometheus.NewTimer(prometheus.ObserverFunc(func(s float64) {
		a.metrics.observe(c, aw.status, s)
		a.Log.Debug("call", "call", c.id, "method", r.Method, "route", c.name(), "status", aw.status, "code", aw.Header().Get("x-ms-error-code"),
			"caller", c.caller.ID, "address", c.address, "seconds", s)
	}))
	defer timer.ObserveDuration()
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler:
			panic(p)
		default:
			a.Log.Error("a call panicked", "call", c.id, "panic", p, "stack", string(debug.Stack()))
			if aw.status != 0 {
				panic(http.ErrAbortHandler) // the client must not take half an answer for a whole one
			}
			c.fail(errors.New("panic"))
		}
	}()
	if err := c.serve(); err != nil {
		c.fail(err)
	}
}

// fail answers with what went wrong.
func (c *call) fail(err error) {
	r, ours := refusalOf(err)
	if ours {
		c.api.Log.Error("a call failed", "call", c.id, "route", c.name(), "error", err)
	}
	c.api.metrics.refused(r)
	c.refuse(r)
}

// name is that of the route, for logs and metrics.
func (c *call) name() string {
	if c.route == nil {
		return "none"
	}
	return c.route.id
}

// headers are those that every answer has.
func (c *call) headers() {
	h := c.w.Header()
	for name, value := range map[string]string{
		"Cache-Control":             "no-cache",
		"Pragma":                    "no-cache",
		"Expires":                   "-1",
		"Strict-Transport-Security": "max-age=31536000; includeSubDomains",
		"X-Content-Type-Options":    "nosniff",
	} {
		h.Set(name, value)
	}
	correlation := c.id
	if given := c.r.Header.Get("x-ms-correlation-request-id"); isUUID(given) {
		correlation = given
	}
	h.Set("x-ms-request-id", c.id)
	h.Set("x-ms-correlation-request-id", correlation)
	h.Set("x-ms-routing-request-id", "JITGATE:"+c.api.Now().UTC().Format("20060102T150405Z")+":"+c.id)
	if given := c.r.Header.Get("x-ms-client-request-id"); strings.EqualFold(c.r.Header.Get("x-ms-return-client-request-id"), "true") && len(given) <= 128 && given == quotable(given) {
		h.Set("x-ms-client-request-id", given)
	}
}

// serve finds the route of the call, sees who asks, and runs it.
func (c *call) serve() error {
	c.ctx = c.r.Context()
	segments, err := segmentsOf(c.r.URL)
	if err != nil {
		return err
	}
	route, params, allowed := c.api.routes.find(c.r.Method, segments)
	switch {
	case route == nil && allowed != nil:
		c.w.Header().Set("Allow", strings.Join(allowed, ", "))
		return refuse(http.StatusMethodNotAllowed, "HttpMethodNotAllowed", "The method %s is not allowed here: use %s.", clip(c.r.Method), strings.Join(allowed, " or "))
	case route == nil:
		return refuse(http.StatusNotFound, "InvalidResourceType", "Nothing is at this path. What there is stands in /openapi.json.")
	}
	c.route, c.params = route, params
	if !route.long {
		var cancel context.CancelFunc
		c.ctx, cancel = context.WithTimeout(c.ctx, c.api.timeout)
		defer cancel()
	}
	if c.query, err = url.ParseQuery(c.r.URL.RawQuery); err != nil {
		return invalid("InvalidQueryParameter", "The query cannot be read.")
	}
	if route.version {
		if err := c.version(); err != nil {
			return err
		}
	}
	if !route.public {
		if err := c.authenticate(); err != nil {
			return err
		}
	}
	if route.method == http.MethodPost || route.method == http.MethodPut || route.method == http.MethodPatch {
		if c.body, err = readBody(c.w, c.r); err != nil {
			return err
		}
	}
	if route.once {
		return c.once()
	}
	return route.run(c)
}

// The versions of Azure's API that have the same schema.
var versions = []string{"2020-01-01", "2015-06-01-preview"}

// version checks api-version.
func (c *call) version() error {
	v, err := c.one("api-version")
	switch {
	case err != nil:
		return err
	case v == "":
		return invalid("MissingApiVersionParameter", "The api-version query parameter (?api-version=) is required for all requests.")
	}
	for _, known := range versions {
		if strings.EqualFold(v, known) {
			return nil
		}
	}
	return invalid("InvalidApiVersionParameter", "The api-version '%s' is invalid. The supported versions are '%s'.", clip(v), strings.Join(versions, ","))
}

// authenticate finds out who asks. Addresses that keep failing are told to
// wait.
func (c *call) authenticate() error {
	header := c.r.Header.Values("Authorization")
	if len(header) == 0 {
		return refuse(http.StatusUnauthorized, "InvalidAuthenticationToken", "Authentication failed. The 'Authorization' header is missing.")
	}
	scheme, bearer, _ := strings.Cut(header[0], " ")
	if bearer = strings.TrimSpace(bearer); len(header) > 1 || !strings.EqualFold(scheme, "Bearer") || bearer == "" {
		return refuse(http.StatusUnauthorized, "InvalidAuthenticationToken", "Authentication failed. The 'Authorization' header is provided in an invalid format: send Bearer and a token.")
	}
	c.bearer = bearer
	caller, err := c.api.Identity.Authenticate(c.ctx, bearer)
	if err != nil {
		if e := control.AsError(err); e != nil && e.Kind == control.Unknown {
			if wait := c.api.Identity.AllowAddress(c.address); wait > 0 {
				return tooMany(wait)
			}
		}
		return err
	}
	caller.Address, caller.Request = c.address, c.id
	c.caller = caller
	if wait := c.api.Identity.Allow(caller.ID); wait > 0 {
		return tooMany(wait)
	}
	return nil
}

func tooMany(wait time.Duration) *refusal {
	return &refusal{status: http.StatusTooManyRequests, code: "TooManyRequests", retryAfter: wait,
		message: "The request is being throttled. Try again after " + strconv.Itoa(int((wait+time.Second-1)/time.Second)) + " seconds."}
}

// newID makes a random UUID, as Azure's request ids are.
func newID() string {
	var b [16]byte
	rand.Read(b[:]) // it never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i := range len(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		if dash != (s[i] == '-') || (!dash && !strings.ContainsRune("0123456789abcdefABCDEF", rune(s[i]))) {
			return false
		}
	}
	return true
}
