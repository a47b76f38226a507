package control

import (
	"crypto/ed25519"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jitgate/jitgate/policy"
)

var judged = time.Date(2026, 11, 22, 12, 0, 0, 489_205_700, time.UTC)

func testMachine(t testing.TB) VMID {
	t.Helper()
	id, err := ParseVMID("/subscriptions/s1/resourceGroups/g1/providers/Microsoft.Compute/virtualMachines/vm1")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// Whatever a request says: it is refused, or what is granted for it is what the
// policy document of the same policy lets an agent open, by the agent's own
// judgement and by one made here.
func FuzzJudge(f *testing.F) {
	f.Add("*", "PT3H", uint16(22), "203.0.113.7", "", "PT3H", int64(0))
	f.Add("10.0.0.0/8,2001:db8::/32", "PT5M", uint16(22), "10.0.0.0/9", "", "", int64(5*time.Minute))
	f.Add("10.0.0.0/8", "P1D", uint16(23), "10.0.0.5/8", "", "P1DT1S", int64(0))
	f.Add("0.0.0.0/0", "PT1H", uint16(22), "*", "", "PT1H", int64(0))
	f.Add("::/0", "PT1H", uint16(22), "", "10.0.0.1,::1", "", int64(-1))
	f.Add("10.0.0.0/8,*", "PT1H", uint16(0), "::ffff:10.0.0.1", "", "PT1H", int64(time.Hour+policy.Skew))
	f.Fuzz(func(t *testing.T, allowed, longest string, number uint16, one, many, duration string, end int64) {
		vm := testMachine(t)
		id := PolicyID{Subscription: "s1", Group: "g1", Location: "l", Name: "default"}
		rule := PortRule{Number: 22, Protocol: policy.TCP, Prefixes: Prefixes{Many: split(allowed)}, MaxDuration: longest}
		vms := []PolicyVM{{ID: vm, Ports: []PortRule{rule}}}
		if judgeVMs(id, vms) != nil {
			return
		}
		p := Policy{ID: id, VMs: vms}
		header := policy.Header{Realm: "acme", Version: 1, Issued: judged.Truncate(time.Second), Expires: judged.Truncate(time.Second).Add(policyValid)}
		guard, err := policyDocument(header, 0, vm, []Policy{p})
		if err != nil {
			t.Fatalf("a policy that was accepted has no document: %v", err)
		}
		if _, err := policy.ParseDocument(policy.TypePolicy, guard.Encode()); err != nil {
			t.Fatalf("agents refuse the document of a policy that was accepted: %v", err)
		}

		in := InitiateInput{VMs: []InitiateVM{{ID: vm.String(), Ports: []InitiatePort{{Number: number, Duration: duration, Prefixes: Prefixes{One: one, Many: split(many)}}}}}}
		if end != 0 {
			in.VMs[0].Ports[0].End = judged.Add(time.Duration(end))
		}
		asks, err := readInitiate(in, netip.MustParseAddr("203.0.113.7"))
		if err != nil {
			if AsError(err) == nil {
				t.Fatalf("a failure of ours: %v", err)
			}
			return
		}
		a := asks[0].ports[0]
		_, b, err := p.judge(vm, a, judged)
		if err != nil {
			if e := AsError(err); e == nil || e.Kind != Invalid {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		port := RequestPort{Number: a.number, Prefixes: a.prefixes, End: a.until(judged), Length: a.length}
		port.grant("g", judged, b.longest)
		r := Request{ID: "r", Principal: "alice", VMs: []RequestVM{{ID: vm, Ports: []RequestPort{port}}}}
		list, err := grantsDocument(header, 1, vm, 1, []Request{r}, nil, judged)
		if err != nil || len(list.Grants) != 1 {
			t.Fatalf("%d grants, %v", len(list.Grants), err)
		}
		if _, err := policy.ParseDocument(policy.TypeGrants, list.Encode()); err != nil {
			t.Fatalf("agents refuse the list: %v", err)
		}
		d := policy.Evaluate(policy.State{}, policy.Trust{}, guard, list, policy.Facts{Now: judged})
		g := list.Grants[0]
		if v := d.Verdicts[0]; v.Refusal != nil || v.Phase != policy.PhaseActive {
			t.Fatalf("agents do not open %+v: %v, %s", g, v.Refusal, v.Phase)
		}
		max, err := policy.ParseDuration(longest)
		if err != nil {
			t.Fatal(err)
		}
		if number != 22 || g.Number != 22 || g.End.After(judged.Add(max)) || g.End.Sub(g.Start) > max || g.End.After(port.End) || g.Start.After(judged) {
			t.Fatalf("granted %+v of %s at most", g, longest)
		}
		for _, s := range g.Sources {
			if !slices.ContainsFunc(split(allowed), func(text string) bool {
				if text == "*" {
					return true
				}
				n, err := netip.ParsePrefix(text)
				if err != nil {
					only := netip.MustParseAddr(text)
					n = netip.PrefixFrom(only, only.BitLen())
				}
				return n.Overlaps(s) && n.Bits() <= s.Bits()
			}) {
				t.Fatalf("granted %s, allowed %s", s, allowed)
			}
		}
	})
}

func split(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

// What comes back as a signed policy is read or refused.
func FuzzReadSigned(f *testing.F) {
	doc, err := policyDocument(policy.Header{Realm: "acme", Version: 1, Issued: judged.Truncate(time.Second), Expires: judged.Truncate(time.Second).Add(time.Hour)}, 0, testMachine(f), nil)
	if err != nil {
		f.Fatal(err)
	}
	good := policy.Envelope{Type: policy.TypePolicy, Payload: doc.Encode()}
	if err := good.Sign(ed25519.NewKeyFromSeed(make([]byte, 32))); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Encode())
	f.Add([]byte(`{}`))
	f.Add([]byte(`{"payloadType":"application/vnd.jitgate.policy.v1+json","payload":"e30=","signatures":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		envelope, vm, err := readSigned(raw)
		if err != nil {
			if e := AsError(err); e == nil || e.Kind != Invalid {
				t.Fatalf("not a refusal: %v", err)
			}
			return
		}
		doc, err := policy.ParseDocument(policy.TypePolicy, envelope.Payload)
		if err != nil || !strings.EqualFold(doc.(policy.Policy).Host.ID, vm.Key()) {
			t.Fatalf("read as %s: %v", vm, err)
		}
	})
}

// A stored request of whatever shape is settled, confined and listed without a
// panic, and what is over is not open again.
func FuzzStoredRequest(f *testing.F) {
	f.Add([]byte(`{"id":"r","virtualMachines":[{"id":"/subscriptions/s1/resourceGroups/g1/providers/Microsoft.Compute/virtualMachines/vm1","ports":[{"number":22,"allowedSourceAddressPrefix":"*","status":"Initiated","grant":"g","from":"2026-11-22T11:58:00Z","until":"2026-11-22T13:00:00Z"}]}]}`))
	f.Add([]byte(`{"id":"r","approval":{"until":"2026-11-22T13:00:00Z"},"virtualMachines":[{"id":"/subscriptions/s1/resourceGroups/g1/providers/Microsoft.Compute/virtualMachines/vm1","ports":[{"number":22,"status":"Pending","length":3600000000000}]}]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var r Request
		if json.Unmarshal(raw, &r) != nil {
			return
		}
		entry := PolicyVM{ID: testMachine(t), Ports: []PortRule{{Number: 22, Prefixes: Prefixes{One: "*"}, MaxDuration: "PT1H"}}}
		r.settle(judged)
		if r.settle(judged) {
			t.Error("settled twice")
		}
		for _, p := range r.eachPort() {
			if p.Status != Pending && p.Status != Revoked && !judged.Before(p.Until) {
				t.Errorf("open after its end: %+v", p)
			}
			if _, err := p.confine(entry, judged); err != nil {
				return
			}
		}
		list, err := grantsDocument(policy.Header{}, 1, entry.ID, 0, []Request{r}, nil, judged)
		if err != nil {
			return
		}
		for _, g := range list.Grants {
			if !judged.Before(g.End.Add(policy.Skew)) {
				t.Errorf("listed long after its end: %+v", g)
			}
		}
	})
}

func TestIDs(t *testing.T) {
	var s ids
	last := ""
	// The clock stands still, steps back and goes on: ids rise all the same.
	for i, now := range []time.Time{judged, judged, judged.Add(-time.Hour), judged.Add(time.Millisecond), time.Unix(0, 0), time.Unix(-1, 0), judged.Add(time.Hour)} {
		id := s.next(now)
		if len(id) != 26 || strings.Trim(id, crockford) != "" || id <= last {
			t.Errorf("%d: %q after %q", i, id, last)
		}
		last = id
	}
	// The time can be read back, as from a ULID.
	var ms int64
	for _, c := range last[:10] {
		ms = ms<<5 | int64(strings.IndexRune(crockford, c))
	}
	if want := judged.Add(time.Hour).UnixMilli(); ms != want {
		t.Errorf("the time in %s is %d, want %d", last, ms, want)
	}
	// Overflow of what is random carries, as counting does.
	s = ids{hi: 1<<16 | 7, lo: ^uint64(0)}
	if s.next(time.UnixMilli(1)); s.hi != 1<<16|8 || s.lo != 0 {
		t.Errorf("after the largest: %x %x", s.hi, s.lo)
	}
	var mu sync.Mutex
	seen := map[string]bool{}
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 200 {
				id := s.next(judged)
				mu.Lock()
				if seen[id] {
					t.Errorf("%s twice", id)
				}
				seen[id] = true
				mu.Unlock()
			}
		})
	}
	wait.Wait()
}

// Names in grants are cut between characters.
func TestCut(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"", 4, ""}, {"abcd", 4, "abcd"}, {"abcde", 4, "abcd"}, {"abcé", 4, "abc"}, {"abé", 4, "abé"}, {"é", 1, ""}, {"日本", 5, "日"}} {
		if got := cut(c.s, c.n); got != c.want {
			t.Errorf("cut(%q, %d) is %q, want %q", c.s, c.n, got, c.want)
		}
	}
}
