//go:build linux

package nft_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
)

var seed = flag.Uint64("seed", 0, "seed of the random rulesets; 0 draws one")

// host is a door for the i-th address of 10.64.0.0/10.
func host(t testing.TB, i int) firewall.Door {
	t.Helper()
	a := netip.AddrFrom4([4]byte{10, 64 + byte(i>>16), byte(i >> 8), byte(i)})
	return firewall.Door{Source: netip.PrefixFrom(a, 32), Protocol: firewall.TCP, Port: 22}
}

// packets hands every datagram that arrives at an address to f, which may
// answer through c, until the test ends.
func packets(t *testing.T, network, address string, f func(c net.PacketConn, from net.Addr, b []byte)) {
	t.Helper()
	c, err := net.ListenPacket(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for b := make([]byte, 64); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			f(c, from, b[:n])
		}
	}()
}

// prober sends single packets from any source and tells which arrived.
type prober struct {
	t       *testing.T
	pair    fwtest.Pair
	arrived map[uint32]bool
	mu      sync.Mutex
	next    uint32
}

var probePorts = []uint16{22, 3389, 5985, 5986, 5987}

// controlPort is never guarded: what arrives there was sent after the rest.
const controlPort = 7

func newProber(t *testing.T, pair fwtest.Pair) *prober {
	p := &prober{t: t, pair: pair, arrived: map[uint32]bool{}}
	fwtest.In(t, pair.VM, func() {
		for _, address := range []string{fwtest.VM4, fwtest.VM6} {
			for _, port := range append(probePorts, controlPort) {
				packets(t, "udp", net.JoinHostPort(address, fmt.Sprint(port)), p.receive)
			}
		}
	})
	return p
}

func (p *prober) receive(_ net.PacketConn, _ net.Addr, b []byte) {
	if len(b) == 4 {
		p.mu.Lock()
		p.arrived[binary.BigEndian.Uint32(b)] = true
		p.mu.Unlock()
	}
}

// probe sends one packet and returns its number.
func (p *prober) probe(source netip.Addr, port uint16) uint32 {
	p.t.Helper()
	p.next++
	to := fwtest.VM4
	if source.Is6() {
		to = fwtest.VM6
	}
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: source.AsSlice()}, &net.UDPAddr{IP: net.ParseIP(to), Port: int(port)})
	if err != nil {
		p.t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(binary.BigEndian.AppendUint32(nil, p.next)); err != nil {
		p.t.Fatal(err)
	}
	return p.next
}

// has reports whether packet n has arrived.
func (p *prober) has(n uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.arrived[n]
}

// settled waits until every packet sent so far has arrived or was dropped:
// until one sent later, to an unguarded port, has arrived, of each family. Its
// reader may be ahead of the others' by then.
func (p *prober) settled() {
	p.t.Helper()
	for _, source := range []string{fwtest.Outside4, fwtest.Outside6} {
		arrived := false
		for try := 0; !arrived; try++ {
			if try == 50 {
				p.t.Fatal("packets to an unguarded port do not arrive")
			}
			n := p.probe(netip.MustParseAddr(source), controlPort)
			for i := 0; i < 200 && !arrived; i++ {
				if arrived = p.has(n); !arrived {
					time.Sleep(time.Millisecond)
				}
			}
		}
	}
}

