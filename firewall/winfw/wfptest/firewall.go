package wfptest

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// Firewall is Windows Firewall: in each profile on or off, with what it does to
// what no rule is about. A rule that blocks beats one that allows.
type Firewall struct {
	Profiles map[Profile]ProfileState
	Active   Profile
	Rules    []FirewallRule
	// Fail, if not nil, is the answer to every call.
	Fail error
}

// Profile is a kind of network.
type Profile string

// The profiles.
const (
	Domain  Profile = "domain"
	Private Profile = "private"
	Public  Profile = "public"
)

// ProfileState is how Windows Firewall is set in a profile.
type ProfileState struct {
	On         bool
	AllowAll   bool // the default for what comes in; as installed it is blocked
	BlockAll   bool // whatever the rules say
	OnlyPolicy bool // group policy ignores rules made here
}

// FirewallRule is an inbound rule.
type FirewallRule struct {
	winfw.Rule
	Group      string
	Block      bool
	Profiles   []Profile // none: all
	FromPolicy bool      // it came by group policy
}

// NewFirewall is Windows Firewall as installed: on, and blocking what no rule
// is about.
func NewFirewall() *Firewall {
	on := ProfileState{On: true}
	return &Firewall{Profiles: map[Profile]ProfileState{Domain: on, Private: on, Public: on}, Active: Public}
}

// ask is what Windows Firewall says about something that begins, or is asked
// about again.
func (w *Firewall) ask(packet firewall.Door, flags uint32) verdict {
	state := w.Profiles[w.Active]
	if !state.On || flags&winfw.IsLoopback != 0 {
		return verdict{}
	}
	if state.BlockAll {
		return verdict{block: true, says: true}
	}
	allowed := state.AllowAll
	for _, r := range w.Rules {
		if !r.Enabled || len(r.Profiles) > 0 && !slices.Contains(r.Profiles, w.Active) || state.OnlyPolicy && !r.FromPolicy || !about(r.Rule, packet) {
			continue
		}
		if r.Block {
			return verdict{block: true, says: true}
		}
		allowed = true
	}
	return verdict{block: !allowed, says: true}
}

// about reports whether a rule is about a packet.
func about(r winfw.Rule, packet firewall.Door) bool {
	if r.Protocol != 0 && r.Protocol != packet.Protocol {
		return false
	}
	if r.Ports != "*" {
		first, last, isRange := strings.Cut(r.Ports, "-")
		if !isRange {
			last = first
		}
		a, err1 := strconv.Atoi(first)
		z, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil {
			panic(fmt.Sprintf("wfptest: %q are no ports", r.Ports))
		}
		if int(packet.Port) < a || z < int(packet.Port) {
			return false
		}
	}
	if r.Sources == "*" {
		return true
	}
	for s := range strings.SplitSeq(r.Sources, ",") {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				panic(fmt.Sprintf("wfptest: %q is no source", s))
			}
			prefix = netip.PrefixFrom(a, a.BitLen())
		}
		if prefix.Contains(packet.Source.Addr()) {
			return true
		}
	}
	return false
}

// Rules is the firewall of a platform as winfw sees it. A change of rules is a
// change of policy.
func (p *Platform) Rules() winfw.Rules { return group{p} }

type group struct{ p *Platform }

var errStopped = errors.New("the service MpsSvc does not run")

func (g group) open() (*Firewall, error) {
	if g.p.Firewall == nil {
		return nil, errStopped
	}
	return g.p.Firewall, g.p.Firewall.Fail
}

func (g group) Read() (out []winfw.Rule, err error) {
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	w, err := g.open()
	if err != nil {
		return nil, err
	}
	for _, r := range w.Rules {
		if r.Group == winfw.Group {
			out = append(out, r.Rule)
		}
	}
	return out, nil
}

func (g group) Write(r winfw.Rule) error {
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	w, err := g.open()
	if err != nil {
		return err
	}
	g.p.epoch++
	for i, had := range w.Rules {
		if had.Group == winfw.Group && had.Name == r.Name {
			w.Rules[i].Rule = r
			return nil
		}
	}
	w.Rules = append(w.Rules, FirewallRule{Rule: r, Group: winfw.Group})
	return nil
}

func (g group) Delete(name string) error {
	g.p.mu.Lock()
	defer g.p.mu.Unlock()
	w, err := g.open()
	if err != nil {
		return err
	}
	g.p.epoch++
	w.Rules = slices.DeleteFunc(w.Rules, func(r FirewallRule) bool { return r.Group == winfw.Group && r.Name == name })
	return nil
}
