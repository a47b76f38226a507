// Package web serves the control plane's page: HTML made on the server, with a
// little script of our own for what changes while one looks.
//
// It decides nothing. A page is what the engine tells the caller whose session
// it is, and a form is one call of the engine with that caller: rights are read
// anew each time, as for the API.
package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"embed"
	"encoding/base64"
	"errors"
	"fmt"
	"html/template"
	"net/http"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

// Config is what the page needs. Engine, Identity, Store, Address and Log are
// required.
type Config struct {
	Engine   *control.Engine
	Identity *identity.Identity
	Store    control.Store // keeps sessions
	// Address is where a call comes from, proxies of ours looked through.
	Address func(*http.Request) netip.Addr
	// PublicURL is where people reach the server: https://jit.example.net.
	PublicURL string
	Log       hclog.Logger
	Now       func() time.Time // nil: time.Now
}

// Prefix is where everything of the page is, but for "/", which leads there.
const Prefix = "/ui/"

const (
	callTakes = 50 * time.Second // at most, for the answer
	maxForm   = 1 << 20          // bytes of a form
	pageRows  = 50               // of a list
)

//go:embed icon.svg page.css page.js templates
var files embed.FS

// Web is the http.Handler of the page.
type Web struct {
	Config
	mux       *http.ServeMux
	templates map[string]*template.Template
	origins   *http.CrossOriginProtection
	beat      time.Duration // how often a live page is looked at again, whatever happens
	pause     time.Duration // between two looks, whatever happens

	mu      sync.Mutex
	streams map[string]int // open live pages by principal
	issuers map[string]opened
}

// New makes the page.
func New(c Config) (*Web, error) {
	if c.Engine == nil || c.Identity == nil || c.Store == nil || c.Address == nil || c.Log == nil {
		return nil, errors.New("web: Engine, Identity, Store, Address and Log are required")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	w := &Web{Config: c, mux: http.NewServeMux(), origins: http.NewCrossOriginProtection(),
		beat: 10 * time.Second, pause: 500 * time.Millisecond, streams: map[string]int{}, issuers: map[string]opened{}}
	var err error
	if w.templates, err = parseTemplates(); err != nil {
		return nil, fmt.Errorf("web: %w", err)
	}
	w.routes()
	return w, nil
}

// routes is all there is.
func (w *Web) routes() {
	w.mux.Handle("GET /ui/page.css", asset("page.css", "text/css; charset=utf-8"))
	w.mux.Handle("GET /ui/page.js", asset("page.js", "text/javascript; charset=utf-8"))
	w.mux.Handle("GET /ui/icon.svg", asset("icon.svg", "image/svg+xml"))
	w.mux.HandleFunc("GET /{$}", func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, Prefix+"vms", http.StatusSeeOther) })
	w.mux.HandleFunc("GET /ui/{$}", func(rw http.ResponseWriter, r *http.Request) { http.Redirect(rw, r, Prefix+"vms", http.StatusSeeOther) })
	// Without a session.
	w.open("GET /ui/sign-in", signInPage)
	w.open("POST /ui/sign-in", signIn)
	w.open("POST /ui/sign-out", signOut)
	w.open("GET /ui/sign-in/issuer", goToIssuer)
	w.open("GET "+callbackPath, comeBack)
	// With one.
	for pattern, f := range map[string]func(*call) error{
		"GET /ui/vms":                    vmsPage,
		"GET /ui/vm":                     vmPage,
		"GET /ui/ports":                  portsPage,
		"POST /ui/ports":                 savePorts,
		"GET /ui/request":                askPage,
		"POST /ui/request":               ask,
		"GET /ui/requests":               requestsPage,
		"GET /ui/requests/{id}":          requestPage,
		"POST /ui/requests/{id}/approve": approve,
		"POST /ui/requests/{id}/deny":    deny,
		"POST /ui/requests/{id}/revoke":  revoke,
		"POST /ui/requests/{id}/extend":  extend,
		"GET /ui/timeline":               timelinePage,
		"GET /ui/activity":               activityPage,
		"GET /ui/activity.csv":           activityCSV,
		"GET /ui/settings":               settingsPage,
		"GET /ui/settings/approval":      approvalsPage,
		"GET /ui/settings/terms":         termsPage,
		"POST /ui/settings/terms":        setTerms,
		"GET /ui/settings/scopes":        scopesPage,
		"POST /ui/settings/scopes":       setScope,
		"GET /ui/settings/joining":       joiningPage,
		"POST /ui/settings/joining":      changeJoining,
		"GET /ui/settings/roles":         rolesPage,
		"POST /ui/settings/roles":        changeRole,
		"GET /ui/settings/signing":       signingPage,
		"GET " + livePath:                live,
	} {
		w.signedIn(pattern, f)
	}
	w.open("GET /", func(c *call) error {
		return control.Refuse(control.NotFound, "NotFound", "There is no such page.")
	})
}

// open serves f to anybody.
func (w *Web) open(pattern string, f func(*call) error) {
	w.mux.HandleFunc(pattern, func(rw http.ResponseWriter, r *http.Request) { w.serve(rw, r, f) })
}

// signedIn serves f to callers with a session; others are asked to sign in
// and led back.
func (w *Web) signedIn(pattern string, f func(*call) error) {
	w.open(pattern, func(c *call) error {
		err := c.authenticate()
		if e := control.AsError(err); e != nil && e.Kind == control.Unknown {
			return c.askToSignIn()
		}
		if err != nil {
			return err
		}
		return f(c)
	})
}

