package agent

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// oracle says what may be open and what must be, by the rules as
// docs/design.md has them, said as plainly as they can be. It sees what the
// world does to an agent (deliveries, faults, clocks, deaths) and nothing of
// what the agent thinks.
type oracle struct {
	inbox  [kinds]*paper
	mind   mind   // of the agent that lives
	disk   mind   // what the next one will find
	first  *paper // the trust document this agent began with, until it saved another
	former *paper // the one before that on the disk
	full   disks
	broken bool // what is to be saved could not be

	horizon, savedHorizon map[string]anchor
	kept                  firewall.BootTime // when the horizon was last to be saved
	// As near as ends of an earlier boot may lie: some of its time may be
	// counted twice.
	least           map[string]anchor
	mode, savedMode trialling
	live            map[string]policy.Grant

	// Which installation this is, by number, and the board it is on; saved: as
	// the disk has it.
	install, savedInstall int
	board, savedBoard     int
	installs              int
	silent                bool // nothing can be recorded

	kernel guard
}

// paper is a document as whoever made it knows it.
type paper struct {
	kind            Kind
	version, epoch  uint64
	key             int  // which grant key signed, or is trusted
	forged          bool // signed by a stranger
	issued, expires time.Time
	policy          policy.Policy
	grants          []policy.Grant
	host            string // it is for; empty: for all
	install         int    // it names; 0: none
	raw             []byte
}

// mind is what an agent knows of documents.
type mind struct {
	papers  [kinds]*paper // in force; on the disk: as files
	newest  [kinds]*paper // ever admitted: the mark
	floor   time.Time
	guarded []firewall.Port
	void    map[string]bool
	unsaved [kinds]bool
	dirty   bool

	host    string // whose policy and grants newest are
	former  former
	install int // that documents may name; 0: it is not on the disk
}

// former is what is remembered of the host this was before.
type former struct {
	host   string
	newest [kinds]*paper
	void   map[string]bool
}

// of is a mind that finds itself on a host of that name.
func (m mind) of(host string) mind {
	if m.host == host || m.host == "" {
		m.host = host
		return m
	}
	was := former{m.host, [kinds]*paper{Policy: m.newest[Policy], Grants: m.newest[Grants]}, m.void}
	next := former{host: host}
	if m.former.host == host {
		next = m.former
	}
	m.former, m.host, m.void = was, host, next.void
	m.newest[Policy], m.newest[Grants] = next.newest[Policy], next.newest[Grants]
	m.dirty = true
	return m
}

// disks says which writes fail.
type disks struct{ papers, mark, others bool }

// trialling is the mode commands left.
type trialling struct {
	mode  Mode // empty: as the settings say, Enforce here
	trial bool
	peers []firewall.Door
	until firewall.BootTime
	boot  string
}

// guard is the most the kernel may let pass.
type guard struct {
	ports    []firewall.Port // nil: there is no guard
	observe  bool
	trial    firewall.BootTime
	openings map[firewall.Door]firewall.BootTime
	// Until the agent finds out: what strangers did.
	strangers map[firewall.Door]bool
	broken    bool
	lag       time.Duration // timeouts stood still for so long
}

// instant is one reading of the clocks an agent has.
type instant struct {
	wall time.Time
	boot firewall.BootTime
	name string // of the boot
}

// fate is what the world did during one pass.
type fate struct {
	blind     bool // the guard could not be read
	cutShort  bool // the process died before it recorded an intent
	unchanged bool // the kernel refused, or the process died before it asked
	unsure    bool // the kernel changed, and the agent was told otherwise, or died
}

func newOracle() *oracle {
	return &oracle{horizon: map[string]anchor{}, savedHorizon: map[string]anchor{}, least: map[string]anchor{}, live: map[string]policy.Grant{}}
}

var settingsPorts = []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}, {Protocol: firewall.TCP, First: 2222, Last: 2222}}

// start is a new agent that reads what the disk has, on a host of that name
// and a board.
func (o *oracle) start(now instant, host string, board int) {
	o.broken, o.live, o.mode, o.horizon = false, map[string]policy.Grant{}, o.savedMode, maps.Clone(o.savedHorizon)
	o.kept = 0
	if o.mode.boot != now.name {
		o.mode.peers, o.mode.until = nil, 0
	}
	files := o.disk.papers
	m := o.disk.of(host)
	m.papers = [kinds]*paper{}
	o.board, o.install, m.install = board, o.savedInstall, o.savedInstall
	if o.install == 0 || o.savedBoard != board {
		o.installs++
		o.install, m.install = o.installs, 0
	}
	for k := range kinds {
		// A file that is not the one of the mark does not count.
		f := files[k]
		if k == Trust && f != m.newest[Trust] {
			f = o.former
		}
		if f != nil && f == m.newest[k] && m.holds(f) {
			m.papers[k] = f
		}
	}
	o.mind, o.first = m, m.papers[Trust]
	for k := range kinds {
		// But it may be newer than the mark: the process died in between.
		if files[k] != nil && o.mind.papers[k] != files[k] {
			o.mind.admit(files[k], now.wall)
		}
	}
}

