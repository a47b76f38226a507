package web

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// evil are texts that are more than text where somebody forgot that they are
// text.
var evil = []string{
	`<script>alert(1)</script>`,
	`"><img src=x onerror=alert(1)>`,
	`' autofocus onfocus='alert(1)`,
	`javascript:alert(1)`,
	`</title></textarea></svg><svg onload=alert(1)>`,
	`{{.Data}}${7*7}`,
}

// harmlessPage requires that a page has no script but its own, no attribute
// that is one, no style of its own, and no link elsewhere.
func harmlessPage(t *testing.T, path, page string) {
	t.Helper()
	root, err := html.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	for n := range root.Descendants() {
		if n.Type != html.ElementNode {
			continue
		}
		switch n.Data {
		case "img", "iframe", "object", "embed", "style", "base", "foreignobject":
			t.Errorf("%s has <%s>", path, n.Data)
		}
		if n.Data == "script" && (n.FirstChild != nil || len(n.Attr) != 2 || n.Attr[0].Val != "/ui/page.js") {
			t.Errorf("%s has a script of its own: %v", path, n.Attr)
		}
		for _, a := range n.Attr {
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "srcdoc" {
				t.Errorf("%s has %s=%q in <%s>", path, a.Key, a.Val, n.Data)
			}
			if a.Key == "href" || a.Key == "src" || a.Key == "action" || a.Key == "formaction" {
				if !strings.HasPrefix(a.Val, Prefix) && a.Val != "#main" {
					t.Errorf("%s leads to %q", path, a.Val)
				}
			}
		}
	}
}

