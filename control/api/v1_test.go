package api

import (
	"bufio"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
)

const (
	portsBody = `{"ports":[{"number":22,"protocol":"TCP","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT3H"}]}`
	askBody   = `{"ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"203.0.113.7"}],"justification":"patching"}`
)

func vmPath(name string) string { return "/api/v1/vms" + machine(name) }

// guard puts a machine into the inventory and its port 22 under default.
func (s *server) guard(name string) answered {
	s.t.Helper()
	s.call("PUT", vmPath(name), `{"location":"`+region+`"}`).want(s.t, 200)
	return s.call("PATCH", vmPath(name), portsBody).want(s.t, 200)
}

// one makes a machine with a port under default, and a request for it.
func (s *server) one(name string) (request string) {
	s.t.Helper()
	s.guard(name)
	var made list[requestOut]
	s.call("POST", vmPath(name)+"/request", askBody).want(s.t, 202).in(s.t, &made)
	if len(made.Value) != 1 {
		s.t.Fatalf("%+v", made)
	}
	return made.Value[0].ID
}

func TestMachines(t *testing.T) {
	s := newServer(t, options{})
	var vm vmOut
	s.call("PUT", vmPath("vm1"), `{"location":"westeurope","osType":"Linux","address":"10.0.0.4","publicIpAddress":"203.0.113.99"}`).want(t, 200).in(t, &vm)
	if vm.ID != machine("vm1") || vm.Name != "vm1" || vm.Tab != control.NotConfigured || vm.OS != "Linux" || vm.PublicIPAddress != "203.0.113.99" || vm.AgentStatus != "no agent yet" {
		t.Errorf("%+v", vm)
	}
	s.call("PUT", vmPath("vm2"), `{"unsupportedReason":"no network security group"}`).want(t, 200)

	// Ports by PATCH, with the ETag of what was read.
	first := s.call("GET", vmPath("vm1"), "").want(t, 200).header.Get("ETag")
	edited := s.call("PATCH", vmPath("vm1"), portsBody, "If-Match", first).want(t, 200)
	if second := edited.header.Get("ETag"); second == first || second == "" {
		t.Errorf("ETag %s, then %s", first, second)
	}
	s.call("PATCH", vmPath("vm1"), `{"ports":[]}`, "If-Match", first).refused(t, 412, "PreconditionFailed")
	s.call("PATCH", vmPath("vm1"), `{"ports":[]}`, "If-Match", `W/`+first).refused(t, 412, "PreconditionFailed")
	edited.in(t, &vm)
	if vm.Tab != control.Configured || len(vm.Ports) != 1 || *vm.Ports[0].Number != 22 || len(vm.Policies) != 1 || vm.Policies[0] != defaultPath || vm.State != control.Succeeded {
		t.Errorf("%+v", vm)
	}

	var n counts
	s.call("GET", "/api/v1/vms/counts", "").want(t, 200).in(t, &n)
	if n != (counts{1, 0, 1}) {
		t.Errorf("%+v", n)
	}
	var page list[vmOut]
	s.call("GET", "/api/v1/vms?tab=Unsupported", "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 || page.Value[0].Reason != "no network security group" {
		t.Errorf("%+v", page)
	}
	s.call("GET", "/api/v1/vms?top=1&scope="+groupPath, "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 || page.Next == "" {
		t.Fatalf("%+v", page)
	}
	next := page.Next
	page = list[vmOut]{}
	s.call("GET", "/api/v1/vms?top=1&after="+next, "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 || page.Value[0].Name != "vm2" || page.Next != "" {
		t.Errorf("%+v", page)
	}
	page = list[vmOut]{}
	s.call("GET", "/api/v1/vms?search=VM2", "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 {
		t.Errorf("%+v", page)
	}
	s.call("DELETE", vmPath("vm2"), "").want(t, 204)
	s.call("GET", vmPath("vm2"), "").refused(t, 404, "ResourceNotFound")
	if a := s.call("DELETE", vmPath("vm1"), ""); a.status != 409 {
		t.Errorf("a machine that a policy names: %d %s", a.status, a.body)
	}
	for _, q := range []string{"tab=configured", "tab=x", "top=0", "top=-1", "top=x", "top=1&top=2", "scope=x", "scope=/subscriptions/../x"} {
		if a := s.unchecked(s.owner, "GET", "/api/v1/vms?"+q, ""); a.status != 400 {
			t.Errorf("%s: %d %s", q, a.status, a.body)
		}
	}
}

