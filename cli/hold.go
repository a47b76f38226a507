package cli

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/policy"
)

// A port that is open for a session is held by a process of its own: it asks,
// extends and gives back. Whoever uses the port holds a pipe to it. However
// that process ends, the pipe ends with it, and the port is given back. If the
// holder itself is killed, the port ends on time, which is soon: a holder asks
// for little and extends.

const (
	giveBack    = 10 * time.Second // to give back what is not used any more
	nearEnd     = 30 * time.Second // what ends sooner is not used again
	tryAgain    = 5 * time.Second  // after an extension that failed
	maxHoldLine = 64 << 10
	// silentFor is how long an agent says nothing of an address that it spoke of.
	silentFor = 10 * time.Minute
)

// holdMark ends the justification of a request that is held, with the machine
// and the process: no two are the same request.
var holdMark = regexp.MustCompile(`\(jitgate ssh, \S+ \d+\)$`)

func newHoldMark() string {
	host, err := os.Hostname()
	if err != nil || host == "" || strings.ContainsAny(host, " ()") {
		host = "somewhere"
	}
	return fmt.Sprintf("(jitgate ssh, %s %d)", host, os.Getpid())
}

// holdOrder is what a holder is asked for.
type holdOrder struct {
	VM      string        `json:"vm"`
	Port    uint16        `json:"port"`
	Sources []string      `json:"sources,omitempty"` // none: where the control plane sees this machine
	Longest time.Duration `json:"longest,omitempty"` // 0: as the policy says
	Lease   time.Duration `json:"lease"`
	Wait    time.Duration `json:"wait"`
	Reason  string        `json:"reason,omitempty"`
}

// holdCall is what a holder is told later. One of the fields is set.
type holdCall struct {
	Source string `json:"source,omitempty"` // open for this address too
	Denied bool   `json:"denied,omitempty"` // who was turned away?
}

// holdAnswer is what a holder says. One of the fields is set.
type holdAnswer struct {
	Say    string   `json:"say,omitempty"` // to a person
	Error  string   `json:"error,omitempty"`
	Usage  bool     `json:"usage,omitempty"` // with Error: the words were wrong
	Ready  *ready   `json:"ready,omitempty"`
	Denied []denied `json:"denied"` // in answer to Denied
}

// denied is an address that a machine turned away.
type denied struct {
	Source string `json:"source"`
	// Ours says that the agent takes it for whoever asked for one of our own
	// grants. Without it, it may be anybody.
	Ours bool `json:"ours"`
}

// ready says that a machine can be connected to.
type ready struct {
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"` // of the machine, of the families that are open, the best first
	Port      uint16       `json:"port"`
	From      netip.Addr   `json:"from"` // what it is open for, where that is one address
}

func newHold() *cobra.Command {
	var at controlFlags
	c := &cobra.Command{
		Use:    "hold",
		Short:  "Hold a port open for jitgate ssh",
		Hidden: true, // it is started by ssh and rdp, and speaks to them alone
		Args:   usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			// Whoever it speaks to may be gone: that ends the holding, and must not
			// end this process before it has given back.
			signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP)
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM)
			defer stop()
			c.SetContext(ctx)
			h := &holder{out: json.NewEncoder(c.OutOrStdout())}
			err := at.call(c, func(ctx context.Context, control *client.Client) error {
				h.control = control
				return h.run(ctx, c.InOrStdin())
			})
			if err != nil {
				_, wrong := errors.AsType[usage.Error](err)
				h.answer(holdAnswer{Error: err.Error(), Usage: wrong})
			}
			return err
		},
	}
	at.add(c)
	return c
}

// holder holds one port of one machine.
type holder struct {
	control *client.Client
	out     *json.Encoder
	order   holdOrder
	vm      client.VM
	began   time.Time

	request string // held; empty: none, or one that is not ours to end
	fixed   bool   // it cannot be extended
	end     time.Time
	longest time.Duration
	also    []string // requests beside it, for other addresses
	sources []string
	name    string   // the file about what is held
	foreign bool     // another machine of the same person holds the same
	blind   bool     // the activity log is not for us
	use     *os.File // shared among those who hold the same request
}

