package agent

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/policy"
)

var seed = flag.Uint64("seed", 0, "seed of the random schedules; 0 draws one")

// operation is one thing that happens to an agent. Its text, one line, can be
// pasted into TestSchedulesThatFailed.
type operation struct {
	do     string
	what   string // a grant's number, a document, a fault, …
	source string
	port   uint16
	from   time.Duration // of a grant, from now
	length time.Duration // of a grant, a wait, a trial, …
}

func (o operation) String() string {
	s := o.do
	if o.what != "" {
		s += " " + o.what
	}
	if o.source != "" {
		s += " source=" + o.source
	}
	if o.port != 0 {
		s += fmt.Sprintf(" port=%d", o.port)
	}
	if o.from != 0 {
		s += " from=" + o.from.String()
	}
	if o.length != 0 {
		s += " for=" + o.length.String()
	}
	return s
}

func parseSchedule(t *testing.T, text string) []operation {
	t.Helper()
	var out []operation
	for line := range strings.Lines(text) {
		var o operation
		for i, word := range strings.Fields(line) {
			name, value, _ := strings.Cut(word, "=")
			var err error
			switch {
			case i == 0:
				o.do = word
			case name == "source":
				o.source = value
			case name == "port":
				var n uint64
				n, err = strconv.ParseUint(value, 10, 16)
				o.port = uint16(n)
			case name == "from":
				o.from, err = time.ParseDuration(value)
			case name == "for":
				o.length, err = time.ParseDuration(value)
			default:
				o.what = word
			}
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		if o.do != "" {
			out = append(out, o)
		}
	}
	return out
}

func scheduleText(list []operation) string {
	var b strings.Builder
	for _, o := range list {
		b.WriteString("\t" + o.String() + "\n")
	}
	return b.String()
}

// office signs for a realm. All schedules share one: keys cost more than a
// schedule.
type office struct {
	root, policy crypto.Signer
	grant        []crypto.Signer
	trust        []*paper // by version, from 1
	pin          policy.Digest
}

func newOffice(t testing.TB) *office {
	signer := func() (crypto.Signer, policy.Key) {
		_, key, err := ed25519.GenerateKey(nil)
		if err != nil {
			t.Fatal(err)
		}
		k, err := policy.NewKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		return key, k
	}
	f := &office{}
	var root, pol policy.Key
	f.root, root = signer()
	f.policy, pol = signer()
	var keys []policy.Key
	for range 2 {
		s, k := signer()
		f.grant, keys = append(f.grant, s), append(keys, k)
	}
	// The second only raises the epoch; the third takes the grant key away.
	for i, key := range []int{0, 0, 1, 1, 0, 1} {
		version := uint64(i + 1)
		doc := policy.Trust{Header: policy.Header{Realm: "acme", Version: version, Issued: noon, Expires: noon.AddDate(1, 0, 0)},
			Keys: []policy.Key{root, pol, keys[key]}, Roles: []policy.RoleKeys{
				{Name: policy.RoleRoot, Keys: []policy.KeyID{root.ID}, Threshold: 1},
				{Name: policy.RolePolicy, Keys: []policy.KeyID{pol.ID}, Threshold: 1},
				{Name: policy.RoleGrant, Keys: []policy.KeyID{keys[key].ID}, Threshold: 1, Epoch: version}}}
		e := policy.Envelope{Type: policy.TypeTrust, Payload: doc.Encode()}
		if err := e.Sign(f.root); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			f.pin = e.Digest()
		}
		f.trust = append(f.trust, &paper{kind: Trust, version: version, epoch: version, key: key, issued: noon, expires: doc.Expires, raw: e.Encode()})
	}
	return f
}

// ledger is the record: it may be full, and it holds what is recorded against
// what was recorded before.
type ledger struct {
	full      bool
	failed    bool // in the pass under way
	dies      bool // the process does, as it is about to record an intent
	intents   map[string]int
	announced map[string]bool // grant, port and source
	wrong     string
}

func newLedger() *ledger { return &ledger{intents: map[string]int{}, announced: map[string]bool{}} }

// death is a process that ends in the middle of a pass.
type death struct{}

func (l *ledger) Record(_ context.Context, events ...audit.Event) error {
	if last := events[len(events)-1]; l.dies && last.Name == audit.GrantOpening {
		l.dies = false
		panic(death{})
	}
	if l.full {
		l.failed = true
		return errors.New("no space left on device")
	}
	for _, e := range events {
		key := fmt.Sprint(e.GrantID, " ", e.Port, " ", e.Source, " ", e.End.Unix())
		switch e.Name {
		case audit.GrantOpening:
			l.intents[key]++
			for s := range strings.SplitSeq(e.Source, ",") {
				l.announced[fmt.Sprint(e.GrantID, " ", e.Port, " ", s)] = true
			}
		case audit.GrantOpened:
			if l.intents[key]--; l.intents[key] < 0 {
				l.wrong = "recorded as opened, and its intent was not: " + key
			}
		}
	}
	return nil
}

