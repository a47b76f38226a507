package control

import (
	"context"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// maxAhead bounds how far ahead of the store a host's word is believed. What
// happened since a backup is less than this, and a host that lies could only
// use up versions of its own.
const maxAhead = 1 << 20

// ahead reports whether a host has a newer document than the store, which is
// so after a backup was restored: it takes none until the versions are past
// its own.
func ahead(reported, stored uint64) bool {
	return reported > stored && reported-stored <= maxAhead
}

// last is the version that the next document of a machine follows: the
// store's, or that of its host where that is ahead.
func (ed *edit) last(vm VMID, d Document, t policy.Type) (uint64, error) {
	known, _, err := ed.vm(vm)
	if err != nil || known.Agent == nil {
		return d.Version, err
	}
	if has := uplink.Versions(known.Agent.Versions).Of(t); ahead(has, d.Version) {
		return has, nil
	}
	return d.Version, nil
}

// overtaken looks whether the host is ahead of the store, or has another
// document of the same version. What the store does not have at all is not
// made: a policy made from nothing would guard nothing.
func (r *received) overtaken(tx Tx, has Versions, lines []uplink.Line) error {
	stored, err := tx.DocumentsOf(r.vm.ID.Key())
	if err != nil {
		return err
	}
	for _, d := range stored {
		t := d.Type
		other := ahead(uplink.Versions(has).Of(t), d.Version)
		for _, l := range lines {
			if l.Event == "document.admitted" && l.Document == words[t] && l.Version == d.Version {
				signed, err := policy.ParseEnvelope(d.Signed)
				if err != nil {
					return err
				}
				other = other || l.Digest != "" && l.Digest != signed.Digest().String() // older agents do not say
			}
		}
		if other {
			r.behind, r.guardBehind = true, r.guardBehind || t == policy.TypePolicy
		}
	}
	return nil
}

// words are what a record calls documents.
var words = map[policy.Type]string{policy.TypePolicy: "policy", policy.TypeGrants: "grants"}

// catchUp makes documents of a machine anew, with versions that its host takes.
func (e *Engine) catchUp(ctx context.Context, vm VMID, guard bool) {
	err := e.edit(ctx, Caller{}, func(ed *edit) error {
		line := ed.line("host.ahead", "", vm.Scope())
		line.VM, line.Reason = vm.String(), "its documents are newer than those here, as after a restored backup; they are made anew from what is here"
		ed.tell(line)
		if guard {
			ed.renew(vm, true)
		}
		ed.renew(vm, false) // also where it says the same: the host has another one
		return nil
	})
	if err != nil {
		e.Log.Error("a host has newer documents than the store, and takes none until they are made anew", "vm", vm, "error", err)
	}
}
