//go:build linux

package nft_test

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall/fwtest"
)

// An animal is a way to a socket behind a guarded port.
type animal struct {
	name   string
	needs  string   // a script that fails where the kernel lacks what this takes
	build  string   // a script, run once
	listen []string // sockets, see zoo.listen
	relay  string   // "port address" of a proxy in the VM
	probes []probe
	guard  []string // guarded ports
	doors  []string // openings that let all the probes pass; none: nothing does
	blind  bool     // the kernel drops the probes without the guard too
	alone  bool     // shares no zoo with others
	// Without the guard these neighbours of it arrive, and with it.
	passes []probe
}

func (a animal) prepare(z *zoo) {
	z.t.Helper()
	z.listen(a.listen...)
	z.run(a.build)
	if a.relay != "" {
		var port int
		var to string
		fmt.Sscan(a.relay, &port, &to)
		z.relay(port, to)
	}
}

// A kind makes animals of one sort, for any family, protocol and ports.
type kind struct {
	name string
	make func(w way) animal
}

// A way is what a kind may vary. Port guarded is guarded, other is not.
type way struct {
	v6             bool
	proto          string // tcp or udp
	guarded, other int
	cut            bool
}

func (w way) family(v4, v6 string) string {
	if w.v6 {
		return v6
	}
	return v4
}
func (w way) vm() string      { return w.family(fwtest.VM4, fwtest.VM6) }
func (w way) outside() string { return w.family(fwtest.Outside4, fwtest.Outside6) }
func (w way) inner() string   { return w.family(in4, in6) }
func (w way) bits() string    { return w.family("/32", "/128") }
func (w way) rule() string {
	s := fmt.Sprintf("%d/%s", w.guarded, w.proto)
	if w.cut {
		s += " cut"
	}
	return s
}

// tiny is the length of the smallest first fragment: with IPv6 the kernel
// insists on the whole header of the transport.
func (w way) tiny() int {
	if w.v6 && w.proto == "tcp" {
		return 24
	}
	return 8
}

// opens is the opening for a source to the guarded port.
func (w way) opens(source string) string {
	return fmt.Sprintf("%s%s %d/%s", source, w.bits(), w.guarded, w.proto)
}

// nft fills a ruleset in.
func (w way) nft(rules string) string {
	return "vm nft -f - <<END\n" + strings.NewReplacer(
		"IP", w.family("ip", "ip6"), "PROTO", w.proto, "GUARDED", fmt.Sprint(w.guarded), "OTHER", fmt.Sprint(w.other),
		"INNER", w.inner(), "SOCKET", w.family(in4+":22", "["+in6+"]:22"), "NAME", fmt.Sprintf("z%s%d", w.proto, w.guarded)).Replace(rules) + "\nEND\n"
}

var protocols = map[string]byte{"tcp": unix.IPPROTO_TCP, "udp": unix.IPPROTO_UDP}

func (w way) socket(namespace string, port int) string {
	return fmt.Sprintf("%s %s %d", namespace, w.proto, port)
}

// publish is a rule that sends the guarded port to the container, in a nat
// chain of the given family and priority.
func publish(family string, priority int) func(way) animal {
	return func(w way) animal {
		table, of := w.family("ip", "ip6"), ""
		if family == "inet" {
			table, of = "inet", "IP "
		}
		return animal{
			build: w.nft(fmt.Sprintf(`table %s NAME {
 chain pre { type nat hook prerouting priority %d; fib daddr type local PROTO dport GUARDED dnat %sto SOCKET; }
 chain post { type nat hook postrouting priority 100; IP saddr INNER/24 IP daddr INNER/24 masquerade; }
}`, table, priority, of)),
			listen: []string{w.socket("IN", 22)},
			// From outside, at the address of another device too, and from
			// another container by way of the VM.
			probes: []probe{from("OUT", w.proto, w.vm(), w.guarded), from("OUT", w.proto, w.family(bridge4, bridge6), w.guarded),
				from("PEER", w.proto, w.family(bridge4, bridge6), w.guarded)},
			guard: []string{w.rule()},
			doors: []string{w.opens(w.outside()), w.opens(w.family(peer4, peer6))},
		}
	}
}

// iptables is a published port as container engines write it.
func iptables(program string) func(way) animal {
	return func(w way) animal {
		command, to := program, w.inner()
		if w.v6 {
			command, to = strings.Replace(program, "iptables", "ip6tables", 1), "["+to+"]"
		}
		return animal{
			needs: "vm " + program + " -t nat -S",
			build: strings.NewReplacer("CMD", command, "PROTO", w.proto, "GUARDED", fmt.Sprint(w.guarded), "TO", to, "DOCK", fmt.Sprintf("DOCKER%d", w.guarded)).Replace(`
vm CMD -t nat -N DOCK
vm CMD -t nat -I PREROUTING -m addrtype --dst-type LOCAL -j DOCK
vm CMD -t nat -A DOCK -p PROTO --dport GUARDED -j DNAT --to-destination TO:22
`),
			listen: []string{w.socket("IN", 22)},
			probes: []probe{from("OUT", w.proto, w.vm(), w.guarded)},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
		}
	}
}

// rewrites is a table in the VM behind which a socket answers.
func rewrites(rules string, port func(way) int, socket func(way) string) func(way) animal {
	return func(w way) animal {
		return animal{
			build:  w.nft(rules),
			listen: []string{socket(w)},
			probes: []probe{from("OUT", w.proto, w.vm(), port(w))},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
		}
	}
}

