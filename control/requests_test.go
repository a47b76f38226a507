package control_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

func TestInitiate(t *testing.T) {
	p := newPlane(t)
	r := rule(3389, "P1D")
	r.MappedPort = 53389
	p.put("default", machine("VM1", rule(22, "PT3H"), r), machine("vm2", rule(22, "PT3H")))
	alice := as("alice", "JITRequester@"+group)
	end := noon.Add(5*time.Minute + 284_300)
	in := control.InitiateInput{Justification: "patching", VMs: []control.InitiateVM{
		{ID: vmID("vm1").String(), Ports: []control.InitiatePort{
			{Number: 22, Prefixes: control.Prefixes{One: "203.0.113.8"}, End: end},
			{Number: 3389, Prefixes: control.Prefixes{Many: []string{"203.0.113.0/28", "2001:DB8::1"}}, Duration: "PT10H"}}},
		{ID: strings.ToUpper(vmID("vm2").String()), Ports: []control.InitiatePort{{Number: 22, Duration: "PT1H"}}},
	}}
	got := p.initiate(alice, in)
	equal(t, "who", fmt.Sprint(got.Requestor, " ", got.Principal, " ", got.Justification, " ", got.Call), "alice@example.com local:alice patching call-alice")
	equal(t, "start", got.Start.Equal(noon), true)
	equal(t, "machines", fmt.Sprint(got.VMs[0].ID, got.VMs[1].ID), fmt.Sprint(vmID("VM1"), vmID("vm2")))
	first, second, third := got.VMs[0].Ports[0], got.VMs[0].Ports[1], got.VMs[1].Ports[0]
	equal(t, "end is echoed", first.End.Equal(end), true)
	equal(t, "source is echoed", fmt.Sprint(first.Prefixes, second.Prefixes), fmt.Sprint(in.VMs[0].Ports[0].Prefixes, in.VMs[0].Ports[1].Prefixes))
	equal(t, "the caller's source", third.Prefixes, control.Prefixes{One: "203.0.113.7"})
	equal(t, "ends", fmt.Sprint(second.End.Sub(noon), third.End.Sub(noon)), "10h0m0s 1h0m0s")
	equal(t, "mapped port", fmt.Sprint(first.MappedPort, second.MappedPort), "0 53389")
	for _, port := range []control.RequestPort{first, second, third} {
		equal(t, "status", fmt.Sprint(port.Status, " ", port.Reason), "Initiating UserRequested")
		if len(port.GrantID) != 26 || port.Outer != nil {
			t.Errorf("port %+v", port)
		}
	}
	read := p.get()
	equal(t, "history", fmt.Sprintf("%+v", read.Requests), fmt.Sprintf("%+v", []control.Request{got}))
	equal(t, "open on vm1", p.openAt("vm1", 0), "[22 203.0.113.8/32 3389 2001:db8::1/128 3389 203.0.113.0/28]")
	equal(t, "open on vm2", p.openAt("vm2", 0), "[22 203.0.113.7/32]")

	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	g := h.grants.Grants[0]
	equal(t, "grant", fmt.Sprint(g.ID, " ", g.Requestor, " ", g.Justification), first.GrantID+" alice@example.com patching")
	equal(t, "list", fmt.Sprint(h.grants.Version, h.grants.Epoch, h.grants.PolicyVersion, h.grants.Expires.Sub(h.grants.Issued)), "2 1 1 24h0m0s")
	// The agent closes by the end that was asked for, to the second.
	equal(t, "signed end", g.End, end.Truncate(time.Second))

	lines := p.log()[1:]
	equal(t, "lines", len(lines), 3)
	l := lines[2]
	equal(t, "line", fmt.Sprint(l.Event, " ", l.Status, " ", l.Actor, " ", l.VM, " ", l.Port, " ", l.Source, " ", l.Reason, " ", l.Request == got.ID, l.Grant == third.GrantID, l.End.Equal(third.End)),
		"request.initiated Succeeded alice@example.com "+vmID("vm2").String()+" 22 203.0.113.7 patching true true true")
}

