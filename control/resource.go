package control

import (
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// VMID is the resource id of a virtual machine:
// /subscriptions/S/resourceGroups/G/providers/NAMESPACE/TYPE/NAME. It keeps
// the letter case it was given; ids are compared by Key.
type VMID struct {
	Subscription, Group string
	Kind                string // namespace and type: Microsoft.Compute/virtualMachines
	Name                string
}

// Kinds of machines with a meaning of their own, in lower case.
const (
	kindClassic = "microsoft.classiccompute/virtualmachines"
)

// The parts of a resource id. What Azure lets through, less what would make
// an id ambiguous: slashes, spaces, and "*", which ends a scope in a policy.
var (
	subscriptionPart = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z-]{0,63}$`)
	groupPart        = regexp.MustCompile(`^[-\w._()]{1,90}$`)
	namePart         = regexp.MustCompile(`^[-\w._]{1,80}$`)
	kindPart         = regexp.MustCompile(`^[A-Za-z][\w.]{0,62}/[A-Za-z]\w{0,62}$`)
)

// ParseVMID reads a resource id, its fixed words in any letter case.
func ParseVMID(s string) (VMID, error) {
	p := strings.Split(s, "/")
	if len(p) != 9 || p[0] != "" || !strings.EqualFold(p[1], "subscriptions") || !strings.EqualFold(p[3], "resourceGroups") || !strings.EqualFold(p[5], "providers") {
		return VMID{}, fmt.Errorf("%q is not a virtual machine's id: /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/NAME", clip(s))
	}
	id := VMID{Subscription: p[2], Group: p[4], Kind: p[6] + "/" + p[7], Name: p[8]}
	switch {
	case !subscriptionPart.MatchString(id.Subscription):
		return VMID{}, fmt.Errorf("linked subscription %q was not found", clip(id.Subscription))
	case !groupPart.MatchString(id.Group) || dots(id.Group):
		return VMID{}, fmt.Errorf("%q is not the name of a resource group", clip(id.Group))
	case !kindPart.MatchString(id.Kind):
		return VMID{}, fmt.Errorf("%q is not a kind of virtual machine", clip(id.Kind))
	case !namePart.MatchString(id.Name) || dots(id.Name):
		return VMID{}, fmt.Errorf("%q is not the name of a virtual machine", clip(id.Name))
	}
	return id, nil
}

// dots reports whether s is a step in a path rather than a name.
func dots(s string) bool { return strings.Trim(s, ".") == "" }

// unprintable reports what has no place in a line of text.
func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// clip keeps what a stranger sent short enough for a message.
func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// String is the id as ParseVMID reads it.
func (id VMID) String() string {
	return "/subscriptions/" + id.Subscription + "/resourceGroups/" + id.Group + "/providers/" + id.Kind + "/" + id.Name
}

// Key is the id in the one spelling ids are compared by.
func (id VMID) Key() string {
	return lower("/subscriptions/", id.Subscription, "/resourcegroups/", id.Group, "/providers/", id.Kind, "/", id.Name)
}

// lower is what parts are together, in lower case. Ids are asked for their Key
// again and again, and are short and ASCII: this allocates the Key and no more.
func lower(parts ...string) string {
	var room [256]byte
	out := room[:0]
	for _, p := range parts {
		out = append(out, p...)
	}
	for i, c := range out {
		switch {
		case c >= utf8.RuneSelf:
			return strings.ToLower(strings.Join(parts, ""))
		case 'A' <= c && c <= 'Z':
			out[i] = c + 'a' - 'A'
		}
	}
	return string(out)
}

// same reports whether two ids have the same Key.
func (id VMID) same(o VMID) bool {
	return id == o || strings.EqualFold(id.Name, o.Name) && strings.EqualFold(id.Group, o.Group) &&
		strings.EqualFold(id.Subscription, o.Subscription) && strings.EqualFold(id.Kind, o.Kind)
}

// Scope is the machine alone.
func (id VMID) Scope() Scope { return Scope(id.Key()) }

// Classic reports whether the machine is of the kind JIT does not support.
func (id VMID) Classic() bool { return strings.EqualFold(id.Kind, kindClassic) }

// MarshalText writes what String does.
func (id VMID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads what ParseVMID does.
func (id *VMID) UnmarshalText(b []byte) (err error) {
	*id, err = ParseVMID(string(b))
	return err
}

// PolicyType is the resource type of a policy.
const PolicyType = "Microsoft.Security/locations/jitNetworkAccessPolicies"

// PolicyID names a policy. It keeps the letter case it was given; ids are
// compared by Key.
type PolicyID struct {
	Subscription, Group, Location, Name string
}

// Check refuses parts that are no names.
func (id PolicyID) Check() error {
	switch {
	case !subscriptionPart.MatchString(id.Subscription):
		return fmt.Errorf("subscription %q was not found", clip(id.Subscription))
	case !groupPart.MatchString(id.Group) || dots(id.Group):
		return fmt.Errorf("resource group %q could not be found", clip(id.Group))
	case !namePart.MatchString(id.Location) || dots(id.Location):
		return fmt.Errorf("%q is not a location", clip(id.Location))
	case !namePart.MatchString(id.Name) || dots(id.Name):
		return fmt.Errorf("%q is not a policy's name", clip(id.Name))
	}
	return nil
}

// String is the policy's resource id.
func (id PolicyID) String() string {
	return "/subscriptions/" + id.Subscription + "/resourceGroups/" + id.Group +
		"/providers/Microsoft.Security/locations/" + id.Location + "/jitNetworkAccessPolicies/" + id.Name
}

// Key is the id in the one spelling ids are compared by.
func (id PolicyID) Key() string {
	return lower("/subscriptions/", id.Subscription, "/resourcegroups/", id.Group,
		"/providers/microsoft.security/locations/", id.Location, "/jitnetworkaccesspolicies/", id.Name)
}

// Scope is the policy alone.
func (id PolicyID) Scope() Scope { return Scope(id.Key()) }

// Scope is where a right holds: Everywhere, a subscription, a resource group
// or one resource, in lower case.
type Scope string

// Everywhere covers every scope.
const Everywhere Scope = "/"

// SubscriptionScope is a whole subscription.
func SubscriptionScope(subscription string) Scope {
	return Scope(strings.ToLower("/subscriptions/" + subscription))
}

// GroupScope is a resource group.
func GroupScope(subscription, group string) Scope {
	return Scope(strings.ToLower("/subscriptions/" + subscription + "/resourceGroups/" + group))
}

// ParseScope reads "/", a subscription's, a resource group's or a machine's id.
func ParseScope(s string) (Scope, error) {
	if s == "/" {
		return Everywhere, nil
	}
	p := strings.Split(s, "/")
	switch {
	case len(p) == 3 && p[0] == "" && strings.EqualFold(p[1], "subscriptions") && subscriptionPart.MatchString(p[2]):
		return SubscriptionScope(p[2]), nil
	case len(p) == 5 && p[0] == "" && strings.EqualFold(p[1], "subscriptions") && subscriptionPart.MatchString(p[2]) &&
		strings.EqualFold(p[3], "resourceGroups") && groupPart.MatchString(p[4]) && !dots(p[4]):
		return GroupScope(p[2], p[4]), nil
	}
	if id, err := ParseVMID(s); err == nil {
		return id.Scope(), nil
	}
	return "", fmt.Errorf("%q is not a scope: / or /subscriptions/S or /subscriptions/S/resourceGroups/G or a virtual machine's id", clip(s))
}

// Covers reports whether what holds for s holds for other.
func (s Scope) Covers(other Scope) bool {
	return s == Everywhere || s == other || strings.HasPrefix(string(other), string(s)+"/")
}
