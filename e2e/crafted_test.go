//go:build linux

package e2e_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// craft puts something at a path. Most of it is bytes.
type craft func(h *host, path string) error

func file(content func(r realm) []byte) craft {
	return func(h *host, path string) error { return os.WriteFile(path, content(h.realm), 0o644) }
}

// text is a file whose content does not depend on the realm.
func text(b []byte) craft { return file(func(realm) []byte { return b }) }

// evil is a list that would let bob in, newer than the one in force, with
// changes. Whatever is wrong with it, bob must stay out.
func evil(r realm, changes object) object {
	return with(r.list(6, grant("evil", 22, time.Minute, bob4+"/32")), changes)
}

// signed is that list as its rightful signer signs it.
func signed(changes object) craft {
	return file(func(r realm) []byte { return r.sign("grants", evil(r, changes)) })
}

// edited is the list with its text changed before it is signed.
func edited(old, new string) craft {
	return file(func(r realm) []byte {
		payload := encode(evil(r, nil))
		if !bytes.Contains(payload, []byte(old)) {
			panic("nothing to edit: " + old)
		}
		return seal("grants", bytes.Replace(payload, []byte(old), []byte(new), 1), r.grant)
	})
}

// then makes the rightful list and does something to the file.
func then(change func(path string) error) craft {
	return func(h *host, path string) error {
		if err := signed(nil)(h, path); err != nil {
			return err
		}
		return change(path)
	}
}

// aside makes the rightful list beside its place and gives both paths.
func aside(link func(real, path string) error) craft {
	return func(h *host, path string) error {
		real := h.path("inbox", ".real")
		if err := signed(nil)(h, real); err != nil {
			return err
		}
		return link(real, path)
	}
}

func policyFile(r realm, changes object, keys ...key) []byte {
	return seal("policy", encode(with(r.rules(3, port(23, "TCP")), changes)), keys...)
}

func trustFile(r realm, version int, changes object, keys ...key) []byte {
	return seal("trust", encode(with(r.trust(version), changes)), keys...)
}

// crafted is a way to craft a file.
type crafted struct {
	name string
	kind string // grants unless said
	code string
	craft
}

// noise is bytes without a meaning.
func noise() []byte {
	b := make([]byte, 4096)
	rand.Read(b)
	return b
}

// refusesEach puts files before one running agent. Each is refused with its
// code and recorded once; the memory on the disk does not move, what was in
// force stays in force, and the agent goes on. crafts gets the files that are
// good, and a key without a role.
func refusesEach(t *testing.T, crafts func(good map[string][]byte, mallory key) []crafted) {
	t.Parallel()
	h := newHost(t)
	h.start()
	h.put(2, h.realm.rules(2, port(22, "TCP")))
	h.allow(5, grant("good", 22, 30*time.Minute, alice4+"/32"))
	good := map[string][]byte{}
	for _, name := range []string{"trust", "policy", "grants"} {
		b, err := os.ReadFile(h.path("inbox", name+".json"))
		if err != nil {
			t.Fatal(err)
		}
		good[name] = b
	}
	mallory := newKey(t)
	stop := h.watch(way{"22/tcp", alice4})
	began := h.mark()

	for _, c := range crafts(good, mallory) {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			kind := c.kind
			if kind == "" {
				kind = "grants"
			}
			mark, recorded := h.mark(), len(h.events("document.refused"))
			version := h.status().document(kind).Version
			if err := os.Remove(h.path("inbox", kind+".json")); err != nil {
				t.Fatal(err)
			}
			h.place(kind+".json", func(path string) error { return c.craft(h, path) })

			var refused []event
			until(t, patience, "it should be recorded", func() bool {
				refused = h.events("document.refused")[recorded:]
				return len(refused) > 0
			})
			s := h.status() // answers after the pass that refused it
			if d := s.document(kind); d.Version != version || !strings.Contains(d.Refusal, c.code+": ") {
				t.Errorf("status says %+v", d)
			}
			if !s.isOpen("good") || len(s.Openings) != 1 || s.Problem != "" || s.Blocked != "" {
				t.Errorf("status says %+v", s)
			}
			if now := h.mark(); now != mark {
				t.Errorf("the mark was\n%s\nand is\n%s", mark, now)
			}
			h.isOpen(ways("22/tcp", alice4))

			// The good file again: nothing is refused, nothing was recorded twice.
			if err := os.RemoveAll(h.path("inbox", kind+".json")); err != nil {
				t.Fatal(err)
			}
			os.Remove(h.path("inbox", ".real"))
			h.deliver(kind+".json", good[kind])
			h.until("nothing should be refused", func(s status) bool { return s.document(kind).Refusal == "" })
			if refused = h.events("document.refused")[recorded:]; len(refused) != 1 || refused[0].Code != c.code || refused[0].Document != kind {
				t.Errorf("recorded %+v, want one refusal of %s with code %s", refused, kind, c.code)
			}
		})
		if _, err := h.ask(); err != nil {
			t.Fatalf("the agent is gone, or hangs: %v", err)
		}
	}
	h.t = t
	stop()
	h.isClosed(ways("22/tcp", bob4))
	if h.mark() != began {
		t.Error("the mark moved")
	}
}

