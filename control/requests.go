package control

import (
	"context"
	"errors"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jitgate/jitgate/policy"
)

// Request is one request for access. It is kept when it is over: requests are
// the history of a policy.
type Request struct {
	ID            string           `json:"id"` // rises with time
	Policy        PolicyID         `json:"policy"`
	VMs           []RequestVM      `json:"virtualMachines"`
	Start         time.Time        `json:"startTimeUtc"` // when the server took it
	Requestor     string           `json:"requestor"`    // may be empty
	Principal     string           `json:"principal"`    // the caller's id
	Justification string           `json:"justification,omitempty"`
	Call          string           `json:"call,omitempty"` // id of the call that made it
	Approval      *RequestApproval `json:"approval,omitempty"`
}

// RequestVM is one machine of a request.
type RequestVM struct {
	ID    VMID          `json:"id"`
	Ports []RequestPort `json:"ports"`
}

// RequestPort is one port of a request, and where it stands.
type RequestPort struct {
	Number     uint16        `json:"number"`
	Prefixes                 // the source, resolved
	End        time.Time     `json:"endTimeUtc"`
	Length     time.Duration `json:"length,omitzero"` // asked as a duration: counts from the approval
	Status     Status        `json:"status"`
	Reason     StatusReason  `json:"statusReason"`
	MappedPort uint16        `json:"mappedPort,omitzero"`

	GrantID string `json:"grant,omitempty"` // empty while it is pending
	// From and Until are the times of the grant as it is signed. Until is End,
	// or earlier where the caller's clock is ahead and End is outside the bounds.
	From  time.Time `json:"from,omitzero"`
	Until time.Time `json:"until,omitzero"`
	// Earlier are the grants this one took over from and that stay on the list
	// beside it: see takeOver.
	Earlier []Term `json:"earlier,omitempty"`

	Opened  time.Time `json:"opened,omitzero"` // when the agent said it is open
	Closed  time.Time `json:"closed,omitzero"`
	Refused string    `json:"refused,omitempty"` // why the agent did not open it, or an edit of the policy closed it
	Outer   *Layer    `json:"outer,omitempty"`   // the same port at Azure's own JIT; nil: not asked
}

// Clone is a copy that shares nothing with r that is ever changed in place.
func (r Request) Clone() Request {
	r.VMs = slices.Clone(r.VMs)
	for i := range r.VMs {
		ports := slices.Clone(r.VMs[i].Ports)
		for j := range ports {
			ports[j].Many = slices.Clone(ports[j].Many)
			ports[j].Earlier = slices.Clone(ports[j].Earlier)
			if ports[j].Outer != nil {
				outer := *ports[j].Outer
				ports[j].Outer = &outer
			}
		}
		r.VMs[i].Ports = ports
	}
	if r.Approval != nil {
		approval := *r.Approval
		approval.Verdicts = slices.Clone(approval.Verdicts)
		r.Approval = &approval
	}
	return r
}

// Status is where a port of a request stands. Azure's enum is open; Pending
// is shown on Azure's API as Initiating.
type Status string

// The statuses.
const (
	Pending    Status = "Pending" // waits for approval
	Initiating Status = "Initiating"
	Initiated  Status = "Initiated" // an agent says the port is open
	Revoked    Status = "Revoked"
)

// StatusReason is why a port has its status.
type StatusReason string

// The reasons. Denied is shown on Azure's API as UserRequested.
const (
	UserRequested         StatusReason = "UserRequested"
	Expired               StatusReason = "Expired"
	NewerRequestInitiated StatusReason = "NewerRequestInitiated"
	Denied                StatusReason = "Denied"
)

// Term is a grant of a port, and the time it is signed for.
type Term struct {
	ID    string    `json:"id"`
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
}

// Open reports whether any port of the request may be open, or still become so.
func (r Request) Open() bool {
	for _, vm := range r.VMs {
		for _, p := range vm.Ports {
			if p.Status != Revoked {
				return true
			}
		}
	}
	return false
}

// RequestApproval is how far the approval of a request has come. The terms
// are those of the policy when the request was made.
type RequestApproval struct {
	Approval
	Until    time.Time `json:"until"` // the request is denied unless approved before
	Verdicts []Verdict `json:"verdicts"`
}

