package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	jsonv2 "github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonv1 "github.com/go-json-experiment/json/v1"

	"github.com/jitgate/jitgate/control"
)

// tx is a control.Tx.
type tx struct {
	store    *store
	ctx      context.Context // of the statements
	call     context.Context // of the call: after its end no statement begins
	sql      *sql.Tx
	readOnly bool
	changed  bool  // documents or activity
	failed   error // of a write, or of the engine: there is no commit after it

	// What an Update read and may write back: see PutRequest and PutVM. Nobody
	// else writes meanwhile.
	requests map[string]string // documents by id
	machines map[string]bool   // whether it is unsupported, by Key
}

// errReadOnly is what a write in a View gets.
var errReadOnly = errors.New("store: a View does not write")

// exec writes and returns how many rows it touched.
func (t *tx) exec(query string, args ...any) (int, error) {
	if t.failed != nil {
		return 0, t.failed
	}
	n, err := t.write(query, args)
	if err != nil {
		t.failed = err
	}
	return n, err
}

func (t *tx) write(query string, args []any) (int, error) {
	if t.readOnly {
		return 0, errReadOnly
	}
	args, err := arguments(args)
	if err != nil {
		return 0, err
	}
	if err := t.call.Err(); err != nil {
		return 0, t.store.judge(t.call, err)
	}
	ctx, cancel := t.statement()
	defer cancel()
	r, err := t.sql.ExecContext(ctx, t.store.query(query), args...)
	if err != nil {
		return 0, t.store.judge(ctx, err)
	}
	n, err := r.RowsAffected()
	return int(n), t.store.judge(ctx, err)
}

// statement is the context of one statement.
func (t *tx) statement() (context.Context, context.CancelFunc) {
	if !t.readOnly && !t.store.breaksOff() {
		return context.WithoutCancel(t.ctx), func() {}
	}
	return step(t.ctx)
}

// put writes a row whose last argument is v as a document.
func (t *tx) put(query string, v any, args ...any) error {
	doc, err := encode(v)
	if err != nil {
		t.failed = errors.Join(t.failed, err)
		return err
	}
	_, err = t.exec(query, append(args, doc)...)
	return err
}

// read runs a query and calls each for every row.
func (t *tx) read(each func(*sql.Rows) error, query string, args ...any) error {
	args, err := arguments(args)
	if err != nil {
		return err
	}
	if err := t.call.Err(); err != nil {
		t.failed = t.store.judge(t.call, err)
		return t.failed
	}
	ctx, cancel := t.statement()
	defer cancel()
	rows, err := t.sql.QueryContext(ctx, t.store.query(query), args...)
	if err == nil {
		defer rows.Close()
		for rows.Next() {
			if err := each(rows); err != nil {
				return err
			}
		}
		err = rows.Err()
	}
	if err = t.store.judge(ctx, err); err != nil {
		t.failed = err
	}
	return err
}

// all are the documents of a query whose one column is doc.
func all[T any](t *tx, query string, args ...any) ([]T, error) {
	return documentsOf(t, func(doc string) (v T, err error) {
		err = decode(doc, &v)
		return v, err
	}, query, args...)
}

// documentsOf are those of a query whose one column is doc, as read reads them.
func documentsOf[T any](t *tx, read func(doc string) (T, error), query string, args ...any) ([]T, error) {
	var list []T
	err := t.read(func(rows *sql.Rows) error {
		var doc string
		if err := rows.Scan(&doc); err != nil {
			return t.store.judge(t.ctx, err)
		}
		v, err := read(doc)
		if err != nil {
			return err
		}
		list = append(list, v)
		return nil
	}, query, args...)
	return list, err
}

// one is the document of a query for one row, or ErrNotFound.
func one[T any](t *tx, query string, args ...any) (T, error) {
	list, err := all[T](t, query, args...)
	if err != nil || len(list) == 0 {
		var none T
		if err == nil {
			err = control.ErrNotFound
		}
		return none, err
	}
	return list[0], nil
}

