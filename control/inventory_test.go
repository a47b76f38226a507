package control_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// inS1 is the id of a machine of subscription s1.
func inS1(group, name string) control.VMID {
	return control.VMID{Subscription: "s1", Group: group, Kind: "Microsoft.Compute/virtualMachines", Name: name}
}

// naming is a policy that names machines with port 22.
func naming(name string, ids ...control.VMID) control.Policy {
	p := control.Policy{ID: control.PolicyID{Subscription: "s1", Group: "g1", Location: "here", Name: name}, Kind: "Basic", State: control.Succeeded, Revision: 1}
	for _, id := range ids {
		p.VMs = append(p.VMs, control.PolicyVM{ID: id, Ports: []control.PortRule{
			{Number: 22, Protocol: "TCP", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "PT3H"},
		}})
	}
	return p
}

// names are those of machines, in their order.
func names(views []control.VMView) (list []string) {
	for _, v := range views {
		list = append(list, v.ID.Name)
	}
	return list
}

func TestTabs(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	classic := inS1("g1", "classic")
	classic.Kind = "Microsoft.ClassicCompute/virtualMachines"
	off, offNamed := inS1("off", "off"), inS1("off", "offNamed")
	d.put(func(tx control.Tx) error {
		return errors.Join(
			tx.PutVM(control.VM{ID: inS1("g1", "Named")}),
			tx.PutVM(control.VM{ID: inS1("g1", "namedUnsupported"), Unsupported: "no route"}),
			tx.PutVM(control.VM{ID: inS1("g1", "free")}),
			tx.PutVM(control.VM{ID: inS1("g1", "unsupported"), Unsupported: "runs an appliance"}),
			tx.PutVM(control.VM{ID: classic}),
			tx.PutVM(control.VM{ID: off}), tx.PutVM(control.VM{ID: offNamed}),
			tx.PutPolicy(naming("default", inS1("G1", "NAMED"), inS1("g1", "namedUnsupported"), offNamed)),
		)
	})
	if _, err := d.SetScope(t.Context(), owner, "/subscriptions/s1/resourceGroups/OFF", false, "moves next week"); err != nil {
		t.Fatal(err)
	}
	want := map[string]struct {
		tab    control.Tab
		reason string
	}{
		"Named":            {control.Configured, ""},
		"namedUnsupported": {control.Configured, ""},
		"free":             {control.NotConfigured, ""},
		"unsupported":      {control.Unsupported, "runs an appliance"},
		"classic":          {control.Unsupported, "classic virtual machine: JIT supports those deployed through Azure Resource Manager"},
		"off":              {control.Unsupported, "JIT is switched off in the security policy of /subscriptions/s1/resourcegroups/off, by admin on 2026-11-27T12:00:00Z: moves next week"},
		"offNamed":         {control.Unsupported, "JIT is switched off in the security policy of /subscriptions/s1/resourcegroups/off, by admin on 2026-11-27T12:00:00Z: moves next week"},
	}
	all, next, err := d.ListVMs(t.Context(), owner, control.VMFilter{})
	if err != nil || next != "" || len(all) != len(want) {
		t.Fatalf("%d machines, next %q, %v", len(all), next, err)
	}
	tabs := map[control.Tab]int{}
	for _, v := range all {
		if w := want[v.ID.Name]; v.Tab != w.tab || v.Reason != w.reason {
			t.Errorf("%s: %s, %q", v.ID.Name, v.Tab, v.Reason)
		}
		tabs[v.Tab]++
		one, err := d.GetVM(t.Context(), owner, v.ID)
		if err != nil || fmt.Sprintf("%+v", one) != fmt.Sprintf("%+v", v) {
			t.Errorf("%s alone: %+v, %v; in the list: %+v", v.ID.Name, one, err, v)
		}
	}
	count, err := d.CountVMs(t.Context(), owner, "")
	if err != nil || !maps.Equal(count, tabs) {
		t.Errorf("counted %v, %v; listed %v", count, err, tabs)
	}
	for tab, n := range tabs {
		some, _, err := d.ListVMs(t.Context(), owner, control.VMFilter{Tab: tab})
		if err != nil || len(some) != n || slices.ContainsFunc(some, func(v control.VMView) bool { return v.Tab != tab }) {
			t.Errorf("tab %s: %q, %v", tab, names(some), err)
		}
	}
	// On again for the group, off for the subscription: the narrowest counts.
	for _, set := range []struct {
		scope   control.Scope
		enabled bool
	}{{"/subscriptions/s1", false}, {"/subscriptions/s1/resourceGroups/off", true}} {
		if _, err := d.SetScope(t.Context(), owner, set.scope, set.enabled, ""); err != nil {
			t.Fatal(err)
		}
	}
	count, err = d.CountVMs(t.Context(), owner, "")
	if err != nil || !maps.Equal(count, map[control.Tab]int{control.Configured: 1, control.NotConfigured: 1, control.Unsupported: 5}) {
		t.Errorf("%v, %v", count, err)
	}
}

