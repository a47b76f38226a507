package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// What becomes of a denied packet.
const (
	counted    = "counted by source" // as jitgate does
	notCounted = "only dropped"
)

const (
	deniedPort    = 22
	deniedSources = 1 << 20 // many more than the guard has room to name
)

// flood sends packets that the guard drops.
type flood struct {
	inside, outside *world
	socket          int
	sent            uint64
	one, many       sample // CPU time of a packet: of one source, of all
}

// newFlood leads into inside, which it takes over.
func newFlood(inside *world) (f *flood, err error) {
	f = &flood{inside: inside}
	if f.outside, err = inside.newOutside(); err != nil {
		f.close()
		return nil, err
	}
	err = errors.Join(
		inside.do(func() error {
			// Answers to these sources would go nowhere.
			return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("0"), 0)
		}),
		f.outside.do(func() (err error) {
			f.socket, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
			return os.NewSyscallError("socket", err)
		}))
	if err != nil {
		f.close()
		return nil, err
	}
	return f, nil
}

func (f *flood) close() {
	if f.socket > 0 {
		unix.Close(f.socket)
	}
	if f.outside != nil {
		f.outside.close()
	}
	f.inside.close()
}

// datagram is a UDP datagram to the flooded port with its IPv4 header. The
// kernel fills in the checksum.
func datagram(from netip.Addr) []byte {
	const length = 20 + 8 + 36
	b := make([]byte, length)
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], length)
	source, target := from.As4(), insideAddress.As4()
	copy(b[12:], source[:])
	copy(b[16:], target[:])
	binary.BigEndian.PutUint16(b[20:], 40000)
	binary.BigEndian.PutUint16(b[22:], deniedPort)
	binary.BigEndian.PutUint16(b[24:], length-20)
	return b
}

// burst returns the cost of one packet of many from n sources.
func (f *flood) burst(n uint32) (each time.Duration, err error) {
	to := inside(deniedPort)
	b := datagram(netip.AddrFrom4([4]byte{198, 18, 0, 1}))
	err = f.outside.do(func() error {
		from := threadTime()
		for range burstDatagrams {
			if n > 1 {
				binary.BigEndian.PutUint32(b[12:], 0xc6120000+rand.Uint32N(n)) // 198.18.0.0 and on
			}
			if err := unix.Sendto(f.socket, b, 0, to); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		each = (threadTime() - from) / burstDatagrams
		return nil
	})
	f.sent += burstDatagrams
	return each, err
}

// withoutCounts makes the guard of d's world again in another one, less what
// counts what it denies.
func withoutCounts(o options, d *direct) (*world, error) {
	var listing []byte
	err := d.world.do(func() (err error) {
		listing, err = exec.Command("nft", "-n", "list", "table", "inet", "jitgate").Output()
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nft list: %w", err)
	}
	var script strings.Builder
	left := 0
	for line := range strings.Lines(string(listing)) {
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(text, "flags owner"), strings.HasPrefix(text, "# progname"):
			continue
		case strings.HasPrefix(text, "update @d"), strings.HasPrefix(text, "counter name"):
			left++
			continue
		}
		script.WriteString(line)
	}
	if left != 3 { // two families, the counter of all
		return nil, fmt.Errorf("%d rules count what is denied: this benchmark knows three\n%s", left, listing)
	}
	w, err := newWorld()
	if err != nil {
		return nil, err
	}
	if err := w.nft(o.dir, script.String()); err != nil {
		w.close()
		return nil, err
	}
	return w, nil
}

// measureFlood compares what a denied packet costs with and without its being
// counted under its source.
func measureFlood(ctx context.Context, o options, r *report) error {
	d, err := newDirect(0, firewall.Port{Protocol: firewall.UDP, First: deniedPort, Last: deniedPort})
	if err != nil {
		return err
	}
	defer d.closeBackend()
	bare, err := withoutCounts(o, d)
	if err != nil {
		d.world.close()
		return err
	}
	floods := map[string]*flood{}
	defer func() {
		for _, f := range floods {
			f.close()
		}
	}()
	for name, w := range map[string]*world{counted: d.world, notCounted: bare} {
		if floods[name], err = newFlood(w); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	names := []string{counted, notCounted}
	for round := range packetWarmUp + o.runs {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			f := floods[name]
			if round == packetWarmUp {
				f.one, f.many = nil, nil
			}
			one, err := f.burst(1)
			if err != nil {
				return err
			}
			many, err := f.burst(deniedSources)
			if err != nil {
				return err
			}
			f.one, f.many = append(f.one, one), append(f.many, many)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	denied, read, err := d.denied(ctx)
	if err != nil {
		return err
	}
	if sent := floods[counted].sent; denied.Packets != sent {
		return fmt.Errorf("%d packets were sent and %d denied", sent, denied.Packets)
	}
	var results []result
	for _, kind := range []struct {
		name string
		of   func(*flood) sample
	}{
		{"denied packet, one source", func(f *flood) sample { return f.one }},
		{"denied packet, a million sources", func(f *flood) sample { return f.many }},
	} {
		ours, other := kind.of(floods[counted]), kind.of(floods[notCounted])
		ratio, low, high := ours.roundByRound(other)
		results = append(results, result{name: kind.name, value: ours.String(), ratio: ratio, bound: "≤ 1.1", ok: ratio <= 1.1,
			beside: fmt.Sprintf("%s %s, %.2f to %.2f", notCounted, span(other.median()), low, high)})
	}
	results = append(results, result{name: "reading who was denied", value: span(read), beside: fmt.Sprintf("%d sources named", len(denied.By))})
	r.add(fmt.Sprintf("%d rounds in random order, each %d datagrams of 64 bytes to a guarded port; CPU time of the sending thread, which over veth does\n"+
		"    the receiver's work too, for one. Beside it the same guard less the rules that count a denied packet, under its source and with all others.\n"+
		"    The agent reads the counts with its passes, at most every ten seconds, however many packets came.", o.runs, burstDatagrams), results...)
	return nil
}

// denied reads who was denied, and tells how long that took.
func (d *direct) denied(ctx context.Context) (all firewall.Denied, took time.Duration, err error) {
	err = d.do(func() (err error) {
		from := monotonic()
		all, err = d.backend.Denied(ctx)
		took = monotonic() - from
		return err
	})
	return all, took, err
}
