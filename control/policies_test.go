package control_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

func TestPolicyFromPutToDelete(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.refused(control.NotFound, "PolicyNotFound", policyID("default").String(), func() error {
		_, err := p.GetPolicy(ctx, owner, policyID("default"))
		return err
	})

	wide := control.PortRule{Number: 3389, Protocol: policy.Both, Prefixes: control.Prefixes{Many: []string{"198.51.100.0/24", "192.0.2.10", "2001:db8::/48"}}, MaxDuration: "P1D"}
	put := p.put("default", machine("vm1", rule(22, "PT3H"), wide), machine("vm2", rule(22, "PT1H")))
	equal(t, "state", put.State, control.Succeeded)
	equal(t, "kind", put.Kind, "Basic")
	equal(t, "revision", put.Revision, 1)
	equal(t, "author", put.CreatedBy, control.Author{Name: "owner@example.com", Type: "User"})
	got := p.get()
	equal(t, "read after write", fmt.Sprintf("%+v", got), fmt.Sprintf("%+v", put))
	if got.Requests == nil {
		t.Error("no list of requests: it is empty, not missing")
	}

	// What the machine gets says the same.
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp 3389]")
	equal(t, "allowed", h.policy.Ports[1].AllowedSources, "[192.0.2.10/32 198.51.100.0/24 2001:db8::/48]")
	equal(t, "longest", h.policy.Ports[1].MaxRequestAccessDuration, 24*time.Hour)
	equal(t, "sessions", h.policy.Ports[0].SessionsAtEnd, policy.Keep)
	equal(t, "valid", h.policy.Expires.Sub(h.policy.Issued), 365*24*time.Hour)
	equal(t, "versions", fmt.Sprint(h.policy.Version, h.grants.Version, h.grants.PolicyVersion), "1 1 1")
	// And the machines are in the inventory.
	p.view(func(tx control.Tx) error {
		vm, err := tx.VM(vmID("VM2"))
		equal(t, "location", vm.Location, "westeurope")
		return err
	})

	// The next edit leaves vm2 as it is, takes vm1's second port, and keeps the
	// spelling of the policy's id.
	p.pass(time.Minute)
	odd := policyID("DEFAULT")
	odd.Group = "MYRG1"
	put, err := p.PutPolicy(ctx, as("bob", "Owner"), odd, control.PolicyInput{Kind: "Basic", VMs: []control.PolicyVM{machine("vm1", rule(22, "PT3H")), machine("vm2", rule(22, "PT1H"))}})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "id", put.ID, policyID("default"))
	equal(t, "revision", put.Revision, 2)
	equal(t, "creator stays", put.CreatedBy.Name, "owner@example.com")
	equal(t, "editor", put.ModifiedBy.Name, "bob@example.com")
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp]")
	equal(t, "versions", fmt.Sprint(h.policy.Version, h.grants.Version, h.grants.PolicyVersion), "2 1 1") // an empty list stays
	second := host{vm: vmID("vm2")}
	second.deliver(p, p.clock())
	equal(t, "untouched", second.policy.Version, 1)

	// The same again is no edit.
	before := p.digest()
	if again := p.put("default", machine("vm1", rule(22, "PT3H")), machine("vm2", rule(22, "PT1H"))); again.Revision != 2 {
		t.Errorf("revision %d after the same input", again.Revision)
	}
	equal(t, "same input", p.digest() == before, true)

	// A machine left out is guarded no longer.
	p.put("default", machine("vm1", rule(22, "PT3H")))
	second.deliver(p, p.clock())
	equal(t, "guarded", len(second.policy.Ports), 0)
	equal(t, "an empty list stays", second.grants.Version, 1)

	was, err := p.DeletePolicy(ctx, owner, odd)
	equal(t, "deleted", fmt.Sprint(was, err), "true <nil>")
	h.deliver(p, p.clock())
	equal(t, "guarded", len(h.policy.Ports), 0)
	was, err = p.DeletePolicy(ctx, owner, odd)
	equal(t, "deleted again", fmt.Sprint(was, err), "false <nil>")
	equal(t, "log", strings.Join(p.activity(), ", "), "policy.written Succeeded, policy.written Succeeded, policy.written Succeeded, policy.written Succeeded, policy.deleted Succeeded")
	for _, a := range p.log() {
		if a.Actor == "" || a.Principal == "" || a.Address != "203.0.113.7" || a.Call == "" || a.Operation == "" || a.Scope != policyID("default").Scope() && a.Scope != odd.Scope() {
			t.Errorf("a line without its facts: %+v", a)
		}
	}
}

