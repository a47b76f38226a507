package policy

import "time"

// Skew is how far a signed time may lie ahead of this host's clock.
const Skew = 2 * time.Minute

// Facts is what a host knows of itself when it judges a document.
type Facts struct {
	Host    string    // its id
	Install string    // the id of this installation of it; may be empty
	Now     time.Time // wall clock
	Built   time.Time // when this program was built: no honest clock is before it
}

// Mark is the high-water mark of one kind of document.
type Mark struct {
	Epoch   uint64 `json:"epoch,omitzero"` // trust documents have none
	Version uint64 `json:"version"`
	Digest  Digest `json:"digest"`
}

// State is what a host must not forget of the documents it admitted. The
// zero State has admitted nothing. It must be durable before anything opens
// on the strength of it.
type State struct {
	Trust  Mark      `json:"trust,omitzero"`
	Policy Mark      `json:"policy,omitzero"`
	Grants Mark      `json:"grants,omitzero"`
	Floor  time.Time `json:"floor,omitzero"` // newest issued time of any admitted document
}

// AdmitTrust returns the state with v admitted. current is the trust document
// in force, or the zero Trust where v is the host's first.
//
// Expiry does not stand in the way: a host that was offline walks past
// expired versions one by one, and Evaluate opens nothing under them.
func AdmitTrust(s State, v Verified[Trust], current Trust, f Facts) (State, error) {
	d := v.doc
	if current.Realm != "" && d.Realm != current.Realm {
		return s, Refuse(WrongRealm, "realm is %q, this host's is %q", d.Realm, current.Realm)
	}
	m := Mark{Version: d.Version, Digest: v.digest}
	if err := m.follows(s.Trust); err != nil {
		return s, err
	}
	if s.Trust.Version != 0 && m.Version > s.Trust.Version+1 {
		return s, Refuse(NotYet, "version %d after %d: trust documents are taken one by one, deliver %d first", m.Version, s.Trust.Version, s.Trust.Version+1)
	}
	for _, role := range []Role{RolePolicy, RoleGrant} {
		if before, now := current.epoch(role), d.epoch(role); now < before {
			return s, Refuse(Rollback, "epoch %d of role %s after %d", now, role, before)
		}
	}
	if err := s.issued(d.Header, f); err != nil {
		return s, err
	}
	s.Trust = m
	return s.raiseFloor(d.Header), nil
}

// AdmitPolicy returns the state with v admitted under t.
func AdmitPolicy(s State, v Verified[Policy], t Trust, f Facts) (State, error) {
	d := v.doc
	if err := meantForUs(d.Header, d.Host, t, f); err != nil {
		return s, err
	}
	if err := CurrentEpoch(d.Epoch, RolePolicy, t); err != nil {
		return s, err
	}
	m := Mark{Epoch: d.Epoch, Version: d.Version, Digest: v.digest}
	if err := m.follows(s.Policy); err != nil {
		return s, err
	}
	if err := s.current(d.Header, f); err != nil {
		return s, err
	}
	s.Policy = m
	return s.raiseFloor(d.Header), nil
}

// AdmitGrants returns the state with v admitted under t and p, the policy in
// force (the zero Policy if there is none).
func AdmitGrants(s State, v Verified[Grants], t Trust, p Policy, f Facts) (State, error) {
	d := v.doc
	if err := meantForUs(d.Header, d.Host, t, f); err != nil {
		return s, err
	}
	if err := CurrentEpoch(d.Epoch, RoleGrant, t); err != nil {
		return s, err
	}
	m := Mark{Epoch: d.Epoch, Version: d.Version, Digest: v.digest}
	if err := m.follows(s.Grants); err != nil {
		return s, err
	}
	if err := s.current(d.Header, f); err != nil {
		return s, err
	}
	if p.Version == 0 {
		return s, Refuse(StalePolicy, "no policy is in force on this host: deliver one")
	}
	if p.Version < d.PolicyVersion {
		return s, Refuse(StalePolicy, "made for policy version %d, this host has %d: deliver the newer policy", d.PolicyVersion, p.Version)
	}
	s.Grants = m
	return s.raiseFloor(d.Header), nil
}

