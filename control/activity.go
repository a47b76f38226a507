package control

import (
	"context"
	"strings"
	"time"
)

// Activity is one line of the activity log. Lines are appended, never changed.
type Activity struct {
	Seq       uint64    `json:"seq"` // set by the store: rises in the order of commits
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`     // one of the events of the design: request.initiated
	Operation string    `json:"operation"` // the action, in Azure's words; empty for what agents report
	Status    string    `json:"status"`    // Succeeded or Failed
	Actor     string    `json:"actor"`     // a name for people; empty: the system itself
	Principal string    `json:"principal,omitempty"`
	Address   string    `json:"address,omitempty"` // the caller's
	Scope     Scope     `json:"scope"`             // what it is about: a machine, a policy, a group
	VM        string    `json:"vm,omitempty"`      // the machine's id in its own letter case
	Request   string    `json:"request,omitempty"`
	Grant     string    `json:"grant,omitempty"`
	Port      uint16    `json:"port,omitzero"`
	Source    string    `json:"source,omitempty"`
	End       time.Time `json:"end,omitzero"`
	Reason    string    `json:"reason,omitempty"` // justification, comment, or why it failed
	Code      string    `json:"code,omitempty"`
	Call      string    `json:"call,omitempty"` // id of the call
}

// ActivityFilter selects lines; zero fields select all.
type ActivityFilter struct {
	Scope    Scope // and everything below; empty is Everywhere
	Event    string
	Actor    string
	From, To time.Time // [From, To)
	Newest   bool      // newest first
	After    uint64    // Seq of the last line of the page before
	Limit    int       // 0: no limit
}

// How a line ends.
const (
	statusSucceeded = "Succeeded"
	statusFailed    = "Failed"
)

// line begins a line of the log about what a caller does.
func (c Caller) line(event string, a Action, s Scope, reason string) Activity {
	return Activity{
		Event: event, Operation: string(a), Status: statusSucceeded,
		Actor: c.Name, Principal: c.ID, Call: c.Request, Address: address(c), Scope: s, Reason: reason,
	}
}

// address is the caller's, if known.
func address(c Caller) string {
	if !c.Address.IsValid() {
		return ""
	}
	return c.Address.String()
}

// change runs f in one transaction with its line in the log. Where f refuses,
// nothing but the refusal is recorded: who tried is as telling as who did.
func (e *Engine) change(ctx context.Context, c Caller, l Activity, f func(Tx) error) error {
	l.Time = e.Now()
	l.VM = vmOf(l.Scope)
	err := e.Store.Update(ctx, func(tx Tx) error {
		if err := f(tx); err != nil {
			return err
		}
		return tx.AppendActivity(l)
	})
	refusal := AsError(err)
	if refusal == nil || refusal.Kind == Unavailable {
		return err
	}
	l.Status, l.Code = statusFailed, refusal.Code
	l.Reason = strings.TrimPrefix(l.Reason+": "+refusal.Message, ": ")
	if failed := e.Store.Update(ctx, func(tx Tx) error { return tx.AppendActivity(l) }); failed != nil {
		e.Log.Error("cannot record a refusal", "event", l.Event, "call", l.Call, "error", failed)
	}
	return err
}

// vmOf is the machine a scope is of, if it is one machine.
func vmOf(s Scope) string {
	id, err := ParseVMID(string(s))
	if err != nil {
		return ""
	}
	return id.String()
}

// ListActivity lists lines of scopes the caller may read the activity of.
func (e *Engine) ListActivity(ctx context.Context, c Caller, f ActivityFilter) (page []Activity, next uint64, err error) {
	return nil, 0, errUnfinished
}

// FollowActivity calls each with every line after the Seq after that the
// filter selects, in order, and goes on with those that are yet to come until
// ctx ends or each returns an error. A caller who loses the right is cut off
// by whoever ends ctx.
func (e *Engine) FollowActivity(ctx context.Context, c Caller, f ActivityFilter, after uint64, each func(Activity) error) error {
	return errUnfinished
}
