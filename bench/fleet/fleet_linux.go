package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
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
	perRequest   = 10 // machines in a request for several
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
	api        // to any replica
	o          options
	replicas   []*server
	crews      []*hired
	identities [][]byte // of the machines
	ledger     *ledger
	pin        policy.Digest
	quiet      hclog.Logger
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
	for i := range o.replicas {
		own := filepath.Join(dir, fmt.Sprintf("replica%d", i))
		if err := os.MkdirAll(own, 0o700); err != nil {
			return r, err
		}
		s, err := newServer(o.control, own, database)
		if err != nil {
			return r, err
		}
		f.replicas = append(f.replicas, s)
	}
	defer f.end()
	r = figures{agents: o.agents, replicas: o.replicas, store: o.store}
	fmt.Printf("\n%d agents, %s; load of the machine %s before\n", o.agents, r.plane(), loadAverage())
	for _, part := range []struct {
		name string
		run  func(context.Context, *figures) error
	}{
		{"preparing", f.prepare}, {"connecting", f.connect}, {"idle", f.idle}, {"load", f.load}, {"policy", f.policies},
		{"revoking", f.revocations}, {"storm", f.storm}, {"grants", f.grants}, {"expelling", f.expulsion}, {"account", f.account},
	} {
		if err := part.run(ctx, &r); err != nil {
			err = fmt.Errorf("%s: %w", part.name, err)
			for _, s := range f.replicas {
				err = s.complain(err)
			}
			return r, err
		}
		r.print(os.Stdout, part.name)
	}
	fmt.Printf("  load of the machine %s after\n", loadAverage())
	return r, nil
}

func (f *fleet) end() {
	for _, c := range f.crews {
		c.dismiss() // whatever it says, it is over
	}
	for _, s := range f.replicas {
		s.stop()
	}
}

// dsn is the control plane's database.
func (f *fleet) dsn() string {
	return cmp.Or(f.replicas[0].database, filepath.Join(f.replicas[0].data, "control.db"))
}

// listening are the addresses of the replicas.
func (f *fleet) listening() (list []string) {
	for _, s := range f.replicas {
		list = append(list, s.listen)
	}
	return list
}

// prepare starts the control plane with a policy for every machine, and all
// enrolled.
func (f *fleet) prepare(ctx context.Context, r *figures) error {
	// The first start makes the realm and the authorities.
	first := f.replicas[0]
	if err := first.start(ctx); err != nil {
		return err
	}
	first.stop()
	begin := time.Now()
	if err := f.enrol(ctx); err != nil {
		return err
	}
	r.enrolled = time.Since(begin)
	for _, s := range f.replicas {
		if s != first {
			if out, err := exec.Command("cp", "-a", first.data, s.data).CombinedOutput(); err != nil {
				return fmt.Errorf("another replica's data: %w: %s", err, out)
			}
		}
		if err := s.start(ctx); err != nil {
			return err
		}
	}
	f.api = f.anyReplica()
	begin = time.Now()
	if err := f.writePolicies(ctx, 0); err != nil {
		return err
	}
	r.written = time.Since(begin)
	return nil
}

// anyReplica is a way to the API whose connections go to the replicas in turn.
func (f *fleet) anyReplica() api {
	first, replicas := f.replicas[0], f.listening()
	var turn atomic.Int64
	return api{newClient(first.ca, func(ctx context.Context, network, address string) (net.Conn, error) {
		return balanced(&net.Dialer{}, replicas, int(turn.Add(1)))(ctx, network, address)
	}), first.url, first.token}
}

// longest is how long access may last by the policies of a generation.
func longest(generation int) time.Duration {
	return 3*time.Hour + time.Duration(generation)*time.Minute
}

// writePolicies writes the policies of all machines.
func (f *fleet) writePolicies(ctx context.Context, generation int) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(writers)
	for first := 0; first < f.o.agents; first += perPolicy {
		g.Go(func() error {
			var vms []string
			for n := first; n < min(first+perPolicy, f.o.agents); n++ {
				vms = append(vms, fmt.Sprintf(`{"id":%q,"ports":[{"number":22,"protocol":"TCP","allowedSourceAddressPrefix":"*","maxRequestAccessDuration":"PT%dM"}]}`,
					machine(n), int(longest(generation).Minutes())))
			}
			body := `{"kind":"Basic","properties":{"virtualMachines":[` + strings.Join(vms, ",") + `]}}`
			_, err := f.call(ctx, http.MethodPut, policyOf(first)+"?api-version=2020-01-01", []byte(body))
			return err
		})
	}
	return g.Wait()
}

