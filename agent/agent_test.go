package agent

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

// memory is a sink that remembers, and fails when told to.
type memory struct {
	events []audit.Event
	fail   error
}

func (m *memory) Record(_ context.Context, events ...audit.Event) error {
	if m.fail != nil {
		return m.fail
	}
	m.events = append(m.events, events...)
	return nil
}

// take returns the names of the events since the last call, with the code or
// the grant.
func (m *memory) take() []string {
	var out []string
	for _, e := range m.events {
		s := string(e.Name)
		for _, detail := range []string{e.Document, e.GrantID, e.Code} {
			if detail != "" {
				s += " " + detail
			}
		}
		out = append(out, s)
	}
	m.events = nil
	return out
}

// world is an agent on a fake kernel, with clocks that only move by hand and
// a realm to sign for.
type world struct {
	*Agent
	t      *testing.T
	fake   *fwtest.Fake
	record *memory
	wall   time.Time
	boot   firewall.BootTime
	trust  policy.Envelope
	keys   map[policy.Role]crypto.Signer
	grants uint64 // version of the last list
}

var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

const vm = "/subscriptions/s/virtualMachines/web1"

func newWorld(t *testing.T) *world {
	w := &world{t: t, record: &memory{}, wall: noon, boot: firewall.BootTime(time.Hour), keys: map[policy.Role]crypto.Signer{}}
	w.fake = &fwtest.Fake{Now: func() firewall.BootTime { return w.boot }}
	doc := policy.Trust{Header: policy.Header{Realm: "acme", Version: 1, Issued: noon, Expires: noon.AddDate(1, 0, 0)}}
	for _, role := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		k, err := policy.NewKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		holds := policy.RoleKeys{Name: role, Keys: []policy.KeyID{k.ID}, Threshold: 1}
		if role == policy.RoleGrant {
			holds.Epoch = 1
		}
		doc.Keys, doc.Roles, w.keys[role] = append(doc.Keys, k), append(doc.Roles, holds), key
	}
	w.trust = policy.Envelope{Type: policy.TypeTrust, Payload: doc.Encode()}
	if err := w.trust.Sign(w.keys[policy.RoleRoot]); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	inbox := filepath.Join(dir, "inbox")
	if err := os.Mkdir(inbox, 0o755); err != nil {
		t.Fatal(err)
	}
	w.Agent = &Agent{Settings: Settings{HostID: strings.ToUpper(vm), Mode: Enforce, Guard: fwtest.Ports(t, "22/tcp", "22/udp"),
		InboxDir: inbox, StateDir: filepath.Join(dir, "state"), TrustPin: w.trust.Digest()}}
	w.restart()
	return w
}

// withoutHurry is how long an agent in tests waits for its inbox: their clocks
// move by hand, and a machine under load is no file server that hangs.
const withoutHurry = time.Minute

// restart replaces the agent by a new one, as after kill -9. The kernel, the
// disk and the record stay.
func (w *world) restart() {
	w.Agent = &Agent{Settings: w.Settings, Backend: w.fake, Audit: w.record, Log: hclog.NewNullLogger(), Machine: w.Machine,
		Clock: Clock{Wall: func() time.Time { return w.wall }, Boot: func() firewall.BootTime { return w.boot }, BootID: "this boot"}}
	w.inbox.patience = withoutHurry
	w.Load()
}

// pass moves both clocks and does one step.
func (w *world) pass(d time.Duration) error {
	w.t.Helper()
	w.wall, w.boot = w.wall.Add(d), w.boot.Add(d)
	_, err := w.Step(w.t.Context())
	return err
}

func (w *world) mustPass(d time.Duration) {
	w.t.Helper()
	if err := w.pass(d); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(k Kind, raw []byte) {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.Settings.InboxDir, k.File()), raw, 0o644); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) sign(typ policy.Type, role policy.Role, payload []byte) []byte {
	w.t.Helper()
	e := policy.Envelope{Type: typ, Payload: payload}
	if err := e.Sign(w.keys[role]); err != nil {
		w.t.Fatal(err)
	}
	return e.Encode()
}

