package policy

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

var sshSigners = []sshSigner{sshEd, sshEC, sshSKEd, sshSKEC}

// referenceSSH verifies a signature blob with golang.org/x/crypto/ssh.
func referenceSSH(t *testing.T, message, blob []byte) {
	t.Helper()
	var outer sshOuter
	if err := ssh.Unmarshal(blob, &outer); err != nil {
		t.Fatalf("x/crypto/ssh does not read the signature: %v\n%x", err, blob)
	}
	public, err := ssh.ParsePublicKey(outer.Public)
	if err != nil {
		t.Fatalf("x/crypto/ssh does not read the key: %v\n%x", err, blob)
	}
	hash := map[string]crypto.Hash{"sha256": crypto.SHA256, "sha512": crypto.SHA512}[outer.Hash].New()
	hash.Write(message)
	signed := ssh.Marshal(sshSigned{outer.Magic, outer.Namespace, outer.Reserved, outer.Hash, hash.Sum(nil)})
	var sig ssh.Signature
	if err := ssh.Unmarshal(outer.Signature, &sig); err != nil {
		t.Fatalf("x/crypto/ssh does not read the signature within: %v\n%x", err, blob)
	}
	if err := public.Verify(signed, &sig); err != nil {
		t.Fatalf("x/crypto/ssh refuses what we accepted: %v\n%x", err, blob)
	}
}

// What x/crypto/ssh signs holds here, and what holds here, holds there.
func TestSSHSignaturesBothWays(t *testing.T) {
	message := PAE(TypePolicy, policyDoc().Encode())
	for _, s := range sshSigners {
		k := describe(s)
		for _, hash := range []string{"sha256", "sha512"} {
			sig := s.with(func(s *sshSigner) { s.hash = hash }).signature(message)
			if err := k.verifySSH(message, sig); err != nil {
				t.Errorf("%s, %s: %v", s.kind, hash, err)
				continue
			}
			referenceSSH(t, message, sig)
		}
		if s.sk() {
			continue // x/crypto/ssh holds no token
		}
		signer, err := ssh.NewSignerFromSigner(plainKey(s))
		if err != nil {
			t.Fatal(err)
		}
		for range 64 { // r and s of every length
			sig := s.with(func(s *sshSigner) {
				s.edit = func(o *sshOuter) {
					digest := crypto.SHA512.New()
					digest.Write(message)
					made, err := signer.Sign(rand.Reader, ssh.Marshal(sshSigned{o.Magic, o.Namespace, o.Reserved, o.Hash, digest.Sum(nil)}))
					if err != nil {
						t.Fatal(err)
					}
					o.Signature = ssh.Marshal(made)
				}
			}).signature(message)
			if err := k.verifySSH(message, sig); err != nil {
				t.Fatalf("%s by x/crypto/ssh: %v\n%x", s.kind, err, sig)
			}
		}
	}
}

