// Package signer opens the keys that the control plane signs with: in a file,
// or behind a command that speaks to whatever holds them. Each is a
// crypto.Signer, and each checks what it signed before anybody else sees it.
package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Driver opens a key by what follows the scheme and the colon of a spec.
type Driver func(ctx context.Context, rest string) (crypto.Signer, error)

// commandTimeout bounds one call of a signing command that a spec names. A
// grant waits for it, and with the grant a person.
const commandTimeout = 10 * time.Second

// Open opens the key that spec names: file:PATH, command:PROGRAM ARGUMENT…, or
// another scheme that drivers has.
func Open(ctx context.Context, spec string, drivers map[string]Driver) (crypto.Signer, error) {
	scheme, rest, ok := strings.Cut(spec, ":")
	if !ok || rest == "" {
		return nil, fmt.Errorf("%q does not name a key: write file:PATH or command:PROGRAM", spec)
	}
	switch scheme {
	case "file":
		return File(rest)
	case "command":
		return Command(ctx, strings.Fields(rest), commandTimeout)
	}
	open := drivers[scheme]
	if open == nil {
		return nil, fmt.Errorf("%q does not name a key: %s is none of %s", spec, scheme, strings.Join(known(drivers), ", "))
	}
	return open(ctx, rest)
}

// known lists the schemes there are.
func known(drivers map[string]Driver) []string {
	names := []string{"file", "command"}
	for name := range drivers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// maxKeyFile is more than any PKCS#8 key of ours in PEM has.
const maxKeyFile = 16 << 10

// File reads a private key, Ed25519 or ECDSA P-256, PKCS#8 in PEM. A file that
// others than its owner can read is refused: the key may be known already.
// Only the files of systemd's credentials are believed as they are, since it
// shows an access list as rights of the group.
func File(path string) (crypto.Signer, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("%s is not a plain file", path)
	case openToOthers(info.Mode()) && !credential(path):
		return nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and replace the key if others had the time to read it", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: not a private key", path, maxKeyFile)
	}
	key, err := ParseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// credential reports whether path lies where systemd puts the credentials of
// this service.
func credential(path string) bool {
	dir := os.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return false
	}
	whole, err := filepath.Abs(path)
	return err == nil && filepath.Dir(whole) == filepath.Clean(dir)
}

// ParseKey reads a private key, Ed25519 or ECDSA P-256, PKCS#8 in PEM.
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("not a PKCS#8 private key in PEM (openssl genpkey -algorithm ed25519 makes one)")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of kind %T cannot sign", parsed)
	}
	if _, err := policy.NewKey(key.Public()); err != nil {
		return nil, err
	}
	return key, nil
}

// EncodeKey writes what ParseKey reads.
func EncodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// holds checks a signature as agents will: over the message for Ed25519, over
// its SHA-256 for ECDSA, which is in ASN.1.
func holds(public crypto.PublicKey, signed, signature []byte) bool {
	switch p := public.(type) {
	case ed25519.PublicKey:
		return ed25519.Verify(p, signed, signature)
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, signed, signature)
	}
	return false
}

// checkOptions refuses to sign in another way than documents are signed.
func checkOptions(public crypto.PublicKey, signed []byte, o crypto.SignerOpts) error {
	switch public.(type) {
	case ed25519.PublicKey:
		if o.HashFunc() != crypto.Hash(0) {
			return errors.New("an Ed25519 key signs messages, not digests")
		}
	case *ecdsa.PublicKey:
		if o.HashFunc() != crypto.SHA256 || len(signed) != crypto.SHA256.Size() {
			return errors.New("an ECDSA key on P-256 signs SHA-256 digests")
		}
	}
	return nil
}