// Everything about an input that is wrong by itself is refused as such: the
// port stays as it was.
func TestPolicyInputRefused(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	with := func(change func(*control.PortRule)) control.PolicyInput {
		r := rule(22, "PT3H")
		change(&r)
		return control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", r)}}
	}
	source := func(many ...string) control.PolicyInput {
		return with(func(r *control.PortRule) { r.Prefixes = control.Prefixes{Many: many} })
	}
	lasting := func(d string) control.PolicyInput {
		return with(func(r *control.PortRule) { r.MaxDuration = d })
	}
	many := func(n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf("10.%d.%d.0/24", i/256, i%256))
		}
		return out
	}
	rules := func(n int) (out []control.PortRule) {
		for i := range n {
			out = append(out, rule(uint16(i+1), "PT1H"))
		}
		return out
	}
	approval := func(a control.Approval) control.PolicyInput {
		return control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(22, "PT3H"))}, Approval: &a}
	}
	for _, c := range []struct {
		name  string
		in    control.PolicyInput
		words string
	}{
		{"port 0", with(func(r *control.PortRule) { r.Number = 0 }), "port 0 is nothing that can be guarded"},
		{"no protocol", with(func(r *control.PortRule) { r.Protocol = "" }), `"" is not TCP, UDP or "*"`},
		{"All", with(func(r *control.PortRule) { r.Protocol = "All" }), "is not TCP"},
		{"no source", with(func(r *control.PortRule) { r.Prefixes = control.Prefixes{} }), `write "*" for any`},
		{"both sources", with(func(r *control.PortRule) { r.Prefixes.Many = []string{"10.0.0.0/8"} }), "only one of"},
		{"a word", source("Internet"), "is not an address"},
		{"host bits", source("10.0.0.5/8"), "write 10.0.0.0/8 for the network, 10.0.0.5 for the address"},
		{"zone", source("fe80::1%eth0"), "has a zone"},
		{"mapped address", source("::ffff:192.0.2.1"), "write 192.0.2.1"},
		{"mapped network", source("::ffff:192.0.2.0/120"), "IPv4 network written as IPv6"},
		{"257 sources", source(many(257)...), "257 prefixes"},
		{"too many with *", source(append(many(255), "*")...), "257 prefixes"},
		{"no duration", lasting(""), "is not a duration"},
		{"months", lasting("P1M"), "is not a duration"},
		{"too short", lasting("PT4M59S"), "outside PT5M to P1D"},
		{"too long", lasting("P1DT1S"), "outside PT5M to P1D"},
		{"sessions", with(func(r *control.PortRule) { r.Sessions = "kill" }), "is not keep or cut"},
		{"port twice", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(22, "PT1H"), rule(22, "PT1H"))}}, "port 22 is there twice"},
		{"machine twice", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(22, "PT1H")), machine("VM1", rule(23, "PT1H"))}}, "is there twice"},
		{"no machine's id", control.PolicyInput{VMs: []control.PolicyVM{{Ports: rules(1)}}}, "has no id"},
		{"no port", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1")}}, "no port"},
		{"257 ports", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rules(257)...)}}, "257 ports"},
		{"1001 machines", control.PolicyInput{VMs: make([]control.PolicyVM, 1001)}, "1001 machines"},
		{"long names", control.PolicyInput{VMs: []control.PolicyVM{machine(strings.Repeat("v", 50), rule(22, "PT1H"))}}, "57 characters together, the limit is 56"},
		{"public address", control.PolicyInput{VMs: []control.PolicyVM{{ID: vmID("vm1"), Ports: rules(1), PublicIPAddress: "example.com"}}}, "is not an address"},
		{"kind", control.PolicyInput{Kind: strings.Repeat("k", 65)}, "65 bytes"},
		{"no approver", approval(control.Approval{Role: "Owner"}), "outside 1 to 10"},
		{"11 approvers", approval(control.Approval{Approvers: 11, Role: "Owner"}), "outside 1 to 10"},
		{"unknown role", approval(control.Approval{Approvers: 1, Role: "King"}), "no role"},
		{"impatient", approval(control.Approval{Approvers: 1, Role: "Owner", Expires: "PT1M"}), "outside PT5M to P7D"},
		{"patient", approval(control.Approval{Approvers: 1, Role: "Owner", Expires: "P8D"}), "outside PT5M to P7D"},
		{"wait", approval(control.Approval{Approvers: 1, Role: "Owner", Expires: "soon"}), "is not a duration"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			p.refused(control.Invalid, "InvalidPolicy", c.words, func() error {
				_, err := p.PutPolicy(t.Context(), owner, policyID("default"), c.in)
				return err
			})
		})
	}
	p.t = t
	p.refused(control.Invalid, "InvalidPolicy", "is not a policy's name", func() error {
		_, err := p.PutPolicy(t.Context(), owner, policyID("a/../b"), control.PolicyInput{})
		return err
	})
}

