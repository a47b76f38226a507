package control

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jitgate/jitgate/policy"
)

// Limits of what callers may say. Those of a document (policy.MaxPorts,
// policy.MaxPrefixes) hold beside them.
const (
	maxNames         = 56               // characters of a policy's and a machine's name together: Azure's
	maxVMs           = 1000             // of a policy, or of a request
	maxAsked         = policy.MaxGrants // ports of a request, all machines together
	maxJustification = 1024             // bytes
	maxKind          = 64               // bytes
	shortestMax      = 5 * time.Minute
	longestMax       = 24 * time.Hour
	shortestRequest  = time.Second // documents count in seconds
)

// defaultWait is how long a request waits for approval unless its policy says.
const defaultWait = time.Hour

var anySource = []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}

// parseSource reads an address, a CIDR or "*" as documents will have it. An
// address with host bits set is refused rather than widened: somebody who
// wrote 10.0.0.5/8 may have meant one machine.
func parseSource(s string) ([]netip.Prefix, error) {
	if s == "*" {
		return anySource, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		switch {
		case a.Zone() != "":
			return nil, fmt.Errorf("%q has a zone: write the address alone", clip(s))
		case a.Is4In6():
			return nil, fmt.Errorf("%q is an IPv4 address written as IPv6: write %s", clip(s), a.Unmap())
		}
		return []netip.Prefix{netip.PrefixFrom(a, a.BitLen())}, nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return nil, fmt.Errorf(`%q is not an address, a CIDR like 203.0.113.0/24 or "*"`, clip(s))
	case p.Addr().Is4In6():
		return nil, fmt.Errorf("%q is an IPv4 network written as IPv6", clip(s))
	case p != p.Masked():
		return nil, fmt.Errorf("%q has host bits set: write %s for the network, %s for the address", clip(s), p.Masked(), p.Addr())
	}
	return []netip.Prefix{p}, nil
}