func TestMachineColumns(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	id, other := inS1("g1", "web1"), inS1("g1", "web2")
	p := naming("default", id, other)
	p.VMs[0].PublicIPAddress = "198.51.100.7"
	p.VMs[0].Ports = append(p.VMs[0].Ports, control.PortRule{Number: 8080, Protocol: "TCP", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "PT1H"})
	second := naming("second", id)
	second.VMs[0].Ports = []control.PortRule{{Number: 3389, Protocol: "*", Prefixes: control.Prefixes{One: "*"}, MaxDuration: "P1D", MappedPort: 13389}}
	request := func(n int, at time.Time, status control.Status, vms ...control.VMID) control.Request {
		r := control.Request{ID: fmt.Sprintf("%026d", n), Policy: p.ID, Start: at, Requestor: "alice"}
		for _, vm := range vms {
			r.VMs = append(r.VMs, control.RequestVM{ID: vm, Ports: []control.RequestPort{
				{Number: 22, End: at.Add(time.Hour), Until: at.Add(time.Hour), Status: status, Reason: control.UserRequested, GrantID: fmt.Sprint("g", n)},
				{Number: 8080, End: at.Add(time.Hour), Status: control.Revoked, Reason: control.UserRequested},
			}})
		}
		return r
	}
	approval := func(r control.Request, of int, verdicts ...bool) control.Request {
		r.Approval = &control.RequestApproval{Approval: control.Approval{Approvers: of}, Until: deskTime.Add(time.Hour)}
		for i, yes := range verdicts {
			r.Approval.Verdicts = append(r.Approval.Verdicts, control.Verdict{Principal: fmt.Sprint(i), Approve: yes})
		}
		return r
	}
	week := deskTime.Add(-7 * 24 * time.Hour)
	d.put(func(tx control.Tx) error {
		return errors.Join(
			tx.PutVM(control.VM{ID: id, OS: "Linux", Address: "10.0.0.4", PublicIPAddress: "203.0.113.1", LastAccess: deskTime, LastUser: "bob"}),
			tx.PutVM(control.VM{ID: other, PublicIPAddress: "203.0.113.2"}),
			tx.PutPolicy(p), tx.PutPolicy(second),
			tx.PutRequest(request(1, week.Add(-time.Second), control.Revoked, id)), // too old to count
			tx.PutRequest(request(2, week.Add(time.Second), control.Revoked, id)),
			tx.PutRequest(request(3, deskTime.Add(-time.Minute), control.Initiated, id, other)),
			tx.PutRequest(approval(request(4, deskTime.Add(-time.Minute), control.Pending, id), 2, true)),
			tx.PutRequest(approval(request(5, deskTime.Add(-time.Minute), control.Initiating, id), 2, true, true)),
			tx.PutRequest(approval(request(6, deskTime.Add(-time.Minute), control.Revoked, id), 2, true, false)),
			tx.PutRequest(request(7, deskTime.Add(-time.Minute), control.Initiated, other)),
			tx.PutRequest(request(8, deskTime.Add(-time.Hour), control.Initiated, id)), // over, and not swept yet
		)
	})
	v, err := d.GetVM(t.Context(), owner, id)
	if err != nil {
		t.Fatal(err)
	}
	if v.Requests != 4 || !v.LastAccess.Equal(deskTime) || v.LastUser != "bob" || v.PublicIPAddress != "198.51.100.7" || v.Address != "10.0.0.4" {
		t.Errorf("%+v", v)
	}
	if len(v.Ports) != 3 || v.Ports[0].Number != 22 || v.Ports[1].Number != 3389 || v.Ports[1].MappedPort != 13389 || v.Ports[2].Number != 8080 {
		t.Errorf("ports %+v", v.Ports)
	}
	if len(v.Policies) != 2 || v.Provision != control.Succeeded {
		t.Errorf("policies %+v, %s", v.Policies, v.Provision)
	}
	var open []string
	for _, o := range v.Open {
		open = append(open, strings.TrimLeft(o.Request, "0")+string(o.Status)+strconv.Itoa(int(o.Number)))
	}
	if slices.Sort(open); !slices.Equal(open, []string{"3Initiated22", "4Pending22", "5Initiating22"}) {
		t.Errorf("open %q", open)
	}
	if o, err := d.GetVM(t.Context(), owner, other); err != nil || o.Requests != 2 || o.PublicIPAddress != "203.0.113.2" || len(o.Open) != 2 {
		t.Errorf("the other: %+v, %v", o, err)
	}
	if len(v.Layers) != 0 {
		t.Errorf("layers %q", v.Layers)
	}
	layered := request(9, deskTime.Add(-time.Minute), control.Initiated, id)
	layered.VMs[0].Ports[0].Outer = &control.Layer{Name: "azure"}
	d.put(func(tx control.Tx) error {
		vm, err := tx.VM(id)
		vm.Agent = &control.Agent{Mode: "enforce", Versions: control.Versions{Policy: 1}}
		return errors.Join(err, tx.PutVM(vm), tx.PutRequest(layered))
	})
	if v, err = d.GetVM(t.Context(), owner, id); err != nil || !slices.Equal(v.Layers, []string{control.LayerHost, "azure"}) {
		t.Errorf("layers %q, %v", v.Layers, err)
	}
	for name, a := range map[string]control.Agent{"watches": {Mode: "observe", Versions: control.Versions{Policy: 1}}, "no policy yet": {Mode: "enforce"}, "revoked": {Mode: "enforce", Versions: control.Versions{Policy: 1}, Revoked: true}} {
		d.put(func(tx control.Tx) error { return tx.PutVM(control.VM{ID: id, Agent: &a}) })
		if v, err = d.GetVM(t.Context(), owner, id); err != nil || !slices.Equal(v.Layers, []string{"azure"}) {
			t.Errorf("%s: layers %q, %v", name, v.Layers, err)
		}
	}
	d.put(func(tx control.Tx) error { return tx.PutPendingPolicy(control.PendingPolicy{VM: id}) })
	if v, err = d.GetVM(t.Context(), owner, id); err != nil || v.Provision != control.Updating {
		t.Errorf("waits for a signature: %s, %v", v.Provision, err)
	}
	if o, err := d.GetVM(t.Context(), owner, other); err != nil || o.Provision != control.Succeeded {
		t.Errorf("the other waits for none: %s, %v", o.Provision, err)
	}
	if text, err := json.Marshal(control.VMView{}); err != nil || strings.Contains(string(text), "Revision") {
		t.Errorf("%s, %v", text, err)
	}
}

