//go:build linux

package e2e_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// installed is what the record says of installations.
func (h *host) installed() []event {
	h.t.Helper()
	return slices.DeleteFunc(h.audit(), func(e event) bool { return e.Install == "" })
}

// boundTo is a list for one installation of the host.
func (h *host) boundTo(install string, version int, grants ...object) object {
	return with(h.realm.list(version, grants...), object{"host": object{"id": hostID, "install": install}})
}

// settled makes a host on a machine, with a grant for this installation open
// for alice, and returns its install id.
func settled(t *testing.T) (h *host, install string) {
	t.Helper()
	h = newHost(t)
	h.board = newBoard(t, someID, someUUID)
	h.start()
	install = h.status().Install
	if len(install) < 26 {
		t.Fatalf("the install id is %q", install)
	}
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.put(7, h.boundTo(install, 7, grant("g1", 22, time.Minute, alice4+"/32")))
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	return h, install
}

// otherMachine is where a host finds itself next.
func otherMachine(t *testing.T) *board { return newBoard(t, strings.Repeat("2", 32), someUUID) }

// stays requires that the installation is the one it was, and nothing new of
// it is recorded.
func (h *host) stays(install string) {
	h.t.Helper()
	if s := h.status(); s.Install != install {
		h.t.Errorf("the install id is %q, was %q", s.Install, install)
	}
	if e := h.installed(); len(e) != 1 || e[0].Name != "install.created" || e[0].Install != install {
		h.t.Errorf("recorded %+v", e)
	}
}

func TestInstallIDOfAMachine(t *testing.T) {
	t.Parallel()
	h, install := settled(t)
	h.stays(install)
	if out := h.must("status", "--config", h.config()); !strings.Contains(out, install) {
		t.Errorf("status prints\n%s", out)
	}
	text, err := os.ReadFile(h.path("state", "install.json"))
	info, statErr := os.Stat(h.path("state", "install.json"))
	if err = errors.Join(err, statErr); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), install) || strings.Contains(string(text), someID) || info.Mode().Perm() != 0o600 {
		t.Errorf("install.json, %v:\n%s", info.Mode(), text)
	}
	for _, end := range []func(*host){(*host).stop, (*host).kill} {
		end(h)
		h.start()
		h.stays(install)
		h.isOpen(ways("22/tcp", alice4))
	}
	// A fact that cannot be read any more proves nothing; and one that could
	// not be read at first is one from then on.
	h.stop()
	h.board = newBoard(t, someID, "")
	h.start()
	h.stays(install)
	h.isOpen(ways("22/tcp", alice4))

	// A backup of the state, on the same machine.
	h.stop()
	backup := t.TempDir() + "/state"
	if err := os.CopyFS(backup, os.DirFS(h.path("state"))); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.allow(8)
	h.stop()
	if err := errors.Join(os.RemoveAll(h.path("state")), os.CopyFS(h.path("state"), os.DirFS(backup))); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.stays(install)
}

// The image of a host with openings runs on a second machine.
func TestThreatClonesTheDisk(t *testing.T) {
	t.Parallel()
	for name, machine := range map[string]func(*testing.T) *board{
		"another machine id": otherMachine,
		"another board":      func(t *testing.T) *board { return newBoard(t, someID, "4c4c4544-0035-4410-8052-b4c04f564434") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h, install := settled(t)
			h.stop()
			clone := newHost(t)
			clone.realm, clone.board = h.realm, machine(t)
			clone.settings["trust_pin"] = h.settings["trust_pin"]
			if err := errors.Join(os.RemoveAll(clone.path("inbox")), os.CopyFS(clone.path("inbox"), os.DirFS(h.path("inbox"))),
				os.CopyFS(clone.path("state"), os.DirFS(h.path("state")))); err != nil {
				t.Fatal(err)
			}
			clone.start()
			clone.recorded("document.refused", "grants", "wrong-host")
			clone.isClosed(ways("22/tcp", alice4, bob4))
			renewed := clone.status().Install
			if renewed == install || renewed == "" {
				t.Fatalf("the clone's install id is %q, the host's %q", renewed, install)
			}
			e := clone.installed()
			if last := e[len(e)-1]; len(e) != 2 || last.Name != "install.renewed" || last.Install != renewed || last.FormerInstall != install {
				t.Errorf("recorded %+v", e)
			}
			clone.put(8, clone.boundTo(renewed, 8, grant("g2", 22, time.Minute, bob4+"/32")))
			clone.isOpen(ways("22/tcp", bob4))
			clone.isClosed(ways("22/tcp", alice4))

			// The host itself goes on, and does not take what is the clone's.
			h.start()
			h.stays(install)
			h.isOpen(ways("22/tcp", alice4))
			h.deliver("grants.json", h.realm.sign("grants", h.boundTo(renewed, 9, grant("g2", 22, time.Minute, bob4+"/32"))))
			h.recorded("document.refused", "grants", "wrong-host")
			h.isClosed(ways("22/tcp", bob4))
		})
	}
}

