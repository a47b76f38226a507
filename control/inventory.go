package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"
)

// VM is a machine the control plane knows of: it was put into the inventory,
// or a policy names it, or its agent enrolled.
type VM struct {
	ID              VMID      `json:"id"`
	Location        string    `json:"location,omitempty"`
	OS              string    `json:"osType,omitempty"`          // Linux or Windows; empty: not known
	Address         string    `json:"address,omitempty"`         // where people connect to inside
	PublicIPAddress string    `json:"publicIpAddress,omitempty"` // or outside
	Unsupported     string    `json:"unsupportedReason,omitempty"`
	LastAccess      time.Time `json:"lastAccess,omitzero"` // a port was opened
	LastUser        string    `json:"lastUser,omitempty"`
	Agent           *Agent    `json:"agent,omitempty"` // nil: none has enrolled
}

// Agent is what is known of the agent of a machine.
type Agent struct {
	Key      string    `json:"key"`               // SHA-256 of its certificate's SPKI, hexadecimal
	NextKey  string    `json:"nextKey,omitempty"` // that it has renewed to and not used yet
	Install  string    `json:"install,omitempty"`
	Version  string    `json:"version,omitempty"`
	Mode     string    `json:"mode,omitempty"`
	Enrolled time.Time `json:"enrolled"`
	Expires  time.Time `json:"expires"` // of its certificate
	Revoked  bool      `json:"revoked,omitempty"`
	LastSeen time.Time `json:"lastSeen,omitzero"`
	Lost     time.Time `json:"lost,omitzero"`      // when it was told that it is not heard of any more
	Head     Head      `json:"head,omitzero"`      // of its audit record
	Versions Versions  `json:"documents,omitzero"` // what it has admitted
	Open     string    `json:"open,omitempty"`     // stands for the grants that it said are open: digestOf
	Note     string    `json:"note,omitempty"`     // the last refusal, for people
	Forked   bool      `json:"forked,omitempty"`   // its record contradicts what is kept of it
	Joined   uint64    `json:"joined,omitzero"`    // version of the trust document it was given when it enrolled
	Epoch    uint64    `json:"epoch,omitzero"`     // which of its records is kept now
	Anew     bool      `json:"anew,omitempty"`     // it enrolled again, and may begin another record
}

// Head is the end of a chain of audit lines.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"`
}

// Versions are those of the documents an agent has admitted; 0 is none.
type Versions struct {
	Trust  uint64 `json:"trust,omitzero"`
	Policy uint64 `json:"policy,omitzero"`
	Grants uint64 `json:"grants,omitzero"`
}

// Tab is where the inventory shows a machine.
type Tab string

// The tabs, as Azure's portal has them.
const (
	Configured    Tab = "Configured"
	NotConfigured Tab = "NotConfigured"
	Unsupported   Tab = "Unsupported"
)

// VMView is a machine as the inventory shows it.
type VMView struct {
	VM
	Tab       Tab        `json:"tab"`
	Reason    string     `json:"reason,omitempty"` // of Unsupported
	Agent     string     `json:"agentStatus"`      // "connected", "no agent yet", "not seen since …", "revoked"
	Requests  int        `json:"approvedRequests"` // of the last seven days
	Ports     []PortRule `json:"ports"`            // connection details
	Policies  []PolicyID `json:"-"`                // that name it
	Provision Provision  `json:"provisioningState,omitempty"`
	Revision  uint64     `json:"-"`    // of its ports: the ETag; see portsRevision
	Open      []OpenPort `json:"open"` // requests not over yet
	// Layers are those known to be on: LayerHost where an agent guards, and
	// what outside the machine took a request of the last seven days.
	Layers []string `json:"layers"`
}

// LayerHost is the layer of the machine's own agent.
const LayerHost = "host"

// OpenPort is a port of a machine with a request that is not over.
type OpenPort struct {
	Request   string `json:"request"`
	Requestor string `json:"requestor"`
	RequestPort
}

// VMFilter selects machines; zero fields select all.
type VMFilter struct {
	Scope  Scope
	Tab    Tab
	Search string // part of the id, letter case ignored
	After  string // Key of the last one of the page before
	Limit  int    // 0: no limit
	// Silent are those whose agent was not heard of after it, and those without.
	Silent time.Time
}

// VMInput is what a caller says of a machine.
type VMInput struct {
	Location, OS, Address, PublicIPAddress string
	Unsupported                            string // why it cannot be guarded; empty: it can
}

