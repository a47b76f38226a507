package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
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

// Record names an audit record of a machine: a machine that was installed
// again, and has enrolled again, begins another with line 1.
type Record struct {
	VM    VMID
	Epoch uint64 // Agent.Epoch
}

// AgentEvent is one line of a machine's audit record, as its agent sent it.
type AgentEvent struct {
	Seq  uint64    `json:"seq"`
	Prev string    `json:"prev"`
	Hash string    `json:"hash"` // of the line
	Time time.Time `json:"time"`
	Line []byte    `json:"line"`
}

// Bounds of a join token.
const (
	maxJoinUses  = 10_000
	maxJoinValid = 30 * 24 * time.Hour
	joinUses     = 1
	joinValid    = time.Hour
)

// CreateJoin makes a join token, which is shown once. Zero uses are one, and
// zero valid is an hour.
func (e *Engine) CreateJoin(ctx context.Context, c Caller, s Scope, uses int, valid time.Duration) (token string, j Join, err error) {
	if err := c.Must(ActionEnroll, s); err != nil {
		return "", Join{}, err
	}
	uses, valid = cmp.Or(uses, joinUses), cmp.Or(valid, joinValid)
	switch {
	case e.CA == nil:
		return "", Join{}, errNoEnrolment
	case uses < 0 || uses > maxJoinUses:
		return "", Join{}, Refuse(Invalid, "InvalidUses", "A join token is good for 1 to %d uses, not %d.", maxJoinUses, uses)
	case valid < 0 || valid > maxJoinValid:
		return "", Join{}, Refuse(Invalid, "InvalidDuration", "A join token is valid for at most %s, not %s.", policy.FormatDuration(maxJoinValid), valid)
	}
	trust, err := policy.ParseEnvelope(e.Realm.Signed)
	if err != nil {
		return "", Join{}, fmt.Errorf("the realm's trust document: %w", err)
	}
	var ca policy.Digest
	copy(ca[:], e.ServerCA)
	token = uplink.NewJoin(trust.Digest(), ca).String()
	now := e.Now().UTC()
	j = Join{Hash: uplink.JoinHash(token), Scope: s, Uses: uses, Created: now, Expires: now.Add(valid), By: c.Name}
	j.ID = j.Hash[:joinIDSize]
	err = e.Store.Update(ctx, func(tx Tx) error {
		return errors.Join(tx.PutJoin(j), tx.AppendActivity(by(c, Activity{Time: now, Event: "join.created", Operation: string(ActionEnroll), Scope: s,
			End: j.Expires, Reason: fmt.Sprintf("join token %s for %d uses", j.ID, uses)})))
	})
	if err != nil {
		return "", Join{}, err
	}
	return token, j, nil
}

// joinIDSize is how many digits of its hash people know a token by.
const joinIDSize = 12

// usable says why a join token cannot be used, or nothing.
func (j Join) usable(now time.Time) string {
	switch {
	case j.Revoked:
		return "the join token was revoked"
	case !now.Before(j.Expires):
		return "the join token has expired"
	case j.Uses <= 0:
		return "the join token was used"
	}
	return ""
}

// by fills in who did it.
func by(c Caller, a Activity) Activity {
	a.Status, a.Actor, a.Principal, a.Call = "Succeeded", c.Name, c.ID, c.Request
	if c.Address.IsValid() {
		a.Address = c.Address.String()
	}
	return a
}

// ListJoins lists join tokens that could still be used, of the scopes where
// the caller may enrol.
func (e *Engine) ListJoins(ctx context.Context, c Caller) (list []Join, err error) {
	err = e.Store.View(ctx, func(tx Tx) error {
		all, err := tx.Joins()
		now := e.Now()
		for _, j := range all {
			if j.usable(now) == "" && c.May(ActionEnroll, j.Scope) {
				list = append(list, j)
			}
		}
		return err
	})
	return list, err
}

// RevokeJoin makes a join token useless. id is Join.ID.
func (e *Engine) RevokeJoin(ctx context.Context, c Caller, id string) error {
	return e.Store.Update(ctx, func(tx Tx) error {
		all, err := tx.Joins()
		if err != nil {
			return err
		}
		i := slices.IndexFunc(all, func(j Join) bool { return j.ID == id && c.May(ActionEnroll, j.Scope) })
		if i < 0 {
			return Refuse(NotFound, "JoinTokenNotFound", "There is no join token %q where you may enrol machines.", clip(id))
		}
		j := all[i]
		if j.Revoked {
			return nil
		}
		j.Revoked = true
		return errors.Join(tx.PutJoin(j), tx.AppendActivity(by(c, Activity{Time: e.Now().UTC(), Event: "join.revoked", Operation: string(ActionEnroll),
			Scope: j.Scope, Reason: "join token " + j.ID})))
	})
}

// RevokeAgent makes a machine's agent useless until it enrols again.
func (e *Engine) RevokeAgent(ctx context.Context, c Caller, id VMID, reason string) error {
	if err := c.Must(ActionEnroll, id.Scope()); err != nil {
		return err
	}
	return e.Store.Update(ctx, func(tx Tx) error {
		vm, err := tx.VM(id)
		if errors.Is(err, ErrNotFound) || err == nil && vm.Agent == nil {
			return Refuse(NotFound, "AgentNotFound", "No agent of %s has enrolled.", id)
		}
		if err != nil || vm.Agent.Revoked {
			return err
		}
		vm.Agent.Revoked = true
		return errors.Join(tx.PutVM(vm), tx.AppendActivity(by(c, Activity{Time: e.Now().UTC(), Event: "host.revoked", Operation: string(ActionEnroll),
			Scope: id.Scope(), VM: vm.ID.String(), Reason: reason})))
	})
}
