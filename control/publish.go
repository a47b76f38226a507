package control

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// How long documents are good, and when they are made anew.
const (
	policyValid = 365 * 24 * time.Hour
	policyRenew = 30 * 24 * time.Hour // before the end
	grantsValid = policy.DefaultMaxGrantsAge
	grantsRenew = 6 * time.Hour // after they were issued, while something is open
)

// policyDocument is what a machine guards: the ports of every policy that
// names it.
func policyDocument(h policy.Header, epoch uint64, vm VMID, policies []Policy) (policy.Policy, error) {
	doc := policy.Policy{Header: h, Epoch: epoch, Host: policy.Host{ID: vm.Key()}, MaxGrantsAge: policy.DefaultMaxGrantsAge}
	for _, p := range policies {
		entry, _ := p.vm(vm)
		for _, r := range entry.Ports {
			b, err := r.bounds()
			if err != nil {
				return doc, err
			}
			doc.Ports = append(doc.Ports, policy.Port{Number: r.Number, EndNumber: r.Number, Protocol: r.Protocol, AllowedSources: b.sources,
				MaxRequestAccessDuration: b.longest, SessionsAtEnd: cmp.Or(r.Sessions, policy.Keep)})
		}
	}
	slices.SortFunc(doc.Ports, func(a, b policy.Port) int { return cmp.Compare(a.Number, b.Number) })
	return doc, nil
}

// grantsDocument is the complete list of a machine's grants: those of its open
// requests, and lately, what ended by time a moment ago. An
// agent whose clock is behind may still have one of these open, and what
// leaves the list before its end reads as revoked, which cuts sessions.
func grantsDocument(h policy.Header, epoch uint64, vm VMID, policyVersion uint64, open []Request, lately []policy.Grant, now time.Time) (policy.Grants, error) {
	doc := policy.Grants{Header: h, Epoch: epoch, Host: policy.Host{ID: vm.Key()}, PolicyVersion: policyVersion}
	listed := map[string]bool{}
	add := func(g policy.Grant) {
		if !listed[g.ID] && now.Before(g.End.Add(policy.Skew)) {
			listed[g.ID] = true
			doc.Grants = append(doc.Grants, g)
		}
	}
	for _, r := range open {
		for _, v := range r.VMs {
			if !v.ID.same(vm) {
				continue
			}
			for _, p := range v.Ports {
				if p.Status != Initiating && p.Status != Initiated {
					continue
				}
				sources, err := p.Prefixes.sources()
				if err != nil {
					return doc, fmt.Errorf("stored request %s: %w", r.ID, err)
				}
				for _, t := range p.terms(now) {
					add(policy.Grant{ID: t.ID, Number: p.Number, Sources: sources, Start: t.From, End: t.Until,
						Requestor: cut(cmp.Or(r.Requestor, r.Principal), 256), Justification: r.Justification})
				}
			}
		}
	}
	for _, g := range lately {
		add(g)
	}
	return doc, nil
}

// cut is s, of at most n bytes, in whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// header begins the document that follows the version last.
func (ed *edit) header(last uint64, valid time.Duration) policy.Header {
	now := ed.now.Truncate(time.Second)
	return policy.Header{Realm: ed.e.Realm.Trust.Realm, Version: last + 1, Issued: now, Expires: now.Add(valid)}
}

// found is v, which may not be there.
func found[T any](v T, err error) (T, bool, error) {
	if errors.Is(err, ErrNotFound) {
		return v, false, nil
	}
	return v, err == nil, err
}

// peopleSign reports whether a policy takes more than the control plane's own
// key, under role.
func (r Realm) peopleSign() (role policy.RoleKeys, waits bool) {
	role, _ = r.Trust.Role(policy.RolePolicy)
	return role, r.Policy == nil || role.Threshold > 1
}

// due is what a machine gets at the end of an edit.
type due struct {
	vm    VMID
	guard bool // its policy document too
	list  bool // the list of grants, in any case
}

// renew has a machine's list of grants made anew when the edit is done, once,
// however often it is asked; with guard its policy document before it. For
// that alone a list that would say the same stays as it is: a policy for
// thousands of machines is half the documents.
func (ed *edit) renew(vm VMID, guard bool) {
	d := ed.due[vm.Key()]
	ed.due[vm.Key()] = due{vm, d.guard || guard, d.list || !guard}
}