// What is wrong with a body is said before anything is looked up, and what is
// outside the policy with the bound. Nothing of it is recorded.
func TestInitiateRefused(t *testing.T) {
	p := newPlane(t)
	narrow := control.PortRule{Number: 22, Protocol: policy.TCP, Prefixes: control.Prefixes{Many: []string{"203.0.113.0/24", "10.0.0.0/8", "11.0.0.0/8"}}, MaxDuration: "PT3H"}
	p.put("default", machine("vm1", narrow, rule(23, "PT3H")))
	port := func(change func(*control.InitiatePort)) control.InitiateInput {
		in := wants("vm1", 22, "203.0.113.7", "PT1H")
		change(&in.VMs[0].Ports[0])
		return in
	}
	until := func(d time.Duration) control.InitiateInput {
		return port(func(p *control.InitiatePort) { p.Duration, p.End = "", noon.Add(d) })
	}
	source := func(s ...string) control.InitiateInput {
		return port(func(p *control.InitiatePort) { p.Prefixes = control.Prefixes{Many: s} })
	}
	many := func(vms, ports int) (in control.InitiateInput) {
		for i := range vms {
			vm := control.InitiateVM{ID: vmID(fmt.Sprint("vm", i)).String()}
			for j := range ports {
				vm.Ports = append(vm.Ports, control.InitiatePort{Number: uint16(1 + j), Duration: "PT1H"})
			}
			in.VMs = append(in.VMs, vm)
		}
		return in
	}
	twice := wants("vm1", 22, "203.0.113.7", "PT1H")
	twice.VMs[0].Ports = append(twice.VMs[0].Ports, twice.VMs[0].Ports[0])
	alsoOutside := wants("vm1", 22, "203.0.113.7", "PT1H")
	alsoOutside.VMs[0].Ports = append(alsoOutside.VMs[0].Ports, control.InitiatePort{Number: 24, Duration: "PT1H"})
	const subset = "The given access request is not a subset of policy '%s'. Please make sure that the access request is within the allowed policy properties. "
	const one = "Only one of fields 'EndTimeUtc' and 'Duration' can be set."
	in := fmt.Sprintf(subset, policyID("default"))
	for _, c := range []struct {
		name  string
		in    control.InitiateInput
		words string
	}{
		{"no machine", control.InitiateInput{}, "names no virtual machine"},
		{"1001 machines", control.InitiateInput{VMs: make([]control.InitiateVM, 1001)}, "1001 virtual machines"},
		{"no id", control.InitiateInput{VMs: []control.InitiateVM{{ID: "vm1"}}}, "is not a virtual machine's id"},
		{"linked subscription", control.InitiateInput{VMs: []control.InitiateVM{{ID: "/subscriptions//resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"}}}, "linked subscription"},
		{"machine twice", control.InitiateInput{VMs: []control.InitiateVM{twice.VMs[0], twice.VMs[0]}}, "Port 22 is there twice"},
		{"machine twice, in other letters", control.InitiateInput{VMs: []control.InitiateVM{wants("vm1", 22, "", "PT1H").VMs[0], wants("VM1", 23, "", "PT1H").VMs[0]}}, "is there twice"},
		{"no port", control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String()}}}, "names no port"},
		{"257 ports", control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: make([]control.InitiatePort, 257)}}}, "257 ports"},
		{"1025 ports", many(5, 205), "more than 1024 ports"},
		{"port twice", twice, "Port 22 is there twice"},
		{"port 0", port(func(p *control.InitiatePort) { p.Number = 0 }), "Port 0"},
		{"neither end", port(func(p *control.InitiatePort) { p.Duration = "" }), one},
		{"both ends", port(func(p *control.InitiatePort) { p.End = noon.Add(time.Hour) }), one},
		{"bad duration", port(func(p *control.InitiatePort) { p.Duration = "3h" }), "is not a duration"},
		{"no time", port(func(p *control.InitiatePort) { p.Duration = "PT0S" }), "too short"},
		{"both sources", port(func(p *control.InitiatePort) { p.Prefixes.Many = []string{"10.0.0.0/8"} }), "only one of"},
		{"host bits", source("203.0.113.7/24"), "write 203.0.113.0/24"},
		{"long reason", control.InitiateInput{VMs: twice.VMs, Justification: strings.Repeat("x", 1025)}, "1025 bytes"},
		{"bad reason", control.InitiateInput{VMs: twice.VMs, Justification: "\xff"}, "UTF-8"},

		{"another machine", wants("vm2", 22, "203.0.113.7", "PT1H"), in + "Virtual machine '" + vmID("vm2").String() + "': the policy does not name it."},
		{"another port", wants("vm1", 24, "203.0.113.7", "PT1H"), in + "Virtual machine '" + vmID("vm1").String() + "': port 24 asked, 22, 23 allowed."},
		{"all or nothing", alsoOutside, "port 24 asked"},
		{"another source", source("198.51.100.1"), in + "Virtual machine '" + vmID("vm1").String() + "': port 22: source 198.51.100.1/32 asked, 10.0.0.0/8, 11.0.0.0/8, 203.0.113.0/24 allowed."},
		{"a wider net", source("203.0.112.0/23"), "source 203.0.112.0/23 asked"},
		{"two nets together", source("10.0.0.0/7"), "source 10.0.0.0/7 asked"},
		{"one of two", source("10.0.0.1", "2001:db8::1"), "source 2001:db8::1/128 asked"},
		{"any", source("*"), "source 0.0.0.0/0 asked"},
		{"too long", port(func(p *control.InitiatePort) { p.Duration = "PT3H1S" }), in + "Virtual machine '" + vmID("vm1").String() + "': port 22: PT3H1S asked, PT3H allowed."},
		{"too late an end", until(3*time.Hour + policy.Skew + 1), "PT3H2M asked, PT3H allowed"},
		{"an end that is over", until(0), "is not after the time here"},
		{"an end in the past", until(-time.Hour), "is not after the time here"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			p.refused(control.Invalid, "InvalidInitiateInput", c.words, func() error {
				_, err := p.Initiate(t.Context(), owner, policyID("default"), c.in)
				return err
			})
		})
	}
	p.t = t
	// A good body for a policy that is not there.
	p.refused(control.NotFound, "PolicyNotFound", policyID("absent").String(), func() error {
		_, err := p.Initiate(t.Context(), owner, policyID("absent"), wants("vm1", 22, "", "PT1H"))
		return err
	})
	p.refused(control.Invalid, "InvalidInitiateInput", one, func() error {
		_, err := p.Initiate(t.Context(), owner, policyID("absent"), wants("vm1", 22, "", ""))
		return err
	})
	hidden := owner
	hidden.Address = netip.Addr{}
	p.refused(control.Invalid, "InvalidInitiateInput", "the address it comes from is not known", func() error {
		_, err := p.Initiate(t.Context(), hidden, policyID("default"), wants("vm1", 22, "", "PT1H"))
		return err
	})
	// The log has those outside the policy, and none that are no requests.
	for _, a := range p.log()[1:] {
		if a.Event != "request.initiated" || a.Status != "Failed" || a.Code != "InvalidInitiateInput" || !strings.Contains(a.Reason, "not a subset") || a.Request != "" {
			t.Errorf("line %+v", a)
		}
	}
	equal(t, "refusals in the log", len(p.log())-1, 12)
}

