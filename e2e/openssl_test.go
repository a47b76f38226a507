//go:build linux

package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const scripts = "../docs/examples"

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A realm made with openssl and jq alone opens a port.
func TestDocumentsMadeWithOpenSSL(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	dir := t.TempDir()
	out, err := exec.Command("sh", filepath.Join(scripts, "sign.sh"), dir, hostID).Output()
	if err != nil {
		t.Fatal(err)
	}
	pin := strings.TrimSpace(string(out))

	delete(h.settings, "trust_pin")
	if err := os.Remove(h.path("inbox", "trust.json")); err != nil {
		t.Fatal(err)
	}
	config := h.config()
	h.must("trust", "install", "--config", config, filepath.Join(dir, "trust.json"))
	if !strings.Contains(string(read(t, config)), `trust_pin = "`+pin+`"`) {
		t.Fatalf("trust install wrote another pin than %s:\n%s", pin, read(t, config))
	}
	h.settings["trust_pin"] = quote(pin)

	h.start()
	h.deliver("policy.json", read(t, filepath.Join(dir, "policy.json")))
	h.deliver("grants.json", read(t, filepath.Join(dir, "grants.json")))
	h.until("the grant should be open", func(s status) bool { return s.isOpen("g1") })
	h.isOpen(ways("22/tcp", carol4))
	h.isClosed(ways("22/tcp", alice4, bob6))
	h.must("verify", "--trust", filepath.Join(dir, "trust.json"), "--host", hostID, filepath.Join(dir, "policy.json"), filepath.Join(dir, "grants.json"))
}

// What jitgate signs, openssl and jq verify; and a realm made by its commands
// opens a port.
func TestDocumentsMadeWithJitgate(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"ed25519", "ecdsa-p256-sha256"} {
		t.Run(scheme, func(t *testing.T) {
			h := newHost(t)
			keys := h.path("keys")
			h.must("trust", "init", "--realm", "acme", "--out", keys, "--scheme", scheme)
			trust, in := filepath.Join(keys, "trust.json"), h.path("policy.in")
			if err := os.WriteFile(in, encode(h.realm.rules(1, port(22, "TCP"))), 0o644); err != nil {
				t.Fatal(err)
			}
			delete(h.settings, "trust_pin")
			h.must("trust", "install", "--config", h.config(), trust)
			var e struct{ Digest string }
			if err := json.Unmarshal([]byte(h.must("inspect", "--json", trust)), &e); err != nil {
				t.Fatal(err)
			}
			h.settings["trust_pin"] = quote(e.Digest)
			h.start()

			// Written straight into the inbox, as the commands promise.
			h.must("sign", "--type", "policy", "--key", filepath.Join(keys, "policy.key"), in, "-o", h.path("inbox", "policy.json"))
			h.must("grant", "--dir", keys, "--host", hostID, "--port", "22", "--source", alice4, "--for", "10m", "-o", h.path("inbox", "grants.json"))
			h.until("the grant should be open", func(s status) bool { return len(s.Openings) == 1 })
			h.isOpen(ways("22/tcp", alice4))
			h.isClosed(ways("22/tcp", bob4))
			h.must("grant", "--dir", keys, "--host", hostID, "--revoke", "all", "-o", h.path("inbox", "grants.json"))
			h.closes(patience, ways("22/tcp", alice4))

			for _, name := range []string{"trust.json", "policy.json", "grants.json"} {
				path := h.path("inbox", name)
				out, err := exec.Command("sh", filepath.Join(scripts, "verify.sh"), path, trust).CombinedOutput()
				if err != nil {
					t.Errorf("verify.sh %s: %v\n%s", name, err, out)
				}
				var envelope struct{ Payload string }
				if err := json.Unmarshal(read(t, path), &envelope); err != nil {
					t.Fatal(err)
				}
				if payload, err := base64.StdEncoding.DecodeString(envelope.Payload); err != nil || string(payload) != string(out) {
					t.Errorf("verify.sh %s prints another payload than the envelope has: %v\n%s", name, err, out)
				}
			}
		})
	}
}