// What is at the path is not a plain file of its owner.
func TestThreatPlantsFiles(t *testing.T) {
	refusesEach(t, func(map[string][]byte, key) []crafted {
		return []crafted{
			{name: "symbolic link", code: "malformed", craft: aside(os.Symlink)},
			{name: "dangling symbolic link", code: "malformed", craft: func(_ *host, path string) error { return os.Symlink("/nowhere", path) }},
			{name: "hard link", code: "malformed", craft: aside(os.Link)},
			{name: "FIFO", code: "malformed", craft: func(_ *host, path string) error { return unix.Mkfifo(path, 0o644) }},
			{name: "socket", code: "malformed", craft: func(_ *host, path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) }},
			{name: "device", code: "malformed", craft: func(_ *host, path string) error {
				return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) // /dev/zero
			}},
			{name: "directory", code: "malformed", craft: func(_ *host, path string) error { return os.Mkdir(path, 0o755) }},
			{name: "writable by all", code: "malformed", craft: then(func(path string) error { return os.Chmod(path, 0o666) })},
			{name: "writable by the group", code: "malformed", craft: then(func(path string) error { return os.Chmod(path, 0o664) })},
			{name: "somebody's", code: "malformed", craft: then(func(path string) error { return os.Chown(path, 12345, 12345) })},
			{name: "1 TiB of nothing", code: "too-large", craft: then(func(path string) error { return os.Truncate(path, 1<<40) })},
		}
	})
}

// JSON that two readers would read in two ways.
func TestThreatCraftsJSON(t *testing.T) {
	refusesEach(t, func(map[string][]byte, key) []crafted {
		return []crafted{
			{name: "unknown name", code: "malformed", craft: signed(object{"surprise": 1})},
			{name: "name missing", code: "malformed", craft: signed(object{"grants": nil})},
			{name: "null", code: "malformed", craft: edited(`"policyVersion":1`, `"policyVersion":null`)},
			{name: "repeated name", code: "malformed", craft: edited(`"realm":"acme"`, `"realm":"acme","realm":"acme"`)},
			{name: "repeated name, escaped", code: "malformed", craft: edited(`"realm":"acme"`, `"realm":"acme","\u0072ealm":"acme"`)},
			{name: "case-folded name", code: "malformed", craft: edited(`"realm"`, `"Realm"`)},
			{name: "deep", code: "malformed", craft: edited(`"acme"`, strings.Repeat("[", 1000)+strings.Repeat("]", 1000))},
			{name: "a number as text", code: "malformed", craft: signed(object{"version": "6"})},
			{name: "a fraction", code: "malformed", craft: signed(object{"version": 6.5})},
			{name: "beyond 2^53", code: "malformed", craft: signed(object{"version": 1 << 53})},
			{name: "version 0", code: "malformed", craft: signed(object{"version": 0})},
			{name: "invalid UTF-8", code: "malformed", craft: edited("INC-1", "INC-\xff")},
			{name: "v4-mapped source", code: "malformed", craft: edited(bob4+"/32", "::ffff:"+bob4+"/128")},
			{name: "host bits", code: "malformed", craft: edited(bob4+"/32", bob4+"/24")},
			{name: "local time", code: "malformed", craft: signed(object{"issued": "2026-11-22T12:00:00+01:00"})},
		}
	})
}

