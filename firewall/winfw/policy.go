package winfw

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// Policy is what Windows Firewall says of itself (INetFwPolicy2). Rules that
// come by group policy are not in it.
type Policy struct {
	Profiles []Profile
	// Modify says whether rules made here count: LocalPolicyModifyState.
	Modify ModifyState
	Rules  []PolicyRule // inbound
}

// Profile is how Windows Firewall is set for one kind of network.
type Profile struct {
	Name   string // domain, private or public
	Bit    int    // NET_FW_PROFILE_TYPE2
	Active bool   // the host is on such a network
	On     bool
	// BlocksByDefault says that what no rule is about is blocked.
	BlocksByDefault bool
	// BlocksAll says that all is blocked, whatever rules allow.
	BlocksAll bool
}

// ModifyState is NET_FW_MODIFY_STATE.
type ModifyState int

// Whether a change of the local rules takes effect.
const (
	ModifyOK       ModifyState = 0
	ModifyGroup    ModifyState = 1 // group policy has the last word
	ModifyBlockAll ModifyState = 2 // all inbound traffic is blocked
)

// The bits of profiles.
const (
	ProfileDomain  = 1
	ProfilePrivate = 2
	ProfilePublic  = 4
)

// PolicyRule is an inbound rule of Windows Firewall.
type PolicyRule struct {
	Name     string
	Group    string
	Enabled  bool
	Block    bool
	Protocol int    // IANA's number; 256: any
	Ports    string // "22,5985-5986", a word like RPC, or empty or "*": all
	Sources  string // as Windows Firewall writes them
	Profiles int    // bits
	Program  string // only for it; empty: for all
	Service  string
}

// AnyProtocol is NET_FW_IP_PROTOCOL_ANY.
const AnyProtocol = 256

// About reports whether the rule is about any of a guarded port's packets.
func (r PolicyRule) About(p firewall.Port) bool {
	if r.Protocol != AnyProtocol && r.Protocol != int(p.Protocol) {
		return false
	}
	if r.Protocol == AnyProtocol || r.Ports == "" || r.Ports == "*" {
		return true
	}
	for s := range strings.SplitSeq(r.Ports, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(s), "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.ParseUint(first, 10, 16)
		z, err2 := strconv.ParseUint(last, 10, 16)
		if err1 == nil && err2 == nil && uint16(a) <= p.Last && p.First <= uint16(z) {
			return true
		}
	}
	return false
}

// canonicalSources writes sources as jitgate does, from how Windows Firewall
// gives them back: "10.0.0.0/255.0.0.0,2001:db8::1/128".
func canonicalSources(text string) string {
	var out []string
	for s := range strings.SplitSeq(text, ",") {
		s = strings.TrimSpace(s)
		address, mask, hasMask := strings.Cut(s, "/")
		a, err := netip.ParseAddr(address)
		if err != nil {
			out = append(out, s) // a word, or a range
			continue
		}
		bits := a.BitLen()
		if hasMask {
			if n, err := strconv.Atoi(mask); err == nil {
				bits = n
			} else if m, err := netip.ParseAddr(mask); err == nil && m.Is4() && a.Is4() {
				bits = 0
				for _, b := range m.As4() {
					for ; b&0x80 != 0; b <<= 1 {
						bits++
					}
				}
			}
		}
		if p := netip.PrefixFrom(a, bits).Masked(); p.IsValid() {
			s = p.String()
		}
		if s == nobody+"/32" {
			s = nobody
		}
		out = append(out, s)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