// answer speaks to whoever uses the port. If they are gone the pipe says so to
// run, which looks after it.
func (h *holder) answer(a holdAnswer) { _ = h.out.Encode(a) }

func (h *holder) say(format string, args ...any) {
	h.answer(holdAnswer{Say: fmt.Sprintf(format, args...)})
}

// run holds until its input ends.
func (h *holder) run(ctx context.Context, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxHoldLine)
	if !lines.Scan() || json.Unmarshal(lines.Bytes(), &h.order) != nil {
		return errors.New("nothing was asked for")
	}
	calls := make(chan holdCall)
	go func() {
		defer cancel() // nobody uses it any more
		for lines.Scan() {
			var k holdCall
			if json.Unmarshal(lines.Bytes(), &k) != nil {
				return
			}
			select {
			case calls <- k:
			case <-ctx.Done():
				return
			}
		}
	}()
	r, err := h.open(ctx)
	defer func() { h.release(context.WithoutCancel(ctx)) }()
	if err != nil {
		return err
	}
	h.answer(holdAnswer{Ready: &r})
	for {
		var extend <-chan time.Time
		if left := time.Until(h.end); h.request != "" && !h.fixed && h.end.Before(h.began.Add(h.longest)) {
			extend = time.After(max(left/2, time.Second))
		}
		select {
		case <-ctx.Done():
			return nil
		case k := <-calls:
			h.called(ctx, k, r)
		case <-extend:
			h.extend(ctx)
		}
	}
}

// called does what it is told, and answers.
func (h *holder) called(ctx context.Context, k holdCall, r ready) {
	if k.Denied {
		list, err := h.denied(ctx)
		if err != nil && !h.blind {
			h.blind = true // once is enough
			h.say("it cannot be seen whether %s turns you away (%v): if you do not get in, say your address with --source", printable(h.vm.Name), err)
		}
		h.answer(holdAnswer{Denied: append([]denied{}, list...)})
		return
	}
	made, err := h.ask(ctx, []string{k.Source}, h.length())
	h.also = append(h.also, idsOf(made)...) // also of one that came to nothing
	if err != nil {
		h.answer(holdAnswer{Error: err.Error()})
		return
	}
	h.sources = append(h.sources, k.Source)
	r.From = netip.Addr{} // this machine's own is another
	h.answer(holdAnswer{Ready: &r})
}

// open opens the port, or finds that it is.
func (h *holder) open(ctx context.Context) (r ready, err error) {
	if h.vm, _, err = findVM(ctx, h.control, h.order.VM); err != nil {
		return r, err
	}
	r = ready{Name: h.vm.Name, Port: h.order.Port}
	rule := ruleOf(h.vm, h.order.Port)
	if rule != nil && rule.MappedPort != 0 {
		r.Port = rule.MappedPort
	}
	who, err := h.control.WhoAmI(ctx)
	if err != nil {
		return r, err
	}
	seen, _ := netip.ParseAddr(who.Address) // what cannot be read is of no family
	all, err := addressesOf(ctx, h.vm, seen)
	if err != nil {
		return r, err
	}
	if rule == nil {
		h.say("port %d of %s is not guarded: connecting as it is", h.order.Port, printable(h.vm.Name))
		r.Addresses = all
		return r, nil
	}
	h.sources = h.order.Sources
	if len(h.sources) == 0 {
		if r.From, err = h.source(ctx, seen, all); err != nil {
			return r, err
		}
		h.sources = []string{r.From.String()}
	} else if len(h.sources) == 1 {
		r.From, _ = netip.ParseAddr(h.sources[0]) // a network is not an address
	}
	if r.Addresses = reachable(all, h.sources); len(r.Addresses) == 0 {
		return r, usage.Errorf("%s has no address of the family of %s: it has %s", printable(h.vm.Name), strings.Join(h.sources, ", "), joinAddresses(all))
	}
	if err := h.terms(ctx, rule); err != nil {
		return r, err
	}
	return r, h.hold(ctx)
}

