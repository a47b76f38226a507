package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// Run holds a store against what control.Store says. open opens an empty one.
func Run(t *testing.T, open func(*testing.T) control.Store) {
	for _, part := range []struct {
		name string
		test func(*testing.T, control.Store)
	}{
		{"every field is kept", keepsEveryField},
		{"what is not there", notThere},
		{"letter case", letterCase},
		{"policies", policies},
		{"requests", requests},
		{"documents", documents},
		{"grants due", grantsDue},
		{"pending policies", pendingPolicies},
		{"machines", machines},
		{"tabs", tabs},
		{"last seen", lastSeen},
		{"joins and tokens", joinsAndTokens},
		{"agent events", agentEvents},
		{"activity", activity},
		{"roles and assignments", rolesAndAssignments},
		{"answers", answers},
		{"sessions", sessions},
		{"rollback", rollback},
		{"a view does not write", viewOnly},
		{"a view is one state", oneState},
		{"updates run one at a time", oneAtATime},
		{"seq rises in the order of commits", seqInOrder},
		{"hostile strings", hostileStrings},
		{"long names", longNames},
		{"reads beside updates", readsBeside},
		{"updates that are committed together", together},
		{"changed", changed},
		{"the end of a call", endOfCall},
		{"close", closes},
	} {
		t.Run(part.name, func(t *testing.T) { part.test(t, open(t)) })
	}
}

// at is a time, n seconds in.
func at(n int) time.Time { return time.Date(2026, 3, 1, 0, 0, n, 0, time.UTC) }

// names are what a list is compared by.
func names[T any](list []T, name func(T) string) string {
	var all []string
	for _, v := range list {
		all = append(all, name(v))
	}
	return strings.Join(all, " ")
}

func notThere(t *testing.T, s control.Store) {
	vm, id := Machine("s", "g", "none"), control.PolicyID{Subscription: "s", Group: "g", Location: "l", Name: "none"}
	reads := map[string]func(control.Tx) error{
		"Policy":        func(x control.Tx) error { _, err := x.Policy(id); return err },
		"Request":       func(x control.Tx) error { _, err := x.Request("none"); return err },
		"Document":      func(x control.Tx) error { _, err := x.Document(vm.Key(), policy.TypeGrants); return err },
		"PendingPolicy": func(x control.Tx) error { _, err := x.PendingPolicy(vm); return err },
		"VM":            func(x control.Tx) error { _, err := x.VM(vm); return err },
		"Join":          func(x control.Tx) error { _, err := x.Join("none"); return err },
		"Token":         func(x control.Tx) error { _, err := x.Token("none"); return err },
		"Answer":        func(x control.Tx) error { _, err := x.Answer("none"); return err },
		"Session":       func(x control.Tx) error { _, err := x.Session("none"); return err },
		"Meta":          func(x control.Tx) error { _, err := x.Meta("none"); return err },
	}
	deletions := map[string]func(control.Tx) error{
		"DeletePolicy":        func(x control.Tx) error { return x.DeletePolicy(id) },
		"DeletePendingPolicy": func(x control.Tx) error { return x.DeletePendingPolicy(vm) },
		"DeleteVM":            func(x control.Tx) error { return x.DeleteVM(vm) },
		"DeleteSession":       func(x control.Tx) error { return x.DeleteSession("none") },
		"DeleteRole":          func(x control.Tx) error { return x.DeleteRole("none") },
		"DeleteAssignment":    func(x control.Tx) error { return x.DeleteAssignment(control.Assignment{Principal: "none"}) },
	}
	for name, f := range reads {
		if err := s.View(t.Context(), f); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, f := range deletions {
		if err := s.Update(t.Context(), f); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An answer of ErrNotFound is an answer: the transaction goes on.
	update(t, s, func(x control.Tx) error {
		for name, f := range deletions {
			if err := f(x); !errors.Is(err, control.ErrNotFound) {
				t.Errorf("%s: %v", name, err)
			}
		}
		return x.PutMeta("went", []byte("on"))
	})
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.PutMeta("z", nil), x.PutMeta("B", nil), x.PutMeta("a", nil))
	})
	view(t, s, func(x control.Tx) error {
		all, err := x.MetaNames()
		if err != nil {
			return err
		}
		same(t, strings.Join(all, " "), "B a went z")
		_, err = x.Meta("went")
		if err != nil {
			return err
		}
		record, head, err := x.NewestRecord(vm)
		same(t, record, control.Record{VM: vm})
		same(t, head, control.Head{})
		return err
	})
	// Lists of nothing are no errors.
	view(t, s, func(x control.Tx) error {
		tx := reflect.ValueOf(x)
		for name, args := range map[string][]any{
			"Policies": {control.PolicyFilter{}, "", 0}, "PoliciesOf": {vm}, "Requests": {control.RequestFilter{}},
			"DocumentsAfter": {uint64(0), 0}, "GrantsDue": {at(0), 0}, "PendingPolicies": {}, "VMs": {control.VMFilter{}}, "Machines": {control.MachineFilter{}}, "VMsOf": {vm}, "CountMachines": {"/", "0"}, "RequestsOf": {at(0), vm},
			"Joins": {}, "AgentEvents": {control.Record{VM: vm}, uint64(0), 0}, "Activity": {control.ActivityFilter{}}, "ScopeSettings": {},
			"Tokens": {}, "Roles": {}, "Assignments": {},
		} {
			var in []reflect.Value
			for _, a := range args {
				in = append(in, reflect.ValueOf(a))
			}
			out := tx.MethodByName(name).Call(in)
			if out[0].Len() != 0 || !out[1].IsNil() {
				t.Errorf("%s: %v", name, out)
			}
		}
		return nil
	})
}

// letterCase writes under one spelling and reads under another. The spelling
// that comes back is the last one written.
func letterCase(t *testing.T, s control.Store) {
	vm, loud := Machine("Sub", "Group", "Name"), Machine("SUB", "GROUP", "NAME")
	loud.Kind = strings.ToUpper(loud.Kind)
	id := control.PolicyID{Subscription: "Sub", Group: "Group", Location: "West", Name: "Name"}
	loudID := control.PolicyID{Subscription: "SUB", Group: "GROUP", Location: "WEST", Name: "NAME"}
	update(t, s, func(x control.Tx) error {
		return errors.Join(
			x.PutPolicy(control.Policy{ID: id, VMs: []control.PolicyVM{{ID: vm}}}),
			x.PutVM(control.VM{ID: vm}),
			x.PutPendingPolicy(control.PendingPolicy{VM: vm}),
			x.PutRequest(control.Request{ID: "01ABC", Policy: id, VMs: []control.RequestVM{{ID: vm}}}),
			x.PutDocument(control.Document{VM: vm.String(), Type: policy.TypeGrants}),
			x.AppendAgentEvents(control.Record{VM: vm}, []control.AgentEvent{{Seq: 1}}),
			x.PutRole(control.Role{Name: "Role"}),
			x.PutAssignment(control.Assignment{Principal: "P", Role: "Role", Scope: "/subscriptions/Sub"}),
			x.PutScopeSetting(control.ScopeSetting{Scope: "/subscriptions/Sub", By: "first"}),
		)
	})
	view(t, s, func(x control.Tx) error {
		p, err1 := x.Policy(loudID)
		same(t, p.ID, id)
		v, err2 := x.VM(loud)
		same(t, v.ID, vm)
		w, err3 := x.PendingPolicy(loud)
		same(t, w.VM, vm)
		r, err4 := x.Request("01abc")
		same(t, r.ID, "01ABC")
		d, err5 := x.Document(loud.String(), policy.TypeGrants)
		same(t, d.VM, vm.Key())
		of, err6 := only(x.PoliciesOf(loud))
		same(t, of.ID, id)
		_, err7 := only(x.AgentEvents(control.Record{VM: loud}, 0, 0))
		_, err8 := only(x.Requests(control.RequestFilter{VM: &loud, Policy: &loudID, Scope: "/SUBSCRIPTIONS/SUB"}))
		_, err9 := only(x.VMs(control.VMFilter{Scope: "/SUBSCRIPTIONS/SUB", Search: "NAME"}))
		_, err10 := only(x.Policies(control.PolicyFilter{Subscription: "SUB", Group: "GROUP", Location: "WEST"}, "", 0))
		return errors.Join(err1, err2, err3, err4, err5, err6, err7, err8, err9, err10)
	})
	update(t, s, func(x control.Tx) error {
		return errors.Join(
			x.PutPolicy(control.Policy{ID: loudID}),
			x.PutVM(control.VM{ID: loud}),
			x.PutRole(control.Role{Name: "ROLE"}),
			x.PutScopeSetting(control.ScopeSetting{Scope: "/SUBSCRIPTIONS/sub", By: "second"}),
			x.DeleteAssignment(control.Assignment{Principal: "P", Role: "ROLE", Scope: "/SUBSCRIPTIONS/SUB"}),
		)
	})
	view(t, s, func(x control.Tx) error {
		p, err1 := only(x.Policies(control.PolicyFilter{}, "", 0))
		same(t, p.ID, loudID)
		v, err2 := only(x.VMs(control.VMFilter{}))
		same(t, v.ID, loud)
		r, err3 := only(x.Roles())
		same(t, r.Name, "ROLE")
		set, err4 := only(x.ScopeSettings())
		same(t, set.By, "second")
		return errors.Join(err1, err2, err3, err4)
	})
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.DeletePolicy(id), x.DeleteVM(vm), x.DeletePendingPolicy(loud), x.DeleteRole("role"))
	})
}

