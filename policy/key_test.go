package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// The curve of Ed25519 in the slowest and plainest arithmetic:
// -x² + y² = 1 + d·x²·y² over the field of 2^255 - 19 (RFC 8032, section 5.1).
var (
	fieldPrime = new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 255), big.NewInt(19))
	curveD     = mod(mul(big.NewInt(-121665), invert(big.NewInt(121666))))
)

type point struct{ x, y *big.Int }

func mod(a *big.Int) *big.Int    { return new(big.Int).Mod(a, fieldPrime) }
func mul(a, b *big.Int) *big.Int { return mod(new(big.Int).Mul(a, b)) }
func add(a, b *big.Int) *big.Int { return mod(new(big.Int).Add(a, b)) }
func sub(a, b *big.Int) *big.Int { return mod(new(big.Int).Sub(a, b)) }
func invert(a *big.Int) *big.Int { return new(big.Int).ModInverse(mod(a), fieldPrime) }
func (p point) isIdentity() bool { return p.x.Sign() == 0 && p.y.Cmp(big.NewInt(1)) == 0 }

func (p point) double() point {
	xx, yy, xy := mul(p.x, p.x), mul(p.y, p.y), mul(p.x, p.y)
	k := mul(curveD, mul(xx, yy))
	one := big.NewInt(1)
	return point{mul(add(xy, xy), invert(add(one, k))), mul(add(yy, xx), invert(sub(one, k)))}
}

// pointAt returns the point with y, if the curve has one.
func pointAt(y *big.Int) (point, bool) {
	yy := mul(y, y)
	xx := mul(sub(yy, big.NewInt(1)), invert(add(mul(curveD, yy), big.NewInt(1))))
	x := new(big.Int).ModSqrt(xx, fieldPrime)
	return point{x, mod(y)}, x != nil
}

func littleEndian(y *big.Int) (out [32]byte) {
	y.FillBytes(out[:])
	slices.Reverse(out[:])
	return out
}

func fromLittleEndian(y [32]byte) *big.Int {
	slices.Reverse(y[:])
	return new(big.Int).SetBytes(y[:])
}

// The group has cofactor 8, so the points of low order are those that three
// doublings bring to the identity: eight points, with five y coordinates.
// Doubling back from the identity finds all of them; a spelling at or above
// the prime exists for y < 19 only.
func TestLowOrderTable(t *testing.T) {
	for _, y := range lowOrderY {
		p, ok := pointAt(fromLittleEndian(y))
		if !ok {
			t.Errorf("%x is not on the curve", y)
			continue
		}
		if !p.double().double().double().isIdentity() {
			t.Errorf("%x: its order does not divide 8", y)
		}
	}

	// y of 2P is (y² + x²)/(1 - d·x²·y²), and with the curve's equation for x²
	// the y of the halves of (0, ±1) and (±√-1, 0) are the roots of:
	// 2P = (0, 1): y = ±1; 2P = (0, -1): y = 0; 2P = (±√-1, 0): y² = -x², that
	// is -d·y⁴ - 2y² + 1 = 0, so y² = (-1 ± √(1+d))/d.
	one := big.NewInt(1)
	roots := []*big.Int{big.NewInt(0), one, sub(big.NewInt(0), one)}
	s := new(big.Int).ModSqrt(add(one, curveD), fieldPrime)
	if s == nil {
		t.Fatal("1+d has no root")
	}
	for _, s := range []*big.Int{s, sub(big.NewInt(0), s)} {
		if y := new(big.Int).ModSqrt(mul(sub(s, one), invert(curveD)), fieldPrime); y != nil {
			roots = append(roots, y, sub(big.NewInt(0), y))
		}
	}
	var want [][32]byte
	points := 0
	for _, y := range roots {
		p, ok := pointAt(y)
		if !ok || !p.double().double().double().isIdentity() {
			t.Fatalf("y = %v is no point of low order", y)
		}
		points++
		if p.x.Sign() != 0 {
			points++ // and -x
		}
		want = append(want, littleEndian(y))
		if again := new(big.Int).Add(y, fieldPrime); again.BitLen() <= 255 {
			want = append(want, littleEndian(again))
		}
	}
	if points != 8 {
		t.Fatalf("found %d points of low order, the group has 8", points)
	}
	for _, y := range want {
		if !slices.Contains(lowOrderY, y) {
			t.Errorf("%x is missing", y)
		}
	}
	if len(want) != len(lowOrderY) {
		t.Errorf("%d spellings in the table, there are %d", len(lowOrderY), len(want))
	}
}

func TestLowOrderKeysAreRefused(t *testing.T) {
	for _, y := range lowOrderY {
		for _, sign := range []byte{0, 0x80} {
			public := y
			public[31] |= sign
			if _, err := NewKey(ed25519.PublicKey(public[:])); err == nil {
				t.Errorf("%x: accepted", public)
			}
		}
	}
	// Why it matters: for the all-zero key, anyone finds a signature.
	zero, forged := make(ed25519.PublicKey, 32), make([]byte, 64)
	forged[0] = 1 // R is the identity, S is 0: holds whenever k·A is the identity
	holds := false
	for i := range byte(64) {
		holds = holds || ed25519.Verify(zero, []byte{i}, forged)
	}
	if !holds {
		t.Error("crypto/ed25519 no longer accepts forgeries for a key of low order: the table may go")
	}
	// Honest keys near the table's spellings stay.
	if _, err := NewKey(describe(rootA).public); err != nil {
		t.Error(err)
	}
}