// Every other way we know.
func TestCraftedFiles(t *testing.T) {
	refusesEach(t, func(good map[string][]byte, mallory key) []crafted {
		return []crafted{
			// The carrier: cut, garbage, size.
			{name: "empty", code: "malformed", craft: text(nil)},
			{name: "cut in the middle", code: "malformed", craft: text(good["grants"][:len(good["grants"])/2])},
			{name: "last byte missing", code: "malformed", craft: text(good["grants"][:len(good["grants"])-1])},
			{name: "noise", code: "malformed", craft: text(noise())},
			{name: "an array", code: "malformed", craft: text([]byte("[]"))},
			{name: "trailing data", code: "malformed", craft: text(append(bytes.Clone(good["grants"]), '{', '}'))},
			{name: "1 MiB", code: "too-large", craft: text(make([]byte, 1<<20))},
			{name: "600 KiB envelope", code: "too-large", craft: signed(object{"padding": strings.Repeat("x", 450<<10)})},
			{name: "300 KiB payload", code: "too-large", craft: signed(object{"padding": strings.Repeat("x", 300<<10)})},

			// Signatures.
			{name: "not an envelope", code: "unsigned", craft: file(func(r realm) []byte { return encode(evil(r, nil)) })},
			{name: "no signature", code: "unsigned", craft: file(func(r realm) []byte { return seal("grants", encode(evil(r, nil))) })},
			{name: "a stranger's signature", code: "bad-signature", craft: file(func(r realm) []byte { return seal("grants", encode(evil(r, nil)), mallory) })},
			{name: "a stranger's signature under our id", code: "bad-signature", craft: file(func(r realm) []byte {
				return seal("grants", encode(evil(r, nil)), key{mallory.private, r.grant.id, mallory.der})
			})},
			{name: "the policy key's signature", code: "bad-signature", craft: file(func(r realm) []byte { return seal("grants", encode(evil(r, nil)), r.policy) })},
			{name: "payload exchanged", code: "bad-signature", craft: file(func(r realm) []byte {
				e := envelope("grants", encode(r.list(6)), r.grant)
				e["payload"] = envelope("grants", encode(evil(r, nil)))["payload"]
				return encode(e)
			})},
			{name: "another type under the name", code: "wrong-type", craft: file(func(r realm) []byte { return r.sign("policy", r.rules(9, port(22, "TCP"))) })},
			{name: "type relabelled", code: "bad-signature", craft: file(func(r realm) []byte {
				e := envelope("policy", encode(evil(r, nil)), r.grant)
				e["payloadType"] = "application/vnd.jitgate.grants.v1+json"
				return encode(e)
			})},
			{name: "17 signatures", code: "malformed", craft: file(func(r realm) []byte {
				keys := make([]key, 17)
				for i := range keys {
					keys[i] = r.grant
				}
				return seal("grants", encode(evil(r, nil)), keys...)
			})},

			// Whom it is for, and when.
			{name: "another realm", code: "wrong-realm", craft: signed(object{"realm": "umbrella"})},
			{name: "another host", code: "wrong-host", craft: signed(object{"host": object{"id": hostID + "0"}})},
			{name: "another installation", code: "wrong-host", craft: signed(object{"host": object{"id": hostID, "install": "former"}})},
			{name: "older", code: "rollback", craft: signed(object{"version": 4})},
			{name: "same version, other bytes", code: "equivocation", craft: signed(object{"version": 5})},
			{name: "over", code: "expired", craft: signed(object{"issued": in(-2 * time.Hour), "expires": in(-time.Hour)})},
			{name: "issued tomorrow", code: "not-yet", craft: signed(object{"issued": in(24 * time.Hour), "expires": in(25 * time.Hour)})},
			{name: "for a newer policy", code: "stale-policy", craft: signed(object{"policyVersion": 3})},
			{name: "of a newer epoch", code: "stale-policy", craft: signed(object{"epoch": 2})},

			// The other two documents, where it matters most.
			{name: "empty policy", kind: "policy", code: "malformed", craft: text(nil)},
			{name: "policy of the grant key", kind: "policy", code: "bad-signature", craft: file(func(r realm) []byte { return policyFile(r, nil, r.grant) })},
			{name: "policy of a stranger", kind: "policy", code: "bad-signature", craft: file(func(r realm) []byte { return policyFile(r, nil, mallory) })},
			{name: "older policy", kind: "policy", code: "rollback", craft: file(func(r realm) []byte { return policyFile(r, object{"version": 1}, r.policy) })},
			{name: "other policy of the same version", kind: "policy", code: "equivocation", craft: file(func(r realm) []byte { return policyFile(r, object{"version": 2}, r.policy) })},
			{name: "policy that is over", kind: "policy", code: "expired", craft: file(func(r realm) []byte {
				return policyFile(r, object{"issued": in(-2 * time.Hour), "expires": in(-time.Hour)}, r.policy)
			})},
			{name: "policy for another host", kind: "policy", code: "wrong-host", craft: file(func(r realm) []byte { return policyFile(r, object{"host": object{"id": "web2"}}, r.policy) })},
			{name: "policy of another realm", kind: "policy", code: "wrong-realm", craft: file(func(r realm) []byte { return policyFile(r, object{"realm": "umbrella"}, r.policy) })},
			{name: "policy with overlapping ports", kind: "policy", code: "malformed", craft: file(func(r realm) []byte {
				return r.sign("policy", r.rules(3, port(22, "TCP"), port(22, "UDP")))
			})},
			{name: "trust of a stranger", kind: "trust", code: "bad-signature", craft: file(func(r realm) []byte {
				r.root = mallory
				return trustFile(r, 2, nil, mallory)
			})},
			{name: "trust of the grant key", kind: "trust", code: "bad-signature", craft: file(func(r realm) []byte { return trustFile(r, 2, nil, r.grant) })},
			{name: "trust without the new root's signature", kind: "trust", code: "bad-signature", craft: file(func(r realm) []byte {
				old := r.root
				r.root = mallory
				return trustFile(r, 2, nil, old)
			})},
			{name: "trust with a step left out", kind: "trust", code: "not-yet", craft: file(func(r realm) []byte { return trustFile(r, 3, nil, r.root) })},
			{name: "other trust of the same version", kind: "trust", code: "equivocation", craft: file(func(r realm) []byte {
				return trustFile(r, 1, object{"expires": in(2 * time.Hour)}, r.root)
			})},
			{name: "trust of another realm", kind: "trust", code: "wrong-realm", craft: file(func(r realm) []byte { return trustFile(r, 2, object{"realm": "umbrella"}, r.root) })},
			{name: "the grant key as policy key", kind: "trust", code: "malformed", craft: file(func(r realm) []byte {
				r.policy = r.grant
				return trustFile(r, 2, nil, r.root)
			})},
		}
	})
}

