package policy

import (
	"fmt"
)

// Verified is a document whose signatures hold. Only the Open functions make
// one; the zero Verified holds the zero document, which permits nothing.
type Verified[D Trust | Policy | Grants] struct {
	doc     D
	digest  Digest
	signers []KeyID
}

// Document returns what was signed.
func (v Verified[D]) Document() D { return v.doc }

// Digest returns the SHA-256 of the payload's bytes.
func (v Verified[D]) Digest() Digest { return v.digest }

// Signers returns the keys of the role that signed, in the envelope's order.
func (v Verified[D]) Signers() []KeyID { return v.signers }

// OpenPolicy verifies an envelope as a policy signed under t.
func OpenPolicy(envelope []byte, t Trust) (Verified[Policy], error) {
	return open(envelope, TypePolicy, t.keyring(RolePolicy), parsePolicy)
}

// OpenGrants verifies an envelope as a list of grants signed under t.
func OpenGrants(envelope []byte, t Trust) (Verified[Grants], error) {
	return open(envelope, TypeGrants, t.keyring(RoleGrant), parseGrants)
}

// OpenTrust verifies an envelope as the successor of current: a threshold of
// current's root keys and a threshold of its own must have signed it
// (TUF 1.0.34, section 5.3.4).
func OpenTrust(envelope []byte, current Trust) (Verified[Trust], error) {
	v, err := open(envelope, TypeTrust, current.keyring(RoleRoot), parseTrust)
	if err != nil {
		return Verified[Trust]{}, err
	}
	return selfSigned(envelope, v)
}

// OpenPinnedTrust verifies an envelope as the trust document whose payload
// has the digest pin. The host learnt the pin from whoever installed it, or
// from its own durable mark. The document must also carry a threshold of its
// own root keys.
func OpenPinnedTrust(envelope []byte, pin Digest) (Verified[Trust], error) {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		return Verified[Trust]{}, err
	}
	if e.Type != TypeTrust {
		return Verified[Trust]{}, Refuse(WrongType, "payloadType is %q, expected %q", e.Type, TypeTrust)
	}
	digest := e.Digest()
	if digest != pin {
		return Verified[Trust]{}, Refuse(BadSignature, "the payload is %s, the pin is %s", digest, pin)
	}
	t, err := parseTrust(e.Payload)
	if err != nil {
		return Verified[Trust]{}, err
	}
	return selfSigned(envelope, Verified[Trust]{doc: t, digest: digest})
}

// selfSigned holds a trust document against its own root role.
func selfSigned(envelope []byte, v Verified[Trust]) (Verified[Trust], error) {
	own, err := open(envelope, TypeTrust, v.doc.keyring(RoleRoot), parseTrust)
	if err != nil {
		return Verified[Trust]{}, fmt.Errorf("by its own root keys: %w", err)
	}
	return own, nil
}

// open verifies first and decodes afterwards, and decodes the bytes it
// verified: nothing inside is read before the signatures hold.
func open[D Trust | Policy | Grants](envelope []byte, want Type, ring keyring, parse func([]byte) (D, error)) (Verified[D], error) {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		return Verified[D]{}, err
	}
	signers, err := e.verify(want, ring)
	if err != nil {
		return Verified[D]{}, err
	}
	doc, err := parse(e.Payload)
	if err != nil {
		return Verified[D]{}, err
	}
	return Verified[D]{doc: doc, digest: e.Digest(), signers: signers}, nil
}