func TestSSHSignatureForm(t *testing.T) {
	message := []byte("message")
	type edit = func(*sshSigner)
	outer := func(change func(*sshOuter)) edit { return func(s *sshSigner) { s.edit = change } }
	for _, c := range []struct {
		name string
		key  sshSigner
		edit edit
		want string // the error has these words; empty: it holds
	}{
		{"as made", sshEd, func(*sshSigner) {}, ""},
		{"sha256", sshEC, func(s *sshSigner) { s.hash = "sha256" }, ""},
		{"other magic", sshEd, outer(func(o *sshOuter) { o.Magic[5] = 'H' }), "not a signature of ssh-keygen"},
		{"version 0", sshEd, func(s *sshSigner) { s.version = 0 }, "version 0"},
		{"version 2", sshEd, func(s *sshSigner) { s.version = 2 }, "version 2"},
		{"version 257", sshEd, func(s *sshSigner) { s.version = 257 }, "version 257"},
		{"namespace file", sshEd, func(s *sshSigner) { s.namespace = "file" }, `namespace is "file"`},
		{"namespace empty", sshEd, func(s *sshSigner) { s.namespace = "" }, `namespace is ""`},
		{"namespace longer", sshEd, func(s *sshSigner) { s.namespace += "1" }, "namespace is"},
		{"namespace in capitals", sshEd, func(s *sshSigner) { s.namespace = "JITGATE.v1" }, "namespace is"},
		{"namespace written over", sshEd, outer(func(o *sshOuter) { o.Namespace = "file" }), "namespace is"},
		{"reserved", sshEd, func(s *sshSigner) { s.reserved = "\x00" }, "reserved"},
		{"hash sha1", sshEd, func(s *sshSigner) { s.hash = "sha1" }, `hash algorithm is "sha1"`},
		{"hash in capitals", sshEd, func(s *sshSigner) { s.hash = "SHA512" }, "hash algorithm is"},
		{"hash empty", sshEd, func(s *sshSigner) { s.hash = "" }, "hash algorithm is"},
		{"hash written over", sshEd, outer(func(o *sshOuter) { o.Hash = "sha256" }), "does not hold"},
		{"other key inside", sshEd, outer(func(o *sshOuter) { o.Public = sshEC.blob() }), "another key"},
		{"no key inside", sshEd, outer(func(o *sshOuter) { o.Public = nil }), "another key"},
		{"key inside with a byte more", sshEd, outer(func(o *sshOuter) { o.Public = append(o.Public, 0) }), "another key"},
		{"same point, other kind", sshSKEd, outer(func(o *sshOuter) { o.Public = sshKey(sshEd25519, sshSKEd.Signer).blob() }), "another key"},
		{"other application", sshSKEC, func(s *sshSigner) { s.application = "ssh:x" }, "another key"},
		{"application of its own", sshSKEC.with(func(s *sshSigner) { s.application, s.signedFor = "ssh:work", "ssh:work" }), func(*sshSigner) {}, ""},
		{"signed for another application", sshSKEC, func(s *sshSigner) { s.signedFor = "ssh:x" }, "does not hold"},
		{"other kind", sshEd, func(s *sshSigner) { s.innerKind = sshSKEd25519 }, "of kind"},
		{"plain kind by a token", sshSKEC, func(s *sshSigner) { s.innerKind = sshECDSA }, "of kind"},
		{"no kind", sshEd, func(s *sshSigner) { s.innerKind = "" }, "of kind"},
		{"empty", sshEd, outer(func(o *sshOuter) { o.Signature = nil }), "cut"},
		{"a byte behind it", sshEd, outer(func(o *sshOuter) { o.Signature = append(o.Signature, 0) }), "behind it"},
		{"a byte behind a token's", sshSKEd, outer(func(o *sshOuter) { o.Signature = append(o.Signature, 0) }), "behind it"},
		{"flags and counter by a plain key", sshEd, outer(func(o *sshOuter) { o.Signature = append(o.Signature, 1, 0, 0, 0, 7) }), "behind it"},
		{"without flags and counter", sshSKEd, outer(func(o *sshOuter) { o.Signature = o.Signature[:len(o.Signature)-5] }), "cut"},
		{"without counter", sshSKEd, outer(func(o *sshOuter) { o.Signature = o.Signature[:len(o.Signature)-4] }), "cut"},
		{"flags 0", sshSKEd, func(s *sshSigner) { s.flags = 0 }, "touched"},
		{"flags 1", sshSKEC, func(s *sshSigner) { s.flags = 1 }, ""},
		{"flags 4, a PIN alone", sshSKEC, func(s *sshSigner) { s.flags = 4 }, "touched"},
		{"flags 5", sshSKEd, func(s *sshSigner) { s.flags = 5 }, ""},
		{"flags 0xfe", sshSKEd, func(s *sshSigner) { s.flags = 0xfe }, "touched"},
		{"flags written over", sshSKEd, outer(func(o *sshOuter) { o.Signature[len(o.Signature)-5] = 5 }), "does not hold"},
		{"counter written over", sshSKEd, outer(func(o *sshOuter) { o.Signature[len(o.Signature)-1]++ }), "does not hold"},
		{"counter 0", sshSKEd, func(s *sshSigner) { s.counter = 0 }, ""},
		{"counter 2^32-1", sshSKEC, func(s *sshSigner) { s.counter = 1<<32 - 1 }, ""},
	} {
		err := describe(c.key).verifySSH(message, c.key.with(c.edit).signature(message))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
	for _, s := range sshSigners {
		k, sig := describe(s), s.signature(message)
		for n := range sig {
			if k.Verify(message, sig[:n]) {
				t.Errorf("%s: accepted with %d of %d bytes", s.kind, n, len(sig))
			}
		}
		for i := range sig {
			for bit := range 8 {
				bad := slices.Clone(sig)
				bad[i] ^= 1 << bit
				if k.Verify(message, bad) {
					t.Errorf("%s: accepted with bit %d of byte %d changed", s.kind, bit, i)
				}
			}
		}
		if k.Verify([]byte("massage"), sig) || k.Verify(message, append(sig, 0)) || k.Verify(message, nil) {
			t.Errorf("%s: verifies the wrong things", s.kind)
		}
	}
}

// An ECDSA signature has one spelling of its two numbers.
func TestSSHNumbers(t *testing.T) {
	var message []byte
	var outer sshOuter
	var inner struct {
		Kind string
		Raw  []byte
	}
	var n struct{ R, S []byte }
	for i := byte(0); len(n.R) != 33 || len(n.S) != 33; i++ { // both with a zero before their highest bit
		message = []byte{i}
		if ssh.Unmarshal(sshEC.signature(message), &outer) != nil || ssh.Unmarshal(outer.Signature, &inner) != nil || ssh.Unmarshal(inner.Raw, &n) != nil {
			t.Fatal("the test's own signature is not readable")
		}
	}
	pair := func(r, s []byte) []byte { return ssh.Marshal(struct{ R, S []byte }{r, s}) }
	r, s := n.R, n.S
	for _, c := range []struct {
		name string
		raw  []byte
		ok   bool
	}{
		{"as made", pair(r, s), true},
		{"a zero before r", pair(append([]byte{0}, r...), s), false},
		{"a zero before s", pair(r, append([]byte{0}, s...)), false},
		{"r without its zero: negative", pair(r[1:], s), false},
		{"s without its zero: negative", pair(r, s[1:]), false},
		{"r empty", pair(nil, s), false},
		{"r a zero byte", pair([]byte{0}, s), false},
		{"s empty", pair(r, nil), false},
		{"a byte behind them", append(pair(r, s), 0), false},
		{"cut", pair(r, s)[:len(pair(r, s))-1], false},
		{"r alone", ssh.Marshal(struct{ R []byte }{r}), false},
		{"nothing", nil, false},
	} {
		outer.Signature = ssh.Marshal(struct {
			Kind string
			Raw  []byte
		}{inner.Kind, c.raw})
		if got := describe(sshEC).Verify(message, ssh.Marshal(outer)); got != c.ok {
			t.Errorf("%s: accepted is %t", c.name, got)
		}
	}
}

func TestSSHWire(t *testing.T) {
	for _, c := range []struct {
		text string
		ok   bool
	}{
		{"\x00\x00\x00\x01\x01", true}, {"\x00\x00\x00\x01\x7f", true}, {"\x00\x00\x00\x02\x00\x80", true},
		{"\x00\x00\x00\x00", false}, {"\x00\x00\x00\x01\x00", false}, {"\x00\x00\x00\x01\x80", false}, {"\x00\x00\x00\x02\x00\x7f", false},
		{"\x00\x00\x00\x02\x01", false}, {"\x00\x00\x00\x01\x01\x01", false}, {"\xff\xff\xff\xff\x01", false}, {"\x00\x00\x00", false}, {"", false},
	} {
		w := wire{rest: []byte(c.text)}
		if w.mpint(); w.done() != c.ok {
			t.Errorf("a number in %q: all there is %t", c.text, w.done())
		}
	}
}

func TestNewSSHKey(t *testing.T) {
	for _, s := range sshSigners {
		k, err := NewSSHKey(s.blob())
		if err != nil {
			t.Errorf("%s: %v", s.kind, err)
			continue
		}
		if plain := describe(plainKey(s)); k.ID != plain.ID || k.Scheme != SSHSig {
			t.Errorf("%s: id %s of scheme %s, the key itself has %s", s.kind, k.ID, k.Scheme, plain.ID)
		}
		reference, err := ssh.ParsePublicKey(s.blob())
		if err != nil {
			t.Fatal(err)
		}
		if want := ssh.FingerprintSHA256(reference); k.SSHFingerprint() != want {
			t.Errorf("%s: fingerprint %s, x/crypto/ssh has %s", s.kind, k.SSHFingerprint(), want)
		}
		if again, err := parseKey(k.ID, SSHSig, k.Public()); err != nil || again.Public() != k.Public() {
			t.Errorf("%s: %v", s.kind, err)
		}
		for n := range s.blob() {
			if _, err := NewSSHKey(s.blob()[:n]); err == nil {
				t.Errorf("%s: accepted with %d bytes", s.kind, n)
			}
		}
	}
	if fingerprint := describe(rootA).SSHFingerprint(); fingerprint != "" {
		t.Errorf("a key of another scheme has fingerprint %s", fingerprint)
	}
	if id := describe(sshSKEd.with(func(s *sshSigner) { s.application = "ssh:second" })).ID; id != idOf(sshSKEd) {
		t.Error("another application makes another id: one token would count twice")
	}

	point := sshEC.blob()[len(sshEC.blob())-65:]
	compressed := append([]byte{2 + point[64]&1}, point[1:33]...)
	offCurve := slices.Clone(point)
	offCurve[64] ^= 1
	type ec struct {
		Kind, Curve string
		Point       []byte
	}
	type ed struct {
		Kind string
		Key  []byte
	}
	key := func(v any, more ...byte) []byte { return append(ssh.Marshal(v), more...) }
	edKey := sshEd.blob()[len(sshEd.blob())-32:]
	application := func(a string) []byte { return sshSKEd.with(func(s *sshSigner) { s.application = a }).blob() }
	taken := "only ssh-ed25519, ecdsa-sha2-nistp256, sk-ssh-ed25519@openssh.com and sk-ecdsa-sha2-nistp256@openssh.com are supported"
	for _, c := range []struct {
		name string
		blob []byte
		want string
	}{
		{"RSA", rsaBlob(), taken},
		{"DSA", key(ed{"ssh-dss", nil}), taken},
		{"P-384", key(ec{"ecdsa-sha2-nistp384", "nistp384", point}), taken},
		{"P-521", key(ec{"ecdsa-sha2-nistp521", "nistp521", point}), taken},
		{"Ed448", key(ed{"ssh-ed448", nil}), taken},
		{"certificate", key(ed{"ssh-ed25519-cert-v01@openssh.com", nil}), taken},
		{"certificate of a token", key(ed{"sk-ssh-ed25519-cert-v01@openssh.com", nil}), taken},
		{"webauthn", key(ed{"webauthn-sk-ecdsa-sha2-nistp256@openssh.com", nil}), taken},
		{"kind in capitals", key(ed{"SSH-ED25519", edKey}), taken},
		{"no kind", key(ed{"", edKey}), taken},
		{"nothing", nil, "not a public key"},
		{"DER", describe(rootA).der, "not a public key"},
		{"a byte behind it", key(ed{sshEd25519, edKey}, 0), "behind it"},
		{"a byte behind a token's", append(sshSKEC.blob(), 0), "behind it"},
		{"application of a plain key", key(ed{sshEd25519, edKey}, ssh.Marshal(struct{ A string }{"ssh:"})...), "behind it"},
		{"token without application", key(ed{sshSKEd25519, edKey}), "cut"},
		{"Ed25519 of 31 bytes", key(ed{sshEd25519, edKey[1:]}), "31 bytes"},
		{"Ed25519 of 33 bytes", key(ed{sshEd25519, append(slices.Clone(edKey), 0)}), "33 bytes"},
		{"Ed25519 of low order", key(ed{sshEd25519, make([]byte, 32)}), "low order"},
		{"Ed25519 of low order on a token", key(ed{sshSKEd25519, make([]byte, 32)}, ssh.Marshal(struct{ A string }{"ssh:"})...), "low order"},
		{"curve of another name", key(ec{sshECDSA, "nistp384", point}), `curve "nistp384"`},
		{"curve without a name", key(ec{sshECDSA, "", point}), `curve ""`},
		{"curve without a name, 32 bytes", key(ec{sshECDSA, "", edKey}), `curve ""`},
		{"compressed point", key(ec{sshECDSA, "nistp256", compressed}), "uncompressed point"},
		{"hybrid point", key(ec{sshECDSA, "nistp256", append([]byte{6 + point[64]&1}, point[1:]...)}), "uncompressed point"},
		{"point off the curve", key(ec{sshECDSA, "nistp256", offCurve}), "uncompressed point"},
		{"point at infinity", key(ec{sshECDSA, "nistp256", []byte{0}}), "uncompressed point"},
		{"no point", key(ec{sshECDSA, "nistp256", nil}), "uncompressed point"},
		{"application empty", application(""), `does not begin with "ssh:"`},
		{"application of a web site", application("https://example.com"), `does not begin with "ssh:"`},
		{"application in capitals", application("SSH:"), `does not begin with "ssh:"`},
		{"application with a space", application("ssh:a b"), "printable ASCII"},
		{"application with a zero", application("ssh:\x00"), "printable ASCII"},
		{"application of 128 bytes", application("ssh:" + strings.Repeat("a", 124)), ""},
		{"application of 129 bytes", application("ssh:" + strings.Repeat("a", 125)), "129 bytes"},
	} {
		_, err := NewSSHKey(c.blob)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

func TestParseSSHPublicKey(t *testing.T) {
	ed, token := describe(sshEd).Public(), describe(sshSKEC).Public()
	for _, c := range []struct{ line, comment, want string }{
		{"ssh-ed25519 " + ed + " alice@laptop\n", "alice@laptop", ""},
		{"ssh-ed25519 " + ed + " alice at her laptop", "alice at her laptop", ""},
		{"ssh-ed25519 " + ed + " windows\r\n", "windows", ""},
		{"ssh-ed25519 " + ed + "\n", "", ""},
		{"ssh-ed25519 " + ed, "", ""},
		{"sk-ecdsa-sha2-nistp256@openssh.com " + token + " carol", "carol", ""},
		{"ssh-rsa " + base64.StdEncoding.EncodeToString(rsaBlob()) + " x", "", "only ssh-ed25519"},
		{"ssh-rsa " + ed + " x", "", `the line says "ssh-rsa"`},
		{"sk-ssh-ed25519@openssh.com " + ed, "", "the line says"},
		{"ssh-ed25519 " + ed + "\nssh-ed25519 " + ed + "\n", "", "more than one line"},
		{"ssh-ed25519 " + ed + "\n\n", "", "more than one line"},
		{`command="x" ssh-ed25519 ` + ed, "", "not a line"},
		{" ssh-ed25519 " + ed, "", "not a line"},
		{"ssh-ed25519\t" + ed, "", "not a line"},
		{"ssh-ed25519  " + ed, "", "not a line"},
		{"ssh-ed25519 " + ed[:len(ed)-1], "", "not a line"},
		{"sk-ecdsa-sha2-nistp256@openssh.com " + strings.TrimSuffix(token, "g==") + "h== carol", "", "not a line"}, // stray bits
		{ed, "", "not a line"},
		{"ssh-ed25519 ", "", "not a line"},
		{"", "", "not a line"},
		{"-----BEGIN OPENSSH PRIVATE KEY-----\n", "", "not a line"},
	} {
		k, comment, err := ParseSSHPublicKey([]byte(c.line))
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %q", c.line, err, c.want)
		}
		if err == nil && (comment != c.comment || k.Public() != ed && k.Public() != token) {
			t.Errorf("%q: got %s, %q", c.line, k.Public(), comment)
		}
	}
}

func TestSSHArmour(t *testing.T) {
	blob := sshEd.signature([]byte("message"))
	text := string(armour(blob))
	line := base64.StdEncoding.EncodeToString(blob)
	wrap := func(body string) string { return sshArmourBegin + "\n" + body + "\n" + sshArmourEnd + "\n" }
	for name, c := range map[string]struct {
		text string
		ok   bool
	}{
		"as made":            {text, true},
		"no final newline":   {strings.TrimSuffix(text, "\n"), true},
		"CRLF":               {strings.ReplaceAll(text, "\n", "\r\n"), true},
		"one line":           {wrap(line), true},
		"two final newlines": {text + "\n", false},
		"text before":        {"signature:\n" + text, false},
		"newline before":     {"\n" + text, false},
		"text behind":        {text + "x", false},
		"text in line 1":     {"x" + text, false},
		"space in line 1":    {strings.Replace(text, "\n", " \n", 1), false},
		"text in last line":  {strings.TrimSuffix(text, "\n") + "x\n", false},
		"space in last line": {strings.TrimSuffix(text, "\n") + " ", false},
		"two signatures":     {text + text, false},
		"no end":             {strings.Split(text, "-----END")[0], false},
		"no begin":           {text[len(sshArmourBegin)+1:], false},
		"no body":            {sshArmourBegin + "\n" + sshArmourEnd + "\n", false},
		"space in a line":    {wrap(line[:8] + " " + line[8:]), false},
		"lone CR":            {wrap(line[:8] + "\r" + line[8:]), false},
		"padding in between": {wrap("AA==\nAAAA"), false},
		"unpadded":           {wrap("AA"), false},
		"stray bits":         {wrap("AB=="), false},
		"URL alphabet":       {wrap("-_-_"), false},
		"header":             {wrap("Comment: x\n\n" + line), false},
		"PGP":                {strings.ReplaceAll(text, "SSH", "PGP"), false},
		"the blob itself":    {string(blob), false},
		"nothing":            {"", false},
		"at the limit":       {atLimit(8 << 10), true},
		"above the limit":    {atLimit(8<<10 + 1), false},
	} {
		got, err := parseSSHArmour([]byte(c.text))
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if c.ok && !strings.Contains(name, "limit") && !bytes.Equal(got, blob) {
			t.Errorf("%s: another blob", name)
		}
	}
}

// atLimit is an armour of n bytes.
func atLimit(n int) string {
	room := n - len(sshArmourBegin+"\n"+"\n"+sshArmourEnd+"\n")
	body := strings.Repeat("A", room/4*4)
	body += strings.Repeat("\n", room%4)
	return sshArmourBegin + "\n" + body + "\n" + sshArmourEnd + "\n"
}

func TestAddSSHSignature(t *testing.T) {
	doc := policyDoc()
	e := Envelope{Type: TypePolicy, Payload: doc.Encode()}
	message := PAE(e.Type, e.Payload)
	for i, s := range sshSigners {
		k, err := e.AddSSHSignature(armour(s.signature(message)))
		if err != nil || k.ID != idOf(s) || len(e.Signatures) != i+1 {
			t.Fatalf("%s: %v, %d signatures", s.kind, err, len(e.Signatures))
		}
	}
	// Again: in place of the first.
	if _, err := e.AddSSHSignature(armour(sshSKEd.with(func(s *sshSigner) { s.counter = 8 }).signature(message))); err != nil || len(e.Signatures) != 4 {
		t.Errorf("%v, %d signatures", err, len(e.Signatures))
	}
	v, err := OpenPolicy(e.Encode(), sshTrustDoc(func(t *Trust) { t.Roles[1].Threshold = 4 }))
	if err != nil || len(v.Signers()) != 4 {
		t.Errorf("%v, signers %v", err, v.Signers())
	}

	before := string(e.Encode())
	for name, bad := range map[string][]byte{
		"not armoured":      sshEd.signature(message),
		"other document":    armour(sshEd.signature(PAE(TypePolicy, grantsDoc().Encode()))),
		"other type":        armour(sshEd.signature(PAE(TypeGrants, e.Payload))),
		"the payload alone": armour(sshEd.signature(e.Payload)),
		"other namespace":   armour(sshEd.with(func(s *sshSigner) { s.namespace = "git" }).signature(message)),
		"not touched":       armour(sshSKEd.with(func(s *sshSigner) { s.flags = 0 }).signature(message)),
		"RSA":               armour(sshEd.with(func(s *sshSigner) { s.edit = func(o *sshOuter) { o.Public = rsaBlob() } }).signature(message)),
	} {
		if _, err := e.AddSSHSignature(bad); err == nil {
			t.Errorf("%s: added", name)
		}
	}
	if string(e.Encode()) != before {
		t.Error("a refused signature changes the envelope")
	}
	unread := Envelope{Type: TypePolicy, Payload: []byte("{}")}
	_, err = unread.AddSSHSignature(armour(sshEd.signature(PAE(TypePolicy, unread.Payload))))
	wantCode(t, err, Malformed)
	full := Envelope{Type: TypePolicy, Payload: doc.Encode(), Signatures: make([]Signature, MaxSignatures)}
	if _, err := full.AddSSHSignature(armour(sshEd.signature(message))); err == nil {
		t.Error("a 17th signature was added")
	}
}

func TestTally(t *testing.T) {
	old := trustDoc()
	next := trustDoc(func(t *Trust) {
		t.Version, t.Roles[0].Keys = 2, ids(rootNew, rootB)
		t.Keys[2].Name = "Nora"
	})
	parse := func(envelope []byte) Envelope {
		e, err := ParseEnvelope(envelope)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	for _, c := range []struct {
		name     string
		envelope []byte
		under    Trust
		role     Role
		signers  []KeyID
		missing  []KeyID
		holds    string // for each signature: h if it holds, r if in the role
		enough   bool
	}{
		{"none", sealBytes(TypePolicy, policyDoc().Encode()), old, RolePolicy, nil, ids(policyA, policyB), "", false},
		{"one of two", seal(policyDoc(), policyB), old, RolePolicy, ids(policyB), ids(policyA), "hr", false},
		{"both", seal(policyDoc(), policyB, policyA), old, RolePolicy, ids(policyB, policyA), nil, "hr hr", true},
		{"one twice", seal(policyDoc(), policyA, policyA), old, RolePolicy, ids(policyA), ids(policyB), "hr hr", false},
		{"another role", seal(policyDoc(), policyA, grantA), old, RolePolicy, ids(policyA), ids(policyB), "hr h", false},
		{"a stranger", seal(policyDoc(), mallory, policyA), old, RolePolicy, ids(policyA), ids(policyB), "- hr", false},
		{"a damaged one", reenveloped(seal(policyDoc(), policyA, policyB), func(e *Envelope) { e.Signatures[0].Sig[9] ^= 1 }), old, RolePolicy, ids(policyB), ids(policyA), "r hr", false},
		{"grants", seal(grantsDoc(), grantA), old, RoleGrant, ids(grantA), nil, "hr", true},
		{"next trust, old side", seal(next, rootA, rootB), old, RoleRoot, ids(rootA, rootB), nil, "hr hr", true},
		{"next trust, own side", seal(next, rootA, rootB), next, RoleRoot, ids(rootB), ids(rootNew), "h hr", false},
		{"an unknown type", sealBytes("x", []byte("{}"), policyA), old, "", nil, nil, "h", false},
		{"nobody trusted", seal(policyDoc(), policyA), Trust{}, RolePolicy, nil, nil, "-", false},
		{"SSH keys", seal(policyDoc(), sshSKEC.with(func(s *sshSigner) { s.flags = 0 }), sshEd), sshTrustDoc(), RolePolicy, ids(sshEd), ids(sshEC, sshSKEd, sshSKEC), "r hr", true},
	} {
		tally := parse(c.envelope).Tally(c.under)
		var missing []KeyID
		for _, k := range tally.Missing {
			missing = append(missing, k.ID)
		}
		var holds []string
		for _, s := range tally.Signatures {
			word := ""
			if s.Holds {
				word += "h"
			}
			if s.InRole {
				word += "r"
			}
			if word == "" {
				word = "-"
			}
			holds = append(holds, word)
		}
		if tally.Role != c.role || !slices.Equal(tally.Signers, c.signers) || !slices.Equal(missing, c.missing) ||
			strings.Join(holds, " ") != c.holds || tally.Enough() != c.enough {
			t.Errorf("%s: got %+v, enough is %t", c.name, tally, tally.Enough())
		}
	}
	tally := parse(seal(next, rootA)).Tally(next)
	if len(tally.Missing) != 2 || tally.Missing[0].Name != "Nora" || tally.Threshold != 2 {
		t.Errorf("got %+v", tally)
	}
}

func TestKeyNames(t *testing.T) {
	doc := sshTrustDoc()
	again := parses(t, TypeTrust, doc.Encode()).(Trust)
	for i, k := range again.Keys {
		if k.Name != doc.Keys[i].Name {
			t.Errorf("keys[%d] is called %q, want %q", i, k.Name, doc.Keys[i].Name)
		}
	}
	for name, ok := range map[string]bool{"n": true, strings.Repeat("n", 128): true, strings.Repeat("n", 129): false, strings.Repeat("é", 64): true, strings.Repeat("é", 65): false, "a\u001b[2Jb": true} {
		_, err := ParseDocument(TypeTrust, sshTrustDoc(func(t *Trust) { t.Keys[0].Name = name }).Encode())
		if (err == nil) != ok {
			t.Errorf("a name of %d bytes: %v", len(name), err)
		}
	}
	_, err := ParseDocument(TypeTrust, replaced(doc.Encode(), "Alice, laptop", ""))
	wantCode(t, err, Malformed)
	if err != nil && !strings.Contains(err.Error(), "keys[0]: name is empty") {
		t.Error(err)
	}
}

// Whatever signature is accepted here, x/crypto/ssh accepts; nothing brings
// either down.
func FuzzSSHSignature(f *testing.F) {
	message := []byte("message")
	for i, s := range sshSigners {
		f.Add(byte(i), s.signature(message))
		f.Add(byte(i), s.with(func(s *sshSigner) { s.hash, s.flags, s.counter = "sha256", 5, 0 }).signature(message))
		f.Add(byte(i), s.with(func(s *sshSigner) { s.flags = 0 }).signature(message))
	}
	accepted := 0
	f.Fuzz(func(t *testing.T, key byte, blob []byte) {
		k := describe(sshSigners[int(key)%len(sshSigners)])
		if !k.Verify(message, blob) {
			return
		}
		accepted++
		referenceSSH(t, message, blob)
	})
	if accepted == 0 && !fuzzing() {
		f.Error("no seed was accepted")
	}
}

// Whatever key is accepted here, x/crypto/ssh reads as the same key and writes
// with the same bytes.
func FuzzSSHPublicKey(f *testing.F) {
	for _, s := range sshSigners {
		f.Add(s.blob())
	}
	f.Add(rsaBlob())
	accepted := 0
	f.Fuzz(func(t *testing.T, blob []byte) {
		k, err := NewSSHKey(blob)
		if err != nil {
			return
		}
		accepted++
		reference, err := ssh.ParsePublicKey(blob)
		if err != nil {
			t.Fatalf("x/crypto/ssh does not read what we accepted: %v\n%x", err, blob)
		}
		if !bytes.Equal(reference.Marshal(), blob) || reference.Type() != k.ssh.kind {
			t.Fatalf("x/crypto/ssh writes it as %x\n%x", reference.Marshal(), blob)
		}
		public := reference.(ssh.CryptoPublicKey).CryptoPublicKey()
		if plain, err := NewKey(public); err != nil || plain.ID != k.ID {
			t.Fatalf("id %s, the key itself has %s, %v", k.ID, plain.ID, err)
		}
		line := ssh.MarshalAuthorizedKey(reference)
		if again, _, err := ParseSSHPublicKey(line); err != nil || again.Public() != k.Public() {
			t.Fatalf("%s: %v", line, err)
		}
	})
	if accepted == 0 && !fuzzing() {
		f.Error("no seed was accepted")
	}
}

// Whatever armour is accepted here, encoding/pem reads as the same blob.
func FuzzSSHArmour(f *testing.F) {
	text := armour(sshSKEC.signature([]byte("message")))
	f.Add(text)
	f.Add(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n")))
	f.Add(append(slices.Clone(text), text...))
	accepted := 0
	f.Fuzz(func(t *testing.T, text []byte) {
		blob, err := parseSSHArmour(text)
		if err != nil {
			return
		}
		accepted++
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "SSH SIGNATURE" || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 || !bytes.Equal(block.Bytes, blob) {
			t.Fatalf("encoding/pem reads another signature in\n%s", text)
		}
	})
	if accepted == 0 && !fuzzing() {
		f.Error("no seed was accepted")
	}
}
