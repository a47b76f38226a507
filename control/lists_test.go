package control_test

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// fleet is what a random store has in it, as it was written.
type fleet struct {
	*control.Engine
	r        *rand.Rand
	vms      []control.VMID
	policies []control.PolicyID
	events   []string
	people   []string
	tx       control.Tx // everything, unfiltered
}

// Lists go by indexes, counts and orders that are kept for them. On random
// stores they say the same as the plain rule on all there is.
func TestLists(t *testing.T) {
	for name, open := range map[string]func(testing.TB) control.Store{"SQLite": storetest.SQLite, "PostgreSQL": storetest.PostgreSQL} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				f := &fleet{r: rand.New(rand.NewPCG(seed, 7)), events: []string{"a.one", "a.two", "b"}, people: []string{"ann", "bob", ""}}
				store := open(t)
				f.Engine = control.New(control.Config{Store: store, Now: func() time.Time { return deskTime }, Log: hclog.NewNullLogger()})
				for range 4 {
					if err := store.Update(t.Context(), f.grow); err != nil {
						t.Fatal(err)
					}
					err := store.View(t.Context(), func(tx control.Tx) error {
						f.tx = tx
						for range 12 {
							c := f.caller()
							f.compareVMs(t, c)
							f.comparePolicies(t, c)
							f.compareRequests(t, c)
							f.compareActivity(t, c)
						}
						return nil
					})
					if err != nil {
						t.Fatal(err)
					}
					if t.Failed() {
						t.Fatalf("seed %d", seed)
					}
				}
			}
		})
	}
}

func pick[T any](r *rand.Rand, of []T) T { return of[r.IntN(len(of))] }

// grow writes at random.
func (f *fleet) grow(tx control.Tx) error {
	if f.vms == nil {
		for _, sub := range []string{"s1", "s10", "S1-x"} {
			for _, group := range []string{"g", "G-x", "gx", "providers"} {
				for _, name := range []string{"web", "web-1", "Web.2", "db"} {
					f.vms = append(f.vms, control.VMID{Subscription: sub, Group: group, Kind: pick(f.r, []string{"Microsoft.Compute/virtualMachines", "Microsoft.Compute/virtualMachines", "Microsoft.ClassicCompute/virtualMachines"}), Name: name})
				}
				for _, location := range []string{"east", "west"} {
					f.policies = append(f.policies, control.PolicyID{Subscription: sub, Group: group, Location: location, Name: "default"})
				}
			}
		}
	}
	for range 12 {
		vm := control.VM{ID: pick(f.r, f.vms)}
		if f.r.IntN(4) == 0 {
			vm.Unsupported = "too old"
		}
		if err := tx.PutVM(vm); err != nil {
			return err
		}
	}
	for range 5 {
		p := control.Policy{ID: pick(f.r, f.policies), Kind: "Basic"}
		for _, i := range f.r.Perm(len(f.vms))[:f.r.IntN(6)] {
			p.VMs = append(p.VMs, control.PolicyVM{ID: f.vms[i], Ports: []control.PortRule{{Number: 22}}})
		}
		if err := tx.PutPolicy(p); err != nil {
			return err
		}
	}
	for range 2 {
		id := pick(f.r, f.vms)
		scope := pick(f.r, []control.Scope{control.SubscriptionScope(id.Subscription), control.GroupScope(id.Subscription, id.Group), control.GroupScope(id.Subscription, id.Group)})
		if err := tx.PutScopeSetting(control.ScopeSetting{Scope: scope, Enabled: f.r.IntN(3) == 0, By: "admin", Time: deskTime}); err != nil {
			return err
		}
	}
	for range 25 {
		at := deskTime.Add(-time.Duration(f.r.IntN(10*24)) * time.Hour)
		r := control.Request{ID: fmt.Sprintf("%010d", f.r.IntN(1000)), Policy: pick(f.r, f.policies), Start: at, Principal: "local:" + pick(f.r, []string{"ann", "bob"})}
		for _, i := range f.r.Perm(len(f.vms))[:1+f.r.IntN(3)] {
			p := control.RequestPort{Number: 22, Until: at.Add(time.Duration(f.r.IntN(12*24)) * time.Hour), End: at, Status: pick(f.r, []control.Status{control.Revoked, control.Revoked, control.Initiated, control.Initiating})}
			r.VMs = append(r.VMs, control.RequestVM{ID: f.vms[i], Ports: []control.RequestPort{p}})
		}
		if err := tx.PutRequest(r); err != nil {
			return err
		}
	}
	var lines []control.Activity
	for range 60 {
		id := pick(f.r, f.vms)
		scope := pick(f.r, []control.Scope{id.Scope(), id.Scope(), control.GroupScope(id.Subscription, id.Group), control.SubscriptionScope(id.Subscription), control.Everywhere, pick(f.r, f.policies).Scope()})
		// Agents tell of what was long ago.
		lines = append(lines, control.Activity{Time: deskTime.Add(-time.Duration(f.r.IntN(3*24*60)) * time.Minute), Scope: scope, Event: pick(f.r, f.events), Actor: pick(f.r, f.people)})
	}
	return tx.AppendActivity(lines...)
}

