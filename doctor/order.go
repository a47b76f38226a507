package doctor

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// ourTable is the guard's own, of family inet.
const ourTable = "jitgate"

// Step is one base chain on the way of a packet to a guarded port.
type Step struct {
	Hook     string   `json:"hook"`
	Devices  []string `json:"devices,omitempty"` // of hook ingress
	Priority int      `json:"priority"`
	Family   string   `json:"family"`
	Table    string   `json:"table"`
	Chain    string   `json:"chain"`
	Policy   string   `json:"policy"`
	// By is who is known to write such a table; empty: nobody known.
	By   string `json:"by,omitempty"`
	Ours bool   `json:"ours"`
	// Says is what it says about the guarded ports.
	Says string `json:"says"`

	legacy bool
	table  Table
	chain  Chain
	place  [4]int
}

// hooks are those a packet to this host passes, in order, and what a packet
// of each family passes there.
var hooks = []string{"ingress", "bridge prerouting", "prerouting", "bridge input", "input"}

// natPriority is where the kernel runs chains of type nat in prerouting,
// whatever priority they ask for: that only orders them among each other.
const natPriority = -100

// runs is the priority at which a chain is really run.
func (c Chain) runs() int {
	switch {
	case c.Type == "nat" && c.Hook == "prerouting":
		return natPriority
	case c.Type == "nat" && c.Hook == "input":
		return 100
	}
	return c.Priority
}

func ours(t Table) bool { return t.Family == "inet" && t.Name == ourTable }

// Order lists the base chains that a packet to a guarded port passes, in the
// order in which it does.
func Order(f Facts) []Step {
	if f.Windows != nil {
		return windowsOrder(f, *f.Windows)
	}
	steps := []Step{}
	packets := guardedPackets(f)
	for _, t := range f.Tables {
		for _, c := range t.Chains {
			hook := c.Hook
			if t.Family == "bridge" {
				hook = "bridge " + hook
			}
			i := slices.Index(hooks, hook)
			if i < 0 || t.Family == "arp" || t.Dormant {
				continue
			}
			s := Step{Hook: c.Hook, Devices: c.Devices, Priority: c.Priority, Family: t.Family, Table: t.Name, Chain: c.Name, Policy: "accept",
				By: writer(t), Ours: ours(t), table: t, chain: c}
			if c.Drops {
				s.Policy = "drop"
			}
			if s.Ours {
				s.Says = guardSays(f, c)
			} else {
				s.Says = says(t, c, packets)
			}
			// Of two chains of one priority the later made one comes first.
			s.place = [4]int{i, c.runs(), c.Priority, -int(t.Handle)}
			steps = append(steps, s)
		}
	}
	for _, l := range f.Legacy {
		for _, h := range legacyHooks[l.Table] {
			s := Step{Hook: h.hook, Priority: h.priority, Family: l.Family, Table: l.Table, Chain: strings.ToUpper(h.hook), Policy: "unknown",
				By: "iptables-legacy", Says: "not readable here", legacy: true}
			s.place = [4]int{slices.Index(hooks, h.hook), h.priority, h.priority}
			steps = append(steps, s)
		}
	}
	slices.SortStableFunc(steps, func(a, b Step) int { return slices.Compare(a.place[:], b.place[:]) })
	return steps
}

type legacyHook struct {
	hook     string
	priority int
}

// legacyHooks is where the kernel runs the tables of iptables-legacy.
var legacyHooks = map[string][]legacyHook{
	"raw":      {{"prerouting", -300}},
	"mangle":   {{"prerouting", -150}, {"input", -150}},
	"nat":      {{"prerouting", natPriority}},
	"filter":   {{"input", 0}},
	"security": {{"input", 50}},
}

// packet is the first packet of a connection from outside to a guarded port.
type packet struct {
	family   uint32 // 4 or 6
	protocol firewall.Protocol
	port     uint16
}

func (p packet) service() string { return fmt.Sprintf("%d/%s", p.port, p.protocol) }

// Guarded is every port that is guarded: by what the agent or the settings
// say, and by the guard's own rules, which outlive the agent.
func Guarded(f Facts) []firewall.Port {
	ports := slices.Clone(f.Guarded)
	for _, t := range f.Tables {
		if !ours(t) {
			continue
		}
		for _, c := range t.Chains {
			if c.Hook != "prerouting" {
				continue
			}
			for _, r := range c.Rules {
				ports = append(ports, portsBehind(t, r, ports)...)
			}
		}
	}
	return ports
}

