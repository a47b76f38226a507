package control

import (
	"errors"
	"strings"
	"testing"
	"time"
)

var midday = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

func at(minutes float64) time.Time { return midday.Add(time.Duration(minutes * float64(time.Minute))) }

func TestLayerErrand(t *testing.T) {
	fresh := Layer{Name: "azure", Status: Initiating}
	taken := Layer{Name: "azure", Status: Initiating, Taken: at(60), Until: at(60), Next: at(1)}
	with := func(l Layer, change func(*Layer)) *Layer { change(&l); return &l }
	for name, test := range map[string]struct {
		port RequestPort
		want errand
		when time.Time
	}{
		"no layer":               {RequestPort{Status: Initiating, End: at(60)}, nothing, time.Time{}},
		"waits for approval":     {RequestPort{Status: Pending, End: at(60), Outer: &fresh}, nothing, time.Time{}},
		"just made":              {RequestPort{Status: Initiating, End: at(60), Outer: &fresh}, ask, time.Time{}},
		"open on the machine":    {RequestPort{Status: Initiated, End: at(60), Outer: &fresh}, ask, time.Time{}},
		"another is at it":       {RequestPort{Status: Initiating, End: at(60), Outer: with(fresh, func(l *Layer) { l.Next = at(2) })}, ask, at(2)},
		"over before it began":   {RequestPort{Status: Initiating, End: at(0), Outer: &fresh}, nothing, time.Time{}},
		"agreed":                 {RequestPort{Status: Initiating, End: at(60), Outer: &taken}, look, at(1)},
		"extended":               {RequestPort{Status: Initiated, End: at(90), Outer: &taken}, ask, at(1)},
		"closed there":           {RequestPort{Status: Initiated, End: at(60), Outer: with(taken, func(l *Layer) { l.Status = Revoked })}, nothing, time.Time{}},
		"closed there, extended": {RequestPort{Status: Initiated, End: at(90), Outer: with(taken, func(l *Layer) { l.Status = Revoked })}, ask, at(1)},
		"revoked before asked":   {RequestPort{Status: Revoked, Reason: UserRequested, End: at(60), Outer: &fresh}, settle, at(0)},
		"revoked":                {RequestPort{Status: Revoked, Reason: UserRequested, End: at(60), Outer: &taken}, settle, at(0)},
		"revoked, noted": {RequestPort{Status: Revoked, Reason: UserRequested, End: at(60), Outer: with(taken, func(l *Layer) {
			l.Note = "closed on the machine; azure cannot close it before its end: it may be open there until 2026-11-27T13:00:00Z"
		})}, look, at(1)},
		"revoked, and over": {RequestPort{Status: Revoked, Reason: UserRequested, End: at(60), Outer: with(taken, func(l *Layer) { l.Until, l.Note = at(-1), "old" })}, settle, at(0)},
		"expired":           {RequestPort{Status: Revoked, Reason: Expired, End: at(-1), Outer: with(taken, func(l *Layer) { l.Until, l.Taken = at(-1), at(-1) })}, look, at(1)},
		"expired long ago":  {RequestPort{Status: Revoked, Reason: Expired, End: at(-61), Outer: with(taken, func(l *Layer) { l.Until, l.Taken = at(-61), at(-61) })}, nothing, time.Time{}},
	} {
		if got, when := layerErrand(test.port, midday); got != test.want || !when.Equal(test.when) {
			t.Errorf("%s: %d at %v, expected %d at %v", name, got, when, test.want, test.when)
		}
	}
}

// Settling does not go on for ever.
func TestLayerSettles(t *testing.T) {
	for _, reason := range []StatusReason{UserRequested, Expired, NewerRequestInitiated, Denied} {
		for _, until := range []time.Time{{}, at(-5), at(5)} {
			p := RequestPort{Status: Revoked, Reason: reason, End: at(5), Outer: &Layer{Name: "azure", Status: Initiating, Until: until, Note: "old"}}
			noted := layerNoted(p, midday)
			p.Outer = &noted
			if what, _ := layerErrand(p, midday); what == settle {
				t.Errorf("%s until %v: still to be settled", reason, until)
			}
			if until.IsZero() != (noted.Status == Revoked) {
				t.Errorf("%s until %v: %+v", reason, until, noted)
			}
			if newer := strings.HasPrefix(noted.Note, "a newer request"); newer != (reason == NewerRequestInitiated && until.Equal(at(5))) {
				t.Errorf("%s until %v: note %q", reason, until, noted.Note)
			}
			if says := strings.Contains(noted.Note, "may be open there until 2026-11-27T12:05:00Z"); says != until.Equal(at(5)) {
				t.Errorf("%s until %v: note %q", reason, until, noted.Note)
			}
		}
	}
}

func TestLayerBackoff(t *testing.T) {
	last := time.Duration(0)
	for tries := range 100 {
		d := layerBackoff(tries)
		if d < last || d < layerRetry || d > layerPatient {
			t.Fatalf("after %d tries %v, before that %v", tries, d, last)
		}
		last = d
	}
	if last != layerPatient {
		t.Errorf("%v in the end", last)
	}
}

