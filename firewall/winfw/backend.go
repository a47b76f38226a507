package winfw

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Engine is the filtering platform, as far as the guard needs it.
type Engine interface {
	// Filters returns what stands in jitgate's sublayer, or under its
	// provider. Boot-time filters may be missing.
	Filters() ([]Filter, error)
	// Commit deletes and adds filters of one kind, those of this process or
	// those that outlive it, in one transaction. Deleting what is not there and
	// adding what is there already is no error: a key is a filter.
	Commit(dynamic bool, del []GUID, add []Filter) error
	// Forget ends the session that the dynamic filters live in.
	Forget() error
	// Clear removes filters, the sublayer and the provider. gone are keys that
	// may stand although Filters does not tell of them.
	Clear(gone []GUID) error
	// Close ends both sessions: the dynamic filters are gone.
	Close() error
}

// remembered is how long sessions of an opening taken back stay cut. Windows
// remembers a session as long as its socket lives; who still holds one after a
// week may go on if its port keeps sessions.
const remembered = 7 * 24 * time.Hour

// maxRevoked bounds the doors remembered one by one, so that whoever signs
// grants and takes them back cannot fill the platform. Beyond it nobody's
// sessions on the port are kept: that errs towards cutting.
const maxRevoked = 4096

// rereadRules is how often the rule group is compared with what was written:
// there may be hundreds of rules to read through.
const rereadRules = 5 * time.Minute

// Backend is a firewall.Backend on the filtering platform. Its calls and the
// clock that closes (Start) take turns.
type Backend struct {
	// Warn is told what failed although the guard stands; nil drops it. It
	// must not be changed once the Backend is in use.
	Warn func(error)

	now     func() firewall.BootTime
	engine  Engine
	sockets func() ([]Socket, error) // nil: connections are not looked at

	mu      sync.Mutex
	is      *state                     // what stands; nil: it is not known
	due     firewall.BootTime          // when something is over next; 0: not reckoned
	mine    map[GUID]firewall.BootTime // dynamic filters of this process, and when they are over
	linger  map[firewall.Door]firewall.BootTime
	reread  firewall.BootTime // when Windows Firewall was last to be compared
	tracker tracker
	warned  error // of closing

	rules ruleWriter

	wake  chan struct{}
	stop  chan struct{}
	ended sync.Once
	done  sync.WaitGroup
}

var _ firewall.Backend = (*Backend)(nil)

// New makes a Backend on an engine and on Windows Firewall, which may be nil.
// Its clock stands still until Start.
func New(engine Engine, windows Rules, now func() firewall.BootTime) *Backend {
	b := &Backend{engine: engine, now: now, mine: map[GUID]firewall.BootTime{}, linger: map[firewall.Door]firewall.BootTime{},
		wake: make(chan struct{}, 1), stop: make(chan struct{})}
	b.rules = ruleWriter{windows: windows, warn: func(err error) {
		if b.Warn != nil {
			b.Warn(err)
		}
	}}
	return b
}

// Start closes openings from here on when they are over. Windows Firewall is
// from here on written beside everything else: nothing that closes waits for
// it.
func (b *Backend) Start() {
	b.rules.start()
	b.done.Go(func() {
		// A timer may stand still while the machine sleeps, so the boot clock
		// is read at least once a second while something is open.
		for wait := time.Duration(0); ; {
			var timer <-chan time.Time
			if wait >= 0 {
				timer = time.After(wait)
			}
			select {
			case <-b.stop:
				return
			case <-b.wake:
			case <-timer:
			}
			next := b.Expire()
			if wait = -1; next != firewall.Never {
				wait = min(max(next.Sub(b.now()), time.Millisecond), time.Second)
			}
		}
	})
}

// Expire closes what is over, and returns when that is due next. Start calls
// it; a test with a clock of its own may.
func (b *Backend) Expire() firewall.BootTime {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, err := b.expire()
	if err != nil && b.Warn != nil && (b.warned == nil || b.warned.Error() != err.Error()) {
		b.Warn(err) // once, until it is over
	}
	b.warned = err
	return next
}

// look reads what stands, unless that is known.
func (b *Backend) look() error {
	if b.is != nil {
		return nil
	}
	list, err := b.engine.Filters()
	if err != nil {
		return fmt.Errorf("read the filters: %w", err)
	}
	b.stands(read(list, b.mine))
	return nil
}

// stands remembers what stands.
func (b *Backend) stands(s state) { b.is, b.due = &s, 0 }

// forgotten has the next look read everything again.
func (b *Backend) forgotten() { b.is, b.due = nil, 0 }