// next takes n numbers of a counter and returns the first. The row is written
// in the transaction, of which one runs at a time: numbers rise in the order
// of commits, and what is rolled back leaves no gap.
func (t *tx) next(counter string, n int) (uint64, error) {
	if t.readOnly && t.failed == nil {
		t.failed = errReadOnly
	}
	if t.failed != nil {
		return 0, t.failed
	}
	var last int64
	err := t.read(func(rows *sql.Rows) error { return rows.Scan(&last) }, "UPDATE counter SET value = value + ? WHERE name = ? RETURNING value", n, counter)
	return uint64(last) - uint64(n) + 1, err
}

// encode writes v as a document. What would not come back as it is, such as
// bytes that are no text, is refused.
func encode(v any) (document, error) {
	var b strings.Builder
	if err := jsonv2.MarshalWrite(&b, v, jsonv1.DefaultOptionsV1(), jsontext.AllowInvalidUTF8(false)); err != nil {
		return "", control.Refuse(control.Invalid, "InvalidValue", "A value cannot be kept: %v.", err)
	}
	return document(b.String()), nil
}

// decode reads a document, which is not copied for that.
func decode(doc string, v any) error {
	if err := jsonv2.UnmarshalRead(strings.NewReader(doc), v, jsonv1.DefaultOptionsV1()); err != nil {
		return fmt.Errorf("store: a document in the database does not read: %w", err)
	}
	return nil
}

// document is a value as its column has it.
type document string

// namesAtMost bounds what columns beside a document hold, in bytes. Three of
// them together are what an index of PostgreSQL's takes.
const namesAtMost = 800

// arguments refuses names that PostgreSQL cannot hold, on both engines.
func arguments(args []any) ([]any, error) {
	out := slices.Clone(args)
	for i, a := range args {
		switch a := a.(type) {
		case document:
			out[i] = string(a)
		case string:
			if strings.ContainsRune(a, 0) || !utf8.ValidString(a) {
				return nil, control.Refuse(control.Invalid, "InvalidValue", "%.100q is not text.", a)
			}
			if len(a) > namesAtMost {
				return nil, control.Refuse(control.Invalid, "InvalidValue", "%.100q… is longer than %d bytes.", a, namesAtMost)
			}
		}
	}
	return out, nil
}

// fold is the spelling names are compared by.
func fold(s string) string { return strings.ToLower(s) }

// nanos is a time as a column has it. What is out of its range, the zero time
// above all, becomes its end.
func nanos(t time.Time) int64 {
	switch {
	case t.Before(time.Unix(0, math.MinInt64)):
		return math.MinInt64
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	}
	return t.UnixNano()
}

// flag is a bool as a column has it.
func flag(b bool) int {
	if b {
		return 1
	}
	return 0
}

// selection is a query put together from conditions.
type selection struct {
	where []string
	args  []any
}

func (q *selection) and(condition string, args ...any) {
	q.where = append(q.where, condition)
	q.args = append(q.args, args...)
}

// below asks that the column is a scope or something in it. "0" is what
// follows "/": the range is what an index has in one piece.
func (q *selection) below(column string, s control.Scope) {
	if s == "" || s == control.Everywhere {
		return
	}
	in := fold(string(s))
	q.and("("+column+" >= ? AND "+column+" < ? AND ("+column+" = ? OR "+column+" >= ?))", in, in+"0", in, in+"/")
}

// within asks that the column is of something in a scope.
func (q *selection) within(column string, s control.Scope) {
	in := fold(string(s))
	q.and(column+" > ? AND "+column+" < ?", in+"/", in+"0")
}

// text is the query, of the documents in a table.
func (q *selection) text(table, order string, limit int) string {
	return "SELECT doc FROM " + table + q.conditions() + " ORDER BY " + order + limited(limit)
}

func (q *selection) conditions() string {
	if len(q.where) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(q.where, " AND ")
}

// limited ends a query after limit rows; 0 is no limit.
func limited(limit int) string {
	if limit <= 0 {
		return ""
	}
	return fmt.Sprintf(" LIMIT %d", limit)
}

// chunk is how many rows are written, or asked for, in one statement. Engines
// bound the arguments of one.
const chunk = 500

// tuples are n of a tuple, as after VALUES.
func tuples(n int, tuple string) string {
	return strings.TrimSuffix(strings.Repeat(tuple+", ", n), ", ")
}

// number is a sequence number as a column has it; one that no row can have
// becomes the highest.
func number(n uint64) int64 { return int64(min(n, math.MaxInt64)) }