func theGuarded(w way) int { return w.guarded }
func theOther(w way) int   { return w.other }

func atGuarded(w way) string   { return w.socket("VM", w.guarded) }
func atOther(w way) string     { return w.socket("VM", w.other) }
func inContainer(w way) string { return w.socket("IN", 22) }

// addressed is a socket on every address, and one more of those.
func addressed(v4, v6, build string) func(way) animal {
	return func(w way) animal {
		if strings.Contains(build, " table ") && !w.v6 {
			// The address is not the VM's own for what it sends; in main neither,
			// once there is a policy rule.
			w.proto = "udp"
		}
		a := w.family(v4, v6)
		a, n := strings.ReplaceAll(a, "N", fmt.Sprint(w.guarded%200+10)), fmt.Sprint(w.guarded)
		long := "/32"
		if w.v6 {
			long = "/128"
		}
		return animal{
			build: strings.NewReplacer("ADDRESS", a+long, "FAMILY", w.family("-4", "-6"), "MARK", n, "TABLE", n, "PROTO", w.proto, "GUARDED", n,
				"SOURCE", w.outside(), "IP", w.family("ip", "ip6")).Replace(build),
			listen: []string{atGuarded(w)},
			probes: []probe{from("OUT", w.proto, a, w.guarded)},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
		}
	}
}

// by is a packet made by hand. One of TCP is seen by a raw socket, to which
// the kernel gives what it delivers to this host.
func by(packets func(w way, p packet, n uint32) [][]byte) func(way) animal {
	return func(w way) animal {
		p := packet{from: w.outside(), to: w.vm(), protocol: protocols[w.proto], dport: w.guarded, flags: syn}
		socket := w.socket("VM", w.guarded)
		if w.proto == "tcp" {
			socket = w.family("VM raw4 6", "VM raw6 6")
		}
		return animal{
			listen: []string{socket},
			probes: []probe{wire(w.proto+" by hand", func(n uint32) [][]byte { return packets(w, p, n) })},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
		}
	}
}