// publishing is what the documents of a publication are made from, read at once
// for all machines, and those made so far.
type publishing struct {
	*edit
	role     policy.RoleKeys // of those who sign policies
	waits    bool            // for people
	stored   map[string]map[policy.Type]Document
	policies map[string][]Policy
	pending  map[string]PendingPolicy
	made     []Document
}

// publish makes the documents that are due. The order is always the same: a
// second try has to come to the same documents.
func (ed *edit) publish() error {
	if len(ed.due) == 0 {
		return nil
	}
	p := publishing{edit: ed, stored: map[string]map[policy.Type]Document{}, pending: map[string]PendingPolicy{}}
	p.role, p.waits = ed.e.Realm.peopleSign()
	order := slices.Sorted(maps.Keys(ed.due))
	var all, guards []VMID
	for _, key := range order {
		d := ed.due[key]
		all = append(all, d.vm)
		if d.guard {
			guards = append(guards, d.vm)
		}
	}
	documents, err := ed.tx.DocumentsOf(append(slices.Clone(order), "")...)
	if err != nil {
		return err
	}
	for _, d := range documents {
		p.note(d)
	}
	// A replica that was not given the realm's new keys must not undo what the
	// others signed with them.
	if kept, mine := p.stored[""][policy.TypeTrust], ed.e.Realm.Trust.Version; kept.Version > mine {
		return Refuse(Unavailable, "TrustOutdated", "This server has version %d of the realm's trust document and others have %d: give it the newer one and its keys.", mine, kept.Version)
	}
	if p.policies, err = ed.naming(guards...); err != nil {
		return err
	}
	if len(guards) > 0 {
		waiting, err := ed.tx.PendingPolicies(guards...)
		if err != nil {
			return err
		}
		for _, w := range waiting {
			p.pending[w.VM.Key()] = w
		}
	}
	if err := errors.Join(ed.readVMs(all...), ed.readOpen(all...)); err != nil {
		return err
	}
	for _, key := range order {
		d := ed.due[key]
		if d.guard {
			if err := p.policy(d.vm); err != nil {
				return err
			}
		}
		if err := p.grants(d.vm, d.list); err != nil {
			return err
		}
	}
	return ed.tx.PutDocument(p.made...)
}

func (p *publishing) note(d Document) {
	if p.stored[d.VM] == nil {
		p.stored[d.VM] = map[policy.Type]Document{}
	}
	p.stored[d.VM][d.Type] = d
}

// add makes a signed document the newest of its machine and kind.
func (p *publishing) add(d Document, err error) error {
	if err == nil {
		p.note(d)
		p.made = append(p.made, d)
	}
	return err
}

// policy makes the next policy document of a machine, or puts it before the
// people who sign.
func (p *publishing) policy(vm VMID) error {
	last := p.stored[vm.Key()][policy.TypePolicy]
	pending, waited := p.pending[vm.Key()]
	// Whoever was shown a pending document may have signed and delivered it by
	// hand: its version is not used again.
	version, err := p.last(vm, last, policy.TypePolicy)
	if err != nil {
		return err
	}
	doc, err := policyDocument(p.header(max(version, pending.Version), policyValid), p.role.Epoch, vm, p.policies[vm.Key()])
	if err != nil {
		return err
	}
	payload := doc.Encode()
	envelope := policy.Envelope{Type: policy.TypePolicy, Payload: payload}
	if p.e.Realm.Policy != nil {
		envelope, err = p.signedBy(p.e.Realm.Policy, policy.TypePolicy, payload)
	} else {
		_, err = policy.ParseDocument(policy.TypePolicy, payload)
	}
	if policy.CodeOf(err) == policy.TooLarge {
		return Refuse(Invalid, "InvalidPolicy", "The policies of '%s' are too large together: %v.", vm, err)
	} else if err != nil {
		return fmt.Errorf("policy document of %s: %w", vm, err)
	}
	if p.waits {
		w := PendingPolicy{VM: vm, Version: doc.Version, Payload: payload, Created: p.now, By: cmp.Or(p.caller.Name, p.caller.ID)}
		if len(envelope.Signatures) > 0 {
			w.Partial = envelope.Encode()
		}
		return p.tx.PutPendingPolicy(w)
	}
	if waited {
		if err := p.tx.DeletePendingPolicy(vm); err != nil {
			return err
		}
	}
	return p.add(p.document(vm, envelope, doc.Header))
}