func policies(t *testing.T, s control.Store) {
	a, b, c := Machine("s1", "g1", "a"), Machine("s1", "g1", "b"), Machine("s2", "g1", "c")
	put := func(sub, group, location, name string, vms ...control.VMID) control.PolicyID {
		id := control.PolicyID{Subscription: sub, Group: group, Location: location, Name: name}
		p := control.Policy{ID: id, Kind: "Basic"}
		for _, vm := range vms {
			p.VMs = append(p.VMs, control.PolicyVM{ID: vm})
		}
		update(t, s, func(x control.Tx) error { return x.PutPolicy(p) })
		return id
	}
	// In the order of bytes "-" and "_" are apart, and "Z" counts as "z".
	put("s1", "g1", "west", "p_1", a, b, a)
	put("s1", "g1", "west", "p-2", b)
	put("s1", "g1", "east", "Z", a)
	put("s1", "g2", "west", "y")
	gone := put("s2", "g1", "west", "x", c)
	list := func(f control.PolicyFilter, after string, limit int) string {
		t.Helper()
		var got string
		view(t, s, func(x control.Tx) error {
			all, err := x.Policies(f, after, limit)
			got = names(all, func(p control.Policy) string { return p.ID.Name })
			return err
		})
		return got
	}
	of := func(vms ...control.VMID) (got string) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.PoliciesOf(vms...)
			got = names(all, func(p control.Policy) string { return p.ID.Name })
			return err
		})
		return got
	}
	same(t, list(control.PolicyFilter{}, "", 0), "Z p-2 p_1 y x")
	same(t, list(control.PolicyFilter{Subscription: "S1"}, "", 0), "Z p-2 p_1 y")
	same(t, list(control.PolicyFilter{Subscription: "s1", Group: "G1"}, "", 0), "Z p-2 p_1")
	same(t, list(control.PolicyFilter{Location: "West"}, "", 0), "p-2 p_1 y x")
	same(t, list(control.PolicyFilter{Subscription: "s1", Group: "g1", Location: "west"}, "", 0), "p-2 p_1")
	same(t, list(control.PolicyFilter{Subscription: "s"}, "", 0), "")
	// Pages: every one once, whatever their size.
	for size := 1; size < 7; size++ {
		after, got := "", []string{}
		for {
			var page []control.Policy
			view(t, s, func(x control.Tx) (err error) {
				page, err = x.Policies(control.PolicyFilter{}, after, size)
				return err
			})
			if len(page) == 0 {
				break
			}
			if len(page) > size {
				t.Errorf("a page of %d has %d", size, len(page))
			}
			for _, p := range page {
				got, after = append(got, p.ID.Name), p.ID.Key()
			}
		}
		same(t, strings.Join(got, " "), "Z p-2 p_1 y x")
	}
	same(t, of(a), "Z p_1")
	same(t, of(b), "p-2 p_1")
	same(t, of(c), "x")
	same(t, of(), "")
	// More than one statement may have, and each policy once.
	many := []control.VMID{c, a}
	for i := range 1201 {
		many = append(many, Machine("s", "many", fmt.Sprint(i)))
	}
	same(t, of(append(many, a, b, Machine("S1", "G1", "A"))...), "Z p-2 p_1 x")
	put("s1", "g1", "west", "p_1", c) // replaced whole
	same(t, of(a), "Z")
	same(t, of(c), "p_1 x")
	update(t, s, func(x control.Tx) error { return x.DeletePolicy(gone) })
	same(t, of(c), "p_1")
	same(t, list(control.PolicyFilter{}, "", 0), "Z p-2 p_1 y")
}

func requests(t *testing.T, s control.Store) {
	p1 := control.PolicyID{Subscription: "s1", Group: "g1", Location: "l", Name: "p1"}
	p2 := control.PolicyID{Subscription: "s1", Group: "g1", Location: "l", Name: "p2"}
	a, b, c := Machine("s1", "g1", "a"), Machine("s1", "g10", "b"), Machine("s2", "g1", "c")
	put := func(n int, id control.PolicyID, who string, vms []control.VMID, statuses ...control.Status) {
		r := control.Request{ID: fmt.Sprintf("R%d", n), Policy: id, Principal: who, Start: at(n)}
		for i, vm := range vms {
			r.VMs = append(r.VMs, control.RequestVM{ID: vm, Ports: []control.RequestPort{{Number: 22, Status: statuses[i]}}})
		}
		update(t, s, func(x control.Tx) error { return x.PutRequest(r) })
	}
	put(3, p1, "ann", []control.VMID{a}, control.Initiated)
	put(1, p1, "bob", []control.VMID{a}, control.Revoked)
	put(2, p2, "ann", []control.VMID{a, b}, control.Revoked, control.Pending)
	put(4, p2, "bob", []control.VMID{c}, control.Initiating)
	put(5, p2, "bob", []control.VMID{c, c}, control.Revoked, control.Revoked)
	check := func(want string, f control.RequestFilter) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.Requests(f)
			if got := names(all, func(r control.Request) string { return r.ID }); got != want {
				t.Errorf("%+v: got %q, want %q", f, got, want)
			}
			return err
		})
	}
	check("R1 R2 R3 R4 R5", control.RequestFilter{})
	check("R5 R4 R3 R2 R1", control.RequestFilter{Newest: true})
	check("R1 R2", control.RequestFilter{Limit: 2})
	check("R3 R4", control.RequestFilter{Limit: 2, After: "r2"})
	check("R4 R3", control.RequestFilter{Limit: 2, After: "R5", Newest: true})
	check("", control.RequestFilter{After: "R5"})
	check("R1 R3", control.RequestFilter{Policy: &p1})
	check("R2 R3", control.RequestFilter{Principal: "ann"})
	check("", control.RequestFilter{Principal: "ANN"})
	check("R2 R3 R4", control.RequestFilter{Open: true})
	check("R1 R2 R3", control.RequestFilter{VM: &a})
	check("R2 R3", control.RequestFilter{VM: &a, Open: true})
	check("R2", control.RequestFilter{VM: &b})
	check("R1 R2 R5", control.RequestFilter{Status: control.Revoked})
	check("R2", control.RequestFilter{Status: control.Pending, VM: &a}) // of any port
	check("", control.RequestFilter{Status: "Nothing"})
	check("R3 R4 R5", control.RequestFilter{Since: at(3)})
	check("R3", control.RequestFilter{Since: at(3), VM: &a})
	check("R1 R2 R3 R4 R5", control.RequestFilter{Scope: control.Everywhere})
	check("R1 R2 R3", control.RequestFilter{Scope: "/subscriptions/s1"})
	check("", control.RequestFilter{Scope: "/subscriptions/s"})
	check("R1 R2 R3", control.RequestFilter{Scope: "/subscriptions/s1/resourcegroups/g1"})
	check("R2", control.RequestFilter{Scope: "/subscriptions/s1/resourcegroups/g10"})
	check("R2", control.RequestFilter{Scope: b.Scope()})
	check("R4", control.RequestFilter{Scope: c.Scope(), Open: true, Policy: &p2, Principal: "bob", Status: control.Initiating, VM: &c, Since: at(4), Newest: true, After: "R5", Limit: 9})
	check("", control.RequestFilter{Scope: c.Scope(), VM: &a})
	of := func(want string, since int, vms ...control.VMID) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.RequestsOf(at(since), vms...)
			same(t, names(all, func(r control.Request) string { return r.ID }), want)
			return err
		})
	}
	of("R1 R2 R3", 0, a)
	of("R2 R3", 9, a)
	of("R2 R3 R4 R5", 5, b, c, a, c)
	of("", 0)
	put(3, p1, "ann", []control.VMID{b}, control.Revoked) // over, and of another machine
	check("R1 R2", control.RequestFilter{VM: &a})
	check("R2 R4", control.RequestFilter{Open: true})
	check("", control.RequestFilter{Status: control.Initiated})
	check("R2", control.RequestFilter{VM: &b, Open: true})
	// A request is history: it outlives its policy.
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.PutPolicy(control.Policy{ID: p1}), x.DeletePolicy(p1))
	})
	check("R1 R3", control.RequestFilter{Policy: &p1})

	// What stands beside a request follows it, by whichever way it was read.
	moved := func(id control.PolicyID, who string, vm control.VMID, status control.Status) control.Request {
		return control.Request{ID: "R6", Policy: id, Principal: who, Start: at(6), VMs: []control.RequestVM{{ID: vm, Ports: []control.RequestPort{{Status: status}}}}}
	}
	for n, read := range []func(control.Tx) error{
		func(control.Tx) error { return nil },
		func(x control.Tx) error { _, err := x.Request("r6"); return err },
		func(x control.Tx) error { _, err := x.Requests(control.RequestFilter{Open: true}); return err },
		func(x control.Tx) error { _, err := x.RequestsOf(at(0), b); return err },
	} {
		update(t, s, func(x control.Tx) error {
			return errors.Join(x.PutRequest(moved(p1, "cid", a, control.Pending)), x.PutRequest(moved(p1, "cid", b, control.Initiated)))
		})
		update(t, s, func(x control.Tx) error {
			return errors.Join(read(x), x.PutRequest(moved(p2, "dan", c, control.Initiating)), x.PutRequest(moved(p2, "dan", c, control.Revoked)))
		})
		for want, f := range map[string]control.RequestFilter{
			"R6":       {Principal: "dan", Policy: &p2, VM: &c, Status: control.Revoked, Scope: c.Scope()},
			"R4 R5 R6": {Scope: "/subscriptions/s2"},
			"R2 R3":    {VM: &b},
			"R2 R4":    {Open: true},
			"R4 ":      {Status: control.Initiating},
			"R4":       {VM: &c, Open: true},
			"R1 R2":    {VM: &a},
			"R1 R3":    {Policy: &p1},
			"R2 R3 ":   {Scope: "/subscriptions/s1/resourcegroups/g10"},
		} {
			check(strings.TrimSpace(want), f)
		}
		if t.Failed() {
			t.Fatal("way", n)
		}
	}
}