func (w *world) header(version uint64) policy.Header {
	return policy.Header{Realm: "acme", Version: version, Issued: w.wall.Truncate(time.Second), Expires: w.wall.Truncate(time.Second).Add(12 * time.Hour)}
}

// deliver puts trust and a policy in place, and then lists of grants.
func (w *world) deliver(edit ...func(*policy.Policy)) {
	w.t.Helper()
	w.put(Trust, w.trust.Encode())
	p := policy.Policy{Header: w.header(1), Host: policy.Host{ID: vm}, MaxGrantsAge: 6 * time.Hour, Ports: []policy.Port{{
		Number: 22, EndNumber: 22, Protocol: policy.TCP, SessionsAtEnd: policy.Keep, MaxRequestAccessDuration: 3 * time.Hour,
		AllowedSources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}}
	for _, e := range edit {
		e(&p)
	}
	w.put(Policy, w.sign(policy.TypePolicy, policy.RolePolicy, p.Encode()))
}

func (w *world) list(grants ...policy.Grant) {
	w.t.Helper()
	w.grants++
	g := policy.Grants{Header: w.header(w.grants), Epoch: 1, Host: policy.Host{ID: vm}, Grants: grants}
	w.put(Grants, w.sign(policy.TypeGrants, policy.RoleGrant, g.Encode()))
}

// grant begins after from and lasts for length.
func (w *world) grant(id, source string, from, length time.Duration) policy.Grant {
	start := w.wall.Truncate(time.Second).Add(from)
	return policy.Grant{ID: id, Number: 22, Sources: []netip.Prefix{netip.MustParsePrefix(source)}, Start: start, End: start.Add(length), Requestor: "alice"}
}

func (w *world) open(source string) bool {
	return w.fake.Admits(fwtest.Door(w.t, source, "22/tcp"))
}

func (w *world) wantOpen(source string, want bool) {
	w.t.Helper()
	if got := w.open(source); got != want {
		w.t.Errorf("at %s %s passes: %t, want %t", w.wall.Format(time.TimeOnly), source, got, want)
	}
}

func (w *world) wantRecord(want ...string) {
	w.t.Helper()
	if got := w.record.take(); !slices.Equal(got, want) {
		w.t.Errorf("recorded %q\nwant     %q", got, want)
	}
}

const alice, bob = "10.0.0.1/32", "10.0.0.2/32"

func TestLifeOfAGrant(t *testing.T) {
	w := newWorld(t)
	w.mustPass(0)
	w.wantOpen(alice, false) // no document: closed
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, 10*time.Minute, time.Hour))
	w.record.take()
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
	w.wantOpen(bob, false)
	w.wantRecord("document.admitted trust", "document.admitted policy", "document.admitted grants", "grant.opening a", "grant.opened a")
	w.mustPass(10 * time.Minute)
	w.wantOpen(bob, true)
	w.wantRecord("grant.opening b", "grant.opened b")
	w.boot, w.wall = w.boot.Add(50*time.Minute), w.wall.Add(50*time.Minute)
	w.wantOpen(alice, false) // the kernel closes: no step was taken
	w.mustPass(0)
	w.wantRecord("grant.expired a", "grant.used a tried")
	w.list()
	w.mustPass(time.Second)
	w.wantOpen(bob, false)
	w.wantRecord("document.admitted grants", "grant.revoked b", "grant.used b tried")
}

func TestNextWakesForEveryChange(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, 20*time.Second), w.grant("b", bob, 5*time.Second, time.Hour))
	next, err := w.Step(t.Context())
	if err != nil || next != w.boot.Add(5*time.Second) {
		t.Errorf("first at %v, want when b begins (%v)", next.Sub(w.boot), err)
	}
	w.wall, w.boot = w.wall.Add(5*time.Second), w.boot.Add(5*time.Second)
	glance := 15*time.Second - lastGlance
	if next, _ = w.Step(t.Context()); next != w.boot.Add(glance) {
		t.Errorf("then in %v, want just before a ends", next.Sub(w.boot))
	}
	w.wall, w.boot = w.wall.Add(glance), w.boot.Add(glance)
	if next, _ = w.Step(t.Context()); next != w.boot.Add(lastGlance) {
		t.Errorf("then in %v, want when a ends", next.Sub(w.boot))
	}
	w.wall, w.boot = w.wall.Add(lastGlance), w.boot.Add(lastGlance)
	if next, _ = w.Step(t.Context()); next != w.boot.Add(Resync) {
		t.Errorf("then in %v, want %v", next.Sub(w.boot), Resync)
	}
}