func TestCallersAddress(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	for address, want := range map[string]string{"203.0.113.9": "203.0.113.9", "::ffff:203.0.113.10": "203.0.113.10", "fe80::1%eth0": "fe80::1", "2001:db8::2": "2001:db8::2"} {
		c := as("alice", "Owner")
		c.Address = netip.MustParseAddr(address)
		r := p.initiate(c, wants("vm1", 22, "", "PT1H"))
		equal(t, address, r.VMs[0].Ports[0].One, want)
	}
	equal(t, "open", p.openAt("vm1", 0), "[22 2001:db8::2/128 22 203.0.113.10/32 22 203.0.113.9/32 22 fe80::1/128]")
}

// Who asks for the longest time reckons the end from their own clock, and may
// be ahead; the agent's may be behind. Neither keeps the port from opening,
// and nothing is open longer than the policy says.
func TestClocksApart(t *testing.T) {
	for _, off := range []time.Duration{0, -time.Second, -policy.Skew + time.Second, time.Second, policy.Skew} {
		for _, ahead := range []time.Duration{0, 300 * time.Millisecond, policy.Skew} {
			t.Run(fmt.Sprint("agent ", off, ", client ", ahead), func(t *testing.T) {
				p := newPlane(t)
				p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")))
				full := control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: []control.InitiatePort{{Number: 22, End: noon.Add(3*time.Hour + ahead)}}}}}
				r := p.initiate(owner, full)
				equal(t, "echo", r.VMs[0].Ports[0].End.Equal(noon.Add(3*time.Hour+ahead)), true)
				p.initiate(owner, wants("vm1", 23, "", "PT2H"))
				if off >= 0 {
					equal(t, "open", p.openAt("vm1", off), "[22 203.0.113.7/32 23 203.0.113.7/32]")
				} else {
					equal(t, "open", p.openAt("vm1", off), "[23 203.0.113.7/32]")
					// The longest there is begins now: the agent waits for it.
					p.pass(-off + time.Second)
					equal(t, "open a moment later", p.openAt("vm1", off), "[22 203.0.113.7/32 23 203.0.113.7/32]")
					p.pass(off - time.Second)
				}
				h := host{vm: vmID("vm1")}
				h.deliver(p, p.clock())
				for _, g := range h.grants.Grants {
					if g.End.Sub(g.Start) > 3*time.Hour || g.End.After(noon.Add(3*time.Hour)) {
						t.Errorf("signed from %s to %s", g.Start, g.End)
					}
				}
				p.pass(3 * time.Hour)
				equal(t, "status", p.get().Requests[0].VMs[0].Ports[0].Status, control.Revoked)
				h.deliver(p, p.clock())
				equal(t, "open at the end", len(h.open(t, p.clock())), 0)
			})
		}
	}
}

