package client

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// server starts h behind TLS, and a client of it.
func server(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	c, err := New(Config{URL: s.URL + "/", Token: "jgt_token", CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})})
	if err != nil {
		t.Fatal(err)
	}
	c.first = time.Millisecond
	t.Cleanup(c.Close)
	return c
}

const (
	vm     = "/subscriptions/s-1/resourceGroups/g (a)/providers/Microsoft.Compute/virtualMachines/web1"
	policy = "/subscriptions/s-1/resourceGroups/g/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies/default"
)

func all[T any](seq iter.Seq2[T, error]) ([]T, error) {
	var out []T
	for v, err := range seq {
		if err != nil {
			return out, err
		}
		out = append(out, v)
	}
	return out, nil
}

// Every method makes the call that the API answers.
func TestCalls(t *testing.T) {
	ctx := context.Background()
	end := time.Date(2026, 11, 22, 18, 55, 15, 489205700, time.UTC)
	escaped := strings.NewReplacer(" ", "%20", "(", "%28", ")", "%29").Replace(vm)
	ports := []InitiatePort{{Number: 22, AllowedSourceAddressPrefix: "203.0.113.7", End: end}, {Number: 3389, Duration: "PT1H"}}
	portsJSON := `[{"number":22,"allowedSourceAddressPrefix":"203.0.113.7","endTimeUtc":"2026-11-22T18:55:15.4892057Z"},{"number":3389,"duration":"PT1H"}]`
	of := func(err error, _ ...any) error { return err }
	type expect struct {
		call   string // method, path and query
		body   string
		once   bool
		match  string
		status int
		answer string
	}
	for name, test := range map[string]struct {
		run  func(*Client) error
		want expect
	}{
		"Policies":         {func(c *Client) error { _, err := all(c.Policies(ctx, "s-1", "", "")); return err }, expect{call: "GET /subscriptions/s-1/providers/Microsoft.Security/jitNetworkAccessPolicies?api-version=2020-01-01"}},
		"Policies, group":  {func(c *Client) error { _, err := all(c.Policies(ctx, "s-1", "g", "")); return err }, expect{call: "GET /subscriptions/s-1/resourceGroups/g/providers/Microsoft.Security/jitNetworkAccessPolicies?api-version=2020-01-01"}},
		"Policies, region": {func(c *Client) error { _, err := all(c.Policies(ctx, "s-1", "", "westeurope")); return err }, expect{call: "GET /subscriptions/s-1/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies?api-version=2020-01-01"}},
		"Policies, both":   {func(c *Client) error { _, err := all(c.Policies(ctx, "s-1", "g", "westeurope")); return err }, expect{call: "GET /subscriptions/s-1/resourceGroups/g/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies?api-version=2020-01-01"}},
		"Policy": {func(c *Client) error {
			_, _, err := c.Policy(ctx, PolicyID("s-1", "g", "westeurope", "default"))
			return err
		}, expect{call: "GET " + policy + "?api-version=2020-01-01"}},
		"PutPolicy": {func(c *Client) error {
			_, _, err := c.PutPolicy(ctx, policy, Policy{Kind: "Basic", Properties: PolicyProperties{VMs: []PolicyVM{{ID: vm, Ports: []PortRule{{Number: 22, Protocol: "TCP", AllowedSourceAddressPrefix: "*", MaxRequestAccessDuration: "PT3H"}}}}}}, `"7"`)
			return err
		}, expect{call: "PUT " + policy + "?api-version=2020-01-01", match: `"7"`,
			body: `{"kind":"Basic","properties":{"virtualMachines":[{"id":"` + vm + `","ports":[{"number":22,"protocol":"TCP","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT3H"}]}]}}`}},
		"DeletePolicy": {func(c *Client) error {
			there, err := c.DeletePolicy(ctx, policy)
			if there {
				return errors.New("204 says that it was not there")
			}
			return err
		}, expect{call: "DELETE " + policy + "?api-version=2020-01-01", status: 204}},
		"Initiate": {func(c *Client) error {
			_, err := c.Initiate(ctx, policy, InitiateRequest{VMs: []InitiateVM{{ID: vm, Ports: ports}}, Justification: "j"})
			return err
		}, expect{call: "POST " + policy + "/initiate?api-version=2020-01-01", status: 202, body: `{"virtualMachines":[{"id":"` + vm + `","ports":` + portsJSON + `}],"justification":"j"}`}},

		"VMs": {func(c *Client) error {
			_, err := all(c.VMs(ctx, VMFilter{Tab: "Configured", Scope: "/subscriptions/s-1", Search: "web&", PageSize: 5}))
			return err
		}, expect{call: "GET /api/v1/vms?scope=%2Fsubscriptions%2Fs-1&search=web%26&tab=Configured&top=5"}},
		"CountVMs":    {func(c *Client) error { _, err := c.CountVMs(ctx, ""); return err }, expect{call: "GET /api/v1/vms/counts"}},
		"VM":          {func(c *Client) error { _, _, err := c.VM(ctx, vm); return err }, expect{call: "GET /api/v1/vms" + escaped}},
		"PutVM":       {func(c *Client) error { _, err := c.PutVM(ctx, vm, VMInput{Location: "west", OS: "Linux"}); return err }, expect{call: "PUT /api/v1/vms" + escaped, body: `{"location":"west","osType":"Linux"}`}},
		"EditPorts":   {func(c *Client) error { _, _, err := c.EditPorts(ctx, vm, nil, `"3"`); return err }, expect{call: "PATCH /api/v1/vms" + escaped, body: `{"ports":[]}`, once: true, match: `"3"`}},
		"DeleteVM":    {func(c *Client) error { return c.DeleteVM(ctx, vm) }, expect{call: "DELETE /api/v1/vms" + escaped, status: 204}},
		"RequestVM":   {func(c *Client) error { _, err := c.RequestVM(ctx, vm, ports, "why"); return err }, expect{call: "POST /api/v1/vms" + escaped + "/request", status: 202, once: true, body: `{"ports":` + portsJSON + `,"justification":"why"}`}},
		"RevokeAgent": {func(c *Client) error { return c.RevokeAgent(ctx, vm, "stolen") }, expect{call: "POST /api/v1/vms" + escaped + "/agent/revoke", status: 204, once: true, body: `{"reason":"stolen"}`}},

		"Requests": {func(c *Client) error {
			_, err := all(c.Requests(ctx, RequestFilter{VM: vm, Status: "Pending", Mine: true, Open: true, Since: end}))
			return err
		}, expect{call: "GET /api/v1/requests?mine=true&open=true&since=2026-11-22T18%3A55%3A15.4892057Z&status=Pending&vm=" + "%2Fsubscriptions%2Fs-1%2FresourceGroups%2Fg+%28a%29%2Fproviders%2FMicrosoft.Compute%2FvirtualMachines%2Fweb1"}},
		"Request": {func(c *Client) error {
			_, err := c.Request(ctx, InitiateRequest{VMs: []InitiateVM{{ID: vm, Ports: ports}}})
			return err
		}, expect{call: "POST /api/v1/requests", status: 202, once: true, body: `{"virtualMachines":[{"id":"` + vm + `","ports":` + portsJSON + `}]}`}},
		"GetRequest": {func(c *Client) error { _, err := c.GetRequest(ctx, "01J/.."); return err }, expect{call: "GET /api/v1/requests/01J%2F.."}},
		"Revoke":     {func(c *Client) error { _, err := c.Revoke(ctx, "01J", ""); return err }, expect{call: "POST /api/v1/requests/01J/revoke", once: true, body: `{}`}},
		"Extend":     {func(c *Client) error { _, err := c.Extend(ctx, "01J", "PT1H", "more"); return err }, expect{call: "POST /api/v1/requests/01J/extend", once: true, body: `{"duration":"PT1H","reason":"more"}`}},
		"Approve":    {func(c *Client) error { _, err := c.Approve(ctx, "01J", "fine", "PT30M"); return err }, expect{call: "POST /api/v1/requests/01J/approve", once: true, body: `{"comment":"fine","atMost":"PT30M"}`}},
		"Deny":       {func(c *Client) error { _, err := c.Deny(ctx, "01J", "no"); return err }, expect{call: "POST /api/v1/requests/01J/deny", once: true, body: `{"comment":"no"}`}},

		"PendingPolicies": {func(c *Client) error { _, err := all(c.PendingPolicies(ctx)); return err }, expect{call: "GET /api/v1/policies/pending"}},
		"PushPolicy":      {func(c *Client) error { _, err := c.PushPolicy(ctx, []byte(`{"payload":"eA=="}`)); return err }, expect{call: "POST /api/v1/policies/pending", once: true, body: `{"payload":"eA=="}`}},
		"Trust":           {func(c *Client) error { _, err := c.Trust(ctx); return err }, expect{call: "GET /api/v1/trust.json"}},
		"GetApproval":     {func(c *Client) error { a, _, err := c.GetApproval(ctx, policy); return of(err, a) }, expect{call: "GET /api/v1/policies" + policy + "/approval"}},
		"SetApproval": {func(c *Client) error {
			return c.SetApproval(ctx, policy, &Approval{Approvers: 2, Role: "Owner"}, `"1"`)
		}, expect{call: "PUT /api/v1/policies" + policy + "/approval", match: `"1"`, body: `{"approvers":2,"role":"Owner"}`}},
		"no approval": {func(c *Client) error { return c.SetApproval(ctx, policy, nil, "") }, expect{call: "DELETE /api/v1/policies" + policy + "/approval", status: 204, answer: " "}},

		"Activities": {func(c *Client) error {
			_, err := all(c.Activities(ctx, ActivityFilter{Scope: "/", Event: "request.initiated", Actor: "a b", From: end, Oldest: true, PageSize: 9}))
			return err
		}, expect{call: "GET /api/v1/activity?actor=a+b&event=request.initiated&from=2026-11-22T18%3A55%3A15.4892057Z&order=oldest&scope=%2F&top=9"}},
		"Scopes":   {func(c *Client) error { _, err := all(c.Scopes(ctx)); return err }, expect{call: "GET /api/v1/scopes"}},
		"SetScope": {func(c *Client) error { _, err := c.SetScope(ctx, "/subscriptions/s-1", false, "frozen"); return err }, expect{call: "PUT /api/v1/scopes", body: `{"scope":"/subscriptions/s-1","enabled":false,"reason":"frozen"}`}},
		"Joins":    {func(c *Client) error { _, err := all(c.Joins(ctx)); return err }, expect{call: "GET /api/v1/joins"}},
		"CreateJoin": {func(c *Client) error {
			_, _, err := c.CreateJoin(ctx, JoinInput{Scope: vm, Uses: 1, Valid: "PT1H"})
			return err
		}, expect{call: "POST /api/v1/joins", status: 201, body: `{"scope":"` + vm + `","uses":1,"valid":"PT1H"}`}},
		"RevokeJoin":  {func(c *Client) error { return c.RevokeJoin(ctx, "ab12") }, expect{call: "DELETE /api/v1/joins/ab12", status: 204}},
		"Roles":       {func(c *Client) error { _, err := all(c.Roles(ctx)); return err }, expect{call: "GET /api/v1/roles"}},
		"PutRole":     {func(c *Client) error { return c.PutRole(ctx, Role{Name: "my role", Actions: []string{"*/read"}}) }, expect{call: "PUT /api/v1/roles/my%20role", body: `{"actions":["*/read"]}`}},
		"DeleteRole":  {func(c *Client) error { return c.DeleteRole(ctx, "r") }, expect{call: "DELETE /api/v1/roles/r", status: 204}},
		"Assignments": {func(c *Client) error { _, err := all(c.Assignments(ctx, "/")); return err }, expect{call: "GET /api/v1/assignments?scope=%2F"}},
		"Assign":      {func(c *Client) error { return c.Assign(ctx, Assignment{"local:bob", "Reader", "/"}) }, expect{call: "POST /api/v1/assignments", status: 201, once: true, body: `{"principal":"local:bob","role":"Reader","scope":"/"}`}},
		"Unassign":    {func(c *Client) error { return c.Unassign(ctx, Assignment{"local:bob", "Reader", "/"}) }, expect{call: "DELETE /api/v1/assignments?principal=local%3Abob&role=Reader&scope=%2F", status: 204}},
		"Tokens":      {func(c *Client) error { _, err := all(c.Tokens(ctx)); return err }, expect{call: "GET /api/v1/tokens"}},
		"CreateToken": {func(c *Client) error {
			_, _, err := c.CreateToken(ctx, TokenInput{Name: "ci", Role: "Reader"})
			return err
		}, expect{call: "POST /api/v1/tokens", status: 201, body: `{"name":"ci","role":"Reader"}`}},
		"RevokeToken": {func(c *Client) error { return c.RevokeToken(ctx, "ab12") }, expect{call: "DELETE /api/v1/tokens/ab12", status: 204}},
		"WhoAmI":      {func(c *Client) error { _, err := c.WhoAmI(ctx); return err }, expect{call: "GET /api/v1/whoami"}},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			c := server(t, func(w http.ResponseWriter, r *http.Request) {
				calls++
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				if got := r.Method + " " + r.URL.RequestURI(); got != test.want.call {
					t.Errorf("%s\nexpected\n%s", got, test.want.call)
				}
				if string(body) != test.want.body {
					t.Errorf("body %s\nexpected %s", body, test.want.body)
				}
				if got := r.Header.Get("Authorization"); got != "Bearer jgt_token" {
					t.Errorf("Authorization %q", got)
				}
				if got := r.Header.Get("Content-Type"); (got == "application/json") != (test.want.body != "") {
					t.Errorf("Content-Type %q", got)
				}
				if has := r.Header.Get("Idempotency-Key") != ""; has != test.want.once {
					t.Errorf("Idempotency-Key: %v", has)
				}
				if got := r.Header.Get("If-Match"); got != test.want.match {
					t.Errorf("If-Match %q", got)
				}
				w.Header().Set("ETag", `"9"`)
				w.WriteHeader(max(test.want.status, 200))
				if test.want.status != 204 {
					fmt.Fprint(w, `{}`)
				}
			})
			if err := test.run(c); err != nil {
				t.Error(err)
			}
			if calls != 1 {
				t.Errorf("%d calls", calls)
			}
		})
	}
}

