package control

import (
	"net/netip"
	"slices"
	"strings"
)

// Action is what a role allows, in Azure's words. A role's own actions may
// have "*" for any run of characters.
type Action string

// The actions the control plane asks for.
const (
	ActionRead     Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/read"
	ActionWrite    Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/write"
	ActionDelete   Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/delete"
	ActionInitiate Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/initiate/action"
	// The rest has no action of Azure's; the words follow Azure's pattern.
	ActionApprove  Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/approve/action"
	ActionRevoke   Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/revoke/action"
	ActionSign     Action = "Microsoft.Security/locations/jitNetworkAccessPolicies/sign/action"
	ActionVMRead   Action = "Microsoft.Compute/virtualMachines/read"
	ActionVMWrite  Action = "Microsoft.Compute/virtualMachines/write"
	ActionVMDelete Action = "Microsoft.Compute/virtualMachines/delete"
	ActionEnroll   Action = "Microsoft.Compute/virtualMachines/enroll/action"
	ActionScope    Action = "Microsoft.Security/policies/write"
	ActionScopes   Action = "Microsoft.Security/policies/read"
	ActionActivity Action = "Microsoft.Insights/eventtypes/values/read"
	ActionRoles    Action = "Microsoft.Authorization/roleAssignments/write"
	ActionMetrics  Action = "Microsoft.Insights/metrics/read"
)

// Role is a role definition.
type Role struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Actions     []string `json:"actions"`
	NotActions  []string `json:"notActions,omitempty"`
}

// Allows reports whether the role has the action. Letter case is ignored, as
// Azure does.
func (r Role) Allows(a Action) bool {
	has := func(pattern string) bool { return matches(strings.ToLower(pattern), strings.ToLower(string(a))) }
	return slices.ContainsFunc(r.Actions, has) && !slices.ContainsFunc(r.NotActions, has)
}