func TestRequests(t *testing.T) {
	s := newServer(t, options{})
	id := s.one("vm1")
	var r requestOut
	s.call("GET", "/api/v1/requests/"+id, "").want(t, 200).in(t, &r)
	if r.ID != id || r.Policy != defaultPath || r.Requestor != "admin" || r.Principal != "local:admin" || !r.Open || r.Justification != "patching" ||
		r.VMs[0].Ports[0].Status != control.Initiating || r.VMs[0].Ports[0].Grant == "" || !r.VMs[0].Ports[0].End.time().Equal(s.clock.Now().Add(time.Hour)) {
		t.Errorf("%+v", r)
	}
	s.clock.forward(30 * time.Minute)
	s.call("POST", "/api/v1/requests/"+id+"/extend", `{"duration":"PT2H","reason":"more to do"}`).want(t, 200).in(t, &r)
	if end := r.VMs[0].Ports[0].End.time(); !end.Equal(s.clock.Now().Add(2 * time.Hour)) {
		t.Errorf("extended to %s", end)
	}
	s.call("POST", "/api/v1/requests/"+id+"/extend", `{"duration":"PT4H"}`).refused(t, 400, "InvalidInitiateInput")
	for _, body := range []string{`{}`, `{"duration":"1h"}`, `{"duration":"PT0S"}`, `{"duration":"PT1H","x":1}`, `{"duration":3600}`, ``} {
		if a := s.unchecked(s.owner, "POST", "/api/v1/requests/"+id+"/extend", body); a.status != 400 {
			t.Errorf("%s: %d %s", body, a.status, a.body)
		}
	}
	s.call("POST", "/api/v1/requests/"+id+"/revoke", "").want(t, 200).in(t, &r)
	if p := r.VMs[0].Ports[0]; p.Status != control.Revoked || p.Reason != control.UserRequested || r.Open {
		t.Errorf("%+v", r)
	}
	s.call("GET", "/api/v1/requests/01ARZ3NDEKTSV4RRFFQ69G5FAV", "").want(t, 404)

	// Several machines by one call.
	s.guard("vm2")
	var made, page list[requestOut]
	both := `{"virtualMachines":[{"id":"` + machine("vm1") + `","ports":[{"number":22,"duration":"PT1H"}]},{"id":"` + machine("vm2") + `","ports":[{"number":"22","endTimeUtc":"` +
		s.clock.Now().Add(time.Hour).Format("2006-01-02T15:04:05.000000000-07:00") + `"}]}]}`
	s.call("POST", "/api/v1/requests", both).want(t, 202).in(t, &made)
	if len(made.Value) != 1 || len(made.Value[0].VMs) != 2 || made.Value[0].VMs[1].Ports[0].One != "127.0.0.1" {
		t.Errorf("%+v", made)
	}
	for query, want := range map[string]int{"": 2, "?open=true": 1, "?mine=true": 2, "?status=Revoked": 1, "?vm=" + machine("vm2"): 1, "?vm=" + machine("vm9"): 0,
		"?policy=" + defaultPath: 2, "?scope=" + groupPath: 2, "?scope=/subscriptions/other": 0, "?since=" + s.clock.Now().Format(time.RFC3339): 1} {
		page = list[requestOut]{}
		s.call("GET", "/api/v1/requests"+query, "").want(t, 200).in(t, &page)
		if len(page.Value) != want {
			t.Errorf("%s: %d, want %d", query, len(page.Value), want)
		}
	}
	page = list[requestOut]{}
	s.call("GET", "/api/v1/requests?top=1", "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 || page.Value[0].ID != made.Value[0].ID || page.Next == "" { // newest first
		t.Fatalf("%+v", page)
	}
	next := page.Next
	page = list[requestOut]{}
	s.call("GET", "/api/v1/requests?top=1&after="+next, "").want(t, 200).in(t, &page)
	if len(page.Value) != 1 || page.Value[0].ID != id || page.Next != "" {
		t.Errorf("%+v", page)
	}
	var hers list[requestOut]
	s.as(s.person("ann", "Owner", control.Everywhere), "GET", "/api/v1/requests?mine=true", "").want(t, 200).in(t, &hers)
	if len(hers.Value) != 0 {
		t.Errorf("ann's own: %+v", hers)
	}
	for _, q := range []string{"open=perhaps", "status=Open", "vm=x", "policy=x", "policy=" + machine("vm1"), "since=yesterday", "scope=x"} {
		if a := s.unchecked(s.owner, "GET", "/api/v1/requests?"+q, ""); a.status != 400 {
			t.Errorf("%s: %d %s", q, a.status, a.body)
		}
	}
}

