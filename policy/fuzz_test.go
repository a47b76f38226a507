package policy

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/dsse"
)

// referenceKey is a key as DSSE's reference implementation takes it.
type referenceKey struct{ Key }

func (k referenceKey) Verify(_ context.Context, data, sig []byte) error {
	if !k.Key.Verify(data, sig) {
		return errors.New("bad signature")
	}
	return nil
}
func (k referenceKey) KeyID() (string, error)   { return string(k.ID), nil }
func (k referenceKey) Public() crypto.PublicKey { return k.public }

// referenceOpen verifies an envelope with the reference implementation.
func referenceOpen(t *testing.T, envelope []byte, ring keyring) []byte {
	t.Helper()
	var keys []dsse.Verifier
	for _, k := range ring.keys {
		keys = append(keys, referenceKey{k})
	}
	v, err := dsse.NewMultiEnvelopeVerifier(ring.threshold, keys...)
	if err != nil {
		t.Fatal(err)
	}
	var e dsse.Envelope
	if err := json.Unmarshal(envelope, &e); err != nil {
		t.Fatalf("encoding/json does not read what we accepted: %v\n%s", err, envelope)
	}
	_, body, err := v.VerifyAndDecode(t.Context(), &e)
	if err != nil {
		t.Fatalf("the reference refuses what we accepted: %v\n%s", err, envelope)
	}
	return body
}

// Whatever is accepted here, DSSE's reference implementation accepts with the
// same body. Policies need two of two signatures, grants one of one.
func FuzzOpen(f *testing.F) {
	seeds := [][]byte{
		seal(policyDoc(), policyA, policyB),
		seal(policyDoc(), mallory, policyB, policyA),
		seal(policyDoc(), policyA, policyA), // below the threshold
		seal(grantsDoc(), grantA),
		seal(grantsDoc(), mallory, grantA),
		seal(grantsDoc(), policyA, policyB),
	}
	files, err := filepath.Glob(vectorDir + "/*.json")
	if err != nil || len(files) < 130 { // a glob of a directory that went missing finds nothing, silently
		f.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, b)
	}
	for _, s := range seeds {
		f.Add(s)
	}
	trust, accepted := trustDoc(), 0
	f.Fuzz(func(t *testing.T, envelope []byte) {
		check := func(digest Digest, role Role) {
			accepted++
			body := referenceOpen(t, envelope, trust.keyring(role))
			if digest != sha(body) {
				t.Fatalf("the reference reads another body:\n%s", body)
			}
		}
		if v, err := OpenPolicy(envelope, trust); err == nil {
			check(v.Digest(), RolePolicy)
		}
		if v, err := OpenGrants(envelope, trust); err == nil {
			check(v.Digest(), RoleGrant)
		}
	})
	// Seeds that no longer open would leave nothing to compare.
	if accepted == 0 && !fuzzing() {
		f.Error("no seed was accepted")
	}
}

// No two documents share a pre-authentication encoding, and ours is DSSE's.
func FuzzPAE(f *testing.F) {
	f.Add("http://example.com/HelloWorld", []byte("hello world"), "", []byte(""))
	f.Add("a", []byte("b"), "a 1 b", []byte(""))
	f.Add("a 0", []byte(""), "a", []byte("0 "))
	f.Add("é", []byte("\x00"), "e", []byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, t1 string, b1 []byte, t2 string, b2 []byte) {
		p1, p2 := PAE(Type(t1), b1), PAE(Type(t2), b2)
		if same := t1 == t2 && bytes.Equal(b1, b2); bytes.Equal(p1, p2) != same {
			t.Errorf("%q and %q: encodings equal is %t", p1, p2, !same)
		}
		if want := dsse.PAE(t1, b1); !bytes.Equal(p1, want) {
			t.Errorf("got %q, the reference has %q", p1, want)
		}
	})
}

// Any bytes parse or are refused with a code; what parses survives its own
// Encode, and every other reader of JSON sees the same names.
func FuzzParseDocument(f *testing.F) {
	for _, s := range [][]byte{trustDoc().Encode(), policyDoc().Encode(), grantsDoc().Encode(), []byte(minimalPolicy), []byte(minimalGrants), []byte("{}")} {
		for _, kind := range []byte{0, 1, 2} {
			f.Add(kind, s)
		}
	}
	types := []Type{TypeTrust, TypePolicy, TypeGrants}
	f.Fuzz(func(t *testing.T, kind byte, payload []byte) {
		typ := types[int(kind)%len(types)]
		doc, err := ParseDocument(typ, payload)
		if err != nil {
			if c := CodeOf(err); c != Malformed && c != TooLarge {
				t.Fatalf("refused without a fitting code: %v", err)
			}
			return
		}
		if !json.Valid(payload) {
			t.Fatalf("encoding/json does not read what we accepted:\n%s", payload)
		}
		encoded := doc.(interface{ Encode() []byte }).Encode()
		if len(encoded) > MaxPayload {
			return // indented it is beyond the limit: Sign would say so
		}
		again, err := ParseDocument(typ, encoded)
		if err != nil {
			t.Fatalf("%v\nin the encoding of an accepted document:\n%s", err, encoded)
		}
		if !reflect.DeepEqual(doc, again) {
			t.Fatalf("got  %+v\nwant %+v", again, doc)
		}
	})
}

