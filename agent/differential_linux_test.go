package agent

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
	"github.com/jitgate/jitgate/firewall/winfw/wfptest"
	"github.com/jitgate/jitgate/policy"
)

// tap sends packets of both families and protocols from any source, and tells
// which the guard let through: a datagram by its number, a SYN by the number in
// the answer.
type tap struct {
	arrivals
	t    *testing.T
	out  map[bool]*net.UDPConn // by whether IPv6
	raw  map[netip.Addr]int
	next uint32
}

// The ports of the twins: guarded for TCP, for UDP, and for both.
var twinPorts = []policy.Port{
	{Number: 3001, EndNumber: 3001, Protocol: policy.TCP, SessionsAtEnd: policy.Keep},
	{Number: 3002, EndNumber: 3002, Protocol: policy.UDP, SessionsAtEnd: policy.Keep},
	{Number: 3003, EndNumber: 3004, Protocol: policy.Both, SessionsAtEnd: policy.Cut},
}

var twinProbed = []uint16{3001, 3002, 3003, 3004, 3005}

var twinSources = []netip.Addr{netip.MustParseAddr("10.64.0.1"), netip.MustParseAddr("10.64.0.2"), netip.MustParseAddr("10.64.0.3"), netip.MustParseAddr("fd64::1"), netip.MustParseAddr("fd64::2")}

func newTap(t *testing.T, pair fwtest.Pair) *tap {
	p := &tap{arrivals: arrivals{got: map[uint32]bool{}}, t: t, out: map[bool]*net.UDPConn{}, raw: map[netip.Addr]int{}}
	fwtest.In(t, pair.VM, func() {
		for _, network := range []string{"udp4", "udp6"} {
			for _, port := range append([]uint16{openPort}, twinProbed...) {
				in, err := net.ListenUDP(network, &net.UDPAddr{Port: int(port)})
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
							p.passed(binary.BigEndian.Uint32(b))
						}
					}
				}()
			}
		}
	})
	fwtest.In(t, pair.Outside, func() {
		for _, six := range []bool{false, true} {
			c, err := net.ListenUDP(map[bool]string{false: "udp4", true: "udp6"}[six], nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			p.out[six] = c
		}
		for _, a := range slices.Concat(outsides, twinSources) {
			p.raw[a] = p.openRaw(a)
		}
	})
	return p
}

// openRaw opens a socket that sends TCP from an address, and hears what comes
// back to it.
func (p *tap) openRaw(a netip.Addr) int {
	family, address := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(a.AsSlice()[:4])})
	if a.Is6() {
		family, address = unix.AF_INET6, &unix.SockaddrInet6{Addr: a.As16()}
	}
	fd, err := unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err == nil {
		err = unix.Bind(fd, address)
	}
	if err == nil {
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
	}
	if err != nil {
		p.t.Fatalf("raw socket of %s: %v", a, err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	p.t.Cleanup(func() {
		close(done)
		<-ended
		unix.Close(fd)
	})
	go func() {
		defer close(ended)
		for b := make([]byte, 256); ; {
			select {
			case <-done:
				return
			default:
			}
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err != nil {
				continue // nothing for a tenth of a second
			}
			segment := b[:n]
			if a.Is4() && n > 0 { // with its IP header
				segment = segment[min(n, int(b[0]&15)*4):]
			}
			if len(segment) >= 20 {
				p.passed(binary.BigEndian.Uint32(segment[8:]) - 1)
			}
		}
	}()
	return fd
}

// send sends a packet and returns its number.
func (p *tap) send(from netip.Addr, protocol firewall.Protocol, port uint16) uint32 {
	p.next++
	to := netip.MustParseAddr(fwtest.VM4)
	if from.Is6() {
		to = netip.MustParseAddr(fwtest.VM6)
	}
	var err error
	switch {
	case protocol == firewall.TCP:
		err = p.sendSYN(from, to, port)
	case from.Is4():
		as := unix.PktInfo4(&unix.Inet4Pktinfo{Spec_dst: from.As4()})
		_, _, err = p.out[false].WriteMsgUDPAddrPort(binary.BigEndian.AppendUint32(nil, p.next), as, netip.AddrPortFrom(to, port))
	default:
		as := unix.PktInfo6(&unix.Inet6Pktinfo{Addr: from.As16()})
		_, _, err = p.out[true].WriteMsgUDPAddrPort(binary.BigEndian.AppendUint32(nil, p.next), as, netip.AddrPortFrom(to, port))
	}
	if err != nil {
		p.t.Fatalf("send from %s: %v", from, err)
	}
	return p.next
}

// sendSYN sends a SYN whose sequence number is that of the packet, from a port
// of its own (RFC 9293, 3.1).
func (p *tap) sendSYN(from, to netip.Addr, port uint16) error {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, uint16(20000+p.next%40000))
	binary.BigEndian.PutUint16(b[2:], port)
	binary.BigEndian.PutUint32(b[4:], p.next)
	b[12], b[13] = 5<<4, 2
	binary.BigEndian.PutUint16(b[14:], 1024)
	pseudo := slices.Concat(from.AsSlice(), to.AsSlice(), []byte{0, unix.IPPROTO_TCP, 0, 20}, b)
	sum := uint32(0)
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(b[16:], ^uint16(sum))
	address := unix.Sockaddr(&unix.SockaddrInet4{Addr: [4]byte(to.AsSlice()[:4])})
	if to.Is6() {
		address = &unix.SockaddrInet6{Addr: to.As16()}
	}
	return unix.Sendto(p.raw[from], b, 0, address)
}