// The same kernel, another machine by its facts: what the former installation
// had open closes at once, with an inbox and without.
func TestFormerOpeningsClose(t *testing.T) {
	t.Parallel()
	h, install := settled(t)
	h.kill()
	h.isOpen(ways("22/tcp", alice4)) // the kernel knows no better
	if err := os.Remove(h.path("inbox", "grants.json")); err != nil {
		t.Fatal(err)
	}
	h.board = otherMachine(t)
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob4))
	if s := h.status(); s.document("grants").Version != 0 || s.document("policy").Version != 1 || s.Install == install {
		t.Errorf("status says %+v", s)
	}
}

// Reinstalled: the state is gone, and so is the id.
func TestReinstalledHost(t *testing.T) {
	t.Parallel()
	h, install := settled(t)
	h.stop()
	if err := os.RemoveAll(h.path("state")); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.recorded("document.refused", "grants", "wrong-host")
	h.isClosed(ways("22/tcp", alice4))
	s := h.status()
	if s.Install == install || s.Install == "" {
		t.Errorf("the install id is %q, was %q", s.Install, install)
	}
	h.stays(s.Install)
}

// Where the id cannot be made durable there is none; the host guards all the
// same, and takes what names none.
func TestInstallIDWithoutDisk(t *testing.T) {
	t.Parallel()
	h, install := settled(t)
	h.stop()
	h.board = otherMachine(t)
	if err := os.MkdirAll(h.path("state", ".install.json.new", "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	h.start()
	s := h.status()
	if s.Install != "" || !strings.Contains(s.Problem, "install.json") {
		t.Errorf("status says %q, problem %q", s.Install, s.Problem)
	}
	h.recorded("document.refused", "grants", "wrong-host")
	h.isClosed(ways("22/tcp", alice4))
	h.allow(8, grant("g2", 22, time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))
	if err := os.RemoveAll(h.path("state", ".install.json.new")); err != nil {
		t.Fatal(err)
	}
	h.allow(9) // the next pass
	h.until("the id should be durable", func(s status) bool { return s.Install != "" && s.Install != install && s.Problem == "" })
}

// An install.json that is spoiled is made anew, and that is said.
func TestSpoiledInstallID(t *testing.T) {
	t.Parallel()
	h, install := settled(t)
	h.stop()
	if err := os.WriteFile(h.path("state", "install.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.isClosed(ways("22/tcp", alice4))
	e := h.events("install.renewed")
	if len(e) != 1 || e[0].Install != h.status().Install || e[0].Install == install || !strings.Contains(e[0].Message, "cannot be read") {
		t.Errorf("recorded %+v", e)
	}
}

// A host that gets another id: what was granted to the former closes, and its
// own lists begin at 1. The former id brings nothing back with it.
func TestThreatRenamesTheHost(t *testing.T) {
	t.Parallel()
	const other = "/subscriptions/1/virtualMachines/web2"
	theirs := func(o object) object { return with(o, object{"host": object{"id": other}}) }
	h := guarding(t, port(22, "TCP"))
	h.allow(1187, grant("g1", 22, time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	h.must("lockdown", "--config", h.config())
	h.isClosed(ways("22/tcp", alice4))
	h.allow(1188, grant("g1", 22, time.Minute, alice4+"/32"), grant("g2", 22, time.Minute, bob4+"/32"))
	h.isOpen(ways("22/tcp", bob4))
	list, err := os.ReadFile(h.path("inbox", "grants.json"))
	if err != nil {
		t.Fatal(err)
	}
	h.kill()

	h.settings["host_id"] = quote(other)
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob4))
	h.put(1, theirs(h.realm.rules(1, port(22, "TCP"))))
	h.put(1, theirs(h.realm.list(1, grant("g1", 22, time.Minute, alice4+"/32"))))
	h.isOpen(ways("22/tcp", alice4))
	h.isClosed(ways("22/tcp", bob4))
	h.stop()

	h.settings["host_id"] = quote(hostID)
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob4))
	h.put(2, h.realm.rules(2, port(22, "TCP")))
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(2, grant("g3", 22, time.Minute, alice4+"/32"))))
	h.recorded("document.refused", "grants", "rollback")
	h.deliver("grants.json", list)
	h.until("the former list should be in force", func(s status) bool { return s.isOpen("g2") })
	h.isOpen(ways("22/tcp", bob4))
	h.isClosed(ways("22/tcp", alice4)) // locked down as before
}
