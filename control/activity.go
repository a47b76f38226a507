package control

import (
	"context"
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
