//go:build linux

package e2e_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// capture counts what crosses a device, by the far end's address: the witness
// that the record is held against.
type capture struct {
	fd      int
	ended   chan struct{}
	mu      sync.Mutex
	in, out map[netip.Addr]uint64
}

func (h *host) capture() *capture {
	h.t.Helper()
	c := &capture{ended: make(chan struct{}), in: map[netip.Addr]uint64{}, out: map[netip.Addr]uint64{}}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // in network order
	var err error
	h.vm.do(func() {
		var device *net.Interface
		if device, err = net.InterfaceByName("v0"); err != nil {
			return
		}
		if c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, all); err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}),
			unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index}))
	})
	if err != nil {
		h.t.Fatal(err)
	}
	stop := make(chan struct{})
	go func() {
		defer close(c.ended)
		for {
			select {
			case <-stop:
				unix.Close(c.fd)
				return
			default:
				c.read()
			}
		}
	}()
	h.t.Cleanup(func() { close(stop); <-c.ended })
	return c
}

func (c *capture) read() {
	var b [64]byte
	n, from, err := unix.Recvfrom(c.fd, b[:], unix.MSG_TRUNC)
	if err != nil || n < 20 || b[0]>>4 != 4 {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
		c.out[netip.AddrFrom4([4]byte(b[16:20]))] += uint64(n)
	} else {
		c.in[netip.AddrFrom4([4]byte(b[12:16]))] += uint64(n)
	}
}

// lost is how many packets the capture had no room for.
func (c *capture) lost() uint32 {
	s, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return math.MaxUint32
	}
	return s.Drops
}

// serveTransfers has the vm carry what clients ask for: how much they send,
// and how much comes back.
func (h *host) serveTransfers(port int) {
	h.t.Helper()
	var l net.Listener
	var err error
	h.vm.do(func() { l, err = net.Listen("tcp4", net.JoinHostPort(vm4, fmt.Sprint(port))) })
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for {
					var ask [8]byte
					if _, err := io.ReadFull(c, ask[:]); err != nil {
						return
					}
					if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint32(ask[:]))); err != nil {
						return
					}
					if _, err := c.Write(make([]byte, binary.BigEndian.Uint32(ask[4:]))); err != nil {
						return
					}
				}
			}()
		}
	}()
}

// visit opens a connection from source.
func (h *host) visit(source string, port int) net.Conn {
	h.t.Helper()
	var c net.Conn
	var err error
	h.outside.do(func() {
		d := net.Dialer{Timeout: patience, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		c, err = d.Dial("tcp4", net.JoinHostPort(vm4, fmt.Sprint(port)))
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { c.Close() })
	return c
}

func (h *host) transfer(c net.Conn, send, receive int) {
	h.t.Helper()
	ask := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, uint32(send)), uint32(receive))
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(append(ask, make([]byte, send)...)); err != nil {
		h.t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(receive)); err != nil {
		h.t.Fatal(err)
	}
}

// flood sends SYNs to port 22 from n sources nobody knows.
func (h *host) flood(n, packets int) {
	h.t.Helper()
	var fd int
	var err error
	h.outside.do(func() { fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(fd)
	const length = 40
	b := make([]byte, length)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(b[2:], length)
	to := netip.MustParseAddr(vm4).As4()
	copy(b[16:], to[:])
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], 22)
	b[32], b[33] = 5<<4, 2 // a header without options, SYN
	for i := range packets {
		binary.BigEndian.PutUint32(b[12:], 0xc6120000+uint32(i%n)) // 198.18.0.0 and on
		if err := unix.Sendto(fd, b, 0, &unix.SockaddrInet4{Addr: to}); err != nil {
			h.t.Fatal(err)
		}
	}
}

