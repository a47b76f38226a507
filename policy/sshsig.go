package policy

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"strings"
)

// SSHSig is the scheme of a key that signs with ssh-keygen -Y sign: in a
// file, in ssh-agent or on a FIDO2 token.
//
// The signature: https://github.com/openssh/openssh-portable/blob/V_9_9_P1/PROTOCOL.sshsig
// FIDO2 keys: https://github.com/openssh/openssh-portable/blob/V_9_9_P1/PROTOCOL.u2f
const SSHSig Scheme = "sshsig"

// SSHNamespace is the namespace (ssh-keygen -n) of every signature of scheme
// SSHSig. It keeps what the same key signs elsewhere, git commits and files,
// from being passed off as ours.
const SSHNamespace = "jitgate.v1"

// The kinds of SSH keys that may sign.
const (
	sshEd25519   = "ssh-ed25519"
	sshECDSA     = "ecdsa-sha2-nistp256"
	sshSKEd25519 = "sk-ssh-ed25519@openssh.com"
	sshSKECDSA   = "sk-ecdsa-sha2-nistp256@openssh.com"
)

// sshPublic is what a key's SSH wire format holds beside the public key.
type sshPublic struct {
	blob        string // all of it
	kind        string
	application string // FIDO2 keys only: what the token signs for, "ssh:" by default
}

// onToken reports whether the private half is in a FIDO2 token.
func (p sshPublic) onToken() bool { return p.application != "" }

// NewSSHKey describes a public key in SSH wire format: the second field of a
// line of a .pub file, decoded. It refuses kinds outside the scheme, points
// that would verify signatures nobody made, and any second spelling of a key.
func NewSSHKey(blob []byte) (Key, error) {
	w := wire{rest: blob}
	p := sshPublic{blob: string(blob), kind: string(w.string())}
	ec, sk := p.kind == sshECDSA || p.kind == sshSKECDSA, p.kind == sshSKEd25519 || p.kind == sshSKECDSA
	switch {
	case w.short:
		return Key{}, errors.New("not a public key in SSH wire format")
	case p.kind != sshEd25519 && !ec && !sk:
		return Key{}, fmt.Errorf("an SSH key of kind %q: only %s, %s, %s and %s are supported", p.kind, sshEd25519, sshECDSA, sshSKEd25519, sshSKECDSA)
	}
	var curve string
	if ec {
		curve = string(w.string())
	}
	public := w.string()
	if sk {
		p.application = string(w.string())
	}
	if !w.done() {
		return Key{}, fmt.Errorf("an SSH key of kind %s that is cut or has something behind it", p.kind)
	}
	if sk {
		// OpenSSH makes no others, and the name of a web site here would be
		// that site's own key.
		if !strings.HasPrefix(p.application, "ssh:") {
			return Key{}, fmt.Errorf(`application %q does not begin with "ssh:"`, p.application)
		}
		if err := token("application", p.application, 128); err != nil {
			return Key{}, err
		}
	}
	var point crypto.PublicKey = ed25519.PublicKey(bytes.Clone(public))
	switch {
	case ec && curve != "nistp256":
		return Key{}, fmt.Errorf("an ECDSA key on curve %q: only nistp256 is supported", curve)
	case ec:
		p, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), public)
		if err != nil {
			return Key{}, errors.New("an ECDSA key that is not an uncompressed point on P-256")
		}
		point = p
	case len(public) != ed25519.PublicKeySize:
		return Key{}, fmt.Errorf("an Ed25519 key of %d bytes, not %d", len(public), ed25519.PublicKeySize)
	}
	k, err := NewKey(point)
	if err != nil {
		return Key{}, err
	}
	k.Scheme, k.ssh = SSHSig, p
	return k, nil
}