// holds reports whether f would still be believed under the trust in force.
func (m *mind) holds(f *paper) bool {
	t := m.papers[Trust]
	switch {
	case f.forged, f.host != "" && f.host != m.host, f.install != 0 && f.install != m.install:
		return false
	case f.kind == Trust:
		return true
	case t == nil:
		return false
	case f.kind == Grants:
		return f.key == t.key && f.epoch == t.epoch
	}
	return true
}

// admit puts f in force if the rules let it be.
func (m *mind) admit(f *paper, wall time.Time) {
	t := m.papers[Trust]
	newest := m.newest[f.kind]
	switch {
	case m.papers[f.kind] == f:
		return
	case f.forged, wall.Before(m.floor.Add(-policy.Skew)), f.issued.After(wall.Add(policy.Skew)):
		return
	}
	newer := newest == nil || f == newest || f.epoch > newest.epoch || f.epoch == newest.epoch && f.version > newest.version
	if f.kind == Trust {
		expected := uint64(1)
		switch {
		case t != nil:
			expected = t.version + 1
		case newest != nil:
			expected = newest.version // lost: this one and no other
		}
		if f.version != expected {
			return
		}
	} else if !m.holds(f) || !newer || !wall.Before(f.expires) || !wall.Before(t.expires) || f.kind == Grants && m.papers[Policy] == nil {
		return
	}
	m.papers[f.kind], m.newest[f.kind] = f, f
	m.unsaved[f.kind], m.dirty = true, true
	if f.issued.After(m.floor) {
		m.floor = f.issued
	}
	switch f.kind {
	case Trust:
		for _, k := range []Kind{Policy, Grants} {
			if m.papers[k] != nil && !m.holds(m.papers[k]) {
				m.papers[k] = nil
			}
		}
	case Policy:
		m.guarded = nil
		for _, p := range f.policy.Ports {
			m.guarded = append(m.guarded, firewall.Port{Protocol: wire(p.Protocol), First: p.Number, Last: p.EndNumber})
		}
	case Grants:
		listed := map[string]bool{}
		for _, g := range f.grants {
			if m.void[g.ID] {
				listed[g.ID] = true
			}
		}
		m.void = listed
	}
}

// ports are what the agent that lives guards.
func (o *oracle) ports() []firewall.Port {
	if o.mind.guarded != nil {
		return o.mind.guarded
	}
	return settingsPorts
}

// save is an attempt to write down what changed: documents first, then the
// mark.
func (o *oracle) save() {
	if !o.mind.dirty {
		return
	}
	if o.first == nil {
		o.first = o.mind.papers[Trust]
	}
	for k := range kinds {
		if !o.mind.unsaved[k] {
			continue
		}
		if k == Trust && o.first != o.mind.papers[k] {
			o.former = o.first // kept first, in a file of its own
		}
		if o.full.papers {
			o.broken = true
			return
		}
		o.disk.papers[k] = o.mind.papers[k]
	}
	if o.full.mark {
		o.broken = true
		return
	}
	o.broken, o.mind.dirty, o.mind.unsaved, o.first = false, false, [kinds]bool{}, o.mind.papers[Trust]
	files := o.disk.papers
	o.disk = o.mind
	o.disk.papers = files
}

// now is the mode of an instant.
func (t trialling) now(boot firewall.BootTime) (mode Mode, trial firewall.BootTime) {
	switch {
	case t.trial && boot < t.until:
		return Enforce, t.until
	case t.mode != "":
		return t.mode, 0
	}
	return Enforce, 0
}

// stand is a command's change of the mode; it reports whether the disk takes
// it.
func (o *oracle) stand(m trialling) bool {
	if o.full.others {
		return false
	}
	o.savedMode = m
	return true
}

// lockdown ends what is listed for good.
func (o *oracle) lockdown() {
	o.mind.void = map[string]bool{}
	if g := o.mind.papers[Grants]; g != nil {
		for _, x := range g.grants {
			o.mind.void[x.ID] = true
		}
	}
	o.mind.dirty = true
}

// verdict is what the documents allow at an instant.
type verdict struct {
	may     map[firewall.Door]firewall.BootTime
	must    map[firewall.Door]bool // what is open at once, if nothing fails
	live    map[string]policy.Grant
	horizon map[string]anchor
}