// portsBehind reads the ports of the guard's own rule for a transport from the
// chain it leads to, less those that are known.
func portsBehind(t Table, r Rule, known []firewall.Port) (ports []firewall.Port) {
	protocol, ok := only(r, FieldProto)
	i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == r.Target })
	if !ok || protocol.First != protocol.Last || i < 0 {
		return nil
	}
	for _, r := range t.Chains[i].Rules {
		numbers, ok := only(r, FieldPort)
		if ok && !slices.ContainsFunc(known, func(p firewall.Port) bool {
			return uint32(p.Protocol) == protocol.First && uint32(p.First) <= numbers.First && numbers.Last <= uint32(p.Last)
		}) {
			ports = append(ports, firewall.Port{Protocol: firewall.Protocol(protocol.First), First: uint16(numbers.First), Last: uint16(numbers.Last)})
		}
	}
	return ports
}

// only is the one range a rule asks of a field.
func only(r Rule, f Field) (Range, bool) {
	i := slices.IndexFunc(r.Matches, func(m Match) bool { return m.Field == f && len(m.Values) == 1 })
	if i < 0 {
		return Range{}, false
	}
	return r.Matches[i].Values[0], true
}

func isGuarded(ports []firewall.Port, protocol firewall.Protocol, n uint16) bool {
	return slices.ContainsFunc(ports, func(p firewall.Port) bool { return p.Protocol == protocol && p.First <= n && n <= p.Last })
}

// guardedPackets are the packets that stand for the guarded ports: to each on
// which somebody listens, and where nobody does to the first of the range. A
// port that is guarded for both protocols and serves one is asked for that.
func guardedPackets(f Facts) []packet {
	var out []packet
	add := func(protocol firewall.Protocol, port uint16, families ...uint32) {
		for _, family := range families {
			if p := (packet{family, protocol, port}); !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	ports := Guarded(f)
	for _, p := range ports {
		found := false
		for _, l := range f.Listeners {
			if p.First <= l.Port && l.Port <= p.Last && !l.Address.IsLoopback() {
				found = true
				if l.Protocol == p.Protocol {
					add(p.Protocol, l.Port, l.families()...)
				}
			}
		}
		if !found && (p.Protocol == firewall.TCP || !isGuarded(ports, firewall.TCP, p.First)) {
			add(p.Protocol, p.First, 4, 6)
		}
	}
	slices.SortFunc(out, func(a, b packet) int {
		return cmp.Or(cmp.Compare(a.port, b.port), cmp.Compare(a.protocol, b.protocol), cmp.Compare(a.family, b.family))
	})
	return out
}

// families are those whose packets reach a listener: the unspecified address
// of IPv6 takes both, unless the program asked otherwise.
func (l Listener) families() []uint32 {
	switch {
	case l.Address.Is4():
		return []uint32{4}
	case l.Address == netip.IPv6Unspecified():
		return []uint32{4, 6}
	}
	return []uint32{6}
}

// truth is whether a match holds for a packet.
type truth int

const (
	no    truth = iota
	maybe       // it depends on more than is known of the packet
	yes
)

func (m Match) holds(p packet) truth {
	var value uint32
	switch m.Field {
	case FieldFamily:
		value = p.family
	case FieldProto:
		value = uint32(p.protocol)
	case FieldPort:
		value = uint32(p.port)
	case FieldDest:
		value = destLocal
	case FieldInput:
		value = 0 // from outside
	case FieldKind, FieldWay:
		value = 0 // to this host; the way the connection began
	case FieldStatus:
		if m.Not {
			return yes
		}
		return no // a new connection has none yet
	case FieldState:
		in := slices.ContainsFunc(m.Values, func(r Range) bool { return r.First&StateNew != 0 })
		if in != m.Not {
			return yes
		}
		return no
	default:
		return maybe
	}
	if slices.ContainsFunc(m.Values, func(r Range) bool { return r.has(value) }) != m.Not {
		return yes
	}
	return no
}

func (r Rule) holds(p packet) truth {
	all := yes
	for _, m := range r.Matches {
		all = min(all, m.holds(p))
	}
	return all
}

// fate is what may become of a packet in a chain.
type fate struct {
	accepted, dropped bool
	named             bool // a rule says so, not only the policy
	through           bool // it may reach the end of the chain
	by                drop // the first thing that drops it
}

// drop is where a packet is dropped: by a rule, or by the policy.
type drop struct {
	chain  string
	handle uint64 // 0: the policy
}

// maxJumps is the kernel's own bound.
const maxJumps = 16

// walk follows a packet through a chain.
func walk(t Table, rules []Rule, chain string, p packet, depth int) fate {
	var f fate
	join := func(g fate) {
		if g.dropped && !f.dropped {
			f.by = g.by
		}
		f.accepted, f.dropped, f.named = f.accepted || g.accepted, f.dropped || g.dropped, f.named || g.named
	}
	for _, r := range rules {
		holds := r.holds(p)
		if holds == no {
			continue
		}
		var g fate
		switch r.Action {
		case Accept:
			g = fate{accepted: true, named: true}
		case DNAT, Redirect, TProxy:
			g = fate{accepted: true}
		case Drop:
			g = fate{dropped: true, named: true, by: drop{chain, r.Handle}}
		case Queue:
			g = fate{accepted: true, dropped: true, named: true, by: drop{chain, r.Handle}} // a program decides
		case Return:
			g = fate{through: true}
		case Jump, Goto:
			i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == r.Target })
			if i < 0 || depth >= maxJumps {
				continue
			}
			g = walk(t, t.Chains[i].Rules, r.Target, p, depth+1)
			if r.Action == Jump && g.through {
				join(g)
				continue
			}
		default:
			continue
		}
		join(g)
		f.through = f.through || g.through
		if holds == yes {
			return f
		}
	}
	f.through = true
	return f
}