// The revision of a machine is that of its ports, and of no other's.
func TestMachineRevision(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	id, other := inS1("g1", "web1"), inS1("g1", "web2")
	d.put(func(tx control.Tx) error {
		return errors.Join(tx.PutVM(control.VM{ID: id}), tx.PutVM(control.VM{ID: other}))
	})
	seen := map[uint64]string{}
	look := func(what string, fresh bool) {
		t.Helper()
		v, err := d.GetVM(t.Context(), owner, id)
		if err != nil {
			t.Fatal(err)
		}
		if before, had := seen[v.Revision]; had == fresh {
			t.Errorf("%s: revision %d, as after %q", what, v.Revision, before)
		}
		seen[v.Revision] = what
	}
	p := naming("default", id, other)
	put := func() { d.put(func(tx control.Tx) error { return tx.PutPolicy(p) }) }
	look("no policy", true)
	put()
	look("a policy", true)
	p.Revision, p.VMs[1].Ports = 2, nil
	put()
	look("another machine's ports", false)
	p.Revision, p.VMs[0].Ports[0].MaxDuration = 3, "PT1H"
	put()
	look("its length", true)
	p.VMs[0].Ports[0].Prefixes = control.Prefixes{Many: []string{"*"}}
	put()
	look("its source in another form", true)
	p.VMs[0].Ports[0].MappedPort = 2222
	put()
	look("a mapped port", true)
	second := naming("second", id)
	second.VMs[0].Ports[0].Number = 80
	d.put(func(tx control.Tx) error { return tx.PutPolicy(second) })
	look("a second policy", true)
	d.put(func(tx control.Tx) error { return tx.DeletePolicy(second.ID) })
	look("as before", false)
}

