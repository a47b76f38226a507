package agent

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// Session is the far end of a TCP session to a port of this host.
type Session struct {
	Source netip.Addr `json:"source"`
	Port   uint16     `json:"port"`
}

func (s Session) String() string { return fmt.Sprintf("%s to %d/tcp", s.Source, s.Port) }

func (s Session) door() firewall.Door {
	return firewall.Door{Source: netip.PrefixFrom(s.Source, s.Source.BitLen()), Protocol: firewall.TCP, Port: s.Port}
}

// connection is an established TCP connection of this network namespace.
type connection struct {
	local, remote netip.AddrPort
	socket        string // who holds it: as links in /proc/PID/fd name it, on Windows the process
}

// ownSessions picks the connections behind the sockets held, or the one that
// environment names: "client port server port".
func ownSessions(all []connection, held map[string]bool, environment string) []Session {
	var out []Session
	add := func(c connection) {
		if s := (Session{c.remote.Addr(), c.local.Port()}); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	for _, c := range all {
		if held[c.socket] {
			add(c)
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, c := range all {
		if environment == fmt.Sprintf("%s %d %s %d", c.remote.Addr(), c.remote.Port(), c.local.Addr(), c.local.Port()) {
			add(c)
		}
	}
	return out
}

// parseConnections reads the established connections of /proc/net/tcp or tcp6
// (Documentation/networking/proc_net_tcp.rst).
func parseConnections(text string) []connection {
	var out []connection
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		const established = "01"
		if len(f) < 10 || f[3] != established {
			continue
		}
		local, err1 := parseAddress(f[1])
		remote, err2 := parseAddress(f[2])
		if err1 == nil && err2 == nil {
			out = append(out, connection{local, remote, "socket:[" + f[9] + "]"})
		}
	}
	return out
}

// parseAddress reads "0100007F:0016": words of four bytes in the order of the
// host, then the port.
func parseAddress(s string) (netip.AddrPort, error) {
	digits, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(digits)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for i := 0; i+4 <= len(b); i += 4 {
		binary.BigEndian.PutUint32(b[i:], binary.NativeEndian.Uint32(b[i:]))
	}
	address, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || !ok {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address and a port", s)
	}
	return netip.AddrPortFrom(address.Unmap(), uint16(n)), nil
}

// parseTCPTable reads the established connections of a table that Windows
// makes: MIB_TCPTABLE_OWNER_PID or MIB_TCP6TABLE_OWNER_PID (tcpmib.h).
func parseTCPTable(b []byte, v6 bool) []connection {
	const established = 5
	// Offsets of a row, in bytes: addresses and ports, state, owner.
	size, local, localPort, remote, remotePort, state, owner := 24, 4, 8, 12, 16, 0, 20
	if v6 {
		size, local, localPort, remote, remotePort, state, owner = 56, 0, 20, 24, 44, 48, 52
	}
	if len(b) < 4 {
		return nil
	}
	var out []connection
	n := binary.LittleEndian.Uint32(b)
	for b = b[4:]; n > 0 && len(b) >= size; n, b = n-1, b[size:] {
		if binary.LittleEndian.Uint32(b[state:]) != established {
			continue
		}
		at := func(address, port int) netip.AddrPort {
			a := netip.AddrFrom4([4]byte(b[address:]))
			if v6 {
				a = netip.AddrFrom16([16]byte(b[address:])).Unmap()
			}
			return netip.AddrPortFrom(a, binary.BigEndian.Uint16(b[port:]))
		}
		out = append(out, connection{at(local, localPort), at(remote, remotePort), fmt.Sprintf("process %d", binary.LittleEndian.Uint32(b[owner:]))})
	}
	return out
}

// desktopPort is that of remote desktops.
const desktopPort = 3389

// desktopSessions are the sessions from the client of a remote desktop to it.
func desktopSessions(all []connection, client netip.Addr) []Session {
	var out []Session
	for _, c := range all {
		s := Session{c.remote.Addr(), c.local.Port()}
		if client.IsValid() && s.Source == client.Unmap() && s.Port == desktopPort && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}