// outsides are sources of no guarded packet.
var outsides = []netip.Addr{netip.MustParseAddr(fwtest.Outside4), netip.MustParseAddr(fwtest.Outside6)}

// settled waits until every packet sent so far was judged.
func (p *tap) settled() {
	for range 100 {
		var sent []uint32
		for _, a := range outsides {
			sent = append(sent, p.send(a, firewall.UDP, openPort), p.send(a, firewall.TCP, openPort))
		}
		for end := time.Now().Add(200 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if !slices.ContainsFunc(sent, func(n uint32) bool { return !p.has(n) }) {
				return
			}
		}
	}
	p.t.Fatal("packets to an unguarded port do not arrive")
}

// twins are two agents that read the same inbox: one on nftables with real
// packets, one on the filtering platform of Windows as it is documented.
type twins struct {
	*round
	tap      *tap
	other    *Agent
	windows  *winMachine
	blocking bool // Windows Firewall blocks what no rule is about
	exempt   []netip.Prefix
	judged   int
}

func newTwins(t *testing.T, f *office, pair fwtest.Pair, tap *tap, dir string, blocking bool) (*twins, error) {
	d := &twins{round: &round{t: t, pair: pair, origin: BootNow(), owned: true}, tap: tap, blocking: blocking}
	d.play = &play{office: f, ledger: newLedger(), oracle: newOracle()}
	d.tick()
	b, err := nft.Open(BootNow)
	if err != nil {
		return nil, err
	}
	d.backend = b
	if err := d.settle(dir); err != nil {
		return nil, err
	}
	d.windows = newWindows(BootNow).(*winMachine)
	if blocking {
		d.windows.platform.Firewall.Profiles[wfptest.Public] = wfptest.ProfileState{On: true}
	}
	settings := d.Settings
	settings.StateDir += "-windows"
	d.other = &Agent{Settings: settings, Backend: d.windows, Audit: newLedger(), Log: d.Log, Machine: d.Machine, Clock: d.Clock}
	d.other.inbox.patience = withoutHurry
	if err := os.MkdirAll(settings.StateDir, 0o700); err != nil {
		return nil, err
	}
	d.other.Load()
	return d, cmp.Or(d.policy(), d.deliverList(), d.both(onePass))
}

// policy delivers one that guards the ports, with the exempt sources there are.
func (d *twins) policy() error {
	doc := policy.Policy{Header: d.header(Policy), Host: policy.Host{ID: d.Settings.HostID}, MaxGrantsAge: 6 * time.Hour, ExemptSources: d.exempt}
	for _, p := range twinPorts {
		p.MaxRequestAccessDuration = 3 * time.Hour
		p.AllowedSources = []netip.Prefix{netip.MustParsePrefix("10.64.0.0/10"), netip.MustParsePrefix("fd64::/16")}
		doc.Ports = append(doc.Ports, p)
	}
	return d.sign(&paper{kind: Policy, host: doc.Host.ID, version: doc.Version, issued: doc.Issued, expires: doc.Expires, policy: doc}, policy.TypePolicy, doc.Encode(), d.office.policy)
}

