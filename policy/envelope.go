package policy

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// Type is the payloadType of an envelope. It is signed with the payload.
type Type string

// The three documents.
const (
	TypeTrust  Type = "application/vnd.jitgate.trust.v1+json"
	TypePolicy Type = "application/vnd.jitgate.policy.v1+json"
	TypeGrants Type = "application/vnd.jitgate.grants.v1+json"
)

// Digest is the SHA-256 of a payload's bytes.
type Digest [sha256.Size]byte

func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// ParseDigest reads "sha256:" and 64 lower-case hexadecimal digits.
func ParseDigest(s string) (Digest, error) {
	var d Digest
	digits, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(digits) != 2*len(d) || strings.ToLower(digits) != digits {
		return d, fmt.Errorf("%q is not sha256: and 64 lower-case hexadecimal digits", s)
	}
	if _, err := hex.Decode(d[:], []byte(digits)); err != nil {
		return Digest{}, fmt.Errorf("%q: %w", s, err)
	}
	return d, nil
}

// MarshalText writes the form ParseDigest reads.
func (d Digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText reads the form MarshalText writes.
func (d *Digest) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDigest(string(b))
	return err
}

// Signature is one signature of an Envelope.
type Signature struct {
	KeyID KeyID
	Sig   []byte
}

// An Envelope is a parsed DSSE v1 envelope: not verified, so its payload is
// for showing and for signing only. Agents take documents from the Open
// functions, never from here.
//
// DSSE: https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md
type Envelope struct {
	Type       Type
	Payload    []byte
	Signatures []Signature
}

type envelopeJSON struct {
	PayloadType *string         `json:"payloadType"`
	Payload     *string         `json:"payload"`
	Signatures  []signatureJSON `json:"signatures"`
}

type signatureJSON struct {
	KeyID *string `json:"keyid"`
	Sig   *string `json:"sig"`
}

// ParseEnvelope reads an envelope strictly and checks no signature.
func ParseEnvelope(data []byte) (Envelope, error) {
	if len(data) > MaxEnvelope {
		return Envelope{}, Refuse(TooLarge, "the envelope has %d bytes, the limit is %d", len(data), MaxEnvelope)
	}
	var raw envelopeJSON
	if err := decodeStrict(data, &raw); err != nil {
		if bare(data) {
			return Envelope{}, Refuse(Unsigned, "a document without an envelope: sign it with jitgate sign")
		}
		return Envelope{}, Refuse(Malformed, "envelope: %v", err)
	}
	e, err := raw.envelope()
	if err != nil {
		return Envelope{}, Refuse(Malformed, "envelope: %v", err)
	}
	if len(e.Payload) > MaxPayload {
		return Envelope{}, Refuse(TooLarge, "the payload has %d bytes, the limit is %d", len(e.Payload), MaxPayload)
	}
	return e, nil
}

// bare reports whether data is a JSON object with none of the envelope's
// names: a document somebody forgot to sign.
func bare(data []byte) bool {
	var names map[string]jsontext.Value
	if json.Unmarshal(data, &names) != nil {
		return false
	}
	for _, name := range []string{"payloadType", "payload", "signatures"} {
		if _, ok := names[name]; ok {
			return false
		}
	}
	return true
}

func (raw envelopeJSON) envelope() (Envelope, error) {
	typ, err := need("payloadType", raw.PayloadType)
	if err != nil {
		return Envelope{}, err
	}
	payload, err := need("payload", raw.Payload)
	if err != nil {
		return Envelope{}, err
	}
	if len(raw.Signatures) > MaxSignatures {
		return Envelope{}, fmt.Errorf("%d signatures, the limit is %d", len(raw.Signatures), MaxSignatures)
	}
	e := Envelope{Type: Type(typ), Signatures: make([]Signature, len(raw.Signatures))}
	if e.Payload, err = decodeBase64(payload); err != nil {
		return Envelope{}, fmt.Errorf("payload: %w", err)
	}
	for i, s := range raw.Signatures {
		id, err := need("keyid", s.KeyID)
		if err != nil {
			return Envelope{}, fmt.Errorf("signatures[%d]: %w", i, err)
		}
		sig, err := need("sig", s.Sig)
		if err != nil {
			return Envelope{}, fmt.Errorf("signatures[%d]: %w", i, err)
		}
		e.Signatures[i].KeyID = KeyID(id)
		if e.Signatures[i].Sig, err = decodeBase64(sig); err != nil {
			return Envelope{}, fmt.Errorf("signatures[%d].sig: %w", i, err)
		}
	}
	return e, nil
}