func documents(t *testing.T, s control.Store) {
	a, b := Machine("s", "g", "a").Key(), Machine("s", "g", "b").Key()
	var last uint64
	put := func(vm string, kind policy.Type, version uint64) {
		t.Helper()
		update(t, s, func(x control.Tx) error {
			if err := x.PutDocument(control.Document{VM: vm, Type: kind, Version: version}); err != nil {
				return err
			}
			d, err := x.Document(vm, kind)
			if d.Seq <= last || d.Version != version {
				t.Errorf("version %d, Seq %d after %d", d.Version, d.Seq, last)
			}
			last = d.Seq
			return err
		})
	}
	check := func(want string, seq uint64, limit int) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.DocumentsAfter(seq, limit)
			same(t, names(all, func(d control.Document) string { return fmt.Sprint(d.Version) }), want)
			return err
		})
	}
	put(a, policy.TypePolicy, 11)
	put(a, policy.TypeGrants, 12)
	put("", policy.TypeTrust, 13)
	put(b, policy.TypeGrants, 14)
	check("11 12 13 14", 0, 0)
	check("11 12", 0, 2)
	check("14", last-1, 0)
	check("", last, 0)
	put(a, policy.TypePolicy, 15) // the newest of its kind, and the last in order
	check("12 13 14 15", 0, 0)
	check("", ^uint64(0), 0)
	update(t, s, func(x control.Tx) error { // two in one transaction
		return errors.Join(x.PutDocument(control.Document{VM: b, Type: policy.TypePolicy, Version: 16}), x.PutDocument(control.Document{VM: b, Type: policy.TypeGrants, Version: 17}))
	})
	check("16 17", last, 0)
	update(t, s, func(x control.Tx) error { // 120 at once, and none
		var many []control.Document
		for n := range 120 {
			many = append(many, control.Document{VM: Machine("s", "h", fmt.Sprintf("m%03d", n/2)).String(), Type: []policy.Type{policy.TypeGrants, policy.TypePolicy}[n%2], Version: uint64(100 + n)})
		}
		return errors.Join(x.PutDocument(many...), x.PutDocument())
	})
	check("100 101 102", last+2, 3)
	check("218 219", last+2+118, 0)
	for want, of := range map[string][]string{
		"":                  nil,
		"13":                {""},
		"12 15 17 16":       {b, strings.ToUpper(a), a, Machine("s", "g", "none").Key()},
		"13 12 15 104 105 ": {Machine("s", "h", "m002").Key(), "", a},
	} {
		view(t, s, func(x control.Tx) error {
			found, err := x.DocumentsOf(of...)
			same(t, names(found, func(d control.Document) string { return fmt.Sprint(d.Version) }), strings.TrimSpace(want))
			return err
		})
	}
	for _, c := range []struct {
		want, vm string
		than     map[policy.Type]uint64
	}{
		{"", a, nil},
		{"12 15", strings.ToUpper(a), map[policy.Type]uint64{policy.TypePolicy: 14, policy.TypeGrants: 0}},
		{"12", a, map[policy.Type]uint64{policy.TypePolicy: 15, policy.TypeGrants: 11}},
		{"15", a, map[policy.Type]uint64{policy.TypePolicy: 14}},
		{"", a, map[policy.Type]uint64{policy.TypePolicy: 15, policy.TypeGrants: ^uint64(0), policy.TypeTrust: 0}},
		{"13", "", map[policy.Type]uint64{policy.TypeTrust: 12, policy.TypePolicy: 0}},
		{"", "", map[policy.Type]uint64{policy.TypeTrust: 13}},
		{"", Machine("s", "g", "none").Key(), map[policy.Type]uint64{policy.TypePolicy: 0}},
	} {
		view(t, s, func(x control.Tx) error {
			found, err := x.DocumentsNewer(c.vm, c.than)
			same(t, names(found, func(d control.Document) string { return fmt.Sprint(d.Version) }), c.want)
			return err
		})
	}
}

func grantsDue(t *testing.T, s control.Store) {
	a, b, c, d := Machine("s", "g", "a"), Machine("s", "g", "b"), Machine("s", "g", "c"), Machine("s", "g", "d")
	update(t, s, func(x control.Tx) error {
		for i, vm := range []control.VMID{a, b, c, d} {
			status := control.Initiated
			if vm == b {
				status = control.Revoked
			}
			err := errors.Join(
				x.PutDocument(control.Document{VM: vm.Key(), Type: policy.TypeGrants, Issued: at(10 - i)}),
				x.PutDocument(control.Document{VM: vm.Key(), Type: policy.TypePolicy, Issued: at(0)}),
				x.PutRequest(control.Request{ID: vm.Name, VMs: []control.RequestVM{{ID: vm, Ports: []control.RequestPort{{Status: status}}}}}))
			if err != nil {
				return err
			}
		}
		return nil
	})
	check := func(want string, before time.Time, limit int) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.GrantsDue(before, limit)
			same(t, names(all, func(d control.Document) string { return d.VM[len(d.VM)-1:] + string(d.Type)[24:30] }), want)
			return err
		})
	}
	check("", at(7), 0)
	check("dgrants", at(8), 0)
	check("dgrants cgrants agrants", at(11), 0)
	check("dgrants cgrants", at(11), 2)
}