// Verdict is what one approver said.
type Verdict struct {
	Principal string        `json:"principal"`
	Name      string        `json:"name"`
	Approve   bool          `json:"approve"`
	Comment   string        `json:"comment,omitempty"`
	AtMost    time.Duration `json:"atMost,omitzero"` // not zero: no longer than this
	Time      time.Time     `json:"time"`
}

// Layer is where a port of a request stands outside the machine. Its status is
// what that layer said when it was last looked at; nothing is called closed
// there that may be open.
type Layer struct {
	Name   string       `json:"name"`             // whose it is: azure
	Status Status       `json:"status,omitempty"` // as that layer says; empty: not known
	Reason StatusReason `json:"statusReason,omitempty"`
	Error  string       `json:"error,omitempty"` // why it could not be asked or looked at, the last time
	Note   string       `json:"note,omitempty"`  // for people: what the status does not say
	// Taken is the end the layer has agreed to; Until is the latest end it was
	// asked for and did not surely refuse. Zero: none.
	Taken  time.Time `json:"takenUntil,omitzero"`
	Until  time.Time `json:"openUntil,omitzero"`
	Looked time.Time `json:"looked,omitzero"` // when the status was true
	Tries  int       `json:"tries,omitzero"`  // in vain, since it last went well
	Next   time.Time `json:"next,omitzero"`   // nobody asks or looks before: the replica at work, or a pause
}

// InitiateInput is a request as it comes in. Address is used where a port
// names no source.
type InitiateInput struct {
	VMs           []InitiateVM
	Justification string
}

// InitiateVM is one machine of an InitiateInput.
type InitiateVM struct {
	ID    string
	Ports []InitiatePort
}

// InitiatePort is one port of an InitiateInput. Exactly one of End and
// Duration is given.
type InitiatePort struct {
	Number   uint16
	Prefixes Prefixes  // none: the caller's own address
	End      time.Time // zero: not given
	Duration string    // ISO 8601; empty: not given
}

// RequestFilter selects requests; zero fields select all.
type RequestFilter struct {
	Policy    *PolicyID
	VM        *VMID
	Principal string
	Scope     Scope  // of the machines; empty is Everywhere
	Open      bool   // only those that may be open or become so
	Status    Status // of any port
	Since     time.Time
	Newest    bool   // newest first
	After     string // id of the last one of the page before
	Limit     int    // 0: no limit
	Reader    *RequestReader
}

// RequestReader narrows a list of requests to those that somebody may read: for
// machines in any of these scopes, or under policies of subscriptions and
// groups among them, and their own.
type RequestReader struct {
	Scopes    []Scope
	Principal string
}

// reader is nil where the caller may read everything.
func (c Caller) reader() *RequestReader {
	may := c.scopes(ActionRead)
	if slices.Contains(may, Everywhere) {
		return nil
	}
	return &RequestReader{Scopes: may, Principal: c.ID}
}

// repeatedWithin is how long the same request by the same caller is taken for
// the first one sent again: clients send it again by themselves.
const repeatedWithin = time.Minute

// maxEarlier bounds how many grants of one port stand beside each other.
const maxEarlier = 8

// eachPort goes through the ports of a request with their machines. They may be
// changed.
func (r *Request) eachPort() iter.Seq2[VMID, *RequestPort] {
	return func(yield func(VMID, *RequestPort) bool) {
		for at, p := range r.ports() {
			if !yield(r.VMs[at.machine].ID, p) {
				return
			}
		}
	}
}

// settle ends what is over at now by time. It reports whether that changed
// anything. Readers do it to what they read, so that nobody sees an end late;
// the sweep writes it down.
func (r *Request) settle(now time.Time) (changed bool) {
	denied := r.Approval != nil && !now.Before(r.Approval.Until)
	for _, p := range r.eachPort() {
		// Nothing of a request is granted unless all of it is.
		denied = denied || p.Status == Pending && p.Length == 0 && !now.Before(p.End)
	}
	for _, p := range r.eachPort() {
		switch {
		case p.Status == Revoked:
		case p.Status == Pending && denied:
			p.end(Expired, now)
			changed = true
		case p.Status != Pending && !now.Before(p.Until):
			p.end(Expired, p.Until)
			changed = true
		}
	}
	return changed
}

// end closes the port.
func (p *RequestPort) end(why StatusReason, at time.Time) {
	p.Status, p.Reason = Revoked, why
	if p.Closed.IsZero() {
		p.Closed = at
	}
}