// kinds is what random combinations are made of.
var kinds = []kind{
	{"direct", addressed(fwtest.VM4, fwtest.VM6, "")},
	{"published", publish("ip", -100)},
	{"published early", publish("ip", -150)},
	{"published by the earliest nat chain", publish("ip", -199)},
	{"published in inet", publish("inet", -198)},
	{"published by iptables-nft", iptables("iptables-nft")},
	{"published by iptables-legacy", iptables("iptables-legacy")},
	{"published as Podman does", rewrites(`table inet NAME {
 chain pre { type nat hook prerouting priority dstnat; fib daddr type local jump hostports; }
 chain hostports { PROTO dport GUARDED jump container; }
 chain container { IP saddr INNER/24 meta mark set meta mark | 0x2000; PROTO dport GUARDED dnat IP to SOCKET; }
}`, theGuarded, inContainer)},
	{"redirected to the guarded port", rewrites(`table IP NAME { chain pre { type nat hook prerouting priority dstnat; PROTO dport OTHER redirect to :GUARDED; }; }`, theOther, atGuarded)},
	{"redirected from the guarded port", rewrites(`table IP NAME { chain pre { type nat hook prerouting priority dstnat; PROTO dport GUARDED redirect to :OTHER; }; }`, theGuarded, atOther)},
	{"port rewritten before mangle", rewrites(`table IP NAME { chain pre { type filter hook prerouting priority -198; udp dport OTHER udp dport set GUARDED; tcp dport OTHER tcp dport set GUARDED; }
 chain out { type filter hook output priority -198; tcp sport GUARDED tcp sport set OTHER; }; }`, theOther, atGuarded)},
	{"port rewritten in raw", rewrites(`table IP NAME { chain pre { type filter hook prerouting priority raw; PROTO dport OTHER PROTO dport set GUARDED; }
 chain out { type filter hook postrouting priority 300; tcp sport GUARDED tcp sport set OTHER; }; }`, theOther, atGuarded)},
	{"port rewritten away before mangle", rewrites(`table IP NAME { chain pre { type filter hook prerouting priority -198; PROTO dport GUARDED PROTO dport set OTHER; }
 chain out { type filter hook output priority -198; tcp sport OTHER tcp sport set GUARDED; }; }`, theGuarded, atOther)},
	{"address rewritten before mangle", func(w way) animal {
		w.proto = "udp" // its answers would come from elsewhere
		a := rewrites(`table IP NAME { chain pre { type filter hook prerouting priority -198; udp dport GUARDED IP daddr set INNER udp dport set 22; }; }`, theGuarded, inContainer)(w)
		return a
	}},
	{"not tracked", rewrites(`table IP NAME { chain pre { type filter hook prerouting priority raw; PROTO dport GUARDED notrack; }
 chain out { type filter hook output priority raw; PROTO sport GUARDED notrack; }; }`, theGuarded, atGuarded)},
	{"secondary address", addressed("192.168.99.N", "fd99::1:N", "ip -n $VM addr add ADDRESS dev v0")},
	{"address on the loopback device", addressed("10.129.0.N", "fd98::N", "ip -n $VM addr add ADDRESS dev lo")},
	{"address of another device", addressed(bridge4, bridge6, "")},
	{"local route", addressed("198.51.100.N", "fd97::N", "ip -n $VM FAMILY route add local ADDRESS dev lo")},
	{"local route in main", addressed("198.51.101.N", "fd96::N", "ip -n $VM FAMILY route add local ADDRESS dev lo table main")},
	{"local route by source", addressed("198.51.102.N", "fd95::N", "ip -n $VM FAMILY route add local ADDRESS dev lo table TABLE; ip -n $VM FAMILY rule add from SOURCE lookup TABLE")},
	{"local route by device", addressed("198.51.103.N", "fd94::N", "ip -n $VM FAMILY route add local ADDRESS dev lo table TABLE; ip -n $VM FAMILY rule add iif v0 lookup TABLE")},
	{"local route by mark", addressed("198.51.104.N", "fd93::N", `ip -n $VM FAMILY route add local ADDRESS dev lo table TABLE; ip -n $VM FAMILY rule add fwmark MARK lookup TABLE
vm nft 'table IP mMARK { chain pre { type filter hook prerouting priority mangle; PROTO dport GUARDED meta mark set MARK; }; }'`)},
	{"userland proxy", func(w way) animal {
		w.proto = "tcp"
		to := in4 + ":22"
		if w.v6 {
			to = "[" + in6 + "]:22"
		}
		return animal{
			listen: []string{w.socket("IN", 22)},
			relay:  fmt.Sprint(w.guarded, " ", to),
			probes: []probe{from("OUT", "tcp", w.vm(), w.guarded)},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
		}
	}},
	{"fragments", func(w way) animal {
		w.proto = "udp"
		return animal{
			listen: []string{atGuarded(w), w.socket("VM", w.other)},
			probes: []probe{from("OUT", "long", w.vm(), w.guarded)},
			guard:  []string{w.rule()},
			doors:  []string{w.opens(w.outside())},
			passes: []probe{from("OUT", "long", w.vm(), w.other)},
		}
	}},
	{"tiny fragments", by(func(w way, p packet, n uint32) [][]byte { return p.pieces(n, w.tiny()) })},
	{"tiny fragments, last first", by(func(w way, p packet, n uint32) [][]byte {
		f := p.pieces(n, w.tiny())
		slices.Reverse(f)
		return f
	})},
	{"one fragment that is all, or IP options", by(func(w way, p packet, n uint32) [][]byte {
		if w.v6 {
			return p.pieces(n) // an atomic fragment
		}
		p.options = append([]byte{7, 39, 4}, make([]byte, 37)...) // record route
		return p.whole(n)
	})},
	{"many headers, or many options", by(func(w way, p packet, n uint32) [][]byte {
		if w.v6 {
			p.first = unix.IPPROTO_HOPOPTS
			p.headers = slices.Concat(extension(unix.IPPROTO_DSTOPTS, 0), extension(unix.IPPROTO_DSTOPTS, 12), extension(p.protocol, 0))
		} else {
			p.options = append([]byte{148, 4, 0, 0, 68, 36, 5, 0}, make([]byte, 32)...) // router alert, timestamps
		}
		return p.whole(n)
	})},
	{"fragments behind headers, or with options", func(w way) animal {
		a := by(func(w way, p packet, n uint32) [][]byte {
			if !w.v6 {
				p.options = bytes.Repeat([]byte{1}, 40)
				return p.pieces(n, 8)
			}
			b := p.pieces(n, w.tiny())
			for i := range b {
				// A destination options header before each fragment header.
				b[i] = ip6(p.from, p.to, unix.IPPROTO_DSTOPTS, append(extension(unix.IPPROTO_FRAGMENT, 1), b[i][40:]...))
			}
			return b
		})(w)
		if w.v6 {
			a.doors = nil // conntrack does not put these together, with or without a guard
		}
		return a
	}},
	{"UDP-Lite", func(w way) animal {
		return animal{
			listen: []string{fmt.Sprintf("VM udplite %d", w.guarded)},
			probes: []probe{from("OUT", "udplite", w.vm(), w.guarded)},
			guard:  []string{w.rule()},
		}
	}},
	{"SCTP", transport(unix.IPPROTO_SCTP)},
	{"DCCP", transport(unix.IPPROTO_DCCP)},
}

// transport is another transport, seen by a raw socket: with no module for it
// the packet still comes that far. No opening is for it.
func transport(protocol byte) func(way) animal {
	return func(w way) animal {
		p := packet{from: w.outside(), to: w.vm(), protocol: protocol, dport: w.guarded}
		q := p
		q.dport = w.other
		name := fmt.Sprintf("protocol %d", protocol)
		return animal{
			listen: []string{fmt.Sprintf("VM raw%s %d", w.family("4", "6"), protocol)},
			probes: []probe{wire(name, p.whole), wire(name+" in pieces", func(n uint32) [][]byte { return p.pieces(n, 8) })},
			guard:  []string{w.rule()},
			passes: []probe{wire(name+" to an unguarded port", q.whole)},
		}
	}
}

