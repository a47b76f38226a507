package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/policy"
)

func newEd25519(t testing.TB) crypto.Signer {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newP256(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func write(t testing.TB, path string, text []byte, mode os.FileMode) string {
	t.Helper()
	if err := os.WriteFile(path, text, mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
	return path
}

func encode(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	text, err := EncodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// signs has the key sign a document as the engine does, and agents verify it.
func signs(t testing.TB, key crypto.Signer) {
	t.Helper()
	public, err := policy.NewKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	message := []byte("what is signed")
	var sig []byte
	if public.Scheme == policy.Ed25519 {
		sig, err = key.Sign(rand.Reader, message, crypto.Hash(0))
	} else {
		digest := sha256.Sum256(message)
		sig, err = key.Sign(rand.Reader, digest[:], crypto.SHA256)
	}
	if err != nil {
		t.Fatal(err)
	}
	if !public.Verify(message, sig) {
		t.Error("agents do not believe the signature")
	}
}

func TestFile(t *testing.T) {
	dir := t.TempDir()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(newP256(t).(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	good := encode(t, newEd25519(t))
	for _, c := range []struct {
		name string
		text []byte
		mode os.FileMode
		want string // part of the error; empty: it signs
	}{
		{"ed25519", good, 0o600, ""},
		{"p256", encode(t, newP256(t)), 0o400, ""},
		{"group", good, 0o640, "can be read by others"},
		{"others", good, 0o604, "can be read by others"},
		{"writable", good, 0o620, "can be read by others"},
		{"p384", encode(t, p384), 0o600, "only P-256"},
		{"rsa", encode(t, rsaKey), 0o600, "only Ed25519 and ECDSA P-256"},
		{"sec1", pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: sec1}), 0o600, "not a PKCS#8 private key"},
		{"cut", good[:40], 0o600, "not a PKCS#8 private key"},
		{"broken", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("no")}), 0o600, "broken: "},
		{"empty", nil, 0o600, "not a PKCS#8 private key"},
		{"huge", append([]byte(strings.Repeat("\n", maxKeyFile)), good...), 0o600, "more than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, err := File(write(t, filepath.Join(dir, c.name), c.text, c.mode))
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("%v, want %q", err, c.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			signs(t, key)
		})
	}
	if _, err := File(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, err := File(dir); err == nil || !strings.Contains(err.Error(), "not a plain file") {
		t.Errorf("a directory: %v", err)
	}
}

// systemd shows the access list of a credential as rights of the group. Only
// files right in its directory are believed so.
func TestFileOfCredentials(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	key := encode(t, newEd25519(t))
	got, err := File(write(t, filepath.Join(dir, "grant"), key, 0o440))
	if err != nil {
		t.Fatal(err)
	}
	signs(t, got)
	below := filepath.Join(dir, "below")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(t.TempDir(), "grant"), filepath.Join(below, "grant")} {
		if _, err := File(write(t, path, key, 0o440)); err == nil {
			t.Errorf("%s was read", path)
		}
	}
}

func TestOpen(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "key"), encode(t, newEd25519(t)), 0o600)
	special := newP256(t)
	var asked string
	drivers := map[string]Driver{"vault": func(_ context.Context, rest string) (crypto.Signer, error) {
		asked = rest
		return special, nil
	}}
	for spec, want := range map[string]string{
		"":              "does not name a key",
		path:            "does not name a key",
		"file:":         "does not name a key",
		"pkcs11:slot=1": "pkcs11 is none of command, file, vault",
		"command:  ":    "has no program",
		"file:/none":    "no such file",
	} {
		if _, err := Open(t.Context(), spec, drivers); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Open(%q): %v, want %q", spec, err, want)
		}
	}
	key, err := Open(t.Context(), "file:"+path, drivers)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, key)
	if key, err := Open(t.Context(), "vault:https://x/keys/a/b", drivers); err != nil || key != special || asked != "https://x/keys/a/b" {
		t.Errorf("the driver was asked for %q: %v", asked, err)
	}
}

// hsm is this test's own program as a signing command: see TestMain.
func hsm(t testing.TB, mode, keyPath string) []string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SIGNER_TEST_HSM", mode)
	return []string{self, keyPath}
}

// TestMain makes the test's program a signing command where it is called as one.
func TestMain(m *testing.M) {
	if mode := os.Getenv("SIGNER_TEST_HSM"); mode != "" {
		os.Exit(beHSM(mode, os.Args[1:]))
	}
	os.Exit(m.Run())
}

