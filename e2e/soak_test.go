//go:build linux && soak

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	soakMinutes = flag.Float64("minutes", 30, "how long the soak acts")
	soakAgents  = flag.Int("agents", 200, "how many hosts it has")
	soakSeed    = flag.Uint64("seed", 0, "of its schedule; 0: another each time")
)

// How much is done.
const (
	mostActions = 5.0              // a second; a host has one every two seconds at most
	perHost     = 60 * time.Second // between two faults of a host, with few hosts
	leastFault  = 2 * time.Second  // between two faults
	sweeps      = 10               // a second, of all doors of a host

	restsWithin = 10 * time.Minute // after the last fault; a standstill is one

	mostViolations = 20 // of one run
)

// The network: all sources and the control plane stand outside, and each host
// hangs there by a cable of its own.
var (
	soakPorts   = []uint16{22, 2222, 3389, 8080}
	soakSources = []netip.Addr{
		netip.MustParseAddr("10.77.0.2"), netip.MustParseAddr("10.77.0.3"), netip.MustParseAddr("10.77.0.130"), netip.MustParseAddr("10.77.0.131"),
		netip.MustParseAddr("fd77::2"), netip.MustParseAddr("fd77::8002"),
	}
	// What may be asked for beside single addresses.
	soakNetworks = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/25"), netip.MustParsePrefix("10.77.0.128/25")}
	// What a policy lets a port be asked from. With the last it does not name it.
	soakRules = [][]string{
		{"*"}, {"*"}, {"*"}, {"10.77.0.0/24", "fd77::/64"}, {"10.77.0.0/25", "fd77::/112"}, {"10.77.0.128/25"}, {"192.0.2.0/24"}, nil,
	}
)

const (
	soakGroup    = "/subscriptions/" + subscription + "/resourceGroups/soak"
	soakGateway4 = "10.77.255.254"
	perPolicy    = 20          // hosts
	firstUser    = 700_000_000 // nobody's
)

// soak is the whole: a control plane, its hosts, and what was promised of them.
type soak struct {
	t       *testing.T
	dir     string // with the logs; kept if something is wrong
	outside *namespace
	plane   *plane
	client  *http.Client
	admin   string
	hosts   []*soakHost
	begun   time.Time
	giveUp  context.CancelCauseFunc
	all     sync.WaitGroup // of what acts, disturbs and looks
	tick    atomic.Int64   // when this machine was last seen not to stand still

	agentOf, planeOf runtimeOf // how their memory is read

	mu         sync.Mutex
	counts     map[string]int
	violations int
	exposed    time.Duration // the longest time in which, as documented, nothing guarded
	// Of its life that goes on.
	planeProcess int
	planeSince   time.Time
	planeBase    *usage
}

// soakHost is one host with what was promised of it.
type soakHost struct {
	*host
	id     string
	v4, v6 netip.Addr
	user   uint32 // who its programs are: what the kernel lets a user have is for a host

	guard, fetcher *program // restarted by one fault at a time

	mu      sync.Mutex
	ledger  ledger
	acting  bool // a call about it is on its way
	failing bool // a fault goes on
}

// program is one of the two programs of a host, in one of its lives.
type program struct {
	cmd     *exec.Cmd
	ended   chan struct{}
	since   time.Time
	expects chan struct{} // closed when its end is wanted
	base    *usage
}