// Whatever users, agents and issuers can write stays text, on every page.
func TestThreatWritesScript(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	id := control.PolicyID{Subscription: web1.Subscription, Group: web1.Group, Location: "westeurope", Name: "default"}
	if _, err := s.engine.SetApproval(t.Context(), s.admin, id, &control.Approval{Approvers: 2, Role: "SecurityAdmin"}, ""); err != nil {
		t.Fatal(err)
	}
	owner := s.signedIn(s.owner)
	var pages []string
	for i, text := range evil {
		// Names that an issuer gives its people, and what people say.
		name := string(rune('a' + i))
		if err := s.engine.Assign(t.Context(), s.admin, control.Assignment{Principal: "local:" + name, Role: "Owner", Scope: control.Everywhere}); err != nil {
			t.Fatal(err)
		}
		caller := s.admin
		caller.ID, caller.Name = "local:"+name, text
		r, err := s.engine.InitiateVM(t.Context(), caller, control.InitiateInput{Justification: text, VMs: []control.InitiateVM{
			{ID: web1.String(), Ports: []control.InitiatePort{{Number: 22, Duration: "PT1H"}}}}})
		if err != nil {
			t.Fatal(err)
		}
		approver := s.admin
		approver.Name, approver.Rights = text, append(approver.Rights, control.ResolveRights([]control.Assignment{{Role: "SecurityAdmin", Scope: control.Everywhere}}, nil)...)
		if _, err := s.engine.Approve(t.Context(), approver, r[0].ID, text, 0); err != nil {
			t.Fatal(err)
		}
		// What an agent reports.
		if err := s.store.Update(t.Context(), func(tx control.Tx) error {
			vm, err := tx.VM(web1)
			if err != nil {
				return err
			}
			vm.LastUser, vm.LastAccess = text, s.clock.Now()
			vm.Agent = &control.Agent{Key: "k", Version: text, Mode: text, Note: text, Enrolled: s.clock.Now()}
			kept, err := tx.Request(r[0].ID)
			if err != nil {
				return err
			}
			kept.VMs[0].Ports[0].Refused = text
			if err := tx.PutRequest(kept); err != nil {
				return err
			}
			if err := tx.PutVM(vm); err != nil {
				return err
			}
			return tx.AppendActivity(control.Activity{Time: s.clock.Now(), Event: text, Actor: text, Reason: text, Code: text, Source: text, Scope: web1.Scope(), VM: web1.String(), Address: text})
		}); err != nil {
			t.Fatal(err)
		}
		s.put("old"+name, control.VMInput{Unsupported: text})
		q := url.QueryEscape(text)
		pages = append(pages, "/ui/requests/"+r[0].ID, "/ui/requests?show=all", "/ui/vms", "/ui/vms?tab=Unsupported", link("vm", "id", web1), link("vm", "id", machine("old"+name)),
			link("activity", "scope", web1), "/ui/timeline", link("ports", "vm", web1), link("request", "vm", web1),
			"/ui/vms?tab="+q, "/ui/vms?q="+q+"&scope="+q, "/ui/activity?scope="+q+"&event="+q+"&actor="+q+"&from="+q, "/ui/timeline?scope="+q+"&span="+q,
			"/ui/vm?id="+q, "/ui/request?vm="+q, "/ui/requests/"+url.PathEscape(text), "/ui/requests?after="+q+"&show="+q, "/ui/"+url.PathEscape(text),
			"/ui/settings/approval", "/ui/settings/scopes?scope="+q, "/ui/settings/joining?scope="+q, "/ui/settings/roles?q="+q+"&scope="+q, "/ui/settings/roles", "/ui/settings/signing",
			"/ui/settings/terms?subscription="+q+"&group="+q+"&location="+q+"&name="+q, "/ui/settings/terms?subscription="+web1.Subscription+"&group="+web1.Group+"&location=westeurope&name=default")
	}
	// Who switched something off, and why; a group that is called so.
	for i, text := range evil {
		caller := s.admin
		caller.Name = text
		if _, err := s.engine.SetScope(t.Context(), caller, control.Scope(groupPath+string(rune('a'+i))), false, text); err != nil {
			t.Fatal(err)
		}
		if err := s.engine.Assign(t.Context(), s.admin, control.Assignment{Principal: "group:" + text, Role: "Reader", Scope: control.Everywhere}); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range pages {
		harmlessPage(t, path, owner.get(path).Body.String())
	}
	stranger := s.browser()
	named := s.signedIn(s.token("mallory", "Owner", control.Everywhere))
	for _, text := range evil {
		path := "/ui/sign-in?next=" + url.QueryEscape(text)
		harmlessPage(t, path, stranger.get(path).Body.String())
		w := named.post("/ui/request", "vm", web1.String(), "justification", text, "on.0.22", "on", "source.0.22", "range", "range.0.22", text, "for.0.22", text)
		harmlessPage(t, "the pane, refused", w.Body.String())
		w = named.post("/ui/ports", "vm", web1.String(), "rows", "1", "do", "save", "on.0", "on", "number.0", text, "sources.0", text, "longest.0", text, "protocol.0", text)
		if w.Code != http.StatusBadRequest {
			t.Errorf("%q as ports: %d", text, w.Code)
		}
		harmlessPage(t, "the pane of ports, refused", w.Body.String())
		for _, path := range []string{"terms", "scopes", "joining", "roles"} {
			for _, do := range []string{"make", "give", "take", "off", "revoke", text} {
				w := named.post("/ui/settings/"+path, "subscription", web1.Subscription, "group", web1.Group, "location", "westeurope", "name", "default", "revision", text, "asks", "on", "approvers", text,
					"role", text, "expires", text, "scope", text, "reason", text, "principal", text, "uses", text, "valid", text, "id", text, "do", do)
				if w.Code < 400 || w.Code >= 500 {
					t.Errorf("%q in %s, %s: %d", text, path, do, w.Code)
				}
				harmlessPage(t, path+", refused", w.Body.String())
			}
		}
	}
}

// A form of another site does nothing, whatever it says and leaves out.
func TestThreatForgesForms(t *testing.T) {
	s := newSite(t)
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	b := s.signedIn(s.owner)
	to := led(t, b.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H"))
	before, err := s.engine.GetRequest(t.Context(), s.admin, strings.TrimPrefix(to, Prefix+"requests/"))
	if err != nil {
		t.Fatal(err)
	}
	for name, headers := range map[string]map[string]string{
		"another site":          {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
		"a site beside it":      {"Sec-Fetch-Site": "same-site", "Origin": "https://evil.example.net"},
		"an older browser":      {"Origin": "https://evil.example"},
		"a frame of its own":    {"Origin": "null"},
		"plain http":            {"Sec-Fetch-Site": "cross-site", "Origin": "http://jit.example.net"},
		"what says nothing":     {},
		"what tries to be sure": {"Sec-Fetch-Site": "cross-site", "Origin": here},
	} {
		for _, path := range []string{"/ui/sign-in", "/ui/sign-out", "/ui/ports", "/ui/request", to + "/revoke", to + "/extend", to + "/approve", to + "/deny",
			"/ui/settings/terms", "/ui/settings/scopes", "/ui/settings/joining", "/ui/settings/roles"} {
			r := form(t.Context(), path, "token", s.owner, "vm", web1.String(), "rows", "0", "do", "off", "on.0.22", "on", "for.0.22", "PT2H", "by", "PT2H")
			r.Header.Del("Sec-Fetch-Site")
			r.Header.Del("Origin")
			for k, v := range headers {
				r.Header.Set(k, v)
			}
			if w := b.do(r); w.Code != http.StatusForbidden {
				t.Errorf("%s of %s: %d", path, name, w.Code)
			}
		}
	}
	after, err := s.engine.GetRequest(t.Context(), s.admin, before.ID)
	if err != nil || !after.Open() || !after.VMs[0].Ports[0].End.Equal(before.VMs[0].Ports[0].End) {
		t.Errorf("after all that the request is %+v, %v", after, err)
	}
	if v, err := s.engine.GetVM(t.Context(), s.admin, web1); err != nil || len(v.Ports) != 1 || len(v.Open) != 1 {
		t.Errorf("after all that the machine is %+v, %v", v, err)
	}
	b.page("/ui/vms") // still signed in
	// No link does what a form does.
	for _, path := range []string{to + "/revoke", to + "/extend", to + "/approve", to + "/deny", "/ui/sign-out"} {
		if w := b.get(path); w.Code != http.StatusMethodNotAllowed && w.Code != http.StatusNotFound {
			t.Errorf("GET %s answers %d", path, w.Code)
		}
	}
}

// A session cannot be given to somebody, and what could be stolen is not there.
func TestThreatTakesSession(t *testing.T) {
	s := newSite(t)
	dir := t.TempDir()
	s.store = storetest.Open(t, filepath.Join(dir, "control.db"))
	token, hash := identity.NewToken()
	if _, err := control.Bootstrap(t.Context(), s.store, hash, s.clock.Now()); err != nil {
		t.Fatal(err)
	}
	who, err := identity.New(identity.Config{Store: s.store, Now: s.clock.Now})
	if err != nil {
		t.Fatal(err)
	}
	s.web.Store, s.web.Identity = s.store, who
	mallory := s.signedIn(token)
	planted := *mallory.cookies[cookieName]
	victim := s.browser()
	victim.cookies[cookieName] = &planted
	if w := victim.post("/ui/sign-in", "token", token); w.Code != http.StatusSeeOther {
		t.Fatalf("signing in answers %d", w.Code)
	}
	secret := victim.cookies[cookieName].Value
	if secret == planted.Value {
		t.Error("the planted session became the victim's")
	}
	if w := mallory.get("/ui/vms"); w.Code != http.StatusSeeOther {
		t.Errorf("the planted session goes on: %d", w.Code)
	}
	// Two cookies of one name: one of them somebody else has set.
	r := httptest.NewRequest("GET", here+"/ui/vms", nil)
	r.AddCookie(&planted)
	if w := victim.do(r); w.Code != http.StatusSeeOther {
		t.Errorf("with two cookies: %d", w.Code)
	}
	r = httptest.NewRequest("GET", here+"/ui/vms", nil)
	r.AddCookie(victim.cookies[cookieName])
	r.AddCookie(&planted)
	if w := (&browser{site: s, cookies: map[string]*http.Cookie{}}).do(r); w.Code != http.StatusSeeOther {
		t.Errorf("with two cookies, the good one first: %d", w.Code)
	}
	for _, value := range []string{"", "x", strings.Repeat("A", 43), strings.Repeat("A", 4000), secret[:42] + "=", secret + "A"} {
		thief := s.browser()
		thief.cookies[cookieName] = &http.Cookie{Name: cookieName, Value: value}
		if w := thief.get("/ui/vms"); w.Code != http.StatusSeeOther {
			t.Errorf("the cookie %q: %d", value, w.Code)
		}
	}
	// Over plain http a browser sends and takes none: that is what the name and
	// Secure say. No page shows it.
	c := victim.cookies[cookieName]
	if !strings.HasPrefix(c.Name, "__Host-") || !c.Secure || !c.HttpOnly || c.SameSite == http.SameSiteNoneMode {
		t.Errorf("the cookie is %v", c)
	}
	w := victim.get("/ui/vms")
	if strings.Contains(w.Body.String(), secret) || strings.Contains(w.Body.String(), token) || w.Header().Get("Strict-Transport-Security") == "" || w.Header().Get("Cache-Control") != "no-store" {
		t.Error("a page shows what is secret, or may be kept")
	}
	// Whoever reads the database has no session and no token.
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), secret) || strings.Contains(string(text), token) {
			t.Errorf("%s has the secret of a session, or its token", filepath.Base(name))
		}
	}
}

