package storetest

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/jitgate/jitgate/control"
)

// keepsEveryField writes each kind of value with every field filled, then
// another in its place, and reads both back.
func keepsEveryField(t *testing.T, s control.Store) {
	t.Run("policy", func(t *testing.T) {
		kept(t, s, func(p *control.Policy, first control.Policy) { p.ID = first.ID }, control.Tx.PutPolicy,
			func(x control.Tx, p control.Policy) (control.Policy, error) { return x.Policy(p.ID) })
	})
	t.Run("request", func(t *testing.T) {
		kept(t, s, func(r *control.Request, first control.Request) { r.ID = first.ID }, control.Tx.PutRequest,
			func(x control.Tx, r control.Request) (control.Request, error) { return x.Request(r.ID) })
	})
	t.Run("pending policy", func(t *testing.T) {
		kept(t, s, func(p *control.PendingPolicy, first control.PendingPolicy) { p.VM = first.VM }, control.Tx.PutPendingPolicy,
			func(x control.Tx, p control.PendingPolicy) (control.PendingPolicy, error) {
				return x.PendingPolicy(p.VM)
			})
	})
	t.Run("machine", func(t *testing.T) {
		kept(t, s, func(v *control.VM, first control.VM) { v.ID = first.ID }, control.Tx.PutVM,
			func(x control.Tx, v control.VM) (control.VM, error) { return x.VM(v.ID) })
	})
	t.Run("join", func(t *testing.T) {
		kept(t, s, func(j *control.Join, first control.Join) { j.Hash = first.Hash }, control.Tx.PutJoin,
			func(x control.Tx, j control.Join) (control.Join, error) { return x.Join(j.Hash) })
	})
	t.Run("token", func(t *testing.T) {
		kept(t, s, func(k *control.Token, first control.Token) { k.Hash = first.Hash }, control.Tx.PutToken,
			func(x control.Tx, k control.Token) (control.Token, error) { return x.Token(k.Hash) })
	})
	t.Run("answer", func(t *testing.T) {
		kept(t, s, func(a *control.Answer, first control.Answer) { a.Key = first.Key }, control.Tx.PutAnswer,
			func(x control.Tx, a control.Answer) (control.Answer, error) { return x.Answer(a.Key) })
	})
	t.Run("session", func(t *testing.T) {
		kept(t, s, func(v *control.Session, first control.Session) { v.Key = first.Key }, control.Tx.PutSession,
			func(x control.Tx, v control.Session) (control.Session, error) { return x.Session(v.Key) })
	})
	t.Run("scope setting", func(t *testing.T) {
		kept(t, s, func(v *control.ScopeSetting, first control.ScopeSetting) { v.Scope = first.Scope }, control.Tx.PutScopeSetting,
			func(x control.Tx, v control.ScopeSetting) (control.ScopeSetting, error) {
				return only(x.ScopeSettings())
			})
	})
	t.Run("role", func(t *testing.T) {
		kept(t, s, func(r *control.Role, first control.Role) { r.Name = first.Name }, control.Tx.PutRole,
			func(x control.Tx, r control.Role) (control.Role, error) { return only(x.Roles()) })
	})
	t.Run("assignment", func(t *testing.T) {
		kept(t, s, func(a *control.Assignment, first control.Assignment) { *a = first }, control.Tx.PutAssignment,
			func(x control.Tx, a control.Assignment) (control.Assignment, error) { return only(x.Assignments()) })
	})
	t.Run("meta", func(t *testing.T) {
		for _, value := range [][]byte{[]byte("\x00\xff binary"), {}, []byte("another")} {
			update(t, s, func(x control.Tx) error { return x.PutMeta("secret", value) })
			view(t, s, func(x control.Tx) error {
				got, err := x.Meta("secret")
				same(t, got, value)
				return err
			})
		}
	})
	t.Run("document", func(t *testing.T) {
		for seed := range 2 {
			d := filled[control.Document](seed)
			d.VM = "/subscriptions/s/resourcegroups/g/vm"
			d.Type = "type"
			update(t, s, func(x control.Tx) error { return x.PutDocument(d) })
			view(t, s, func(x control.Tx) error {
				got, err := x.Document(d.VM, d.Type)
				if got.Seq == 0 || got.Seq == d.Seq {
					t.Errorf("the store did not set Seq: %d", got.Seq)
				}
				d.Seq = got.Seq
				same(t, got, d)
				return err
			})
		}
	})
	t.Run("agent event", func(t *testing.T) {
		vm := control.Record{VM: Machine("s", "g", "events"), Epoch: 3}
		e := filled[control.AgentEvent](1)
		update(t, s, func(x control.Tx) error { return x.AppendAgentEvents(vm, []control.AgentEvent{e}) })
		view(t, s, func(x control.Tx) error {
			got, err := only(x.AgentEvents(vm, 0, 0))
			same(t, got, e)
			return err
		})
	})
	t.Run("activity", func(t *testing.T) {
		a := filled[control.Activity](1)
		update(t, s, func(x control.Tx) error { return x.AppendActivity(a) })
		view(t, s, func(x control.Tx) error {
			got, err := only(x.Activity(control.ActivityFilter{}))
			if got.Seq == 0 || got.Seq == a.Seq {
				t.Errorf("the store did not set Seq: %d", got.Seq)
			}
			a.Seq = got.Seq
			same(t, got, a)
			return err
		})
	})
}

// kept puts a filled T, then one that differs in all but what names it, and
// reads each back.
func kept[T any](t *testing.T, s control.Store, rename func(v *T, first T), put func(control.Tx, T) error, get func(control.Tx, T) (T, error)) {
	t.Helper()
	first, second := filled[T](1), filled[T](2)
	rename(&second, first)
	for _, want := range []T{first, second} {
		update(t, s, func(x control.Tx) error {
			if err := put(x, want); err != nil {
				return err
			}
			got, err := get(x, want) // a transaction sees what it wrote
			same(t, got, want)
			return err
		})
		view(t, s, func(x control.Tx) error {
			got, err := get(x, want)
			same(t, got, want)
			if err != nil {
				return err
			}
			spoil(reflect.ValueOf(&got)) // it is the caller's own
			again, err := get(x, want)
			same(t, again, want)
			return err
		})
	}
}

// spoil empties all that a value points to.
func spoil(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().CanSet() {
			spoil(v.Elem())
			v.Elem().SetZero()
		}
	case reflect.Slice:
		for i := range v.Len() {
			spoil(v.Index(i))
			v.Index(i).SetZero()
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Field(i).CanSet() {
				spoil(v.Field(i))
			}
		}
	}
}

func update(t testing.TB, s control.Store, f func(control.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func view(t testing.TB, s control.Store, f func(control.Tx) error) {
	t.Helper()
	if err := s.View(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func same[T any](t testing.TB, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// only is the one of a list.
func only[T any](list []T, err error) (T, error) {
	if err == nil && len(list) != 1 {
		err = fmt.Errorf("%d of them, not one", len(list))
	}
	if err != nil {
		var none T
		return none, err
	}
	return list[0], nil
}
