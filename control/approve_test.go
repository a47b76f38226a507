package control_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
)

// approved is a plane whose policy asks for k approvers with SecurityAdmin.
func approved(t *testing.T, k int, expires string) *plane {
	t.Helper()
	p := newPlane(t)
	_, err := p.PutPolicy(t.Context(), owner, policyID("default"), control.PolicyInput{
		VMs:      []control.PolicyVM{machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")), machine("vm2", rule(22, "PT3H"))},
		Approval: &control.Approval{Approvers: k, Role: "SecurityAdmin", Justification: true, Expires: expires}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// because is a request with a justification.
func because(in control.InitiateInput) control.InitiateInput {
	in.Justification = "INC-1"
	return in
}

func TestApproval(t *testing.T) {
	p := approved(t, 2, "")
	ctx := t.Context()
	alice := as("alice", "JITRequester@"+group, "SecurityAdmin@"+group)
	one, two := as("one", "SecurityAdmin"), as("two", "SecurityAdmin@"+group)
	p.refused(control.Invalid, "InvalidInitiateInput", "asks for a justification", func() error {
		_, err := p.Initiate(ctx, alice, policyID("default"), wants("vm1", 22, "", "PT3H"))
		return err
	})
	in := control.InitiateInput{VMs: []control.InitiateVM{
		{ID: vmID("vm1").String(), Ports: []control.InitiatePort{{Number: 22, Duration: "PT3H"}, {Number: 23, End: noon.Add(2 * time.Hour)}}}, wants("vm2", 22, "", "PT30M").VMs[0]}}
	r := p.initiate(alice, because(in))
	equal(t, "status", r.VMs[0].Ports[0].Status, control.Pending)
	equal(t, "waits until", r.Approval.Until.Sub(noon), time.Hour)
	equal(t, "open", p.openAt("vm1", 0), "[]")
	if again := p.initiate(alice, because(in)); again.ID != r.ID {
		t.Error("sent again, it waits twice")
	}

	approve := func(c control.Caller, atMost time.Duration) func() error {
		return func() error {
			_, err := p.Approve(ctx, c, r.ID, "fine", atMost)
			return err
		}
	}
	deny := func(c control.Caller) func() error {
		return func() error { _, err := p.Deny(ctx, c, r.ID, "no"); return err }
	}
	// The right without the role, the role without the right, at one machine
	// only, and the requestor.
	other := as("other", "Owner")
	without := as("without", "SecurityAdmin")
	without.Limits = []control.Right{{Role: role("Reader"), Scope: control.Everywhere}}
	half := as("half", "SecurityAdmin@"+vmID("vm1").String())
	for _, try := range []func(control.Caller) func() error{deny, func(c control.Caller) func() error { return approve(c, 0) }} {
		p.refused(control.Forbidden, "AuthorizationFailed", "does not have the role 'SecurityAdmin' over scope", try(other))
		p.refused(control.Forbidden, "AuthorizationFailed", "approve/action", try(without))
		p.refused(control.Forbidden, "AuthorizationFailed", "approve/action' over scope '"+strings.ToLower(vmID("vm2").String()), try(half))
		p.refused(control.Forbidden, "OwnRequest", "their own request", try(alice))
	}
	p.refused(control.Invalid, "InvalidInitiateInput", "a second", approve(one, time.Millisecond))
	p.refused(control.Invalid, "InvalidInitiateInput", "a second", approve(one, -time.Hour))
	p.refused(control.NotFound, "RequestNotFound", "", func() error { _, err := p.Approve(ctx, one, "x", "", 0); return err })

	p.pass(10 * time.Minute)
	if err := approve(one, 0)(); err != nil {
		t.Fatal(err)
	}
	equal(t, "open after one of two", p.openAt("vm1", 0), "[]")
	p.refused(control.Conflict, "AlreadyApproved", "somebody else", approve(one, 0))
	p.pass(10 * time.Minute)
	if err := approve(two, time.Hour)(); err != nil {
		t.Fatal(err)
	}
	now := p.clock()
	got, err := p.GetRequest(ctx, alice, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "verdicts", len(got.Approval.Verdicts), 2)
	// Durations count from now, ends are ends, and the shortest word holds.
	equal(t, "ends", fmt.Sprint(got.VMs[0].Ports[0].End.Sub(now), got.VMs[0].Ports[1].End.Sub(now), got.VMs[1].Ports[0].End.Sub(now)), "1h0m0s 1h0m0s 30m0s")
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32 23 203.0.113.7/32]")
	equal(t, "open", p.openAt("vm2", 0), "[22 203.0.113.7/32]")
	p.refused(control.Conflict, "RequestNotPending", "does not wait", approve(as("three", "SecurityAdmin"), 0))
	p.refused(control.Conflict, "RequestNotPending", "does not wait", deny(as("three", "SecurityAdmin")))

	// An extension is asked for anew, and so is approved anew.
	p.refused(control.Conflict, "ApprovalNeeded", "ask for access anew", func() error {
		_, err := p.Extend(ctx, alice, r.ID, time.Hour, "")
		return err
	})
	approvals := 0
	for _, a := range p.log() {
		if a.Event == "request.approved" && a.Status == "Succeeded" {
			approvals++
			if a.Operation != string(control.ActionApprove) || !strings.Contains(a.Reason, " of 2. fine") {
				t.Errorf("line %+v", a)
			}
		}
	}
	equal(t, "lines of approval", approvals, 6)
}

func TestDeny(t *testing.T) {
	p := approved(t, 3, "")
	alice := as("alice", "JITRequester@"+group)
	r := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
	if _, err := p.Approve(t.Context(), as("one", "SecurityAdmin"), r.ID, "", 0); err != nil {
		t.Fatal(err)
	}
	got, err := p.Deny(t.Context(), as("two", "SecurityAdmin"), r.ID, "not today")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "status", fmt.Sprint(got.VMs[0].Ports[0].Status, got.VMs[0].Ports[0].Reason), "RevokedDenied")
	equal(t, "open", p.openAt("vm1", 0), "[]")
	last := p.log()[len(p.log())-1]
	equal(t, "line", fmt.Sprint(last.Event, " ", last.Actor, " ", last.Reason), "request.denied two@example.com not today")
	// Denied is not granted: it may be asked for again at once.
	if again := p.initiate(alice, because(wants("vm1", 22, "", "PT3H"))); again.ID == r.ID {
		t.Error("the denied request was returned")
	}
}

func TestPendingRequestsEnd(t *testing.T) {
	alice := as("alice", "JITRequester@"+group)
	admin := as("admin", "SecurityAdmin")
	for _, c := range []struct {
		name    string
		in      control.InitiateInput
		expires string
		after   time.Duration
	}{
		{"nobody answered", wants("vm1", 22, "", "PT3H"), "PT5M", 5 * time.Minute},
		{"nobody answered for an hour", wants("vm1", 22, "", "PT3H"), "", time.Hour},
		{"its end is past, and so all of it", control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: []control.InitiatePort{
			{Number: 22, End: noon.Add(2 * time.Minute)}, {Number: 23, Duration: "PT3H"}}}}}, "PT5M", 2 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := approved(t, 1, c.expires)
			r := p.initiate(alice, because(c.in))
			p.pass(c.after - 1)
			p.sweep()
			if got, err := p.GetRequest(t.Context(), alice, r.ID); err != nil || !got.Open() {
				t.Fatalf("over too early: %+v, %v", got, err)
			}
			p.pass(1)
			p.refused(control.Conflict, "RequestNotPending", "does not wait", func() error {
				_, err := p.Approve(t.Context(), admin, r.ID, "", 0)
				return err
			})
			p.sweep()
			p.view(func(tx control.Tx) error {
				got, err := tx.Request(r.ID)
				for _, port := range got.VMs[0].Ports {
					equal(t, "status", fmt.Sprint(port.Status, port.Reason), "RevokedExpired")
				}
				return err
			})
			last := p.log()[len(p.log())-1]
			equal(t, "line", fmt.Sprint(last.Event, " ", last.Reason), "request.denied nobody approved it in time")
		})
	}
}