// No page can be put into a frame of another, or run what is not its own.
func TestThreatFramesPage(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	for _, path := range []string{"/", "/ui/", "/ui/vms", "/ui/sign-in", "/ui/nothing", "/ui/vm?id=x", "/ui/page.js", "/ui/page.css", "/ui/icon.svg", "/ui/activity.csv", "/ui/live?at=x"} {
		h := b.get(path).Header()
		csp := h.Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || !strings.Contains(csp, "frame-ancestors 'none'") || !strings.Contains(csp, "script-src 'self'") || !strings.Contains(csp, "base-uri 'none'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy: %s", path, csp)
		}
		if h.Get("X-Frame-Options") != "DENY" || h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Referrer-Policy") != "no-referrer" || h.Get("Cross-Origin-Opener-Policy") != "same-origin" {
			t.Errorf("%s: %v", path, h)
		}
	}
}

// Who signs in comes to a page of this server, whatever a link says.
func TestThreatLeadsAway(t *testing.T) {
	s := newSite(t)
	for next, want := range map[string]string{
		"/ui/requests?show=all": "/ui/requests?show=all",
		"/ui/vm?id=%2Fa%2Fb":    "/ui/vm?id=%2Fa%2Fb",
		"":                      "/ui/vms", "/": "/ui/vms", "https://evil.example/ui/vms": "/ui/vms", "//evil.example/ui/": "/ui/vms", "/\\evil.example": "/ui/vms",
		"/ui/../../evil": "/ui/vms", "/ui//evil.example": "/ui/vms", "\\\\evil.example": "/ui/vms", "/ui/\r\nSet-Cookie: a=b": "/ui/vms", "javascript:alert(1)": "/ui/vms",
		"///evil.example/ui/": "/ui/vms", "/api/v1/vms": "/ui/vms", "/uix": "/ui/vms", "/ui/%2e%2e/api": "/ui/vms", "ui/vms": "/ui/vms", "https:/ui/vms": "/ui/vms",
	} {
		if got := led(t, s.browser().post("/ui/sign-in", "token", s.owner, "next", next)); got != want {
			t.Errorf("%q leads to %q, want %q", next, got, want)
		}
	}
}

