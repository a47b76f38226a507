// Package wfptest is the Windows Filtering Platform and Windows Firewall as
// their documentation has them, in memory: what winfw is tested against where
// there is no Windows.
//
// Modelled are what a filter is asked (Filter.Matches), arbitration within and
// between sublayers, lifetimes of filters, sessions and transactions, boot,
// flows and their reauthorization, and Windows Firewall as one more sublayer.
// The rules are those of "Filter Arbitration", "Object Management", "ALE
// Reauthorization" and "Basic Operation" in Microsoft's reference of the
// platform. Not modelled: callouts and their veto, packets below the layers
// that authorize (forwarding, containers), IPsec.
package wfptest

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// Platform is one machine. It may be used by several goroutines.
type Platform struct {
	// Firewall is Windows Firewall; nil: its service is stopped.
	Firewall *Firewall
	// Fail, if not nil, is asked before every transaction; its error is
	// returned and nothing changes.
	Fail func() error
	// Blind, if not nil, is the answer to whoever reads the filters.
	Blind error
	// HideBoot keeps boot-time filters out of what is told while the engine's
	// service runs.
	HideBoot bool

	mu       sync.Mutex
	booting  bool // the engine's service does not run yet
	filters  map[winfw.GUID]standing
	others   []Sublayer
	sessions int
	epoch    int // counts changes of policy
}

type standing struct {
	winfw.Filter
	session int // of a dynamic one
}

// Sublayer is somebody else's.
type Sublayer struct {
	Weight  uint16
	Filters []Foreign
}

// Foreign is somebody else's filter.
type Foreign struct {
	winfw.Filter
	// Hard says that it clears the action right: a permit that later sublayers
	// cannot block, a block that they cannot permit.
	Hard bool
}

// weightGuard is the weight of jitgate's sublayer.
const weightGuard = 0xffff

// weightWindows is where Windows Firewall stands, somewhere below.
const weightWindows = 0x8000

// New returns a machine with no filter.
func New() *Platform { return &Platform{filters: map[winfw.GUID]standing{}} }

// Others puts somebody else's sublayers in place.
func (p *Platform) Others(list ...Sublayer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.others = list
	p.epoch++
}

// The errors of the platform that a caller can do something about.
var (
	ErrLifetime = errors.New("wfptest: FWP_E_LIFETIME_MISMATCH: a filter that outlives its session cannot be added in a dynamic one")
	ErrKey      = errors.New("wfptest: a key stands for two filters")
	ErrClosed   = errors.New("wfptest: the session is closed")
)

// Engine opens the platform for one process.
func (p *Platform) Engine() winfw.Engine {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sessions++
	return &engine{p: p, session: p.sessions}
}

type engine struct {
	p       *Platform
	session int
	closed  bool
}

func (e *engine) Filters() ([]winfw.Filter, error) {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if e.p.Blind != nil {
		return nil, e.p.Blind
	}
	var out []winfw.Filter
	for _, f := range e.p.filters {
		if f.Lifetime != winfw.BootTime || !e.p.HideBoot {
			out = append(out, f.Filter)
		}
	}
	return out, nil
}

func (e *engine) Commit(dynamic bool, del []winfw.GUID, add []winfw.Filter) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.closed {
		return ErrClosed
	}
	if e.p.Fail != nil {
		if err := e.p.Fail(); err != nil {
			return err
		}
	}
	next := maps.Clone(e.p.filters)
	for _, k := range del {
		if e.p.HideBoot && next[k].Lifetime == winfw.BootTime {
			continue // told as not found
		}
		delete(next, k)
	}
	for _, f := range add {
		switch had, there := next[f.Key]; {
		case there && had.Filter != f:
			return fmt.Errorf("%w: %v and %v", ErrKey, had, f)
		case there:
			continue
		case dynamic != (f.Lifetime == winfw.Dynamic):
			return fmt.Errorf("%w: %s", ErrLifetime, f.Name)
		case f.Source.IsValid() && (f.Source != f.Source.Masked() || f.Source.Bits() == 0 || f.Source.Addr().Is4() != (f.Layer == winfw.AcceptV4)):
			return fmt.Errorf("wfptest: %s at layer %d is no condition", f.Source, f.Layer)
		case f.Name == "":
			return errors.New("wfptest: FWP_E_NULL_DISPLAY_NAME")
		}
		next[f.Key] = standing{f, e.session}
	}
	e.p.filters = next
	e.p.epoch++
	return nil
}

func (e *engine) Forget() error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.p.endSession(e.session)
	e.p.sessions++
	e.session = e.p.sessions
	return nil
}

func (e *engine) Clear([]winfw.GUID) error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	if e.p.Fail != nil {
		if err := e.p.Fail(); err != nil {
			return err
		}
	}
	e.p.filters = map[winfw.GUID]standing{}
	e.p.epoch++
	return nil
}