// scrape adds up the metrics of replicas.
func scrape(ctx context.Context, replicas []*server) (map[string]float64, error) {
	sum := map[string]float64{}
	for _, s := range replicas {
		m, err := s.scrape(ctx)
		if err != nil {
			return nil, err
		}
		for name, v := range m {
			sum[name] += v
		}
	}
	return sum, nil
}

// up are the replicas that have not been lost.
func (f *fleet) up() (list []*server) {
	for _, s := range f.replicas {
		if s.process != nil {
			list = append(list, s)
		}
	}
	return list
}

// connected is how many agents are on a line.
func (f *fleet) connected(ctx context.Context) (int, error) {
	m, err := scrape(ctx, f.up())
	return int(m["jitgate_agents_connected"]), err
}

// usage is what the replicas take up.
func (f *fleet) usage(ctx context.Context) (sum usage, err error) {
	for _, s := range f.up() {
		u, err := s.usage(ctx)
		if err != nil {
			return sum, err
		}
		sum.inUse += u.inUse
		sum.resident += u.resident
	}
	return sum, nil
}

// fallen is an error once a process has ended that was to go on.
func (f *fleet) fallen() (err error) {
	for _, s := range f.replicas {
		err = errors.Join(err, s.hasEnded())
	}
	for _, c := range f.crews {
		err = errors.Join(err, c.fallen())
	}
	return err
}

