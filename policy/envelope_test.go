package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

func compact(t *testing.T, text []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Compact(&b, text); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// The protocol's own test vector:
// https://github.com/secure-systems-lab/dsse/blob/v1.0.2/protocol.md#test-vectors
func TestSpecificationVector(t *testing.T) {
	pae := PAE("http://example.com/HelloWorld", []byte("hello world"))
	if string(pae) != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Fatalf("got %q", pae)
	}
	coordinate := func(s string) *big.Int { n, _ := new(big.Int).SetString(s, 10); return n }
	uncompressed := slices.Concat([]byte{4},
		coordinate("46950820868899156662930047687818585632848591499744589407958293238635476079160").FillBytes(make([]byte, 32)),
		coordinate("5640078356564379163099075877009565129882514886557779369047442380624545832820").FillBytes(make([]byte, 32)))
	public, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), uncompressed)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := base64.StdEncoding.DecodeString("A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA==")
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(public)
	if err != nil {
		t.Fatal(err)
	}
	// The vector's signature is r and s side by side; ours is their DER.
	der := []byte{0x30, 0x44, 2, 32}
	der = append(append(der, raw[:32]...), 2, 32)
	der = append(der, raw[32:]...)
	if !k.Verify(pae, der) || k.Verify(pae, raw) {
		t.Error("the specification's signature does not verify")
	}
}

func TestThreshold(t *testing.T) {
	d := policyDoc()
	for _, c := range []struct {
		name     string
		envelope []byte
		want     Code
	}{
		{"both", seal(d, policyA, policyB), ""},
		{"both, other order", seal(d, policyB, policyA), ""},
		{"both, and each again", seal(d, policyA, policyB, policyB, policyA), ""},
		{"both among strangers", seal(d, mallory, policyB, rootA, grantA, policyA), ""},
		{"one", seal(d, policyA), BadSignature},
		{"one twice", seal(d, policyA, policyA), BadSignature},
		{"one sixteen times", reenveloped(seal(d, policyA), func(e *Envelope) { e.Signatures = slices.Repeat(e.Signatures, 16) }), BadSignature},
		{"one, under both ids", reenveloped(seal(d, policyA, policyA), func(e *Envelope) { e.Signatures[1].KeyID = idOf(policyB) }), BadSignature},
		{"one and a stranger", seal(d, policyA, mallory), BadSignature},
		{"one and a grant key", seal(d, policyA, grantA), BadSignature},
		{"one and a broken one", reenveloped(seal(d, policyA, policyB), func(e *Envelope) { e.Signatures[1].Sig[9] ^= 1 }), BadSignature},
		{"one and an empty one", reenveloped(seal(d, policyA, policyB), func(e *Envelope) { e.Signatures[1].Sig = nil }), BadSignature},
		{"signatures exchanged", reenveloped(seal(d, policyA, policyB), func(e *Envelope) {
			e.Signatures[0].KeyID, e.Signatures[1].KeyID = e.Signatures[1].KeyID, e.Signatures[0].KeyID
		}), BadSignature},
		{"no key ids", reenveloped(seal(d, policyA, policyB), func(e *Envelope) { e.Signatures[0].KeyID, e.Signatures[1].KeyID = "", "" }), BadSignature},
		// A broken signature before a good one of the same key must not use up the key.
		{"broken, then good", reenveloped(seal(d, policyA, policyB, policyA), func(e *Envelope) { e.Signatures[0].Sig[9] ^= 1 }), ""},
		{"over another document", reenveloped(seal(policyDoc(func(p *Policy) { p.Version = 2 }), policyA, policyB), func(e *Envelope) { e.Payload = d.Encode() }), BadSignature},
		{"over the payload without its type", bareSignatures(d), BadSignature},
	} {
		t.Run(c.name, func(t *testing.T) {
			v, err := OpenPolicy(c.envelope, trustDoc())
			wantCode(t, err, c.want)
			if err != nil && (v.Digest() != Digest{} || v.Document().Version != 0 || v.Signers() != nil) {
				t.Error("a refused envelope gives away its document")
			}
			if signers := slices.Sorted(slices.Values(v.Signers())); err == nil && !slices.Equal(signers, slices.Sorted(slices.Values(ids(policyA, policyB)))) {
				t.Errorf("signers are %s", signers)
			}
		})
	}
}

