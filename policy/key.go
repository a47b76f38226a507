package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
)

// KeyID is "sha256:" and the hexadecimal SHA-256 of a key's DER
// SubjectPublicKeyInfo. It is computed, never chosen, so one key has one id
// and cannot count twice towards a threshold.
type KeyID string

// Scheme says how a key signs. It is pinned per key in the trust document.
type Scheme string

// The signature schemes; SSHSig is another.
const (
	Ed25519         Scheme = "ed25519"           // RFC 8032
	ECDSAP256SHA256 Scheme = "ecdsa-p256-sha256" // ASN.1 DER signatures, FIPS 186-5
)

// Key is a public key of the trust document.
type Key struct {
	ID     KeyID
	Scheme Scheme
	Name   string           // who holds it; for people, nothing is decided by it
	public crypto.PublicKey // ed25519.PublicKey or *ecdsa.PublicKey
	der    []byte
	ssh    sshPublic // scheme SSHSig only
}

// NewKey describes a public key. It refuses kinds and curves outside the
// schemes, and points that would verify signatures nobody made.
func NewKey(public crypto.PublicKey) (Key, error) {
	k := Key{public: public}
	switch p := public.(type) {
	case ed25519.PublicKey:
		if len(p) != ed25519.PublicKeySize || lowOrder(p) {
			return Key{}, errors.New("an Ed25519 key of low order: anyone can sign for it")
		}
		k.Scheme = Ed25519
	case *ecdsa.PublicKey:
		if p.Curve != elliptic.P256() {
			return Key{}, errors.New("an ECDSA key on another curve: only P-256 is supported")
		}
		k.Scheme = ECDSAP256SHA256
	default:
		return Key{}, fmt.Errorf("a key of kind %T: only Ed25519 and ECDSA P-256 are supported", public)
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, err
	}
	sum := sha256.Sum256(der)
	k.der, k.ID = der, KeyID("sha256:"+hex.EncodeToString(sum[:]))
	return k, nil
}

// parseKey reads a key of a trust document and holds its id and scheme
// against the key itself.
func parseKey(id KeyID, scheme Scheme, public string) (Key, error) {
	raw, err := decodeBase64(public)
	if err != nil {
		return Key{}, fmt.Errorf("public: %w", err)
	}
	var k Key
	if scheme == SSHSig {
		k, err = NewSSHKey(raw)
	} else {
		k, err = parseDER(raw)
	}
	if err != nil {
		return Key{}, err
	}
	switch {
	case k.Scheme != scheme:
		return Key{}, fmt.Errorf("scheme is %q, the key's is %q", scheme, k.Scheme)
	case k.ID != id:
		return Key{}, fmt.Errorf("id is %q, the key's is %q", id, k.ID)
	}
	return k, nil
}

// parseDER reads a key of the schemes other than SSHSig.
func parseDER(der []byte) (Key, error) {
	parsed, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return Key{}, errors.New("public is not a DER SubjectPublicKeyInfo")
	}
	k, err := NewKey(parsed)
	if err == nil && !slices.Equal(der, k.der) {
		return Key{}, errors.New("public is not in canonical DER")
	}
	return k, err
}

// Public returns the key in base64 as trust documents hold it: in SSH wire
// format for scheme SSHSig, else as DER SubjectPublicKeyInfo.
func (k Key) Public() string {
	if k.Scheme == SSHSig {
		return base64.StdEncoding.EncodeToString([]byte(k.ssh.blob))
	}
	return base64.StdEncoding.EncodeToString(k.der)
}

// Verify reports whether sig is k's signature over message.
func (k Key) Verify(message, sig []byte) bool {
	if k.Scheme == SSHSig {
		return k.verifySSH(message, sig) == nil
	}
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, message, sig)
	case *ecdsa.PublicKey:
		digest := sha256.Sum256(message)
		return ecdsa.VerifyASN1(p, digest[:], sig)
	}
	return false
}

// sign signs message with signer, whose public key k is.
func (k Key) sign(signer crypto.Signer, message []byte) ([]byte, error) {
	if k.Scheme == Ed25519 {
		return signer.Sign(rand.Reader, message, crypto.Hash(0))
	}
	digest := sha256.Sum256(message)
	return signer.Sign(rand.Reader, digest[:], crypto.SHA256)
}

// lowOrderY holds the y coordinates (little endian, without the sign bit) of
// the points of order 1, 2, 4 and 8, and of the spellings at or above the
// field's prime that mean the same points. For such a key crypto/ed25519
// accepts signatures made without any secret.
var lowOrderY = [][ed25519.PublicKeySize]byte{
	{},  // y = 0, order 4
	{1}, // y = 1, the identity
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05}, // order 8
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a}, // order 8
	nearPrime(0xec), // p-1, order 2
	nearPrime(0xed), // p, spells 0
	nearPrime(0xee), // p+1, spells 1
}

// nearPrime is 2^255 - 256 + low: the prime of the field is 2^255 - 19.
func nearPrime(low byte) (y [ed25519.PublicKeySize]byte) {
	for i := range y {
		y[i] = 0xff
	}
	y[0], y[31] = low, 0x7f
	return y
}

func lowOrder(public ed25519.PublicKey) bool {
	y := [ed25519.PublicKeySize]byte(public)
	y[31] &= 0x7f
	return slices.Contains(lowOrderY, y)
}