// ScopeSetting switches JIT off or on for a subscription or a resource group
// and everything in it. The narrowest setting counts; none is on.
type ScopeSetting struct {
	Scope   Scope     `json:"scope"`
	Enabled bool      `json:"enabled"`
	Reason  string    `json:"reason,omitempty"`
	By      string    `json:"by"`
	Time    time.Time `json:"time"`
}

// Bounds of what is said of a machine and of what a list reads at once.
const (
	maxReason    = 256  // bytes of a reason
	machinesRead = 1000 // Keys, in one step of going through the inventory
	viewedAtOnce = 100  // so that no more policies than theirs are in memory
	connected    = 90 * time.Second
	requestsSpan = 7 * 24 * time.Hour
)

// The events of the activity log that are about the inventory.
const (
	EventVMWritten = "vm.written"
	EventVMDeleted = "vm.deleted"
	EventScopeSet  = "scope.set"
)

// hostName is a name as people type one to connect.
var hostName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)

// errNoVM is the answer for a machine nobody has told of.
func errNoVM(id VMID) error {
	return Refuse(NotFound, "ResourceNotFound", "The virtual machine '%s' was not found. Put it into the inventory, or name it in a policy.", id)
}

// ListVMs lists the machines the caller may read, in the order of their Key.
func (e *Engine) ListVMs(ctx context.Context, c Caller, f VMFilter) (page []VMView, next string, err error) {
	f.Scope = cmp.Or(f.Scope, Everywhere)
	if err := c.mustSomewhere(ActionVMRead, f.Scope); err != nil {
		return nil, "", err
	}
	may := within(c.scopes(ActionVMRead), f.Scope)
	err = e.Store.View(ctx, func(tx Tx) error {
		page, next = nil, ""
		settings, err := tx.ScopeSettings()
		if err != nil {
			return err
		}
		chosen, more, err := chooseVMs(ctx, tx, stretches(may, settings), f)
		if err != nil {
			return err
		}
		if more {
			next = chosen[len(chosen)-1].Key()
		}
		for some := range slices.Chunk(chosen, viewedAtOnce) {
			views, err := e.viewVMs(tx, settings, some)
			if err != nil {
				return err
			}
			page = append(page, views...)
		}
		return nil
	})
	return page, next, err
}

// chooseVMs finds the machines of a page, and whether there are more behind it.
func chooseVMs(ctx context.Context, tx Tx, in []stretch, f VMFilter) (chosen []VMID, more bool, err error) {
	after := strings.ToLower(f.After)
	for _, s := range in {
		if s.to <= after || s.off && f.Tab != "" && f.Tab != Unsupported {
			continue
		}
		m := MachineFilter{From: s.from, To: s.to, Tab: f.Tab, Search: f.Search, After: after, Limit: machinesRead}
		if s.off {
			m.Tab = ""
		}
		for {
			if f.Limit > 0 {
				m.Limit = min(machinesRead, f.Limit+1-len(chosen)) // one more tells whether there is more
			}
			keys, err := tx.Machines(m)
			if err != nil {
				return nil, false, err
			}
			for _, key := range keys {
				if f.Limit > 0 && len(chosen) == f.Limit {
					return chosen, true, nil
				}
				id, err := ParseVMID(key)
				if err != nil {
					return nil, false, err
				}
				chosen = append(chosen, id)
			}
			if len(keys) < m.Limit {
				break
			}
			if err := ctx.Err(); err != nil {
				return nil, false, err
			}
			m.After = keys[len(keys)-1]
		}
	}
	return chosen, false, nil
}

// CountVMs counts the machines the caller may read, by tab.
func (e *Engine) CountVMs(ctx context.Context, c Caller, s Scope) (map[Tab]int, error) {
	s = cmp.Or(s, Everywhere)
	if err := c.mustSomewhere(ActionVMRead, s); err != nil {
		return nil, err
	}
	may := within(c.scopes(ActionVMRead), s)
	var count map[Tab]int
	err := e.Store.View(ctx, func(tx Tx) error {
		count = map[Tab]int{Configured: 0, NotConfigured: 0, Unsupported: 0}
		settings, err := tx.ScopeSettings()
		if err != nil {
			return err
		}
		for _, s := range stretches(may, settings) {
			if err := countStretch(tx, s, count); err != nil {
				return err
			}
		}
		return nil
	})
	return count, err
}

