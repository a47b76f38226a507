//go:build linux

package nft_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
)

// A zoo is a VM with all around it: the outside, and two containers on a
// bridge of the VM. Probes carry a number; sockets note the numbers they see.
type zoo struct {
	t        testing.TB
	pair     fwtest.Pair
	in, peer string // the containers
	link     int    // the outside's end of the cable
	mac      [6]byte
	b        *nft.Backend
	ports    []firewall.Port
	next     atomic.Uint32

	mu   sync.Mutex
	seen map[uint32]bool
	ears map[string]bool
}

// The addresses on the bridge: the VM's, and those of the containers.
const (
	bridge4, in4, peer4 = "172.30.0.1", "172.30.0.2", "172.30.0.3"
	bridge6, in6, peer6 = "fd30::1", "fd30::2", "fd30::3"
	link6               = "fe80::99" // the VM's on the cable
)

func newZoo(t testing.TB) *zoo {
	pair := fwtest.NewPair(t)
	z := &zoo{t: t, pair: pair, in: pair.VM + "-in", peer: pair.VM + "-peer", seen: map[uint32]bool{}, ears: map[string]bool{}}
	t.Cleanup(func() {
		for _, n := range []string{z.in, z.peer} {
			_ = exec.Command("ip", "netns", "del", n).Run() // gone already is fine
		}
	})
	z.run(`
ip netns add $IN
ip netns add $PEER
ip -n $VM link add br0 type bridge
ip -n $VM addr add 172.30.0.1/24 dev br0
ip -n $VM addr add fd30::1/64 dev br0 nodad
container() { # namespace number
	ip link add b$2 netns $VM type veth peer name c0 netns $1
	ip -n $VM link set b$2 master br0 up
	ip -n $1 addr add 172.30.0.$2/24 dev c0
	ip -n $1 addr add fd30::$2/64 dev c0 nodad
	ip -n $1 link set c0 up
	ip -n $1 link set lo up
	ip -n $1 route add default via 172.30.0.1
	ip -n $1 route add default via fd30::1
}
container $IN 2
container $PEER 3
ip -n $VM link set br0 up
ip -n $OUT route add default via 192.168.99.1
ip -n $OUT route add default via fd99::1
ip -n $VM addr add fe80::99/64 dev v0 nodad
vm sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.br0.rp_filter=0
`)
	device := func(name string) *net.Interface {
		d, err := net.InterfaceByName(name)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	fwtest.In(t, pair.Outside, func() { z.link = device("o0").Index })
	fwtest.In(t, pair.VM, func() { copy(z.mac[:], device("v0").HardwareAddr) })
	z.listen("VM tcp 22", "VM tcp 7", "VM udp 7", "IN tcp 22", "IN udp 22", "PEER tcp 22", "OUT tcp 22", "OUT udp 22")
	return z
}

// namespace is the namespace scripts call $name.
func (z *zoo) namespace(name string) string {
	return map[string]string{"VM": z.pair.VM, "OUT": z.pair.Outside, "IN": z.in, "PEER": z.peer}[name]
}

// try runs a script: vm, out, in and peer run a command in their namespaces,
// and $VM, $OUT, $IN and $PEER are their names.
func (z *zoo) try(script string) error {
	head := ""
	for _, name := range []string{"VM", "OUT", "IN", "PEER"} {
		head += name + "=" + z.namespace(name) + "\n"
	}
	head += "vm() { ip netns exec $VM \"$@\"; }\nout() { ip netns exec $OUT \"$@\"; }\n"
	if out, err := exec.Command("sh", "-ec", head+script).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func (z *zoo) run(script string) {
	z.t.Helper()
	if err := z.try(script); err != nil {
		z.t.Fatalf("%v\nin: %s", err, script)
	}
}

// guard applies the ruleset, as a first agent or as the one that runs.
func (z *zoo) guard(ports []firewall.Port, doors ...string) {
	z.t.Helper()
	// Somebody else is granted everything.
	want := firewall.Ruleset{Ports: ports, Openings: map[firewall.Door]firewall.End{}}
	for _, d := range append(doors, "10.127.0.1/32", "fd64:ffff::1/128") {
		source, port, _ := strings.Cut(d, " ")
		want.Openings[fwtest.Door(z.t, source, port)] = firewall.End{Until: bootNow().Add(time.Hour)}
	}
	fwtest.In(z.t, z.pair.VM, func() {
		if z.b == nil {
			z.b = open(z.t)
		}
		apply(z.t, z.b, want)
	})
	z.ports = ports
}

// A probe sends a packet with the number n, and does not wait.
type probe struct {
	what string
	send func(z *zoo, n uint32)
}

// word is the number as packets carry it.
func word(n uint32) []byte { return binary.BigEndian.AppendUint32([]byte("jgZ!"), n) }

// note takes down the number in what a socket received.
func (z *zoo) note(b []byte) {
	if i := bytes.Index(b, []byte("jgZ!")); i >= 0 && len(b) >= i+8 {
		z.mu.Lock()
		z.seen[binary.BigEndian.Uint32(b[i+4:])] = true
		z.mu.Unlock()
	}
}

func (z *zoo) has(n uint32) bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return z.seen[n]
}

// listen opens sockets, each "namespace kind port [device]" once: tcp, udp and
// udplite of both families, tproxy, or raw4 and raw6 of a protocol.
func (z *zoo) listen(sockets ...string) {
	z.t.Helper()
	for _, s := range sockets {
		if z.ears[s] {
			continue
		}
		z.ears[s] = true
		f := strings.Fields(s)
		device := ""
		if len(f) > 3 {
			device = f[3]
		}
		var port int
		fmt.Sscan(f[2], &port)
		fwtest.In(z.t, z.namespace(f[0]), func() {
			if err := z.socket(f[1], port, device); err != nil {
				z.t.Fatalf("%s: %v", s, err)
			}
		})
	}
}

func (z *zoo) socket(kind string, port int, device string) error {
	family, typ, protocol := unix.AF_INET6, unix.SOCK_DGRAM, 0
	switch kind {
	case "tcp":
		typ = unix.SOCK_STREAM
	case "udplite":
		protocol = unix.IPPROTO_UDPLITE
	case "tproxy":
		family = unix.AF_INET
	case "raw4":
		family, typ, protocol, port = unix.AF_INET, unix.SOCK_RAW, port, 0
	case "raw6":
		typ, protocol, port = unix.SOCK_RAW, port, 0
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), kind)
	z.t.Cleanup(func() { file.Close() })
	if device != "" {
		if err := unix.BindToDevice(fd, device); err != nil {
			return err
		}
	}
	if typ == unix.SOCK_STREAM {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
	}
	if kind == "tproxy" {
		unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port}); err != nil {
			return err
		}
	}
	if family == unix.AF_INET6 && typ != unix.SOCK_RAW {
		if err := unix.Bind(fd, &unix.SockaddrInet6{Port: port}); err != nil {
			return err
		}
	}
	if typ != unix.SOCK_STREAM {
		go func() {
			for b := make([]byte, 9000); ; {
				n, err := file.Read(b)
				if err != nil && errors.Is(err, os.ErrClosed) {
					return
				}
				z.note(b[:max(n, 0)])
			}
		}()
		return nil
	}
	if err := unix.Listen(fd, 64); err != nil {
		return err
	}
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	z.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(5 * time.Second))
				b := make([]byte, 8)
				io.ReadFull(c, b)
				z.note(b)
			}()
		}
	}()
	return nil
}

