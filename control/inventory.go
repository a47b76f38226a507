package control

import (
	"context"
	"time"
)

// VM is a machine the control plane knows of: it was put into the inventory,
// or a policy names it, or its agent enrolled.
type VM struct {
	ID              VMID      `json:"id"`
	Location        string    `json:"location,omitempty"`
	OS              string    `json:"osType,omitempty"`          // Linux or Windows; empty: not known
	Address         string    `json:"address,omitempty"`         // where people connect to inside
	PublicIPAddress string    `json:"publicIpAddress,omitempty"` // or outside
	Unsupported     string    `json:"unsupportedReason,omitempty"`
	LastAccess      time.Time `json:"lastAccess,omitzero"` // a port was opened
	LastUser        string    `json:"lastUser,omitempty"`
	Agent           *Agent    `json:"agent,omitempty"` // nil: none has enrolled
}

// Agent is what is known of the agent of a machine.
type Agent struct {
	Key      string    `json:"key"` // SHA-256 of its certificate's SPKI, hexadecimal
	Install  string    `json:"install,omitempty"`
	Version  string    `json:"version,omitempty"`
	Mode     string    `json:"mode,omitempty"`
	Enrolled time.Time `json:"enrolled"`
	Expires  time.Time `json:"expires"` // of its certificate
	Revoked  bool      `json:"revoked,omitempty"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
	Head     Head      `json:"head,omitzero"`      // of its audit record
	Versions Versions  `json:"documents,omitzero"` // what it has admitted
	Note     string    `json:"note,omitempty"`     // the last refusal, for people
}

// Head is the end of a chain of audit lines.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// Versions are those of the documents an agent has admitted; 0 is none.
type Versions struct {
	Trust  uint64 `json:"trust,omitzero"`
	Policy uint64 `json:"policy,omitzero"`
	Grants uint64 `json:"grants,omitzero"`
}

// Tab is where the inventory shows a machine.
type Tab string

// The tabs, as Azure's portal has them.
const (
	Configured    Tab = "Configured"
	NotConfigured Tab = "NotConfigured"
	Unsupported   Tab = "Unsupported"
)

// VMView is a machine as the inventory shows it.
type VMView struct {
	VM
	Tab       Tab        `json:"tab"`
	Reason    string     `json:"reason,omitempty"` // of Unsupported
	Agent     string     `json:"agentStatus"`      // "connected", "no agent yet", "not seen since …", "revoked"
	Requests  int        `json:"approvedRequests"` // of the last seven days
	Ports     []PortRule `json:"ports"`            // connection details
	Policies  []PolicyID `json:"-"`                // that name it
	Provision Provision  `json:"provisioningState,omitempty"`
	Revision  uint64     `json:"-"`    // of its ports: the ETag
	Open      []OpenPort `json:"open"` // requests not over yet
}

// OpenPort is a port of a machine with a request that is not over.
type OpenPort struct {
	Request   string `json:"request"`
	Requestor string `json:"requestor"`
	RequestPort
}

// VMFilter selects machines; zero fields select all.
type VMFilter struct {
	Scope  Scope
	Tab    Tab
	Search string // part of the id, letter case ignored
	After  string // Key of the last one of the page before
	Limit  int    // 0: no limit
}

// VMInput is what a caller says of a machine.
type VMInput struct {
	Location, OS, Address, PublicIPAddress string
	Unsupported                            string // why it cannot be guarded; empty: it can
}

// ScopeSetting switches JIT off or on for a subscription or a resource group
// and everything in it. The narrowest setting counts; none is on.
type ScopeSetting struct {
	Scope   Scope     `json:"scope"`
	Enabled bool      `json:"enabled"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by"`
	Time    time.Time `json:"time"`
}

// ListVMs lists the machines the caller may read.
func (e *Engine) ListVMs(ctx context.Context, c Caller, f VMFilter) (page []VMView, next string, err error) {
	return nil, "", errUnfinished
}

// CountVMs counts the machines the caller may read, by tab.
func (e *Engine) CountVMs(ctx context.Context, c Caller, s Scope) (map[Tab]int, error) {
	return nil, errUnfinished
}

// GetVM returns one machine.
func (e *Engine) GetVM(ctx context.Context, c Caller, id VMID) (VMView, error) {
	return VMView{}, errUnfinished
}

// PutVM puts a machine into the inventory or changes what is said of it.
func (e *Engine) PutVM(ctx context.Context, c Caller, id VMID, in VMInput) (VMView, error) {
	return VMView{}, errUnfinished
}

// DeleteVM forgets a machine: its agent may come no more. One that a policy
// names is refused.
func (e *Engine) DeleteVM(ctx context.Context, c Caller, id VMID) error { return errUnfinished }

// ScopeSettings lists where JIT is switched off, or on again.
func (e *Engine) ScopeSettings(ctx context.Context, c Caller) ([]ScopeSetting, error) {
	return nil, errUnfinished
}

// SetScope switches JIT off or on for a subscription or a resource group. Off
// takes no new policy and no new request; what is guarded stays guarded.
func (e *Engine) SetScope(ctx context.Context, c Caller, s Scope, enabled bool, reason string) (ScopeSetting, error) {
	return ScopeSetting{}, errUnfinished
}

// switchedOff is the setting that switches JIT off at s, if one does. Of the
// settings that cover s the narrowest counts.
func switchedOff(settings []ScopeSetting, s Scope) (ScopeSetting, bool) {
	var narrowest ScopeSetting
	for _, set := range settings {
		if set.Scope.Covers(s) && len(set.Scope) > len(narrowest.Scope) {
			narrowest = set
		}
	}
	return narrowest, narrowest.Scope != "" && !narrowest.Enabled
}