// A wall clock set back extends nothing.
func TestThreatSetsTheClockBack(t *testing.T) {
	stepsTheClock(t, -24*time.Hour, -time.Hour, -90*time.Second, -time.Second)
}

// One that is set ahead ends it early.
func TestThreatSetsTheClockAhead(t *testing.T) {
	stepsTheClock(t, time.Second, 24*time.Hour)
}

func stepsTheClock(t *testing.T, steps ...time.Duration) {
	for i := range 2 * len(steps) {
		step, restarts := steps[i/2], i%2 == 1 // agents come and go, the boot is one
		t.Run(fmt.Sprintf("%s, restarts %t", step, restarts), func(t *testing.T) {
			w := newWorld(t)
			w.deliver()
			w.list(w.grant("a", alice, 0, time.Hour))
			w.mustPass(0)
			opened := w.boot
			w.mustPass(10 * time.Minute)
			w.wall = w.wall.Add(step)
			for w.boot.Sub(opened) < 3*time.Hour {
				w.mustPass(Resync)
				if w.boot.Sub(opened)%(10*time.Minute) == 0 && restarts {
					w.restart()
					w.mustPass(0)
				}
				if w.open(alice) && w.boot.Sub(opened) > time.Hour+time.Second {
					t.Fatalf("open %v after it was opened for an hour", w.boot.Sub(opened))
				}
				if step < 0 && !restarts && w.boot.Sub(opened) < time.Hour {
					w.wantOpen(alice, true) // nobody is cut off by a clock that was corrected
				}
			}
		})
	}
}

// A clock far behind every signed time opens nothing new, and says so.
func TestClockBehind(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.mustPass(0)
	w.list(w.grant("a", alice, -24*time.Hour, time.Hour))
	w.wall = w.wall.Add(-24 * time.Hour)
	w.record.take()
	w.mustPass(0)
	w.wantOpen(alice, false)
	w.wantRecord("document.refused grants clock-behind")
	w.mustPass(Resync)
	w.wantRecord() // once, though the sentence names another time now
	// A grant of the list that would be active by the wrong clock.
	w.wall = w.wall.Add(24 * time.Hour)
	w.list(w.grant("old", bob, -25*time.Hour, 2*time.Hour))
	w.mustPass(0)
	w.wall = w.wall.Add(-24 * time.Hour)
	os.Remove(filepath.Join(w.Settings.StateDir, horizonFile))
	w.restart()
	w.mustPass(0)
	w.wantOpen(bob, false)
	w.wall = w.wall.Add(24 * time.Hour)
	w.list(w.grant("b", alice, 0, time.Hour))
	w.mustPass(0)
	w.wantOpen(alice, true)
}

// The documents bound every opening, whatever its grant says.
func TestDocumentsBoundOpenings(t *testing.T) {
	for name, edit := range map[string]func(*policy.Policy){
		"maxGrantsAge":     func(p *policy.Policy) { p.MaxGrantsAge = time.Minute },
		"policy's end":     func(p *policy.Policy) { p.Expires = noon.Add(time.Minute) },
		"maxUnattended 1m": func(p *policy.Policy) { p.MaxUnattended = time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.deliver(edit)
			w.list(w.grant("a", alice, 0, time.Hour))
			w.mustPass(0)
			w.wantOpen(alice, true)
			// With nobody alive to renew anything.
			w.wall, w.boot = w.wall.Add(time.Minute), w.boot.Add(time.Minute)
			w.wantOpen(alice, false)
		})
	}
}

// A lease is renewed while the agent lives, up to the grant's own end.
func TestLeaseIsRenewed(t *testing.T) {
	w := newWorld(t)
	w.deliver(func(p *policy.Policy) { p.MaxUnattended = time.Minute })
	w.list(w.grant("a", alice, 0, 10*time.Minute))
	opened := w.boot
	for {
		next, err := w.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if w.boot.Sub(opened) >= 10*time.Minute {
			break
		}
		w.wantOpen(alice, true)
		d := next.Sub(w.boot)
		w.wall, w.boot = w.wall.Add(d), w.boot.Add(d)
	}
	w.wantOpen(alice, false)
}