// relay is the userland proxy of a container engine.
func (z *zoo) relay(port int, to string) {
	fwtest.In(z.t, z.pair.VM, func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		if err != nil {
			z.t.Fatal(err)
		}
		z.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				b := make([]byte, 8)
				c.SetDeadline(time.Now().Add(5 * time.Second))
				io.ReadFull(c, b)
				c.Close()
				done := make(chan struct{})
				go func() { // a namespace is entered by its thread
					defer close(done)
					fwtest.In(z.t, z.pair.VM, func() {
						if c, err := net.Dial("tcp", to); err == nil {
							c.Write(b)
							c.Close()
						}
					})
				}()
				<-done
			}
		}()
	})
}

// source is a source port no other probe of the zoo takes: what conntrack
// knows of one must not help another.
func source(n uint32) int { return 20000 + int(n%12000) }

// from sends to an address and port by an ordinary socket of a namespace:
// tcp, udp, udplite, or udp of 4,000 bytes ("long").
func from(namespace, kind, address string, port int, local ...string) probe {
	what := fmt.Sprintf("%s from %s to %s port %d", kind, namespace, address, port)
	return probe{what, func(z *zoo, n uint32) {
		fwtest.In(z.t, z.namespace(namespace), func() {
			typ, protocol, text := unix.SOCK_DGRAM, 0, word(n)
			switch kind {
			case "tcp":
				typ = unix.SOCK_STREAM
			case "udplite":
				protocol = unix.IPPROTO_UDPLITE
			case "long":
				text = append(text, make([]byte, 4000)...)
			}
			a := netip.MustParseAddr(address)
			family := unix.AF_INET
			if a.Is6() {
				family = unix.AF_INET6
			}
			fd, err := unix.Socket(family, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, protocol)
			if err != nil {
				z.t.Fatal(err)
			}
			bound := netip.Addr{}
			if len(local) > 0 {
				bound = netip.MustParseAddr(local[0])
			} else if bound = netip.IPv4Unspecified(); a.Is6() {
				bound = netip.IPv6Unspecified()
			}
			if err := unix.Bind(fd, sockaddr(bound, source(n))); err != nil {
				unix.Close(fd)
				return // taken for the moment: the probe is sent again
			}
			err = unix.Connect(fd, sockaddr(a, port))
			if typ != unix.SOCK_STREAM {
				if err == nil {
					unix.Write(fd, text)
				}
				unix.Close(fd)
				return
			}
			go func() {
				defer unix.Close(fd)
				ready, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 400)
				failed, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
				if err == nil && ready == 1 && failed == 0 {
					z.note(text) // a handshake is enough
					unix.Write(fd, text)
				}
			}()
		})
	}}
}

