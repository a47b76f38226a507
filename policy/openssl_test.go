package policy

import (
	"bytes"
	"crypto"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// script runs one of testdata's scripts, which need no jitgate.
func script(t *testing.T, name string, args ...string) ([]byte, error) {
	t.Helper()
	for _, tool := range []string{"sh", "jq", "openssl", "sha256sum", "base64", "ssh-keygen"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("JITGATE_CI") != "" {
				t.Fatal(err)
			}
			t.Skipf("%s is not installed: %v", tool, err)
		}
	}
	cmd := exec.Command("sh", append([]string{filepath.Join("..", "docs", "examples", name)}, args...)...)
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	out, err := cmd.Output()
	if complaints.Len() > 0 {
		t.Logf("%s: %s", name, complaints.Bytes())
	}
	return out, err
}

// A realm made with openssl and jq is a realm: no jitgate signing tool, and no
// library of ours, is needed to write what an agent takes.
func TestOpenSSLSigns(t *testing.T) { signs(t, "sign.sh") }

// So is one made with ssh-keygen and jq.
func TestOpenSSHSigns(t *testing.T) { signs(t, "ssh-sign.sh") }

func signs(t *testing.T, name string) {
	dir := t.TempDir()
	out, err := script(t, name, dir, hostID)
	if err != nil {
		t.Fatal(err)
	}
	pin, err := ParseDigest(string(bytes.TrimSpace(out)))
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	f := Facts{Host: hostID, Now: time.Now()}

	trust, err := OpenPinnedTrust(read("trust.json"), pin)
	if err != nil {
		t.Fatal(err)
	}
	s, err := AdmitTrust(State{}, trust, Trust{}, f)
	if err != nil {
		t.Fatal(err)
	}
	policy, err := OpenPolicy(read("policy.json"), trust.Document())
	if err != nil {
		t.Fatal(err)
	}
	if s, err = AdmitPolicy(s, policy, trust.Document(), f); err != nil {
		t.Fatal(err)
	}
	grants, err := OpenGrants(read("grants.json"), trust.Document())
	if err != nil {
		t.Fatal(err)
	}
	if s, err = AdmitGrants(s, grants, trust.Document(), policy.Document(), f); err != nil {
		t.Fatal(err)
	}
	d := Evaluate(s, trust.Document(), policy.Document(), grants.Document(), f)
	if len(d.Verdicts) != 1 || d.Blocked != nil || d.Verdicts[0].Refusal != nil || d.Verdicts[0].Phase != PhaseActive {
		t.Errorf("the grant does not open: %+v", d)
	}

	// And the other script agrees with itself and with us.
	for _, name := range []string{"trust.json", "policy.json", "grants.json"} {
		if _, err := script(t, "verify.sh", filepath.Join(dir, name), filepath.Join(dir, "trust.json")); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// OpenSSH itself, asked by verify.sh, takes of the vectors' policies signed by
// SSH keys those that we take.
func TestOpenSSHVerifies(t *testing.T) {
	trust := filepath.Join(vectorDir, "trust-sshsig-first.json")
	document := inForce(t, filepath.Base(trust)).(Trust)
	taken := 0
	files, err := filepath.Glob(vectorDir + "/policy-sshsig-*.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	for _, file := range files {
		_, ours := OpenPolicy(readVector(t, filepath.Base(file)), document)
		if _, err := script(t, "verify.sh", file, trust); (err == nil) != (ours == nil) {
			t.Errorf("%s: verify.sh says %v, we say %v", file, err, ours)
		}
		if ours == nil {
			taken++
		}
	}
	if taken < 6 {
		t.Errorf("only %d policies hold", taken)
	}
}

// Anyone with openssl and jq can check what jitgate signed.
func TestOpenSSLVerifies(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	signed := func(doc interface{ Encode() []byte }, signers ...crypto.Signer) []byte {
		e := Envelope{Type: typeOf(doc), Payload: doc.Encode()}
		for _, s := range signers {
			if err := e.Sign(s); err != nil {
				t.Fatal(err)
			}
		}
		return e.Encode()
	}
	// Of each pair of keys one is Ed25519, one P-256.
	trust := write("trust.json", signed(trustDoc(), rootA, rootB))
	for _, c := range []struct {
		name     string
		envelope []byte
		ok       bool
	}{
		{"trust", signed(trustDoc(), rootA, rootB), true},
		{"policy", signed(policyDoc(), policyB, policyA), true},
		{"policy-one-signer", signed(policyDoc(), policyA), false},
		{"policy-one-signer-twice", seal(policyDoc(), policyA, policyA), false},
		{"grants", signed(grantsDoc(), grantA), true},
		{"grants-by-stranger", signed(grantsDoc(), mallory), false},
		{"grants-edited", reenveloped(signed(grantsDoc(), grantA), func(e *Envelope) { e.Payload[10] ^= 1 }), false},
		{"grants-retyped", replaced(signed(policyDoc(), grantA), string(TypePolicy), string(TypeGrants)), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := script(t, "verify.sh", write(c.name+".json", c.envelope), trust)
			if (err == nil) != c.ok {
				t.Fatalf("verify.sh: %v", err)
			}
			if want := payloadOf(c.envelope); c.ok && !bytes.Equal(out, want) {
				t.Errorf("verify.sh prints %s, want %s", out, want)
			}
		})
	}
}