// look holds a plan that is about to be carried out against the record.
func (l *ledger) look(p firewall.Plan) {
	for _, c := range p.Open {
		switch shorter := c.Was != 0 && c.Until < c.Was; {
		case shorter, l.wrong != "", c.Protocol == 0, c.Label == "arming":
		case l.failed:
			l.wrong = fmt.Sprintf("opens %s though the record is full", c.Door)
		case !l.announced[fmt.Sprint(c.Label, " ", c.Port, " ", c.Source)]:
			l.wrong = fmt.Sprintf("opens %s for %s, and no intent was recorded", c.Door, c.Label)
		}
	}
}

// play is one schedule under way: an agent on a fake kernel, the world around
// it, and the oracle that watches.
type play struct {
	*Agent
	office   *office
	backend  firewall.Backend
	protocol policy.Protocol // of the guarded ports
	ports    []uint16
	machine  machine // behind the backend, where no real kernel is
	ledger   *ledger
	oracle   *oracle
	past     history

	lived time.Duration // since noon, on a clock nobody sets
	off   time.Duration // how far the wall clock is from that
	boot  firewall.BootTime
	boots int

	board int  // the machine it is on
	named bool // lists name the installation

	wanted   []policy.Grant   // what the signer would have open
	versions [2][kinds]uint64 // as web1 and as web2
	sent     [kinds][]*paper
	trust    int // documents delivered

	faults   []string // of the kernel, one a pass
	fate     fate
	tampered firewall.BootTime // when, if it may be that nobody has looked since
}

// machine is a platform in memory, with what a stranger and the world do to it.
type machine interface {
	firewall.Backend
	// Admits reports whether a packet passes the guard.
	Admits(firewall.Door) bool
	// Whole reports whether a guard stands that nobody broke.
	Whole() bool
	// Tamper flushes the rules, and with all set the openings too.
	Tamper(all bool)
	// Insert adds an opening.
	Insert(firewall.Door, firewall.End)
	// Sleep is a machine that slept for d. It reports whether what ends by itself
	// ends that much later.
	Sleep(d time.Duration) (late bool)
	// Reboot is a machine that crashes and starts again.
	Reboot()
	// Dies is the end of the process that guards. It reports whether a trial's
	// drop ends with it.
	Dies() (trialEnds bool)
}

// kernel is a machine whose kernel keeps what the process left.
type kernel struct{ *fwtest.Fake }

func newKernel(now func() firewall.BootTime) machine { return kernel{&fwtest.Fake{Now: now}} }

func (k kernel) Sleep(d time.Duration) bool { k.Fake.Sleep(d); return true }

func (k kernel) Reboot() { _ = k.Remove(context.Background()) } // it cannot fail

func (k kernel) Dies() bool { return false }

// lossy is a platform whose answers get lost, and that refuses, when told to.
type lossy struct {
	firewall.Backend
	play *play
}

func (b lossy) Apply(ctx context.Context, plan firewall.Plan) error {
	b.play.ledger.look(plan)
	for _, name := range []string{"refuses", "exists"} {
		if err := b.play.fault(name, &b.play.fate.unchanged); err != nil {
			return err
		}
	}
	if b.play.fault("dies-before", &b.play.fate.unchanged) != nil {
		panic(death{})
	}
	if err := b.Backend.Apply(ctx, plan); err != nil {
		return err
	}
	if err := b.play.fault("unanswered", &b.play.fate.unsure); err != nil {
		return err
	}
	if err := b.play.fault("conflict", &b.play.fate.unsure); err != nil {
		b.play.tamper(false)
		return firewall.ErrConflict
	}
	if b.play.fault("dies-after", &b.play.fate.unsure) != nil {
		panic(death{})
	}
	return nil
}

func (b lossy) Observe(ctx context.Context) (firewall.Observed, error) {
	if err := b.play.fault("blind", &b.play.fate.blind); err != nil {
		return firewall.Observed{}, err
	}
	return b.Backend.Observe(ctx)
}

func newPlay(f *office, dir string, on func(now func() firewall.BootTime) machine) (*play, error) {
	p := &play{office: f, ledger: newLedger(), oracle: newOracle(), boot: firewall.BootTime(time.Hour),
		protocol: policy.TCP, ports: []uint16{22, 2222}}
	p.machine = on(func() firewall.BootTime { return p.boot })
	p.backend = lossy{p.machine, p}
	if err := p.settle(dir); err != nil {
		return nil, err
	}
	return p, p.step()
}

// settle gives the first agent its directories and documents.
func (p *play) settle(dir string) error {
	inbox, state := filepath.Join(dir, "inbox"), filepath.Join(dir, "state")
	if err := errors.Join(os.MkdirAll(inbox, 0o755), os.MkdirAll(state, 0o700)); err != nil {
		return err
	}
	p.Agent = &Agent{Settings: Settings{HostID: vm, Mode: Enforce, Guard: settingsPorts, InboxDir: inbox, StateDir: state, TrustPin: p.office.pin}}
	p.begin()
	return errors.Join(p.deliverTrust(), p.deliverPolicy(0), p.deliverList())
}