// tunnel is a second way from the outside into the VM: link adds a device z0
// in the namespace NS, with LOCAL and REMOTE and ID.
func tunnel(name, link string) animal {
	w := way{proto: "tcp", guarded: 22}
	end := func(ns, local, remote, number string) string {
		return strings.NewReplacer("NS", ns, "LOCAL", local, "REMOTE", remote).Replace(link) + "\n" + strings.NewReplacer("NS", ns, "NUM", number).Replace(`
ip -n NS addr add 10.77.0.NUM/24 dev z0
ip -n NS addr add fd77::NUM/64 dev z0 nodad
ip -n NS link set z0 up
`)
	}
	return animal{
		name:  name,
		alone: true,
		needs: strings.NewReplacer("NS", "$PEER", "LOCAL", peer4, "REMOTE", in4, "CABLE", "c0").Replace(link) + "\nip -n $PEER link del z0",
		build: strings.ReplaceAll(end("$VM", fwtest.VM4, fwtest.Outside4, "1"), "CABLE", "v0") +
			strings.ReplaceAll(end("$OUT", fwtest.Outside4, fwtest.VM4, "2"), "CABLE", "o0"),
		listen: []string{"VM udp 22"},
		probes: []probe{from("OUT", "tcp", "10.77.0.1", 22), from("OUT", "tcp", "fd77::1", 22), from("OUT", "long", "10.77.0.1", 22)},
		guard:  []string{w.rule(), "22/udp"},
		doors:  []string{"10.77.0.2/32 22/tcp", "fd77::2/128 22/tcp", "10.77.0.2/32 22/udp"},
	}
}

// hand is a probe with one packet to the guarded port 22.
func hand(what string, p packet) probe { return wire(what, p.whole) }