// scope is one that something may be in.
func (f *fleet) scope() control.Scope {
	id := pick(f.r, f.vms)
	return pick(f.r, []control.Scope{control.Everywhere, control.SubscriptionScope(id.Subscription), control.GroupScope(id.Subscription, id.Group), control.GroupScope(id.Subscription, id.Group), id.Scope()})
}

// caller is somebody who may look at a part, or at all.
func (f *fleet) caller() control.Caller {
	var rights []string
	for range f.r.IntN(5) {
		rights = append(rights, pick(f.r, []string{"SecurityReader", "JITRequester", "Reader"}), string(f.scope()))
	}
	if f.r.IntN(6) == 0 {
		rights = append(rights, "Owner", "/")
	}
	c := caller("local:"+pick(f.r, []string{"ann", "bob", "eve"}), rights...)
	if f.r.IntN(5) == 0 {
		c.Limits = control.ResolveRights([]control.Assignment{{Role: "Reader", Scope: f.scope()}}, nil)
	}
	return c
}

// pages puts the pages of a list together. What is refused is an empty list.
func pages[T any](t *testing.T, limit int, page func(after string) ([]T, string, error), key func(T) string) (keys []string) {
	t.Helper()
	for after := ""; ; {
		some, next, err := page(after)
		if e := control.AsError(err); err != nil && (e == nil || e.Kind != control.Forbidden) {
			t.Fatal(err)
		}
		if limit > 0 && len(some) > limit || next != "" && len(some) == 0 {
			t.Errorf("a page of %d has %d, and next is %q", limit, len(some), next)
		}
		for _, v := range some {
			keys = append(keys, key(v))
		}
		if after = next; after == "" {
			return keys
		}
	}
}

func agree(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n%q, not\n%q", what, got, want)
	}
}