// source is the address to ask for: where the control plane sees this machine,
// or, where the other has none of that family, this machine's own towards it.
func (h *holder) source(ctx context.Context, seen netip.Addr, all []netip.Addr) (netip.Addr, error) {
	own := ownAddresses()
	if slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Is4() == seen.Is4() && seen.IsValid() }) {
		if doubt := doubtful(seen.String(), h.vm, localAddress(ctx, h.vm), own); doubt != "" {
			h.say("warning: %s", doubt)
		}
		return seen, nil
	}
	for _, a := range all {
		if from := towards(ctx, a); from.IsValid() {
			h.say("the control plane sees you at %s; %s has %s, so that it is opened for %s", seen, printable(h.vm.Name), a, from)
			return from, nil
		}
	}
	return seen, fmt.Errorf("the control plane sees you at %s, and there is no way from here to %s of %s: name your address with --source", seen, joinAddresses(all), printable(h.vm.Name))
}

// terms sees how long may be asked for, and whether that can be extended.
func (h *holder) terms(ctx context.Context, rule *client.PortRule) error {
	longest, err := policy.ParseDuration(rule.MaxRequestAccessDuration)
	if err != nil {
		return err
	}
	h.longest = longest
	if h.order.Longest > 0 {
		h.longest = h.order.Longest // the control plane judges it
	}
	for _, p := range h.vm.Policies {
		// Who may not see the terms finds out from what becomes of the request.
		if a, _, err := h.control.GetApproval(ctx, p); err == nil && a != nil {
			h.fixed = true
		}
	}
	return nil
}

// length is how long to ask for.
func (h *holder) length() time.Duration {
	if h.fixed {
		if h.order.Longest > 0 {
			return h.longest
		}
		return min(h.longest, usualLength)
	}
	return min(h.order.Lease, h.longest)
}

// hold has the port open: by a request that is held at this machine already,
// by one the operator made themselves, or by a new one.
func (h *holder) hold(ctx context.Context) (err error) {
	if h.name, err = h.file(); err != nil {
		return err
	}
	opening, err := lockFile(h.name+".open", exclusive)
	if err != nil {
		return err
	}
	defer opening.Close()
	if h.use, err = lockFile(h.name+".use", shared); err != nil {
		return err
	}
	h.began = time.Now()
	if r, ok := h.heldHere(ctx); ok {
		h.began = r.Start
		h.took(r)
		return nil
	}
	for r, err := range h.control.Requests(ctx, client.RequestFilter{VM: h.vm.ID, Mine: true, Open: true}) {
		if err != nil {
			return err
		}
		switch {
		case holdMark.MatchString(r.Justification):
			h.foreign = h.foreign || h.covers(r)
		case h.serves(r):
			h.say("open already by request %s, which stays as it is", r.ID)
			return nil
		}
	}
	return h.anew(ctx)
}

// heldHere is the request that is held at this machine, if it is still good.
func (h *holder) heldHere(ctx context.Context) (client.Request, bool) {
	id, err := os.ReadFile(h.name)
	if err != nil {
		return client.Request{}, false
	}
	r, err := h.control.GetRequest(ctx, strings.TrimSpace(string(id)))
	return r, err == nil && h.serves(r)
}

// anew asks for what is to be held, and notes it for others at this machine.
func (h *holder) anew(ctx context.Context) error {
	made, err := h.ask(ctx, h.sources, h.length())
	for _, r := range made { // also of one that came to nothing
		h.took(r)
	}
	if err != nil {
		return err
	}
	return os.WriteFile(h.name, []byte(h.request+"\n"), 0o600)
}

// again holds the port by another request: the one held was taken over by
// another machine of the same person, seen at the same address.
func (h *holder) again(ctx context.Context) error {
	opening, err := lockFile(h.name+".open", exclusive)
	if err != nil {
		return err
	}
	defer opening.Close()
	h.foreign = true
	if r, ok := h.heldHere(ctx); ok {
		h.took(r)
		return nil
	}
	return h.anew(ctx)
}