func pendingPolicies(t *testing.T, s control.Store) {
	update(t, s, func(x control.Tx) error {
		for _, name := range []string{"b", "C", "a"} {
			if err := x.PutPendingPolicy(control.PendingPolicy{VM: Machine("s", "g", name), Version: 1}); err != nil {
				return err
			}
		}
		return errors.Join(x.PutPendingPolicy(control.PendingPolicy{VM: Machine("s", "g", "b"), Version: 2}), x.DeletePendingPolicy(Machine("s", "g", "a")))
	})
	view(t, s, func(x control.Tx) error {
		all, err := x.PendingPolicies()
		same(t, names(all, func(p control.PendingPolicy) string { return fmt.Sprint(p.VM.Name, p.Version) }), "b2 C1")
		return err
	})
}

func machines(t *testing.T, s control.Store) {
	for _, vm := range []control.VMID{
		Machine("s1", "g", "b"), Machine("s1", "g", "a_1"), Machine("s1", "g", "a-2"), Machine("s1", "g-x", "ax2"), Machine("s1", "gx", "A.3"), Machine("s10", "g", "100"),
	} {
		update(t, s, func(x control.Tx) error { return x.PutVM(control.VM{ID: vm, Location: "west"}) })
	}
	check := func(want string, f control.VMFilter) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.VMs(f)
			if got := names(all, func(v control.VM) string { return v.ID.Name }); got != want {
				t.Errorf("%+v: got %q, want %q", f, got, want)
			}
			return err
		})
	}
	check("ax2 a-2 a_1 b A.3 100", control.VMFilter{})
	check("ax2 a-2 a_1 b A.3 100", control.VMFilter{Tab: control.Unsupported}) // not looked at
	check("ax2 a-2 a_1 b A.3", control.VMFilter{Scope: "/subscriptions/s1"})
	check("a-2 a_1 b", control.VMFilter{Scope: "/subscriptions/s1/resourcegroups/g"})
	check("b", control.VMFilter{Scope: Machine("S1", "g", "B").Scope()})
	check("", control.VMFilter{Scope: "/subscriptions/s1/resourcegroups" + "/"})
	check("a_1", control.VMFilter{Search: "a_1"}) // "_" stands for itself
	check("", control.VMFilter{Search: "%"})
	check("", control.VMFilter{Search: "a%"})
	check("", control.VMFilter{Search: `\`})
	check("ax2 a-2 a_1", control.VMFilter{Search: "MACHINES/A", Scope: "/subscriptions/s1", Limit: 3})
	check("a-2 a_1", control.VMFilter{After: Machine("s1", "g-x", "ax2").Key(), Limit: 2})
	check("100", control.VMFilter{After: strings.ToUpper(Machine("s1", "gx", "a.3").String()), Limit: 2})
	check("", control.VMFilter{Search: strings.Repeat("a", 800)})
	view(t, s, func(x control.Tx) error {
		some, err := x.VMsOf(Machine("s1", "GX", "a.3"), Machine("s1", "g", "nobody"), Machine("s1", "g", "B"), Machine("s1", "g", "b"))
		same(t, names(some, func(v control.VM) string { return v.ID.Name }), "b A.3")
		return err
	})
	update(t, s, func(x control.Tx) error { return x.DeleteVM(Machine("s1", "g", "b")) })
	check("a-2 a_1", control.VMFilter{Scope: "/subscriptions/s1/resourcegroups/g"})
}

// tabs plays changes and holds what is kept in step, the tabs and their counts,
// against what it follows from.
func tabs(t *testing.T, s control.Store) {
	r := rand.New(rand.NewPCG(1, 2))
	var ids []control.VMID
	for _, place := range [][2]string{{"s1", "g"}, {"s1", "g-x"}, {"s1", "providers"}, {"s10", "g"}, {"S2", "G.y"}} {
		for _, name := range []string{"a", "a-1", "a.2", "A_3", "b"} {
			ids = append(ids, Machine(place[0], place[1], name))
		}
		ids = append(ids, control.VMID{Subscription: place[0], Group: place[1], Kind: "Microsoft.ClassicCompute/virtualMachines", Name: "a"})
	}
	there, unsupported := map[string]control.VMID{}, map[string]bool{}
	policies := map[int][]control.VMID{}
	for range 150 {
		update(t, s, func(x control.Tx) error {
			id, n := ids[r.IntN(len(ids))], r.IntN(4)
			policy := control.PolicyID{Subscription: "s1", Group: "g", Location: "west", Name: fmt.Sprint("p", n)}
			switch r.IntN(5) {
			case 0, 1:
				vm := control.VM{ID: id}
				if unsupported[id.Key()] = r.IntN(3) == 0; unsupported[id.Key()] {
					vm.Unsupported = "too old"
				}
				there[id.Key()] = id
				if err := x.PutVM(vm); err != nil {
					return err
				}
				found, err := x.Machines(control.MachineFilter{From: id.Key(), Search: id.Name, Limit: 1})
				same(t, found, []string{id.Key()}) // before the commit
				return err
			case 2:
				delete(there, id.Key())
				if err := x.DeleteVM(id); !errors.Is(err, control.ErrNotFound) {
					return err
				}
			case 3:
				p := control.Policy{ID: policy}
				policies[n] = nil
				for range r.IntN(8) {
					vm := ids[r.IntN(len(ids))]
					policies[n] = append(policies[n], vm)
					p.VMs = append(p.VMs, control.PolicyVM{ID: vm})
				}
				return x.PutPolicy(p)
			case 4:
				delete(policies, n)
				if err := x.DeletePolicy(policy); !errors.Is(err, control.ErrNotFound) {
					return err
				}
			}
			return nil
		})
		tab := func(key string) control.Tab {
			named := false
			for _, vms := range policies {
				named = named || slices.ContainsFunc(vms, func(v control.VMID) bool { return v.Key() == key })
			}
			return control.BaseTab(key, named, unsupported[key])
		}
		keys := slices.Sorted(maps.Keys(there))
		f := control.MachineFilter{Tab: []control.Tab{"", control.Configured, control.NotConfigured, control.Unsupported}[r.IntN(4)], Search: []string{"", "A", "a-", "g-x/", "_"}[r.IntN(5)], Limit: r.IntN(4)}
		if r.IntN(2) == 0 {
			scope := control.GroupScope(ids[r.IntN(len(ids))].Subscription, ids[r.IntN(len(ids))].Group)
			f.From, f.To = string(scope)+"/", string(scope)+"0"
		}
		if r.IntN(2) == 0 {
			f.After = ids[r.IntN(len(ids))].String()
		}
		var want []string
		counts := map[control.Tab]int{}
		for _, key := range keys {
			in := key >= f.From && (f.To == "" || key < f.To)
			if in && key > strings.ToLower(f.After) && (f.Tab == "" || f.Tab == tab(key)) && strings.Contains(key, strings.ToLower(f.Search)) && (f.Limit == 0 || len(want) < f.Limit) {
				want = append(want, key)
			}
			if in {
				counts[tab(key)]++
			}
		}
		view(t, s, func(x control.Tx) error {
			listed, err1 := x.Machines(f)
			if !slices.Equal(listed, want) {
				t.Fatalf("%+v: %q, not %q", f, listed, want)
			}
			to := f.To
			if to == "" {
				to = "0"
			}
			counted, err2 := x.CountMachines(f.From, to)
			if !maps.Equal(counted, counts) {
				t.Fatalf("from %q to %q: counted %v, not %v", f.From, to, counted, counts)
			}
			return errors.Join(err1, err2)
		})
	}
}

func lastSeen(t *testing.T, s control.Store) {
	vm, other, bare := Machine("s", "g", "vm"), Machine("s", "g", "other"), Machine("s", "g", "bare")
	check := func(want time.Time) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			v, err := x.VM(vm)
			if err != nil {
				return err
			}
			listed, err := x.VMs(control.VMFilter{Search: "/vm"})
			if err != nil || len(listed) != 1 {
				t.Fatal(listed, err)
			}
			if v.Agent == nil || !v.Agent.LastSeen.Equal(want) || !listed[0].Agent.LastSeen.Equal(want) {
				t.Errorf("last seen %v, listed %v, not %v", v.Agent, listed[0].Agent, want)
			}
			return nil
		})
	}
	put := func(seen time.Time) {
		update(t, s, func(x control.Tx) error {
			return x.PutVM(control.VM{ID: vm, Agent: &control.Agent{Key: "k", LastSeen: seen}})
		})
	}
	seen := func(m map[string]time.Time) {
		update(t, s, func(x control.Tx) error { return x.Seen(m) })
	}
	put(time.Time{})
	update(t, s, func(x control.Tx) error { return x.PutVM(control.VM{ID: bare}) })
	check(time.Time{})
	seen(map[string]time.Time{vm.Key(): at(5), other.Key(): at(5), bare.Key(): at(5)})
	check(at(5))
	put(at(3)) // an older copy of the machine
	check(at(5))
	put(time.Time{})
	check(at(5))
	seen(map[string]time.Time{vm.Key(): at(4)})
	check(at(5))
	put(at(6))
	check(at(6))
	seen(nil)
	view(t, s, func(x control.Tx) error {
		if _, err := x.VM(other); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("a machine nobody put: %v", err)
		}
		v, err := x.VM(bare)
		if v.Agent != nil {
			t.Errorf("an agent that did not enrol: %v", v.Agent)
		}
		return err
	})
	// More than one statement may have.
	many := map[string]time.Time{}
	for i := range 1201 {
		many[Machine("s", "many", fmt.Sprint(i)).Key()] = at(7)
	}
	many[vm.Key()] = at(7)
	seen(many)
	check(at(7))
	silent := func(since int) (list string) {
		view(t, s, func(x control.Tx) error {
			all, err := x.VMs(control.VMFilter{Silent: at(since)})
			list = names(all, func(v control.VM) string { return v.ID.Name })
			return err
		})
		return list
	}
	same(t, silent(6), "bare")
	same(t, silent(7), "bare vm")
}

func joinsAndTokens(t *testing.T, s control.Store) {
	update(t, s, func(x control.Tx) error {
		for i, hash := range []string{"b", "C", "a"} {
			err := errors.Join(x.PutJoin(control.Join{Hash: hash, Created: at(i % 2)}), x.PutToken(control.Token{Hash: hash, Created: at(i % 2)}))
			if err != nil {
				return err
			}
		}
		return errors.Join(x.PutJoin(control.Join{Hash: "C", Created: at(1), Uses: 9}), x.PutToken(control.Token{Hash: "C", Created: at(1), Note: "9"}))
	})
	view(t, s, func(x control.Tx) error {
		joins, err1 := x.Joins()
		tokens, err2 := x.Tokens()
		same(t, names(joins, func(j control.Join) string { return fmt.Sprint(j.Hash, j.Uses) }), "a0 b0 C9")
		same(t, names(tokens, func(k control.Token) string { return k.Hash + k.Note }), "a b C9")
		_, err3 := x.Token("c")
		if !errors.Is(err3, control.ErrNotFound) {
			t.Errorf("a hash in another letter case: %v", err3)
		}
		return errors.Join(err1, err2)
	})
}

func agentEvents(t *testing.T, s control.Store) {
	vm, again, other := control.Record{VM: Machine("s", "g", "vm")}, control.Record{VM: Machine("s", "g", "vm"), Epoch: 1}, control.Record{VM: Machine("s", "g", "other")}
	events := func(from, to int) (list []control.AgentEvent) {
		for i := from; i <= to; i++ {
			list = append(list, control.AgentEvent{Seq: uint64(i), Hash: fmt.Sprint("h", i), Line: []byte("line")})
		}
		return list
	}
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.AppendAgentEvents(vm, events(1, 3)), x.AppendAgentEvents(other, events(1, 1)), x.AppendAgentEvents(vm, nil))
	})
	update(t, s, func(x control.Tx) error { return x.AppendAgentEvents(vm, events(4, 1203)) })
	newest := func(record control.Record, want control.Head) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			r, head, err := x.NewestRecord(record.VM)
			same(t, r, record)
			same(t, head, want)
			return err
		})
	}
	newest(vm, control.Head{Seq: 1203, Hash: "h1203"})
	newest(other, control.Head{Seq: 1, Hash: "h1"})
	update(t, s, func(x control.Tx) error { return x.AppendAgentEvents(again, events(1, 2)) })
	newest(again, control.Head{Seq: 2, Hash: "h2"})
	view(t, s, func(x control.Tx) error {
		page, err1 := x.AgentEvents(vm, 2, 2)
		same(t, names(page, func(e control.AgentEvent) string { return e.Hash }), "h3 h4")
		rest, err2 := x.AgentEvents(vm, 1, 0)
		same(t, len(rest), 1202)
		return errors.Join(err1, err2)
	})
	// A line that is there already: nothing of the batch is written, whatever
	// becomes of the error.
	for _, swallow := range []bool{false, true} {
		err := s.Update(t.Context(), func(x control.Tx) error {
			err := x.AppendAgentEvents(vm, events(1203, 1204))
			if swallow {
				return nil
			}
			return err
		})
		if e := control.AsError(err); e == nil || e.Kind != control.Conflict {
			t.Errorf("a line twice: %v", err)
		}
	}
	view(t, s, func(x control.Tx) error {
		rest, err := x.AgentEvents(vm, 1202, 0)
		same(t, names(rest, func(e control.AgentEvent) string { return e.Hash }), "h1203")
		return err
	})
}

func activity(t *testing.T, s control.Store) {
	vm := Machine("S1", "G1", "vm")
	pol := control.PolicyID{Subscription: "s1", Group: "g1", Location: "l", Name: "p"}
	lines := []control.Activity{
		{Time: at(1), Event: "a", Actor: "ann", Scope: vm.Scope()},
		{Time: at(2), Event: "b", Actor: "bob", Scope: pol.Scope()},
		{Time: at(3), Event: "a", Actor: "bob", Scope: control.GroupScope("s1", "g1")},
		{Time: at(4), Event: "b", Actor: "ann", Scope: control.GroupScope("s1", "g10")},
		{Time: at(5), Event: "a", Actor: "", Scope: control.SubscriptionScope("s1")},
		{Time: at(6), Event: "a", Actor: "ann", Scope: control.SubscriptionScope("s10")},
		{Time: at(2), Event: "c", Actor: "ann", Scope: control.Everywhere},
	}
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.AppendActivity(lines[0]), x.AppendActivity(), x.AppendActivity(lines[1:]...))
	})
	check := func(want string, f control.ActivityFilter) {
		t.Helper()
		view(t, s, func(x control.Tx) error {
			all, err := x.Activity(f)
			if got := names(all, func(a control.Activity) string { return fmt.Sprint(a.Seq) }); got != want {
				t.Errorf("%+v: got %q, want %q", f, got, want)
			}
			return err
		})
	}
	check("1 2 3 4 5 6 7", control.ActivityFilter{})
	check("7 6 5 4 3 2 1", control.ActivityFilter{Newest: true})
	check("3 4", control.ActivityFilter{After: 2, Limit: 2})
	check("5 4", control.ActivityFilter{After: 6, Limit: 2, Newest: true})
	check("", control.ActivityFilter{After: ^uint64(0)})
	check("1 2 3 4 5 6 7", control.ActivityFilter{Scope: control.Everywhere})
	check("1 2 3 4 5", control.ActivityFilter{Scope: "/subscriptions/s1"})
	check("", control.ActivityFilter{Scope: "/subscriptions/s"})
	check("1 2 3", control.ActivityFilter{Scope: "/subscriptions/S1/resourceGroups/G1"})
	check("3 2 1", control.ActivityFilter{Scope: control.GroupScope("s1", "g1"), Newest: true})
	check("1", control.ActivityFilter{Scope: vm.Scope()})
	check("2", control.ActivityFilter{Scope: pol.Scope()})
	check("1 3 5 6", control.ActivityFilter{Event: "a"})
	check("1 4 6 7", control.ActivityFilter{Actor: "ann"})
	check("2 3 7", control.ActivityFilter{From: at(2), To: at(4)})
	check("4 5 6", control.ActivityFilter{From: at(4)})
	check("", control.ActivityFilter{From: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
	check("1 2 3 4 5 6 7", control.ActivityFilter{From: time.Date(1, 2, 3, 0, 0, 0, 0, time.UTC), To: time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC)})
	check("1", control.ActivityFilter{Scope: "/subscriptions/s1", Event: "a", Actor: "ann", From: at(1), To: at(2), Newest: true, After: 5, Limit: 3})
}

func rolesAndAssignments(t *testing.T, s control.Store) {
	update(t, s, func(x control.Tx) error {
		var errs []error
		for _, name := range []string{"b", "C", "a"} {
			errs = append(errs, x.PutRole(control.Role{Name: name, Actions: []string{"*"}}))
			for _, scope := range []control.Scope{"/", "/subscriptions/s"} {
				errs = append(errs, x.PutAssignment(control.Assignment{Principal: "p" + name, Role: "r", Scope: scope}))
			}
		}
		return errors.Join(append(errs, x.DeleteRole("A"), x.PutAssignment(control.Assignment{Principal: "pb", Role: "R", Scope: "/"}))...)
	})
	// More than one statement may have, and one of them again and again.
	many := append(slices.Repeat([]string{"pb"}, 1100), "pC", "nobody", "PA")
	for i := range 1100 {
		many = append(many, fmt.Sprintf("group:%d", i))
	}
	view(t, s, func(x control.Tx) error {
		name := func(a control.Assignment) string { return a.Principal + a.Role + string(a.Scope) }
		roles, err1 := x.Roles()
		same(t, names(roles, func(r control.Role) string { return r.Name }), "b C")
		all, err2 := x.Assignments()
		same(t, names(all, name), "pCr/ pCr/subscriptions/s par/ par/subscriptions/s pbR/ pbr/subscriptions/s")
		some, err3 := x.Assignments(many...)
		same(t, names(some, name), "pCr/ pCr/subscriptions/s pbR/ pbr/subscriptions/s")
		none, err4 := x.Assignments("PB")
		same(t, len(none), 0)
		return errors.Join(err1, err2, err3, err4)
	})
}

func answers(t *testing.T, s control.Store) {
	put := func(key string, when time.Time) {
		update(t, s, func(x control.Tx) error { return x.PutAnswer(control.Answer{Key: key, Time: when}) })
	}
	has := func(key string) bool {
		err := s.View(t.Context(), func(x control.Tx) error { _, err := x.Answer(key); return err })
		if err != nil && !errors.Is(err, control.ErrNotFound) {
			t.Fatal(err)
		}
		return err == nil
	}
	put("old", at(0))
	put("new", at(0).Add(24*time.Hour))
	if !has("old") || !has("new") {
		t.Error("an answer of a day ago is forgotten")
	}
	put("newer", at(1).Add(24*time.Hour))
	if has("old") || !has("new") || !has("newer") {
		t.Error("answers older than a day, and no others, are forgotten")
	}
}

func sessions(t *testing.T, s control.Store) {
	put := func(key string, began, ends time.Time) {
		update(t, s, func(x control.Tx) error {
			return x.PutSession(control.Session{Key: key, Sealed: []byte(key), Began: began, Ends: ends})
		})
	}
	check := func(want string) {
		t.Helper()
		var there []string
		for _, key := range []string{"A", "a", "b", "c"} {
			err := s.View(t.Context(), func(x control.Tx) error {
				kept, err := x.Session(key)
				if err == nil && string(kept.Sealed) != key {
					t.Errorf("of %s there is %s", key, kept.Sealed)
				}
				return err
			})
			if err == nil {
				there = append(there, key)
			} else if !errors.Is(err, control.ErrNotFound) {
				t.Fatal(err)
			}
		}
		same(t, strings.Join(there, " "), want)
	}
	put("a", at(0), at(10))
	check("a") // a key is as it is written
	put("A", at(1), at(20))
	put("b", at(9), at(30))
	check("A a b")
	put("c", at(10), at(40))
	check("A b c")
	put("b", at(11), at(12)) // again: it ends sooner
	update(t, s, func(x control.Tx) error { return x.DeleteSession("A") })
	check("b c")
	put("c", at(20), at(40))
	check("c")
}

// all the state there is in these tests, for what must leave none.
func state(t testing.TB, s control.Store) (all string) {
	t.Helper()
	view(t, s, func(x control.Tx) error {
		a, err1 := x.Activity(control.ActivityFilter{})
		d, err2 := x.DocumentsAfter(0, 0)
		v, err3 := x.VMs(control.VMFilter{})
		r, err4 := x.Requests(control.RequestFilter{})
		all = fmt.Sprint(len(a), len(d), len(v), len(r))
		return errors.Join(err1, err2, err3, err4)
	})
	return all
}

func rollback(t *testing.T, s control.Store) {
	write := func(x control.Tx) error {
		return errors.Join(x.AppendActivity(control.Activity{Event: "e"}), x.PutDocument(control.Document{VM: "v", Type: "t"}),
			x.PutVM(control.VM{ID: Machine("s", "g", "v")}), x.PutRequest(control.Request{ID: "r"}))
	}
	failure := errors.New("failure")
	if err := s.Update(t.Context(), func(x control.Tx) error { return errors.Join(write(x), failure) }); !errors.Is(err, failure) {
		t.Errorf("the error of f came back as %v", err)
	}
	same(t, state(t, s), "0 0 0 0")
	func() {
		defer func() {
			if r := recover(); r != "panic of f" {
				t.Errorf("recovered %v", r)
			}
		}()
		s.Update(t.Context(), func(x control.Tx) error {
			if err := write(x); err != nil {
				t.Error(err)
			}
			panic("panic of f")
		})
	}()
	same(t, state(t, s), "0 0 0 0")
	func() {
		defer func() { recover() }()
		s.View(t.Context(), func(control.Tx) error { panic("panic of f") })
	}()
	// What was rolled back left no gap and no lock.
	var kept control.Tx
	update(t, s, func(x control.Tx) error { kept = x; return write(x) })
	same(t, state(t, s), "1 1 1 1")
	view(t, s, func(x control.Tx) error {
		a, err := only(x.Activity(control.ActivityFilter{}))
		same(t, a.Seq, 1)
		return err
	})
	if err := kept.PutMeta("late", nil); err == nil {
		t.Error("a transaction that is over still writes")
	}
	if _, err := kept.VM(Machine("s", "g", "v")); err == nil || errors.Is(err, control.ErrNotFound) {
		t.Errorf("a transaction that is over still reads: %v", err)
	}
	// A value that is no text is refused, and takes the rest along, whatever
	// becomes of the error.
	err := s.Update(t.Context(), func(x control.Tx) error {
		if err := x.AppendActivity(control.Activity{Event: "e"}, control.Activity{Reason: "\xff"}); err == nil {
			t.Error("bytes that are no text were taken")
		}
		return nil
	})
	if e := control.AsError(err); e == nil || e.Kind != control.Invalid {
		t.Errorf("bytes that are no text: %v", err)
	}
	same(t, state(t, s), "1 1 1 1")
}

func viewOnly(t *testing.T, s control.Store) {
	for _, swallow := range []bool{false, true} {
		err := s.View(t.Context(), func(x control.Tx) error {
			if err := x.PutMeta("name", nil); err == nil || !swallow {
				return err
			}
			return nil
		})
		if err == nil || control.AsError(err) != nil { // it is the caller's mistake, and stays one
			t.Errorf("a View wrote: %v", err)
		}
	}
	failure := errors.New("failure")
	if err := s.View(t.Context(), func(control.Tx) error { return failure }); !errors.Is(err, failure) {
		t.Errorf("the error of f came back as %v", err)
	}
	same(t, state(t, s), "0 0 0 0")
}

// oneState commits while a View runs: it goes on seeing what it saw.
func oneState(t *testing.T, s control.Store) {
	write := func() {
		update(t, s, func(x control.Tx) error { return x.AppendActivity(control.Activity{}) })
	}
	write()
	view(t, s, func(x control.Tx) error {
		for range 3 {
			all, err := x.Activity(control.ActivityFilter{})
			if err != nil {
				return err
			}
			same(t, len(all), 1)
			write()
		}
		return nil
	})
}

// oneAtATime has many read a number and write it back with one more.
func oneAtATime(t *testing.T, s control.Store) {
	const writers, each = 16, 10
	var wg sync.WaitGroup
	var running atomic.Int32
	for range writers {
		wg.Go(func() {
			for range each {
				err := s.Update(t.Context(), func(x control.Tx) error {
					if running.Add(1) != 1 {
						t.Error("two Updates run at once")
					}
					defer running.Add(-1)
					b, err := x.Meta("n")
					if err != nil && !errors.Is(err, control.ErrNotFound) {
						return err
					}
					return x.PutMeta("n", append(b, '+'))
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	view(t, s, func(x control.Tx) error {
		b, err := x.Meta("n")
		same(t, len(b), writers*each)
		return err
	})
}

// seqInOrder follows the log while many write: whoever has read up to a Seq
// never finds an older line later.
func seqInOrder(t *testing.T, s control.Store) {
	const writers, each = 8, 12
	var wg sync.WaitGroup
	done := make(chan struct{})
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				err := s.Update(t.Context(), func(x control.Tx) error {
					err := errors.Join(x.AppendActivity(control.Activity{Event: "e"}, control.Activity{Event: "e"}),
						x.PutDocument(control.Document{VM: fmt.Sprint("vm", w, "-", i), Type: "t"}))
					if i%3 == 0 {
						err = errors.Join(err, errBack)
					}
					return err
				})
				if err != nil && !errors.Is(err, errBack) {
					t.Error(err)
				}
			}
		})
	}
	go func() { wg.Wait(); close(done) }()
	var lines, docs []uint64
	for over := false; !over; {
		select {
		case <-done:
			over = true
		default:
		}
		view(t, s, func(x control.Tx) error {
			a, err1 := x.Activity(control.ActivityFilter{After: last(lines)})
			d, err2 := x.DocumentsAfter(last(docs), 0)
			for _, a := range a {
				lines = append(lines, a.Seq)
			}
			for _, d := range d {
				docs = append(docs, d.Seq)
			}
			return errors.Join(err1, err2)
		})
	}
	kept := writers * each * 2 / 3
	same(t, len(lines), 2*kept)
	same(t, len(docs), kept)
	for i, seq := range lines {
		if seq != uint64(i)+1 {
			t.Fatalf("line %d has Seq %d", i, seq)
		}
	}
	if !slices.IsSorted(docs) {
		t.Errorf("documents came in the order %v", docs)
	}
}

// errBack is for what is to be rolled back.
var errBack = errors.New("back")

func last(seqs []uint64) uint64 {
	if len(seqs) == 0 {
		return 0
	}
	return seqs[len(seqs)-1]
}

func hostileStrings(t *testing.T, s control.Store) {
	kept := []string{
		"", " ", "'", `"`, "''", "`", "%", "_", `\`, `\\`, "?", "$1", ":name", "@p", "--", "/*", ";",
		"'; DROP TABLE activity; --", `" OR 1=1 --`, "1) UNION SELECT doc FROM token --", "NULL", "{}", `{"a":1}`, "0x00", "E'\\000'",
		"line\nbreak\r\ttab", "\u2028\u2029", "😀👩‍👩‍👧", "ﷺ", "e\u0301 é", "\u202eright to left", "\ufffd", "<script>&amp;", "\x1b[31m", "\x7f",
		strings.Repeat("x", 64<<10), strings.Repeat("ü", 32<<10),
	}
	update(t, s, func(x control.Tx) error {
		for i, v := range kept {
			err := errors.Join(
				x.AppendActivity(control.Activity{Event: short(v), Actor: short(v), Reason: v, Scope: control.Scope(short(v))}),
				x.PutMeta("m"+short(v), []byte(v)),
				x.PutToken(control.Token{Hash: fmt.Sprint(i, short(v)), Principal: v, Note: v}),
				x.PutAssignment(control.Assignment{Principal: "p" + short(v), Role: v[:min(len(v), 100)], Scope: "/"}),
				x.PutRequest(control.Request{ID: fmt.Sprintf("%03d", i), Principal: short(v), Justification: v}),
			)
			if err != nil {
				return err
			}
		}
		return nil
	})
	view(t, s, func(x control.Tx) error {
		for i, v := range kept {
			m, err1 := x.Meta("m" + short(v))
			same(t, string(m), v)
			k, err2 := x.Token(fmt.Sprint(i, short(v)))
			same(t, k, control.Token{Hash: fmt.Sprint(i, short(v)), Principal: v, Note: v})
			if v != "" {
				a, err := only(x.Activity(control.ActivityFilter{Actor: short(v), Event: short(v)}))
				same(t, a, control.Activity{Seq: uint64(i) + 1, Event: short(v), Actor: short(v), Reason: v, Scope: control.Scope(short(v))})
				r, err3 := only(x.Requests(control.RequestFilter{Principal: short(v)}))
				same(t, r.Justification, v)
				err1 = errors.Join(err1, err, err3)
			}
			_, err4 := only(x.Assignments("p" + short(v)))
			// As filters they select nothing, and break nothing.
			n := short(v)
			_, err5 := x.VMs(control.VMFilter{Search: n, Scope: control.Scope(n), After: n})
			_, err6 := x.Requests(control.RequestFilter{Scope: control.Scope(n), Status: control.Status(n), After: n})
			_, err7 := x.Policies(control.PolicyFilter{Subscription: n, Group: n, Location: n}, n, 1)
			if err := errors.Join(err1, err2, err4, err5, err6, err7); err != nil {
				return fmt.Errorf("%.40q: %w", v, err)
			}
		}
		return nil
	})
	for _, v := range []string{"\x00", "a\x00b", "\xff", "\xc0\x80", "\xed\xa0\x80"} {
		for name, f := range map[string]func(control.Tx) error{
			"AppendActivity": func(x control.Tx) error { return x.AppendActivity(control.Activity{Actor: v}) },
			"PutMeta":        func(x control.Tx) error { return x.PutMeta(v, nil) },
			"Token":          func(x control.Tx) error { _, err := x.Token(v); return err },
			"Join":           func(x control.Tx) error { _, err := x.Join(v); return err },
			"Activity":       func(x control.Tx) error { _, err := x.Activity(control.ActivityFilter{Actor: v}); return err },
		} {
			err := s.Update(t.Context(), f)
			if e := control.AsError(err); e == nil || e.Kind != control.Invalid {
				t.Errorf("%s with %q: %v", name, v, err)
			}
		}
	}
	// In a document a NUL is text like any other.
	update(t, s, func(x control.Tx) error { return x.PutRequest(control.Request{ID: "nul", Justification: "a\x00b"}) })
	view(t, s, func(x control.Tx) error {
		r, err := x.Request("nul")
		same(t, r.Justification, "a\x00b")
		return err
	})
}

