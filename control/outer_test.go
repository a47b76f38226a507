package control_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// outside is a layer that does what a test says.
type outside struct {
	mu     sync.Mutex
	away   error                // fails every call
	refuse map[uint16]string    // by port: why it is not taken
	unsure map[uint16]string    // by port: how the answer was lost after it was taken
	lacks  map[uint16]bool      // ports it does not cover
	status control.Status       // of all it has taken
	taken  map[string]time.Time // by request and port: the latest end
	asked  []string             // calls: ask 22 203.0.113.7
	during func()               // while a call is under way
}

func newOutside() *outside {
	return &outside{refuse: map[uint16]string{}, unsure: map[uint16]string{}, lacks: map[uint16]bool{}, status: control.Initiating, taken: map[string]time.Time{}}
}

func (o *outside) Name() string { return "azure" }

func id(r control.Request, p control.RequestPort) string {
	return r.ID + " " + string(rune('0'+p.Number%10))
}

func (o *outside) call(what string, r control.Request, each func(control.RequestPort) *control.Layer) ([]*control.Layer, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.during != nil {
		o.during()
	}
	if o.away != nil {
		o.asked = append(o.asked, what+" in vain")
		return nil, o.away
	}
	var layers []*control.Layer
	for _, vm := range r.VMs {
		for _, p := range vm.Ports {
			o.asked = append(o.asked, what+" "+strings.Join(p.All(), ","))
			layers = append(layers, each(p))
		}
	}
	return layers, nil
}

func (o *outside) Initiate(_ context.Context, r control.Request) ([]*control.Layer, error) {
	return o.call("ask", r, func(p control.RequestPort) *control.Layer {
		switch {
		case o.lacks[p.Number]:
			return nil
		case o.refuse[p.Number] != "":
			return &control.Layer{Name: "azure", Error: o.refuse[p.Number]}
		}
		o.taken[id(r, p)] = p.End
		return &control.Layer{Name: "azure", Status: control.Initiating, Until: p.End, Error: o.unsure[p.Number]}
	})
}

func (o *outside) Look(_ context.Context, r control.Request) ([]*control.Layer, error) {
	return o.call("look", r, func(p control.RequestPort) *control.Layer {
		if _, ok := o.taken[id(r, p)]; !ok {
			return nil
		}
		return &control.Layer{Name: "azure", Status: o.status, Reason: control.UserRequested}
	})
}

// calls returns the calls since it was asked last.
func (o *outside) calls() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.asked
	o.asked = nil
	return all
}

func (o *outside) set(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	f()
}

// layered is a plane with a layer outside.
func layered(t *testing.T) (*plane, *outside, func()) {
	o := newOutside()
	p := newPlane(t, func(c *control.Config) { c.Outer = o })
	p.put("default", machine("vm1", rule(22, "PT3H"), rule(3389, "PT3H")))
	return p, o, p.rounds()
}

// rounds returns one replica's work: all there is to do now.
func (p *plane) rounds() func() {
	round := p.LayerRounds()
	return func() {
		p.t.Helper()
		for n := 0; ; n++ {
			worked, _, err := round(p.t.Context())
			if err != nil {
				p.t.Fatal(err)
			}
			if !worked {
				return
			}
			if n == 20 {
				p.t.Fatal("there is always more to do")
			}
		}
	}
}

// layer is that of the first port of a request.
func (p *plane) layer(id string) control.Layer {
	p.t.Helper()
	r, err := p.GetRequest(p.t.Context(), owner, id)
	if err != nil {
		p.t.Fatal(err)
	}
	if l := r.VMs[0].Ports[0].Outer; l != nil {
		return *l
	}
	return control.Layer{}
}

// events are those of the layers in the log, the oldest first.
func (p *plane) events() (all []string) {
	p.t.Helper()
	lines, _, err := p.ListActivity(p.t.Context(), owner, control.ActivityFilter{})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, l := range lines {
		if strings.HasPrefix(l.Event, "layer.") {
			all = append(all, l.Event+" "+l.Status+" "+l.Reason)
			if l.VM == "" || l.Port == 0 || l.Request == "" || l.Scope != vmID("vm1").Scope() || l.Operation != string(control.ActionInitiate) {
				p.t.Errorf("line %+v", l)
			}
		}
	}
	return all
}

