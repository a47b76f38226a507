package agents

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Run brings what is committed to the agents that listen here, ends those that
// were revoked, and writes down when agents were heard of, until ctx ends.
// Then it asks those that listen to come back later, and waits a moment for
// them to go.
func (l *Line) Run(ctx context.Context) error {
	changed := l.Store.Changed(ctx)
	at, err := l.newest(ctx)
	for err != nil {
		l.Log.Error("what the agents have yet to get cannot be read, trying again", "error", err)
		select {
		case <-ctx.Done():
			return l.leave()
		case <-time.After(time.Second):
		}
		at, err = l.newest(ctx)
	}
	close(l.placed)
	// Beside it: what is committed goes to its agents at once.
	var beside sync.WaitGroup
	beside.Go(func() { every(ctx, recheckTick, func() { l.recheck(ctx) }) })
	beside.Go(func() { every(ctx, seenEvery, func() { l.keepSeen(ctx) }) })
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		select {
		case <-ctx.Done():
			beside.Wait()
			return l.leave()
		case _, ok := <-changed:
			if !ok {
				changed = nil // it ends with ctx; the sweep goes on
			}
		case <-sweep.C:
		}
		// A hint may be lost and an error passes: the next look goes on where
		// this one stopped.
		if at, err = l.follow(ctx, at); err != nil && ctx.Err() == nil {
			l.Log.Error("what the agents have yet to get cannot be read, trying again", "error", err)
		}
	}
}

// every calls f from time to time, until ctx ends.
func every(ctx context.Context, wait time.Duration, f func()) {
	tick := time.NewTicker(wait)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f()
		}
	}
}

// recheck looks again at the certificates it has not looked at for a while.
func (l *Line) recheck(ctx context.Context) {
	now := l.Now()
	for _, s := range l.listeners("") {
		// A clock that was set back must not put it off.
		if s.socket == nil || now.Sub(s.looked).Abs() < recheckEvery {
			continue
		}
		s.looked = now // nobody else reads it
		s.recheck()
		if ctx.Err() != nil {
			return
		}
	}
}

// cutAfter is how long an agent that is sent away may take to hear why.
const cutAfter = 3 * time.Second

// position is how far this replica has read what was committed.
type position struct{ documents, activity uint64 }

// newest is the position behind everything there is. Sessions read by themselves
// what was committed before they came.
func (l *Line) newest(ctx context.Context) (at position, err error) {
	err = l.Store.View(ctx, func(tx control.Tx) error {
		// There is no question for the last one: double until there is nothing
		// behind, then halve.
		some := func(seq uint64) (bool, error) {
			list, err := tx.DocumentsAfter(seq, 1)
			return len(list) > 0, err
		}
		low, high := uint64(0), uint64(1)
		for {
			more, err := some(high)
			if err != nil {
				return err
			}
			if !more {
				break
			}
			low, high = high, 2*high
		}
		for low < high {
			middle := low + (high-low)/2
			more, err := some(middle)
			if err != nil {
				return err
			}
			if more {
				low = middle + 1
			} else {
				high = middle
			}
		}
		at.documents = low
		last, err := tx.Activity(control.ActivityFilter{Newest: true, Limit: 1})
		if len(last) > 0 {
			at.activity = last[0].Seq
		}
		return err
	})
	return at, err
}

// follow deals with what was committed since, and returns the position behind
// it. Who was sent away comes first: a revoked agent gets no document that was
// committed after that.
func (l *Line) follow(ctx context.Context, at position) (position, error) {
	for {
		var documents []control.Document
		var lines []control.Activity
		err := l.Store.View(ctx, func(tx control.Tx) (err error) {
			lines, err = tx.Activity(control.ActivityFilter{After: at.activity, Limit: pageSize})
			if err != nil || len(lines) == pageSize {
				return err // documents wait for the rest
			}
			documents, err = tx.DocumentsAfter(at.documents, pageSize)
			return err
		})
		if err != nil {
			return at, err
		}
		for _, a := range lines {
			if strings.HasPrefix(a.Event, "host.") || strings.HasPrefix(a.Event, "vm.") {
				if err := l.doubt(ctx, a); err != nil {
					return at, err // to be looked at again
				}
			}
			at.activity = a.Seq
		}
		for _, d := range documents {
			at.documents = d.Seq
			l.push(d)
		}
		if len(documents) < pageSize && len(lines) < pageSize {
			return at, nil
		}
	}
}

