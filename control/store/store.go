// Package store keeps what the control plane knows, in SQLite or in
// PostgreSQL. There is one schema and one text of every query; what the two
// engines do differently is an engine: how a transaction begins, how a
// placeholder looks, which failures pass by themselves.
//
// SQLite is one file and one process. PostgreSQL serves any number of
// processes, which hear of each other's commits by NOTIFY.
package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
)

// store is a control.Store on either engine.
type store struct {
	engine
	wakers
	updates  updates
	policies decoded[control.Policy]
	requests decoded[control.Request]
	keys     atomic.Pointer[keyIndex]

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup // transactions
}

// engine is what SQLite and PostgreSQL do differently.
type engine interface {
	dialect
	// reader and writer lend a connection, and say how a transaction begins
	// on it.
	reader(context.Context) (*sql.Conn, *sql.TxOptions, error)
	writer(context.Context) (*sql.Conn, *sql.TxOptions, error)
	// begun is the first thing in an Update: until it returns, another may run.
	begun(context.Context, *sql.Tx) error
	// announce is the last thing in an Update that changed documents or
	// activity: what other processes are to be told once it is committed.
	announce(context.Context, *sql.Tx) error
	// committed comes after each commit of an Update.
	committed()
	// breaksOff reports whether a statement of an Update may be broken off
	// where it is. Where not, the next one is not begun.
	breaksOff() bool
	// passing reports whether an error says nothing against the call: the same
	// call may work later.
	passing(error) bool
	ping(context.Context) error
	close() error
}

// dialect is what the two engines spell differently.
type dialect interface {
	name() string // of the engine, as in the names of its migrations
	// query spells a query of ours, which has ? for every argument.
	query(string) string
	// ddl spells the definition of a table.
	ddl(string) string
	// contains is a condition: a column has a string, an argument, in it.
	contains(column string) string
	// planned are the arguments of a query whose plan has to be made for them, and
	// not once for any.
	planned(args []any) []any
}

// stepAtMost is the longest that one step may take: the wait for a turn, a
// statement. A disk that hangs or a server that is cut off must not hold its
// callers for ever; a copy of a whole store may take its time.
const stepAtMost = 30 * time.Second

// commitPatience is how long a commit may take. A commit is not broken off
// with the call: nobody would know what became of it.
const commitPatience = 20 * time.Second

// Open opens the store that dsn names, a file's path (SQLite) or a
// postgres:// URL, and brings its schema up to date. It waits a while for a
// PostgreSQL that is not up yet.
func Open(ctx context.Context, dsn string, log hclog.Logger) (control.Store, error) {
	s, err := open(ctx, dsn, log)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Migrate brings the schema of the store that dsn names up to date.
func Migrate(ctx context.Context, dsn string, log hclog.Logger) error {
	s, err := open(ctx, dsn, log)
	if err != nil {
		return err
	}
	return s.Close()
}

func open(ctx context.Context, dsn string, log hclog.Logger) (_ *store, err error) {
	s := &store{}
	switch {
	case isPostgres(dsn):
		s.engine, err = openPostgres(ctx, dsn, log, &s.wakers)
	case dsn == "" || strings.Contains(dsn, "://"):
		return nil, fmt.Errorf("%q names no store: a file's path, or postgres://USER@HOST/DATABASE", dsn)
	default:
		s.engine, err = openSQLite(ctx, dsn)
	}
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx, log); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func isPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// Close waits for the transactions that run and ends. What is called later is
// Unavailable.
func (s *store) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		return nil
	}
	s.running.Wait()
	return s.close()
}

// enter counts a transaction that begins, but for a closed store.
func (s *store) enter() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return unavailable(errors.New("the store is closed"))
	}
	s.running.Add(1)
	return nil
}

// Ping reports whether the store answers.
func (s *store) Ping(ctx context.Context) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	ctx, cancel := step(ctx)
	defer cancel()
	return s.judge(ctx, s.ping(ctx))
}

// View runs f on one consistent state.
func (s *store) View(ctx context.Context, f func(control.Tx) error) error {
	return s.transact(ctx, s.reader, func(x *sql.Tx) (changed bool, err error) {
		return false, run(f, &tx{store: s, ctx: ctx, call: ctx, sql: x, readOnly: true})
	})
}

