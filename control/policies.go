package control

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Policy is a JIT network access policy: which ports of which machines are
// guarded, and the bounds of any request. Names are those of Azure's API.
type Policy struct {
	ID       PolicyID   `json:"id"`
	Kind     string     `json:"kind"`
	VMs      []PolicyVM `json:"virtualMachines"`
	Approval *Approval  `json:"approval,omitempty"` // nil: a request inside the bounds is granted
	State    Provision  `json:"provisioningState"`
	Revision uint64     `json:"revision"` // rises with every edit; the ETag

	Created, Modified     time.Time
	CreatedBy, ModifiedBy Author
}

// Clone is a copy that shares nothing with p that could be changed in place.
func (p Policy) Clone() Policy {
	p.VMs = slices.Clone(p.VMs)
	for i := range p.VMs {
		ports := slices.Clone(p.VMs[i].Ports)
		for j := range ports {
			ports[j].Many = slices.Clone(ports[j].Many)
		}
		p.VMs[i].Ports = ports
	}
	if p.Approval != nil {
		approval := *p.Approval
		p.Approval = &approval
	}
	return p
}

// Author is who wrote a policy, as systemData has it.
type Author struct {
	Name string `json:"name"`
	Type string `json:"type"` // User or Application
}

// Provision is where a policy stands.
type Provision string

// The provisioning states. Failed does not occur: what cannot be signed is
// refused, and what waits for a person is Updating.
const (
	Updating  Provision = "Updating" // a person has yet to sign it
	Succeeded Provision = "Succeeded"
)

// PolicyVM is one machine of a policy.
type PolicyVM struct {
	ID              VMID       `json:"id"`
	Ports           []PortRule `json:"ports"`
	PublicIPAddress string     `json:"publicIpAddress,omitempty"`
}

// PortRule is a guarded port with the bounds of a request for it.
type PortRule struct {
	Number      uint16          `json:"number"`
	Protocol    policy.Protocol `json:"protocol"`
	Prefixes                    // allowed
	MaxDuration string          `json:"maxRequestAccessDuration"` // ISO 8601, as it was given
	MappedPort  uint16          `json:"mappedPort,omitzero"`      // on the public address, forwarded to Number
	Sessions    policy.Sessions `json:"sessionsAtEnd,omitempty"`  // empty: keep
}

// Prefixes is a source as the API has it: one prefix or a list, in the form it
// was given. The zero value is none.
type Prefixes struct {
	One  string   `json:"allowedSourceAddressPrefix,omitempty"`
	Many []string `json:"allowedSourceAddressPrefixes,omitempty"`
}

// All is the one or the many.
func (p Prefixes) All() []string {
	if p.One != "" {
		return []string{p.One}
	}
	return p.Many
}

// Approval says who must agree before a request is granted.
type Approval struct {
	Approvers     int    `json:"approvers"`               // how many different people, never the requestor
	Role          string `json:"role"`                    // that each must hold at the machine
	Justification bool   `json:"justification,omitempty"` // a request must have one
	Expires       string `json:"expires,omitempty"`       // ISO 8601: how long a request waits; PT1H unless said
}

// PolicyInput is what a caller wants a policy to be.
type PolicyInput struct {
	Kind string
	VMs  []PolicyVM
	// Approval replaces what the policy asks for; nil leaves it, since Azure's
	// API has no word for it.
	Approval *Approval
	// IfMatch, if not empty, is the revision the caller edits, or "*" for any
	// that is there; IfNoneMatch means it must not be there.
	IfMatch     string
	IfNoneMatch bool
}

// PolicyFilter selects policies; empty fields select all. Letter case is
// ignored.
type PolicyFilter struct {
	Subscription, Group, Location string
	// Reader narrows them to those in any of these scopes, or with a machine
	// there; nil does not.
	Reader []Scope
}

// PolicyView is a policy with the history of requests under it.
type PolicyView struct {
	Policy
	Requests []Request
}

// historyShown is how many requests a PolicyView has at most: the newest.
const historyShown = 1000

// How a page of policies is made: some may have a thousand machines.
const (
	policiesRead = 4   // at once
	policyWeight = 500 // machines and requests of a page: it ends with the policy that reaches this
)

