//go:build linux

package nft

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// flowEvent is what conntrack says of the connection of flowAnswer, which came
// to port 2222 and was passed on to port 22.
func flowEvent(t testing.TB, kind uint16, flags uint16, more ...netlink.Attribute) []byte {
	t.Helper()
	data := append(flowAnswer(t), nested(t, 0, more...).Data...)
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(data)))
	b = binary.NativeEndian.AppendUint16(b, uint16(conntrackType(kind)))
	b = binary.NativeEndian.AppendUint16(b, flags)
	return append(append(b, make([]byte, 8)...), data...)
}

func newTestTracker(ports ...firewall.Port) *tracker {
	return &tracker{now: func() firewall.BootTime { return 7 }, ports: ports, flows: map[firewall.FlowID]*tracked{}}
}

var flowsOwn = map[netip.Addr]bool{netip.MustParseAddr(here): true}

// The filter is run by the kernel, on a socket of another kind.
func TestFlowFilter(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pair[0]); unix.Close(pair[1]) })
	message := flowEvent(t, 0, unix.NLM_F_CREATE)
	one := func(first, last uint16) []firewall.Port {
		return []firewall.Port{{Protocol: firewall.TCP, First: first, Last: last}}
	}
	var many []firewall.Port
	for n := range uint16(maxFilter) {
		many = append(many, firewall.Port{Protocol: firewall.TCP, First: 10_000 + 2*n, Last: 10_000 + 2*n})
	}
	for _, c := range []struct {
		name    string
		ports   []firewall.Port
		message []byte
		passes  bool
	}{
		{"as the first packet had it", one(2222, 2222), message, true},
		{"as its answers have it", one(22, 22), message, true},
		{"within a range", one(2000, 3000), message, true},
		{"at its beginning", one(2222, 3000), message, true},
		{"at its end", one(2000, 2222), message, true},
		{"below it", one(2223, 3000), message, false},
		{"above it", one(2000, 2221), message, false},
		{"the second of two", slices.Concat(one(5985, 5986), one(2222, 2222)), message, true},
		{"another port", one(23, 23), message, false},
		{"the client's", one(50000, 50000), message, false},
		{"none", nil, message, false},
		{"more than a filter holds", many, message, true},
		{"cut short", one(2222, 2222), message[:30], false},
		{"empty", one(2222, 2222), nil, false},
	} {
		if err := attach(pair[1], c.ports); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		// A message that the filter drops is an error to its sender here.
		if _, err := unix.Write(pair[0], c.message); err != nil && !errors.Is(err, unix.EPERM) {
			t.Fatal(err)
		}
		_, err := unix.Read(pair[1], make([]byte, 1024))
		if passes := err == nil; passes != c.passes {
			t.Errorf("%s: passes: %t, want %t (%v)", c.name, passes, c.passes, err)
		}
	}
}

