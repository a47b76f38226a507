//go:build linux

package nft_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
)

// flows gathers what the backend tells of connections from one source, each
// with the last that was said of it.
type flows struct {
	g    *gate
	seen map[firewall.FlowID]firewall.Flow
	lost bool
}

func newFlows(g *gate) *flows {
	f := &flows{g: g, seen: map[firewall.FlowID]firewall.Flow{}}
	f.gather(false)
	return f
}

func (f *flows) gather(look bool) {
	f.g.t.Helper()
	fwtest.In(f.g.t, f.g.pair.VM, func() {
		got, err := f.g.b.Flows(context.Background(), look)
		if err != nil {
			f.g.t.Fatal(err)
		}
		f.lost = f.lost || got.Incomplete
		for _, x := range got.List {
			if was, ok := f.seen[x.FlowID]; ok && x.Began == 0 {
				f.g.t.Errorf("the beginning of %+v is forgotten: %+v", was, x)
			}
			f.seen[x.FlowID] = x
		}
	})
}

// from waits for the one flow of a source that is as it should be.
func (f *flows) from(source string, look bool, good func(firewall.Flow) bool) firewall.Flow {
	f.g.t.Helper()
	var last []firewall.Flow
	for range 500 {
		f.gather(look)
		last = nil
		for _, x := range f.seen {
			if x.From.Addr() == netip.MustParseAddr(source) {
				last = append(last, x)
			}
		}
		if len(last) == 1 && good(last[0]) {
			return last[0]
		}
		time.Sleep(10 * time.Millisecond)
	}
	f.g.t.Fatalf("flows from %s: %+v", source, last)
	return firewall.Flow{}
}