// specimens are animals there is only one of.
func specimens() []animal {
	udp4 := packet{from: fwtest.Outside4, to: fwtest.VM4, protocol: unix.IPPROTO_UDP, dport: 22}
	udp6 := packet{from: fwtest.Outside6, to: fwtest.VM6, protocol: unix.IPPROTO_UDP, dport: 22}
	to := func(p packet, a string) packet { p.to = a; return p }
	by := func(p packet, a string) packet { p.from = a; return p }
	tcp := func(p packet, flags byte) packet { p.protocol, p.flags = unix.IPPROTO_TCP, flags; return p }
	everyone := []string{"0.0.0.0/0 22/udp", "::/0 22/udp", "0.0.0.0/0 22/tcp", "::/0 22/tcp"}
	both := []string{"22/tcp", "22/udp"}
	var flags []probe
	for f, name := range map[byte]string{0: "no flags", syn: "SYN with data", syn | fin: "SYN and FIN", ack: "ACK", rst: "RST", syn | ack: "SYN and ACK", 0x3f: "all flags"} {
		flags = append(flags, hand(name, tcp(udp4, f)), hand(name+", IPv6", tcp(udp6, f)))
	}
	// An IPv6 packet behind a segment routing header that is used up.
	inner := func(next byte) func(n uint32) [][]byte {
		return func(n uint32) [][]byte {
			p := udp6.whole(n)[0]
			if next == unix.IPPROTO_UDP {
				p = udp6.transport(n)
			}
			header := slices.Concat([]byte{next, 2, 4, 0, 0, 0, 0, 0}, udp6.to16())
			return [][]byte{ip6(fwtest.Outside6, fwtest.VM6, unix.IPPROTO_ROUTING, append(header, p...))}
		}
	}
	return []animal{
		{
			name: "broadcast and multicast", listen: []string{"VM raw4 17", "VM raw6 17"}, guard: both, doors: everyone,
			probes: []probe{
				hand("224.0.0.1", to(udp4, "224.0.0.1")), hand("255.255.255.255", to(udp4, "255.255.255.255")),
				hand("subnet broadcast", to(udp4, "192.168.99.255")), hand("all nodes", to(udp6, "ff02::1")),
				hand("all routers of the site", to(udp6, "ff05::2")), hand("from nowhere to nowhere", by(to(udp4, "0.0.0.0"), "0.0.0.0")),
			},
		}, {
			name: "link-local and anycast", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			probes: []probe{
				hand("link-local", by(to(udp6, link6), "fe80::98")), hand("subnet router", to(udp6, "fd99::")),
				hand("subnet router of another link", to(udp6, "fd30::")),
			},
		}, {
			name: "127.0.0.1 from outside", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build:  "vm sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.v0.route_localnet=1 net.ipv4.conf.all.accept_local=1 net.ipv4.conf.v0.accept_local=1",
			probes: []probe{hand("to 127.0.0.1", to(udp4, "127.0.0.1")), hand("to 127.9.9.9", to(udp4, "127.9.9.9")), hand("from 127.0.0.1", by(udp4, "127.0.0.1"))},
		}, {
			name: "from an address of the VM", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build:  "vm sysctl -qw net.ipv4.conf.all.accept_local=1 net.ipv4.conf.v0.accept_local=1",
			probes: []probe{hand("its own", by(udp4, fwtest.VM4)), hand("another of its own", by(udp4, bridge4)), hand("IPv6", by(udp6, bridge6))},
		}, {
			name: "from the guarded port", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			probes: []probe{wire("22 to 22", func(n uint32) [][]byte {
				p := udp4
				p.from, p.sport = fmt.Sprintf("10.65.%d.%d", byte(n>>8), byte(n)), 22
				return p.whole(n)
			})},
		}, {
			name: "flags of TCP", listen: []string{"VM raw4 6", "VM raw6 6"}, guard: both, doors: everyone, probes: append(flags, wire("ACK twice", func(n uint32) [][]byte { return append(tcp(udp4, ack).whole(n), tcp(udp4, ack).whole(n)...) })),
		}, {
			name: "flags of TCP, cut", alone: true, listen: []string{"VM raw4 6", "VM raw6 6"}, guard: []string{"22/tcp cut", "22/udp cut"}, doors: everyone, probes: flags,
		}, {
			name: "source route", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build: "vm sysctl -qw net.ipv4.conf.all.accept_source_route=1 net.ipv4.conf.v0.accept_source_route=1; ip -n $VM addr add 10.97.0.1/32 dev lo",
			probes: []probe{
				wire("to one address of the VM by way of another", func(n uint32) [][]byte {
					p := to(udp4, "10.97.0.1") // its checksum is for the last address
					return [][]byte{ip4(p.from, fwtest.VM4, p.protocol, []byte{131, 7, 4, 10, 97, 0, 1, 1}, uint16(n), 0, p.transport(n))}
				}),
			},
		}, {
			name: "overlapping fragments", blind: true, listen: []string{"VM udp 22"}, guard: both,
			probes: []probe{
				wire("IPv4", func(n uint32) [][]byte { return overlapping(udp4, n) }),
				wire("IPv6", func(n uint32) [][]byte { return overlapping(udp6, n) }),
			},
		}, {
			name: "segment routing header", needs: "vm sysctl -qw net.ipv6.conf.v0.seg6_enabled=1", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build:  "vm sysctl -qw net.ipv6.conf.all.seg6_enabled=1 net.ipv6.conf.v0.seg6_enabled=1",
			probes: []probe{wire("before UDP", inner(unix.IPPROTO_UDP)), wire("before a packet", inner(unix.IPPROTO_IPV6))},
		}, {
			// The packet inside is given to input with no prerouting hook before.
			name: "segment routing endpoint", listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			needs: "ip -n $VM -6 route add fd92::1/128 encap seg6local action End.DT6 table 255 dev v0; ip -n $VM -6 route del fd92::1/128",
			build: "vm sysctl -qw net.ipv6.conf.all.seg6_enabled=1 net.ipv6.conf.v0.seg6_enabled=1; ip -n $VM -6 route add fd92::1/128 encap seg6local action End.DT6 table 255 dev v0",
			probes: []probe{wire("IPv6 in IPv6", func(n uint32) [][]byte {
				return [][]byte{ip6(fwtest.Outside6, "fd92::1", unix.IPPROTO_IPV6, udp6.whole(n)[0])}
			})},
		}, {
			name: "socket bound to a device", listen: []string{"VM tcp 2201 v0", "VM udp 2201 v0"}, guard: []string{"2201/tcp", "2201/udp cut"},
			probes: []probe{from("OUT", "tcp", fwtest.VM4, 2201), from("OUT", "udp", fwtest.VM6, 2201)},
			doors:  []string{fwtest.Outside4 + "/32 2201/tcp", fwtest.Outside6 + "/128 2201/udp"},
		}, {
			// Port 22 of another machine, given to a socket here.
			name: "transparent proxy", listen: []string{"VM tproxy 8022"}, guard: both, doors: everyone,
			build: `ip -n $VM rule add fwmark 7 lookup 7; ip -n $VM route add local default dev lo table 7
vm nft 'table ip tp { chain pre { type filter hook prerouting priority mangle; ip daddr 203.0.113.7 udp dport 22 tproxy to :8022 meta mark set 7; }; }'`,
			probes: []probe{from("OUT", "udp", "203.0.113.7", 22)},
		}, {
			// Between two others on its bridge, by a network the host has no route to.
			name: "bridged without a route", alone: true, guard: both,
			needs: "modprobe -q br_netfilter || true; vm sysctl -q net.bridge.bridge-nf-call-ip6tables",
			build: `ip -n $IN addr add fd31::2/64 dev c0 nodad preferred_lft 0
ip -n $PEER addr add fd31::3/64 dev c0 nodad
vm sysctl -qw net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1`,
			passes: []probe{from("IN", "tcp", "fd31::3", 22)},
		}, {
			name: "bridge port", alone: true, listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build:  bridgePort,
			probes: []probe{from("OUT", "tcp", fwtest.VM4, 22), from("OUT", "tcp", fwtest.VM6, 22), from("OUT", "long", fwtest.VM4, 22)},
		}, {
			name: "bridge port, without br_netfilter", alone: true, listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			build:  bridgePort + "vm sysctl -qw net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0 || true", // without the module there is none
			probes: []probe{from("OUT", "tcp", fwtest.VM4, 22), from("OUT", "tcp", fwtest.VM6, 22), from("OUT", "long", fwtest.VM4, 22)},
		}, {
			name: "macvlan", alone: true, listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			needs:  "ip -n $PEER link add link c0 name z0 type macvlan mode bridge; ip -n $PEER link del z0",
			build:  "ip -n $VM link add link v0 name z0 type macvlan mode bridge; ip -n $VM addr add 192.168.99.7/24 dev z0; ip -n $VM link set z0 up",
			probes: []probe{from("OUT", "tcp", "192.168.99.7", 22), from("OUT", "udp", "192.168.99.7", 22)},
		},
		tunnel("vlan", "ip -n NS link add link CABLE name z0 type vlan id 7"),
		tunnel("vxlan", "ip -n NS link add z0 type vxlan id 7 local LOCAL remote REMOTE dstport 4789"),
		tunnel("geneve", "ip -n NS link add z0 type geneve id 7 remote REMOTE"),
		tunnel("gre", "ip -n NS link add z0 type gretap local LOCAL remote REMOTE"),
		{
			name: "VRF", alone: true, listen: []string{"VM udp 22"}, guard: both, doors: everyone,
			needs: "ip -n $PEER link add zv type vrf table 77; ip -n $PEER link del zv",
			build: `ip -n $VM link add zv type vrf table 77; ip -n $VM link set zv up
ip link add z0 netns $VM type veth peer name z0 netns $OUT; ip -n $VM link set z0 master zv
for n in $VM:1 $OUT:2; do ip -n ${n%:*} addr add 10.77.0.${n#*:}/24 dev z0; ip -n ${n%:*} link set z0 up; done
vm sysctl -qw net.ipv4.tcp_l3mdev_accept=1 net.ipv4.udp_l3mdev_accept=1 net.ipv4.conf.z0.rp_filter=0 net.ipv4.conf.zv.rp_filter=0`,
			probes: []probe{from("OUT", "tcp", "10.77.0.1", 22), from("OUT", "udp", "10.77.0.1", 22)},
		}, {
			name: "published in a VRF", alone: true, listen: []string{"VM tcp 23"}, guard: []string{"2202/tcp"}, doors: []string{"0.0.0.0/0 2202/tcp"},
			needs: "ip -n $PEER link add zv type vrf table 77; ip -n $PEER link del zv",
			build: `ip -n $VM link add zv type vrf table 77; ip -n $VM link set zv up
ip link add z0 netns $VM type veth peer name z0 netns $OUT; ip -n $VM link set z0 master zv
for n in $VM:1 $OUT:2; do ip -n ${n%:*} addr add 10.77.0.${n#*:}/24 dev z0; ip -n ${n%:*} link set z0 up; done
vm nft 'table ip z { chain pre { type nat hook prerouting priority dstnat; tcp dport 2202 redirect to :23; }; }'
vm sysctl -qw net.ipv4.tcp_l3mdev_accept=1 net.ipv4.conf.z0.rp_filter=0 net.ipv4.conf.zv.rp_filter=0`,
			probes: []probe{from("OUT", "tcp", "10.77.0.1", 2202)},
		},
	}
}

