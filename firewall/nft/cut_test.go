//go:build linux

package nft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
)

// ends is a session of two sockets.
type ends struct{ client, server net.Conn }

// meet opens a TCP session from source to a listener that is served by hand.
func meet(t *testing.T, from string, l net.Listener, source, target string) ends {
	t.Helper()
	var e ends
	fwtest.In(t, from, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		c, err := d.Dial("tcp", target)
		if err != nil {
			t.Fatal(err)
		}
		e.client = c
	})
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	e.server = s
	t.Cleanup(func() { e.client.Close(); e.server.Close() })
	e.goesOn(t, "a granted session")
	return e
}

// goesOn wants both directions to carry data.
func (e ends) goesOn(t *testing.T, what string) {
	t.Helper()
	for _, way := range [][2]net.Conn{{e.client, e.server}, {e.server, e.client}} {
		way[0].SetDeadline(time.Now().Add(5 * time.Second))
		way[1].SetDeadline(time.Now().Add(5 * time.Second))
		_, err := way[0].Write([]byte{1})
		if err == nil {
			_, err = io.ReadFull(way[1], []byte{0})
		}
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

// reset wants both ends to be told at once.
func (e ends) reset(t *testing.T, what string) {
	t.Helper()
	fails(t, e.client, syscall.ECONNRESET, what+", client")
	fails(t, e.server, syscall.ECONNABORTED, what+", server")
}

func fails(t *testing.T, c net.Conn, want error, what string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Read([]byte{0}); !errors.Is(err, want) {
		t.Fatalf("%s: %v, want %v", what, err, want)
	}
}

// silent wants nothing to arrive any more, and nothing to tell so either.
func silent(t *testing.T, c net.Conn, what string) {
	t.Helper()
	c.SetDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := c.Read([]byte{0}); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%s: %v", what, err)
	}
}

func listen(t *testing.T, namespace, network, address string) (l net.Listener) {
	t.Helper()
	fwtest.In(t, namespace, func() {
		var err error
		if l, err = shared.Listen(t.Context(), network, address); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { l.Close() })
	return l
}

// shared lets several sockets have one local port.
var shared = net.ListenConfig{Control: share}

func share(_, _ string, c syscall.RawConn) (err error) {
	c.Control(func(fd uintptr) {
		err = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return err
}

// gate is a guard whose openings a test changes one by one.
type gate struct {
	t    *testing.T
	pair fwtest.Pair
	b    *nft.Backend
	want firewall.Ruleset
}

func newGate(t *testing.T, pair fwtest.Pair, ports ...string) *gate {
	g := &gate{t: t, pair: pair, want: firewall.Ruleset{Ports: fwtest.Ports(t, ports...), Openings: map[firewall.Door]firewall.End{}}}
	// Addresses off the link are not answered before the neighbours know each
	// other by those on it. A refusal is an answer.
	fwtest.In(t, pair.Outside, func() {
		for _, vm := range []string{fwtest.VM4, fwtest.VM6} {
			if _, err := net.DialTimeout("tcp", net.JoinHostPort(vm, "1"), 5*time.Second); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Fatal(err)
			}
		}
	})
	fwtest.In(t, pair.VM, func() {
		g.b = open(t)
		g.b.Warn = func(err error) { t.Error(err) }
	})
	g.apply()
	return g
}

func (g *gate) apply() { fwtest.In(g.t, g.pair.VM, func() { apply(g.t, g.b, g.want) }) }

func (g *gate) open(source, port string, length time.Duration) {
	g.t.Helper()
	g.want.Openings[fwtest.Door(g.t, source, port)] = firewall.End{Until: bootNow().Add(length)}
	g.apply()
}

func (g *gate) close(source, port string) {
	g.t.Helper()
	delete(g.want.Openings, fwtest.Door(g.t, source, port))
	g.apply()
}

// family is one way a client can reach a listener.
type family struct{ name, network, vm, source string }

var families = []family{
	{"IPv4", "tcp4", fwtest.VM4, "10.64.1."},
	{"IPv6", "tcp6", fwtest.VM6, "fd64::1:"},
	{"IPv4 mapped", "tcp", fwtest.VM4, "10.64.1."},
}

// prefixes are that of a single host and that of the network around it.
func (f family) prefixes() (host, network func(string) string) {
	if strings.Contains(f.source, ":") {
		return func(n string) string { return f.source + n + "/128" }, func(n string) string { return f.source + n + "/112" }
	}
	return func(n string) string { return f.source + n + "/32" }, func(n string) string { return f.source + n + "/24" }
}

// listener is on the port in all of the family, so that a socket for both
// takes IPv4 peers under mapped addresses.
func (f family) listener(t *testing.T, pair fwtest.Pair, port string) net.Listener {
	address := net.JoinHostPort(f.vm, port)
	if f.network == "tcp" {
		address = ":" + port
	}
	return listen(t, pair.VM, f.network, address)
}

// When an opening is taken back its sessions are reset at both ends, on ports
// that keep sessions and on ports that cut them, and nobody else's are.
func TestRevokedSessionsAreReset(t *testing.T) {
	for _, f := range families {
		for _, port := range []string{"22/tcp", "22/tcp cut"} {
			t.Run(f.name+" "+port, func(t *testing.T) {
				pair := fwtest.NewPair(t)
				l, target := f.listener(t, pair, "22"), net.JoinHostPort(f.vm, "22")
				g := newGate(t, pair, port)
				host, network := f.prefixes()
				g.open(network("0"), "22/tcp", time.Hour)
				g.open(host("2"), "22/tcp", time.Hour)
				g.open(host("3"), "22/tcp", time.Hour)
				plain := meet(t, pair.Outside, l, f.source+"1", target)
				both := meet(t, pair.Outside, l, f.source+"2", target)
				other := meet(t, pair.Outside, l, f.source+"3", target)

				g.close(host("2"), "22/tcp")
				both.goesOn(t, "a session a wider opening covers")
				g.close(network("0"), "22/tcp")
				plain.reset(t, "the session of a revoked network")
				both.reset(t, "the session the wider opening covered")
				other.goesOn(t, "the session with a grant of its own")
				g.close(host("3"), "22/tcp")
				other.reset(t, "the session with a grant of its own, revoked")
				if sockets, flows := g.b.Cut(); sockets != 3 || flows != 0 {
					t.Errorf("%d sockets and %d flows were counted, want 3 and 0", sockets, flows)
				}
			})
		}
	}
}

// An opening that runs out resets sessions where they are cut, whether the
// caller closes it or the backend finds it gone, and keeps them elsewhere.
func TestSessionsThatRanOutAreReset(t *testing.T) {
	pair := fwtest.NewPair(t)
	kept, cut := listen(t, pair.VM, "tcp4", fwtest.VM4+":22"), listen(t, pair.VM, "tcp4", fwtest.VM4+":5985")
	g := newGate(t, pair, "22/tcp", "5985/tcp cut")
	for _, way := range []string{"closed", "found gone"} {
		for _, port := range []string{"22/tcp", "5985/tcp"} {
			g.open("10.64.0.1/32", port, time.Second)
		}
		remembered := firewall.Observed{Ruleset: g.want, Intact: true}
		goes := meet(t, pair.Outside, kept, "10.64.0.1", fwtest.VM4+":22")
		ends := meet(t, pair.Outside, cut, "10.64.0.1", fwtest.VM4+":5985")
		time.Sleep(1100 * time.Millisecond)
		silent(t, ends.client, "before anybody looks")
		fwtest.In(t, pair.VM, func() {
			var err error
			if way == "closed" {
				err = g.b.Apply(t.Context(), firewall.Diff(remembered, firewall.Ruleset{Ports: g.want.Ports}))
			} else {
				_, err = g.b.Observe(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
		})
		ends.reset(t, way+": the session on a port that cuts")
		goes.goesOn(t, way+": the session on a port that keeps")
		g.open("10.64.0.1/32", "22/tcp", time.Hour)
		g.close("10.64.0.1/32", "22/tcp")
		goes.reset(t, way+": the kept session, granted again and revoked")
		clear(g.want.Openings)
	}
}

// An exempt source that is one no more loses its sessions where they are cut.
func TestSessionsOfAnExemptSource(t *testing.T) {
	pair := fwtest.NewPair(t)
	kept, cut := listen(t, pair.VM, "tcp4", fwtest.VM4+":22"), listen(t, pair.VM, "tcp4", fwtest.VM4+":5985")
	plain := listen(t, pair.VM, "tcp4", fwtest.VM4+":8080")
	g := newGate(t, pair, "22/tcp", "5985/tcp cut")
	g.open("10.64.0.0/24", "", time.Hour)
	g.open("10.64.0.2/32", "", time.Hour)
	goes := meet(t, pair.Outside, kept, "10.64.0.1", fwtest.VM4+":22")
	unguarded := meet(t, pair.Outside, plain, "10.64.0.1", fwtest.VM4+":8080")
	ends := meet(t, pair.Outside, cut, "10.64.0.1", fwtest.VM4+":5985")
	other := meet(t, pair.Outside, cut, "10.64.0.2", fwtest.VM4+":5985")
	g.close("10.64.0.0/24", "")
	ends.reset(t, "a port that cuts")
	goes.goesOn(t, "a port that keeps")
	unguarded.goesOn(t, "a port that is not guarded")
	other.goesOn(t, "a source exempt by itself")
	g.close("10.64.0.2/32", "")
	other.reset(t, "a source exempt by itself, no more")
}

// Where nothing is dropped nothing is reset: while the guard only observes,
// and on a port it no longer guards. Nor if the plan was not carried out.
func TestNothingDroppedNothingReset(t *testing.T) {
	pair := fwtest.NewPair(t)
	l := listen(t, pair.VM, "tcp4", fwtest.VM4+":22")
	g := newGate(t, pair, "22/tcp cut")
	g.open("10.64.0.1/32", "22/tcp", time.Hour)
	s := meet(t, pair.Outside, l, "10.64.0.1", fwtest.VM4+":22")

	g.want.Observe = true
	g.close("10.64.0.1/32", "22/tcp")
	s.goesOn(t, "observing")
	g.want.Observe = false
	g.open("10.64.0.1/32", "22/tcp", time.Hour)

	// The opening ends after the trial did, and is found gone.
	g.want.Trial = bootNow().Add(time.Second)
	g.open("10.64.0.1/32", "22/tcp", 1500*time.Millisecond)
	time.Sleep(1800 * time.Millisecond)
	fwtest.In(t, pair.VM, func() {
		if have, err := g.b.Observe(t.Context()); err != nil || len(have.Openings) > 0 {
			t.Fatalf("%v, %v", err, have.Openings)
		}
	})
	s.goesOn(t, "the trial is over")
	g.want.Trial = 0
	g.open("10.64.0.1/32", "22/tcp", time.Hour)

	ports := g.want.Ports
	g.want.Ports = fwtest.Ports(t, "23/tcp")
	g.close("10.64.0.1/32", "22/tcp")
	s.goesOn(t, "not guarded any more")
	g.want.Ports = ports
	g.open("10.64.0.1/32", "22/tcp", time.Hour)

	fwtest.In(t, pair.VM, func() {
		have, err := g.b.Observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := firewall.Diff(have, firewall.Ruleset{Ports: ports})
		tooLong := firewall.End{Until: bootNow().Add(time.Hour), Label: strings.Repeat("x", 1000)} // the kernel takes 256
		p.Open = append(p.Open, firewall.Change{Door: fwtest.Door(t, "10.64.0.9/32", "22/tcp"), End: tooLong})
		if err := g.b.Apply(context.Background(), p); err == nil {
			t.Fatal("the plan was to fail")
		}
	})
	s.goesOn(t, "not carried out")
	g.close("10.64.0.1/32", "22/tcp")
	s.reset(t, "carried out")
}

// A socket that is connected to the client of a revoked grant fails; the one
// that serves everybody does not.
func TestDatagramSockets(t *testing.T) {
	for _, f := range families {
		t.Run(f.name, func(t *testing.T) {
			pair := fwtest.NewPair(t)
			network := strings.Replace(f.network, "tcp", "udp", 1)
			g := newGate(t, pair, "3389/udp")
			host, _ := f.prefixes()
			g.open(host("1"), "3389/udp", time.Hour)
			g.open(host("2"), "3389/udp", time.Hour)
			var everybody net.PacketConn
			fwtest.In(t, pair.VM, func() {
				var err error
				address := net.JoinHostPort(f.vm, "3389")
				if network == "udp" {
					address = ":3389"
				}
				if everybody, err = shared.ListenPacket(t.Context(), network, address); err != nil {
					t.Fatal(err)
				}
			})
			t.Cleanup(func() { everybody.Close() })
			call := func(source string) (client net.Conn, from net.Addr) {
				fwtest.In(t, pair.Outside, func() {
					var err error
					d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(source)}}
					if client, err = d.Dial("udp", net.JoinHostPort(f.vm, "3389")); err != nil {
						t.Fatal(err)
					}
				})
				t.Cleanup(func() { client.Close() })
				everybody.SetDeadline(time.Now().Add(5 * time.Second))
				client.Write([]byte("hello"))
				_, from, err := everybody.ReadFrom(make([]byte, 8))
				if err != nil {
					t.Fatal(err)
				}
				return client, from
			}
			first, from := call(f.source + "1")
			second, _ := call(f.source + "2")
			var connected net.Conn
			fwtest.In(t, pair.VM, func() {
				connected = answering(t, network, from.(*net.UDPAddr))
			})
			ends{first, connected}.goesOn(t, "a granted session")
			g.close(host("1"), "3389/udp")
			fails(t, connected, syscall.ECONNABORTED, "the connected socket")
			connected.Close() // it has the port still, and its share of what comes
			g.close(host("2"), "3389/udp")
			g.open(host("2"), "3389/udp", time.Hour)
			everybody.SetDeadline(time.Now().Add(5 * time.Second))
			second.Write([]byte("again"))
			if _, _, err := everybody.ReadFrom(make([]byte, 8)); err != nil {
				t.Errorf("the socket that serves everybody: %v", err)
			}
			if sockets, _ := g.b.Cut(); sockets != 1 {
				t.Errorf("%d sockets were destroyed, want 1", sockets)
			}
		})
	}
}

// answering is a socket on port 3389 that is connected to a client.
func answering(t *testing.T, network string, to *net.UDPAddr) net.Conn {
	t.Helper()
	if network != "udp" {
		d := net.Dialer{Control: share, LocalAddr: &net.UDPAddr{Port: 3389}}
		c, err := d.Dial(network, to.String())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	// The library would take an IPv4 socket for an IPv4 peer.
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 0), unix.Bind(fd, &unix.SockaddrInet6{Port: 3389}),
			unix.Connect(fd, &unix.SockaddrInet6{Port: to.Port, Addr: netip.AddrFrom4([4]byte(to.IP.To4())).As16()}))
	}
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), "udp")
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What the host itself began goes on, though it leaves from a guarded port to
// a revoked source and somebody listens on that port; so does what the host
// says to itself.
func TestHostsOwnSessionsAreNotReset(t *testing.T) {
	for _, f := range families[:2] {
		t.Run(f.name, func(t *testing.T) {
			pair := fwtest.NewPair(t)
			outside, prefix := fwtest.Outside4, "192.168.99.0/24"
			if f.network == "tcp6" {
				outside, prefix = fwtest.Outside6, "fd99::/64"
			}
			guarded := net.JoinHostPort(f.vm, "40000")
			g := newGate(t, pair, "40000-40010/tcp cut")
			g.open(prefix, "40000/tcp", time.Hour)
			there := listen(t, pair.Outside, f.network, net.JoinHostPort(outside, "443"))
			var own ends
			fwtest.In(t, pair.VM, func() {
				ip := net.ParseIP(f.vm)
				d := net.Dialer{Control: share, LocalAddr: &net.TCPAddr{IP: ip, Port: 40000}}
				c, err := d.Dial("tcp", there.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				own.client = c
			})
			defer own.client.Close()
			var err error
			if own.server, err = there.Accept(); err != nil {
				t.Fatal(err)
			}
			defer own.server.Close()
			own.goesOn(t, "the host's own connection")
			here := listen(t, pair.VM, f.network, guarded)
			client := meet(t, pair.Outside, here, outside, guarded)
			itself := meet(t, pair.VM, here, f.vm, guarded)
			g.close(prefix, "40000/tcp")
			client.reset(t, "a client's session")
			own.goesOn(t, "the host's own connection")
			itself.goesOn(t, "the host's session with itself")
		})
	}
}

// A session with a published container port is forgotten by conntrack, so that
// neither end reaches the other; what the host routes to the same port is not.
func TestPublishedSessionsAreForgotten(t *testing.T) {
	pair := fwtest.NewPair(t)
	inner := container(t, pair)
	l := listen(t, inner, "tcp4", "172.30.0.2:22")
	redirected := listen(t, pair.VM, "tcp4", ":23")
	nat := "add rule ip nat pre ip daddr 192.168.99.1 tcp dport 2323 redirect to :23"
	if out, err := exec.Command("ip", "netns", "exec", pair.VM, "nft", nat).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	g := newGate(t, pair, "22/tcp", "2222/tcp", "2323/tcp")
	for _, port := range []string{"22/tcp", "2222/tcp", "2323/tcp"} {
		g.open("10.64.0.0/24", port, time.Hour)
	}
	g.open("10.64.0.2/32", "2222/tcp", time.Hour)
	published := meet(t, pair.Outside, l, "10.64.0.1", "192.168.99.1:2222")
	other := meet(t, pair.Outside, l, "10.64.0.2", "192.168.99.1:2222")
	routed := meet(t, pair.Outside, l, "10.64.0.1", "172.30.0.2:22")
	local := meet(t, pair.Outside, redirected, "10.64.0.1", "192.168.99.1:2323")
	entry := fmt.Sprintf("sport=%d dport=2222", published.client.LocalAddr().(*net.TCPAddr).Port)
	known := func() bool {
		return strings.Contains(fwtest.Command(t, pair.VM, "cat", "/proc/net/nf_conntrack"), entry)
	}
	if !known() {
		t.Fatal("conntrack does not know the session: the test is blind")
	}
	for _, port := range []string{"22/tcp", "2222/tcp", "2323/tcp"} {
		g.close("10.64.0.0/24", port)
	}
	if known() {
		t.Error("conntrack still knows the session")
	}
	for _, way := range [][2]net.Conn{{published.client, published.server}, {published.server, published.client}} {
		way[0].Write([]byte{1})
		silent(t, way[1], "the session goes on")
	}
	local.reset(t, "a session with a redirected port")
	routed.goesOn(t, "a session the host routes")
	other.goesOn(t, "a session with a grant of its own")
	if sockets, flows := g.b.Cut(); sockets != 1 || flows != 1 {
		t.Errorf("%d sockets and %d flows were cut, want one of each", sockets, flows)
	}
}

// A session that only asks to begin has a socket too.
func TestHalfOpenSessionsAreReset(t *testing.T) {
	pair := fwtest.NewPair(t)
	listen(t, pair.VM, "tcp4", fwtest.VM4+":22")
	g := newGate(t, pair, "22/tcp cut")
	g.open(fwtest.Outside4+"/32", "22/tcp", time.Hour)
	// The client never sees an answer.
	fwtest.Command(t, pair.Outside, "nft", "add table ip deaf; add chain ip deaf in { type filter hook prerouting priority raw; }; add rule ip deaf in tcp sport 22 drop")
	done := make(chan bool)
	go func() {
		defer close(done)
		fwtest.In(t, pair.Outside, func() { net.DialTimeout("tcp", fwtest.VM4+":22", time.Second) })
	}()
	halfOpen := func() bool {
		return fwtest.Command(t, pair.VM, "ss", "-Htn", "state", "syn-recv", "sport = 22") != ""
	}
	for i := 0; !halfOpen(); i++ {
		if i == 100 {
			t.Fatal("no session asks to begin: the test is blind")
		}
		time.Sleep(time.Millisecond)
	}
	g.close(fwtest.Outside4+"/32", "22/tcp")
	if halfOpen() {
		t.Error("it is still there")
	}
	<-done
}