func sockaddr(a netip.Addr, port int) unix.Sockaddr {
	if a.Is4() {
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16()}
}

// wire sends packets made by hand from the outside straight to the VM's link
// address, past every check of the sender's kernel.
func wire(what string, packets func(n uint32) [][]byte) probe {
	return probe{what, func(z *zoo, n uint32) {
		fwtest.In(z.t, z.pair.Outside, func() {
			fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				z.t.Fatal(err)
			}
			defer unix.Close(fd)
			for _, p := range packets(n) {
				to := unix.SockaddrLinklayer{Protocol: bigEndian(unix.ETH_P_IP), Ifindex: z.link, Halen: 6}
				if p[0]>>4 == 6 {
					to.Protocol = bigEndian(unix.ETH_P_IPV6)
				}
				copy(to.Addr[:], z.mac[:])
				if err := unix.Sendto(fd, p, 0, &to); err != nil {
					z.t.Fatal(err)
				}
			}
		})
	}}
}

func bigEndian(n uint16) uint16 { return n<<8 | n>>8 }

// A packet is written by hand.
type packet struct {
	from, to     string
	protocol     byte
	sport, dport int
	flags        byte   // of TCP
	options      []byte // of IPv4, in fours
	headers      []byte // of IPv6, before the transport; the first byte of each names the next
	first        byte   // the protocol number of the first of those
	long         int    // more payload
}

// The flags of TCP.
const (
	fin, syn, rst, ack = 1, 2, 4, 16
)

func (p packet) to16() []byte { return netip.MustParseAddr(p.to).AsSlice() }

// transport returns the transport header and payload.
func (p packet) transport(n uint32) []byte {
	if p.sport == 0 {
		p.sport = source(n)
	}
	text := append(word(n), make([]byte, p.long)...)
	b := binary.BigEndian.AppendUint16(nil, uint16(p.sport))
	b = binary.BigEndian.AppendUint16(b, uint16(p.dport))
	sum := 0
	switch p.protocol {
	case unix.IPPROTO_TCP:
		b = binary.BigEndian.AppendUint32(b, n)
		acked := uint32(0)
		if p.flags&ack != 0 {
			acked = 1
		}
		b = binary.BigEndian.AppendUint32(b, acked)
		b = append(b, 5<<4, p.flags, 0xff, 0xff, 0, 0, 0, 0)
		sum = 16
	case unix.IPPROTO_UDP:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
		b = append(b, 0, 0)
		sum = 6
	case unix.IPPROTO_UDPLITE:
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(text)))
		b = append(b, 0, 0)
		sum = 6
	case unix.IPPROTO_DCCP:
		// A request: data offset 5 words, no options.
		b = append(b, 5, 0, 0, 0, 0<<1|1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0)
		sum = 6
	default: // SCTP: tag and checksum, which a raw socket does not look at
		b = append(b, 0, 0, 0, 0, 0, 0, 0, 0)
		b = append(b, 1, 0, 0, byte(4+len(text))) // INIT
	}
	b = append(b, text...)
	if sum > 0 {
		c := checksum(p.from, p.to, p.protocol, b)
		binary.BigEndian.PutUint16(b[sum:], c)
	}
	return b
}

func checksum(from, to string, protocol byte, b []byte) uint16 {
	pseudo := append(netip.MustParseAddr(from).AsSlice(), netip.MustParseAddr(to).AsSlice()...)
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(b)))
	pseudo = append(pseudo, 0, 0, 0, protocol)
	if c := sum16(append(pseudo, b...)); c != 0 {
		return c
	}
	return 0xffff
}