var durationForm = regexp.MustCompile(`^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+)S)?)?$`)

// An accepted duration has the form of ISO 8601, is what arithmetic without
// overflow makes of it, and FormatDuration writes it back.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"PT3H", "P1D", "P1DT2H3M4S", "PT0S", "P3660D", "PT", "P", "P1M", "PT1.5H", "P999999999D", "P213504D"} {
		f.Add(s)
	}
	units := []time.Duration{day, time.Hour, time.Minute, sec}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDuration(s)
		if err != nil {
			return
		}
		parts := durationForm.FindStringSubmatch(s)
		if parts == nil {
			t.Fatalf("%q: accepted", s)
		}
		want := new(big.Int)
		for i, digits := range parts[1:] {
			if n, ok := new(big.Int).SetString(digits, 10); ok {
				want.Add(want, n.Mul(n, big.NewInt(int64(units[i]))))
			}
		}
		if want.Cmp(big.NewInt(int64(d))) != 0 || d < 0 || d > maxDuration {
			t.Fatalf("%q: got %d ns, want %d", s, d, want)
		}
		if again, err := ParseDuration(FormatDuration(d)); err != nil || again != d {
			t.Fatalf("%q: %s reads as %v, %v", s, FormatDuration(d), again, err)
		}
	})
}

// A changed byte of a signed envelope never makes another document of it.
func FuzzMalleability(f *testing.F) {
	trust, doc := trustDoc(), policyDoc()
	envelope := seal(doc, policyA, policyB)
	digest := sha(doc.Encode())
	for i := 0; i < len(envelope); i += len(envelope) / 40 {
		f.Add(uint16(i), byte(1), uint16(i/2), byte(0))
	}
	f.Fuzz(func(t *testing.T, i uint16, flip byte, j uint16, other byte) {
		e := slices.Clone(envelope)
		e[int(i)%len(e)] ^= flip
		e[int(j)%len(e)] ^= other
		v, err := OpenPolicy(e, trust)
		if err == nil && v.Digest() != digest {
			t.Fatalf("accepted with another payload:\n%s", e)
		}
		if err != nil && (v.Digest() != Digest{} || CodeOf(err) == "") {
			t.Fatalf("refused with %v, but digest %v", err, v.Digest())
		}
	})
}

// Every single byte, every bit of it; FuzzMalleability goes on from here.
func TestOneChangedByte(t *testing.T) {
	trust, doc := trustDoc(), grantsDoc()
	envelope := seal(doc, grantA)
	text := string(envelope)
	for i := range envelope {
		for bit := range 8 {
			e := slices.Clone(envelope)
			e[i] ^= 1 << bit
			v, err := OpenGrants(e, trust)
			if err != nil {
				continue
			}
			if v.Digest() != sha(doc.Encode()) {
				t.Fatalf("byte %d, bit %d: accepted with another payload", i, bit)
			}
			// What may change is the white space, and an ASCII letter of
			// base64 that has a second spelling.
			if !strings.ContainsRune(" \n", rune(text[i])) && !strings.ContainsRune("+/-_", rune(text[i])) {
				t.Errorf("byte %d, bit %d: %q for %q is accepted", i, bit, e[i], text[i])
			}
		}
	}
}

// A file cut anywhere is refused, but for its final newline.
func TestCutAnywhere(t *testing.T) {
	envelope := seal(grantsDoc(), grantA)
	for n := range len(envelope) - 1 {
		if _, err := OpenGrants(envelope[:n], trustDoc()); CodeOf(err) != Malformed {
			t.Fatalf("%d of %d bytes: %v", n, len(envelope), err)
		}
	}
}

// Every changed byte of the payload breaks the signature: the code says so,
// before anything in the payload is read.
func TestOneChangedPayloadByte(t *testing.T) {
	e, err := ParseEnvelope(seal(grantsDoc(), grantA))
	if err != nil {
		t.Fatal(err)
	}
	for i := range e.Payload {
		e.Payload[i] ^= 1
		_, err := OpenGrants(e.Encode(), trustDoc())
		wantCode(t, err, BadSignature)
		e.Payload[i] ^= 1
	}
}
