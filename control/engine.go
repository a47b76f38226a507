package control

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Config is what an Engine needs. Store, Realm and Log are required.
type Config struct {
	Store Store
	Realm Realm
	Now   func() time.Time // nil: time.Now
	Log   hclog.Logger
	// CA signs the certificates of agents; nil: none can enrol.
	CA    *x509.Certificate
	CAKey crypto.Signer
	// ServerCA is the SHA-256 of the certificate that agents find the server's
	// by, where it is not in the system's store; it goes into join tokens.
	ServerCA []byte
	Outer    Outer // nil: there is no layer outside the machines
}

// Engine is the control plane's decisions. It is safe for concurrent use, and
// several may work on one store.
type Engine struct {
	Config
}

// New makes an Engine. It starts nothing: see Run.
func New(c Config) *Engine {
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Engine{c}
}

// errUnfinished marks what is declared and not written yet.
var errUnfinished = errors.New("not built yet")

// Run does what has to happen without anybody asking, until ctx ends: ends
// requests on time, renews lists of grants, tells of hosts that are lost. Any
// number of replicas may run it.
func (e *Engine) Run(ctx context.Context) error { return errUnfinished }

// --- policies.go ---

// ListPolicies lists the policies the caller may read, a page of at most limit
// (0: all) after the Key after. next is empty on the last page.
func (e *Engine) ListPolicies(ctx context.Context, c Caller, f PolicyFilter, after string, limit int) (page []PolicyView, next string, err error) {
	return nil, "", errUnfinished
}

// GetPolicy returns a policy with its requests.
func (e *Engine) GetPolicy(ctx context.Context, c Caller, id PolicyID) (PolicyView, error) {
	return PolicyView{}, errUnfinished
}

// PutPolicy creates a policy or replaces it whole, and publishes what its
// machines guard from now on, and those it names no longer. Requests and
// grants inside the new bounds go on.
func (e *Engine) PutPolicy(ctx context.Context, c Caller, id PolicyID, in PolicyInput) (PolicyView, error) {
	return PolicyView{}, errUnfinished
}

// DeletePolicy ends the protection of the policy's machines and revokes its
// grants. It reports whether there was such a policy.
func (e *Engine) DeletePolicy(ctx context.Context, c Caller, id PolicyID) (bool, error) {
	return false, errUnfinished
}

// EditPorts replaces the ports of one machine and leaves every other alone. A
// machine that no policy names comes into "default" of its group and
// location. ifMatch is VMView.Revision in decimal, "*", or empty.
func (e *Engine) EditPorts(ctx context.Context, c Caller, vm VMID, ports []PortRule, ifMatch string) (VMView, error) {
	return VMView{}, errUnfinished
}

// SetApproval says who must agree to requests under a policy; nil is nobody.
func (e *Engine) SetApproval(ctx context.Context, c Caller, id PolicyID, a *Approval, ifMatch string) (PolicyView, error) {
	return PolicyView{}, errUnfinished
}

// --- requests.go ---

// Initiate asks for access under a policy: every port of every machine is
// inside its bounds, or nothing is recorded. The same request by the same
// caller while the first is open changes nothing and returns the first.
func (e *Engine) Initiate(ctx context.Context, c Caller, id PolicyID, in InitiateInput) (Request, error) {
	return Request{}, errUnfinished
}

// InitiateVM asks for access to machines by whichever policies name them: one
// request for each policy.
func (e *Engine) InitiateVM(ctx context.Context, c Caller, in InitiateInput) ([]Request, error) {
	return nil, errUnfinished
}

// ListRequests lists requests for machines the caller may read, and the
// caller's own.
func (e *Engine) ListRequests(ctx context.Context, c Caller, f RequestFilter) (page []Request, next string, err error) {
	return nil, "", errUnfinished
}

// GetRequest returns one request.
func (e *Engine) GetRequest(ctx context.Context, c Caller, id string) (Request, error) {
	return Request{}, errUnfinished
}

// Revoke closes a request's ports now. Its requestor may, and who has
// ActionRevoke.
func (e *Engine) Revoke(ctx context.Context, c Caller, id, reason string) (Request, error) {
	return Request{}, errUnfinished
}

// Extend moves the end of a request's open ports to now + by, inside the
// policy's bounds, which count from now again. Sessions are not cut. Where the
// policy asks for approval, an extension is refused: ask anew.
func (e *Engine) Extend(ctx context.Context, c Caller, id string, by time.Duration, reason string) (Request, error) {
	return Request{}, errUnfinished
}

// Approve adds the caller's verdict to a pending request; the last one needed
// grants it. atMost, if not zero, shortens it.
func (e *Engine) Approve(ctx context.Context, c Caller, id, comment string, atMost time.Duration) (Request, error) {
	return Request{}, errUnfinished
}

// Deny ends a pending request.
func (e *Engine) Deny(ctx context.Context, c Caller, id, comment string) (Request, error) {
	return Request{}, errUnfinished
}

// --- documents.go ---

// PendingPolicies lists policy documents that wait for a person's signature.
func (e *Engine) PendingPolicies(ctx context.Context, c Caller) ([]PendingPolicy, error) {
	return nil, errUnfinished
}

// AcceptPolicy takes a pending policy document back, with signatures added.
// Once they are enough it is published, and done is true.
func (e *Engine) AcceptPolicy(ctx context.Context, c Caller, envelope []byte) (p PendingPolicy, done bool, err error) {
	return PendingPolicy{}, false, errUnfinished
}

// Documents are the newest signed documents of a machine, trust included.
func (e *Engine) Documents(ctx context.Context, vm VMID) ([]Document, error) {
	return nil, errUnfinished
}
