package client

import (
	"encoding/json"
	"time"
)

// Policy is a JIT network access policy on Azure's API.
type Policy struct {
	ID         string           `json:"id,omitempty"`
	Name       string           `json:"name,omitempty"`
	Type       string           `json:"type,omitempty"`
	Kind       string           `json:"kind,omitempty"`
	Location   string           `json:"location,omitempty"`
	Properties PolicyProperties `json:"properties"`
}

// PolicyProperties are the properties of a Policy.
type PolicyProperties struct {
	VMs               []PolicyVM      `json:"virtualMachines"`
	Requests          []PolicyRequest `json:"requests,omitempty"`
	ProvisioningState string          `json:"provisioningState,omitempty"` // Updating until it is signed, then Succeeded
}

// PolicyVM is one machine of a Policy.
type PolicyVM struct {
	ID              string     `json:"id"`
	Ports           []PortRule `json:"ports"`
	PublicIPAddress string     `json:"publicIpAddress,omitempty"`
}

// PortRule is a guarded port with the bounds of a request for it.
type PortRule struct {
	Number                       uint16   `json:"number"`
	Protocol                     string   `json:"protocol"` // TCP, UDP or *
	AllowedSourceAddressPrefix   string   `json:"allowedSourceAddressPrefix,omitempty"`
	AllowedSourceAddressPrefixes []string `json:"allowedSourceAddressPrefixes,omitempty"`
	MaxRequestAccessDuration     string   `json:"maxRequestAccessDuration"` // ISO 8601
	MappedPort                   uint16   `json:"mappedPort,omitempty"`
	SessionsAtEnd                string   `json:"sessionsAtEnd,omitempty"` // keep or cut
}

// PolicyRequest is a request as Azure's API shows it.
type PolicyRequest struct {
	VMs           []RequestVM `json:"virtualMachines"`
	Start         time.Time   `json:"startTimeUtc"`
	Requestor     string      `json:"requestor"`
	Justification string      `json:"justification,omitempty"`
}

// InitiateRequest asks for access.
type InitiateRequest struct {
	VMs           []InitiateVM `json:"virtualMachines"`
	Justification string       `json:"justification,omitempty"`
}

// InitiateVM is one machine of an InitiateRequest.
type InitiateVM struct {
	ID    string         `json:"id"`
	Ports []InitiatePort `json:"ports"`
}

// InitiatePort is one port of an InitiateVM, with either End or Duration. With
// no prefix it is asked for the address that the server sees the caller at.
type InitiatePort struct {
	Number                       uint16    `json:"number"`
	AllowedSourceAddressPrefix   string    `json:"allowedSourceAddressPrefix,omitempty"`
	AllowedSourceAddressPrefixes []string  `json:"allowedSourceAddressPrefixes,omitempty"`
	End                          time.Time `json:"endTimeUtc,omitzero"`
	Duration                     string    `json:"duration,omitempty"` // ISO 8601
}

// VM is a machine as the inventory shows it.
type VM struct {
	ID                string     `json:"id"`
	Name              string     `json:"name"`
	Subscription      string     `json:"subscription"`
	ResourceGroup     string     `json:"resourceGroup"`
	Location          string     `json:"location,omitempty"`
	OS                string     `json:"osType,omitempty"`
	Address           string     `json:"address,omitempty"`
	PublicIPAddress   string     `json:"publicIpAddress,omitempty"`
	Tab               string     `json:"tab"` // Configured, NotConfigured or Unsupported
	Reason            string     `json:"reason,omitempty"`
	AgentStatus       string     `json:"agentStatus"`
	Agent             *Agent     `json:"agent,omitempty"`
	ApprovedRequests  int        `json:"approvedRequests"`
	LastAccess        time.Time  `json:"lastAccess,omitzero"`
	LastUser          string     `json:"lastUser,omitempty"`
	Layers            []string   `json:"layers"` // known to be on
	Ports             []PortRule `json:"ports"`
	Policies          []string   `json:"policies"`
	ProvisioningState string     `json:"provisioningState,omitempty"`
	Open              []OpenPort `json:"open"`
}

// Agent is the agent of a machine.
type Agent struct {
	Install            string    `json:"install,omitempty"`
	Version            string    `json:"version,omitempty"`
	Mode               string    `json:"mode,omitempty"`
	Enrolled           time.Time `json:"enrolled"`
	CertificateExpires time.Time `json:"certificateExpires"`
	Revoked            bool      `json:"revoked"`
	LastSeen           time.Time `json:"lastSeen,omitzero"`
	TrustVersion       uint64    `json:"trustVersion"`
	PolicyVersion      uint64    `json:"policyVersion"`
	GrantsVersion      uint64    `json:"grantsVersion"`
	AuditSeq           uint64    `json:"auditSeq"`
	Note               string    `json:"note,omitempty"`
}