func TestExemptSources(t *testing.T) {
	w := newWorld(t)
	w.deliver(func(p *policy.Policy) {
		p.ExemptSources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
		p.Expires = noon.Add(time.Hour)
	})
	w.mustPass(0)
	w.wantOpen("192.0.2.9/32", true)
	w.wantOpen(alice, false)
	w.wall, w.boot = w.wall.Add(time.Hour), w.boot.Add(time.Hour)
	w.wantOpen("192.0.2.9/32", false) // the policy is over, agent or no agent
	w.mustPass(0)
	if got := formatPorts(w.guarded()); !slices.Equal(got, []string{"22/tcp"}) {
		t.Errorf("guarded after the policy's end: %v", got)
	}
}

// Where nothing can be written down nothing opens, and closing goes on. Once
// it can, what was waiting opens, and nothing that happened is missing.
func TestNoRecordNoOpening(t *testing.T) {
	for name, fail := range map[string]func(w *world) (mend func()){
		"record": func(w *world) func() {
			w.record.fail = errors.New("no space left on device")
			return func() { w.record.fail = nil }
		},
		"mark": func(w *world) func() {
			state := w.Settings.StateDir
			if err := os.Rename(state, state+".away"); err != nil {
				w.t.Fatal(err)
			}
			if err := os.WriteFile(state, nil, 0o600); err != nil { // a file: no directory can be made
				w.t.Fatal(err)
			}
			return func() { os.Remove(state); os.Rename(state+".away", state) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.deliver()
			w.list(w.grant("a", alice, 0, time.Hour))
			w.mustPass(0)
			w.wantOpen(alice, true)
			mend := fail(w)
			w.list(w.grant("b", bob, 0, time.Hour)) // revokes a, grants b
			for range 3 {
				if err := w.pass(time.Second); policy.CodeOf(err) != policy.NotDurable {
					t.Fatalf("got %v, want not-durable", err)
				}
				w.wantOpen(alice, false)
				w.wantOpen(bob, false)
			}
			if s := w.snapshot(t.Context()); !strings.Contains(s.Problem, "not-durable") {
				t.Errorf("status says %q", s.Problem)
			}
			mend()
			w.mustPass(time.Second)
			w.wantOpen(bob, true)
			got := w.record.take()
			for _, once := range []string{"grant.revoked a", "grant.opening b", "grant.opened b"} {
				if n := len(slices.DeleteFunc(slices.Clone(got), func(s string) bool { return s != once })); n != 1 {
					t.Errorf("%q was recorded %d times: %q", once, n, got)
				}
			}
		})
	}
}

// The kernel says no: nothing is claimed, and the next pass tries again.
func TestApplyFails(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.mustPass(0)
	w.list(w.grant("a", alice, 0, time.Hour))
	w.record.take()
	w.fake.Fail = func(firewall.Plan) error { return errors.New("ENOBUFS") }
	if err := w.pass(time.Second); err == nil {
		t.Fatal("a failed change was reported as done")
	}
	w.wantRecord("document.admitted grants", "grant.opening a")
	w.fake.Fail = nil
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
	w.wantRecord("grant.opening a", "grant.opened a")
}

func TestTamperingIsMended(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.record.take()
	w.mustPass(Resync)
	w.wantRecord() // nobody touched it
	w.fake.Tamper(true)
	w.wantOpen(bob, true)
	w.mustPass(Resync)
	w.wantOpen(bob, false)
	w.wantOpen(alice, true)
	w.wantRecord("guard.drift", "guard.repaired")
	w.mustPass(Resync)
	w.wantRecord()
	// Where the kernel tells at once, the record names who and for how long.
	w.fake.Tamper(false)
	w.suspect(firewall.Alteration{At: w.boot, Process: "nft", PID: 42})
	w.mustPass(7 * time.Millisecond)
	w.wantOpen(bob, false)
	drift, repaired := w.record.events[0], w.record.events[1]
	if drift.Process != "nft" || drift.PID != 42 || repaired.Process != "nft" || repaired.ExposedMS != 7 {
		t.Errorf("recorded %+v and %+v", drift, repaired)
	}
}

