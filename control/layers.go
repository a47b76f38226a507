package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// What RunLayers allows itself.
const (
	layerCall    = 45 * time.Second // for one call to the layer
	layerWrite   = 45 * time.Second // for writing down what came of it
	layerLease   = 2 * time.Minute  // for which a replica has a request to itself: more than both
	layerPause   = 200 * time.Millisecond
	layerSweep   = 10 * time.Minute // between looks at requests that ended while nobody ran
	layerHistory = 72 * time.Hour   // how far back such a look goes
	layerBatch   = 8                // requests taken on at once
	layerRetry   = 5 * time.Second  // before the second try; doubles
	layerPatient = 5 * time.Minute  // between tries at most, and between looks at what is open
	layerAfter   = time.Hour        // after its end a port that was not seen to close is looked at no more
	layerUnknown = 2 * time.Minute  // how long a layer may take to list what it agreed to
)

// The events of a layer outside.
const (
	eventLayerInitiated = "layer.initiated" // it agreed
	eventLayerOpened    = "layer.opened"    // it says the port is open
	eventLayerClosed    = "layer.closed"    // it says the port is closed
	eventLayerFailed    = "layer.failed"    // it could not be asked or looked at, or refused
)

// errand is what there is to do about one port at the layer outside.
type errand int

const (
	nothing errand = iota // and nothing to come unless the request changes
	settle                // write down what is known without asking
	ask                   // pass the request on
	look                  // see where it stands
)

// layerErrand says what is to be done about the layer of a port, and when: at
// once, if the time is not after now.
func layerErrand(p RequestPort, now time.Time) (errand, time.Time) {
	l := p.Outer
	if l == nil || p.Status == Pending {
		return nothing, time.Time{}
	}
	if noted := layerNoted(p, now); noted != *l {
		return settle, now
	}
	open := p.Status != Revoked
	switch {
	// An extension asks again, also for what somebody closed there.
	case open && p.End.After(l.Taken) && p.End.After(now):
		return ask, l.Next
	case l.Status == Revoked || l.Until.IsZero() || now.After(l.Until.Add(layerAfter)):
		return nothing, time.Time{}
	}
	return look, l.Next
}

// layerNoted is the layer of a port with what follows from the port itself:
// what was never asked for is not open there, and what is over here may go on
// there, since a layer has no call that ends a request early.
func layerNoted(p RequestPort, now time.Time) Layer {
	l := *p.Outer
	l.Note = ""
	switch {
	case p.Status != Revoked || l.Status == Revoked:
	case l.Until.IsZero():
		l.Status, l.Reason = Revoked, p.Reason
	case l.Until.After(now):
		here := "closed on the machine"
		if p.Reason == NewerRequestInitiated {
			here = "a newer request took its place"
		}
		l.Note = fmt.Sprintf("%s; %s cannot close it before its end: it may be open there until %s", here, l.Name, policy.FormatTime(l.Until))
	}
	return l
}

// layerBackoff is the pause after so many tries in vain.
func layerBackoff(tries int) time.Duration {
	return min(layerRetry<<min(max(tries-1, 0), 10), layerPatient)
}

