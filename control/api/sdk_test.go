package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/arm"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/cloud"
	azpolicy "github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/security/armsecurity"

	"github.com/jitgate/jitgate/control"
)

// credential hands out one token.
type credential string

func (c credential) GetToken(context.Context, azpolicy.TokenRequestOptions) (azcore.AccessToken, error) {
	return azcore.AccessToken{Token: string(c), ExpiresOn: time.Now().Add(time.Hour)}, nil
}

// sdk is Azure's client for Go, told where the server is and whom to trust.
func (s *server) sdk(token, subscription string) *armsecurity.JitNetworkAccessPoliciesClient {
	s.t.Helper()
	client, err := armsecurity.NewJitNetworkAccessPoliciesClient(subscription, credential(token), &arm.ClientOptions{ClientOptions: azpolicy.ClientOptions{
		Cloud: cloud.Configuration{
			ActiveDirectoryAuthorityHost: s.http.URL,
			Services:                     map[cloud.ServiceName]cloud.ServiceConfiguration{cloud.ResourceManager: {Endpoint: s.http.URL, Audience: "jitgate"}},
		},
		Transport: &http.Client{Transport: &http.Transport{TLSClientConfig: s.roots(), ForceAttemptHTTP2: true}},
		Retry:     azpolicy.RetryOptions{RetryDelay: time.Millisecond, MaxRetryDelay: 5 * time.Second},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	return client
}

func ptr[T any](v T) *T { return &v }

func sdkPolicy(vms ...string) armsecurity.JitNetworkAccessPolicy {
	p := armsecurity.JitNetworkAccessPolicy{Kind: ptr("Basic"), Properties: &armsecurity.JitNetworkAccessPolicyProperties{VirtualMachines: []*armsecurity.JitNetworkAccessPolicyVirtualMachine{}}}
	for _, id := range vms {
		p.Properties.VirtualMachines = append(p.Properties.VirtualMachines, &armsecurity.JitNetworkAccessPolicyVirtualMachine{ID: ptr(id), Ports: []*armsecurity.JitNetworkAccessPortRule{
			{Number: ptr[int32](22), Protocol: ptr(armsecurity.ProtocolAll), AllowedSourceAddressPrefix: ptr("*"), MaxRequestAccessDuration: ptr("PT3H")},
			{Number: ptr[int32](3389), Protocol: ptr(armsecurity.ProtocolTCP), AllowedSourceAddressPrefixes: []*string{ptr("198.51.100.0/24"), ptr("192.0.2.10")}, MaxRequestAccessDuration: ptr("P1D")},
		}})
	}
	return p
}

func sdkRequest(vm string, port int32, source string, end time.Time) armsecurity.JitNetworkAccessPolicyInitiateRequest {
	p := &armsecurity.JitNetworkAccessPolicyInitiatePort{Number: ptr(port), EndTimeUTC: ptr(end)}
	if source != "" {
		p.AllowedSourceAddressPrefix = ptr(source)
	}
	return armsecurity.JitNetworkAccessPolicyInitiateRequest{Justification: ptr("patching"),
		VirtualMachines: []*armsecurity.JitNetworkAccessPolicyInitiateVirtualMachine{{ID: ptr(vm), Ports: []*armsecurity.JitNetworkAccessPolicyInitiatePort{p}}}}
}

// pages reads a pager to its end.
func pages[T any](t *testing.T, p *runtime.Pager[T], of func(T) []*armsecurity.JitNetworkAccessPolicy) (names []string, n int) {
	t.Helper()
	for p.More() {
		page, err := p.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n++
		for _, one := range of(page) {
			names = append(names, *one.ID)
		}
	}
	return names, n
}

func TestGoSDK(t *testing.T) {
	s := newServer(t, options{})
	jit := s.sdk(s.owner, subscription)
	ctx := t.Context()

	// Nothing is there yet.
	none, n := pages(t, jit.NewListPager(nil), func(p armsecurity.JitNetworkAccessPoliciesClientListResponse) []*armsecurity.JitNetworkAccessPolicy {
		return p.Value
	})
	if len(none) != 0 || n != 1 {
		t.Errorf("%v on %d pages", none, n)
	}
	if _, err := jit.Delete(ctx, group, region, "default", nil); err != nil {
		t.Errorf("deleting what is not there: %v", err)
	}

	made, err := jit.CreateOrUpdate(ctx, group, region, "default", sdkPolicy(machine("vm1")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *made.ID != defaultPath || *made.Name != "default" || *made.Type != control.PolicyType || *made.Location != region || *made.Kind != "Basic" ||
		*made.Properties.ProvisioningState != "Succeeded" || made.Properties.Requests == nil || len(made.Properties.VirtualMachines[0].Ports) != 2 ||
		*made.Properties.VirtualMachines[0].Ports[0].Protocol != armsecurity.ProtocolAll {
		t.Errorf("%+v", made)
	}

	// What Go sends has nine digits and an offset.
	end := s.clock.Now().Add(30*time.Minute + 123456789).In(time.FixedZone("", 3600))
	asked, err := jit.Initiate(ctx, group, region, "default", sdkRequest(machine("vm1"), 22, "203.0.113.7", end), nil)
	if err != nil {
		t.Fatal(err)
	}
	port := asked.VirtualMachines[0].Ports[0]
	if *asked.Requestor != "admin" || *asked.Justification != "patching" || !asked.StartTimeUTC.Equal(s.clock.Now()) || *asked.VirtualMachines[0].ID != machine("vm1") ||
		*port.Status != "Initiating" || *port.StatusReason != armsecurity.StatusReasonUserRequested || *port.AllowedSourceAddressPrefix != "203.0.113.7" ||
		!port.EndTimeUTC.Equal(end.Truncate(100)) {
		t.Errorf("%+v, %+v", asked, port)
	}
	// Sent again, as the SDK does by itself after a 503, it changes nothing.
	if again, err := jit.Initiate(ctx, group, region, "default", sdkRequest(machine("vm1"), 22, "203.0.113.7", end), nil); err != nil || !again.StartTimeUTC.Equal(*asked.StartTimeUTC) {
		t.Errorf("%+v, %v", again, err)
	}
	got, err := jit.Get(ctx, group, region, "default", nil)
	if err != nil || len(got.Properties.Requests) != 1 {
		t.Fatalf("%+v, %v", got.Properties, err)
	}

	// The time is up.
	s.clock.forward(time.Hour)
	if err := s.engine.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err = jit.Get(ctx, group, region, "default", nil); err != nil {
		t.Fatal(err)
	}
	if p := got.Properties.Requests[0].VirtualMachines[0].Ports[0]; *p.Status != armsecurity.StatusRevoked || *p.StatusReason != armsecurity.StatusReasonExpired {
		t.Errorf("%s, %s", *p.Status, *p.StatusReason)
	}

	if _, err := jit.Delete(ctx, group, region, "default", nil); err != nil {
		t.Error(err)
	}
	_, err = jit.Get(ctx, group, region, "default", nil)
	sdkRefused(t, err, 404, "PolicyNotFound", "default")
}

func sdkRefused(t *testing.T, err error, status int, code string, says ...string) {
	t.Helper()
	r, ok := errors.AsType[*azcore.ResponseError](err)
	if !ok || r.StatusCode != status || r.ErrorCode != code {
		t.Errorf("%v, want %d %s", err, status, code)
		return
	}
	for _, word := range says {
		if !strings.Contains(r.Error(), word) {
			t.Errorf("%v does not say %q", err, word)
		}
	}
}

func TestGoSDKRefusals(t *testing.T) {
	s := newServer(t, options{})
	ctx, jit := t.Context(), s.sdk(s.owner, subscription)
	if _, err := jit.CreateOrUpdate(ctx, group, region, "default", sdkPolicy(machine("vm1")), nil); err != nil {
		t.Fatal(err)
	}
	soon := s.clock.Now().Add(10 * time.Minute)
	ask := func(c *armsecurity.JitNetworkAccessPoliciesClient, name, vm string, port int32, source string, end time.Time) error {
		_, err := c.Initiate(ctx, group, region, name, sdkRequest(vm, port, source, end), nil)
		return err
	}
	subset := "not a subset of policy '" + defaultPath + "'"
	sdkRefused(t, ask(jit, "default", machine("vm1"), 23, "", soon), 400, "InvalidInitiateInput", subset, "23")
	sdkRefused(t, ask(jit, "default", machine("vm2"), 22, "", soon), 400, "InvalidInitiateInput", subset, "vm2")
	sdkRefused(t, ask(jit, "default", machine("vm1"), 22, "", s.clock.Now().Add(4*time.Hour)), 400, "InvalidInitiateInput", subset, "PT3H")
	sdkRefused(t, ask(jit, "default", machine("vm1"), 3389, "203.0.113.7", soon), 400, "InvalidInitiateInput", subset, "203.0.113.7")
	sdkRefused(t, ask(jit, "default", machine("vm1"), 22, "", s.clock.Now().Add(-time.Hour)), 400, "InvalidInitiateInput")
	sdkRefused(t, ask(jit, "other", machine("vm1"), 22, "", soon), 404, "PolicyNotFound", "other")
	sdkRefused(t, ask(jit, "default", "/subscriptions//subscriptions/x", 22, "", soon), 400, "InvalidInitiateInput")
	_, err := jit.Initiate(ctx, group, region, "default", armsecurity.JitNetworkAccessPolicyInitiateRequest{VirtualMachines: []*armsecurity.JitNetworkAccessPolicyInitiateVirtualMachine{
		{ID: ptr(machine("vm1")), Ports: []*armsecurity.JitNetworkAccessPolicyInitiatePort{{Number: ptr[int32](22)}}}}}, nil)
	sdkRefused(t, err, 400, "InvalidInitiateInput", "Only one of fields 'EndTimeUtc' and 'Duration' can be set.")

	edit := func(change func(*armsecurity.JitNetworkAccessPortRule)) error {
		p := sdkPolicy(machine("vm1"))
		change(p.Properties.VirtualMachines[0].Ports[0])
		_, err := jit.CreateOrUpdate(ctx, group, region, "default", p, nil)
		return err
	}
	for name, change := range map[string]func(*armsecurity.JitNetworkAccessPortRule){
		"protocol":     func(p *armsecurity.JitNetworkAccessPortRule) { p.Protocol = ptr(armsecurity.Protocol("")) },
		"protocol All": func(p *armsecurity.JitNetworkAccessPortRule) { p.Protocol = ptr(armsecurity.Protocol("All")) },
		"port":         func(p *armsecurity.JitNetworkAccessPortRule) { p.Number = ptr[int32](65536) },
		"no port":      func(p *armsecurity.JitNetworkAccessPortRule) { p.Number = nil },
		"duration":     func(p *armsecurity.JitNetworkAccessPortRule) { p.MaxRequestAccessDuration = ptr("3h") },
		"too long":     func(p *armsecurity.JitNetworkAccessPortRule) { p.MaxRequestAccessDuration = ptr("P2D") },
		"prefix":       func(p *armsecurity.JitNetworkAccessPortRule) { p.AllowedSourceAddressPrefix = ptr("10.0.0.0/33") },
		"two sources": func(p *armsecurity.JitNetworkAccessPortRule) {
			p.AllowedSourceAddressPrefixes = []*string{ptr("10.0.0.1")}
		},
	} {
		r, ok := errors.AsType[*azcore.ResponseError](edit(change))
		if !ok || r.StatusCode != 400 || r.ErrorCode == "" {
			t.Errorf("%s: %v", name, r)
		}
	}
	_, err = jit.CreateOrUpdate(ctx, group, region, "second", sdkPolicy(machine("vm1")), nil)
	sdkRefused(t, err, 409, "PortInAnotherPolicy", "default")

	reader := s.sdk(s.person("rita", "Reader", control.Everywhere), subscription)
	_, err = reader.CreateOrUpdate(ctx, group, region, "default", sdkPolicy(machine("vm1")), nil)
	sdkRefused(t, err, 403, "AuthorizationFailed", "rita@contoso.com", "jitNetworkAccessPolicies/write")
	_, err = reader.Delete(ctx, group, region, "default", nil)
	sdkRefused(t, err, 403, "AuthorizationFailed", "jitNetworkAccessPolicies/delete")
	sdkRefused(t, ask(reader, "default", machine("vm1"), 22, "", soon), 403, "AuthorizationFailed", "initiate/action")
	_, err = s.sdk("jgt_of-nobody", subscription).Get(ctx, group, region, "default", nil)
	sdkRefused(t, err, 401, "InvalidAuthenticationToken")

	// None of it left a request or an edit.
	got, err := jit.Get(ctx, group, region, "default", nil)
	if err != nil || len(got.Properties.Requests) != 0 || *got.Properties.VirtualMachines[0].Ports[0].Protocol != armsecurity.ProtocolAll {
		t.Errorf("%+v, %v", got.Properties, err)
	}
}

// manyPolicies makes more policies than fit on two pages, in another group.
func (s *server) manyPolicies(n int) {
	s.t.Helper()
	err := s.store.Update(s.t.Context(), func(tx control.Tx) error {
		for i := range n {
			id := control.PolicyID{Subscription: subscription, Group: "many", Location: region, Name: fmt.Sprintf("p%03d", i)}
			if err := tx.PutPolicy(control.Policy{ID: id, Kind: "Basic", State: control.Succeeded, Revision: 1, Created: s.clock.Now(), Modified: s.clock.Now()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
}

func TestGoSDKLists(t *testing.T) {
	s := newServer(t, options{})
	const many = 2*azurePage + 5
	s.manyPolicies(many)
	ctx, jit := t.Context(), s.sdk(s.owner, strings.ToUpper(subscription))
	for _, name := range []string{"default", "second"} {
		if _, err := jit.CreateOrUpdate(ctx, group, region, name, sdkPolicy(), nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := jit.CreateOrUpdate(ctx, group, "northeurope", "default", sdkPolicy(), nil); err != nil {
		t.Fatal(err)
	}
	check := func(name string, ids []string, n, wantIDs, wantPages int) {
		t.Helper()
		slices.Sort(ids)
		if distinct := len(slices.Compact(slices.Clone(ids))); len(ids) != wantIDs || distinct != wantIDs || n != wantPages {
			t.Errorf("%s: %d policies, %d distinct, on %d pages; want %d on %d", name, len(ids), distinct, n, wantIDs, wantPages)
		}
	}
	ids, n := pages(t, jit.NewListPager(nil), func(p armsecurity.JitNetworkAccessPoliciesClientListResponse) []*armsecurity.JitNetworkAccessPolicy {
		return p.Value
	})
	check("List", ids, n, many+3, 3)
	ids, n = pages(t, jit.NewListByRegionPager("WestEurope", nil), func(p armsecurity.JitNetworkAccessPoliciesClientListByRegionResponse) []*armsecurity.JitNetworkAccessPolicy {
		return p.Value
	})
	check("ListByRegion", ids, n, many+2, 3)
	ids, n = pages(t, jit.NewListByResourceGroupPager(strings.ToUpper(group), nil), func(p armsecurity.JitNetworkAccessPoliciesClientListByResourceGroupResponse) []*armsecurity.JitNetworkAccessPolicy {
		return p.Value
	})
	check("ListByResourceGroup", ids, n, 3, 1)
	ids, n = pages(t, jit.NewListByResourceGroupAndRegionPager(group, region, nil), func(p armsecurity.JitNetworkAccessPoliciesClientListByResourceGroupAndRegionResponse) []*armsecurity.JitNetworkAccessPolicy {
		return p.Value
	})
	check("ListByResourceGroupAndRegion", ids, n, 2, 1)
}

// flaky is a store that fails at first, after the commit: the worst case, in
// which the client cannot know.
type flaky struct {
	control.Store
	fail atomic.Int32
}

func (f *flaky) Update(ctx context.Context, do func(control.Tx) error) error {
	err := f.Store.Update(ctx, do)
	if err == nil && f.fail.Add(-1) >= 0 {
		return control.Refuse(control.Unavailable, "StoreUnavailable", "The store does not say whether it was written.")
	}
	return err
}

// After a 503 the SDK asks again by itself. However often it does, there is
// one request.
func TestGoSDKRetries(t *testing.T) {
	var f *flaky
	s := newServer(t, options{store: func(real control.Store) control.Store {
		f = &flaky{Store: real}
		return f
	}})
	ctx, jit := t.Context(), s.sdk(s.owner, subscription)
	if _, err := jit.CreateOrUpdate(ctx, group, region, "default", sdkPolicy(machine("vm1")), nil); err != nil {
		t.Fatal(err)
	}
	if a := func() answered {
		f.fail.Store(1)
		return s.call("POST", defaultPath+"/initiate"+version, `{"virtualMachines":[{"id":"`+machine("vm1")+`","ports":[{"number":22,"duration":"PT1H","allowedSourceAddressPrefix":"192.0.2.1"}]}]}`)
	}(); a.refused(t, 503, "StoreUnavailable").header.Get("Retry-After") != "1" {
		t.Errorf("Retry-After: %q", a.header.Get("Retry-After"))
	}
	f.fail.Store(2)
	end := s.clock.Now().Add(time.Hour)
	if _, err := jit.Initiate(ctx, group, region, "default", sdkRequest(machine("vm1"), 22, "203.0.113.7", end), nil); err != nil {
		t.Fatal(err)
	}
	if left := f.fail.Load(); left >= 0 {
		t.Fatalf("%d failures left: nothing was repeated", left)
	}
	got, err := jit.Get(ctx, group, region, "default", nil)
	if err != nil || len(got.Properties.Requests) != 2 {
		t.Errorf("%d requests, %v", len(got.Properties.Requests), err)
	}
}

// The SDK for JavaScript runs under node, from the packages its lock file
// names.
func TestJavaScriptSDK(t *testing.T) {
	for _, command := range []string{"node", "npm"} {
		if _, err := exec.LookPath(command); err != nil {
			t.Fatalf("%s is not there: run make setup", command)
		}
	}
	dir := t.TempDir()
	for _, name := range []string{"package.json", "package-lock.json", "drive.mjs"} {
		b, err := os.ReadFile(filepath.Join("testdata", "js", name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	run := func(env []string, name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
		return string(out)
	}
	run(nil, "npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	s := newServer(t, options{})
	const many = 2*azurePage + 5
	s.manyPolicies(many)
	out := run([]string{"NODE_EXTRA_CA_CERTS=" + s.ca(), "ENDPOINT=" + s.http.URL, "TOKEN=" + s.owner, "READER=" + s.person("rita", "Reader", control.Everywhere),
		"SUBSCRIPTION=" + subscription, "GROUP=" + group, "MACHINE=" + machine("vm1"), fmt.Sprintf("PAGED=%d", many)}, "node", "drive.mjs")
	if out != "done\n" {
		t.Errorf("it says %q", out)
	}
}