// Nothing is served but pages and the three files.
func TestThreatWalksPaths(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	for _, path := range []string{"/ui/templates/layout.html", "/ui/web.go", "/ui/../go.mod", "/ui/..%2f..%2fgo.mod", "/ui/%2e%2e/%2e%2e/etc/passwd", "/ui/page.css/..%2fweb.go", "/ui/page.css%00.html",
		"/ui/..\\web.go", "/ui/requests/..%2f..%2fapi", "/ui/requests/../../api/v1/vms", "//etc/passwd"} {
		w := b.get(path)
		if w.Code == http.StatusOK || w.Code >= 500 || strings.Contains(w.Body.String(), "package web") || strings.Contains(w.Body.String(), "root:") {
			t.Errorf("%s answers %d", path, w.Code)
		}
	}
	for _, at := range []string{"", "x", "//evil.example/ui/vms", "https://evil.example/ui/vms", "/ui/../api/v1/vms", "/ui/live?at=/ui/live", "/ui/activity.csv", "/api/v1/vms", "/ui/%2e%2e/x"} {
		if w := b.get("/ui/live?at=" + url.QueryEscape(at)); w.Code != http.StatusBadRequest {
			t.Errorf("following %q answers %d", at, w.Code)
		}
	}
}

// Who guesses tokens has to wait, and so has who asks too much.
func TestThreatGuessesTokens(t *testing.T) {
	s := newSite(t)
	b := s.browser()
	refused := 0
	for range 40 {
		if w := b.post("/ui/sign-in", "token", "jgt_"+strings.Repeat("A", 43)); w.Code == http.StatusTooManyRequests && w.Header().Get("Retry-After") != "" {
			refused++
		}
	}
	if refused < 15 {
		t.Errorf("of 40 guesses %d were told to wait", refused)
	}
	if w := b.post("/ui/sign-in", "token", s.owner); w.Code != http.StatusSeeOther {
		t.Errorf("a good token from there: %d", w.Code)
	}
	if w := b.post("/ui/sign-in", "token", strings.Repeat("A", maxForm)); w.Code != http.StatusBadRequest {
		t.Errorf("a form without end: %d", w.Code)
	}
	who, err := identity.New(identity.Config{Store: s.store, Now: s.clock.Now, Rate: 1, Burst: 3})
	if err != nil {
		t.Fatal(err)
	}
	s.web.Identity = who
	for range 3 {
		b.page("/ui/requests")
	}
	if w := b.get("/ui/requests"); w.Code != http.StatusTooManyRequests {
		t.Errorf("beyond the allowance: %d", w.Code)
	}
}