// settle says where an end lies on the boot clock: where it lay when it was
// first seen, or nearer.
func (v *verdict) settle(seen map[string]anchor, name string, end time.Time, now instant) firewall.BootTime {
	at := now.boot.Add(end.Sub(now.wall))
	if a, ok := seen[name]; ok && a.End.Equal(end) {
		at = min(at, a.At)
	}
	v.horizon[name] = anchor{end, at}
	return at
}

// soonest says where an end lies at the nearest.
func (o *oracle) soonest(name string, end time.Time, at firewall.BootTime) firewall.BootTime {
	if a, ok := o.least[name]; ok && a.End.Equal(end) {
		return min(at, a.At)
	}
	return at
}

// reboot is a machine that crashes at an instant of its boot clock. What an
// earlier boot left may still be on the disk.
func (o *oracle) reboot(at firewall.BootTime) {
	least, known := map[string]anchor{}, maps.Clone(o.least)
	maps.Copy(known, o.savedHorizon)
	for name, a := range known {
		least[name] = anchor{a.End, o.soonest(name, a.End, a.At).Add(-firewall.Slack-crashLoss) - at}
	}
	o.least, o.savedHorizon, o.kernel, o.kept = least, map[string]anchor{}, guard{}, 0
}

// judge holds the documents in force against the clocks.
func (o *oracle) judge(now instant) verdict {
	v := verdict{map[firewall.Door]firewall.BootTime{}, map[firewall.Door]bool{}, map[string]policy.Grant{}, map[string]anchor{}}
	t, p, g := o.mind.papers[Trust], o.mind.papers[Policy], o.mind.papers[Grants]
	over := t == nil || p == nil || !now.wall.Before(t.expires) || !now.wall.Before(p.expires)
	behind := !over && now.wall.Before(o.mind.floor.Add(-policy.Skew))
	var rules policy.Policy
	if p != nil {
		rules = p.policy
	}
	open := func(d firewall.Door, until firewall.BootTime, leased, begins bool) {
		lease := rules.MaxUnattended
		if leased && lease > 0 {
			until = min(until, now.boot.Add(lease))
		}
		if until > now.boot {
			v.may[d] = max(v.may[d], until)
			v.must[d] = v.must[d] || begins
		}
	}
	limit, soonest := firewall.Never, firewall.Never
	ends := func(name string, end time.Time) {
		at := v.settle(o.horizon, "document "+name, end, now)
		limit, soonest = min(limit, at), min(soonest, o.soonest("document "+name, end, at))
	}
	if p != nil && (g != nil || !over) {
		ends("trust", t.expires)
		ends("policy", p.expires)
	}
	if !over {
		for _, s := range rules.ExemptSources {
			open(firewall.Door{Source: s}, limit, true, !behind && soonest > now.boot)
		}
	}
	if g != nil {
		ends("grants", g.expires)
		ends("maxGrantsAge", g.issued.Add(rules.MaxGrantsAge))
		for _, x := range g.grants {
			entry, ok := inside(rules, x)
			if !ok || o.mind.void[x.ID] {
				continue
			}
			at := v.settle(o.horizon, "grant "+x.ID, x.End, now)
			until := min(limit, at)
			surely := min(soonest, o.soonest("grant "+x.ID, x.End, at)) > now.boot
			was, running := o.live[x.ID]
			running = running && was.Number == x.Number && was.Start.Equal(x.Start) && was.End.Equal(x.End) && slices.Equal(was.Sources, x.Sources)
			begun := !behind && !now.wall.Before(x.Start)
			if over || until <= now.boot || !running && !begun {
				continue
			}
			v.live[x.ID] = x
			for _, s := range x.Sources {
				open(firewall.Door{Source: s, Protocol: wire(entry.Protocol), Port: x.Number}, until, true, begun && surely)
			}
		}
	}
	for _, d := range o.mode.peers {
		open(d, o.mode.until, false, true)
	}
	return v
}

// wire is a protocol of a policy as packets have it. The policies here name
// one.
func wire(p policy.Protocol) firewall.Protocol {
	if p == policy.UDP {
		return firewall.UDP
	}
	return firewall.TCP
}

// inside reports whether a grant is within the bounds of a policy, and of
// which port.
func inside(p policy.Policy, g policy.Grant) (policy.Port, bool) {
	for _, e := range p.Ports {
		if g.Number < e.Number || g.Number > e.EndNumber {
			continue
		}
		for _, s := range g.Sources {
			within := slices.ContainsFunc(e.AllowedSources, func(a netip.Prefix) bool { return a.Bits() <= s.Bits() && a.Contains(s.Addr()) })
			if !within || s.Bits() < p.NarrowestPrefix4 {
				return e, false
			}
		}
		return e, g.End.Sub(g.Start) <= e.MaxRequestAccessDuration
	}
	return policy.Port{}, false
}

