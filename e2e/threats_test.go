//go:build linux

package e2e_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

// The rows of the threat table in docs/attack-surface.md, from outside: one
// test a row, named there. Other rows have their test where what stops them
// is tested anyway; TestThreatTable (structure_test.go) holds both together.

// refuses delivers a document that must be refused with a code. Nothing else
// may come of it.
func (h *host) refuses(kind, code string, content []byte) {
	h.t.Helper()
	mark, before := h.mark(), len(h.events("document.refused"))
	h.deliver(kind+".json", content)
	var refused []event
	until(h.t, patience, fmt.Sprintf("the %s should be refused", kind), func() bool {
		refused = h.events("document.refused")[before:]
		return len(refused) > 0
	})
	if e := refused[0]; e.Document != kind || e.Code != code {
		h.t.Errorf("refused %s with %s (%s), want %s with %s", e.Document, e.Code, e.Message, kind, code)
	}
	if now := h.mark(); now != mark {
		h.t.Errorf("the mark was\n%s\nand is\n%s", mark, now)
	}
}

// forBob is a list in which bob may come in, with changes.
func (r realm) forBob(version int, changes object) object {
	return with(r.list(version, grant("bob", 22, 30*time.Minute, bob4+"/32")), changes)
}

// forAlice makes a host with one opening, of list 5, which every test here
// must leave alone.
func forAlice(t *testing.T) *host {
	t.Helper()
	h := guarding(t, port(22, "TCP"))
	h.allow(5, grant("alice", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	t.Cleanup(func() {
		if !t.Failed() && h.alive() {
			h.isOpen(ways("22/tcp", alice4))
			h.isClosed(ways("22/tcp", bob4, bob6))
		}
	})
	return h
}

// One bit turned over or the rest cut off, at places all over the file: no
// version of it is taken. The whole file is.
func TestThreatEditsTheFile(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	list := h.realm.sign("grants", h.realm.list(6, grant("alice", 22, 30*time.Minute, alice4+"/32")))
	for i := range 40 {
		at := i * (len(list) - 1) / 39
		edited := bytes.Clone(list)
		edited[at] ^= 1 << (i % 7)
		for _, content := range [][]byte{edited, list[:at]} {
			h.deliver("grants.json", content)
			h.until(fmt.Sprintf("the file changed at byte %d of %d should be refused: %q", at, len(list), content),
				func(s status) bool { return s.document("grants").Refusal != "" })
			if s := h.status(); s.document("grants").Version != 5 {
				t.Fatalf("changed at byte %d it was taken: %+v", at, s)
			}
			if err := os.Remove(h.path("inbox", "grants.json")); err != nil {
				t.Fatal(err)
			}
			h.until("nothing should be refused", func(s status) bool { return s.document("grants").Refusal == "" })
		}
	}
	h.deliver("grants.json", list)
	h.until("the whole file should be taken", func(s status) bool { return s.document("grants").Version == 6 })
}

// What was revoked does not come back with the list it was on, nor with its
// version and other words; not for the next agent either.
func TestThreatReplays(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	old := h.realm.sign("grants", h.realm.forBob(6, nil))
	h.deliver("grants.json", old)
	h.until("bob should be in", func(s status) bool { return s.isOpen("bob") })
	h.allow(7, grant("alice", 22, 30*time.Minute, alice4+"/32"))
	h.isClosed(ways("22/tcp", bob4))
	h.refuses("grants", "rollback", old)
	h.refuses("grants", "equivocation", h.realm.sign("grants", h.realm.forBob(7, nil)))
	h.kill()
	h.deliver("grants.json", old)
	h.start()
	h.isClosed(ways("22/tcp", bob4))
	h.refuses("policy", "equivocation", h.realm.sign("policy", h.realm.rules(1, port(23, "TCP"))))
	h.refuses("trust", "equivocation", h.realm.sign("trust", with(h.realm.trust(1), object{"expires": in(2 * time.Hour)})))
}

// Whoever holds newer lists back keeps no opening alive beyond maxGrantsAge,
// and whoever holds only the policy back gets no list in that was made for it.
func TestThreatWithholds(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"maxGrantsAge": "PT3S"}))
	issued := time.Now().Truncate(time.Second)
	h.put(1, with(h.realm.list(1, grant("g1", 22, 30*time.Minute, alice4+"/32")), object{"issued": stamp(issued)}))
	h.isOpen(ways("22/tcp", alice4))
	end := issued.Add(3 * time.Second)
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", alice4))
	if early := time.Until(end); early > 0 {
		t.Errorf("closed %s before its end", early)
	}
	h.refuses("grants", "stale-policy", h.realm.sign("grants", h.realm.forBob(2, object{"policyVersion": 2})))
	h.allow(2, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
}