// What the API says is read whole.
func TestAnswers(t *testing.T) {
	ctx := context.Background()
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"4"`)
		if strings.HasPrefix(r.URL.Path, "/api/v1/vms") {
			fmt.Fprint(w, `{"id":"v","open":[{"request":"01J","requestor":"barbara","number":22,"status":"Initiated"}],"lastAccess":"2026-11-22T18:55:15Z"}`)
			return
		}
		fmt.Fprint(w, `{"id":"01J","policy":"p","startTimeUtc":"2026-11-22T18:50:15.4895029Z","requestor":"barbara","open":true,"futureWord":1,
			"approval":{"approvers":2,"role":"Owner","until":"2026-11-22T19:50:15Z","verdicts":[{"name":"a","approve":true,"atMost":"PT1H"}]},
			"virtualMachines":[{"id":"`+vm+`","ports":[{"number":22,"allowedSourceAddressPrefixes":["1.2.3.4","5.6.7.8"],"endTimeUtc":"2026-11-22T18:55:15.4892057Z","status":"Initiated","statusReason":"UserRequested",
			"outer":{"name":"azure","status":"Initiating","error":"azure answered 503","openUntil":"2026-11-22T18:55:15Z"}}]}]}`)
	})
	r, err := c.GetRequest(ctx, "01J")
	if err != nil {
		t.Fatal(err)
	}
	port := r.VMs[0].Ports[0]
	if r.ID != "01J" || !r.Open || r.Start.Nanosecond() != 489502900 || r.Approval.Approvers != 2 || r.Approval.Verdicts[0].AtMost != "PT1H" ||
		port.Status != "Initiated" || len(port.AllowedSourceAddressPrefixes) != 2 || port.Outer.Error != "azure answered 503" || port.Outer.Until.IsZero() {
		t.Errorf("%+v", r)
	}
	v, etag, err := c.VM(ctx, vm)
	if err != nil || etag != `"4"` || len(v.Open) != 1 || v.Open[0].Request != "01J" || v.Open[0].Number != 22 || v.LastAccess.IsZero() {
		t.Errorf("ETag %q, %+v, %v", etag, v, err)
	}
}

func TestPages(t *testing.T) {
	ctx := context.Background()
	var asked []string
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.RequestURI())
		switch {
		case strings.HasPrefix(r.URL.Path, "/api/"):
			n := len(asked)
			next := fmt.Sprintf(`,"next":"k%d&"`, n)
			if n == 3 {
				next = ""
			}
			fmt.Fprintf(w, `{"value":[{"id":"%d-1"},{"id":"%d-2"}]%s}`, n, n, next)
		case r.URL.Query().Get("$skiptoken") == "":
			// However the link is written, the host we know is asked.
			fmt.Fprintf(w, `{"value":[{"name":"a"}],"nextLink":"https://elsewhere.invalid/x?api-version=2020-01-01&$skiptoken=t"}`)
		default:
			fmt.Fprint(w, `{"value":[{"name":"b"}]}`)
		}
	})
	got, err := all(c.VMs(ctx, VMFilter{Search: "w"}))
	if err != nil || len(got) != 6 || got[5].ID != "3-2" {
		t.Errorf("%v, %v", got, err)
	}
	if want := []string{"/api/v1/vms?search=w", "/api/v1/vms?after=k1%26&search=w", "/api/v1/vms?after=k2%26&search=w"}; !slices.Equal(asked, want) {
		t.Errorf("%q", asked)
	}
	asked = nil
	policies, err := all(c.Policies(ctx, "s", "", ""))
	if err != nil || len(policies) != 2 || policies[1].Name != "b" || len(asked) != 2 {
		t.Errorf("%v, %v, %q", policies, err, asked)
	}
	// Who stops early asks for no more.
	asked = nil
	for range c.VMs(ctx, VMFilter{}) {
		break
	}
	if len(asked) != 1 {
		t.Errorf("%q", asked)
	}
}

func TestErrors(t *testing.T) {
	ctx := context.Background()
	for name, test := range map[string]struct {
		status int
		header http.Header
		body   string
		want   Error
		text   string
	}{
		"Azure's envelope": {403, http.Header{"X-Ms-Request-Id": {"r-1"}, "X-Ms-Error-Code": {"AuthorizationFailed"}}, `{"error":{"code":"AuthorizationFailed","message":"The client 'x' may\nnot."}}`,
			Error{Status: 403, Code: "AuthorizationFailed", Message: "The client 'x' may not.", RequestID: "r-1"}, "The client 'x' may not."},
		"only a header": {412, http.Header{"X-Ms-Error-Code": {"PreconditionFailed"}}, ``, Error{Status: 412, Code: "PreconditionFailed"}, "the control plane answered 412 Precondition Failed"},
		"no JSON":       {502, nil, "<html>\x1b[2J", Error{Status: 502}, "the control plane answered 502 Bad Gateway"},
		"our fault":     {500, http.Header{"X-Ms-Request-Id": {"r-2"}}, `{"error":{"code":"InternalServerError","message":"Sorry."}}`, Error{Status: 500, Code: "InternalServerError", Message: "Sorry.", RequestID: "r-2"}, "Sorry. (request r-2)"},
		"a redirect":    {307, http.Header{"Location": {"https://elsewhere.invalid/"}}, ``, Error{Status: 307}, "the control plane answered 307 Temporary Redirect"},
		"a long wait":   {429, http.Header{"Retry-After": {"3600"}}, `{"error":{"code":"TooManyRequests","message":"Later."}}`, Error{Status: 429, Code: "TooManyRequests", Message: "Later.", RetryAfter: time.Hour}, "Later."},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			c := server(t, func(w http.ResponseWriter, _ *http.Request) {
				calls++
				for k, v := range test.header {
					w.Header()[k] = v
				}
				w.WriteHeader(test.status)
				fmt.Fprint(w, test.body)
			})
			_, err := c.GetRequest(ctx, "x")
			e, ok := errors.AsType[*Error](err)
			if !ok || *e != test.want || e.Error() != test.text || calls != 1 {
				t.Errorf("%+v (%v) after %d calls", e, err, calls)
			}
			if IsPrecondition(err) != (test.status == 412) || IsNotFound(err) {
				t.Error("taken for another error")
			}
		})
	}
}

func TestNotAControlPlane(t *testing.T) {
	ctx := context.Background()
	for name, test := range map[string]struct {
		answer func(http.ResponseWriter)
		want   string
	}{
		"a page":    {func(w http.ResponseWriter) { fmt.Fprint(w, "<html>") }, "is this a control plane?"},
		"too much":  {func(w http.ResponseWriter) { w.Write(bytes.Repeat([]byte(" "), maxAnswer+1)) }, "more than"},
		"cut short": {func(w http.ResponseWriter) { w.Header().Set("Content-Length", "100"); fmt.Fprint(w, "{}") }, "did not come whole"},
	} {
		c := server(t, func(w http.ResponseWriter, _ *http.Request) { test.answer(w) })
		if _, err := c.WhoAmI(ctx); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := server(t, nil)
	if stranger, err := New(Config{URL: c.base.String(), Token: "t"}); err != nil {
		t.Error(err)
	} else if _, err := stranger.WhoAmI(ctx); err == nil || !strings.Contains(err.Error(), "cannot reach the control plane at 127.0.0.1") || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an unknown certificate: %v", err)
	}
	for _, id := range []string{"/subscriptions/../x", "/subscriptions/./x", "/subscriptions//x", ""} {
		if _, _, err := c.VM(ctx, id); err == nil || !strings.Contains(err.Error(), "is not a resource id") {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []Config{
		{URL: "http://host", Token: "t"}, {URL: "host:8443", Token: "t"}, {URL: "https://", Token: "t"}, {URL: "https://u:p@host", Token: "t"},
		{URL: "https://host?x=1", Token: "t"}, {URL: "https://host"}, {URL: "https://host", Token: "a b"}, {URL: "https://host", Token: "a\n"}, {URL: "https://host", Token: "t", CA: []byte("x")},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v is taken", c)
		}
	}
}

// A server that is busy is asked again, with the same idempotency key, after
// as long as it says.
func TestRetry(t *testing.T) {
	ctx := context.Background()
	busy := func(status int, times int) (func(http.ResponseWriter, *http.Request), *[]string) {
		var keys []string
		return func(w http.ResponseWriter, r *http.Request) {
			keys = append(keys, r.Header.Get("Idempotency-Key"))
			body, _ := io.ReadAll(r.Body)
			if string(body) != `{"reason":"r"}` && r.Method == http.MethodPost && !strings.HasSuffix(r.URL.Path, "joins") {
				t.Errorf("body %q", body)
			}
			if len(keys) <= times {
				if status == http.StatusConflict {
					w.Header().Set("Retry-After", "1")
				}
				w.WriteHeader(status)
				return
			}
			fmt.Fprint(w, `{}`)
		}, &keys
	}
	for name, test := range map[string]struct {
		status, times, calls int
		ok                   bool
	}{
		"busy twice":    {503, 2, 3, true},
		"too many":      {429, 1, 2, true},
		"busy for long": {503, 9, maxTries, false},
		"in use":        {409, 1, 2, true},
		"broken":        {500, 1, 1, false},
		"refused":       {400, 1, 1, false},
	} {
		t.Run(name, func(t *testing.T) {
			h, keys := busy(test.status, test.times)
			_, err := server(t, h).Revoke(ctx, "x", "r")
			if (err == nil) != test.ok || len(*keys) != test.calls {
				t.Errorf("%v after %d calls", err, len(*keys))
			}
			for _, k := range *keys {
				if k == "" || k != (*keys)[0] {
					t.Errorf("keys %q", *keys)
				}
			}
		})
	}
	h, keys := busy(503, 1)
	if _, _, err := server(t, h).CreateJoin(ctx, JoinInput{}); err == nil || len(*keys) != 1 {
		t.Errorf("a secret is asked for %d times, %v", len(*keys), err)
	}
	short, cancel := context.WithTimeout(ctx, 3*time.Second) // a slow machine has its answer by then
	defer cancel()
	h, _ = busy(503, 9)
	c := server(t, h)
	c.first = time.Hour
	if _, err := c.Revoke(short, "x", "r"); statusOf(err) != 503 {
		t.Errorf("after the end of patience: %v", err)
	}
}

func TestRetryAfter(t *testing.T) {
	date := "Fri, 27 Nov 2026 12:00:00 GMT"
	for value, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, "-5": 0, "x": 0, "99999999": 24 * time.Hour, "Fri, 27 Nov 2026 12:00:07 GMT": 7 * time.Second, "Fri, 27 Nov 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}); got != want {
			t.Errorf("%q is %v", value, got)
		}
	}
}

func TestBackoff(t *testing.T) {
	for try := range 100 {
		if d := backoff(firstWait, try); d < firstWait/2 || d > maxWait {
			t.Fatalf("try %d waits %v", try, d)
		}
	}
}

func TestActivityCSV(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.RequestURI() != "/api/v1/activity?format=csv&scope=%2F" {
			w.WriteHeader(404)
			return
		}
		fmt.Fprint(w, "seq,time\r\n1,x\r\n")
	})
	var out bytes.Buffer
	if err := c.ActivityCSV(context.Background(), ActivityFilter{Scope: "/"}, &out); err != nil || out.String() != "seq,time\r\n1,x\r\n" {
		t.Errorf("%q, %v", &out, err)
	}
	if err := c.ActivityCSV(context.Background(), ActivityFilter{}, &out); !IsNotFound(err) {
		t.Error(err)
	}
}

// A stream goes on where it broke, and shows every line once.
func TestFollow(t *testing.T) {
	var mu sync.Mutex
	var from []string
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		from = append(from, r.Header.Get("Last-Event-ID")+" "+r.URL.RequestURI())
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		line := func(seq int) string {
			b, _ := json.Marshal(Activity{Seq: uint64(seq), Event: "request.initiated"})
			return fmt.Sprintf("id: %d\nevent: request.initiated\ndata: %s\n\n", seq, b)
		}
		switch len(from) {
		case 1:
			fmt.Fprint(w, "retry: 2000\n\n: alive\n\n", line(8), strings.ReplaceAll(line(9), "\n", "\r\n"), "data: {half")
		case 2:
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(503)
		case 3:
			fmt.Fprint(w, line(9), line(10))
		case 4:
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, line(666))
		case 5: // silence
			w.WriteHeader(200)
			http.NewResponseController(w).Flush()
			mu.Unlock()
			<-r.Context().Done()
			mu.Lock()
		default:
			fmt.Fprint(w, line(11))
		}
	})
	c.silent = 300 * time.Millisecond
	var got []uint64
	for a, err := range c.Follow(context.Background(), ActivityFilter{Scope: "/"}, 7) {
		if err != nil {
			t.Fatal(err)
		}
		if got = append(got, a.Seq); a.Seq == 11 {
			break
		}
	}
	if !slices.Equal(got, []uint64{8, 9, 10, 11}) {
		t.Errorf("%v", got)
	}
	mu.Lock()
	defer mu.Unlock()
	const path = " /api/v1/activity/stream?scope=%2F"
	if want := []string{"7" + path, "9" + path, "9" + path, "10" + path, "10" + path, "10" + path}; !slices.Equal(from, want) {
		t.Errorf("%q", from)
	}
}

// A stream that says nothing but that it lives is not broken.
func TestFollowPatiently(t *testing.T) {
	calls := 0
	c := server(t, func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("Content-Type", "text/event-stream")
		for range 30 {
			fmt.Fprint(w, ": alive\n\n")
			http.NewResponseController(w).Flush()
			time.Sleep(100 * time.Millisecond)
		}
		fmt.Fprint(w, "data: {\"seq\":1}\n\n")
	})
	c.silent = 2 * time.Second
	for a, err := range c.Follow(context.Background(), ActivityFilter{}, 0) {
		if err != nil || a.Seq != 1 {
			t.Errorf("%+v, %v", a, err)
		}
		break
	}
	if calls != 1 {
		t.Errorf("%d streams", calls)
	}
}

func TestFollowEnds(t *testing.T) {
	c := server(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(403) })
	if _, err := all(c.Follow(context.Background(), ActivityFilter{}, 0)); statusOf(err) != 403 {
		t.Errorf("refused: %v", err)
	}
	c = server(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := all(c.Follow(ctx, ActivityFilter{}, 0)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("at the end of ctx: %v", err)
	}
}

// Whatever a stream says is read or refused, within bounds.
func FuzzEvents(f *testing.F) {
	f.Add([]byte("id: 1\nevent: x\ndata: {\"seq\":1}\n\n"))
	f.Add([]byte("data\r\n\r\ndata:a\ndata: b\n\n: c\n"))
	f.Add([]byte("data: \x00\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		total := 0
		err := events(bytes.NewReader(in), func() {}, func(data []byte) error {
			total += len(data)
			var a Activity
			return json.Unmarshal(data, &a)
		})
		if err == nil || total > len(in) {
			t.Errorf("%v after %d bytes of %d", err, total, len(in))
		}
	})
}

// Whatever comes as an error is one line.
func FuzzError(f *testing.F) {
	f.Add(403, "AuthorizationFailed", `{"error":{"code":"a","message":"b\nc"}}`)
	f.Add(500, "\x1b[2J", `{"error":null}`)
	f.Fuzz(func(t *testing.T, status int, code, body string) {
		e := errorOf(&http.Response{StatusCode: status, Header: http.Header{"X-Ms-Error-Code": {code}, "X-Ms-Request-Id": {code}}, Body: io.NopCloser(strings.NewReader(body))})
		if s := e.Error() + e.Code; strings.ContainsAny(s, "\n\r\x1b") || len(s) > 3*4*1000+200 {
			t.Errorf("%q", s)
		}
	})
}
