// Package fwtest holds a Backend that behaves like a kernel without being
// one, and the one conformance suite that every Backend passes, the fake
// first.
package fwtest

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Fake is a firewall.Backend in memory. Its openings end by themselves when
// its clock reaches their end, as the kernel's do.
type Fake struct {
	Now func() firewall.BootTime
	// Fail, if not nil, is asked before every Apply; its error is returned
	// and nothing changes.
	Fail func(firewall.Plan) error
	// After, if not nil, is asked after every Apply that changed something;
	// its error is returned although the change stands, as where the answer
	// of a kernel was lost.
	After func(firewall.Plan) error
	// Blind, if not nil, is asked before every Observe; its error is returned.
	Blind func() error
	// Applied counts the plans that were carried out.
	Applied int

	rules   firewall.Ruleset
	passed  map[firewall.Door]uint64
	exists  bool
	broken  bool
	drops   uint64
	denials map[firewall.Door]firewall.Denial
	flows   map[firewall.FlowID]*fakeFlow
}

type fakeFlow struct {
	firewall.Flow
	changed bool
}

var _ firewall.Backend = (*Fake)(nil)

// ErrForever is returned for an opening without an end, which a kernel would
// keep open for ever.
var ErrForever = errors.New("fake: an opening without an end")

// Observe implements firewall.Backend.
func (f *Fake) Observe(context.Context) (firewall.Observed, error) {
	if f.Blind != nil {
		if err := f.Blind(); err != nil {
			return firewall.Observed{}, err
		}
	}
	f.expire()
	o := firewall.Observed{Ruleset: f.rules, Intact: f.exists && !f.broken}
	o.Openings, o.Passed = maps.Clone(f.rules.Openings), maps.Clone(f.passed)
	if o.Trial != 0 && o.Trial <= f.Now() {
		o.Trial = f.Now() // over
	}
	return o, nil
}

// Apply implements firewall.Backend.
func (f *Fake) Apply(_ context.Context, p firewall.Plan) error {
	if p.Empty() {
		return nil
	}
	if f.Fail != nil {
		if err := f.Fail(p); err != nil {
			return err
		}
	}
	for _, c := range p.Open {
		if c.Until == firewall.Never {
			return ErrForever
		}
	}
	f.rules = p.Apply(f.rules)
	for _, c := range p.Open {
		delete(f.passed, c.Door) // set anew
	}
	f.exists = true
	f.broken = f.broken && !p.Rules
	f.Applied++
	f.expire()
	if f.After != nil {
		return f.After(p)
	}
	return nil
}

// Whole reports whether a guard stands that nobody broke.
func (f *Fake) Whole() bool { return f.exists && !f.broken }

// Tamper does what a stranger with root can: it flushes the rules, and with
// all set the openings too.
func (f *Fake) Tamper(all bool) {
	f.broken = true
	if all {
		f.rules.Openings = nil
	}
}

// Insert does what a stranger with root can: it adds an opening.
func (f *Fake) Insert(door firewall.Door, end firewall.End) {
	if f.rules.Openings == nil {
		f.rules.Openings = map[firewall.Door]firewall.End{}
	}
	f.rules.Openings[door] = end
}

// Sleep lets the platform sleep for d: its timeouts stand still meanwhile, as
// the kernel's do. The caller moves the clock.
func (f *Fake) Sleep(d time.Duration) {
	for door, end := range f.rules.Openings {
		f.rules.Openings[door] = firewall.End{Until: end.Until.Add(d), Label: end.Label}
	}
	if f.rules.Trial != 0 {
		f.rules.Trial = f.rules.Trial.Add(d)
	}
}

// Admits reports whether a packet to a port passes the guard.
func (f *Fake) Admits(packet firewall.Door) bool {
	f.expire()
	if f.broken {
		return true
	}
	if Admits(f.rules, packet) {
		f.pass(packet)
		return true
	}
	f.drops++
	if f.denials == nil {
		f.denials = map[firewall.Door]firewall.Denial{}
	}
	f.denials[packet] = firewall.Denial{Door: packet, Packets: f.denials[packet].Packets + 1, Last: f.Now()}
	return f.rules.Observe || f.rules.Trial != 0 && f.rules.Trial <= f.Now()
}

// pass counts a packet under the narrowest opening that lets it in.
func (f *Fake) pass(packet firewall.Door) {
	var by firewall.Door
	for open := range f.rules.Openings {
		if admits(open, packet) && open.Protocol != 0 && (!by.Source.IsValid() || open.Source.Bits() > by.Source.Bits()) {
			by = open
		}
	}
	if !by.Source.IsValid() {
		return
	}
	if f.passed == nil {
		f.passed = map[firewall.Door]uint64{}
	}
	f.passed[by]++
}

// Admits is the rule of the guard, as slow and plain as it can be said: the
// oracle backends are held against. packet.Source is a single address.
func Admits(r firewall.Ruleset, packet firewall.Door) bool {
	if !Guards(r.Ports, packet) {
		return true
	}
	for open := range r.Openings {
		if admits(open, packet) {
			return true
		}
	}
	return false
}

func admits(open, packet firewall.Door) bool {
	return open.Source.Contains(packet.Source.Addr()) &&
		(open.Protocol == 0 || open.Protocol == packet.Protocol && open.Port == packet.Port)
}

// Guards reports whether a packet is for a guarded port.
func Guards(ports []firewall.Port, d firewall.Door) bool {
	for _, p := range ports {
		if p.Protocol == d.Protocol && p.First <= d.Port && d.Port <= p.Last {
			return true
		}
	}
	return false
}

func (f *Fake) expire() {
	now := f.Now()
	maps.DeleteFunc(f.rules.Openings, func(_ firewall.Door, e firewall.End) bool { return e.Until <= now })
	maps.DeleteFunc(f.passed, func(d firewall.Door, _ uint64) bool { _, open := f.rules.Openings[d]; return !open })
}

// Carry has the platform's table of connections hold a flow as it is said, and
// forget one that is gone once that was told.
func (f *Fake) Carry(flow firewall.Flow) {
	if f.flows == nil {
		f.flows = map[firewall.FlowID]*fakeFlow{}
	}
	f.flows[flow.FlowID] = &fakeFlow{flow, true}
}

// Flows implements firewall.Backend.
func (f *Fake) Flows(_ context.Context, look bool) (out firewall.Flows, err error) {
	for id, flow := range f.flows {
		if flow.changed || look {
			out.List = append(out.List, flow.Flow)
		}
		if flow.changed = false; flow.Gone {
			delete(f.flows, id)
		}
	}
	return out, nil
}

// Changes implements firewall.Backend.
func (f *Fake) Changes() <-chan firewall.Alteration { return nil }

// Denied implements firewall.Backend.
func (f *Fake) Denied(context.Context) (firewall.Denied, error) {
	return firewall.Denied{Packets: f.drops, By: slices.SortedFunc(maps.Values(f.denials), firewall.CompareDenials)}, nil
}

// Remove implements firewall.Backend.
func (f *Fake) Remove(context.Context) error {
	f.rules, f.passed, f.exists, f.broken, f.drops, f.denials = firewall.Ruleset{}, nil, false, false, 0, nil
	return nil
}

// Describe implements firewall.Backend.
func (f *Fake) Describe() string { return "in memory" }

// Close implements firewall.Backend.
func (f *Fake) Close() error { return nil }