// sees reports whether packets of the family pass chains of the table.
func (t Table) sees(p packet) bool {
	switch t.Family {
	case "ip":
		return p.family == 4
	case "ip6":
		return p.family == 6
	}
	return true
}

// decide is what a base chain does to a packet.
func (c Chain) decide(t Table, p packet) fate {
	f := walk(t, c.Rules, c.Name, p, 0)
	if f.through {
		if c.Drops {
			if !f.dropped {
				f.by = drop{chain: c.Name}
			}
			f.dropped = true
		} else {
			f.accepted = true
		}
	}
	return f
}

// unconcerned is what a chain says about ports it has no rule for.
const unconcerned = "nothing about %s"

// says puts into words what a foreign base chain does to the guarded ports.
func says(t Table, c Chain, packets []packet) string {
	kinds := map[string][]packet{}
	var order []string
	for _, p := range packets {
		if !t.sees(p) {
			continue
		}
		f := c.decide(t, p)
		var kind string
		switch {
		case f.dropped && !f.accepted && f.by.handle == 0:
			kind = "policy drop, no rule for %s"
		case f.dropped && !f.accepted:
			kind = "drops %s"
		case f.dropped:
			kind = "drops some of %s"
		case f.named:
			kind = "accepts %s"
		default:
			kind = unconcerned
		}
		if kinds[kind] == nil {
			order = append(order, kind)
		}
		kinds[kind] = append(kinds[kind], p)
	}
	leads := rewrites(t, c)
	var parts []string
	for _, kind := range order {
		if kind != unconcerned || len(leads) == 0 {
			parts = append(parts, fmt.Sprintf(kind, services(t, kinds[kind])))
		}
	}
	for _, r := range leads {
		parts = append(parts, r.String())
	}
	for _, r := range reached(t, c, Notrack) {
		parts = append(parts, "does not track "+r.asked())
	}
	return strings.Join(parts, "; ")
}