// What waits is judged again when it is granted, by the policy of that moment;
// the terms are those it was asked under.
func TestPolicyChangesWhileARequestWaits(t *testing.T) {
	alice, admin := as("alice", "JITRequester@"+group), as("admin", "SecurityAdmin")
	put := func(p *plane, change func(*control.PolicyInput)) {
		in := control.PolicyInput{VMs: p.get().VMs}
		change(&in)
		if _, err := p.PutPolicy(t.Context(), owner, policyID("default"), in); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("other terms", func(t *testing.T) {
		p := approved(t, 1, "")
		r := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
		put(p, func(in *control.PolicyInput) {
			in.Approval = &control.Approval{Approvers: 5, Role: "Owner", Expires: "PT5M"}
		})
		p.pass(30 * time.Minute)
		if _, err := p.Approve(t.Context(), admin, r.ID, "", 0); err != nil {
			t.Fatal(err)
		}
		equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32]")
	})
	t.Run("narrower", func(t *testing.T) {
		p := approved(t, 1, "")
		r := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
		put(p, func(in *control.PolicyInput) { in.VMs[0].Ports[0].MaxDuration = "PT1H" })
		p.refused(control.Conflict, "RequestNotPending", "does not wait", func() error {
			_, err := p.Approve(t.Context(), admin, r.ID, "", 0)
			return err
		})
	})
	t.Run("off", func(t *testing.T) {
		p := approved(t, 1, "")
		r := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
		p.update(func(tx control.Tx) error {
			return tx.PutScopeSetting(control.ScopeSetting{Scope: vmID("vm1").Scope(), Reason: "incident"})
		})
		p.refused(control.Conflict, "JitDisabled", "incident", func() error {
			_, err := p.Approve(t.Context(), admin, r.ID, "", 0)
			return err
		})
	})
	t.Run("gone", func(t *testing.T) {
		p := approved(t, 1, "")
		r := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
		if _, err := p.DeletePolicy(t.Context(), owner, policyID("default")); err != nil {
			t.Fatal(err)
		}
		got, err := p.GetRequest(t.Context(), alice, r.ID)
		if err != nil || got.Open() {
			t.Errorf("it waits for a policy that is gone: %+v, %v", got, err)
		}
	})
}

