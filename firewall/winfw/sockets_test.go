package winfw

import (
	"encoding/binary"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

func number(n uint32) []byte { return binary.LittleEndian.AppendUint32(nil, n) }

// networkPort is a port as the tables have it: in the order of the network, in
// the first half of four bytes; what stands in the other half is anything.
func networkPort(n uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, n), 0xaa, 0xbb) }

func TestParseTables(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	peer4, peer6 := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8::7")
	scope := number(0)
	for i, c := range []struct {
		rows [][]byte
		want []Socket
	}{
		{[][]byte{
			slices.Concat(number(2), four.AsSlice(), networkPort(22), number(0), networkPort(0), number(4)),
			slices.Concat(number(5), four.AsSlice(), networkPort(22), peer4.AsSlice(), networkPort(50000), number(1234)),
		}, []Socket{
			{Protocol: firewall.TCP, Local: netip.AddrPortFrom(four, 22), State: Listening, PID: 4},
			{Protocol: firewall.TCP, Local: netip.AddrPortFrom(four, 22), Remote: netip.AddrPortFrom(peer4, 50000), State: Established, PID: 1234},
		}},
		{[][]byte{slices.Concat(six.AsSlice(), scope, networkPort(3389), peer6.AsSlice(), scope, networkPort(50001), number(11), number(7))},
			[]Socket{{Protocol: firewall.TCP, Local: netip.AddrPortFrom(six, 3389), Remote: netip.AddrPortFrom(peer6, 50001), State: 11, PID: 7}}},
		{[][]byte{slices.Concat(four.AsSlice(), networkPort(3389), number(9))},
			[]Socket{{Protocol: firewall.UDP, Local: netip.AddrPortFrom(four, 3389), PID: 9}}},
		{[][]byte{slices.Concat(six.AsSlice(), scope, networkPort(3389), number(9))},
			[]Socket{{Protocol: firewall.UDP, Local: netip.AddrPortFrom(six, 3389), PID: 9}}},
	} {
		b := slices.Concat(number(uint32(len(c.rows))), slices.Concat(c.rows...), make([]byte, 100)) // longer than it is
		got, err := tables[i].parse(b)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("table %d: %+v, %v, want %+v", i, got, err, c.want)
		}
		for _, short := range [][]byte{nil, b[:3], number(1 << 30), b[:4]} {
			if got, err := tables[i].parse(short); err == nil {
				t.Errorf("table %d: %d bytes are taken for %+v", i, len(short), got)
			}
		}
	}
}

func TestTracker(t *testing.T) {
	ports := []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}}
	local := netip.MustParseAddrPort("192.0.2.1:22")
	socket := func(peer string, s TCPState) Socket {
		return Socket{Protocol: firewall.TCP, Local: local, Remote: netip.MustParseAddrPort(peer), State: s}
	}
	flow := func(peer string, n uint32, began firewall.BootTime) firewall.Flow {
		return firewall.Flow{FlowID: firewall.FlowID{Protocol: firewall.TCP, From: netip.MustParseAddrPort(peer), To: local, Number: n}, Port: 22, Began: began}
	}
	const a, b = "203.0.113.7:50000", "203.0.113.8:50000"
	var k tracker
	at := firewall.BootTime(time.Hour)
	take := func(what string, look bool, list []Socket, want ...firewall.Flow) {
		t.Helper()
		at = at.Add(time.Second)
		got := k.take(list, ports, at, look)
		if !got.Incomplete {
			t.Errorf("%s: said to be complete", what)
		}
		slices.SortFunc(got.List, func(x, y firewall.Flow) int { return int(x.Number) - int(y.Number) })
		if !slices.Equal(got.List, want) {
			t.Errorf("%s: %+v, want %+v", what, got.List, want)
		}
	}
	first := flow(a, 1, 0)
	first.Established, first.Open = true, true
	take("there before", false, []Socket{{Protocol: firewall.TCP, Local: local, State: Listening}, socket(a, Established), socket("127.0.0.1:9", Established)}, first)
	take("nothing new", false, []Socket{socket(a, Established)})
	second := flow(b, 2, at.Add(time.Second))
	take("half open", false, []Socket{socket(a, Established), socket(b, 4)}, second)
	second.Established, second.Open = true, true
	take("established", false, []Socket{socket(a, Established), socket(b, Established)}, second)
	take("all", true, []Socket{socket(a, Established), socket(b, Established)}, first, second)
	first.Open = false
	take("one end closed", false, []Socket{socket(a, 8), socket(b, Established)}, first)
	first.Gone = true
	take("gone", false, []Socket{socket(b, Established)}, first)
	third := flow(a, 3, at.Add(time.Second))
	third.Established, third.Open = true, true
	take("between the same ends", false, []Socket{socket(a, Established), socket(b, Established)}, third)
	other := socket("203.0.113.9:1", Established)
	other.Local = netip.MustParseAddrPort("192.0.2.1:80")
	take("another port", false, []Socket{socket(a, Established), socket(b, Established), other})
}
