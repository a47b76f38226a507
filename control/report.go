package control

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Reported is what became of a report.
type Reported struct {
	Head      Head       // the newest line kept of the machine's record
	Refused   string     // why lines of it were not taken; empty: they were
	Documents []Document // as DocumentsFor
}

// Report takes what an agent says of itself and of the lines of its record. A
// report may come twice. Lines are kept only where they follow those that are
// kept already: a record that contradicts them is told of, and not taken.
//
// Documents of the types asked for that the machine has yet to get are read with
// it: where a whole fleet comes, another transaction for each agent is too much.
func (e *Engine) Report(ctx context.Context, id VMID, up uplink.Up, ask ...policy.Type) (Reported, error) {
	lines, err := chained(up.Lines)
	if err != nil {
		return Reported{}, err
	}
	var out Reported
	var idle, behind, guard bool
	// Most reports that bring no lines bring nothing new, and take no turn among
	// those who write. One with lines does, but where it comes twice.
	if len(lines) == 0 || len(ask) > 0 {
		err = e.Store.View(ctx, func(tx Tx) error {
			documents, err := e.documentsFor(tx, id, Versions(up.Have), ask)
			out.Documents = documents
			if err != nil || len(lines) > 0 {
				return err
			}
			r, err := e.receive(tx, id, up, lines)
			if err != nil {
				return err
			}
			out.Head, out.Refused, idle = r.Head, r.Refused, !r.changed
			return nil
		})
	}
	if err != nil || idle {
		return out, err
	}
	err = e.Store.Update(ctx, func(tx Tx) error {
		r, err := e.receive(tx, id, up, lines)
		if err != nil {
			return err
		}
		out.Head, out.Refused, behind, guard = r.Head, r.Refused, r.behind, r.guardBehind
		if !r.changed {
			return nil
		}
		return r.write(tx)
	})
	if err == nil && behind {
		e.catchUp(ctx, id, guard)
	}
	return out, err
}

// chained reads lines, which have to follow each other.
func chained(texts [][]byte) ([]uplink.Line, error) {
	var lines []uplink.Line
	for i, text := range texts {
		l, err := uplink.ParseLine(text)
		if err != nil {
			return nil, Refuse(Invalid, "InvalidRecord", "lines[%d]: %v.", i, err)
		}
		if i > 0 && (l.Seq != lines[i-1].Seq+1 || l.Prev != lines[i-1].Hash) {
			return nil, Refuse(Invalid, "InvalidRecord", "lines[%d], number %d of the record, does not follow number %d before it.", i, l.Seq, lines[i-1].Seq)
		}
		lines = append(lines, l)
	}
	return lines, nil
}

// received is what a report changes. Making it reads; write writes.
type received struct {
	Reported
	changed  bool
	vm       VM
	events   []AgentEvent
	requests map[string]*Request // to write
	activity []Activity

	behind, guardBehind bool // the host has newer documents than the store

	engine *Engine
	now    time.Time
	byID   map[string]*granted
}

// granted is where a grant stands in the requests of a machine. port is nil for
// one that another has taken over from.
type granted struct {
	request *Request
	port    *RequestPort
}

func (e *Engine) receive(tx Tx, id VMID, up uplink.Up, lines []uplink.Line) (*received, error) {
	r := &received{engine: e, now: e.Now().UTC(), requests: map[string]*Request{}}
	var err error
	if r.vm, err = tx.VM(id); errors.Is(err, ErrNotFound) {
		return nil, errCert // it was forgotten
	} else if err != nil {
		return nil, err
	}
	if r.vm.Agent == nil || r.vm.Agent.Revoked {
		return nil, errCert
	}
	fresh, fork, err := r.fresh(tx, lines, Head(up.Head))
	if err != nil {
		return nil, err
	}
	if fork != "" && r.vm.Agent.Anew {
		r.another()
		if fresh, fork, err = r.fresh(tx, lines, Head(up.Head)); err != nil {
			return nil, err
		}
	}
	if up.Head.Seq > 0 && r.vm.Agent.Anew {
		r.vm.Agent.Anew, r.changed = false, true
	}
	if fork != "" {
		r.forked(fork)
		fresh = nil
	}
	others, opened := r.status(up)
	if others || len(fresh) > 0 {
		if err := r.overtaken(tx, r.vm.Agent.Versions, fresh); err != nil {
			return nil, err
		}
	}
	if len(fresh) > 0 || opened {
		if err := r.load(tx, fresh, opened); err != nil {
			return nil, err
		}
	}
	for _, l := range fresh {
		r.take(l)
	}
	if opened {
		for _, grant := range up.Status.Open {
			r.opened(grant, time.Time{})
		}
	}
	r.Head = r.vm.Agent.Head
	return r, nil
}