// ListPolicies lists the policies the caller may read, a page of at most limit
// (0: all) after the Key after. A page of large ones is shorter. next is empty
// on the last page.
func (e *Engine) ListPolicies(ctx context.Context, c Caller, f PolicyFilter, after string, limit int) (page []PolicyView, next string, err error) {
	now := e.Now()
	if may := c.scopes(ActionRead); !slices.Contains(may, Everywhere) {
		f.Reader = append([]Scope{}, may...)
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		page, next = nil, ""
		weight := 0
		for from := after; ; {
			some, err := tx.Policies(f, from, policiesRead)
			if err != nil {
				return err
			}
			for _, p := range some {
				from = p.ID.Key()
				seen, ok := c.visible(p)
				if !ok {
					continue
				}
				// One more than the page is read, to know whether it is the last.
				if limit > 0 && (len(page) == limit || weight >= policyWeight) {
					next = page[len(page)-1].ID.Key()
					return nil
				}
				view, err := viewPolicy(tx, seen, len(seen.VMs) == len(p.VMs), now)
				if err != nil {
					return err
				}
				page = append(page, view)
				weight += len(view.VMs) + len(view.Requests)
			}
			if len(some) < policiesRead {
				return nil
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	})
	return page, next, err
}

// GetPolicy returns a policy with its requests.
func (e *Engine) GetPolicy(ctx context.Context, c Caller, id PolicyID) (view PolicyView, err error) {
	now := e.Now()
	err = e.Store.View(ctx, func(tx Tx) error {
		p, there, err := found(tx.Policy(id))
		if err != nil {
			return err
		}
		// Whoever may not read it is not told whether it is there.
		seen, ok := c.visible(p)
		if !there || !ok {
			if err := c.Must(ActionRead, id.group()); err != nil {
				return err
			}
			return policyNotFound(id)
		}
		view, err = viewPolicy(tx, seen, len(seen.VMs) == len(p.VMs), now)
		return err
	})
	return view, err
}

// group is the resource group the policy is in: where the rights to it are.
func (id PolicyID) group() Scope { return GroupScope(id.Subscription, id.Group) }

func policyNotFound(id PolicyID) *Error {
	return Refuse(NotFound, "PolicyNotFound", "The policy '%s' was not found.", id)
}

// visible is what of a policy the caller may read: all of it with the right to
// its resource group, else the machines with the right to them.
func (c Caller) visible(p Policy) (Policy, bool) {
	if c.May(ActionRead, p.ID.group()) {
		return p, true
	}
	p.VMs = slices.DeleteFunc(slices.Clone(p.VMs), func(v PolicyVM) bool { return !c.May(ActionRead, v.ID.Scope()) })
	return p, len(p.VMs) > 0
}

// viewPolicy adds the history to a policy: all of it, or that of the machines
// p names.
func viewPolicy(tx Tx, p Policy, all bool, now time.Time) (PolicyView, error) {
	list, err := tx.Requests(RequestFilter{Policy: &p.ID, Newest: true, Limit: historyShown})
	if err != nil {
		return PolicyView{}, err
	}
	slices.Reverse(list)
	view := PolicyView{Policy: p, Requests: []Request{}}
	for _, r := range list {
		r.settle(now)
		if !all {
			r.VMs = slices.DeleteFunc(r.VMs, func(v RequestVM) bool { _, ok := p.vm(v.ID); return !ok })
		}
		if len(r.VMs) > 0 {
			view.Requests = append(view.Requests, r)
		}
	}
	return view, nil
}

// PutPolicy creates a policy or replaces it whole, and publishes what its
// machines guard from now on, and those it names no longer. Requests and
// grants inside the new bounds go on; those outside are revoked. It takes the
// right to write policies in the group, and to write each machine whose entry
// comes, goes or changes. What Azure's API has no word for and the input does
// not say (approval, mappedPort, sessionsAtEnd) stays as it was.
func (e *Engine) PutPolicy(ctx context.Context, c Caller, id PolicyID, in PolicyInput) (view PolicyView, err error) {
	if err := id.Check(); err != nil {
		return PolicyView{}, badPolicy("id", "%v", err)
	}
	if len(in.Kind) > maxKind {
		return PolicyView{}, badPolicy("kind", "%d bytes, the limit is %d", len(in.Kind), maxKind)
	}
	if err := judgeVMs(id, in.VMs); err != nil {
		return PolicyView{}, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		ed.about = ed.line("policy.written", ActionWrite, id.Scope())
		if err := c.Must(ActionWrite, id.group()); err != nil {
			return err
		}
		was, there, err := found(ed.tx.Policy(id))
		if err != nil {
			return err
		}
		if err := precondition(there, was.Revision, in.IfMatch, in.IfNoneMatch); err != nil {
			return err
		}
		next := was
		if !there {
			next = Policy{ID: id, Kind: "Basic", State: Succeeded}
		}
		if in.Kind != "" {
			next.Kind = in.Kind
		}
		next.VMs = inherit(in.VMs, was)
		if in.Approval != nil {
			if err := ed.checkApproval(*in.Approval); err != nil {
				return err
			}
			next.Approval = in.Approval
		}
		next, err = ed.write(was, next)
		if err != nil {
			return err
		}
		view, err = viewPolicy(ed.tx, next, true, ed.now)
		return err
	})
	return view, err
}