func TestRestart(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	w.record.take()
	before, err := w.fake.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(w.Settings.InboxDir); err != nil { // the state alone is enough
		t.Fatal(err)
	}
	applied := w.fake.Applied
	w.restart()
	w.mustPass(5 * time.Minute)
	after, err := w.fake.Observe(t.Context())
	if err != nil || !firewall.Diff(before, after.Ruleset).Empty() {
		t.Errorf("the restart moved an opening: %v, %v", firewall.Diff(before, after.Ruleset), err)
	}
	w.wantRecord()
	if w.fake.Applied != applied+1 {
		t.Error("the table of the agent before was not taken over")
	}
	w.mustPass(time.Hour)
	w.wantRecord("grant.expired a", "grant.used a unused")
}

// The state directory holds another document than the mark names, validly
// signed: an older list, an older policy.
func TestSavedDocumentsAreThoseOfTheMark(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	w.mustPass(0)
	older := map[Kind][]byte{}
	for _, k := range []Kind{Policy, Grants} {
		raw, err := os.ReadFile(filepath.Join(w.Settings.StateDir, k.File()))
		if err != nil {
			t.Fatal(err)
		}
		older[k] = raw
	}
	w.deliver(func(p *policy.Policy) {
		p.Version, p.Ports[0].AllowedSources = 2, []netip.Prefix{netip.MustParsePrefix(bob)}
	})
	w.list(w.grant("b", bob, 0, time.Hour))
	w.mustPass(time.Second)
	if err := os.RemoveAll(w.Settings.InboxDir); err != nil {
		t.Fatal(err)
	}
	for k, raw := range older {
		if err := os.WriteFile(filepath.Join(w.Settings.StateDir, k.File()), raw, 0o600); err != nil {
			t.Fatal(err)
		}
		w.restart()
		if v := w.docs.version(k); v != 0 {
			t.Errorf("%s version %d is in force", k, v)
		}
		w.mustPass(time.Second)
		w.wantOpen(alice, false)
	}
}

// Two grants for one door: it is open until the later end, whichever stands
// first on the list.
func TestOverlappingGrants(t *testing.T) {
	for _, shortFirst := range []bool{true, false} {
		w := newWorld(t)
		w.deliver()
		short, long := w.grant("short", alice, 0, time.Minute), w.grant("long", alice, 0, time.Hour)
		if shortFirst {
			w.list(short, long)
		} else {
			w.list(long, short)
		}
		w.mustPass(0)
		w.wall, w.boot = w.wall.Add(30*time.Minute), w.boot.Add(30*time.Minute)
		w.wantOpen(alice, true) // with nobody alive to mend it
		w.mustPass(0)
		w.wantOpen(alice, true)
		w.mustPass(time.Hour)
		w.wantOpen(alice, false)
	}
}

// A lockdown ends everything listed for good, pending grants included, also
// across a restart and with the same list delivered again.
func TestLockdown(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour), w.grant("b", bob, time.Minute, time.Hour))
	w.mustPass(0)
	if err := w.endAll(t.Context(), "uid 0"); err != nil {
		t.Fatal(err)
	}
	w.wantOpen(alice, false)
	w.restart()
	w.mustPass(2 * time.Minute)
	w.wantOpen(alice, false)
	w.wantOpen(bob, false)
	w.list(w.grant("c", alice, 0, time.Hour))
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
	if len(w.mark.Void) != 0 {
		t.Errorf("ids of no list are remembered: %v", w.mark.Void)
	}
}

// A crash between the document and the mark: the document is admitted again,
// and the record has it.
func TestCrashBeforeTheMark(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.mustPass(0)
	mark, err := os.ReadFile(filepath.Join(w.Settings.StateDir, markFile))
	if err != nil {
		t.Fatal(err)
	}
	w.list(w.grant("a", alice, 0, time.Hour))
	w.record.fail = errors.New("the machine goes down")
	if err := w.pass(time.Second); err == nil {
		t.Fatal("recorded")
	}
	if err := os.WriteFile(filepath.Join(w.Settings.StateDir, markFile), mark, 0o600); err != nil {
		t.Fatal(err)
	}
	w.record.fail = nil
	w.record.take()
	w.restart()
	w.mustPass(time.Second)
	w.wantOpen(alice, true)
	w.wantRecord("document.admitted grants", "grant.opening a", "grant.opened a")
}

