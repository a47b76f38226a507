package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/jackc/pgx/v5"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// query asks one value of a database.
func query[T any](t *testing.T, dsn, q string, args ...any) (v T) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close(t.Context())
	if err := c.QueryRow(t.Context(), q, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", q, err)
	}
	return v
}

// eventually waits until done says so.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 30 s", what)
		}
	}
}

// told waits for a change; drain forgets those so far.
func told(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("nobody was told")
	}
}

func drain(c <-chan struct{}) {
	for {
		select {
		case <-c:
		case <-time.After(100 * time.Millisecond):
			return
		}
	}
}

func line(x control.Tx) error { return x.AppendActivity(control.Activity{Event: "e"}) }

func count(t *testing.T, s control.Store) (n int) {
	t.Helper()
	err := s.View(t.Context(), func(x control.Tx) error {
		all, err := x.Activity(control.ActivityFilter{})
		n = len(all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

const listeners = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN jitgate'"

func TestReplicasSeeEachOther(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	var stores [3]control.Store
	var wg sync.WaitGroup
	for i := range stores { // they start together on an empty database
		wg.Go(func() {
			s, err := store.Open(t.Context(), dsn, hclog.NewNullLogger())
			if err != nil {
				t.Error(err)
				return
			}
			stores[i] = s
		})
	}
	wg.Wait()
	for _, s := range stores {
		if s == nil {
			t.FailNow()
		}
		defer s.Close()
	}
	a, b := stores[0], stores[1]
	eventually(t, "listening", func() bool { return query[int](t, dsn, listeners) == 3 })
	hear := b.Changed(t.Context())
	for name, f := range map[string]func(control.Tx) error{
		"activity": line,
		"document": func(x control.Tx) error { return x.PutDocument(control.Document{VM: "v", Type: "t"}) },
	} {
		drain(hear)
		if err := a.Update(t.Context(), f); err != nil {
			t.Fatal(name, err)
		}
		told(t, hear)
	}
	if n := count(t, b); n != 1 {
		t.Errorf("the other replica sees %d lines", n)
	}

	// Deaf for a while: it listens again by itself, and wakes for what it may
	// have missed.
	drain(hear)
	if n := query[int](t, dsn, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND query = 'LISTEN jitgate'"); n != 3 {
		t.Fatalf("%d connections ended", n)
	}
	told(t, hear)
	eventually(t, "listening again", func() bool { return query[int](t, dsn, listeners) == 3 })
	drain(hear)
	if err := a.Update(t.Context(), line); err != nil {
		t.Fatal(err)
	}
	told(t, hear)

	// Updates are one after another over all of them, and Seq has no gap.
	const each = 15
	for _, s := range stores {
		for range 3 {
			wg.Go(func() {
				for range each {
					err := s.Update(t.Context(), func(x control.Tx) error {
						b, err := x.Meta("n")
						if err != nil && !errors.Is(err, control.ErrNotFound) {
							return err
						}
						return errors.Join(x.PutMeta("n", append(b, '+')), line(x))
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
	wg.Wait()
	err := b.View(t.Context(), func(x control.Tx) error {
		n, err1 := x.Meta("n")
		all, err2 := x.Activity(control.ActivityFilter{})
		if len(n) != 9*each || len(all) != 9*each+2 || all[len(all)-1].Seq != uint64(len(all)) {
			t.Errorf("%d updates, %d lines", len(n), len(all))
		}
		return errors.Join(err1, err2)
	})
	if err != nil {
		t.Error(err)
	}
}

func TestUnfitServers(t *testing.T) {
	for _, setting := range []string{"fsync", "full_page_writes"} {
		t.Run(setting, func(t *testing.T) {
			server := storetest.Server(t, setting+"=off")
			refused(t, server.NewDatabase(t), setting+" is off")
		})
	}
	dsn := storetest.Shared(t).NewDatabase(t)
	refused(t, dsn+"&synchronous_commit=off", "synchronous_commit is off")
	name := dsn[strings.LastIndex(dsn, "/")+1 : strings.Index(dsn, "?")]
	storetest.Shared(t).Exec(t, "postgres", "CREATE DATABASE "+name+"_latin TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'")
	refused(t, storetest.Shared(t).DSN(name+"_latin"), "LATIN1")
	refused(t, storetest.Shared(t).DSN("no_such"), "does not exist")
	refused(t, strings.Replace(dsn, "tester@", "nobody:secret@", 1), "nobody")
	if n := query[int](t, dsn, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); n != 0 {
		t.Errorf("%d connections were left", n)
	}
	storetest.Open(t, dsn) // and as it is, it is good
}

// refused opens a store that cannot be: at once, not when patience ends.
func refused(t *testing.T, dsn, want string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := store.Open(ctx, dsn, hclog.NewNullLogger())
	if err == nil {
		s.Close()
	}
	if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") || ctx.Err() != nil || control.AsError(err) != nil {
		t.Errorf("%v, not %q", err, want)
	}
}

func TestActivityIsAppendOnlyPostgreSQL(t *testing.T) {
	server := storetest.Shared(t)
	dsn := server.NewDatabase(t)
	s := storetest.Open(t, dsn)
	writeLines(t, s)
	for _, statement := range append(appendOnly,
		"TRUNCATE activity",
		"INSERT INTO activity SELECT * FROM activity ON CONFLICT (seq) DO UPDATE SET actor = 'nobody'",
	) {
		c, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append-only") {
			t.Errorf("%s: %v", statement, err)
		}
		c.Close(t.Context())
	}
	if n := count(t, s); n != 2 {
		t.Errorf("%d lines", n)
	}
}

// A rare event is found by its index, however often it was asked for: PostgreSQL
// makes a plan for any event after some times, which reads all lines.
func TestRareEventPostgreSQL(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	s := storetest.Open(t, dsn)
	const all, rare, times = 20_000, 100, 20
	lines := make([]control.Activity, all)
	for i := range lines {
		lines[i] = control.Activity{Event: fmt.Sprint("often", i%5), Reason: strings.Repeat("x", 400)}
		if i%(all/rare) == 0 {
			lines[i].Event = "rare"
		}
	}
	if err := s.Update(t.Context(), func(x control.Tx) error { return x.AppendActivity(lines...) }); err != nil {
		t.Fatal(err)
	}
	db, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(context.Background())
	if _, err := db.Exec(t.Context(), "ANALYZE activity"); err != nil {
		t.Fatal(err)
	}
	err = s.View(t.Context(), func(x control.Tx) error {
		for range times {
			found, err := x.Activity(control.ActivityFilter{Event: "rare", Newest: true, Limit: 150})
			if err != nil || len(found) != rare {
				t.Errorf("%d lines, %v", len(found), err)
			}
		}
		n, err := store.LinesRead(x)
		if n > 2*rare*times {
			t.Errorf("%d lines were read for %d, %d times", n, rare, times)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSchemaThatIsNotOursPostgreSQL(t *testing.T) {
	server := storetest.Shared(t)
	dsn := server.NewDatabase(t)
	for range 2 {
		if err := store.Migrate(t.Context(), dsn, hclog.NewNullLogger()); err != nil {
			t.Fatal(err)
		}
	}
	name := query[string](t, dsn, "SELECT current_database()")
	server.Exec(t, name, "INSERT INTO schema_version VALUES (99, '0099_later', 'x', 'now')")
	refused(t, dsn, "use the newer program")
}

func isUnavailable(err error) bool {
	e := control.AsError(err)
	return e != nil && e.Kind == control.Unavailable
}

// The database goes, in order and by a crash, and comes back: calls are
// refused meanwhile and work again, nobody restarts anything, and nothing
// acknowledged is lost.
func TestDatabaseGone(t *testing.T) {
	server := storetest.Server(t)
	dsn := server.NewDatabase(t)
	var log lines
	s, err := store.Open(t.Context(), dsn, hclog.New(&hclog.LoggerOptions{Output: &log}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	hear := s.Changed(t.Context())
	acknowledged := 0
	for name, end := range map[string]func(testing.TB){"stopped": server.Stop, "killed": server.Kill} {
		eventually(t, "listening", func() bool { return query[int](t, dsn, listeners) == 1 })
		// Many connections are open, and all of them will be broken.
		var wg sync.WaitGroup
		var mu sync.Mutex
		over := make(chan struct{})
		for range 8 {
			wg.Go(func() {
				for {
					select {
					case <-over:
						return
					default:
					}
					switch err := s.Update(t.Context(), line); {
					case err == nil:
						mu.Lock()
						acknowledged++
						mu.Unlock()
					case !isUnavailable(err):
						t.Errorf("%s: an Update fails as %v", name, err)
						return
					}
					if err := s.View(t.Context(), func(x control.Tx) error { _, err := x.Tokens(); return err }); err != nil && !isUnavailable(err) {
						t.Errorf("%s: a View fails as %v", name, err)
						return
					}
				}
			})
		}
		time.Sleep(300 * time.Millisecond)
		end(t)
		// Of a server that is killed a connection may finish what it was at.
		eventually(t, "gone", func() bool {
			err := s.Update(t.Context(), line)
			if err != nil && !isUnavailable(err) {
				t.Errorf("%s: Update: %v", name, err)
			}
			return err != nil
		})
		if err := s.Update(t.Context(), line); !isUnavailable(err) {
			t.Errorf("%s: Update: %v", name, err)
		}
		if err := s.View(t.Context(), func(x control.Tx) error { return nil }); !isUnavailable(err) {
			t.Errorf("%s: View: %v", name, err)
		}
		if err := s.Ping(t.Context()); !isUnavailable(err) {
			t.Errorf("%s: Ping: %v", name, err)
		}
		close(over)
		wg.Wait()
		drain(hear)
		server.Start(t)
		// The first call works, whatever is left in the pool.
		for range 20 {
			if err := s.Update(t.Context(), line); err != nil {
				t.Errorf("%s and back: %v", name, err)
				continue
			}
			acknowledged++
		}
		if n := count(t, s); n < acknowledged {
			t.Errorf("%s: %d acknowledged, %d kept", name, acknowledged, n)
		}
	}
	if !strings.Contains(log.String(), "commits of other replicas are not heard of for now") {
		t.Errorf("the log does not tell of it: %s", &log)
	}
}

// lines is a log that several write.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A store that is opened before its database is up waits for it.
func TestOpenWaits(t *testing.T) {
	server := storetest.Server(t)
	dsn := server.NewDatabase(t)
	server.Stop(t)
	opened := make(chan error, 1)
	go func() {
		s, err := store.Open(t.Context(), dsn, hclog.NewNullLogger())
		if err == nil {
			err = s.Close()
		}
		opened <- err
	}()
	select {
	case err := <-opened:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(500 * time.Millisecond):
	}
	server.Start(t)
	if err := <-opened; err != nil {
		t.Fatal(err)
	}
	server.Stop(t)
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if _, err := store.Open(ctx, dsn, hclog.NewNullLogger()); !isUnavailable(err) {
		t.Errorf("where patience ends: %v", err)
	}
}

// A connection that is lost during COMMIT leaves open what became of it: the
// error says so, as one that passes.
func TestLostInCommit(t *testing.T) {
	server := storetest.Shared(t)
	dsn := server.NewDatabase(t)
	s := storetest.Open(t, dsn)
	server.Exec(t, query[string](t, dsn, "SELECT current_database()"), `
		CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NULL; END $$;
		CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON meta DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dawdle()`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		done <- s.Update(ctx, func(x control.Tx) error { return errors.Join(line(x), x.PutMeta("name", nil)) })
	}()
	committing := "SELECT count(%) FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'commit%' AND state = 'active'"
	eventually(t, "committing", func() bool { return query[int](t, dsn, strings.Replace(committing, "%", "*", 1)) == 1 })
	cancel() // a commit is not broken off with its call
	select {
	case err := <-done:
		t.Fatalf("the commit did not go on: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	query[int](t, dsn, strings.Replace(committing, "%", "pg_terminate_backend(pid)", 1))
	if err := <-done; !isUnavailable(err) || !strings.Contains(err.Error(), "may have happened") {
		t.Errorf("%v", err)
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d lines", n)
	}
	if err := s.Update(t.Context(), line); err != nil {
		t.Error(err)
	}
}

// A connection that is lost in the midst of an Update is Unavailable, whatever
// f makes of its error, and the lock goes with it.
func TestLostInUpdate(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	s := storetest.Open(t, dsn)
	for _, swallow := range []bool{false, true} {
		err := s.Update(t.Context(), func(x control.Tx) error {
			if err := line(x); err != nil {
				return err
			}
			query[int](t, dsn, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'")
			_, err := x.Tokens()
			if swallow {
				return nil
			}
			return err
		})
		if !isUnavailable(err) {
			t.Errorf("%v", err)
		}
	}
	if n := count(t, s); n != 0 {
		t.Errorf("%d lines", n)
	}
	if err := s.Update(t.Context(), line); err != nil {
		t.Error(err)
	}
}

// Connections that broke while nobody used them are replaced: no call fails.
func TestBrokenIdleConnections(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	s := storetest.Open(t, dsn)
	for range 3 {
		if err := s.Update(t.Context(), line); err != nil {
			t.Fatal(err)
		}
		if n := query[int](t, dsn, "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); n < 2 {
			t.Fatalf("%d connections ended", n)
		}
		if err := s.Update(t.Context(), line); err != nil {
			t.Error(err)
		}
		count(t, s)
	}
}

// A replica that is killed loses nothing acknowledged, and holds up nobody.
func TestKilledReplicaLosesNothing(t *testing.T) {
	dsn := storetest.Shared(t).NewDatabase(t)
	s := storetest.Open(t, dsn)
	last := 0
	for range 3 {
		kill, acknowledged := writer(t, dsn)
		for range 20 {
			last = acknowledged()
			if err := s.Update(t.Context(), func(x control.Tx) error { return x.PutMeta("mine", nil) }); err != nil {
				t.Fatal(err)
			}
		}
		kill()
		err := s.Update(t.Context(), func(x control.Tx) error {
			b, err1 := x.Meta("n")
			n, err2 := strconv.Atoi(string(b))
			if n < last || last == 0 {
				t.Errorf("%d acknowledged, %d kept", last, n)
			}
			return errors.Join(err1, err2)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