// longNames puts the longest names there may be where an index has three of
// them, in letters that do not compress, and longer ones.
func longNames(t *testing.T, s control.Store) {
	name := func(seed byte, n int) string {
		b := make([]byte, n)
		random := rand.NewChaCha8([32]byte{seed})
		for i := range b {
			b[i] = '!' + byte(random.Uint64()%94)
		}
		return string(b)
	}
	longest := control.Assignment{Principal: name(1, 800), Role: name(2, 800), Scope: control.Scope(name(3, 800))}
	update(t, s, func(x control.Tx) error {
		return errors.Join(x.PutAssignment(longest), x.AppendActivity(control.Activity{Actor: longest.Principal, Scope: longest.Scope}))
	})
	view(t, s, func(x control.Tx) error {
		a, err := only(x.Assignments(longest.Principal))
		same(t, a, longest)
		return err
	})
	for _, f := range []func(control.Tx) error{
		func(x control.Tx) error { return x.AppendActivity(control.Activity{Actor: name(1, 801)}) },
		func(x control.Tx) error { return x.PutMeta(name(1, 801), nil) },
		func(x control.Tx) error { _, err := x.Token(name(1, 64<<10)); return err },
		func(x control.Tx) error { _, err := x.VMs(control.VMFilter{Search: name(1, 64<<10)}); return err },
	} {
		err := s.Update(t.Context(), f)
		if e := control.AsError(err); e == nil || e.Kind != control.Invalid || len(e.Message) > 600 {
			t.Errorf("a name that is too long: %v", err)
		}
	}
}