// Rightly signed, for somebody else: another host, a host whose name begins
// like ours, another realm from its trust document down.
func TestThreatOthersDocuments(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	for _, id := range []string{"/subscriptions/1/virtualMachines/web2", hostID + "0", hostID + "/", "web1"} {
		h.refuses("grants", "wrong-host", h.realm.sign("grants", h.realm.forBob(6, object{"host": object{"id": id}})))
	}
	h.refuses("policy", "wrong-host", h.realm.sign("policy", with(h.realm.rules(2, port(22, "TCP")), object{"host": object{"id": "/subscriptions/2/*"}})))
	h.refuses("grants", "wrong-realm", h.realm.sign("grants", h.realm.forBob(6, object{"realm": "umbrella"})))
	umbrella := newRealm(t, "umbrella")
	h.refuses("trust", "bad-signature", umbrella.sign("trust", umbrella.trust(1)))
	h.refuses("trust", "bad-signature", umbrella.sign("trust", umbrella.trust(2)))
	h.refuses("policy", "bad-signature", umbrella.sign("policy", umbrella.rules(2, port(22, "TCP"))))
	h.refuses("grants", "bad-signature", umbrella.sign("grants", umbrella.forBob(6, nil)))
}

// An older copy of the whole state knows nothing of the revocation since. What
// it brings back ends when its list is too old.
func TestThreatRestoresOldState(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"maxGrantsAge": "PT8S"}))
	end := time.Now().Truncate(time.Second).Add(8 * time.Second)
	h.put(1, h.realm.forBob(1, object{"issued": stamp(end.Add(-8 * time.Second))}))
	h.stop()
	for _, dir := range []string{"state", "inbox"} {
		if err := os.CopyFS(h.path("old", dir), os.DirFS(h.path(dir))); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	h.allow(2)
	h.isClosed(ways("22/tcp", bob4))
	h.stop()
	for _, dir := range []string{"state", "inbox"} {
		if err := os.RemoveAll(h.path(dir)); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(h.path("old", dir), h.path(dir)); err != nil {
			t.Fatal(err)
		}
	}
	h.start()
	if s := h.status(); s.document("grants").Version != 1 {
		t.Fatalf("the old state was not restored: %+v", s)
	}
	h.closes(time.Until(end.Add(2*time.Second)), ways("22/tcp", bob4))
}

// A start in the past counts into a grant's length, and a list issued in the
// past only ends sooner.
func TestThreatBackDates(t *testing.T) {
	t.Parallel()
	h := forAlice(t) // grants of an hour at most
	started := func(id string, ago, end time.Duration) object {
		return with(grant(id, 22, end, bob4+"/32"), object{"startTimeUtc": in(-ago)})
	}
	h.allow(6, grant("alice", 22, 30*time.Minute, alice4+"/32"),
		started("long", 50*time.Minute, 20*time.Minute), started("over", 59*time.Minute, -time.Minute), started("ancient", 10*365*24*time.Hour, time.Minute))
	h.recorded("grant.refused", "long", "too-long")
	h.recorded("grant.refused", "ancient", "too-long")
	h.isClosed(ways("22/tcp", bob4))
	h.put(7, with(h.realm.list(7, grant("alice", 22, 30*time.Minute, alice4+"/32"), grant("bob", 22, 30*time.Minute, bob4+"/32")),
		object{"issued": in(-24*time.Hour + 4*time.Second)})) // maxGrantsAge is a day
	h.closes(patience, ways("22/tcp", alice4, bob4))
	h.allow(8, grant("alice", 22, 30*time.Minute, alice4+"/32"))
}

// The grant key's word counts for grants alone, whatever its envelope says.
func TestThreatSignsOtherDocuments(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	wide := encode(with(h.realm.rules(2, port(22, "TCP")), object{"exemptSourceAddressPrefixes": []string{"*"}}))
	h.refuses("policy", "bad-signature", seal("policy", wide, h.realm.grant))
	h.refuses("policy", "wrong-type", seal("grants", wide, h.realm.grant))
	relabelled := envelope("grants", wide, h.realm.grant)
	relabelled["payloadType"] = "application/vnd.jitgate.policy.v1+json"
	h.refuses("policy", "bad-signature", encode(relabelled))
	h.refuses("trust", "bad-signature", seal("trust", encode(h.realm.trust(2)), h.realm.grant))
	both := h.realm
	both.policy = both.grant
	h.refuses("trust", "malformed", seal("trust", encode(both.trust(2)), h.realm.root))
}