// ServeHTTP answers everything below Prefix, and "/".
func (w *Web) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	h := rw.Header()
	for name, value := range map[string]string{
		"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; " +
			"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
		"X-Content-Type-Options":       "nosniff",
		"X-Frame-Options":              "DENY",
		"Referrer-Policy":              "no-referrer",
		"Cross-Origin-Opener-Policy":   "same-origin",
		"Cross-Origin-Resource-Policy": "same-origin",
		"Permissions-Policy":           "camera=(), geolocation=(), microphone=()",
		"Strict-Transport-Security":    "max-age=31536000; includeSubDomains",
		"Cache-Control":                "no-store",
	} {
		h.Set(name, value)
	}
	w.mux.ServeHTTP(rw, r)
}

// asset serves one embedded file.
func asset(name, kind string) http.Handler {
	text, err := files.ReadFile(name)
	if err != nil {
		panic(err) // embedded: the program would not have been built without it
	}
	digest := sha256.Sum256(text)
	etag := `"` + base64.RawURLEncoding.EncodeToString(digest[:12]) + `"`
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		h := rw.Header()
		h.Set("Content-Type", kind)
		h.Set("Cache-Control", "no-cache")
		h.Set("ETag", etag)
		http.ServeContent(rw, r, name, time.Time{}, bytes.NewReader(text))
	})
}

// call is one call while it is answered.
type call struct {
	*Web
	w       http.ResponseWriter
	r       *http.Request
	ctx     context.Context
	id      string
	caller  control.Caller
	session session // zero: none
}

// serve runs one call and answers what goes wrong with it.
func (w *Web) serve(rw http.ResponseWriter, r *http.Request, f func(*call) error) {
	c := &call{Web: w, w: rw, r: r, ctx: r.Context(), id: rand.Text()}
	if r.URL.Path != livePath {
		var cancel context.CancelFunc
		c.ctx, cancel = context.WithTimeout(c.ctx, callTakes)
		defer cancel()
	}
	defer func() {
		switch p := recover(); {
		case p == nil:
		case p == http.ErrAbortHandler:
			panic(p)
		default:
			w.Log.Error("a page panicked", "call", c.id, "path", r.URL.Path, "panic", p, "stack", string(debug.Stack()))
			panic(http.ErrAbortHandler) // half a page must not pass for one
		}
	}()
	err := c.ownOrigin()
	if err == nil && r.Method == http.MethodPost {
		r.Body = http.MaxBytesReader(rw, r.Body, maxForm)
		if r.ParseForm() != nil {
			err = control.Refuse(control.Invalid, "InvalidForm", "The form cannot be read, or has more than %d bytes.", maxForm)
		}
	}
	if err == nil {
		err = f(c)
	}
	if err != nil {
		c.fail(err)
	}
}

// ownOrigin refuses forms that another site has sent. Every browser of these
// years says where a form comes from; what does not say it is none.
func (c *call) ownOrigin() error {
	if c.r.Method == http.MethodGet || c.r.Method == http.MethodHead {
		return nil
	}
	h := c.r.Header
	if c.origins.Check(c.r) != nil || h.Get("Sec-Fetch-Site") == "" && h.Get("Origin") == "" {
		return control.Refuse(control.Forbidden, "CrossOrigin", "This form was not sent by a page of this server. Open the page here and send it again.")
	}
	return nil
}

// authenticate finds whose session it is, and what they may by now.
func (c *call) authenticate() error {
	s, err := c.findSession()
	if err != nil {
		return err
	}
	caller, err := c.Identity.Authenticate(c.ctx, s.bearer)
	if err != nil {
		return err
	}
	caller.Address, caller.Request = c.Address(c.r), c.id
	c.caller, c.session = caller, s
	if wait := c.Identity.Allow(caller.ID); wait > 0 {
		return c.tooMany(wait)
	}
	return nil
}

func (c *call) tooMany(wait time.Duration) error {
	seconds := int((wait + time.Second - 1) / time.Second)
	c.w.Header().Set("Retry-After", strconv.Itoa(seconds))
	return control.Refuse(control.TooMany, "TooManyRequests", "That was too much at once. Try again in %d seconds.", seconds)
}

// statusOf is the status of an answer that refuses.
func statusOf(e *control.Error) int {
	switch e.Kind {
	case control.Unknown:
		return http.StatusUnauthorized
	case control.Forbidden:
		return http.StatusForbidden
	case control.NotFound:
		return http.StatusNotFound
	case control.Conflict:
		return http.StatusConflict
	case control.Precondition:
		return http.StatusPreconditionFailed
	case control.TooMany:
		return http.StatusTooManyRequests
	case control.Unavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusBadRequest
}

// refusal is what a person is told of err. What is not the caller's doing goes
// into the log, and is said in general.
func (c *call) refusal(err error) *control.Error {
	if e := control.AsError(err); e != nil {
		return e
	}
	if c.r.Context().Err() != nil {
		return control.Refuse(control.Unavailable, "Gone", "The browser went away.") // nobody reads it
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return control.Refuse(control.Unavailable, "Timeout", "The server did not come to an answer in time. Try again.")
	}
	c.Log.Error("a page failed", "call", c.id, "path", c.r.URL.Path, "error", err)
	return control.Refuse(control.Unavailable, "InternalServerError", "Something went wrong here. The log of the server has it as %s.", c.id)
}

// fail answers with what went wrong.
func (c *call) fail(err error) {
	e := c.refusal(err)
	c.render(statusOf(e), "error", view{Title: http.StatusText(statusOf(e)), Data: e})
}

// see leads the browser on, after a form has done its work.
func (c *call) see(path string) error {
	http.Redirect(c.w, c.r, path, http.StatusSeeOther)
	return nil
}
