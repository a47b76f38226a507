package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
)

// A migration is NNNN_NAME.sql, which both engines run, and NNNN_NAME.ENGINE.sql
// after it, where there is one. Once released, its text does not change.
//
//go:embed migrations
var migrations embed.FS

type migration struct {
	name, text string
}

func (m migration) sum() string {
	s := sha256.Sum256([]byte(m.text))
	return hex.EncodeToString(s[:])
}

// migrationsFor are those of an engine, in order: the first is number 1.
func migrationsFor(d dialect) ([]migration, error) {
	files, err := fs.Glob(migrations, "migrations/[0-9][0-9][0-9][0-9]_*.sql")
	if err != nil {
		return nil, err
	}
	var all []migration
	for _, file := range files { // sorted
		name := strings.TrimSuffix(strings.TrimPrefix(file, "migrations/"), ".sql")
		if strings.Contains(name, ".") {
			continue
		}
		if n, err := strconv.Atoi(name[:4]); err != nil || n != len(all)+1 {
			return nil, fmt.Errorf("migration %s is number %d", name, len(all)+1)
		}
		text, err := migrations.ReadFile(file)
		if err != nil {
			return nil, err
		}
		own, err := migrations.ReadFile("migrations/" + name + "." + d.name() + ".sql")
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		all = append(all, migration{name: name, text: d.ddl(string(text)) + string(own)})
	}
	return all, nil
}

const schemaTable = `CREATE TABLE IF NOT EXISTS schema_version (
	version BIGINT PRIMARY KEY NOT NULL,
	name    TEXT NOT NULL,
	sum     TEXT NOT NULL,
	applied TEXT NOT NULL
)`

// migrate brings the schema up to date, each step in a transaction that is
// alone, so that replicas may start together. What it does not know it refuses.
func (s *store) migrate(ctx context.Context, log hclog.Logger) error {
	all, err := migrationsFor(s)
	if err != nil {
		return err
	}
	for done := false; !done; {
		err := s.transact(ctx, s.writer, func(x *sql.Tx) (bool, error) {
			if err := s.begun(ctx, x); err != nil {
				return false, s.judge(ctx, err)
			}
			if _, err := x.ExecContext(ctx, s.ddl(schemaTable)); err != nil {
				return false, s.judge(ctx, err)
			}
			have, err := s.applied(ctx, x, all)
			if err != nil {
				return false, err
			}
			if done = have == len(all); done {
				return false, nil
			}
			m := all[have]
			if _, err := x.ExecContext(ctx, m.text); err != nil {
				return false, fmt.Errorf("migration %s: %w", m.name, s.judge(ctx, err))
			}
			_, err = x.ExecContext(ctx, s.query("INSERT INTO schema_version (version, name, sum, applied) VALUES (?, ?, ?, CAST(CURRENT_TIMESTAMP AS TEXT))"),
				have+1, m.name, m.sum())
			if err == nil {
				log.Info("schema brought up to date", "migration", m.name)
			}
			return false, s.judge(ctx, err)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// rows is what a *sql.DB and a *sql.Tx both do.
type rows interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// applied counts the migrations a database has had, and refuses those that are
// not ours.
func (s *store) applied(ctx context.Context, x rows, ours []migration) (n int, err error) {
	r, err := x.QueryContext(ctx, "SELECT version, name, sum FROM schema_version ORDER BY version")
	if err != nil {
		return 0, s.judge(ctx, err)
	}
	defer r.Close()
	for ; r.Next(); n++ {
		var version int
		var name, sum string
		if err := r.Scan(&version, &name, &sum); err != nil {
			return 0, s.judge(ctx, err)
		}
		switch {
		case n >= len(ours):
			return 0, fmt.Errorf("the database has schema %d (%s), this program knows up to %d: use the newer program", version, name, len(ours))
		case version != n+1 || name != ours[n].name || sum != ours[n].sum():
			return 0, fmt.Errorf("the database had another migration %d (%s) than this program's (%s): it is not a database of a released jitgate-control", version, name, ours[n].name)
		}
	}
	return n, s.judge(ctx, r.Err())
}

// Version is the schema that a store has; the program that opened it has no
// newer one.
func Version(ctx context.Context, s control.Store) (int, error) {
	ours, ok := s.(*store)
	if !ok {
		return 0, fmt.Errorf("%T is not one of this package", s)
	}
	all, err := migrationsFor(ours)
	if err != nil {
		return 0, err
	}
	var n int
	err = ours.transact(ctx, ours.reader, func(x *sql.Tx) (bool, error) {
		n, err = ours.applied(ctx, x, all)
		return false, err
	})
	return n, err
}
