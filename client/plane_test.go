package client_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"iter"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/cli"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/api"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
)

const (
	subscription = "20ff7fc3-e762-44dd-bd96-b71116dcdc23"
	groupID      = "/subscriptions/" + subscription + "/resourceGroups/myRg1"
)

func vmID(name string) string {
	return groupID + "/providers/Microsoft.Compute/virtualMachines/" + name
}

// plane is a real control plane, the engine on SQLite behind the API over TLS,
// with what people need to use it.
type plane struct {
	t     *testing.T
	http  *httptest.Server
	dir   string // ca.pem, token, and keys of people: alice.key, bob.key
	token string
}

// newPlane starts one. With signers > 0 it has no policy key: as many of alice
// and bob have to sign as signers says.
func newPlane(t *testing.T, signers int) *plane {
	t.Helper()
	p := &plane{t: t, dir: t.TempDir()}
	now := time.Now().UTC().Truncate(time.Second)
	trust := policy.Trust{Header: policy.Header{Realm: "test", Version: 1, Issued: now, Expires: now.Add(365 * 24 * time.Hour)}, Roles: []policy.RoleKeys{
		{Name: policy.RoleRoot, Threshold: 1}, {Name: policy.RolePolicy, Threshold: max(signers, 1)}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1}}}
	realm := control.Realm{}
	give := func(role policy.Role, name string) ed25519.PrivateKey {
		_, private, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		key, err := policy.NewKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		key.Name = name
		if err := trust.Give(role, key); err != nil {
			t.Fatal(err)
		}
		return private
	}
	root := give(policy.RoleRoot, "root")
	realm.Grant = give(policy.RoleGrant, "grant")
	if signers == 0 {
		realm.Policy = give(policy.RolePolicy, "server")
	}
	for _, name := range []string{"alice", "bob"}[:signers] {
		der, err := x509.MarshalPKCS8PrivateKey(give(policy.RolePolicy, name))
		if err != nil {
			t.Fatal(err)
		}
		p.write(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
	e := policy.Envelope{Type: policy.TypeTrust, Payload: trust.Encode()}
	if err := e.Sign(root); err != nil {
		t.Fatal(err)
	}
	realm.Trust, realm.Signed, realm.Pin = trust, e.Encode(), e.Digest()
	store := storetest.SQLite(t)
	engine := control.New(control.Config{Store: store, Realm: realm, Log: hclog.NewNullLogger()})
	who, err := identity.New(identity.Config{Store: store, Rate: 10000, Burst: 10000})
	if err != nil {
		t.Fatal(err)
	}
	token, hash := identity.NewToken()
	if given, err := control.Bootstrap(t.Context(), store, hash, now); err != nil || !given {
		t.Fatal(given, err)
	}
	a, err := api.New(api.Config{Engine: engine, Identity: who, Store: store, Log: hclog.NewNullLogger(), Registry: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	p.http = httptest.NewUnstartedServer(a)
	p.http.EnableHTTP2 = true
	p.http.StartTLS()
	t.Cleanup(p.http.Close)
	p.token = token
	p.write("token", []byte(token+"\n"))
	p.write("ca.pem", p.ca())
	return p
}

func (p *plane) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.http.Certificate().Raw})
}

func (p *plane) write(name string, text []byte) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, name), text, 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) as(token string) *client.Client {
	p.t.Helper()
	c, err := client.New(client.Config{URL: p.http.URL, Token: token, CA: p.ca()})
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(c.Close)
	return c
}

// jitgate runs a command line, with $DIR in place of the plane's directory.
func (p *plane) jitgate(args ...string) (code int, stdout, stderr string) {
	p.t.Helper()
	args = append(args, "--control", p.http.URL, "--ca", "$DIR/ca.pem", "--token-file", "$DIR/token")
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "$DIR", p.dir)
	}
	var out, complaints bytes.Buffer
	code = cli.Main(args, strings.NewReader(""), &out, &complaints)
	return code, out.String(), complaints.String()
}

func collect[T any](t *testing.T, seq iter.Seq2[T, error]) (all []T) {
	t.Helper()
	for v, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, v)
	}
	return all
}

