//go:build linux

package e2e_test

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
	"github.com/Azure/azure-sdk-for-go/sdk/resourcemanager/security/armsecurity"
)

// lone is a control plane with nothing around it, on an empty directory.
func lone(t *testing.T, args ...string) *plane {
	t.Helper()
	privileged(t)
	place := newNamespace(t)
	place.run(t, "ip", "link", "set", "lo", "up")
	p := newPlane(t, place, "127.0.0.1:8443", args...)
	p.start()
	return p
}

// refused requires that Azure's client says a status and a code.
func refused(t *testing.T, err error, status int, code string) {
	t.Helper()
	var answer *azcore.ResponseError
	if !errors.As(err, &answer) || answer.StatusCode != status || answer.ErrorCode != code {
		t.Errorf("the answer is %v, want %d %s", err, status, code)
	}
}

// names lists the policies that a pager of Azure's client goes through.
func names[R any](t *testing.T, pager *runtime.Pager[R], list func(R) []*armsecurity.JitNetworkAccessPolicy) string {
	t.Helper()
	var all []string
	for pager.More() {
		page, err := pager.NextPage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range list(page) {
			all = append(all, *p.Name)
		}
	}
	return strings.Join(all, " ")
}

// A fresh directory and one command: Azure's own client goes through all eight
// operations, with no agent anywhere.
func TestSDKOnAFreshControlPlane(t *testing.T) {
	t.Parallel()
	p := lone(t)
	admin := p.read("admin.token")
	c := p.sdk(admin, "")
	ctx := t.Context()

	for _, name := range []string{"admin.token", "trust.json", "metrics.token"} {
		p.read(name)
	}
	_, err := c.Get(ctx, group, location, policyName, nil)
	if answer := (*azcore.ResponseError)(nil); !errors.As(err, &answer) || answer.StatusCode != http.StatusNotFound {
		t.Fatalf("a policy that is not there: %v", err)
	}
	gone, err := c.Delete(ctx, group, location, policyName, nil)
	if err != nil {
		t.Fatalf("deleting a policy that is not there: %v %v", gone, err)
	}

	made, err := c.CreateOrUpdate(ctx, group, location, policyName, policyOf(guards(vmID, rule(22, "10.77.0.0/24", "PT3H"), rule(3389, "*", "PT1H"))), nil)
	if err != nil {
		t.Fatal(err)
	}
	if *made.ID != policyPath || *made.Properties.ProvisioningState != "Succeeded" || len(made.Properties.Requests) != 0 {
		t.Errorf("made %+v", made)
	}
	if _, err := c.CreateOrUpdate(ctx, group, "northeurope", "other", policyOf(guards(strings.Replace(vmID, "web1", "web2", 1), rule(22, "*", "PT3H"))), nil); err != nil {
		t.Fatal(err)
	}
	for want, got := range map[string]string{
		"all": names(t, c.NewListPager(nil), func(r armsecurity.JitNetworkAccessPoliciesClientListResponse) []*armsecurity.JitNetworkAccessPolicy {
			return r.Value
		}),
		"the region's": names(t, c.NewListByRegionPager(location, nil), func(r armsecurity.JitNetworkAccessPoliciesClientListByRegionResponse) []*armsecurity.JitNetworkAccessPolicy {
			return r.Value
		}),
		"the group's": names(t, c.NewListByResourceGroupPager(strings.ToUpper(group), nil), func(r armsecurity.JitNetworkAccessPoliciesClientListByResourceGroupResponse) []*armsecurity.JitNetworkAccessPolicy {
			return r.Value
		}),
		"the group's in region": names(t, c.NewListByResourceGroupAndRegionPager(group, "northeurope", nil), func(r armsecurity.JitNetworkAccessPoliciesClientListByResourceGroupAndRegionResponse) []*armsecurity.JitNetworkAccessPolicy {
			return r.Value
		}),
	} {
		expect := map[string]string{"all": "other default", "the region's": "default", "the group's": "other default", "the group's in region": "other"}[want]
		if got != expect {
			t.Errorf("%s: %q, want %q", want, got, expect)
		}
	}

	end := time.Now().Add(time.Hour)
	answer, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, alice4, end), nil)
	if err != nil {
		t.Fatal(err)
	}
	port := answer.VirtualMachines[0].Ports[0]
	if *port.Status != "Initiating" || *port.StatusReason != "UserRequested" || *port.AllowedSourceAddressPrefix != alice4 || *answer.Justification != "e2e" || port.EndTimeUTC.Sub(end).Abs() > time.Microsecond {
		t.Errorf("the answer to initiate: %+v %+v", answer, port)
	}
	// No source: where the call comes from.
	answer, err = c.Initiate(ctx, group, location, policyName, asks(vmID, 3389, "", time.Now().Add(time.Minute)), nil)
	if err != nil || *answer.VirtualMachines[0].Ports[0].AllowedSourceAddressPrefix != "127.0.0.1" {
		t.Errorf("without a source: %+v %v", answer, err)
	}

	for _, bad := range []struct {
		ask    armsecurity.JitNetworkAccessPolicyInitiateRequest
		policy string
		status int
		code   string
	}{
		{asks(vmID, 22, "192.0.2.1", end), policyName, 400, "InvalidInitiateInput"},
		{asks(vmID, 22, "10.77.0.0/16", end), policyName, 400, "InvalidInitiateInput"},
		{asks(vmID, 23, alice4, end), policyName, 400, "InvalidInitiateInput"},
		{asks(vmID, 22, alice4, time.Now().Add(4*time.Hour)), policyName, 400, "InvalidInitiateInput"},
		{asks(vmID, 22, alice4, time.Now().Add(-time.Hour)), policyName, 400, "InvalidInitiateInput"},
		{asks(strings.Replace(vmID, "web1", "web3", 1), 22, alice4, end), policyName, 400, "InvalidInitiateInput"},
		{asks(vmID, 22, alice4, end), "missing", 404, "PolicyNotFound"},
	} {
		_, err := c.Initiate(ctx, group, location, bad.policy, bad.ask, nil)
		refused(t, err, bad.status, bad.code)
	}
	_, err = p.sdk("jgt_nobody", "").Get(ctx, group, location, policyName, nil)
	refused(t, err, http.StatusUnauthorized, "InvalidAuthenticationToken")

	// Somebody who may ask, and nothing else.
	p.command("user", "add", "alice", "--role", "JITRequester", "--scope", "/subscriptions/"+subscription+"/resourceGroups/"+group)
	hers := p.sdk(tokenIn(p.command("token", "create", "--for", "alice"), "jgt_"), "")
	if _, err := hers.Initiate(ctx, group, location, policyName, asks(vmID, 22, bob4, time.Now().Add(time.Minute)), nil); err != nil {
		t.Errorf("a requester's request: %v", err)
	}
	_, err = hers.CreateOrUpdate(ctx, group, location, policyName, policyOf(guards(vmID, rule(22, "*", "PT3H"))), nil)
	refused(t, err, http.StatusForbidden, "AuthorizationFailed")
	if !strings.Contains(err.Error(), "jitNetworkAccessPolicies/write") {
		t.Errorf("the refusal does not name the action: %v", err)
	}
	_, err = hers.Delete(ctx, group, location, policyName, nil)
	refused(t, err, http.StatusForbidden, "AuthorizationFailed")

	// Everything acknowledged is there after a crash.
	p.kill()
	p.start()
	got, err := c.Get(ctx, group, location, policyName, nil)
	if err != nil || len(got.Properties.Requests) != 3 {
		t.Fatalf("after a crash: %+v %v", got.Properties, err)
	}

	// A short one ends by itself.
	if _, err := c.Initiate(ctx, group, location, policyName, asks(vmID, 22, "10.77.0.9", time.Now().Add(2*time.Second)), nil); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the request should expire", func() bool { return portState(t, c, 22) == "Revoked Expired" })

	if _, err := c.Delete(ctx, strings.ToLower(group), location, policyName, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Get(ctx, group, location, policyName, nil); err == nil {
		t.Error("a deleted policy is still there")
	}
	p.stop()
}
