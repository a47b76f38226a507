package agent

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
	"github.com/jitgate/jitgate/policy"
)

// lane is one schedule on the real kernel: grants for four addresses that no
// other lane has, to one port. The lanes of a round share an agent and what
// becomes of it.
type lane struct {
	first  netip.Addr
	port   uint16
	grants int
	story  []string
}

func (l *lane) prefix(offset, bits int) netip.Prefix {
	a := l.first.As4()
	a[3] += byte(offset)
	return netip.PrefixFrom(netip.AddrFrom4(a), bits)
}

// round is many lanes on one agent with the real backend.
type round struct {
	*play
	t       *testing.T
	r       *rand.Rand
	pair    fwtest.Pair
	origin  firewall.BootTime
	owned   bool
	lanes   []*lane
	wire    *cable
	story   []string // what happened to all lanes
	denied  map[uint32]string
	arrived int // had to
	lost    int // of those, for want of time
}

// cable sends single packets from any source and tells which arrived.
type cable struct {
	arrivals
	out  *net.UDPConn
	next uint32
}

// arrivals are the numbers of the packets that passed the guard.
type arrivals struct {
	mu  sync.Mutex
	got map[uint32]bool
}

func (a *arrivals) passed(n uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.got[n] = true
}

func (a *arrivals) has(n uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.got[n]
}

// reaches waits for a packet.
func (a *arrivals) reaches(n uint32, patience time.Duration) bool {
	for end := time.Now().Add(patience); !a.has(n); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return false
		}
	}
	return true
}

// openPort is never guarded: what arrives there was sent after the rest.
const openPort = 7

var kernelPorts = []uint16{3001, 3002, 3003, 3004, 3005, 3006, 3007, 3008}

func newCable(t *testing.T, pair fwtest.Pair) *cable {
	c := &cable{arrivals: arrivals{got: map[uint32]bool{}}}
	fwtest.In(t, pair.VM, func() {
		for _, port := range append([]uint16{openPort}, kernelPorts...) {
			in, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(fwtest.VM4), Port: int(port)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { in.Close() })
			go func() {
				for b := make([]byte, 64); ; {
					n, err := in.Read(b)
					if err != nil {
						return
					}
					if n == 4 {
						c.passed(binary.BigEndian.Uint32(b))
					}
				}
			}()
		}
	})
	fwtest.In(t, pair.Outside, func() {
		var err error
		if c.out, err = net.ListenUDP("udp4", nil); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.out.Close() })
	return c
}

// send sends one packet and returns its number.
func (c *cable) send(t *testing.T, from netip.Addr, port uint16) uint32 {
	c.next++
	as := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
	to := netip.AddrPortFrom(netip.MustParseAddr(fwtest.VM4), port)
	if _, _, err := c.out.WriteMsgUDPAddrPort(binary.BigEndian.AppendUint32(nil, c.next), as, to); err != nil {
		t.Fatalf("send from %s: %v", from, err)
	}
	return c.next
}

// settled waits until the guard has judged every packet sent so far.
func (c *cable) settled(t *testing.T) {
	for range 50 {
		if c.reaches(c.send(t, netip.MustParseAddr(fwtest.Outside4), openPort), 200*time.Millisecond) {
			return
		}
	}
	t.Fatal("packets to an unguarded port do not arrive")
}

// tick reads the boot clock. A pass sees one reading of it.
func (d *round) tick() {
	d.boot = BootNow()
	d.lived = d.boot.Sub(d.origin)
}

// connect opens the real backend, as an agent that starts does.
func (d *round) connect() {
	b, err := nft.Open(BootNow)
	if err != nil {
		d.t.Fatal(err)
	}
	d.backend = lossy{b, d.play}
}

