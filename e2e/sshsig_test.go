//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// token is the library of a FIDO2 token in software, which OpenSSH's own
// ssh-sk-helper loads.
var token = sync.OnceValues(func() (string, error) {
	path := filepath.Join(programs, "token.so")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-buildmode=c-shared", "-o", path, "testdata/token/token.go")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// people sign with OpenSSH's programs, each with a key in dir.
type people struct {
	t   *testing.T
	dir string
	env []string
}

func newPeople(t *testing.T) *people {
	t.Helper()
	library, err := token()
	if err != nil {
		t.Fatal(err)
	}
	p := &people{t: t, dir: t.TempDir()}
	p.env = append(os.Environ(), "SSH_SK_PROVIDER="+library, "SSH_AUTH_SOCK="+p.path("agent"), "SSH_ASKPASS=")
	return p
}

func (p *people) path(name string) string { return filepath.Join(p.dir, name) }

// try runs a program for at most the time a test has patience for.
func (p *people) try(name string, args ...string) error {
	ctx, cancel := context.WithTimeout(p.t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env, cmd.Dir = p.env, p.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (p *people) run(name string, args ...string) {
	p.t.Helper()
	if err := p.try(name, args...); err != nil {
		p.t.Fatal(err)
	}
}

// tokenKey has the token make a key. Each OpenSSH asks for one version of the
// library's interface.
func (p *people) tokenKey(name, kind string, more ...string) {
	p.t.Helper()
	var err error
	for _, version := range []string{"10", "9"} {
		env := p.env
		p.env = append(p.env[:len(p.env):len(p.env)], "TOKEN_API_VERSION="+version)
		if err = p.try("ssh-keygen", append([]string{"-q", "-t", kind, "-N", "", "-C", name, "-f", name}, more...)...); err == nil {
			return
		}
		p.env = env
	}
	p.t.Fatal(err)
}

// startAgent starts an ssh-agent that ends with the test.
func (p *people) startAgent() {
	p.t.Helper()
	cmd := exec.Command("ssh-agent", "-D", "-a", p.path("agent"))
	cmd.Env = p.env
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // killed
	})
	until(p.t, patience, "ssh-agent should listen", func() bool {
		_, err := os.Stat(p.path("agent"))
		return err == nil
	})
}

// key is somebody's key as a trust document lists it.
func (p *people) key(name string) object {
	p.t.Helper()
	public, _, _, _, err := ssh.ParseAuthorizedKey(read(p.t, p.path(name+".pub")))
	if err != nil {
		p.t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(public.(ssh.CryptoPublicKey).CryptoPublicKey())
	if err != nil {
		p.t.Fatal(err)
	}
	return object{"id": fmt.Sprintf("sha256:%x", sha256.Sum256(der)), "scheme": "sshsig", "name": name,
		"public": base64.StdEncoding.EncodeToString(public.Marshal())}
}

// signs adds somebody's signature to a file, with ssh-keygen and by the book.
func (p *people) signs(name, file string) {
	p.t.Helper()
	p.signsFor("jitgate.v1", name, file)
}

// signsFor does so in a namespace.
func (p *people) signsFor(namespace, name, file string) {
	p.t.Helper()
	var e struct {
		PayloadType string   `json:"payloadType"`
		Payload     []byte   `json:"payload"`
		Signatures  []object `json:"signatures"`
	}
	if err := json.Unmarshal(read(p.t, p.path(file)), &e); err != nil {
		p.t.Fatal(err)
	}
	pae := fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(e.PayloadType), e.PayloadType, len(e.Payload), e.Payload)
	if err := os.WriteFile(p.path("pae"), pae, 0o600); err != nil {
		p.t.Fatal(err)
	}
	key := name
	if _, err := os.Stat(p.path(name)); err != nil {
		key = name + ".pub" // the private half is in ssh-agent
	}
	p.run("ssh-keygen", "-q", "-Y", "sign", "-n", namespace, "-f", key, "pae")
	lines := strings.Split(strings.TrimSpace(string(read(p.t, p.path("pae.sig")))), "\n")
	e.Signatures = append(e.Signatures, object{"keyid": p.key(name)["id"], "sig": strings.Join(lines[1:len(lines)-1], "")})
	if err := os.Remove(p.path("pae.sig")); err != nil { // ssh-keygen would ask before it overwrites
		p.t.Fatal(err)
	}
	p.write(file, encode(e))
}

func (p *people) write(file string, content []byte) {
	p.t.Helper()
	if err := os.WriteFile(p.path(file), content, 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// Two of three people sign what the host takes: Alice with a key in a file,
// Bob with one in ssh-agent, Carol with one on a FIDO2 token. They pass one
// file around and need nothing but OpenSSH.
func TestSSHSigners(t *testing.T) {
	t.Parallel()
	privileged(t, "ssh-keygen", "ssh-agent", "ssh-add", "gcc")
	h, p := newHost(t), newPeople(t)
	p.startAgent()
	p.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "alice", "-f", "alice")
	p.run("ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", "-N", "", "-C", "bob", "-f", "bob")
	p.run("ssh-add", "-q", "bob")
	if err := os.Remove(p.path("bob")); err != nil {
		t.Fatal(err)
	}
	p.tokenKey("carol", "ed25519-sk")
	p.tokenKey("carol2", "ecdsa-sk")
	p.tokenKey("untouched", "ed25519-sk", "-O", "no-touch-required")

	trust := func(version int, roots ...string) object {
		doc := h.realm.trust(version)
		var ids []any
		for _, name := range roots {
			doc["keys"] = append(doc["keys"].([]object), p.key(name))
			ids = append(ids, p.key(name)["id"])
		}
		policy := append(ids[:len(ids):len(ids)], p.key("untouched")["id"])
		doc["keys"] = append(doc["keys"].([]object), p.key("untouched"))
		for _, role := range doc["roles"].([]object) {
			switch role["name"] {
			case "root":
				role["keys"], role["threshold"] = ids, 2
			case "policy":
				role["keys"], role["threshold"] = policy, 2
			}
		}
		return doc
	}
	unsigned := func(kind string, document object) []byte { return seal(kind, encode(document)) }
	// refused delivers a file that must not be admitted, and returns why not.
	refused := func(kind, file, why string) {
		t.Helper()
		before := h.status().document(kind).Version
		h.deliver(kind+".json", read(t, p.path(file)))
		h.until(file+" should be refused: "+why, func(s status) bool { return strings.Contains(s.document(kind).Refusal, why) })
		if now := h.status().document(kind).Version; now != before {
			t.Fatalf("%s version %d is in force, it was %d", kind, now, before)
		}
	}
	admitted := func(kind, file string, version uint64) {
		t.Helper()
		h.deliver(kind+".json", read(t, p.path(file)))
		h.until(file+" should be admitted", func(s status) bool {
			return s.document(kind).Version == version && s.document(kind).Refusal == ""
		})
	}

	// The host's first trust document, signed by one, then by two.
	first := trust(1, "alice", "bob", "carol")
	p.write("trust1", unsigned("trust", first))
	var e struct{ Payload []byte }
	if err := json.Unmarshal(read(t, p.path("trust1")), &e); err != nil {
		t.Fatal(err)
	}
	h.settings["trust_pin"] = quote(fmt.Sprintf("sha256:%x", sha256.Sum256(e.Payload)))
	h.start()
	p.signs("alice", "trust1")
	refused("trust", "trust1", "bad-signature: 1 valid signatures of role root, 2 needed")
	p.signs("carol", "trust1")
	admitted("trust", "trust1", 1)

	// The policy: the token alone, also twice; then with Bob.
	p.write("policy1", unsigned("policy", h.realm.rules(1, port(22, "TCP"))))
	p.signs("carol", "policy1")
	p.signs("carol", "policy1")
	refused("policy", "policy1", "bad-signature: 1 valid signatures of role policy, 2 needed")
	p.signs("bob", "policy1")
	admitted("policy", "policy1", 1)

	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))))
	h.until("the grant should be open", func(s status) bool { return s.isOpen("g1") })
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	stop := h.watch(way{"22/tcp", alice4})

	// A token that nobody touched counts for nothing, whatever its key file says.
	p.write("policy2", unsigned("policy", h.realm.rules(2, port(22, "TCP"), port(23, "TCP"))))
	p.signs("alice", "policy2")
	p.signs("untouched", "policy2")
	refused("policy", "policy2", "bad-signature: 1 valid signatures of role policy, 2 needed")
	out := h.must("inspect", "--trust", p.path("trust1"), p.path("policy2"))
	for _, want := range []string{"alice (holds)", "untouched (does not hold)", "1 of 2 signed, not yet: bob; carol; untouched\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("inspect does not say %q:\n%s", want, out)
		}
	}
	// The same file goes on to Carol, who has jitgate.
	cmd := exec.Command(h.program, "sign", "--ssh-key", p.path("carol"), "--trust", p.path("trust1"), p.path("policy2"), "-o", p.path("policy2"))
	cmd.Env = p.env
	var complaints bytes.Buffer
	cmd.Stderr = &complaints
	if err := cmd.Run(); err != nil {
		t.Fatalf("jitgate sign: %v\n%s", err, &complaints)
	}
	admitted("policy", "policy2", 2)

	// The next trust document: Carol has a new token. Both the old root keys
	// and the new ones sign it.
	p.write("trust2", unsigned("trust", trust(2, "alice", "bob", "carol2")))
	p.signs("alice", "trust2")
	p.signs("carol", "trust2")
	refused("trust", "trust2", "by its own root keys: bad-signature: 1 valid signatures of role root, 2 needed")
	stop() // none of that concerned the grant
	p.signs("carol2", "trust2")
	admitted("trust", "trust2", 2)
	// The policy was by Alice and the old token: it is over, and a new one is due.
	h.until("the policy should be dropped", func(s status) bool { return s.document("policy").Version == 0 })
	h.closes(patience, ways("22/tcp", alice4))
	p.write("policy3", unsigned("policy", h.realm.rules(3, port(22, "TCP"))))
	p.signs("bob", "policy3")
	p.signs("carol2", "policy3")
	admitted("policy", "policy3", 3)
	h.until("the grant should be open", func(s status) bool { return s.isOpen("g1") })
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
}