// took takes a step of the engine's.
func (s *store) took(ctx context.Context, x *sql.Tx, do func(context.Context, *sql.Tx) error) error {
	ctx, cancel := step(ctx)
	defer cancel()
	return s.judge(ctx, do(ctx, x))
}

// run runs f. What failed in it is not committed in part, and not taken for
// the whole, whatever f made of the error.
func run(f func(control.Tx) error, t *tx) error {
	if err := f(t); err != nil {
		return err
	}
	return t.failed
}

// lend lends a connection, and says how a transaction begins on it.
type lend func(context.Context) (*sql.Conn, *sql.TxOptions, error)

// transact runs f in a transaction and commits it. Where f fails or panics,
// nothing of it stays.
func (s *store) transact(ctx context.Context, lend lend, f func(*sql.Tx) (changed bool, err error)) error {
	if err := s.enter(); err != nil {
		return err
	}
	defer s.running.Done()
	// The transaction has a context of its own: its statements end with the
	// call, its commit does not.
	whole, end := context.WithCancel(context.WithoutCancel(ctx))
	defer end()
	conn, x, err := s.begin(ctx, whole, end, lend)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer x.Rollback() // after a commit, nothing

	changed, err := f(x)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return s.judge(ctx, err)
	}
	late := time.AfterFunc(commitPatience, end)
	defer late.Stop()
	if err := x.Commit(); err != nil {
		return unavailable(fmt.Errorf("commit, which may have happened: %w", err))
	}
	if changed {
		s.wake()
	}
	return nil
}

// begin begins a transaction that lives in the context whole. Until it has
// begun, nothing has happened: a connection that broke while nobody used it
// is replaced.
func (s *store) begin(ctx, whole context.Context, end func(), lend lend) (*sql.Conn, *sql.Tx, error) {
	ctx, cancel := step(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, end)()
	for try := 0; ; try++ {
		conn, options, err := lend(ctx)
		if err != nil {
			return nil, nil, s.judge(ctx, err)
		}
		x, err := conn.BeginTx(whole, options)
		if err == nil {
			return conn, x, nil
		}
		conn.Close()
		if ctx.Err() != nil || try == connectionsAtMost || !s.passing(err) {
			return nil, nil, s.judge(ctx, err)
		}
	}
}

// connectionsAtMost bounds the connections to a database.
const connectionsAtMost = 16

// errBound is why a step that took too long was ended.
var errBound = fmt.Errorf("the database took longer than %v", stepAtMost)

// step is the context of one step of a call.
func step(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, stepAtMost, errBound)
}

// judge makes of an error of the engine's what callers can tell apart: the
// caller's own end, what passes by itself, and what is wrong with us.
func (s *store) judge(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("store: %w", context.Canceled)
	case ctx.Err() != nil: // a deadline
		return unavailable(fmt.Errorf("%w: %w", context.Cause(ctx), err))
	case errors.Is(err, driver.ErrBadConn), errors.Is(err, sql.ErrConnDone), s.passing(err):
		return unavailable(err)
	}
	return fmt.Errorf("store: %w", err)
}

// unavailable says that the same call may work later.
func unavailable(err error) error {
	return fmt.Errorf("store: %w: %w", control.Refuse(control.Unavailable, "ServiceUnavailable", "The database does not answer. Try again."), err)
}

// wakers are the channels of those who wait for a change.
type wakers struct {
	mu  sync.Mutex
	all map[chan struct{}]struct{}
}

// Changed returns a channel that gets a value after commits of documents or
// activity, and is closed when ctx ends.
func (w *wakers) Changed(ctx context.Context) <-chan struct{} {
	c := make(chan struct{}, 1)
	w.mu.Lock()
	if w.all == nil {
		w.all = map[chan struct{}]struct{}{}
	}
	w.all[c] = struct{}{}
	w.mu.Unlock()
	context.AfterFunc(ctx, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, c)
		close(c)
	})
	return c
}

// wake gives each channel a value, where it has none waiting.
func (w *wakers) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for c := range w.all {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}