// otherVM is what the host is called after it was renamed.
const otherVM = "/subscriptions/s/virtualMachines/web2"

// fault has the first fault that waits happen, if it is of that name.
func (p *play) fault(name string, happened *bool) error {
	if len(p.faults) == 0 || p.faults[0] != name {
		return nil
	}
	p.faults, *happened = p.faults[1:], true
	return errors.New("the kernel: " + name)
}

func (p *play) now() instant {
	return instant{noon.Add(p.lived + p.off), p.boot, fmt.Sprint("boot ", p.boots)}
}

// dies is the end of the process, with all that hangs on it.
func (p *play) dies() {
	if p.machine == nil || !p.machine.Dies() || p.oracle.kernel.trial == 0 {
		return
	}
	p.oracle.kernel.trial, p.oracle.kernel.observe = 0, true
}

// begin puts a new agent in place of the one that died.
func (p *play) begin() {
	p.dies()
	p.Agent = &Agent{Settings: p.Settings, Backend: p.backend, Audit: p.ledger, Log: hclog.NewNullLogger(), Machine: Machine{MachineID: fmt.Sprint("board ", p.board)},
		Clock: Clock{Wall: func() time.Time { return p.now().wall }, Boot: func() firewall.BootTime { return p.boot }, BootID: p.now().name}}
	p.inbox.patience = withoutHurry
	p.Load()
	p.oracle.start(p.now(), p.Settings.HostID, p.board)
}

// during runs a call to the agent, and reports whether the process lived.
func (p *play) during(f func()) (lived bool) {
	defer func() {
		switch r := recover(); r {
		case nil:
			lived = true
		case death{}:
		default:
			panic(r)
		}
	}()
	f()
	return
}

// step is one pass, of the agent and of the oracle.
func (p *play) step() error {
	return p.passOf(func() error { _, err := p.Step(context.Background()); return err })
}

func (p *play) passOf(call func() error) error {
	p.fate, p.ledger.failed = fate{}, false
	due := p.tampered != 0 && p.boot.Sub(p.tampered) >= Resync
	var err error
	dies := p.ledger.dies
	lived := p.during(func() { err = call() })
	p.fate.cutShort = dies && !p.ledger.dies
	v := p.oracle.pass(p.now(), p.fate)
	clean := p.fate == fate{} && !p.ledger.failed && !p.oracle.broken
	if p.machine.Whole() {
		p.oracle.kernel.broken = false
	}
	if clean {
		p.oracle.kernel.lag, p.past.late = 0, 0
	}
	switch mode, _ := p.oracle.mode.now(p.boot); {
	case p.ledger.wrong != "":
		return errors.New(p.ledger.wrong)
	case !lived:
		p.begin()
	case clean && err != nil:
		return fmt.Errorf("the agent fails though nothing stands in its way: %w", err)
	case clean && due && mode != Off && !p.machine.Whole():
		return errors.New("the guard was not mended")
	case clean && due:
		p.oracle.kernel.strangers, p.tampered = nil, 0
	}
	if mode := p.oracle.mode.mode; lived && p.fate == (fate{}) && !p.oracle.mode.trial && (mode == Observe || mode == Off) {
		// A command that stops the dropping waits for no disk.
		if !p.machine.Admits(stranger) {
			return fmt.Errorf("mode %s, and %s does not pass", mode, stranger)
		}
	}
	if clean && lived && p.tampered == 0 {
		if err := p.demand(v.must); err != nil {
			return err
		}
	}
	return p.check()
}

var modelAddresses = func() (out []netip.Prefix) {
	for _, a := range []string{"10.0.0.1/32", "10.0.0.2/32", "10.0.0.3/32", "10.0.0.9/32", "192.0.2.1/32"} {
		out = append(out, netip.MustParsePrefix(a))
	}
	return out
}()

// stranger is a packet that no grant and no exemption ever covers.
var stranger = firewall.Door{Source: netip.MustParsePrefix("203.0.113.1/32"), Protocol: firewall.TCP, Port: 22}

// check sends a packet from everywhere to everything.
func (p *play) check() error {
	now := p.now()
	if trial := p.oracle.kernel.trial; trial != 0 && p.boot >= trial.Add(tolerance) && !p.machine.Admits(stranger) {
		return errors.New("the trial is over, and the guard drops")
	}
	for _, source := range modelAddresses {
		for _, port := range p.ports {
			packet := firewall.Door{Source: source, Protocol: firewall.TCP, Port: port}
			if !p.machine.Admits(packet) || !p.oracle.kernel.judges(packet, now) {
				continue
			}
			if !p.oracle.kernel.admits(packet, now) {
				return fmt.Errorf("%s passes, and only these may: %s", packet, doorsText(p.oracle.kernel.openings, now.boot))
			}
			if !p.past.covers(packet, noon.Add(p.lived)) {
				return fmt.Errorf("%s passes, and no grant ever signed says so", packet)
			}
		}
	}
	return nil
}