func sum16(b []byte) uint16 {
	if len(b)%2 == 1 {
		b = append(b[:len(b):len(b)], 0)
	}
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// whole returns the packet in one piece.
func (p packet) whole(n uint32) [][]byte {
	if strings.Contains(p.to, ":") {
		next := p.protocol
		if len(p.headers) > 0 {
			next = p.first
		}
		return [][]byte{ip6(p.from, p.to, next, append(bytes.Clone(p.headers), p.transport(n)...))}
	}
	return [][]byte{ip4(p.from, p.to, p.protocol, p.options, uint16(n), 0, p.transport(n))}
}

func ip4(from, to string, protocol byte, options []byte, id, fragment uint16, payload []byte) []byte {
	b := []byte{4<<4 | byte(5+len(options)/4), 0}
	b = binary.BigEndian.AppendUint16(b, uint16(20+len(options)+len(payload)))
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, fragment)
	b = append(b, 64, protocol, 0, 0)
	b = append(b, netip.MustParseAddr(from).AsSlice()...)
	b = append(b, netip.MustParseAddr(to).AsSlice()...)
	b = append(b, options...)
	binary.BigEndian.PutUint16(b[10:], sum16(b))
	return append(b, payload...)
}

func ip6(from, to string, next byte, payload []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 6<<28)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	b = append(b, next, 64)
	b = append(b, netip.MustParseAddr(from).AsSlice()...)
	b = append(b, netip.MustParseAddr(to).AsSlice()...)
	return append(b, payload...)
}

// pieces returns the packet as fragments that end at the given offsets, all
// multiples of 8, with what is left as the last one.
func (p packet) pieces(n uint32, ends ...int) (out [][]byte) {
	whole := p.transport(n)
	start := 0
	for i, end := range append(ends, len(whole)) {
		more := uint16(1)
		if i == len(ends) {
			more = 0
		}
		piece := whole[start:end]
		if strings.Contains(p.to, ":") {
			h := []byte{p.protocol, 0}
			h = binary.BigEndian.AppendUint16(h, uint16(start)|more)
			h = binary.BigEndian.AppendUint32(h, n)
			out = append(out, ip6(p.from, p.to, unix.IPPROTO_FRAGMENT, append(h, piece...)))
		} else {
			out = append(out, ip4(p.from, p.to, p.protocol, p.options, uint16(n), uint16(start/8)|more<<13, piece))
		}
		start = end
	}
	return out
}

// extension is a header of IPv6 options of 8 bytes and eight times more: one
// option nobody knows, to be skipped.
func extension(next byte, more int) []byte {
	b := make([]byte, 8+8*more)
	b[0], b[1], b[2], b[3] = next, byte(more), 0x1e, byte(len(b)-4)
	return b
}

// arrives sends the probe until it is seen.
func (z *zoo) arrives(p probe) bool {
	for range 25 {
		n := z.next.Add(1)
		p.send(z, n)
		for range 400 {
			if z.has(n) {
				return true
			}
			time.Sleep(time.Millisecond)
		}
	}
	return false
}

// through sends every probe once and returns those that were seen by the time
// later packets, of both families and to a port without a guard, had been,
// and a little after.
func (z *zoo) through(probes []probe) (out []string) {
	z.t.Helper()
	sent := map[uint32]string{}
	for range 2 {
		for _, p := range probes {
			n := z.next.Add(1)
			sent[n] = p.what
			p.send(z, n)
		}
	}
	for _, to := range []string{fwtest.VM4, fwtest.VM6} {
		if !z.arrives(from("OUT", "udp", to, 7)) {
			z.t.Fatal("packets to a port without a guard do not arrive")
		}
	}
	time.Sleep(50 * time.Millisecond)
	for n, what := range sent {
		if z.has(n) {
			out = append(out, what)
		}
	}
	return out
}

// neighbours is the traffic that is none of the guard's business.
func neighbours() []probe {
	return []probe{
		from("OUT", "tcp", fwtest.VM4, 7), from("OUT", "tcp", fwtest.VM6, 7), // a port without a guard
		from("OUT", "tcp", in4, 22), from("OUT", "tcp", in6, 22), // forwarded in
		from("OUT", "udp", in4, 22), from("OUT", "long", in6, 22),
		from("IN", "tcp", fwtest.Outside4, 22), from("IN", "tcp", fwtest.Outside6, 22), // forwarded out
		from("IN", "tcp", peer4, 22), from("IN", "tcp", peer6, 22), // bridged
		from("VM", "tcp", fwtest.Outside4, 22), from("VM", "tcp", fwtest.Outside6, 22), // its own connections
		from("VM", "tcp", fwtest.VM4, 22), from("VM", "tcp", "::1", 22), // to itself
	}
}

// arriving tells which of the probes arrive: all at once first, then one by
// one what did not.
func (z *zoo) arriving(probes []probe) []bool {
	out, first := make([]bool, len(probes)), z.next.Add(uint32(len(probes)))-uint32(len(probes))+1
	for i, p := range probes {
		p.send(z, first+uint32(i))
	}
	for i, p := range probes {
		for j := 0; j < 300 && !z.has(first+uint32(i)); j++ {
			time.Sleep(time.Millisecond)
		}
		out[i] = z.has(first+uint32(i)) || z.arrives(p)
	}
	return out
}
