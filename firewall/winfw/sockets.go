package winfw

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jitgate/jitgate/firewall"
)

// Socket is a row of the platform's tables of TCP and UDP sockets.
type Socket struct {
	Protocol      firewall.Protocol
	Local, Remote netip.AddrPort // no Remote: it has none
	State         TCPState       // 0 of UDP
	PID           uint32
}

// TCPState is MIB_TCP_STATE.
type TCPState uint32

// The states that matter here.
const (
	Listening   TCPState = 2
	Established TCPState = 5
)

// begun reports whether a handshake was completed: from Established to
// TIME_WAIT.
func (s TCPState) begun() bool { return s >= Established && s <= 11 }

// table is one of MIB_{TCP,TCP6,UDP,UDP6}TABLE_OWNER_PID: where the columns of
// a row are.
type table struct {
	family, row                          int // 4 or 6, and bytes a row
	local, localPort, remote, remotePort int // remote -1: there is none
	state, pid                           int
	protocol                             firewall.Protocol
}

var tables = []table{
	{4, 24, 4, 8, 12, 16, 0, 20, firewall.TCP},
	{6, 56, 0, 20, 24, 44, 48, 52, firewall.TCP},
	{4, 12, 0, 4, -1, -1, -1, 8, firewall.UDP},
	{6, 28, 0, 20, -1, -1, -1, 24, firewall.UDP},
}

// parse reads the table as iphlpapi.dll fills it in: a count, and rows. Ports
// are in the order of the network.
func (t table) parse(b []byte) ([]Socket, error) {
	if len(b) < 4 {
		return nil, fmt.Errorf("%d bytes are no table of sockets", len(b))
	}
	n := int(binary.LittleEndian.Uint32(b))
	if b = b[4:]; n > len(b)/t.row {
		return nil, fmt.Errorf("%d bytes hold no %d sockets", len(b), n)
	}
	end := func(row []byte, address, port int) netip.AddrPort {
		a, _ := netip.AddrFromSlice(row[address : address+map[int]int{4: 4, 6: 16}[t.family]])
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(row[port:]))
	}
	out := make([]Socket, 0, n)
	for row := range slices.Chunk(b[:n*t.row], t.row) {
		s := Socket{Protocol: t.protocol, Local: end(row, t.local, t.localPort), PID: binary.LittleEndian.Uint32(row[t.pid:])}
		if t.remote >= 0 {
			s.State = TCPState(binary.LittleEndian.Uint32(row[t.state:]))
			if s.State != Listening {
				s.Remote = end(row, t.remote, t.remotePort)
			}
		}
		out = append(out, s)
	}
	return out, nil
}

// tracker makes flows of what the table of sockets shows from one look to the
// next. What begins and ends in between is not seen.
type tracker struct {
	flows  map[[2]netip.AddrPort]firewall.Flow
	number uint32
	looked bool
}

// take returns the flows to guarded ports that are new or have changed, or with
// look all.
func (k *tracker) take(list []Socket, ports []firewall.Port, now firewall.BootTime, look bool) firewall.Flows {
	out := firewall.Flows{Incomplete: true}
	next := map[[2]netip.AddrPort]firewall.Flow{}
	for _, s := range list {
		if !s.Remote.IsValid() || s.Remote.Addr().IsLoopback() || !guarded(ports, s) {
			continue
		}
		ends := [2]netip.AddrPort{s.Remote, s.Local}
		f, had := k.flows[ends]
		was := f
		if !had {
			k.number++
			f = firewall.Flow{FlowID: firewall.FlowID{Protocol: s.Protocol, From: s.Remote, To: s.Local, Number: k.number}, Port: s.Local.Port()}
			if k.looked {
				f.Began = now
			}
		}
		f.Established = f.Established || s.State.begun()
		f.Open = s.State == Established
		if next[ends] = f; !had || f != was || look {
			out.List = append(out.List, f)
		}
	}
	for ends, f := range k.flows {
		if _, there := next[ends]; !there {
			f.Open, f.Gone = false, true
			out.List = append(out.List, f)
		}
	}
	k.flows, k.looked = next, true
	return out
}

func guarded(ports []firewall.Port, s Socket) bool {
	return slices.ContainsFunc(ports, func(p firewall.Port) bool {
		return p.Protocol == s.Protocol && p.First <= s.Local.Port() && s.Local.Port() <= p.Last
	})
}