// services lists packets as 22/tcp, 3389/udp; those of one family only, in a
// table that sees both, with its name.
func services(t Table, packets []packet) string {
	var out []string
	for _, p := range packets {
		other := p
		other.family = 10 - p.family
		name := p.service()
		if t.sees(other) && !slices.Contains(packets, other) {
			name += fmt.Sprintf(" (IPv%d)", p.family)
		}
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return strings.Join(out, ", ")
}

// guardSays is the row of the guard itself.
func guardSays(f Facts, c Chain) string {
	verb := "guards"
	if f.Mode == observe {
		verb = "counts"
	}
	if c.Hook == "input" {
		verb += " after rewriting"
	}
	return verb + " " + list(Guarded(f))
}

func list(ports []firewall.Port) string {
	if len(ports) == 0 {
		return "no port"
	}
	var out []string
	for _, p := range ports {
		p.Cut = false
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// rewrite is a rule that leads packets to another port or address.
type rewrite struct {
	table  Table
	chain  string
	rule   Rule
	from   []Range // destination ports; empty: all
	protos []Range // protocols; empty: all
}

func (r rewrite) String() string {
	if r.rule.Action != DNAT {
		return fmt.Sprintf("leads %s to %s", r.asked(), r.leads())
	}
	return fmt.Sprintf("publishes %s to %s", r.asked(), r.leads())
}

// asked is the ports a packet asks for.
func (r rewrite) asked() string {
	if len(r.from) == 0 {
		return "every port"
	}
	var out []string
	for _, p := range r.from {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
}

// ports is the same in a sentence.
func (r rewrite) ports() string {
	switch {
	case len(r.from) == 0:
		return r.asked()
	case len(r.from) == 1 && r.from[0].First == r.from[0].Last:
		return "port " + r.asked()
	}
	return "each of ports " + r.asked()
}

// leads is where it is led to.
func (r rewrite) leads() string {
	port := ""
	if r.rule.Ports.Last != 0 {
		port = r.rule.Ports.String()
	}
	switch {
	case r.rule.To.Is6() && port != "":
		return "[" + r.rule.To.String() + "]:" + port
	case r.rule.To.IsValid() && port != "":
		return r.rule.To.String() + ":" + port
	case r.rule.To.IsValid():
		return r.rule.To.String()
	case port != "":
		return port
	}
	return "a place that is not readable here"
}

func (r Range) String() string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

// rewrites lists the rules below a base chain that lead packets elsewhere.
func rewrites(t Table, c Chain) []rewrite { return reached(t, c, DNAT, Redirect, TProxy, SetPort) }

// about reports whether the ports and protocols that were matched are those
// of a packet.
func (r rewrite) about(p packet) bool {
	in := func(ranges []Range, n uint32) bool {
		return len(ranges) == 0 || slices.ContainsFunc(ranges, func(r Range) bool { return r.has(n) })
	}
	return in(r.from, uint32(p.port)) && in(r.protos, uint32(p.protocol))
}

// reached lists the rules with one of the actions that a base chain leads to,
// with the ports its jumps have matched on the way.
func reached(t Table, c Chain, actions ...Action) []rewrite {
	var out []rewrite
	var visit func(rules []Rule, chain string, from, protos []Range, depth int)
	visit = func(rules []Rule, chain string, from, protos []Range, depth int) {
		for _, r := range rules {
			from, protos, inside := from, protos, false
			for _, m := range r.Matches {
				switch {
				case m.Field == FieldInput && !m.Not:
					inside = true // only what comes from this host itself
				case m.Field == FieldPort && !m.Not:
					from = m.Values
				case m.Field == FieldProto && !m.Not:
					protos = m.Values
				}
			}
			if inside {
				continue
			}
			switch {
			case slices.Contains(actions, r.Action):
				out = append(out, rewrite{t, chain, r, from, protos})
			case r.Action == Jump, r.Action == Goto:
				i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == r.Target })
				if i >= 0 && depth < maxJumps {
					visit(t.Chains[i].Rules, r.Target, from, protos, depth+1)
				}
			}
		}
	}
	visit(c.Rules, c.Name, nil, nil, 0)
	return out
}

// writer names the program that is known to write such a table.
func writer(t Table) string {
	chain := func(prefix string) bool {
		return slices.ContainsFunc(t.Chains, func(c Chain) bool { return strings.HasPrefix(c.Name, prefix) })
	}
	iptables := (t.Family == "ip" || t.Family == "ip6") && slices.ContainsFunc(t.Chains, func(c Chain) bool {
		return c.Hook != "" && c.Name == strings.ToUpper(c.Name)
	})
	switch {
	case ours(t):
		return "jitgate"
	case t.Name == "firewalld":
		return "firewalld"
	case strings.HasPrefix(t.Name, "f2b-"):
		return "fail2ban"
	case t.Name == "netavark" || chain("NETAVARK"):
		return "netavark (podman)"
	case strings.HasPrefix(t.Name, "docker-"):
		return "docker"
	case t.Name == "kube-proxy" || strings.HasPrefix(t.Name, "kube"):
		return "kubernetes"
	case iptables && chain("ufw"):
		return "ufw"
	case iptables && chain("KUBE-"):
		return "kubernetes"
	case iptables && chain("DOCKER"):
		return "docker"
	case iptables && chain("f2b-"):
		return "fail2ban"
	case iptables:
		return "iptables-nft"
	}
	return ""
}