func TestNewKeyRefuses(t *testing.T) {
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for name, public := range map[string]crypto.PublicKey{
		"P-384": p384.Public(), "RSA": rsaKey.Public(), "nil": nil,
		"short Ed25519": ed25519.PublicKey{1, 2, 3}, "long Ed25519": ed25519.PublicKey(make([]byte, 33)),
		"a private key": rootA, "Ed25519 by pointer": new(ed25519.PublicKey),
	} {
		if k, err := NewKey(public); err == nil {
			t.Errorf("%s: accepted as %s", name, k.ID)
		}
	}
}

func TestParseKey(t *testing.T) {
	ed, ec := describe(rootA), describe(rootB)
	trailing := base64.StdEncoding.EncodeToString(append(slices.Clone(ed.der), 0))
	cut := base64.StdEncoding.EncodeToString(ed.der[:len(ed.der)-1])
	x, y := ec.der[27:59], ec.der[59:91] // after the header, 4 marks an uncompressed point
	compressed := slices.Concat([]byte{0x30, 0x39}, ec.der[2:23], []byte{0x03, 34, 0, 2 + y[31]&1}, x)
	longLength := append([]byte{0x30, 0x81, 0x2a}, ed.der[2:]...) // BER spells the length in two bytes

	// A BIT STRING that leaves one bit unused holds the point shifted by one:
	// crypto/x509 shifts it back.
	unused := slices.Clone(ec.der)
	unused[25] = 1
	shifted := new(big.Int).SetBytes(ec.der[26:])
	shifted.Lsh(shifted, 1).FillBytes(unused[26:])
	if _, err := x509.ParsePKIXPublicKey(unused); err != nil {
		t.Logf("crypto/x509 itself refuses unused bits now: %v", err)
	}

	for _, c := range []struct {
		name   string
		id     KeyID
		scheme Scheme
		public string
		ok     bool
	}{
		{"ed25519", ed.ID, Ed25519, ed.Public(), true},
		{"p256", ec.ID, ECDSAP256SHA256, ec.Public(), true},
		{"another key's id", ec.ID, Ed25519, ed.Public(), false},
		{"chosen id", "sha256:" + KeyID(strings.Repeat("0", 64)), Ed25519, ed.Public(), false},
		{"id in capitals", KeyID(strings.ToUpper(string(ed.ID))), Ed25519, ed.Public(), false},
		{"id without its algorithm", ed.ID[len("sha256:"):], Ed25519, ed.Public(), false},
		{"swapped scheme", ed.ID, ECDSAP256SHA256, ed.Public(), false},
		{"unknown scheme", ed.ID, "none", ed.Public(), false},
		{"scheme in capitals", ed.ID, "Ed25519", ed.Public(), false},
		{"trailing byte", ed.ID, Ed25519, trailing, false},
		{"cut", ed.ID, Ed25519, cut, false},
		{"BER length", ed.ID, Ed25519, base64.StdEncoding.EncodeToString(longLength), false},
		{"unused bits", ec.ID, ECDSAP256SHA256, base64.StdEncoding.EncodeToString(unused), false},
		{"compressed point", ec.ID, ECDSAP256SHA256, base64.StdEncoding.EncodeToString(compressed), false},
		{"raw 32 bytes", ed.ID, Ed25519, base64.StdEncoding.EncodeToString(ed.public.(ed25519.PublicKey)), false},
		{"PEM", ed.ID, Ed25519, "-----BEGIN PUBLIC KEY-----", false},
		{"empty", ed.ID, Ed25519, "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			if k, err := parseKey(c.id, c.scheme, c.public); (err == nil) != c.ok {
				t.Errorf("got %v, %v", k.ID, err)
			}
		})
	}
}

func TestVerifyTakesOnlyTheSchemesForm(t *testing.T) {
	message := []byte("message")
	for _, s := range []crypto.Signer{rootA, rootB} {
		k := describe(s)
		sig, err := k.sign(s, message)
		if err != nil {
			t.Fatal(err)
		}
		for name, bad := range map[string][]byte{
			"empty": {}, "nil": nil, "cut": sig[:len(sig)-1], "longer": append(slices.Clone(sig), 0), "zeros": make([]byte, 64),
			// What an ECDSA verifier without range checks takes for anything.
			"r and s zero": {0x30, 6, 2, 1, 0, 2, 1, 0},
		} {
			if k.Verify(message, bad) {
				t.Errorf("%s: %s signature accepted", k.Scheme, name)
			}
		}
		if !k.Verify(message, sig) || k.Verify([]byte("massage"), sig) || (Key{}).Verify(message, sig) {
			t.Errorf("%s: verifies the wrong things", k.Scheme)
		}
	}
}