// expire closes what is over. What cannot be closed one by one is closed with
// everything else that hangs on this process.
func (b *Backend) expire() (next firewall.BootTime, err error) {
	next = firewall.Never
	now := b.now()
	switch {
	case len(b.mine) == 0:
		return next, nil
	case b.due > now:
		return b.due, nil
	}
	if err := b.look(); err != nil {
		if !b.overdue(now) {
			return now.Add(time.Second), err
		}
		return b.closeAll(now, err)
	}
	s := *b.is
	over := map[item]bool{}
	trialOver := false
	for i := range s.items {
		if !i.dynamic() || i.Until == 0 {
			continue
		}
		if i.Until > now {
			next = min(next, i.Until)
			continue
		}
		over[i] = true
		trialOver = trialOver || i.Kind == trial
		if i.Kind == opening && i.Protocol != 0 {
			b.linger[i.door()] = i.Until.Add(remembered)
		}
	}
	if trialOver {
		for i := range s.items {
			if i.Mode == onTrial {
				over[i] = true
			}
		}
	}
	if len(over) == 0 {
		b.due = next
		return next, nil
	}
	var del []Filter
	left := state{items: maps.Clone(s.items), strange: s.strange}
	for i := range over {
		del = append(del, i.filters()...)
		delete(left.items, i)
	}
	if err := b.commit(true, del, nil); err != nil {
		return b.closeAll(now, err)
	}
	b.stands(left)
	b.due = next
	b.settleWindows(left)
	return next, nil
}

// overdue reports whether something of this process is over.
func (b *Backend) overdue(now firewall.BootTime) bool {
	for _, until := range b.mine {
		if until != 0 && until <= now {
			return true
		}
	}
	return false
}

// closeAll closes everything that hangs on this process, because of an error.
func (b *Backend) closeAll(now firewall.BootTime, because error) (next firewall.BootTime, err error) {
	b.forgotten()
	if err := b.engine.Forget(); err != nil {
		return now.Add(time.Second), fmt.Errorf("openings that are over cannot be closed, stop the agent to close them: %w", errors.Join(because, err))
	}
	b.mine = map[GUID]firewall.BootTime{}
	return firewall.Never, fmt.Errorf("openings could not be closed one by one, so all were, and open again with the next look: %w", because)
}

// commit changes filters of one kind.
func (b *Backend) commit(dynamic bool, del, add []Filter) error {
	if len(del)+len(add) == 0 {
		return nil
	}
	keys := make([]GUID, len(del))
	for i, f := range del {
		keys[i] = f.Key
	}
	if err := b.engine.Commit(dynamic, keys, add); err != nil {
		return err
	}
	for _, f := range del {
		delete(b.mine, f.Key)
	}
	for _, f := range add {
		if dynamic {
			b.mine[f.Key] = f.item().Until
		}
	}
	return nil
}

// Observe implements firewall.Backend.
func (b *Backend) Observe(context.Context) (firewall.Observed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgotten()
	if err := b.look(); err != nil {
		return firewall.Observed{}, err
	}
	if _, err := b.expire(); err != nil {
		return firewall.Observed{}, err
	}
	if err := b.look(); err != nil {
		return firewall.Observed{}, err
	}
	s := *b.is
	if now := b.now(); b.guards(s) && now.Sub(b.reread) >= rereadRules {
		b.reread = now
		b.rules.forget() // somebody may have changed them
		b.settleWindows(s)
	}
	return s.observed(), nil
}

// guards reports whether there is a guard, in any mode.
func (b *Backend) guards(s state) bool {
	return s.items[item{Kind: base, Mode: drop}] || s.items[item{Kind: base, Mode: watch}]
}