func same(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: %q, expected %q", what, got, want)
	}
}

var ann = as("ann", "Owner")

// One request opens both layers, and each is closed by its end.
func TestLayerOpensAndEnds(t *testing.T) {
	p, o, round := layered(t)
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	if l := p.layer(r.ID); l.Status != control.Initiating || !l.Until.IsZero() {
		t.Errorf("before it is passed on: %+v", l)
	}
	round()
	same(t, "calls", o.calls(), []string{"ask 203.0.113.7"})
	end := r.VMs[0].Ports[0].End
	if l := p.layer(r.ID); l.Status != control.Initiating || !l.Taken.Equal(end) || !l.Until.Equal(end) || l.Error != "" {
		t.Errorf("after it: %+v", l)
	}
	round()
	same(t, "at once again", o.calls(), nil)
	o.set(func() { o.status = control.Initiated })
	p.pass(5 * time.Second)
	round()
	same(t, "calls", o.calls(), []string{"look 203.0.113.7"})
	if l := p.layer(r.ID); l.Status != control.Initiated {
		t.Errorf("open: %+v", l)
	}
	p.pass(time.Minute)
	round()
	same(t, "a minute later", o.calls(), nil)
	p.pass(time.Hour)
	p.sweep()
	round()
	if l := p.layer(r.ID); l.Status != control.Initiated || l.Note != "" {
		t.Errorf("the end has passed, and the layer says it is open: %+v", l)
	}
	o.set(func() { o.status = control.Revoked })
	p.pass(5 * time.Second)
	round()
	if l := p.layer(r.ID); l.Status != control.Revoked {
		t.Errorf("closed: %+v", l)
	}
	o.calls()
	p.pass(time.Hour)
	round()
	same(t, "when all is over", o.calls(), nil)
	same(t, "events", p.events(), []string{"layer.initiated Succeeded azure", "layer.opened Succeeded azure", "layer.closed Succeeded azure: UserRequested"})
}