// A list from the future is not admitted, and does not raise the clock's floor
// so that nothing else is.
func TestThreatIssuesFromTheFuture(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	h.refuses("grants", "not-yet", h.realm.sign("grants", h.realm.forBob(6, object{"issued": in(3 * time.Minute)})))
	h.refuses("grants", "not-yet", h.realm.sign("grants", h.realm.forBob(1<<53-1, object{"issued": "9998-12-31T23:59:59Z", "expires": "9999-12-31T23:59:59Z"})))
	h.stop()
	h.start()
	h.allow(6, grant("alice", 22, 30*time.Minute, alice4+"/32"))
	if s := h.status(); s.Blocked != "" {
		t.Errorf("blocked: %s", s.Blocked)
	}
}

// twoOf gives a role two of two keys, in a trust document.
func twoOf(trust object, role string, keys ...key) object {
	for _, k := range keys {
		trust["keys"] = append(trust["keys"].([]object), k.public())
	}
	for _, r := range trust["roles"].([]object) {
		if r["name"] == role {
			for _, k := range keys {
				r["keys"] = append(r["keys"].([]string), k.id)
			}
			r["threshold"] = 2
		}
	}
	return trust
}

// One of two policy signers, however he signs, is one.
func TestThreatOneSignerOfTwo(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(5, grant("alice", 22, 30*time.Minute, alice4+"/32"))
	second := newKey(t)
	h.deliver("trust.json", h.realm.sign("trust", twoOf(h.realm.trust(2), "policy", second)))
	h.until("two should have to sign", func(s status) bool { return s.document("trust").Version == 2 })
	h.until("the policy of one should be void", func(s status) bool { return s.document("policy").Version == 0 })
	h.isClosed(ways("22/tcp", alice4, bob4))

	one := h.realm.policy
	wide := encode(with(h.realm.rules(2, port(22, "TCP")), object{"exemptSourceAddressPrefixes": []string{bob4 + "/32"}}))
	h.refuses("policy", "bad-signature", seal("policy", wide, one))
	h.refuses("policy", "bad-signature", seal("policy", wide, one, one, one))
	h.refuses("policy", "bad-signature", seal("policy", wide, one, newKey(t)))
	h.refuses("policy", "bad-signature", seal("policy", wide, one, key{one.private, second.id, second.der}))
	// The roots themselves cannot list a key twice, or under another name.
	twice := twoOf(h.realm.trust(3), "policy", one)
	h.refuses("trust", "malformed", h.realm.sign("trust", twice))
	alias := one
	alias.id = fmt.Sprintf("sha256:%x", sha256.Sum256(nil))
	h.refuses("trust", "malformed", h.realm.sign("trust", twoOf(h.realm.trust(3), "policy", alias)))

	h.deliver("policy.json", seal("policy", encode(h.realm.rules(2, port(22, "TCP"))), one, second))
	h.until("two make a policy", func(s status) bool { return s.document("policy").Version == 2 })
}

// One key is one signer, whatever scheme and name it is listed under.
func TestThreatOneKeyTwice(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	one := h.realm.policy
	public, err := ssh.NewPublicKey(one.private.Public())
	if err != nil {
		t.Fatal(err)
	}
	again := object{"id": one.id, "scheme": "sshsig", "public": base64.StdEncoding.EncodeToString(public.Marshal())}
	other := with(again, object{"id": fmt.Sprintf("sha256:%x", sha256.Sum256(public.Marshal()))})
	for _, second := range []object{again, other} {
		trust := h.realm.trust(2)
		trust["keys"] = append(trust["keys"].([]object), second)
		for _, role := range trust["roles"].([]object) {
			if role["name"] == "policy" {
				role["keys"], role["threshold"] = []any{one.id, second["id"]}, 2
			}
		}
		h.refuses("trust", "malformed", h.realm.sign("trust", trust))
	}
}