// precondition holds what the caller believes against what is there.
func precondition(there bool, revision uint64, ifMatch string, ifNone bool) error {
	switch {
	case ifNone && there:
		return Refuse(Precondition, "PreconditionFailed", "If-None-Match: it is there already, at revision %d.", revision)
	case ifMatch == "", ifMatch == "*" && there:
		return nil
	case !there:
		return Refuse(Precondition, "PreconditionFailed", "If-Match: it is not there.")
	case ifMatch != strconv.FormatUint(revision, 10):
		return Refuse(Precondition, "PreconditionFailed", "If-Match: somebody else changed it meanwhile; it is at revision %d. Read it again.", revision)
	}
	return nil
}

// inherit fills in what an input left out, from the rules it replaces.
func inherit(vms []PolicyVM, was Policy) []PolicyVM {
	out := make([]PolicyVM, 0, len(vms))
	entries := was.entries()
	for _, v := range vms {
		v.Ports = slices.Clone(v.Ports)
		before := entries[v.ID.Key()]
		for i := range v.Ports {
			if r, ok := before.rule(v.Ports[i].Number); ok && v.Ports[i].Sessions == "" && v.Ports[i].MappedPort == 0 {
				v.Ports[i].Sessions, v.Ports[i].MappedPort = r.Sessions, r.MappedPort
			}
		}
		out = append(out, v)
	}
	return out
}

// checkApproval refuses terms nobody could meet.
func (ed *edit) checkApproval(a Approval) error {
	defined, err := ed.tx.Roles()
	if err != nil {
		return err
	}
	var names []string
	for _, r := range append(BuiltinRoles(), defined...) {
		names = append(names, r.Name)
	}
	return judgeApproval(a, names)
}

// write puts next in the place of was, which is the zero Policy where there
// was none, and publishes what that changes.
func (ed *edit) write(was, next Policy) (Policy, error) {
	isNew := was.Revision == 0
	changed := touched(was, next)
	for _, vm := range changed {
		if err := ed.caller.Must(ActionVMWrite, vm.Scope()); err != nil {
			return next, err
		}
	}
	if isNew {
		if err := ed.switchedOn(next.ID.group()); err != nil {
			return next, err
		}
	}
	entries := next.entries()
	var named []VMID
	for _, vm := range changed {
		if _, is := entries[vm.Key()]; is {
			named = append(named, vm)
		}
	}
	if err := ed.readVMs(named...); err != nil {
		return next, err
	}
	naming, err := ed.naming(named...)
	if err != nil {
		return next, err
	}
	for _, vm := range named {
		if err := ed.supported(vm); err != nil {
			return next, err
		}
		if err := alone(next.ID, entries[vm.Key()], naming[vm.Key()]); err != nil {
			return next, err
		}
	}
	author := Author{Name: cmp.Or(ed.caller.Name, ed.caller.ID), Type: ed.caller.Type}
	if isNew {
		next.Created, next.CreatedBy = ed.now, author
	}
	if isNew || len(changed) > 0 || next.Kind != was.Kind || !reflect.DeepEqual(next.Approval, was.Approval) {
		next.Revision++
		next.Modified, next.ModifiedBy = ed.now, author
	}
	if next.State, err = ed.provision(next, changed); err != nil {
		return next, err
	}
	if err := ed.tx.PutPolicy(next); err != nil {
		return next, err
	}
	for _, vm := range named {
		if _, known, err := ed.vm(vm); err != nil {
			return next, err
		} else if !known {
			if err := ed.putVM(VM{ID: vm, Location: next.ID.Location}); err != nil {
				return next, err
			}
		}
	}
	line := ed.line("policy.written", ActionWrite, next.ID.Scope())
	line.Reason = "revision " + strconv.FormatUint(next.Revision, 10)
	ed.tell(line)
	if err := ed.confine(next); err != nil {
		return next, err
	}
	for _, vm := range changed {
		ed.renew(vm, true)
	}
	return next, nil
}