// demand wants doors open.
func (p *play) demand(doors map[firewall.Door]bool) error {
	for d, must := range doors {
		if !must {
			continue
		}
		packet := d
		packet.Source = netip.PrefixFrom(d.Source.Addr(), d.Source.Addr().BitLen())
		if d.Protocol == 0 {
			packet.Protocol, packet.Port = firewall.TCP, 22
		}
		if !p.machine.Admits(packet) {
			return fmt.Errorf("%s is granted, and does not pass", packet)
		}
	}
	return nil
}

// pass moves every clock, with nobody acting.
func (p *play) pass(d time.Duration) error {
	p.lived, p.boot = p.lived+d, p.boot.Add(d)
	return p.check()
}

// wait lets an agent live for d: it wakes when it wants to, three times at
// the most, as where the machine is busy, and at the end.
func (p *play) wait(d time.Duration) error {
	end := p.boot.Add(d)
	for range 3 {
		if p.next <= p.boot || p.next >= end {
			break
		}
		if err := cmp.Or(p.pass(p.next.Sub(p.boot)), p.step()); err != nil {
			return err
		}
	}
	if err := p.pass(max(0, end.Sub(p.boot))); err != nil {
		return err
	}
	return p.step()
}

func (p *play) tamper(all bool) {
	if !p.machine.Whole() {
		return
	}
	p.machine.Tamper(all)
	p.oracle.kernel.broken, p.tampered = true, p.boot
}

func (p *play) put(f *paper) error {
	p.oracle.inbox[f.kind] = f
	p.sent[f.kind] = append(p.sent[f.kind], f)
	return os.WriteFile(filepath.Join(p.Settings.InboxDir, f.kind.File()), f.raw, 0o644)
}

func (p *play) sign(f *paper, typ policy.Type, payload []byte, by crypto.Signer) error {
	e := policy.Envelope{Type: typ, Payload: payload}
	err := e.Sign(by)
	f.raw = e.Encode()
	return errors.Join(err, p.put(f))
}

func (p *play) header(k Kind) policy.Header {
	versions := &p.versions[0]
	if p.Settings.HostID == otherVM {
		versions = &p.versions[1]
	}
	versions[k]++
	at := noon.Add(p.lived).Truncate(time.Second)
	return policy.Header{Realm: "acme", Version: versions[k], Issued: at, Expires: at.Add(12 * time.Hour)}
}

func (p *play) deliverTrust() error {
	if p.trust == len(p.office.trust) {
		return nil
	}
	p.trust++
	return p.put(p.office.trust[p.trust-1])
}