// fresh picks the lines that follow what is kept. fork says how the record
// contradicts that, if it does. Lines that begin too far ahead are left: the
// agent's fetcher begins anew behind the head it is told.
func (r *received) fresh(tx Tx, lines []uplink.Line, head Head) (fresh []uplink.Line, fork string, err error) {
	kept := r.vm.Agent.Head
	if head.Seq > 0 && head.Seq <= kept.Seq {
		// Older than what is kept may be a late report; other than it is not.
		lines = append(slices.Clip(lines), uplink.Line{Seq: head.Seq, Hash: head.Hash})
	}
	known := map[uint64]string{kept.Seq: kept.Hash}
	first := kept.Seq
	for _, l := range lines {
		first = min(first, l.Seq)
	}
	if first > 0 && first < kept.Seq {
		earlier, err := tx.AgentEvents(r.record(), first-1, int(min(kept.Seq-first+1, 2000)))
		if err != nil {
			return nil, "", err
		}
		for _, k := range earlier {
			known[k.Seq] = k.Hash
		}
	}
	for _, l := range lines {
		switch hash, ok := known[l.Seq]; {
		case l.Seq <= kept.Seq && ok && hash != l.Hash:
			return nil, fmt.Sprintf("line %d is %s, and was %s when it was first sent", l.Seq, l.Hash, hash), nil
		case l.Seq <= kept.Seq:
		case l.Seq == kept.Seq+1 && l.Prev == cmp.Or(kept.Hash, uplink.Genesis):
			fresh = append(fresh, l)
			kept = Head(l.Head())
		case l.Seq == kept.Seq+1:
			return nil, fmt.Sprintf("line %d follows %s, and line %d was %s when it was first sent", l.Seq, l.Prev, kept.Seq, kept.Hash), nil
		}
	}
	return fresh, "", nil
}

// record is which of the machine's records the report is of.
func (r *received) record() Record { return Record{r.vm.ID, r.vm.Agent.Epoch} }

// another begins another record. A host that was installed again has one that
// contradicts the one before; that is no alarm once somebody with a join token
// has let the host in again, and what was kept stays.
func (r *received) another() {
	r.vm.Agent.Epoch++
	r.vm.Agent.Anew, r.vm.Agent.Head, r.changed = false, Head{}, true
	r.activity = append(r.activity, Activity{Time: r.now, Event: "audit.begun", Status: "Succeeded", Scope: r.vm.ID.Scope(), VM: r.vm.ID.String(),
		Reason: fmt.Sprintf("record %d, after the host enrolled again", r.vm.Agent.Epoch+1)})
}

// forked tells of a record that contradicts what is kept of it, once.
func (r *received) forked(why string) {
	r.Refused = "the record on this host is not the one that was sent before: " + why
	if r.vm.Agent.Forked {
		return
	}
	r.vm.Agent.Forked, r.vm.Agent.Note, r.changed = true, r.Refused, true
	r.activity = append(r.activity, Activity{Time: r.now, Event: "audit.forked", Status: "Failed", Scope: r.vm.ID.Scope(), VM: r.vm.ID.String(), Reason: why})
	r.engine.Log.Error("an agent's record was changed after it was sent", "vm", r.vm.ID, "why", why)
}

// status takes over what the agent is and has. It reports whether it has other
// documents than it said last, and whether other grants are open: what was open
// already, its requests know.
func (r *received) status(up uplink.Up) (others, opened bool) {
	a, was := r.vm.Agent, *r.vm.Agent
	if up.Status != nil {
		a.Mode, a.Versions, a.Open = up.Status.Mode, Versions(up.Have), digestOf(up.Status.Open)
		a.Install, a.Version = cmp.Or(up.Status.Install, a.Install), cmp.Or(up.Status.Version, a.Version)
		if !a.Forked {
			a.Note = note(up)
		}
	}
	r.changed = r.changed || *a != was
	return a.Versions != was.Versions, a.Open != "" && a.Open != was.Open
}

// digestOf stands for a set of grants, by their ids; for none it is empty.
func digestOf(grants []string) string {
	if len(grants) == 0 {
		return ""
	}
	sum := sha256.Sum256([]byte(strings.Join(slices.Sorted(slices.Values(grants)), "\n")))
	return hex.EncodeToString(sum[:16])
}

// note is what is wrong on a host, for people.
func note(up uplink.Up) string {
	for _, h := range up.Held {
		if h.Refusal != "" {
			return fmt.Sprintf("%s version %d is refused: %s", uplink.File(h.Type), h.Version, h.Refusal)
		}
	}
	return cmp.Or(up.Status.Problem, up.Status.Blocked)
}

// Bounds of how far back requests are looked through for the grant of a line.
const (
	lookedBack = 1000
	lookedOnce = 50
)

// load reads the requests that grants in the report may belong to: those that are
// open, and where a line is about another one, the last ones before.
func (r *received) load(tx Tx, lines []uplink.Line, open bool) error {
	of := map[string]bool{}
	for _, l := range lines {
		if l.Grant != "" {
			of[l.Grant] = true
		}
	}
	if len(of) == 0 && !open {
		return nil
	}
	list, err := tx.Requests(RequestFilter{VM: &r.vm.ID, Newest: true, Open: true})
	if err != nil {
		return err
	}
	r.byID = map[string]*granted{}
	r.index(list)
	unknown := func() bool {
		for grant := range of {
			if g := r.byID[grant]; g == nil || g.port == nil { // its own request is older than the one that took over
				return true
			}
		}
		return false
	}
	past := RequestFilter{VM: &r.vm.ID, Newest: true, Limit: lookedOnce}
	for range lookedBack / lookedOnce {
		if !unknown() {
			return nil
		}
		if list, err = tx.Requests(past); err != nil {
			return err
		}
		r.index(list)
		if len(list) < lookedOnce {
			return nil
		}
		past.After = list[len(list)-1].ID
	}
	return nil
}