// grants makes the next list of grants of a machine, and where it need not,
// only if that says something else than the one before.
func (p *publishing) grants(vm VMID, need bool) error {
	stored := p.stored[vm.Key()]
	last, was := stored[policy.TypeGrants]
	open, err := p.open(vm)
	if err != nil {
		return err
	}
	role, _ := p.e.Realm.Trust.Role(policy.RoleGrant)
	var list policy.Grants
	if was && (!need || !p.now.Before(last.Whole)) {
		if list, err = readDocument[policy.Grants](last); err != nil {
			return err
		}
	}
	guard, guarded := stored[policy.TypePolicy]
	before := lately(list.Grants, p.now)
	if len(before) > 0 && guarded {
		bounds, err := readDocument[policy.Policy](guard)
		if err != nil {
			return err
		}
		before = inside(bounds, before)
	}
	version, err := p.last(vm, last, policy.TypeGrants)
	if err != nil {
		return err
	}
	doc, err := grantsDocument(p.header(version, grantsValid), role.Epoch, vm, guard.Version, open, before, p.now)
	if err != nil {
		return err
	}
	payload := doc.Encode()
	if !need && was && version == last.Version && p.now.Before(list.Expires) && unchanged(list, doc, payload) {
		return nil
	}
	full := len(doc.Grants) > policy.MaxGrants
	var envelope policy.Envelope
	if !full {
		envelope, err = p.signedBy(p.e.Realm.Grant, policy.TypeGrants, payload)
		full = policy.CodeOf(err) == policy.TooLarge
	}
	switch {
	case full:
		return Refuse(TooMany, "TooManyGrants", "The virtual machine '%s' has too many grants open: %d with this request, in %d bytes; the limits are %d and %d. Wait until some end, or revoke some.",
			vm, len(doc.Grants), len(payload), policy.MaxGrants, policy.MaxPayload)
	case err != nil:
		return fmt.Errorf("grants of %s: %w", vm, err)
	}
	d, err := p.document(vm, envelope, doc.Header)
	d.Whole = doc.Expires
	for _, g := range doc.Grants {
		if g.End.Before(d.Whole) {
			d.Whole = g.End
		}
	}
	return p.add(d, err)
}

// unchanged reports whether a list says what one made anew for a newer policy
// would, as payload. The policy that a list names is the oldest that its host may
// have, so the next list is soon enough to name another.
func unchanged(list, anew policy.Grants, payload []byte) bool {
	list.Header, list.PolicyVersion = anew.Header, anew.PolicyVersion
	return bytes.Equal(list.Encode(), payload)
}

// readDocument reads a document that was verified before it was stored.
func readDocument[D policy.Policy | policy.Grants](d Document) (doc D, err error) {
	envelope, err := policy.ParseEnvelope(d.Signed)
	if err == nil {
		var parsed any
		parsed, err = policy.ParseDocument(d.Type, envelope.Payload)
		doc, _ = parsed.(D)
	}
	if err != nil {
		return doc, fmt.Errorf("stored document of %s: %w", d.VM, err)
	}
	return doc, nil
}

// lately are the grants of a list that ended by time a moment ago.
func lately(list []policy.Grant, now time.Time) []policy.Grant {
	return slices.DeleteFunc(slices.Clone(list), func(g policy.Grant) bool { return now.Before(g.End) || !now.Before(g.End.Add(policy.Skew)) })
}

// inside are the grants an agent takes under the policy: one that is over and
// outside by now would be told of as refused.
func inside(p policy.Policy, list []policy.Grant) (out []policy.Grant) {
	d := policy.Evaluate(policy.State{}, policy.Trust{}, p, policy.Grants{Header: policy.Header{Version: 1}, Grants: list}, policy.Facts{})
	for _, v := range d.Verdicts {
		if v.Refusal == nil {
			out = append(out, v.Grant)
		}
	}
	return out
}

// document is a signed document as the store has it.
func (ed *edit) document(vm VMID, envelope policy.Envelope, h policy.Header) (Document, error) {
	raw, err := ed.published(envelope)
	return Document{VM: vm.Key(), Type: envelope.Type, Version: h.Version, Issued: h.Issued, Expires: h.Expires, Signed: raw}, err
}
