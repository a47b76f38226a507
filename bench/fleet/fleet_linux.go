package main

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store"
	"github.com/jitgate/jitgate/control/store/storetest"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

const (
	subscription = "20ff7fc3-e762-44dd-bd96-b71116dcdc23"
	perPolicy    = 50 // machines of a resource group, which one policy names
	writers      = 8  // calls at once where many are to be made
	callers      = 64 // connections that the load may use
	idleTurns    = 200
	revokeTurns  = 100

	// By then whatever was acknowledged has arrived, on any machine.
	settled, settledEach = 5 * time.Minute, 50 * time.Millisecond
)

func group(n int) string { return fmt.Sprintf("rg%04d", n/perPolicy) }

func machine(n int) string {
	return fmt.Sprintf("/subscriptions/%s/resourcegroups/%s/providers/microsoft.compute/virtualmachines/vm%05d", subscription, group(n), n)
}

func policyOf(n int) string {
	return fmt.Sprintf("/subscriptions/%s/resourceGroups/%s/providers/Microsoft.Security/locations/here/jitNetworkAccessPolicies/default", subscription, group(n))
}

// fleet is N machines and their control plane.
type fleet struct {
	o      options
	server *server
	hosts  []*host
	ledger *ledger
	pin    policy.Digest
	roots  *x509.CertPool
	quiet  hclog.Logger

	stop    context.CancelFunc // of the fetchers
	running sync.WaitGroup
}

// measure makes a fleet, takes its figures, and ends it.
func measure(ctx context.Context, o options) (r figures, err error) {
	dir := o.dir
	if dir == "" {
		if dir, err = os.MkdirTemp(".", "jitgate-fleet-"); err != nil {
			return r, err
		}
		defer os.RemoveAll(dir)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return r, err
	}
	database := ""
	if o.store == "postgres" {
		// As PostgreSQL is by itself, durability and all.
		pg, err := storetest.StartServer("shared_buffers=128MB", "wal_level=replica", "max_wal_size=1GB")
		if err != nil {
			return r, err
		}
		defer pg.Close()
		if database, err = pg.CreateDatabase(ctx); err != nil {
			return r, err
		}
	}
	f := &fleet{o: o, ledger: &ledger{}, quiet: hclog.NewNullLogger()}
	if f.server, err = newServer(o.control, dir, database); err != nil {
		return r, err
	}
	for n := range o.agents {
		f.hosts = append(f.hosts, newHost(f, n))
	}
	defer f.end()
	r = figures{agents: o.agents, store: o.store}
	fmt.Printf("\n%d agents, %s; load of the machine %s before\n", o.agents, o.store, loadAverage())
	for _, part := range []struct {
		name string
		run  func(context.Context, *figures) error
	}{
		{"preparing", f.prepare}, {"connecting", f.connect}, {"idle", f.idle}, {"load", f.load}, {"policy", f.policies},
		{"revoking", f.revocations}, {"storm", f.storm}, {"expelling", f.expulsion}, {"account", f.account},
	} {
		if err := part.run(ctx, &r); err != nil {
			return r, f.server.complain(fmt.Errorf("%s: %w", part.name, err))
		}
		r.print(os.Stdout, part.name)
	}
	fmt.Printf("  load of the machine %s after\n", loadAverage())
	return r, nil
}

func (f *fleet) end() {
	if f.stop != nil {
		f.stop()
		f.running.Wait()
	}
	f.server.stop()
}

// prepare starts the server with a policy for every machine, and all enrolled.
func (f *fleet) prepare(ctx context.Context, r *figures) error {
	// The first start makes the realm and the authorities.
	if err := f.server.start(ctx); err != nil {
		return err
	}
	f.server.stop()
	f.roots = f.server.roots
	begin := time.Now()
	if err := f.enrol(ctx); err != nil {
		return err
	}
	r.enrolled = time.Since(begin)
	if err := f.server.start(ctx); err != nil {
		return err
	}
	begin = time.Now()
	if err := f.writePolicies(ctx, 0); err != nil {
		return err
	}
	r.written = time.Since(begin)
	return nil
}

// longest is how long access may last by the policies of a generation.
func longest(generation int) time.Duration {
	return 3*time.Hour + time.Duration(generation)*time.Minute
}