// What is lost or broken on the disk closes, and never unguards a port.
func TestBrokenState(t *testing.T) {
	policyPorts := func(p *policy.Policy) { p.Ports[0].Number, p.Ports[0].EndNumber = 2222, 2222 }
	for name, c := range map[string]struct {
		damage  func(w *world)
		guarded []string
	}{
		"policy lost": {func(w *world) { os.Remove(filepath.Join(w.Settings.StateDir, "policy.json")) }, []string{"2222/tcp"}},
		"policy changed": {func(w *world) {
			os.WriteFile(filepath.Join(w.Settings.StateDir, "policy.json"), w.trust.Encode(), 0o600)
		}, []string{"2222/tcp"}},
		"trust lost":  {func(w *world) { os.Remove(filepath.Join(w.Settings.StateDir, "trust.json")) }, []string{"2222/tcp"}},
		"mark broken": {func(w *world) { os.WriteFile(filepath.Join(w.Settings.StateDir, markFile), []byte("{"), 0o600) }, []string{"22/tcp", "2222/tcp", "22/udp"}},
		"other realm": {func(w *world) { w.Settings.TrustPin = policy.Digest{1} }, []string{"2222/tcp"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.deliver(policyPorts)
			g := w.grant("a", alice, 0, time.Hour)
			g.Number = 2222
			w.list(g)
			w.mustPass(0)
			door := fwtest.Door(t, alice, "2222/tcp")
			if !w.fake.Admits(door) {
				t.Fatal("the grant opened nothing")
			}
			if err := os.RemoveAll(w.Settings.InboxDir); err != nil {
				t.Fatal(err)
			}
			c.damage(w)
			w.restart()
			w.pass(time.Second)
			if w.fake.Admits(door) {
				t.Error("the port is open")
			}
			if got := formatPorts(w.guarded()); !slices.Equal(got, c.guarded) {
				t.Errorf("guarded: %v, want %v", got, c.guarded)
			}
		})
	}
}

// The same id with another source or port is another grant: recorded before
// it opens, and not slipped in while the clock is behind.
func TestSameIDAnotherGrant(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	g := w.grant("a", alice, 0, time.Hour)
	w.list(g)
	w.mustPass(0)
	w.record.take()
	g.Sources = []netip.Prefix{netip.MustParsePrefix(bob)}
	w.list(g)
	w.mustPass(time.Second)
	w.wantOpen(alice, false)
	w.wantOpen(bob, true)
	w.wantRecord("document.admitted grants", "grant.opening a", "grant.opened a", "grant.revoked a", "grant.used a unused")
	g.End = g.End.Add(time.Hour)
	w.list(g)
	w.mustPass(time.Second)
	w.wantRecord("document.admitted grants", "grant.opening a", "grant.opened a")
}

// A wall clock set back before a reboot lengthens nothing: how far the boot
// clock had come is on the disk. After a crash that errs towards closing.
func TestClockSetBackBeforeReboot(t *testing.T) {
	for _, orderly := range []bool{true, false} {
		w := newWorld(t)
		w.deliver()
		w.list(w.grant("a", alice, 0, time.Hour))
		w.mustPass(0)
		for range 100 {
			w.mustPass(Resync)
		}
		w.wantOpen(alice, true) // for 50 minutes, and then for a while with no pass
		const unsaved = 29 * time.Second
		w.boot, w.wall = w.boot.Add(unsaved), w.wall.Add(unsaved-50*time.Minute)
		if orderly {
			w.keepUntil(w.boot, true)
		}
		w.anotherBoot()
		opened := w.boot
		w.mustPass(0)
		w.wantOpen(alice, true)
		for w.boot.Sub(opened) < time.Hour && w.open(alice) {
			w.mustPass(time.Second)
		}
		// The new boot is 20 seconds old.
		left, was := w.boot.Sub(opened)+20*time.Second, 10*time.Minute-unsaved
		if left > was+time.Second || orderly && left < was-time.Second || left < was-crashLoss-time.Second {
			t.Errorf("orderly %t: open for %v more, %v were left", orderly, left, was)
		}
	}
}