// index notes the grants of requests. Of one that was read twice the second
// copy is the one that counts.
func (r *received) index(list []Request) {
	for i := range list {
		q := &list[i]
		for v := range q.VMs {
			if !q.VMs[v].ID.same(r.vm.ID) {
				continue
			}
			for p := range q.VMs[v].Ports {
				port := &q.VMs[v].Ports[p]
				if port.GrantID != "" {
					r.byID[port.GrantID] = &granted{q, port}
				}
				for _, t := range port.Earlier {
					if r.byID[t.ID] == nil {
						r.byID[t.ID] = &granted{request: q}
					}
				}
			}
		}
	}
}

// told are the events of a record that the activity log has too. Those left
// out say what others say already, or come with every list of grants.
var told = map[string]bool{
	"agent.started": true, "agent.stopped": true, "install.created": true, "install.renewed": true,
	"guard.armed": true, "guard.confirmed": true, "guard.reverted": true, "guard.disarmed": true, "guard.lockdown": true, "guard.drift": true, "guard.repaired": true,
	"document.delivered": true, "document.refused": true,
	"grant.opened": true, "grant.refused": true, "grant.expired": true, "grant.revoked": true, "grant.login": true, "grant.used": true, "connection.denied": true,
}

// take keeps a line and draws from it what it says of a request.
func (r *received) take(l uplink.Line) {
	r.changed = true
	r.events = append(r.events, AgentEvent{Seq: l.Seq, Prev: l.Prev, Hash: l.Hash, Time: l.Time, Line: l.Text})
	r.vm.Agent.Head = Head(l.Head())
	g := r.byID[l.Grant]
	switch l.Event {
	case "grant.opened":
		r.opened(l.Grant, l.Time)
	case "grant.refused":
		if g != nil && g.port != nil {
			g.port.Refused = cmp.Or(l.Message, l.Code)
			r.touch(g)
		}
	case "grant.expired", "grant.revoked":
		if g != nil && g.port != nil && g.port.Closed.IsZero() {
			g.port.Closed = l.Time
			r.touch(g)
		}
	}
	if !told[l.Event] && !(l.Event == "document.admitted" && l.Document != "grants") {
		return
	}
	a := Activity{Time: l.Time, Event: l.Event, Status: "Succeeded", Actor: l.Requestor, Scope: r.vm.ID.Scope(), VM: r.vm.ID.String(),
		Grant: l.Grant, Port: l.Port, Source: l.Source, End: l.End, Code: l.Code, Reason: cmp.Or(l.Reason, l.Message)}
	switch {
	case strings.HasSuffix(l.Event, ".refused"):
		a.Status, a.Reason = "Failed", cmp.Or(l.Message, l.Reason)
	case l.Event == "grant.used", l.Event == "grant.login": // what it was used for, not what it was asked for
		a.Reason = cmp.Or(l.Message, l.Reason)
	}
	if g != nil {
		a.Request, a.Actor, a.Principal = g.request.ID, g.request.Requestor, g.request.Principal
	}
	r.activity = append(r.activity, a)
}

// opened notes that a port is open: since at, or for all the agent says, since
// some time. Only this takes a request from Initiating to Initiated.
func (r *received) opened(grant string, at time.Time) {
	g := r.byID[grant]
	if g == nil || g.port == nil {
		return
	}
	if at.IsZero() || at.After(r.now) { // a host's clock may be ahead
		at = r.now
	}
	if g.port.Opened.IsZero() {
		g.port.Opened, g.port.Refused = at, ""
		if at.After(r.vm.LastAccess) {
			r.vm.LastAccess, r.vm.LastUser = at, g.request.Requestor
		}
		r.touch(g)
	}
	if g.port.Status == Initiating {
		g.port.Status = Initiated
		r.touch(g)
	}
	// It ended on a host that could not be reached, was extended meanwhile, and
	// is open again.
	if g.port.Status != Revoked && !g.port.Closed.IsZero() && !at.Before(g.port.Closed) {
		g.port.Closed = time.Time{}
		r.touch(g)
	}
}

func (r *received) touch(g *granted) {
	r.changed = true
	r.requests[g.request.ID] = g.request
}

func (r *received) write(tx Tx) error {
	err := tx.PutVM(r.vm)
	for _, q := range r.requests {
		err = errors.Join(err, tx.PutRequest(*q))
	}
	if len(r.events) > 0 {
		err = errors.Join(err, tx.AppendAgentEvents(r.record(), r.events))
	}
	if len(r.activity) > 0 {
		err = errors.Join(err, tx.AppendActivity(r.activity...))
	}
	return err
}