// countStretch adds the machines of a stretch.
func countStretch(tx Tx, s stretch, count map[Tab]int) error {
	if s.single {
		for _, tab := range []Tab{Configured, NotConfigured, Unsupported} {
			keys, err := tx.Machines(MachineFilter{From: s.from, To: s.to, Tab: tab})
			if err != nil {
				return err
			}
			count[s.tab(tab)] += len(keys)
		}
		return nil
	}
	counts, err := tx.CountMachines(s.from, s.to)
	for tab, n := range counts {
		count[s.tab(tab)] += n
	}
	return err
}

// A stretch is a range of Keys of machines, [from, to), in which JIT is on, or
// switched off. It has whole resource groups in it, or a single machine.
type stretch struct {
	from, to string
	off      bool
	single   bool
}

// tab is where a machine of that BaseTab is shown.
func (s stretch) tab(base Tab) Tab {
	if s.off {
		return Unsupported
	}
	return base
}

// Of all Keys the first is behind firstKey and the last before lastKey.
const firstKey, lastKey = "/", "0" // what follows "/"

// keysOf are the Keys of the machines that a scope covers. Of one machine it is
// a range too: "!" is before all that a name may go on with.
func keysOf(s Scope) stretch {
	switch strings.Count(string(s), "/") {
	case 1:
		return stretch{from: firstKey, to: lastKey}
	case 2, 4:
		return stretch{from: string(s) + "/", to: string(s) + "0"}
	}
	return stretch{from: string(s), to: string(s) + "!", single: true}
}

// stretches are what the scopes cover, none of which is in another, divided
// where a setting begins or ends: in the order of Keys.
func stretches(scopes []Scope, settings []ScopeSetting) []stretch {
	outerFirst := func(a, b stretch) int { return cmp.Or(cmp.Compare(a.from, b.from), cmp.Compare(b.to, a.to)) }
	set := make([]stretch, 0, len(settings))
	for _, s := range settings {
		of := keysOf(s.Scope)
		of.off = !s.Enabled
		set = append(set, of)
	}
	slices.SortFunc(set, outerFirst)
	may := make([]stretch, 0, len(scopes))
	for _, s := range scopes {
		may = append(may, keysOf(s))
	}
	slices.SortFunc(may, outerFirst)

	var divided []stretch
	at := firstKey
	around := []stretch{{from: firstKey, to: lastKey}} // the narrowest last
	until := func(to string) {
		if at < to {
			divided = append(divided, stretch{from: at, to: to, off: around[len(around)-1].off})
			at = to
		}
	}
	for _, s := range set {
		for ; len(around) > 1 && around[len(around)-1].to <= s.from; around = around[:len(around)-1] {
			until(around[len(around)-1].to)
		}
		until(s.from)
		around = append(around, s)
	}
	for ; len(around) > 0; around = around[:len(around)-1] {
		until(around[len(around)-1].to)
	}

	var in []stretch
	for _, m := range may {
		for len(divided) > 0 && divided[0].to <= m.from {
			divided = divided[1:]
		}
		for _, d := range divided {
			if d.from >= m.to {
				break
			}
			in = append(in, stretch{from: max(d.from, m.from), to: min(d.to, m.to), off: d.off, single: m.single})
		}
	}
	return in
}

// BaseTab sorts a machine by its Key, whether a policy names it, and whether
// somebody says that it cannot be guarded. What a policy names is Configured,
// reachable or not. It is shown there unless JIT is switched off around it.
func BaseTab(key string, named, unsupported bool) Tab {
	switch {
	case named:
		return Configured
	case unsupported, strings.Contains(key, "/"+kindClassic+"/"):
		return Unsupported
	}
	return NotConfigured
}

// unsupported says why a machine is in the tab Unsupported.
func unsupported(vm VM, settings []ScopeSetting) string {
	switch set, off := switchedOff(settings, vm.ID.Scope()); {
	case off:
		return set.why()
	case vm.Unsupported != "":
		return vm.Unsupported
	}
	return "classic virtual machine: JIT supports those deployed through Azure Resource Manager"
}

// why says what a setting that switches JIT off did.
func (set ScopeSetting) why() string {
	why := fmt.Sprintf("JIT is switched off in the security policy of %s, by %s on %s", set.Scope, set.By, set.Time.UTC().Format(time.RFC3339))
	if set.Reason != "" {
		why += ": " + set.Reason
	}
	return why
}