// bridgePort puts the VM's end of the cable into a bridge that takes its
// addresses over.
const bridgePort = `
ip -n $VM addr flush dev v0
ip -n $VM link add z0 address $(vm cat /sys/class/net/v0/address) type bridge
ip -n $VM link set v0 master z0
ip -n $VM addr add 192.168.99.1/24 dev z0
ip -n $VM addr add fd99::1/64 dev z0 nodad
ip -n $VM link set z0 up
`

// overlapping says in its first piece that it is for port 7, and in the
// second, over it, that it is for the guarded one.
func overlapping(p packet, n uint32) [][]byte {
	p.long = 64
	open := p
	open.dport = 7
	first, second := open.pieces(n, 16), p.pieces(n, 24)
	return [][]byte{first[0], second[0], second[1]}
}

// A cage holds animals that are visited together.
type cage struct {
	name    string
	animals []animal
}

// table is every kind in both families and protocols, and the specimens. Each
// zoo costs four namespaces: those that get on with each other share one.
func table() (out []cage) {
	const room = 5 // kinds in a cage
	for i, k := range kinds {
		if i%room == 0 {
			out = append(out, cage{})
		}
		c := &out[len(out)-1]
		c.name = strings.TrimPrefix(c.name+"; "+k.name, "; ")
		for j, w := range []way{{proto: "tcp"}, {proto: "udp", v6: true, cut: true}, {proto: "udp", cut: true}, {proto: "tcp", v6: true}} {
			w.guarded, w.other = 2000+10*i+j, 8000+10*i+j
			c.animals = append(c.animals, named(k.name+" "+w.rule(), k.make(w)))
		}
	}
	shared := cage{name: "specimens"}
	for _, a := range specimens() {
		if a = named(a.name, a); a.alone {
			out = append(out, cage{a.name, []animal{a}})
		} else {
			shared.animals = append(shared.animals, a)
		}
	}
	return append(out, shared)
}

// named names an animal and its probes.
func named(name string, a animal) animal {
	a.name = name
	a.probes = slices.Clone(a.probes)
	for i := range a.probes {
		a.probes[i].what = name + ": " + a.probes[i].what
	}
	return a
}

// With the guard up and no opening nothing sent from outside to a guarded
// port reaches a socket, whatever way it takes; before, it did.
func TestZoo(t *testing.T) {
	fwtest.Privileged(t)
	var ran, missing atomic.Int32
	all := table()
	t.Run("of", func(t *testing.T) {
		for _, c := range all {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				z := newZoo(t)
				there := slices.DeleteFunc(slices.Clone(c.animals), func(a animal) bool { return !z.can(a) })
				missing.Add(int32(len(c.animals) - len(there)))
				if len(there) > 0 {
					z.visit(there)
				}
				ran.Add(int32(len(there)))
			})
		}
	})
	t.Logf("%d animals ran, %d did not", ran.Load(), missing.Load())
	// Kernels without tunnels, VRF and segment routing, and machines without
	// iptables, lack some.
	total := 0
	for _, c := range all {
		total += len(c.animals)
	}
	if n := int(ran.Load()); n < 120 && n+int(missing.Load()) == total {
		t.Errorf("only %d animals ran: the rest shows nothing", ran.Load())
	}
}