// A browser that goes away is no failure of ours, and none in the log.
func TestBrowserGoesAway(t *testing.T) {
	s := newSite(t)
	b := s.signedIn(s.owner)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if w := b.do(httptest.NewRequestWithContext(ctx, "GET", here+"/ui/vms", nil)); w.Code != http.StatusServiceUnavailable {
		t.Errorf("it is answered %d", w.Code)
	}
}

// Live pages come anew when something happened, and end with the right to them.
func TestLive(t *testing.T) {
	s := newSite(t)
	s.web.pause, s.web.beat = 10*time.Millisecond, 50*time.Millisecond
	web1 := s.guard("web1", rule(22, "*", "PT3H"))
	b := s.signedIn(s.token("alice", "JITRequester", control.Everywhere))
	to := led(t, b.post("/ui/request", "vm", web1.String(), "on.0.22", "on", "for.0.22", "PT1H"))
	server := httptest.NewServer(s.web)
	defer server.Close()
	s.web.Address = func(*http.Request) netip.Addr { return netip.MustParseAddr(s.source) }
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, "GET", server.URL+"/ui/live?at="+url.QueryEscape(to), nil)
	if err != nil {
		t.Fatal(err)
	}
	r.AddCookie(b.cookies[cookieName])
	answer, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	lines := bufio.NewScanner(answer.Body)
	lines.Buffer(nil, 1<<20)
	next := func(prefix string) string {
		t.Helper()
		for lines.Scan() {
			if text, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return text
			}
		}
		t.Fatalf("the stream ended before %q: %v", prefix, lines.Err())
		return ""
	}
	// First the page as it is: something may have happened since the browser had
	// it, or lost the line.
	var page string
	if err := json.Unmarshal([]byte(next("data: ")), &page); err != nil {
		t.Fatal(err)
	}
	has(t, page, `data-says="web1 port 22: `)
	lacks(t, page, `data-says="web1 port 22: closed: revoked"`)
	for range 2 { // nothing happens: the page is not sent again
		for lines.Scan() && lines.Text() != ": alive" {
			if strings.HasPrefix(lines.Text(), "data: ") {
				t.Fatal("a page that is the same was sent")
			}
		}
	}
	if _, err := s.engine.Revoke(t.Context(), s.admin, strings.TrimPrefix(to, Prefix+"requests/"), "enough"); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(next("data: ")), &page); err != nil {
		t.Fatal(err)
	}
	has(t, page, `data-says="web1 port 22: closed: revoked"`)
	if err := s.engine.Unassign(t.Context(), s.admin, control.Assignment{Principal: "local:alice", Role: "JITRequester", Scope: control.Everywhere}); err != nil {
		t.Fatal(err)
	}
	// Her own request she still sees; signed out she sees nothing.
	if w := b.post("/ui/sign-out"); w.Code != http.StatusSeeOther {
		t.Fatal(w.Code)
	}
	next("event: gone")
	if lines.Scan(); lines.Scan() && lines.Text() != "" {
		t.Errorf("after its end the stream has %q", lines.Text())
	}
	// A person has so many streams and no more.
	again := s.signedIn(s.owner)
	s.web.mu.Lock()
	s.web.streams["local:admin"] = mostStreams
	s.web.mu.Unlock()
	if w := again.get("/ui/live?at=/ui/vms"); w.Code != http.StatusTooManyRequests {
		t.Errorf("one more stream: %d", w.Code)
	}
}