func (e *engine) Close() error {
	e.p.mu.Lock()
	defer e.p.mu.Unlock()
	e.closed = true
	e.p.endSession(e.session)
	return nil
}

func (p *Platform) endSession(n int) {
	maps.DeleteFunc(p.filters, func(_ winfw.GUID, f standing) bool { return f.Lifetime == winfw.Dynamic && f.session == n })
	p.epoch++
}

// Kill ends every process that has the platform open.
func (p *Platform) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.filters, func(_ winfw.GUID, f standing) bool { return f.Lifetime == winfw.Dynamic })
	p.epoch++
}

// Reboot begins a boot: only boot-time filters hold until StartService. Flows
// of before are no more.
func (p *Platform) Reboot() {
	p.Kill()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.booting = true
}

// StartService has the engine's service take over from the boot-time filters.
func (p *Platform) StartService() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.booting = false
	p.epoch++
}

// Delete does what a stranger with the right to can: it deletes filters.
func (p *Platform) Delete(which func(winfw.Filter) bool) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.filters)
	maps.DeleteFunc(p.filters, func(_ winfw.GUID, f standing) bool { return which(f.Filter) })
	p.epoch++
	return before - len(p.filters)
}

// Insert does what a stranger with the right to can: it adds a filter to
// jitgate's sublayer.
func (p *Platform) Insert(f winfw.Filter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.filters[f.Key] = standing{f, 0}
	p.epoch++
}

// Count returns how many filters of a lifetime stand.
func (p *Platform) Count(l winfw.Lifetime) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.filters {
		if f.Lifetime == l {
			n++
		}
	}
	return n
}

// Admits reports whether a packet that begins something is let in.
func (p *Platform) Admits(packet firewall.Door) bool { return p.classify(packet, 0) }

// Loopback reports whether this host reaches itself.
func (p *Platform) Loopback(packet firewall.Door) bool { return p.classify(packet, winfw.IsLoopback) }

// Flow is a connection that was let in.
type Flow struct {
	p      *Platform
	packet firewall.Door
	epoch  int
	dead   bool
}

// Connect begins a connection. It is nil if it is not let in.
func (p *Platform) Connect(packet firewall.Door) *Flow {
	if !p.Admits(packet) {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &Flow{p: p, packet: packet, epoch: p.epoch}
}

// Goes reports whether a packet of the flow, in either direction, passes. The
// first after a change of policy is held against the filters again.
func (f *Flow) Goes() bool {
	f.p.mu.Lock()
	changed := f.epoch != f.p.epoch
	f.epoch = f.p.epoch
	f.p.mu.Unlock()
	if changed {
		f.dead = !f.p.classify(f.packet, winfw.IsReauthorize)
	}
	return !f.dead
}

// verdict is what a sublayer says.
type verdict struct {
	block, hard, says bool
}

// classify is filter arbitration at the layer of a packet.
func (p *Platform) classify(packet firewall.Door, flags uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	type sublayer struct {
		weight uint16
		said   verdict
	}
	ours := make([]Foreign, 0, len(p.filters))
	for _, f := range p.filters {
		if p.booting == (f.Lifetime == winfw.BootTime) {
			ours = append(ours, Foreign{f.Filter, f.Block})
		}
	}
	all := []sublayer{{weightGuard, ask(ours, packet, flags)}}
	if p.Firewall != nil && !p.booting {
		all = append(all, sublayer{weightWindows, p.Firewall.ask(packet, flags)})
	}
	for _, o := range p.others {
		all = append(all, sublayer{o.Weight, ask(o.Filters, packet, flags)})
	}
	slices.SortStableFunc(all, func(a, b sublayer) int { return int(b.weight) - int(a.weight) })
	now := verdict{} // nobody said anything: permitted
	for _, s := range all {
		if !s.said.says || now.hard {
			continue
		}
		// Block overrides permit, and a soft block gives way to a hard permit.
		if !now.says || s.said.block || s.said.hard {
			now = s.said
		}
	}
	return !now.block
}

// ask is arbitration within a sublayer: the matching filter of the highest
// weight decides. Of two that weigh the same the one that blocks does: the
// platform says of neither that it comes first.
func ask(filters []Foreign, packet firewall.Door, flags uint32) verdict {
	var best *Foreign
	for i, f := range filters {
		if !f.Matches(packet, flags) {
			continue
		}
		if best == nil || f.Weight > best.Weight || f.Weight == best.Weight && f.Block && !best.Block {
			best = &filters[i]
		}
	}
	if best == nil {
		return verdict{}
	}
	return verdict{best.Block, best.Hard, true}
}