// touched are the machines whose entries differ, in the order of their Key, so
// that an edit does the same at every try.
func touched(was, next Policy) (vms []VMID) {
	before, after := was.entries(), next.entries()
	for _, v := range next.VMs {
		if before, ok := before[v.ID.Key()]; !ok || !sameEntry(before, v) {
			vms = append(vms, v.ID)
		}
	}
	for _, v := range was.VMs {
		if _, ok := after[v.ID.Key()]; !ok {
			vms = append(vms, v.ID)
		}
	}
	slices.SortFunc(vms, func(a, b VMID) int { return strings.Compare(a.Key(), b.Key()) })
	return vms
}

// sameEntry reports whether two entries say the same in the same words.
func sameEntry(a, b PolicyVM) bool {
	rule := func(a, b PortRule) bool { return reflect.DeepEqual(a, b) }
	return a.ID == b.ID && a.PublicIPAddress == b.PublicIPAddress && slices.EqualFunc(a.Ports, b.Ports, rule)
}

// provision says whether any machine of the policy will wait for a signature
// once the documents of those that changed are made.
func (ed *edit) provision(p Policy, changed []VMID) (Provision, error) {
	_, people := ed.e.Realm.peopleSign()
	others := p.entries()
	all := len(others)
	for _, vm := range changed {
		delete(others, vm.Key())
	}
	if people && len(others) < all {
		return Updating, nil
	}
	if len(others) == 0 {
		return Succeeded, nil
	}
	var vms []VMID
	for _, v := range others {
		vms = append(vms, v.ID)
	}
	if waiting, err := ed.tx.PendingPolicies(vms...); err != nil {
		return "", err
	} else if len(waiting) > 0 {
		return Updating, nil
	}
	return Succeeded, nil
}

// settings are where JIT is switched off.
func (ed *edit) settings() ([]ScopeSetting, error) {
	if ed.scopes == nil {
		settings, err := ed.tx.ScopeSettings()
		if err != nil {
			return nil, err
		}
		ed.scopes = &settings
	}
	return *ed.scopes, nil
}

// switchedOn refuses where JIT is switched off.
func (ed *edit) switchedOn(s Scope) error {
	settings, err := ed.settings()
	if err != nil {
		return err
	}
	if off, is := switchedOff(settings, s); is {
		return Refuse(Conflict, "JitDisabled", "%s.", off.why())
	}
	return nil
}

// supported refuses machines that the inventory calls unsupported.
func (ed *edit) supported(vm VMID) error {
	if err := ed.switchedOn(vm.Scope()); err != nil {
		return err
	}
	known, _, err := ed.vm(vm)
	if err != nil {
		return err
	}
	known.ID = vm
	if BaseTab(vm.Key(), false, known.Unsupported != "") != Unsupported {
		return nil
	}
	return Refuse(Conflict, "UnsupportedVirtualMachine", "The virtual machine '%s' is not supported: %s.", vm, strings.TrimSuffix(unsupported(known, nil), "."))
}