// The limits themselves are allowed.
func TestPolicyInputAtTheLimits(t *testing.T) {
	p := newPlane(t)
	var rules []control.PortRule
	for i := range policy.MaxPorts {
		rules = append(rules, rule(uint16(65535-i), "PT5M"))
	}
	p.put("default", machine(strings.Repeat("v", 49), rules...))
	h := host{vm: vmID(strings.Repeat("v", 49))}
	h.deliver(p, p.clock())
	equal(t, "guarded", len(h.policy.Ports), policy.MaxPorts)
	p.put("default")
	if got := p.get(); len(got.VMs) != 0 {
		t.Errorf("a policy of no machine has %v", got.VMs)
	}
}

func TestPolicyConflicts(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("default", machine("vm1", rule(22, "PT3H")))
	put := func(name string, in control.PolicyInput) func() error {
		return func() error {
			_, err := p.PutPolicy(ctx, owner, policyID(name), in)
			return err
		}
	}
	one := []control.PolicyVM{machine("vm1", rule(23, "PT1H"))}
	p.refused(control.Conflict, "PortInAnotherPolicy", "Port 22", put("other", control.PolicyInput{VMs: []control.PolicyVM{machine("VM1", rule(23, "PT1H"), rule(22, "PT1H"))}}))
	p.refused(control.Precondition, "PreconditionFailed", "not there", put("other", control.PolicyInput{VMs: one, IfMatch: "*"}))
	p.refused(control.Precondition, "PreconditionFailed", "not there", put("other", control.PolicyInput{VMs: one, IfMatch: "1"}))
	p.refused(control.Precondition, "PreconditionFailed", "there already", put("default", control.PolicyInput{VMs: one, IfNoneMatch: true}))
	p.refused(control.Precondition, "PreconditionFailed", "at revision 1", put("default", control.PolicyInput{VMs: one, IfMatch: "2"}))
	for _, ok := range []control.PolicyInput{{VMs: one, IfNoneMatch: true}, {VMs: one, IfMatch: "1"}, {VMs: one, IfMatch: "*"}} {
		if err := put("other", ok)(); err != nil {
			t.Errorf("%+v: %v", ok, err)
		}
	}
	// Two policies guard one machine together.
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp 23/tcp]")
	// Of two who edit revision 1, one wins and the other is told.
	errs := make(chan error)
	for i := range 2 {
		go func() {
			errs <- put("default", control.PolicyInput{IfMatch: "1", VMs: []control.PolicyVM{machine("vm1", rule(uint16(100+i), "PT1H"))}})()
		}()
	}
	a, b := <-errs, <-errs
	if (a == nil) == (b == nil) {
		t.Fatalf("two edits of one revision: %v and %v", a, b)
	}

	var rules []control.PortRule
	for i := range policy.MaxPorts {
		rules = append(rules, rule(uint16(1000+i), "PT1H"))
	}
	p.refused(control.Conflict, "TooManyPorts", "257 ports", put("default", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rules...)}}))

	classic, err := control.ParseVMID(group + "/providers/Microsoft.ClassicCompute/virtualMachines/old")
	if err != nil {
		t.Fatal(err)
	}
	p.refused(control.Conflict, "UnsupportedVirtualMachine", "classic virtual machine", put("other", control.PolicyInput{VMs: []control.PolicyVM{{ID: classic, Ports: rules[:1]}}}))
	p.update(func(tx control.Tx) error {
		return tx.PutVM(control.VM{ID: vmID("vm9"), Unsupported: "no agent runs there."})
	})
	p.refused(control.Conflict, "UnsupportedVirtualMachine", "is not supported: no agent runs there.", put("other", control.PolicyInput{VMs: []control.PolicyVM{machine("vm9", rules[0])}}))

	off := func(s control.Scope, enabled bool) {
		p.update(func(tx control.Tx) error {
			return tx.PutScopeSetting(control.ScopeSetting{Scope: s, Enabled: enabled, Reason: "audit"})
		})
	}
	off(control.SubscriptionScope(vmID("x").Subscription), false)
	p.refused(control.Conflict, "JitDisabled", ": audit", put("third", control.PolicyInput{}))
	p.refused(control.Conflict, "JitDisabled", ": audit", put("other", control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(23, "PT2H"))}}))
	p.refused(control.Conflict, "JitDisabled", ": audit", func() error {
		_, err := p.Initiate(ctx, owner, policyID("other"), wants("vm1", 23, "", "PT1M"))
		return err
	})
	if err := put("other", control.PolicyInput{})(); err != nil {
		t.Errorf("taking a machine out where JIT is off: %v", err)
	}
	off(control.GroupScope(vmID("x").Subscription, vmID("x").Group), true)
	if err := put("third", control.PolicyInput{VMs: []control.PolicyVM{machine("vm3", rule(23, "PT2H"))}})(); err != nil {
		t.Errorf("on again in the group: %v", err)
	}
}