// attempt is one pass, made by call. It reports whether the kernel is as the
// agent wants it, and what has to be open then.
func (d *round) attempt(call func() error) (must map[firewall.Door]bool, done bool) {
	d.fate, d.ledger.failed = fate{}, false
	d.tick()
	var err error
	lived := d.during(func() { err = call() })
	v := d.oracle.pass(d.now(), d.fate)
	switch {
	case d.ledger.wrong != "":
		d.t.Error(d.text(nil, d.ledger.wrong))
		d.ledger.wrong = ""
	case !lived:
		d.die()
		return nil, false
	case d.fate != fate{}:
		return nil, false
	case d.ledger.failed:
		v.must = nil
	case err != nil:
		d.t.Fatal(d.text(nil, fmt.Sprintf("the agent fails though nothing stands in its way: %v", err)))
	}
	d.oracle.kernel.broken = false
	return v.must, true
}

// live does passes until one succeeds, as an agent does after an error. Each
// fault that waits may spoil one of them.
func (d *round) live() {
	for range len(d.faults) + 2 {
		if must, done := d.attempt(func() error { _, err := d.Step(d.t.Context()); return err }); done {
			d.probe(must)
			return
		}
	}
	d.t.Fatal(d.text(nil, "the agent does not recover"))
}

// die is kill -9: the table is left to whoever comes next.
func (d *round) die() {
	// A child that has not come to its exec yet would hold the socket open, and
	// with it the table: other rounds run nft.
	syscall.ForkLock.RLock()
	err := d.backend.Close()
	syscall.ForkLock.RUnlock()
	if err != nil {
		d.t.Fatal(err)
	}
	d.connect()
	d.tick()
	d.begin()
}

// probe sends a packet from two addresses of every lane.
func (d *round) probe(must map[firewall.Door]bool) {
	type packet struct {
		firewall.Door
		lane *lane
		n    uint32
		at   instant
	}
	var all []packet
	for _, l := range d.lanes {
		for _, offset := range []int{d.r.IntN(4), 0} {
			d.tick()
			p := packet{firewall.Door{Source: l.prefix(offset, 32), Protocol: firewall.UDP, Port: l.port}, l, 0, d.now()}
			p.n = d.wire.send(d.t, p.Source.Addr(), l.port)
			all = append(all, p)
		}
	}
	d.wire.settled(d.t)
	judged := BootNow().Add(100 * time.Millisecond)
	for _, p := range all {
		g := d.oracle.kernel
		switch {
		case !g.judges(p.Door, p.at):
		case !g.admits(p.Door, p.at) || !d.past.covers(p.Door, noon.Add(p.at.boot.Sub(d.origin))):
			d.denied[p.n] = d.text(p.lane, fmt.Sprintf("%s arrived %s after the start", p.Door, p.at.boot.Sub(d.origin)))
		default:
			due := func(at firewall.BootTime) (due bool) {
				for open, yes := range must {
					due = due || yes && leads(open, p.Door) && d.oracle.kernel.openings[open] > at
				}
				return due
			}
			if due(judged) {
				d.arrived++
				if !d.insist(p.n, p.Door, due) {
					d.t.Error(d.text(p.lane, fmt.Sprintf("%s did not arrive", p.Door)))
				}
			}
		}
	}
}

// insist waits for a packet, and sends it again as long as it is due: a busy
// machine loses one. One that is not due any more is nobody's fault.
func (d *round) insist(n uint32, packet firewall.Door, due func(firewall.BootTime) bool) bool {
	for range 10 {
		if d.wire.reaches(n, 300*time.Millisecond) {
			return true
		}
		if !due(BootNow().Add(100 * time.Millisecond)) {
			d.lost++
			return true
		}
		n = d.wire.send(d.t, packet.Source.Addr(), packet.Port)
	}
	return false
}

// text is a failure with the operations that led to it.
func (d *round) text(l *lane, what string) string {
	s := what + "\nto the agent: " + strings.Join(d.story, ", ")
	if l != nil {
		s += "\nin the lane:  " + strings.Join(l.story, ", ")
	}
	return s
}

