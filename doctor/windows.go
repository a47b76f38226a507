package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// windows says how the guard of a host with Windows is, and what Windows
// Firewall adds to it.
func (e *examination) windows(w Windows) {
	if !e.Root {
		e.add(Warning, NotRoot, "Without the rights of an administrator not all was seen.", "", "Run it as administrator.")
	}
	if len(e.Unread) > 0 {
		e.add(Warning, Unread, "Not everything could be read.", strings.Join(e.Unread, "; "), "Run it as administrator; else look by hand at what is named here.")
	}
	switch {
	case w.NoPlatform != "":
		e.add(Problem, PlatformMissing, "The Windows Filtering Platform does not answer: nothing is guarded by the agent, and it cannot be armed.", w.NoPlatform,
			"Start its service: `sc start BFE`")
	case e.Mode == off: // said with the agent
	case len(e.ports) == 0:
		e.add(Warning, NoPortGuarded, "No port is guarded.", "", upper(e.guardMore("22/tcp"))+".")
	case e.Agent.Running && !e.Agent.Intact:
		e.add(Problem, GuardNotIntact, "The guard was not whole when the agent last looked: somebody changed it.", "", "Look for who did it in the record (guard.drift) and in `jitgate status`; the agent repairs it by itself.")
	}
	e.proxies(w.Proxies)
	if len(e.Listeners) > 0 {
		e.listening()
	}
	if w.NoPolicy != "" {
		e.add(Warning, WindowsUnread, "Windows Firewall could not be read: whether it lets through what is granted is not known.", w.NoPolicy,
			"See whether its service runs: `sc query MpsSvc`")
		return
	}
	e.windowsFirewall(w.Policy)
}

// windowsOrder is the guard's sublayer, and Windows Firewall for each network
// the host is on, at the layers that authorize what comes in.
func windowsOrder(f Facts, w Windows) []Step {
	steps := []Step{}
	if w.NoPlatform == "" && f.Agent.Running && f.Agent.Intact && f.Mode != off && len(Guarded(f)) > 0 {
		verb := "guards "
		if f.Mode == observe {
			verb = "observes "
		}
		steps = append(steps, Step{Hook: "accept", Priority: 0xffff, Family: "inet", Table: "Windows Filtering Platform", Chain: "jitgate", Policy: "accept", By: "jitgate", Ours: true, Says: verb + list(Guarded(f))})
	}
	for _, x := range w.Policy.Profiles {
		if !x.Active {
			continue
		}
		s := Step{Hook: "accept", Family: "inet", Table: "Windows Firewall", Chain: x.Name, Policy: "accept", By: "Windows Firewall", Says: "lets through what is not blocked"}
		switch {
		case !x.On:
			s.Says = "is off"
		case x.BlocksAll:
			s.Policy, s.Says = "drop", "blocks all that comes in"
		case x.BlocksByDefault:
			s.Policy, s.Says = "drop", "blocks what no rule allows"
		}
		steps = append(steps, s)
	}
	return steps
}

