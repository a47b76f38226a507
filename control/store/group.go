package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jitgate/jitgate/control"
)

// Updates that wait while another one runs are committed together: what a
// commit costs (a sync of the disk, a round to the database, a word to the
// other replicas) is paid once for all of them. Each has its own savepoint, so
// that one that fails takes nothing of the others with it; nobody is told of
// an outcome before the commit has made it one. An Update that nobody waits
// behind is a transaction of its own, as ever (docs/adr/0032-group-commit.md).

// groupAtMost bounds how many Updates are committed together, and with that
// how long the first of them waits for the last.
const groupAtMost = 32

// updates are those that wait for their turn.
type updates struct {
	mu      sync.Mutex
	waiting []*update
	led     bool // somebody sees to them
}

// update is one call of Update. Its function runs in the caller's goroutine,
// when it is given the turn.
type update struct {
	claimed atomic.Bool // by whoever comes first: its turn, or the end of its wait
	turn    chan turn
	ran     chan ran
	outcome chan error
}

// turn is a transaction, lent for as long as the function runs.
type turn struct {
	sql   *sql.Tx
	alone bool // nobody else's work is in it
	err   error
}

// ran is how the function ended.
type ran struct {
	changed bool
	err     error // nothing of it is to stay
}

// Update runs f and commits.
func (s *store) Update(ctx context.Context, f func(control.Tx) error) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	wait, cancel := step(ctx)
	defer cancel()
	if err := wait.Err(); err != nil {
		return s.judge(wait, err)
	}
	u := &update{turn: make(chan turn, 1), ran: make(chan ran, 1), outcome: make(chan error, 1)}
	s.queue(u)
	var mine turn
	select {
	case mine = <-u.turn:
	case <-wait.Done():
		if u.claimed.CompareAndSwap(false, true) {
			return s.judge(wait, wait.Err())
		}
		mine = <-u.turn
	}
	if mine.err != nil {
		return mine.err
	}
	end := ran{err: errors.New("store: a panic")}
	func() {
		defer func() { u.ran <- end }() // after a panic too
		end.changed, end.err = s.run(ctx, f, mine)
	}()
	return <-u.outcome
}

// run runs f in a transaction that others may have a part in. Where they have,
// the end of the call must not break a statement off: that could take the whole
// transaction with it. Then the next statement is not begun.
func (s *store) run(ctx context.Context, f func(control.Tx) error, mine turn) (changed bool, err error) {
	t := &tx{store: s, ctx: ctx, call: ctx, sql: mine.sql}
	if !mine.alone {
		t.ctx = context.WithoutCancel(ctx)
	}
	if err := ctx.Err(); err != nil {
		return false, s.judge(ctx, err)
	}
	if err := run(f, t); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, s.judge(ctx, err)
	}
	return t.changed, nil
}

// queue has somebody see to an update.
func (s *store) queue(u *update) {
	s.updates.mu.Lock()
	defer s.updates.mu.Unlock()
	s.updates.waiting = append(s.updates.waiting, u)
	if s.updates.led {
		return
	}
	s.updates.led = true
	s.running.Add(1) // the caller is counted, so the store is not closed yet
	go func() {
		defer s.running.Done()
		s.lead()
	}()
}

// lead sees to updates until none waits.
func (s *store) lead() {
	for {
		q := &s.updates
		q.mu.Lock()
		n := min(len(q.waiting), groupAtMost)
		group := q.waiting[:n:n]
		q.waiting = q.waiting[n:]
		if n == 0 {
			q.led, q.waiting = false, nil
			q.mu.Unlock()
			return
		}
		q.mu.Unlock()
		for len(group) > 0 {
			group = s.together(group)
		}
	}
}

// together runs a group in one transaction and commits it. It returns those
// that have yet to run, because the transaction broke down before.
func (s *store) together(group []*update) (rest []*update) {
	whole, end := context.Background(), func() {}
	if s.breaksOff() {
		whole, end = context.WithCancel(whole)
	}
	defer end()
	conn, x, err := s.begin(whole, whole, end, s.writer)
	if err == nil {
		defer conn.Close()
		defer x.Rollback() // after a commit, nothing
		err = s.took(whole, x, s.begun)
	}
	if err != nil {
		for _, u := range group {
			if u.claimed.CompareAndSwap(false, true) {
				u.turn <- turn{err: err}
			}
		}
		return nil
	}
	outcomes := map[*update]error{}
	changed, alone := false, len(group) == 1
	var broken error
	for len(group) > 0 && broken == nil {
		u := group[0]
		group = group[1:]
		if !u.claimed.CompareAndSwap(false, true) {
			continue // its caller is gone
		}
		if broken = s.mark(whole, x, alone, "SAVEPOINT one"); broken != nil {
			u.turn <- turn{err: broken}
			break
		}
		u.turn <- turn{sql: x, alone: alone}
		r := <-u.ran
		outcomes[u] = r.err
		if r.err != nil && !alone {
			broken = s.mark(whole, x, alone, "ROLLBACK TO SAVEPOINT one")
		}
		if broken == nil {
			broken = s.mark(whole, x, alone, "RELEASE SAVEPOINT one")
		}
		changed = changed || r.err == nil && r.changed
	}
	switch {
	case broken != nil:
	case alone && onlyFailed(outcomes):
		changed = false
	default:
		broken = s.finish(whole, end, x, changed)
	}
	if broken == nil && changed {
		s.wake()
	}
	for u, err := range outcomes {
		if broken != nil && (err == nil || !alone) {
			err = broken // what it saw of the others did not happen
		}
		u.outcome <- err
	}
	return group
}

// onlyFailed reports whether nothing is to be committed.
func onlyFailed(outcomes map[*update]error) bool {
	for _, err := range outcomes {
		if err == nil {
			return false
		}
	}
	return true
}

// mark sets or leaves a savepoint, where there is more than one update.
func (s *store) mark(ctx context.Context, x *sql.Tx, alone bool, statement string) error {
	if alone {
		return nil
	}
	return s.took(ctx, x, func(ctx context.Context, x *sql.Tx) error {
		if _, err := x.ExecContext(ctx, statement); err != nil {
			return unavailable(err)
		}
		return nil
	})
}

// finish tells other replicas, and commits. A commit that takes too long is
// broken off with the transaction.
func (s *store) finish(ctx context.Context, end func(), x *sql.Tx, changed bool) error {
	if changed {
		if err := s.took(ctx, x, s.announce); err != nil {
			return err
		}
	}
	late := time.AfterFunc(commitPatience, end)
	defer late.Stop()
	if err := x.Commit(); err != nil {
		return unavailable(fmt.Errorf("commit, which may have happened: %w", err))
	}
	s.committed()
	return nil
}
