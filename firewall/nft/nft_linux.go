package nft

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Backend keeps the guard in the network namespace it was opened in.
type Backend struct {
	// Warn is told what failed although the guard stands: ending sessions
	// whose packets are dropped already. nil drops it too.
	Warn func(error)

	socket *transport
	encode *encoder
	now    func() firewall.BootTime

	known    bool // the fields below are as the kernel has them
	table    tableState
	boot     bool // the table of Baseline stands
	sets     map[setID]bool
	revoked  map[firewall.Door]firewall.End // whose sessions are cut
	mendable bool                           // the base chain has the hook it should have
	// whole says which rules, with which sets and range of the host's own
	// ports, were found to be as they should: those need no second look.
	whole string

	watch *monitor // only while others can change the table

	// openings are what the kernel held when last looked at or changed, those
	// that ran out since included: whose sessions may have to end.
	openings       map[firewall.Door]firewall.End
	cutter         cutter
	guarded        []firewall.Port // when the guard was last found to be whole
	tracker        *tracker        // from the first call of Flows
	sockets, flows int             // cut so far
}

var _ firewall.Backend = (*Backend)(nil)

// Open connects to nf_tables. now reads CLOCK_BOOTTIME. Nothing changes until
// Apply.
func Open(now func() firewall.BootTime) (*Backend, error) {
	socket, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, explain(fmt.Errorf("open netlink: %w", err))
	}
	encode, err := newEncoder()
	if err != nil {
		socket.close()
		return nil, err
	}
	b := &Backend{socket: socket, encode: encode, now: now}
	if _, _, err := socket.table(); err != nil {
		socket.close()
		return nil, explain(err)
	}
	return b, nil
}

// Close closes the socket. The table stays, an orphan that a later process
// takes over; its openings run out on time.
func (b *Backend) Close() error {
	err := errors.Join(b.socket.close(), b.cutter.close())
	if b.watch != nil {
		err = errors.Join(err, b.watch.close())
	}
	if b.tracker != nil {
		err = errors.Join(err, b.tracker.close())
	}
	return err
}

// Changes implements firewall.Backend.
func (b *Backend) Changes() <-chan firewall.Alteration {
	if b.watch == nil {
		return nil
	}
	return b.watch.changes
}

// ErrOwned says that another live process owns the table.
var ErrOwned = errors.New("table inet " + TableName + " belongs to another running process: is an agent running here already?")

// explain adds what to do to the errors an administrator can do something
// about.
func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: nftables needs CAP_NET_ADMIN, run as root", err)
	case errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: this kernel seems to lack nf_tables or one of its parts, try modprobe nf_tables nft_fib_inet nft_ct", err)
	}
	return err
}

// Observe implements firewall.Backend.
func (b *Backend) Observe(context.Context) (firewall.Observed, error) {
	b.known = false
	o, err := b.observe()
	if err != nil {
		return firewall.Observed{}, explain(err)
	}
	b.known = true
	now := b.now()
	var ranOut []firewall.Closing
	for door, end := range b.openings {
		c := firewall.Closing{Door: door, Was: end.Until}
		if _, ok := o.Openings[door]; !ok && !c.Early(now) {
			ranOut = append(ranOut, c)
		}
	}
	b.openings = maps.Clone(o.Openings)
	if o.Intact {
		b.guarded = o.Ports
		b.cut(ranOut, o.Ports, o.DropsAt(now), now)
	}
	return o, nil
}

// cut ends the sessions of closed openings, where they end, after the table
// has begun to drop their packets. A failure leaves sessions that hang until
// their ends give up, and the guard as it should be.
func (b *Backend) cut(closings []firewall.Closing, ports []firewall.Port, drops bool, now firewall.BootTime) {
	if !drops {
		return
	}
	open := index{doors: b.openings, now: now}
	for id := range b.sets {
		open.addLength(id)
	}
	e := endedBy(closings, ports, open, now)
	if len(e.doors.doors) == 0 {
		return
	}
	sockets, flows, err := b.cutter.cut(e)
	b.sockets += sockets
	b.flows += flows
	if err != nil && b.Warn != nil {
		b.Warn(fmt.Errorf("ending sessions: %w", err))
	}
}

// Cut returns how many sockets of ended sessions were reset, and how many
// connections to others behind this host were forgotten, since Open.
func (b *Backend) Cut() (sockets, flows int) { return b.sockets, b.flows }

