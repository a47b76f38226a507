package nft

import (
	"net/netip"
	"time"

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
	for _, p := range ports {
		if p.Protocol == d.Protocol && p.First <= d.Port && d.Port <= p.Last {
			return !p.Cut
		}
	}
	return true // unguarded now; guarded again it may be kept
}

// everywhere is the prefix of all addresses of p's family.
func everywhere(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
