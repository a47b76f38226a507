package agent

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

func TestInstallationOnMachine(t *testing.T) {
	at := noon.Add(time.Hour)
	was := func(m Machine) installation { return installation{"old", m, noon} }
	for name, c := range map[string]struct {
		was  installation
		now  Machine
		want installation
	}{
		"the first":                      {installation{}, Machine{"a", "b"}, installation{"new", Machine{"a", "b"}, at}},
		"the first, nothing known":       {installation{}, Machine{}, installation{"new", Machine{}, at}},
		"the same":                       {was(Machine{"a", "b"}), Machine{"a", "b"}, was(Machine{"a", "b"})},
		"nothing was ever known":         {was(Machine{}), Machine{}, was(Machine{})},
		"nothing is known now":           {was(Machine{"a", "b"}), Machine{}, was(Machine{"a", "b"})},
		"all is known now":               {was(Machine{}), Machine{"a", "b"}, was(Machine{"a", "b"})},
		"the board is known now":         {was(Machine{"a", ""}), Machine{"a", "b"}, was(Machine{"a", "b"})},
		"the board is not known now":     {was(Machine{"a", "b"}), Machine{"a", ""}, was(Machine{"a", "b"})},
		"one then, the other now":        {was(Machine{"a", ""}), Machine{"", "b"}, was(Machine{"a", "b"})},
		"another machine id":             {was(Machine{"a", "b"}), Machine{"x", "b"}, installation{"new", Machine{"x", "b"}, at}},
		"another board":                  {was(Machine{"a", "b"}), Machine{"a", "x"}, installation{"new", Machine{"a", "x"}, at}},
		"another id, the board unknown":  {was(Machine{"a", "b"}), Machine{"x", ""}, installation{"new", Machine{"x", ""}, at}},
		"another board, the id unknown":  {was(Machine{"a", "b"}), Machine{"", "x"}, installation{"new", Machine{"", "x"}, at}},
		"another id, a board now":        {was(Machine{"a", ""}), Machine{"x", "b"}, installation{"new", Machine{"x", "b"}, at}},
		"facts without an id are no one": {installation{"", Machine{"a", "b"}, noon}, Machine{"a", "b"}, installation{"new", Machine{"a", "b"}, at}},
	} {
		if got := c.was.on(c.now, "new", at); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// Whatever lies in the state directory, what is read of it is written again as
// it was read.
func FuzzDecodeState(f *testing.F) {
	f.Add([]byte(`{"id":"QDGXRTJ2STAEI5DOOYRLMFVCOB","machine":{"machineID":"a"},"since":"2026-11-22T12:00:00Z"}`))
	f.Add([]byte(`{"trust":{"version":1,"digest":"sha256:` + strings.Repeat("0", 64) + `"},"void":["a"]}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, v := range []struct{ read, again any }{
			{&installation{}, &installation{}}, {&mark{}, &mark{}}, {&standing{}, &standing{}}, {&savedHorizon{}, &savedHorizon{}},
		} {
			if decodeState(text, v.read) != nil {
				continue
			}
			written, err := json.MarshalIndent(v.read, "", "  ")
			if err != nil {
				continue // a time no document can have
			}
			if err := decodeState(withSum(written), v.again); err != nil {
				t.Errorf("%T: %s comes back as %v", v.read, written, err)
			}
		}
	})
}

// listFor signs a list for an installation of a host.
func (w *world) listFor(host, install string, grants ...policy.Grant) {
	w.t.Helper()
	w.grants++
	g := policy.Grants{Header: w.header(w.grants), Epoch: 1, Host: policy.Host{ID: host, Install: install}, Grants: grants}
	w.put(Grants, w.sign(policy.TypeGrants, policy.RoleGrant, g.Encode()))
}

// installed is what recorded events say of installations.
func (w *world) installed() (out []string) {
	for _, e := range w.record.events {
		if e.Install != "" {
			out = append(out, string(e.Name)+" "+strings.Replace(e.FormerInstall, w.install.ID, "ours", 1))
			if e.Install != w.install.ID {
				w.t.Errorf("%s of %q, the id is %q", e.Name, e.Install, w.install.ID)
			}
		}
	}
	w.record.events = nil
	return out
}

// The same installation as long as it is on the same machine.
func TestInstallID(t *testing.T) {
	w := newWorld(t)
	w.Machine = Machine{"a", ""}
	w.restart()
	if id := w.install.id(); id != "" {
		t.Errorf("before it is on the disk it is %q", id)
	}
	w.mustPass(0)
	first := w.install.id()
	if len(first) < 26 || w.snapshot(t.Context()).Install != first {
		t.Errorf("it is %q, status says %q", first, w.snapshot(t.Context()).Install)
	}
	if got := w.installed(); !slices.Equal(got, []string{"install.created "}) {
		t.Errorf("recorded %q", got)
	}
	same := func(m Machine) {
		t.Helper()
		w.Machine = m
		w.restart()
		if w.install.id() != first {
			t.Errorf("on %+v it is %q before the first pass, was %q", m, w.install.id(), first)
		}
		w.mustPass(time.Second)
		if got := w.installed(); w.install.id() != first || got != nil {
			t.Errorf("on %+v it is %q, was %q; recorded %q", m, w.install.id(), first, got)
		}
	}
	same(Machine{"a", ""})
	same(Machine{})
	same(Machine{"a", "b"}) // and is known from now on
	same(Machine{"", "b"})
	w.Machine = Machine{"a", "c"}
	w.restart()
	if w.install.id() != "" {
		t.Errorf("not on the disk yet, it is %q", w.install.id())
	}
	w.mustPass(time.Second)
	if got := w.installed(); w.install.id() == first || !slices.Equal(got, []string{"install.renewed " + first}) {
		t.Errorf("on another board it is %q, was %q; recorded %q", w.install.id(), first, got)
	}
}

// A clone of a machine: its own grants, and not those of the one it came from.
func TestClonesGrants(t *testing.T) {
	for name, c := range map[string]struct {
		named, empty bool
		open         bool
	}{
		"lists that name the installation": {named: true},
		"the same, without an inbox":       {named: true, empty: true},
		"lists for any installation":       {open: true}, // of that host id, which it still has
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Machine = Machine{"a", "b"}
			w.restart()
			w.deliver()
			w.mustPass(0)
			former, install := w.install.id(), ""
			if c.named {
				install = former
			}
			w.listFor(vm, install, w.grant("a", alice, 0, time.Hour))
			w.mustPass(time.Second)
			w.wantOpen(alice, true)
			w.restart() // nothing has changed
			w.mustPass(time.Second)
			w.wantOpen(alice, true)
			if c.empty {
				os.Remove(filepath.Join(w.Settings.InboxDir, Grants.File()))
			}
			w.Machine = Machine{"x", "b"}
			w.restart()
			w.record.take()
			w.mustPass(time.Second)
			w.wantOpen(alice, c.open)
			if refused := slices.Contains(w.record.take(), "document.refused grants wrong-host"); refused != (c.named && !c.empty) {
				t.Errorf("refused: %t", refused)
			}
			w.listFor(vm, w.install.id(), w.grant("b", bob, 0, time.Hour))
			w.mustPass(time.Second)
			w.wantOpen(bob, true)
			w.wantOpen(alice, false)
		})
	}
}

// So with a policy: one for the former installation admits nobody here, and
// its ports stay guarded.
func TestClonesPolicy(t *testing.T) {
	w := newWorld(t)
	w.Machine = Machine{"a", "b"}
	w.restart()
	w.mustPass(0)
	w.deliver(func(p *policy.Policy) {
		p.Host.Install, p.ExemptSources = w.install.id(), []netip.Prefix{netip.MustParsePrefix(alice)}
		p.Ports[0].Number, p.Ports[0].EndNumber = 2222, 2222
	})
	w.mustPass(time.Second)
	door := fwtest.Door(t, alice, "2222/tcp")
	if !w.fake.Admits(door) {
		t.Fatal("the policy admits nobody")
	}
	os.Remove(filepath.Join(w.Settings.InboxDir, Policy.File()))
	w.Machine = Machine{"x", "b"}
	w.restart()
	w.mustPass(time.Second)
	if got := formatPorts(w.guarded()); w.fake.Admits(door) || !slices.Equal(got, []string{"2222/tcp"}) {
		t.Errorf("admitted: %t, guarded: %v", w.fake.Admits(door), got)
	}
}

// Without a disk there is no id: lists that name one are refused, all others
// count.
func TestInstallIDIsDurable(t *testing.T) {
	for name, c := range map[string]struct{ block, free func(w *world) }{
		"no room for it": {
			func(w *world) {
				os.MkdirAll(filepath.Join(w.Settings.StateDir, "."+installFile+".new", "taken"), 0o700)
			},
			func(w *world) { os.RemoveAll(filepath.Join(w.Settings.StateDir, "."+installFile+".new")) }},
		"no record of it": {
			func(w *world) { w.record.fail = os.ErrPermission },
			func(w *world) { w.record.fail = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.Machine = Machine{"a", "b"}
			w.restart()
			w.deliver()
			w.mustPass(0)
			former := w.install.id()
			w.record.events = nil
			c.block(w)
			w.Machine = Machine{"x", "b"}
			w.restart()
			for range 2 {
				w.pass(time.Second)
				if w.install.id() != "" {
					t.Fatalf("it counts as %q", w.install.id())
				}
			}
			if s := w.snapshot(t.Context()); s.Install != "" || !strings.Contains(s.Problem, "permission") && !strings.Contains(s.Problem, installFile) {
				t.Errorf("status says %q, problem %q", s.Install, s.Problem)
			}
			if text, _ := os.ReadFile(filepath.Join(w.Settings.StateDir, installFile)); !strings.Contains(string(text), former) {
				t.Errorf("install.json says %s", text)
			}
			for _, id := range []string{former, w.install.ID} {
				w.listFor(vm, id, w.grant("a", alice, 0, time.Hour))
				w.pass(time.Second)
				w.wantOpen(alice, false)
			}
			if w.record.fail == nil {
				w.listFor(vm, "", w.grant("b", bob, 0, time.Hour))
				w.mustPass(time.Second)
				w.wantOpen(bob, true)
			}
			c.free(w)
			w.mustPass(time.Second)
			if got := w.installed(); w.install.id() == "" || w.install.id() == former || !slices.Equal(got, []string{"install.renewed " + former}) {
				t.Errorf("it is %q, was %q; recorded %q", w.install.id(), former, got)
			}
			id := w.install.id()
			if w.restart(); w.install.id() != id {
				t.Errorf("after a restart it is %q, was %q", w.install.id(), id)
			}
		})
	}
}

// An install.json that cannot be read is made anew: a former id that is not
// known counts no more.
func TestBrokenInstall(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "half": `{"id":"x`, "null": "null", "no id": `{"machine":{}}`, "an id nobody names": `{"id":"a b"}`, "two": `{"id":"a"}{"id":"b"}`,
	} {
		w := newWorld(t)
		w.mustPass(0)
		first := w.install.id()
		if err := os.WriteFile(filepath.Join(w.Settings.StateDir, installFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		w.record.events = nil
		w.restart()
		w.mustPass(time.Second)
		if got := w.installed(); w.install.id() == first || w.install.id() == "" || !slices.Equal(got, []string{"install.renewed "}) {
			t.Errorf("%s: it is %q, was %q; recorded %q", name, w.install.id(), first, got)
		}
	}
}

// A host that gets another id: its former grants close, its counters begin
// anew, and nothing old comes back with the old name.
func TestRenamedHost(t *testing.T) {
	rules := func(host string) func(*policy.Policy) { return func(p *policy.Policy) { p.Host.ID = host } }
	w := newWorld(t)
	w.deliver()
	w.grants = 1186
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.wantOpen(alice, true)
	old, err := os.ReadFile(filepath.Join(w.Settings.InboxDir, Grants.File()))
	if err != nil {
		t.Fatal(err)
	}
	floor := w.mark.Floor
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 0, time.Hour))
	w.mustPass(time.Second)
	if err := w.endAll(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.wantOpen(bob, false)
	w.listFor(vm, "", w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 0, time.Hour), w.grant("c", "10.0.0.3/32", 0, time.Hour))
	w.mustPass(time.Second)
	w.wantOpen("10.0.0.3/32", true)
	locked, err := os.ReadFile(filepath.Join(w.Settings.InboxDir, Grants.File()))
	if err != nil {
		t.Fatal(err)
	}

	w.Settings.HostID = otherVM
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen("10.0.0.3/32", false)
	if got := formatPorts(w.guarded()); !slices.Equal(got, []string{"22/tcp"}) {
		t.Errorf("guarded: %v", got)
	}
	w.record.take()
	w.deliver(rules(otherVM))
	w.grants = 0
	w.listFor(otherVM, "", w.grant("a", alice, 0, time.Hour))
	w.mustPass(time.Second)
	w.wantOpen(alice, true) // version 1 of its own list, and no id of it is void
	if w.mark.Floor.Before(floor) || w.mark.Trust.Version != 1 {
		t.Errorf("the mark is %+v", w.mark)
	}
	w.Settings.HostID = strings.ToUpper(otherVM) // no other name
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(alice, true)

	w.Settings.HostID = vm
	w.restart()
	w.deliver(func(p *policy.Policy) { p.Version = 2 })
	w.put(Grants, old)
	w.mustPass(time.Second)
	w.wantOpen(alice, false)
	if got := w.record.take(); !slices.Contains(got, "document.refused grants rollback") {
		t.Errorf("recorded %q", got)
	}
	w.put(Grants, locked)
	w.mustPass(time.Second)
	w.wantOpen("10.0.0.3/32", true)
	w.wantOpen(alice, false) // void as before
	w.wantOpen(bob, false)
}

// One policy for many hosts stays in force over a change of names.
func TestRenamedWithinAScope(t *testing.T) {
	w := newWorld(t)
	w.deliver(func(p *policy.Policy) { p.Host.ID = "/subscriptions/s/*" })
	w.mustPass(0)
	os.Remove(filepath.Join(w.Settings.InboxDir, Policy.File()))
	w.Settings.HostID = otherVM
	w.restart()
	w.listFor(otherVM, "", w.grant("a", alice, 0, time.Hour))
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
}

// A mark from before it named its host is this host's.
func TestMarkWithoutHost(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.mark.Host = ""
	w.dirty = true
	w.save()
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
	w.grants = 0
	w.list(w.grant("b", bob, 0, time.Hour)) // version 1 with other bytes
	w.mustPass(time.Second)
	w.wantOpen(bob, false)
	w.Settings.HostID = otherVM // it was written down meanwhile whose it is
	w.restart()
	w.mustPass(time.Second)
	if w.mark.Grants.Version != 0 || w.mark.Former == nil {
		t.Errorf("the mark is %+v", w.mark)
	}
}

// What a lockdown ended stays so.
func TestMarkWithoutHostAfterLockdown(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	if err := w.endAll(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.mark.Host, w.dirty = "", true
	w.save()
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(alice, false)
}

// Nor does it open what its documents grant to another.
func TestMarkWithoutHostRenamed(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.mark.Host, w.dirty = "", true
	w.save()
	w.Settings.HostID = otherVM
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(alice, false)
}