// Random rulesets with overlapping prefixes of every length, changed one into
// the next, and real packets: what arrives is what the oracle says.
func TestRandomRulesetsAgainstOracle(t *testing.T) {
	pair := fwtest.NewPair(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("repeat with -seed %d", s)
	r := rand.New(rand.NewPCG(s, 1))
	p := newProber(t, pair)
	var b *nft.Backend
	fwtest.In(t, pair.VM, func() { b = open(t) })
	// Until the two know each other's link addresses packets may be lost.
	fwtest.In(t, pair.Outside, p.settled)
	admitted, rounds := 0, 400
	dropped := map[uint32]string{} // by the oracle's word
	for round := range rounds {
		want := randomRuleset(r)
		fwtest.In(t, pair.VM, func() { apply(t, b, want) })
		passes := map[uint32]firewall.Door{}
		fwtest.In(t, pair.Outside, func() {
			for range 25 {
				source := randomAddress(r, want)
				packet := firewall.Door{Source: netip.PrefixFrom(source, source.BitLen()), Protocol: firewall.UDP, Port: probePorts[r.IntN(len(probePorts))]}
				n := p.probe(source, packet.Port)
				if fwtest.Admits(want, packet) {
					passes[n] = packet
				} else {
					dropped[n] = fmt.Sprintf("round %d: %v with %v and %v", round, packet, want.Ports, want.Openings)
				}
			}
			p.settled()
		})
		admitted += len(passes)
		for n, packet := range passes {
			for i := 0; !p.has(n); i++ {
				if i == 5000 {
					t.Fatalf("round %d: %v did not arrive, with %v and %v", round, packet, want.Ports, want.Openings)
				}
				time.Sleep(time.Millisecond)
			}
		}
	}
	// The readers have had the whole test's time for all but the last round.
	time.Sleep(100 * time.Millisecond)
	for n, what := range dropped {
		if p.has(n) {
			t.Errorf("got through: %s", what)
		}
	}
	// A test that admits nothing, or everything, shows nothing.
	if all := rounds * 25; admitted < all/10 || admitted > all*9/10 {
		t.Errorf("%d of %d packets were to be admitted: the generator is off", admitted, all)
	}
}

func randomRuleset(r *rand.Rand) firewall.Ruleset {
	pool := []firewall.Port{
		{Protocol: firewall.UDP, First: 22, Last: 22},
		{Protocol: firewall.UDP, First: 3389, Last: 3389, Cut: true},
		{Protocol: firewall.UDP, First: 5985, Last: 5986},
		{Protocol: firewall.TCP, First: 5987, Last: 5987},
	}
	want := firewall.Ruleset{Openings: map[firewall.Door]firewall.End{}}
	for _, p := range pool {
		if r.IntN(5) > 0 {
			want.Ports = append(want.Ports, p)
		}
	}
	want.Ports = firewall.Union(want.Ports, nil)
	for range r.IntN(8) {
		bits, length := 32, r.IntN(33)
		var a netip.Addr
		if r.IntN(2) == 0 {
			a = netip.AddrFrom4([4]byte{10, 64 + byte(r.IntN(64)), byte(r.IntN(2)), byte(r.IntN(4))})
		} else {
			a = netip.AddrFrom16([16]byte{0xfd, 0x64, byte(r.IntN(2)), 7: byte(r.IntN(2)), 15: byte(r.IntN(4))})
			bits, length = 128, r.IntN(129)
		}
		if r.IntN(3) == 0 {
			length = bits
		}
		d := firewall.Door{Source: netip.PrefixFrom(a, length).Masked()}
		if r.IntN(6) > 0 {
			d.Protocol, d.Port = firewall.UDP, probePorts[r.IntN(len(probePorts))]
			if r.IntN(6) == 0 {
				d.Protocol = firewall.TCP // opens nothing for these packets
			}
		}
		want.Openings[d] = firewall.End{Until: bootNow().Add(time.Hour), Label: "random"}
	}
	return want
}

// randomAddress is often just inside or just outside an opening.
func randomAddress(r *rand.Rand, want firewall.Ruleset) netip.Addr {
	a := netip.AddrFrom4([4]byte{10, 64 + byte(r.IntN(64)), byte(r.IntN(2)), byte(r.IntN(4))})
	if r.IntN(2) == 0 {
		a = netip.AddrFrom16([16]byte{0xfd, 0x64, byte(r.IntN(2)), 7: byte(r.IntN(2)), 15: byte(r.IntN(4))})
	}
	for d := range want.Openings {
		if r.IntN(2) == 0 {
			continue
		}
		b := d.Source.Addr().AsSlice()
		if bit := d.Source.Bits() + r.IntN(3) - 1; bit >= 0 && bit < len(b)*8 {
			b[bit/8] ^= 0x80 >> (bit % 8)
		}
		near, _ := netip.AddrFromSlice(b)
		if netip.MustParsePrefix("10.64.0.0/10").Contains(near) || netip.MustParsePrefix("fd64::/16").Contains(near) {
			return near
		}
	}
	return a
}

// reaches reports whether a new connection gets through.
func reaches(t *testing.T, from, address string, wait time.Duration) (ok bool) {
	t.Helper()
	fwtest.In(t, from, func() {
		c, err := net.DialTimeout("tcp", address, wait)
		if ok = err == nil; ok {
			c.Close()
		}
	})
	return ok
}

// A guard on trial drops, and then lets everything pass, with nobody there to
// tell it. While it observes it lets pass and counts each packet once.
func TestTrial(t *testing.T) {
	pair := fwtest.NewPair(t)
	for _, vm := range []string{fwtest.VM4, fwtest.VM6} {
		address := net.JoinHostPort(vm, "22")
		echo(t, pair, address)
		var b *nft.Backend
		count := func() (d firewall.Denied) {
			fwtest.In(t, pair.VM, func() {
				var err error
				if d, err = b.Denied(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			return d
		}
		until := bootNow().Add(2 * time.Second)
		fwtest.In(t, pair.VM, func() {
			b = open(t)
			apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp"), Trial: until})
		})
		if reaches(t, pair.Outside, address, 300*time.Millisecond) {
			t.Errorf("%s: a guard on trial lets pass", vm)
		}
		fwtest.In(t, pair.VM, func() { b.Close() })
		time.Sleep(until.Sub(bootNow()) + 100*time.Millisecond)
		if !reaches(t, pair.Outside, address, 5*time.Second) {
			t.Errorf("%s: the trial is over and the agent dead, and the guard drops", vm)
		}
		fwtest.In(t, pair.VM, func() {
			b = open(t)
			apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp"), Observe: true})
		})
		before := count().Packets
		if !reaches(t, pair.Outside, address, 5*time.Second) {
			t.Errorf("%s: a guard that observes drops", vm)
		}
		// The SYN; what follows belongs to an established connection.
		if n := count().Packets - before; n != 1 {
			t.Errorf("%s: one connection counted as %d", vm, n)
		}
		fwtest.In(t, pair.VM, func() {
			if err := b.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.Close()
		})
	}
}

// The guard names who was denied, where and how often, across a takeover.
func TestDeniedByWhom(t *testing.T) {
	pair := fwtest.NewPair(t)
	var b *nft.Backend
	fwtest.In(t, pair.VM, func() {
		b = open(t)
		apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "3389/udp")})
	})
	// Until the two know each other's link addresses packets may be lost.
	for _, vm := range []string{fwtest.VM4, fwtest.VM6} {
		echo(t, pair, net.JoinHostPort(vm, "7"))
		dial(t, pair, net.JoinHostPort(vm, "7"))
	}
	began := bootNow()
	want := map[firewall.Door]uint64{}
	for i, source := range []string{"10.64.0.1", "10.64.0.2", "fd64::7"} {
		to := fwtest.VM4
		if strings.Contains(source, ":") {
			to = fwtest.VM6
		}
		fwtest.In(t, pair.Outside, func() {
			for range i + 1 {
				c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(source)}, &net.UDPAddr{IP: net.ParseIP(to), Port: 3389})
				if err != nil {
					t.Fatal(err)
				}
				c.Write([]byte("knock"))
				c.Close()
			}
		})
		a := netip.MustParseAddr(source)
		want[firewall.Door{Source: netip.PrefixFrom(a, a.BitLen()), Protocol: firewall.UDP, Port: 3389}] = uint64(i + 1)
	}
	var d firewall.Denied
	all := func() uint64 {
		fwtest.In(t, pair.VM, func() {
			var err error
			if d, err = b.Denied(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
		return d.Packets
	}
	for i := 0; all() < 6; i++ {
		if i == 1000 {
			t.Fatalf("6 packets were sent, the guard counts %d", d.Packets)
		}
		time.Sleep(time.Millisecond)
	}
	fwtest.In(t, pair.VM, func() {
		b.Close()
		b = open(t)
		apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "3389/udp")})
	})
	all()
	if len(d.By) != len(want) {
		t.Fatalf("denied: %+v", d)
	}
	for i, by := range d.By {
		if want[by.Door] != by.Packets || i > 0 && d.By[i-1].Packets < by.Packets {
			t.Errorf("%d. %s with %d packets, want %d", i, by.Door, by.Packets, want[by.Door])
		}
		if by.Last < began.Add(-firewall.Slack) || by.Last > bootNow().Add(firewall.Slack) {
			t.Errorf("%s: last seen at %v, between %v and %v", by.Door, by.Last, began, bootNow())
		}
	}
}

