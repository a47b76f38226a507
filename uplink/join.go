package uplink

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"

	"github.com/jitgate/jitgate/policy"
)

const (
	joinPrefix  = "jgj_" // so that scanners of leaked secrets know one
	joinVersion = 1
	secretSize  = 20
)

// Join is a join token: a secret that lets a host enrol, and what the host
// needs to know that it speaks with the right control plane. Whoever carries
// the token to the host by a way it trusts has carried the trust with it.
type Join struct {
	Secret [secretSize]byte
	Pin    policy.Digest // of the trust document the host will be given
	CA     policy.Digest // SHA-256 of the certificate the server's is signed by; zero: one the system trusts
}

// NewJoin makes a token with a new secret.
func NewJoin(pin, ca policy.Digest) Join {
	j := Join{Pin: pin, CA: ca}
	rand.Read(j.Secret[:]) // never fails: crypto/rand ends the program
	return j
}

// String is the token's text: jgj_ and base64url of a version, the secret, the
// pin and, if there is one, the certificate's digest.
func (j Join) String() string {
	b := append([]byte{joinVersion}, j.Secret[:]...)
	b = append(b, j.Pin[:]...)
	if j.CA != (policy.Digest{}) {
		b = append(b, j.CA[:]...)
	}
	return joinPrefix + base64.RawURLEncoding.EncodeToString(b)
}

var errJoin = errors.New("this is not a join token: it begins with jgj_ and is pasted whole")

// ParseJoin reads what String writes, and no other spelling of it.
func ParseJoin(s string) (Join, error) {
	text, ok := strings.CutPrefix(s, joinPrefix)
	if !ok || len(text) > 256 || strings.ContainsAny(text, "\r\n") {
		return Join{}, errJoin
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 1 {
		return Join{}, errJoin
	}
	if b[0] != joinVersion {
		return Join{}, errors.New("this join token was made by a newer control plane: update jitgate here first")
	}
	var j Join
	const short, long = 1 + secretSize + sha256.Size, 1 + secretSize + 2*sha256.Size
	if len(b) != short && len(b) != long {
		return Join{}, errJoin
	}
	copy(j.Secret[:], b[1:])
	copy(j.Pin[:], b[1+secretSize:])
	copy(j.CA[:], b[short:])
	if len(b) == long && j.CA == (policy.Digest{}) || j.Pin == (policy.Digest{}) {
		return Join{}, errJoin
	}
	return j, nil
}

// JoinHash is what a control plane keeps of a token instead of it.
func JoinHash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}
