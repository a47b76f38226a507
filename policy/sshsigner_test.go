package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"encoding/pem"
	"math/big"

	"golang.org/x/crypto/ssh"
)

// sshSigner signs as ssh-keygen -Y sign does, a FIDO2 token included. Each
// field can be set to what no ssh-keygen would write.
type sshSigner struct {
	crypto.Signer
	kind        string
	application string // of sk- kinds
	signedFor   string // the application the token signs for
	innerKind   string
	version     uint32
	namespace   string
	reserved    string
	hash        string // any name but sha256 means SHA-512
	flags       byte
	counter     uint32
	edit        func(*sshOuter) // a last change to what is written
}

// sshOuter is the signature blob of PROTOCOL.sshsig.
type sshOuter struct {
	Magic     [6]byte
	Version   uint32
	Public    []byte
	Namespace string
	Reserved  string
	Hash      string
	Signature []byte
}

// sshSigned is what is signed, after PROTOCOL.sshsig.
type sshSigned struct {
	Magic     [6]byte
	Namespace string
	Reserved  string
	Hash      string
	Digest    []byte
}

func sshKey(kind string, key crypto.Signer) sshSigner {
	s := sshSigner{Signer: key, kind: kind, innerKind: kind, version: 1, namespace: "jitgate.v1", hash: "sha512"}
	if kind[:3] == "sk-" {
		s.application, s.signedFor, s.flags, s.counter = "ssh:", "ssh:", 1, 7
	}
	return s
}

func (s sshSigner) with(edit func(*sshSigner)) sshSigner {
	edit(&s)
	return s
}

func (s sshSigner) sk() bool { return s.kind[:3] == "sk-" }

// blob is the public key in SSH wire format.
func (s sshSigner) blob() []byte {
	var b []byte
	switch p := s.Public().(type) {
	case ed25519.PublicKey:
		b = ssh.Marshal(struct {
			Kind string
			Key  []byte
		}{s.kind, p})
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			panic(err)
		}
		b = ssh.Marshal(struct {
			Kind, Curve string
			Point       []byte
		}{s.kind, "nistp256", point})
	}
	if s.sk() {
		b = append(b, ssh.Marshal(struct{ Application string }{s.application})...)
	}
	return b
}

// signature is the signature blob over message.
func (s sshSigner) signature(message []byte) []byte {
	digest := sha512.Sum512(message)
	hashed := digest[:]
	if s.hash == "sha256" {
		short := sha256.Sum256(message)
		hashed = short[:]
	}
	magic := [6]byte([]byte("SSHSIG"))
	signed := ssh.Marshal(sshSigned{magic, s.namespace, s.reserved, s.hash, hashed})
	outer := sshOuter{magic, s.version, s.blob(), s.namespace, s.reserved, s.hash, s.inner(signed)}
	if s.edit != nil {
		s.edit(&outer)
	}
	return ssh.Marshal(outer)
}

// inner is the signature as a server would get it when somebody logs in.
func (s sshSigner) inner(signed []byte) []byte {
	if s.sk() {
		application, message := sha256.Sum256([]byte(s.signedFor)), sha256.Sum256(signed)
		signed = ssh.Marshal(struct {
			Application [32]byte
			Flags       byte
			Counter     uint32
			Message     [32]byte
		}{application, s.flags, s.counter, message})
	}
	return append(ssh.Marshal(struct {
		Kind string
		Raw  []byte
	}{s.innerKind, s.raw(signed)}), s.tail()...)
}

// raw is the innermost signature.
func (s sshSigner) raw(signed []byte) []byte {
	if _, ok := s.Public().(ed25519.PublicKey); ok {
		raw, err := s.Sign(nil, signed, crypto.Hash(0))
		if err != nil {
			panic(err)
		}
		return raw
	}
	digest := sha256.Sum256(signed)
	der, err := s.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		panic(err)
	}
	var n struct{ R, S *big.Int }
	if _, err := asn1.Unmarshal(der, &n); err != nil {
		panic(err)
	}
	return ssh.Marshal(n)
}

func (s sshSigner) tail() []byte {
	if !s.sk() {
		return nil
	}
	return ssh.Marshal(struct {
		Flags   byte
		Counter uint32
	}{s.flags, s.counter})
}

// armour writes a signature blob as ssh-keygen does, but for the length of
// its lines.
func armour(blob []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "SSH SIGNATURE", Bytes: blob})
}

// signature is s's signature over message in the form of its scheme.
func signature(s crypto.Signer, message []byte) []byte {
	if s, ok := s.(sshSigner); ok {
		return s.signature(message)
	}
	sig, err := describe(s).sign(s, message)
	if err != nil {
		panic(err)
	}
	return sig
}