func TestSoak(t *testing.T) {
	privileged(t)
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, giveUp := context.WithCancelCause(ctx)
	seed := *soakSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano()) % 1_000_000
	}
	s := newSoak(t)
	s.giveUp = giveUp
	attending, attended := context.WithCancel(ctx)
	var clock sync.WaitGroup
	clock.Go(func() { s.attendTime(attending) })
	t.Cleanup(clock.Wait)
	t.Cleanup(attended)
	s.say("soak of %g minutes with %d agents, seed %d; logs in %s", *soakMinutes, *soakAgents, seed, s.dir)
	s.enrol(ctx)
	s.say("all hosts are enrolled and guarded")
	s.warmUp(ctx)
	s.baseline(0)
	s.say("each host was opened and closed once; what the programs take up is noted")

	acting, end := context.WithTimeout(ctx, time.Duration(*soakMinutes*float64(time.Minute)))
	defer end()
	s.begun = time.Now()
	// What has begun is brought to its end: only an interrupt cuts it off.
	s.all.Go(func() { s.act(ctx, acting, rand.New(rand.NewPCG(seed, 1))) })
	s.all.Go(func() { s.disrupt(ctx, acting, rand.New(rand.NewPCG(seed, 2))) })
	s.all.Go(func() { s.progress(acting) })
	for i := range sweeps / 2 {
		s.all.Go(func() { s.sweep(acting, rand.New(rand.NewPCG(seed, 3+uint64(i)))) })
	}
	// Here, since only the test's own goroutine may give up.
	s.killPlane(ctx, acting, rand.New(rand.NewPCG(seed, 100)))
	s.all.Wait()
	s.goesOn(ctx)
	s.say("no more faults: each door is to be as promised")
	s.comesRight(ctx, "after the faults")
	s.say("all requests are revoked: each door is to be closed")
	s.revokeAll(ctx)
	s.comesRight(ctx, "after the end of all requests")
	s.account()
}

// goesOn ends the test if it was interrupted, or has failed too often.
func (s *soak) goesOn(ctx context.Context) {
	s.t.Helper()
	if ctx.Err() != nil {
		s.t.Fatal(context.Cause(ctx))
	}
}