// can reports whether this machine has what an animal needs.
func (z *zoo) can(a animal) bool {
	if a.needs == "" {
		return true
	}
	err := z.try(a.needs)
	if err != nil {
		z.t.Logf("NOT RUN: this machine lacks what %s needs: %v", a.name, err)
	}
	return err == nil
}

func (z *zoo) visit(animals []animal) {
	t := z.t
	var probes, seen, around []probe
	var rules, doors []string
	around = neighbours()
	for _, a := range animals {
		a.prepare(z)
		probes, around = append(probes, a.probes...), append(around, a.passes...)
		if !a.blind {
			seen = append(seen, a.probes...)
		}
		rules, doors = append(rules, a.guard...), append(doors, a.doors...)
	}
	all := append(slices.Clip(around), seen...)
	for i, arrives := range z.arriving(all) {
		if !arrives {
			t.Fatalf("%s: does not arrive without a guard: the probe sees nothing", all[i].what)
		}
	}
	closed := fwtest.Ports(t, append(rules, "22/tcp")...)
	z.guard(closed)
	z.shut(probes)
	z.pass(around)
	if len(doors) == 0 {
		return
	}
	z.guard(closed, doors...)
	for _, a := range animals {
		if len(a.doors) > 0 {
			z.pass(a.probes)
		} else {
			z.shut(a.probes)
		}
	}
	z.guard(closed)
	z.shut(probes)
}

// shut checks that no probe gets past the guard.
func (z *zoo) shut(probes []probe) {
	z.t.Helper()
	for _, what := range z.through(probes) {
		z.t.Errorf("%s: got past the guard", what)
	}
}

// pass checks that every probe arrives.
func (z *zoo) pass(probes []probe) {
	z.t.Helper()
	for i, arrives := range z.arriving(probes) {
		if !arrives {
			z.t.Errorf("%s: does not arrive", probes[i].what)
		}
	}
}

// Random animals in a random order, some there before the guard and some
// added after, opened and closed at random.
func TestRandomZoo(t *testing.T) {
	fwtest.Privileged(t)
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("repeat with -seed %d", s)
	began := time.Now()
	for round := 0; round < 20 && (round < 3 || time.Since(began) < 15*time.Second); round++ {
		t.Run(fmt.Sprint(round), func(t *testing.T) { randomZoo(t, rand.New(rand.NewPCG(s, uint64(round)))) })
	}
}

func randomZoo(t *testing.T, r *rand.Rand) {
	z := newZoo(t)
	var animals []animal
	var probes, around []probe
	around = neighbours()
	rules := []string{"22/tcp"}
	guarded := false
	first := r.IntN(4)
	for step := range 4 + r.IntN(3) {
		if step == first {
			z.guard(fwtest.Ports(t, rules...))
			guarded = true
		} else {
			k := kinds[r.IntN(len(kinds))]
			w := way{v6: r.IntN(2) == 0, proto: []string{"tcp", "udp"}[r.IntN(2)], cut: r.IntN(2) == 0, guarded: 2000 + 1000*step + r.IntN(900)}
			w.other = 30000 + w.guarded
			a := k.make(w)
			if !z.can(a) {
				continue
			}
			t.Logf("%s: %v", k.name, a.guard)
			if guarded && r.IntN(2) == 0 { // the port is guarded before the animal is there
				z.guard(fwtest.Ports(t, append(rules, a.guard...)...))
			}
			a.prepare(z)
			animals, probes, around, rules = append(animals, a), append(probes, a.probes...), append(around, a.passes...), append(rules, a.guard...)
			if guarded {
				z.guard(fwtest.Ports(t, rules...))
			}
		}
		if !guarded {
			z.pass(slices.Concat(around, probes))
			continue
		}
		z.shut(probes)
		var doors []string
		var open, closed []probe
		for _, a := range animals {
			if len(a.doors) > 0 && r.IntN(2) == 0 {
				doors, open = append(doors, a.doors...), append(open, a.probes...)
			} else {
				closed = append(closed, a.probes...)
			}
		}
		z.guard(fwtest.Ports(t, rules...), doors...)
		z.pass(slices.Concat(around, open))
		z.shut(closed)
		z.guard(fwtest.Ports(t, rules...))
		z.shut(probes)
		if t.Failed() {
			return
		}
	}
}