// matches holds s against a pattern in which "*" is any run of characters.
func matches(pattern, s string) bool {
	head, rest, starred := strings.Cut(pattern, "*")
	if !starred {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	s = s[len(head):]
	parts := strings.Split(rest, "*")
	for _, part := range parts[:len(parts)-1] {
		i := strings.Index(s, part)
		if i < 0 {
			return false
		}
		s = s[i+len(part):]
	}
	return strings.HasSuffix(s, parts[len(parts)-1])
}

// covers reports whether every action that pattern p allows, q allows too.
func covers(q, p string) bool {
	// A star of p stands for anything, and only a star of q takes a star.
	return matches(strings.ToLower(q), strings.ToLower(p))
}

// overlap reports whether some action is matched by both patterns.
func overlap(p, q string) bool {
	p, q = strings.ToLower(p), strings.ToLower(q)
	// meet[j]: what is left of p and q[j:] have a string in common.
	meet := make([]bool, len(q)+1)
	for i := len(p); i >= 0; i-- {
		last := slices.Clone(meet) // for p[i+1:]
		for j := len(q); j >= 0; j-- {
			switch {
			case i == len(p) && j == len(q):
				meet[j] = true
			case i < len(p) && p[i] == '*':
				meet[j] = last[j] || j < len(q) && meet[j+1]
			case j < len(q) && q[j] == '*':
				meet[j] = meet[j+1] || i < len(p) && last[j]
			default:
				meet[j] = i < len(p) && j < len(q) && p[i] == q[j] && last[j+1]
			}
		}
	}
	return meet[0]
}

// within reports whether role r allows nothing that role of does not. It may
// say no where the answer is yes, never the reverse.
func (r Role) within(of Role) bool {
	for _, a := range r.Actions {
		if !slices.ContainsFunc(of.Actions, func(q string) bool { return covers(q, a) }) {
			return false
		}
		for _, not := range of.NotActions {
			excluded := slices.ContainsFunc(r.NotActions, func(q string) bool { return covers(q, not) })
			if !excluded && overlap(a, not) {
				return false
			}
		}
	}
	return true
}

// covers reports whether the caller has, by one right and inside the limits,
// all that role r allows at s.
func (c Caller) covers(r Role, s Scope) bool {
	all := func(have Right) bool { return have.Scope.Covers(s) && r.within(have.Role) }
	return slices.ContainsFunc(c.Rights, all) && (c.Limits == nil || slices.ContainsFunc(c.Limits, all))
}

// scopes are where the caller may do a, none of them below another. They are
// all there is: the caller may do it there and below, and nowhere else.
func (c Caller) scopes(a Action) []Scope {
	var may []Scope
	for _, r := range slices.Concat(c.Rights, c.Limits) {
		if c.May(a, r.Scope) {
			may = append(may, r.Scope)
		}
	}
	slices.Sort(may)
	may = slices.Compact(may)
	return slices.DeleteFunc(slices.Clone(may), func(s Scope) bool {
		return slices.ContainsFunc(may, func(wider Scope) bool { return wider != s && wider.Covers(s) })
	})
}

// MaySomewhere reports whether there is a scope at which the caller may do a.
func (c Caller) MaySomewhere(a Action) bool { return len(c.scopes(a)) > 0 }

// within narrows scopes to what is in s.
func within(scopes []Scope, s Scope) []Scope {
	var in []Scope
	for _, may := range scopes {
		switch {
		case may.Covers(s):
			return []Scope{s}
		case s.Covers(may):
			in = append(in, may)
		}
	}
	return in
}

// mustSomewhere refuses who may do a neither at s nor anywhere below it.
func (c Caller) mustSomewhere(a Action, s Scope) error {
	if len(within(c.scopes(a), s)) > 0 {
		return nil
	}
	return c.Must(a, s)
}

// anyRole is the limit of a token that has none but a scope.
var anyRole = Role{Actions: []string{"*"}}

// BuiltinRoles are there without being defined. JITRequester can ask for
// access and see what it needs for that, and nothing else.
func BuiltinRoles() []Role {
	readers := []string{"Microsoft.Security/*/read", "Microsoft.Compute/*/read", "Microsoft.Network/*/read", string(ActionActivity)}
	return []Role{
		{Name: "Owner", Description: "everything", Actions: []string{"*"}},
		{Name: "Contributor", Description: "everything but giving roles", Actions: []string{"*"}, NotActions: []string{"Microsoft.Authorization/*/write", "Microsoft.Authorization/*/delete"}},
		{Name: "Reader", Description: "sees everything", Actions: []string{"*/read"}},
		{Name: "SecurityReader", Description: "sees policies, machines and activity", Actions: readers},
		{Name: "SecurityAdmin", Description: "configures, requests, approves and revokes", Actions: append([]string{
			"Microsoft.Security/*", string(ActionVMWrite), string(ActionVMDelete), string(ActionEnroll)}, readers...)},
		{Name: "JITRequester", Description: "requests access, and nothing else", Actions: []string{
			string(ActionInitiate), "Microsoft.Security/locations/jitNetworkAccessPolicies/*/read", string(ActionRead),
			string(ActionScopes), string(ActionVMRead), "Microsoft.Network/networkInterfaces/*/read", "Microsoft.Network/publicIPAddresses/read"}},
	}
}

// Assignment gives a role to a principal at a scope.
type Assignment struct {
	Principal string `json:"principal"` // a Caller's ID, or "group:" and a group's name
	Role      string `json:"role"`
	Scope     Scope  `json:"scope"`
}

// Right is a role as it was given: what a Caller holds.
type Right struct {
	Role  Role
	Scope Scope
}

// The types of callers, as systemData writes them.
const (
	TypeUser        = "User"
	TypeApplication = "Application"
)

// Caller is who asks, as the credentials say, with the rights that were found
// for them.
type Caller struct {
	ID      string     // stable and unique: "local:alice", "ISSUER#SUBJECT"
	Name    string     // what people know them by; the requestor of a request
	Type    string     // TypeUser or TypeApplication
	Rights  []Right    //
	Address netip.Addr // where the call comes from
	Request string     // the call's id, for the record
	// Limits bound a token to less than its owner may: nil is no bound.
	Limits []Right
}

// May reports whether the caller may do a at scope s.
func (c Caller) May(a Action, s Scope) bool {
	covers := func(r Right) bool { return r.Scope.Covers(s) && r.Role.Allows(a) }
	return slices.ContainsFunc(c.Rights, covers) && (c.Limits == nil || slices.ContainsFunc(c.Limits, covers))
}

// Holds reports whether the caller has the role at scope s. A limit without a
// role's name bounds the scope alone.
func (c Caller) Holds(role string, s Scope) bool {
	named := func(r Right) bool { return r.Scope.Covers(s) && strings.EqualFold(r.Role.Name, role) }
	leaves := func(r Right) bool { return named(r) || r.Role.Name == "" && r.Scope.Covers(s) }
	return slices.ContainsFunc(c.Rights, named) && (c.Limits == nil || slices.ContainsFunc(c.Limits, leaves))
}

// Must refuses what the caller may not, naming the action and the scope.
func (c Caller) Must(a Action, s Scope) error {
	if c.May(a, s) {
		return nil
	}
	return Refuse(Forbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s'.", c.Name, c.ID, a, s)
}