// viewVM is a machine as the inventory shows it.
func (e *Engine) viewVM(tx Tx, id VMID) (VMView, error) {
	settings, err := tx.ScopeSettings()
	if err != nil {
		return VMView{}, err
	}
	views, err := e.viewVMs(tx, settings, []VMID{id})
	if errors.Is(err, ErrNotFound) {
		return VMView{}, errNoVM(id)
	}
	if err != nil {
		return VMView{}, err
	}
	return views[0], nil
}

// viewVMs are machines as the inventory shows them, in the order of their Key.
// It fails with ErrNotFound where one is not there.
func (e *Engine) viewVMs(tx Tx, settings []ScopeSetting, ids []VMID) ([]VMView, error) {
	now := e.Now()
	vms, err := tx.VMsOf(ids...)
	if err != nil {
		return nil, err
	}
	if len(vms) < len(ids) {
		return nil, ErrNotFound
	}
	policies, err := tx.PoliciesOf(ids...)
	if err != nil {
		return nil, err
	}
	places := placesOf(policies, ids...)
	waiting, err := tx.PendingPolicies(ids...)
	if err != nil {
		return nil, err
	}
	pending := map[string]bool{}
	for _, p := range waiting {
		pending[p.VM.Key()] = true
	}
	requests, err := tx.RequestsOf(now.Add(-requestsSpan), ids...) // an extended one may be older
	if err != nil {
		return nil, err
	}
	of := map[string][]Request{}
	for _, r := range requests {
		var last string
		for _, vm := range r.VMs {
			if key := vm.ID.Key(); key != last { // one request once
				of[key], last = append(of[key], r), key
			}
		}
	}
	views := make([]VMView, 0, len(vms))
	for _, vm := range vms {
		key := vm.ID.Key()
		named := places[key]
		v := VMView{VM: vm, Agent: agentStatus(vm.Agent, now), Ports: []PortRule{}, Open: []OpenPort{}, Layers: []string{}, Revision: revisionOf(named)}
		if vm.Agent.guards() {
			v.Layers = append(v.Layers, LayerHost)
		}
		v.Tab = BaseTab(key, len(named) > 0, vm.Unsupported != "")
		if _, off := switchedOff(settings, Scope(key)); off {
			v.Tab = Unsupported
		}
		if v.Tab == Unsupported {
			v.Reason = unsupported(vm, settings)
		}
		for _, p := range named {
			v.Policies = append(v.Policies, p.policy)
			v.Ports = append(v.Ports, p.vm.Ports...)
			// The address in front of the machine is the policy's to say.
			v.PublicIPAddress = cmp.Or(p.vm.PublicIPAddress, v.PublicIPAddress)
		}
		slices.SortStableFunc(v.Ports, func(a, b PortRule) int { return cmp.Compare(a.Number, b.Number) })
		if len(named) > 0 {
			v.Provision = Succeeded
			if pending[key] {
				v.Provision = Updating
			}
		}
		v.addRequests(of[key], now)
		views = append(views, v)
	}
	return views, nil
}

// addRequests adds what the requests of a machine say, of the last seven days
// and open ones.
func (v *VMView) addRequests(of []Request, now time.Time) {
	for _, r := range of {
		recent := !r.Start.Before(now.Add(-requestsSpan))
		if recent && r.approved() {
			v.Requests++
		}
		open := r.Open()
		r.settle(now)
		for _, vm := range r.VMs {
			if !vm.ID.same(v.ID) {
				continue
			}
			for _, p := range vm.Ports {
				if recent && p.Outer != nil && !slices.Contains(v.Layers, p.Outer.Name) {
					v.Layers = append(v.Layers, p.Outer.Name)
				}
				if open && p.Status != Revoked {
					v.Open = append(v.Open, OpenPort{Request: r.ID, Requestor: r.Requestor, RequestPort: p})
				}
			}
		}
	}
}

// approved reports whether a request was ever granted.
func (r Request) approved() bool {
	if r.Approval == nil {
		return true
	}
	yes := 0
	for _, v := range r.Approval.Verdicts {
		if !v.Approve {
			return false
		}
		yes++
	}
	return yes >= r.Approval.Approvers
}

// vm finds a machine among those of a policy.
func (p Policy) vm(id VMID) (PolicyVM, bool) {
	i := slices.IndexFunc(p.VMs, func(vm PolicyVM) bool { return vm.ID.same(id) })
	if i < 0 {
		return PolicyVM{}, false
	}
	return p.VMs[i], true
}