// file is the file about what is held, which has the request's id in it.
func (h *holder) file() (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "jitgate", "held")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	key := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d\n%q", h.control.URL(), strings.ToLower(h.vm.ID), h.order.Port, h.sources))
	return filepath.Join(dir, hex.EncodeToString(key[:12])), nil
}

// port is the port of a request that is held.
func (h *holder) port(r client.Request) *client.RequestPort {
	for _, vm := range r.VMs {
		if strings.EqualFold(vm.ID, h.vm.ID) {
			for _, p := range vm.Ports {
				if p.Number == h.order.Port {
					return &p
				}
			}
		}
	}
	return nil
}

// serves reports whether a request has open what is wanted, and for a while.
func (h *holder) serves(r client.Request) bool {
	return h.covers(r) && time.Until(h.port(r).End) >= nearEnd
}

// covers reports whether a request has open what is wanted.
func (h *holder) covers(r client.Request) bool {
	p := h.port(r)
	if p == nil || p.Status != "Initiated" || !p.Closed.IsZero() {
		return false
	}
	open := prefixes(append([]string{p.AllowedSourceAddressPrefix}, p.AllowedSourceAddressPrefixes...))
	for _, want := range prefixes(h.sources) {
		if !slices.ContainsFunc(open, func(o netip.Prefix) bool { return o.Bits() <= want.Bits() && o.Contains(want.Addr()) }) {
			return false
		}
	}
	return true
}

// took notes the request that is held.
func (h *holder) took(r client.Request) {
	h.request, h.fixed = r.ID, h.fixed || r.Approval != nil
	if p := h.port(r); p != nil {
		h.end = p.End
	}
}

// ask requests the port and waits until it is open.
func (h *holder) ask(ctx context.Context, sources []string, length time.Duration) ([]client.Request, error) {
	made, err := h.control.RequestVM(ctx, h.vm.ID, []client.InitiatePort{{Number: h.order.Port, AllowedSourceAddressPrefixes: sources, Duration: policy.FormatDuration(length.Truncate(time.Second))}},
		strings.TrimSpace(h.order.Reason+" "+newHoldMark()))
	if err != nil {
		return nil, err
	}
	tell := progress(sayer{h}, []client.VM{h.vm})
	if made, err = await(ctx, h.control, made, h.order.Wait, tell); err != nil {
		return made, err
	}
	return made, failed(made)
}

// sayer says each line that is written to it.
type sayer struct{ *holder }