// bareSignatures signs the payload itself, not its pre-authentication encoding.
func bareSignatures(d Policy) []byte {
	e := Envelope{Type: TypePolicy, Payload: d.Encode()}
	a, b := describe(policyA), describe(policyB)
	sigA, errA := a.sign(policyA, e.Payload)
	sigB, errB := b.sign(policyB, e.Payload)
	if errA != nil || errB != nil {
		panic("signing failed")
	}
	e.Signatures = []Signature{{a.ID, sigA}, {b.ID, sigB}}
	return e.Encode()
}

func TestEnvelopeForm(t *testing.T) {
	good := string(seal(grantsDoc(), grantA))
	payload := base64.StdEncoding.EncodeToString(grantsDoc().Encode())
	for name, c := range map[string]struct {
		text string
		want Code
	}{
		"as signed":           {good, ""},
		"compact":             {string(compact(t, []byte(good))), ""},
		"white space around":  {"\n " + good + "\t\r\n", ""},
		"URL alphabet":        {string(urlAlphabet(seal(grantsDoc(func(g *Grants) { g.Grants[0].Requestor = "\u00ff\u00fe>>??~~\u00ff" }), grantA))), ""},
		"mixed alphabets":     {strings.Replace(good, payload, "+-"+payload[2:], 1), Malformed},
		"line break":          {strings.Replace(good, payload, payload[:76]+`\n`+payload[76:], 1), Malformed},
		"carriage return":     {strings.Replace(good, payload, payload+`\r`, 1), Malformed},
		"space":               {strings.Replace(good, payload, " "+payload, 1), Malformed},
		"unpadded":            {string(oddBase64("e30", grantA)), Malformed},
		"too much padding":    {string(oddBase64("e30==", grantA)), Malformed},
		"stray bits":          {string(oddBase64("e31=", grantA)), Malformed},
		"stray bits, URL":     {string(oddBase64("_-_-_-9=", grantA)), Malformed},
		"not base64":          {string(oddBase64("{}", grantA)), Malformed},
		"repeated name":       {strings.Replace(good, `"payload"`, `"payload": "", "payload"`, 1), Malformed},
		"unknown name":        {strings.Replace(good, `"payload"`, `"x": 1, "payload"`, 1), Malformed},
		"unknown in a sig":    {strings.Replace(good, `"keyid"`, `"cert": "", "keyid"`, 1), Malformed},
		"case variant":        {strings.Replace(good, `"payload"`, `"Payload"`, 1), Malformed},
		"null signatures":     {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30=","signatures":null}`, Malformed},
		"null key id":         {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30=","signatures":[{"keyid":null,"sig":""}]}`, Malformed},
		"no key id":           {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30=","signatures":[{"sig":""}]}`, Malformed},
		"no sig":              {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30=","signatures":[{"keyid":""}]}`, Malformed},
		"empty signatures":    {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30=","signatures":[]}`, Unsigned},
		"no signatures":       {`{"payloadType":"` + string(TypeGrants) + `","payload":"e30="}`, Unsigned},
		"no type":             {`{"payload":"e30=","signatures":[]}`, Malformed},
		"no payload":          {`{"payloadType":"` + string(TypeGrants) + `","signatures":[]}`, Malformed},
		"other type":          {strings.Replace(good, string(TypeGrants), string(TypePolicy), 1), WrongType},
		"type in capitals":    {strings.Replace(good, string(TypeGrants), strings.ToUpper(string(TypeGrants)), 1), WrongType},
		"empty type":          {strings.Replace(good, string(TypeGrants), "", 1), WrongType},
		"bare document":       {string(grantsDoc().Encode()), Unsigned},
		"empty object":        {"{}", Malformed},
		"array of envelopes":  {"[" + good + "]", Malformed},
		"two envelopes":       {good + good, Malformed},
		"empty":               {"", Malformed},
		"not JSON":            {"-----BEGIN JITGATE-----", Malformed},
		"byte order mark":     {"\ufeff" + good, Malformed},
		"deeper than allowed": {`{"payload":[[[[[[1]]]]]]}`, Malformed},
	} {
		_, err := OpenGrants([]byte(c.text), trustDoc())
		if CodeOf(err) != c.want || (err == nil) != (c.want == "") {
			t.Errorf("%s: got %v, want %q", name, err, c.want)
		}
	}
}

func TestSizeLimits(t *testing.T) {
	padded := func(size int) []byte {
		b := grantsDoc().Encode()
		return append(b, bytes.Repeat([]byte(" "), size-len(b))...)
	}
	for size, want := range map[int]Code{256 << 10: "", 256<<10 + 1: TooLarge} {
		_, err := OpenGrants(sealBytes(TypeGrants, padded(size), grantA), trustDoc())
		wantCode(t, err, want)
		_, err = ParseDocument(TypeGrants, padded(size))
		wantCode(t, err, want)
		e := Envelope{Type: TypeGrants, Payload: padded(size)}
		wantCode(t, e.Sign(grantA), want)
	}
	envelope := seal(grantsDoc(), grantA)
	for size, want := range map[int]Code{512 << 10: "", 512<<10 + 1: TooLarge} {
		_, err := OpenGrants(append(slices.Clone(envelope), bytes.Repeat([]byte("\n"), size-len(envelope))...), trustDoc())
		wantCode(t, err, want)
	}
	// The limits fit together: the largest payload with all signatures is an envelope.
	largest := sealBytes(TypeGrants, padded(MaxPayload), seventeen()[:MaxSignatures]...)
	if _, err := ParseEnvelope(largest); err != nil {
		t.Error(err)
	}
}

func TestSignatureLimit(t *testing.T) {
	for n, want := range map[int]Code{16: "", 17: Malformed, 1000: Malformed} {
		e := reenveloped(seal(grantsDoc(), mallory, grantA), func(e *Envelope) {
			e.Signatures = append(slices.Repeat(e.Signatures[:1], n-1), e.Signatures[1])
		})
		_, err := OpenGrants(e, trustDoc())
		wantCode(t, err, want)
	}
	e := Envelope{Type: TypeGrants, Payload: grantsDoc().Encode()}
	for i, s := range seventeen() {
		if err := e.Sign(s); (err == nil) != (i < MaxSignatures) {
			t.Errorf("signature %d: %v", i+1, err)
		}
	}
	if err := e.Sign(seventeen()[3]); err != nil || len(e.Signatures) != MaxSignatures {
		t.Errorf("a key that signs anew takes the place of its old signature: %v, %d signatures", err, len(e.Signatures))
	}
}

// seventeen is a key more than an envelope takes.
func seventeen() (list []crypto.Signer) {
	for i := range MaxSignatures + 1 {
		list = append(list, edKey(fmt.Sprint("signer ", i)))
	}
	return list
}

// Sign refuses what agents refuse, and leaves the envelope as it was.
func TestSignRefuses(t *testing.T) {
	long := grantsDoc(func(g *Grants) { g.Grants[0].End = g.Grants[0].Start })
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		e    Envelope
		want Code
	}{
		"malformed":         {Envelope{Type: TypeGrants, Payload: long.Encode()}, Malformed},
		"nil slice":         {Envelope{Type: TypeGrants, Payload: []byte(strings.Replace(minimalGrants, "[]", "null", 1))}, Malformed},
		"of another type":   {Envelope{Type: TypePolicy, Payload: grantsDoc().Encode()}, Malformed},
		"of an unknown one": {Envelope{Type: "text/plain", Payload: grantsDoc().Encode()}, WrongType},
		"without payload":   {Envelope{Type: TypeGrants}, Malformed},
	} {
		if err := c.e.Sign(grantA); CodeOf(err) != c.want || len(c.e.Signatures) != 0 {
			t.Errorf("%s: got %v and %d signatures", name, err, len(c.e.Signatures))
		}
	}
	e := Envelope{Type: TypeGrants, Payload: grantsDoc().Encode()}
	if err := e.Sign(p384); err == nil || len(e.Signatures) != 0 {
		t.Errorf("signed with P-384: %v", err)
	}
}

// The control plane puts people's words into documents. Words that are not
// UTF-8 must come back as an error or as other words, never as a panic.
func TestEncodeOfInvalidUTF8(t *testing.T) {
	defer func() {
		if r := recover(); r != nil {
			t.Errorf("Encode panics: %v", r)
		}
	}()
	b := grantsDoc(func(g *Grants) { g.Grants[0].Justification = "caf\xe9" }).Encode()
	e := Envelope{Type: TypeGrants, Payload: b}
	if err := e.Sign(grantA); err != nil && CodeOf(err) != Malformed {
		t.Error(err)
	}
}