// act is what a lane asks for next.
func (d *round) act(l *lane) {
	say := func(format string, args ...any) {
		l.story = append(l.story, fmt.Sprintf("%s: ", d.lived.Round(10*time.Millisecond))+fmt.Sprintf(format, args...))
	}
	id := func(n int) string { return fmt.Sprintf("%s-%d", l.first, n) }
	i := -1
	if l.grants > 0 {
		i = d.index(id(1 + d.r.IntN(l.grants)))
	}
	seconds := func(least, most int) time.Duration { return time.Duration(least+d.r.IntN(most-least+1)) * time.Second }
	switch n := d.r.IntN(10); {
	case n < 4 || i < 0 && n < 7:
		l.grants++
		bits := [...]int{32, 32, 31, 30}[d.r.IntN(4)]
		source := l.prefix(d.r.IntN(4), bits).Masked()
		start := noon.Add(d.lived + seconds(-1, 1)).Truncate(time.Second)
		g := policy.Grant{ID: id(l.grants), Number: l.port, Sources: []netip.Prefix{source}, Start: start, End: start.Add(seconds(1, 4)), Requestor: "alice"}
		d.wanted = append(d.wanted, g)
		say("grant %s for %s, %s to %s", g.ID, source, g.Start.Sub(noon), g.End.Sub(noon))
	case i < 0:
	case n < 6:
		say("revoke %s", d.wanted[i].ID)
		d.wanted = slices.Delete(d.wanted, i, i+1)
	case n < 8:
		d.wanted[i].End = d.wanted[i].End.Add(seconds(1, 2))
		say("extend %s to %s", d.wanted[i].ID, d.wanted[i].End.Sub(noon))
	}
}

// event is what happens to all lanes.
func (d *round) event() {
	say := func(s string) {
		d.story = append(d.story, fmt.Sprintf("%s: %s", d.lived.Round(10*time.Millisecond), s))
	}
	pick := func(list ...string) string { return list[d.r.IntN(len(list))] }
	n := d.r.IntN(16)
	switch {
	case n < 2:
		say("kill")
		d.die()
	case n < 6:
		f := pick("refuses", "unanswered", "dies-before", "dies-after", "blind")
		d.faults = append(d.faults, f)
		say("kernel " + f)
	case n < 8:
		what := pick("flush table inet jitgate", "delete table inet jitgate", "flush ruleset")
		say("nft " + what)
		d.strangers(what)
	case n < 9:
		d.ledger.full = !d.ledger.full
		say(fmt.Sprintf("record full %t", d.ledger.full))
	case n < 12:
		d.off = [...]time.Duration{0, -24 * time.Hour, -time.Hour, -time.Minute, -2 * time.Second, 2 * time.Second, time.Hour}[d.r.IntN(7)]
		d.past.ahead, d.past.behind = max(d.past.ahead, d.off), max(d.past.behind, -d.off)
		d.doubt()
		say("clock " + d.off.String())
	case n < 13:
		say("lockdown")
		d.oracle.lockdown()
		d.attempt(func() error { return d.endAll(d.t.Context(), "uid 0") })
	case n < 14:
		name := pick("usual", "narrow", "hosts-only", "leases")
		say("policy " + name)
		if err := d.deliverPolicy(slices.Index(policyNames, name)); err != nil {
			d.t.Fatal(err)
		}
	}
}

// strangers runs nft, which an owned table withstands.
func (d *round) strangers(command string) {
	args := strings.Fields(command)
	_ = exec.Command("nft", args...).Run() // refused, where the table has an owner
	if d.owned {
		return
	}
	d.oracle.kernel.broken = true
	// What is made anew where there was nothing has an owner.
	d.owned = command != "flush table inet jitgate"
	select {
	case by := <-d.backend.Changes():
		d.suspect(by)
	case <-time.After(5 * time.Second):
		d.t.Error(d.text(nil, "the kernel told nobody of nft "+command))
		d.doubt()
	}
}