func (f *fleet) compareVMs(t *testing.T, c control.Caller) {
	vms, err1 := f.tx.VMs(control.VMFilter{})
	settings, err2 := f.tx.ScopeSettings()
	policies, err3 := f.tx.Policies(control.PolicyFilter{}, "", 0)
	if err := cmp.Or(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	tab := func(vm control.VM) control.Tab {
		narrowest := control.ScopeSetting{Enabled: true}
		for _, s := range settings {
			if s.Scope.Covers(vm.ID.Scope()) && len(s.Scope) > len(narrowest.Scope) {
				narrowest = s
			}
		}
		named := slices.ContainsFunc(policies, func(p control.Policy) bool {
			return slices.ContainsFunc(p.VMs, func(v control.PolicyVM) bool { return v.ID.Key() == vm.ID.Key() })
		})
		switch {
		case !narrowest.Enabled:
			return control.Unsupported
		case named:
			return control.Configured
		case vm.Unsupported != "" || vm.ID.Classic():
			return control.Unsupported
		}
		return control.NotConfigured
	}
	v := control.VMFilter{Scope: f.scope(), Tab: pick(f.r, []control.Tab{"", control.Configured, control.NotConfigured, control.Unsupported}), Search: pick(f.r, []string{"", "", "WEB", "-x/", "web.2", "1"}), Limit: f.r.IntN(5)}
	var want []string
	counts := map[control.Tab]int{control.Configured: 0, control.NotConfigured: 0, control.Unsupported: 0}
	for _, vm := range vms {
		if !v.Scope.Covers(vm.ID.Scope()) || !c.May(control.ActionVMRead, vm.ID.Scope()) {
			continue
		}
		counts[tab(vm)]++
		if (v.Tab == "" || v.Tab == tab(vm)) && strings.Contains(vm.ID.Key(), strings.ToLower(v.Search)) {
			want = append(want, vm.ID.String()+" "+string(tab(vm)))
		}
	}
	got := pages(t, v.Limit, func(after string) ([]control.VMView, string, error) {
		v.After = after
		return f.ListVMs(t.Context(), c, v)
	}, func(v control.VMView) string { return v.ID.String() + " " + string(v.Tab) })
	agree(t, fmt.Sprintf("machines %+v for %+v", v, c.Rights), got, want)
	counted, err := f.CountVMs(t.Context(), c, v.Scope)
	if control.AsError(err) == nil && (err != nil || !maps.Equal(counted, counts)) {
		t.Errorf("counts of %s for %+v: %v, %v; not %v", v.Scope, c.Rights, counted, err, counts)
	}
}

func (f *fleet) comparePolicies(t *testing.T, c control.Caller) {
	policies, err := f.tx.Policies(control.PolicyFilter{}, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	id := pick(f.r, f.policies)
	filter := pick(f.r, []control.PolicyFilter{{}, {Subscription: id.Subscription}, {Subscription: id.Subscription, Location: "West"}, {Subscription: id.Subscription, Group: id.Group}, {Subscription: id.Subscription, Group: id.Group, Location: "east"}, {Group: id.Group}})
	matches := func(asked, is string) bool { return asked == "" || strings.EqualFold(asked, is) }
	var want []string
	for _, p := range policies {
		if !matches(filter.Subscription, p.ID.Subscription) || !matches(filter.Group, p.ID.Group) || !matches(filter.Location, p.ID.Location) {
			continue
		}
		all := c.May(control.ActionRead, control.GroupScope(p.ID.Subscription, p.ID.Group))
		text := p.ID.Key()
		n := 0
		for _, vm := range p.VMs {
			if all || c.May(control.ActionRead, vm.ID.Scope()) {
				n++
				text += " " + vm.ID.Key()
			}
		}
		if all || n > 0 {
			want = append(want, text)
		}
	}
	limit := f.r.IntN(4)
	got := pages(t, limit, func(after string) ([]control.PolicyView, string, error) {
		return f.ListPolicies(t.Context(), c, filter, after, limit)
	}, func(p control.PolicyView) string {
		text := p.ID.Key()
		for _, vm := range p.VMs {
			text += " " + vm.ID.Key()
		}
		return text
	})
	agree(t, fmt.Sprintf("policies %+v for %+v", filter, c.Rights), got, want)
}

func (f *fleet) compareRequests(t *testing.T, c control.Caller) {
	requests, err := f.tx.Requests(control.RequestFilter{})
	if err != nil {
		t.Fatal(err)
	}
	q := control.RequestFilter{Newest: f.r.IntN(2) == 0, Open: f.r.IntN(4) == 0, Limit: f.r.IntN(6)}
	if f.r.IntN(2) == 0 {
		q.Scope = f.scope()
	}
	if f.r.IntN(5) == 0 {
		q.VM = &f.vms[f.r.IntN(len(f.vms))]
	}
	if f.r.IntN(5) == 0 {
		q.Policy = &f.policies[f.r.IntN(len(f.policies))]
	}
	if f.r.IntN(5) == 0 {
		q.Principal = "local:ann"
	}
	if f.r.IntN(5) == 0 {
		q.Status = control.Initiated
	}
	if f.r.IntN(5) == 0 {
		q.Since = deskTime.Add(-5 * 24 * time.Hour)
	}
	open := func(p control.RequestPort) bool { return p.Status != control.Revoked && deskTime.Before(p.Until) }
	var want []string
	for _, r := range requests {
		any := func(of func(control.RequestVM) bool) bool { return slices.ContainsFunc(r.VMs, of) }
		switch {
		case q.Open && !any(func(v control.RequestVM) bool { return slices.ContainsFunc(v.Ports, open) }),
			q.Scope != "" && !any(func(v control.RequestVM) bool { return q.Scope.Covers(v.ID.Scope()) }),
			q.VM != nil && !any(func(v control.RequestVM) bool { return v.ID.Key() == q.VM.Key() }),
			q.Policy != nil && r.Policy.Key() != q.Policy.Key(),
			q.Principal != "" && r.Principal != q.Principal,
			q.Status != "" && !any(func(v control.RequestVM) bool { return v.Ports[0].Status == q.Status }),
			!q.Since.IsZero() && r.Start.Before(q.Since):
			continue
		}
		all := r.Principal == c.ID || c.May(control.ActionRead, control.GroupScope(r.Policy.Subscription, r.Policy.Group))
		text := r.ID
		for _, vm := range r.VMs {
			if all || c.May(control.ActionRead, vm.ID.Scope()) {
				text += " " + vm.ID.Key()
			}
		}
		if text != r.ID {
			want = append(want, text)
		}
	}
	if q.Newest {
		slices.Reverse(want)
	}
	got := pages(t, q.Limit, func(after string) ([]control.Request, string, error) {
		q.After = after
		return f.ListRequests(t.Context(), c, q)
	}, func(r control.Request) string {
		text := r.ID
		for _, vm := range r.VMs {
			text += " " + vm.ID.Key()
		}
		return text
	})
	agree(t, fmt.Sprintf("requests %+v for %s, %+v", q, c.ID, c.Rights), got, want)
}

func (f *fleet) compareActivity(t *testing.T, c control.Caller) {
	lines, err := f.tx.Activity(control.ActivityFilter{})
	if err != nil {
		t.Fatal(err)
	}
	q := control.ActivityFilter{Scope: f.scope(), Newest: f.r.IntN(2) == 0, Limit: f.r.IntN(12)}
	if f.r.IntN(2) == 0 {
		q.Event = pick(f.r, append(f.events, "never"))
	}
	if f.r.IntN(3) == 0 {
		q.Actor = pick(f.r, f.people)
	}
	if f.r.IntN(2) == 0 {
		q.From = deskTime.Add(-time.Duration(f.r.IntN(3*24*60)) * time.Minute)
	}
	if f.r.IntN(2) == 0 {
		q.To = deskTime.Add(-time.Duration(f.r.IntN(3*24*60)) * time.Minute)
	}
	var want []string
	for _, l := range lines {
		if q.Scope.Covers(l.Scope) && c.May(control.ActionActivity, l.Scope) && (q.Event == "" || q.Event == l.Event) && (q.Actor == "" || q.Actor == l.Actor) &&
			!l.Time.Before(q.From) && (q.To.IsZero() || l.Time.Before(q.To)) {
			want = append(want, fmt.Sprint(l.Seq))
		}
	}
	if q.Newest {
		slices.Reverse(want)
	}
	got := pages(t, q.Limit, func(after string) ([]control.Activity, string, error) {
		fmt.Sscan(after, &q.After) // nothing at first
		page, next, err := f.ListActivity(t.Context(), c, q)
		if next == 0 {
			return page, "", err
		}
		return page, fmt.Sprint(next), err
	}, func(l control.Activity) string { return fmt.Sprint(l.Seq) })
	agree(t, fmt.Sprintf("activity %+v for %+v", q, c.Rights), got, want)
}

// A download reads page after page. No line of those that were there is lost or
// comes twice while others are written, late ones among them.
func TestDownloadWhileWriting(t *testing.T) {
	for name, open := range map[string]func(testing.TB) control.Store{"SQLite": storetest.SQLite, "PostgreSQL": storetest.PostgreSQL} {
		t.Run(name, func(t *testing.T) {
			store := open(t)
			e := control.New(control.Config{Store: store, Now: func() time.Time { return deskTime }, Log: hclog.NewNullLogger()})
			day := deskTime.Truncate(24 * time.Hour)
			write := func(n int) {
				lines := make([]control.Activity, n)
				for i := range lines {
					lines[i] = control.Activity{Time: day.Add(time.Duration(i*7%24) * time.Hour), Event: "e", Scope: "/subscriptions/s"}
				}
				if err := store.Update(t.Context(), func(tx control.Tx) error { return tx.AppendActivity(lines...) }); err != nil {
					t.Fatal(err)
				}
			}
			const before, limit = 300, 20
			write(before)
			owner := caller("local:admin", "Owner", "/")
			for _, newest := range []bool{true, false} {
				f := control.ActivityFilter{From: day, To: day.Add(24 * time.Hour), Newest: newest, Limit: limit}
				last, _, err := e.ListActivity(t.Context(), owner, control.ActivityFilter{Newest: true, Limit: 1})
				if err != nil {
					t.Fatal(err)
				}
				seen := map[uint64]int{}
				for page := 0; ; page++ {
					lines, next, err := e.ListActivity(t.Context(), owner, f)
					if err != nil {
						t.Fatal(err)
					}
					for _, l := range lines {
						seen[l.Seq]++
					}
					if next == 0 {
						break
					}
					f.After = next
					write(limit / 4)
				}
				for n := uint64(1); n <= last[0].Seq; n++ {
					if seen[n] != 1 {
						t.Errorf("newest first %t: line %d came %d times", newest, n, seen[n])
					}
				}
			}
		})
	}
}