// send carries n bytes to the host and m back, and closes from the client's
// side. It returns once both ends have seen the end.
func send(t *testing.T, pair fwtest.Pair, l net.Listener, source string, n, m int) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, err = io.CopyN(io.Discard, c, int64(n))
		}
		if err == nil {
			_, err = c.Write(make([]byte, m))
		}
		if err == nil {
			err = c.Close()
		}
		done <- err
	}()
	fwtest.In(t, pair.Outside, func() {
		d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write(make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(c); err != nil || len(got) != m {
			t.Fatalf("%d bytes came back: %v", len(got), err)
		}
	})
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// A connection is told of when it begins, when something comes of it, while it
// goes on and when it is over, with what went over it.
func TestFlowsOfTheKernel(t *testing.T) {
	pair := fwtest.NewPair(t)
	g := newGate(t, pair, "22/tcp", "3389/udp")
	g.open("10.64.0.1/32", "22/tcp", time.Minute)
	g.open("10.64.0.2/32", "22/tcp", time.Minute)
	g.open("fd64::1/128", "22/tcp", time.Minute)
	l := listen(t, pair.VM, "tcp", fwtest.VM4+":22")
	f := newFlows(g)

	began := bootNow()
	send(t, pair, l, "10.64.0.1", 100_000, 300_000)
	x := f.from("10.64.0.1", true, func(x firewall.Flow) bool { return x.Established && !x.Open && x.In.Bytes > 0 })
	if x.Began < began || x.Began > bootNow() || x.Port != 22 || x.Gone {
		t.Errorf("%+v", x)
	}
	// Headers are some 5 % at the most.
	if x.In.Bytes < 100_000 || x.In.Bytes > 160_000 || x.Out.Bytes < 300_000 || x.Out.Bytes > 360_000 || x.In.Packets == 0 || x.Out.Packets == 0 {
		t.Errorf("100 kB in and 300 kB out are counted as %+v and %+v", x.In, x.Out)
	}

	// While it goes on, and a second one beside it.
	meet(t, pair.Outside, l, "10.64.0.2", l.Addr().String())
	f.from("10.64.0.2", false, func(x firewall.Flow) bool { return x.Established && x.Open && x.Began != 0 })

	// Ended with the grant, and forgotten by the kernel: the counts are final.
	fwtest.Command(t, pair.VM, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=1")
	g.close("10.64.0.2/32", "22/tcp")
	f.from("10.64.0.2", false, func(x firewall.Flow) bool { return !x.Open })
	gone := f.from("10.64.0.2", true, func(x firewall.Flow) bool { return x.Gone })
	if gone.In.Packets < 4 || gone.Out.Packets < 4 {
		t.Errorf("forgotten with %+v and %+v", gone.In, gone.Out)
	}
	if f.lost {
		t.Error("something was lost")
	}
	if n := len(f.seen); n != 2 {
		t.Errorf("%d flows: %v", n, f.seen)
	}
}

// refusedFrom reports whether a SYN to port 22, where nobody listens, comes
// through the guard.
func refusedFrom(t *testing.T, pair fwtest.Pair, source string) (refused bool) {
	t.Helper()
	fwtest.In(t, pair.Outside, func() {
		d := net.Dialer{Timeout: 500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
		_, err := d.Dial("tcp", fwtest.VM4+":22")
		refused = errors.Is(err, syscall.ECONNREFUSED)
	})
	return refused
}

// A SYN that nobody answers is a flow of which nothing came.
func TestFlowsOfWhichNothingCame(t *testing.T) {
	pair := fwtest.NewPair(t)
	g := newGate(t, pair, "22/tcp", "3389/udp")
	g.open("10.64.0.1/32", "22/tcp", time.Minute)
	g.open("10.64.0.0/24", "3389/udp", time.Minute)
	f := newFlows(g)
	if !refusedFrom(t, pair, "10.64.0.1") {
		t.Fatal("not refused")
	}
	x := f.from("10.64.0.1", false, func(x firewall.Flow) bool { return !x.Open })
	if x.Established {
		t.Errorf("%+v", x)
	}
	// A datagram without an answer, and one with.
	fwtest.In(t, pair.VM, func() {
		packets(t, "udp", fwtest.VM4+":3389", func(c net.PacketConn, from net.Addr, b []byte) {
			if string(b) == "answer" {
				c.WriteTo(b, from)
			}
		})
	})
	for source, text := range map[string]string{"10.64.0.3": "silence", "10.64.0.4": "answer"} {
		fwtest.In(t, pair.Outside, func() {
			c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(source)}, &net.UDPAddr{IP: net.ParseIP(fwtest.VM4), Port: 3389})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(100 * time.Millisecond)
		})
		f.from(source, true, func(x firewall.Flow) bool {
			return x.Protocol == firewall.UDP && x.Port == 3389 && x.Established == (text == "answer") && x.In.Packets == 1
		})
	}
	have, err := firewall.Observed{}, error(nil)
	fwtest.In(t, pair.VM, func() { have, err = g.b.Observe(context.Background()) })
	if err != nil || have.Passed[fwtest.Door(t, "10.64.0.1/32", "22/tcp")] == 0 || have.Passed[fwtest.Door(t, "10.64.0.0/24", "3389/udp")] < 2 {
		t.Errorf("the openings have let in %v, %v", have.Passed, err)
	}
}

// What is not for a guarded port of this host is not spoken of: the host's own
// connections, other ports, and what was denied.
func TestFlowsOfOthers(t *testing.T) {
	pair := fwtest.NewPair(t)
	g := newGate(t, pair, "22/tcp")
	f := newFlows(g)
	out := listen(t, pair.Outside, "tcp", fwtest.Outside4+":22")
	other := listen(t, pair.VM, "tcp", fwtest.VM4+":8080")
	fwtest.In(t, pair.VM, func() {
		c, err := net.Dial("tcp", out.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	fwtest.In(t, pair.Outside, func() {
		c, err := net.Dial("tcp", other.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
	})
	if refusedFrom(t, pair, "10.64.0.9") {
		t.Fatal("not guarded")
	}
	time.Sleep(100 * time.Millisecond)
	f.gather(false)
	f.gather(true)
	if len(f.seen) > 0 {
		t.Errorf("told of %v", slices.Collect(func(yield func(string) bool) {
			for _, x := range f.seen {
				yield(fmt.Sprintf("%+v", x))
			}
		}))
	}
}