func TestLayerAsked(t *testing.T) {
	mine := takenOnPort{port: RequestPort{Number: 22, End: at(60)}}
	extension := takenOnPort{port: RequestPort{Number: 22, End: at(60)}, before: at(30)}
	taken := Layer{Name: "azure", Status: Initiating, Until: at(60), Next: at(2)} // as takeOn leaves it
	for name, test := range map[string]struct {
		from  Layer
		a     answer
		mine  takenOnPort
		event string
		check func(Layer) bool
	}{
		"agreed": {taken, answer{said: &Layer{Status: Initiating, Until: at(60)}}, mine, eventLayerInitiated,
			func(l Layer) bool {
				return l.Status == Initiating && l.Error == "" && l.Taken.Equal(at(60)) && l.Until.Equal(at(60)) && l.Next.Equal(midday.Add(layerRetry))
			}},
		"agreed at last": {Layer{Name: "azure", Status: Initiating, Error: "away", Tries: 7, Until: at(60)}, answer{said: &Layer{Until: at(60)}}, mine, eventLayerInitiated,
			func(l Layer) bool { return l.Status == Initiating && l.Error == "" && l.Tries == 0 }},
		"not asked": {taken, answer{failed: errors.New("away")}, mine, eventLayerFailed,
			func(l Layer) bool {
				return l.Error == "away" && l.Until.IsZero() && l.Taken.IsZero() && l.Tries == 1 && l.Next.After(midday)
			}},
		"not asked again": {Layer{Name: "azure", Status: Initiating, Error: "away", Tries: 1, Until: at(60)}, answer{failed: errors.New("away")}, mine, "",
			func(l Layer) bool { return l.Error == "away" && l.Tries == 2 && l.Next.Equal(midday.Add(2*layerRetry)) }},
		"refused": {taken, answer{said: &Layer{Error: "not a subset"}}, mine, eventLayerFailed,
			func(l Layer) bool { return l.Error == "not a subset" && l.Until.IsZero() }},
		"unsure": {taken, answer{said: &Layer{Error: "gateway", Until: at(60)}}, mine, eventLayerFailed,
			func(l Layer) bool { return l.Error == "gateway" && l.Until.Equal(at(60)) && l.Taken.IsZero() }},
		"not covered": {taken, answer{}, mine, "", func(l Layer) bool { return l.Until.IsZero() && l.Error == "" }},
		"extension not taken": {Layer{Name: "azure", Status: Initiated, Taken: at(30), Until: at(60)}, answer{said: &Layer{Error: "too long"}}, extension, eventLayerFailed,
			func(l Layer) bool {
				return l.Status == Initiated && l.Until.Equal(at(30)) && l.Taken.Equal(at(30)) && l.Error == "too long"
			}},
		"extension not covered": {Layer{Name: "azure", Status: Initiated, Taken: at(30), Until: at(60)}, answer{}, extension, eventLayerFailed,
			func(l Layer) bool { return l.Until.Equal(at(30)) && strings.Contains(l.Error, "not cover") }},
		"an unsure one before": {Layer{Name: "azure", Status: Initiating, Until: at(60)}, answer{said: &Layer{Error: "conflict"}}, takenOnPort{port: mine.port, before: at(60)}, eventLayerFailed,
			func(l Layer) bool { return l.Until.Equal(at(60)) }},
	} {
		l := test.from
		if event := l.asked(test.a, test.mine, midday); event != test.event || !test.check(l) {
			t.Errorf("%s: %q and %+v", name, event, l)
		}
	}
}