func (b *Backend) observe() (o firewall.Observed, err error) {
	o.Openings, o.Passed = map[firewall.Door]firewall.End{}, map[firewall.Door]uint64{}
	b.encode.own = localPorts()
	b.sets, b.revoked, b.mendable = map[setID]bool{}, map[firewall.Door]firewall.End{}, true
	if b.table, b.boot, err = b.socket.table(); err != nil || !b.table.exists {
		return o, err
	}
	chains, err := b.socket.chains()
	if err != nil {
		return o, err
	}
	intact, mendable := chainsIntact(chains)
	sets, err := b.socket.sets()
	if err != nil {
		return o, err
	}
	now := b.now()
	for name, state := range sets {
		if name == armedSet {
			mendable = mendable && mine(newArmedSet(), state)
			continue
		}
		id, ok := parseSetID(name)
		if !ok {
			continue // not one of our names: no rule of ours looks there
		}
		if !mine(id.set(), state) {
			mendable = false
			continue
		}
		b.sets[id] = true
		into := o.Openings
		switch id.kind {
		case denied:
			continue // read when somebody asks (Denied)
		case revoked:
			into = b.revoked
		}
		if err := b.socket.openings(id, into, o.Passed, now); err != nil {
			return o, err
		}
	}
	if b.mendable = mendable; !mendable {
		// The table will have to go, and its elements with it.
		o.Openings, o.Passed = map[firewall.Door]firewall.End{}, nil
		return o, nil
	}
	rules, digest, err := b.socket.rules()
	if err != nil {
		return o, err
	}
	ports, ok := portsOf(rules)
	if !ok || !intact {
		return o, nil
	}
	o.Ports = ports
	trial, err := b.socket.trial(now)
	if err != nil {
		return o, err
	}
	switch dropOf(rules[chainDeny.Name]) {
	case dropNever:
		o.Observe = true
	case dropOnTrial:
		o.Trial = trial
	}
	ids := slices.SortedFunc(maps.Keys(b.sets), setID.compare)
	if same := fmt.Sprint(digest, ids, b.encode.own); same != b.whole {
		intact, err = b.encode.rulesIntact(rules, o.Ruleset, ids)
		if b.whole = ""; intact {
			b.whole = same
		}
	}
	// Beside the guard the table of the boot closes what was granted.
	o.Intact = intact && b.table.flags&flagDormant == 0 && !b.boot
	return o, err
}

// localPorts reads net.ipv4.ip_local_port_range of this network namespace,
// which counts for IPv6 too. Where it cannot be read every port may be the
// host's own.
func localPorts() portRange {
	all := portRange{0, 65535}
	text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return all
	}
	var p portRange
	if _, err := fmt.Sscan(string(text), &p.first, &p.last); err != nil {
		return all
	}
	return p
}

// Apply implements firewall.Backend.
func (b *Backend) Apply(ctx context.Context, p firewall.Plan) error {
	if p.Empty() {
		return nil
	}
	if !b.known {
		if _, err := b.Observe(ctx); err != nil {
			return err
		}
	}
	if b.table.flags&flagOwner != 0 && b.table.owner != b.socket.port {
		return ErrOwned
	}
	now := b.now()
	wroteRules, err := b.applyOnTime(p)
	if err != nil {
		b.known = false
		// Half a plan may be queued, and the library keeps an encoding error
		// for good: begin anew.
		fresh, freshErr := newEncoder()
		if freshErr != nil {
			return errors.Join(err, freshErr)
		}
		b.encode = fresh
		return explain(err)
	}
	for _, c := range p.Close {
		delete(b.openings, c.Door)
	}
	for _, c := range p.Open {
		b.openings[c.Door] = c.End
	}
	b.cut(p.Close, p.Ports, firewall.Ruleset{Ports: p.Ports, Observe: p.Observe, Trial: p.Trial}.DropsAt(now), now)
	if !wroteRules {
		return nil
	}
	if b.watch == nil && b.table.flags&flagOwner == 0 {
		if b.watch, err = newMonitor(b.socket.port, b.now); err != nil {
			return err
		}
	}
	// Somebody else may write here where the table has no owner: look.
	have, err := b.Observe(ctx)
	if err != nil {
		return err
	}
	want := firewall.Ruleset{Ports: p.Ports, Observe: p.Observe, Trial: p.Trial, Openings: have.Openings}
	if !firewall.Diff(have, want).Empty() {
		b.known = false
		return firewall.ErrConflict
	}
	return nil
}

// applyOnTime sends p, and again while it took longer than reckoned with. The
// kernel counts the time of an element from the moment it takes it: a batch
// that was held up, by its length or by a module that had to be loaded first,
// leaves its openings open for too long.
func (b *Backend) applyOnTime(p firewall.Plan) (wroteRules bool, err error) {
	delay := time.Duration(0)
	for range 4 {
		began := b.now()
		wrote, err := b.apply(p, delay)
		if err != nil {
			return false, err
		}
		wroteRules = wroteRules || wrote
		took := b.now().Sub(began)
		if len(p.Open) == 0 || (took-delay).Abs() <= firewall.Slack {
			break
		}
		delay = took
		p.Rules, p.Open = false, slices.Clone(p.Open)
		for i := range p.Open {
			p.Open[i].Was = firewall.Never // there by now, with an end that is off
		}
	}
	return wroteRules, nil
}