// until waits for a condition, for as long as anything may take to settle.
func (f *fleet) until(ctx context.Context, what string, every time.Duration, done func() (bool, error)) error {
	patience := settled + time.Duration(f.o.agents)*settledEach
	for deadline := time.Now().Add(patience); ; {
		ok, err := done()
		if err = errors.Join(err, f.fallen()); err != nil || ok {
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
	before, err := f.usage(ctx)
	if err != nil {
		return err
	}
	spent, err := f.spent(ctx, f.up())
	if err != nil {
		return err
	}
	f.ledger.expect(longest(0))
	begin := time.Now()
	if err := f.muster(); err != nil {
		return err
	}
	if err := f.arrived(ctx); err != nil {
		return err
	}
	_, last := f.ledger.guarded()
	r.connected = last.Sub(begin)
	if err := f.quietDown(ctx); err != nil {
		return err
	}
	now, err := f.spent(ctx, f.up())
	if err != nil {
		return err
	}
	r.connectCPU = now.since(spent, f.o.agents)
	after, err := f.usage(ctx)
	if err != nil {
		return err
	}
	r.inUse = (after.inUse - before.inUse) / float64(f.o.agents)
	r.resident = (after.resident - before.resident) / float64(f.o.agents)
	return nil
}

// muster starts the machines.
func (f *fleet) muster() error {
	n, err := crews(f.o.agents)
	if err != nil {
		return err
	}
	first := 0
	for some := range slices.Chunk(f.identities, (f.o.agents+n-1)/n) {
		c, err := f.hire(orders{First: first, Identities: some, Replicas: f.listening(), Roots: f.replicas[0].ca, Pin: f.pin})
		if err != nil {
			return err
		}
		f.crews = append(f.crews, c)
		first += len(some)
	}
	return nil
}

// arrived waits until every machine has the policy that is expected.
func (f *fleet) arrived(ctx context.Context) error {
	return f.until(ctx, "all machines have their policy", 5*time.Millisecond, func() (bool, error) {
		n, _ := f.ledger.guarded()
		return n == f.o.agents, nil
	})
}

// quietDown waits until the agents have said all they have to say.
func (f *fleet) quietDown(ctx context.Context) error {
	last := -1.0
	return f.until(ctx, "the agents have nothing more to say", 500*time.Millisecond, func() (bool, error) {
		m, err := scrape(ctx, f.up())
		before := last
		last = m["jitgate_agent_reports_total"]
		return last == before, err
	})
}

// ask asks for access to machines of one policy by Azure's API, with a source for
// each. The first of them has the number that is returned.
func (f *fleet) ask(ctx context.Context, a api, machines ...int) (number int, err error) {
	number, sources := f.ledger.begin(machines)
	if err = a.initiate(ctx, machines, sources); err == nil {
		f.ledger.acknowledged(number, len(machines))
	}
	return number, err
}

// any is any machine.
func (f *fleet) any() int { return rand.IntN(f.o.agents) }

// some are any machines of one policy, which has as many of them.
func (f *fleet) some(n int) (machines []int) {
	first := f.any() / perPolicy * perPolicy
	of := min(perPolicy, f.o.agents-first)
	for _, i := range rand.Perm(of)[:min(n, of)] {
		machines = append(machines, first+i)
	}
	return machines
}

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
	for range min(idleTurns, 2*f.o.agents) {
		number, err := f.ask(ctx, f.api, f.any())
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

// load asks for one machine at a time.
func (f *fleet) load(ctx context.Context, r *figures) (err error) {
	r.load, err = f.pour(ctx, "load", 1)
	return err
}

// grants asks for several machines at a time.
func (f *fleet) grants(ctx context.Context, r *figures) (err error) {
	r.grants, err = f.pour(ctx, "grants", perRequest)
	return err
}

// poured is what came of asking at a rate.
type poured struct {
	rate                float64 // reached, in grants a second
	call, stored, whole sample  // of each grant
	cpu                 used    // by each grant
}

// pour asks for so many grants a second, some in each request, whatever the
// answers take.
func (f *fleet) pour(ctx context.Context, part string, each int) (p poured, err error) {
	from := f.ledger.count()
	spent, err := f.spent(ctx, f.up())
	if err != nil {
		return p, err
	}
	profiled := f.profile(ctx, part)
	begin := time.Now()
	g, working := errgroup.WithContext(ctx)
	g.SetLimit(callers)
	every := time.Second * time.Duration(each) / time.Duration(f.o.rate)
	for i := range f.o.seconds * f.o.rate / each {
		if wait := time.Until(begin.Add(time.Duration(i) * every)); wait > 0 {
			if err := pause(ctx, wait); err != nil {
				return p, err
			}
		}
		g.Go(func() error { _, err := f.ask(working, f.api, f.some(each)...); return err })
	}
	if err := g.Wait(); err != nil {
		return p, err
	}
	total := f.ledger.count() - from
	p.rate = float64(total) / time.Since(begin).Seconds()
	if err := f.granted(ctx, from); err != nil {
		return p, err
	}
	p.call, p.stored, p.whole = f.times(from)
	now, err := f.spent(ctx, f.up())
	p.cpu = now.since(spent, total)
	return p, errors.Join(err, profiled(), f.quietDown(ctx))
}

// policies changes the policy of every machine.
func (f *fleet) policies(ctx context.Context, r *figures) error {
	f.ledger.expect(longest(1))
	spent, err := f.spent(ctx, f.up())
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
	now, err := f.spent(ctx, f.up())
	r.policyCPU = now.since(spent, f.o.agents)
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
		if _, err := f.call(ctx, http.MethodPost, "/api/v1/requests/"+q.ID+"/revoke", []byte(`{"reason":"measured"}`)); err != nil {
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

// storm kills a server while requests come in, and starts it again. One of
// several replicas is lost for good.
func (f *fleet) storm(ctx context.Context, r *figures) error {
	from := f.ledger.count()
	calls := f.knock(ctx)
	defer calls.end()
	if err := pause(ctx, 500*time.Millisecond); err != nil {
		return err
	}
	victim := f.replicas[len(f.replicas)-1]
	others := f.replicas[:len(f.replicas)-1]
	before, err := f.spent(ctx, others)
	if err != nil {
		return err
	}
	victim.kill()
	down := time.Now()
	if len(others) == 0 {
		if err := victim.launch(); err != nil {
			return err
		}
	}
	if err := f.until(ctx, "somebody is answered", 10*time.Millisecond, func() (bool, error) {
		return len(calls.since(down)) > 0, nil
	}); err != nil {
		return err
	}
	returned := calls.since(down)[0].ended
	profiled := f.profile(ctx, "storm")
	err = f.until(ctx, "all machines are back", 100*time.Millisecond, func() (bool, error) {
		n, err := f.connected(ctx)
		return n == f.o.agents, err
	})
	r.storm, r.away = time.Since(returned), returned.Sub(down)
	if len(others) > 0 {
		r.storm = time.Since(down)
	}
	calls.end()
	for _, m := range calls.since(down) {
		if m.err != nil {
			r.refused++
		} else {
			r.stormCalls = append(r.stormCalls, m.ended.Sub(m.began))
		}
	}
	if err := errors.Join(err, profiled(), f.granted(ctx, from), f.quietDown(ctx)); err != nil {
		return err
	}
	after, err := f.spent(ctx, f.up())
	r.stormCPU = after.since(before, f.o.agents) // what was started again has had none before
	return err
}

// How often it is knocked: also while nobody answers.
const (
	knockEvery = 50 * time.Millisecond
	lookEvery  = 5 * time.Millisecond
)

// knocking is one call after another, each on a connection of its own.
type knocking struct {
	stop context.CancelFunc
	over sync.WaitGroup

	mu   sync.Mutex
	made []made
}

// made is a call, and what became of it.
type made struct {
	began, ended time.Time
	err          error
}

// knock asks for access to any machine, again and again, until that is ended.
func (f *fleet) knock(ctx context.Context) *knocking {
	ctx, stop := context.WithCancel(ctx)
	k := &knocking{stop: stop}
	k.over.Go(func() {
		for a := f.anyReplica(); ctx.Err() == nil; {
			m, wait := made{began: time.Now()}, knockEvery
			if _, m.err = f.ask(ctx, a, f.any()); m.err != nil {
				wait = lookEvery
			}
			m.ended = time.Now()
			a.client.CloseIdleConnections()
			if ctx.Err() == nil {
				k.mu.Lock()
				k.made = append(k.made, m)
				k.mu.Unlock()
			}
			pause(ctx, wait)
		}
	})
	return k
}

// since returns the calls from the first on that began after a time and was
// answered.
func (k *knocking) since(t time.Time) []made {
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, m := range k.made {
		if m.err == nil && m.began.After(t) {
			return slices.Clone(k.made[i:])
		}
	}
	return nil
}

// end ends it. Of a call that is under way then nothing is known.
func (k *knocking) end() {
	k.stop()
	k.over.Wait()
}

// expulsion ends the agents of some machines for good.
func (f *fleet) expulsion(ctx context.Context, r *figures) error {
	n, err := f.connected(ctx)
	if err != nil {
		return err
	}
	for i := range min(revokeTurns, f.o.agents/2) {
		begin := time.Now()
		if _, err := f.call(ctx, http.MethodPost, "/api/v1/vms/"+strings.TrimPrefix(machine(i), "/")+"/agent/revoke", []byte(`{"reason":"measured"}`)); err != nil {
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
	have := map[string]policy.State{}
	for _, c := range f.crews {
		if err := c.dismiss(); err != nil {
			return err
		}
		for n, s := range c.states {
			have[machine(n)] = s
		}
	}
	f.crews = nil
	for _, s := range f.replicas {
		s.stop()
	}
	kept, err := store.Open(ctx, f.dsn(), f.quiet)
	if err != nil {
		return err
	}
	defer kept.Close()
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
			n, err := holders(have, d)
			if err != nil {
				return err
			}
			r.held += n
		}
	}
	if r.held != len(uplink.Documents)*f.o.agents {
		return fmt.Errorf("%d documents are stored for %d machines", r.held, f.o.agents)
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

// holders is how many machines have a stored document: all that it is for.
func holders(have map[string]policy.State, d control.Document) (int, error) {
	e, err := policy.ParseEnvelope(d.Signed)
	if err != nil {
		return 0, err
	}
	meant := have
	if d.VM != "" {
		meant = map[string]policy.State{d.VM: have[d.VM]}
	}
	for id, state := range meant {
		if m := markOf(state, d.Type); m.Version != d.Version || m.Digest != e.Digest() {
			return 0, fmt.Errorf("%s has version %d of its %s, and version %d is stored", id, m.Version, word[d.Type], d.Version)
		}
	}
	return len(meant), nil
}