// Each right that is missing is named, with its scope, and nothing is told of
// what is there.
func TestPolicyRights(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("default", machine("vm1", rule(22, "PT3H")), machine("vm2", rule(22, "PT3H")))
	var (
		nobody  = as("nobody")
		reader  = as("reader", "Reader@"+group)
		visitor = as("visitor", "JITRequester@"+vmID("vm1").String())
		lesser  = control.Caller{ID: "local:lesser", Name: "lesser", Rights: []control.Right{{Scope: control.Everywhere,
			Role: control.Role{Name: "x", Actions: []string{string(control.ActionWrite), string(control.ActionDelete)}}}}}
		bound = owner
	)
	bound.Limits = []control.Right{{Role: role("Reader"), Scope: control.Everywhere}}
	const code = "AuthorizationFailed"
	for _, missing := range []string{"default", "absent"} {
		id := policyID(missing)
		p.refused(control.Forbidden, code, "jitNetworkAccessPolicies/read' over scope '"+strings.ToLower(group), func() error {
			_, err := p.GetPolicy(ctx, nobody, id)
			return err
		})
		for _, c := range []control.Caller{nobody, reader, visitor, bound} {
			p.refused(control.Forbidden, code, "jitNetworkAccessPolicies/write'", func() error {
				_, err := p.PutPolicy(ctx, c, id, control.PolicyInput{})
				return err
			})
			p.refused(control.Forbidden, code, "jitNetworkAccessPolicies/write'", func() error {
				_, err := p.SetApproval(ctx, c, id, nil, "")
				return err
			})
			p.refused(control.Forbidden, code, "jitNetworkAccessPolicies/delete'", func() error {
				_, err := p.DeletePolicy(ctx, c, id)
				return err
			})
		}
		p.refused(control.Forbidden, code, "initiate/action' over scope '"+strings.ToLower(vmID("vm2").String()), func() error {
			_, err := p.Initiate(ctx, visitor, id, wants("vm2", 22, "", "PT1H"))
			return err
		})
	}
	// Machines that stay as they are take no right to them.
	p.refused(control.Forbidden, code, "virtualMachines/write' over scope '"+strings.ToLower(vmID("vm2").String()), func() error {
		_, err := p.PutPolicy(ctx, lesser, policyID("default"), control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", rule(22, "PT3H"))}})
		return err
	})
	p.refused(control.Forbidden, code, "virtualMachines/write'", func() error {
		_, err := p.DeletePolicy(ctx, lesser, policyID("default"))
		return err
	})
	if _, err := p.PutPolicy(ctx, lesser, policyID("default"), control.PolicyInput{Kind: "Other", VMs: p.get().VMs}); err != nil {
		t.Errorf("another kind: %v", err)
	}
	p.refused(control.Forbidden, code, "jitNetworkAccessPolicies/write'", func() error {
		_, err := p.EditPorts(ctx, reader, vmID("vm1"), nil, "")
		return err
	})
	p.refused(control.Forbidden, code, "virtualMachines/write'", func() error {
		_, err := p.EditPorts(ctx, lesser, vmID("vm1"), nil, "")
		return err
	})

	// A right to one machine shows that machine.
	p.initiate(owner, control.InitiateInput{VMs: []control.InitiateVM{wants("vm1", 22, "", "PT1H").VMs[0], wants("vm2", 22, "", "PT1H").VMs[0]}})
	p.initiate(owner, wants("vm2", 22, "192.0.2.1", "PT1H"))
	view, err := p.GetPolicy(ctx, visitor, policyID("default"))
	if err != nil {
		t.Fatal(err)
	}
	if len(view.VMs) != 1 || len(view.Requests) != 1 || len(view.Requests[0].VMs) != 1 || view.Requests[0].VMs[0].ID != vmID("vm1") {
		t.Errorf("a right to vm1 shows %+v", view)
	}
	for c, want := range map[*control.Caller]int{&nobody: 0, &reader: 1, &visitor: 1, &owner: 1} {
		list, _, err := p.ListPolicies(ctx, *c, control.PolicyFilter{}, "", 0)
		if err != nil || len(list) != want {
			t.Errorf("%s sees %d policies, %v; want %d", c.Name, len(list), err, want)
		}
	}
	// Refusals of what would have changed something are in the log.
	refusals := 0
	for _, a := range p.log() {
		if a.Status == "Failed" {
			refusals++
			if a.Code != code || a.Principal == "" || !strings.Contains(a.Reason, "over scope") {
				t.Errorf("refusal in the log: %+v", a)
			}
		}
	}
	equal(t, "refusals in the log", refusals, 2*(4*3+1)+4)
}

func TestListPoliciesInPages(t *testing.T) {
	p := newPlane(t)
	for i := range 10 {
		p.put(fmt.Sprintf("p%d", i), machine(fmt.Sprintf("vm%d", i), rule(22, "PT3H")))
	}
	// Every second one is for this caller.
	var rights []string
	for i := 0; i < 10; i += 2 {
		rights = append(rights, "Reader@"+vmID(fmt.Sprintf("vm%d", i)).String())
	}
	for limit := range 12 {
		for c, want := range map[*control.Caller]string{&owner: "0123456789", ptr(as("some", rights...)): "02468"} {
			got, after, pages := "", "", 0
			for {
				page, next, err := p.ListPolicies(t.Context(), *c, control.PolicyFilter{Group: "MYRG1"}, after, limit)
				if err != nil || limit > 0 && len(page) > limit {
					t.Fatalf("limit %d: %d policies, %v", limit, len(page), err)
				}
				for _, v := range page {
					got += strings.TrimPrefix(v.ID.Name, "p")
				}
				pages++
				if after = next; next == "" {
					break
				}
			}
			equal(t, fmt.Sprintf("limit %d", limit), got, want)
			if limit > 0 {
				equal(t, fmt.Sprintf("pages of limit %d", limit), pages, (len(want)+limit-1)/limit)
			}
		}
	}
	none, _, err := p.ListPolicies(t.Context(), owner, control.PolicyFilter{Location: "northeurope"}, "", 0)
	equal(t, "elsewhere", fmt.Sprint(len(none), err), "0 <nil>")
}

func ptr[T any](v T) *T { return &v }

// What Azure's API has no word for outlives an edit through it.
func TestPutKeepsWhatItHasNoWordFor(t *testing.T) {
	p := newPlane(t)
	r := rule(22, "PT3H")
	r.MappedPort, r.Sessions = 50022, policy.Cut
	terms := control.Approval{Approvers: 1, Role: "Owner"}
	if _, err := p.PutPolicy(t.Context(), owner, policyID("default"), control.PolicyInput{VMs: []control.PolicyVM{machine("vm1", r)}, Approval: &terms}); err != nil {
		t.Fatal(err)
	}
	got := p.put("default", machine("vm1", rule(22, "PT2H"), rule(23, "PT2H")))
	equal(t, "mapped port", got.VMs[0].Ports[0].MappedPort, 50022)
	equal(t, "sessions", got.VMs[0].Ports[0].Sessions, policy.Cut)
	equal(t, "another port", got.VMs[0].Ports[1].MappedPort, 0)
	if got.Approval == nil || *got.Approval != terms {
		t.Errorf("approval is %+v", got.Approval)
	}
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "signed", h.policy.Ports[0].SessionsAtEnd, policy.Cut)

	view, err := p.SetApproval(t.Context(), owner, policyID("default"), nil, strconv.FormatUint(got.Revision, 10))
	if err != nil || view.Approval != nil || view.Revision != got.Revision+1 {
		t.Errorf("without approval: %+v, %v", view.Policy, err)
	}
	p.refused(control.Precondition, "PreconditionFailed", "somebody else", func() error {
		_, err := p.SetApproval(t.Context(), owner, policyID("default"), &terms, strconv.FormatUint(got.Revision, 10))
		return err
	})
	p.refused(control.NotFound, "PolicyNotFound", "absent", func() error {
		_, err := p.SetApproval(t.Context(), owner, policyID("absent"), &terms, "")
		return err
	})
	p.refused(control.Invalid, "InvalidPolicy", "no role", func() error {
		_, err := p.SetApproval(t.Context(), owner, policyID("default"), &control.Approval{Approvers: 1, Role: "x"}, "")
		return err
	})
	p.update(func(tx control.Tx) error { return tx.PutRole(control.Role{Name: "Duty"}) })
	if _, err := p.SetApproval(t.Context(), owner, policyID("default"), &control.Approval{Approvers: 1, Role: "duty"}, "*"); err != nil {
		t.Errorf("a role defined here: %v", err)
	}
}