func TestApproval(t *testing.T) {
	s := newServer(t, options{})
	s.guard("vm1")
	const path = "/api/v1/policies" + defaultPath + "/approval"
	var a approvalOut
	first := s.call("GET", path, "").want(t, 200)
	if first.in(t, &a); a.Approval != nil || a.Policy != defaultPath {
		t.Errorf("%+v", a)
	}
	set := s.call("PUT", path, `{"approvers":1,"role":"SecurityAdmin","justification":true,"expires":"PT30M"}`, "If-Match", first.header.Get("ETag")).want(t, 200)
	if set.in(t, &a); a.Approval == nil || a.Approval.Approvers != 1 {
		t.Errorf("%+v", a)
	}
	s.call("PUT", path, `{"approvers":2,"role":"SecurityAdmin"}`, "If-Match", first.header.Get("ETag")).refused(t, 412, "PreconditionFailed")

	ann, bob := s.person("ann", "SecurityAdmin", control.Everywhere), s.person("bob", "SecurityAdmin", control.Everywhere)
	ask := func() string {
		t.Helper()
		var made list[requestOut]
		s.as(ann, "POST", vmPath("vm1")+"/request", askBody).want(t, 202).in(t, &made)
		if p := made.Value[0].VMs[0].Ports[0]; p.Status != control.Pending || made.Value[0].Approval == nil || p.Duration != "PT1H" {
			t.Errorf("%+v", made.Value[0])
		}
		return made.Value[0].ID
	}
	id := ask()
	// Azure's API has no word for it.
	var p azPolicy
	s.call("GET", defaultPath+version, "").want(t, 200).in(t, &p)
	if got := p.Properties.Requests[0].VMs[0].Ports[0]; got.Status != control.Initiating || got.Reason != control.UserRequested {
		t.Errorf("%+v", got)
	}
	if a := s.as(ann, "POST", "/api/v1/requests/"+id+"/approve", `{"comment":"mine"}`); a.status != 403 {
		t.Errorf("one's own: %d %s", a.status, a.body)
	}
	var r requestOut
	s.as(bob, "POST", "/api/v1/requests/"+id+"/approve", `{"comment":"fine","atMost":"PT20M"}`).want(t, 200).in(t, &r)
	if got := r.VMs[0].Ports[0]; got.Status != control.Initiating || !got.End.time().Equal(s.clock.Now().Add(20*time.Minute)) ||
		len(r.Approval.Verdicts) != 1 || r.Approval.Verdicts[0].AtMost != "PT20M" || r.Approval.Verdicts[0].Name != "bob@contoso.com" {
		t.Errorf("%+v", r)
	}
	id = ask()
	s.as(bob, "POST", "/api/v1/requests/"+id+"/deny", `{"comment":"no"}`).want(t, 200).in(t, &r)
	if got := r.VMs[0].Ports[0]; got.Status != control.Revoked || got.Reason != control.Denied {
		t.Errorf("%+v", r)
	}
	s.call("GET", defaultPath+version, "").want(t, 200).in(t, &p)
	for _, q := range p.Properties.Requests {
		if got := q.VMs[0].Ports[0]; got.Status == control.Pending || got.Reason == control.Denied {
			t.Errorf("not Azure's words: %+v", got)
		}
	}
	s.call("DELETE", path, "").want(t, 204)
	if s.call("GET", path, "").in(t, &a); false {
		t.Error(a)
	}
	s.unchecked(s.owner, "PUT", path, `{"approvers":1,"role":"SecurityAdmin","who":"me"}`).refused(t, 400, "InvalidRequestContent")
}

// A policy that a person has to sign is Updating until they did.
func TestPendingPolicies(t *testing.T) {
	s := newServer(t, options{unsigned: true})
	var vm vmOut
	s.guard("vm1").in(t, &vm)
	if vm.State != control.Updating {
		t.Errorf("%+v", vm)
	}
	var waiting list[pendingOut]
	s.call("GET", "/api/v1/policies/pending", "").want(t, 200).in(t, &waiting)
	if len(waiting.Value) != 1 || waiting.Value[0].VM != machine("vm1") {
		t.Fatalf("%+v", waiting)
	}
	e := policy.Envelope{Type: policy.TypePolicy, Payload: waiting.Value[0].Payload}
	if err := e.Sign(s.realm.Policy); err != nil {
		t.Fatal(err)
	}
	var got acceptedOut
	s.call("POST", "/api/v1/policies/pending", string(e.Encode())).want(t, 200).in(t, &got)
	if !got.Done || got.VM != machine("vm1") || got.Version != waiting.Value[0].Version {
		t.Errorf("%+v", got)
	}
	if s.call("GET", vmPath("vm1"), "").want(t, 200).in(t, &vm); vm.State != control.Succeeded {
		t.Errorf("%+v", vm)
	}
	for _, body := range []string{"", "{}", `{"payloadType":"x","payload":"","signatures":[]}`, string(e.Encode()[:50])} {
		if a := s.unchecked(s.owner, "POST", "/api/v1/policies/pending", body); a.status < 400 || a.status > 499 {
			t.Errorf("%q: %d %s", body, a.status, a.body)
		}
	}
}

