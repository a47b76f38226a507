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

// Caller is who asks, as the credentials say, with the rights that were found
// for them.
type Caller struct {
	ID      string     // stable and unique: "local:alice", "ISSUER#SUBJECT"
	Name    string     // what people know them by; the requestor of a request
	Type    string     // User or Application, as systemData writes it
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

// Holds reports whether the caller has the role at scope s.
func (c Caller) Holds(role string, s Scope) bool {
	covers := func(r Right) bool { return r.Scope.Covers(s) && strings.EqualFold(r.Role.Name, role) }
	return slices.ContainsFunc(c.Rights, covers) && (c.Limits == nil || slices.ContainsFunc(c.Limits, covers))
}

// Must refuses what the caller may not, naming the action and the scope.
func (c Caller) Must(a Action, s Scope) error {
	if c.May(a, s) {
		return nil
	}
	return Refuse(Forbidden, "AuthorizationFailed",
		"The client '%s' with object id '%s' does not have authorization to perform action '%s' over scope '%s'.", c.Name, c.ID, a, s)
}
