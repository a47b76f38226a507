package policy

import "slices"

// signingRole is who signs documents of a type.
var signingRole = map[Type]Role{TypeTrust: RoleRoot, TypePolicy: RolePolicy, TypeGrants: RoleGrant}

// A Tally says what the signatures of an envelope are worth under one trust
// document, while it passes from signer to signer. It is for showing: agents
// decide in the Open functions, which count the same way.
type Tally struct {
	Role       Role // whose keys sign documents of this type; empty for a type that is none of jitgate's
	Threshold  int
	Signatures []Standing // the envelope's, in its order
	Signers    []KeyID    // those that count, each once
	Missing    []Key      // the other keys of the role, in its order
}

// Standing is what one signature is worth.
type Standing struct {
	KeyID  KeyID
	Key    Key  // as the trust document has it; the zero Key if it has none of that id
	Holds  bool // made by that key over this document
	InRole bool // that key has the role
}

// Enough reports whether the threshold is reached.
func (t Tally) Enough() bool { return t.Threshold > 0 && len(t.Signers) >= t.Threshold }

// Tally holds the envelope's signatures against the keys that sign documents
// of its type under t. A trust document is held against its predecessor and,
// in a second Tally, against itself: it takes enough of both.
func (e Envelope) Tally(t Trust) Tally {
	role := signingRole[e.Type]
	ring := t.keyring(role)
	tally := Tally{Role: role, Threshold: ring.threshold, Signers: e.signers(ring)}
	message := PAE(e.Type, e.Payload)
	for _, s := range e.Signatures {
		key, known := t.key(s.KeyID)
		_, inRole := ring.keys[s.KeyID]
		tally.Signatures = append(tally.Signatures, Standing{s.KeyID, key, known && key.Verify(message, s.Sig), inRole})
	}
	held, _ := t.Role(role)
	for _, id := range held.Keys {
		if key, ok := t.key(id); ok && !slices.Contains(tally.Signers, id) {
			tally.Missing = append(tally.Missing, key)
		}
	}
	return tally
}