func TestLayerLooked(t *testing.T) {
	open := Layer{Name: "azure", Status: Initiating, Taken: at(60), Until: at(60), Looked: at(-1), Next: at(2)}
	with := func(change func(*Layer)) Layer { l := open; change(&l); return l }
	for name, test := range map[string]struct {
		from  Layer
		a     answer
		event string
		check func(Layer) bool
	}{
		"on its way": {open, answer{said: &Layer{Status: Initiating}}, "", func(l Layer) bool {
			return l.Status == Initiating && l.Looked.Equal(midday) && l.Next.Equal(midday.Add(layerRetry))
		}},
		"open":       {open, answer{said: &Layer{Status: Initiated, Reason: UserRequested}}, eventLayerOpened, func(l Layer) bool { return l.Status == Initiated && l.Next.Equal(midday.Add(layerPatient)) }},
		"still open": {with(func(l *Layer) { l.Status = Initiated }), answer{said: &Layer{Status: Initiated}}, "", func(l Layer) bool { return l.Status == Initiated }},
		"its end is near": {with(func(l *Layer) { l.Until = at(1) }), answer{said: &Layer{Status: Initiated}}, eventLayerOpened,
			func(l Layer) bool { return l.Next.Equal(at(1).Add(layerRetry)) }},
		"closed":         {with(func(l *Layer) { l.Status = Initiated }), answer{said: &Layer{Status: Revoked, Reason: Expired}}, eventLayerClosed, func(l Layer) bool { return l.Status == Revoked && l.Reason == Expired }},
		"cannot look":    {with(func(l *Layer) { l.Status = Initiated }), answer{failed: errors.New("away")}, eventLayerFailed, func(l Layer) bool { return l.Status == Initiated && l.Error == "away" && l.Looked.Equal(at(-1)) }},
		"still cannot":   {with(func(l *Layer) { l.Error = "away" }), answer{failed: errors.New("away")}, "", func(l Layer) bool { return l.Tries == 1 }},
		"not listed yet": {open, answer{}, "", func(l Layer) bool { return l.Status == Initiating && l.Error == "" && l.Looked.Equal(at(-1)) }},
		"not listed":     {with(func(l *Layer) { l.Status, l.Looked = Initiated, at(-3) }), answer{}, eventLayerFailed, func(l Layer) bool { return l.Status == "" && strings.Contains(l.Error, "does not list") }},
		"late in closing": {with(func(l *Layer) { l.Status, l.Until = Initiated, at(-1) }), answer{said: &Layer{Status: Initiated}}, "", func(l Layer) bool {
			return l.Status == Initiated && l.Error == "" && l.Next.Equal(midday.Add(layerRetry))
		}},
		"not closed": {with(func(l *Layer) { l.Status, l.Until = Initiated, at(-3) }), answer{said: &Layer{Status: Initiated}}, eventLayerFailed, func(l Layer) bool { return l.Status == Initiated && strings.Contains(l.Error, "not closed") }},
	} {
		l := test.from
		if event := l.looked(test.a, midday); event != test.event || !test.check(l) {
			t.Errorf("%s: %q and %+v", name, event, l)
		}
	}
}

// What is passed on is what is due and nothing else, and it counts as perhaps
// open before the first byte is sent.
func TestTakeOn(t *testing.T) {
	vm := func(name string, ports ...RequestPort) RequestVM {
		return RequestVM{VMID{Subscription: "s", Group: "g", Kind: "Microsoft.Compute/virtualMachines", Name: name}, ports}
	}
	port := func(number uint16, status Status, l *Layer) RequestPort {
		return RequestPort{Number: number, Status: status, Reason: UserRequested, End: at(60), Outer: l}
	}
	r := Request{ID: "R", VMs: []RequestVM{
		vm("a", port(1, Initiating, &Layer{Name: "azure", Status: Initiating}), port(2, Initiating, nil), port(3, Initiated, &Layer{Name: "azure", Status: Initiating, Taken: at(60), Until: at(60)})),
		vm("b", port(4, Initiating, &Layer{Name: "azure", Status: Initiating, Next: at(1)})),
		vm("c", port(5, Revoked, &Layer{Name: "azure", Status: Initiating}), port(6, Initiated, &Layer{Name: "azure", Status: Initiated, Taken: at(30), Until: at(30)})),
	}}
	tasks, changed := takeOn(&r, midday)
	if !changed || len(tasks) != 2 || tasks[0].what != ask || tasks[1].what != look {
		t.Fatalf("%v, %+v", changed, tasks)
	}
	numbers := func(r Request) (all []uint16) {
		for _, p := range r.ports() {
			all = append(all, p.Number)
		}
		return all
	}
	if got := numbers(tasks[0].request); len(got) != 2 || got[0] != 1 || got[1] != 6 || tasks[0].request.VMs[1].ID.Name != "c" {
		t.Errorf("asked for %v", got)
	}
	if got := numbers(tasks[1].request); len(got) != 1 || got[0] != 3 {
		t.Errorf("looked at %v", got)
	}
	if tasks[0].taken[1].before != at(30) {
		t.Errorf("before it was open until %v", tasks[0].taken[1].before)
	}
	for _, p := range []RequestPort{r.VMs[0].Ports[0], r.VMs[2].Ports[1]} {
		if !p.Outer.Until.Equal(at(60)) || !p.Outer.Next.Equal(midday.Add(layerLease)) {
			t.Errorf("port %d: %+v", p.Number, *p.Outer)
		}
	}
	if l := r.VMs[2].Ports[0].Outer; l.Status != Revoked {
		t.Errorf("never asked for, and revoked: %+v", *l)
	}
	if again, changed := takeOn(&r, midday); changed || len(again) > 0 {
		t.Errorf("a second replica takes on %+v", again)
	}
	if again, _ := takeOn(&r, midday.Add(layerLease)); len(again) != 2 || len(again[0].taken) != 3 {
		t.Errorf("after a crash %+v is taken on", again)
	}
	// The layer has a copy: what it does to it stays its own.
	tasks[0].request.VMs[0].Ports[0].Outer.Status = Revoked
	if r.VMs[0].Ports[0].Outer.Status != Initiating {
		t.Error("the request shares what was passed on")
	}
}
