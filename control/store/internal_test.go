package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// LimitPages runs f while the database of an Update may not grow.
func LimitPages(ctx context.Context, x control.Tx, f func() error) error {
	t := x.(*tx)
	var pages, before int
	if err := t.sql.QueryRowContext(ctx, "PRAGMA page_count").Scan(&pages); err != nil {
		return err
	}
	if err := t.sql.QueryRowContext(ctx, fmt.Sprintf("PRAGMA max_page_count = %d", pages+1)).Scan(&before); err != nil {
		return err
	}
	err := f()
	return errors.Join(err, t.sql.QueryRowContext(ctx, "PRAGMA max_page_count = 1073741823").Scan(&before))
}

// ActivityBy looks for lines by one column, or in their order.
func ActivityBy(x control.Tx, f control.ActivityFilter, by string) ([]control.Activity, error) {
	query, args := activity(f, way{by: by, first: math.MinInt64, last: math.MaxInt64})
	return all[control.Activity](x.(*tx), query, args...)
}

// LinesRead is how many lines of the log a transaction has read, of PostgreSQL.
func LinesRead(x control.Tx) (n int, err error) {
	t := x.(*tx)
	err = t.sql.QueryRowContext(t.ctx, "SELECT COALESCE(idx_tup_fetch, 0) + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'activity'").Scan(&n)
	return n, err
}

