package agent

import (
	"bytes"

	"github.com/jitgate/jitgate/policy"
)

// documents are the documents in force, as delivered and as read. The zero
// documents permit nothing.
type documents struct {
	raw    [kinds][]byte
	trust  policy.Trust
	policy policy.Policy
	grants policy.Grants
}

// version returns the version in force of one kind; 0 means none.
func (d documents) version(k Kind) uint64 {
	switch k {
	case Trust:
		return d.trust.Version
	case Policy:
		return d.policy.Version
	default:
		return d.grants.Version
	}
}

// admit verifies raw as the next document of kind k and returns the documents
// and the state with it in force. It is pure. On a refusal both stay as they
// were. pin anchors the first trust document.
func (d documents) admit(s policy.State, k Kind, raw []byte, pin policy.Digest, f policy.Facts) (documents, policy.State, error) {
	next, state, err := d.verify(s, k, raw, pin, f)
	if err != nil {
		return d, s, err
	}
	next.raw[k] = raw
	if k == Trust {
		next = next.reverify()
	}
	return next, state, nil
}

func (d documents) verify(s policy.State, k Kind, raw []byte, pin policy.Digest, f policy.Facts) (documents, policy.State, error) {
	if k != Trust && d.trust.Version == 0 {
		return d, s, policy.Refuse(policy.Unsigned, "no trust document is in force here: run jitgate trust install")
	}
	switch k {
	case Trust:
		v, err := d.openTrust(s, raw, pin)
		if err == nil {
			s, err = policy.AdmitTrust(s, v, d.trust, f)
		}
		d.trust = v.Document()
		return d, s, err
	case Policy:
		v, err := policy.OpenPolicy(raw, d.trust)
		if err == nil {
			s, err = policy.AdmitPolicy(s, v, d.trust, f)
		}
		d.policy = v.Document()
		return d, s, err
	default:
		v, err := policy.OpenGrants(raw, d.trust)
		if err == nil {
			s, err = policy.AdmitGrants(s, v, d.trust, d.policy, f)
		}
		d.grants = v.Document()
		return d, s, err
	}
}

func (d documents) openTrust(s policy.State, raw []byte, pin policy.Digest) (policy.Verified[policy.Trust], error) {
	switch {
	case d.trust.Version != 0:
		return policy.OpenTrust(raw, d.trust)
	case s.Trust.Version != 0:
		// The saved document was lost. The mark still says which one it was.
		return policy.OpenPinnedTrust(raw, s.Trust.Digest)
	case pin == (policy.Digest{}):
		return policy.Verified[policy.Trust]{}, policy.Refuse(policy.Unsigned, "no trust_pin in the settings says which realm this host belongs to: run jitgate trust install")
	}
	return policy.OpenPinnedTrust(raw, pin)
}

// reverify drops what no longer holds under the trust document in force: a
// signer whose key was taken away stops counting at once, and so does an
// older epoch.
func (d documents) reverify() documents {
	if _, err := policy.OpenPolicy(d.raw[Policy], d.trust); err != nil || policy.CurrentEpoch(d.policy.Epoch, policy.RolePolicy, d.trust) != nil {
		d.policy, d.raw[Policy] = policy.Policy{}, nil
	}
	if _, err := policy.OpenGrants(d.raw[Grants], d.trust); err != nil || policy.CurrentEpoch(d.grants.Epoch, policy.RoleGrant, d.trust) != nil {
		d.grants, d.raw[Grants] = policy.Grants{}, nil
	}
	return d
}

// restore puts saved documents back in force, each only if it is the one the
// mark names and is still meant for this host: their times were judged when
// they were admitted, and Evaluate judges their ends. The state may be another
// machine's, cloned, or this one may have got another name.
func restore(s policy.State, saved [kinds][]byte, f policy.Facts) documents {
	var d documents
	if v, err := policy.OpenPinnedTrust(saved[Trust], s.Trust.Digest); err == nil {
		d.trust, d.raw[Trust] = v.Document(), saved[Trust]
	}
	if v, err := policy.OpenPolicy(saved[Policy], d.trust); err == nil && v.Digest() == s.Policy.Digest &&
		policy.CurrentEpoch(v.Document().Epoch, policy.RolePolicy, d.trust) == nil && policy.MeantFor(v.Document().Host, f) == nil {
		d.policy, d.raw[Policy] = v.Document(), saved[Policy]
	}
	if v, err := policy.OpenGrants(saved[Grants], d.trust); err == nil && v.Digest() == s.Grants.Digest &&
		policy.CurrentEpoch(v.Document().Epoch, policy.RoleGrant, d.trust) == nil && policy.MeantFor(v.Document().Host, f) == nil {
		d.grants, d.raw[Grants] = v.Document(), saved[Grants]
	}
	return d
}

// delivered reports whether raw is what is in force already.
func (d documents) delivered(k Kind, raw []byte) bool { return bytes.Equal(d.raw[k], raw) }