// modelPolicies are what the policy of a schedule may change to.
var modelPolicies = map[string]func(*policy.Policy){
	"usual": func(*policy.Policy) {},
	"narrow": func(p *policy.Policy) {
		p.Ports[0].AllowedSources = []netip.Prefix{netip.MustParsePrefix("10.0.0.2/32")}
	},
	"leases":      func(p *policy.Policy) { p.MaxUnattended = time.Minute },
	"exempt":      func(p *policy.Policy) { p.ExemptSources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
	"young-lists": func(p *policy.Policy) { p.MaxGrantsAge = 10 * time.Minute },
	"short":       func(p *policy.Policy) { p.Ports[0].MaxRequestAccessDuration = 30 * time.Minute },
	"one-port":    func(p *policy.Policy) { p.Ports = p.Ports[:1] },
	"hosts-only":  func(p *policy.Policy) { p.NarrowestPrefix4 = 32 },
	"ends-soon":   func(p *policy.Policy) { p.Expires = p.Issued.Add(5 * time.Minute) },
}

var policyNames = []string{"usual", "narrow", "leases", "exempt", "young-lists", "short", "one-port", "hosts-only", "ends-soon"}

func (p *play) deliverPolicy(n int) error {
	doc := policy.Policy{Header: p.header(Policy), Host: policy.Host{ID: p.Settings.HostID}, MaxGrantsAge: 6 * time.Hour}
	for _, port := range p.ports {
		doc.Ports = append(doc.Ports, policy.Port{Number: port, EndNumber: port, Protocol: p.protocol, SessionsAtEnd: policy.Keep,
			MaxRequestAccessDuration: 3 * time.Hour, AllowedSources: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	}
	modelPolicies[policyNames[n]](&doc)
	p.past.exempt = append(p.past.exempt, doc.ExemptSources...)
	return p.sign(&paper{kind: Policy, host: doc.Host.ID, version: doc.Version, issued: doc.Issued, expires: doc.Expires, policy: doc}, policy.TypePolicy, doc.Encode(), p.office.policy)
}

func (p *play) deliverList() error { return p.signList(p.wanted, false) }

// signList signs a list under the trust document delivered last.
func (p *play) signList(grants []policy.Grant, forged bool) error {
	trust := p.office.trust[p.trust-1]
	doc := policy.Grants{Header: p.header(Grants), Epoch: trust.epoch, Host: policy.Host{ID: p.Settings.HostID}, Grants: grants}
	installed := 0
	if p.named {
		// As its status says; empty before it is on the disk.
		if doc.Host.Install = p.install.id(); doc.Host.Install != "" {
			installed = p.oracle.install
		}
	}
	by := p.office.grant[trust.key]
	if forged {
		by = p.office.policy
	} else {
		p.past.grants = append(p.past.grants, grants...)
	}
	return p.sign(&paper{kind: Grants, host: doc.Host.ID, install: installed, version: doc.Version, epoch: trust.epoch, key: trust.key, forged: forged, issued: doc.Issued, expires: doc.Expires,
		grants: slices.Clone(grants)}, policy.TypeGrants, doc.Encode(), by)
}

// fill has the disk refuse to write some files, or none: their temporary
// names are taken by directories.
func (p *play) fill(full disks) error {
	p.oracle.full = full
	var err error
	block := func(yes bool, names ...string) {
		for _, n := range names {
			n = filepath.Join(p.Settings.StateDir, "."+n+".new")
			if os.RemoveAll(n); yes {
				err = errors.Join(err, os.MkdirAll(filepath.Join(n, "taken"), 0o700))
			}
		}
	}
	block(full.papers, Trust.File(), Policy.File(), Grants.File())
	block(full.mark, markFile)
	block(full.others, horizonFile, modeFile, installFile)
	return err
}

func (p *play) index(id string) int {
	return slices.IndexFunc(p.wanted, func(g policy.Grant) bool { return g.ID == id })
}

// change delivers the list of grants anew after f, where the grant exists.
func (p *play) change(id string, f func(i int)) error {
	i := p.index(id)
	if i < 0 {
		return nil
	}
	f(i)
	return cmp.Or(p.deliverList(), p.step())
}

// do carries out one operation, and the passes it leads to.
func (p *play) do(o operation) error {
	switch o.do {
	case "grant":
		if p.index(o.what) >= 0 {
			return nil
		}
		start := noon.Add(p.lived + o.from).Truncate(time.Second)
		p.wanted = append(p.wanted, policy.Grant{ID: o.what, Number: o.port, Sources: []netip.Prefix{netip.MustParsePrefix(o.source)},
			Start: start, End: start.Add(o.length), Requestor: "alice"})
		return cmp.Or(p.deliverList(), p.step())
	case "extend": // or cut short, down to a second
		return p.change(o.what, func(i int) {
			g := &p.wanted[i]
			if g.End = g.End.Add(o.length); !g.End.After(g.Start) {
				g.End = g.Start.Add(time.Second)
			}
		})
	case "move":
		return p.change(o.what, func(i int) { p.wanted[i].Sources = []netip.Prefix{netip.MustParsePrefix(o.source)} })
	case "revoke":
		return p.change(o.what, func(i int) { p.wanted = slices.Delete(p.wanted, i, i+1) })
	case "forge":
		g := policy.Grant{ID: "forged", Number: 22, Sources: []netip.Prefix{netip.MustParsePrefix(o.source)}, Start: noon, End: noon.Add(3 * time.Hour), Requestor: "mallory"}
		return cmp.Or(p.signList([]policy.Grant{g}, true), p.step())
	case "replay": // an older document
		for k := range kinds {
			if list := p.sent[k]; k.String() == o.what && len(list) > 1 {
				return cmp.Or(p.put(list[len(list)-2]), p.step())
			}
		}
		return p.step()
	case "policy":
		return cmp.Or(p.deliverPolicy(slices.Index(policyNames, o.what)), p.step())
	case "trust":
		return cmp.Or(p.deliverTrust(), p.step())
	case "list":
		return cmp.Or(p.deliverList(), p.step())
	case "wait":
		return p.wait(o.length)
	case "dead": // kill -9, and a new agent only later
		p.dies()
		if err := p.pass(o.length); err != nil {
			return err
		}
		p.begin()
		return p.step()
	case "kill":
		p.begin()
		return p.step()
	case "cloned": // its disk is in another machine
		p.board++
		p.begin()
		return p.step()
	case "named": // lists name the installation, or do so no longer
		p.named = !p.named
		return cmp.Or(p.deliverList(), p.step())
	case "renamed": // and the signer hears of it
		if p.Settings.HostID = vm; p.oracle.mind.host == vm {
			p.Settings.HostID = otherVM
		}
		p.begin()
		return cmp.Or(p.step(), p.deliverPolicy(0), p.deliverList(), p.step())
	case "lose": // a file of the state directory
		for k := range kinds {
			if k.String() == o.what {
				os.Remove(filepath.Join(p.Settings.StateDir, k.File()))
				p.oracle.disk.papers[k] = nil
			}
		}
		p.begin()
		return p.step()
	case "kernel": // what it does to the next passes
		p.faults = append(p.faults, o.what)
		return nil
	case "dies": // as it is about to record an intent
		p.ledger.dies = true
		return nil
	case "flush":
		p.tamper(o.what == "all")
		return p.wait(cmp.Or(o.length, Resync))
	case "insert":
		d := firewall.Door{Source: netip.MustParsePrefix(o.source), Protocol: firewall.TCP, Port: 22}
		p.machine.Insert(d, firewall.End{Until: firewall.Never})
		if p.oracle.kernel.strangers == nil {
			p.oracle.kernel.strangers = map[firewall.Door]bool{}
		}
		p.oracle.kernel.strangers[d] = true
		p.tampered = p.boot
		return p.wait(cmp.Or(o.length, Resync))
	case "full":
		p.ledger.full = o.what == "record" || o.what == "all"
		p.oracle.silent = p.ledger.full
		if o.what == "record" {
			return nil
		}
		return p.fill(disks{papers: o.what == "all" || o.what == "state", mark: true, others: o.what == "all" || o.what == "state"})
	case "space":
		p.ledger.full, p.oracle.silent = false, false
		return p.fill(disks{})
	case "clock":
		p.off = o.length
		p.past.ahead, p.past.behind = max(p.past.ahead, p.off), max(p.past.behind, -p.off)
		if o.what == "dead" {
			p.begin()
		}
		p.doubt()
		return p.step()
	case "sleep":
		if p.machine.Sleep(o.length) {
			p.oracle.kernel.lag += o.length
			if p.oracle.kernel.trial != 0 {
				p.oracle.kernel.trial = p.oracle.kernel.trial.Add(o.length)
			}
			p.past.late += o.length
		}
		p.lived, p.boot = p.lived+o.length, p.boot.Add(o.length)
		p.doubt()
		return p.step()
	case "restore": // a snapshot: only the wall clock finds out
		p.lived += o.length
		p.past.late += o.length
		p.doubt()
		return p.step()
	case "reboot":
		p.machine.Reboot()
		p.oracle.reboot(p.boot)
		p.boots++
		p.lived, p.boot, p.tampered = p.lived+o.length, firewall.BootTime(20*time.Second), 0
		p.begin()
		return p.step()
	case "lockdown":
		return p.passOf(func() error {
			p.oracle.lockdown()
			return p.endAll(context.Background(), "uid 0")
		})
	case "arm":
		return p.arms(o.length)
	case "confirm":
		return p.confirms()
	case "disarm":
		return p.disarms(Mode(o.what))
	}
	return fmt.Errorf("%s: no such operation", o.do)
}

func (p *play) arms(within time.Duration) error {
	ctx := context.Background()
	if mode, trial := p.oracle.mode.now(p.boot); mode == Enforce && trial == 0 || p.oracle.broken || p.ledger.full || p.oracle.full.others {
		_, err := p.arm(ctx, "uid 0", within, []Session{armedBy}) // changes nothing
		if trial == 0 && mode == Enforce && err != nil {
			return err
		}
		return p.check()
	}
	next := trialling{mode: p.oracle.mode.mode, trial: true, until: p.boot.Add(within), boot: p.now().name,
		peers: []firewall.Door{{Source: netip.MustParsePrefix(peer9), Protocol: firewall.TCP, Port: 22}}}
	p.past.exempt = append(p.past.exempt, netip.MustParsePrefix(peer9))
	p.oracle.stand(next)
	p.oracle.mode = next
	return p.passOf(func() error { _, err := p.arm(ctx, "uid 0", within, []Session{armedBy}); return err })
}

func (p *play) confirms() error {
	ctx := context.Background()
	if _, trial := p.oracle.mode.now(p.boot); trial == 0 || p.ledger.full || p.oracle.full.others {
		_ = p.confirm(ctx, "uid 0") // changes nothing
		return p.check()
	}
	next := p.oracle.mode
	next.mode, next.trial = Enforce, false
	p.oracle.stand(next)
	p.oracle.mode = next
	return p.passOf(func() error { return p.confirm(ctx, "uid 0") })
}

func (p *play) disarms(mode Mode) error {
	if m, trial := p.oracle.mode.now(p.boot); m != mode || trial != 0 {
		p.oracle.mode = trialling{mode: mode}
		p.oracle.stand(p.oracle.mode)
	}
	return p.passOf(func() error {
		err := p.disarm(context.Background(), "uid 0", mode)
		if p.oracle.full.others {
			err = nil // done, and the error says that a restart forgets it
		}
		return err
	})
}

// quiet is the end of every schedule: all is well again, and what is granted
// then opens, for as long as it is granted.
func (p *play) quiet() error {
	p.faults, p.ledger.full, p.ledger.dies, p.oracle.silent, p.off = nil, false, false, false, 0
	if err := p.fill(disks{}); err != nil {
		return err
	}
	// New documents get new ends: an end the wall clock once passed stays so.
	if err := p.pass(time.Minute); err != nil {
		return err
	}
	start := noon.Add(p.lived).Truncate(time.Second)
	door := firewall.Door{Source: netip.MustParsePrefix("10.0.0.3/32"), Protocol: firewall.TCP, Port: 22}
	p.wanted = append(p.wanted, policy.Grant{ID: "last", Number: 22, Sources: []netip.Prefix{door.Source}, Start: start, End: start.Add(time.Minute), Requestor: "alice"})
	for _, f := range p.office.trust[:p.trust] { // they are taken one by one
		if err := cmp.Or(p.put(f), p.step()); err != nil {
			return err
		}
	}
	if err := cmp.Or(p.deliverPolicy(0), p.deliverList()); err != nil {
		return err
	}
	if err := cmp.Or(p.pass(Resync), p.step()); err != nil {
		return err
	}
	if mode, trial := p.oracle.mode.now(p.boot); mode != Enforce || trial != 0 {
		if err := cmp.Or(p.arms(time.Minute), p.confirms()); err != nil {
			return err
		}
	}
	if !p.machine.Admits(door) {
		return fmt.Errorf("all is well again, and %s does not pass", door)
	}
	if !p.machine.Whole() {
		return errors.New("all is well again, and the guard is not whole")
	}
	p.begin()
	if err := cmp.Or(p.step(), p.pass(time.Minute)); err != nil {
		return err
	}
	return p.step()
}

// playOut runs a schedule in an empty directory. An error names the operation
// that was under way.
func playOut(f *office, dir string, on func(func() firewall.BootTime) machine, list []operation) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	p, err := newPlay(f, dir, on)
	if err != nil {
		return err
	}
	for i, o := range list {
		if err := p.do(o); err != nil {
			return fmt.Errorf("operation %d, %q, %s after noon, the wall clock %s off: %w", i+1, o, p.lived, p.off, err)
		}
	}
	if err := p.quiet(); err != nil {
		return fmt.Errorf("when all was well again: %w", err)
	}
	return nil
}

// draw makes a random schedule.
func draw(r *rand.Rand) []operation {
	pick := func(list ...string) string { return list[r.IntN(len(list))] }
	seconds := func(least, most int) time.Duration { return time.Duration(least+r.IntN(most-least)) * time.Second }
	span := func() time.Duration {
		return [...]time.Duration{seconds(1, 5), seconds(5, 60), seconds(30, 600), seconds(600, 4*3600)}[r.IntN(4)]
	}
	var list []operation
	grants := 0
	some := func() string { return fmt.Sprint("g", r.IntN(grants+1)) }
	source := func() string { return pick("10.0.0.1/32", "10.0.0.1/32", "10.0.0.2/32", "10.0.0.0/30", "192.0.2.1/32") }
	for range 5 + r.IntN(9) {
		var o operation
		switch n := r.IntN(104); {
		case n < 26:
			grants++
			o = operation{do: "grant", what: fmt.Sprint("g", grants), source: source(), port: [...]uint16{22, 22, 2222}[r.IntN(3)],
				from: seconds(-300, 300), length: seconds(1, 300) + span()}
			if r.IntN(2) == 0 {
				o.from = 0
			}
		case n < 32:
			o = operation{do: "revoke", what: some()}
		case n < 36:
			o = operation{do: "extend", what: some(), length: span() - time.Minute}
		case n < 38:
			o = operation{do: "move", what: some(), source: source()}
		case n < 50:
			o = operation{do: "wait", length: span()}
		case n < 54:
			o = operation{do: "kill"}
		case n < 57:
			o = operation{do: "dead", length: span()}
		case n < 65:
			o = operation{do: "kernel", what: pick("blind", "refuses", "exists", "unanswered", "unanswered", "conflict", "dies-before", "dies-after")}
		case n < 66:
			o = operation{do: "dies"}
		case n < 69:
			o = operation{do: "flush", what: pick("rules", "all"), length: seconds(1, 60)}
		case n < 70:
			o = operation{do: "insert", source: source(), length: seconds(1, 60)}
		case n < 74:
			o = operation{do: "full", what: pick("record", "state", "mark", "all")}
		case n < 77:
			o = operation{do: "space"}
		case n < 82:
			o = operation{do: "clock", what: pick("", "", "dead"), length: [...]time.Duration{0, 0, -seconds(1, 130), -seconds(1, 24*3600), seconds(1, 130), seconds(1, 24*3600)}[r.IntN(6)]}
		case n < 84:
			o = operation{do: "sleep", length: span()}
		case n < 85:
			o = operation{do: "restore", length: span()}
		case n < 86:
			o = operation{do: "reboot", length: span()}
		case n < 91:
			o = operation{do: "policy", what: pick(policyNames...)}
		case n < 92:
			o = operation{do: "trust"}
		case n < 93:
			o = operation{do: "lose", what: pick("trust", "policy", "grants")}
		case n < 94:
			o = operation{do: "replay", what: pick("policy", "grants", "trust")}
		case n < 95:
			o = operation{do: "forge", source: source()}
		case n < 96:
			o = operation{do: "lockdown"}
		case n < 97:
			o = operation{do: "disarm", what: pick(string(Observe), string(Off))}
		case n < 99:
			o = operation{do: "arm", length: seconds(5, 300)}
		case n < 100:
			o = operation{do: "confirm"}
		case n < 101:
			o = operation{do: "cloned"}
		case n < 102:
			o = operation{do: "renamed"}
		default:
			o = operation{do: "named"}
		}
		list = append(list, o)
	}
	return list
}

// shrink leaves out what a failure does not need.
func shrink(list []operation, fails func([]operation) bool) []operation {
	for again := true; again; {
		again = false
		for i := len(list) - 1; i >= 0; i-- {
			if shorter := slices.Delete(slices.Clone(list), i, i+1); fails(shorter) {
				list, again = shorter, true
			}
		}
	}
	return list
}

// memoryDir makes a directory that no disk is behind, where there is such a
// place: what is durable is the oracle's business here, not the disk's.
func memoryDir(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "jitgate-model-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// schedules is how many schedules a run of the tests plays; JITGATE_SCHEDULES
// says another number.
func schedules(t *testing.T, otherwise int) int {
	s := os.Getenv("JITGATE_SCHEDULES")
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("JITGATE_SCHEDULES=%s: %v", s, err)
	}
	return n
}

// Any schedule of grants, faults, clocks and deaths: a packet passes only if
// an admitted grant inside the policy covers it, and once all is well again
// what is granted passes.
func TestRandomSchedules(t *testing.T) {
	t.Parallel()
	for _, on := range machines {
		t.Run(on.name, func(t *testing.T) { randomSchedules(t, on) })
	}
}

// machines are the platforms that schedules are played on.
var machines = []platform{{"a kernel", newKernel, 4000}, {"Windows", newWindows, 1000}}

type platform struct {
	name      string
	make      func(now func() firewall.BootTime) machine
	schedules int
}

func randomSchedules(t *testing.T, on platform) {
	base := *seed
	if base == 0 {
		base = rand.Uint64()
	}
	all := schedules(t, on.schedules)
	t.Logf("%d schedules, repeat with -seed %d", all, base)
	// Short lives, small heaps: collecting rarely is a quarter of the time.
	defer debug.SetGCPercent(debug.SetGCPercent(800))
	f := newOffice(t)
	var next, operations atomic.Int64
	var failed atomic.Bool
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		dir := memoryDir(t)
		workers.Go(func() {
			for n := next.Add(1) - 1; n < int64(all) && !failed.Load(); n = next.Add(1) - 1 {
				list := draw(rand.New(rand.NewPCG(base, uint64(n))))
				operations.Add(int64(len(list)))
				if err := playOut(f, dir, on.make, list); err != nil && !failed.Swap(true) {
					list = shrink(list, func(l []operation) bool { return playOut(f, dir, on.make, l) != nil })
					t.Errorf("schedule %d of seed %d: %v\nas short as it gets: %v\n%s", n, base, err, playOut(f, dir, on.make, list), scheduleText(list))
				}
			}
		})
	}
	workers.Wait()
	t.Logf("%d operations", operations.Load())
}

// Schedules that once failed, as short as they got.
func TestSchedulesThatFailed(t *testing.T) {
	f := newOffice(t)
	for name, schedule := range map[string]string{
		"an older epoch came back": `
			grant g1 source=10.0.0.1/32 port=22 from=-4m44s for=48m47s
			trust
			kill`,
		"a second grant for a door, no intent": `
			grant g1 source=10.0.0.1/32 port=22 for=7m45s
			dies
			grant g4 source=10.0.0.1/32 port=22 for=1h8m7s`,
		"the same behind a lease": `
			grant g1 source=10.0.0.1/32 port=22 for=2h24m2s
			policy leases
			kernel refuses
			lose grants
			grant g6 source=10.0.0.1/32 port=22 for=2h56m38s`,
		"closed for ever between a trust document and its mark": `
			full mark
			trust
			kill`,
		"the same where the first was lost before": `
			full mark
			lose trust
			trust
			grant g3 source=10.0.0.2/32 port=22 for=1h31m15s
			reboot for=1h4m4s`,
		"disarmed, and dropping until the disk has space": `
			full record
			grant g1 source=10.0.0.1/32 port=22 for=1h0m0s
			disarm observe`,
		"a horizon that reached the disk late": `
			full all
			grant g1 source=10.0.0.2/32 port=2222 from=-18s for=3m2s
			full mark
			wait for=31s
			reboot for=1s`,
		"a narrower guard that is not on the disk, and rules taken away": `
			full all
			kernel conflict
			policy one-port
			sleep for=2s`,
		"the same, and the agent that had written them is gone": `
			kernel conflict
			full all
			kill
			policy one-port`,
		"a clone that can record nothing, and a flush": `
			grant g1 source=10.0.0.2/32 port=22 from=-3m35s for=4m13s
			full all
			cloned
			flush all for=33s`,
		"an end drawn anew": `
			kernel dies-after
			grant g2 source=10.0.0.1/32 port=22 from=-2m0s for=2m24s
			clock for=-2m0s`,
	} {
		for _, on := range machines {
			if err := playOut(f, memoryDir(t), on.make, parseSchedule(t, schedule)); err != nil {
				t.Errorf("%s, on %s: %v", name, on.name, err)
			}
		}
	}
}