// onePass is one pass of an agent.
func onePass(a *Agent, t *testing.T) error { _, err := a.Step(t.Context()); return err }

// both has both agents do the same at the same time.
func (d *twins) both(do func(*Agent, *testing.T) error) error {
	d.tick()
	a, b := do(d.Agent, d.t), do(d.other, d.t)
	if (a == nil) != (b == nil) {
		return fmt.Errorf("one fails, the other does not: %v, %v", a, b)
	}
	return nil
}

// do carries out an operation, and a pass.
func (d *twins) do(o operation) error {
	d.tick()
	i := d.index(o.what)
	pass := func() error { return d.both(onePass) }
	switch o.do {
	case "grant":
		start := noon.Add(d.lived).Truncate(time.Second)
		d.wanted = append(d.wanted, policy.Grant{ID: o.what, Number: o.port, Sources: []netip.Prefix{netip.MustParsePrefix(o.source)}, Start: start, End: start.Add(o.length), Requestor: "alice"})
		return cmp.Or(d.deliverList(), pass())
	case "revoke":
		if i >= 0 {
			d.wanted = slices.Delete(d.wanted, i, i+1)
		}
		return cmp.Or(d.deliverList(), pass())
	case "extend":
		if i >= 0 {
			d.wanted[i].End = d.wanted[i].End.Add(o.length)
		}
		return cmp.Or(d.deliverList(), pass())
	case "exempt":
		d.exempt = nil
		if o.source != "" {
			d.exempt = []netip.Prefix{netip.MustParsePrefix(o.source)}
		}
		return cmp.Or(d.policy(), pass())
	case "lockdown":
		return d.both(func(a *Agent, t *testing.T) error { return a.endAll(t.Context(), "uid 0") })
	case "arm":
		return d.both(func(a *Agent, t *testing.T) error {
			_, err := a.arm(t.Context(), "uid 0", o.length, nil)
			return err
		})
	case "confirm":
		return d.both(func(a *Agent, t *testing.T) error { return a.confirm(t.Context(), "uid 0") })
	case "disarm":
		return d.both(func(a *Agent, t *testing.T) error { return a.disarm(t.Context(), "uid 0", Mode(o.what)) })
	case "wait": // nobody acts
		time.Sleep(o.length)
		return nil
	}
	return fmt.Errorf("%s: no such operation", o.do)
}

// margin is how near an end of something packets are not judged: the kernel
// counts in ticks, from when a message arrives.
const margin = 500 * time.Millisecond

// compare sends packets from everywhere to everything, and holds what became of
// them against the platform of Windows.
func (d *twins) compare() error {
	type packet struct {
		firewall.Door
		n    uint32
		want bool
	}
	for range 20 {
		next := d.windows.Expire()
		if left := next.Sub(BootNow()); left < margin {
			time.Sleep(max(0, left) + margin)
			continue
		}
		d.tick()
		mode := d.other.mode()
		var all []packet
		for _, a := range twinSources {
			for _, port := range twinProbed {
				for _, protocol := range []firewall.Protocol{firewall.TCP, firewall.UDP} {
					door := firewall.Door{Source: netip.PrefixFrom(a, a.BitLen()), Protocol: protocol, Port: port}
					if d.blocking && (mode.Mode != Enforce || mode.trial != 0 || !fwtest.Guards(d.other.have.Ports, door)) {
						continue // there Windows Firewall has the say, by design
					}
					all = append(all, packet{door, d.tap.send(a, protocol, port), d.windows.platform.Admits(door)})
				}
			}
		}
		d.tap.settled()
		if BootNow().Add(margin) >= next {
			continue // something may have ended meanwhile
		}
		for _, p := range all {
			got := d.tap.has(p.n)
			for tries, n := 0, p.n; !got && p.want && tries < 10; tries++ { // a busy machine loses one
				if BootNow().Add(margin) >= next {
					got = true // it need not pass any more
				} else if got = d.tap.reaches(n, 300*time.Millisecond); !got {
					n = d.tap.send(p.Source.Addr(), p.Protocol, p.Port)
				}
			}
			if got != p.want {
				return fmt.Errorf("%s: through nftables %t, on Windows %t", p.Door, got, p.want)
			}
			d.judged++
		}
		return nil
	}
	return errors.New("something ends all the time: nothing was judged")
}