// entries are the machines of a policy by Key.
func (p Policy) entries() map[string]PolicyVM {
	all := make(map[string]PolicyVM, len(p.VMs))
	for _, v := range p.VMs {
		all[v.ID.Key()] = v
	}
	return all
}

// place is a machine in a policy.
type place struct {
	policy PolicyID
	vm     PolicyVM
}

// placesOf finds machines, by Key, among those of policies.
func placesOf(policies []Policy, ids ...VMID) map[string][]place {
	places := make(map[string][]place, len(ids))
	for _, id := range ids {
		places[id.Key()] = nil
	}
	for _, p := range policies {
		for _, vm := range p.VMs {
			key := vm.ID.Key()
			if found, wanted := places[key]; wanted {
				places[key] = append(found, place{p.ID, vm})
			}
		}
	}
	return places
}

// portsRevision is VMView.Revision of a machine with the policies that name
// it, in the order of their Key.
func portsRevision(id VMID, naming []Policy) uint64 {
	return revisionOf(placesOf(naming, id)[id.Key()])
}

// revisionOf is made of the ports themselves: it changes when they do, and not
// with the edit of another machine in the same policy.
func revisionOf(places []place) uint64 {
	type ports struct {
		Policy string
		Ports  []PortRule
	}
	of := []ports{}
	for _, p := range places {
		of = append(of, ports{p.policy.Key(), p.vm.Ports})
	}
	text, err := json.Marshal(of)
	if err != nil {
		panic(err) // there is nothing in it that has no JSON
	}
	sum := sha256.Sum256(text)
	return binary.BigEndian.Uint64(sum[:8])
}

// guards reports whether ports are closed by the agent: it has admitted a
// policy, and does not only watch.
func (a *Agent) guards() bool {
	return a != nil && !a.Revoked && a.Versions.Policy > 0 && a.Mode == "enforce"
}

// agentStatus says in words how a machine's agent is.
func agentStatus(a *Agent, now time.Time) string {
	switch {
	case a == nil:
		return "no agent yet"
	case a.Revoked:
		return "revoked"
	}
	seen := a.LastSeen
	if seen.Before(a.Enrolled) {
		seen = a.Enrolled
	}
	if now.Sub(seen) <= connected {
		return "connected"
	}
	return "not seen since " + seen.UTC().Format(time.RFC3339)
}

// GetVM returns one machine.
func (e *Engine) GetVM(ctx context.Context, c Caller, id VMID) (view VMView, err error) {
	if err := c.Must(ActionVMRead, id.Scope()); err != nil {
		return VMView{}, err
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		view, err = e.viewVM(tx, id)
		return err
	})
	return view, err
}

// PutVM puts a machine into the inventory or changes what is said of it. What
// its agent and its policies say stays.
func (e *Engine) PutVM(ctx context.Context, c Caller, id VMID, in VMInput) (view VMView, err error) {
	err = e.change(ctx, c, c.line(EventVMWritten, ActionVMWrite, id.Scope(), in.Unsupported), func(tx Tx) error {
		if err := c.Must(ActionVMWrite, id.Scope()); err != nil {
			return err
		}
		if err := in.check(); err != nil {
			return err
		}
		vm, err := tx.VM(id)
		if errors.Is(err, ErrNotFound) {
			vm, err = VM{ID: id}, nil
		}
		if err != nil {
			return err
		}
		vm.Location, vm.OS, vm.Address, vm.PublicIPAddress, vm.Unsupported = in.Location, in.OS, in.Address, in.PublicIPAddress, in.Unsupported
		if err := tx.PutVM(vm); err != nil {
			return err
		}
		view, err = e.viewVM(tx, id)
		return err
	})
	return view, err
}

// check refuses what cannot be said of a machine, and spells the rest in one way.
func (in *VMInput) check() error {
	bad := func(target, format string, args ...any) error {
		e := Refuse(Invalid, "InvalidVirtualMachine", format, args...)
		e.Target = target
		return e
	}
	for _, os := range []string{"Linux", "Windows"} {
		if strings.EqualFold(in.OS, os) {
			in.OS = os
		}
	}
	if in.OS != "" && in.OS != "Linux" && in.OS != "Windows" {
		return bad("osType", "'%s' is not an osType: Linux or Windows.", clip(in.OS))
	}
	if in.Location != "" && (!namePart.MatchString(in.Location) || dots(in.Location)) {
		return bad("location", "'%s' is not a location.", clip(in.Location))
	}
	if _, err := netip.ParseAddr(in.Address); in.Address != "" && err != nil && !hostName.MatchString(in.Address) {
		return bad("address", "'%s' is neither an IP address nor a host's name.", clip(in.Address))
	}
	if a, err := netip.ParseAddr(in.PublicIPAddress); in.PublicIPAddress != "" && (err != nil || a.Zone() != "") {
		return bad("publicIpAddress", "'%s' is not an IP address.", clip(in.PublicIPAddress))
	}
	if len(in.Unsupported) > maxReason || strings.ContainsFunc(in.Unsupported, unprintable) {
		return bad("unsupportedReason", "The reason is longer than %d bytes, or has characters that do not print.", maxReason)
	}
	return nil
}