// OpenPort is a port of a machine with a request that is not over.
type OpenPort struct {
	Request   string `json:"request"`
	Requestor string `json:"requestor"`
	RequestPort
}

// VMInput is what is said of a machine that is put into the inventory.
type VMInput struct {
	Location          string `json:"location,omitempty"`
	OS                string `json:"osType,omitempty"`
	Address           string `json:"address,omitempty"`
	PublicIPAddress   string `json:"publicIpAddress,omitempty"`
	UnsupportedReason string `json:"unsupportedReason,omitempty"`
}

// VMCounts are the numbers of machines in each tab.
type VMCounts struct {
	Configured    int `json:"configured"`
	NotConfigured int `json:"notConfigured"`
	Unsupported   int `json:"unsupported"`
}

// Request is a request for access.
type Request struct {
	ID            string           `json:"id"`
	Policy        string           `json:"policy"`
	VMs           []RequestVM      `json:"virtualMachines"`
	Start         time.Time        `json:"startTimeUtc"`
	Requestor     string           `json:"requestor"`
	Principal     string           `json:"principal"`
	Justification string           `json:"justification,omitempty"`
	Open          bool             `json:"open"`
	Approval      *RequestApproval `json:"approval,omitempty"`
}

// RequestVM is one machine of a request.
type RequestVM struct {
	ID    string        `json:"id"`
	Ports []RequestPort `json:"ports"`
}

// RequestPort is one port of a request, and where it stands. Azure's API says
// no more than the fields to MappedPort.
type RequestPort struct {
	Number                       uint16    `json:"number"`
	AllowedSourceAddressPrefix   string    `json:"allowedSourceAddressPrefix,omitempty"`
	AllowedSourceAddressPrefixes []string  `json:"allowedSourceAddressPrefixes,omitempty"`
	End                          time.Time `json:"endTimeUtc"`
	Status                       string    `json:"status"` // Pending, Initiating, Initiated or Revoked
	StatusReason                 string    `json:"statusReason"`
	MappedPort                   uint16    `json:"mappedPort,omitempty"`

	Duration string    `json:"duration,omitempty"`
	Grant    string    `json:"grant,omitempty"`
	Opened   time.Time `json:"opened,omitzero"`
	Closed   time.Time `json:"closed,omitzero"`
	Refused  string    `json:"refused,omitempty"`
	Outer    *Layer    `json:"outer,omitempty"`
}

// Layer is where a port stands outside the machine: at Azure's own JIT.
type Layer struct {
	Name   string    `json:"name"`
	Status string    `json:"status,omitempty"`
	Reason string    `json:"statusReason,omitempty"`
	Error  string    `json:"error,omitempty"`
	Note   string    `json:"note,omitempty"`
	Until  time.Time `json:"openUntil,omitzero"` // it may be open there until then
	Looked time.Time `json:"looked,omitzero"`
	Next   time.Time `json:"next,omitzero"` // when it is tried or looked at again
}

// Approval says who must agree to requests under a policy.
type Approval struct {
	Approvers     int    `json:"approvers"`
	Role          string `json:"role"`
	Justification bool   `json:"justification,omitempty"`
	Expires       string `json:"expires,omitempty"` // ISO 8601
}

// RequestApproval is how far the approval of a request has come.
type RequestApproval struct {
	Approval
	Until    time.Time `json:"until"`
	Verdicts []Verdict `json:"verdicts"`
}

// Verdict is what one approver said.
type Verdict struct {
	Principal string    `json:"principal"`
	Name      string    `json:"name"`
	Approve   bool      `json:"approve"`
	Comment   string    `json:"comment,omitempty"`
	AtMost    string    `json:"atMost,omitempty"` // ISO 8601
	Time      time.Time `json:"time"`
}

// PendingPolicy is a policy document that a person has yet to sign.
type PendingPolicy struct {
	VM      string    `json:"vm"`
	Version uint64    `json:"version"`
	Payload []byte    `json:"payload"`           // what is signed
	Partial []byte    `json:"partial,omitempty"` // the envelope with the signatures so far
	InForce []byte    `json:"inForce,omitempty"` // payload of the one it follows; none: the first
	Created time.Time `json:"created"`
	By      string    `json:"by"`
}

