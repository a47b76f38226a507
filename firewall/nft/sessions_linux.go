package nft

import (
	"net/netip"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// remembered is how long sessions of a revoked grant stay cut: longer than
// conntrack remembers an established connection nobody speaks on (five days).
// After that its packets count as new ones.
const remembered = 7 * 24 * time.Hour

// maxRevoked bounds the doors remembered one by one, so that whoever signs
// grants and takes them back cannot fill the kernel's memory. Beyond it every
// session on the port is held against the grants in force: that errs towards
// cutting.
const maxRevoked = 1 << 16

// sessions is what a plan means for established sessions on ports that keep
// them.
type sessions struct {
	cut  map[firewall.Door]firewall.End // not to be kept any longer, until then
	free []firewall.Door                // may be kept again
}

// sessions decides which sessions a plan cuts and which it frees. An opening
// that runs out keeps its sessions; one that is taken back does not.
func (b *Backend) sessions(p firewall.Plan, now firewall.BootTime) sessions {
	s := sessions{cut: map[firewall.Door]firewall.End{}}
	for _, c := range p.Close {
		if c.Protocol == 0 || !c.Early(now) || !keeps(p.Ports, c.Door) {
			continue // an exempt source, at its end, or cut in any case
		}
		d := c.Door
		if len(b.revoked)+len(s.cut) >= maxRevoked {
			d.Source = everywhere(d.Source)
		}
		s.cut[d] = firewall.End{Until: now.Add(remembered)}
	}
	for _, c := range p.Open {
		_, revoked := b.revoked[c.Door]
		// A door that stands for all others may stand for more than its own.
		if revoked && (c.Source.Bits() > 0 || len(b.revoked) < maxRevoked) {
			s.free = append(s.free, c.Door)
		}
	}
	return s
}

// keeps reports whether established sessions to the door's port are kept: the
// first port that matches a packet decides.
func keeps(ports []firewall.Port, d firewall.Door) bool {
	p, guarded := guarding(ports, d.Protocol, d.Port)
	return !guarded || !p.Cut // unguarded now; guarded again it may be kept
}

// guarding returns the guarded port that decides about packets to port.
func guarding(ports []firewall.Port, protocol firewall.Protocol, port uint16) (p firewall.Port, ok bool) {
	for _, p := range ports {
		if p.Protocol == protocol && p.First <= port && port <= p.Last {
			return p, true
		}
	}
	return firewall.Port{}, false
}

// everywhere is the prefix of all addresses of p's family.
func everywhere(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// ended are doors whose sessions are to be told that they are over: the table
// drops their packets. open are those that still let some of them through.
type ended struct {
	ports       []firewall.Port
	doors, open index
}

// endedBy picks from closings those whose sessions end: on ports that cut
// them, and everywhere if taken back. open are the openings that go on.
func endedBy(closings []firewall.Closing, ports []firewall.Port, open index, now firewall.BootTime) ended {
	e := ended{ports: ports, doors: index{doors: map[firewall.Door]firewall.End{}}, open: open}
	for _, c := range closings {
		p, _ := guarding(ports, c.Protocol, c.Port)
		if c.Protocol == 0 || p.Cut || c.Early(now) {
			e.doors.doors[c.Door] = firewall.End{Until: firewall.Never}
			e.doors.addLength(setOf(c.Door))
		}
	}
	return e
}

// over reports whether a session from source to port has ended.
func (e ended) over(source netip.Addr, protocol firewall.Protocol, port uint16) bool {
	named, exempted := e.doors.has(source, protocol, port), e.doors.has(source, 0, 0)
	if !named && !exempted {
		return false
	}
	// Where sessions are kept, those of an exempt source are too.
	p, guarded := guarding(e.ports, protocol, port)
	return guarded && (named || p.Cut) && !e.open.has(source, protocol, port) && !e.open.has(source, 0, 0)
}

// families are the address families of the doors, AF_INET first.
func (e ended) families() (out []byte) {
	for i, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		if len(e.doors.lengths[i]) > 0 {
			out = append(out, family)
		}
	}
	return out
}

// protocols are those of the doors.
func (e ended) protocols() (out []firewall.Protocol) {
	used := map[firewall.Protocol]bool{}
	for d := range e.doors.doors {
		used[d.Protocol] = true
	}
	for _, p := range []firewall.Protocol{firewall.TCP, firewall.UDP} {
		if used[p] || used[0] {
			out = append(out, p)
		}
	}
	return out
}

// index looks doors up as the table does: by the source masked to each prefix
// length in use. Those that end by now do not count.
type index struct {
	doors   map[firewall.Door]firewall.End
	lengths [2][]int // IPv4 and IPv6
	now     firewall.BootTime
}

func familyIndex(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func (x *index) addLength(s setID) {
	lengths := &x.lengths[familyIndex(s.v6)]
	if !slices.Contains(*lengths, s.bits) {
		*lengths = append(*lengths, s.bits)
	}
}

func (x *index) has(source netip.Addr, protocol firewall.Protocol, port uint16) bool {
	for _, bits := range x.lengths[familyIndex(source.Is6())] {
		p, err := source.Prefix(bits)
		if err == nil && x.doors[firewall.Door{Source: p, Protocol: protocol, Port: port}].Until > x.now {
			return true
		}
	}
	return false
}