// What conntrack remembers, or is made to believe, opens nothing beyond the
// very flow.
func TestConntrackTricks(t *testing.T) {
	z := newZoo(t)
	z.listen("VM raw4 6", "VM udp 2204", "VM udp 40000")
	z.run(`vm nft -f - <<END
table ip helpers {
 counter expected { }
 ct helper ftp { type "ftp" protocol tcp; }
 chain pre { type filter hook prerouting priority mangle; tcp dport 21 ct helper set "ftp"; tcp dport 22 ct state related counter name expected; }
}
END`)
	// An FTP server says: fetch it at port 22.
	fwtest.In(t, z.pair.VM, func() {
		l, err := net.Listen("tcp4", ":21")
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
				t.Cleanup(func() { c.Close() })
				io.WriteString(c, "220 ready\r\n")
				c.Read(make([]byte, 100))
				io.WriteString(c, "227 Entering Passive Mode (192,168,99,1,0,22)\r\n")
			}
		}()
	})
	expect := func() {
		c := dial(t, z.pair, fwtest.VM4+":21")
		c.SetDeadline(time.Now().Add(5 * time.Second))
		lines := bufio.NewReader(c)
		for _, say := range []string{"PASV\r\n", ""} {
			if _, err := lines.ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			io.WriteString(c, say)
		}
	}
	ssh := from("OUT", "tcp", fwtest.VM4, 22)
	expect()
	if !z.arrives(ssh) {
		t.Fatal("port 22 is closed without a guard")
	}
	if out := fwtest.Command(t, z.pair.VM, "nft", "list", "counter", "ip", "helpers", "expected"); strings.Contains(out, "packets 0") {
		t.Errorf("no connection was expected: the test is blind\n%s", out)
	}
	z.guard(fwtest.Ports(t, "22/tcp", "2203/tcp", "2204/udp", "40000/udp cut", "40001/udp cut"))
	expect()
	z.shut([]probe{ssh})

	// The host speaks from a guarded port: whom it spoke to may answer from
	// there, and nobody else, and nobody may begin anything.
	for _, port := range []int{2204, 40000} {
		fwtest.In(t, z.pair.VM, func() { // by a raw socket: a server has the port
			raw4(t, packet{from: fwtest.VM4, to: fwtest.Outside4, protocol: unix.IPPROTO_UDP, sport: port, dport: 4000}, z.next.Add(1))
		})
		answer := packet{from: fwtest.Outside4, to: fwtest.VM4, protocol: unix.IPPROTO_UDP, sport: 4000, dport: port}
		if !z.arrives(hand("the answer", answer)) {
			t.Errorf("the answer to port %d does not arrive", port)
		}
		others := []probe{}
		for what, change := range map[string]func(*packet){
			"another port": func(p *packet) { p.sport = 4001 }, "another address": func(p *packet) { p.from = "10.64.0.1" },
			"another destination": func(p *packet) { p.dport = 40001 },
		} {
			p := answer
			change(&p)
			others = append(others, hand(fmt.Sprintf("after the host spoke from port %d: %s", port, what), p))
		}
		z.shut(others)
	}
	// The same with TCP, and then a new connection by the same ports.
	fwtest.In(t, z.pair.VM, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{Port: 2203}}
		c, err := d.Dial("tcp4", fwtest.Outside4+":22")
		if err != nil {
			t.Fatalf("the host's own connection from a guarded port: %v", err)
		}
		p := packet{from: fwtest.Outside4, to: fwtest.VM4, protocol: unix.IPPROTO_TCP, sport: 22, dport: 2203, flags: syn}
		q := p
		q.sport = 23
		z.shut([]probe{hand("a SYN by the ports of the host's connection", p), hand("a SYN by other ports", q)})
		c.Close()
		z.shut([]probe{hand("a SYN by the ports of the host's connection that was", p)})
	})
}

// raw4 sends a packet by a raw socket, past the port's owner.
func raw4(t testing.TB, p packet, n uint32) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, p.whole(n)[0], 0, sockaddr(netip.MustParseAddr(p.to), 0)); err != nil {
		t.Fatal(err)
	}
}

// The host's own UDP-Lite from a guarded port gets its answers.
func TestOwnUDPLite(t *testing.T) {
	z := newZoo(t)
	// Linux 6.18 takes UDP-Lite that arrives for broken, and so for nobody's
	// answer, where conntrack looks at checksums.
	z.run("vm sysctl -qw net.netfilter.nf_conntrack_checksum=0")
	z.listen("OUT udplite 4000", "VM udplite 40001", "VM udplite 40002")
	z.guard(fwtest.Ports(t, "40001/udp cut", "40002/tcp"))
	for _, port := range []int{40001, 40002} {
		answer := packet{from: fwtest.Outside4, to: fwtest.VM4, protocol: unix.IPPROTO_UDPLITE, sport: 4000, dport: port}
		z.shut([]probe{hand(fmt.Sprintf("UDP-Lite to port %d", port), answer)})
		fwtest.In(t, z.pair.VM, func() {
			raw4(t, packet{from: fwtest.VM4, to: fwtest.Outside4, protocol: unix.IPPROTO_UDPLITE, sport: port, dport: 4000}, z.next.Add(1))
		})
		if !z.arrives(hand("the answer", answer)) {
			t.Errorf("the answer to the host's own UDP-Lite from port %d does not arrive", port)
		}
	}
}

// The kernel lets no nat chain stand before the guard: none at −200, and those
// at −199 come after it whichever was there first.
func TestNatChainsComeAfterTheGuard(t *testing.T) {
	for _, early := range []bool{true, false} {
		z := newZoo(t)
		chain := func(name string, priority, port int) string {
			return fmt.Sprintf("vm nft 'table ip %s { chain pre { type nat hook prerouting priority %d; tcp dport %d dnat to 172.30.0.2:22; }; }'", name, priority, port)
		}
		if z.try(chain("before", -200, 2000)) == nil {
			t.Error("the kernel takes a nat chain at −200: published ports may get past the guard")
		}
		ports := fwtest.Ports(t, "2001/tcp", "2002/tcp")
		if !early {
			z.guard(ports)
		}
		z.run(chain("same", -199, 2001) + "\n" + chain("next", -198, 2002))
		probes := []probe{from("OUT", "tcp", fwtest.VM4, 2001), from("OUT", "tcp", fwtest.VM4, 2002)}
		if early {
			z.pass(probes)
			z.guard(ports)
		}
		z.shut(probes)
		z.guard(ports, fwtest.Outside4+"/32 2001/tcp", fwtest.Outside4+"/32 2002/tcp")
		z.pass(probes)
	}
}