func TestEditPorts(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	edit := func(vm string, ifMatch string, rules ...control.PortRule) control.VMView {
		t.Helper()
		view, err := p.EditPorts(ctx, owner, vmID(vm), rules, ifMatch)
		if err != nil {
			t.Fatal(err)
		}
		return view
	}
	refused := func(kind control.Kind, code, words, vm, ifMatch string, rules ...control.PortRule) {
		t.Helper()
		p.refused(kind, code, words, func() error {
			_, err := p.EditPorts(ctx, owner, vmID(vm), rules, ifMatch)
			return err
		})
	}
	refused(control.NotFound, "ResourceNotFound", "vm1", "vm1", "", rule(22, "PT1H"))
	p.update(func(tx control.Tx) error { return tx.PutVM(control.VM{ID: vmID("vm1")}) })
	refused(control.Conflict, "NoLocation", "no location", "vm1", "", rule(22, "PT1H"))
	refused(control.Invalid, "InvalidPolicy", "PT5M to P1D", "vm1", "", rule(22, "PT1M"))
	p.update(func(tx control.Tx) error { return tx.PutVM(control.VM{ID: vmID("vm1"), Location: "westeurope"}) })

	first := edit("vm1", "", rule(22, "PT1H"))
	equal(t, "where", fmt.Sprint(first.Policies), fmt.Sprint([]control.PolicyID{policyID("default")}))
	// Another machine in the same policy, and another policy for the first one.
	p.put("default", machine("vm1", rule(22, "PT1H")), machine("vm2", rule(22, "PT1H")))
	p.put("more", machine("vm1", rule(80, "PT1H"), rule(81, "PT1H")))
	refused(control.Precondition, "PreconditionFailed", "somebody else", "vm1", fmt.Sprint(first.Revision), rule(22, "PT2H"))
	second := edit("vm1", "*", rule(22, "PT2H"), rule(80, "PT2H"), rule(90, "PT2H"))
	if second.Revision == first.Revision {
		t.Error("the revision is the same for other ports")
	}
	ports := func(name string) string {
		view, err := p.GetPolicy(ctx, owner, policyID(name))
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, v := range view.VMs {
			for _, r := range v.Ports {
				out = append(out, fmt.Sprintf("%s:%d:%s", v.ID.Name, r.Number, r.MaxDuration))
			}
		}
		return strings.Join(out, " ")
	}
	equal(t, "default", ports("default"), "vm1:22:PT2H vm1:90:PT2H vm2:22:PT1H")
	equal(t, "more", ports("more"), "vm1:80:PT2H")
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "guarded", h.policy.Ports, "[22/tcp 80/tcp 90/tcp]")
	version := h.policy.Version
	// What is the same changes nothing and makes no document.
	third := edit("vm1", fmt.Sprint(second.Revision), rule(22, "PT2H"), rule(80, "PT2H"), rule(90, "PT2H"))
	equal(t, "revision", third.Revision, second.Revision)
	h.deliver(p, p.clock())
	equal(t, "version", h.policy.Version, version)
	// An edit of vm2 is none of vm1's.
	edit("vm2", "", rule(22, "PT5H"))
	fourth := edit("vm1", fmt.Sprint(second.Revision))
	equal(t, "nothing guarded", len(fourth.Ports), 0)
	equal(t, "default", ports("default"), "vm2:22:PT5H")
	equal(t, "more", ports("more"), "")
	h.deliver(p, p.clock())
	equal(t, "guarded", len(h.policy.Ports), 0)
	// One edit of two policies made one document.
	equal(t, "version", h.policy.Version, version+1)
}