func TestAccess(t *testing.T) {
	s := newServer(t, options{})
	var roles list[control.Role]
	s.call("GET", "/api/v1/roles", "").want(t, 200).in(t, &roles)
	if len(roles.Value) != len(control.BuiltinRoles()) {
		t.Errorf("%d roles", len(roles.Value))
	}
	s.call("PUT", "/api/v1/roles/Night%20shift", `{"description":"asks at night","actions":["Microsoft.Security/*/read","`+string(control.ActionInitiate)+`"]}`).want(t, 200)
	given := `{"principal":"local:nina","role":"Night shift","scope":"` + groupPath + `"}`
	s.call("POST", "/api/v1/assignments", given).want(t, 201)
	var all list[control.Assignment]
	s.call("GET", "/api/v1/assignments?scope="+groupPath, "").want(t, 200).in(t, &all)
	if len(all.Value) != 1 || all.Value[0].Principal != "local:nina" {
		t.Errorf("%+v", all)
	}
	if a := s.call("DELETE", "/api/v1/roles/Night%20shift", ""); a.status != 409 {
		t.Errorf("a role somebody has: %d %s", a.status, a.body)
	}
	var made newTokenOut
	s.call("POST", "/api/v1/tokens", `{"principal":"local:nina","name":"Nina","note":"her phone","valid":"PT1H"}`).want(t, 201).in(t, &made)
	if made.Secret == "" || made.Token.Principal != "local:nina" || !made.Token.Expires.time().Equal(s.clock.Now().Add(time.Hour)) {
		t.Errorf("%+v", made)
	}
	var who whoOut
	s.as(made.Secret, "GET", "/api/v1/whoami", "").want(t, 200).in(t, &who)
	if who.ID != "local:nina" || who.Name != "Nina" || who.Address != "127.0.0.1" || len(who.Rights) != 1 || who.Rights[0].Role.Name != "Night shift" || who.Limits != nil {
		t.Errorf("%+v", who)
	}
	s.call("POST", "/api/v1/tokens", `{"valid":"PT1H"}`, "Idempotency-Key", "k").refused(t, 400, "IdempotencyKeyNotSupported")
	text := s.call("GET", "/api/v1/tokens", "").want(t, 200).body
	if strings.Contains(string(text), control.HashToken(made.Secret)) || strings.Contains(string(text), made.Secret) {
		t.Errorf("a secret: %s", text)
	}
	s.call("DELETE", "/api/v1/tokens/"+made.Token.ID, "").want(t, 204)
	s.as(made.Secret, "GET", "/api/v1/whoami", "").refused(t, 401, "InvalidAuthenticationToken")
	s.call("DELETE", "/api/v1/assignments?principal=local:nina&role=Night%20shift&scope="+groupPath, "").want(t, 204)
	s.call("DELETE", "/api/v1/roles/Night%20shift", "").want(t, 204)

	var set control.ScopeSetting
	s.call("PUT", "/api/v1/scopes", `{"scope":"`+groupPath+`","enabled":false,"reason":"moving"}`).want(t, 200).in(t, &set)
	if set.Enabled || set.Reason != "moving" {
		t.Errorf("%+v", set)
	}
	var scopes list[control.ScopeSetting]
	s.call("GET", "/api/v1/scopes", "").want(t, 200).in(t, &scopes)
	if len(scopes.Value) != 1 {
		t.Errorf("%+v", scopes)
	}
	s.call("PUT", vmPath("vm1"), `{"location":"`+region+`"}`).want(t, 200)
	if a := s.call("PATCH", vmPath("vm1"), portsBody); a.status != 409 && a.status != 400 {
		t.Errorf("JIT is off there: %d %s", a.status, a.body)
	}

	// Someone who may do nothing gets 403 or 404 everywhere, and never more.
	nobody := s.person("nobody", "", "")
	for _, r := range table() {
		if r.public || r.id == batchID || r.id == "WhoAmI" || r.id == "ListTokens" || // these are about oneself
			r.id == "AcceptPolicy" { // its rights depend on what is in a document that holds
			continue
		}
		path := strings.NewReplacer("{subscription}", subscription, "{group}", group, "{namespace}", "Microsoft.Compute", "{type}", "virtualMachines", "{vm}", "vm1",
			"{location}", region, "{policy}", "default", "{request}", "01ARZ3NDEKTSV4RRFFQ69G5FAV", "{join}", "x", "{role}", "x", "{token}", "x").Replace(r.pattern.String())
		if r.version {
			path += version
		}
		if r.id == "Unassign" {
			path += "?principal=local:admin&role=Owner&scope=/"
		}
		a := s.unchecked(nobody, r.method, path, bodies[r.id])
		var page list[json.RawMessage]
		empty := r.method == "GET" && a.status == 200 && json.Unmarshal(a.body, &page) == nil && len(page.Value) == 0
		if a.status != 403 && a.status != 404 && !empty && r.id != "CountVMs" {
			t.Errorf("%s: %d %s", r.id, a.status, a.body)
		}
	}
}