// proof is a line of the record with what it says of use.
type proof struct {
	Name        string    `json:"event"`
	Time        time.Time `json:"time"`
	Grant       string    `json:"grant"`
	Source      string    `json:"source"`
	Code        string    `json:"code"`
	Reason      string    `json:"reason"`
	Connections uint64    `json:"connections"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	BytesIn     uint64    `json:"bytesIn"`
	BytesOut    uint64    `json:"bytesOut"`
	SessionsCut uint64    `json:"sessionsCut"`
	AtLeast     bool      `json:"atLeast"`
	Count       uint64    `json:"count"`
}

func (h *host) proofs() (out []proof) {
	h.t.Helper()
	h.audit() // which verifies the chain
	text, err := os.ReadFile(h.path("state", "audit", "000001.jsonl"))
	if err != nil {
		h.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		var p proof
		if err := json.Unmarshal([]byte(line), &p); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// part is what one grant of the night comes to.
type part struct {
	id, source  string
	port        int
	end         string // grant.expired or grant.revoked
	outcome     string
	connections uint64
	cut         uint64
}

// A night with twenty grants for five people: some are used, some are not, some
// are taken back; strangers flood the port, the agent is killed, the disk is
// full. From the record alone follows what happened, and how much.
func TestNight(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	if err := os.Mkdir(h.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	mount(t, "tmpfs", h.path("state"), "tmpfs", 0, "size=2m,mode=700")
	h.outside.run(t, "ip", "route", "add", "local", "10.64.0.0/16", "dev", "lo")
	h.vm.run(t, "ip", "route", "add", "10.64.0.0/16", "via", alice4)
	h.start()
	h.put(1, h.realm.rules(1, port(22, "TCP"), port(2222, "TCP"), with(port(5985, "TCP"), object{"sessionsAtEnd": "cut"})))
	h.serveTransfers(22)
	h.serveTransfers(5985)
	witness := h.capture()

	const night = 26 * time.Second
	evening := time.Now()
	var parts []part
	for u := range 5 {
		p := func(n, port int, end, outcome string, connections, cut uint64) {
			parts = append(parts, part{fmt.Sprintf("u%dg%d", u, n), fmt.Sprintf("10.64.%d.%d", u, n), port, end, outcome, connections, cut})
		}
		p(1, 22, "grant.expired", "used", 2, 0)
		p(2, 5985, "grant.expired", "used", 1, 1)
		if u%2 == 0 {
			p(3, 22, "grant.expired", "unused", 0, 0)
		} else {
			p(3, 22, "grant.revoked", "used", 1, 1)
		}
		if u < 4 {
			p(4, 2222, "grant.expired", "tried", 0, 0)
		} else {
			p(4, 2222, "grant.revoked", "unused", 0, 0)
		}
	}
	grants := map[string]object{}
	for _, p := range parts {
		g := grant(p.id, p.port, night, p.source+"/32")
		g["requestor"] = "user" + p.id[1:2] + "@example.com"
		grants[p.id] = g
	}
	list := func(version uint64) {
		t.Helper()
		var all []object
		for _, p := range parts {
			if g, ok := grants[p.id]; ok {
				all = append(all, g)
			}
		}
		h.allow(version, all...)
	}
	list(1)
	h.until("all should be open", func(s status) bool { return len(s.Openings) == 20 })

	// Use.
	long, cut, revoked := map[int]net.Conn{}, map[int]net.Conn{}, map[int]net.Conn{}
	for u := range 5 {
		long[u] = h.visit(fmt.Sprintf("10.64.%d.1", u), 22)
		h.transfer(long[u], 100_000*(u+1), 200_000)
		cut[u] = h.visit(fmt.Sprintf("10.64.%d.2", u), 5985)
		h.transfer(cut[u], 50_000, 300_000*(u+1))
		if u%2 == 1 {
			revoked[u] = h.visit(fmt.Sprintf("10.64.%d.3", u), 22)
			h.transfer(revoked[u], 70_000, 70_000)
		}
		if u < 4 && len(h.outside.open(t, ways("2222/tcp", fmt.Sprintf("10.64.%d.4", u)))) != 1 {
			t.Errorf("user %d is not let in", u)
		}
	}

	// The agent dies, and things go on.
	h.kill()
	for u := range 5 {
		h.transfer(long[u], 30_000, 60_000)
		second := h.visit(fmt.Sprintf("10.64.%d.1", u), 22)
		h.transfer(second, 20_000, 20_000)
		second.Close()
	}
	h.start()
	for u := range 5 {
		h.transfer(long[u], 10_000, 500_000)
		long[u].Close()
	}

	// Some grants are taken back.
	for id := range grants {
		if slices.Contains([]string{"u1g3", "u3g3"}, id) {
			delete(grants, id)
		}
	}
	list(2)
	for u, c := range revoked {
		if !(session{c}).isReset(patience) {
			t.Errorf("the session of user %d goes on", u)
		}
	}

	// The disk is full while another one is.
	fill(t, h.path("state", "filler"))
	delete(grants, "u4g4")
	h.deliver("grants.json", h.realm.sign("grants", h.realm.list(3, func() (all []object) {
		for _, p := range parts {
			if g, ok := grants[p.id]; ok {
				all = append(all, g)
			}
		}
		return all
	}()...)))
	h.until("it should be closed on a full disk", func(s status) bool { return !s.isOpen("u4g4") })
	if err := os.Remove(h.path("state", "filler")); err != nil {
		t.Fatal(err)
	}

	// Somebody comes from another address than he said, and then everybody.
	if len(h.outside.open(t, ways("22/tcp", "10.64.0.99"))) > 0 {
		t.Error("a stranger is let in")
	}
	const strangers, packets = 3000, 30_000
	h.flood(strangers, packets)

	// Morning.
	time.Sleep(time.Until(evening.Add(night)))
	for u, c := range cut {
		if !(session{c}).isReset(patience) {
			t.Errorf("the session of user %d outlives its grant", u)
		}
	}
	used := func() (n int) {
		for _, p := range h.proofs() {
			if p.Name == "grant.used" {
				n++
			}
		}
		return n
	}
	until(t, patience, "every grant should have a proof of use", func() bool { return used() >= len(parts) })
	total := h.status().Denied
	told := func() (lines int, count uint64) {
		for _, p := range h.proofs() {
			if p.Name == "connection.denied" {
				lines++
				count += p.Count
			}
		}
		return lines, count
	}
	until(t, 35*time.Second, "every denied packet should be in a line", func() bool { _, n := told(); return n >= packets })
	h.stop()

	// The record against what was done.
	all := h.proofs()
	for _, p := range parts {
		var names []string
		var use proof
		for _, e := range all {
			if e.Grant == p.id && strings.HasPrefix(e.Name, "grant.") {
				names = append(names, e.Name)
				if e.Name == "grant.used" {
					use = e
				}
			}
		}
		if want := []string{"grant.opening", "grant.opened", p.end, "grant.used"}; !slices.Equal(names, want) {
			t.Errorf("%s: recorded %v, want %v", p.id, names, want)
		}
		if use.Code != p.outcome || use.Connections != p.connections || use.SessionsCut != p.cut || use.AtLeast || use.Source != p.source+"/32" {
			t.Errorf("%s: %+v, want %+v", p.id, use, p)
		}
		// Of those who only tried, the kernel keeps nothing while no agent runs but
		// the count of the opening.
		if p.outcome == "used" && (use.First.Before(evening.Add(-time.Second)) || use.Last.Before(use.First) || use.Last.After(evening.Add(night))) {
			t.Errorf("%s: from %v to %v", p.id, use.First, use.Last)
		}
		a := netip.MustParseAddr(p.source)
		witness.mu.Lock()
		in, out := witness.in[a], witness.out[a]
		witness.mu.Unlock()
		if p.outcome == "used" && (off(use.BytesIn, in) > 0.01 || off(use.BytesOut, out) > 0.01) {
			t.Errorf("%s: %d bytes in and %d out, a capture beside it has %d and %d", p.id, use.BytesIn, use.BytesOut, in, out)
		}
	}
	if n := witness.lost(); n > 0 {
		t.Errorf("the capture lost %d packets", n)
	}
	lines, count := told()
	// 60 at once, and one more for every minute.
	if lines > 62 || count > total || count < packets {
		t.Errorf("%d lines tell of %d packets, %d were denied", lines, count, total)
	}
	if !slices.ContainsFunc(all, func(p proof) bool {
		return p.Name == "connection.denied" && p.Source == "10.64.0.99" && strings.Contains(p.Reason, "your address differs") && strings.HasPrefix(p.Grant, "u0g")
	}) {
		t.Error("nobody is told that his address differs")
	}
}

// off is how far a number is from another, as a part of that.
func off(have, want uint64) float64 {
	return math.Abs(float64(have)-float64(want)) / max(1, float64(want))
}
