package control

import "time"

// Request is one request for access. It is kept when it is over: requests are
// the history of a policy.
type Request struct {
	ID            string           `json:"id"` // rises with time
	Policy        PolicyID         `json:"policy"`
	VMs           []RequestVM      `json:"virtualMachines"`
	Start         time.Time        `json:"startTimeUtc"` // when the server took it
	Requestor     string           `json:"requestor"`    // may be empty
	Principal     string           `json:"principal"`    // the caller's id
	Justification string           `json:"justification,omitempty"`
	Call          string           `json:"call,omitempty"` // id of the call that made it
	Approval      *RequestApproval `json:"approval,omitempty"`
}

// RequestVM is one machine of a request.
type RequestVM struct {
	ID    VMID          `json:"id"`
	Ports []RequestPort `json:"ports"`
}

// RequestPort is one port of a request, and where it stands.
type RequestPort struct {
	Number     uint16        `json:"number"`
	Prefixes                 // the source, resolved
	End        time.Time     `json:"endTimeUtc"`
	Length     time.Duration `json:"length,omitzero"` // asked as a duration: counts from the approval
	Status     Status        `json:"status"`
	Reason     StatusReason  `json:"statusReason"`
	MappedPort uint16        `json:"mappedPort,omitzero"`

	GrantID string    `json:"grant"`
	Opened  time.Time `json:"opened,omitzero"` // when the agent said it is open
	Closed  time.Time `json:"closed,omitzero"`
	Refused string    `json:"refused,omitempty"` // why the agent did not open it
	Outer   *Layer    `json:"outer,omitempty"`   // the same port at Azure's own JIT; nil: not asked
}

// Status is where a port of a request stands. Azure's enum is open; Pending
// is shown on Azure's API as Initiating.
type Status string

// The statuses.
const (
	Pending    Status = "Pending" // waits for approval
	Initiating Status = "Initiating"
	Initiated  Status = "Initiated" // an agent says the port is open
	Revoked    Status = "Revoked"
)

// StatusReason is why a port has its status.
type StatusReason string

// The reasons. Denied is shown on Azure's API as UserRequested.
const (
	UserRequested         StatusReason = "UserRequested"
	Expired               StatusReason = "Expired"
	NewerRequestInitiated StatusReason = "NewerRequestInitiated"
	Denied                StatusReason = "Denied"
)

// Open reports whether any port of the request may be open, or still become so.
func (r Request) Open() bool {
	for _, vm := range r.VMs {
		for _, p := range vm.Ports {
			if p.Status != Revoked {
				return true
			}
		}
	}
	return false
}

// RequestApproval is how far the approval of a request has come. The terms
// are those of the policy when the request was made.
type RequestApproval struct {
	Approval
	Until    time.Time `json:"until"` // the request is denied unless approved before
	Verdicts []Verdict `json:"verdicts"`
}

// Verdict is what one approver said.
type Verdict struct {
	Principal string        `json:"principal"`
	Name      string        `json:"name"`
	Approve   bool          `json:"approve"`
	Comment   string        `json:"comment,omitempty"`
	AtMost    time.Duration `json:"atMost,omitzero"` // not zero: no longer than this
	Time      time.Time     `json:"time"`
}

// Layer is where a request stands outside the machine.
type Layer struct {
	Name   string `json:"name"`             // whose it is: azure
	Status Status `json:"status,omitempty"` // as that layer says; empty: not known
	Error  string `json:"error,omitempty"`  // why it could not be asked
}

// InitiateInput is a request as it comes in. Address is used where a port
// names no source.
type InitiateInput struct {
	VMs           []InitiateVM
	Justification string
}

// InitiateVM is one machine of an InitiateInput.
type InitiateVM struct {
	ID    string
	Ports []InitiatePort
}

// InitiatePort is one port of an InitiateInput. Exactly one of End and
// Duration is given.
type InitiatePort struct {
	Number   uint16
	Prefixes Prefixes  // none: the caller's own address
	End      time.Time // zero: not given
	Duration string    // ISO 8601; empty: not given
}

// RequestFilter selects requests; zero fields select all.
type RequestFilter struct {
	Policy    *PolicyID
	VM        *VMID
	Principal string
	Scope     Scope  // of the machines; empty is Everywhere
	Open      bool   // only those that may be open or become so
	Status    Status // of any port
	Since     time.Time
	Newest    bool   // newest first
	After     string // id of the last one of the page before
	Limit     int    // 0: no limit
}