// policySigner makes somebody the one who signs policies, with a key of kind.
func policySigner(t *testing.T, kind string, more ...string) (*host, *people) {
	t.Helper()
	privileged(t, "ssh-keygen", "gcc")
	h, p := forAlice(t), newPeople(t)
	if kind == "ed25519" {
		p.run("ssh-keygen", "-q", "-t", kind, "-N", "", "-C", "carol", "-f", "carol")
	} else {
		p.tokenKey("carol", kind, more...)
	}
	trust := h.realm.trust(2)
	trust["keys"] = append(trust["keys"].([]object), p.key("carol"))
	for _, role := range trust["roles"].([]object) {
		if role["name"] == "policy" {
			role["keys"] = append(role["keys"].([]string), p.key("carol")["id"].(string))
		}
	}
	h.deliver("trust.json", h.realm.sign("trust", trust))
	h.until("carol should be a signer", func(s status) bool { return s.document("trust").Version == 2 })
	return h, p
}

// wide is a policy that admits bob.
func (h *host) wide(version int) object {
	return with(h.realm.rules(version, port(22, "TCP")), object{"exemptSourceAddressPrefixes": []string{bob4 + "/32"}})
}

// A program on her machine can have the token sign, as long as nobody has to
// touch it. Such a signature counts for nothing.
func TestThreatUntouchedToken(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ed25519-sk", "ecdsa-sk"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			h, p := policySigner(t, kind, "-O", "no-touch-required")
			p.write("wide", seal("policy", encode(h.wide(2))))
			p.signs("carol", "wide")
			h.refuses("policy", "bad-signature", read(t, p.path("wide")))
		})
	}
}

// What her key signed elsewhere, or over another document, is no signature
// here.
func TestThreatSignedElsewhere(t *testing.T) {
	t.Parallel()
	h, p := policySigner(t, "ed25519")
	for _, namespace := range []string{"git", "file", "jitgate.v2", "jitgate"} {
		p.write("wide", seal("policy", encode(h.wide(2))))
		p.signsFor(namespace, "carol", "wide")
		h.refuses("policy", "bad-signature", read(t, p.path("wide")))
	}
	p.write("narrow", seal("policy", encode(h.realm.rules(2, port(22, "TCP")))))
	p.signs("carol", "narrow")
	var e object
	if err := json.Unmarshal(read(t, p.path("narrow")), &e); err != nil {
		t.Fatal(err)
	}
	h.refuses("policy", "bad-signature", encode(with(e, object{"payload": envelope("policy", encode(h.wide(2)))["payload"]})))
	h.deliver("policy.json", read(t, p.path("narrow")))
	h.until("what she did sign should be in force", func(s status) bool { return s.document("policy").Version == 2 })
}