// run plays the lanes out.
func (d *round) run(f *office, dir string, ticks int) {
	d.origin = BootNow()
	d.tick()
	d.connect()
	if !d.owned {
		if out, err := exec.Command("nft", "add", "table", "inet", "jitgate").CombinedOutput(); err != nil {
			d.t.Fatalf("%v: %s", err, out)
		}
	}
	if err := d.settle(dir); err != nil {
		d.t.Fatal(err)
	}
	d.live()
	for range ticks {
		d.tick()
		for _, l := range d.lanes {
			d.act(l)
		}
		if err := d.deliverList(); err != nil {
			d.t.Fatal(err)
		}
		d.event()
		d.live()
		// Packets also while nobody looks: ends come by themselves.
		time.Sleep(time.Duration(d.r.IntN(200)) * time.Millisecond)
		d.probe(nil)
	}
	// All is well again: what is granted opens, and then ends.
	d.faults, d.ledger.full, d.off = nil, false, 0
	d.tick()
	for _, l := range d.lanes {
		start := noon.Add(d.lived).Truncate(time.Second)
		d.wanted = append(d.wanted, policy.Grant{ID: fmt.Sprint(l.first, "-last"), Number: l.port, Sources: []netip.Prefix{l.prefix(0, 32)}, Start: start, End: start.Add(2 * time.Second), Requestor: "alice"})
	}
	if err := cmp.Or(d.deliverPolicy(0), d.deliverList()); err != nil {
		d.t.Fatal(err)
	}
	d.live()
	time.Sleep(3100 * time.Millisecond) // nobody acts: the kernel closes
	d.wanted = nil
	d.probe(nil)
	for n, what := range d.denied {
		if d.wire.has(n) {
			d.t.Error(what)
		}
	}
	if err := errors.Join(d.backend.Remove(d.t.Context()), d.backend.Close()); err != nil {
		d.t.Error(err)
	}
}

// The same on the real kernel, with real packets and real time: many lanes of
// grants share an agent that is killed, flushed, refused and left unanswered.
func TestRandomSchedulesOnKernel(t *testing.T) {
	fwtest.Privileged(t)
	base := *seed
	if base == 0 {
		base = rand.Uint64()
	}
	const hosts, rounds, lanes, ticks = 4, 5, 100, 8
	t.Logf("%d schedules, repeat with -seed %d", hosts*rounds*lanes, base)
	f := newOffice(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	demanded, lost, refused := 0, 0, 0
	for h := range hosts {
		pair := fwtest.NewPair(t)
		dir := memoryDir(t)
		all.Go(func() {
			fwtest.In(t, pair.VM, func() {
				wire := newCable(t, pair)
				wire.settled(t)
				for n := range rounds {
					d := &round{t: t, r: rand.New(rand.NewPCG(base, uint64(h*rounds+n))), pair: pair, owned: n%2 == 0, wire: wire, denied: map[uint32]string{}}
					d.play = &play{office: f, ledger: newLedger(), oracle: newOracle(), protocol: policy.UDP, ports: kernelPorts}
					for i := range lanes {
						d.lanes = append(d.lanes, &lane{first: netip.AddrFrom4([4]byte{10, 64, byte(i), 4 * byte(n)}), port: kernelPorts[i%len(kernelPorts)]})
					}
					d.run(f, fmt.Sprint(dir, "/", n), ticks)
					mu.Lock()
					demanded, lost, refused = demanded+d.arrived, lost+d.lost, refused+len(d.denied)
					mu.Unlock()
					if t.Failed() {
						return
					}
				}
			})
		})
	}
	all.Wait()
	t.Logf("%d packets had to arrive, %d were lost until their end, %d had to be dropped", demanded, lost, refused)
	// A run that admits nothing, or drops nothing, shows nothing.
	if !t.Failed() && (demanded < hosts*rounds*lanes || refused < hosts*rounds*lanes || lost > demanded/20) {
		t.Error("too few packets were judged: the generator is off, or granted ones are dropped")
	}
}