// apply sends p and reports whether it wrote rules. The kernel is expected to
// take the elements after delay.
func (b *Backend) apply(p firewall.Plan, delay time.Duration) (wroteRules bool, err error) {
	ids := map[setID]bool{}
	if b.mendable {
		ids = maps.Clone(b.sets)
	}
	for _, id := range commonSets {
		ids[id] = true
	}
	for _, c := range p.Open {
		ids[setOf(c.Door)] = true
	}
	for _, c := range p.Close {
		ids[setOf(c.Door)] = true
	}
	now := b.now()
	s := b.sessions(p, now)
	for d := range s.cut {
		ids[setOf(d).revoked()] = true
	}
	wroteRules = p.Rules || !b.table.exists || !b.mendable || len(ids) != len(b.sets)
	if wroteRules {
		r := firewall.Ruleset{Ports: p.Ports, Observe: p.Observe, Trial: p.Trial}
		if err := b.encode.writeRules(r, slices.Collect(maps.Keys(ids)), now.Add(delay)); err != nil {
			return false, err
		}
	}
	if err := b.encode.writeElements(p, s, now.Add(delay)); err != nil {
		return false, err
	}
	messages, err := b.encode.take()
	if err != nil {
		return false, err
	}
	if wroteRules && b.boot {
		m, err := deleteTable(BootTableName)
		if err != nil {
			return false, err
		}
		messages = append(messages, m)
	}
	if err := b.commit(messages); err != nil {
		return false, err
	}
	b.boot = b.boot && !wroteRules
	maps.Copy(b.revoked, s.cut)
	for _, d := range s.free {
		delete(b.revoked, d)
	}
	b.sets = ids
	return wroteRules, nil
}

// commit sends messages after whatever makes the table ours.
func (b *Backend) commit(messages []netlink.Message) error {
	ours := b.table.exists && b.table.flags&flagOwner != 0 // Apply refused any other owner
	if ours && b.mendable {
		return b.socket.commit(messages)
	}
	var head []netlink.Message
	if b.table.exists && !b.mendable {
		// Somebody made the table, or a base chain or set in it, unlike ours,
		// and the kernel cannot change those in place.
		m, err := deleteTable(TableName)
		if err != nil {
			return err
		}
		head = append(head, m)
	}
	for _, flags := range b.possibleFlags() {
		m, err := newTable(flags)
		if err != nil {
			return err
		}
		err = b.socket.commit(slices.Concat(head, []netlink.Message{m}, messages))
		if err == nil {
			// What the kernel holds now; an observation confirms it.
			b.table = tableState{exists: true, flags: flags, owner: b.socket.port}
			b.mendable = true
			return nil
		}
		// Kernels before 6.9 refuse the flags, and so does a table made
		// without them. Anything else fails again without flags, and says so.
		if flags == 0 || !(errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
			return err
		}
	}
	return nil
}

// possibleFlags returns what to try, best first. Owner without persist is
// never tried: that table dies with its process, and the ports are open.
func (b *Backend) possibleFlags() []uint32 {
	if b.table.exists && b.mendable && !b.table.orphan() {
		return []uint32{0}
	}
	return []uint32{flagOwner | flagPersist, 0}
}

// Denied implements firewall.Backend.
func (b *Backend) Denied(context.Context) (d firewall.Denied, err error) {
	if d.Packets, err = b.socket.deniedPackets(); err != nil {
		return d, err
	}
	now := b.now()
	for _, id := range deniedSets {
		if err := b.socket.denials(id, &d, now); err != nil {
			return d, err
		}
	}
	slices.SortFunc(d.By, firewall.CompareDenials)
	return d, nil
}

// Remove implements firewall.Backend. The table of the boot goes too.
func (b *Backend) Remove(ctx context.Context) error {
	if _, err := b.Observe(ctx); err != nil {
		return err
	}
	var messages []netlink.Message
	for name, stands := range map[string]bool{TableName: b.table.exists, BootTableName: b.boot} {
		if !stands {
			continue
		}
		m, err := deleteTable(name)
		if err != nil {
			return err
		}
		messages = append(messages, m)
	}
	b.known = false
	return explain(b.socket.commit(messages))
}

// Describe implements firewall.Backend.
func (b *Backend) Describe() string {
	switch {
	case !b.table.exists:
		return "nftables: no table inet " + TableName
	case b.table.flags&flagOwner != 0:
		return "nftables: table inet " + TableName + ", owned: others cannot change it"
	case b.table.orphan():
		return "nftables: table inet " + TableName + ", its owner is gone: others can change it"
	}
	return "nftables: table inet " + TableName + ", not owned: this kernel lets others change it"
}