// A flood of packets without a grant, during ten thousand changes of rules
// and openings: none gets through.
func TestThreatFloods(t *testing.T) {
	pair := fwtest.NewPair(t)
	var leaked atomic.Int64
	fwtest.In(t, pair.VM, func() {
		for _, address := range []string{fwtest.VM4, fwtest.VM6} {
			packets(t, "udp", net.JoinHostPort(address, "3389"), func(net.PacketConn, net.Addr, []byte) { leaked.Add(1) })
		}
	})
	var b *nft.Backend
	base := firewall.Ruleset{Ports: fwtest.Ports(t, "3389/udp"), Openings: map[firewall.Door]firewall.End{}}
	fwtest.In(t, pair.VM, func() { b = open(t); apply(t, b, base) })

	var sent atomic.Int64
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for _, addresses := range [][2]string{{fwtest.Outside4, fwtest.VM4}, {fwtest.Outside6, fwtest.VM6}} {
		var c net.Conn
		fwtest.In(t, pair.Outside, func() {
			var err error
			if c, err = net.Dial("udp", net.JoinHostPort(addresses[1], "3389")); err != nil {
				t.Fatal(err)
			}
		})
		flood.Go(func() {
			defer c.Close()
			for {
				select {
				case <-stop:
					return
				default:
					for range 16 {
						c.Write([]byte("ungranted"))
					}
					sent.Add(16)
				}
			}
		})
	}

	r := rand.New(rand.NewPCG(1, 2))
	ports := [][]string{{"3389/udp"}, {"3389/udp cut"}, {"22/tcp", "3389/udp"}, {"3000-4000/udp", "5985-5986/tcp cut"}}
	changes, adoptions := 0, 0
	want := base
	fwtest.In(t, pair.VM, func() {
		have, err := b.Observe(t.Context())
		for ; changes < 10_000 && err == nil; changes++ {
			switch change := r.IntN(20); {
			case change == 0:
				want.Ports = fwtest.Ports(t, ports[r.IntN(len(ports))]...)
			case change == 1 && changes%50 == 0:
				// The agent dies and another takes the table over.
				b.Close()
				b = open(t)
				adoptions++
				have, err = b.Observe(t.Context())
				have.Intact = false
			default:
				d := host(t, r.IntN(500))
				d.Protocol, d.Port = firewall.UDP, 3389
				d.Source = netip.PrefixFrom(d.Source.Addr(), []int{32, 31, 30, 24}[r.IntN(4)]).Masked()
				if _, ok := want.Openings[d]; ok && r.IntN(2) == 0 {
					delete(want.Openings, d)
				} else {
					want.Openings[d] = firewall.End{Until: bootNow().Add(time.Duration(1+r.IntN(60)) * time.Minute)}
				}
			}
			if err == nil {
				plan := firewall.Diff(have, want)
				err = b.Apply(context.Background(), plan)
				have = firewall.Observed{Ruleset: plan.Apply(have.Ruleset), Intact: true}
			}
		}
		if err != nil {
			t.Errorf("change %d: %v", changes, err)
		}
	})
	close(stop)
	flood.Wait()
	t.Logf("%d packets, %d changes, %d adoptions", sent.Load(), changes, adoptions)
	// The receivers do work: with an opening, packets arrive.
	fwtest.In(t, pair.VM, func() {
		want.Openings[firewall.Door{Source: netip.MustParsePrefix(fwtest.Outside4 + "/32"), Protocol: firewall.UDP, Port: 3389}] = firewall.End{Until: bootNow().Add(time.Minute)}
		if n := leaked.Load(); n > 0 {
			t.Errorf("%d packets without a grant got through", n)
		}
		want.Ports = fwtest.Ports(t, "3389/udp")
		apply(t, b, want)
	})
	fwtest.In(t, pair.Outside, func() {
		c, err := net.Dial("udp", net.JoinHostPort(fwtest.VM4, "3389"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		for i := 0; leaked.Load() == 0; i++ {
			if i == 1000 {
				t.Fatal("with a grant nothing arrives either: the test is blind")
			}
			c.Write([]byte("granted"))
			time.Sleep(time.Millisecond)
		}
	})
	if sent.Load() < 10_000 {
		t.Errorf("only %d packets were sent", sent.Load())
	}
}

// echo serves connections to a port of the VM.
func echo(t *testing.T, pair fwtest.Pair, address string) {
	t.Helper()
	fwtest.In(t, pair.VM, func() {
		l, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go io.Copy(c, c)
			}
		}()
	})
}

