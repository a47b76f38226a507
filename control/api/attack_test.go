package api

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

// unwell is a store that can be made not to answer.
type unwell struct {
	control.Store
	now   atomic.Bool
	panic atomic.Bool
}

func (u *unwell) Ping(ctx context.Context) error {
	if u.now.Load() {
		return io.ErrClosedPipe
	}
	return u.Store.Ping(ctx)
}

// stuck is a store that does not come back.
type stuck struct{ control.Store }

func (stuck) View(ctx context.Context, _ func(control.Tx) error) error {
	<-ctx.Done()
	return ctx.Err()
}

// A call that takes too long is answered while there is somebody to answer.
func TestStuckStore(t *testing.T) {
	s := newServer(t, options{store: func(real control.Store) control.Store { return stuck{real} },
		serve: func(a *API, _ *http.Server) { a.timeout = 50 * time.Millisecond }})
	a := s.call("GET", defaultPath+version, "")
	if a.code(t); a.status != 503 || a.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", a.status, a.body)
	}
}

func (u *unwell) View(ctx context.Context, f func(control.Tx) error) error {
	switch {
	case u.panic.Load():
		panic("secret of the inside")
	case u.now.Load():
		return fmt.Errorf("dial 10.0.0.9: %w", io.ErrClosedPipe)
	}
	return u.Store.View(ctx, f)
}