// playTwins plays a schedule out, and reports how many packets were judged.
func playTwins(t *testing.T, f *office, pair fwtest.Pair, tap *tap, dir string, blocking bool, list []operation) (judged int, err error) {
	d, err := newTwins(t, f, pair, tap, dir, blocking)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.backend.Remove(t.Context()), d.backend.Close()) }()
	if err := d.compare(); err != nil {
		return 0, err
	}
	for i, o := range list {
		if err := cmp.Or(d.do(o), d.compare()); err != nil {
			return d.judged, fmt.Errorf("operation %d, %q, %s after the start: %w", i+1, o, d.lived.Round(10*time.Millisecond), err)
		}
	}
	return d.judged, nil
}

// drawTwins makes a random schedule.
func drawTwins(r *rand.Rand, n int) (list []operation) {
	source := func() string {
		a := twinSources[r.IntN(len(twinSources))]
		bits := [...]int{0, 1, 2, 8}[r.IntN(4)]
		return netip.PrefixFrom(a, a.BitLen()-bits).Masked().String()
	}
	seconds := func(least, most int) time.Duration { return time.Duration(least+r.IntN(most-least)) * time.Second }
	grants := 0
	for len(list) < n {
		some := fmt.Sprint("g", 1+r.IntN(grants+1))
		var o operation
		switch n := r.IntN(20); {
		case n < 8:
			grants++
			o = operation{do: "grant", what: fmt.Sprint("g", grants), source: source(), port: twinProbed[r.IntN(4)], length: [...]time.Duration{seconds(3, 5), time.Hour}[r.IntN(2)]}
		case n < 11:
			o = operation{do: "revoke", what: some}
		case n < 13:
			o = operation{do: "extend", what: some, length: seconds(1, 4)}
		case n < 15:
			o = operation{do: "wait", length: seconds(1, 4)}
		case n < 16:
			o = operation{do: "exempt", source: []string{"", source()}[r.IntN(2)]}
		case n < 17:
			o = operation{do: "lockdown"}
		case n < 18:
			o = operation{do: "disarm", what: []string{string(Observe), string(Off)}[r.IntN(2)]}
		case n < 19:
			o = operation{do: "arm", length: seconds(5, 8)}
		default:
			o = operation{do: "confirm"}
		}
		list = append(list, o)
	}
	return list
}

// The same documents, the same commands, the same times: what nftables lets
// through, in real packets, is what Windows lets through as it is documented.
func TestSameOnBothPlatforms(t *testing.T) {
	fwtest.Privileged(t)
	base := *seed
	if base == 0 {
		base = rand.Uint64()
	}
	const schedules, operations = 8, 12
	t.Logf("%d schedules, repeat with -seed %d", schedules, base)
	f := newOffice(t)
	pair := fwtest.NewPair(t)
	dir := memoryDir(t)
	fwtest.In(t, pair.VM, func() {
		tap := newTap(t, pair)
		tap.settled()
		judged, runs := 0, 0
		run := func(blocking bool, list []operation) (int, error) {
			runs++
			return playTwins(t, f, pair, tap, fmt.Sprint(dir, "/", runs), blocking, list)
		}
		for n := range schedules {
			blocking := n%2 == 1
			list := drawTwins(rand.New(rand.NewPCG(base, uint64(n))), operations)
			j, err := run(blocking, list)
			judged += j
			if err == nil {
				continue
			}
			list = shrink(list, func(l []operation) bool {
				_, err := run(blocking, l)
				return err != nil && runs < 60
			})
			t.Errorf("schedule %d of seed %d, Windows Firewall blocks by default: %t; as short as it gets:\n%s%v", n, base, blocking, scheduleText(list), err)
			return
		}
		t.Logf("%d packets judged", judged)
		if judged < schedules*operations*10 {
			t.Error("too few packets were judged: the generator is off")
		}
	})
}
