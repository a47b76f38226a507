package control

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"fmt"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Document is a signed document as agents get it. Of each kind a machine has
// one: the newest.
type Document struct {
	VM      string      `json:"vm"` // Key of the machine; empty for trust, which is everybody's
	Type    policy.Type `json:"type"`
	Version uint64      `json:"version"`
	Seq     uint64      `json:"seq"` // set by the store: rises with every document written, in the order of commits
	Issued  time.Time   `json:"issued"`
	Expires time.Time   `json:"expires"`
	Signed  []byte      `json:"signed"` // the envelope
	// Whole is until when no grant of a list has ended; zero: not known.
	Whole time.Time `json:"whole,omitzero"`
}

// PendingPolicy is a policy document that a person has yet to sign.
type PendingPolicy struct {
	VM      VMID      `json:"vm"`
	Version uint64    `json:"version"`
	Payload []byte    `json:"payload"` // what is signed
	Partial []byte    `json:"partial"` // the envelope with the signatures so far; nil: none
	Created time.Time `json:"created"`
	By      string    `json:"by"`
	// InForce is the payload of the policy document it follows, for people to
	// see what changes. PendingPolicies sets it; nil: there is none.
	InForce []byte `json:"inForce,omitempty"`
}

// Realm is what the control plane signs with, and what agents trust.
type Realm struct {
	Trust  policy.Trust
	Signed []byte        // the trust document's envelope
	Pin    policy.Digest // of the first trust document: what a new host is told to trust
	Grant  crypto.Signer // signs grants
	Policy crypto.Signer // signs policies; nil: people do
}

// PendingPolicies lists policy documents that wait for a person's signature,
// for machines whose policies the caller may read or sign.
func (e *Engine) PendingPolicies(ctx context.Context, c Caller) (list []PendingPolicy, err error) {
	err = e.Store.View(ctx, func(tx Tx) error {
		if list, err = tx.PendingPolicies(); err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(p PendingPolicy) bool {
			return !c.May(ActionRead, p.VM.Scope()) && !c.May(ActionSign, p.VM.Scope())
		})
		for i := range list {
			last, there, err := found(tx.Document(list[i].VM.Key(), policy.TypePolicy))
			if err != nil {
				return err
			}
			if !there {
				continue
			}
			envelope, err := policy.ParseEnvelope(last.Signed)
			if err != nil {
				return fmt.Errorf("the policy in force of %s: %w", list[i].VM, err)
			}
			list[i].InForce = envelope.Payload
		}
		return nil
	})
	return list, err
}

// AcceptPolicy takes a pending policy document back, with signatures added.
// Once they are enough it is published, and done is true. The document has to
// be the one that waits, byte for byte: what was edited since is signed anew.
func (e *Engine) AcceptPolicy(ctx context.Context, c Caller, envelope []byte) (p PendingPolicy, done bool, err error) {
	came, vm, err := readSigned(envelope)
	if err != nil {
		return PendingPolicy{}, false, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		done = false
		ed.about = ed.line("policy.written", ActionSign, vm.Scope())
		ed.about.VM = vm.String()
		if err := c.Must(ActionSign, vm.Scope()); err != nil {
			return err
		}
		var waits bool
		if p, waits, err = found(ed.tx.PendingPolicy(vm)); err != nil {
			return err
		}
		if !waits {
			return Refuse(NotFound, "NothingPending", "No policy document of '%s' waits for a signature.", vm)
		}
		if !bytes.Equal(p.Payload, came.Payload) {
			return Refuse(Conflict, "PolicyChanged", "The policy document of '%s' that waits is version %d and not the one that was signed: fetch it and sign it.", p.VM, p.Version)
		}
		merged, err := p.merge(came, ed.e.Realm.Trust)
		if err != nil {
			return err
		}
		p.Partial = merged.Encode()
		line := ed.about
		line.VM = p.VM.String()
		if tally := merged.Tally(ed.e.Realm.Trust); !tally.Enough() {
			line.Reason = fmt.Sprintf("version %d has %d of %d signatures", p.Version, len(tally.Signers), tally.Threshold)
			ed.tell(line)
			return ed.tx.PutPendingPolicy(p)
		}
		done = true
		line.Reason = fmt.Sprintf("version %d is signed", p.Version)
		ed.tell(line)
		return ed.accept(p, merged)
	})
	return p, done && err == nil, err
}

// readSigned reads a signed policy document for one machine.
func readSigned(raw []byte) (policy.Envelope, VMID, error) {
	bad := func(err error) (policy.Envelope, VMID, error) {
		return policy.Envelope{}, VMID{}, Refuse(Invalid, "InvalidDocument", "%v", err)
	}
	envelope, err := policy.ParseEnvelope(raw)
	if err != nil {
		return bad(err)
	}
	if envelope.Type != policy.TypePolicy {
		return bad(fmt.Errorf("payloadType is %q, expected %q", clip(string(envelope.Type)), policy.TypePolicy))
	}
	doc, err := policy.ParseDocument(envelope.Type, envelope.Payload)
	if err != nil {
		return bad(err)
	}
	vm, err := ParseVMID(doc.(policy.Policy).Host.ID)
	if err != nil {
		return bad(err)
	}
	return envelope, vm, nil
}

