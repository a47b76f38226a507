package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
)

func TestSQLite(t *testing.T) {
	storetest.Run(t, func(t *testing.T) control.Store { return storetest.SQLite(t) })
}

func TestPostgreSQL(t *testing.T) {
	storetest.Run(t, func(t *testing.T) control.Store { return storetest.PostgreSQL(t) })
}

// By whatever column lines are looked for, they are the same.
func TestWays(t *testing.T) {
	for name, open := range map[string]func(testing.TB) control.Store{"SQLite": storetest.SQLite, "PostgreSQL": storetest.PostgreSQL} {
		t.Run(name, func(t *testing.T) {
			s, r := open(t), rand.New(rand.NewPCG(3, 4))
			at := func() time.Time { return time.Unix(1_800_000_000-int64(r.IntN(30_000)), 0) }
			var lines []control.Activity
			for range 600 {
				lines = append(lines, control.Activity{Time: at(), Event: fmt.Sprint("e", r.IntN(3)), Actor: fmt.Sprint("a", r.IntN(3)), Scope: control.GroupScope(fmt.Sprint("s", r.IntN(2)), fmt.Sprint("g", r.IntN(2)))})
			}
			lines[7].Time = time.Time{}
			if err := s.Update(t.Context(), func(x control.Tx) error { return x.AppendActivity(lines...) }); err != nil {
				t.Fatal(err)
			}
			err := s.View(t.Context(), func(x control.Tx) error {
				for range 60 {
					f := control.ActivityFilter{Scope: control.GroupScope("s1", "g1"), Event: "e1", Actor: "a1", Newest: r.IntN(2) == 0, Limit: r.IntN(9), After: uint64(r.IntN(600)), Within: uint64(r.IntN(600)) * uint64(r.IntN(2))}
					if r.IntN(2) == 0 {
						f.From = at()
					}
					if r.IntN(2) == 0 {
						f.To = at()
					}
					want, err := x.Activity(f)
					if err != nil {
						return err
					}
					for _, by := range []string{"", "ts", "grp", "event", "actor"} {
						got, err := store.ActivityBy(x, f, by)
						if err != nil {
							return err
						}
						if !reflect.DeepEqual(got, want) {
							t.Fatalf("%+v by %q: %d lines, not %d", f, by, len(got), len(want))
						}
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// A database of the first schema gets what lists go by, made of what is in it.
func TestListsOfFirstSchema(t *testing.T) {
	for name, open := range map[string]func(testing.TB) (control.Store, string){
		"SQLite": func(t testing.TB) (control.Store, string) {
			path := filepath.Join(t.TempDir(), "control.db")
			return storetest.Open(t, path), path
		},
		"PostgreSQL": func(t testing.TB) (control.Store, string) {
			dsn := storetest.Shared(t).NewDatabase(t)
			return storetest.Open(t, dsn), dsn
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, dsn := open(t)
			g := storetest.Machine("S1", "providers", "Web")
			classic := control.VMID{Subscription: "s1", Group: "g", Kind: "Microsoft.ClassicCompute/virtualMachines", Name: "old"}
			id := control.PolicyID{Subscription: "s1", Group: "other", Location: "l", Name: "p"}
			state := func(s control.Store) (text string) {
				err := s.View(t.Context(), func(x control.Tx) error {
					counts, err1 := x.CountMachines("/", "0")
					named, err2 := x.Machines(control.MachineFilter{Tab: control.Configured})
					policies, err3 := x.Policies(control.PolicyFilter{Reader: []control.Scope{g.Scope()}}, "", 0)
					machines, err4 := x.Requests(control.RequestFilter{Scope: control.GroupScope("s1", "providers")})
					readable, err5 := x.Requests(control.RequestFilter{Reader: &control.RequestReader{Scopes: []control.Scope{control.GroupScope("s1", "other")}}})
					lines, err6 := x.Activity(control.ActivityFilter{From: time.Unix(3600*5, 0), To: time.Unix(3600*6+1, 0)})
					text = fmt.Sprint(counts, named, len(policies), len(machines), len(readable), len(lines))
					return errors.Join(err1, err2, err3, err4, err5, err6)
				})
				if err != nil {
					t.Fatal(err)
				}
				return text
			}
			err := s.Update(t.Context(), func(x control.Tx) error {
				return errors.Join(x.PutVM(control.VM{ID: g}), x.PutVM(control.VM{ID: classic}), x.PutVM(control.VM{ID: storetest.Machine("s1", "g", "free")}), x.PutVM(control.VM{ID: storetest.Machine("s1", "g", "appliance"), Unsupported: "is one"}),
					x.PutPolicy(control.Policy{ID: id, VMs: []control.PolicyVM{{ID: g}}}), x.PutRequest(control.Request{ID: "1", Policy: id, VMs: []control.RequestVM{{ID: g}}}),
					x.AppendActivity(control.Activity{Time: time.Unix(3600*5+7, 0)}, control.Activity{Time: time.Unix(3600*6, 0)}, control.Activity{Time: time.Unix(3600*6+1, 0)}, control.Activity{}))
			})
			if err != nil {
				t.Fatal(err)
			}
			want := state(s)
			if want != "map[Configured:1 NotConfigured:1 Unsupported:2] ["+g.Key()+"] 1 1 1 2" {
				t.Fatal(want)
			}
			if err := store.UndoLists(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			if got := state(storetest.Open(t, again(t, s, dsn))); got != want {
				t.Errorf("%s, not %s", got, want)
			}
		})
	}
}

// again closes a store, so that the one that dsn names may be opened again.
func again(t *testing.T, s control.Store, dsn string) string {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dsn
}