func TestAgentStatus(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	for name, test := range map[string]struct {
		agent *control.Agent
		want  string
	}{
		"none":           {nil, "no agent yet"},
		"now":            {&control.Agent{Enrolled: deskTime.Add(-time.Hour), LastSeen: deskTime.Add(-90 * time.Second)}, "connected"},
		"a while ago":    {&control.Agent{Enrolled: deskTime.Add(-time.Hour), LastSeen: deskTime.Add(-91 * time.Second)}, "not seen since 2026-11-27T11:58:29Z"},
		"just enrolled":  {&control.Agent{Enrolled: deskTime}, "connected"},
		"never after it": {&control.Agent{Enrolled: deskTime.Add(-time.Hour)}, "not seen since 2026-11-27T11:00:00Z"},
		"again enrolled": {&control.Agent{Enrolled: deskTime.Add(-time.Second), LastSeen: deskTime.Add(-time.Hour)}, "connected"},
		"revoked":        {&control.Agent{Enrolled: deskTime, LastSeen: deskTime, Revoked: true}, "revoked"},
	} {
		id := inS1("g1", strings.ReplaceAll(name, " ", "-"))
		d.put(func(tx control.Tx) error { return tx.PutVM(control.VM{ID: id, Agent: test.agent}) })
		if v, err := d.GetVM(t.Context(), owner, id); err != nil || v.Agent != test.want {
			t.Errorf("%s: %q, %v", name, v.Agent, err)
		}
	}
}