// sources are the prefixes as documents have them: sorted, each once, so that
// two spellings of one set are equal.
func (p Prefixes) sources() ([]netip.Prefix, error) {
	if p.One != "" && len(p.Many) > 0 {
		return nil, fmt.Errorf("only one of allowedSourceAddressPrefix and allowedSourceAddressPrefixes can be set")
	}
	var out []netip.Prefix
	for _, s := range p.All() {
		some, err := parseSource(s)
		if err != nil {
			return nil, err
		}
		out = append(out, some...)
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	out = slices.Compact(out)
	if len(out) > policy.MaxPrefixes {
		return nil, fmt.Errorf(`%d prefixes ("*" counts twice), the limit is %d`, len(out), policy.MaxPrefixes)
	}
	return out, nil
}

// none reports whether no source was named.
func (p Prefixes) none() bool { return p.One == "" && len(p.Many) == 0 }

// --- policies ---

// badPolicy refuses a part of a policy.
func badPolicy(target, format string, args ...any) *Error {
	e := Refuse(Invalid, "InvalidPolicy", "%s: %s", target, fmt.Sprintf(format, args...))
	e.Target = target
	return e
}

// judgeVMs checks the machines of a policy and their ports: what can be said
// of them without knowing anything else.
func judgeVMs(id PolicyID, vms []PolicyVM) error {
	if len(vms) > maxVMs {
		return badPolicy("properties.virtualMachines", "%d machines, the limit is %d", len(vms), maxVMs)
	}
	seen := map[string]bool{}
	for i, vm := range vms {
		target := fmt.Sprintf("properties.virtualMachines[%d]", i)
		switch key := vm.ID.Key(); {
		case vm.ID == VMID{}:
			return badPolicy(target+".id", "the machine has no id")
		case seen[key]:
			return badPolicy(target+".id", "%s is there twice", vm.ID)
		case len(id.Name)+len(vm.ID.Name) > maxNames:
			return badPolicy(target+".id", "the names %q and %q have %d characters together, the limit is %d", id.Name, vm.ID.Name, len(id.Name)+len(vm.ID.Name), maxNames)
		default:
			seen[key] = true
		}
		if vm.PublicIPAddress != "" {
			if a, err := netip.ParseAddr(vm.PublicIPAddress); err != nil || a.Zone() != "" {
				return badPolicy(target+".publicIpAddress", "%q is not an address", clip(vm.PublicIPAddress))
			}
		}
		if err := judgeRules(target+".ports", vm.Ports); err != nil {
			return err
		}
	}
	return nil
}

// judgeRules checks the ports of one machine.
func judgeRules(target string, rules []PortRule) error {
	if len(rules) == 0 {
		return badPolicy(target, "no port: leave the machine out instead")
	}
	seen := map[uint16]bool{}
	for i, r := range rules {
		at := fmt.Sprintf("%s[%d]", target, i)
		switch {
		case r.Number == 0:
			return badPolicy(at+".number", "port 0 is nothing that can be guarded: write 1 to 65535")
		case seen[r.Number]:
			return badPolicy(at+".number", "port %d is there twice: a grant names a number, so it has one entry", r.Number)
		case r.Protocol != policy.TCP && r.Protocol != policy.UDP && r.Protocol != policy.Both:
			return badPolicy(at+".protocol", `%q is not TCP, UDP or "*"`, clip(string(r.Protocol)))
		case r.Prefixes.none():
			return badPolicy(at+".allowedSourceAddressPrefix", `no source: write "*" for any`)
		case r.Sessions != "" && r.Sessions != policy.Keep && r.Sessions != policy.Cut:
			return badPolicy(at+".sessionsAtEnd", "%q is not keep or cut", clip(string(r.Sessions)))
		}
		seen[r.Number] = true
		if _, err := r.Prefixes.sources(); err != nil {
			return badPolicy(at+".allowedSourceAddressPrefixes", "%v", err)
		}
		longest, err := policy.ParseDuration(r.MaxDuration)
		if err != nil {
			return badPolicy(at+".maxRequestAccessDuration", "%v", err)
		}
		if longest < shortestMax || longest > longestMax {
			return badPolicy(at+".maxRequestAccessDuration", "%s is outside PT5M to P1D", r.MaxDuration)
		}
	}
	if len(rules) > policy.MaxPorts {
		return badPolicy(target, "%d ports, the limit is %d", len(rules), policy.MaxPorts)
	}
	return nil
}

// judgeApproval checks terms of approval. roles are the names of those that
// exist.
func judgeApproval(a Approval, roles []string) error {
	const target = "properties.approval"
	switch {
	case a.Approvers < 1 || a.Approvers > 10:
		return badPolicy(target+".approvers", "%d is outside 1 to 10", a.Approvers)
	case !slices.ContainsFunc(roles, func(r string) bool { return strings.EqualFold(r, a.Role) }):
		return badPolicy(target+".role", "there is no role %q", clip(a.Role))
	}
	if a.Expires != "" {
		wait, err := policy.ParseDuration(a.Expires)
		if err != nil {
			return badPolicy(target+".expires", "%v", err)
		}
		if wait < 5*time.Minute || wait > 7*24*time.Hour {
			return badPolicy(target+".expires", "%s is outside PT5M to P7D", a.Expires)
		}
	}
	return nil
}

// wait is how long a request waits under the terms.
func (a Approval) wait() time.Duration {
	if wait, err := policy.ParseDuration(a.Expires); err == nil {
		return wait
	}
	return defaultWait
}

// bounds are those of a PortRule, read.
type bounds struct {
	sources []netip.Prefix
	longest time.Duration
}

// bounds reads the rule. It was judged when it was written: an error here is
// not the caller's.
func (r PortRule) bounds() (b bounds, err error) {
	if b.sources, err = r.Prefixes.sources(); err == nil {
		b.longest, err = policy.ParseDuration(r.MaxDuration)
	}
	if err != nil {
		return b, fmt.Errorf("stored rule of port %d: %w", r.Number, err)
	}
	return b, nil
}

// covers reports whether one allowed prefix holds all of p, as agents ask.
func (b bounds) covers(p netip.Prefix) bool {
	return slices.ContainsFunc(b.sources, func(n netip.Prefix) bool { return n.Bits() <= p.Bits() && n.Contains(p.Addr()) })
}

// uncovered says which of sources the bounds do not allow; empty: none.
func (b bounds) uncovered(sources []netip.Prefix) string {
	for _, s := range sources {
		if !b.covers(s) {
			return fmt.Sprintf("source %s asked, %s allowed", s, some(b.sources))
		}
	}
	return ""
}

// some names the first few prefixes of a list.
func some(list []netip.Prefix) string {
	const most = 4
	if slices.Equal(list, anySource) {
		return "*"
	}
	var out []string
	for _, p := range list[:min(len(list), most)] {
		out = append(out, p.String())
	}
	if len(list) > most {
		out = append(out, fmt.Sprintf("%d more", len(list)-most))
	}
	return strings.Join(out, ", ")
}

// rule is the machine's entry for a port.
func (v PolicyVM) rule(number uint16) (PortRule, bool) {
	i := slices.IndexFunc(v.Ports, func(r PortRule) bool { return r.Number == number })
	if i < 0 {
		return PortRule{}, false
	}
	return v.Ports[i], true
}

// --- requests ---

// badRequest refuses a part of a request.
func badRequest(target, format string, args ...any) *Error {
	e := Refuse(Invalid, "InvalidInitiateInput", format, args...)
	e.Target = target
	return e
}

// asked is what a caller asks of one machine.
type asked struct {
	vm    VMID
	ports []askedPort
}

// askedPort is one port asked for: until end, or for length.
type askedPort struct {
	number   uint16
	prefixes Prefixes       // as they are echoed
	sources  []netip.Prefix // as documents have them
	end      time.Time      // zero: length counts
	length   time.Duration
}

// until is when the port would close if it opened now.
func (a askedPort) until(now time.Time) time.Time {
	if a.end.IsZero() {
		return now.Add(a.length)
	}
	return a.end
}

// readInitiate checks a request by itself, before any policy is looked at.
// from is where it comes from, the source of ports that name none.
func readInitiate(in InitiateInput, from netip.Addr) ([]asked, error) {
	switch {
	case len(in.VMs) == 0:
		return nil, badRequest("virtualMachines", "The request names no virtual machine.")
	case len(in.VMs) > maxVMs:
		return nil, badRequest("virtualMachines", "The request names %d virtual machines, the limit is %d.", len(in.VMs), maxVMs)
	case len(in.Justification) > maxJustification:
		return nil, badRequest("justification", "The justification has %d bytes, the limit is %d.", len(in.Justification), maxJustification)
	case !utf8.ValidString(in.Justification):
		return nil, badRequest("justification", "The justification is not UTF-8 text.")
	}
	out := make([]asked, 0, len(in.VMs))
	seen, total := map[string]bool{}, 0
	for i, v := range in.VMs {
		target := fmt.Sprintf("virtualMachines[%d]", i)
		if total += len(v.Ports); total > maxAsked {
			return nil, badRequest(target+".ports", "The request names more than %d ports: send several.", maxAsked)
		}
		id, err := ParseVMID(v.ID)
		switch {
		case err != nil:
			return nil, badRequest(target+".id", "%v", err)
		case seen[id.Key()]:
			return nil, badRequest(target+".id", "The virtual machine '%s' is there twice.", id)
		case len(v.Ports) == 0:
			return nil, badRequest(target+".ports", "The request names no port of '%s'.", id)
		case len(v.Ports) > policy.MaxPorts:
			return nil, badRequest(target+".ports", "The request names %d ports of '%s', the limit is %d.", len(v.Ports), id, policy.MaxPorts)
		}
		seen[id.Key()] = true
		a := asked{vm: id}
		for j, p := range v.Ports {
			at := fmt.Sprintf("%s.ports[%d]", target, j)
			port, err := readPort(at, p, from)
			if err != nil {
				return nil, err
			}
			if slices.ContainsFunc(a.ports, func(o askedPort) bool { return o.number == p.Number }) {
				return nil, badRequest(at+".number", "Port %d is there twice.", p.Number)
			}
			a.ports = append(a.ports, port)
		}
		out = append(out, a)
	}
	return out, nil
}

func readPort(at string, p InitiatePort, from netip.Addr) (askedPort, error) {
	a := askedPort{number: p.Number, prefixes: p.Prefixes, end: p.End}
	if p.Number == 0 {
		return a, badRequest(at+".number", "Port 0 can not be opened: ports are 1 to 65535.")
	}
	if p.End.IsZero() == (p.Duration == "") {
		// The words of the service, for neither and for both.
		return a, badRequest(at+".endTimeUtc", "Only one of fields 'EndTimeUtc' and 'Duration' can be set.")
	}
	var err error
	if p.Duration != "" {
		if a.length, err = policy.ParseDuration(p.Duration); err != nil {
			return a, badRequest(at+".duration", "%v", err)
		}
		if a.length < shortestRequest {
			return a, badRequest(at+".duration", "%q is too short: a second is the least.", clip(p.Duration))
		}
	}
	if p.Prefixes.none() {
		from = from.Unmap().WithZone("")
		if !from.IsValid() {
			return a, badRequest(at+".allowedSourceAddressPrefix", "The request names no source, and the address it comes from is not known: set allowedSourceAddressPrefix.")
		}
		a.prefixes = Prefixes{One: from.String()}
	}
	if a.sources, err = a.prefixes.sources(); err != nil {
		return a, badRequest(at+".allowedSourceAddressPrefix", "%v", err)
	}
	return a, nil
}

// notSubset refuses what is asked outside a policy, in the service's words
// and, what the service keeps to itself, with the reason and the bound.
func notSubset(id PolicyID, vm VMID, format string, args ...any) *Error {
	e := Refuse(Invalid, "InvalidInitiateInput",
		"The given access request is not a subset of policy '%s'. Please make sure that the access request is within the allowed policy properties. Virtual machine '%s': %s.",
		id, vm, fmt.Sprintf(format, args...))
	e.Target = vm.String()
	return e
}

// judge holds one port of a machine against the policy and returns the rule
// it falls under.
func (p Policy) judge(vm VMID, a askedPort, now time.Time) (PortRule, bounds, error) {
	entry, ok := p.vm(vm)
	if !ok {
		return PortRule{}, bounds{}, notSubset(p.ID, vm, "the policy does not name it")
	}
	rule, ok := entry.rule(a.number)
	if !ok {
		return rule, bounds{}, notSubset(p.ID, vm, "port %d asked, %s allowed", a.number, numbers(entry.Ports))
	}
	b, err := rule.bounds()
	if err != nil {
		return rule, b, err
	}
	if reason := b.uncovered(a.sources); reason != "" {
		return rule, b, notSubset(p.ID, vm, "port %d: %s", a.number, reason)
	}
	switch end := a.until(now); {
	case end.Before(now.Add(shortestRequest)):
		return rule, b, notSubset(p.ID, vm, "port %d: the end %s is not after the time here, %s", a.number, policy.FormatTime(end), policy.FormatTime(now))
	// Whoever takes the longest time reckons the end from their own clock.
	case end.After(now.Add(b.longest + policy.Skew)), a.length > b.longest:
		return rule, b, notSubset(p.ID, vm, "port %d: %s asked, %s allowed", a.number, policy.FormatDuration(end.Sub(now)), rule.MaxDuration)
	}
	return rule, b, nil
}

func numbers(rules []PortRule) string {
	const most = 16
	var out []string
	for _, r := range rules[:min(len(rules), most)] {
		out = append(out, fmt.Sprint(r.Number))
	}
	if len(rules) > most {
		out = append(out, fmt.Sprintf("%d more", len(rules)-most))
	}
	return strings.Join(out, ", ")
}

// window is the time a grant is signed for, in whole seconds, so that an
// agent's own check holds: no longer than longest, and over by end. Where
// there is room it begins Skew before now, so that an agent whose clock is
// behind opens at once.
func window(now, end time.Time, longest time.Duration) (from, to time.Time) {
	if last := now.Add(longest); end.After(last) {
		end = last
	}
	to = end.UTC().Truncate(time.Second)
	from = now.Add(-policy.Skew).UTC().Truncate(time.Second)
	if earliest := to.Add(-longest); from.Before(earliest) {
		from = earliest
	}
	return from, to
}