// bodies are good ones for the calls that need one.
var bodies = map[string]string{
	"JitNetworkAccessPolicies_CreateOrUpdate": policyBody,
	"JitNetworkAccessPolicies_Initiate":       initiateBody,
	"PutVM":                                   `{"osType":"Linux"}`,
	"EditPorts":                               portsBody,
	"RequestVM":                               askBody,
	"Request":                                 initiateBody,
	"ExtendRequest":                           `{"duration":"PT1H"}`,
	"PutApproval":                             `{"approvers":1,"role":"Owner"}`,
	"AcceptPolicy":                            `{"payloadType":"application/vnd.jitgate.policy.v1+json","payload":"e30=","signatures":[]}`,
	"SetScope":                                `{"scope":"` + groupPath + `","enabled":false}`,
	"CreateJoin":                              `{"scope":"` + groupPath + `"}`,
	"PutRole":                                 `{"actions":["*/read"]}`,
	"Assign":                                  `{"principal":"local:nobody","role":"Owner","scope":"/"}`,
	"CreateToken":                             `{"principal":"local:admin"}`,
}

func TestIdempotency(t *testing.T) {
	s := newServer(t, options{})
	s.guard("vm1")
	const path = "/api/v1/requests"
	ask := func(minutes int) string {
		return `{"virtualMachines":[{"id":"` + machine("vm1") + `","ports":[{"number":22,"duration":"PT` + strconv.Itoa(minutes) + `M","allowedSourceAddressPrefix":"203.0.113.7"}]}]}`
	}
	var wg sync.WaitGroup
	answers := make([]answered, 8)
	for i := range answers {
		wg.Go(func() { answers[i] = s.call("POST", path, ask(30), "Idempotency-Key", "k-1") })
	}
	wg.Wait()
	for _, a := range answers {
		if a.want(t, 202); string(a.body) != string(answers[0].body) {
			t.Errorf("two answers:\n%s\n%s", a.body, answers[0].body)
		}
	}
	// Long after the engine's own minute, it is still the same answer.
	s.clock.forward(10 * time.Minute)
	again := s.call("POST", path, ask(30), "Idempotency-Key", "k-1").want(t, 202)
	if string(again.body) != string(answers[0].body) || again.header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("%s", again.body)
	}
	s.call("POST", path, ask(31), "Idempotency-Key", "k-1").refused(t, 422, "IdempotencyKeyReused")
	count := func() int {
		t.Helper()
		var page list[requestOut]
		s.call("GET", path, "").want(t, 200).in(t, &page)
		return len(page.Value)
	}
	if n := count(); n != 1 {
		t.Errorf("%d requests", n)
	}
	// Another caller's key, and the same key on another path, are other keys.
	ann := s.person("ann", "Owner", control.Everywhere)
	s.as(ann, "POST", path, ask(30), "Idempotency-Key", "k-1").want(t, 202)
	s.call("POST", vmPath("vm1")+"/request", askBody, "Idempotency-Key", "k-1").want(t, 202)
	if n := count(); n != 3 {
		t.Errorf("%d requests", n)
	}
	// A refusal frees the key.
	s.call("POST", path, ask(600), "Idempotency-Key", "k-2").refused(t, 400, "InvalidInitiateInput")
	s.call("POST", path, ask(20), "Idempotency-Key", "k-2").want(t, 202)
	// A call that was lost with its server holds the key for as long as it
	// could have taken, no longer.
	var key control.Answer
	claim := func(age time.Duration) {
		t.Helper()
		c := &call{api: s.api, ctx: t.Context()}
		key = control.Answer{Key: "lost", Digest: "d", Time: s.clock.Now().Add(-age)}
		if err := s.store.Update(t.Context(), func(tx control.Tx) error { return tx.PutAnswer(key) }); err != nil {
			t.Fatal(err)
		}
		_, ours, err := c.claim(control.Answer{Key: "lost", Digest: "d", Time: s.clock.Now()})
		if err != nil || ours != (age > claimTime) {
			t.Errorf("after %s: %v, %v", age, ours, err)
		}
	}
	claim(time.Second)
	claim(claimTime + time.Second)
	// Of many who come at once, one is the first. The engine takes a repeated
	// request for what it is, so this is asked of the key itself.
	var first atomic.Int32
	start := make(chan struct{})
	for range 32 {
		wg.Go(func() {
			c := &call{api: s.api, ctx: t.Context()}
			<-start
			if _, ours, err := c.claim(control.Answer{Key: "rush", Digest: "d", Time: s.clock.Now()}); err != nil {
				t.Error(err)
			} else if ours {
				first.Add(1)
			}
		})
	}
	close(start)
	wg.Wait()
	if n := first.Load(); n != 1 {
		t.Errorf("%d were the first", n)
	}
	for _, bad := range []string{strings.Repeat("k", maxKey+1), `a"b`, "a\tb"} {
		s.call("POST", path, ask(30), "Idempotency-Key", bad).refused(t, 400, "InvalidHeader")
	}
}