// merge adds the signatures that came to those that are there. Each has to
// hold, and one at least has to be new.
func (p PendingPolicy) merge(came policy.Envelope, t policy.Trust) (policy.Envelope, error) {
	merged := policy.Envelope{Type: policy.TypePolicy, Payload: p.Payload}
	if p.Partial != nil {
		partial, err := policy.ParseEnvelope(p.Partial)
		if err != nil {
			return merged, fmt.Errorf("stored pending policy of %s: %w", p.VM, err)
		}
		merged.Signatures = partial.Signatures
	}
	before := len(merged.Signatures)
	for i, s := range came.Tally(t).Signatures {
		switch {
		case !s.InRole:
			return merged, Refuse(Invalid, "InvalidSignature", "%s is not a key that signs policies.", clip(string(s.KeyID)))
		case !s.Holds:
			return merged, Refuse(Invalid, "InvalidSignature", "The signature by %s does not hold.", clip(string(s.KeyID)))
		case !slices.ContainsFunc(merged.Signatures, func(o policy.Signature) bool { return o.KeyID == s.KeyID }):
			merged.Signatures = append(merged.Signatures, came.Signatures[i])
		}
	}
	if len(merged.Signatures) == before {
		return merged, Refuse(Invalid, "InvalidSignature", "There is no signature that is not here already.")
	}
	return merged, nil
}

// accept puts a policy document in force, and tells the policies that waited
// for it.
func (ed *edit) accept(p PendingPolicy, signed policy.Envelope) error {
	doc, err := policy.OpenPolicy(signed.Encode(), ed.e.Realm.Trust)
	if err != nil {
		return Refuse(Invalid, "InvalidSignature", "Agents would refuse it: %v.", err)
	}
	if h := doc.Document().Header; !ed.now.Before(h.Expires) {
		return Refuse(Conflict, "PolicyChanged", "The policy document of '%s' ended at %s: write the policy again.", p.VM, policy.FormatTime(h.Expires))
	}
	d, err := ed.document(p.VM, signed, doc.Document().Header)
	if err != nil {
		return err
	}
	if err := ed.tx.PutDocument(d); err != nil {
		return err
	}
	if err := ed.tx.DeletePendingPolicy(p.VM); err != nil {
		return err
	}
	ed.renew(p.VM, false)
	policies, err := ed.tx.PoliciesOf(p.VM)
	if err != nil {
		return err
	}
	for _, q := range policies {
		state, err := ed.provision(q, nil)
		if err != nil {
			return err
		}
		if q.State == state {
			continue
		}
		q.State = state
		if err := ed.tx.PutPolicy(q); err != nil {
			return err
		}
	}
	return nil
}

// DocumentsFor are those of some types that a machine has yet to get which has
// these versions, 0: none. Hosts take trust documents one by one, so one that was
// away for several changes of keys is given the next of those that were in force
// here, and not the newest. They are in the order of types.
func (e *Engine) DocumentsFor(ctx context.Context, vm VMID, has Versions, types ...policy.Type) (list []Document, err error) {
	err = e.Store.View(ctx, func(tx Tx) error {
		list, err = e.documentsFor(tx, vm, has, types)
		return err
	})
	return list, err
}

func (e *Engine) documentsFor(tx Tx, vm VMID, has Versions, types []policy.Type) ([]Document, error) {
	var list []Document
	than := map[policy.Type]uint64{}
	for _, t := range types {
		if t != policy.TypeTrust {
			than[t] = uplink.Versions(has).Of(t)
			continue
		}
		trust, err := e.trustAfter(tx, vm, has.Trust)
		if err != nil {
			return nil, err
		}
		list = append(list, trust...)
	}
	own, err := tx.DocumentsNewer(vm.Key(), than)
	list = append(list, own...)
	slices.SortFunc(list, func(a, b Document) int { return cmp.Compare(slices.Index(types, a.Type), slices.Index(types, b.Type)) })
	return list, err
}

// trustAfter is the trust document for a machine that has version has, if there
// is one. The first is the one it was told to trust at its enrolment.
func (e *Engine) trustAfter(tx Tx, vm VMID, has uint64) ([]Document, error) {
	if has == 0 {
		known, ok, err := found(tx.VM(vm))
		if err != nil {
			return nil, err
		}
		if ok && known.Agent != nil && known.Agent.Joined > 0 {
			has = known.Agent.Joined - 1
		}
	}
	list, err := tx.DocumentsNewer("", map[policy.Type]uint64{policy.TypeTrust: has})
	if err != nil {
		return nil, err
	}
	if own := e.Realm.document(); own.Version > has && (len(list) == 0 || list[0].Version < own.Version) {
		list = []Document{own}
	}
	if len(list) == 0 || list[0].Version == has+1 {
		return list, nil
	}
	signed, ok, err := found(tx.Meta(trustMeta(has + 1)))
	if ok {
		list = []Document{{Type: policy.TypeTrust, Version: has + 1, Signed: signed}}
	}
	return list, err
}

// trustMeta is where a version of the trust document is kept for good.
func trustMeta(version uint64) string { return fmt.Sprintf("trust.version.%d", version) }

// document is the trust document.
func (r Realm) document() Document {
	return Document{Type: policy.TypeTrust, Version: r.Trust.Version, Issued: r.Trust.Issued, Expires: r.Trust.Expires, Signed: r.Signed}
}