// dial connects from outside, where that should be possible.
func dial(t *testing.T, pair fwtest.Pair, address string) (c net.Conn) {
	t.Helper()
	fwtest.In(t, pair.Outside, func() {
		var err error
		if c, err = net.DialTimeout("tcp", address, 5*time.Second); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// refused connects from outside, where that should not be possible.
func refused(t *testing.T, pair fwtest.Pair, address string) {
	t.Helper()
	fwtest.In(t, pair.Outside, func() {
		if c, err := net.DialTimeout("tcp", address, 300*time.Millisecond); err == nil {
			c.Close()
			t.Errorf("%s: a new session without a grant", address)
		}
	})
}

// speaks waits until a session carries data: a machine may be busy, and what
// was lost meanwhile is sent again after a while.
func speaks(t *testing.T, c net.Conn, what string) {
	t.Helper()
	for range 20 {
		if alive(t, c) {
			return
		}
	}
	t.Fatal(what)
}

var lastWord byte

// alive reports whether a session still carries data: a byte that was not
// sent before comes back, after those that were lost for a while.
func alive(t *testing.T, c net.Conn) bool {
	t.Helper()
	lastWord++
	c.SetDeadline(time.Now().Add(400 * time.Millisecond))
	if _, err := c.Write([]byte{lastWord}); err != nil {
		return false
	}
	for b := []byte{0}; ; {
		_, err := io.ReadFull(c, b)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, syscall.ECONNRESET) {
			t.Fatal(err)
		}
		if err != nil || b[0] == lastWord {
			return err == nil
		}
	}
}

// When an opening runs out, kept sessions go on and cut ones do not; new ones
// are refused in both. When it is taken back, both are cut. A new grant lets a
// session speak again that has no socket of its own to be reset.
func TestSessionsAtEnd(t *testing.T) {
	pair := fwtest.NewPair(t)
	for _, family := range []struct{ source, vm string }{{fwtest.Outside4 + "/32", fwtest.VM4}, {fwtest.Outside6 + "/128", fwtest.VM6}} {
		keep, cut := net.JoinHostPort(family.vm, "22"), net.JoinHostPort(family.vm, "5985")
		echo(t, pair, keep)
		echo(t, pair, cut)
		fwtest.In(t, pair.VM, func() {
			packets(t, "udp", keep, func(c net.PacketConn, from net.Addr, b []byte) { c.WriteTo(b, from) })
		})
		want := firewall.Ruleset{Ports: fwtest.Ports(t, "22/tcp", "22/udp", "5985-5986/tcp cut"), Openings: map[firewall.Door]firewall.End{}}
		for _, port := range []string{"22/tcp", "22/udp", "5985/tcp"} {
			want.Openings[fwtest.Door(t, family.source, port)] = firewall.End{Until: bootNow().Add(time.Hour)}
		}
		var b *nft.Backend
		fwtest.In(t, pair.VM, func() { b = open(t); apply(t, b, want) })
		kept, ended := dial(t, pair, keep), dial(t, pair, cut)
		speaks(t, kept, "a granted session carries nothing")
		speaks(t, ended, "a granted session carries nothing")
		short := func() firewall.Ruleset {
			r := firewall.Ruleset{Ports: want.Ports, Openings: map[firewall.Door]firewall.End{}}
			for door := range want.Openings {
				r.Openings[door] = firewall.End{Until: bootNow().Add(time.Second)}
			}
			return r
		}
		fwtest.In(t, pair.VM, func() { apply(t, b, short()) })
		time.Sleep(1100 * time.Millisecond) // the kernel ends them: no plan is applied
		speaks(t, kept, family.vm+": the kept session was cut")
		if alive(t, ended) {
			t.Errorf("%s: the cut session goes on", family.vm)
		}
		granted := firewall.Ruleset{Ports: want.Ports, Openings: map[firewall.Door]firewall.End{
			fwtest.Door(t, family.source, "22/tcp"): {Until: bootNow().Add(time.Hour)},
			fwtest.Door(t, family.source, "22/udp"): {Until: bootNow().Add(time.Hour)},
		}}
		closed := firewall.Ruleset{Ports: want.Ports}
		var questions net.Conn
		fwtest.In(t, pair.Outside, func() {
			var err error
			if questions, err = net.Dial("udp", keep); err != nil {
				t.Fatal(err)
			}
		})
		defer questions.Close()
		for range 2 {
			fwtest.In(t, pair.VM, func() { apply(t, b, granted) })
			speaks(t, kept, family.vm+": a session with a grant is cut")
			speaks(t, questions, family.vm+": a session with a grant is cut")
			fwtest.In(t, pair.VM, func() { apply(t, b, closed) })
			for _, c := range []net.Conn{kept, questions} {
				if alive(t, c) {
					t.Errorf("%s: the grant was taken back and its session goes on", family.vm)
				}
			}
			fwtest.In(t, pair.VM, func() { apply(t, b, granted) })
			kept = dial(t, pair, keep)
		}
		// Granted once more, and this time it runs out: the session is kept.
		fwtest.In(t, pair.VM, func() { apply(t, b, short()) })
		time.Sleep(1100 * time.Millisecond)
		speaks(t, kept, family.vm+": a session granted again is cut when the grant runs out")
		speaks(t, questions, family.vm+": a session granted again is cut when the grant runs out")
		refused(t, pair, keep)
		refused(t, pair, cut)
		fwtest.In(t, pair.VM, func() {
			if err := b.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			b.Close()
		})
	}
}

// container makes a namespace behind the VM, 172.30.0.2, whose port 22 the VM
// publishes as 2222.
func container(t *testing.T, pair fwtest.Pair) (inner string) {
	t.Helper()
	inner = pair.VM + "c"
	t.Cleanup(func() { exec.Command("ip", "netns", "del", inner).Run() })
	script := strings.NewReplacer("VM", pair.VM, "IN", inner, "OUT", pair.Outside).Replace(`
ip netns add IN
ip link add b0 netns VM type veth peer name c0 netns IN
ip -n VM addr add 172.30.0.1/24 dev b0
ip -n IN addr add 172.30.0.2/24 dev c0
ip -n VM link set b0 up; ip -n IN link set c0 up; ip -n IN link set lo up
ip -n IN route add default via 172.30.0.1
ip -n OUT route add 172.30.0.0/24 via 192.168.99.1
ip netns exec VM sysctl -qw net.ipv4.ip_forward=1
ip netns exec VM nft 'add table ip nat; add chain ip nat pre { type nat hook prerouting priority dstnat; }; add rule ip nat pre ip daddr 192.168.99.1 tcp dport 2222 dnat to 172.30.0.2:22'
`)
	if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return inner
}

// What is not addressed to a guarded port of this host passes: its own
// connections, loopback, and traffic it forwards. A published container port
// does not: its packets meet the guard before their destination is rewritten.
func TestNeighboursOfTheGuard(t *testing.T) {
	pair := fwtest.NewPair(t)
	inner := container(t, pair)
	for _, l := range []struct{ namespace, address string }{
		{inner, "172.30.0.2:22"}, {pair.VM, "192.168.99.1:22"}, {pair.Outside, "192.168.99.2:22"},
	} {
		fwtest.In(t, l.namespace, func() {
			listener, err := net.Listen("tcp", l.address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { listener.Close() })
		})
	}
	reach := func(from, address string, wait time.Duration) (err error) {
		fwtest.In(t, from, func() {
			var c net.Conn
			if c, err = net.DialTimeout("tcp", address, wait); err == nil {
				c.Close()
			}
		})
		return err
	}
	// Without the guard everything is reachable, or the test shows nothing.
	for from, address := range map[string]string{pair.Outside: "192.168.99.1:2222", pair.VM: "192.168.99.2:22", inner: "192.168.99.1:22"} {
		if err := reach(from, address, 5*time.Second); err != nil {
			t.Fatalf("%s from %s: %v", address, from, err)
		}
	}
	var b *nft.Backend
	ports := fwtest.Ports(t, "22/tcp cut", "2222/tcp cut")
	fwtest.In(t, pair.VM, func() { b = open(t); apply(t, b, firewall.Ruleset{Ports: ports}) })
	for _, c := range []struct {
		what, from, address string
		reachable           bool
	}{
		{"the guarded port", pair.Outside, "192.168.99.1:22", false},
		{"a published container port", pair.Outside, "192.168.99.1:2222", false},
		{"the guarded port from a container", inner, "192.168.99.1:22", false},
		{"the host's own connection out", pair.VM, "192.168.99.2:22", true},
		{"the host to itself", pair.VM, "192.168.99.1:22", true},
		{"traffic the host forwards", pair.Outside, "172.30.0.2:22", true},
		{"a container's connection out", inner, "192.168.99.2:22", true},
	} {
		wait := 300 * time.Millisecond // a drop shows by waiting
		if c.reachable {
			wait = 5 * time.Second
		}
		if err := reach(c.from, c.address, wait); (err == nil) != c.reachable {
			t.Errorf("%s: %v, want reachable %t", c.what, err, c.reachable)
		}
	}
	fwtest.In(t, pair.VM, func() {
		apply(t, b, firewall.Ruleset{Ports: ports, Openings: map[firewall.Door]firewall.End{
			fwtest.Door(t, fwtest.Outside4+"/32", "2222/tcp"): {Until: bootNow().Add(time.Minute)},
		}})
	})
	if err := reach(pair.Outside, "192.168.99.1:2222", 5*time.Second); err != nil {
		t.Errorf("a grant for the published port: %v", err)
	}
}

// A host whose own connections leave from guarded ports gets its answers, also
// from a source whose grant for such a port was taken back, and the sessions
// of clients are cut all the same.
func TestHostsOwnConnections(t *testing.T) {
	for _, atEnd := range []string{" cut", ""} {
		t.Run("guarded"+atEnd, func(t *testing.T) { hostsOwnConnections(t, atEnd) })
	}
}

func hostsOwnConnections(t *testing.T, atEnd string) {
	pair := fwtest.NewPair(t)
	fwtest.In(t, pair.Outside, func() {
		for _, address := range []string{fwtest.Outside4, fwtest.Outside6} {
			l, err := net.Listen("tcp", net.JoinHostPort(address, "443"))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			packets(t, "udp", net.JoinHostPort(address, "53"), func(c net.PacketConn, from net.Addr, b []byte) { c.WriteTo(b, from) })
		}
	})
	client := net.JoinHostPort(fwtest.VM4, "40000")
	echo(t, pair, client)
	// The range the host takes ports from, and those programs insist on.
	ports := fwtest.Ports(t, "1024-65535/tcp"+atEnd, "1024-65535/udp"+atEnd, "600-700/tcp"+atEnd, "123/udp"+atEnd)
	openings := map[firewall.Door]firewall.End{}
	for _, port := range []string{"40000/tcp", "40001/tcp", "40001/udp", "650/tcp", "123/udp"} {
		for _, source := range []string{fwtest.Outside4 + "/32", fwtest.Outside6 + "/128"} {
			openings[fwtest.Door(t, source, port)] = firewall.End{Until: bootNow().Add(time.Hour)}
		}
	}
	var b *nft.Backend
	fwtest.In(t, pair.VM, func() { b = open(t); apply(t, b, firewall.Ruleset{Ports: ports, Openings: openings}) })
	session := dial(t, pair, client)
	speaks(t, session, "a granted session carries nothing")
	fwtest.In(t, pair.VM, func() { apply(t, b, firewall.Ruleset{Ports: ports}) })
	if alive(t, session) {
		t.Error("the session goes on though its grant was taken back")
	}
	fwtest.In(t, pair.VM, func() {
		for _, address := range []string{fwtest.Outside4, fwtest.Outside6} {
			for _, from := range []int{0, 40001, 650} {
				d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: own(address), Port: from}}
				c, err := d.Dial("tcp", net.JoinHostPort(address, "443"))
				if err != nil {
					t.Errorf("the host's own connection from port %d: %v", from, err)
					continue
				}
				c.Close()
			}
			for _, from := range []int{0, 40001, 123} {
				u, err := net.DialUDP("udp", &net.UDPAddr{IP: own(address), Port: from}, &net.UDPAddr{IP: net.ParseIP(address), Port: 53})
				if err != nil {
					t.Fatal(err)
				}
				u.SetDeadline(time.Now().Add(5 * time.Second))
				u.Write([]byte("?"))
				if _, err := u.Read(make([]byte, 1)); err != nil {
					t.Errorf("the answer to the host's own question from port %d: %v", from, err)
				}
				u.Close()
			}
		}
	})
	refused(t, pair, client)
}

