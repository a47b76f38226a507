package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"
)

// Approve adds the caller's verdict to a pending request; the last one needed
// grants it, if it is still inside the bounds of its policy. atMost, if not
// zero, shortens it. An approver has ActionApprove and the role the policy asks
// for at every machine of the request, and is not who asked.
func (e *Engine) Approve(ctx context.Context, c Caller, id, comment string, atMost time.Duration) (r Request, err error) {
	if err := judgeWords("comment", comment); err != nil {
		return Request{}, err
	}
	if atMost != 0 {
		if atMost = atMost.Truncate(time.Second); atMost < shortestRequest {
			return Request{}, badRequest("atMost", "The least that can be approved is a second.")
		}
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		if r, err = ed.verdict(id, "request.approved", Verdict{Approve: true, Comment: comment, AtMost: atMost}); err != nil {
			return err
		}
		if len(r.Approval.Verdicts) < r.Approval.Approvers {
			ed.tellVerdict("request.approved", r, comment)
			return ed.put(r, false)
		}
		if err := ed.grantApproved(&r); err != nil {
			return err
		}
		ed.tellVerdict("request.approved", r, comment)
		return ed.put(r, true)
	})
	return r, err
}

// Deny ends a pending request. It takes what Approve does.
func (e *Engine) Deny(ctx context.Context, c Caller, id, comment string) (r Request, err error) {
	if err := judgeWords("comment", comment); err != nil {
		return Request{}, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		if r, err = ed.verdict(id, "request.denied", Verdict{Comment: comment}); err != nil {
			return err
		}
		ed.tellVerdict("request.denied", r, comment)
		for _, p := range r.eachPort() {
			if p.Status == Pending {
				p.end(Denied, ed.now)
			}
		}
		return ed.put(r, false)
	})
	return r, err
}

// verdict reads a pending request and adds what the caller says of it.
func (ed *edit) verdict(id, event string, v Verdict) (Request, error) {
	r, err := readRequest(ed.tx, id, ed.now)
	if err != nil {
		return r, err
	}
	ed.aboutRequest(event, ActionApprove, r)
	for _, vm := range r.VMs {
		if err := ed.caller.Must(ActionApprove, vm.ID.Scope()); err != nil {
			return r, err
		}
	}
	waits := false
	for _, p := range r.eachPort() {
		waits = waits || p.Status == Pending
	}
	switch {
	case r.Approval == nil || !waits:
		return r, Refuse(Conflict, "RequestNotPending", "The request '%s' does not wait for approval.", r.ID)
	case r.Principal == ed.caller.ID:
		return r, Refuse(Forbidden, "OwnRequest", "Nobody approves or denies their own request; you may revoke it.")
	case slices.ContainsFunc(r.Approval.Verdicts, func(o Verdict) bool { return o.Principal == ed.caller.ID }):
		return r, Refuse(Conflict, "AlreadyApproved", "You approved the request '%s' already; somebody else has to.", r.ID)
	}
	for _, vm := range r.VMs {
		if !ed.caller.Holds(r.Approval.Role, vm.ID.Scope()) {
			return r, Refuse(Forbidden, "AuthorizationFailed", "The client '%s' with object id '%s' does not have the role '%s' over scope '%s', which the request '%s' has to be approved by.",
				ed.caller.Name, ed.caller.ID, r.Approval.Role, vm.ID.Scope(), r.ID)
		}
	}
	v.Principal, v.Name, v.Time = ed.caller.ID, cmp.Or(ed.caller.Name, ed.caller.ID), ed.now
	r.Approval.Verdicts = append(r.Approval.Verdicts, v)
	return r, nil
}

// tellVerdict writes a line for each port of the request that is not over.
func (ed *edit) tellVerdict(event string, r Request, comment string) {
	if event == "request.approved" && r.Approval.Approvers > 1 {
		comment = fmt.Sprintf("%d of %d. %s", len(r.Approval.Verdicts), r.Approval.Approvers, comment)
	}
	for vm, p := range r.eachPort() {
		if p.Status == Revoked {
			continue
		}
		ed.tell(ed.portLine(event, ActionApprove, r, vm, *p, comment))
	}
}

// grantApproved grants a request that everybody needed has approved: for the
// shortest time any of them said, inside the bounds the policy has by now.
func (ed *edit) grantApproved(r *Request) error {
	p, there, err := found(ed.tx.Policy(r.Policy))
	if err != nil {
		return err
	}
	if !there {
		return policyNotFound(r.Policy)
	}
	for vm, port := range r.eachPort() {
		// One that an edit or a newer request ended while it waited stays so.
		if port.Status != Pending {
			continue
		}
		if err := ed.supported(vm); err != nil {
			return err
		}
		a := askedPort{number: port.Number, prefixes: port.Prefixes, length: port.Length}
		if port.Length == 0 {
			a.end = port.End
		}
		for _, v := range r.Approval.Verdicts {
			a.shorten(v.AtMost, ed.now)
		}
		if a.sources, err = port.Prefixes.sources(); err != nil {
			return fmt.Errorf("stored request %s: %w", r.ID, err)
		}
		_, b, err := p.judge(vm, a, ed.now)
		if err != nil {
			return err
		}
		port.Length, port.End = a.length, a.until(ed.now)
		port.grant(ed.id(), ed.now, b.longest)
	}
	return ed.replace(r)
}

// shorten makes what is asked for no longer than atMost from now, if that is
// not zero.
func (a *askedPort) shorten(atMost time.Duration, now time.Time) {
	switch {
	case atMost == 0:
	case a.end.IsZero():
		a.length = min(a.length, atMost)
	case a.end.After(now.Add(atMost)):
		a.end = now.Add(atMost)
	}
}
