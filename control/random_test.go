package control_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// oracle says what must be open, in the plainest way there is: a list of what
// people were promised. It knows nothing of documents, grants or transactions.
type oracle struct {
	policies map[string]*oraclePolicy
	promises []*promise
}

type oraclePolicy struct {
	rules    map[string]map[uint16]oracleRule // by machine
	approval bool
}

type oracleRule struct {
	sources []string
	longest time.Duration
}

// promise is one port of one request.
type promise struct {
	request, policy, who, vm string
	port                     uint16
	source                   string
	length                   time.Duration
	asked                    time.Time
	waits                    bool
	until                    time.Time // to the second; when it waits, of the waiting
	over                     bool
}

// prefixes are what a source of the test stands for.
func prefixes(source string) []netip.Prefix {
	if source == "*" {
		return []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}
	}
	if a, err := netip.ParseAddr(source); err == nil {
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}
	}
	return []netip.Prefix{netip.MustParsePrefix(source)}
}

// allows asks the first and the last address of each prefix: networks nest or
// are apart.
func (r oracleRule) allows(source string) bool {
	for _, want := range prefixes(source) {
		ok := false
		for _, s := range r.sources {
			for _, has := range prefixes(s) {
				ok = ok || has.Contains(want.Addr()) && has.Contains(last(want))
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (o *oracle) tick(now time.Time) {
	for _, p := range o.promises {
		p.over = p.over || !now.Before(p.until)
	}
}

// doors are those of a machine.
func (o *oracle) doors(vm string) map[string]time.Time {
	out := map[string]time.Time{}
	for _, p := range o.promises {
		if p.vm != vm || p.over || p.waits {
			continue
		}
		for _, s := range prefixes(p.source) {
			door := fmt.Sprintf("%d %s", p.port, s)
			if p.until.After(out[door]) {
				out[door] = p.until
			}
		}
	}
	return out
}

func (o *oracle) of(request string) (list []*promise) {
	for _, p := range o.promises {
		if p.request == request && !p.over {
			list = append(list, p)
		}
	}
	return list
}

// begin makes promises hold from now on, in place of older ones by the same
// person for the same thing.
func (o *oracle) begin(mine []*promise, now time.Time) {
	for _, p := range mine {
		for _, old := range o.promises {
			if old.over || old.request >= p.request || old.who != p.who || old.vm != p.vm || old.port != p.port || old.source != p.source {
				continue
			}
			if p.waits && !old.waits {
				continue
			}
			old.over = true
		}
		if !p.waits {
			p.until = now.Add(p.length).Truncate(time.Second)
		}
	}
}

// confine ends what is outside a policy as it is by now.
func (o *oracle) confine(name string, now time.Time) {
	for _, p := range o.promises {
		if p.over || p.policy != name {
			continue
		}
		rule, ok := oracleRule{}, false
		if q := o.policies[name]; q != nil {
			rule, ok = q.rules[p.vm][p.port]
		}
		left := p.length
		if !p.waits {
			left = p.until.Sub(now)
		}
		p.over = !ok || !rule.allows(p.source) || left > rule.longest
	}
}

// Whatever people do, in whatever order: after each step every agent that gets
// the newest documents opens exactly what was promised and is not over.
func TestRandomLife(t *testing.T) {
	counts := map[string]int{}
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) { randomLife(t, rand.New(rand.NewPCG(seed, 5)), 150, counts) })
	}
	t.Log(counts)
	for _, did := range []string{"put true", "put false", "initiate true", "initiate false", "repeated", "revoke true", "extend true", "extend false", "approve true", "deny true", "delete true"} {
		if counts[did] < 3 {
			t.Errorf("%d times %s: the test looks at too little", counts[did], did)
		}
	}
}

func randomLife(t *testing.T, r *rand.Rand, steps int, counts map[string]int) {
	p := newPlane(t)
	ctx := t.Context()
	o := &oracle{policies: map[string]*oraclePolicy{}}
	vms, names, numbers := []string{"vm1", "vm2", "vm3"}, []string{"one", "two"}, []uint16{22, 80}
	sources := []string{"10.0.0.1", "10.0.0.0/24", "10.0.0.0/8", "*", "2001:db8::/32", "2001:db8::1", "192.0.2.1"}
	lengths := []time.Duration{5 * time.Minute, 30 * time.Minute, time.Hour, 3 * time.Hour}
	people := []control.Caller{as("alice", "JITRequester"), as("bob", "JITRequester")}
	boss := as("boss", "Owner")
	hosts := map[string]*host{}
	for _, vm := range vms {
		hosts[vm] = &host{vm: vmID(vm)}
	}
	pick := func() *promise {
		if len(o.promises) == 0 {
			return nil
		}
		recent := o.promises[max(0, len(o.promises)-8):]
		return recent[r.IntN(len(recent))]
	}
	// did compares what the engine did with what the oracle expects of it.
	did := func(what string, err error, wanted bool) bool {
		t.Helper()
		if err != nil && control.AsError(err) == nil {
			t.Fatalf("%s: a failure of ours: %v", what, err)
		}
		if (err == nil) != wanted {
			t.Fatalf("%s: %v, the oracle says %v", what, err, wanted)
		}
		counts[fmt.Sprint(what, " ", wanted)]++
		return wanted
	}
	type earlier struct {
		who  control.Caller
		name string
		in   control.InitiateInput
		mine []*promise
	}
	var again earlier
	for range steps {
		now := p.clock()
		o.tick(now)
		switch r.IntN(15) {
		case 0: // a policy is written
			name := names[r.IntN(len(names))]
			next := &oraclePolicy{rules: map[string]map[uint16]oracleRule{}, approval: name == "two"}
			in := control.PolicyInput{}
			ok := true
			for _, vm := range vms {
				entry := control.PolicyVM{ID: vmID(vm)}
				next.rules[vm] = map[uint16]oracleRule{}
				for _, n := range numbers {
					if r.IntN(6) == 0 {
						continue
					}
					rule := oracleRule{longest: lengths[max(r.IntN(len(lengths)), r.IntN(len(lengths)))]}
					for range 1 + r.IntN(3) {
						rule.sources = append(rule.sources, sources[r.IntN(len(sources))])
					}
					if name == "two" {
						n++ // ports of its own, mostly
						if r.IntN(20) == 0 {
							n--
						}
					}
					if _, twice := next.rules[vm][n]; twice {
						continue
					}
					next.rules[vm][n] = rule
					entry.Ports = append(entry.Ports, control.PortRule{Number: n, Protocol: policy.TCP, Prefixes: control.Prefixes{Many: rule.sources}, MaxDuration: policy.FormatDuration(rule.longest)})
				}
				if len(entry.Ports) > 0 {
					in.VMs = append(in.VMs, entry)
				}
			}
			for other, q := range o.policies {
				for vm, rules := range next.rules {
					for n := range rules {
						_, taken := q.rules[vm][n]
						ok = ok && (other == name || !taken || unchanged(o.policies[name], vm, rules))
					}
				}
			}
			if next.approval {
				in.Approval = &control.Approval{Approvers: 1, Role: "Owner"}
			}
			_, err := p.PutPolicy(ctx, boss, policyID(name), in)
			if did("put", err, ok) {
				o.policies[name] = next
				o.confine(name, now)
			}
		case 2:
			if r.IntN(6) > 0 {
				continue
			}
			name := names[r.IntN(len(names))]
			was, err := p.DeletePolicy(ctx, boss, policyID(name))
			did("delete", err, true)
			if was != (o.policies[name] != nil) {
				t.Fatalf("deleted %v", was)
			}
			delete(o.policies, name)
			o.confine(name, now)
		case 3, 4, 5, 6, 7, 12, 13, 14: // somebody asks
			who, name, length := people[r.IntN(len(people))], names[r.IntN(len(names))], lengths[min(r.IntN(len(lengths)), r.IntN(len(lengths)))]
			tame := r.IntN(5) > 0 // mostly, people ask for what they may have
			in := control.InitiateInput{}
			var mine []*promise
			q := o.policies[name]
			ok := q != nil
			for _, vm := range vms {
				if r.IntN(2) == 0 {
					continue
				}
				v := control.InitiateVM{ID: vmID(vm).String()}
				for _, n := range numbers {
					if r.IntN(2) == 0 {
						continue
					}
					if name == "two" {
						n++
					}
					source := sources[r.IntN(len(sources))]
					if q != nil && tame {
						rule, there := q.rules[vm][n]
						if !there || rule.longest < length {
							continue
						}
						source = rule.sources[0]
					}
					v.Ports = append(v.Ports, control.InitiatePort{Number: n, Duration: policy.FormatDuration(length), Prefixes: control.Prefixes{One: source}})
					mine = append(mine, &promise{policy: name, who: who.Name, vm: vm, port: n, source: source, length: length, asked: now})
					if q != nil {
						rule, there := q.rules[vm][n]
						ok = ok && there && rule.allows(source) && length <= rule.longest
					}
				}
				if len(v.Ports) > 0 {
					in.VMs = append(in.VMs, v)
				}
			}
			ok = ok && len(mine) > 0
			if again.in.VMs != nil && r.IntN(6) == 0 { // and sometimes the same again
				who, name, in, ok = again.who, again.name, again.in, true
				q, mine = o.policies[name], nil
				for _, m := range again.mine {
					copied := *m
					copied.asked, copied.over, copied.waits, copied.request = now, false, false, ""
					mine = append(mine, &copied)
					rule, there := oracleRule{}, false
					if q != nil {
						rule, there = q.rules[m.vm][m.port]
					}
					ok = ok && there && rule.allows(m.source) && m.length <= rule.longest
				}
			}
			got, err := p.Initiate(ctx, who, policyID(name), in)
			if !did("initiate", err, ok) {
				break
			}
			if first := o.repeated(mine, now); first != "" {
				counts["repeated"]++
				if got.ID != first {
					t.Fatalf("request %s again is %s", first, got.ID)
				}
				break
			}
			for _, m := range mine {
				m.request, m.waits = got.ID, q.approval
				if m.waits {
					m.until = now.Add(time.Hour)
				}
			}
			again = earlier{who, name, in, nil}
			for _, m := range mine {
				copied := *m
				again.mine = append(again.mine, &copied)
			}
			o.promises = append(o.promises, mine...)
			o.begin(mine, now)
		case 8: // somebody takes one back
			m := pick()
			if m == nil {
				continue
			}
			_, err := p.Revoke(ctx, boss, m.request, "")
			did("revoke", err, true)
			for _, m := range o.of(m.request) {
				m.over = true
			}
		case 9: // somebody wants more time
			m := pick()
			if m == nil {
				continue
			}
			by := lengths[r.IntN(len(lengths))]
			mine := o.of(m.request)
			q := o.policies[m.policy]
			ok := len(mine) > 0 && q != nil && !q.approval
			for _, m := range mine {
				rule := oracleRule{}
				if q != nil {
					rule = q.rules[m.vm][m.port]
				}
				ok = ok && by <= rule.longest && !m.waits
			}
			who := people[0]
			if m.who == people[1].Name {
				who = people[1]
			}
			_, err := p.Extend(ctx, who, m.request, by, "")
			if e := control.AsError(err); e != nil && e.Code == "TooManyGrants" {
				break
			}
			if did("extend", err, ok) {
				for _, m := range mine {
					m.length, m.until = by, now.Add(by).Truncate(time.Second)
				}
			}
		case 10: // the boss answers
			m := pick()
			if m == nil {
				continue
			}
			mine := o.of(m.request)
			waits := len(mine) > 0 && mine[0].waits
			if r.IntN(4) == 0 {
				_, err := p.Deny(ctx, boss, m.request, "")
				if did("deny", err, waits) {
					for _, m := range mine {
						m.over = true
					}
				}
				break
			}
			_, err := p.Approve(ctx, boss, m.request, "", 0)
			if did("approve", err, waits) {
				for _, m := range mine {
					m.waits = false
				}
				o.begin(mine, now)
			}
		case 11:
			if r.IntN(2) == 0 {
				p.sweep()
			}
			p.pass([]time.Duration{time.Second, 20 * time.Second, 3 * time.Minute, 12 * time.Minute, 70 * time.Minute}[r.IntN(5)])
		}
		now = p.clock()
		o.tick(now)
		for vm, h := range hosts {
			if docs, err := p.Documents(ctx, h.vm); err != nil || len(docs) < 3 {
				continue // no policy ever named it
			}
			h.deliver(p, now)
			if got, want := show(h.open(t, now)), show(o.doors(vm)); got != want {
				t.Fatalf("%s at %s opens\n%s\nwant\n%s", vm, now, got, want)
			}
			if t.Failed() {
				t.FailNow() // the agent refused a grant
			}
		}
	}
}

// unchanged reports whether a machine's entry stays as it is, which asks nothing of
// other policies.
func unchanged(q *oraclePolicy, vm string, rules map[uint16]oracleRule) bool {
	return q != nil && maps.EqualFunc(q.rules[vm], rules, func(a, b oracleRule) bool {
		return a.longest == b.longest && slices.Equal(a.sources, b.sources)
	})
}

// repeated finds the request that these promises were made by already.
func (o *oracle) repeated(mine []*promise, now time.Time) string {
	by := map[string][]*promise{}
	for _, p := range o.promises {
		by[p.request] = append(by[p.request], p)
	}
	for request, list := range by {
		if len(list) != len(mine) {
			continue
		}
		all := true
		for _, m := range mine {
			all = all && slices.ContainsFunc(list, func(p *promise) bool {
				return !p.over && p.policy == m.policy && p.who == m.who && p.vm == m.vm && p.port == m.port && p.source == m.source && p.length == m.length && now.Sub(p.asked) < time.Minute
			})
		}
		if all {
			return request
		}
	}
	return ""
}

func show(doors map[string]time.Time) string {
	var out []string
	for door, until := range doors {
		out = append(out, fmt.Sprint(door, " until ", until.Format(time.RFC3339)))
	}
	sort.Strings(out)
	return strings.Join(out, "\n")
}
