package control

import (
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	testGroup = Scope("/subscriptions/s1/resourcegroups/g1")
	testVM    = Scope("/subscriptions/s1/resourcegroups/g1/providers/microsoft.compute/virtualmachines/vm1")
)

// allActions is every action the control plane asks for, and some of Azure's
// that a role there may have been written for.
var allActions = []Action{
	ActionRead, ActionWrite, ActionDelete, ActionInitiate, ActionApprove, ActionRevoke, ActionSign,
	ActionVMRead, ActionVMWrite, ActionVMDelete, ActionEnroll, ActionScope, ActionScopes, ActionActivity, ActionRoles, ActionMetrics,
	"Microsoft.Network/networkInterfaces/ipConfigurations/read", "Microsoft.Network/networkInterfaces/write",
	"Microsoft.Network/publicIPAddresses/read", "Microsoft.Network/publicIPAddresses/write",
	"Microsoft.Security/pricings/read", "Microsoft.Authorization/roleAssignments/delete", "Microsoft.Authorization/roleAssignments/read",
}

func TestBuiltinRoles(t *testing.T) {
	read := []Action{ActionRead, ActionScopes, ActionVMRead, ActionActivity,
		"Microsoft.Network/networkInterfaces/ipConfigurations/read", "Microsoft.Network/publicIPAddresses/read", "Microsoft.Security/pricings/read"}
	for role, want := range map[string][]Action{
		"Owner": allActions,
		"Contributor": slices.DeleteFunc(slices.Clone(allActions), func(a Action) bool {
			return a == ActionRoles || a == "Microsoft.Authorization/roleAssignments/delete"
		}),
		"Reader":         append([]Action{ActionMetrics, "Microsoft.Authorization/roleAssignments/read"}, read...),
		"SecurityReader": read,
		"SecurityAdmin": append([]Action{ActionWrite, ActionDelete, ActionInitiate, ActionApprove, ActionRevoke, ActionSign, ActionScope,
			ActionVMWrite, ActionVMDelete, ActionEnroll}, read...),
		"JITRequester": {ActionInitiate, ActionRead, ActionScopes, ActionVMRead,
			"Microsoft.Network/networkInterfaces/ipConfigurations/read", "Microsoft.Network/publicIPAddresses/read"},
	} {
		r, ok := findRole(strings.ToUpper(role), nil)
		if !ok {
			t.Fatalf("no role %s", role)
		}
		for _, a := range allActions {
			if got := r.Allows(a); got != slices.Contains(want, a) {
				t.Errorf("%s allows %s: %v", role, a, got)
			}
		}
	}
	if n := len(BuiltinRoles()); n != 6 {
		t.Errorf("%d built-in roles, of which this test knows 6", n)
	}
}

// allActions must not fall behind the constants: a new action has to be
// thought of for every role.
func TestAllActionsAreTested(t *testing.T) {
	declared := regexp.MustCompile(`(?m)^\t(Action\w+)\s+Action\s*=\s*"([^"]+)"`).FindAllStringSubmatch(source(t, "roles.go"), -1)
	if len(declared) < 16 {
		t.Fatalf("found %d actions in roles.go: this test looks at nothing", len(declared))
	}
	for _, d := range declared {
		if !slices.Contains(allActions, Action(d[2])) {
			t.Errorf("%s is not in allActions", d[1])
		}
	}
}

// What Azure's documents say each sort of user needs is what our roles have:
// AZURE's own least-privileged roles, written with its action strings, work.
func TestAzuresOwnRoles(t *testing.T) {
	for name, test := range map[string]struct {
		role      Role
		can, cant []Action
	}{
		"configure": {
			Role{Actions: []string{"Microsoft.Security/locations/jitNetworkAccessPolicies/write", "Microsoft.Compute/virtualMachines/write"}},
			[]Action{ActionWrite, ActionVMWrite}, []Action{ActionRead, ActionInitiate, ActionDelete, ActionRoles},
		},
		"request": {
			Role{Actions: []string{"Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action", "Microsoft.Security/locations/jitNetworkAccessPolicies/*/read",
				"Microsoft.Compute/virtualMachines/read", "Microsoft.Network/networkInterfaces/*/read"}},
			[]Action{ActionInitiate, ActionVMRead}, []Action{ActionWrite, ActionApprove, ActionRevoke, ActionDelete, ActionActivity},
		},
		"read": {
			Role{Actions: []string{"microsoft.security/locations/jitnetworkaccesspolicies/read", "Microsoft.Security/policies/read", "Microsoft.Compute/virtualMachines/read", "Microsoft.Network/*/read"}},
			[]Action{ActionRead, ActionScopes, ActionVMRead}, []Action{ActionInitiate, ActionWrite, ActionScope},
		},
		"not actions": {
			Role{Actions: []string{"Microsoft.Security/*"}, NotActions: []string{"*/DELETE", "Microsoft.Security/*/approve/action"}},
			[]Action{ActionRead, ActionInitiate, ActionWrite}, []Action{ActionDelete, ActionApprove, ActionVMRead},
		},
		"nothing": {Role{}, nil, allActions},
	} {
		for _, a := range test.can {
			if !test.role.Allows(a) {
				t.Errorf("%s: not allowed %s", name, a)
			}
		}
		for _, a := range test.cant {
			if test.role.Allows(a) {
				t.Errorf("%s: allowed %s", name, a)
			}
		}
	}
}