func (s sayer) Write(b []byte) (int, error) {
	s.say("%s", strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// extend lets the port stay open for another while.
func (h *holder) extend(ctx context.Context) {
	until := h.began.Add(h.longest)
	length := min(h.order.Lease, time.Until(until)).Truncate(time.Second)
	if length < time.Second {
		h.fixed = true
		return
	}
	// Another holder of the same request may have done it.
	r, err := h.control.GetRequest(ctx, h.request)
	if err == nil && h.serves(r) && time.Until(h.port(r).End) > length*3/4 {
		h.took(r)
		return
	}
	if err == nil {
		if p := h.port(r); p != nil && p.StatusReason == takenOver {
			err = h.again(ctx)
		} else if r, err = h.control.Extend(ctx, h.request, policy.FormatDuration(length), ""); err == nil {
			h.took(r)
		}
	}
	e, refused := errors.AsType[*client.Error](err)
	switch {
	case err == nil:
	case refused && e.Status < 500 && e.Status != http.StatusTooManyRequests:
		h.fixed = true
		h.say("it stays open no longer than %s: %s", h.end.Local().Format("15:04:05"), printable(e.Error()))
	default:
		select {
		case <-time.After(tryAgain):
		case <-ctx.Done():
		}
	}
}

// release gives back what is not used by anybody any more. What cannot be
// given back ends on time.
func (h *holder) release(ctx context.Context) {
	if h.use == nil {
		return
	}
	defer h.use.Close()
	ctx, cancel := context.WithTimeout(ctx, giveBack)
	defer cancel()
	give := h.also
	if h.request != "" {
		opening, err := lockFile(h.name+".open", exclusive)
		if err == nil {
			defer opening.Close()
			// A revocation would cut the sessions of the other machine too: there it
			// ends with the lease.
			if onlyHolder(h.use) && !h.foreign {
				give = append(give, h.request)
				os.Remove(h.name)
			}
		}
	}
	for _, id := range give {
		for {
			_, err := h.control.Revoke(ctx, id, "the session is over")
			if e, ok := errors.AsType[*client.Error](err); err == nil || ok && e.Status < 500 || ctx.Err() != nil {
				break
			}
			select {
			case <-time.After(firstLook * 10):
			case <-ctx.Done():
			}
		}
	}
}

// denied are the addresses that the machine turned away at this port since it
// was asked for, or, if none was, that it spoke of so lately that it would not
// do so again.
func (h *holder) denied(ctx context.Context) ([]denied, error) {
	ours := map[string]bool{} // grants
	for r, err := range h.control.Requests(ctx, client.RequestFilter{VM: h.vm.ID, Mine: true, Since: h.began.Add(-24 * time.Hour)}) {
		if err != nil {
			return nil, err
		}
		for _, vm := range r.VMs {
			for _, p := range vm.Ports {
				ours[p.Grant] = p.Grant != ""
			}
		}
	}
	var now, before []denied
	f := client.ActivityFilter{Scope: h.vm.ID, Event: "connection.denied", From: h.began.Add(-silentFor)}
	for a, err := range h.control.Activities(ctx, f) {
		if err != nil {
			return nil, err
		}
		source, err := netip.ParseAddr(a.Source)
		if err != nil || a.Port != h.order.Port || slices.ContainsFunc(prefixes(h.sources), func(p netip.Prefix) bool { return p.Contains(source) }) {
			continue
		}
		d := denied{source.String(), ours[a.Grant]}
		same := func(x denied) bool { return x.Source == d.Source }
		if slices.ContainsFunc(now, same) || slices.ContainsFunc(before, same) {
			continue
		}
		if a.Time.Before(h.began.Add(-time.Second)) {
			before = append(before, d)
		} else {
			now = append(now, d)
		}
	}
	if now == nil {
		now = before
	}
	return now, nil
}

// prefixes reads sources as requests have them. What is none is passed over:
// the control plane has judged it.
func prefixes(sources []string) (out []netip.Prefix) {
	for _, s := range sources {
		if s == anySource {
			out = append(out, netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0))
		} else if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a, a.BitLen()))
		} else if p, err := netip.ParsePrefix(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

// addressesOf are the addresses of a machine: those of the inventory, or else
// those of its name. Seen from inside, the one inside comes first.
func addressesOf(ctx context.Context, v client.VM, seen netip.Addr) (all []netip.Addr, err error) {
	order := []string{v.PublicIPAddress, v.Address}
	if seen.IsPrivate() || seen.IsLoopback() {
		slices.Reverse(order)
	}
	for _, word := range order {
		if word == "" {
			continue
		}
		if a, err := netip.ParseAddr(word); err == nil {
			all = append(all, a)
			continue
		}
		some, err := lookup(ctx, word)
		if err != nil {
			return nil, err
		}
		all = append(all, some...)
	}
	if len(all) > 0 {
		return all, nil
	}
	if all, err = lookup(ctx, v.Name); err != nil {
		return nil, fmt.Errorf("the inventory has no address of %s (jitgate vm add … --address), and %w", printable(v.Name), err)
	}
	return all, nil
}

func lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", name)
	for i := range all {
		all[i] = all[i].Unmap()
	}
	return all, err
}

// reachable are the addresses of families that one of the sources is of.
func reachable(all []netip.Addr, sources []string) (some []netip.Addr) {
	for _, a := range all {
		if slices.ContainsFunc(prefixes(sources), func(p netip.Prefix) bool { return p.Addr().Is4() == a.Is4() }) {
			some = append(some, a)
		}
	}
	return some
}

func joinAddresses(all []netip.Addr) string {
	var words []string
	for _, a := range all {
		words = append(words, a.String())
	}
	return strings.Join(words, ", ")
}
