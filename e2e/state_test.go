//go:build linux

package e2e_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sick is a way for one file of the state directory to be other than the agent
// left it, and what comes of that.
type sick struct {
	name  string
	do    func(h *host, path string) error
	alone bool // the inbox is emptied too: nobody delivers anew

	closed bool   // what was open closes
	mode   string // of the guard; enforce unless said
	says   string // in the status: as a problem, as what blocks, or as a refusal
	// remedy is what that or the manual says to do, before the agent is started
	// anew. Without one all is well already.
	remedy func(h *host, path string) error
}

func lose(_ *host, path string) error  { return os.Remove(path) }
func empty(_ *host, path string) error { return os.Truncate(path, 0) }

func halve(_ *host, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return os.Truncate(path, info.Size()/2)
}

// flip changes one bit, that of a version if there is one.
func flip(_ *host, path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	at := len(text) / 2
	if version := []byte(`"version": `); bytes.Contains(text, version) {
		at = bytes.LastIndex(text, version) + len(version)
	}
	text[at] ^= 1
	return os.WriteFile(path, text, 0o600)
}

// older brings back the file of an earlier version.
func older(h *host, path string) error {
	text, err := os.ReadFile(h.path("older", filepath.Base(path)))
	if err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

// byHand changes names in a JSON file by hand.
func byHand(changes object) func(*host, string) error {
	return func(_ *host, path string) error {
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var all object
		if err := json.Unmarshal(text, &all); err != nil {
			return err
		}
		return os.WriteFile(path, encode(with(with(all, changes), object{"sum": nil})), 0o600)
	}
}

// ofAnotherRealm is a document nobody here signed.
func ofAnotherRealm(h *host, path string) error {
	r := newRealm(h.t, "umbrella")
	return os.WriteFile(path, r.sign("trust", r.trust(9)), 0o600)
}

// badlyKept is what no file may be that the agent believes. Some files it does
// without.
func badlyKept(closed, noticed bool) []sick {
	again := func(h *host, path string) error { return errors.Join(os.RemoveAll(path), older(h, path)) }
	run := func(args ...string) func(*host, string) error {
		return func(h *host, path string) error {
			h.vm.run(h.t, args[0], append(slices.Clone(args[1:]), path)...)
			return nil
		}
	}
	list := []sick{
		{name: "writable by all", do: func(_ *host, path string) error { return os.Chmod(path, 0o666) },
			says: "PATH is writable by group or others: chmod go-w PATH", remedy: run("chmod", "go-w")},
		{name: "of another user", do: func(_ *host, path string) error { return os.Chown(path, 12345, -1) },
			says: "PATH belongs to uid 12345, who could change what is read: chown root PATH", remedy: run("chown", "root")},
		{name: "a symbolic link", do: func(h *host, path string) error {
			return errors.Join(os.Rename(path, h.path("real")), os.Symlink(h.path("real"), path))
		}, says: "PATH is a symbolic link: only a plain file is read, copy it to its place", remedy: func(h *host, path string) error {
			h.vm.run(h.t, "cp", "--remove-destination", h.path("real"), path)
			return nil
		}},
		{name: "a hard link", do: func(h *host, path string) error { return os.Link(path, h.path("other")) },
			says: "PATH has 2 hard links: only a file with one name is read", remedy: func(h *host, _ string) error { return os.Remove(h.path("other")) }},
		{name: "a FIFO", do: func(_ *host, path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)) },
			says: "PATH is not a plain file: remove it", remedy: again},
		{name: "a directory", do: func(_ *host, path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
			says: "PATH is not a plain file: remove it", remedy: again},
		{name: "1 TiB of nothing", do: func(_ *host, path string) error { return os.Truncate(path, 1<<40) },
			says: "PATH has 1099511627776 bytes, the limit is 1048576", remedy: again},
		{name: "a read that fails", do: func(_ *host, path string) error {
			// A plain file of root, and nothing is mapped at its beginning.
			return unix.Mount(fmt.Sprintf("/proc/%d/mem", os.Getpid()), path, "", unix.MS_BIND, "")
		}, says: "PATH: input/output error", remedy: func(_ *host, path string) error { return unix.Unmount(path, unix.MNT_DETACH) }},
	}
	for i := range list {
		list[i].closed = closed
		if !noticed {
			list[i].says = ""
		}
	}
	return list
}