// What somebody takes away again is no longer refused.
func TestRefusalEndsWithItsFile(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.deliver("grants.json", []byte("open sesame"))
	h.recorded("document.refused", "grants", "malformed")
	if err := os.Remove(h.path("inbox", "grants.json")); err != nil {
		t.Fatal(err)
	}
	h.until("the refusal should be over", func(s status) bool { return s.document("grants").Refusal == "" })
}

// What the refusal says to do helps, with nothing delivered anew.
func TestRefusalsAdviceHelps(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.place("grants.json", func(path string) error {
		content := h.realm.sign("grants", h.realm.list(1, grant("g1", 22, time.Minute, alice4+"/32")))
		return errors.Join(os.WriteFile(path, content, 0o600), os.Chmod(path, 0o666))
	})
	h.until("it should be refused with advice", func(s status) bool { return strings.Contains(s.document("grants").Refusal, "chmod go-w") })
	if err := os.Chmod(h.path("inbox", "grants.json"), 0o644); err != nil {
		t.Fatal(err)
	}
	h.until("it should be in force", func(s status) bool { return s.isOpen("g1") })
}

// An inbox everybody can write to is nobody's word, nor is one that everybody
// can exchange.
func TestInboxWritableByAll(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	for i, dir := range []string{h.path("inbox"), h.path()} {
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		version := uint64(2 + i)
		h.deliver("grants.json", h.realm.sign("grants", h.realm.list(int(version), grant("g2", 22, time.Minute, bob4+"/32"))))
		h.until("it should be refused with advice", func(s status) bool {
			return strings.Contains(s.document("grants").Refusal, "malformed: "+dir+" is writable by group or others: chmod go-w "+dir)
		})
		h.isOpen(ways("22/tcp", alice4))
		h.isClosed(ways("22/tcp", bob4))
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		h.allow(version, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	}
	h.recorded("document.refused", "grants", "malformed")
	h.allow(4, grant("g2", 22, time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))
}

// Settings that others may have written, or put there, are not taken: the
// agent does not start, and what was guarded before stays so, with its ends.
// Moved by an administrator they are.
func TestCraftedSettings(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"))
	h.allow(1, grant("good", 22, 30*time.Minute, alice4+"/32"))
	h.stop()
	in := func(elements ...string) string { return h.path(append([]string{"top"}, elements...)...) }
	path := in("etc", "agent.toml")
	instead := func(make func() error) func() error {
		return func() error { return errors.Join(os.Remove(path), make()) }
	}
	for _, c := range []struct {
		name  string
		do    func() error
		wants string // "": they are taken
	}{
		{"as they should be", func() error { return nil }, ""},
		{"writable by all", func() error { return os.Chmod(path, 0o666) }, "PATH is writable by group or others: chmod go-w PATH"},
		{"writable by the group", func() error { return os.Chmod(path, 0o664) }, "PATH is writable by group or others: chmod go-w PATH"},
		{"somebody's", func() error { return os.Chown(path, 12345, -1) }, "PATH belongs to uid 12345, who could change what is read: chown root PATH"},
		{"directory writable by all", func() error { return os.Chmod(in("etc"), 0o777) }, "TOP/etc is writable by group or others: chmod go-w TOP/etc"},
		{"directory above writable by all", func() error { return os.Chmod(in(), 0o777) }, "TOP is writable by group or others: chmod go-w TOP"},
		{"directory above somebody's", func() error { return os.Chown(in(), 12345, -1) }, "TOP belongs to uid 12345, who could change what is read: chown root TOP"},
		{"FIFO", instead(func() error { return unix.Mkfifo(path, 0o644) }), "PATH is not a plain file"},
		{"socket", instead(func() error { return unix.Mknod(path, unix.S_IFSOCK|0o644, 0) }), "PATH is not a plain file"},
		{"device", instead(func() error { return unix.Mknod(path, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }), "PATH is not a plain file"},
		{"directory", instead(func() error { return os.Mkdir(path, 0o755) }), "PATH is not a plain file"},
		{"1 TiB of nothing", func() error { return os.Truncate(path, 1<<40) }, "PATH has 1099511627776 bytes, the limit is 65536"},
		{"a read that fails", func() error {
			return unix.Mount(fmt.Sprintf("/proc/%d/mem", os.Getpid()), path, "", unix.MS_BIND, "")
		}, "PATH: input/output error"},
		{"link of configuration management", func() error { return errors.Join(os.Rename(path, in("store")), os.Symlink("../store", path)) }, ""},
		{"link of another user", func() error {
			return errors.Join(os.Rename(path, in("store")), os.Symlink("../store", path), os.Lchown(path, 12345, -1))
		}, "PATH is a symbolic link of uid 12345: chown -h root PATH"},
		{"link to a file of another user", func() error {
			return errors.Join(os.Rename(path, in("store")), os.Symlink("../store", path), os.Chown(in("store"), 12345, -1))
		}, "TOP/store belongs to uid 12345"},
		{"relocated", func() error {
			return errors.Join(os.Rename(in("etc"), in("store")), os.Symlink(in("store"), in("etc")))
		}, ""},
		{"relocated in a circle", func() error { return errors.Join(os.RemoveAll(in("etc")), os.Symlink("etc", in("etc"))) }, "more than 40 symbolic links"},
		{"stored once with another", func() error { return os.Link(path, in("other")) }, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h.t = t
			if err := os.MkdirAll(in("etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(in())
			h.writeSettings("top/etc/agent.toml", h.settings)
			defer unix.Unmount(path, unix.MNT_DETACH)
			if err := c.do(); err != nil {
				t.Fatal(err)
			}
			wants := strings.NewReplacer("PATH", path, "TOP", in()).Replace(c.wants)
			for _, command := range [][]string{{"agent", "run"}, {"agent", "step", "--dry-run"}, {"status"}, {"trust", "install", h.path("inbox", "trust.json")}} {
				if c.wants == "" && command[0] != "agent" || c.wants == "" && command[1] == "run" {
					continue // those would go on
				}
				_, stderr, code := h.command(append(command, "--config", path)...)
				if c.wants == "" && code != 0 {
					t.Errorf("%v: exit code %d: %s", command, code, stderr)
				}
				if c.wants != "" {
					oneLine(t, stderr, code, wants)
				}
			}
		})
	}
	h.t = t
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	h.start()
	h.isOpen(ways("22/tcp", alice4))
}