// Pages have no gap and no repetition, whatever the tab, the rights and the
// size, on both engines.
func TestMachinePages(t *testing.T) {
	for engine, store := range map[string]control.Store{"SQLite": storetest.SQLite(t), "PostgreSQL": storetest.PostgreSQL(t)} {
		t.Run(engine, func(t *testing.T) {
			d := newDesk(t)
			d.store, d.Engine.Store = store, store
			var named []control.VMID
			d.put(func(tx control.Tx) error {
				for i := range 2300 { // more than is read in one step
					vm := control.VM{ID: inS1(fmt.Sprintf("g%d", i%3), fmt.Sprintf("vm%04d", i))}
					switch {
					case i%7 == 0:
						named = append(named, vm.ID)
					case i%11 == 0:
						vm.Unsupported = "no"
					}
					if err := tx.PutVM(vm); err != nil {
						return err
					}
				}
				return tx.PutPolicy(naming("default", named...))
			})
			for name, test := range map[string]struct {
				by     control.Caller
				filter control.VMFilter
				want   func(i int) bool
			}{
				"all":            {caller("local:a", "Owner", "/"), control.VMFilter{}, func(int) bool { return true }},
				"configured":     {caller("local:a", "Reader", "/"), control.VMFilter{Tab: control.Configured}, func(i int) bool { return i%7 == 0 }},
				"unsupported":    {caller("local:a", "Reader", "/"), control.VMFilter{Tab: control.Unsupported}, func(i int) bool { return i%7 != 0 && i%11 == 0 }},
				"one group":      {caller("local:a", "Reader", "/subscriptions/s1/resourcegroups/g1"), control.VMFilter{}, func(i int) bool { return i%3 == 1 }},
				"one's group":    {caller("local:a", "Reader", "/subscriptions/s1"), control.VMFilter{Scope: "/subscriptions/s1/resourcegroups/g1"}, func(i int) bool { return i%3 == 1 }},
				"two groups":     {caller("local:a", "Reader", "/subscriptions/s1/resourcegroups/g2", "SecurityReader", "/subscriptions/s1/resourcegroups/g0"), control.VMFilter{Tab: control.NotConfigured}, func(i int) bool { return i%3 != 1 && i%7 != 0 && i%11 != 0 }},
				"searched":       {caller("local:a", "Reader", "/"), control.VMFilter{Search: "VM012"}, func(i int) bool { return i/10 == 12 }},
				"one machine":    {caller("local:a", "JITRequester", string(inS1("g1", "vm0001").Scope())), control.VMFilter{}, func(i int) bool { return i == 1 }},
				"nothing to see": {caller("local:a", "Reader", "/"), control.VMFilter{Search: "%"}, func(int) bool { return false }},
			} {
				var want []string
				for g := range 3 {
					for i := g; i < 2300; i += 3 {
						if test.want(i) {
							want = append(want, fmt.Sprintf("vm%04d", i))
						}
					}
				}
				for _, limit := range []int{0, 500, max(1, len(want))} {
					var got []string
					f := test.filter
					f.Limit = limit
					for pages := 0; ; pages++ {
						page, next, err := d.ListVMs(t.Context(), test.by, f)
						if err != nil || pages > len(want)+1 || limit > 0 && len(page) > limit {
							t.Fatalf("%s: %d machines, %v", name, len(page), err)
						}
						got = append(got, names(page)...)
						if next == "" {
							break
						}
						f.After = next
					}
					if !slices.Equal(got, want) {
						t.Errorf("%s by %d: %d machines, want %d", name, limit, len(got), len(want))
					}
				}
				if test.filter.Tab == "" && test.filter.Search == "" {
					count, err := d.CountVMs(t.Context(), test.by, test.filter.Scope)
					if sum := count[control.Configured] + count[control.NotConfigured] + count[control.Unsupported]; err != nil || sum != len(want) {
						t.Errorf("%s: counted %v, %v", name, count, err)
					}
				}
			}
		})
	}
}