// What waits takes the place of what waits; only what is granted takes the
// place of what is open.
func TestNewerPendingRequest(t *testing.T) {
	p := approved(t, 1, "P1D")
	alice, admin := as("alice", "JITRequester@"+group), as("admin", "SecurityAdmin")
	status := func() string {
		var out []string
		for _, r := range p.get().Requests {
			port := r.VMs[0].Ports[0]
			out = append(out, fmt.Sprint(port.Status, "/", port.Reason))
		}
		return strings.Join(out, " ")
	}
	approve := func(id string) {
		t.Helper()
		if _, err := p.Approve(t.Context(), admin, id, "", 0); err != nil {
			t.Fatal(err)
		}
	}
	first := p.initiate(alice, because(wants("vm1", 22, "", "PT1H")))
	approve(first.ID)
	p.initiate(alice, because(wants("vm1", 22, "", "PT2H")))
	third := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
	equal(t, "while it waits", status(), "Initiating/UserRequested Revoked/NewerRequestInitiated Pending/UserRequested")
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32]")
	approve(third.ID)
	equal(t, "granted", status(), "Revoked/NewerRequestInitiated Revoked/NewerRequestInitiated Initiating/UserRequested")
	equal(t, "open", p.openAt("vm1", -time.Second), "[22 203.0.113.7/32]")
	// One's own, while it waits, may be taken back.
	fourth := p.initiate(alice, because(wants("vm1", 23, "", "PT3H")))
	if got, err := p.Revoke(t.Context(), alice, fourth.ID, ""); err != nil || got.Open() {
		t.Errorf("taken back: %+v, %v", got, err)
	}
}

// Of a request that waits, an edit or a newer request may end one port. What
// is granted later is the rest, and that one neither opens nor ends another.
func TestApprovingWhatIsLeft(t *testing.T) {
	p := approved(t, 1, "P1D")
	ctx := t.Context()
	alice, admin := as("alice", "JITRequester@"+group), as("admin", "SecurityAdmin")
	approve := func(r control.Request) {
		t.Helper()
		if _, err := p.Approve(ctx, admin, r.ID, "", 0); err != nil {
			t.Fatal(err)
		}
	}
	first := p.initiate(alice, because(wants("vm1", 22, "", "PT3H")))
	approve(first)
	both := wants("vm1", 22, "", "PT3H")
	both.VMs[0].Ports = append(both.VMs[0].Ports, wants("vm1", 23, "", "PT3H").VMs[0].Ports...)
	second := p.initiate(alice, because(both))
	third := p.initiate(alice, because(wants("vm1", 22, "", "PT2H")))
	approve(second)
	got, err := p.GetRequest(ctx, alice, second.ID)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "the rest", fmt.Sprint(got.VMs[0].Ports[0].Status, " ", got.VMs[0].Ports[1].Status), "Revoked Initiating")
	if got, err = p.GetRequest(ctx, alice, first.ID); err != nil || !got.Open() {
		t.Errorf("the first one, granted: %+v, %v", got, err)
	}
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32 23 203.0.113.7/32]")
	denied, err := p.Deny(ctx, admin, third.ID, "")
	equal(t, "denied", fmt.Sprint(denied.VMs[0].Ports[0].Reason, err), "Denied<nil>")
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32 23 203.0.113.7/32]")
}