// readsBeside has more Updates wait than there are connections: Views go on.
func readsBeside(t *testing.T, s control.Store) {
	var wg sync.WaitGroup
	held, release := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		update(t, s, func(control.Tx) error { close(held); <-release; return nil })
	})
	<-held
	for range 40 {
		wg.Go(func() { update(t, s, func(x control.Tx) error { return nil }) })
	}
	time.Sleep(50 * time.Millisecond)
	for range 20 {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if err := s.View(ctx, func(x control.Tx) error { _, err := x.Tokens(); return err }); err != nil {
			t.Error(err)
		}
		if err := s.Ping(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
	close(release)
	wg.Wait()
}

// together has Updates of all kinds wait behind one, which is more than are
// committed at once: each gets its own outcome, and what failed leaves nothing.
func together(t *testing.T, s control.Store) {
	var wg sync.WaitGroup
	held, release := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		update(t, s, func(control.Tx) error { close(held); <-release; return nil })
	})
	<-held
	const each = 25
	queued := make(chan struct{}, 6*each)
	begin := func(f func()) {
		wg.Go(func() { queued <- struct{}{}; f() })
	}
	name := func(kind string, n int) string { return fmt.Sprintf("%s %d", kind, n) }
	write := func(x control.Tx, what string) error {
		return errors.Join(x.PutMeta(what, []byte(what)), x.AppendActivity(control.Activity{Event: what}))
	}
	gone, leave := context.WithCancel(t.Context())
	for n := range each {
		begin(func() { update(t, s, func(x control.Tx) error { return write(x, name("kept", n)) }) })
		begin(func() {
			err := s.Update(t.Context(), func(x control.Tx) error { return errors.Join(write(x, name("failed", n)), errBack) })
			if !errors.Is(err, errBack) {
				t.Errorf("the error of f came back as %v", err)
			}
		})
		begin(func() { // a statement that the database refuses, whatever f makes of it
			err := s.Update(t.Context(), func(x control.Tx) error {
				err := write(x, name("refused", n))
				x.AppendAgentEvents(control.Record{VM: Machine("s", "g", "v")}, []control.AgentEvent{{Seq: 1}, {Seq: 1}})
				return err
			})
			if err == nil {
				t.Error("what the database refused came back as done")
			}
		})
		begin(func() {
			defer func() {
				if r := recover(); r != "panic of f" {
					t.Errorf("recovered %v", r)
				}
			}()
			s.Update(t.Context(), func(x control.Tx) error {
				if err := write(x, name("panicked", n)); err != nil {
					t.Error(err)
				}
				panic("panic of f")
			})
		})
		begin(func() {
			ctx, cancel := context.WithCancel(t.Context())
			err := s.Update(ctx, func(x control.Tx) error {
				err := write(x, name("ended within", n))
				cancel()
				return err
			})
			if !errors.Is(err, context.Canceled) || control.AsError(err) != nil {
				t.Errorf("a call that ended within: %v", err)
			}
		})
		begin(func() {
			err := s.Update(gone, func(x control.Tx) error { return write(x, name("gone", n)) })
			if !errors.Is(err, context.Canceled) {
				t.Errorf("a call that ended while it waited: %v", err)
			}
		})
	}
	for range 6 * each {
		<-queued
	}
	leave()
	time.Sleep(50 * time.Millisecond) // most of them wait by now; any of them may
	close(release)
	wg.Wait()
	view(t, s, func(x control.Tx) error {
		names, err := x.MetaNames()
		if err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(n string) bool { return !strings.HasPrefix(n, "kept ") && !strings.Contains(n, " ") })
		same(t, len(names), each)
		lines, err := x.Activity(control.ActivityFilter{})
		same(t, len(lines), each)
		for i, l := range lines {
			same(t, l.Seq, uint64(i+1))
			if !strings.HasPrefix(l.Event, "kept ") || !slices.Contains(names, l.Event) {
				t.Errorf("%q is there", l.Event)
			}
		}
		return err
	})
}