// The queries that are asked again and again go by an index, and none of them
// sorts or walks a table.
func TestPlans(t *testing.T) {
	s, err := open(t.Context(), filepath.Join(t.TempDir(), "control.db"), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	vm := control.VMID{Subscription: "s", Group: "g", Kind: "Microsoft.Compute/virtualMachines", Name: "v"}
	lines := func(f control.ActivityFilter) (string, []any) {
		w := way{last: math.MaxInt64}
		if asked := columnsOf(f); len(asked) > 0 {
			w.by = asked[0].name
		}
		return activity(f, w)
	}
	of := func(query string, args []any) func() (string, []any) {
		return func() (string, []any) { return query, args }
	}
	for name, q := range map[string]struct {
		query func() (string, []any)
		want  string // of the index
	}{
		"open requests of a machine": {func() (string, []any) { return requests(control.RequestFilter{VM: &vm, Open: true}, nil) }, "request_vm_open (vm=?)"},
		"requests of a week of a machine": {func() (string, []any) {
			return requests(control.RequestFilter{VM: &vm, Since: time.Unix(1, 0)}, nil)
		}, "request_vm_created (vm=? AND created>?)"},
		"open requests": {func() (string, []any) { return requests(control.RequestFilter{Open: true}, nil) }, "request_open"},
		"requests of a policy": {func() (string, []any) {
			return requests(control.RequestFilter{Policy: &control.PolicyID{}, Newest: true, Limit: 1}, nil)
		}, "request_policy (policy=?)"},
		"requests of a subscription": {func() (string, []any) {
			return requests(control.RequestFilter{Scope: "/subscriptions/s", Newest: true, After: "x", Limit: 9}, nil)
		}, "sqlite_autoindex_request_place_1 (scope=? AND request<?)"},
		"documents after seq": {of(documentsAfter, []any{1}), "document_seq (seq>?)"},
		"newest activity":     {func() (string, []any) { return lines(control.ActivityFilter{Newest: true, Limit: 9, After: 5}) }, "activity"},
		"activity of a subscription": {func() (string, []any) {
			return lines(control.ActivityFilter{Newest: true, Limit: 9, Scope: "/subscriptions/s", After: 5})
		}, "activity_sub (sub=? AND seq<?)"},
		"activity of a group": {func() (string, []any) {
			return lines(control.ActivityFilter{Newest: true, Limit: 9, Scope: control.GroupScope("s", "g")})
		}, "activity_grp (grp=?)"},
		"activity of a group's hours": {func() (string, []any) {
			return activity(control.ActivityFilter{Newest: true, Limit: 9, Scope: control.GroupScope("s", "g"), From: time.Unix(1, 0), Event: "e", Actor: "a"}, way{by: "event", first: 7, last: 9})
		}, "activity_event (event=? AND seq>? AND seq<?)"},
		"activity of days": {func() (string, []any) {
			return activity(control.ActivityFilter{Newest: true, Limit: 9, From: time.Unix(1, 0), Event: "e", Actor: "a"}, way{first: 7, last: 9})
		}, "sqlite_autoindex_activity_1 (seq>? AND seq<?)"},
		"activity of a machine": {func() (string, []any) {
			return lines(control.ActivityFilter{Newest: true, Limit: 9, Scope: vm.Scope()})
		}, "activity_scope (scope=?)"},
		"machines of a group": {func() (string, []any) {
			return s.vms(control.VMFilter{Scope: control.GroupScope("s", "g"), After: "x", Limit: 9})
		}, "sqlite_autoindex_vm_1 (id>? AND id<?)"},
		"machines of a range": {func() (string, []any) {
			return machines(control.MachineFilter{From: "/", To: "0", After: "x", Limit: 9})
		}, "COVERING INDEX sqlite_autoindex_machine_1 (id>? AND id<?)"},
		"machines of a tab": {func() (string, []any) {
			return machines(control.MachineFilter{From: "/", To: "0", Tab: control.Unsupported, Limit: 9})
		}, "COVERING INDEX machine_tab (tab=? AND id>? AND id<?)"},
	} {
		query, args := q.query()
		rows, err := s.engine.(*sqliteEngine).writers.QueryContext(t.Context(), "EXPLAIN QUERY PLAN "+query, args...)
		if err != nil {
			t.Fatal(err)
		}
		var plan []string
		for rows.Next() {
			var id, parent, unused int
			var step string
			if err := rows.Scan(&id, &parent, &unused, &step); err != nil {
				t.Fatal(err)
			}
			plan = append(plan, step)
		}
		if err := errors.Join(rows.Err(), rows.Close()); err != nil {
			t.Fatal(err)
		}
		all := strings.Join(plan, "\n")
		if !strings.Contains(all, q.want) || strings.Contains(all, "TEMP B-TREE") {
			t.Errorf("%s: %s\n%s", name, query, all)
		}
		if slices.ContainsFunc(plan, func(step string) bool { return strings.HasPrefix(step, "SCAN") && !strings.Contains(step, "INDEX") }) {
			t.Errorf("%s walks a table: %s\n%s", name, query, all)
		}
	}
}

func TestNanos(t *testing.T) {
	for at, want := range map[time.Time]int64{
		{}:                          math.MinInt64,
		time.Unix(0, 0):             0,
		time.Unix(-1, 1):            -999_999_999,
		time.Unix(0, math.MaxInt64): math.MaxInt64,
		time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC): math.MaxInt64,
		time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC):    math.MinInt64,
	} {
		if got := nanos(at); got != want {
			t.Errorf("%v: %d, not %d", at, got, want)
		}
	}
}

// FuzzAncestor holds the columns of a scope against Scope.Covers: a line is
// found under a subscription or a group just when that covers it.
func FuzzAncestor(f *testing.F) {
	for _, s := range []string{"/", "", "/subscriptions/s", "/subscriptions/s/resourcegroups/g", "/subscriptions/s/resourcegroups/g/providers/m/v/n", "//", "a/b/c/d/e/f", "/subscriptions/s/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, scope string) {
		for _, depth := range []int{subscriptionDepth, groupDepth} {
			in := ancestor(scope, depth)
			parts := strings.Split(scope, "/")
			if want := strings.Join(parts[:min(len(parts), depth+1)], "/"); len(parts) > depth && in != want {
				t.Errorf("%q is in %q, not in %q", scope, want, in)
			}
			if in != "" && !control.Scope(in).Covers(control.Scope(scope)) {
				t.Errorf("%q is not in %q", scope, in)
			}
			if len(parts) <= depth && in != "" {
				t.Errorf("%q is in nothing of depth %d, not in %q", scope, depth, in)
			}
		}
	})
}