// Old root keys, and too few of those in force, bring no trust document in.
func TestThreatOldRootKeys(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	first, second := h.realm.root, newKey(t)
	h.deliver("trust.json", seal("trust", encode(twoOf(h.realm.trust(2), "root", second)), first, second))
	h.until("two roots should have to sign", func(s status) bool { return s.document("trust").Version == 2 })

	thief := h.realm
	thief.root, thief.grant = newKey(t), newKey(t)
	h.refuses("trust", "bad-signature", seal("trust", encode(thief.trust(3)), first, thief.root))                 // one of two
	h.refuses("trust", "bad-signature", seal("trust", encode(thief.trust(3)), first, first, thief.root))          // twice
	h.refuses("trust", "bad-signature", seal("trust", encode(thief.trust(3)), first, second))                     // not by its own
	h.refuses("trust", "not-yet", seal("trust", encode(twoOf(h.realm.trust(4), "root", second)), first, second))  // skips one
	h.refuses("trust", "rollback", seal("trust", encode(twoOf(h.realm.trust(1), "root", second)), first, second)) // back
	h.refuses("trust", "equivocation", seal("trust", encode(with(twoOf(h.realm.trust(2), "root", second), object{"expires": in(9 * time.Hour)})), first, second))

	h.realm.root = newKey(t)
	h.deliver("trust.json", seal("trust", encode(h.realm.trust(3)), first, second, h.realm.root))
	h.until("the old roots should have handed over", func(s status) bool { return s.document("trust").Version == 3 })
	old := h.realm
	old.root = first
	h.refuses("trust", "bad-signature", seal("trust", encode(twoOf(old.trust(4), "root", second)), first, second))
}

// For an Ed25519 key of low order anybody makes signatures, so no trust
// document may hold one, though rightly signed.
func TestThreatKeyAnybodySignsFor(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	zero := bytes.Clone(h.realm.grant.der)
	clear(zero[len(zero)-32:])
	weak := h.realm
	weak.grant = key{id: fmt.Sprintf("sha256:%x", sha256.Sum256(zero)), der: zero}
	h.refuses("trust", "malformed", h.realm.sign("trust", weak.trust(2)))
	// A signature without a secret: R the identity, S zero.
	e := envelope("grants", encode(h.realm.forBob(6, nil)))
	e["signatures"] = []object{{"keyid": weak.grant.id, "sig": base64.StdEncoding.EncodeToString(append([]byte{1}, make([]byte, 63)...))}}
	h.refuses("grants", "bad-signature", encode(e))
}

// Nothing that can be said to the socket opens a port, by root or by anybody.
func TestThreatOpensThroughTheSocket(t *testing.T) {
	t.Parallel()
	h := forAlice(t)
	client := http.Client{Timeout: patience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", h.path("agent.sock"))
		},
	}}
	defer client.CloseIdleConnections()
	mark := h.mark()
	list := string(h.realm.sign("grants", h.realm.forBob(6, nil)))
	bodies := []string{"", "{}", list, `{"grants":[{"id":"bob","number":22,"sourceAddressPrefixes":["` + bob4 + `/32"]}]}`,
		`{"peers":["` + bob4 + `"],"sessions":["` + bob4 + `:22"],"confirmWithin":"1h"}`}
	for _, path := range []string{"open", "grant", "grants", "allow", "request", "arm", "deliver", "documents", "policy", "trust", "status", "..", "arm/confirm", "", "inbox/grants.json"} {
		for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
			for _, body := range bodies {
				request, err := http.NewRequest(method, "http://agent/v1/"+path, strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				answer, err := client.Do(request)
				if err != nil {
					t.Fatalf("%s %s: %v", method, path, err)
				}
				io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
			}
		}
	}
	if s := h.status(); len(s.Openings) != 1 || s.Mode != "enforce" {
		t.Errorf("status says %+v", s)
	}
	if now := h.mark(); now != mark {
		t.Errorf("the mark was\n%s\nand is\n%s", mark, now)
	}
	h.isClosed(ways("22/tcp", bob4))
}

// An agent that hangs renews nothing: an opening ends on its time, a lease
// before it.
func TestThreatAgentHangs(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(1, with(h.realm.rules(1, port(22, "TCP")), object{"maxUnattended": "PT10S"}))
	h.allow(1, grant("short", 22, 5*time.Second, alice4+"/32"), grant("long", 22, 30*time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", alice4, bob4))
	if err := h.agent.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.closes(8*time.Second, ways("22/tcp", alice4))
	h.closes(12*time.Second, ways("22/tcp", bob4))
	if err := h.agent.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	until(t, patience, "the agent should go on", func() bool {
		s, err := h.ask()
		return err == nil && s.isOpen("long")
	})
	h.isOpen(ways("22/tcp", bob4))
	h.isClosed(ways("22/tcp", alice4))
}