// saved are the cases of a document the inbox has as well.
func saved() []sick {
	return append(badlyKept(true, true),
		sick{name: "lost", do: lose},
		sick{name: "empty", do: empty},
		sick{name: "cut", do: halve},
		sick{name: "one bit changed", do: flip},
		sick{name: "older", do: older},
		sick{name: "of another realm", do: ofAnotherRealm},
		sick{name: "lost, and nothing delivered", do: lose, alone: true, closed: true, remedy: func(h *host, _ string) error {
			copyFiles(h.t, h.path("well", "inbox"), h.path("inbox"))
			return nil
		}},
	)
}

// The state directory, one file at a time: lost, damaged, of another time or
// realm, badly kept. The agent starts, ports of the last policy stay guarded,
// nobody comes in who may not, and what the agent says to do helps.
func TestSickState(t *testing.T) {
	t.Parallel()
	for file, cases := range map[string][]sick{
		"mark.json": append(badlyKept(true, true),
			sick{name: "in a directory everybody writes", do: func(_ *host, path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
				closed: true, says: "DIR is writable by group or others: chmod go-w DIR", remedy: func(_ *host, path string) error { return os.Chmod(filepath.Dir(path), 0o700) }},
			sick{name: "lost", do: lose},
			sick{name: "lost, and nothing delivered", do: lose, alone: true},
			sick{name: "empty", do: empty, closed: true, says: "PATH: empty: restore it, or remove it to trust the next documents anew; then restart the agent", remedy: lose},
			sick{name: "cut", do: halve, closed: true, says: "restore it, or remove it", remedy: lose},
			sick{name: "one bit changed", do: flip, closed: true, says: "PATH: changed since it was written: its sum is another: restore it, or remove it", remedy: lose},
			sick{name: "of a newer program", do: byHand(object{"novelty": 1}), closed: true, says: `unknown field "novelty"`, remedy: lose},
			sick{name: "older", do: older},
			sick{name: "of another realm, and nothing delivered", alone: true, do: byHand(object{"pin": "sha256:" + strings.Repeat("0a", 32), "trust": object{"version": 7, "digest": "sha256:" + strings.Repeat("0b", 32)}})},
			sick{name: "versions beyond anything", do: byHand(object{"policy": object{"version": 1<<53 - 1, "digest": "sha256:" + strings.Repeat("0c", 32)}}),
				closed: true, says: "rollback: version 1 after 9007199254740991", remedy: lose},
			sick{name: "floor far ahead", do: byHand(object{"floor": "2099-01-01T00:00:00Z"}), closed: true, says: "clock-behind: ", remedy: lose},
		),
		"trust.json":  saved(),
		"policy.json": saved(),
		"grants.json": saved(),
		"trust.former.json": append(badlyKept(false, false), sick{name: "a FIFO, and the document after it lost", do: func(h *host, path string) error {
			return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600), os.Remove(h.path("state", "trust.json")))
		}}, sick{name: "lost", do: lose}, sick{name: "cut", do: halve}, sick{name: "of another realm", do: ofAnotherRealm}),
		"horizon.json": append(badlyKept(false, false),
			sick{name: "lost", do: lose},
			sick{name: "empty", do: empty},
			sick{name: "cut", do: halve},
			sick{name: "one bit changed", do: flip},
			sick{name: "older", do: older},
			sick{name: "of a boot that ran for centuries", do: byHand(object{"bootID": "another", "seen": 1 << 62}), closed: true, remedy: lose},
		),
		// The settings say observe. Somebody armed and confirmed.
		"mode.json": append(badlyKept(false, true),
			sick{name: "empty", do: empty, says: "the saved mode cannot be read, the guard drops: PATH: empty", remedy: rewriteMode},
			sick{name: "cut", do: halve, says: "the saved mode cannot be read, the guard drops: PATH: ", remedy: rewriteMode},
			sick{name: "one bit changed", do: flip, says: "the saved mode cannot be read, the guard drops: PATH: ", remedy: rewriteMode},
			sick{name: "lost", do: lose, mode: "observe"},
			sick{name: "a trial of another boot", do: byHand(object{"mode": nil, "trial": true, "until": 1 << 62, "bootID": "another"}), mode: "observe"},
		),
	} {
		t.Run(file, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			if file == "mode.json" {
				h.settings["mode"] = quote("observe")
			}
			h.start()
			h.put(1, h.realm.rules(1, port(22, "TCP"), port(3389, "TCP")))
			long := h.realm.sign("grants", h.realm.list(4, grant("of-long-ago", 22, 30*time.Minute, bob4+"/32")))
			h.deliver("grants.json", long)
			h.until("the list should be in force", func(s status) bool { return s.isOpen("of-long-ago") })
			copyFiles(t, h.path("state"), h.path("older"))
			h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(2)))
			h.until("the next trust document should be in force", func(s status) bool { return s.document("trust").Version == 2 })
			h.allow(5, grant("good", 22, 30*time.Minute, alice4+"/32"))
			if file == "mode.json" {
				h.must("arm", "--config", h.config())
				h.must("arm", "confirm", "--config", h.config())
			}
			h.stop()
			copyFiles(t, h.path("inbox"), h.path("well", "inbox"))
			copyFiles(t, h.path("state"), h.path("well"))
			if _, err := os.Stat(h.path("older", file)); errors.Is(err, os.ErrNotExist) {
				copyFiles(t, h.path("well"), h.path("older")) // there was none then
			}
			for _, c := range cases {
				t.Run(c.name, func(t *testing.T) {
					h.t = t
					h.suffers(file, c)
					h.deliver("grants.json", long)
					h.until("the list of long ago should be refused", func(s status) bool {
						return strings.Contains(s.document("grants").Refusal, "rollback: ") && s.isOpen("good")
					})
					h.kill()
					for _, err := range []error{os.RemoveAll(h.path("state", file)), os.RemoveAll(h.path("real"))} {
						if err != nil {
							t.Fatal(err)
						}
					}
					copyFiles(t, h.path("well"), h.path("state"))
					copyFiles(t, h.path("well", "inbox"), h.path("inbox"))
				})
			}
			h.t = t
		})
	}
}