// nextTrust signs the next trust document, which raises the epoch of a role and
// leaves its key.
func (w *world) nextTrust(role policy.Role) []byte {
	w.t.Helper()
	v, err := policy.OpenPinnedTrust(w.trust.Encode(), w.trust.Digest())
	if err != nil {
		w.t.Fatal(err)
	}
	doc := v.Document().Next(w.wall, 12*time.Hour)
	if err := doc.Restart(role); err != nil {
		w.t.Fatal(err)
	}
	return w.sign(policy.TypeTrust, policy.RoleRoot, doc.Encode())
}

// A list or a policy of an older epoch is over as soon as the trust document
// says so, and does not come back with a restart.
func TestOlderEpochAfterRestart(t *testing.T) {
	for _, role := range []policy.Role{policy.RoleGrant, policy.RolePolicy} {
		t.Run(string(role), func(t *testing.T) {
			w := newWorld(t)
			w.deliver()
			w.list(w.grant("a", alice, 0, time.Hour))
			w.mustPass(0)
			w.wantOpen(alice, true)
			w.put(Trust, w.nextTrust(role))
			for range 2 {
				w.pass(time.Second) // what is in the inbox is refused
				w.wantOpen(alice, false)
				w.restart()
			}
		})
	}
}

// What changed while no agent lived is recorded before it is carried out:
// also a later end, and a second grant for a door that is open.
func TestGrantsNewAfterRestart(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	a := w.grant("a", alice, 0, time.Hour)
	w.list(a)
	w.mustPass(0)
	w.record.take()
	a.End = a.End.Add(time.Hour)
	w.list(a, w.grant("b", alice, 0, time.Minute))
	w.restart()
	w.mustPass(time.Second)
	w.wantRecord("document.admitted grants", "grant.opening a", "grant.opening b", "grant.opened a", "grant.opened b")
	w.restart()
	w.mustPass(2 * time.Minute)
	w.wantRecord("grant.used b unused")
}

// The kernel opens and says that it did not, or the agent dies right then; a
// clock set back before the next pass moves no end.
func TestClockSetBackAfterLostAnswer(t *testing.T) {
	for _, dies := range []bool{false, true} {
		w := newWorld(t)
		w.deliver()
		w.mustPass(0)
		w.list(w.grant("a", alice, -time.Minute, 2*time.Minute))
		w.fake.After = func(firewall.Plan) error { return errors.New("ENOBUFS") }
		if err := w.pass(0); err == nil {
			t.Fatal("the answer arrived")
		}
		w.fake.After = nil
		w.wall = w.wall.Add(-time.Minute)
		if dies {
			w.restart()
		}
		w.mustPass(time.Second)
		w.wantOpen(alice, true)
		w.mustPass(time.Minute)
		w.wantOpen(alice, false)
	}
}

// A crash between a trust document and its mark: the next agent still has the
// document before, which says who may follow.
func TestCrashBetweenTrustAndMark(t *testing.T) {
	w := newWorld(t)
	w.deliver()
	w.mustPass(0)
	block := filepath.Join(w.Settings.StateDir, "."+markFile+".new")
	if err := os.MkdirAll(filepath.Join(block, "taken"), 0o700); err != nil {
		t.Fatal(err)
	}
	w.put(Trust, w.nextTrust(policy.RoleGrant))
	for range 2 { // what is tried again does not replace the former by the new one
		if err := w.pass(time.Second); policy.CodeOf(err) != policy.NotDurable {
			t.Fatalf("got %v, want not-durable", err)
		}
	}
	if err := os.RemoveAll(block); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.mustPass(time.Second)
	if w.docs.trust.Version != 2 || w.mark.Trust.Version != 2 || w.docs.policy.Version != 1 {
		t.Errorf("in force: trust %d (mark %d), policy %d", w.docs.trust.Version, w.mark.Trust.Version, w.docs.policy.Version)
	}
}