// The server's clock is wrong by an hour. Ahead: hosts refuse what it signs,
// what is open goes on to its end, and once the clock is right the next list
// is taken. Behind: what it signs is over an hour early. Neither opens
// anything for longer than was asked.
func TestServersClockWrong(t *testing.T) {
	t.Run("an hour ahead", func(t *testing.T) {
		p := newPlane(t)
		p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")))
		p.initiate(owner, wants("vm1", 22, "203.0.113.7", "PT2H"))
		h := host{vm: vmID("vm1")}
		right := p.clock().Truncate(time.Second)
		h.deliver(p, right)
		version := h.grants.Version

		p.pass(time.Hour)
		p.sweep()
		p.initiate(owner, wants("vm1", 23, "203.0.113.8", "PT1H"))
		var refusal *policy.Refusal
		if err := h.take(p, right); !errors.As(err, &refusal) || refusal.Code != policy.NotYet {
			t.Errorf("a list of an hour from now: %v", err)
		}
		equal(t, "version", h.grants.Version, version)
		equal(t, "open meanwhile", fmt.Sprint(h.open(t, right)), fmt.Sprint(map[string]time.Time{"22 203.0.113.7/32": right.Add(2 * time.Hour)}))
		equal(t, "open at the end", len(h.open(t, right.Add(2*time.Hour))), 0)

		p.pass(-time.Hour)
		p.initiate(owner, wants("vm1", 23, "203.0.113.9", "PT1H"))
		h.deliver(p, right)
		equal(t, "open", fmt.Sprint(h.open(t, right)), fmt.Sprint(map[string]time.Time{
			"22 203.0.113.7/32": right.Add(2 * time.Hour), "23 203.0.113.9/32": right.Add(time.Hour)}))
		// What was asked for of the wrong clock counts by that clock: an hour,
		// an hour from now.
		equal(t, "open in an hour", fmt.Sprint(h.open(t, right.Add(time.Hour))), fmt.Sprint(map[string]time.Time{
			"22 203.0.113.7/32": right.Add(2 * time.Hour), "23 203.0.113.8/32": right.Add(2 * time.Hour)}))
		equal(t, "open in two", len(h.open(t, right.Add(2*time.Hour))), 0)
	})
	t.Run("an hour behind", func(t *testing.T) {
		p := newPlane(t)
		p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")))
		h := host{vm: vmID("vm1")}
		right := p.clock().Truncate(time.Second)
		p.initiate(owner, wants("vm1", 22, "203.0.113.7", "PT2H"))
		h.deliver(p, right)

		p.pass(-time.Hour)
		p.sweep()
		p.initiate(owner, wants("vm1", 23, "203.0.113.8", "PT30M"))
		p.initiate(owner, wants("vm1", 23, "203.0.113.9", "PT3H"))
		h.deliver(p, right)
		equal(t, "open", fmt.Sprint(h.open(t, right)), fmt.Sprint(map[string]time.Time{
			"22 203.0.113.7/32": right.Add(2 * time.Hour), "23 203.0.113.9/32": right.Add(2 * time.Hour)}))
		equal(t, "open in two hours", len(h.open(t, right.Add(2*time.Hour))), 0)
	})
}

// A client that did not get the answer sends the request again.
func TestRepeatedRequest(t *testing.T) {
	absolute := control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: []control.InitiatePort{{Number: 22, End: noon.Add(time.Hour)}}}}}
	nudged := control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("VM1").String(), Ports: []control.InitiatePort{{Number: 22, End: noon.Add(time.Hour + 5*time.Second), Prefixes: control.Prefixes{Many: []string{"203.0.113.7/32"}}}}}}}
	moved := control.InitiateInput{VMs: []control.InitiateVM{{ID: vmID("vm1").String(), Ports: []control.InitiatePort{{Number: 22, End: noon.Add(time.Hour + 5*time.Second + 1)}}}}}
	why := wants("vm1", 22, "", "PT1H")
	why.Justification = "another"
	both := control.InitiateInput{VMs: []control.InitiateVM{wants("vm1", 22, "", "PT1H").VMs[0], wants("vm2", 22, "", "PT1H").VMs[0]}}
	alice, bob := as("alice", "Owner"), as("bob", "Owner")
	for _, c := range []struct {
		name          string
		first, second control.InitiateInput
		caller        control.Caller
		after         time.Duration
		same          bool
	}{
		{"at once", wants("vm1", 22, "", "PT1H"), wants("vm1", 22, "", "PT1H"), alice, 0, true},
		{"an end", absolute, absolute, alice, 59 * time.Second, true},
		{"an end five seconds off, in other words", absolute, nudged, alice, time.Second, true},
		{"an end further off", absolute, moved, alice, time.Second, false},
		{"two machines", both, control.InitiateInput{VMs: []control.InitiateVM{both.VMs[1], both.VMs[0]}}, alice, time.Second, true},
		{"a minute later", wants("vm1", 22, "", "PT1H"), wants("vm1", 22, "", "PT1H"), alice, time.Minute, false},
		{"another length", wants("vm1", 22, "", "PT1H"), wants("vm1", 22, "", "PT60M1S"), alice, 0, false},
		{"the same as an end", wants("vm1", 22, "", "PT1H"), absolute, alice, 0, false},
		{"another reason", wants("vm1", 22, "", "PT1H"), why, alice, 0, false},
		{"another source", wants("vm1", 22, "", "PT1H"), wants("vm1", 22, "192.0.2.1", "PT1H"), alice, 0, false},
		{"another port", wants("vm1", 22, "", "PT1H"), wants("vm1", 23, "", "PT1H"), alice, 0, false},
		{"another machine", wants("vm1", 22, "", "PT1H"), wants("vm2", 22, "", "PT1H"), alice, 0, false},
		{"one machine more", wants("vm1", 22, "", "PT1H"), both, alice, 0, false},
		{"another person", wants("vm1", 22, "", "PT1H"), wants("vm1", 22, "", "PT1H"), bob, 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPlane(t)
			p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")), machine("vm2", rule(22, "PT3H")))
			first := p.initiate(alice, c.first)
			p.pass(c.after)
			before, lines := p.digest(), len(p.log())
			second := p.initiate(c.caller, c.second)
			if same := first.ID == second.ID; same != c.same {
				t.Errorf("the same request: %v", same)
			}
			if c.same && (p.digest() != before || len(p.log()) != lines) {
				t.Error("a repeated request changed something")
			}
		})
	}
	// Not where the first is over, or an agent closed it: people ask again then.
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	first := p.initiate(alice, wants("vm1", 22, "", "PT1H"))
	if _, err := p.Revoke(t.Context(), alice, first.ID, ""); err != nil {
		t.Fatal(err)
	}
	second := p.initiate(alice, wants("vm1", 22, "", "PT1H"))
	p.update(func(tx control.Tx) error {
		r, err := tx.Request(second.ID)
		r.VMs[0].Ports[0].Closed = p.clock()
		return errors.Join(err, tx.PutRequest(r))
	})
	third := p.initiate(alice, wants("vm1", 22, "", "PT1H"))
	if first.ID >= second.ID || second.ID >= third.ID {
		t.Errorf("ids do not rise: %s, %s, %s", first.ID, second.ID, third.ID)
	}
}