func beHSM(mode string, args []string) int {
	text, err := os.ReadFile(args[0])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	key, err := ParseKey(text)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if len(args) == 2 && args[1] == "public" {
		switch mode {
		case "no public":
			fmt.Println("what?")
			return 0
		case "no slot":
			fmt.Fprint(os.Stderr, "\n  slot 3 is\x1b[0m empty \nmore\n")
			return 3
		case "slow":
			time.Sleep(time.Minute)
		}
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			return 1
		}
		pem.Encode(os.Stdout, &pem.Block{Type: "PUBLIC KEY", Bytes: der})
		return 0
	}
	var in [4096]byte
	n, _ := os.Stdin.Read(in[:])
	switch mode {
	case "other key":
		_, other, _ := ed25519.GenerateKey(rand.Reader)
		os.Stdout.Write(ed25519.Sign(other, in[:n]))
		return 0
	case "empty":
		return 0
	case "locked":
		fmt.Fprintln(os.Stderr, "the token is locked")
		return 1
	case "flood":
		for {
			if _, err := os.Stdout.Write(in[:]); err != nil {
				return 1
			}
		}
	case "hangs":
		time.Sleep(time.Minute)
	}
	options := crypto.SignerOpts(crypto.Hash(0))
	if _, ok := key.(*ecdsa.PrivateKey); ok {
		options = crypto.SHA256
	}
	if ec, ok := key.(*ecdsa.PrivateKey); ok && mode == "raw" {
		r, s, err := ecdsa.Sign(rand.Reader, ec, in[:n])
		if err != nil {
			return 1
		}
		var out [64]byte
		r.FillBytes(out[:32])
		s.FillBytes(out[32:])
		os.Stdout.Write(out[:])
		return 0
	}
	sig, err := key.Sign(rand.Reader, in[:n], options)
	if err != nil {
		return 1
	}
	os.Stdout.Write(sig)
	return 0
}

func TestCommand(t *testing.T) {
	dir := t.TempDir()
	ed := write(t, filepath.Join(dir, "ed"), encode(t, newEd25519(t)), 0o600)
	ec := write(t, filepath.Join(dir, "ec"), encode(t, newP256(t)), 0o600)
	for _, c := range []struct{ mode, key string }{{"plain", ed}, {"plain", ec}, {"raw", ec}} {
		key, err := Command(t.Context(), hsm(t, c.mode, c.key), 20*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		signs(t, key)
	}
	for _, c := range []struct{ mode, want string }{
		{"no public", "did not write a public key"},
		{"no slot", "slot 3 is [0m empty"},
	} {
		if _, err := Command(t.Context(), hsm(t, c.mode, ed), 20*time.Second); err == nil || !strings.Contains(err.Error(), c.want) || strings.ContainsAny(err.Error(), "\n\x1b") {
			t.Errorf("%s: %v, want %q", c.mode, err, c.want)
		}
	}
	if _, err := Command(t.Context(), hsm(t, "slow", ed), 50*time.Millisecond); err == nil || !strings.Contains(err.Error(), "did not answer within 50ms") {
		t.Errorf("slow: %v", err)
	}
	if _, err := Command(t.Context(), nil, time.Second); err == nil {
		t.Error("a command without a program was taken")
	}
	if _, err := Command(t.Context(), []string{filepath.Join(dir, "none")}, time.Second); err == nil {
		t.Error("a program that is not there was taken")
	}
	for _, c := range []struct {
		mode, want string
		timeout    time.Duration
	}{
		{"other key", "does not hold", 20 * time.Second},
		{"empty", "does not hold", 20 * time.Second},
		{"locked", "the token is locked", 20 * time.Second},
		{"flood", "wrote more than", 20 * time.Second},
		{"hangs", "did not answer", time.Second},
	} {
		t.Run(c.mode, func(t *testing.T) {
			key, err := Command(t.Context(), hsm(t, "plain", ed), 20*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			key.(*command).timeout = c.timeout
			hsm(t, c.mode, ed)
			if _, err := key.Sign(nil, []byte("m"), crypto.Hash(0)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}

// A key is asked for nothing but what documents need.
func TestCommandOptions(t *testing.T) {
	dir := t.TempDir()
	ed, err := Command(t.Context(), hsm(t, "plain", write(t, filepath.Join(dir, "ed"), encode(t, newEd25519(t)), 0o600)), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := Command(t.Context(), hsm(t, "plain", write(t, filepath.Join(dir, "ec"), encode(t, newP256(t)), 0o600)), 20*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	if _, err := ed.Sign(nil, digest[:], crypto.SHA256); err == nil {
		t.Error("Ed25519 signed a digest")
	}
	if _, err := ec.Sign(nil, digest[:], crypto.SHA512); err == nil {
		t.Error("P-256 signed something said to be SHA-512")
	}
	if _, err := ec.Sign(nil, digest[:31], crypto.SHA256); err == nil {
		t.Error("P-256 signed 31 bytes")
	}
}

// What openssl does is a signing command already.
func TestCommandOfOpenSSL(t *testing.T) {
	dir := t.TempDir()
	key := write(t, filepath.Join(dir, "key"), encode(t, newP256(t)), 0o600)
	script := write(t, filepath.Join(dir, "sign"), []byte("#!/bin/sh\nif [ \"$1\" = public ]; then exec openssl pkey -pubout -in "+key+"; fi\nexec openssl pkeyutl -sign -inkey "+key+"\n"), 0o700)
	got, err := Open(t.Context(), "command:"+script, nil)
	if err != nil {
		t.Fatal(err)
	}
	signs(t, got)
}

func FuzzParseKey(f *testing.F) {
	f.Add(encode(f, newEd25519(f)))
	f.Add(encode(f, newP256(f)))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		key, err := ParseKey(text)
		if err != nil {
			return
		}
		again, err := ParseKey(encode(t, key))
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := again.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !p.Equal(key.Public()) {
			t.Error("another key after a round")
		}
	})
}

func FuzzASN1(f *testing.F) {
	f.Add(make([]byte, 64))
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if sig, err := asASN1(raw); err == nil && len(sig) < 8 {
			t.Errorf("%x became %x", raw, sig)
		}
	})
}
