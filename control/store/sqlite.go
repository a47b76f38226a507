package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// sqliteEngine is a file that this process alone has open: one connection
// that writes, some that read beside it, and one that folds the log into the file
// meanwhile.
type sqliteEngine struct {
	readers, writers, folders *sql.DB
	unlock                    func()

	commits atomic.Uint64
	due     chan struct{} // for the goroutine that folds; closed: it is to end
	ended   chan struct{} // it has
}

func openSQLite(ctx context.Context, path string) (_ *sqliteEngine, err error) {
	path, err = realPath(path)
	if err != nil {
		return nil, err
	}
	if err := checkLocal(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	e := &sqliteEngine{}
	if e.unlock, err = lockFile(path + ".lock"); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	defer func() {
		if err != nil {
			e.close()
		}
	}()
	// SQLite gives its other files the permissions of this one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	if e.writers, err = openFile(path, durable, "_txlock=immediate", amply); err != nil {
		return nil, err
	}
	e.writers.SetMaxOpenConns(1)
	e.writers.SetMaxIdleConns(1)
	if err := checkDurable(ctx, e.writers); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if e.readers, err = openFile(path, durable, "_pragma=query_only(1)"); err != nil {
		return nil, err
	}
	e.readers.SetMaxOpenConns(connectionsAtMost)
	e.readers.SetMaxIdleConns(connectionsAtMost)
	if e.folders, err = openFile(path, durable); err != nil {
		return nil, err
	}
	e.folders.SetMaxOpenConns(1)
	e.due, e.ended = make(chan struct{}, 1), make(chan struct{})
	go e.fold()
	return e, nil
}

// realPath is the file's own path: one file has one lock, by whichever name.
func realPath(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	return filepath.Join(dir, filepath.Base(path)), err
}

// durable has a connection keep what it acknowledges: FULL syncs the log at
// every commit.
const durable = "_pragma=journal_mode(wal)&_pragma=synchronous(full)&_pragma=foreign_keys(1)"

// amply has the one connection that writes keep the pages that all changes touch
// (16 MB), and fold the log into the file itself only where it has grown to 32 MB
// all the same: whoever waits for that commit waits for all of it. What a
// savepoint may have to bring back is kept in memory: in a file it was a system
// call for each page of each Update.
const amply = "_pragma=cache_size(-16384)&_pragma=wal_autocheckpoint(8192)&_pragma=temp_store(memory)"

// foldEvery is after how many commits the log is folded into the file: a page that
// all of them changed is copied once.
const foldEvery = 32

// fold folds the log into the file, beside the connection that writes, until the
// engine is closed. What it cannot do now it does the next time, or that
// connection does.
func (e *sqliteEngine) fold() {
	defer close(e.ended)
	for range e.due {
		_, _ = e.folders.Exec("PRAGMA wal_checkpoint(PASSIVE)")
	}
}

// committed has the log folded after so many.
func (e *sqliteEngine) committed() {
	if e.commits.Add(1)%foldEvery != 0 {
		return
	}
	select {
	case e.due <- struct{}{}:
	default: // it is at it
	}
}

// openFile makes a pool of connections to a file, which wait for a lock.
func openFile(path string, parameters ...string) (*sql.DB, error) {
	// A drive letter comes after a slash too.
	u := url.URL{Scheme: "file", Path: "/" + strings.TrimPrefix(filepath.ToSlash(path), "/")}
	u.RawQuery = strings.Join(append([]string{"_pragma=busy_timeout(10000)"}, parameters...), "&")
	return openPrepared(u.String())
}

// checkDurable refuses a database that would not keep what it acknowledges.
func checkDurable(ctx context.Context, db *sql.DB) error {
	var journal string
	var synchronous int
	if err := db.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return fmt.Errorf("is it a database of SQLite's? %w", err)
	}
	if err := db.QueryRowContext(ctx, "PRAGMA synchronous").Scan(&synchronous); err != nil {
		return err
	}
	if journal != "wal" || synchronous != 2 {
		return fmt.Errorf("the database took journal_mode %s and synchronous %d, not wal and 2: is the disk one that can map files?", journal, synchronous)
	}
	return nil
}

func (e *sqliteEngine) name() string                            { return "sqlite" }
func (e *sqliteEngine) query(q string) string                   { return q }
func (e *sqliteEngine) ddl(q string) string                     { return q }
func (e *sqliteEngine) contains(c string) string                { return "instr(" + c + ", ?) > 0" }
func (e *sqliteEngine) planned(args []any) []any                { return args }
func (e *sqliteEngine) begun(context.Context, *sql.Tx) error    { return nil }
func (e *sqliteEngine) announce(context.Context, *sql.Tx) error { return nil }

// breaksOff: the driver starts a goroutine for each statement that can be, which
// takes as long as most of ours in an Update, and what may hang is a system call
// that nothing ends.
func (e *sqliteEngine) breaksOff() bool { return false }

func (e *sqliteEngine) reader(ctx context.Context) (*sql.Conn, *sql.TxOptions, error) {
	c, err := e.readers.Conn(ctx)
	return c, &sql.TxOptions{ReadOnly: true}, err
}

// writer lends the one connection that writes: that is the queue of Updates.
func (e *sqliteEngine) writer(ctx context.Context) (*sql.Conn, *sql.TxOptions, error) {
	c, err := e.writers.Conn(ctx)
	return c, &sql.TxOptions{}, err
}

func (e *sqliteEngine) ping(ctx context.Context) error {
	var n int
	return e.readers.QueryRowContext(ctx, "SELECT count(*) FROM counter").Scan(&n)
}

// passing: a full or failing disk, and a file somebody else holds a lock on.
func (e *sqliteEngine) passing(err error) bool {
	failure, ok := errors.AsType[*sqlite.Error](err)
	if !ok {
		return false
	}
	switch failure.Code() & 0xff {
	case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR,
		sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY:
		return true
	}
	return false
}

func (e *sqliteEngine) close() error {
	var errs []error
	if e.due != nil {
		close(e.due)
		<-e.ended
	}
	// The one that writes goes last: it folds the log into the file.
	for _, db := range []*sql.DB{e.folders, e.readers, e.writers} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	e.unlock()
	return errors.Join(errs...)
}