// RunLayers passes requests on to the layer outside, and looks after them
// there, until ctx ends. It works from what the store has: a request is passed
// on after a crash or an outage as well, and any number of replicas may run
// it. What the layer does or fails to do shows in the request and changes
// nothing on the machine.
func (e *Engine) RunLayers(ctx context.Context) error {
	if e.Outer == nil {
		return nil
	}
	changed := e.Store.Changed(ctx)
	w := layerWatch{e: e, unsettled: map[string]bool{}}
	for ctx.Err() == nil {
		wait := layerSweep
		switch worked, next, err := w.round(ctx); {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			e.Log.Warn("cannot work for the layer outside", "layer", e.Outer.Name(), "error", err)
			wait = layerRetry
		case worked:
			continue
		case !next.IsZero():
			wait = min(wait, next.Sub(e.Now()))
		}
		// Changes come by the thousand where agents report: a round for each
		// would read all open requests as often.
		if !pause(ctx, layerPause) {
			return nil
		}
		timer := time.NewTimer(max(wait-layerPause, 0))
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// round does what is due now, or a part of it: then worked is true, and the
// next round should follow at once. Else next is when something will be.
func (w *layerWatch) round(ctx context.Context) (worked bool, next time.Time, err error) {
	ids, next, err := w.due(ctx)
	if err != nil || len(ids) == 0 {
		return false, next, err
	}
	return true, time.Time{}, w.work(ctx, ids)
}

// pause waits, and reports whether it came to the end of it.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// layerWatch is what one replica remembers between rounds.
type layerWatch struct {
	e *Engine
	// unsettled are requests that may need more at the layer. They leave the
	// list of open requests when the machine is done with them, which can be
	// long before the layer is.
	unsettled map[string]bool
	swept     time.Time
}

// due returns the ids of requests with something to do now, the oldest first,
// and when the next one will have.
func (w *layerWatch) due(ctx context.Context) (ids []string, next time.Time, err error) {
	now := w.e.Now()
	filters := []RequestFilter{{Open: true}}
	if w.swept.IsZero() || now.Sub(w.swept) >= layerSweep {
		filters = append(filters, RequestFilter{Since: now.Add(-layerHistory)})
	}
	seen := map[string]bool{}
	judge := func(r Request) {
		seen[r.ID] = true
		delete(w.unsettled, r.ID)
		ready := false
		for _, p := range r.ports() {
			what, at := layerErrand(*p, now)
			switch {
			case what == nothing:
				continue
			case !at.After(now):
				ready = true
			case next.IsZero() || at.Before(next):
				next = at
			}
			w.unsettled[r.ID] = true
		}
		if ready {
			ids = append(ids, r.ID)
		}
	}
	err = w.e.Store.View(ctx, func(tx Tx) error {
		for _, f := range filters {
			f.Limit = 500
			for {
				page, err := tx.Requests(f)
				if err != nil {
					return err
				}
				for _, r := range page {
					if !seen[r.ID] {
						judge(r)
					}
				}
				if len(page) < f.Limit {
					break
				}
				f.After = page[len(page)-1].ID
			}
		}
		for _, id := range slices.Collect(maps.Keys(w.unsettled)) {
			if seen[id] {
				continue
			}
			r, err := tx.Request(id)
			if errors.Is(err, ErrNotFound) {
				delete(w.unsettled, id)
				continue
			} else if err != nil {
				return err
			}
			judge(r)
		}
		return nil
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	if len(filters) > 1 {
		w.swept = now
	}
	slices.Sort(ids)
	return ids[:min(len(ids), layerBatch)], next, nil
}

// portPlace is where a port stands in a request.
type portPlace struct{ machine, index int }

// ports goes through the ports of r, machine by machine.
func (r *Request) ports() iter.Seq2[portPlace, *RequestPort] {
	return func(yield func(portPlace, *RequestPort) bool) {
		for i := range r.VMs {
			for j := range r.VMs[i].Ports {
				if !yield(portPlace{i, j}, &r.VMs[i].Ports[j]) {
					return
				}
			}
		}
	}
}

// layerTask is one call to the layer: some ports of a request.
type layerTask struct {
	what    errand
	request Request       // with those ports only
	taken   []takenOnPort // the same ports, in order
}

// takenOnPort is a port as it was when it was taken on.
type takenOnPort struct {
	portPlace
	port   RequestPort
	before time.Time // its layer's Until
}

// work takes requests on, calls the layer for them and writes down what came
// of it. An error is one of taking them on.
func (w *layerWatch) work(ctx context.Context, ids []string) error {
	var tasks []layerTask
	err := w.e.Store.Update(ctx, func(tx Tx) error {
		tasks = nil
		now := w.e.Now()
		for _, id := range ids {
			r, err := tx.Request(id)
			if errors.Is(err, ErrNotFound) {
				continue
			} else if err != nil {
				return err
			}
			mine, changed := takeOn(&r, now)
			tasks = append(tasks, mine...)
			if changed {
				if err := tx.PutRequest(r); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	for _, t := range tasks {
		running.Go(func() { w.run(ctx, t) })
	}
	running.Wait()
	return nil
}

// takeOn marks what is due of r as being worked on, and returns it. What needs
// no call is done. What is asked for counts as perhaps open from here on: the
// answer may never come to be written down.
func takeOn(r *Request, now time.Time) (tasks []layerTask, changed bool) {
	asks, looks := layerTask{what: ask}, layerTask{what: look}
	for at, p := range r.ports() {
		what, when := layerErrand(*p, now)
		if what == nothing || when.After(now) {
			continue
		}
		changed = true
		l := p.Outer
		if what == settle {
			*l = layerNoted(*p, now)
			continue
		}
		l.Next = now.Add(layerLease)
		mine := takenOnPort{at, *p, l.Until}
		if what == look {
			looks.taken = append(looks.taken, mine)
			continue
		}
		asks.taken = append(asks.taken, mine)
		l.Until = later(l.Until, p.End)
	}
	for _, t := range []layerTask{asks, looks} {
		if len(t.taken) > 0 {
			t.request = r.only(t.taken)
			tasks = append(tasks, t)
		}
	}
	return tasks, changed
}

// only is r with these ports and no others, and nothing shared with it that
// changes.
func (r *Request) only(ports []takenOnPort) Request {
	part := *r
	part.VMs = nil
	for i, p := range ports {
		if i == 0 || ports[i-1].machine != p.machine {
			part.VMs = append(part.VMs, RequestVM{ID: r.VMs[p.machine].ID})
		}
		port, layer := p.port, *p.port.Outer
		port.Outer = &layer
		vm := &part.VMs[len(part.VMs)-1]
		vm.Ports = append(vm.Ports, port)
	}
	return part
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// run makes the call and writes down what came of it.
func (w *layerWatch) run(ctx context.Context, t layerTask) {
	call, cancel := context.WithTimeout(ctx, layerCall)
	defer cancel()
	question := w.e.Outer.Look
	if t.what == ask {
		question = w.e.Outer.Initiate
	}
	layers, failed := question(call, t.request)
	if failed == nil && len(layers) != len(t.taken) {
		failed = fmt.Errorf("%d answers for %d ports", len(layers), len(t.taken))
	}
	// What the layer did is worth writing down even while we stop, and with the
	// database away for a moment: as long as the request is ours.
	kept, cancelKept := context.WithTimeout(context.WithoutCancel(ctx), layerWrite)
	defer cancelKept()
	for {
		err := w.e.Store.Update(kept, func(tx Tx) error { return w.write(tx, t, layers, failed) })
		if err == nil {
			return
		}
		w.e.Log.Warn("cannot write down what the layer outside said", "layer", w.e.Outer.Name(), "request", t.request.ID, "error", err)
		if ctx.Err() != nil || !pause(kept, time.Second) {
			return // the lease ends, and somebody asks again
		}
	}
}

// write puts the outcome of a task into the request as it is by now.
func (w *layerWatch) write(tx Tx, t layerTask, layers []*Layer, failed error) error {
	r, err := tx.Request(t.request.ID)
	if err != nil {
		return err
	}
	now := w.e.Now()
	var lines []Activity
	ports := maps.Collect(r.ports())
	for i, mine := range t.taken {
		port := ports[mine.portPlace]
		if port == nil || port.Outer == nil {
			continue
		}
		a := answer{failed: failed}
		if failed == nil {
			a.said = layers[i]
		}
		l, event := *port.Outer, ""
		if t.what == ask {
			event = l.asked(a, mine, now)
		} else {
			event = l.looked(a, now)
		}
		port.Outer = &l
		if t.what == ask && a.uncovered() && l.Until.IsZero() {
			port.Outer = nil
		}
		if event != "" {
			lines = append(lines, layerActivity(r, mine, l, event, now))
		}
	}
	if err := tx.PutRequest(r); err != nil {
		return err
	}
	return tx.AppendActivity(lines...)
}

// answer is what the layer said of one port.
type answer struct {
	said   *Layer
	failed error
}

// uncovered reports that the layer has nothing to do with the port.
func (a answer) uncovered() bool { return a.said == nil && a.failed == nil }

// wrong is why the port was not taken or not found out about; empty: it was.
func (a answer) wrong() string {
	switch {
	case a.failed != nil:
		return a.failed.Error()
	case a.said != nil:
		return a.said.Error
	}
	return ""
}

// fail notes a failure, and returns the event of one that is news.
func (l *Layer) fail(why string, now time.Time) (event string) {
	if why != l.Error {
		event = eventLayerFailed
	}
	l.Error = why
	l.Tries++
	l.Next = now.Add(layerBackoff(l.Tries))
	return event
}

// asked notes what came of asking for a port. It returns the event, if it is
// worth one.
func (l *Layer) asked(a answer, mine takenOnPort, now time.Time) (event string) {
	why := a.wrong()
	if a.uncovered() && !mine.before.IsZero() {
		why = l.Name + " does not cover this port any more"
	}
	if a.uncovered() || a.failed != nil || (why != "" && a.said.Until.IsZero()) {
		l.Until = mine.before // this asking opened nothing, for sure
	}
	switch {
	case why != "":
		return l.fail(why, now)
	case a.uncovered():
		return ""
	}
	l.Status, l.Reason = cmp.Or(a.said.Status, Initiating), a.said.Reason
	l.Error, l.Tries = "", 0
	l.Taken, l.Until = mine.port.End, later(mine.before, mine.port.End)
	l.Looked, l.Next = now, now.Add(layerRetry)
	return eventLayerInitiated
}

// looked notes what came of looking at a port. It returns the event, if it is
// worth one.
func (l *Layer) looked(a answer, now time.Time) (event string) {
	was := l.Status
	switch why := a.wrong(); {
	case why != "":
		event = l.fail(why, now)
	case a.uncovered() && now.Sub(l.Looked) < layerUnknown:
		l.Tries++
		l.Next = now.Add(layerBackoff(l.Tries))
	case a.uncovered():
		l.Status, l.Reason = "", ""
		event = l.fail(l.Name+" does not list this request", now)
	case a.said.Status != Revoked && now.Sub(l.Until) > layerUnknown:
		l.Status, l.Reason, l.Looked = a.said.Status, a.said.Reason, now
		event = l.fail(l.Name+" says it is not closed, though its end has passed", now)
	default:
		l.Status, l.Reason, l.Looked, l.Error = a.said.Status, a.said.Reason, now, ""
		if l.Status == Initiated && now.Before(l.Until) {
			l.Tries, l.Next = 0, now.Add(layerPatient)
			break
		}
		l.Tries++ // not open yet, or not closed yet
		l.Next = now.Add(layerBackoff(l.Tries))
	}
	// The end is a moment worth a look of its own.
	if end := l.Until.Add(layerRetry); now.Before(end) && l.Next.After(end) {
		l.Next = end
	}
	switch {
	case event == "" && l.Status == Initiated && was != Initiated:
		return eventLayerOpened
	case event == "" && l.Status == Revoked:
		return eventLayerClosed
	}
	return event
}

// layerActivity is the line of the activity log about the layer l of a port.
func layerActivity(r Request, mine takenOnPort, l Layer, event string, now time.Time) Activity {
	vm := r.VMs[mine.machine].ID
	line := Activity{
		Time: now, Event: event, Operation: string(ActionInitiate), Status: "Succeeded",
		Scope: vm.Scope(), VM: vm.String(), Request: r.ID, Grant: mine.port.GrantID,
		Port: mine.port.Number, Source: strings.Join(mine.port.All(), ","), End: mine.port.End, Reason: l.Name,
	}
	switch event {
	case eventLayerFailed:
		line.Status, line.Reason = "Failed", l.Name+": "+l.Error
	case eventLayerClosed:
		line.Reason = strings.TrimSuffix(l.Name+": "+string(l.Reason), ": ")
	}
	return line
}