// grant opens the port from now on, by its End or for its Length, and no
// longer than longest.
func (p *RequestPort) grant(id string, now time.Time, longest time.Duration) {
	if p.Length > 0 {
		p.End = now.Add(p.Length)
	}
	p.Status, p.Reason, p.GrantID = Initiating, UserRequested, id
	p.From, p.Until = window(now, p.End, longest)
}

// terms are the grants of the port that belong on a list made at now. Once the
// port's own has begun by every clock, those before it are not needed.
func (p RequestPort) terms(now time.Time) []Term {
	own := Term{p.GrantID, p.From, p.Until}
	if !p.From.After(now.Add(-policy.Skew)) {
		return []Term{own}
	}
	return append(slices.Clone(p.Earlier), own)
}

// takeOver keeps the grants terms, which p takes the place of, on the list
// until p has begun by every clock. A grant for the longest time begins now, so
// an agent whose clock is behind has still to wait for it; without the earlier
// one it would close the port meanwhile and cut the sessions. None of them ends
// after p does.
func (p *RequestPort) takeOver(terms []Term, now time.Time) error {
	p.Earlier = nil
	begun := now.Add(-policy.Skew)
	if !p.From.After(begun) {
		return nil
	}
	for _, t := range terms {
		if t.Until.After(p.Until) {
			t.Until = p.Until
		}
		if !t.Until.After(now) || !t.Until.After(t.From) {
			continue
		}
		if !t.From.After(begun) {
			p.Earlier = nil // all agents have this one: those before it are not needed
		}
		p.Earlier = append(p.Earlier, t)
	}
	if len(p.Earlier) > maxEarlier {
		return Refuse(TooMany, "TooManyGrants", "Port %d was asked for too often within two minutes: wait a moment.", p.Number)
	}
	return nil
}

// confine holds an open port against the entry its machine has by now, and
// says what of it is outside. A grant that is within the bounds from now on is
// signed for a later beginning where its length is not.
func (p *RequestPort) confine(entry PolicyVM, now time.Time) (why string, err error) {
	rule, ok := entry.rule(p.Number)
	if !ok {
		return "the policy does not have the port any more", nil
	}
	b, err := rule.bounds()
	if err != nil {
		return "", err
	}
	sources, err := p.Prefixes.sources()
	if err != nil {
		return "", err
	}
	if why := b.uncovered(sources); why != "" {
		return why, nil
	}
	left := p.Length
	switch {
	case p.Status != Pending:
		left = p.Until.Sub(now)
	case left == 0:
		left = p.End.Sub(now) - policy.Skew
	}
	if left > b.longest {
		return policy.FormatDuration(left) + " to go, " + rule.MaxDuration + " allowed", nil
	}
	if p.Status == Pending {
		return "", nil
	}
	p.From = later(p.From, p.Until.Add(-b.longest))
	for i, t := range p.Earlier {
		p.Earlier[i].From = later(t.From, t.Until.Add(-b.longest))
	}
	return "", nil
}

// portLine is a line of the log about one port of a request.
func (ed *edit) portLine(event string, a Action, r Request, vm VMID, p RequestPort, reason string) Activity {
	l := ed.line(event, a, vm.Scope())
	l.VM, l.Request, l.Grant, l.Port, l.Source, l.End, l.Reason = vm.String(), r.ID, p.GrantID, p.Number, strings.Join(p.All(), ","), p.End, reason
	return l
}

// Initiate asks for access under a policy: every port of every machine is
// inside its bounds, or nothing is recorded. The same request by the same
// caller while the first is open changes nothing and returns the first. It
// takes the right to initiate at each machine, or at the policy.
func (e *Engine) Initiate(ctx context.Context, c Caller, id PolicyID, in InitiateInput) (r Request, err error) {
	if err := id.Check(); err != nil {
		return Request{}, badRequest("id", "%v", err)
	}
	asks, err := readInitiate(in, c.Address)
	if err != nil {
		return Request{}, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		ed.aboutInitiate(asks, id.Scope())
		// Rights come first: who has none is not told what there is.
		for _, a := range asks {
			if err := c.mayInitiate(a.vm, id); err != nil {
				return err
			}
		}
		p, there, err := found(ed.tx.Policy(id))
		if err != nil {
			return err
		}
		if !there {
			return policyNotFound(id)
		}
		r, err = ed.initiate(p, asks, in.Justification)
		return err
	})
	return r, err
}

