// Package storetest is the one suite that both engines of control/store pass,
// and the stores and servers that other tests run on. All of it is real.
package storetest

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
)

// SQLite opens a store in a new file, closed when the test ends.
func SQLite(t testing.TB) control.Store {
	t.Helper()
	return Open(t, filepath.Join(t.TempDir(), "control.db"))
}

// PostgreSQL opens a store in a new database of a server that the tests of
// this program share, closed when the test ends.
func PostgreSQL(t testing.TB) control.Store {
	t.Helper()
	return Open(t, Shared(t).NewDatabase(t))
}

// Shared is the server that PostgreSQL makes databases on, for tests that open
// one database several times. Nobody stops it.
func Shared(t testing.TB) *PostgresServer {
	t.Helper()
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Open opens the store that dsn names, closed when the test ends.
func Open(t testing.TB, dsn string) control.Store {
	t.Helper()
	s, err := store.Open(t.Context(), dsn, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("closing the store: %v", err)
		}
	})
	return s
}
