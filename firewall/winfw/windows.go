package winfw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// Group is the rule group of jitgate in Windows Firewall.
const Group = "jitgate"

// Rule is an inbound allow rule of Windows Firewall in the group, for every
// profile.
type Rule struct {
	Name     string // as the guarded port is called
	Protocol firewall.Protocol
	Ports    string // "22", or "5985-5986"
	// Sources are let through, as Windows Firewall writes them: a sorted list
	// with commas, or "*".
	Sources string
	Enabled bool
}

// Rules is the rule group in Windows Firewall.
type Rules interface {
	// Read returns the rules of the group.
	Read() ([]Rule, error)
	// Write makes a rule, or changes the one of its name in place.
	Write(Rule) error
	// Delete removes a rule. One that is not there is no error.
	Delete(name string) error
}

// maxSources is how many sources a rule names one by one. Beyond, it lets
// everybody through, and the guard alone decides: it does so in any case.
const maxSources = 500

// nobody is what a rule names that lets nobody through: without an address it
// would let everybody.
const nobody = "127.0.0.1"

// wantedRules returns the rules for a guard that drops for good: one for each
// guarded port, open for the sources of its openings, and for those whose
// sessions may go on.
func wantedRules(r firewall.Ruleset, linger map[firewall.Door]firewall.BootTime) []Rule {
	if !r.Drops() {
		return nil // installing, and observing, changes nothing
	}
	var out []Rule
	for _, p := range r.Ports {
		kept := p
		kept.Cut = false
		if p.Cut && slices.Contains(r.Ports, kept) {
			continue // one rule for a port; the other entry has it
		}
		sources := map[netip.Prefix]bool{}
		add := func(d firewall.Door) {
			if d.Protocol == 0 || d.Protocol == p.Protocol && p.First <= d.Port && d.Port <= p.Last {
				sources[d.Source] = true
			}
		}
		for d := range r.Openings {
			add(d)
		}
		if !p.Cut {
			for d := range linger {
				add(d)
			}
		}
		rule := Rule{Name: "jitgate " + kept.String(), Protocol: p.Protocol, Ports: fmt.Sprint(p.First), Enabled: len(sources) > 0, Sources: nobody}
		if p.First != p.Last {
			rule.Ports = fmt.Sprintf("%d-%d", p.First, p.Last)
		}
		if rule.Enabled {
			rule.Sources = sourcesText(sources)
		}
		out = append(out, rule)
	}
	return out
}

func sourcesText(set map[netip.Prefix]bool) string {
	var list []string
	for s := range set {
		if s.Bits() == 0 {
			return "*" // Windows Firewall has no word for every address of one family
		}
		list = append(list, s.String())
	}
	if len(list) > maxSources {
		return "*"
	}
	slices.Sort(list)
	return strings.Join(list, ",")
}

// settleWindows brings the rule group to what the guard needs. Where that
// fails the guard stands all the same: who is granted may not get through.
func (b *Backend) settleWindows(s state) {
	if b.windows == nil {
		return
	}
	now := b.now()
	for d, until := range b.linger {
		if until <= now {
			delete(b.linger, d)
		}
	}
	r, _ := s.ruleset()
	b.warn("Windows Firewall", b.writeWindows(wantedRules(r, b.linger)))
}

// clearWindows takes the rule group away. Where Windows Firewall does not
// answer, its rules mean nothing either.
func (b *Backend) clearWindows() {
	if b.windows != nil {
		b.warn("Windows Firewall", b.writeWindows(nil))
	}
}

// writeWindows makes the group hold exactly want.
func (b *Backend) writeWindows(want []Rule) error {
	if b.written == nil {
		have, err := b.windows.Read()
		if err != nil {
			return fmt.Errorf("Windows Firewall: read the rule group %s: %w", Group, err)
		}
		b.written = append([]Rule{}, have...)
	}
	var errs []error
	for _, r := range want {
		if slices.Contains(b.written, r) {
			continue
		}
		if err := b.windows.Write(r); err != nil {
			errs = append(errs, fmt.Errorf("Windows Firewall: write the rule %q: %w", r.Name, err))
		}
	}
	for _, r := range b.written {
		if slices.ContainsFunc(want, func(w Rule) bool { return w.Name == r.Name }) {
			continue
		}
		if err := b.windows.Delete(r.Name); err != nil {
			errs = append(errs, fmt.Errorf("Windows Firewall: delete the rule %q: %w", r.Name, err))
		}
	}
	if b.written = append([]Rule{}, want...); len(errs) > 0 {
		b.written = nil
	}
	return errors.Join(errs...)
}

// everywhere is every address of the family of a door.
func everywhere(d firewall.Door) netip.Prefix {
	if d.Source.Addr().Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
