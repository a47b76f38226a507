package control

import (
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Policy is a JIT network access policy: which ports of which machines are
// guarded, and the bounds of any request. Names are those of Azure's API.
type Policy struct {
	ID       PolicyID   `json:"id"`
	Kind     string     `json:"kind"`
	VMs      []PolicyVM `json:"virtualMachines"`
	Approval *Approval  `json:"approval,omitempty"` // nil: a request inside the bounds is granted
	State    Provision  `json:"provisioningState"`
	Revision uint64     `json:"revision"` // rises with every edit; the ETag

	Created, Modified     time.Time
	CreatedBy, ModifiedBy Author
}

// Author is who wrote a policy, as systemData has it.
type Author struct {
	Name string `json:"name"`
	Type string `json:"type"` // User or Application
}

// Provision is where a policy stands.
type Provision string

// The provisioning states. Failed does not occur: what cannot be signed is
// refused, and what waits for a person is Updating.
const (
	Updating  Provision = "Updating" // a person has yet to sign it
	Succeeded Provision = "Succeeded"
)

// PolicyVM is one machine of a policy.
type PolicyVM struct {
	ID              VMID       `json:"id"`
	Ports           []PortRule `json:"ports"`
	PublicIPAddress string     `json:"publicIpAddress,omitempty"`
}

// PortRule is a guarded port with the bounds of a request for it.
type PortRule struct {
	Number      uint16          `json:"number"`
	Protocol    policy.Protocol `json:"protocol"`
	Prefixes                    // allowed
	MaxDuration string          `json:"maxRequestAccessDuration"` // ISO 8601, as it was given
	MappedPort  uint16          `json:"mappedPort,omitzero"`      // on the public address, forwarded to Number
	Sessions    policy.Sessions `json:"sessionsAtEnd,omitempty"`  // empty: keep
}

// Prefixes is a source as the API has it: one prefix or a list, in the form it
// was given. The zero value is none.
type Prefixes struct {
	One  string   `json:"allowedSourceAddressPrefix,omitempty"`
	Many []string `json:"allowedSourceAddressPrefixes,omitempty"`
}

// All is the one or the many.
func (p Prefixes) All() []string {
	if p.One != "" {
		return []string{p.One}
	}
	return p.Many
}

// Approval says who must agree before a request is granted.
type Approval struct {
	Approvers     int    `json:"approvers"`               // how many different people, never the requestor
	Role          string `json:"role"`                    // that each must hold at the machine
	Justification bool   `json:"justification,omitempty"` // a request must have one
	Expires       string `json:"expires,omitempty"`       // ISO 8601: how long a request waits; PT1H unless said
}

// PolicyInput is what a caller wants a policy to be.
type PolicyInput struct {
	Kind string
	VMs  []PolicyVM
	// Approval replaces what the policy asks for; nil leaves it, since Azure's
	// API has no word for it.
	Approval *Approval
	// IfMatch, if not empty, is the revision the caller edits, or "*" for any
	// that is there; IfNoneMatch means it must not be there.
	IfMatch     string
	IfNoneMatch bool
}

// PolicyFilter selects policies; empty fields select all. Letter case is
// ignored.
type PolicyFilter struct {
	Subscription, Group, Location string
}

// PolicyView is a policy with the history of requests under it.
type PolicyView struct {
	Policy
	Requests []Request
}
