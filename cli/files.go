package cli

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/armor"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

// readFile reads a document, or standard input for "-".
func readFile(c *cobra.Command, path string) ([]byte, error) {
	return readUpTo(c, path, policy.MaxEnvelope)
}

// readUpTo reads one byte more than the limit, so that the parser sees that
// there is more.
func readUpTo(c *cobra.Command, path string, limit int64) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(io.LimitReader(c.InOrStdin(), limit+1))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit+1))
}

// readSigned reads an envelope, as JSON or as text, from a file or from
// standard input for "-". file is what an agent's inbox takes.
func readSigned(c *cobra.Command, path string) (e policy.Envelope, file []byte, err error) {
	raw, err := readUpTo(c, path, armor.MaxText)
	if err != nil {
		return e, nil, err
	}
	if e, file, err = parseSigned(raw); err != nil {
		return e, nil, fmt.Errorf("%s: %w", path, err)
	}
	return e, file, nil
}

// parseSigned tells JSON and text apart by the first character.
func parseSigned(raw []byte) (e policy.Envelope, file []byte, err error) {
	if beginsJSON(raw) {
		e, err = policy.ParseEnvelope(raw)
		return e, raw, err
	}
	if e, err = armor.Decode(raw); err != nil {
		return e, nil, err
	}
	return e, e.Encode(), nil
}

func beginsJSON(raw []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) }

// writeOutput writes data to path whole or not at all, or to standard output
// for "-". The temporary file stands beside the target, so the target may be
// in an agent's inbox.
func writeOutput(c *cobra.Command, path string, data []byte, mode os.FileMode) error {
	if path == "-" {
		_, err := c.OutOrStdout().Write(data)
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	// By the descriptor: whoever owns the directory may have put a link in
	// place of the name.
	err = errors.Join(err, f.Chmod(mode), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// createFile writes a file that must not exist yet.
func createFile(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// newKey makes a private key of a scheme.
func newKey(scheme policy.Scheme) (crypto.Signer, error) {
	switch scheme {
	case policy.Ed25519:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	case policy.ECDSAP256SHA256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	return nil, usage.Errorf("scheme %q is not %s or %s", scheme, policy.Ed25519, policy.ECDSAP256SHA256)
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// readKey reads a PKCS#8 private key in PEM, as openssl genpkey makes it.
func readKey(path string) (crypto.Signer, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("%s is not a PKCS#8 private key in PEM (openssl genpkey -algorithm ed25519 makes one)", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("%s: a key of kind %T cannot sign", path, parsed)
	}
	return key, nil
}

// readPublicKey reads a public key in PEM, as openssl pkey -pubout writes it,
// the public half of a private key, or a .pub file of ssh-keygen. The comment
// of the last is the key's name.
func readPublicKey(path string) (policy.Key, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return policy.Key{}, err
	}
	if filepath.Ext(path) == ".pub" {
		key, comment, err := policy.ParseSSHPublicKey(text)
		if err != nil {
			return policy.Key{}, fmt.Errorf("%s: %w", path, err)
		}
		key.Name = comment
		return key, nil
	}
	block, _ := pem.Decode(text)
	if block != nil && block.Type == "PRIVATE KEY" {
		signer, err := readKey(path)
		if err != nil {
			return policy.Key{}, err
		}
		return policy.NewKey(signer.Public())
	}
	if block == nil || block.Type != "PUBLIC KEY" {
		return policy.Key{}, fmt.Errorf("%s is not a public key in PEM (openssl pkey -pubout writes one), nor ssh-keygen's .pub", path)
	}
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return policy.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	key, err := policy.NewKey(public)
	if err != nil {
		return policy.Key{}, fmt.Errorf("%s: %w", path, err)
	}
	return key, nil
}

// trustFile reads a trust document with the digest pin. If that is nil the user
// vouches for it by naming it. It must carry a threshold of its own root keys.
func trustFile(c *cobra.Command, path string, pin *policy.Digest) (raw []byte, v policy.Verified[policy.Trust], err error) {
	if raw, err = readFile(c, path); err != nil {
		return nil, v, err
	}
	e, err := policy.ParseEnvelope(raw)
	if err == nil {
		want := e.Digest()
		if pin != nil {
			want = *pin
		}
		v, err = policy.OpenPinnedTrust(raw, want)
	}
	if err != nil {
		return nil, v, fmt.Errorf("%s: %w", path, err)
	}
	return raw, v, nil
}