func ports(longest string) []client.PortRule {
	return []client.PortRule{{Number: 22, Protocol: "TCP", AllowedSourceAddressPrefix: "*", MaxRequestAccessDuration: longest}}
}

func statusOf(err error) int {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Status
	}
	return 0
}

// Every method against the real API.
func TestPlane(t *testing.T) {
	p := newPlane(t, 0)
	ctx := t.Context()
	c := p.as(p.token)
	check := func(what string, err error) {
		t.Helper()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	id := client.PolicyID(subscription, "myRg1", "westeurope", "default")

	who, err := c.WhoAmI(ctx)
	check("who am I", err)
	if len(who.Rights) != 1 || who.Rights[0].Role.Name != "Owner" {
		t.Errorf("%+v", who)
	}

	// Policies.
	made, etag, err := c.PutPolicy(ctx, id, client.Policy{Kind: "Basic", Properties: client.PolicyProperties{VMs: []client.PolicyVM{{ID: vmID("web1"), Ports: ports("PT3H")}}}}, "")
	check("put policy", err)
	if made.ID != id || made.Properties.ProvisioningState != "Succeeded" || etag == "" {
		t.Errorf("%+v, ETag %s", made, etag)
	}
	if _, _, err := c.PutPolicy(ctx, id, made, `"999"`); !client.IsPrecondition(err) {
		t.Errorf("with another ETag: %v", err)
	}
	_, again, err := c.Policy(ctx, id)
	check("get policy", err)
	if again != etag {
		t.Errorf("ETag %s, then %s", etag, again)
	}
	for _, scope := range [][2]string{{"", ""}, {"myRg1", ""}, {"", "westeurope"}, {"MYRG1", "westeurope"}} {
		if list := collect(t, c.Policies(ctx, subscription, scope[0], scope[1])); len(list) != 1 || list[0].ID != id {
			t.Errorf("%q: %+v", scope, list)
		}
	}

	// Requests.
	asked, err := c.Initiate(ctx, id, client.InitiateRequest{VMs: []client.InitiateVM{{ID: vmID("web1"), Ports: []client.InitiatePort{{Number: 22, AllowedSourceAddressPrefix: "203.0.113.7", End: time.Now().Add(time.Hour)}}}}, Justification: "azure's way"})
	check("initiate", err)
	if asked.VMs[0].Ports[0].Status != "Initiating" || asked.Justification != "azure's way" {
		t.Errorf("%+v", asked)
	}
	list, err := c.RequestVM(ctx, vmID("web1"), []client.InitiatePort{{Number: 22, AllowedSourceAddressPrefixes: []string{"203.0.113.8", "198.51.100.0/24"}, Duration: "PT1H"}}, "ours")
	check("request a machine", err)
	if len(list) != 1 || len(list[0].VMs[0].Ports[0].AllowedSourceAddressPrefixes) != 2 {
		t.Fatalf("%+v", list)
	}
	more, err := c.Request(ctx, client.InitiateRequest{VMs: []client.InitiateVM{{ID: vmID("web1"), Ports: []client.InitiatePort{{Number: 22, Duration: "PT10M"}}}}})
	check("request", err)
	if len(more) != 1 || more[0].VMs[0].Ports[0].AllowedSourceAddressPrefix != "127.0.0.1" {
		t.Errorf("%+v", more)
	}
	if all := collect(t, c.Requests(ctx, client.RequestFilter{VM: vmID("web1"), Policy: id, Mine: true, Open: true, PageSize: 2})); len(all) != 3 || all[0].ID != more[0].ID {
		t.Errorf("%d requests: %+v", len(all), all)
	}
	longer, err := c.Extend(ctx, list[0].ID, "PT2H", "not done")
	check("extend", err)
	if !longer.VMs[0].Ports[0].End.After(list[0].VMs[0].Ports[0].End) {
		t.Errorf("%+v", longer)
	}
	over, err := c.Revoke(ctx, list[0].ID, "done")
	check("revoke", err)
	if over.Open || over.VMs[0].Ports[0].Status != "Revoked" {
		t.Errorf("%+v", over)
	}
	got, err := c.GetRequest(ctx, list[0].ID)
	check("get request", err)
	if got.Open || got.Justification != "ours" {
		t.Errorf("%+v", got)
	}
	if _, err := c.RequestVM(ctx, vmID("web1"), []client.InitiatePort{{Number: 22, Duration: "PT4H"}}, ""); statusOf(err) != http.StatusBadRequest || !strings.Contains(err.Error(), "PT3H") {
		t.Errorf("too long: %v", err)
	}

	// Approval.
	check("ask for approval", c.SetApproval(ctx, id, &client.Approval{Approvers: 1, Role: "Owner"}, ""))
	approval, _, err := c.GetApproval(ctx, id)
	check("get approval", err)
	if approval == nil || approval.Approvers != 1 {
		t.Errorf("%+v", approval)
	}
	secret, token, err := c.CreateToken(ctx, client.TokenInput{Principal: "local:bob", Name: "bob", Valid: "PT1H"})
	check("create token", err)
	check("assign", c.Assign(ctx, client.Assignment{Principal: "local:bob", Role: "JITRequester", Scope: groupID}))
	bob := p.as(secret)
	for range 2 {
		asked, err := bob.RequestVM(ctx, vmID("web1"), []client.InitiatePort{{Number: 22, Duration: "PT1H", AllowedSourceAddressPrefix: "203.0.113.99"}}, "please")
		check("bob's request", err)
		if asked[0].Approval == nil || asked[0].VMs[0].Ports[0].Status != "Pending" {
			t.Fatalf("%+v", asked)
		}
		list = append(list, asked[0])
	}
	if _, err := bob.Approve(ctx, list[1].ID, "", ""); statusOf(err) != http.StatusForbidden {
		t.Errorf("bob approves: %v", err)
	}
	yes, err := c.Approve(ctx, list[1].ID, "for a while", "PT10M")
	check("approve", err)
	if yes.VMs[0].Ports[0].Status != "Initiating" || len(yes.Approval.Verdicts) != 1 || yes.Approval.Verdicts[0].AtMost != "PT10M" {
		t.Errorf("%+v", yes)
	}
	last, err := bob.RequestVM(ctx, vmID("web1"), []client.InitiatePort{{Number: 22, Duration: "PT30M", AllowedSourceAddressPrefix: "203.0.113.98"}}, "please")
	check("bob's last request", err)
	no, err := c.Deny(ctx, last[0].ID, "no")
	check("deny", err)
	if no.Open {
		t.Errorf("%+v", no)
	}
	check("no approval", c.SetApproval(ctx, id, nil, ""))

	// Machines.
	vm, vmTag, err := c.VM(ctx, vmID("WEB1"))
	check("get machine", err)
	if vm.Tab != "Configured" || len(vm.Ports) != 1 || len(vm.Open) == 0 || vm.Policies[0] != id {
		t.Errorf("%+v", vm)
	}
	edited, nextTag, err := c.EditPorts(ctx, vmID("web1"), ports("PT2H"), vmTag)
	check("edit ports", err)
	if edited.Ports[0].MaxRequestAccessDuration != "PT2H" || nextTag == vmTag {
		t.Errorf("%+v", edited)
	}
	if _, _, err := c.EditPorts(ctx, vmID("web1"), ports("PT1H"), vmTag); !client.IsPrecondition(err) {
		t.Errorf("an edit of what was edited: %v", err)
	}
	_, err = c.PutVM(ctx, vmID("db 1"), client.VMInput{})
	if statusOf(err) != http.StatusBadRequest {
		t.Errorf("a name with a space: %v", err)
	}
	put, err := c.PutVM(ctx, vmID("db1"), client.VMInput{Location: "westeurope", OS: "Linux", Address: "10.0.0.5"})
	check("put machine", err)
	if put.Tab != "NotConfigured" || put.Address != "10.0.0.5" {
		t.Errorf("%+v", put)
	}
	counts, err := c.CountVMs(ctx, groupID)
	check("count machines", err)
	if counts.Configured != 1 || counts.NotConfigured != 1 {
		t.Errorf("%+v", counts)
	}
	if all := collect(t, c.VMs(ctx, client.VMFilter{Scope: groupID, Search: "1", PageSize: 1})); len(all) != 2 {
		t.Errorf("%d machines", len(all))
	}
	check("delete machine", c.DeleteVM(ctx, vmID("db1")))
	if _, _, err := c.VM(ctx, vmID("db1")); !client.IsNotFound(err) {
		t.Errorf("a machine that was deleted: %v", err)
	}
	if err := c.RevokeAgent(ctx, vmID("web1"), ""); statusOf(err)/100 != 4 {
		t.Errorf("revoke an agent that is not there: %v", err)
	}

	// Roles, tokens, join tokens, scopes.
	check("put role", c.PutRole(ctx, client.Role{Name: "watcher", Actions: []string{"*/read"}}))
	if n := len(collect(t, c.Roles(ctx))); n != len(control.BuiltinRoles())+1 {
		t.Errorf("%d roles", n)
	}
	check("delete role", c.DeleteRole(ctx, "watcher"))
	if n := len(collect(t, c.Assignments(ctx, groupID))); n == 0 {
		t.Error("no assignment")
	}
	check("unassign", c.Unassign(ctx, client.Assignment{Principal: "local:bob", Role: "JITRequester", Scope: groupID}))
	if n := len(collect(t, c.Tokens(ctx))); n < 2 {
		t.Errorf("%d tokens", n)
	}
	check("revoke token", c.RevokeToken(ctx, token.ID))
	if _, err := bob.WhoAmI(ctx); statusOf(err) != http.StatusUnauthorized {
		t.Errorf("a revoked token: %v", err)
	}
	if _, err := c.SetScope(ctx, groupID, false, "frozen"); err != nil {
		t.Error(err)
	}
	if all := collect(t, c.Scopes(ctx)); len(all) != 1 || all[0].Reason != "frozen" || all[0].Enabled {
		t.Errorf("%+v", all)
	}
	if _, err := c.SetScope(ctx, groupID, true, ""); err != nil {
		t.Error(err)
	}
	if n := len(collect(t, c.Joins(ctx))); n != 0 {
		t.Errorf("%d join tokens", n)
	}
	if err := c.RevokeJoin(ctx, "none"); !client.IsNotFound(err) {
		t.Errorf("a join token that is not there: %v", err)
	}

	// The log, page by page, as CSV, and as it grows.
	all := collect(t, c.Activities(ctx, client.ActivityFilter{Scope: groupID, Event: "request.initiated", PageSize: 2}))
	if len(all) < 5 || all[0].Seq < all[len(all)-1].Seq {
		t.Errorf("%d lines: %+v", len(all), all)
	}
	var csv bytes.Buffer
	check("CSV", c.ActivityCSV(ctx, client.ActivityFilter{Event: "request.initiated"}, &csv))
	if lines := strings.Count(csv.String(), "\r\n"); lines != len(all)+1 {
		t.Errorf("%d lines of CSV, %d of JSON", lines, len(all))
	}
	following, stop := context.WithTimeout(ctx, 30*time.Second)
	defer stop()
	var seen uint64
	for a, err := range c.Follow(following, client.ActivityFilter{Event: "request.revoked"}, 0) {
		if err != nil {
			t.Fatal(err)
		}
		if seen = a.Seq; a.Reason == "the last one" {
			break
		}
		if a.Request != more[0].ID { // the first is there already; its revocation brings the last
			go func() {
				if _, err := c.Revoke(following, more[0].ID, "the last one"); err != nil {
					t.Error(err)
				}
			}()
		}
	}
	if seen == 0 {
		t.Error("nothing was followed")
	}

	there, err := c.DeletePolicy(ctx, id)
	check("delete policy", err)
	gone, err := c.DeletePolicy(ctx, id)
	check("delete policy again", err)
	if !there || gone {
		t.Errorf("deleted %v, then %v", there, gone)
	}
}

// With no policy key on the server, two people sign with jitgate policy sign.
func TestTwoPeopleSign(t *testing.T) {
	p := newPlane(t, 2)
	ctx := t.Context()
	c := p.as(p.token)
	id := client.PolicyID(subscription, "myRg1", "westeurope", "default")
	write := func(longest string) {
		t.Helper()
		made, _, err := c.PutPolicy(ctx, id, client.Policy{Properties: client.PolicyProperties{VMs: []client.PolicyVM{{ID: vmID("web1"), Ports: ports(longest)}}}}, "")
		if err != nil {
			t.Fatal(err)
		}
		if made.Properties.ProvisioningState != "Updating" {
			t.Errorf("before it is signed: %s", made.Properties.ProvisioningState)
		}
	}
	state := func() string {
		t.Helper()
		got, _, err := c.Policy(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return got.Properties.ProvisioningState
	}
	run := func(want string, args ...string) {
		t.Helper()
		code, out, complaints := p.jitgate(args...)
		if code != 0 || !strings.Contains(out, want) {
			t.Fatalf("jitgate %s: %d\n%s%s\nexpected %q", strings.Join(args, " "), code, out, complaints, want)
		}
	}
	write("PT3H")
	run("0 of 2 signatures", "policy", "pending")
	run("version 1: sent, and waits for more signatures: 1 of 2, not yet: bob", "policy", "sign", "--yes", "--key", "$DIR/alice.key", "web1")
	if s := state(); s != "Updating" {
		t.Errorf("after one signature of two: %s", s)
	}
	run("1 of 2 signatures", "policy", "pending")
	run("version 1: in force", "policy", "sign", "--yes", "--all", "--key", "$DIR/bob.key")
	if s := state(); s != "Succeeded" {
		t.Errorf("after both: %s", s)
	}
	run("nothing waits for a signature", "policy", "pending")

	// The next one is shown against it, signed elsewhere and pushed; what each
	// of two signed on their own adds up.
	write("PT1H")
	pending := collect(t, c.PendingPolicies(ctx))
	if len(pending) != 1 || len(pending[0].InForce) == 0 {
		t.Fatalf("%+v", pending)
	}
	p.write("policy.in.json", pending[0].Payload)
	for _, name := range []string{"alice", "bob"} {
		var out, complaints bytes.Buffer
		if code := cli.Main([]string{"sign", "--type", "policy", "--key", filepath.Join(p.dir, name+".key"), filepath.Join(p.dir, "policy.in.json"), "-o", filepath.Join(p.dir, name+".json")}, nil, &out, &complaints); code != 0 {
			t.Fatal(complaints.String())
		}
	}
	run("version 2: sent, and waits for more signatures", "policy", "push", "$DIR/alice.json")
	write("PT2H") // meanwhile somebody edits it: what was signed is not what waits
	code, _, complaints := p.jitgate("policy", "push", "$DIR/bob.json")
	if code != 1 || !strings.Contains(complaints, "fetch it and sign it") || strings.Count(complaints, "\n") != 1 {
		t.Errorf("%d %s", code, complaints)
	}
	run("-  22/tcp     from 0.0.0.0/0, ::/0  up to 3h", "policy", "sign", "--yes", "--key", "$DIR/alice.key", "--key", "$DIR/bob.key", "--all")
	if s := state(); s != "Succeeded" {
		t.Errorf("in the end: %s", s)
	}

	// A caller who may not sign is told so.
	secret, _, err := c.CreateToken(ctx, client.TokenInput{Principal: "local:carol", Name: "carol", Valid: "PT1H"})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Assign(ctx, client.Assignment{Principal: "local:carol", Role: "Reader", Scope: groupID}); err != nil {
		t.Fatal(err)
	}
	write("PT3H")
	p.write("token", []byte(secret))
	run("0 of 2 signatures", "policy", "pending")
	code, _, complaints = p.jitgate("policy", "sign", "--yes", "--key", "$DIR/alice.key", "web1")
	if code != 1 || !strings.Contains(complaints, "does not have authorization to perform action 'Microsoft.Security/locations/jitNetworkAccessPolicies/sign/action'") {
		t.Errorf("%d %s", code, complaints)
	}
}
