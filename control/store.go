package control

import (
	"context"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Store keeps what the control plane knows. control/store has the two that
// exist, on SQLite and on PostgreSQL; storetest is what both pass.
type Store interface {
	// View runs f on one consistent state.
	View(ctx context.Context, f func(Tx) error) error
	// Update runs f and makes what it wrote durable, all of it or, where f or
	// the commit fails, nothing. One Update runs at a time, over all replicas,
	// so f decides on what is there. An error of the commit itself may leave
	// open whether it happened; it is an *Error of kind Unavailable.
	Update(ctx context.Context, f func(Tx) error) error
	// Changed returns a channel that gets a value after documents or activity
	// were committed, here or by another replica. It is a hint: values may come
	// for nothing, and one may stand for many. It ends with ctx.
	Changed(ctx context.Context) <-chan struct{}
	// Ping reports whether the store answers.
	Ping(ctx context.Context) error
	Close() error
}

// Tx is a transaction. What is not there is ErrNotFound. Ids are compared by
// Key. What a Tx returns belongs to the caller.
type Tx interface {
	Policy(PolicyID) (Policy, error)
	// Policies are in the order of their Key.
	Policies(f PolicyFilter, after string, limit int) ([]Policy, error)
	// PoliciesOf are those that name any of these machines, each once, in the
	// order of their Key.
	PoliciesOf(...VMID) ([]Policy, error)
	PutPolicy(Policy) error
	DeletePolicy(PolicyID) error

	Request(id string) (Request, error)
	Requests(RequestFilter) ([]Request, error)
	// RequestsOf are those for any of these machines that are open, or were made
	// since a time, in the order of their ids.
	RequestsOf(since time.Time, vms ...VMID) ([]Request, error)
	PutRequest(Request) error

	Document(vm string, t policy.Type) (Document, error)
	// DocumentsNewer are those of a machine, by Key, of these types with a higher
	// version than these, in the order of type; of "", trust.
	DocumentsNewer(vm string, than map[policy.Type]uint64) ([]Document, error)
	// DocumentsOf are those of these machines, by Key, in the order of machine
	// and type; of "", trust.
	DocumentsOf(vms ...string) ([]Document, error)
	// DocumentsAfter are those with a higher Seq, in its order.
	DocumentsAfter(seq uint64, limit int) ([]Document, error)
	PutDocument(...Document) error
	// GrantsDue are the grants documents of machines with open requests that
	// were issued before t.
	GrantsDue(t time.Time, limit int) ([]Document, error)

	PendingPolicy(VMID) (PendingPolicy, error)
	// PendingPolicies of these machines; of all where there is none.
	PendingPolicies(...VMID) ([]PendingPolicy, error)
	PutPendingPolicy(PendingPolicy) error
	DeletePendingPolicy(VMID) error

	VM(VMID) (VM, error)
	VMs(VMFilter) ([]VM, error) // Tab is not looked at; in the order of their Key
	// VMsOf are those of these machines that are there, in the order of their Key.
	VMsOf(...VMID) ([]VM, error)
	// Machines are the Keys of machines, in their order.
	Machines(MachineFilter) ([]string, error)
	// CountMachines counts those whose Key is in [from, to) by their BaseTab.
	// Neither may be inside a resource group.
	CountMachines(from, to string) (map[Tab]int, error)
	PutVM(VM) error // but for Agent.LastSeen, which only rises
	DeleteVM(VMID) error
	// Seen notes when agents were last heard of, by Key of the machine.
	Seen(map[string]time.Time) error

	Join(hash string) (Join, error)
	Joins() ([]Join, error)
	PutJoin(Join) error

	// NewestRecord is the last record of a machine that lines are kept of, and the
	// newest of them; zero: none.
	NewestRecord(VMID) (Record, Head, error)
	AppendAgentEvents(r Record, events []AgentEvent) error
	AgentEvents(r Record, after uint64, limit int) ([]AgentEvent, error)

	// AppendActivity sets Seq.
	AppendActivity(...Activity) error
	Activity(ActivityFilter) ([]Activity, error)

	ScopeSettings() ([]ScopeSetting, error)
	PutScopeSetting(ScopeSetting) error

	Token(hash string) (Token, error)
	Tokens() ([]Token, error)
	PutToken(Token) error
	Roles() ([]Role, error) // those defined here, without the built-in ones
	PutRole(Role) error
	DeleteRole(name string) error
	// Assignments of these principals; of all where there is none.
	Assignments(principals ...string) ([]Assignment, error)
	PutAssignment(Assignment) error
	DeleteAssignment(Assignment) error

	// Answer is what was answered to a call with this idempotency key.
	Answer(key string) (Answer, error)
	PutAnswer(Answer) error // forgets answers older than a day

	Session(key string) (Session, error)
	PutSession(Session) error // forgets those that were over when it began
	DeleteSession(key string) error

	// Meta is a small named value, such as a replica-wide secret.
	Meta(name string) ([]byte, error)
	PutMeta(name string, value []byte) error
	MetaNames() ([]string, error) // in their order
}

// MachineFilter selects machines by their Key; zero fields select all.
type MachineFilter struct {
	From, To string // [From, To)
	Tab      Tab    // their BaseTab
	Search   string // part of the Key, letter case ignored
	After    string // Key of the last one of the page before
	Limit    int    // 0: no limit
}

// Token is a local bearer token as the store keeps it.
type Token struct {
	Hash      string    `json:"hash"` // SHA-256 of the token, hexadecimal
	ID        string    `json:"id"`   // for people: the first digits of Hash
	Principal string    `json:"principal"`
	Name      string    `json:"name"` // of the principal
	Note      string    `json:"note,omitempty"`
	Role      string    `json:"role,omitempty"`  // bounds the token; empty: all its owner may
	Scope     Scope     `json:"scope,omitempty"` // bounds the token; empty: Everywhere
	Created   time.Time `json:"created"`
	Expires   time.Time `json:"expires"`
	Revoked   bool      `json:"revoked,omitempty"`
}

// Session is that of a browser at the page.
type Session struct {
	Key    string    `json:"key"`    // made of the secret that the browser alone has
	Sealed []byte    `json:"sealed"` // the token that was signed in with, which the secret opens
	Began  time.Time `json:"began"`
	Ends   time.Time `json:"ends"` // if nobody ends it before
}

// Answer is what was answered to a call with an idempotency key.
type Answer struct {
	Key    string    `json:"key"`    // of the caller and the call
	Digest string    `json:"digest"` // of the call's body: the same key with another body is refused
	Status int       `json:"status"`
	Body   []byte    `json:"body"`
	Time   time.Time `json:"time"`
}