func TestInventoryIsNotForAll(t *testing.T) {
	d := newDesk(t)
	id := inS1("g1", "web1")
	d.put(func(tx control.Tx) error { return tx.PutVM(control.VM{ID: id}) })
	nobody, reader := caller("local:n"), caller("local:r", "Reader", "/")
	of2 := caller("local:b2", "Owner", string(group2))
	_, _, err := d.ListVMs(t.Context(), nobody, control.VMFilter{})
	refused(t, "list", err, control.Forbidden, "AuthorizationFailed")
	_, _, err = d.ListVMs(t.Context(), of2, control.VMFilter{Scope: group1})
	refused(t, "another group's list", err, control.Forbidden, "AuthorizationFailed")
	_, err = d.CountVMs(t.Context(), nobody, "")
	refused(t, "count", err, control.Forbidden, "AuthorizationFailed")
	_, err = d.GetVM(t.Context(), of2, id)
	refused(t, "get", err, control.Forbidden, "AuthorizationFailed")
	_, err = d.GetVM(t.Context(), of2, inS1("g1", "none"))
	refused(t, "get what is not there", err, control.Forbidden, "AuthorizationFailed")
	_, err = d.GetVM(t.Context(), reader, inS1("g1", "none"))
	refused(t, "not there", err, control.NotFound, "ResourceNotFound")
	for name, by := range map[string]control.Caller{"a reader": reader, "another's": of2, "a requester": caller("local:j", "JITRequester", "/")} {
		_, err = d.PutVM(t.Context(), by, id, control.VMInput{OS: "Linux"})
		refused(t, name+" puts", err, control.Forbidden, "AuthorizationFailed")
		refused(t, name+" deletes", d.DeleteVM(t.Context(), by, id), control.Forbidden, "AuthorizationFailed")
		_, err = d.SetScope(t.Context(), by, group1, false, "")
		refused(t, name+" switches off", err, control.Forbidden, "AuthorizationFailed")
	}
	_, err = d.ScopeSettings(t.Context(), nobody)
	refused(t, "settings", err, control.Forbidden, "AuthorizationFailed")
	if v, err := d.GetVM(t.Context(), reader, id); err != nil || v.OS != "" {
		t.Errorf("%+v, %v", v, err)
	}
	for _, l := range d.lines() {
		if l.Status != "Failed" || l.Code != "AuthorizationFailed" {
			t.Errorf("%+v", l)
		}
	}
	if n := len(d.lines()); n != 9 {
		t.Errorf("%d lines", n)
	}
}

func TestPutMachine(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	id := inS1("G1", "Web1")
	good := control.VMInput{Location: "westeurope", OS: "windows", Address: "web1.corp.example", PublicIPAddress: "2001:db8::7", Unsupported: "an appliance"}
	v, err := d.PutVM(t.Context(), owner, id, good)
	if err != nil || v.OS != "Windows" || v.Address != good.Address || v.PublicIPAddress != good.PublicIPAddress || v.Location != "westeurope" || v.Tab != control.Unsupported || v.Reason != "an appliance" {
		t.Fatalf("%+v, %v", v, err)
	}
	if l := d.last(); l.Event != control.EventVMWritten || l.Scope != id.Scope() || l.VM == "" || l.Status != "Succeeded" || l.Actor != "admin" {
		t.Errorf("%+v", l)
	}
	agent := &control.Agent{Key: "k", Enrolled: deskTime}
	d.put(func(tx control.Tx) error {
		vm, err := tx.VM(id)
		vm.Agent, vm.LastUser = agent, "bob"
		return errors.Join(err, tx.PutVM(vm))
	})
	v, err = d.PutVM(t.Context(), owner, inS1("g1", "WEB1"), control.VMInput{})
	if err != nil || v.VM.Agent == nil || v.VM.Agent.Key != "k" || v.LastUser != "bob" || v.OS != "" || v.Unsupported != "" || v.ID.Name != "Web1" || v.Tab != control.NotConfigured {
		t.Errorf("%+v, %v", v, err)
	}
	for name, bad := range map[string]control.VMInput{
		"OS":                {OS: "BeOS"},
		"location":          {Location: "../x"},
		"location of dots":  {Location: ".."},
		"address":           {Address: "10.0.0.4; rm"},
		"long address":      {Address: strings.Repeat("a", 254)},
		"public address":    {PublicIPAddress: "web1.example"},
		"public with zone":  {PublicIPAddress: "fe80::1%eth0"},
		"long reason":       {Unsupported: strings.Repeat("x", 257)},
		"reason with lines": {Unsupported: "a\r\nb"},
	} {
		_, err := d.PutVM(t.Context(), owner, id, bad)
		refused(t, name, err, control.Invalid, "InvalidVirtualMachine")
	}
	if again, err := d.GetVM(t.Context(), owner, id); err != nil || fmt.Sprintf("%+v", again.VM.ID) != fmt.Sprintf("%+v", v.VM.ID) || again.OS != "" {
		t.Errorf("refusals changed it: %+v, %v", again, err)
	}
}