// A layer that fails is shown, tried again, and changes nothing on the
// machine.
func TestLayerFails(t *testing.T) {
	p, o, round := layered(t)
	o.away = errors.New("azure answered 503")
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	round()
	l := p.layer(r.ID)
	if l.Error != "azure answered 503" || l.Status != control.Initiating || !l.Until.IsZero() {
		t.Errorf("%+v", l)
	}
	got, err := p.GetRequest(t.Context(), owner, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	if port := got.VMs[0].Ports[0]; port.Status != control.Initiating || port.Reason != control.UserRequested || port.GrantID != r.VMs[0].Ports[0].GrantID {
		t.Errorf("on the machine: %+v", port)
	}
	for range 100 {
		p.pass(10 * time.Second)
		round()
	}
	if n := len(o.calls()); n < 6 || n > 15 {
		t.Errorf("%d tries in a quarter of an hour", n)
	}
	o.set(func() { o.away = nil })
	p.pass(5 * time.Minute)
	round()
	if l := p.layer(r.ID); l.Error != "" || l.Taken.IsZero() || l.Tries != 0 {
		t.Errorf("when it is back: %+v", l)
	}
	// And when it goes while the port is open.
	o.set(func() { o.away = errors.New("azure answered 502") })
	p.pass(5 * time.Second)
	round()
	if l := p.layer(r.ID); l.Error != "azure answered 502" || l.Taken.IsZero() {
		t.Errorf("when it is away again: %+v", l)
	}
	same(t, "events", p.events(), []string{"layer.failed Failed azure: azure answered 503", "layer.initiated Succeeded azure", "layer.failed Failed azure: azure answered 502"})
}

// One port refused leaves the other open; one that is not covered has no layer.
func TestLayerPortByPort(t *testing.T) {
	p, o, round := layered(t)
	o.refuse[22] = "not a subset"
	in := wants("vm1", 22, "203.0.113.7", "PT1H")
	in.VMs[0].Ports = append(in.VMs[0].Ports, control.InitiatePort{Number: 3389, Duration: "PT2H", Prefixes: control.Prefixes{Many: []string{"203.0.113.7", "203.0.113.8"}}})
	r := p.initiate(ann, in)
	round()
	same(t, "calls", o.calls(), []string{"ask 203.0.113.7", "ask 203.0.113.7,203.0.113.8"})
	got, err := p.GetRequest(t.Context(), owner, r.ID)
	if err != nil {
		t.Fatal(err)
	}
	ports := got.VMs[0].Ports
	if ports[0].Outer.Error != "not a subset" || !ports[0].Outer.Until.IsZero() || ports[1].Outer.Error != "" || ports[1].Outer.Taken.IsZero() {
		t.Errorf("%+v and %+v", ports[0].Outer, ports[1].Outer)
	}
	o.lacks[22] = true
	p.pass(5 * time.Second)
	round()
	if l := p.layer(r.ID); l.Name != "" {
		t.Errorf("not covered: %+v", l)
	}
	o.calls()
	p.pass(10 * time.Minute)
	round()
	same(t, "later", o.calls(), []string{"look 203.0.113.7,203.0.113.8"})
}

// What is revoked goes on outside until its end, and that is said.
func TestLayerOutlivesRevocation(t *testing.T) {
	p, o, round := layered(t)
	o.status = control.Initiated
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	round()
	p.pass(5 * time.Second)
	round()
	if _, err := p.Revoke(t.Context(), ann, r.ID, "done"); err != nil {
		t.Fatal(err)
	}
	round()
	l := p.layer(r.ID)
	if l.Status != control.Initiated || !strings.HasPrefix(l.Note, "closed on the machine; azure cannot close it before its end: it may be open there until 2026-11-22T13:00:00Z") {
		t.Errorf("revoked: %+v", l)
	}
	o.set(func() { o.status = control.Revoked })
	p.pass(time.Hour + 5*time.Second)
	round()
	if l := p.layer(r.ID); l.Status != control.Revoked || l.Note != "" {
		t.Errorf("over: %+v", l)
	}

	// What was revoked before it was passed on is passed on no more.
	o.calls()
	r = p.initiate(ann, wants("vm1", 3389, "203.0.113.7", "PT1H"))
	if _, err := p.Revoke(t.Context(), ann, r.ID, ""); err != nil {
		t.Fatal(err)
	}
	p.rounds()() // a replica that has not seen it open
	same(t, "calls", o.calls(), nil)
	if l := p.layer(r.ID); l.Status != control.Revoked || l.Note != "" {
		t.Errorf("never passed on: %+v", l)
	}
}

// An answer that was lost leaves the port perhaps open.
func TestLayerUnsure(t *testing.T) {
	p, o, round := layered(t)
	o.unsure[22] = "azure answered 504"
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	round()
	if l := p.layer(r.ID); l.Error == "" || l.Until.IsZero() || !l.Taken.IsZero() {
		t.Errorf("%+v", l)
	}
	if _, err := p.Revoke(t.Context(), ann, r.ID, ""); err != nil {
		t.Fatal(err)
	}
	round()
	if l := p.layer(r.ID); l.Status == control.Revoked || l.Note == "" {
		t.Errorf("called closed, which nobody knows: %+v", l)
	}
	o.set(func() { o.status = control.Revoked })
	p.pass(10 * time.Second)
	round()
	if l := p.layer(r.ID); l.Status != control.Revoked || l.Error != "" {
		t.Errorf("seen to be closed: %+v", l)
	}
}

// A replica that dies in the middle leaves a lease, after which another goes
// on; while it lives nobody else asks.
func TestLayerReplicas(t *testing.T) {
	p, o, round := layered(t)
	second := control.New(p.Config)
	other := (&plane{Engine: second, t: t, store: p.store}).rounds()
	dying, die := context.WithCancel(t.Context())
	o.during = func() { die() } // with the question on its way
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	// The answer of the dying one is written down all the same, unless its
	// store is gone as well.
	crashed := control.New(func() control.Config {
		c := p.Config
		c.Store = &doomed{Store: c.Store, ctx: dying}
		return c
	}()).LayerRounds()
	if worked, _, err := crashed(dying); err != nil || !worked {
		t.Fatal(worked, err)
	}
	o.set(func() { o.during = nil })
	same(t, "calls", o.calls(), []string{"ask 203.0.113.7"})
	if l := p.layer(r.ID); l.Until.IsZero() || !l.Taken.IsZero() {
		t.Errorf("in the middle: %+v", l)
	}
	round()
	other()
	same(t, "under the lease", o.calls(), nil)
	p.pass(2 * time.Minute)
	round()
	other()
	same(t, "after it", o.calls(), []string{"ask 203.0.113.7"})
	if l := p.layer(r.ID); l.Taken.IsZero() {
		t.Errorf("in the end: %+v", l)
	}
}

// A replica that is stopped with the question on its way writes the answer
// down.
func TestLayerStops(t *testing.T) {
	p, o, _ := layered(t)
	stopping, stop := context.WithCancel(t.Context())
	o.during = stop
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	if worked, _, err := p.LayerRounds()(stopping); err != nil || !worked {
		t.Fatal(worked, err)
	}
	if l := p.layer(r.ID); l.Taken.IsZero() {
		t.Errorf("%+v", l)
	}
}

// doomed is a store that takes nothing more once ctx has ended, as for a process
// that was killed.
type doomed struct {
	control.Store
	ctx context.Context
}

func (d *doomed) Update(ctx context.Context, f func(control.Tx) error) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	return d.Store.Update(ctx, f)
}