// suffers plays one case: what comes of it, and that the remedy helps.
func (h *host) suffers(file string, c sick) {
	h.t.Helper()
	path := h.path("state", file)
	if err := c.do(h, path); err != nil {
		h.t.Fatal(err)
	}
	if c.alone {
		for _, name := range []string{"trust.json", "policy.json", "grants.json"} {
			if err := os.Remove(h.path("inbox", name)); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	h.start()
	mode := "enforce"
	if c.mode != "" {
		mode = c.mode
	}
	says := strings.NewReplacer("PATH", path, "DIR", filepath.Dir(path)).Replace(c.says)
	h.until(fmt.Sprintf("mode should be %s, and be said: %q", mode, says), func(s status) bool {
		said := s.Problem + "\n" + s.Blocked
		for _, d := range s.Docs {
			said += "\n" + d.Refusal
		}
		return s.Mode == mode && strings.Contains(said, says) && (says != "" || s.Problem == "") && s.isOpen("good") == !c.closed
	})
	h.t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) }) // if it fails here
	if mode == "enforce" {
		h.isClosed(ways("22/tcp", bob4), ways("3389/tcp", alice4, bob4))
		if c.closed {
			h.isClosed(ways("22/tcp", alice4))
		} else {
			h.isOpen(ways("22/tcp", alice4))
		}
	}
	if c.remedy != nil {
		h.stop()
		if err := c.remedy(h, path); err != nil {
			h.t.Fatal(err)
		}
		h.start()
	}
	h.until("all should be well", func(s status) bool {
		return s.Problem == "" && s.document("trust").Version == 2 && s.document("policy").Version == 1 && s.document("grants").Version == 5 && s.isOpen("good")
	})
	h.isOpen(ways("22/tcp", alice4))
}

// rewriteMode does what the status says of a mode that cannot be read.
func rewriteMode(h *host, _ string) error {
	h.must("disarm", "--observe", "--config", h.config())
	return nil
}

