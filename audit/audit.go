// Package audit keeps the record of what was opened, refused and closed.
//
// An Event is not a log line: it has one fixed name and fixed fields, and an
// intent is on the disk before the port opens. Text for operators goes
// through hclog instead, and nothing parses that.
package audit

import (
	"context"
	"time"
)

// Name is the kind of an event. The list is a contract: the same spelling
// stands in the journal, the file, the local API and the control plane.
type Name string

// The events a host records.
const (
	AgentStarted    Name = "agent.started"
	AgentReloaded   Name = "agent.reloaded"
	AgentStopped    Name = "agent.stopped"
	InstallCreated  Name = "install.created"
	InstallRenewed  Name = "install.renewed" // the state was another machine's, or unreadable
	GuardArmed      Name = "guard.armed"     // on trial: it goes back unless confirmed
	GuardConfirmed  Name = "guard.confirmed" // for good
	GuardReverted   Name = "guard.reverted"  // not confirmed in time
	GuardDisarmed   Name = "guard.disarmed"
	GuardLockdown   Name = "guard.lockdown"
	GuardDrift      Name = "guard.drift"
	GuardRepaired   Name = "guard.repaired"
	DocumentDeliver Name = "document.delivered" // by hand, about to be in the inbox
	DocumentAdmit   Name = "document.admitted"
	DocumentRefused Name = "document.refused"
	GrantOpening    Name = "grant.opening" // the intent, durable before the port opens
	GrantOpened     Name = "grant.opened"
	GrantRefused    Name = "grant.refused"
	GrantExpired    Name = "grant.expired"
	GrantRevoked    Name = "grant.revoked"
	GrantLogin      Name = "grant.login"       // somebody logged in over a grant, as the host's sshd says
	GrantUsed       Name = "grant.used"        // the proof of use, as a grant ends
	ConnectionDeny  Name = "connection.denied" // packets of one source for one port, aggregated
	AuditPruned     Name = "audit.pruned"      // old files of the record are about to be removed
)

// Event is one thing that happened. Fields that do not apply are empty.
type Event struct {
	Name      Name      `json:"event"`
	Time      time.Time `json:"time"` // set by the sink where it is zero
	Message   string    `json:"message,omitempty"`
	Document  string    `json:"document,omitempty"` // trust, policy or grants
	Version   uint64    `json:"version,omitempty"`  // of the document
	Digest    string    `json:"digest,omitempty"`   // of its payload: sha256: and 64 digits
	GrantID   string    `json:"grant,omitempty"`
	Port      uint16    `json:"port,omitempty"`
	Protocol  string    `json:"protocol,omitempty"`
	Source    string    `json:"source,omitempty"`
	End       time.Time `json:"end,omitzero"`
	Requestor string    `json:"requestor,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	Code      string    `json:"code,omitempty"`
	Process   string    `json:"process,omitempty"` // who changed the guard or delivered by hand, where the kernel tells
	PID       int       `json:"pid,omitempty"`
	Install   string    `json:"install,omitempty"` // the id of this installation
	// FormerInstall is the one before it, where that is known.
	FormerInstall string `json:"formerInstall,omitempty"`
	// ExposedMS is for how many milliseconds the guard was not whole, from
	// when the change was noticed to when it was mended.
	ExposedMS int64 `json:"exposedMs,omitempty"`
	// Connections that were established on a grant, when the first and the
	// last of them began, what went over them towards this host and from it,
	// and how many of them the end of the grant cut.
	Connections uint64    `json:"connections,omitzero"`
	First       time.Time `json:"first,omitzero"`
	Last        time.Time `json:"last,omitzero"`
	BytesIn     uint64    `json:"bytesIn,omitzero"`
	BytesOut    uint64    `json:"bytesOut,omitzero"`
	PacketsIn   uint64    `json:"packetsIn,omitzero"`
	PacketsOut  uint64    `json:"packetsOut,omitzero"`
	SessionsCut uint64    `json:"sessionsCut,omitzero"`
	// Logins is how many logins over a grant the host's sshd told of.
	Logins uint64 `json:"logins,omitzero"`
	// Of one login: the port at its source, the account, how whoever it is
	// proved himself, the fingerprint of his key, and all that sshd says of
	// what he proved himself with: a key's type, a certificate's ID and CA.
	SourcePort uint16 `json:"sourcePort,omitzero"`
	Account    string `json:"account,omitempty"`
	Method     string `json:"method,omitempty"`
	Key        string `json:"key,omitempty"`
	Credential string `json:"credential,omitempty"`
	// AtLeast says that there may have been more use than that.
	AtLeast bool `json:"atLeast,omitzero"`
	// Count is how many packets were denied between First and Last.
	Count uint64 `json:"count,omitzero"`
	// Head is the end, SEQ:HASH, of what was removed of the record.
	Head string `json:"head,omitempty"`
}

// Sink keeps events.
type Sink interface {
	// Record returns once all events are durable, in order, or none can be
	// relied on.
	Record(ctx context.Context, events ...Event) error
}
