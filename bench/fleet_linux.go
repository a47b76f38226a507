package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jitgate/jitgate/control"
)

// A fleet is what a store is filled with to be listed: the same one for the
// same size, but for its times.
type fleet struct {
	machines, lines int
	now             time.Time
}

const (
	fleetSubscriptions = 10
	fleetGroup         = 100 // machines of a resource group
	fleetPeople        = 300
	fleetSpan          = 90 * 24 * time.Hour
	linesPerRequest    = 20
	fleetStep          = 5000 // written in one transaction
	fleetLocation      = "westeurope"
)

// The people who list it.
const (
	narrowPerson = "local:narrow" // may look at three resource groups
	busyPerson   = "person-007@example.com"
)

// What the names of machines begin with, by number.
var fleetNames = []string{"web", "db", "queue", "cache", "build", "mail", "edge", "batch"}

func (f fleet) groups() int { return (f.machines + fleetGroup - 1) / fleetGroup }

// place is where a resource group is: the first subscription has four in ten.
func (f fleet) place(group int) (subscription, name string) {
	n := 0
	if group%10 >= 4 {
		n = 1 + group%(fleetSubscriptions-1)
	}
	return fmt.Sprintf("5ab0e3f2-0000-4000-8000-%012d", n), fmt.Sprintf("team-%04d", group)
}

// machine is number i.
func (f fleet) machine(i int) control.VMID {
	subscription, group := f.place(i / fleetGroup)
	kind := "Microsoft.Compute/virtualMachines"
	if i%200 == 199 {
		kind = "Microsoft.ClassicCompute/virtualMachines"
	}
	return control.VMID{Subscription: subscription, Group: group, Kind: kind, Name: fmt.Sprintf("%s-%06d", fleetNames[i%len(fleetNames)], i)}
}

// policy is that of a group; of ten groups one has none.
func (f fleet) policy(group int) (control.PolicyID, bool) {
	subscription, name := f.place(group)
	return control.PolicyID{Subscription: subscription, Group: name, Location: fleetLocation, Name: "default"}, group%10 != 9
}

// narrow are the groups that narrowPerson may look at.
func (f fleet) narrow() []int {
	n := f.groups()
	return []int{n / 7, n / 2, n - 1 - n/9}
}

func (f fleet) person(i int) string { return fmt.Sprintf("person-%03d@example.com", i%fleetPeople) }

// there reports whether a store was filled before, and if so takes the fleet's
// time from it.
func (f *fleet) there(ctx context.Context, s control.Store) (there bool, err error) {
	err = s.View(ctx, func(tx control.Tx) error {
		newest, err := tx.Request(requestID(f.lines/linesPerRequest - 1))
		if errors.Is(err, control.ErrNotFound) {
			return nil
		}
		if there = err == nil; there {
			f.now = newest.Start.Add(newestAgo)
		}
		return err
	})
	return there, err
}

// fill writes it.
func (f fleet) fill(ctx context.Context, s control.Store) error {
	for _, part := range []struct {
		of  int
		put func(control.Tx, int, int) error
	}{{f.machines, f.putMachines}, {f.groups(), f.putPolicies}, {fleetPeople, f.putPeople}, {f.lines / linesPerRequest, f.putRequests}, {f.lines, f.putLines}} {
		for from := 0; from < part.of; from += fleetStep {
			to := min(part.of, from+fleetStep)
			if err := s.Update(ctx, func(tx control.Tx) error { return part.put(tx, from, to) }); err != nil {
				return err
			}
		}
	}
	return nil
}

func (f fleet) putMachines(tx control.Tx, from, to int) error {
	for i := from; i < to; i++ {
		vm := control.VM{ID: f.machine(i), Location: fleetLocation, OS: "Linux", Address: fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255)}
		if i%25 == 24 {
			vm.Unsupported = "an appliance: its ports are its maker's"
		}
		if i%10 != 0 {
			vm.Agent = &control.Agent{Key: fmt.Sprintf("%064x", i), Install: "OZPO2M7S5FDLJDHZ3X4ZTQJ4CA", Version: "1.0.0", Mode: "enforce", Enrolled: f.now.Add(-fleetSpan), Expires: f.now.Add(fleetSpan),
				LastSeen: f.now.Add(24 * time.Hour), // nobody is lost while they are listed
				Head:     control.Head{Seq: uint64(i), Hash: fmt.Sprintf("%064x", i)}, Versions: control.Versions{Trust: 1, Policy: 1, Grants: 1}}
			vm.LastAccess, vm.LastUser = f.now.Add(-time.Duration(i)*time.Minute), f.person(i)
		}
		if err := tx.PutVM(vm); err != nil {
			return err
		}
	}
	return nil
}

func (f fleet) putPolicies(tx control.Tx, from, to int) error {
	by := control.Author{Name: "admin", Type: control.TypeUser}
	for g := from; g < to; g++ {
		id, there := f.policy(g)
		if g%100 == 55 { // switched off
			set := control.ScopeSetting{Scope: control.GroupScope(id.Subscription, id.Group), By: "admin", Reason: "moves", Time: f.now}
			if err := tx.PutScopeSetting(set); err != nil {
				return err
			}
		}
		if !there {
			continue
		}
		p := control.Policy{ID: id, Kind: "Basic", State: control.Succeeded, Revision: 1, Created: f.now, Modified: f.now, CreatedBy: by, ModifiedBy: by}
		for i := g * fleetGroup; i < min(f.machines, (g+1)*fleetGroup); i++ {
			if i%25 != 24 {
				p.VMs = append(p.VMs, control.PolicyVM{ID: f.machine(i), Ports: []control.PortRule{
					{Number: 22, Protocol: "TCP", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "PT3H"},
					{Number: 3389, Protocol: "TCP", Prefixes: control.Prefixes{Many: []string{"10.0.0.0/8", "192.0.2.0/24"}}, MaxDuration: "PT3H"}}})
			}
		}
		if err := tx.PutPolicy(p); err != nil {
			return err
		}
	}
	return nil
}

