package azure

import (
	"context"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/api"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// clock is one that both control planes of a test go by.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

// plane is a control plane, as it is: the engine on SQLite, and Azure's API
// before it over TLS.
type plane struct {
	*control.Engine
	t     *testing.T
	store control.Store
	away  atomic.Bool // answers 503 to everything
	http  *httptest.Server
	token string // of its Owner
}

func newPlane(t *testing.T, c *clock, outer control.Outer) *plane {
	t.Helper()
	p := &plane{t: t, store: storetest.SQLite(t)}
	p.Engine = control.New(control.Config{Store: p.store, Now: c.Now, Log: hclog.NewNullLogger(), Outer: outer, Realm: storetest.Realm(t, c.Now())})
	who, err := identity.New(identity.Config{Store: p.store, Rate: 10000, Burst: 10000, Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	token, hash := identity.NewToken()
	if given, err := control.Bootstrap(t.Context(), p.store, hash, c.Now()); err != nil || !given {
		t.Fatal(given, err)
	}
	p.token = token
	a, err := api.New(api.Config{Engine: p.Engine, Identity: who, Store: p.store, Log: hclog.NewNullLogger(), Registry: prometheus.NewRegistry(), Now: c.Now})
	if err != nil {
		t.Fatal(err)
	}
	p.http = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p.away.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		a.ServeHTTP(w, r)
	}))
	t.Cleanup(p.http.Close)
	return p
}

var admin = control.Caller{ID: "local:admin", Name: "admin@contoso.com", Type: "User", Rights: []control.Right{{Role: control.BuiltinRoles()[0], Scope: control.Everywhere}}}

func machineID(t *testing.T, name string) control.VMID {
	t.Helper()
	id, err := control.ParseVMID(vmID(name))
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// guard puts a policy on a machine, which has an agent.
func (p *plane) guard(name string, longest string) {
	p.t.Helper()
	vm := machineID(p.t, name)
	_, err := p.PutPolicy(p.t.Context(), admin, control.PolicyID{Subscription: sub, Group: "myRg1", Location: "westeurope", Name: "default"},
		control.PolicyInput{VMs: []control.PolicyVM{{ID: vm, Ports: []control.PortRule{{Number: 22, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "*"}, MaxDuration: longest}}}}})
	if err != nil {
		p.t.Fatal(err)
	}
	p.update(func(tx control.Tx) error {
		known, err := tx.VM(vm)
		if err != nil {
			return err
		}
		known.Agent = &control.Agent{Key: "k", Enrolled: p.Now(), Expires: p.Now().Add(24 * time.Hour)}
		return tx.PutVM(known)
	})
}

func (p *plane) update(f func(control.Tx) error) {
	p.t.Helper()
	if err := p.store.Update(p.t.Context(), f); err != nil {
		p.t.Fatal(err)
	}
}

// open has the agent of a machine say that it opened what it was granted.
func (p *plane) open(name string) {
	p.t.Helper()
	vm := machineID(p.t, name)
	list, _, err := p.ListRequests(p.t.Context(), admin, control.RequestFilter{VM: &vm, Open: true})
	if err != nil {
		p.t.Fatal(err)
	}
	var grants []string
	for _, r := range list {
		for _, port := range r.VMs[0].Ports {
			grants = append(grants, port.GrantID)
		}
	}
	if _, err := p.Report(p.t.Context(), vm, uplink.Up{Status: &uplink.Status{Open: grants}}); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) ask(name string, sources ...string) control.Request {
	p.t.Helper()
	from := control.Prefixes{Many: sources}
	if len(sources) == 1 {
		from = control.Prefixes{One: sources[0]}
	}
	list, err := p.InitiateVM(p.t.Context(), admin, control.InitiateInput{Justification: "patching",
		VMs: []control.InitiateVM{{ID: vmID(name), Ports: []control.InitiatePort{{Number: 22, Prefixes: from, Duration: "PT1H"}}}}})
	if err != nil {
		p.t.Fatal(err)
	}
	return list[0]
}