// Apply implements firewall.Backend. It takes up to three transactions, because
// filters that die with the process and such that do not cannot be changed in
// one. At every point between them what is dropped before and after is dropped,
// and what is admitted before and after is admitted.
func (b *Backend) Apply(_ context.Context, p firewall.Plan) error {
	if p.Empty() {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	defer func() { // also where only a part was done
		select {
		case b.wake <- struct{}{}:
		default:
		}
	}()
	if p.Rules {
		b.forgotten() // rules are written over whatever stands, not over what stood
	}
	if err := b.look(); err != nil {
		return err
	}
	if _, err := b.expire(); err != nil {
		return err
	}
	if err := b.look(); err != nil {
		return err
	}
	if p.Trial != 0 && p.Trial <= b.now() {
		p.Observe, p.Trial = true, 0 // over before it began
	}
	had := *b.is
	want := b.want(had, p)
	if err := b.change(had, want, p.Rules); err != nil {
		b.forgotten()
		return err
	}
	b.stands(state{items: want})
	b.settleWindows(*b.is)
	return nil
}

// want returns the items of the guard after p.
func (b *Backend) want(had state, p firewall.Plan) map[item]bool {
	now := b.now()
	r, taken := had.ruleset()
	next := p.Apply(r)
	maps.DeleteFunc(taken, func(_ firewall.Door, until firewall.BootTime) bool {
		// One of an earlier boot counts on another clock.
		return until <= now || until > now.Add(remembered)
	})
	for _, c := range p.Close {
		d := c.Door
		delete(b.linger, d)
		if !c.Early(now) && d.Protocol != 0 {
			b.linger[d] = now.Add(remembered)
		}
		if d.Protocol == 0 || !c.Early(now) || !keeps(next.Ports, d) {
			continue // an exempt source, at its end, or cut in any case
		}
		if len(taken) >= maxRevoked {
			d.Source = everywhere(d)
		}
		taken[d] = now.Add(remembered)
	}
	for _, c := range p.Open {
		delete(taken, c.Door)
	}
	out := rules(next, taken)
	if !p.Rules && !b.guards(had) {
		out = map[item]bool{} // openings alone make no guard
	}
	for d, e := range next.Openings {
		if e.Until.Sub(now) > time.Millisecond {
			out[doorItem(opening, "", d, e)] = true
		}
	}
	return out
}

// change brings the filters from had to want. again has what holds at boot
// written even where it seems to be there.
func (b *Backend) change(had state, want map[item]bool, again bool) error {
	var lasting, dynamic struct{ del, add []Filter }
	var closed, late []Filter // openings, and the drops of a trial
	for i := range had.items {
		if want[i] {
			continue
		}
		for _, f := range i.filters() {
			switch {
			case i.Kind == opening:
				closed = append(closed, f)
			case i.dynamic():
				late = append(late, f)
			default:
				lasting.del = append(lasting.del, f)
			}
		}
	}
	for _, f := range had.strange {
		if f.Lifetime == Dynamic {
			dynamic.del = append(dynamic.del, f)
		} else {
			lasting.del = append(lasting.del, f)
		}
	}
	for i := range want {
		if had.items[i] && !(again && i.Mode == drop) {
			continue
		}
		for _, f := range i.filters() {
			switch {
			case had.items[i] && f.Lifetime != BootTime:
			case f.Lifetime == Dynamic:
				dynamic.add = append(dynamic.add, f)
			default:
				lasting.add = append(lasting.add, f)
			}
		}
	}
	if !want[item{Kind: base, Mode: drop}] {
		// What stops dropping must not leave Windows Firewall wider than it was.
		b.rules.set(nil)
	}
	if len(lasting.del)+len(lasting.add) == 0 {
		if err := b.commit(true, slices.Concat(dynamic.del, closed, late), dynamic.add); err != nil {
			return fmt.Errorf("change openings: %w", err)
		}
		return nil
	}
	if err := b.commit(true, dynamic.del, dynamic.add); err != nil {
		return fmt.Errorf("change openings: %w", err)
	}
	if err := b.commit(false, lasting.del, lasting.add); err != nil {
		// What drops on trial goes on; what closes does not wait.
		return errors.Join(fmt.Errorf("change the guard: %w", err), b.commit(true, closed, nil))
	}
	if err := b.commit(true, slices.Concat(closed, late), nil); err != nil {
		return fmt.Errorf("close openings: %w", err)
	}
	return nil
}

// Changes implements firewall.Backend: the platform is looked at with every
// Observe, and tells of nothing in between.
func (b *Backend) Changes() <-chan firewall.Alteration { return nil }

// Denied implements firewall.Backend. The platform counts nothing without a
// driver.
func (b *Backend) Denied(context.Context) (firewall.Denied, error) { return firewall.Denied{}, nil }

// Flows implements firewall.Backend: TCP connections, as the table of sockets
// has them whenever it is looked at. There are no counts of bytes.
func (b *Backend) Flows(_ context.Context, look bool) (firewall.Flows, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.sockets == nil {
		return firewall.Flows{Incomplete: true}, nil
	}
	if err := b.look(); err != nil {
		return firewall.Flows{}, err
	}
	list, err := b.sockets()
	if err != nil {
		return firewall.Flows{}, err
	}
	r, _ := b.is.ruleset()
	return b.tracker.take(list, r.Ports, b.now(), look), nil
}

// Remove implements firewall.Backend.
func (b *Backend) Remove(context.Context) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.look(); err != nil {
		return err
	}
	b.linger = map[firewall.Door]firewall.BootTime{}
	b.rules.set(nil)
	var gone []GUID
	for i := range b.is.items {
		for _, f := range i.filters() {
			gone = append(gone, f.Key)
		}
	}
	b.forgotten()
	if err := b.engine.Clear(gone); err != nil {
		return fmt.Errorf("remove the filters: %w", err)
	}
	b.mine = map[GUID]firewall.BootTime{}
	return nil
}

// Describe implements firewall.Backend.
func (b *Backend) Describe() string {
	return "Windows Filtering Platform: sublayer " + SublayerKey.String() + "; openings end with this process"
}

// Close implements firewall.Backend. The guard stays; its openings are gone.
func (b *Backend) Close() error {
	b.ended.Do(func() { close(b.stop) })
	b.done.Wait()
	b.rules.close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.forgotten()
	b.mine = map[GUID]firewall.BootTime{}
	return b.engine.Close()
}

// keeps reports whether established sessions to the door's port are kept: the
// first port that matches decides.
func keeps(ports []firewall.Port, d firewall.Door) bool {
	for _, p := range ports {
		if p.Protocol == d.Protocol && p.First <= d.Port && d.Port <= p.Last {
			return !p.Cut
		}
	}
	return true // unguarded now; guarded again they may be kept
}