// An edit revokes what is outside the new bounds, says why, and leaves the rest.
func TestNarrowingRevokesWhatIsOutside(t *testing.T) {
	wide := rule(22, "PT3H")
	for _, c := range []struct {
		name string
		next []control.PolicyVM
		why  string // empty: it goes on
	}{
		{"as it was", []control.PolicyVM{machine("vm1", wide, rule(23, "PT3H"))}, ""},
		{"longer", []control.PolicyVM{machine("vm1", rule(22, "PT10H"))}, ""},
		{"shorter, and time enough", []control.PolicyVM{machine("vm1", rule(22, "PT2H"))}, ""},
		{"too short", []control.PolicyVM{machine("vm1", rule(22, "PT1H"))}, "PT1H allowed"},
		{"port gone", []control.PolicyVM{machine("vm1", rule(23, "PT3H"))}, "does not have the port"},
		{"machine gone", []control.PolicyVM{machine("vm2", wide)}, "does not have the port"},
		{"other source", []control.PolicyVM{machine("vm1", control.PortRule{Number: 22, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "10.0.0.0/8"}, MaxDuration: "PT3H"})}, "10.0.0.0/8 allowed"},
		{"a narrower net that holds it", []control.PolicyVM{machine("vm1", control.PortRule{Number: 22, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "203.0.113.0/24"}, MaxDuration: "PT3H"})}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlane(t)
			p.put("default", machine("vm1", wide))
			p.initiate(as("alice", "Owner"), wants("vm1", 22, "", "PT3H"))
			p.pass(90 * time.Minute)
			p.put("default", c.next...)
			port := p.get().Requests[0].VMs[0].Ports[0]
			// openAt fails the test if the agent would refuse what goes on.
			open := p.openAt("vm1", 0)
			if c.why == "" {
				equal(t, "status", port.Status, control.Initiating)
				equal(t, "open", open, "[22 203.0.113.7/32]")
				return
			}
			equal(t, "status", fmt.Sprint(port.Status, port.Reason), "RevokedUserRequested")
			equal(t, "open", open, "[]")
			if !strings.Contains(port.Refused, c.why) || !port.Closed.Equal(p.clock()) {
				t.Errorf("refused %q at %s, want %q", port.Refused, port.Closed, c.why)
			}
			equal(t, "last line", p.activity()[len(p.log())-1], "request.revoked Succeeded")
		})
	}
}