// aboutInitiate is what the log says of a request that is refused.
func (ed *edit) aboutInitiate(asks []asked, s Scope) {
	ed.about = ed.line("request.initiated", ActionInitiate, s)
	if len(asks) == 1 {
		ed.about.Scope, ed.about.VM = asks[0].vm.Scope(), asks[0].vm.String()
		if ports := asks[0].ports; len(ports) == 1 {
			ed.about.Port, ed.about.Source = ports[0].number, strings.Join(ports[0].prefixes.All(), ",")
		}
	}
}

// mayInitiate refuses who may ask for access neither to the machine nor under
// the policy.
func (c Caller) mayInitiate(vm VMID, id PolicyID) error {
	if c.May(ActionInitiate, id.Scope()) {
		return nil
	}
	return c.Must(ActionInitiate, vm.Scope())
}

// InitiateVM asks for access to machines by whichever policies name them: one
// request for each policy, all of them or none.
func (e *Engine) InitiateVM(ctx context.Context, c Caller, in InitiateInput) (list []Request, err error) {
	asks, err := readInitiate(in, c.Address)
	if err != nil {
		return nil, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		list = nil
		ed.aboutInitiate(asks, Everywhere)
		type part struct {
			policy Policy
			asks   []asked
		}
		var parts []*part
		naming, err := ed.naming(machinesOf(asks)...)
		if err != nil {
			return err
		}
		for _, a := range asks {
			policies := naming[a.vm.Key()]
			for _, port := range a.ports {
				i := slices.IndexFunc(policies, func(p Policy) bool {
					entry, _ := p.vm(a.vm)
					_, ok := entry.rule(port.number)
					return ok
				})
				if i < 0 {
					// Who may not ask is not told what there is.
					if err := c.Must(ActionInitiate, a.vm.Scope()); err != nil {
						return err
					}
					return badRequest("virtualMachines", "Port %d of the virtual machine '%s' is in no policy.", port.number, a.vm)
				}
				p := policies[i]
				if err := c.mayInitiate(a.vm, p.ID); err != nil {
					return err
				}
				n := slices.IndexFunc(parts, func(o *part) bool { return o.policy.ID.Key() == p.ID.Key() })
				if n < 0 {
					n, parts = len(parts), append(parts, &part{policy: p})
				}
				mine := parts[n]
				if last := len(mine.asks) - 1; last < 0 || mine.asks[last].vm != a.vm {
					mine.asks = append(mine.asks, asked{vm: a.vm})
				}
				last := &mine.asks[len(mine.asks)-1]
				last.ports = append(last.ports, port)
			}
		}
		for _, p := range parts {
			r, err := ed.initiate(p.policy, p.asks, in.Justification)
			if err != nil {
				return err
			}
			list = append(list, r)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return list, nil
}

// initiate judges what is asked under p, and records and grants it.
func (ed *edit) initiate(p Policy, asks []asked, justification string) (Request, error) {
	r := Request{ID: ed.id(), Policy: p.ID, Start: ed.now, Requestor: ed.caller.Name, Principal: ed.caller.ID, Justification: justification, Call: ed.caller.Request}
	longest := map[*RequestPort]time.Duration{}
	vms := machinesOf(asks)
	if err := errors.Join(ed.readVMs(vms...), ed.readOpen(vms...)); err != nil {
		return r, err
	}
	for _, a := range asks {
		if err := ed.supported(a.vm); err != nil {
			return r, err
		}
		entry, _ := p.vm(a.vm)
		vm := RequestVM{ID: a.vm, Ports: make([]RequestPort, len(a.ports))}
		if entry.ID != (VMID{}) {
			vm.ID = entry.ID // in the letter case it is known by
		}
		for i, asked := range a.ports {
			rule, b, err := p.judge(a.vm, asked, ed.now)
			if err != nil {
				return r, err
			}
			vm.Ports[i] = RequestPort{Number: asked.number, Prefixes: asked.prefixes, End: asked.until(ed.now), Length: asked.length,
				Status: Pending, Reason: UserRequested, MappedPort: rule.MappedPort}
			if ed.e.Outer != nil {
				vm.Ports[i].Outer = &Layer{Name: ed.e.Outer.Name(), Status: Initiating}
			}
			longest[&vm.Ports[i]] = b.longest
		}
		r.VMs = append(r.VMs, vm)
	}
	if p.Approval != nil {
		if p.Approval.Justification && strings.TrimSpace(justification) == "" {
			return r, badRequest("justification", "The policy '%s' asks for a justification.", p.ID)
		}
		r.Approval = &RequestApproval{Approval: *p.Approval, Until: ed.now.Add(p.Approval.wait()), Verdicts: []Verdict{}}
	}
	first, repeated, err := ed.repeated(r)
	if err != nil || repeated {
		return first, err
	}
	if r.Approval == nil {
		for _, port := range r.eachPort() {
			port.grant(ed.id(), ed.now, longest[port])
		}
	}
	if err := ed.replace(&r); err != nil {
		return r, err
	}
	for vm, port := range r.eachPort() {
		ed.tell(ed.portLine("request.initiated", ActionInitiate, r, vm, *port, justification))
	}
	return r, ed.put(r, r.Approval == nil)
}

// machinesOf are the machines that are asked for.
func machinesOf(asks []asked) (vms []VMID) {
	for _, a := range asks {
		vms = append(vms, a.vm)
	}
	return vms
}

// put keeps a request and, where its grants changed, has the lists of its
// machines made anew.
func (ed *edit) put(r Request, changed bool) error {
	for _, vm := range r.VMs {
		if changed {
			ed.renew(vm.ID, false)
		}
	}
	return ed.putRequest(r)
}

// repeated finds the request that r is sent again of.
func (ed *edit) repeated(r Request) (Request, bool, error) {
	// It names the same machines: those of the first are few, those under a
	// policy may be thousands.
	open, err := ed.open(r.VMs[0].ID)
	if err != nil {
		return Request{}, false, err
	}
	for _, first := range open {
		if first.Principal != r.Principal || first.Policy.Key() != r.Policy.Key() || ed.now.Sub(first.Start) >= repeatedWithin {
			continue
		}
		first = first.Clone()
		first.settle(ed.now)
		if first.repeats(r) {
			return first, true, nil
		}
	}
	return Request{}, false, nil
}

// repeats reports whether the request again asks for the same, and r is open.
func (r Request) repeats(again Request) bool {
	if r.Justification != again.Justification || len(r.VMs) != len(again.VMs) {
		return false
	}
	for _, v := range r.VMs {
		i := slices.IndexFunc(again.VMs, func(o RequestVM) bool { return o.ID.same(v.ID) })
		if i < 0 || len(again.VMs[i].Ports) != len(v.Ports) {
			return false
		}
		for _, p := range v.Ports {
			j := slices.IndexFunc(again.VMs[i].Ports, func(o RequestPort) bool { return o.Number == p.Number })
			if j < 0 || p.Status == Revoked || !p.Closed.IsZero() {
				return false
			}
			o := again.VMs[i].Ports[j]
			if !sameSources(p.Prefixes, o.Prefixes) || p.Length != o.Length || p.Length == 0 && o.End.Sub(p.End).Abs() > 5*time.Second {
				return false
			}
		}
	}
	return true
}

// sameSources reports whether two sources are the same set of addresses.
func sameSources(a, b Prefixes) bool {
	x, errX := a.sources()
	y, errY := b.sources()
	return errX == nil && errY == nil && slices.EqualFunc(x, y, func(a, b netip.Prefix) bool { return a == b })
}

// replace ends what the same person asked for before on the same port for the
// same source: the newer request says how long. Others' requests stand beside
// it, so that nobody ends a colleague's access by asking for their own. While
// r waits for approval it replaces only what waits as well.
func (ed *edit) replace(r *Request) error {
	for i, vm := range r.VMs {
		older, err := ed.open(vm.ID)
		if err != nil {
			return err
		}
		ports := r.VMs[i].Ports
		before := make([][]Term, len(ports))
		for _, o := range older {
			if o.Principal != r.Principal || o.ID >= r.ID || !o.replacedBy(vm.ID, ports) {
				continue
			}
			o = o.Clone()
			changed := o.settle(ed.now)
			for at, p := range o.eachPort() {
				n := slices.IndexFunc(ports, func(q RequestPort) bool { return q.Number == p.Number })
				if n < 0 || !at.same(vm.ID) || !p.replacedBy(ports[n]) {
					continue
				}
				if p.Status != Pending {
					before[n] = append(before[n], p.terms(ed.now)...)
				}
				p.end(NewerRequestInitiated, ed.now)
				ed.tell(ed.portLine("request.revoked", ActionInitiate, o, at, *p, "request "+r.ID+" took its place"))
				changed = true
			}
			if changed {
				if err := ed.putRequest(o); err != nil {
					return err
				}
			}
		}
		for n := range ports {
			if ports[n].Status != Initiating {
				continue
			}
			if err := ports[n].takeOver(before[n], ed.now); err != nil {
				return err
			}
		}
	}
	return nil
}

// replacedBy reports whether any of the ports of a newer request, on a machine,
// may take the place of one of r.
func (r Request) replacedBy(vm VMID, newer []RequestPort) bool {
	for _, v := range r.VMs {
		if v.ID.same(vm) && slices.ContainsFunc(v.Ports, func(p RequestPort) bool {
			return slices.ContainsFunc(newer, func(n RequestPort) bool { return n.Number == p.Number && p.replacedBy(n) })
		}) {
			return true
		}
	}
	return false
}

// replacedBy reports whether the port of a newer request by the same person
// takes the place of p, which has the same number on the same machine.
func (p RequestPort) replacedBy(newer RequestPort) bool {
	if p.Status == Revoked || newer.Status == Revoked || newer.Status == Pending && p.Status != Pending {
		return false
	}
	return sameSources(p.Prefixes, newer.Prefixes)
}

// sees reports whether the caller may read of a request: it is the caller's
// own, or under a policy or for a machine they may read. Of the machines in it
// only those are left.
func (c Caller) sees(r *Request) bool {
	if r.Principal == c.ID && c.ID != "" || c.May(ActionRead, r.Policy.group()) {
		return true
	}
	r.VMs = slices.DeleteFunc(r.VMs, func(v RequestVM) bool { return !c.May(ActionRead, v.ID.Scope()) })
	return len(r.VMs) > 0
}

// ListRequests lists requests for machines the caller may read, and the
// caller's own.
func (e *Engine) ListRequests(ctx context.Context, c Caller, f RequestFilter) (page []Request, next string, err error) {
	now := e.Now()
	f.Reader = c.reader()
	if f.Limit > 0 {
		f.Limit++ // one more tells whether there is more
	}
	err = e.Store.View(ctx, func(tx Tx) error {
		page, next = nil, ""
		for some := f; ; {
			list, err := tx.Requests(some)
			if err != nil {
				return err
			}
			for _, r := range list {
				some.After = r.ID
				r.settle(now)
				if f.Open && !r.Open() || !c.sees(&r) {
					continue
				}
				if f.Limit > 0 && len(page) == f.Limit-1 {
					next = page[len(page)-1].ID
					return nil
				}
				page = append(page, r)
			}
			if f.Limit == 0 || len(list) < f.Limit {
				return nil
			}
		}
	})
	return page, next, err
}

// GetRequest returns one request.
func (e *Engine) GetRequest(ctx context.Context, c Caller, id string) (r Request, err error) {
	err = e.Store.View(ctx, func(tx Tx) error {
		r, err = readRequest(tx, id, e.Now())
		return err
	})
	if err != nil {
		return Request{}, err
	}
	machine := r.VMs[0].ID
	if !c.sees(&r) {
		return Request{}, c.Must(ActionRead, machine.Scope())
	}
	return r, nil
}

// readRequest reads a request as it stands at now.
func readRequest(tx Tx, id string, now time.Time) (Request, error) {
	r, there, err := found(tx.Request(id))
	if err == nil && !there {
		err = Refuse(NotFound, "RequestNotFound", "There is no request '%s'.", clip(id))
	}
	r.settle(now)
	return r, err
}

// judgeWords refuses what is no sentence for the record.
func judgeWords(target, s string) error {
	switch {
	case len(s) > maxJustification:
		return badRequest(target, "The %s has %d bytes, the limit is %d.", target, len(s), maxJustification)
	case !utf8.ValidString(s):
		return badRequest(target, "The %s is not UTF-8 text.", target)
	}
	return nil
}

// Revoke closes a request's ports now. Its requestor may, and who has
// ActionRevoke at each of its machines. One that is over stays as it is.
func (e *Engine) Revoke(ctx context.Context, c Caller, id, reason string) (r Request, err error) {
	if err := judgeWords("reason", reason); err != nil {
		return Request{}, err
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		if r, err = readRequest(ed.tx, id, ed.now); err != nil {
			return err
		}
		ed.aboutRequest("request.revoked", ActionRevoke, r)
		if r.Principal != c.ID {
			for _, v := range r.VMs {
				if err := c.Must(ActionRevoke, v.ID.Scope()); err != nil {
					return err
				}
			}
		}
		var granted bool
		for vm, p := range r.eachPort() {
			if p.Status == Revoked {
				continue
			}
			granted = granted || p.Status != Pending
			p.end(UserRequested, ed.now)
			ed.tell(ed.portLine("request.revoked", ActionRevoke, r, vm, *p, reason))
		}
		return ed.put(r, granted)
	})
	return r, err
}

// aboutRequest is what the log says where a change to a request is refused.
func (ed *edit) aboutRequest(event string, a Action, r Request) {
	ed.about = ed.line(event, a, r.VMs[0].ID.Scope())
	ed.about.VM, ed.about.Request = r.VMs[0].ID.String(), r.ID
}

// Extend moves the end of a request's open ports to now + by, inside the
// policy's bounds, which count from now again. Sessions are not cut. Where the
// policy asks for approval, an extension is refused: ask anew. Only the
// requestor may, as long as they may still ask for access.
func (e *Engine) Extend(ctx context.Context, c Caller, id string, by time.Duration, reason string) (r Request, err error) {
	if err := judgeWords("reason", reason); err != nil {
		return Request{}, err
	}
	if by = by.Truncate(time.Second); by < shortestRequest {
		return Request{}, badRequest("duration", "An extension is for a second at least.")
	}
	err = e.edit(ctx, c, func(ed *edit) error {
		if r, err = readRequest(ed.tx, id, ed.now); err != nil {
			return err
		}
		ed.aboutRequest("request.initiated", ActionInitiate, r)
		for _, v := range r.VMs {
			if err := c.mayInitiate(v.ID, r.Policy); err != nil {
				return err
			}
		}
		if r.Principal != c.ID {
			return Refuse(Forbidden, "NotTheRequestor", "Only who asked for the request '%s' may extend it: ask for access of your own.", r.ID)
		}
		p, there, err := found(ed.tx.Policy(r.Policy))
		switch {
		case err != nil:
			return err
		case !there:
			return policyNotFound(r.Policy)
		case r.Approval != nil || p.Approval != nil:
			return Refuse(Conflict, "ApprovalNeeded", "The policy '%s' asks for approval: ask for access anew.", r.Policy)
		}
		var extended bool
		for vm, port := range r.eachPort() {
			// One that the agent closed before its time, in a lockdown, stays so.
			if port.Status == Revoked || !port.Closed.IsZero() {
				continue
			}
			extended = true
			if err := ed.supported(vm); err != nil {
				return err
			}
			if err := ed.extend(p, vm, port, by); err != nil {
				return err
			}
			ed.tell(ed.portLine("request.initiated", ActionInitiate, r, vm, *port, strings.TrimSpace("extended. "+reason)))
		}
		if !extended {
			return Refuse(Conflict, "RequestOver", "The request '%s' is over: ask for access anew.", r.ID)
		}
		return ed.put(r, true)
	})
	return r, err
}

// extend grants a port for another stretch of time.
func (ed *edit) extend(p Policy, vm VMID, port *RequestPort, by time.Duration) error {
	sources, err := port.Prefixes.sources()
	if err != nil {
		return err
	}
	_, b, err := p.judge(vm, askedPort{number: port.Number, prefixes: port.Prefixes, sources: sources, length: by}, ed.now)
	if err != nil {
		return err
	}
	before := port.terms(ed.now)
	port.Length, port.End = by, ed.now.Add(by)
	port.From, port.Until = window(ed.now, port.End, b.longest)
	if port.From.After(ed.now.Add(-policy.Skew)) {
		// One that has begun by every clock goes on under its id; this one has
		// not, and takes over from it.
		port.GrantID = ed.id()
	}
	return port.takeOver(before, ed.now)
}