// Whatever is wrong with a call, it is answered with a 4xx and a code, and
// leaves nothing behind: no policy, no request, no line in the log.
func TestBadCalls(t *testing.T) {
	s := newServer(t, options{})
	s.guard("vm1")
	before := len(s.lines())
	huge := `{"kind":"` + strings.Repeat("x", MaxBody) + `"}`
	deep := `{"x":` + strings.Repeat(`{"x":`, 5000) + "1" + strings.Repeat("}", 5000) + "}"
	for _, c := range []struct {
		name, method, path, body string
		headers                  []string
		status                   int
		code                     string
	}{
		{"oversized", "PUT", defaultPath + version, huge, nil, 413, "RequestBodyTooLarge"},
		{"oversized request", "POST", defaultPath + "/initiate" + version, huge, nil, 413, "RequestBodyTooLarge"},
		{"oversized batch", "POST", "/batch", huge, nil, 413, "RequestBodyTooLarge"},
		{"malformed", "PUT", defaultPath + version, `{"properties":`, nil, 400, "InvalidRequestContent"},
		{"duplicate names", "PUT", defaultPath + version, `{"properties":{"virtualMachines":[]},"properties":{"virtualMachines":[]}}`, nil, 400, "InvalidRequestContent"},
		{"deep", "PUT", defaultPath + version, deep, nil, 400, "InvalidRequestContent"},
		{"no body", "PUT", defaultPath + version, "", nil, 400, "InvalidRequestContent"},
		{"form", "PUT", defaultPath + version, policyBody, []string{"Content-Type", "application/x-www-form-urlencoded"}, 415, "UnsupportedMediaType"},
		{"text", "POST", defaultPath + "/initiate" + version, initiateBody, []string{"Content-Type", "text/plain"}, 415, "UnsupportedMediaType"},
		{"no content type", "POST", defaultPath + "/initiate" + version, initiateBody, []string{"Content-Type", ""}, 415, "UnsupportedMediaType"},
		{"UTF-16", "PUT", defaultPath + version, policyBody, []string{"Content-Type", "application/json; charset=utf-16"}, 415, "UnsupportedMediaType"},
		{"unknown version", "PUT", defaultPath + "?api-version=2019-01-01", policyBody, nil, 400, "InvalidApiVersionParameter"},
		{"two versions", "PUT", defaultPath + version + "&Api-Version=2020-01-01", policyBody, nil, 400, "InvalidQueryParameter"},
		{"append", "PUT", defaultPath + version, `{"properties":{"virtualMachines":[],"appendMode":true}}`, nil, 400, "AppendModeNotSupported"},
		{"method", "PATCH", defaultPath + version, policyBody, nil, 405, "HttpMethodNotAllowed"},
		{"method of initiate", "PUT", defaultPath + "/initiate" + version, initiateBody, nil, 405, "HttpMethodNotAllowed"},
		{"options", "OPTIONS", defaultPath + version, "", nil, 405, "HttpMethodNotAllowed"},
		{"path", "GET", "/subscriptions", "", nil, 404, "InvalidResourceType"},
		{"another provider", "GET", groupPath + "/providers/Microsoft.Compute/virtualMachines" + version, "", nil, 404, "InvalidResourceType"},
		{"traversal", "GET", policiesPath + "/..%2f..%2fdefault" + version, "", nil, 400, "InvalidRequestUri"},
		{"encoded dots", "GET", policiesPath + "/%2e%2e" + version, "", nil, 400, "InvalidRequestUri"},
		{"double encoding", "GET", policiesPath + "/%252e" + version, "", nil, 400, "InvalidRequestUri"},
		{"query", "GET", defaultPath + version + "&%zz", "", nil, 400, "InvalidQueryParameter"},
		{"skip token", "GET", policiesPath + version + "&$skiptoken=!!", "", nil, 400, "InvalidSkipToken"},
		{"skip token of control characters", "GET", policiesPath + version + "&$skiptoken=" + skipToken("a\x00b"), "", nil, 400, "InvalidSkipToken"},
		{"top", "GET", policiesPath + version + "&$top=many", "", nil, 400, "InvalidQueryParameter"},
		{"If-Match", "PUT", defaultPath + version, policyBody, []string{"If-Match", `"1", "2"`}, 400, "InvalidHeader"},
		{"If-Match of somebody else", "PUT", defaultPath + version, policyBody, []string{"If-Match", `"abc"`}, 412, "PreconditionFailed"},
		{"If-None-Match", "PUT", defaultPath + version, policyBody, []string{"If-None-Match", `"1"`}, 400, "InvalidHeader"},
		{"unknown name", "PATCH", vmPath("vm1"), `{"ports":[],"Ports":[]}`, nil, 400, "InvalidRequestContent"},
		{"machine of another kind of id", "GET", "/api/v1/vms/subscriptions/s/resourceGroups/g/providers/a/b/c%20d", "", nil, 400, "InvalidResourceId"},
		{"SQL in an id", "GET", "/api/v1/vms/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/x'%20OR%201=1--", "", nil, 400, "InvalidResourceId"},
		{"empty batch", "POST", "/batch", `{"requests":[]}`, nil, 400, "InvalidRequestContent"},
		{"long batch", "POST", "/batch", `{"requests":[` + strings.Repeat(`{"httpMethod":"GET","url":"/x"},`, maxBatch) + `{"httpMethod":"GET","url":"/x"}]}`, nil, 400, "InvalidBatch"},
		{"basic", "GET", defaultPath + version, "", []string{"Authorization", "Basic YWRtaW46YWRtaW4="}, 401, "InvalidAuthenticationToken"},
		{"long path", "GET", "/" + strings.Repeat("x/", 2000), "", nil, 414, "RequestUriTooLong"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := s.unchecked(s.owner, c.method, c.path, c.body, c.headers...)
			a.refused(t, c.status, c.code)
			if a.header.Get("x-ms-request-id") == "" || a.header.Get("X-Content-Type-Options") != "nosniff" {
				t.Errorf("%v", a.header)
			}
			if c.status == 405 && a.header.Get("Allow") == "" {
				t.Error("it does not say which methods there are")
			}
		})
	}
	if lines := s.lines(); len(lines) != before {
		t.Errorf("%d new lines in the log: %+v", len(lines)-before, lines[before:])
	}
	var p azPolicy
	s.call("GET", defaultPath+version, "").want(t, 200).in(t, &p)
	if len(p.Properties.Requests) != 0 || len(p.Properties.VMs) != 1 {
		t.Errorf("%+v", p)
	}
}

// What the engine refuses leaves no request and no policy either.
func TestRefusalsLeaveNothing(t *testing.T) {
	s := newServer(t, options{})
	s.guard("vm1")
	initiate := func(port string) string {
		return `{"virtualMachines":[{"id":"` + machine("vm1") + `","ports":[` + port + `]}]}`
	}
	for _, body := range []string{
		initiate(`{"number":22}`), initiate(`{"number":22,"duration":"PT1H","endTimeUtc":"` + s.clock.Now().Add(time.Hour).Format(time.RFC3339) + `"}`),
		initiate(`{"number":22,"duration":"P2D"}`), initiate(`{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"' OR 1=1 --"}`),
		initiate(`{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"10.0.0.0/33"}`), initiate(`{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"10.0.0.1","allowedSourceAddressPrefixes":["10.0.0.2"]}`),
		`{"virtualMachines":[{"id":"` + machine("vm1") + `/../vm2","ports":[{"number":22,"duration":"PT1H"}]}]}`,
		`{"virtualMachines":[{"id":"` + machine("vm1") + `","ports":[{"number":22,"duration":"PT1H"},{"number":23,"duration":"PT1H"}]}]}`, // one good, one bad
		`{"virtualMachines":[{"id":"` + machine("vm1") + `","ports":[{"number":22,"duration":"PT1H"}]}],"justification":"` + strings.Repeat("x", 100000) + `"}`,
	} {
		a := s.unchecked(s.owner, "POST", defaultPath+"/initiate"+version, body)
		if a.status != 400 {
			t.Errorf("%.200s: %d %.300s", body, a.status, a.body)
		}
		a.code(t)
	}
	var page list[requestOut]
	if s.call("GET", "/api/v1/requests", "").want(t, 200).in(t, &page); len(page.Value) != 0 {
		t.Errorf("%+v", page)
	}
}

