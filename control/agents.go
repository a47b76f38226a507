package control

import (
	"context"
	"time"
)

// Join is a join token as the store keeps it: who may enrol with it.
type Join struct {
	Hash    string    `json:"hash"`  // SHA-256 of the token, hexadecimal
	ID      string    `json:"id"`    // for people: the first digits of Hash
	Scope   Scope     `json:"scope"` // the machine, or any machine in it
	Uses    int       `json:"uses"`  // left
	Expires time.Time `json:"expires"`
	Created time.Time `json:"created"`
	By      string    `json:"by"`
	Revoked bool      `json:"revoked,omitempty"`
}

// AgentEvent is one line of a machine's audit record, as its agent sent it.
type AgentEvent struct {
	Seq  uint64    `json:"seq"`
	Prev string    `json:"prev"`
	Hash string    `json:"hash"` // of the line
	Time time.Time `json:"time"`
	Line []byte    `json:"line"`
}

// CreateJoin makes a join token, which is shown once.
func (e *Engine) CreateJoin(ctx context.Context, c Caller, s Scope, uses int, valid time.Duration) (token string, j Join, err error) {
	return "", Join{}, errUnfinished
}

// ListJoins lists join tokens that could still be used.
func (e *Engine) ListJoins(ctx context.Context, c Caller) ([]Join, error) { return nil, errUnfinished }

// RevokeJoin makes a join token useless. id is Join.ID.
func (e *Engine) RevokeJoin(ctx context.Context, c Caller, id string) error { return errUnfinished }

// RevokeAgent makes a machine's agent useless until it enrols again.
func (e *Engine) RevokeAgent(ctx context.Context, c Caller, vm VMID, reason string) error {
	return errUnfinished
}
