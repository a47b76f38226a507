package control

import (
	"crypto"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Document is a signed document as agents get it. Of each kind a machine has
// one: the newest.
type Document struct {
	VM      string      `json:"vm"` // Key of the machine; empty for trust, which is everybody's
	Type    policy.Type `json:"type"`
	Version uint64      `json:"version"`
	Seq     uint64      `json:"seq"` // set by the store: rises with every document written, in the order of commits
	Issued  time.Time   `json:"issued"`
	Expires time.Time   `json:"expires"`
	Signed  []byte      `json:"signed"` // the envelope
}

// PendingPolicy is a policy document that a person has yet to sign.
type PendingPolicy struct {
	VM      VMID      `json:"vm"`
	Version uint64    `json:"version"`
	Payload []byte    `json:"payload"` // what is signed
	Partial []byte    `json:"partial"` // the envelope with the signatures so far; nil: none
	Created time.Time `json:"created"`
	By      string    `json:"by"`
}

// Realm is what the control plane signs with, and what agents trust.
type Realm struct {
	Trust  policy.Trust
	Signed []byte        // the trust document's envelope
	Pin    policy.Digest // of the first trust document: what a new host is told to trust
	Grant  crypto.Signer // signs grants
	Policy crypto.Signer // signs policies; nil: people do
}
