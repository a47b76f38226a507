package api

import (
	"errors"
	"net/url"
	"strings"
	"testing"
)

func find(t *testing.T, method, target string) (*route, map[string]string, error) {
	t.Helper()
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, nil, err
	}
	segments, err := segmentsOf(u)
	if err != nil {
		return nil, nil, err
	}
	r, params, allowed := newRoutes(table()).find(method, segments)
	if r == nil && allowed != nil {
		return nil, nil, errors.New("allowed: " + strings.Join(allowed, ", "))
	}
	return r, params, nil
}

func TestRoutes(t *testing.T) {
	const one = "/subscriptions/S/resourceGroups/G/providers/Microsoft.Security/locations/westeurope/jitNetworkAccessPolicies/default"
	for _, c := range []struct{ method, path, id string }{
		{"GET", "/subscriptions/S/providers/Microsoft.Security/jitNetworkAccessPolicies", "JitNetworkAccessPolicies_List"},
		{"GET", "/subscriptions/S/providers/Microsoft.Security/locations/L/jitNetworkAccessPolicies", "JitNetworkAccessPolicies_ListByRegion"},
		{"GET", "/subscriptions/S/resourceGroups/G/providers/Microsoft.Security/jitNetworkAccessPolicies", "JitNetworkAccessPolicies_ListByResourceGroup"},
		{"GET", "/subscriptions/S/resourceGroups/G/providers/Microsoft.Security/locations/L/jitNetworkAccessPolicies", "JitNetworkAccessPolicies_ListByResourceGroupAndRegion"},
		{"GET", one, "JitNetworkAccessPolicies_Get"},
		{"HEAD", one, "JitNetworkAccessPolicies_Get"},
		{"PUT", one, "JitNetworkAccessPolicies_CreateOrUpdate"},
		{"DELETE", one, "JitNetworkAccessPolicies_Delete"},
		{"POST", one + "/initiate", "JitNetworkAccessPolicies_Initiate"},
		{"POST", one + "/Initiate", "JitNetworkAccessPolicies_Initiate"},
		{"POST", strings.ToUpper(one) + "/INITIATE", "JitNetworkAccessPolicies_Initiate"},
		{"POST", strings.ToLower(one) + "/initiate", "JitNetworkAccessPolicies_Initiate"},
		{"GET", "/Subscriptions/S/ResourceGroups/a%28b%29/providers/microsoft.Security/jitnetworkaccesspolicies", "JitNetworkAccessPolicies_ListByResourceGroup"},
		{"GET", "/api/v1/vms/counts", "CountVMs"},
		{"GET", "/api/v1/vms/subscriptions/S/resourcegroups/G/providers/Microsoft.Compute/virtualMachines/vm1", "GetVM"},
		{"POST", "/api/v1/vms/subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/vm1/request", "RequestVM"},
		{"GET", "/api/v1/policies" + one + "/approval", "GetApproval"},
		{"GET", "/", ""},
		{"GET", "/API/v1/vms", ""},
		{"GET", "/api/v2/vms", ""},
		{"GET", one + "/initiate", "allowed: POST"},
		{"PATCH", one, "allowed: GET, PUT, DELETE"},
		{"POST", one + "/revoke", ""},
		{"GET", "/subscriptions/S/providers/Microsoft.Compute/jitNetworkAccessPolicies", ""},
	} {
		r, _, err := find(t, c.method, c.path)
		got := ""
		if err != nil {
			got = err.Error()
		} else if r != nil {
			got = r.id
		}
		if got != c.id {
			t.Errorf("%s %s: %q, want %q", c.method, c.path, got, c.id)
		}
	}
	if _, params, _ := find(t, "GET", "/Subscriptions/Sub-1/ResourceGroups/a%28b%29/providers/microsoft.Security/jitnetworkaccesspolicies"); params["group"] != "a(b)" || params["subscription"] != "Sub-1" {
		t.Errorf("parameters: %v", params)
	}
}

// Threats by path: another segment hidden in one, a step up, an encoding of an
// encoding.
func TestPathsRefused(t *testing.T) {
	for _, path := range []string{
		"//subscriptions/S/providers/Microsoft.Security/jitNetworkAccessPolicies",
		"/subscriptions//subscriptions/S",
		"/subscriptions/S%2FresourceGroups%2FG/providers/Microsoft.Security/jitNetworkAccessPolicies",
		"/subscriptions/S%5CresourceGroups/providers/x",
		"/subscriptions/../api/v1/vms", "/subscriptions/%2e%2e/api/v1/vms", "/subscriptions/./x", "/subscriptions/%2E/x",
		"/subscriptions/S%252F/x", "/subscriptions/S%00/x", "/subscriptions/S%0d%0aX:y/x", "/subscriptions/S%3fapi-version=1/x", "/subscriptions/S%23/x",
		"/subscriptions/%ff/x", "/subscriptions/%E2%80%AE/x", "/subscriptions/S/",
		"/" + strings.Repeat("a", maxPath), "/x/" + strings.Repeat("a", maxSegment+1),
	} {
		if r, _, err := find(t, "GET", path); err == nil {
			t.Errorf("%.80s leads to %v", path, r)
		} else if rf, ok := errors.AsType[*refusal](err); !ok || rf.status < 400 || rf.status > 499 {
			t.Errorf("%.80s: %v", path, err)
		}
	}
}

// Whatever is asked, a route's parameters are whole segments with nothing in
// them that a second reader could split again.
func FuzzRouter(f *testing.F) {
	routes := newRoutes(table())
	for _, r := range table() {
		f.Add(strings.NewReplacer("{", "", "}", "").Replace(r.pattern.String()))
	}
	f.Add("/subscriptions/%2e%2e/%252f//")
	f.Fuzz(func(t *testing.T, target string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		segments, err := segmentsOf(u)
		if err != nil {
			return
		}
		for _, method := range []string{"GET", "PUT", "POST", "DELETE", "PATCH"} {
			r, params, _ := routes.find(method, segments)
			if r == nil {
				continue
			}
			for name, v := range params {
				if v == "" || v == "." || v == ".." || strings.ContainsAny(v, "/\\%?#\x00\r\n") {
					t.Errorf("%s: %s is %q", target, name, v)
				}
			}
		}
	})
}