// FuzzPlaceholders holds the numbering against the count of what is numbered.
func FuzzPlaceholders(f *testing.F) {
	f.Add("SELECT 1")
	f.Add("a = ? AND b IN (?, ?)")
	f.Add("??")
	f.Fuzz(func(t *testing.T, q string) {
		if strings.Contains(q, "$") {
			return
		}
		got := (&postgresEngine{}).query(q)
		if strings.Contains(got, "?") || strings.Count(got, "$") != strings.Count(q, "?") {
			t.Fatalf("%q became %q", q, got)
		}
		for n := strings.Count(q, "?"); n > 0; n-- { // from the last: $1 is the beginning of $12
			i := strings.LastIndex(got, fmt.Sprintf("$%d", n))
			if i < 0 {
				t.Fatalf("%q became %q: no $%d", q, got, n)
			}
			got = got[:i] + "?" + got[i+len(fmt.Sprintf("$%d", n)):]
		}
		if got != q {
			t.Fatalf("%q came back as %q", q, got)
		}
	})
}

// A database of the first schema is brought up to date with what it has in it.
// Sessions that were kept as answers are gone, other answers are not.
func TestFirstSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "control.db")
	old := &store{}
	var err error
	if old.engine, err = openSQLite(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	all, err := migrationsFor(old)
	if err != nil {
		t.Fatal(err)
	}
	err = old.transact(t.Context(), old.writer, func(x *sql.Tx) (bool, error) {
		for _, text := range []string{schemaTable, all[0].text,
			"INSERT INTO schema_version VALUES (1, '0001_start', '" + all[0].sum() + "', 'then')",
			`INSERT INTO answer VALUES ('web-session 00ff', 1, '{}'), ('web-sessions', 1, '{"status": 7}'), ('web', 1, '{"status": 8}')`,
			`INSERT INTO role VALUES ('r', '{"name": "R"}')`,
			`INSERT INTO document VALUES ('m', 'p', 1, 1, '{"vm": "m", "type": "p", "version": 7}')`,
		} {
			if _, err := x.ExecContext(t.Context(), text); err != nil {
				return false, err
			}
		}
		return false, nil
	})
	if err := errors.Join(err, old.Close()); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n, err := Version(t.Context(), s); n != len(all) || err != nil {
		t.Errorf("schema %d of %d, %v", n, len(all), err)
	}
	err = s.Update(t.Context(), func(tx control.Tx) error {
		if _, err := tx.Answer("web-session 00ff"); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("a session among the answers: %v", err)
		}
		one, err1 := tx.Answer("web-sessions")
		other, err2 := tx.Answer("web")
		roles, err3 := tx.Roles()
		if one.Status != 7 || other.Status != 8 || len(roles) != 1 {
			t.Errorf("%v, %v, %v", one, other, roles)
		}
		// The version of a document was not a column.
		older, err4 := tx.DocumentsNewer("m", map[policy.Type]uint64{"p": 6})
		same, err5 := tx.DocumentsNewer("m", map[policy.Type]uint64{"p": 7})
		if len(older) != 1 || len(same) != 0 {
			t.Errorf("%v, %v", older, same)
		}
		return errors.Join(err1, err2, err3, err4, err5, tx.PutSession(control.Session{Key: "new"}))
	})
	if err != nil {
		t.Error(err)
	}
}