// putPeople gives everybody roles somewhere: in a subscription, a group, or
// with one machine.
func (f fleet) putPeople(tx control.Tx, from, to int) error {
	for i := from; i < to; i++ {
		who := fmt.Sprintf("local:person-%03d", i)
		subscription, group := f.place(i % f.groups())
		for n, s := range []control.Scope{control.SubscriptionScope(subscription), control.GroupScope(subscription, group), f.machine(i).Scope()} {
			if i%3 == n || n == 1 {
				if err := tx.PutAssignment(control.Assignment{Principal: who, Role: "JITRequester", Scope: s}); err != nil {
					return err
				}
			}
		}
	}
	for _, g := range f.narrow() {
		subscription, group := f.place(g)
		for _, role := range []string{"SecurityReader", "JITRequester"} {
			if err := tx.PutAssignment(control.Assignment{Principal: narrowPerson, Role: role, Scope: control.GroupScope(subscription, group)}); err != nil {
				return err
			}
		}
	}
	return nil
}

// newestAgo is how old the newest request is, and the newest line.
const newestAgo = 5 * time.Minute

// at is the time of number i of so many.
func (f fleet) at(i, of int) time.Time {
	return f.now.Add(-newestAgo - time.Duration(of-1-i)*(fleetSpan/time.Duration(of)))
}

// target is the machine that request i is for, one that a policy names.
func (f fleet) target(i int) int {
	r := rand.New(rand.NewPCG(uint64(i), 1))
	for {
		vm := r.IntN(f.machines)
		if _, there := f.policy(vm / fleetGroup); there && vm%25 != 24 {
			return vm
		}
	}
}

func requestID(i int) string { return fmt.Sprintf("%026d", i) }

func (f fleet) putRequests(tx control.Tx, from, to int) error {
	of := f.lines / linesPerRequest
	for i := from; i < to; i++ {
		vm, at := f.target(i), f.at(i, of)
		id, _ := f.policy(vm / fleetGroup)
		p := control.RequestPort{Number: 22, Prefixes: control.Prefixes{One: "203.0.113.7"}, End: at.Add(3 * time.Hour), Status: control.Revoked, Reason: control.Expired,
			GrantID: fmt.Sprintf("QDGXRTJ2STAEI5DO%010d", i), From: at, Until: at.Add(3 * time.Hour), Opened: at.Add(time.Second), Closed: at.Add(3 * time.Hour)}
		if of-i <= 200 { // open for as long as somebody may measure
			p.Status, p.Reason, p.Closed, p.End, p.Until = control.Initiated, control.UserRequested, time.Time{}, f.now.Add(24*time.Hour), f.now.Add(24*time.Hour)
		}
		r := control.Request{ID: requestID(i), Policy: id, Start: at, Requestor: f.person(i), Principal: fmt.Sprintf("local:person-%03d", i%fleetPeople), Justification: fmt.Sprintf("INC-%d: disk full", i),
			VMs: []control.RequestVM{{ID: f.machine(vm), Ports: []control.RequestPort{p}}}}
		if err := tx.PutRequest(r); err != nil {
			return err
		}
	}
	return nil
}

// putLines are what requests leave in the log: who asked, what agents say, and
// now and then what somebody did with the inventory. Of twenty lines of agents
// one comes a day late.
func (f fleet) putLines(tx control.Tx, from, to int) error {
	events := []string{"request.initiated", "grant.opening", "grant.opened", "grant.used", "grant.used", "grant.expired"}
	lines := make([]control.Activity, 0, to-from)
	for i := from; i < to; i++ {
		n := i / linesPerRequest
		vm := f.machine(f.target(n))
		a := control.Activity{Time: f.at(i, f.lines), Event: events[i%len(events)], Status: "Succeeded", Actor: f.person(n), Scope: vm.Scope(), VM: vm.String(),
			Request: requestID(n), Grant: fmt.Sprintf("QDGXRTJ2STAEI5DO%010d", n), Port: 22, Source: "203.0.113.7", End: f.at(i, f.lines).Add(3 * time.Hour), Reason: fmt.Sprintf("INC-%d: disk full", n)}
		switch {
		case a.Event == "request.initiated":
			a.Operation, a.Principal, a.Address, a.Call = string(control.ActionInitiate), "local:"+a.Actor, "203.0.113.7", fmt.Sprintf("%032x", i)
		case i%20 == 13:
			a.Time = a.Time.Add(-24 * time.Hour)
		}
		if i%50_000 == 49_999 {
			subscription, group := f.place(i / 50_000)
			a = control.Activity{Time: a.Time, Event: control.EventScopeSet, Operation: string(control.ActionScope), Status: "Succeeded", Actor: "admin", Principal: control.FirstOwner,
				Scope: control.GroupScope(subscription, group), Reason: "JIT is on"}
		}
		lines = append(lines, a)
	}
	return tx.AppendActivity(lines...)
}