// Replicas on one PostgreSQL know of each other's keys, and of each other's
// lines of the log.
func TestReplicas(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	open := func(control.Store) control.Store { return storetest.Open(t, dsn) }
	a := newServer(t, options{store: open})
	b := newServer(t, options{store: open, beside: a})
	a.guard("vm1")
	f := b.follow(t, b.owner, "?event=request.initiated")
	var wg sync.WaitGroup
	answers := make([]answered, 8)
	for i := range answers {
		wg.Go(func() {
			answers[i] = []*server{a, b}[i%2].call("POST", vmPath("vm1")+"/request", askBody, "Idempotency-Key", "k")
		})
	}
	wg.Wait()
	for _, got := range answers {
		if got.want(t, 202); string(got.body) != string(answers[0].body) {
			t.Errorf("two answers:\n%s\n%s", got.body, answers[0].body)
		}
	}
	var made list[requestOut]
	answers[0].in(t, &made)
	if _, line := f.next(); line.Request != made.Value[0].ID {
		t.Errorf("%+v", line)
	}
	// An edit by way of one is seen, and its ETag known, by way of the other.
	tag := b.call("GET", vmPath("vm1"), "").want(t, 200).header.Get("ETag")
	a.call("PATCH", vmPath("vm1"), `{"ports":[]}`, "If-Match", tag).want(t, 200)
	b.call("PATCH", vmPath("vm1"), portsBody, "If-Match", tag).refused(t, 412, "PreconditionFailed")
}

func TestActivity(t *testing.T) {
	s := newServer(t, options{})
	id := s.one("vm1")
	evil := `=HYPERLINK("http://evil","x"); DROP TABLE activity; --`
	reason, _ := json.Marshal(map[string]string{"reason": evil})
	s.call("POST", "/api/v1/requests/"+id+"/revoke", string(reason)).want(t, 200)
	var page list[control.Activity]
	s.call("GET", "/api/v1/activity", "").want(t, 200).in(t, &page)
	n := len(page.Value)
	if n < 4 || page.Value[0].Seq < page.Value[n-1].Seq || page.Value[0].Event != "request.revoked" {
		t.Fatalf("%+v", page)
	}
	var got []control.Activity
	for after := ""; ; after = page.Next {
		page = list[control.Activity]{}
		s.call("GET", "/api/v1/activity?order=oldest&top=2&after="+after, "").want(t, 200).in(t, &page)
		got = append(got, page.Value...)
		if page.Next == "" {
			break
		}
	}
	if len(got) != n || !slices.IsSortedFunc(got, func(a, b control.Activity) int { return int(a.Seq) - int(b.Seq) }) {
		t.Errorf("%d lines on pages, %d in one", len(got), n)
	}
	for query, want := range map[string]int{"event=request.initiated": 1, "event=none": 0, "actor=admin&event=request.revoked": 1, "scope=" + machine("vm1") + "&event=request.initiated": 1,
		"from=" + s.clock.Now().Add(time.Second).Format(time.RFC3339): 0, "to=" + s.clock.Now().Format(time.RFC3339): 0,
		"from=" + s.clock.Now().Format(time.RFC3339) + "&event=request.initiated": 1, "actor=%27%20OR%20%271%27=%271": 0} {
		page = list[control.Activity]{}
		if s.call("GET", "/api/v1/activity?"+query, "").want(t, 200).in(t, &page); len(page.Value) != want {
			t.Errorf("%s: %d lines, want %d", query, len(page.Value), want)
		}
	}
	for _, q := range []string{"order=up", "format=xml", "from=x", "after=x", "top=0", "scope=%00"} {
		if a := s.unchecked(s.owner, "GET", "/api/v1/activity?"+q, ""); a.status != 400 {
			t.Errorf("%s: %d %s", q, a.status, a.body)
		}
	}

	// The download.
	a := s.call("GET", "/api/v1/activity?format=csv&order=oldest", "").want(t, 200)
	if d := a.header.Get("Content-Disposition"); !strings.HasPrefix(d, `attachment; filename="activity-`) || !strings.HasPrefix(a.header.Get("Content-Type"), "text/csv") {
		t.Errorf("%v", a.header)
	}
	if strings.Count(string(a.body), "\n") != strings.Count(string(a.body), "\r\n") {
		t.Error("lines do not end as RFC 4180 has it")
	}
	rows, err := csv.NewReader(strings.NewReader(string(a.body))).ReadAll()
	if err != nil || len(rows) != n+1 || !slices.Equal(rows[0], control.ActivityColumns()) {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	last := rows[n]
	if r := last[slices.Index(control.ActivityColumns(), "reason")]; r != "'"+evil {
		t.Errorf("the reason is %q", r)
	}
	for i, row := range rows {
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r\n", rune(cell[0])) {
				t.Errorf("row %d has a formula: %q", i, cell)
			}
		}
	}
	if b := s.call("GET", "/api/v1/activity?order=oldest", "", "Accept", "text/csv").want(t, 200); string(b.body) != string(a.body) {
		t.Error("Accept and format differ")
	}
}