// An extension is passed on; what waits for approval is not yet.
func TestLayerExtensionAndApproval(t *testing.T) {
	p, o, round := layered(t)
	r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
	round()
	p.pass(30 * time.Minute)
	if _, err := p.Extend(t.Context(), ann, r.ID, time.Hour, ""); err != nil {
		t.Fatal(err)
	}
	o.calls()
	round()
	same(t, "calls", o.calls(), []string{"ask 203.0.113.7"})
	if l := p.layer(r.ID); !l.Taken.Equal(noon.Add(90*time.Minute)) || !l.Until.Equal(l.Taken) {
		t.Errorf("extended: %+v", l)
	}
	if _, err := p.SetApproval(t.Context(), owner, policyID("default"), &control.Approval{Approvers: 1, Role: "Owner"}, ""); err != nil {
		t.Fatal(err)
	}
	r = p.initiate(ann, wants("vm1", 3389, "203.0.113.9", "PT1H"))
	o.calls()
	round()
	same(t, "while it waits", o.calls(), nil)
	p.pass(10 * time.Minute)
	if _, err := p.Approve(t.Context(), owner, r.ID, "", 0); err != nil {
		t.Fatal(err)
	}
	o.calls()
	round()
	if calls := o.calls(); !slices.Contains(calls, "ask 203.0.113.9") {
		t.Errorf("approved: %q", calls)
	}
	if l := p.layer(r.ID); !l.Taken.Equal(p.clock().Add(time.Hour)) {
		t.Errorf("approved: %+v", l)
	}
}

// RunLayers hears of requests by itself, on both stores, and ends with its
// context.
func TestRunLayers(t *testing.T) {
	for name, open := range map[string]func(testing.TB) control.Store{"SQLite": storetest.SQLite, "PostgreSQL": storetest.PostgreSQL} {
		t.Run(name, func(t *testing.T) {
			o := newOutside()
			p := newPlane(t, func(c *control.Config) { c.Outer, c.Now, c.Store = o, time.Now, open(t) })
			p.put("default", machine("vm1", rule(22, "PT3H")))
			ctx, stop := context.WithCancel(t.Context())
			ended := make(chan error, 2)
			for range 2 { // replicas
				go func() { ended <- p.RunLayers(ctx) }()
			}
			o.set(func() { o.status = control.Initiated })
			r := p.initiate(ann, wants("vm1", 22, "203.0.113.7", "PT1H"))
			deadline := time.After(30 * time.Second)
			for p.layer(r.ID).Status != control.Initiated {
				select {
				case <-deadline:
					t.Fatalf("%+v", p.layer(r.ID))
				case <-time.After(20 * time.Millisecond):
				}
			}
			stop()
			for range 2 {
				if err := <-ended; err != nil {
					t.Error(err)
				}
			}
			asks := 0
			for _, c := range o.calls() {
				if strings.HasPrefix(c, "ask") {
					asks++
				}
			}
			if asks != 1 {
				t.Errorf("asked %d times", asks)
			}
		})
	}
	if err := newPlane(t).RunLayers(t.Context()); err != nil {
		t.Errorf("with no layer: %v", err)
	}
}