// A list of grants that an edit of the policy leaves as it is goes on: what it
// opened stays open under the newer policy. One that would say something else is
// made anew, and so is one that has ended.
func TestEditLeavesTheListThatSaysTheSame(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.initiate(as("alice", "Owner"), wants("vm1", 22, "", "PT3H"))
	h := host{vm: vmID("vm1")}
	delivered := func() string {
		h.deliver(p, p.clock())
		return fmt.Sprintf("policy %d, list %d for policy %d, %d open", h.policy.Version, h.grants.Version, h.grants.PolicyVersion, len(h.open(t, p.clock())))
	}
	p.pass(10 * time.Minute)
	equal(t, "granted", delivered(), "policy 1, list 2 for policy 1, 1 open")
	p.put("default", machine("vm1", rule(22, "PT4H"), rule(23, "PT3H")))
	equal(t, "more is allowed", delivered(), "policy 2, list 2 for policy 1, 1 open")
	p.initiate(as("alice", "Owner"), wants("vm1", 23, "", "PT1H"))
	p.pass(10 * time.Minute)
	equal(t, "the next request", delivered(), "policy 2, list 3 for policy 2, 2 open")
	p.put("default", machine("vm1", rule(22, "PT4H")))
	equal(t, "one is outside", delivered(), "policy 3, list 4 for policy 3, 1 open")
	p.pass(3 * time.Hour)
	p.put("default", machine("vm1", rule(22, "PT5H")))
	equal(t, "one is over", delivered(), "policy 4, list 5 for policy 4, 0 open")
	p.pass(25 * time.Hour)
	p.put("default", machine("vm1", rule(22, "PT6H")))
	equal(t, "the list has ended", delivered(), "policy 5, list 6 for policy 5, 0 open")
}

