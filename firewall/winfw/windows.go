package winfw

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

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

// settleWindows brings the rule group to what the guard needs.
func (b *Backend) settleWindows(s state) {
	now := b.now()
	for d, until := range b.linger {
		if until <= now {
			delete(b.linger, d)
		}
	}
	r, _ := s.ruleset()
	b.rules.set(wantedRules(r, b.linger))
}

// ruleWriter keeps the rule group as it is wanted. Where that fails the guard
// stands all the same: who is granted may not get through. It may be used by
// several goroutines.
type ruleWriter struct {
	windows Rules // nil: Windows Firewall is left alone
	warn    func(error)

	mu     sync.Mutex
	want   []Rule
	behind bool // want is not written yet
	doubt  bool // nobody knows what is written

	wake, done chan struct{} // nil before start: set writes at once

	// Of whoever writes.
	written []Rule
	known   bool
	warned  string
}

// writePatience is how long the end waits for Windows Firewall.
const writePatience = 10 * time.Second

// start has the rules written by a goroutine of their own.
func (w *ruleWriter) start() {
	wake, done := make(chan struct{}, 1), make(chan struct{})
	w.wake, w.done = wake, done
	go func() {
		defer close(done)
		for range wake {
			w.write()
		}
	}()
}

// close waits until everything is written, but not for ever.
func (w *ruleWriter) close() {
	w.mu.Lock()
	wake := w.wake
	w.wake = nil
	w.mu.Unlock()
	if wake == nil {
		return
	}
	close(wake)
	select {
	case <-w.done:
	case <-time.After(writePatience):
	}
}

// set says which rules there are to be.
func (w *ruleWriter) set(want []Rule) {
	if w.windows == nil {
		return
	}
	w.mu.Lock()
	w.want, w.behind = want, true
	beside := w.wake != nil
	if beside {
		select {
		case w.wake <- struct{}{}:
		default: // it is told already
		}
	}
	w.mu.Unlock()
	if !beside {
		w.write()
	}
}

// forget has the next write compare with what there is.
func (w *ruleWriter) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.doubt = true
}

// write makes the group hold exactly what is wanted.
func (w *ruleWriter) write() {
	w.mu.Lock()
	want, behind := w.want, w.behind
	w.known = w.known && !w.doubt
	w.behind, w.doubt = false, false
	w.mu.Unlock()
	if !behind {
		return
	}
	err := w.bring(want)
	text := ""
	if err != nil {
		w.known = false
		text = err.Error()
	}
	if text != "" && text != w.warned {
		w.warn(err) // once, until it is over
	}
	w.warned = text
}

func (w *ruleWriter) bring(want []Rule) error {
	if !w.known {
		have, err := w.windows.Read()
		if err != nil {
			return fmt.Errorf("read the rule group %s of Windows Firewall: %w", Group, err)
		}
		w.written, w.known = have, true
	}
	var errs []error
	for _, r := range want {
		if slices.Contains(w.written, r) {
			continue
		}
		if err := w.windows.Write(r); err != nil {
			errs = append(errs, fmt.Errorf("write the rule %q of Windows Firewall: %w", r.Name, err))
		}
	}
	for _, r := range w.written {
		if slices.ContainsFunc(want, func(x Rule) bool { return x.Name == r.Name }) {
			continue
		}
		if err := w.windows.Delete(r.Name); err != nil {
			errs = append(errs, fmt.Errorf("delete the rule %q of Windows Firewall: %w", r.Name, err))
		}
	}
	w.written = want
	return errors.Join(errs...)
}

// everywhere is every address of the family of a door.
func everywhere(d firewall.Door) netip.Prefix {
	if d.Source.Addr().Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}