// decodeBase64 takes the standard and the URL-safe alphabet, as DSSE asks of
// verifiers, with padding, without line breaks (which encoding/base64 skips)
// and without stray trailing bits, so that one payload has few spellings.
func decodeBase64(s string) ([]byte, error) {
	if strings.ContainsAny(s, "\r\n") {
		return nil, fmt.Errorf("base64 with a line break: encode with base64 -w0")
	}
	encoding := base64.StdEncoding
	if strings.ContainsAny(s, "-_") {
		encoding = base64.URLEncoding
	}
	return encoding.Strict().DecodeString(s)
}

// PAE is DSSE's pre-authentication encoding: the bytes a signature is over.
func PAE(typ Type, payload []byte) []byte {
	b := make([]byte, 0, len(typ)+len(payload)+32)
	b = append(b, "DSSEv1 "...)
	b = strconv.AppendInt(b, int64(len(typ)), 10)
	b = append(b, ' ')
	b = append(b, typ...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(len(payload)), 10)
	b = append(b, ' ')
	return append(b, payload...)
}

// verify returns the ids of the keys in ring that signed the envelope as a
// document of type want, once they reach the ring's threshold.
func (e Envelope) verify(want Type, ring keyring) ([]KeyID, error) {
	if e.Type != want {
		return nil, Refuse(WrongType, "payloadType is %q, expected %q", e.Type, want)
	}
	if len(e.Signatures) == 0 {
		return nil, Refuse(Unsigned, "the envelope has no signature")
	}
	if ring.threshold < 1 {
		return nil, Refuse(Unsigned, "nothing here says which keys have role %s", ring.role)
	}
	signers := e.signers(ring)
	if len(signers) < ring.threshold {
		return nil, Refuse(BadSignature, "%d valid signatures of role %s, %d needed", len(signers), ring.role, ring.threshold)
	}
	return signers, nil
}

// signers are the keys in ring that signed the envelope, in its order.
func (e Envelope) signers(ring keyring) (signers []KeyID) {
	message := PAE(e.Type, e.Payload)
	seen := map[KeyID]bool{} // one key counts once, however often it signs
	for _, s := range e.Signatures {
		// The key id only picks a key of this role. The scheme comes from the
		// trust document: nothing in the envelope chooses an algorithm.
		key, ok := ring.keys[s.KeyID]
		if ok && !seen[s.KeyID] && key.Verify(message, s.Sig) {
			seen[s.KeyID] = true
			signers = append(signers, s.KeyID)
		}
	}
	return signers
}

// Encode writes the envelope as a file.
func (e Envelope) Encode() []byte {
	raw := envelopeJSON{PayloadType: (*string)(&e.Type), Signatures: []signatureJSON{}}
	payload := base64.StdEncoding.EncodeToString(e.Payload)
	raw.Payload = &payload
	for _, s := range e.Signatures {
		id, sig := string(s.KeyID), base64.StdEncoding.EncodeToString(s.Sig)
		raw.Signatures = append(raw.Signatures, signatureJSON{&id, &sig})
	}
	return encode(raw)
}

// Sign adds the signer's signature to the envelope, in place of an earlier
// one by the same key. The payload is first read by the parser agents use; a
// document they would refuse is not signed.
func (e *Envelope) Sign(signer crypto.Signer) error {
	if _, err := ParseDocument(e.Type, e.Payload); err != nil {
		return err
	}
	key, err := NewKey(signer.Public())
	if err != nil {
		return err
	}
	sig, err := key.sign(signer, PAE(e.Type, e.Payload))
	if err != nil {
		return fmt.Errorf("sign with %s: %w", key.ID, err)
	}
	return e.add(Signature{key.ID, sig})
}

// add puts s in place of an earlier signature by the same key, or at the end.
func (e *Envelope) add(s Signature) error {
	for i, earlier := range e.Signatures {
		if earlier.KeyID == s.KeyID {
			e.Signatures[i] = s
			return nil
		}
	}
	if len(e.Signatures) == MaxSignatures {
		return fmt.Errorf("the envelope already has %d signatures", MaxSignatures)
	}
	e.Signatures = append(e.Signatures, s)
	return nil
}

// ParseDocument decodes an unverified payload with the agents' own parser.
// The result is a Trust, Policy or Grants.
func ParseDocument(typ Type, payload []byte) (any, error) {
	if len(payload) > MaxPayload {
		return nil, Refuse(TooLarge, "the document has %d bytes, the limit is %d", len(payload), MaxPayload)
	}
	switch typ {
	case TypeTrust:
		return parseTrust(payload)
	case TypePolicy:
		return parsePolicy(payload)
	case TypeGrants:
		return parseGrants(payload)
	}
	return nil, Refuse(WrongType, "payloadType %q is none of jitgate's", typ)
}

// Digest is the SHA-256 of the payload's bytes.
func (e Envelope) Digest() Digest { return sha256.Sum256(e.Payload) }