// ParseSSHPublicKey reads the one line of a .pub file: kind, key and comment.
func ParseSSHPublicKey(line []byte) (k Key, comment string, err error) {
	text := strings.TrimSuffix(strings.TrimSuffix(string(line), "\n"), "\r")
	if strings.ContainsAny(text, "\r\n") {
		return Key{}, "", errors.New("more than one line: expected one SSH public key")
	}
	kind, rest, ok := strings.Cut(text, " ")
	encoded, comment, _ := strings.Cut(rest, " ")
	blob, err := base64.StdEncoding.Strict().DecodeString(encoded)
	if err != nil || !ok || encoded == "" {
		return Key{}, "", fmt.Errorf("not a line of an SSH public key like %q", sshEd25519+" AAAA… comment")
	}
	if k, err = NewSSHKey(blob); err != nil {
		return Key{}, "", err
	}
	if k.ssh.kind != kind {
		return Key{}, "", fmt.Errorf("the line says %q, the key is of kind %s", kind, k.ssh.kind)
	}
	return k, comment, nil
}

// SSHFingerprint is the key's fingerprint as ssh-keygen -l prints it. It is
// empty unless the scheme is SSHSig.
func (k Key) SSHFingerprint() string {
	if k.Scheme != SSHSig {
		return ""
	}
	sum := sha256.Sum256([]byte(k.ssh.blob))
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// AddSSHSignature adds a signature made by ssh-keygen -Y sign over the
// envelope's PAE, in place of an earlier one by the same key, and returns the
// key. armoured is what ssh-keygen writes. The document is first read by the
// parser agents use, and a signature that does not hold is refused.
func (e *Envelope) AddSSHSignature(armoured []byte) (Key, error) {
	if _, err := ParseDocument(e.Type, e.Payload); err != nil {
		return Key{}, err
	}
	blob, err := parseSSHArmour(armoured)
	if err != nil {
		return Key{}, err
	}
	s, err := parseSSHSignature(blob)
	if err != nil {
		return Key{}, err
	}
	k, err := NewSSHKey(s.public)
	if err != nil {
		return Key{}, err
	}
	if err := k.verifySSH(PAE(e.Type, e.Payload), blob); err != nil {
		return Key{}, fmt.Errorf("%s: %w", k.SSHFingerprint(), err)
	}
	return k, e.add(Signature{k.ID, blob})
}

// The armour of ssh-keygen's .sig files.
const (
	sshArmourBegin = "-----BEGIN SSH SIGNATURE-----"
	sshArmourEnd   = "-----END SSH SIGNATURE-----"
	maxSSHArmour   = 8 << 10 // bytes; the largest signature of the scheme has a tenth of that
)

// parseSSHArmour reads a .sig file: one signature, nothing before and nothing
// behind it.
func parseSSHArmour(text []byte) ([]byte, error) {
	if len(text) > maxSSHArmour {
		return nil, fmt.Errorf("a signature file of %d bytes, the limit is %d", len(text), maxSSHArmour)
	}
	lines := strings.Split(strings.TrimSuffix(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n"), "\n")
	last := len(lines) - 1
	if last < 2 || lines[0] != sshArmourBegin || lines[last] != sshArmourEnd {
		return nil, errors.New("not a signature file of ssh-keygen -Y sign")
	}
	body := strings.Join(lines[1:last], "")
	blob, err := base64.StdEncoding.Strict().DecodeString(body)
	if err != nil || strings.Contains(body, "\r") { // which the decoder skips
		return nil, errors.New("a signature file whose base64 is damaged")
	}
	return blob, nil
}

// sshSignature is a parsed signature blob: not verified.
type sshSignature struct {
	public    []byte
	hash      string
	signature []byte
}

const sshMagic = "SSHSIG"

// parseSSHSignature reads a signature blob and refuses those that were not
// made for jitgate.
func parseSSHSignature(blob []byte) (s sshSignature, err error) {
	w := wire{rest: blob}
	magic, version := w.take(uint32(len(sshMagic))), w.take(4)
	s.public = w.string()
	namespace, reserved := w.string(), w.string()
	s.hash = string(w.string())
	s.signature = w.string()
	switch {
	case string(magic) != sshMagic:
		return s, errors.New("not a signature of ssh-keygen -Y sign")
	case !w.done():
		return s, errors.New("an SSH signature that is cut or has something behind it")
	case binary.BigEndian.Uint32(version) != 1:
		return s, fmt.Errorf("an SSH signature of version %d, expected 1", binary.BigEndian.Uint32(version))
	case string(namespace) != SSHNamespace:
		return s, fmt.Errorf("namespace is %q, expected %q: sign with ssh-keygen -Y sign -n %s", namespace, SSHNamespace, SSHNamespace)
	case len(reserved) != 0:
		return s, errors.New("an SSH signature whose reserved field is not empty")
	case s.hash != "sha256" && s.hash != "sha512":
		return s, fmt.Errorf("hash algorithm is %q, expected sha512 or sha256", s.hash)
	}
	return s, nil
}

// verifySSH checks that blob is k's signature over message.
func (k Key) verifySSH(message, blob []byte) error {
	s, err := parseSSHSignature(blob)
	if err != nil {
		return err
	}
	// The key that counts is the trust document's, its application included;
	// the one in the signature must be the same byte for byte.
	if string(s.public) != k.ssh.blob {
		return errors.New("signed by another key")
	}
	digest := sha512.Sum512(message)
	hashed := digest[:]
	if s.hash == "sha256" {
		digest := sha256.Sum256(message)
		hashed = digest[:]
	}
	signed := []byte(sshMagic)
	for _, field := range []string{SSHNamespace, "", s.hash, string(hashed)} {
		signed = binary.BigEndian.AppendUint32(signed, uint32(len(field)))
		signed = append(signed, field...)
	}

	w := wire{rest: s.signature}
	kind, raw := w.string(), w.string()
	var flags, counter []byte
	if k.ssh.onToken() {
		flags, counter = w.take(1), w.take(4)
	}
	switch {
	case !w.done():
		return errors.New("an SSH signature that is cut or has something behind it")
	case string(kind) != k.ssh.kind:
		return fmt.Errorf("a signature of kind %q by a key of kind %s", kind, k.ssh.kind)
	}
	if k.ssh.onToken() {
		// What lies in a laptop's port must not sign by itself: a person has
		// to have touched it.
		if flags[0]&userPresent == 0 {
			return errors.New("the token was not touched: user presence is required")
		}
		application, inner := sha256.Sum256([]byte(k.ssh.application)), sha256.Sum256(signed)
		signed = bytes.Join([][]byte{application[:], flags, counter, inner[:]}, nil)
	}
	if !k.verifySSHRaw(signed, raw) {
		return errors.New("the signature does not hold: another document was signed, or it is damaged")
	}
	return nil
}

const userPresent = 0x01 // of a FIDO2 token's flags

// verifySSHRaw checks the innermost signature, as SSH writes it.
func (k Key) verifySSHRaw(signed, raw []byte) bool {
	switch p := k.public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, signed, raw)
	case *ecdsa.PublicKey:
		w := wire{rest: raw}
		r, s := w.mpint(), w.mpint()
		if !w.done() {
			return false
		}
		digest := sha256.Sum256(signed)
		return ecdsa.Verify(p, digest[:], r, s)
	}
	return false
}

// wire reads the data types of SSH (RFC 4251, section 5) from the front of
// rest. Whether all of them were there is asked once, at the end: done.
type wire struct {
	rest  []byte
	short bool // something was missing or misspelt
}

// take reads n bytes.
func (w *wire) take(n uint32) []byte {
	if uint64(n) > uint64(len(w.rest)) {
		w.short = true
		return nil
	}
	b := w.rest[:n]
	w.rest = w.rest[n:]
	return b
}

func (w *wire) string() []byte {
	length := w.take(4)
	if w.short {
		return nil
	}
	return w.take(binary.BigEndian.Uint32(length))
}

// mpint reads a number above zero that is written with no byte more than it
// takes.
func (w *wire) mpint() *big.Int {
	b := w.string()
	if len(b) == 0 || b[0] >= 0x80 || b[0] == 0 && (len(b) == 1 || b[1] < 0x80) {
		w.short = true
		return new(big.Int)
	}
	return new(big.Int).SetBytes(b)
}

// done reports whether all was there, and nothing behind it.
func (w *wire) done() bool { return !w.short && len(w.rest) == 0 }