// push offers a document to the sessions it is for.
func (l *Line) push(d control.Document) {
	listeners := l.listeners(d.VM)
	if len(listeners) == 0 {
		return
	}
	whole, err := digested(d)
	if err != nil {
		l.Log.Error("a document cannot be sent", "error", err)
		return
	}
	for _, s := range listeners {
		if d.Type != policy.TypeTrust || s.isNext(whole) {
			s.offer(whole)
		}
	}
}

// listeners are the sessions of a machine, by its Key; of all where that is
// empty.
func (l *Line) listeners(key string) (list []*session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if key != "" {
		return slices.Clone(l.sessions[key])
	}
	for _, of := range l.sessions {
		list = append(list, of...)
	}
	return list
}

// doubt looks again whether those that listen for a machine still may: its
// agent was revoked, enrolled anew, or the machine was forgotten.
func (l *Line) doubt(ctx context.Context, a control.Activity) error {
	if a.VM == "" {
		return nil
	}
	for _, s := range l.listeners(strings.ToLower(a.VM)) {
		who, err := l.Engine.RecogniseSigned(ctx, s.cert)
		if !isGone(who, err) {
			if err != nil {
				return err
			}
			continue
		}
		l.Log.Info("an agent is sent away", "vm", a.VM, "after", a.Event)
		s.sendAway("this agent was revoked, or another has taken its place")
	}
	return nil
}

// keepSeen writes down when agents were last heard of, or says why it cannot.
func (l *Line) keepSeen(ctx context.Context) {
	if err := l.writeSeen(ctx); err != nil && ctx.Err() == nil {
		l.Log.Error("when agents were heard of cannot be written", "error", err)
	}
}

// seenAtOnce bounds how many are written in one Update: others wait for it.
const seenAtOnce = 250

// writeSeen writes down when agents were last heard of, in pieces.
func (l *Line) writeSeen(ctx context.Context) error {
	l.mu.Lock()
	seen := l.seen
	l.seen = map[string]time.Time{}
	for key, m := range l.limits {
		if l.sessions[key] == nil && m.full() {
			delete(l.limits, key)
		}
	}
	l.mu.Unlock()
	for some := range slices.Chunk(slices.Sorted(maps.Keys(seen)), seenAtOnce) {
		part := map[string]time.Time{}
		for _, key := range some {
			part[key] = seen[key]
		}
		if err := l.Store.Update(ctx, func(tx control.Tx) error { return tx.Seen(part) }); err != nil {
			l.mu.Lock()
			maps.Copy(seen, l.seen) // what came since is newer
			l.seen = seen
			l.mu.Unlock()
			return err
		}
		for _, key := range some {
			delete(seen, key)
		}
	}
	return nil
}

// leave sends everybody away, spread over some time.
func (l *Line) leave() error {
	l.mu.Lock()
	l.leaving = true
	l.mu.Unlock()
	for _, s := range l.listeners("") {
		wait := jitter()
		s.say(func(d *uplink.Down) { d.BackOff = wait })
	}
	gone := make(chan struct{})
	go func() {
		l.ending.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-time.After(cutAfter):
		for _, s := range l.listeners("") {
			s.cancel()
			if s.socket != nil {
				s.socket.Cut()
			}
		}
	}
	// Its own time: ctx is over.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	return l.writeSeen(ctx)
}