func TestDeleteMachine(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	id := inS1("g1", "web1")
	p := naming("default", id)
	d.put(func(tx control.Tx) error { return errors.Join(tx.PutVM(control.VM{ID: id}), tx.PutPolicy(p)) })
	refused(t, "named", d.DeleteVM(t.Context(), owner, id), control.Conflict, "VirtualMachineInPolicy")
	d.put(func(tx control.Tx) error {
		return errors.Join(tx.DeletePolicy(p.ID), tx.PutPendingPolicy(control.PendingPolicy{VM: id}))
	})
	refused(t, "waits for a signature", d.DeleteVM(t.Context(), owner, id), control.Conflict, "PolicyPending")
	d.put(func(tx control.Tx) error { return tx.DeletePendingPolicy(id) })
	if err := d.DeleteVM(t.Context(), owner, id); err != nil {
		t.Fatal(err)
	}
	if l := d.last(); l.Event != control.EventVMDeleted || l.Status != "Succeeded" {
		t.Errorf("%+v", l)
	}
	refused(t, "again", d.DeleteVM(t.Context(), owner, id), control.NotFound, "ResourceNotFound")
	_, err := d.GetVM(t.Context(), owner, id)
	refused(t, "gone", err, control.NotFound, "ResourceNotFound")
}

func TestScopeSettings(t *testing.T) {
	d := newDesk(t)
	owner := caller("local:admin", "Owner", "/")
	for name, bad := range map[string]struct {
		scope  control.Scope
		reason string
		code   string
	}{
		"everything":   {"/", "", "InvalidScope"},
		"a machine":    {inS1("g1", "web1").Scope(), "", "InvalidScope"},
		"no scope":     {"", "", "InvalidScope"},
		"half a scope": {"/subscriptions/s1/resourceGroups", "", "InvalidScope"},
		"long reason":  {sub1, strings.Repeat("x", 257), "InvalidReason"},
		"lines":        {sub1, "a\nb", "InvalidReason"},
	} {
		_, err := d.SetScope(t.Context(), owner, bad.scope, false, bad.reason)
		refused(t, name, err, control.Invalid, bad.code)
	}
	set, err := d.SetScope(t.Context(), owner, "/Subscriptions/S1", false, "costs")
	if err != nil || set != (control.ScopeSetting{Scope: sub1, Reason: "costs", By: "admin", Time: deskTime}) {
		t.Fatalf("%+v, %v", set, err)
	}
	if l := d.last(); l.Event != control.EventScopeSet || l.Scope != sub1 || l.Reason != "JIT is off: costs" || l.Operation != string(control.ActionScope) {
		t.Errorf("%+v", l)
	}
	if _, err = d.SetScope(t.Context(), caller("local:sec", "SecurityAdmin", string(group1)), group1, true, ""); err != nil {
		t.Fatal(err)
	}
	if _, err = d.SetScope(t.Context(), owner, group2, true, ""); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		by   control.Caller
		want []control.Scope
	}{
		"all":            {owner, []control.Scope{sub1, group1, group2}},
		"one group":      {caller("local:r", "SecurityReader", string(group1)), []control.Scope{sub1, group1}},
		"one machine":    {caller("local:j", "JITRequester", string(inS1("g2", "x").Scope())), []control.Scope{sub1, group2}},
		"something else": {caller("local:j", "Reader", "/subscriptions/s2"), nil},
	} {
		got, err := d.ScopeSettings(t.Context(), test.by)
		var scopes []control.Scope
		for _, s := range got {
			scopes = append(scopes, s.Scope)
		}
		slices.Sort(scopes)
		if err != nil || !slices.Equal(scopes, test.want) {
			t.Errorf("%s: %q, %v", name, scopes, err)
		}
	}
}