// short keeps a string apart from others and inside what an index takes.
func short(s string) string {
	if len(s) > 800 {
		return fmt.Sprint(len(s), s[:100])
	}
	return s
}

func changed(t *testing.T, s control.Store) {
	ctx, cancel := context.WithCancel(t.Context())
	c, other := s.Changed(ctx), s.Changed(t.Context())
	silence(t, c)
	for name, f := range map[string]func(control.Tx) error{
		"activity": func(x control.Tx) error { return x.AppendActivity(control.Activity{}) },
		"document": func(x control.Tx) error { return x.PutDocument(control.Document{VM: "v", Type: "t"}) },
	} {
		update(t, s, f)
		woken(t, name, c)
		woken(t, name, other)
		update(t, s, f) // many, and nobody reads
		update(t, s, f)
		woken(t, name, c)
		woken(t, name, other)
		silence(t, c)
		if err := s.Update(t.Context(), func(x control.Tx) error { return errors.Join(f(x), errBack) }); !errors.Is(err, errBack) {
			t.Error(err)
		}
		silence(t, c)
	}
	update(t, s, func(x control.Tx) error { return x.PutMeta("quiet", nil) })
	silence(t, c)
	cancel()
	for range c { // it ends with its context
	}
	update(t, s, func(x control.Tx) error { return x.AppendActivity(control.Activity{}) })
	woken(t, "after another is gone", other)
}

