package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
)

// A query that is kept gives the same again and again, also while another of
// the same text is still being read, after it failed, and for any number of
// texts.
func TestPrepared(t *testing.T) {
	db, err := openPrepared("file:" + filepath.Join(t.TempDir(), "x.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	exec := func(query string, args ...any) error {
		_, err := conn.ExecContext(t.Context(), query, args...)
		return err
	}
	if err := exec("CREATE TABLE t (n INTEGER PRIMARY KEY)"); err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		if err := exec("INSERT INTO t (n) VALUES (?)", n); err != nil {
			t.Fatal(err)
		}
		if err := exec("INSERT INTO t (n) VALUES (?)", n); err == nil || !strings.Contains(err.Error(), "constraint") {
			t.Fatalf("the same row twice: %v", err)
		}
	}
	const query = "SELECT n FROM t WHERE n >= ? ORDER BY n"
	read := func(from int) (list []int) {
		rows, err := conn.QueryContext(t.Context(), query, from)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		for rows.Next() {
			var n int
			if err := rows.Scan(&n); err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
			if from == 0 && n == 1 { // one within the other; and this one is left half read
				inner, err := conn.QueryContext(t.Context(), query, 3)
				if err != nil || !inner.Next() || inner.Scan(&n) != nil || n != 3 {
					t.Fatalf("within: %v, %v", n, err)
				}
				inner.Close()
			}
		}
		if err := rows.Err(); err != nil {
			t.Fatal(err)
		}
		return list
	}
	for range 3 {
		if got := fmt.Sprint(read(0), read(4), read(9)); got != "[0 1 2 3 4] [4] []" {
			t.Fatal(got)
		}
	}
	for n := range 2 * preparedAtMost {
		if err := exec(fmt.Sprintf("UPDATE t SET n = n WHERE n = %d", n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.Raw(func(c any) error {
		if n := len(c.(*preparedConn).kept); n == 0 || n > preparedAtMost {
			return fmt.Errorf("%d queries are kept", n)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	// The schema may change under it.
	if err := errors.Join(exec("ALTER TABLE t ADD COLUMN m"), exec("INSERT INTO t (n) VALUES (?)", 7)); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(read(4)); got != "[4 7]" {
		t.Fatal(got)
	}
}

// Every query of ours that runs often is one that is kept.
func TestPreparedKeepsOurs(t *testing.T) {
	kept, err := open(t.Context(), filepath.Join(t.TempDir(), "x.db"), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	for range 3 {
		err := kept.Update(t.Context(), func(x control.Tx) error {
			return errors.Join(x.PutDocument(control.Document{VM: "v", Type: "t"}), x.AppendActivity(control.Activity{}), x.PutMeta("a", nil))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	conn, err := kept.engine.(*sqliteEngine).writers.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(func(c any) error {
		if n := len(c.(*preparedConn).kept); n < 6 {
			return fmt.Errorf("%d queries are kept of counters, a document, a line and a value", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
