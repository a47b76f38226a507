package web

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
)

const (
	groupPath = "/subscriptions/20ff7fc3-e762-44dd-bd96-b71116dcdc23/resourceGroups/web"
	here      = "https://jit.example.net"
)

func machine(name string) string {
	return groupPath + "/providers/Microsoft.Compute/virtualMachines/" + name
}

func vmID(t testing.TB, name string) control.VMID {
	t.Helper()
	id, err := control.ParseVMID(machine(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
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

// site is the page on a real engine and a real store.
type site struct {
	t      testing.TB
	clock  *clock
	store  control.Store
	engine *control.Engine
	web    *Web
	owner  string         // token of the Owner of everything
	admin  control.Caller // the same
	source string         // where browsers are
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{t: t, clock: &clock{now: time.Now().UTC().Truncate(time.Second)}, store: storetest.SQLite(t), source: "203.0.113.7"}
	s.engine = control.New(control.Config{Store: s.store, Realm: storetest.Realm(t, s.clock.Now()), Now: s.clock.Now, Log: hclog.NewNullLogger()})
	token, hash := identity.NewToken()
	if given, err := control.Bootstrap(t.Context(), s.store, hash, s.clock.Now()); err != nil || !given {
		t.Fatal(given, err)
	}
	s.owner = token
	who, err := identity.New(identity.Config{Store: s.store, Rate: 10000, Burst: 10000, Now: s.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	if s.admin, err = who.Authenticate(t.Context(), token); err != nil {
		t.Fatal(err)
	}
	s.admin.Address = netip.MustParseAddr(s.source)
	s.web, err = New(Config{Engine: s.engine, Identity: who, Store: s.store, PublicURL: here, Now: s.clock.Now,
		Log:     hclog.New(&hclog.LoggerOptions{Output: testLog{t}, Level: hclog.Error}),
		Address: func(r *http.Request) netip.Addr { return netip.MustParseAddrPort(r.RemoteAddr).Addr() }})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// testLog fails a test in which the page logs an error: none of them should.
type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	l.t.Errorf("logged: %s", b)
	return len(b), nil
}

// browser keeps cookies as one does, and says where its forms come from.
type browser struct {
	*site
	cookies map[string]*http.Cookie
}

func (s *site) browser() *browser { return &browser{site: s, cookies: map[string]*http.Cookie{}} }

// signedIn is a browser of whom the token is of.
func (s *site) signedIn(token string) *browser {
	s.t.Helper()
	b := s.browser()
	if w := b.post("/ui/sign-in", "token", token); w.Code != http.StatusSeeOther {
		s.t.Fatalf("signing in answers %d: %s", w.Code, w.Body)
	}
	return b
}

// patient is a recorder that, as a connection does, has a deadline.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetWriteDeadline(time.Time) error { return nil }

func (b *browser) do(r *http.Request) *httptest.ResponseRecorder {
	b.t.Helper()
	r.RemoteAddr = netip.AddrPortFrom(netip.MustParseAddr(b.source), 40000).String()
	for _, c := range b.cookies {
		r.AddCookie(c)
	}
	w := httptest.NewRecorder()
	b.web.ServeHTTP(patient{w}, r)
	for _, c := range w.Result().Cookies() {
		if c.MaxAge < 0 {
			delete(b.cookies, c.Name)
		} else {
			b.cookies[c.Name] = c
		}
	}
	return w
}

func (b *browser) get(path string) *httptest.ResponseRecorder {
	b.t.Helper()
	return b.do(httptest.NewRequestWithContext(b.t.Context(), "GET", here+path, nil))
}

// page gets a page that has to be there.
func (b *browser) page(path string) string {
	b.t.Helper()
	w := b.get(path)
	if w.Code != http.StatusOK {
		b.t.Fatalf("GET %s answers %d: %s", path, w.Code, w.Body)
	}
	return w.Body.String()
}

// form is a POST of names and values by turns.
func form(ctx context.Context, path string, pairs ...string) *http.Request {
	values := url.Values{}
	for i := 0; i < len(pairs); i += 2 {
		values.Add(pairs[i], pairs[i+1])
	}
	r := httptest.NewRequestWithContext(ctx, "POST", here+path, strings.NewReader(values.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("Origin", here)
	return r
}

func (b *browser) post(path string, pairs ...string) *httptest.ResponseRecorder {
	b.t.Helper()
	return b.do(form(b.t.Context(), path, pairs...))
}

// token makes a token of somebody with a role.
func (s *site) token(name, role string, scope control.Scope) string {
	s.t.Helper()
	if role != "" {
		if err := s.engine.Assign(s.t.Context(), s.admin, control.Assignment{Principal: "local:" + name, Role: role, Scope: scope}); err != nil {
			s.t.Fatal(err)
		}
	}
	token, _, err := s.engine.CreateToken(s.t.Context(), s.admin, control.TokenInput{Principal: "local:" + name, Name: name})
	if err != nil {
		s.t.Fatal(err)
	}
	return token
}

func TestAssets(t *testing.T) {
	b := newSite(t).browser()
	for path, kind := range map[string]string{"/ui/page.css": "text/css", "/ui/page.js": "text/javascript"} {
		w := b.get(path)
		if w.Code != http.StatusOK || !strings.HasPrefix(w.Header().Get("Content-Type"), kind) {
			t.Errorf("%s answers %d, %v", path, w.Code, w.Header())
		}
		r := httptest.NewRequest("GET", here+path, nil)
		r.Header.Set("If-None-Match", w.Header().Get("ETag"))
		if again := b.do(r); again.Code != http.StatusNotModified || again.Body.Len() != 0 {
			t.Errorf("%s asked again: %d and %d bytes", path, again.Code, again.Body.Len())
		}
	}
	if text, err := io.ReadAll(b.get("/ui/page.js").Body); err != nil || strings.Contains(string(text), "eval(") {
		t.Errorf("the script: %v", err)
	}
}

func TestSession(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	if w := b.get("/ui/vms?tab=Unsupported"); w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/ui/sign-in?next=%2Fui%2Fvms%3Ftab%3DUnsupported" {
		t.Fatalf("without a session: %d, %v", w.Code, w.Header())
	}
	for _, token := range []string{"", "nonsense", "jgt_" + strings.Repeat("A", 43), s.owner[:len(s.owner)-1]} {
		if w := b.post("/ui/sign-in", "token", token); w.Code != http.StatusUnauthorized || !strings.Contains(w.Body.String(), `role="alert"`) || len(b.cookies) != 0 {
			t.Errorf("signing in with %q: %d, %v, %s", token, w.Code, b.cookies, w.Body)
		}
	}
	w := b.post("/ui/sign-in", "token", " "+s.owner+"\n", "next", "/ui/vms?tab=Unsupported")
	if w.Code != http.StatusSeeOther || w.Header().Get("Location") != "/ui/vms?tab=Unsupported" {
		t.Fatalf("signing in answers %d, %v", w.Code, w.Header())
	}
	cookie := w.Result().Cookies()[len(w.Result().Cookies())-1]
	if cookie.Name != "__Host-jitgate" || !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.Path != "/" || cookie.Domain != "" {
		t.Errorf("the cookie is %v", cookie)
	}
	b.page("/ui/vms")
	// A copy of the cookie ends with the session.
	thief := s.browser()
	thief.cookies[cookieName] = b.cookies[cookieName]
	thief.page("/ui/vms")
	// So does a session on another replica, which knows it from the store.
	replica, err := New(s.web.Config)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := *s
	elsewhere.web = replica
	beside := &browser{site: &elsewhere, cookies: b.cookies}
	beside.page("/ui/vms")
	if w := b.post("/ui/sign-out"); w.Code != http.StatusSeeOther || len(b.cookies) != 0 {
		t.Errorf("signing out answers %d and leaves %v", w.Code, b.cookies)
	}
	if w := thief.get("/ui/vms"); w.Code != http.StatusSeeOther {
		t.Errorf("a copy of the cookie of a session that was ended: %d", w.Code)
	}
	beside.cookies = thief.cookies
	if w := beside.get("/ui/vms"); w.Code != http.StatusSeeOther {
		t.Errorf("on another replica a session that was ended: %d", w.Code)
	}
	// Neither does a session outlive its time,
	late := s.signedIn(s.owner)
	s.clock.forward(sessionLasts - time.Second)
	late.page("/ui/vms")
	s.clock.forward(time.Second)
	if w := late.get("/ui/vms"); w.Code != http.StatusSeeOther {
		t.Errorf("after its time the session answers %d", w.Code)
	}
	// nor its token,
	token := s.token("alice", control.RoleOwner, control.Everywhere)
	alice := s.signedIn(token)
	alice.page("/ui/vms")
	if err := s.engine.RevokeToken(t.Context(), s.admin, control.HashToken(token)[:12]); err != nil {
		t.Fatal(err)
	}
	if w := alice.get("/ui/vms"); w.Code != http.StatusSeeOther {
		t.Errorf("with its token revoked the session answers %d", w.Code)
	}
	// and rights are those of now.
	bob := s.signedIn(s.token("bob", "Reader", control.Everywhere))
	bob.page("/ui/vms")
	if err := s.engine.Unassign(t.Context(), s.admin, control.Assignment{Principal: "local:bob", Role: "Reader", Scope: control.Everywhere}); err != nil {
		t.Fatal(err)
	}
	if w := bob.get("/ui/vms"); w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "AuthorizationFailed") {
		t.Errorf("without rights any more: %d %s", w.Code, w.Body)
	}
}