// copyFiles copies the plain files of a directory.
func copyFiles(t *testing.T, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err == nil {
		err = os.MkdirAll(to, 0o755)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		content, readErr := os.ReadFile(filepath.Join(from, e.Name()))
		removeErr := os.RemoveAll(filepath.Join(to, e.Name()))
		err = errors.Join(err, readErr, removeErr, os.WriteFile(filepath.Join(to, e.Name()), content, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sickDisks are the ways for the disk of the state directory to take nothing.
var sickDisks = []struct {
	name          string
	breaks, mends func(t *testing.T, state string)
}{
	{"disk full", func(t *testing.T, state string) { fill(t, state+"/filler") }, func(t *testing.T, state string) {
		if err := os.Remove(state + "/filler"); err != nil {
			t.Fatal(err)
		}
	}},
	{"read-only", readOnly, unmount},
}

// The disk takes nothing while keys change hands, a policy narrows, all is
// locked down or somebody arms: what closes, closes, nothing opens, no port is
// unguarded, and it says so. Once the disk works again all of it stands, and
// outlives the agent.
func TestChangesOnASickDisk(t *testing.T) {
	t.Parallel()
	for _, disk := range sickDisks {
		for _, c := range []struct {
			name   string
			change func(h *host) // bob is to come in, in place of alice
			sick   func(h *host) // what holds until the disk is mended
			well   func(h *host) // and what afterwards
		}{
			{"rotation of trust", func(h *host) {
				h.realm.grant, h.realm.epoch = newKey(h.t), 2
				h.deliver("trust.json", h.realm.sign("trust", h.realm.trust(2)))
				h.deliver("grants.json", h.realm.sign("grants", h.realm.list(1, grant("next", 22, 30*time.Minute, bob4+"/32"))))
				h.until("the next trust document and list should be in force", func(s status) bool { return s.document("trust").Version == 2 && s.document("grants").Version == 1 })
			}, func(h *host) {
				h.isClosed(ways("22/tcp", alice4, bob4))
			}, func(h *host) {
				h.opens(patience, ways("22/tcp", bob4))
				h.isClosed(ways("22/tcp", alice4))
			}},
			{"policy", func(h *host) {
				only := with(port(22, "TCP"), object{"allowedSourceAddressPrefixes": []string{bob4 + "/32"}})
				h.put(2, h.realm.rules(2, only, port(3389, "TCP")))
				h.allow(8, grant("good", 22, 30*time.Minute, alice4+"/32"), grant("next", 22, 30*time.Minute, bob4+"/32"))
			}, func(h *host) {
				h.isClosed(ways("22/tcp", alice4, bob4), ways("3389/tcp", bob4)) // the port that is new in the policy too
			}, func(h *host) {
				h.opens(patience, ways("22/tcp", bob4))
				h.isClosed(ways("22/tcp", alice4), ways("3389/tcp", bob4))
			}},
			{"lockdown", func(h *host) {
				_, stderr, code := h.command("lockdown", "--config", h.config())
				oneLine(h.t, stderr, code, "not-durable: ")
			}, func(h *host) {
				h.isClosed(ways("22/tcp", alice4))
			}, func(h *host) {
				h.isClosed(ways("22/tcp", alice4))
			}},
			{"arming", func(h *host) {
				_, stderr, code := h.command("arm", "--config", h.config())
				oneLine(h.t, stderr, code, "the mode cannot be saved: ")
			}, func(h *host) {
				h.isOpen(ways("22/tcp", alice4, bob4)) // as in mode observe
			}, func(h *host) {
				h.must("arm", "--config", h.config())
				h.isOpen(ways("22/tcp", alice4))
				h.isClosed(ways("22/tcp", bob4))
			}},
		} {
			t.Run(disk.name+"/"+c.name, func(t *testing.T) {
				t.Parallel()
				h := newHost(t)
				state := h.path("state")
				makeState(t, state)
				mount(t, "tmpfs", state, "tmpfs", 0, "size=256k,mode=700")
				if c.name == "arming" {
					h.settings["mode"] = quote("observe")
				}
				h.start()
				h.put(1, h.realm.rules(1, port(22, "TCP")))
				h.allow(7, grant("good", 22, 30*time.Minute, alice4+"/32"))
				mark := h.mark()
				disk.breaks(t, state)
				c.change(h)
				c.sick(h)
				if now := h.mark(); now != mark {
					t.Errorf("the mark was\n%s\nand is\n%s", mark, now)
				}
				h.kill() // and comes back to the same disk
				h.start()
				if c.name != "lockdown" { // which such an agent cannot know of, and the command said so
					c.sick(h)
				} else if _, stderr, code := h.command("lockdown", "--config", h.config()); code == 0 {
					t.Errorf("locked down for good on a disk that takes nothing: %s", stderr)
				}
				disk.mends(t, state)
				h.until("the problem should be over", func(s status) bool { return s.Problem == "" })
				c.well(h)
				h.kill()
				h.start()
				c.well(h)
				h.kill()
			})
		}
	}
}