// A newer request takes the place of the same person's older one; at no
// moment, by any agent's clock, is the port closed in between.
func TestNewerRequest(t *testing.T) {
	for _, next := range []string{"PT5M", "PT2H", "PT3H"} {
		for _, off := range []time.Duration{0, -time.Second, -110 * time.Second, time.Minute} {
			t.Run(fmt.Sprint(next, " agent ", off), func(t *testing.T) {
				p := newPlane(t)
				p.put("default", machine("vm1", rule(22, "PT3H")))
				alice := as("alice", "Owner")
				p.initiate(alice, wants("vm1", 22, "", "PT2H"))
				p.pass(10 * time.Minute)
				h := host{vm: vmID("vm1")}
				h.deliver(p, p.clock().Add(off))
				second := p.initiate(alice, wants("vm1", 22, "", next))
				requests := p.get().Requests
				equal(t, "older", fmt.Sprint(requests[0].VMs[0].Ports[0].Status, requests[0].VMs[0].Ports[0].Reason), "RevokedNewerRequestInitiated")
				equal(t, "newer", requests[1].VMs[0].Ports[0].Status, control.Initiating)
				end := p.clock().Add(second.VMs[0].Ports[0].Length)
				for step := time.Duration(0); step < 4*time.Minute; step += 10 * time.Second {
					now := p.clock().Add(off)
					h.deliver(p, now)
					until, open := h.open(t, now)["22 203.0.113.7/32"]
					if !open || until.After(end) {
						t.Fatalf("after %s: open %v until %s, want until %s", step, open, until, end)
					}
					p.pass(10 * time.Second)
				}
				// And it ends with the newer one, early or late.
				p.pass(end.Sub(p.clock()) - off)
				h.deliver(p, end)
				equal(t, "open at the end", len(h.open(t, end)), 0)
				// Revoked, nothing of either is left.
				p.initiate(alice, wants("vm1", 22, "", "PT3H"))
				p.initiate(alice, wants("vm1", 22, "", "PT2H59M30S"))
				last := p.get().Requests
				if _, err := p.Revoke(t.Context(), alice, last[len(last)-1].ID, ""); err != nil {
					t.Fatal(err)
				}
				h.deliver(p, p.clock())
				equal(t, "open once revoked", len(h.open(t, p.clock())), 0)
			})
		}
	}
}

// A grant that stays on the list beside a newer one does not outlast it.
func TestOlderGrantEndsWithTheNewer(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	alice := as("alice", "Owner")
	p.initiate(alice, wants("vm1", 22, "", "PT3H"))
	p.pass(10 * time.Second)
	newer := p.initiate(alice, wants("vm1", 22, "", "PT2H59M"))
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "on the list", len(h.grants.Grants), 2)
	for _, g := range h.grants.Grants {
		if g.End.After(newer.VMs[0].Ports[0].End) {
			t.Errorf("grant until %s, the newer request asks until %s", g.End, newer.VMs[0].Ports[0].End)
		}
	}
}

// The instant of the end is over already, to agents as to people.
func TestTheInstantOfTheEnd(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	until := p.initiate(owner, wants("vm1", 22, "", "PT1H")).VMs[0].Ports[0].Until
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	for _, c := range []struct {
		at   time.Time
		open bool
	}{{until.Add(-1), true}, {until, false}} {
		p.pass(c.at.Sub(p.clock()))
		equal(t, "by the request", p.get().Requests[0].Open(), c.open)
		equal(t, "by the agent", len(h.open(t, c.at)) > 0, c.open)
	}
}