// writePolicies writes the policies of all machines.
func (f *fleet) writePolicies(ctx context.Context, generation int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for first := 0; first < len(f.hosts); first += perPolicy {
		g.Go(func() error {
			var vms []string
			for n := first; n < min(first+perPolicy, len(f.hosts)); n++ {
				vms = append(vms, fmt.Sprintf(`{"id":%q,"ports":[{"number":22,"protocol":"TCP","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT%dM"}]}`,
					machine(n), int(longest(generation).Minutes())))
			}
			body := `{"kind":"Basic","properties":{"virtualMachines":[` + strings.Join(vms, ",") + `]}}`
			_, err := f.server.call(ctx, http.MethodPut, policyOf(first)+"?api-version=2020-01-01", []byte(body))
			return err
		})
	}
	return g.Wait()
}

// connected is how many agents the server has on a line.
func (f *fleet) connected(ctx context.Context) (int, error) {
	m, err := f.server.scrape(ctx)
	return int(m["jitgate_agents_connected"]), err
}

// until waits for a condition, for as long as anything may take to settle.
func (f *fleet) until(ctx context.Context, what string, every time.Duration, done func() (bool, error)) error {
	patience := settled + time.Duration(len(f.hosts))*settledEach
	for deadline := time.Now().Add(patience); ; {
		ok, err := done()
		if err != nil || ok {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %s: %s", patience, what)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// connect has all machines come, and looks at what they cost once they are idle.
func (f *fleet) connect(ctx context.Context, r *figures) error {
	before, err := f.server.usage(ctx)
	if err != nil {
		return err
	}
	spent, err := f.spent(ctx)
	if err != nil {
		return err
	}
	f.ledger.expect(longest(0))
	begin := time.Now()
	running, stop := context.WithCancel(context.Background())
	f.stop = stop
	for _, h := range f.hosts {
		f.running.Go(func() { h.fetcher(f.server.url()).Run(running) })
	}
	if err := f.arrived(ctx); err != nil {
		return err
	}
	_, last := f.ledger.guarded()
	r.connected = last.Sub(begin)
	if err := f.quietDown(ctx); err != nil {
		return err
	}
	now, err := f.spent(ctx)
	if err != nil {
		return err
	}
	r.connectCPU = now.since(spent, len(f.hosts))
	after, err := f.server.usage(ctx)
	if err != nil {
		return err
	}
	r.inUse = (after.inUse - before.inUse) / float64(len(f.hosts))
	r.resident = (after.resident - before.resident) / float64(len(f.hosts))
	return nil
}

// arrived waits until every machine has the policy that is expected.
func (f *fleet) arrived(ctx context.Context) error {
	return f.until(ctx, "all machines have their policy", 5*time.Millisecond, func() (bool, error) {
		n, _ := f.ledger.guarded()
		return n == len(f.hosts), nil
	})
}

// quietDown waits until the agents have said all they have to say.
func (f *fleet) quietDown(ctx context.Context) error {
	last := -1.0
	return f.until(ctx, "the agents have nothing more to say", 500*time.Millisecond, func() (bool, error) {
		m, err := f.server.scrape(ctx)
		before := last
		last = m["jitgate_agent_reports_total"]
		return last == before, err
	})
}

// ask asks for access to a machine by Azure's API.
func (f *fleet) ask(ctx context.Context, h *host) (number int, err error) {
	number, source := f.ledger.begin(h.number)
	if err = f.server.initiate(ctx, h.number, source); err == nil {
		f.ledger.acknowledged(number)
	}
	return number, err
}

func (f *fleet) any() *host { return f.hosts[rand.IntN(len(f.hosts))] }

// granted waits until what was acknowledged from a number on has arrived.
func (f *fleet) granted(ctx context.Context, from int) error {
	var lost error
	err := f.until(ctx, "what was acknowledged", 5*time.Millisecond, func() (bool, error) {
		lost = f.ledger.missing(from)
		return lost == nil, nil
	})
	return errors.Join(err, lost)
}

// idle asks for one after another.
func (f *fleet) idle(ctx context.Context, r *figures) error {
	from := f.ledger.count()
	profiled := f.profile(ctx, "idle")
	for range min(idleTurns, 2*len(f.hosts)) {
		number, err := f.ask(ctx, f.any())
		if err != nil {
			return err
		}
		if err := f.until(ctx, "a grant came to its machine", time.Millisecond, func() (bool, error) {
			return !f.ledger.get(number).opened.IsZero(), nil
		}); err != nil {
			return err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
	r.idleCall, r.idleStored, r.idle = f.times(from)
	return errors.Join(profiled(), f.quietDown(ctx))
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// times are those of requests from a number on: how long the call took, from
// the answer to the machine, and from the call to the machine.
func (f *fleet) times(from int) (calls, stored, whole sample) {
	f.ledger.mu.Lock()
	defer f.ledger.mu.Unlock()
	for _, a := range f.ledger.asks[from:] {
		if a.acked.IsZero() {
			continue
		}
		calls = append(calls, a.acked.Sub(a.called))
		stored = append(stored, max(0, a.opened.Sub(a.acked)))
		whole = append(whole, a.opened.Sub(a.called))
	}
	return calls, stored, whole
}

// load asks at a rate, whatever the answers take.
func (f *fleet) load(ctx context.Context, r *figures) error {
	from := f.ledger.count()
	spent, err := f.spent(ctx)
	if err != nil {
		return err
	}
	profiled := f.profile(ctx, "load")
	begin := time.Now()
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(callers)
	every := time.Second / time.Duration(f.o.rate)
	total := f.o.seconds * f.o.rate
	for i := range total {
		if wait := time.Until(begin.Add(time.Duration(i) * every)); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return err
			}
		}
		h := f.any()
		g.Go(func() error { _, err := f.ask(working, h); return err })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	r.rate = float64(total) / time.Since(begin).Seconds()
	if err := f.granted(ctx, from); err != nil {
		return err
	}
	r.loadCall, r.loadStored, r.loaded = f.times(from)
	now, err := f.spent(ctx)
	r.loadCPU = now.since(spent, total)
	return errors.Join(err, profiled(), f.quietDown(ctx))
}

// policies changes the policy of every machine.
func (f *fleet) policies(ctx context.Context, r *figures) error {
	f.ledger.expect(longest(1))
	spent, err := f.spent(ctx)
	if err != nil {
		return err
	}
	profiled := f.profile(ctx, "policy")
	begin := time.Now()
	if err := f.writePolicies(ctx, 1); err != nil {
		return err
	}
	written := time.Now()
	if err := f.arrived(ctx); err != nil {
		return err
	}
	_, last := f.ledger.guarded()
	r.policyWritten, r.policyAll, r.policyAfter = written.Sub(begin), last.Sub(begin), max(0, last.Sub(written))
	if err := errors.Join(profiled(), f.quietDown(ctx)); err != nil {
		return err
	}
	now, err := f.spent(ctx)
	r.policyCPU = now.since(spent, len(f.hosts))
	return err
}

// revocations closes some of what is open.
func (f *fleet) revocations(ctx context.Context, r *figures) error {
	var list struct {
		Value []struct {
			ID  string
			VMs []struct {
				Ports []struct {
					AllowedSourceAddressPrefix string
				}
			} `json:"virtualMachines"`
		}
	}
	if err := f.get(ctx, fmt.Sprintf("/api/v1/requests?open=true&limit=%d", revokeTurns), &list); err != nil {
		return err
	}
	var times sample
	for _, q := range list.Value {
		number := numberOf(addressOf(q.VMs[0].Ports[0].AllowedSourceAddressPrefix))
		f.ledger.change(number, func(a *ask) { a.asked = time.Now() })
		if _, err := f.server.call(ctx, http.MethodPost, "/api/v1/requests/"+q.ID+"/revoke", []byte(`{"reason":"measured"}`)); err != nil {
			return err
		}
		f.ledger.change(number, func(a *ask) { a.back = time.Now() })
		if err := f.until(ctx, "a revocation came to its machine", time.Millisecond, func() (bool, error) { return !f.ledger.get(number).closed.IsZero(), nil }); err != nil {
			return err
		}
		a := f.ledger.get(number)
		times = append(times, a.closed.Sub(a.asked))
	}
	if len(times) == 0 {
		return errors.New("nothing is open that could be revoked")
	}
	r.revoked = times
	return f.quietDown(ctx)
}

// storm kills the server while requests come in, and starts it again.
func (f *fleet) storm(ctx context.Context, r *figures) error {
	from := f.ledger.count()
	caller, err := f.calls()
	if err != nil {
		return err
	}
	defer caller.end()
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	before, err := ownUse()
	if err != nil {
		return err
	}
	f.server.kill()
	down := time.Now()
	if err := f.server.launch(); err != nil {
		return err
	}
	if err := f.until(ctx, "somebody is answered", 10*time.Millisecond, func() (bool, error) {
		return len(caller.since(down)) > 0, f.server.hasEnded()
	}); err != nil {
		return err
	}
	returned := caller.since(down)[0].Ended
	profiled := f.profile(ctx, "storm")
	err = f.until(ctx, "all machines are back", 100*time.Millisecond, func() (bool, error) {
		n, err := f.connected(ctx)
		return n == len(f.hosts), err
	})
	r.storm, r.away = time.Since(returned), returned.Sub(down)
	caller.end()
	for _, m := range caller.since(down) {
		if m.Error != "" {
			r.refused++
		} else {
			r.stormCalls = append(r.stormCalls, m.Ended.Sub(m.Began))
		}
	}
	if err := errors.Join(err, profiled(), f.granted(ctx, from), f.quietDown(ctx)); err != nil {
		return err
	}
	after, err := f.spent(ctx)
	r.stormCPU = after.since(used{fleet: before}, len(f.hosts)) // the server is another process
	return err
}

// expulsion ends the agents of some machines for good.
func (f *fleet) expulsion(ctx context.Context, r *figures) error {
	n, err := f.connected(ctx)
	if err != nil {
		return err
	}
	for i := range min(revokeTurns, len(f.hosts)/2) {
		h := f.hosts[i]
		begin := time.Now()
		if _, err := f.server.call(ctx, http.MethodPost, "/api/v1/vms/"+strings.TrimPrefix(h.id, "/")+"/agent/revoke", []byte(`{"reason":"measured"}`)); err != nil {
			return err
		}
		if err := f.until(ctx, "a revoked agent is off the line", 2*time.Millisecond, func() (bool, error) {
			m, err := f.connected(ctx)
			return m < n-i, err
		}); err != nil {
			return err
		}
		r.expelled = append(r.expelled, time.Since(begin))
	}
	return nil
}

// account holds what the machines have against what is stored.
func (f *fleet) account(ctx context.Context, r *figures) error {
	if err := f.ledger.missing(0); err != nil {
		return err
	}
	f.stop()
	f.running.Wait()
	f.server.stop()
	kept, err := store.Open(ctx, f.server.dsn(), f.quiet)
	if err != nil {
		return err
	}
	defer kept.Close()
	byID := map[string]*host{}
	for _, h := range f.hosts {
		byID[strings.ToLower(h.id)] = h
	}
	for after := uint64(0); ; {
		var page []control.Document
		if err := kept.View(ctx, func(tx control.Tx) (err error) {
			page, err = tx.DocumentsAfter(after, 1000)
			return err
		}); err != nil {
			return err
		}
		if len(page) == 0 {
			break
		}
		for _, d := range page {
			after = d.Seq
			e, err := policy.ParseEnvelope(d.Signed)
			if err != nil {
				return err
			}
			for _, h := range f.meant(byID, d) {
				if err := h.holds(d.Type, d.Version, e.Digest()); err != nil {
					return err
				}
				r.held++
			}
		}
	}
	if r.held != len(uplink.Documents)*len(f.hosts) {
		return fmt.Errorf("%d documents are stored for %d machines", r.held, len(f.hosts))
	}
	sources, err := storedSources(ctx, kept)
	if err != nil {
		return err
	}
	for number, a := range f.ledger.asks {
		switch {
		case a.acked.IsZero():
		case !sources[sourceOf(number)]:
			return fmt.Errorf("request %d was acknowledged and is not stored", number)
		default:
			r.acknowledged++
		}
	}
	return nil
}

// meant are the hosts a document is for.
func (f *fleet) meant(byID map[string]*host, d control.Document) []*host {
	if d.VM == "" {
		return f.hosts
	}
	if h := byID[d.VM]; h != nil {
		return []*host{h}
	}
	return nil
}
