package control

import (
	"cmp"
	"context"
	"slices"
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
	Within   uint64    // Seq of the line that the page ends before; 0: none
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

// How lines are followed.
const (
	linesRead  = 500             // at once
	sweepEvery = 3 * time.Second // whatever Store.Changed says
)

// ListActivity lists lines of scopes the caller may read the activity of. next
// is the After of the next page, 0 on the last.
func (e *Engine) ListActivity(ctx context.Context, c Caller, f ActivityFilter) (page []Activity, next uint64, err error) {
	f.Scope = cmp.Or(f.Scope, Everywhere)
	if err := c.mustSomewhere(ActionActivity, f.Scope); err != nil {
		return nil, 0, err
	}
	limit := f.Limit
	if limit > 0 {
		f.Limit++ // one more tells whether there is more
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		page, err = activityOf(tx, c, f)
		return err
	})
	if limit > 0 && len(page) > limit {
		page = page[:limit]
		next = page[limit-1].Seq
	}
	return page, next, err
}

// activityOf reads the lines the filter selects of those the caller may read.
// The scopes of a caller do not overlap, so neither do their lines.
func activityOf(tx Tx, c Caller, f ActivityFilter) (lines []Activity, err error) {
	for n, s := range within(c.scopes(ActionActivity), cmp.Or(f.Scope, Everywhere)) {
		f.Scope = s
		some, err := tx.Activity(f)
		if err != nil {
			return nil, err
		}
		if lines = append(lines, some...); n == 0 {
			continue
		}
		slices.SortFunc(lines, func(a, b Activity) int {
			if f.Newest {
				a, b = b, a
			}
			return cmp.Compare(a.Seq, b.Seq)
		})
		if f.Limit > 0 && len(lines) >= f.Limit {
			lines = lines[:f.Limit]
			f.Within = lines[f.Limit-1].Seq // of the other scopes nothing behind it is wanted
		}
	}
	return lines, nil
}

// FollowActivity calls each with every line after the Seq after that the
// filter selects, in order, and goes on with those that are yet to come until
// ctx ends or each returns an error. A caller who loses the right is cut off
// by whoever ends ctx. The filter's After, Newest and Limit are not looked at.
func (e *Engine) FollowActivity(ctx context.Context, c Caller, f ActivityFilter, after uint64, each func(Activity) error) error {
	f.Scope = cmp.Or(f.Scope, Everywhere)
	if err := c.mustSomewhere(ActionActivity, f.Scope); err != nil {
		return err
	}
	f.After, f.Newest, f.Limit = after, false, linesRead
	changed := e.Store.Changed(ctx) // before the first look, so that nothing falls between
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		lines, last, err := e.activityAfter(ctx, c, f)
		if err != nil {
			if AsError(err) == nil || AsError(err).Kind != Unavailable {
				return err
			}
			e.Log.Warn("cannot follow the activity log for the moment", "error", err)
		}
		for _, l := range lines {
			if err := each(l); err != nil {
				return err
			}
		}
		f.After = max(f.After, last)
		if len(lines) == linesRead {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case _, open := <-changed:
			if !open {
				changed = nil // the sweep goes on
			}
		case <-sweep.C:
		}
	}
}

// activityAfter reads lines that follow f.After, and up to which Seq it has
// looked: what the filter leaves out is not looked at again.
func (e *Engine) activityAfter(ctx context.Context, c Caller, f ActivityFilter) (lines []Activity, last uint64, err error) {
	err = e.Store.View(ctx, func(tx Tx) error {
		newest, err := tx.Activity(ActivityFilter{Newest: true, Limit: 1})
		if err != nil || len(newest) == 0 || newest[0].Seq <= f.After {
			return err
		}
		last = newest[0].Seq
		if lines, err = activityOf(tx, c, f); len(lines) == f.Limit {
			last = lines[len(lines)-1].Seq
		}
		return err
	})
	return lines, last, err
}