// pass is one pass of the agent, as the world let it go. It returns what is to
// be open after it.
func (o *oracle) pass(now instant, f fate) verdict {
	if o.mode.trial && now.boot >= o.mode.until {
		o.mode = trialling{mode: o.mode.mode}
		o.stand(o.mode)
	}
	if !o.silent && !o.full.others {
		o.savedInstall, o.savedBoard, o.mind.install = o.install, o.board, o.install
	}
	for k := range kinds {
		if o.inbox[k] != nil {
			o.mind.admit(o.inbox[k], now.wall)
		}
	}
	o.save()
	mode, trial := o.mode.now(now.boot)
	if mode == Off {
		o.kernel, o.live = guard{}, map[string]policy.Grant{}
		return verdict{}
	}
	if f.blind {
		return verdict{}
	}
	v := o.judge(now)
	if f.cutShort {
		return v
	}
	// One that did not reach the disk is tried again like one that is old.
	if !maps.Equal(o.horizon, v.horizon) || len(v.horizon) > 0 && now.boot.Sub(o.kept) >= Resync {
		o.horizon, o.kept = v.horizon, now.boot
		if !o.full.others {
			o.savedHorizon = maps.Clone(v.horizon)
		}
	}
	if f.unchanged {
		return v
	}
	next := guard{ports: o.ports(), observe: mode == Observe, trial: trial, openings: v.may}
	if o.broken {
		next = o.closing(next)
		maps.DeleteFunc(o.live, func(id string, _ policy.Grant) bool { _, ok := v.live[id]; return !ok })
	} else if !f.unsure {
		o.live = v.live
	}
	next.broken, next.lag, next.strangers = o.kernel.broken, o.kernel.lag, o.kernel.strangers
	o.kernel = next
	return v
}

// closing is what becomes of the kernel's guard where only closing is allowed:
// nothing opens and nothing ends later.
func (o *oracle) closing(next guard) guard {
	had := o.kernel
	both := map[firewall.Door]firewall.BootTime{}
	for d, until := range had.openings {
		if to, ok := next.openings[d]; ok {
			both[d] = min(until, to)
		}
	}
	next.openings = both
	if had.ports != nil {
		next.ports = append(slices.Clone(next.ports), had.ports...)
		if commanded := next.observe && o.mode.mode == Observe; !had.observe && had.trial == 0 && !commanded {
			next.observe, next.trial = false, 0
		}
	}
	return next
}

const tolerance = time.Second

// judges reports whether the guard decides about a packet: it need not where
// it does not drop, and cannot where a stranger had his way.
func (g guard) judges(packet firewall.Door, now instant) bool {
	guarded := slices.ContainsFunc(g.ports, func(p firewall.Port) bool { return p.First <= packet.Port && packet.Port <= p.Last })
	if g.broken || !guarded || g.observe || g.trial != 0 && now.boot >= g.trial {
		return false
	}
	for d := range g.strangers {
		if leads(d, packet) {
			return false
		}
	}
	return true
}

// admits reports whether an opening may still let a packet in.
func (g guard) admits(packet firewall.Door, now instant) bool {
	for d, until := range g.openings {
		if now.boot < until.Add(tolerance+g.lag) && leads(d, packet) {
			return true
		}
	}
	return false
}

// leads reports whether an opening lets a packet in.
func leads(d, packet firewall.Door) bool {
	return d.Source.Contains(packet.Source.Addr()) && (d.Protocol == 0 || d.Port == packet.Port)
}

// history is the plainest oracle of all: every grant ever signed, with the
// time on a clock that nobody sets. How far the agent's own clock ever was
// from that one is all it may be wrong by.
type history struct {
	grants        []policy.Grant
	exempt        []netip.Prefix
	ahead, behind time.Duration
	late          time.Duration // asleep, and not looked at since
}

func (h *history) covers(packet firewall.Door, now time.Time) bool {
	for _, g := range h.grants {
		begun := !now.Add(h.ahead).Before(g.Start)
		over := !now.Before(g.End.Add(tolerance + h.behind + h.late))
		if begun && !over && g.Number == packet.Port && slices.ContainsFunc(g.Sources, func(s netip.Prefix) bool { return s.Contains(packet.Source.Addr()) }) {
			return true
		}
	}
	return slices.ContainsFunc(h.exempt, func(s netip.Prefix) bool { return s.Contains(packet.Source.Addr()) })
}

func doorsText(list map[firewall.Door]firewall.BootTime, now firewall.BootTime) string {
	var out []string
	for d, until := range list {
		out = append(out, d.String()+" for "+until.Sub(now).String())
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