func TestCallerMay(t *testing.T) {
	owner, _ := findRole("Owner", nil)
	requester, _ := findRole("JITRequester", nil)
	for name, test := range map[string]struct {
		rights, limits []Right
		action         Action
		scope          Scope
		may            bool
	}{
		"nobody":                   {nil, nil, ActionRead, testVM, false},
		"right above":              {[]Right{{owner, "/subscriptions/s1"}}, nil, ActionWrite, testVM, true},
		"right beside":             {[]Right{{owner, "/subscriptions/s1/resourcegroups/g"}}, nil, ActionWrite, testVM, false},
		"right below":              {[]Right{{owner, testVM}}, nil, ActionWrite, testGroup, false},
		"inside the limit":         {[]Right{{owner, Everywhere}}, []Right{{requester, testGroup}}, ActionInitiate, testVM, true},
		"outside the limit's role": {[]Right{{owner, Everywhere}}, []Right{{requester, testGroup}}, ActionWrite, testVM, false},
		"outside its scope":        {[]Right{{owner, Everywhere}}, []Right{{requester, testVM}}, ActionInitiate, testGroup, false},
		"a limit gives nothing":    {nil, []Right{{owner, Everywhere}}, ActionInitiate, testVM, false},
		"limit of nothing":         {[]Right{{owner, Everywhere}}, []Right{}, ActionInitiate, testVM, false},
		"limit of a scope":         {[]Right{{owner, Everywhere}}, []Right{{anyRole, testGroup}}, ActionWrite, testVM, true},
	} {
		c := Caller{ID: "local:x", Name: "x", Rights: test.rights, Limits: test.limits}
		if got := c.May(test.action, test.scope); got != test.may {
			t.Errorf("%s: may %v", name, got)
		}
		err := AsError(c.Must(test.action, test.scope))
		if (err == nil) != test.may {
			t.Errorf("%s: must says %v", name, err)
		}
		if err != nil && (err.Kind != Forbidden || err.Code != "AuthorizationFailed" || !strings.Contains(err.Message, string(test.action)) || !strings.Contains(err.Message, "'"+string(test.scope)+"'")) {
			t.Errorf("%s: the refusal is %+v", name, err)
		}
	}
}

func TestHoldsUnderLimits(t *testing.T) {
	approver := Role{Name: "Approver", Actions: []string{string(ActionApprove)}}
	c := Caller{Rights: []Right{{approver, testGroup}}}
	if !c.Holds("approver", testVM) || c.Holds("approver", "/subscriptions/s1") || c.Holds("Owner", testVM) {
		t.Error("without limits")
	}
	c.Limits = []Right{{anyRole, testVM}}
	if !c.Holds("Approver", testVM) || c.Holds("Approver", testGroup) || c.Holds("", testVM) {
		t.Error("a limit without a role bounds the scope")
	}
	owner, _ := findRole("Owner", nil)
	c.Limits = []Right{{owner, testVM}}
	if c.Holds("Approver", testVM) || c.Holds("Owner", testVM) {
		t.Error("a limit by a role lets through that role alone")
	}
}

