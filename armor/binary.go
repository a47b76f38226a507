package armor

import (
	"bytes"
	"compress/flate"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/jitgate/jitgate/policy"
)

// digestLength is how many bytes of SHA-256 end the binary form.
const digestLength = 8

// deflated is set in the first byte if the payload is.
const deflated = 0x10

// dictionary is what a deflated payload may refer back to (RFC 1951; as with
// zlib's inflateSetDictionary): a list of grants as jitgate writes it. It is
// part of the format.
const dictionary = `{
  "realm": "",
  "version": 1,
  "issued": "2026-01-01T00:00:00Z",
  "expires": "2026-01-01T00:00:00Z",
  "epoch": 1,
  "host": {
    "id": "/subscriptions//resourceGroups//providers/Microsoft.Compute/virtualMachines/"
  },
  "policyVersion": 1,
  "grants": [
    {
      "id": "",
      "number": 22,
      "sourceAddressPrefixes": [
        "10.0.0.0/32"
      ],
      "startTimeUtc": "2026-01-01T00:00:00Z",
      "endTimeUtc": "2026-01-01T00:00:00Z",
      "requestor": "",
      "justification": ""
    }
  ]
}
`

// check holds an envelope against the limits of envelopes, and against what
// the binary form can say.
func check(e policy.Envelope) error {
	switch {
	case kindOf(e.Type) == 0:
		return policy.Refuse(policy.WrongType, "payloadType %q is none of jitgate's", e.Type)
	case len(e.Payload) > policy.MaxPayload:
		return policy.Refuse(policy.TooLarge, "the payload has %d bytes, the limit is %d", len(e.Payload), policy.MaxPayload)
	case len(e.Signatures) > policy.MaxSignatures:
		return policy.Refuse(policy.Malformed, "%d signatures, the limit is %d", len(e.Signatures), policy.MaxSignatures)
	}
	for i, s := range e.Signatures {
		if _, err := policy.ParseDigest(string(s.KeyID)); err != nil {
			return policy.Refuse(policy.Malformed, "signatures[%d].keyid: %v", i, err)
		}
	}
	if n := len(e.Encode()); n > policy.MaxEnvelope {
		return policy.Refuse(policy.TooLarge, "the envelope has %d bytes, the limit is %d", n, policy.MaxEnvelope)
	}
	return nil
}

// marshal writes the binary form.
func marshal(e policy.Envelope) ([]byte, error) {
	if err := check(e); err != nil {
		return nil, err
	}
	payload, first := e.Payload, byte(kindOf(e.Type))
	if short := deflate(payload); len(short) < len(payload) {
		payload, first = short, first|deflated
	}
	b := []byte{first}
	b = binary.AppendUvarint(b, uint64(len(payload)))
	b = append(b, payload...)
	b = append(b, byte(len(e.Signatures)))
	for _, s := range e.Signatures {
		id, _ := policy.ParseDigest(string(s.KeyID)) // check has done so
		b = append(b, id[:]...)
		b = binary.AppendUvarint(b, uint64(len(s.Sig)))
		b = append(b, s.Sig...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:digestLength]...), nil
}

// unmarshal reads the binary form strictly: every byte has its place.
func unmarshal(b []byte) (policy.Envelope, error) {
	if len(b) < digestLength || len(b) > policy.MaxEnvelope {
		return policy.Envelope{}, errEnds
	}
	b, sum := b[:len(b)-digestLength], b[len(b)-digestLength:]
	if want := sha256.Sum256(b); !bytes.Equal(sum, want[:digestLength]) {
		return policy.Envelope{}, errors.New("it does not match its digest")
	}
	in := input{b}
	first, err := in.byte()
	if err != nil {
		return policy.Envelope{}, err
	}
	kind := int(first &^ deflated)
	if kind < 1 || kind > len(kinds) {
		return policy.Envelope{}, fmt.Errorf("document type %d is unknown", kind)
	}
	e := policy.Envelope{Type: kinds[kind-1].typ}
	if e.Payload, err = in.counted(); err != nil {
		return policy.Envelope{}, err
	}
	if first&deflated != 0 {
		if e.Payload, err = inflate(e.Payload); err != nil {
			return policy.Envelope{}, err
		}
	}
	count, err := in.byte()
	if err != nil {
		return policy.Envelope{}, err
	}
	if count > policy.MaxSignatures {
		return policy.Envelope{}, fmt.Errorf("%d signatures, the limit is %d", count, policy.MaxSignatures)
	}
	e.Signatures = make([]policy.Signature, count)
	for i := range e.Signatures {
		id, err := in.take(sha256.Size)
		if err != nil {
			return policy.Envelope{}, err
		}
		e.Signatures[i].KeyID = policy.KeyID("sha256:" + hex.EncodeToString(id))
		if e.Signatures[i].Sig, err = in.counted(); err != nil {
			return policy.Envelope{}, err
		}
	}
	if len(in.rest) > 0 {
		return policy.Envelope{}, errors.New("bytes after its end")
	}
	return e, check(e)
}

var errEnds = errors.New("it ends too early")

// input is what is still to be read.
type input struct{ rest []byte }

func (in *input) take(n int) ([]byte, error) {
	if n > len(in.rest) {
		return nil, errEnds
	}
	b := in.rest[:n:n]
	in.rest = in.rest[n:]
	return b, nil
}

func (in *input) byte() (byte, error) {
	b, err := in.take(1)
	if err != nil {
		return 0, err
	}
	return b[0], nil
}

// counted reads a length, in its only spelling, and as many bytes.
func (in *input) counted() ([]byte, error) {
	n, size := binary.Uvarint(in.rest)
	if size <= 0 || n > uint64(len(in.rest)) {
		return nil, errEnds
	}
	if len(binary.AppendUvarint(nil, n)) != size {
		return nil, errors.New("a length with leading zeros")
	}
	in.rest = in.rest[size:]
	return in.take(int(n))
}

func deflate(b []byte) []byte {
	var out bytes.Buffer
	w, err := flate.NewWriterDict(&out, flate.BestCompression, []byte(dictionary))
	if err == nil {
		_, err = w.Write(b)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic("armor: deflating into memory: " + err.Error())
	}
	return out.Bytes()
}

// inflate reads no more than a payload may have, whatever the input asks for.
func inflate(b []byte) ([]byte, error) {
	in := bytes.NewReader(b)
	r := flate.NewReaderDict(in, []byte(dictionary))
	var out strings.Builder
	n, err := io.Copy(&out, io.LimitReader(r, policy.MaxPayload+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("the payload cannot be inflated: %w", err)
	case n > policy.MaxPayload:
		return nil, fmt.Errorf("the payload inflates to more than %d bytes", policy.MaxPayload)
	case in.Len() > 0:
		return nil, errors.New("bytes after the deflated payload")
	case int(n) <= len(b):
		return nil, errors.New("the payload is deflated although that does not shorten it")
	}
	return []byte(out.String()), nil
}