// windowsFirewall says where Windows Firewall stands in the way of a grant. It
// cannot open what the guard keeps closed.
func (e *examination) windowsFirewall(p winfw.Policy) {
	before := len(e.findings)
	open, bits := []string{}, 0
	for _, x := range p.Profiles {
		if !x.Active {
			continue
		}
		switch {
		case !x.On:
			open = append(open, x.Name)
		case x.BlocksAll:
			e.add(Problem, WindowsBlocksAll, fmt.Sprintf("Windows Firewall blocks all that comes in on %s networks, whatever rules allow: no grant lets anybody in.", x.Name), "",
				fmt.Sprintf("Allow rules again: `Set-NetFirewallProfile -Name %s -AllowInboundRules True`", x.Name))
		default:
			bits |= x.Bit
		}
	}
	if len(open) > 0 {
		e.add(Note, WindowsOff, fmt.Sprintf("Windows Firewall is off on %s networks: what is not guarded is open there.", strings.Join(open, " and ")), "The guard does not need it.",
			fmt.Sprintf("Unless that is meant, turn it on: `Set-NetFirewallProfile -Name %s -Enabled True`", strings.Join(open, ",")))
	}
	var blocking, allowing []string
	allowed := map[firewall.Port]bool{}
	for _, r := range p.Rules {
		if !r.Enabled || r.Profiles&bits == 0 || r.Group == winfw.Group {
			continue
		}
		for _, port := range e.ports {
			switch {
			case !r.About(port):
			case r.Block:
				blocking = appendNew(blocking, r.Name)
			case r.Protocol != winfw.AnyProtocol && r.Ports != "" && r.Ports != "*":
				// One for a program alone says nothing of who listens here.
				allowing = appendNew(allowing, fmt.Sprintf("%s (%s)", r.Name, r.Sources))
				allowed[port] = true
			}
		}
	}
	if len(blocking) > 0 {
		e.add(Problem, WindowsBlocks, "Rules of Windows Firewall block guarded ports: they beat every rule that allows, so a grant for whom they are about lets nobody in.", strings.Join(blocking, "; "),
			"Disable them: `Disable-NetFirewallRule -DisplayName NAME`")
	}
	missing := slices.DeleteFunc(slices.Clone(e.ports), func(port firewall.Port) bool { return allowed[port] })
	blocksByDefault := slices.ContainsFunc(p.Profiles, func(x winfw.Profile) bool { return x.Active && x.On && x.BlocksByDefault && !x.BlocksAll })
	if p.Modify == winfw.ModifyGroup && blocksByDefault && len(missing) > 0 {
		e.add(Warning, WindowsGroupPolicy, fmt.Sprintf("Group policy decides about Windows Firewall, and rules made here may not count: jitgate's own for %s then let nobody through.", list(missing)),
			"Rules that come by group policy are not seen here.", "Have a rule of group policy allow these ports for everybody; the guard decides who gets in.")
	}
	if len(allowing) > 0 {
		e.add(Note, WindowsAllows, "Rules of Windows Firewall let guarded ports through: with the guard on nobody gets in by them alone, without it whom they name.", strings.Join(allowing, "; "), "Nothing, if it is meant.")
	}
	if !slices.ContainsFunc(e.findings[before:], func(f Finding) bool { return f.Level == Problem || f.Level == Warning }) {
		e.add(OK, WindowsNotInTheWay, "Windows Firewall lets through what is granted, as far as can be seen.", "", nothing)
	}
}

// proxies says which ports lead to guarded ones: the connection comes from this
// host then, and the guard lets it pass.
func (e *examination) proxies(list []PortProxy) {
	for _, p := range list {
		a, err := netip.ParseAddr(p.To)
		here := p.To == "localhost" || err == nil && (a.IsLoopback() || a.IsUnspecified() || slices.Contains(e.Addresses, a))
		in := func(n uint16) func(firewall.Port) bool {
			return func(g firewall.Port) bool { return g.Protocol == firewall.TCP && g.First <= n && n <= g.Last }
		}
		if !here || !slices.ContainsFunc(e.ports, in(p.ToPort)) || slices.ContainsFunc(e.ports, in(p.Port)) {
			continue
		}
		e.add(Problem, PortProxied, fmt.Sprintf("A port proxy leads from port %d to guarded port %d: who connects there gets in round the guard.", p.Port, p.ToPort), "",
			fmt.Sprintf("Take it out, `netsh interface portproxy delete v4tov4 listenport=%d listenaddress=…`, or %s.", p.Port, e.guardMore(fmt.Sprintf("%d/tcp", p.Port))))
	}
}

func appendNew(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// parseProxy reads a value of the registry's list of port proxies: its name is
// "listening address/port", its data "address/port".
func parseProxy(name, data string) (p PortProxy, ok bool) {
	_, from, ok1 := strings.Cut(name, "/")
	to, port, ok2 := strings.Cut(data, "/")
	a, err1 := strconv.ParseUint(from, 10, 16)
	b, err2 := strconv.ParseUint(port, 10, 16)
	return PortProxy{uint16(a), to, uint16(b)}, ok1 && ok2 && err1 == nil && err2 == nil
}