func TestTracker(t *testing.T) {
	number := func(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
	status := func(bits uint32) netlink.Attribute {
		return netlink.Attribute{Type: ctStatus, Data: binary.BigEndian.AppendUint32(nil, bits)}
	}
	state := func(s byte) netlink.Attribute {
		return nested(t, ctProtoInfo|unix.NLA_F_NESTED, nested(t, protoInfoTCP|unix.NLA_F_NESTED, netlink.Attribute{Type: tcpState, Data: []byte{s}}))
	}
	counts := func(kind uint16, packets, bytes uint64) netlink.Attribute {
		return nested(t, kind|unix.NLA_F_NESTED, netlink.Attribute{Type: countPackets, Data: number(packets)}, netlink.Attribute{Type: countBytes, Data: number(bytes)})
	}
	tr := newTestTracker(firewall.Port{Protocol: firewall.TCP, First: 2222, Last: 2222})
	step := func(what string, message []byte, want firewall.Flow) {
		t.Helper()
		tr.read(message)
		got := tr.take(false, flowsOwn)
		want.FlowID = firewall.FlowID{Protocol: firewall.TCP, From: end(there, 50000), To: end(here, 2222), Number: 0x01020304}
		want.Port = 2222
		if len(got) != 1 || got[0] != want {
			t.Fatalf("%s:\n%+v, want\n%+v", what, got, want)
		}
		if again := tr.take(false, flowsOwn); len(again) > 0 {
			t.Errorf("%s: told twice", what)
		}
	}
	step("begun", flowEvent(t, 0, unix.NLM_F_CREATE, status(0), state(1)), firewall.Flow{Began: 7, Open: true})
	step("established", flowEvent(t, 0, 0, status(statusSeenReply|statusAssured), state(3)), firewall.Flow{Began: 7, Open: true, Established: true})
	step("something else of it", flowEvent(t, 0, 0, status(statusSeenReply|statusAssured)), firewall.Flow{Began: 7, Open: true, Established: true})
	step("closed", flowEvent(t, 0, 0, state(7)), firewall.Flow{Began: 7, Established: true})
	step("forgotten", flowEvent(t, msgDelete, 0, counts(ctCountIn, 5, 500), counts(ctCountOut, 6, 6000)),
		firewall.Flow{Began: 7, Established: true, Gone: true, In: firewall.Count{Packets: 5, Bytes: 500}, Out: firewall.Count{Packets: 6, Bytes: 6000}})
	if len(tr.flows) > 0 || tr.lost {
		t.Errorf("%d are remembered, lost: %t", len(tr.flows), tr.lost)
	}

	// A look that was under way when the end came brings nothing back.
	tr.read(flowEvent(t, msgDelete, 0))
	f, _, err := readFlow(flowAnswer(t))
	if err != nil {
		t.Fatal(err)
	}
	tr.note(f, false, false, false)
	if got := tr.take(true, flowsOwn); len(got) != 1 || !got[0].Gone || len(tr.flows) > 0 {
		t.Errorf("%+v", got)
	}

	// Not to this host, and by it: not told, and not remembered.
	for _, own := range []map[netip.Addr]bool{{}, {netip.MustParseAddr(here): true, netip.MustParseAddr(there): true}} {
		tr.read(flowEvent(t, 0, unix.NLM_F_CREATE))
		if got := tr.take(true, own); len(got) > 0 || len(tr.flows) > 0 {
			t.Errorf("%+v", got)
		}
	}
	// Its answers come from the guarded port.
	tr.ports = []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}}
	tr.read(flowEvent(t, 0, unix.NLM_F_CREATE))
	if got := tr.take(true, flowsOwn); len(got) != 1 || got[0].Port != 22 {
		t.Errorf("%+v", got)
	}
}

func TestTrackerIsBounded(t *testing.T) {
	tr := newTestTracker()
	f, _, err := readFlow(flowAnswer(t))
	if err != nil {
		t.Fatal(err)
	}
	for i := range uint32(maxFlows + 100) {
		f.number = i
		tr.note(f, true, false, true)
	}
	if len(tr.flows) != maxFlows || !tr.lost {
		t.Errorf("%d are remembered, lost: %t", len(tr.flows), tr.lost)
	}
}

// Whatever comes, reading it does not panic, and what is no message counts as
// lost.
func FuzzTracker(f *testing.F) {
	f.Add(flowEvent(f, 0, unix.NLM_F_CREATE))
	f.Add(slices.Concat(flowEvent(f, 0, 0), flowEvent(f, msgDelete, 0)))
	f.Add([]byte{200, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		tr := newTestTracker(firewall.Port{Protocol: firewall.TCP, First: 1, Last: 65535}, firewall.Port{Protocol: firewall.UDP, First: 1, Last: 65535})
		tr.read(b)
		if len(b) >= unix.NLMSG_HDRLEN && int(binary.NativeEndian.Uint32(b)) > len(b) && !tr.lost {
			t.Error("a message cut short is not lost")
		}
		for _, x := range tr.take(true, flowsOwn) {
			if !x.From.IsValid() || x.Port == 0 {
				t.Errorf("a connection with half its ends: %+v", x)
			}
		}
		for _, x := range tr.flows {
			if x.flow.Gone {
				t.Errorf("%+v is remembered", x.flow)
			}
		}
	})
}