func woken(t testing.TB, by string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s: nobody was told", by)
	}
}

// silence fails where a value waits that nothing was done for. Values may come
// for nothing, so it lets those of the start and of an echo pass.
func silence(t testing.TB, c <-chan struct{}) {
	t.Helper()
	for n := 0; ; n++ {
		select {
		case <-c:
			if n > 2 {
				t.Fatal("told again and again of nothing")
			}
		case <-time.After(50 * time.Millisecond):
			return
		}
	}
}

func endOfCall(t *testing.T, s control.Store) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for name, call := range map[string]func(context.Context, func(control.Tx) error) error{"View": s.View, "Update": s.Update} {
		err := call(ended, func(control.Tx) error { t.Errorf("%s ran after its end", name); return nil })
		if !errors.Is(err, context.Canceled) || control.AsError(err) != nil { // nobody is to try again
			t.Errorf("%s: %v", name, err)
		}
		// A call that ends within leaves nothing, and no lock.
		ctx, cancel := context.WithCancel(t.Context())
		err = call(ctx, func(x control.Tx) error {
			if name == "Update" {
				if err := x.PutVM(control.VM{ID: Machine("s", "g", "v")}); err != nil {
					return err
				}
			}
			cancel()
			return nil
		})
		if !errors.Is(err, context.Canceled) || control.AsError(err) != nil { // nobody is to try again
			t.Errorf("%s: %v", name, err)
		}
	}
	// Who waits for its turn ends with its call.
	update(t, s, func(control.Tx) error {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := s.Update(ctx, func(control.Tx) error { t.Error("two Updates run at once"); return nil })
		if e := control.AsError(err); e == nil || e.Kind != control.Unavailable {
			t.Errorf("an Update that waits: %v", err)
		}
		return nil
	})
	same(t, state(t, s), "0 0 0 0")
	if err := s.Ping(t.Context()); err != nil {
		t.Error(err)
	}
}

// closes closes a store while an Update runs: it is finished first.
func closes(t *testing.T, s control.Store) {
	began, release, updated, closed := make(chan struct{}), make(chan struct{}), make(chan error, 1), make(chan error, 1)
	go func() {
		updated <- s.Update(t.Context(), func(x control.Tx) error {
			close(began)
			<-release
			return x.PutMeta("name", nil)
		})
	}()
	<-began
	go func() { closed <- s.Close() }()
	select {
	case err := <-closed:
		t.Errorf("closed while an Update runs: %v", err)
		closed <- err
	case <-time.After(50 * time.Millisecond):
	}
	close(release)
	if err := errors.Join(<-updated, <-closed, s.Close()); err != nil {
		t.Error(err)
	}
	nothing := func(control.Tx) error { t.Error("a closed store works"); return nil }
	for _, err := range []error{s.Update(t.Context(), nothing), s.View(t.Context(), nothing), s.Ping(t.Context())} {
		if e := control.AsError(err); e == nil || e.Kind != control.Unavailable {
			t.Errorf("a closed store: %v", err)
		}
	}
}