// Nobody ends a colleague's access by asking for their own.
func TestOthersRequestsStandBeside(t *testing.T) {
	p := newPlane(t)
	p.put("default", machine("vm1", rule(22, "PT3H")))
	first := p.initiate(as("alice", "Owner"), wants("vm1", 22, "*", "PT3H"))
	second := p.initiate(as("bob", "Owner"), wants("vm1", 22, "*", "PT5M"))
	p.pass(6 * time.Minute)
	equal(t, "open", p.openAt("vm1", 0), "[22 0.0.0.0/0 22 ::/0]")
	for id, want := range map[string]control.Status{first.ID: control.Initiating, second.ID: control.Revoked} {
		r, err := p.GetRequest(t.Context(), owner, id)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, r.Requestor, r.VMs[0].Ports[0].Status, want)
	}
}

func TestInitiateVM(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("one", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")), machine("vm2", rule(22, "PT1H")))
	p.put("two", machine("vm1", rule(80, "PT3H")))
	ports := func(vm string, numbers ...uint16) control.InitiateVM {
		in := control.InitiateVM{ID: vmID(vm).String()}
		for _, n := range numbers {
			in.Ports = append(in.Ports, control.InitiatePort{Number: n, Duration: "PT1H"})
		}
		return in
	}
	list, err := p.InitiateVM(ctx, as("alice", "JITRequester@"+vmID("vm1").String(), "JITRequester@"+vmID("vm2").String()),
		control.InitiateInput{VMs: []control.InitiateVM{ports("vm1", 22, 80, 23), ports("vm2", 22)}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range list {
		for _, v := range r.VMs {
			for _, port := range v.Ports {
				got = append(got, fmt.Sprintf("%s/%s:%d", r.Policy.Name, v.ID.Name, port.Number))
			}
		}
	}
	equal(t, "requests", got, "[one/vm1:22 one/vm1:23 one/vm2:22 two/vm1:80]")
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "open", len(h.open(t, p.clock())), 3)
	// Two requests in one call made one list.
	equal(t, "version", h.grants.Version, 2)

	all := control.InitiateInput{VMs: []control.InitiateVM{ports("vm1", 22, 81)}}
	p.refused(control.Invalid, "InvalidInitiateInput", "Port 81", func() error { _, err := p.InitiateVM(ctx, owner, all); return err })
	p.refused(control.Invalid, "InvalidInitiateInput", "PT1H allowed", func() error {
		in := control.InitiateInput{VMs: []control.InitiateVM{ports("vm1", 80), {ID: vmID("vm2").String(), Ports: []control.InitiatePort{{Number: 22, Duration: "PT2H"}}}}}
		_, err := p.InitiateVM(ctx, owner, in)
		return err
	})
	for _, vm := range []string{"vm1", "absent"} {
		p.refused(control.Forbidden, "AuthorizationFailed", strings.ToLower(vmID(vm).String()), func() error {
			_, err := p.InitiateVM(ctx, as("nobody"), control.InitiateInput{VMs: []control.InitiateVM{ports(vm, 22)}})
			return err
		})
	}
}

func TestRevoke(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("default", machine("vm1", rule(22, "PT3H"), rule(23, "PT3H")), machine("vm2", rule(22, "PT3H")))
	alice := as("alice", "JITRequester@"+group)
	r := p.initiate(alice, control.InitiateInput{VMs: []control.InitiateVM{wants("vm1", 22, "", "PT3H").VMs[0], wants("vm2", 22, "", "PT2H").VMs[0]}})
	kept := p.initiate(alice, wants("vm1", 23, "", "PT3H"))
	for _, c := range []control.Caller{as("mallory", "JITRequester@"+group), as("half", "Owner@"+vmID("vm1").String())} {
		p.refused(control.Forbidden, "AuthorizationFailed", "revoke/action' over scope '", func() error {
			_, err := p.Revoke(ctx, c, r.ID, "")
			return err
		})
	}
	p.refused(control.NotFound, "RequestNotFound", "'x'", func() error { _, err := p.Revoke(ctx, owner, "x", ""); return err })
	p.refused(control.Invalid, "InvalidInitiateInput", "1025 bytes", func() error {
		_, err := p.Revoke(ctx, owner, r.ID, strings.Repeat("x", 1025))
		return err
	})
	p.pass(150 * time.Minute) // vm2's port is over by now, and nobody swept
	got, err := p.Revoke(ctx, as("admin", "SecurityAdmin"), r.ID, "incident")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, "vm1", fmt.Sprint(got.VMs[0].Ports[0].Status, got.VMs[0].Ports[0].Reason), "RevokedUserRequested")
	equal(t, "vm2", fmt.Sprint(got.VMs[1].Ports[0].Status, got.VMs[1].Ports[0].Reason), "RevokedExpired")
	equal(t, "open", p.openAt("vm1", 0), "[23 203.0.113.7/32]")
	h := host{vm: vmID("vm1")}
	h.deliver(p, p.clock())
	equal(t, "on the list", len(h.grants.Grants), 1) // what is revoked is gone at once
	last := p.log()[len(p.log())-1]
	equal(t, "line", fmt.Sprint(last.Event, last.Actor, last.Port, last.Reason), "request.revokedadmin@example.com22incident")
	// Again changes nothing.
	before, lines := p.digest(), len(p.log())
	if again, err := p.Revoke(ctx, alice, r.ID, ""); err != nil || again.Open() {
		t.Errorf("again: %+v, %v", again, err)
	}
	if len(p.log()) != lines || p.digest() != before {
		t.Error("revoked twice")
	}
	if _, err := p.Revoke(ctx, alice, kept.ID, ""); err != nil {
		t.Errorf("one's own: %v", err)
	}
	equal(t, "open", p.openAt("vm1", 0), "[]")
}

func TestExtend(t *testing.T) {
	for _, off := range []time.Duration{0, -time.Second, -110 * time.Second, time.Minute} {
		t.Run(fmt.Sprint("agent ", off), func(t *testing.T) {
			p := newPlane(t)
			p.put("default", machine("vm1", rule(22, "PT3H")))
			alice := as("alice", "JITRequester@"+group)
			r := p.initiate(alice, wants("vm1", 22, "", "PT1H"))
			h := host{vm: vmID("vm1")}
			extend := func(by time.Duration) control.RequestPort {
				t.Helper()
				got, err := p.Extend(t.Context(), alice, r.ID, by, "more")
				if err != nil {
					t.Fatal(err)
				}
				port := got.VMs[0].Ports[0]
				equal(t, "end", port.End.Sub(p.clock()), by)
				return port
			}
			// Room to spare keeps the grant's id; the longest time takes a new
			// one, beside the old. By no clock is the port closed in between.
			p.pass(10 * time.Minute)
			equal(t, "the same grant", extend(2*time.Hour).GrantID, r.VMs[0].Ports[0].GrantID)
			var last control.RequestPort
			for i := range 20 {
				p.pass(25 * time.Second)
				now := p.clock().Add(off)
				h.deliver(p, now)
				if _, open := h.open(t, now)["22 203.0.113.7/32"]; !open {
					t.Fatalf("closed before extension %d", i)
				}
				last = extend(3 * time.Hour)
				h.deliver(p, now)
				until, open := h.open(t, now)["22 203.0.113.7/32"]
				if !open || until.After(last.End) {
					t.Fatalf("after extension %d: open %v until %s", i, open, until)
				}
			}
			if last.GrantID == r.VMs[0].Ports[0].GrantID || len(last.Earlier) == 0 || len(last.Earlier) > 6 {
				t.Errorf("earlier grants: %+v", last)
			}
			p.pass(last.End.Sub(p.clock()) - off)
			now := p.clock().Add(off)
			h.deliver(p, now)
			equal(t, "open at the end", len(h.open(t, now)), 0)
		})
	}
}

func TestExtendRefused(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("default", machine("vm1", rule(22, "PT3H")))
	alice := as("alice", "JITRequester@"+group)
	r := p.initiate(alice, wants("vm1", 22, "", "PT1H"))
	by := func(c control.Caller, d time.Duration) func() error {
		return func() error {
			_, err := p.Extend(ctx, c, r.ID, d, "")
			return err
		}
	}
	p.refused(control.Invalid, "InvalidInitiateInput", "PT3H1S asked, PT3H allowed", by(alice, 3*time.Hour+time.Second))
	p.refused(control.Invalid, "InvalidInitiateInput", "a second at least", by(alice, time.Second-1))
	p.refused(control.Invalid, "InvalidInitiateInput", "a second at least", by(alice, -time.Hour))
	p.refused(control.Forbidden, "NotTheRequestor", "Only who asked", by(owner, time.Hour))
	gone := alice
	gone.Rights = nil
	p.refused(control.Forbidden, "AuthorizationFailed", "initiate/action", by(gone, time.Hour))
	for range 8 {
		if err := by(alice, 3*time.Hour)(); err != nil {
			t.Fatal(err)
		}
		p.pass(time.Second)
	}
	p.refused(control.TooMany, "TooManyGrants", "wait a moment", by(alice, 3*time.Hour))
	if _, err := p.SetApproval(ctx, owner, policyID("default"), &control.Approval{Approvers: 1, Role: "Owner"}, ""); err != nil {
		t.Fatal(err)
	}
	p.refused(control.Conflict, "ApprovalNeeded", "asks for approval", by(alice, time.Hour))
	if _, err := p.SetApproval(ctx, owner, policyID("default"), nil, ""); err != nil {
		t.Fatal(err)
	}
	p.pass(3 * time.Hour)
	p.refused(control.Conflict, "RequestOver", "ask for access anew", by(alice, time.Hour))

	r = p.initiate(alice, wants("vm1", 22, "", "PT1H"))
	p.update(func(tx control.Tx) error { // the agent closed it: a lockdown
		r, err := tx.Request(r.ID)
		r.VMs[0].Ports[0].Closed = p.clock()
		return errors.Join(err, tx.PutRequest(r))
	})
	p.refused(control.Conflict, "RequestOver", "ask for access anew", by(alice, time.Hour))
}

func TestListRequests(t *testing.T) {
	p := newPlane(t)
	ctx := t.Context()
	p.put("default", machine("vm1", rule(22, "PT3H")), machine("vm2", rule(22, "PT3H")))
	alice := as("alice", "JITRequester@"+vmID("vm1").String())
	var ids []string
	for i := range 6 {
		p.pass(2 * time.Minute)
		vm := fmt.Sprint("vm", i%2+1)
		c := owner
		if i == 5 {
			c = as("alice", "Owner") // who has since lost it
		}
		ids = append(ids, p.initiate(c, wants(vm, 22, fmt.Sprint("192.0.2.", i), "PT1H")).ID)
	}
	list := func(c control.Caller, f control.RequestFilter) string {
		var got []string
		for pages := 0; ; pages++ {
			page, next, err := p.ListRequests(ctx, c, f)
			if err != nil || pages > 10 {
				t.Fatal(pages, err)
			}
			for _, r := range page {
				for i, id := range ids {
					if r.ID == id {
						got = append(got, fmt.Sprint(i))
					}
				}
			}
			if f.After = next; next == "" {
				return strings.Join(got, "")
			}
		}
	}
	for limit := range 8 {
		equal(t, "the owner", list(owner, control.RequestFilter{Limit: limit}), "012345")
		equal(t, "newest first", list(owner, control.RequestFilter{Limit: limit, Newest: true}), "543210")
		equal(t, "vm1, and one's own", list(alice, control.RequestFilter{Limit: limit}), "0245")
		equal(t, "nobody", list(as("nobody"), control.RequestFilter{Limit: limit}), "")
	}
	p.pass(time.Hour - 6*time.Minute) // the first three are over, and nobody swept
	equal(t, "open", list(owner, control.RequestFilter{Open: true, Limit: 2}), "345")
	got, err := p.GetRequest(ctx, alice, ids[5])
	equal(t, "one's own", fmt.Sprint(got.ID, err), ids[5]+"<nil>")
	if got, err = p.GetRequest(ctx, alice, ids[0]); err != nil || got.VMs[0].Ports[0].Status != control.Revoked {
		t.Errorf("vm1's: %+v, %v", got, err)
	}
	p.refused(control.Forbidden, "AuthorizationFailed", strings.ToLower(vmID("vm2").String()), func() error { _, err := p.GetRequest(ctx, alice, ids[1]); return err })
	p.refused(control.NotFound, "RequestNotFound", "nothing", func() error { _, err := p.GetRequest(ctx, owner, "nothing"); return err })
}

// A list holds so much and no more; what does not fit is refused, and what is
// on it stays.
func TestFullList(t *testing.T) {
	p := newPlane(t)
	var rules []control.PortRule
	for i := range policy.MaxPorts {
		rules = append(rules, rule(uint16(1+i), "PT3H"))
	}
	p.put("default", machine("vm1", rules...))
	ask := func(source, why string) error {
		in := control.InitiateInput{Justification: why, VMs: []control.InitiateVM{{ID: vmID("vm1").String()}}}
		for i := range policy.MaxPorts {
			in.VMs[0].Ports = append(in.VMs[0].Ports, control.InitiatePort{Number: uint16(1 + i), Duration: "PT1H", Prefixes: control.Prefixes{One: source}})
		}
		_, err := p.Initiate(t.Context(), owner, policyID("default"), in)
		return err
	}
	p.refused(control.TooMany, "TooManyGrants", fmt.Sprint(policy.MaxPayload), func() error { return ask("192.0.2.9", strings.Repeat("x", 1024)) })
	fits := 0
	for ; fits < policy.MaxGrants/policy.MaxPorts; fits++ {
		if err := ask(fmt.Sprint("192.0.2.", fits), ""); err != nil {
			break
		}
	}
	if fits == 0 {
		t.Fatal("not one request fits")
	}
	p.refused(control.TooMany, "TooManyGrants", "Wait until some end", func() error { return ask("192.0.2.100", "") })
	equal(t, "open", len(p.openAt("vm1", 0)), fits*policy.MaxPorts)
	p.pass(time.Hour + policy.Skew)
	if err := ask("192.0.2.100", ""); err != nil {
		t.Errorf("once they are over: %v", err)
	}
}

// outer is a layer that fails whatever it is asked.
type outer struct{}

func (outer) Name() string { return "azure" }
func (outer) Initiate(context.Context, control.Request) ([]*control.Layer, error) {
	return nil, errors.New("unreachable")
}
func (outer) Look(context.Context, control.Request) ([]*control.Layer, error) {
	return nil, errors.New("unreachable")
}

func TestOuterLayerIsNoted(t *testing.T) {
	p := newPlane(t, func(c *control.Config) { c.Outer = outer{} })
	p.put("default", machine("vm1", rule(22, "PT3H")))
	r := p.initiate(owner, wants("vm1", 22, "", "PT1H"))
	if l := r.VMs[0].Ports[0].Outer; l == nil || *l != (control.Layer{Name: "azure", Status: control.Initiating}) {
		t.Errorf("layer %+v", l)
	}
	equal(t, "open", p.openAt("vm1", 0), "[22 203.0.113.7/32]")
}