func (p *plane) port(id string) control.RequestPort {
	p.t.Helper()
	r, err := p.GetRequest(p.t.Context(), admin, id)
	if err != nil {
		p.t.Fatal(err)
	}
	return r.VMs[0].Ports[0]
}

// both is a control plane that passes requests on to another, which stands in
// for Azure.
type both struct {
	*clock
	ours, azure *plane
}

func newBoth(t *testing.T) *both {
	t.Helper()
	b := &both{clock: &clock{now: time.Now().UTC().Truncate(time.Second)}}
	b.azure = newPlane(t, b.clock, nil)
	dir := t.TempDir()
	s := Settings{Subscriptions: []string{sub}, Endpoint: b.azure.http.URL, CAFile: filepath.Join(dir, "ca.pem"), TokenFile: filepath.Join(dir, "token")}
	for path, text := range map[string][]byte{s.CAFile: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: b.azure.http.Certificate().Raw}), s.TokenFile: []byte(b.azure.token)} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	j, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	j.fresh = 0 // the test's clock is not that of the list
	b.ours = newPlane(t, b.clock, j)
	b.azure.guard("vm1", "PT3H")
	b.ours.guard("vm1", "PT3H")
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- b.ours.RunLayers(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return b
}

// pass moves the clocks, and has somebody look at them.
func (b *both) pass(d time.Duration) {
	b.mu.Lock()
	b.now = b.now.Add(d)
	b.mu.Unlock()
	b.ours.update(func(tx control.Tx) error {
		return tx.AppendActivity(control.Activity{Time: b.Now(), Event: "host.seen"})
	})
}

