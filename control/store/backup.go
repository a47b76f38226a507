package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

// errOwnBackup is said of PostgreSQL, which has better ways of its own.
var errOwnBackup = errors.New("a PostgreSQL database is backed up with pg_dump, or with its log archived")

// Backup copies the database in the file that dsn names to a new file, as it
// stands now: whoever has it open goes on. The copy is whole, checked and on
// the disk when Backup returns.
func Backup(ctx context.Context, dsn, destination string) (err error) {
	if isPostgres(dsn) {
		return errOwnBackup
	}
	if err := absent(destination); err != nil {
		return err
	}
	if _, err := os.Stat(dsn); err != nil {
		return err
	}
	source, err := realPath(dsn)
	if err != nil {
		return err
	}
	db, err := openFile(source, "mode=ro")
	if err != nil {
		return err
	}
	defer db.Close()
	return placed(destination, func(part *os.File) error {
		// An empty file is what VACUUM INTO writes to.
		if _, err := db.ExecContext(ctx, "VACUUM INTO ?", part.Name()); err != nil {
			return fmt.Errorf("copying %s: %w", source, err)
		}
		return Check(ctx, part.Name())
	})
}

// absent refuses a name that is taken.
func absent(path string) error {
	_, err := os.Lstat(path)
	if err == nil {
		return fmt.Errorf("%s is there already: %w", path, os.ErrExist)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// placed has a file written beside its place and puts it there once it is on
// the disk.
func placed(path string, write func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	part, err := os.CreateTemp(dir, filepath.Base(path)+".part-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(part.Name()) // after the rename, nothing
	if err := errors.Join(write(part), part.Sync(), part.Close()); err != nil {
		return err
	}
	if err := os.Rename(part.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

// Check refuses a file that is no whole database of ours, or is one of a newer
// program. Nobody may have it open: it is read without a lock.
func Check(ctx context.Context, path string) error {
	db, err := openFile(path, "mode=ro", "immutable=1")
	if err != nil {
		return err
	}
	defer db.Close()
	var said string
	if err := db.QueryRowContext(ctx, "SELECT integrity_check FROM pragma_integrity_check").Scan(&said); err != nil {
		return fmt.Errorf("not a database of jitgate-control: %w", err)
	}
	if said != "ok" {
		return fmt.Errorf("the database is damaged: %s", said)
	}
	var orphans int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM pragma_foreign_key_check").Scan(&orphans); err != nil {
		return err
	}
	if orphans > 0 {
		return fmt.Errorf("the database is damaged: %d rows belong to none", orphans)
	}
	s := &store{engine: &sqliteEngine{}}
	all, err := migrationsFor(s)
	if err != nil {
		return err
	}
	n, err := s.applied(ctx, db, all)
	if err != nil {
		return fmt.Errorf("not a database of jitgate-control: %w", err)
	}
	if n == 0 {
		return errors.New("a database without a schema: not one of jitgate-control")
	}
	return nil
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" {
		return nil // a directory cannot be synced there
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