// own is the VM's address of the family of the other's.
func own(other string) net.IP {
	if strings.Contains(other, ":") {
		return net.ParseIP(fwtest.VM6)
	}
	return net.ParseIP(fwtest.VM4)
}

// Broadcast and multicast datagrams to a guarded port are dropped too.
func TestBroadcastAndMulticast(t *testing.T) {
	pair := fwtest.NewPair(t)
	fwtest.Command(t, pair.VM, "ip", "addr", "add", "10.98.0.1/24", "brd", "10.98.0.255", "dev", "v0")
	fwtest.Command(t, pair.Outside, "ip", "addr", "add", "10.98.0.2/24", "brd", "10.98.0.255", "dev", "o0")
	got := make(chan string, 100)
	fwtest.In(t, pair.VM, func() {
		tell := func(_ net.PacketConn, _ net.Addr, b []byte) { got <- string(b) }
		packets(t, "udp4", "0.0.0.0:3389", tell)
		packets(t, "udp6", "[::]:3389", tell)
	})
	destinations := []string{"10.98.0.255", "255.255.255.255", "224.0.0.1", "ff02::1"}
	send := func() {
		fwtest.In(t, pair.Outside, func() {
			for _, d := range destinations {
				domain, to := unix.AF_INET, unix.Sockaddr(nil)
				a := netip.MustParseAddr(d)
				link, err := net.InterfaceByName("o0")
				if err != nil {
					t.Fatal(err)
				}
				if a.Is6() {
					domain, to = unix.AF_INET6, &unix.SockaddrInet6{Port: 3389, Addr: a.As16(), ZoneId: uint32(link.Index)}
				} else {
					to = &unix.SockaddrInet4{Port: 3389, Addr: a.As4()}
				}
				fd, err := unix.Socket(domain, unix.SOCK_DGRAM, 0)
				if err != nil {
					t.Fatal(err)
				}
				unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
				unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "o0")
				if err := unix.Sendto(fd, []byte(d), 0, to); err != nil {
					t.Fatalf("%s: %v", d, err)
				}
				unix.Close(fd)
			}
		})
	}
	received := func() map[string]bool {
		out := map[string]bool{}
		for {
			select {
			case s := <-got:
				out[s] = true
			case <-time.After(200 * time.Millisecond):
				return out
			}
		}
	}
	send()
	if n := received(); len(n) != len(destinations) {
		t.Fatalf("without a guard only these arrive: %v", n)
	}
	fwtest.In(t, pair.VM, func() { apply(t, open(t), firewall.Ruleset{Ports: fwtest.Ports(t, "3389/udp")}) })
	send()
	if n := received(); len(n) != 0 {
		t.Errorf("these got past the guard: %v", n)
	}
}