// alone refuses a port that another policy has: a grant names a number and
// nothing else, so on one machine a number has one rule. policies are those that
// name the machine.
func alone(id PolicyID, entry PolicyVM, policies []Policy) error {
	total := len(entry.Ports)
	for _, p := range policies {
		if p.ID.Key() == id.Key() {
			continue
		}
		other, _ := p.vm(entry.ID)
		total += len(other.Ports)
		for _, r := range other.Ports {
			if _, ok := entry.rule(r.Number); ok {
				return Refuse(Conflict, "PortInAnotherPolicy", "Port %d of the virtual machine '%s' is in the policy '%s' already.", r.Number, entry.ID, p.ID)
			}
		}
	}
	if total > policy.MaxPorts {
		return Refuse(Conflict, "TooManyPorts", "The virtual machine '%s' has %d ports in all its policies together, the limit is %d.", entry.ID, total, policy.MaxPorts)
	}
	return nil
}

// confine revokes what is open under a policy and outside its bounds: agents
// would close it anyway, and this says why.
func (ed *edit) confine(p Policy) error {
	open, err := ed.tx.Requests(RequestFilter{Policy: &p.ID, Open: true})
	if err != nil {
		return err
	}
	for _, r := range open {
		changed := r.settle(ed.now)
		for i, v := range r.VMs {
			entry, _ := p.vm(v.ID)
			for j := range v.Ports {
				port := &r.VMs[i].Ports[j]
				if port.Status == Revoked {
					continue
				}
				before := *port
				why, err := port.confine(entry, ed.now)
				if err != nil {
					return err
				}
				if why != "" {
					port.end(UserRequested, ed.now)
					port.Refused = why
					ed.tell(ed.portLine("request.revoked", ActionWrite, r, v.ID, *port, why))
				}
				changed = changed || !reflect.DeepEqual(before, *port)
			}
		}
		if changed {
			if err := ed.putRequest(r); err != nil {
				return err
			}
		}
	}
	return nil
}

// DeletePolicy ends the protection of the policy's machines and revokes its
// grants. It reports whether there was such a policy. It takes the right to
// delete policies in the group, and to write each of its machines.
func (e *Engine) DeletePolicy(ctx context.Context, c Caller, id PolicyID) (was bool, err error) {
	if err := id.Check(); err != nil {
		return false, badPolicy("id", "%v", err)
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		was = false
		ed.about = ed.line("policy.deleted", ActionDelete, id.Scope())
		if err := c.Must(ActionDelete, id.group()); err != nil {
			return err
		}
		p, there, err := found(ed.tx.Policy(id))
		if err != nil || !there {
			return err
		}
		gone := touched(p, Policy{})
		for _, vm := range gone {
			if err := c.Must(ActionVMWrite, vm.Scope()); err != nil {
				return err
			}
		}
		was = true
		ed.tell(ed.about)
		if err := ed.confine(Policy{ID: id}); err != nil {
			return err
		}
		if err := ed.tx.DeletePolicy(id); err != nil {
			return err
		}
		for _, vm := range gone {
			ed.renew(vm, true)
		}
		return nil
	})
	return was && err == nil, err
}

// EditPorts replaces the ports of one machine and leaves every other alone. A
// machine that no policy names comes into "default" of its group and
// location. No port at all takes it out of every policy. ifMatch is
// VMView.Revision in decimal, "*", or empty. It takes the right to write
// policies, and the machine, at the machine.
func (e *Engine) EditPorts(ctx context.Context, c Caller, vm VMID, ports []PortRule, ifMatch string) (view VMView, err error) {
	if len(ports) > 0 {
		if err := judgeRules("ports", ports); err != nil {
			return VMView{}, err
		}
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		ed.about = ed.line("policy.written", ActionWrite, vm.Scope())
		ed.about.VM = vm.String()
		if err := c.Must(ActionWrite, vm.Scope()); err != nil {
			return err
		}
		if err := c.Must(ActionVMWrite, vm.Scope()); err != nil {
			return err
		}
		known, there, err := ed.vm(vm)
		if err != nil {
			return err
		}
		if !there {
			return errNoVM(vm)
		}
		policies, err := ed.tx.PoliciesOf(vm)
		if err != nil {
			return err
		}
		if err := precondition(true, portsRevision(vm, policies), ifMatch, false); err != nil {
			return err
		}
		if len(policies) == 0 && len(ports) > 0 {
			home, err := ed.home(known)
			if err != nil {
				return err
			}
			policies = []Policy{home}
		}
		return ed.spread(known.ID, ports, policies)
	})
	if err != nil {
		return VMView{}, err
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		view, err = e.viewVM(tx, vm)
		return err
	})
	return view, err
}