// newSoak makes the world of a soak: a control plane that runs and hosts that
// do not yet.
func newSoak(t *testing.T) *soak {
	t.Helper()
	dir, err := os.MkdirTemp("", "jitgate-soak-")
	if err != nil {
		t.Fatal(err)
	}
	// The programs run as others.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(programs, 0o755)); err != nil {
		t.Fatal(err)
	}
	s := &soak{t: t, dir: dir, outside: newNamespace(t), counts: map[string]int{}}
	t.Cleanup(func() {
		if t.Failed() {
			fmt.Println("the logs are kept in", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	program, err := jitgate()
	if err == nil {
		s.agentOf, err = newRuntimeOf(program)
	}
	if err == nil {
		program, err = jitgateControl()
	}
	if err == nil {
		s.planeOf, err = newRuntimeOf(program)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range append([]string{control4 + "/32", soakGateway4 + "/32"}, addresses(soakSources)...) {
		s.outside.run(t, "ip", "addr", "add", a, "dev", "lo", "nodad")
	}
	s.outside.run(t, "ip", "link", "set", "lo", "up")
	for i := range *soakAgents {
		s.hosts = append(s.hosts, s.newHost(i))
	}
	t.Cleanup(s.endPrograms)
	t.Cleanup(s.all.Wait)
	s.plane = newPlane(t, s.outside, control4+":8443")
	s.plane.dir = filepath.Join(dir, "control")
	if err := os.Mkdir(s.plane.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.startPlane()
	s.client, s.admin = s.plane.client(""), s.plane.read("admin.token")
	return s
}

func addresses(list []netip.Addr) (out []string) {
	for _, a := range list {
		out = append(out, netip.PrefixFrom(a, a.BitLen()).String())
	}
	return out
}

// newHost makes a host and its cable. All have one neighbour, so that the
// kernel's tables of neighbours do not overflow.
func (s *soak) newHost(number int) *soakHost {
	t := s.t
	t.Helper()
	program, err := jitgate()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("h%03d", number)
	h := &soakHost{
		host: &host{t: t, vm: newNamespace(t), outside: s.outside, program: program, dir: filepath.Join(s.dir, name)},
		id:   soakGroup + "/providers/Microsoft.Compute/virtualMachines/" + name,
		v4:   netip.AddrFrom4([4]byte{10, 77, byte(1 + number/250), byte(1 + number%250)}),
		v6:   netip.MustParseAddr(fmt.Sprintf("fd77:1::%x", 1+number)),
		user: firstUser + uint32(number),
	}
	err = os.Mkdir(h.dir, 0o755)
	for _, dir := range []string{"inbox", "state", "run", "fetch"} {
		err = errors.Join(err, os.Mkdir(h.path(dir), 0o755), os.Chown(h.path(dir), int(h.user), int(h.user)))
	}
	if err := errors.Join(err, os.Symlink("run/agent.sock", h.path("agent.sock"))); err != nil {
		t.Fatal(err)
	}
	cable := fmt.Sprintf("p%d", number)
	s.outside.run(t, "ip", "link", "add", cable, "type", "veth", "peer", "name", "v0", "netns", h.vm.path)
	for _, c := range []string{
		"addr add fe80::1/64 dev CABLE nodad", "link set CABLE up",
		"route add " + h.v4.String() + "/32 dev CABLE src " + soakGateway4, "route add " + h.v6.String() + "/128 dev CABLE",
	} {
		s.outside.run(t, "ip", strings.Fields(strings.ReplaceAll(c, "CABLE", cable))...)
	}
	for _, c := range []string{
		"link set lo up", "addr add " + h.v4.String() + "/32 dev v0", "addr add " + h.v6.String() + "/128 dev v0 nodad", "link set v0 up",
		"route add 10.77.0.0/16 via " + soakGateway4 + " dev v0 onlink", "route add fd77::/64 via fe80::1 dev v0",
	} {
		h.vm.run(t, "ip", strings.Fields(c)...)
	}
	guard := strings.Join(strings.Fields(fmt.Sprint(soakPorts)), ", ")
	h.settings = map[string]string{
		"host_id": quote(h.id), "mode": quote("enforce"), "guard": guard,
		"inbox_dir": quote(h.path("inbox")), "state_dir": quote(h.path("state")), "socket": quote(h.path("run", "agent.sock")),
	}
	config := h.writeSettings("agent.toml", h.settings)
	text, err := os.ReadFile(config)
	if err == nil {
		err = os.WriteFile(config, append(text, "\n[control]\nidentity_dir = "+quote(h.path("fetch"))+"\n"...), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	h.edited = true
	return h
}

// enrol writes the first policies, makes every host known and starts it.
func (s *soak) enrol(ctx context.Context) {
	s.t.Helper()
	first := askedByAll()
	for list := range slices.Chunk(s.hosts, perPolicy) {
		var vms []object
		for _, h := range list {
			h.ledger.rules = prefixesOf(first)
			vms = append(vms, object{"id": h.id, "ports": rulesOf(first)})
		}
		name := "of-" + filepath.Base(list[0].dir)
		path := soakGroup + "/providers/Microsoft.Security/locations/" + location + "/jitNetworkAccessPolicies/" + name + "?api-version=2020-01-01"
		s.plane.want(200, s.admin, "PUT", path, object{"kind": "Basic", "properties": object{"virtualMachines": vms}})
	}
	token := joinToken(s.plane, "--scope", soakGroup, "--uses", fmt.Sprint(len(s.hosts)))
	s.each(4, func(h *soakHost) error {
		cmd := h.on("enroll", "--control", s.plane.url(""), "--token", token, "--config", h.config())
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := h.vm.start(cmd); err != nil {
			return err
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, &out)
		}
		err := s.startAgent(ctx, h)
		if err == nil {
			err = s.startFetcher(h)
		}
		return err
	})
	s.each(4, func(h *soakHost) error {
		for deadline := time.Now().Add(2 * patience); ; time.Sleep(100 * time.Millisecond) {
			st, err := h.ask()
			if err == nil && st.document("policy").Version > 0 && st.Intact && !st.others() {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no policy: %v %+v", err, st)
			}
		}
	})
}

// each does something with every host, some at a time, and requires that it
// works.
func (s *soak) each(atOnce int, do func(*soakHost) error) {
	s.t.Helper()
	turns := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for _, h := range s.hosts {
		turns <- struct{}{}
		all.Go(func() {
			if err := do(h); err != nil {
				s.violated(h, "%v", err)
			}
			<-turns
		})
	}
	all.Wait()
	if s.t.Failed() {
		s.t.FailNow()
	}
}

// launch starts a program of a host. Its end is a violation unless it is
// wanted.
func (s *soak) launch(h *soakHost, log string, args ...string) (*program, error) {
	to, err := os.OpenFile(h.path(log), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer to.Close()
	p := &program{cmd: h.on(args...), ended: make(chan struct{}), expects: make(chan struct{}), since: time.Now()}
	p.cmd.Stdout, p.cmd.Stderr = to, to
	p.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: h.user, Gid: h.user},
		AmbientCaps: []uintptr{unix.CAP_NET_ADMIN}, // as the agent's unit has it
	}
	if err := h.vm.start(p.cmd); err != nil {
		return nil, err
	}
	go func() {
		err := p.cmd.Wait()
		select {
		case <-p.expects:
		case <-s.t.Context().Done():
		default:
			s.violated(h, "%s ended by itself: %v", strings.Join(args, " "), err)
		}
		close(p.ended)
	}()
	return p, nil
}

// end ends a program, which has to obey.
func (p *program) end(how syscall.Signal) error {
	close(p.expects)
	if err := p.cmd.Process.Signal(how); err != nil {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(2 * patience):
		return fmt.Errorf("%v did not end it", how)
	}
}

// endPrograms kills what runs on the hosts.
func (s *soak) endPrograms() {
	for _, h := range s.hosts {
		for _, p := range []*program{h.guard, h.fetcher} {
			if p != nil {
				p.cmd.Process.Kill() // it may have ended
				<-p.ended
			}
		}
	}
}

// startAgent starts the agent and waits until it guards.
func (s *soak) startAgent(ctx context.Context, h *soakHost) error {
	p, err := s.launch(h, "agent.log", "agent", "run", "--config", h.config())
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.guard = p
	h.mu.Unlock()
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(20 * time.Millisecond) {
		st, err := h.ask()
		if err == nil && st.Intact {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the agent should guard: %v %+v", err, st)
		}
	}
}

func (s *soak) startFetcher(h *soakHost) error {
	p, err := s.launch(h, "fetch.log", "fetch", "--config", h.config())
	if err == nil {
		h.mu.Lock()
		h.fetcher = p
		h.mu.Unlock()
	}
	return err
}

// warmUp opens and closes one door of each host. The doors are seen to be
// closed, open and closed: a world in which nothing arrives would pass too.
func (s *soak) warmUp(ctx context.Context) {
	s.t.Helper()
	d := door{soakPorts[0], soakSources[0]}
	s.each(8, func(h *soakHost) error {
		if open, err := s.knock(h, d); err != nil || open {
			return fmt.Errorf("nothing was asked for, and %s is open (%v)", d, err)
		}
		s.request(ctx, h, d.port, netip.PrefixFrom(d.source, 32), time.Hour)
		return s.becomes(h, d, true)
	})
	s.revokeAll(ctx)
	s.each(8, func(h *soakHost) error { return s.becomes(h, d, false) })
}

// becomes waits until a door is open, or closed.
func (s *soak) becomes(h *soakHost, d door, want bool) error {
	for deadline := time.Now().Add(2 * patience); ; time.Sleep(50 * time.Millisecond) {
		open, err := s.knock(h, d)
		if err != nil || open == want {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s stays open: %v", d, open)
		}
	}
}

// askedByAll is a policy by which everybody may ask for everything.
func askedByAll() map[uint16][]string {
	out := map[uint16][]string{}
	for _, port := range soakPorts {
		out[port] = []string{"*"}
	}
	return out
}

// rulesOf are the ports of a policy as the API has them.
func rulesOf(sources map[uint16][]string) (list []object) {
	for _, port := range soakPorts {
		if s := sources[port]; s != nil {
			list = append(list, object{"number": port, "protocol": "TCP", "allowedSourceAddressPrefixes": s, "maxRequestAccessDuration": "PT3H"})
		}
	}
	return list
}

// prefixesOf are they as the oracle has them.
func prefixesOf(sources map[uint16][]string) map[uint16][]netip.Prefix {
	out := map[uint16][]netip.Prefix{}
	for port, list := range sources {
		for _, s := range list {
			if s == "*" {
				out[port] = append(out[port], everybody...)
			} else {
				out[port] = append(out[port], netip.MustParsePrefix(s))
			}
		}
	}
	return out
}

// act does what people do, while acting lasts.
func (s *soak) act(ctx, acting context.Context, r *rand.Rand) {
	every := time.Duration(float64(time.Second) / min(mostActions, float64(len(s.hosts))/2))
	for wait(acting, every) {
		h := s.hosts[r.IntN(len(s.hosts))]
		what, port, source, length := r.IntN(20), soakPorts[r.IntN(len(soakPorts))], randomSource(r), randomLength(r)
		which := r.IntN(100)
		rules := map[uint16][]string{}
		for _, p := range soakPorts {
			rules[p] = soakRules[r.IntN(len(soakRules))]
		}
		h.mu.Lock()
		busy := h.acting
		h.acting = true
		open := h.ledger.open(time.Now())
		h.mu.Unlock()
		if busy {
			continue
		}
		s.all.Go(func() {
			defer func() {
				h.mu.Lock()
				h.acting = false
				h.mu.Unlock()
			}()
			switch {
			case what < 3 && len(open) > 0:
				s.revoke(ctx, h, open[which%len(open)])
			case what < 5 && len(open) > 0:
				s.extend(ctx, h, open[which%len(open)], length)
			case what < 7:
				s.edit(ctx, h, rules)
			default:
				s.request(ctx, h, port, source, length)
			}
		})
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

func randomSource(r *rand.Rand) netip.Prefix {
	if r.IntN(6) == 0 {
		return soakNetworks[r.IntN(len(soakNetworks))]
	}
	a := soakSources[r.IntN(len(soakSources))]
	return netip.PrefixFrom(a, a.BitLen())
}

func randomLength(r *rand.Rand) time.Duration {
	switch n := r.IntN(10); {
	case n < 4:
		return time.Duration(2+r.IntN(14)) * time.Second
	case n < 7:
		return time.Duration(15+r.IntN(105)) * time.Second
	default:
		return time.Duration(2+r.IntN(58)) * time.Minute
	}
}

// answer is what the control plane said.
type answer struct {
	status  int
	body    object
	code    string // of a refusal
	perhaps bool   // an earlier try, whose answer was lost, may have done it
}

// call calls until there is an answer that counts: a control plane that is away
// or busy is asked again.
func (s *soak) call(ctx context.Context, method, path string, body any) (a answer, err error) {
	for ; ctx.Err() == nil; wait(ctx, 500*time.Millisecond) {
		a.status, a.body, err = s.callOnce(ctx, method, path, body)
		if err != nil {
			a.perhaps = true
			s.count(asTry + "without an answer")
			continue
		}
		refusal, _ := a.body["error"].(map[string]any)
		a.code, _ = refusal["code"].(string)
		switch {
		case a.status == http.StatusServiceUnavailable || a.status == http.StatusTooManyRequests && a.code != "TooManyGrants":
			a.perhaps = a.perhaps || a.status == http.StatusServiceUnavailable
			s.count(asTry + "told to come back")
			continue
		case a.status/100 == 5:
			s.violated(nil, "%s %s is answered %d: %v", method, path, a.status, a.body)
		}
		return a, nil
	}
	return a, errors.Join(err, ctx.Err())
}

func (s *soak) callOnce(ctx context.Context, method, path string, body any) (status int, answer object, err error) {
	r, err := http.NewRequestWithContext(ctx, method, s.plane.url(path), bytes.NewReader(encode(body)))
	if err != nil {
		return 0, nil, err
	}
	r.Header.Set("Authorization", "Bearer "+s.admin)
	r.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		r.Header.Set("If-Match", "*")
	}
	w, err := s.client.Do(r)
	if err != nil {
		return 0, nil, err
	}
	defer w.Body.Close()
	content, err := io.ReadAll(w.Body)
	if err == nil && len(content) > 0 {
		err = json.Unmarshal(content, &answer)
	}
	return w.StatusCode, answer, err
}

func iso(d time.Duration) string { return fmt.Sprintf("PT%dS", int(d/time.Second)) }

// request asks for a port, for so long. The answer has to be what the policy
// says.
func (s *soak) request(ctx context.Context, h *soakHost, port uint16, source netip.Prefix, length time.Duration) {
	h.mu.Lock()
	p := h.ledger.ask(port, source, length, time.Now())
	permitted := h.ledger.permits(port, source)
	h.mu.Unlock()
	text := source.String()
	if source.IsSingleIP() {
		text = source.Addr().String()
	}
	a, err := s.call(ctx, "POST", "/api/v1/vms"+h.id+"/request", object{"justification": "soak", "ports": []object{
		{"number": port, "duration": iso(length), "allowedSourceAddressPrefix": text}}})
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case err != nil: // it stays open whether it was granted
	case a.status/100 == 2 && permitted:
		request := a.body["value"].([]any)[0].(map[string]any)["id"].(string)
		h.ledger.granted(p, request, length, time.Now())
		s.count("requests granted")
	case a.status/100 == 2:
		s.violated(h, "the policy does not let %s ask for port %d, and it was granted", source, port)
	default:
		if p.may = time.Now().Add(length + pastEnd); !a.perhaps {
			h.ledger.refused(p)
		}
		s.count("requests refused")
		if permitted && a.code != "TooManyGrants" {
			s.violated(h, "%s may ask for port %d, and is answered %d: %v", source, port, a.status, a.body)
		}
	}
}

// revoke takes a request back. It may be over already.
func (s *soak) revoke(ctx context.Context, h *soakHost, p *promise) {
	h.mu.Lock()
	end([]*promise{p}, time.Now())
	h.mu.Unlock()
	a, err := s.call(ctx, "POST", "/api/v1/requests/"+p.request+"/revoke", object{"reason": "soak"})
	if err != nil {
		return
	}
	h.mu.Lock()
	ended([]*promise{p}, time.Now())
	h.mu.Unlock()
	s.count("revocations")
	if a.status/100 != 2 && a.status != http.StatusConflict {
		s.violated(h, "revoking %s is answered %d: %v", p.request, a.status, a.body)
	}
}

// extend asks that a request go on for so long from now.
func (s *soak) extend(ctx context.Context, h *soakHost, p *promise, length time.Duration) {
	h.mu.Lock()
	may, must, acked := p.may, p.must, p.acked
	now := time.Now()
	p.may, p.acked = never, never
	if until := now.Add(length - beforeEnd); until.Before(must) {
		p.must = until
	}
	h.mu.Unlock()
	a, err := s.call(ctx, "POST", "/api/v1/requests/"+p.request+"/extend", object{"duration": iso(length), "reason": "soak"})
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.status/100 != 2 {
		p.may, p.must, p.acked = may, must, acked
		if a.perhaps { // the try before may have extended it, or shortened it
			p.may, p.acked = later(may, time.Now().Add(length+pastEnd)), time.Time{}
		}
		s.count("extensions refused")
		if time.Now().Before(must) && a.code != "TooManyGrants" {
			s.violated(h, "extending %s is answered %d: %v", p.request, a.status, a.body)
		}
		return
	}
	answered := time.Now()
	p.acked, p.must = answered, now.Add(length-beforeEnd)
	p.may = later(may, answered.Add(length+pastEnd)) // of a shortened one the host may not have heard
	s.count("extensions")
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// edit gives a host other rules. What they leave no room for ends.
func (s *soak) edit(ctx context.Context, h *soakHost, sources map[uint16][]string) {
	rules, ports := prefixesOf(sources), rulesOf(sources)
	if ports == nil {
		return // a policy names a machine with a port at least
	}
	h.mu.Lock()
	ending, free := h.ledger.prescribe(rules, time.Now())
	h.mu.Unlock()
	a, err := s.call(ctx, "PATCH", "/api/v1/vms"+h.id, object{"ports": ports})
	if err != nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if a.status/100 != 2 {
		s.violated(h, "an edit of the policy is answered %d: %v", a.status, a.body)
		return
	}
	h.ledger.prescribed(rules, ending, free, time.Now())
	s.count("edits")
}

// revokeAll guards every port again, and takes back every request whose end the
// host may not have heard of.
func (s *soak) revokeAll(ctx context.Context) {
	s.each(4, func(h *soakHost) error {
		h.mu.Lock()
		var list []*promise
		for _, p := range h.ledger.promises {
			if p.request != "" && p.over.IsZero() && time.Now().Before(p.may) {
				list = append(list, p)
			}
		}
		h.mu.Unlock()
		s.edit(ctx, h, askedByAll())
		for _, p := range list {
			s.revoke(ctx, h, p)
		}
		return nil
	})
}

// knock tries one door with one packet.
func (s *soak) knock(h *soakHost, d door) (open bool, err error) {
	to := h.v4
	if d.source.Is6() {
		to = h.v6
	}
	fd, err := s.outside.send("tcp", d.source, netip.AddrPortFrom(to, d.port))
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	open, err = answered(fd, unix.POLLOUT, answerTime)
	if errors.Is(err, unix.ETIMEDOUT) { // the machine stood still for minutes
		return false, nil
	}
	return open, err
}

// doors are all there are.
func doors() (list []door) {
	for _, port := range soakPorts {
		for _, source := range soakSources {
			list = append(list, door{port, source})
		}
	}
	return list
}

// sweep tries all doors of one host after another.
func (s *soak) sweep(ctx context.Context, r *rand.Rand) {
	for wait(ctx, 2*time.Second/sweeps) {
		h := s.hosts[r.IntN(len(s.hosts))]
		missed := s.look(h, doors(), false)
		for range 3 { // a busy machine may answer late
			if len(missed) == 0 || !wait(ctx, time.Second) {
				break
			}
			missed = s.look(h, missed, false)
		}
		if ctx.Err() != nil {
			return
		}
		for _, d := range missed {
			s.violatedAt(h, d, "is closed, and was granted")
		}
	}
}

// look tries doors of a host, all at once, and holds them against the oracle.
// missed are those that were closed and must not be. With quiet a door that is
// open and must not be is among them too, and no violation yet.
func (s *soak) look(h *soakHost, list []door, quiet bool) (missed []door) {
	var mu sync.Mutex
	var all sync.WaitGroup
	for _, d := range list {
		all.Go(func() {
			begin := time.Now()
			open, err := s.knock(h, d)
			now := time.Now()
			h.mu.Lock()
			if s.steady() {
				h.ledger.pass(now)
			}
			may, must, left := h.ledger.may(d, begin, now), h.ledger.must(d, begin, now), h.ledger.left(begin, now)
			h.mu.Unlock()
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err != nil:
				s.violatedAt(h, d, "cannot be tried: %v", err)
			case open && !may && left:
				s.count(unguarded)
			case open && !may && quiet:
				missed = append(missed, d)
			case open && !may:
				s.violatedAt(h, d, "is open, and nothing was granted")
			case !open && must:
				missed = append(missed, d)
			}
			s.count(map[bool]string{true: letIn, false: notLetIn}[open])
		})
	}
	all.Wait()
	return missed
}

// comesRight waits until every door of every host is as promised.
func (s *soak) comesRight(ctx context.Context, when string) {
	s.t.Helper()
	begun := time.Now()
	var failed atomic.Bool
	for _, h := range s.hosts {
		h.mu.Lock()
		h.ledger.unguarded = nil
		h.mu.Unlock()
	}
	turns := make(chan struct{}, 8)
	var all sync.WaitGroup
	for _, h := range s.hosts {
		all.Go(func() {
			var since time.Time // that something is wrong and nothing is on its way
			for ctx.Err() == nil {
				turns <- struct{}{}
				missed := s.look(h, doors(), true)
				<-turns
				h.mu.Lock()
				now := time.Now()
				sure := s.steady() && h.ledger.sure(now)
				h.mu.Unlock()
				switch {
				case !sure && now.Sub(begun) > restsWithin:
					failed.Store(true)
					for _, d := range doors() {
						s.violatedAt(h, d, "is not sure %s, and nothing happens any more", when)
					}
					return
				case !sure:
					since = time.Time{}
				case len(missed) == 0:
					return
				case since.IsZero():
					since = now
				case now.Sub(since) > patience:
					failed.Store(true)
					for _, d := range missed {
						s.violatedAt(h, d, "is not as promised %s", when)
					}
					return
				}
				wait(ctx, 2*time.Second)
			}
		})
	}
	all.Wait()
	s.goesOn(ctx)
	if !failed.Load() {
		s.say("every door of every host was as promised after %s", time.Since(begun).Round(time.Second))
	}
}

// What is counted beside calls.
const (
	asFault  = "fault: "
	asPacket = "packets "
	asTry    = "tries "

	letIn     = asPacket + "let in"
	notLetIn  = asPacket + "dropped"
	unguarded = asPacket + "let in while nothing guarded"
)

func (s *soak) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

// counted are the counts, the same each time.
func (s *soak) counted() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []string
	for _, name := range slices.Sorted(maps.Keys(s.counts)) {
		list = append(list, fmt.Sprintf("%d %s", s.counts[name], name))
	}
	return strings.Join(list, ", ")
}

// say prints a line at once.
func (s *soak) say(format string, args ...any) {
	at := "     "
	if !s.begun.IsZero() {
		d := time.Since(s.begun).Round(time.Second)
		at = fmt.Sprintf("%02d:%02d", int(d.Minutes()), int(d.Seconds())%60)
	}
	fmt.Printf("%s %s %s\n", time.Now().Format(time.TimeOnly), at, fmt.Sprintf(format, args...))
}

// violated notes what must not be.
func (s *soak) violated(h *soakHost, format string, args ...any) {
	text := time.Now().Format("15:04:05.000 ")
	if h != nil {
		text += h.dir + ": "
	}
	text += fmt.Sprintf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations++
	fmt.Println("VIOLATION", text)
	s.t.Fail()
	if s.violations == mostViolations {
		s.giveUp(errors.New("that is enough"))
	}
}

// violatedAt notes it with what is known of a door, and with what the host says
// at this moment.
func (s *soak) violatedAt(h *soakHost, d door, format string, args ...any) {
	h.mu.Lock()
	known := h.ledger.describe(d)
	h.mu.Unlock()
	st, err := h.ask()
	ruleset, _ := h.vm.try("nft", "-n", "list", "ruleset")
	s.mu.Lock()
	n := s.violations + 1
	s.mu.Unlock()
	file := h.path(fmt.Sprintf("violation-%d", n))
	text := fmt.Appendf(nil, "%s %s\n%s\nstatus: %+v %v\n%s", d, fmt.Sprintf(format, args...), known, st, err, ruleset)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		s.t.Error(err)
	}
	s.violated(h, "%s %s\n\t%s\n\tstatus and ruleset in %s", d, fmt.Sprintf(format, args...), known, file)
}
