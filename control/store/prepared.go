package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"strings"

	"modernc.org/sqlite"
)

// SQLite parses a query anew each time it is run by its text, which takes
// longer than to run most of ours. So each connection keeps the queries it was
// asked before, prepared.

// preparedAtMost bounds the queries that a connection keeps. Ours are about a
// hundred; those with a list of arguments have a text for every length of it.
const preparedAtMost = 256

// preparing is a driver.Connector whose connections keep prepared queries.
type preparing struct{ driver.Connector }

// Connect implements driver.Connector.
func (p preparing) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	inner, ok := c.(innerConn)
	if !ok {
		return nil, errors.Join(errors.New("store: this SQLite driver lacks what is needed"), c.Close())
	}
	return &preparedConn{innerConn: inner, kept: map[string]driver.Stmt{}}, nil
}

// innerConn is what a connection of SQLite's can do.
type innerConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// preparedConn is used by one goroutine at a time, as any driver.Conn.
type preparedConn struct {
	innerConn
	kept map[string]driver.Stmt // those that nobody runs now
}

// keeps reports whether a query is one that comes again. Scripts, of several
// statements, are none.
func keeps(query string) bool {
	for _, verb := range []string{"SELECT ", "INSERT ", "UPDATE ", "DELETE ", "WITH "} {
		if strings.HasPrefix(query, verb) {
			return !strings.Contains(query, ";")
		}
	}
	return false
}

// take returns the query prepared, for the caller alone until it is put back.
func (c *preparedConn) take(ctx context.Context, query string) (driver.Stmt, error) {
	if s, ok := c.kept[query]; ok {
		delete(c.kept, query)
		return s, nil
	}
	return c.PrepareContext(ctx, query)
}

func (c *preparedConn) put(query string, s driver.Stmt) error {
	if _, twice := c.kept[query]; twice || len(c.kept) >= preparedAtMost {
		return s.Close()
	}
	c.kept[query] = s
	return nil
}

// ExecContext implements driver.ExecerContext.
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if !keeps(query) {
		return c.innerConn.ExecContext(ctx, query, args)
	}
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	r, err := s.(driver.StmtExecContext).ExecContext(ctx, args)
	if err != nil {
		return nil, errors.Join(err, s.Close()) // whatever state it is in
	}
	return r, c.put(query, s)
}

// QueryContext implements driver.QueryerContext.
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if !keeps(query) {
		return c.innerConn.QueryContext(ctx, query, args)
	}
	s, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := s.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &preparedRows{Rows: rows, done: func(whole bool) error {
		if !whole {
			return s.Close()
		}
		return c.put(query, s)
	}}, nil
}

// Close implements driver.Conn.
func (c *preparedConn) Close() error {
	var err error
	for _, s := range c.kept {
		err = errors.Join(err, s.Close())
	}
	c.kept = nil
	return errors.Join(err, c.innerConn.Close())
}

// preparedRows give their query back when they are closed.
type preparedRows struct {
	driver.Rows
	failed bool
	done   func(whole bool) error // nil: closed
}

// Next implements driver.Rows.
func (r *preparedRows) Next(to []driver.Value) error {
	err := r.Rows.Next(to)
	r.failed = r.failed || err != nil && !errors.Is(err, io.EOF)
	return err
}

// Close implements driver.Rows.
func (r *preparedRows) Close() error {
	err := r.Rows.Close()
	if r.done != nil {
		err = errors.Join(err, r.done(err == nil && !r.failed))
		r.done = nil
	}
	return err
}

// openPrepared opens a pool of connections that keep their queries prepared.
func openPrepared(name string) (*sql.DB, error) {
	c, err := sqlite.NewConnector(name)
	if err != nil {
		return nil, err
	}
	return sql.OpenDB(preparing{c}), nil
}