// home is the policy "default" of a machine that none names.
func (ed *edit) home(vm VM) (Policy, error) {
	if vm.Location == "" {
		return Policy{}, Refuse(Conflict, "NoLocation", "The virtual machine '%s' has no location: say it in the inventory first, policies are by location.", vm.ID)
	}
	id := PolicyID{Subscription: vm.ID.Subscription, Group: vm.ID.Group, Location: vm.Location, Name: "default"}
	if err := id.Check(); err != nil {
		return Policy{}, badPolicy("location", "%v", err)
	}
	p, there, err := found(ed.tx.Policy(id))
	if !there {
		p = Policy{ID: id, Kind: "Basic", State: Succeeded}
	}
	return p, err
}

// spread puts the ports of a machine where their numbers are already, and new
// numbers into the first of its policies.
func (ed *edit) spread(vm VMID, ports []PortRule, policies []Policy) error {
	left := slices.Clone(ports)
	type step struct{ was, next Policy }
	steps := make([]step, len(policies))
	for i, p := range policies {
		entry, named := p.vm(vm)
		if !named {
			entry = PolicyVM{ID: vm}
		}
		keep := entry
		keep.Ports = nil
		for _, r := range ports {
			if _, ok := entry.rule(r.Number); ok {
				keep.Ports = append(keep.Ports, r)
				left = slices.DeleteFunc(left, func(l PortRule) bool { return l.Number == r.Number })
			}
		}
		steps[i] = step{p, p.with(keep)}
	}
	if len(left) > 0 {
		first := &steps[0].next
		entry, named := first.vm(vm)
		if !named {
			was, _ := steps[0].was.vm(vm)
			entry = PolicyVM{ID: vm, PublicIPAddress: was.PublicIPAddress}
		}
		entry.Ports = append(slices.Clone(entry.Ports), left...)
		*first = first.with(entry)
	}
	for _, s := range steps {
		if len(touched(s.was, s.next)) == 0 {
			continue
		}
		if err := judgeVMs(s.next.ID, s.next.VMs); err != nil {
			return err
		}
		if _, err := ed.write(s.was, s.next); err != nil {
			return err
		}
	}
	return nil
}

// with is p with this entry in the place of the machine's, or without it if it
// has no ports. It shares nothing with p.
func (p Policy) with(entry PolicyVM) Policy {
	p.VMs = slices.Clone(p.VMs)
	i := slices.IndexFunc(p.VMs, func(v PolicyVM) bool { return v.ID.same(entry.ID) })
	switch {
	case i >= 0 && len(entry.Ports) == 0:
		p.VMs = slices.Delete(p.VMs, i, i+1)
	case i >= 0:
		p.VMs[i] = entry
	case len(entry.Ports) > 0:
		p.VMs = append(p.VMs, entry)
	}
	return p
}

// SetApproval says who must agree to requests under a policy; nil is nobody.
// Requests that wait already go by the terms they were made under.
func (e *Engine) SetApproval(ctx context.Context, c Caller, id PolicyID, a *Approval, ifMatch string) (view PolicyView, err error) {
	err = e.edit(ctx, c, func(ed *edit) error {
		ed.about = ed.line("policy.written", ActionWrite, id.Scope())
		if err := c.Must(ActionWrite, id.group()); err != nil {
			return err
		}
		was, there, err := found(ed.tx.Policy(id))
		if err != nil {
			return err
		}
		if !there && ifMatch == "" {
			return policyNotFound(id)
		}
		if err := precondition(there, was.Revision, ifMatch, false); err != nil {
			return err
		}
		if a != nil {
			if err := ed.checkApproval(*a); err != nil {
				return err
			}
		}
		next := was
		next.Approval = a
		if next, err = ed.write(was, next); err != nil {
			return err
		}
		view, err = viewPolicy(ed.tx, next, true, ed.now)
		return err
	})
	return view, err
}