func TestRoleWithin(t *testing.T) {
	builtin := func(name string) Role { r, _ := findRole(name, nil); return r }
	for name, test := range map[string]struct {
		r, of Role
		want  bool
	}{
		"itself":                       {builtin("Contributor"), builtin("Contributor"), true},
		"of an Owner":                  {builtin("SecurityAdmin"), builtin("Owner"), true},
		"of a Contributor":             {builtin("SecurityAdmin"), builtin("Contributor"), true},
		"Owner of a Contributor":       {builtin("Owner"), builtin("Contributor"), false},
		"Reader of a Contributor":      {builtin("Reader"), builtin("Contributor"), true},
		"requester of SecurityAdmin":   {builtin("JITRequester"), builtin("SecurityAdmin"), true},
		"reader of a requester":        {builtin("SecurityReader"), builtin("JITRequester"), false},
		"an action of a pattern":       {Role{Actions: []string{"A/x/read"}}, Role{Actions: []string{"a/*"}}, true},
		"a pattern of an action":       {Role{Actions: []string{"a/*"}}, Role{Actions: []string{"a/x/read"}}, false},
		"a pattern of two":             {Role{Actions: []string{"*/read"}}, Role{Actions: []string{"a/*", "*/write"}}, false},
		"what is taken out":            {Role{Actions: []string{"a/write"}}, Role{Actions: []string{"*"}, NotActions: []string{"a/*"}}, false},
		"what may be taken out":        {Role{Actions: []string{"*/write"}}, Role{Actions: []string{"*"}, NotActions: []string{"a/*"}}, false},
		"beside what is taken out":     {Role{Actions: []string{"b/write"}}, Role{Actions: []string{"*"}, NotActions: []string{"a/*"}}, true},
		"it takes more out":            {Role{Actions: []string{"*"}, NotActions: []string{"a*"}}, Role{Actions: []string{"*"}, NotActions: []string{"a/*"}}, true},
		"it takes less out":            {Role{Actions: []string{"*"}, NotActions: []string{"a/*"}}, Role{Actions: []string{"*"}, NotActions: []string{"a*"}}, false},
		"nothing is within everything": {Role{}, Role{}, true},
	} {
		if got := test.r.within(test.of); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCallerScopes(t *testing.T) {
	reader, _ := findRole("SecurityReader", nil)
	requester, _ := findRole("JITRequester", nil)
	c := Caller{Rights: []Right{{reader, testVM}, {reader, testGroup}, {requester, "/subscriptions/s2"}, {reader, "/subscriptions/s3"}, {reader, testGroup}}}
	if got := c.scopes(ActionActivity); !slices.Equal(got, []Scope{testGroup, "/subscriptions/s3"}) {
		t.Errorf("scopes are %q", got)
	}
	if got := within(c.scopes(ActionActivity), "/subscriptions/s1"); !slices.Equal(got, []Scope{testGroup}) {
		t.Errorf("in the subscription: %q", got)
	}
	if got := within(c.scopes(ActionActivity), testVM); !slices.Equal(got, []Scope{testVM}) {
		t.Errorf("in the machine: %q", got)
	}
	if got := within(c.scopes(ActionActivity), "/subscriptions/s2"); len(got) != 0 {
		t.Errorf("elsewhere: %q", got)
	}
	c.Limits = []Right{{reader, testVM}}
	if got := c.scopes(ActionActivity); !slices.Equal(got, []Scope{testVM}) {
		t.Errorf("with a limit: %q", got)
	}
}

// likeRegexp is what matches has to be equal to.
func likeRegexp(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(`(?s)\A` + strings.Join(parts, ".*") + `\z`).MatchString(s)
}

func FuzzMatches(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*a", "a"}, {"a*b*c", "abbc"}, {"*/read", "x/y/read"}, {"**", "a"}, {"a", "ab"}, {"", ""}, {"a**a", "aa"}, {"*ab*ab", "abab"}, {"*ab*b", "ab"}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, s string) {
		if len(pattern) > 100 || len(s) > 200 || !regexp.MustCompile(`\A[ -~]*\z`).MatchString(pattern+s) {
			return
		}
		if got, want := matches(pattern, s), likeRegexp(pattern, s); got != want {
			t.Errorf("matches(%q, %q) is %v", pattern, s, got)
		}
		// What both patterns match overlaps; what one covers, it matches.
		if p, q := strings.ToLower(pattern), strings.ToLower(s); true {
			if !strings.Contains(q, "*") && overlap(p, q) != matches(p, q) {
				t.Errorf("overlap(%q, %q) is %v", p, q, overlap(p, q))
			}
			if overlap(p, q) != overlap(q, p) {
				t.Errorf("overlap of %q and %q depends on the order", p, q)
			}
			if covers(p, q) && !overlap(p, q) {
				t.Errorf("%q covers %q and does not overlap it", p, q)
			}
		}
	})
}

// A role within another allows nothing the other does not, by the very check
// that a call makes: over small alphabets, every action there is.
func TestWithinAgreesWithAllows(t *testing.T) {
	patterns := []string{"", "a", "*", "a*", "*a", "a*b", "b*", "*b*", "ab"}
	var actions []Action
	for _, x := range []string{"", "a", "b"} {
		for _, y := range []string{"", "a", "b"} {
			for _, z := range []string{"", "a", "b"} {
				actions = append(actions, Action(x+y+z))
			}
		}
	}
	within, escaped := 0, 0
	for _, a := range patterns {
		for _, not := range patterns {
			for _, b := range patterns {
				for _, bnot := range patterns {
					r, of := Role{Actions: []string{a}, NotActions: []string{not}}, Role{Actions: []string{b}, NotActions: []string{bnot}}
					if !r.within(of) {
						escaped++
						continue
					}
					within++
					for _, x := range actions {
						if r.Allows(x) && !of.Allows(x) {
							t.Fatalf("%+v is within %+v, and allows %q", r, of, x)
						}
					}
				}
			}
		}
	}
	if within < 100 || escaped < 100 {
		t.Errorf("%d within, %d not: this test looks at nothing", within, escaped)
	}
}