// until waits for the layer of a request to be as it should.
func (b *both) until(what, id string, good func(control.Layer) bool) control.Layer {
	b.ours.t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		l := b.ours.port(id).Outer
		if l != nil && good(*l) {
			return *l
		}
		if time.Now().After(deadline) {
			b.ours.t.Fatalf("%s: %+v", what, l)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func stands(s control.Status) func(control.Layer) bool {
	return func(l control.Layer) bool { return l.Status == s && l.Error == "" && !l.Taken.IsZero() }
}

// One request opens both layers, and both are closed at its end.
func TestOneRequestOpensBoth(t *testing.T) {
	b := newBoth(t)
	r := b.ours.ask("vm1", "203.0.113.7", "198.51.100.0/24")
	b.until("passed on", r.ID, stands(control.Initiating))
	there, _, err := b.azure.ListRequests(t.Context(), admin, control.RequestFilter{})
	if err != nil || len(there) != 1 {
		t.Fatalf("%d requests at Azure, %v", len(there), err)
	}
	port := there[0].VMs[0].Ports[0]
	if ours := b.ours.port(r.ID); !port.End.Equal(ours.End) || len(port.Many) != 2 || port.Many[1] != "198.51.100.0/24" {
		t.Errorf("at Azure %+v, here %+v", port, ours)
	}
	if want := "jitgate " + r.ID + " by admin@contoso.com: patching"; there[0].Justification != want {
		t.Errorf("justification %q", there[0].Justification)
	}
	b.azure.open("vm1")
	b.pass(5 * time.Second)
	b.until("open at Azure", r.ID, stands(control.Initiated))
	if p := b.ours.port(r.ID); p.Status != control.Initiating {
		t.Errorf("our own agent has said nothing: %+v", p)
	}
	b.ours.open("vm1")
	if p := b.ours.port(r.ID); p.Status != control.Initiated || p.Outer.Status != control.Initiated {
		t.Errorf("both: %+v, %+v", p, p.Outer)
	}
	b.pass(time.Hour + 6*time.Second)
	if l := b.until("closed at Azure", r.ID, stands(control.Revoked)); l.Reason != control.Expired || l.Note != "" {
		t.Errorf("%+v", l)
	}
	if p := b.ours.port(r.ID); p.Status != control.Revoked || p.Reason != control.Expired {
		t.Errorf("here: %+v", p)
	}
}

// Azure being away, refusing or closing shows, and changes nothing here.
func TestAzureAloneFails(t *testing.T) {
	b := newBoth(t)
	b.azure.away.Store(true)
	r := b.ours.ask("vm1", "203.0.113.7")
	b.until("away", r.ID, func(l control.Layer) bool { return l.Error == "azure answered 503" && l.Status == control.Initiating })
	b.ours.open("vm1")
	if p := b.ours.port(r.ID); p.Status != control.Initiated {
		t.Errorf("here: %+v", p)
	}
	b.azure.away.Store(false)
	b.pass(10 * time.Second)
	b.until("back", r.ID, stands(control.Initiating))
	b.azure.open("vm1")
	b.pass(5 * time.Second)
	b.until("open", r.ID, stands(control.Initiated))
	there, _, err := b.azure.ListRequests(t.Context(), admin, control.RequestFilter{})
	if err != nil || len(there) != 1 {
		t.Fatalf("%d requests at Azure, %v", len(there), err)
	}
	if _, err := b.azure.Revoke(t.Context(), admin, there[0].ID, ""); err != nil {
		t.Fatal(err)
	}
	b.pass(6 * time.Minute)
	b.until("closed by somebody there", r.ID, stands(control.Revoked))
	if p := b.ours.port(r.ID); p.Status != control.Initiated {
		t.Errorf("here: %+v", p)
	}

	b.azure.guard("vm1", "PT30M") // less than is asked for
	r = b.ours.ask("vm1", "203.0.113.9")
	l := b.until("refused", r.ID, func(l control.Layer) bool { return l.Error != "" })
	if !strings.HasPrefix(l.Error, "azure answered 400 InvalidInitiateInput: ") || !strings.Contains(l.Error, "not a subset") || strings.Contains(l.Error, "\n") || !l.Until.IsZero() {
		t.Errorf("%+v", l)
	}
	lines, _, err := b.ours.ListActivity(t.Context(), admin, control.ActivityFilter{Event: "layer.failed"})
	if err != nil || len(lines) != 2 || lines[0].Reason != "azure: azure answered 503" || lines[0].Status != "Failed" {
		t.Errorf("%+v, %v", lines, err)
	}
}

// Our own layer failing shows, and Azure's goes on.
func TestOursAloneFails(t *testing.T) {
	b := newBoth(t)
	r := b.ours.ask("vm1", "203.0.113.7")
	b.until("passed on", r.ID, stands(control.Initiating))
	b.azure.open("vm1")
	b.pass(5 * time.Second)
	b.until("open", r.ID, stands(control.Initiated))
	if p := b.ours.port(r.ID); p.Status != control.Initiating {
		t.Errorf("no agent has opened it here: %+v", p)
	}
	if _, err := b.ours.Revoke(t.Context(), admin, r.ID, "enough"); err != nil {
		t.Fatal(err)
	}
	l := b.until("revoked here", r.ID, func(l control.Layer) bool { return l.Note != "" })
	if l.Status != control.Initiated || !strings.Contains(l.Note, "azure cannot close it before its end: it may be open there until "+policy.FormatTime(b.ours.port(r.ID).End)) {
		t.Errorf("%+v", l)
	}
	b.pass(time.Hour)
	b.until("over at Azure", r.ID, func(l control.Layer) bool { return l.Status == control.Revoked && l.Note == "" })
}

// A machine that Azure's JIT does not guard has no layer outside.
func TestMachineWithoutAzure(t *testing.T) {
	b := newBoth(t)
	b.ours.guard("vm2", "PT3H")
	r := b.ours.ask("vm2", "203.0.113.7")
	deadline := time.Now().Add(30 * time.Second)
	for b.ours.port(r.ID).Outer != nil {
		if time.Now().After(deadline) {
			t.Fatalf("%+v", b.ours.port(r.ID).Outer)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
