package store_test

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// childFile, in the environment, makes this program one that writes to the
// store it names and says what was acknowledged.
const childFile = "JITGATE_STORE_TEST_CHILD"

func TestMain(m *testing.M) {
	if dsn := os.Getenv(childFile); dsn != "" {
		fmt.Fprintln(os.Stderr, writeForEver(dsn))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func writeForEver(dsn string) error {
	s, err := store.Open(context.Background(), dsn, hclog.NewNullLogger())
	if err != nil {
		return err
	}
	for {
		var n int
		err := s.Update(context.Background(), func(x control.Tx) error {
			b, err := x.Meta("n")
			if err != nil && !errors.Is(err, control.ErrNotFound) {
				return err
			}
			n, _ = strconv.Atoi(string(b))
			n++
			return errors.Join(x.PutMeta("n", []byte(strconv.Itoa(n))), x.AppendActivity(control.Activity{Event: strconv.Itoa(n)}))
		})
		if err != nil {
			return err
		}
		fmt.Println(n)
	}
}

// writer starts a process that writes to dsn; acknowledged reads what it says.
func writer(t *testing.T, dsn string) (kill func(), acknowledged func() int) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childFile+"="+dsn)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	read := func() int {
		if !lines.Scan() {
			return 0
		}
		n, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	kill = func() { cmd.Process.Kill(); cmd.Wait() }
	t.Cleanup(kill)
	return kill, read
}

func TestKilledWriterLosesNothing(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "control.db")
	last := 0
	for round := range 4 {
		kill, acknowledged := writer(t, dsn)
		for range 5 + 13*round {
			n := acknowledged()
			if n != last+1 {
				t.Fatalf("round %d: acknowledged %d after %d", round, n, last)
			}
			last = n
		}
		if _, err := store.Open(t.Context(), dsn, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "another process") {
			t.Fatalf("a second process opened the file: %v", err)
		}
		kill()
		s, err := store.Open(t.Context(), dsn, hclog.NewNullLogger())
		if err != nil {
			t.Fatal(err)
		}
		err = s.View(t.Context(), func(x control.Tx) error {
			n, err1 := x.Meta("n")
			all, err2 := x.Activity(control.ActivityFilter{})
			kept, err3 := strconv.Atoi(string(n))
			if kept < last || len(all) != kept {
				t.Errorf("round %d: %d acknowledged, %d kept, %d lines", round, last, kept, len(all))
			}
			last = kept // some were committed and not yet said
			return errors.Join(err1, err2, err3)
		})
		if err := errors.Join(err, s.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneProcessByAnyName(t *testing.T) {
	dir := t.TempDir()
	storetest.Open(t, filepath.Join(dir, "control.db"))
	if err := os.Symlink(filepath.Join(dir, "control.db"), filepath.Join(dir, "link.db")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(dir, "sub")); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, name := range []string{"control.db", "./control.db", "link.db", "sub/control.db"} {
		_, err := store.Open(t.Context(), name, hclog.NewNullLogger())
		if err == nil || !strings.Contains(err.Error(), "another process has this database open") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever else writes to the file, such as its own command line, waits for an
// Update from its beginning: what the Update reads stays true.
func TestUpdateHoldsTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.db")
	s := storetest.Open(t, path)
	err := s.Update(t.Context(), func(control.Tx) error {
		if err := raw(t, path, "INSERT INTO meta VALUES ('name', '')"); err == nil || !strings.Contains(err.Error(), "locked") {
			t.Errorf("another wrote during an Update: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestFileNames(t *testing.T) {
	for _, name := range []string{"a b.db", "a?mode=memory.db", "a#b.db", "a%41.db", "ü.db", "a&b=c;d.db", ":memory:"} {
		path := filepath.Join(t.TempDir(), name)
		s, err := store.Open(t.Context(), path, hclog.NewNullLogger())
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(files) != 4 {
			t.Errorf("%s: %q", name, files)
		}
		for _, f := range files {
			if info, err := os.Stat(f); err != nil || info.Mode() != 0o600 || !strings.HasPrefix(filepath.Base(f), name) {
				t.Errorf("%s: %v %v", f, info.Mode(), err)
			}
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}

func TestNoStore(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text.db")
	if err := os.WriteFile(text, []byte(strings.Repeat("not a database\n", 100)), 0o600); err != nil {
		t.Fatal(err)
	}
	for dsn, want := range map[string]string{
		"":                                  "names no store",
		"mysql://host/db":                   "names no store",
		"file:///tmp/x.db":                  "names no store",
		filepath.Join(dir, "none", "x.db"):  "no such file",
		dir:                                 "is a directory",
		text:                                "not a database",
		"postgres://h:port/db":              "address",
		"postgres://user:secret@h:port/db":  "address",
		"postgresql://user:secret@h/db?x=y": "",
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		_, err := store.Open(ctx, dsn, hclog.NewNullLogger())
		cancel()
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}

func raw(t *testing.T, path string, statements ...string) (err error) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			return err
		}
	}
	return nil
}

// appendOnly are statements that would change the log.
var appendOnly = []string{
	"UPDATE activity SET actor = 'nobody'",
	"UPDATE activity SET seq = seq + 100",
	"DELETE FROM activity",
	"DELETE FROM activity WHERE seq = 1",
}

func TestActivityIsAppendOnlySQLite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.db")
	writeLines(t, storetest.Open(t, path))
	for _, s := range append(appendOnly,
		"INSERT OR REPLACE INTO activity SELECT seq, ts, sub, grp, scope, event, 'nobody', doc FROM activity",
		"REPLACE INTO activity SELECT seq, ts, sub, grp, scope, event, 'nobody', doc FROM activity",
		"REPLACE INTO activity SELECT seq, ts, sub, grp, scope, event, 'nobody', doc FROM activity WHERE seq = 2", // the newest
		"INSERT INTO activity SELECT seq - 1, ts, sub, grp, scope, event, actor, doc FROM activity WHERE seq = 1",
	) {
		if err := raw(t, path, s); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func writeLines(t *testing.T, s control.Store) {
	t.Helper()
	err := s.Update(t.Context(), func(x control.Tx) error {
		return x.AppendActivity(control.Activity{Actor: "ann"}, control.Activity{Actor: "bob"})
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSchemaThatIsNotOurs(t *testing.T) {
	for name, c := range map[string]struct{ change, want string }{
		"newer":   {"INSERT INTO schema_version VALUES (99, '0099_later', 'x', 'now')", "use the newer program"},
		"changed": {"UPDATE schema_version SET sum = 'x'", "had another migration"},
		"renamed": {"UPDATE schema_version SET name = 'x'", "had another migration"},
		"gap":     {"UPDATE schema_version SET version = version + 6", "had another migration"},
	} {
		path := filepath.Join(t.TempDir(), "control.db")
		if err := store.Migrate(t.Context(), path, hclog.NewNullLogger()); err != nil {
			t.Fatal(err)
		}
		if err := store.Migrate(t.Context(), path, hclog.NewNullLogger()); err != nil {
			t.Fatalf("a second time: %v", err)
		}
		if err := raw(t, path, c.change); err != nil {
			t.Fatal(err)
		}
		if _, err := store.Open(t.Context(), path, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if err := store.Check(t.Context(), path); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, checked: %v", name, err)
		}
	}
	// A migration that fails leaves nothing of itself, and no lock.
	path := filepath.Join(t.TempDir(), "control.db")
	if err := raw(t, path, "CREATE TABLE token (x)"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := store.Migrate(t.Context(), path, hclog.NewNullLogger()); err == nil || !strings.Contains(err.Error(), "token already exists") {
			t.Fatal(err)
		}
	}
	if err := raw(t, path, "SELECT * FROM policy"); err == nil {
		t.Error("half a migration stands")
	}
}

func TestVersion(t *testing.T) {
	n, err := store.Version(t.Context(), storetest.SQLite(t))
	if err != nil || n != 5 {
		t.Errorf("schema %d, %v", n, err)
	}
	if _, err := store.Version(t.Context(), nil); err == nil {
		t.Error("of no store")
	}
}

func TestBackup(t *testing.T) {
	dir := t.TempDir()
	path, copied := filepath.Join(dir, "control.db"), filepath.Join(dir, "copy")
	kill, acknowledged := writer(t, path) // another process has it open and writes
	for range 20 {
		acknowledged()
	}
	if err := store.Backup(t.Context(), path, copied); err != nil {
		t.Fatal(err)
	}
	n := acknowledged()
	for range 20 { // it goes on
		acknowledged()
	}
	kill()
	// Nobody has it open, and the last to have it was killed.
	if err := store.Backup(t.Context(), path, copied+"2"); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(copied); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := store.Check(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(copied)
	if err != nil {
		t.Fatal(err)
	}
	s := storetest.Open(t, copied)
	err = s.View(t.Context(), func(x control.Tx) error {
		all, err := x.Activity(control.ActivityFilter{})
		if len(all) < 20 || len(all) > n+2000 {
			t.Errorf("%d lines in the copy", len(all))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	writeLines(t, s)

	refused := map[string]error{
		"over a file":          store.Backup(t.Context(), path, copied),
		"over the database":    store.Backup(t.Context(), path, path),
		"of nothing":           store.Backup(t.Context(), filepath.Join(dir, "none"), filepath.Join(dir, "x")),
		"to nowhere":           store.Backup(t.Context(), path, filepath.Join(dir, "none", "x")),
		"of PostgreSQL":        store.Backup(t.Context(), "postgres://localhost/x", filepath.Join(dir, "x")),
		"checked, no database": store.Check(t.Context(), "backup.go"),
		"checked, not there":   store.Check(t.Context(), filepath.Join(dir, "none")),
	}
	bare := filepath.Join(dir, "bare")
	if err := raw(t, bare, "CREATE TABLE schema_version (version, name, sum)"); err != nil {
		t.Fatal(err)
	}
	refused["checked, without a schema"] = store.Check(t.Context(), bare)
	for name, err := range refused {
		if err == nil {
			t.Errorf("%s: not refused", name)
		}
	}
	if err := refused["of PostgreSQL"]; !strings.Contains(err.Error(), "pg_dump") {
		t.Error(err)
	}
	// A damaged backup, in its middle: pages of another kind of tree.
	for i := len(whole) / 2; i < len(whole)/2+8192; i++ {
		whole[i] ^= 0xff
	}
	if err := os.WriteFile(filepath.Join(dir, "damaged"), whole, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := store.Check(t.Context(), filepath.Join(dir, "damaged")); err == nil {
		t.Error("a damaged backup is taken for a whole one")
	}
	left, err := filepath.Glob(filepath.Join(dir, "x*"))
	if err != nil {
		t.Fatal(err)
	}
	parts, err := filepath.Glob(filepath.Join(dir, "*.part-*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range append(left, parts...) {
		if f != filepath.Join(dir, "x.lock") {
			t.Errorf("left behind: %s", f)
		}
	}
}

// A disk that takes no more is Unavailable, and nothing of the Update stays.
func TestFullDisk(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.db")
	s := storetest.Open(t, path)
	writeLines(t, s)
	var e *control.Error
	err := s.Update(t.Context(), func(x control.Tx) error {
		return store.LimitPages(t.Context(), x, func() error {
			return x.PutMeta("large", make([]byte, 4<<20))
		})
	})
	if e = control.AsError(err); e == nil || e.Kind != control.Unavailable {
		t.Fatalf("a full disk: %v", err)
	}
	writeLines(t, s)
}
