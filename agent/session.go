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
	socket        string // as links in /proc/PID/fd name it
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