// Accepted is what became of a policy document that was brought back.
type Accepted struct {
	VM      string `json:"vm"`
	Version uint64 `json:"version"`
	Done    bool   `json:"done"` // it has signatures enough, and is in force
}

// Activity is one line of the activity log.
type Activity struct {
	Seq       uint64    `json:"seq"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Operation string    `json:"operation"`
	Status    string    `json:"status"`
	Actor     string    `json:"actor"`
	Principal string    `json:"principal,omitempty"`
	Address   string    `json:"address,omitempty"`
	Scope     string    `json:"scope"`
	VM        string    `json:"vm,omitempty"`
	Request   string    `json:"request,omitempty"`
	Grant     string    `json:"grant,omitempty"`
	Port      uint16    `json:"port,omitzero"`
	Source    string    `json:"source,omitempty"`
	End       time.Time `json:"end,omitzero"`
	Reason    string    `json:"reason,omitempty"`
	Code      string    `json:"code,omitempty"`
	Call      string    `json:"call,omitempty"`
}

// ScopeSetting switches JIT off or on for a scope.
type ScopeSetting struct {
	Scope   string    `json:"scope"`
	Enabled bool      `json:"enabled"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by,omitempty"`
	Time    time.Time `json:"time,omitzero"`
}

// Join is a join token without what makes it work.
type Join struct {
	ID      string    `json:"id"`
	Scope   string    `json:"scope"`
	Uses    int       `json:"uses"`
	Expires time.Time `json:"expires"`
	Created time.Time `json:"created"`
	By      string    `json:"by"`
}

// JoinInput is a join token to be made.
type JoinInput struct {
	Scope string `json:"scope"`
	Uses  int    `json:"uses,omitempty"`
	Valid string `json:"valid,omitempty"` // ISO 8601
}

// Role is a role definition.
type Role struct {
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Actions     []string `json:"actions"`
	NotActions  []string `json:"notActions,omitempty"`
}

// Assignment gives a role to a principal at a scope.
type Assignment struct {
	Principal string `json:"principal"`
	Role      string `json:"role"`
	Scope     string `json:"scope"`
}

// Token is a local token without what makes it work.
type Token struct {
	ID        string    `json:"id"`
	Principal string    `json:"principal"`
	Name      string    `json:"name"`
	Note      string    `json:"note,omitempty"`
	Role      string    `json:"role,omitempty"`
	Scope     string    `json:"scope,omitempty"`
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires,omitzero"`
	Revoked   bool      `json:"revoked"`
}

// TokenInput is a local token to be made.
type TokenInput struct {
	Principal string `json:"principal,omitempty"`
	Name      string `json:"name,omitempty"`
	Note      string `json:"note,omitempty"`
	Role      string `json:"role,omitempty"`
	Scope     string `json:"scope,omitempty"`
	Valid     string `json:"valid,omitempty"` // ISO 8601
}

// Who is the caller as the server sees them.
type Who struct {
	ID      string  `json:"id"`
	Name    string  `json:"name"`
	Type    string  `json:"type"`
	Address string  `json:"address"`
	Rights  []Right `json:"rights"`
	Limits  []Right `json:"limits,omitempty"` // of the token; none: all its owner may
}

// Login is how people sign in.
type Login struct {
	Issuers []LoginIssuer `json:"issuers"`
}

// LoginIssuer is an OpenID Connect issuer that people sign in at.
type LoginIssuer struct {
	Issuer    string   `json:"issuer"`
	Discovery string   `json:"discovery,omitempty"` // where its configuration is, if not below Issuer
	ClientID  string   `json:"clientId"`
	Scopes    []string `json:"scopes"`
	CA        string   `json:"ca,omitempty"` // certificates to trust for it, PEM; none: the system's
}

// Right is a role as it was given.
type Right struct {
	Role  Role   `json:"role"`
	Scope string `json:"scope"`
}

// page is a list as /api/v1 sends it.
type page[T any] struct {
	Value []T    `json:"value"`
	Next  string `json:"next"`
}

// azurePage is a list as Azure's API sends it.
type azurePage[T any] struct {
	Value    []T    `json:"value"`
	NextLink string `json:"nextLink"`
}

// reasoned is a body with a reason.
type reasoned struct {
	Reason string `json:"reason,omitempty"`
}

// envelope is a body that is signed already, and sent as it is.
type envelope = json.RawMessage