// A client cannot say where it calls from, unless it is a proxy of ours.
func TestAddressOfCalls(t *testing.T) {
	who := func(s *server, headers ...string) string {
		t.Helper()
		var w whoOut
		s.call("GET", "/api/v1/whoami", "", headers...).want(t, 200).in(t, &w)
		return w.Address
	}
	s := newServer(t, options{})
	for _, h := range []string{"X-Forwarded-For", "X-Real-IP", "Forwarded", "True-Client-IP", "X-Client-IP", "CF-Connecting-IP"} {
		value := "198.51.100.1"
		if h == "Forwarded" {
			value = "for=" + value
		}
		if got := who(s, h, value); got != "127.0.0.1" {
			t.Errorf("%s made it %s", h, got)
		}
	}
	s = newServer(t, options{config: func(c *Config) { c.TrustedProxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")} }})
	if got := who(s, "X-Forwarded-For", "192.0.2.66, 198.51.100.1"); got != "198.51.100.1" {
		t.Errorf("behind a proxy: %s", got)
	}
	// It becomes the source of a request that names none, and stands in the log.
	s.guard("vm1")
	var made list[requestOut]
	s.call("POST", vmPath("vm1")+"/request", `{"ports":[{"number":22,"duration":"PT1H"}]}`, "X-Forwarded-For", "192.0.2.66, 198.51.100.1").want(t, 202).in(t, &made)
	if got := made.Value[0].VMs[0].Ports[0].One; got != "198.51.100.1" {
		t.Errorf("the source is %s", got)
	}
	lines := s.lines()
	if last := lines[len(lines)-1]; last.Address != "198.51.100.1" || last.Call == "" {
		t.Errorf("%+v", last)
	}
}

func TestRateLimits(t *testing.T) {
	s := newServer(t, options{identity: func(c *identity.Config) { c.Rate, c.Burst = 1, 3 }})
	ann, bob := s.person("ann", "Reader", control.Everywhere), s.person("bob", "Reader", control.Everywhere)
	for range 3 {
		s.as(ann, "GET", "/api/v1/whoami", "").want(t, 200)
	}
	a := s.as(ann, "GET", "/api/v1/whoami", "").refused(t, 429, "TooManyRequests")
	if a.header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After: %s", a.header.Get("Retry-After"))
	}
	s.as(bob, "GET", "/api/v1/whoami", "").want(t, 200) // it is ann's limit
	s.clock.forward(time.Second)
	s.as(ann, "GET", "/api/v1/whoami", "").want(t, 200)
	// A batch is counted by what is in it.
	s.clock.forward(time.Minute)
	get := `{"httpMethod":"GET","url":"` + defaultPath + version + `"}`
	var out batchOut
	s.as(ann, "POST", "/batch", `{"requests":[`+get+`,`+get+`,`+get+`]}`).want(t, 200).in(t, &out)
	if got := out.Responses; got[0].Status != 404 || got[1].Status != 404 || got[2].Status != 429 {
		t.Errorf("%+v", got)
	}
}

// Guessing tokens is slowed down, and whoever has a good one gets in all the
// same.
func TestGuessing(t *testing.T) {
	s := newServer(t, options{})
	slowed := 0
	for i := range 60 {
		a := s.as(fmt.Sprintf("jgt_guess-%d", i), "GET", "/api/v1/whoami", "")
		switch a.status {
		case 401:
			if h := a.header.Get("WWW-Authenticate"); !strings.HasPrefix(h, `Bearer authorization_uri="`) || !strings.Contains(h, `error="invalid_token"`) {
				t.Fatalf("WWW-Authenticate: %s", h)
			}
		case 429:
			slowed++
			if a.header.Get("Retry-After") == "" {
				t.Fatal("no Retry-After")
			}
		default:
			t.Fatalf("%d %s", a.status, a.body)
		}
	}
	if slowed < 30 {
		t.Errorf("%d of 60 guesses were slowed down", slowed)
	}
	s.call("GET", "/api/v1/whoami", "").want(t, 200)
}

// Ids that a client gives are taken where they are ids.
func TestRequestIDs(t *testing.T) {
	s := newServer(t, options{})
	const id, ours = "A6F7A1D8-3f9a-4b07-9a3e-0d4b7c2f5e01", "the server's own"
	for _, c := range []struct{ name, given, asked, want string }{
		{"x-ms-correlation-request-id", id, "", id},
		{"x-ms-correlation-request-id", "not an id", "", ours},
		{"x-ms-correlation-request-id", id + id, "", ours},
		{"x-ms-correlation-request-id", strings.ReplaceAll(id, "-", "x"), "", ours},
		{"x-ms-client-request-id", id, "true", id},
		{"x-ms-client-request-id", "anything goes", "True", "anything goes"},
		{"x-ms-client-request-id", id, "false", ""},
		{"x-ms-client-request-id", id, "", ""},
		{"x-ms-client-request-id", strings.Repeat("x", 129), "true", ""},
		{"x-ms-client-request-id", "\x80", "true", ""},
	} {
		a := s.as("", "GET", "/healthz", "", c.name, c.given, "x-ms-return-client-request-id", c.asked)
		own, got := a.header.Get("x-ms-request-id"), a.header.Get(c.name)
		if c.want == ours {
			c.want = own
		}
		if got != c.want || !isUUID(own) {
			t.Errorf("%s %q: %q, want %q", c.name, c.given, got, c.want)
		}
	}
}

// Two tokens in one call are none: a proxy may have looked at the other. Nor
// is one that does not come as a bearer's.
func TestTwoTokens(t *testing.T) {
	s := newServer(t, options{})
	for _, header := range []string{s.owner, "Basic " + s.owner, "Token " + s.owner} {
		s.as("", "GET", "/api/v1/whoami", "", "Authorization", header).refused(t, 401, "InvalidAuthenticationToken")
	}
	s.as("", "GET", "/api/v1/whoami", "", "Authorization", "bearer  "+s.owner).want(t, 200)
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.http.URL+"/api/v1/whoami", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header["Authorization"] = []string{"Bearer " + s.owner, "Bearer jgt_other"}
	w, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	if w.StatusCode != 401 {
		t.Errorf("%d", w.StatusCode)
	}
}

// A failure of ours says nothing of the inside, and is found in the log by the
// id that the caller got.
func TestFailures(t *testing.T) {
	var store *unwell
	s := newServer(t, options{store: func(real control.Store) control.Store {
		store = &unwell{Store: real}
		return store
	}})
	store.now.Store(true)
	a := s.call("GET", defaultPath+version, "")
	if a.status != 503 || a.header.Get("Retry-After") == "" || strings.Contains(string(a.body), "10.0.0.9") {
		t.Errorf("%d %s", a.status, a.body)
	}
	store.now.Store(false)
	store.panic.Store(true)
	a = s.call("GET", defaultPath+version, "").refused(t, 500, "InternalServerError")
	store.panic.Store(false)
	if strings.Contains(string(a.body), "secret") {
		t.Errorf("%s", a.body)
	}
	if id := a.header.Get("x-ms-request-id"); !strings.Contains(s.log.String(), id) || !strings.Contains(s.log.String(), "secret of the inside") {
		t.Errorf("%s is not in the log: %s", id, s.log)
	}
	s.call("GET", defaultPath+version, "").want(t, 404)
}

// A client that sends its body a byte now and then is cut off, and leaves
// nothing behind.
func TestSlowBody(t *testing.T) {
	s := newServer(t, options{})
	slow := Server(s.api)
	slow.ReadTimeout = 300 * time.Millisecond
	slow.TLSConfig = s.http.TLS
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go slow.ServeTLS(l, "", "")
	defer slow.Close()
	conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: s.roots().RootCAs, ServerName: "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "PUT %s%s HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n{", defaultPath, version, s.owner, len(policyBody))
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	w, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil {
		defer w.Body.Close()
		if w.StatusCode != 408 || w.Header.Get("x-ms-error-code") != "RequestBodyIncomplete" {
			t.Errorf("%d %v", w.StatusCode, w.Header)
		}
	} else if e, ok := err.(net.Error); ok && e.Timeout() {
		t.Error("a slow client is waited for")
	}
	s.call("GET", defaultPath+version, "").want(t, 404)
}

// Inside a batch there are the same rights, the same refusals, and no way to
// what is not Azure's.
func TestBatch(t *testing.T) {
	s := newServer(t, options{})
	s.guard("vm1")
	reader := s.person("rita", "Reader", control.Everywhere)
	item := func(method, url, content string) string {
		if content != "" {
			content = `,"content":` + content
		}
		return `{"httpMethod":"` + method + `","relativeUrl":"` + url + `"` + content + `}`
	}
	var out batchOut
	body := `{"requests":[` + strings.Join([]string{
		item("get", defaultPath+version, ""),
		item("POST", defaultPath+"/initiate"+version, initiateBody),
		item("PUT", defaultPath+version, policyBody),
		item("GET", "/api/v1/whoami", ""),
		item("GET", "/metrics", ""),
		item("POST", "/batch", `{"requests":[`+item("GET", defaultPath+version, "")+`]}`),
		item("GET", "https://evil.example"+defaultPath+version, ""),
		item("GET", strings.ReplaceAll(defaultPath, "default", "%2e%2e")+version, ""),
		item("GET", "no-slash", ""),
		item("GET", s.http.URL+defaultPath+version, ""),
		item("GET", defaultPath, ""),
	}, ",") + `]}`
	s.as(reader, "POST", "/batch?api-version=2015-11-01", body).want(t, 200).in(t, &out)
	want := []int{200, 403, 403, 400, 400, 400, 400, 400, 400, 200, 400}
	for i, r := range out.Responses {
		if r.Status != want[i] || r.Headers["X-Ms-Request-Id"] == "" || r.Length != len(r.Content) {
			t.Errorf("%d: %d, want %d: %s", i, r.Status, want[i], r.Content)
		}
	}
	s.as("", "POST", "/batch", body).refused(t, 401, "InvalidAuthenticationToken")
}

// A policy is edited, or made, only where what the caller believes of it holds.
func TestPutConditions(t *testing.T) {
	s := newServer(t, options{})
	put := func(name, value string) answered {
		t.Helper()
		return s.call("PUT", defaultPath+version, policyBody, name, value)
	}
	put("If-Match", "*").refused(t, 412, "PreconditionFailed")
	first := put("If-None-Match", "*").want(t, 200).header.Get("ETag")
	put("If-None-Match", "*").refused(t, 412, "PreconditionFailed")
	second := s.call("PUT", defaultPath+version, `{"properties":{"virtualMachines":[]}}`, "If-Match", first).want(t, 200).header.Get("ETag")
	put("If-Match", first).refused(t, 412, "PreconditionFailed")
	if got := s.call("GET", defaultPath+version, "").want(t, 200).header.Get("ETag"); got != second {
		t.Errorf("ETag %s after a refusal, %s before", got, second)
	}
	put("If-Match", second).want(t, 200)
	put("", "").want(t, 200)
}

// Links are made of the public URL, or of the host that was asked.
func TestLinks(t *testing.T) {
	for _, public := range []string{"", "https://jit.example.net/"} {
		s := newServer(t, options{config: func(c *Config) { c.PublicURL = public }})
		s.manyPolicies(3)
		want := s.http.URL
		if public != "" {
			want = strings.TrimSuffix(public, "/")
		}
		var page azList
		path := "/subscriptions/" + subscription + "/providers/Microsoft.Security/jitNetworkAccessPolicies"
		s.call("GET", path+"?api-version=2015-06-01-PREVIEW&$top=2", "").want(t, 200).in(t, &page)
		link := page.NextLink
		if len(page.Value) != 2 || !strings.HasPrefix(link, want+path+"?api-version=2015-06-01-PREVIEW&$top=2&$skiptoken=") {
			t.Fatalf("%d, %s", len(page.Value), link)
		}
		page = azList{}
		// As Go's SDK sends it back: sorted, and encoded anew.
		s.call("GET", strings.NewReplacer(want, "", "$", "%24").Replace(link), "").want(t, 200).in(t, &page)
		if len(page.Value) != 1 || page.NextLink != "" {
			t.Errorf("%+v", page)
		}
	}
	for _, bad := range []string{"jit.example.net", "ftp://x", "https://", "https://x?y", "https://u@x"} {
		if _, err := New(Config{Engine: &control.Engine{}, PublicURL: bad}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