// DeleteVM forgets a machine: its agent may come no more. One that a policy
// names is refused, and so is one whose last policy document nobody has signed
// yet: forgotten now, it would guard its ports for ever.
func (e *Engine) DeleteVM(ctx context.Context, c Caller, id VMID) error {
	return e.change(ctx, c, c.line(EventVMDeleted, ActionVMDelete, id.Scope(), ""), func(tx Tx) error {
		if err := c.Must(ActionVMDelete, id.Scope()); err != nil {
			return err
		}
		if _, err := tx.VM(id); errors.Is(err, ErrNotFound) {
			return errNoVM(id)
		} else if err != nil {
			return err
		}
		naming, err := tx.PoliciesOf(id)
		if err != nil {
			return err
		}
		if len(naming) > 0 {
			return Refuse(Conflict, "VirtualMachineInPolicy", "The virtual machine is named by policy '%s'. Take it out of it first.", naming[0].ID)
		}
		if _, err := tx.PendingPolicy(id); err == nil {
			return Refuse(Conflict, "PolicyPending", "The policy document that ends the protection of the virtual machine waits for a signature. Sign it first: until then its ports stay guarded.")
		} else if !errors.Is(err, ErrNotFound) {
			return err
		}
		return tx.DeleteVM(id)
	})
}

// ScopeSettings lists where JIT is switched off, or on again, of what the
// caller may see: scopes with the right, and what holds around them.
func (e *Engine) ScopeSettings(ctx context.Context, c Caller) (settings []ScopeSetting, err error) {
	if err := c.mustSomewhere(ActionScopes, Everywhere); err != nil {
		return nil, err
	}
	may := c.scopes(ActionScopes)
	err = e.Store.View(ctx, func(tx Tx) error {
		all, err := tx.ScopeSettings()
		settings = slices.DeleteFunc(all, func(set ScopeSetting) bool {
			return !slices.ContainsFunc(may, func(s Scope) bool { return s.Covers(set.Scope) || set.Scope.Covers(s) })
		})
		return err
	})
	return settings, err
}

// SetScope switches JIT off or on for a subscription or a resource group. Off
// takes no new policy and no new request; what is guarded stays guarded.
func (e *Engine) SetScope(ctx context.Context, c Caller, s Scope, enabled bool, reason string) (set ScopeSetting, err error) {
	if err := checkScope(&s); err != nil {
		return ScopeSetting{}, err
	}
	what := "JIT is on"
	if !enabled {
		what = "JIT is off"
	}
	if reason != "" {
		what += ": " + clip(reason)
	}
	err = e.change(ctx, c, c.line(EventScopeSet, ActionScope, s, what), func(tx Tx) error {
		if err := c.Must(ActionScope, s); err != nil {
			return err
		}
		if parts := strings.Count(string(s), "/"); s == Everywhere || parts != 2 && parts != 4 {
			return Refuse(Invalid, "InvalidScope", "'%s' is neither a subscription nor a resource group.", s)
		}
		if len(reason) > maxReason || strings.ContainsFunc(reason, unprintable) {
			return Refuse(Invalid, "InvalidReason", "The reason is longer than %d bytes, or has characters that do not print.", maxReason)
		}
		set = ScopeSetting{Scope: s, Enabled: enabled, Reason: reason, By: c.Name, Time: e.Now()}
		return tx.PutScopeSetting(set)
	})
	return set, err
}

// switchedOff is the setting that switches JIT off at s, if one does. Of the
// settings that cover s the narrowest counts.
func switchedOff(settings []ScopeSetting, s Scope) (ScopeSetting, bool) {
	var narrowest ScopeSetting
	for _, set := range settings {
		if set.Scope.Covers(s) && len(set.Scope) > len(narrowest.Scope) {
			narrowest = set
		}
	}
	return narrowest, narrowest.Scope != "" && !narrowest.Enabled
}
