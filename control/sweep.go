package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// The pace of Run, and how much one transaction of it takes on.
const (
	sweepTick    = time.Second
	sweepRest    = 10 * time.Second // between looks at requests, unless one ends before
	sweepHosts   = time.Minute      // between looks for hosts that are lost
	sweepRenewal = time.Hour        // between looks at every document
	sweepSettled = 5 * time.Minute  // before the first one, where the realm's keys are as they were
	sweepBatch   = 100
	sweepPage    = 500
)

// hostLost is how long an agent is not heard of before its host is lost.
const hostLost = 10 * time.Minute

// schedule is when each part of the sweep is due again. It is a replica's own:
// what was done twice was done once, since each part looks before it writes.
type schedule struct {
	requests, grants, hosts, renewal time.Time
	looked                           looked
}

// looked is how far a look at every document has come.
type looked struct {
	after  uint64 // Seq
	failed error  // of those that could not be made anew
}

// Run does what has to happen without anybody asking, until ctx ends: ends
// requests on time, renews documents, tells of hosts that are lost. Any number
// of replicas may run it. What fails is tried again.
func (e *Engine) Run(ctx context.Context) error {
	var s schedule
	// A server that comes back has its whole fleet come back: a look at every
	// document waits, unless the documents have to be made anew for other keys.
	if added, err := e.keepTrust(ctx); err == nil && !added {
		s.renewal = e.Now().Add(sweepSettled)
	}
	tick := time.NewTicker(sweepTick)
	defer tick.Stop()
	failing := false
	for {
		err := e.sweep(ctx, &s)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil && !failing {
			e.Log.Error("the sweep failed and is tried again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Sweep does all that is due by now, once.
func (e *Engine) Sweep(ctx context.Context) error {
	var s schedule
	for {
		if err := e.sweep(ctx, &s); err != nil || s.looked.after == 0 {
			return err
		}
	}
}

// sweep does the parts that are due by the schedule. One that fails is due
// again at once and keeps none of the others from their turn.
func (e *Engine) sweep(ctx context.Context, s *schedule) error {
	now := e.Now()
	var failed error
	part := func(due *time.Time, f func() (time.Time, error)) {
		// A clock that was set back must not put the sweep off.
		if now.Before(*due) && due.Sub(now) <= sweepRenewal {
			return
		}
		next, err := f()
		if err != nil {
			failed = errors.Join(failed, err)
			next = now
		}
		*due = next
	}
	part(&s.requests, func() (time.Time, error) { return e.endRequests(ctx, now) })
	part(&s.grants, func() (time.Time, error) { return now.Add(sweepRest), e.renewGrants(ctx, now) })
	part(&s.hosts, func() (time.Time, error) { return now.Add(sweepHosts), e.loseHosts(ctx, now) })
	part(&s.renewal, func() (time.Time, error) { return e.renewDocuments(ctx, now, &s.looked) })
	return failed
}

// endRequests writes down the end of what is over. next is when to look again.
func (e *Engine) endRequests(ctx context.Context, now time.Time) (next time.Time, err error) {
	next = now.Add(sweepRest)
	var over []string
	err = e.Store.View(ctx, func(tx Tx) error {
		over, next = nil, now.Add(sweepRest)
		for f := (RequestFilter{Open: true, Limit: sweepPage}); ; {
			list, err := tx.Requests(f)
			if err != nil {
				return err
			}
			for _, r := range list {
				f.After = r.ID
				if end := r.nextEnd(); !end.After(now) {
					over = append(over, r.ID)
				} else if end.Before(next) {
					next = end
				}
			}
			if len(list) < f.Limit {
				return nil
			}
		}
	})
	for len(over) > 0 && err == nil {
		some := over[:min(len(over), sweepBatch)]
		over = over[len(some):]
		err = e.edit(ctx, Caller{}, func(ed *edit) error { return ed.endAll(some) })
	}
	return next, err
}

// nextEnd is when something of the request ends by itself.
func (r *Request) nextEnd() (next time.Time) {
	earlier := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, p := range r.eachPort() {
		switch {
		case p.Status == Pending && r.Approval != nil:
			earlier(r.Approval.Until)
			if p.Length == 0 {
				earlier(p.End)
			}
		case p.Status == Initiating || p.Status == Initiated:
			earlier(p.Until)
		}
	}
	return next
}

// endAll ends what is over of these requests. Grants stay on the list until it
// is made anew: their end is in them.
func (ed *edit) endAll(ids []string) error {
	for _, id := range ids {
		r, there, err := found(ed.tx.Request(id))
		if err != nil {
			return err
		}
		if !there {
			continue
		}
		var before []Status
		for _, p := range r.eachPort() {
			before = append(before, p.Status)
		}
		if !r.settle(ed.now) {
			continue // another replica was here
		}
		i := -1
		for vm, p := range r.eachPort() {
			if i++; p.Status == before[i] {
				continue
			}
			event, why := "request.revoked", "the time is up"
			if before[i] == Pending {
				event, why = "request.denied", "nobody approved it in time"
			}
			ed.tell(ed.portLine(event, "", r, vm, *p, why))
		}
		if err := ed.putRequest(r); err != nil {
			return err
		}
	}
	return nil
}

// renewGrants makes lists anew before they are too old to hold anything open.
func (e *Engine) renewGrants(ctx context.Context, now time.Time) error {
	for {
		var list []Document
		err := e.Store.View(ctx, func(tx Tx) (err error) {
			list, err = tx.GrantsDue(now.Add(-grantsRenew), sweepBatch)
			return err
		})
		if err != nil {
			return err
		}
		var some []due
		for _, d := range list {
			vm, err := ParseVMID(d.VM)
			if err != nil {
				return err
			}
			some = append(some, due{vm: vm})
		}
		if err := e.renewAll(ctx, some, func(d Document) bool { return d.Issued.Before(now.Add(-grantsRenew)) }); err != nil || len(list) < sweepBatch {
			return err
		}
	}
}

// renewAll makes documents anew that are still stale when their turn comes:
// another replica may have been there. A machine whose documents cannot be made
// keeps no other from its own.
func (e *Engine) renewAll(ctx context.Context, all []due, stale func(Document) bool) error {
	var failed error
	_, people := e.Realm.peopleSign()
	for some := range slices.Chunk(all, sweepBatch) {
		renew := func(some []due) error {
			return e.edit(ctx, Caller{}, func(ed *edit) error {
				for _, d := range some {
					typ := policy.TypeGrants
					if d.guard {
						typ = policy.TypePolicy
					}
					newest, there, err := found(ed.tx.Document(d.vm.Key(), typ))
					if err != nil {
						return err
					}
					if !there || !stale(newest) {
						continue
					}
					if d.guard && people {
						// Once it waits for people, it waits.
						if _, waits, err := found(ed.tx.PendingPolicy(d.vm)); err != nil {
							return err
						} else if waits {
							continue
						}
					}
					ed.renew(d.vm, d.guard)
				}
				return nil
			})
		}
		if renew(some) == nil {
			continue
		}
		for one := range slices.Chunk(some, 1) {
			if err := renew(one); err != nil {
				failed = errors.Join(failed, fmt.Errorf("renew documents of %s: %w", one[0].vm, err))
			}
		}
	}
	return failed
}

// renewDocuments makes documents anew that are about to end, or that agents
// would refuse since the realm's keys or epochs changed. It also keeps the
// trust document where agents are given it from. It goes on from where it was the
// last time: where nothing was to be done on a page, the next one is for the next
// turn, so that a server that comes back has time for those who wait for it.
func (e *Engine) renewDocuments(ctx context.Context, now time.Time, at *looked) (next time.Time, err error) {
	if at.after == 0 {
		if _, err := e.keepTrust(ctx); err != nil {
			return now, err
		}
	}
	for {
		var list []Document
		err := e.Store.View(ctx, func(tx Tx) (err error) {
			list, err = tx.DocumentsAfter(at.after, sweepPage)
			return err
		})
		if err != nil {
			return now, err
		}
		var stale []due
		for _, d := range list {
			at.after = d.Seq
			if !e.stale(d, now) {
				continue
			}
			vm, err := ParseVMID(d.VM)
			if err != nil {
				at.failed = errors.Join(at.failed, err)
				continue
			}
			stale = append(stale, due{vm: vm, guard: d.Type == policy.TypePolicy})
		}
		at.failed = errors.Join(at.failed, e.renewAll(ctx, stale, func(d Document) bool { return e.stale(d, now) }))
		switch {
		case len(list) < sweepPage:
			err := at.failed
			*at = looked{}
			return now.Add(sweepRenewal), err
		case len(stale) == 0:
			return now, nil
		}
	}
}

// stale reports whether a stored document is to be made anew. Lists of grants
// end daily: where nothing is open they are left to.
func (e *Engine) stale(d Document, now time.Time) bool {
	trust := e.Realm.Trust
	switch d.Type {
	case policy.TypePolicy:
		v, err := policy.OpenPolicy(d.Signed, trust)
		return err != nil || policy.CurrentEpoch(v.Document().Epoch, policy.RolePolicy, trust) != nil || d.Expires.Sub(now) < policyRenew
	case policy.TypeGrants:
		v, err := policy.OpenGrants(d.Signed, trust)
		return err != nil || policy.CurrentEpoch(v.Document().Epoch, policy.RoleGrant, trust) != nil
	}
	return false
}

// keepTrust puts the realm's trust document where agents are given it from, and
// reports whether it did: that one or a newer one may be there.
func (e *Engine) keepTrust(ctx context.Context) (added bool, err error) {
	mine := e.Realm.document()
	there := false
	look := func(tx Tx) error {
		kept, ok, err := found(tx.Document("", policy.TypeTrust))
		there = ok && kept.Version >= mine.Version
		return err
	}
	if err := e.Store.View(ctx, look); err != nil || there {
		return false, err
	}
	err = e.Store.Update(ctx, func(tx Tx) error {
		if err := look(tx); err != nil || there {
			return err
		}
		return errors.Join(tx.PutDocument(mine), tx.PutMeta(trustMeta(mine.Version), mine.Signed))
	})
	return !there && err == nil, err
}

// loseHosts tells of agents that were not heard of, once for each loss.
func (e *Engine) loseHosts(ctx context.Context, now time.Time) error {
	var lost []VMID
	for f := (VMFilter{Silent: now.Add(-hostLost), Limit: sweepPage}); ; {
		var list []VM
		err := e.Store.View(ctx, func(tx Tx) (err error) {
			list, err = tx.VMs(f)
			return err
		})
		if err != nil {
			return err
		}
		for _, v := range list {
			f.After = v.ID.Key()
			if v.lost(now) {
				lost = append(lost, v.ID)
			}
		}
		if len(list) < f.Limit {
			break
		}
	}
	for len(lost) > 0 {
		some := lost[:min(len(lost), sweepBatch)]
		lost = lost[len(some):]
		err := e.edit(ctx, Caller{}, func(ed *edit) error {
			for _, id := range some {
				v, there, err := ed.vm(id)
				if err != nil {
					return err
				}
				if !there || !v.lost(now) {
					continue // it came back, or another replica was here
				}
				line := ed.line("host.lost", "", id.Scope())
				line.VM, line.Reason = v.ID.String(), "not heard of since "+policy.FormatTime(v.heard())
				ed.tell(line)
				v.Agent.Lost = now
				if err := ed.putVM(v); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// heard is when the machine's agent was last heard of.
func (v VM) heard() time.Time {
	if v.Agent.LastSeen.After(v.Agent.Enrolled) {
		return v.Agent.LastSeen
	}
	return v.Agent.Enrolled
}

// lost reports whether the machine's agent was not heard of for too long, and
// nobody was told.
func (v VM) lost(now time.Time) bool {
	if v.Agent == nil || v.Agent.Revoked || now.Sub(v.heard()) < hostLost {
		return false
	}
	return !v.Agent.Lost.After(v.heard())
}