// meantForUs checks what does not depend on earlier documents of the kind. A
// trust document that is over is walked past, not worked on: its keys may
// long be in other hands.
func meantForUs(h Header, host Host, t Trust, f Facts) error {
	if !f.Now.Before(t.Expires) {
		return Refuse(Expired, "the trust document in force ended at %s: deliver the next one", FormatTime(t.Expires))
	}
	if h.Realm != t.Realm {
		return Refuse(WrongRealm, "realm is %q, this host's is %q", h.Realm, t.Realm)
	}
	return MeantFor(host, f)
}

// MeantFor checks that a document for host is one for the host and the
// installation that f tells of. An agent asks it again of what it saved: a
// host may have got another name since, and a saved state another host.
func MeantFor(host Host, f Facts) error {
	if !host.names(f.Host) {
		return Refuse(WrongHost, "host is %q, this is %q", host.ID, f.Host)
	}
	if host.Install != "" && host.Install != f.Install {
		return Refuse(WrongHost, "made for installation %q of this host, this is %q", host.Install, f.Install)
	}
	return nil
}

// CurrentEpoch refuses a document of another epoch than t says for the role
// that signs it. The epoch restarts the count of versions after a key was
// lost: a thief may have signed version 2^53-1 with it.
func CurrentEpoch(epoch uint64, role Role, t Trust) error {
	switch want := t.epoch(role); {
	case epoch < want:
		return Refuse(Rollback, "epoch %d, the trust document says %d", epoch, want)
	case epoch > want:
		return Refuse(StalePolicy, "epoch %d, the trust document here says %d: deliver the newer trust document", epoch, want)
	}
	return nil
}

// follows reports whether m may be admitted where old is the mark. The same
// version with the same bytes may come again.
func (m Mark) follows(old Mark) error {
	switch {
	case m.Epoch > old.Epoch:
		return nil
	case m.Epoch < old.Epoch, m.Version < old.Version:
		return Refuse(Rollback, "version %d after %d", m.Version, old.Version)
	case m.Version == old.Version && m.Digest != old.Digest:
		return Refuse(Equivocation, "version %d came before with other bytes: %s, now %s", m.Version, old.Digest, m.Digest)
	}
	return nil
}

// issued checks that h was issued in the past, and that the host's clock is
// fit to say so.
func (s State) issued(h Header, f Facts) error {
	if err := s.clockBehind(f); err != nil {
		return err
	}
	if h.Issued.After(f.Now.Add(Skew)) {
		return Refuse(NotYet, "issued %s, the clock here says %s", FormatTime(h.Issued), FormatTime(f.Now))
	}
	return nil
}

func (s State) current(h Header, f Facts) error {
	if err := s.issued(h, f); err != nil {
		return err
	}
	if !f.Now.Before(h.Expires) {
		return Refuse(Expired, "at %s, the clock here says %s", FormatTime(h.Expires), FormatTime(f.Now))
	}
	return nil
}

// clockBehind holds the clock against the newest signed time this host has
// seen. Only signed times raise the floor: a clock that once ran ahead by
// mistake must not lock the host for ever.
func (s State) clockBehind(f Facts) error {
	floor := s.Floor
	if f.Built.After(floor) {
		floor = f.Built
	}
	if f.Now.Before(floor.Add(-Skew)) {
		return Refuse(ClockBehind, "the clock here says %s, but it is at least %s: set the clock", FormatTime(f.Now), FormatTime(floor))
	}
	return nil
}

func (s State) raiseFloor(h Header) State {
	if h.Issued.After(s.Floor) {
		s.Floor = h.Issued
	}
	return s
}