// Both engines have the same tables in their migrations, and text that sorts
// by its bytes.
func TestMigrations(t *testing.T) {
	lite, err := migrationsFor(&sqliteEngine{})
	if err != nil {
		t.Fatal(err)
	}
	big, err := migrationsFor(&postgresEngine{})
	if err != nil {
		t.Fatal(err)
	}
	if len(lite) != len(big) || len(lite) == 0 {
		t.Fatalf("%d and %d", len(lite), len(big))
	}
	for i, m := range big {
		n := strings.Count(m.text, "TEXT")
		if m.name != lite[i].name || n > 0 && m.sum() == lite[i].sum() {
			t.Errorf("%s and %s", m.name, lite[i].name)
		}
		if n != strings.Count(m.text, `TEXT COLLATE "C"`) {
			t.Errorf("%s: not all text is compared by its bytes", m.name)
		}
	}
}

// mute is an engine whose transactions cannot be announced: so none that has
// something to announce is committed.
type mute struct{ engine }

var errMute = errors.New("nobody hears")

func (mute) announce(context.Context, *sql.Tx) error { return errMute }

// Nobody who was committed with others is told that it happened where it did
// not, refusals included: they may have been for what others had written.
func TestTogetherOrNone(t *testing.T) {
	s, err := open(t.Context(), filepath.Join(t.TempDir(), "control.db"), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.engine = mute{s.engine}
	refusal := errors.New("refused")
	var fs []func(control.Tx) error
	for range 5 {
		fs = append(fs,
			func(x control.Tx) error { return x.PutMeta("quiet", nil) },
			func(x control.Tx) error { return x.AppendActivity(control.Activity{}) },
			func(x control.Tx) error { return refusal })
	}
	held, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- s.Update(t.Context(), func(control.Tx) error { close(held); <-release; return nil })
	}()
	<-held
	outcomes := make(chan error, len(fs))
	for _, f := range fs {
		go func() { outcomes <- s.Update(t.Context(), f) }()
	}
	for n := 0; n < len(fs); {
		s.updates.mu.Lock()
		n = len(s.updates.waiting)
		s.updates.mu.Unlock()
		time.Sleep(time.Millisecond)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
	for range fs {
		if err := <-outcomes; !errors.Is(err, errMute) {
			t.Errorf("came back with %v", err)
		}
	}
	err = s.View(t.Context(), func(x control.Tx) error {
		lines, err := x.Activity(control.ActivityFilter{})
		if len(lines) > 0 {
			t.Errorf("%d lines are there", len(lines))
		}
		if _, there := x.Meta("quiet"); !errors.Is(there, control.ErrNotFound) {
			t.Errorf("a value is there: %v", there)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	// It goes on after that.
	if err := s.Update(t.Context(), func(x control.Tx) error { return x.PutMeta("quiet", nil) }); err != nil {
		t.Error(err)
	}
}

// The log is folded into the file while others write: what was committed long ago
// is in the file alone.
func TestLogIsFolded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	s, err := open(t.Context(), path, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	n := 0
	alone := func() (n int) {
		file, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path+".alone", file, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		db, err := sql.Open("sqlite", "file:"+path+".alone?immutable=1")
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		// As JSON, in base64. While it is being folded it may not be whole.
		var doc string
		var text []byte
		if db.QueryRow("SELECT doc FROM meta WHERE name = 'n'").Scan(&doc) == nil && json.Unmarshal([]byte(doc), &text) == nil {
			n, _ = strconv.Atoi(string(text))
		}
		return n
	}
	for n < 2*foldEvery {
		n++
		if err := s.Update(t.Context(), func(tx control.Tx) error { return tx.PutMeta("n", []byte(strconv.Itoa(n))) }); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); alone() < foldEvery; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %d commits the file has the %dth", n, alone())
		}
	}
}

// Where a transaction breaks down under one Update, those that had their turn
// before are told so, and those behind it get another.
func TestTogetherBrokenDown(t *testing.T) {
	s, err := open(t.Context(), filepath.Join(t.TempDir(), "control.db"), hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	u := make([]*update, 3)
	outcomes := make(chan error, 3)
	for i := range u {
		u[i] = &update{turn: make(chan turn, 1), ran: make(chan ran, 1), outcome: make(chan error, 1)}
		go func() {
			mine := <-u[i].turn
			if mine.err == nil {
				_, err := s.run(t.Context(), func(x control.Tx) error {
					if i == 1 {
						_, err := x.(*tx).sql.ExecContext(t.Context(), "ROLLBACK")
						return errors.Join(errors.New("the disk"), err)
					}
					return x.PutMeta(fmt.Sprint(i), nil)
				}, mine)
				u[i].ran <- ran{err: err}
				mine.err = <-u[i].outcome
			}
			outcomes <- mine.err
		}()
	}
	rest := s.together(u)
	for range 2 {
		if e := control.AsError(<-outcomes); e == nil || e.Kind != control.Unavailable {
			t.Errorf("came back with %v", e)
		}
	}
	if len(rest) != 1 || rest[0] != u[2] {
		t.Fatalf("%d are left", len(rest))
	}
	if left := s.together(rest); len(left) > 0 || <-outcomes != nil {
		t.Error("the last one did not get its turn")
	}
	if err := s.View(t.Context(), func(x control.Tx) error {
		_, err := x.Meta("0")
		if !errors.Is(err, control.ErrNotFound) {
			t.Errorf("what the first wrote: %v", err)
		}
		_, err = x.Meta("2")
		return err
	}); err != nil {
		t.Errorf("what the last wrote: %v", err)
	}
}

// How much is kept of what was read is bounded, and what is read again and again
// stays. What does not read is not kept.
func TestReadLately(t *testing.T) {
	var d decoded[control.Policy]
	text := func(n int) string { return fmt.Sprintf(`{"kind":"%s%06d"}`, strings.Repeat("x", 500), n) }
	most := decodedAtMost / len(text(0))
	for n := range 3 * most {
		for _, n := range []int{n, 0} {
			if p, err := d.decode(text(n)); err != nil || !strings.HasSuffix(p.Kind, fmt.Sprintf("x%06d", n)) {
				t.Fatal(p, err)
			}
		}
		if len(d.young) > most || len(d.old) > most || d.size > decodedAtMost {
			t.Fatalf("%d and %d are kept, %d bytes", len(d.young), len(d.old), d.size)
		}
		if _, ok := d.find(text(0)); !ok {
			t.Fatal("what is read all the time is not kept")
		}
	}
	if _, ok := d.find(text(1)); ok || len(d.old) == 0 {
		t.Errorf("%v: what nobody reads is kept, or nothing is", ok)
	}
	if _, err := d.decode("{"); err == nil {
		t.Error("half a policy was read")
	}
	if _, ok := d.find("{"); ok {
		t.Error("half a policy is kept")
	}
}

// UndoLists takes a database back to what it was before the migration that
// lists need.
func UndoLists(ctx context.Context, cs control.Store) error {
	s := cs.(*store)
	return s.transact(ctx, s.writer, func(x *sql.Tx) (bool, error) {
		for _, statement := range []string{
			"DROP TABLE machine", "DROP TABLE machine_count", "DROP TABLE request_place", "DROP TABLE activity_hour",
			"DROP INDEX activity_ts", "CREATE INDEX activity_ts ON activity (ts)", "DROP INDEX activity_event", "DELETE FROM counter WHERE name = 'machine'",
			"DROP INDEX policy_vm_policy", "CREATE INDEX policy_vm_policy ON policy_vm (policy)", "CREATE INDEX vm_tab ON vm (id, unsupported)",
			"CREATE INDEX request_vm_request ON request_vm (request)", "CREATE INDEX request_status_request ON request_status (request)",
			"ALTER TABLE document DROP COLUMN version", "DELETE FROM schema_version WHERE version > 2",
		} {
			if _, err := x.ExecContext(ctx, statement); err != nil {
				return false, fmt.Errorf("%s: %w", statement, err)
			}
		}
		return false, nil
	})
}
