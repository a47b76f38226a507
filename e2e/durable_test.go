//go:build linux

package e2e_test

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mount mounts until the test ends. After a crash of the test itself a small
// tmpfs in the temporary directory can stay.
func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(target, unix.MNT_DETACH) })
}

func makeState(t *testing.T, state string) {
	t.Helper()
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
}

// readOnly makes a directory read-only, even for root.
func readOnly(t *testing.T, dir string) {
	t.Helper()
	mount(t, dir, dir, "", unix.MS_BIND, "")
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

func unmount(t *testing.T, dir string) {
	t.Helper()
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
}

// fill writes a file until the disk is full.
func fill(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := make([]byte, os.Getpagesize())
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

// No record, no opening: while the disk takes nothing, nothing opens; what
// closes, closes all the same; and once it takes writes again, what waited
// opens by itself.
func TestThreatFillsTheDisk(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name                   string
		prepare, breaks, mends func(t *testing.T, state string)
	}{
		{
			name: "disk full",
			prepare: func(t *testing.T, state string) {
				makeState(t, state)
				mount(t, "tmpfs", state, "tmpfs", 0, "size=256k,mode=700")
			},
			breaks: func(t *testing.T, state string) { fill(t, state+"/filler") },
			mends: func(t *testing.T, state string) {
				if err := os.Remove(state + "/filler"); err != nil {
					t.Fatal(err)
				}
			},
		},
		{name: "read-only", prepare: makeState, breaks: readOnly, mends: unmount},
	} {
		for _, restart := range []bool{false, true} {
			name := c.name
			if restart {
				name += ", agent killed meanwhile"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				state := h.path("state")
				c.prepare(t, state)
				h.start()
				h.put(1, h.realm.rules(1, port(22, "TCP")))
				stays := grant("stays", 22, 30*time.Minute, bob6+"/128")
				h.allow(1, grant("goes", 22, 30*time.Minute, alice4+"/32"), stays)
				h.isOpen(ways("22/tcp", alice4, bob6))

				c.breaks(t, state)
				h.allow(2, grant("comes", 22, 30*time.Minute, bob4+"/32"), stays)
				h.isClosed(ways("22/tcp", alice4, bob4))
				h.isOpen(ways("22/tcp", bob6))
				if restart {
					h.kill()
					h.start()
					h.isClosed(ways("22/tcp", alice4, bob4))
					h.isOpen(ways("22/tcp", bob6))
				}
				h.until("status should say why", func(s status) bool {
					return strings.Contains(s.Problem, "not-durable: ") && !s.isOpen("comes")
				})

				c.mends(t, state)
				h.opens(5*time.Second, ways("22/tcp", bob4))
				h.isClosed(ways("22/tcp", alice4))
				h.until("the problem should be over", func(s status) bool { return s.Problem == "" && s.isOpen("comes") })
				h.recorded("grant.opened", "comes", "")
				if !restart { // a new agent does not know what the old one saw close
					h.recorded("grant.revoked", "goes", "")
				}
				h.intentsPrecede()
				h.kill()
			})
		}
	}
}

// intentsPrecede requires that each opening was announced before it came.
func (h *host) intentsPrecede() {
	h.t.Helper()
	announced := map[string]bool{}
	for _, e := range h.audit() {
		switch e.Name {
		case "grant.opening":
			announced[e.Grant] = true
		case "grant.opened":
			if !announced[e.Grant] {
				h.t.Errorf("grant %s is recorded as opened and was not announced", e.Grant)
			}
		}
	}
}

// Lockdown does not wait for the disk, and is not forgotten once that works
// again.
func TestLockdownOnFullDisk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	makeState(t, h.path("state"))
	mount(t, "tmpfs", h.path("state"), "tmpfs", 0, "size=256k,mode=700")
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP")))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.isOpen(ways("22/tcp", alice4))
	fill(t, h.path("state", "filler"))
	_, stderr, code := h.command("lockdown", "--config", h.config())
	oneLine(t, stderr, code, "not-durable: ") // closed, but not yet for good
	h.isClosed(ways("22/tcp", alice4))
	if err := os.Remove(h.path("state", "filler")); err != nil {
		t.Fatal(err)
	}
	h.until("the problem should be over", func(s status) bool { return s.Problem == "" })
	h.kill()
	h.start()
	h.isClosed(ways("22/tcp", alice4))
	h.kill()
}

// A state directory that is read-only from the start keeps no agent from
// guarding: a boot after an emergency remount.
func TestGuardsOnReadOnlyDisk(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	makeState(t, h.path("state"))
	readOnly(t, h.path("state"))
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob6))
	h.until("status should say why nothing opens", func(s status) bool { return strings.Contains(s.Problem, "not-durable: ") })
	h.kill()
}

// Nor does one that is not there and cannot be made: a first boot on a full
// disk.
func TestGuardsWithoutDirectories(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.settings["state_dir"], h.settings["inbox_dir"] = quote("/proc/jitgate/state"), quote("/proc/jitgate/inbox")
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob6))
	h.until("status should say why nothing opens", func(s status) bool { return strings.Contains(s.Problem, "not-durable: ") })
}

// A mark that cannot be read may have been a newer one: nothing opens.
func TestUnreadableMark(t *testing.T) {
	t.Parallel()
	h := guarding(t, port(22, "TCP"), port(3389, "TCP"))
	h.allow(1, grant("g1", 22, 30*time.Minute, alice4+"/32"))
	h.stop()
	if err := os.WriteFile(h.path("state", "mark.json"), []byte(`{"trust":`), 0o600); err != nil {
		t.Fatal(err)
	}
	h.start()
	h.isClosed(ways("22/tcp", alice4, bob4), ways("3389/tcp", alice4))
	if s := h.status(); !strings.Contains(s.Problem, "not-durable: ") {
		t.Errorf("status says %+v", s)
	}
}