// While a newer grant takes over from an older one, an edit shortens both.
func TestNarrowingWhileAGrantTakesOver(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	alice := as("alice", "Owner")
	p.initiate(alice, wants("vm1", 22, "", "PT3H"))
	p.pass(time.Minute)
	p.initiate(alice, wants("vm1", 22, "", "PT3H"))
	p.pass(time.Minute)
	p.put("default", machine("vm1", rule(22, "PT2H59M")))
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "on the list", len(h.grants.Grants), 2)
	equal(t, "open", len(h.open(t, p.clock())), 1) // fails if the agent refuses one
	// Once the newer one has begun by every clock, the older one goes.
	p.pass(policy.Skew)
	p.initiate(alice, wants("vm1", 22, "192.0.2.1", "PT5M"))
	h.deliver(p, p.clock())
	equal(t, "on the list", len(h.grants.Grants), 2)
	equal(t, "open", p.openAt("vm1", -policy.Skew+time.Second), "[22 192.0.2.1/32 22 203.0.113.7/32]")
}

func TestDeletePolicyRevokes(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	p.put("other", machine("vm1", rule(23, "PT3H")))
	p.initiate(owner, wants("vm1", 22, "", "PT1H"))
	kept, err := p.Initiate(t.Context(), owner, policyID("other"), wants("vm1", 23, "", "PT1H"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.DeletePolicy(t.Context(), owner, policyID("default")); err != nil {
		t.Fatal(err)
	}
	equal(t, "open", p.openAt("vm1", 0), "[23 203.0.113.7/32]")
	if r, err := p.GetRequest(t.Context(), owner, kept.ID); err != nil || !r.Open() {
		t.Errorf("the other policy's request: %+v, %v", r, err)
	}
	// The history is there for who makes it again.
	p.put("default", machine("vm1", rule(22, "PT3H")))
	equal(t, "history", len(p.get().Requests), 1)
	equal(t, "open", p.openAt("vm1", 0), "[23 203.0.113.7/32]")
}