// A download longer than one page has all of it.
func TestActivityCSVPages(t *testing.T) {
	s := newServer(t, options{})
	const many = 2*maxPage + 10
	lines := make([]control.Activity, many)
	for i := range lines {
		lines[i] = control.Activity{Time: s.clock.Now(), Event: "host.seen", Status: "Succeeded", Scope: control.Scope(groupPath), Reason: fmt.Sprint("line ", i)}
	}
	if err := s.store.Update(t.Context(), func(tx control.Tx) error { return tx.AppendActivity(lines...) }); err != nil {
		t.Fatal(err)
	}
	a := s.call("GET", "/api/v1/activity?format=csv&event=host.seen", "").want(t, 200)
	rows, err := csv.NewReader(strings.NewReader(string(a.body))).ReadAll()
	if err != nil || len(rows) != many+1 {
		t.Fatalf("%d rows, %v", len(rows), err)
	}
	if first, last := rows[1][15], rows[many][15]; first != fmt.Sprint("line ", many-1) || last != "line 0" {
		t.Errorf("from %s to %s", first, last)
	}
}

// follower reads a stream of the activity log.
type follower struct {
	t      *testing.T
	lines  *bufio.Scanner
	cancel context.CancelFunc
	body   io.Closer
}

func (s *server) follow(t *testing.T, token, query string, headers ...string) *follower {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	r, err := http.NewRequestWithContext(ctx, "GET", s.http.URL+"/api/v1/activity/stream"+query, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	for i := 0; i < len(headers); i += 2 {
		r.Header.Set(headers[i], headers[i+1])
	}
	w, err := s.client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if w.StatusCode != 200 || w.Header.Get("Content-Type") != "text/event-stream; charset=utf-8" {
		t.Fatalf("%d %v", w.StatusCode, w.Header)
	}
	f := &follower{t: t, lines: bufio.NewScanner(w.Body), cancel: cancel, body: w.Body}
	t.Cleanup(func() { cancel(); w.Body.Close() })
	return f
}

// next is the next event.
func (f *follower) next() (id string, a control.Activity) {
	f.t.Helper()
	for f.lines.Scan() {
		switch name, value, _ := strings.Cut(f.lines.Text(), ": "); name {
		case "id":
			id = value
		case "data":
			if err := json.Unmarshal([]byte(value), &a); err != nil {
				f.t.Fatal(err)
			}
		case "":
			if id != "" {
				return id, a
			}
		}
	}
	f.t.Fatalf("the stream ended: %v", f.lines.Err())
	return "", a
}

func TestActivityStream(t *testing.T) {
	s := newServer(t, options{})
	before := s.one("vm0")
	f := s.follow(t, s.owner, "?event=request.initiated&after=0")
	if _, a := f.next(); a.Request != before {
		t.Errorf("%+v", a)
	}
	f.cancel()
	f = s.follow(t, s.owner, "?event=request.initiated") // what was is not told
	request := s.one("vm1")
	id, a := f.next()
	if id != strconv.FormatUint(a.Seq, 10) || a.Request != request || a.Event != "request.initiated" {
		t.Errorf("%s %+v", id, a)
	}
	f.cancel()
	// What came meanwhile is not lost.
	second := s.one("vm2")
	f = s.follow(t, s.owner, "?event=request.initiated&after=0", "Last-Event-ID", id)
	if _, a = f.next(); a.Request != second {
		t.Errorf("%+v", a)
	}
	third := s.one("vm3")
	if _, a = f.next(); a.Request != third {
		t.Errorf("%+v", a)
	}
	s.as(s.person("nobody", "", ""), "GET", "/api/v1/activity/stream", "").refused(t, 403, "AuthorizationFailed")
	s.unchecked(s.owner, "GET", "/api/v1/activity/stream", "", "Last-Event-ID", "x").refused(t, 400, "InvalidQueryParameter")
}

// A stream outlives the limits of short calls, shows that it lives, and ends
// with the token it was asked for by.
func TestStreamLife(t *testing.T) {
	s := newServer(t, options{serve: func(a *API, h *http.Server) {
		a.heartbeat = 100 * time.Millisecond
		h.ReadTimeout, h.WriteTimeout = 300*time.Millisecond, 300*time.Millisecond
	}})
	for _, protocol := range []string{"HTTP/1.1", "HTTP/2.0"} {
		t.Run(protocol, func(t *testing.T) {
			token := s.person("ann", "Reader", control.Everywhere)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			r, err := http.NewRequestWithContext(ctx, "GET", s.http.URL+"/api/v1/activity/stream", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+token)
			transport := &http.Transport{TLSClientConfig: s.roots(), ForceAttemptHTTP2: protocol == "HTTP/2.0"}
			defer transport.CloseIdleConnections()
			w, err := transport.RoundTrip(r)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Body.Close()
			if w.Proto != protocol {
				t.Fatalf("%s", w.Proto)
			}
			lines := bufio.NewScanner(w.Body)
			for beats := 0; beats < 10; { // three times the limits
				if !lines.Scan() {
					t.Fatalf("ended after %d heartbeats: %v", beats, lines.Err())
				}
				if lines.Text() == ": alive" {
					beats++
				}
			}
			err = s.store.Update(t.Context(), func(tx control.Tx) error {
				held, err := tx.Token(control.HashToken(token))
				if err != nil {
					return err
				}
				held.Revoked = true
				return tx.PutToken(held)
			})
			if err != nil {
				t.Fatal(err)
			}
			for lines.Scan() {
			}
			if err := lines.Err(); err != nil {
				t.Errorf("it did not end well: %v", err)
			}
		})
	}
}

// cut is a store that fails once so many pages were read.
type cut struct {
	control.Store
	views atomic.Int32
	panic bool // instead
}

func (c *cut) View(ctx context.Context, f func(control.Tx) error) error {
	if c.views.Add(-1) == 0 {
		if c.panic {
			panic("cut")
		}
		return io.ErrClosedPipe
	}
	return c.Store.View(ctx, f)
}

// Half of a download is not taken for all of it.
func TestActivityCSVCut(t *testing.T) {
	var store *cut
	s := newServer(t, options{store: func(real control.Store) control.Store {
		store = &cut{Store: real}
		return store
	}})
	if err := s.store.Update(t.Context(), func(tx control.Tx) error {
		return tx.AppendActivity(make([]control.Activity, maxPage+10)...)
	}); err != nil {
		t.Fatal(err)
	}
	for _, store.panic = range []bool{false, true} {
		store.views.Store(3) // the token, the first page, the second
		if n, err := s.download(); err == nil {
			t.Errorf("%d bytes, and all seems well", n)
		}
	}
}

// download reads the activity log as CSV.
func (s *server) download() (int, error) {
	t := s.t
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", s.http.URL+"/api/v1/activity?format=csv", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+s.owner)
	w, err := s.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	if w.StatusCode != 200 || len(b) == 0 {
		t.Errorf("%d, %d bytes", w.StatusCode, len(b))
	}
	return len(b), err
}

func TestTrust(t *testing.T) {
	s := newServer(t, options{})
	a := s.as("", "GET", "/api/v1/trust.json", "").want(t, 200)
	v, err := policy.OpenPinnedTrust(a.body, s.engine.Realm.Pin)
	if err != nil {
		t.Fatal(err, v)
	}
	s.as("", "GET", "/api/v1/trust.json", "", "If-None-Match", a.header.Get("ETag")).want(t, 304)
	s.as("", "GET", "/openapi.json", "").want(t, 200)
}

func TestHealth(t *testing.T) {
	var broken *unwell
	s := newServer(t, options{store: func(real control.Store) control.Store {
		broken = &unwell{Store: real}
		return broken
	}})
	s.as("", "GET", "/healthz", "").want(t, 200)
	s.as("", "GET", "/readyz", "").want(t, 200)
	s.call("GET", defaultPath+version, "").want(t, 404)
	broken.now.Store(true)
	s.as("", "GET", "/healthz", "").want(t, 200)
	s.as("", "GET", "/readyz", "").refused(t, 503, "StoreUnavailable")
	broken.now.Store(false)

	for _, token := range []string{metricsToken, s.owner} {
		text := string(s.as(token, "GET", "/metrics", "").want(t, 200).body)
		for _, line := range []string{`jitgate_api_requests_total{method="GET",route="JitNetworkAccessPolicies_Get",status="404"} 1`,
			`jitgate_api_refusals_total{code="PolicyNotFound"} 1`, `jitgate_api_request_seconds_count{route="Health"} 2`} {
			if !strings.Contains(text, line+"\n") {
				t.Errorf("no %s in\n%s", line, text)
			}
		}
	}
	s.as("", "GET", "/metrics", "").want(t, 401)
	s.as("wrong", "GET", "/metrics", "").want(t, 401)
	s.as(s.person("ann", "JITRequester", control.Everywhere), "GET", "/metrics", "").refused(t, 403, "AuthorizationFailed")
	// No token of metrics is not the empty one.
	without := newServer(t, options{config: func(c *Config) { c.MetricsToken = "" }})
	for _, header := range []string{"", "Bearer", "Bearer ", "x"} {
		without.as("", "GET", "/metrics", "", "Authorization", header).want(t, 401)
	}
	without.call("GET", "/metrics", "").want(t, 200)
	// What callers send makes no new label.
	for i := range 5 {
		s.unchecked("", "GET", fmt.Sprintf("/nothing/%d", i), "").want(t, 404)
		s.unchecked("", fmt.Sprintf("M%d", i), "/healthz", "").want(t, 405)
	}
	text := string(s.as(metricsToken, "GET", "/metrics", "").want(t, 200).body)
	if strings.Contains(text, "nothing") || strings.Contains(text, `"M1"`) || !strings.Contains(text, `jitgate_api_requests_total{method="other",route="none",status="404"} 5`) {
		t.Error(text)
	}
}
