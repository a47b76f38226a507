package doctor

import (
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func eq(field Field, values ...uint32) Match {
	m := Match{Field: field}
	for _, v := range values {
		m.Values = append(m.Values, Range{v, v})
	}
	return m
}

func port(first, last uint32) Match { return Match{Field: FieldPort, Values: []Range{{first, last}}} }

var (
	tcp         = eq(FieldProto, 6)
	udp         = eq(FieldProto, 17)
	established = eq(FieldState, StateEstablished|StateRelated)
	unknown     = Match{}
)

func rule(action Action, matches ...Match) Rule {
	return Rule{Handle: 7, Action: action, Matches: matches}
}

func jump(target string, matches ...Match) Rule {
	return Rule{Action: Jump, Target: target, Matches: matches}
}

func input(rules ...Rule) Chain {
	return Chain{Name: "input", Hook: "input", Type: "filter", Rules: rules}
}

func dropping(c Chain) Chain { c.Drops = true; return c }

func table(family, name string, chains ...Chain) Table {
	return Table{Family: family, Name: name, Handle: 9, Chains: chains}
}

func nat(rules ...Rule) Chain {
	return Chain{Name: "pre", Hook: "prerouting", Type: "nat", Priority: -100, Rules: rules}
}

func to(r Rule, address string, port uint32) Rule {
	if address != "" {
		r.To = netip.MustParseAddr(address)
	}
	r.Ports = Range{port, port}
	return r
}

func listener(process, address string, port uint16) Listener {
	return Listener{Protocol: firewall.TCP, Address: netip.MustParseAddr(address), Port: port, Process: process, PID: int(port)}
}

// guard is the guard's own table.
func guard() Table {
	return Table{Family: "inet", Name: "jitgate", Handle: 3, Owner: 77, Persist: true, Chains: []Chain{
		{Name: "pre", Hook: "prerouting", Priority: -150, Type: "filter", Rules: []Rule{
			{Action: Goto, Target: "tcp_ports", Matches: []Match{tcp}},
			{Action: Goto, Target: "others", Matches: []Match{{Field: FieldProto, Values: []Range{{18, 255}}}}},
		}},
		{Name: "tcp_ports", Rules: []Rule{{Action: Goto, Target: "keep", Matches: []Match{port(22, 22)}}}},
		{Name: "others", Rules: []Rule{{Action: Goto, Target: "keep", Matches: []Match{port(22, 22)}}}},
		{Name: "keep", Rules: []Rule{rule(Drop)}},
	}}
}

// healthy is a host with nothing to be said against it.
func healthy() Facts {
	document := func(name string) Document {
		return Document{Name: name, Version: 1, Issued: now.Add(-time.Hour), Expires: now.Add(90 * 24 * time.Hour)}
	}
	f := Facts{
		Root: true, Kernel: "6.18.0", Now: now, Host: "web1", Mode: "enforce", TablesRead: true,
		Guarded:   []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}, {Protocol: firewall.UDP, First: 22, Last: 22}},
		Settings:  Settings{Path: "/etc/jitgate/agent.toml", Pinned: true},
		Agent:     Agent{Running: true, Firewall: "nftables", Intact: true, Documents: []Document{document("trust"), document("policy"), document("grants")}},
		Tables:    []Table{guard()},
		Listeners: []Listener{listener("sshd", "0.0.0.0", 22), listener("sshd", "::", 22)},
		Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("192.0.2.1")},
		Clock:     Clock{Known: true, Synchronised: true}, LocalPorts: Range{32768, 60999},
	}
	for _, k := range features {
		f.Features = append(f.Features, Feature{ID: k.id, Found: true})
	}
	return f
}

// onWindows makes the host one with Windows, on a private network, with Windows
// Firewall as installed.
func onWindows(change func(*Facts)) func(*Facts) {
	return func(f *Facts) {
		*f = Facts{Root: true, Kernel: "Windows 10.0.20348", Now: now, Host: f.Host, Mode: f.Mode, Guarded: f.Guarded, Settings: f.Settings, Agent: f.Agent, Addresses: f.Addresses,
			Windows: &Windows{Policy: winfw.Policy{Profiles: []winfw.Profile{
				{Name: "domain", Bit: winfw.ProfileDomain, On: true, BlocksByDefault: true},
				{Name: "private", Bit: winfw.ProfilePrivate, On: true, BlocksByDefault: true, Active: true},
				{Name: "public", Bit: winfw.ProfilePublic, On: true, BlocksByDefault: true}}}}}
		windowsRule(winfw.PolicyRule{Name: "jitgate 22/tcp", Group: winfw.Group, Protocol: 6, Ports: "22", Sources: "203.0.113.7/32"},
			winfw.PolicyRule{Name: "Core Networking", Group: "@FirewallAPI.dll,-25000", Protocol: 1})(f)
		if change != nil {
			change(f)
		}
	}
}

// windowsRule adds rules that are enabled on every network.
func windowsRule(list ...winfw.PolicyRule) func(*Facts) {
	return func(f *Facts) {
		for _, r := range list {
			r.Enabled, r.Profiles = true, 0x7fffffff
			f.Windows.Policy.Rules = append(f.Windows.Policy.Rules, r)
		}
	}
}

func with(t ...Table) func(*Facts) {
	return func(f *Facts) { f.Tables = append(f.Tables, t...) }
}

func listening(l ...Listener) func(*Facts) {
	return func(f *Facts) { f.Listeners = append(f.Listeners, l...) }
}

func without(id ID) func(*Facts) {
	return func(f *Facts) {
		for i := range f.Features {
			if f.Features[i].ID == id {
				f.Features[i] = Feature{ID: id, Why: "EOPNOTSUPP"}
			}
		}
	}
}

// Each case changes one thing about a healthy host. want is what is found
// beyond it: level, kind and words that must stand in it.
func TestExamine(t *testing.T) {
	type want struct {
		level Level
		id    ID
		says  string
	}
	mangle := func(priority int, from, to uint32) Table {
		r := rule(SetPort, tcp, port(from, from))
		r.Ports = Range{to, to}
		return table("inet", "mangle", Chain{Name: "pre", Hook: "prerouting", Type: "filter", Priority: priority, Rules: []Rule{r}})
	}
	secondLook := func(f *Facts) {
		f.Tables[0].Chains = append(f.Tables[0].Chains, Chain{Name: "in", Hook: "input", Type: "filter", Priority: -10, Rules: []Rule{rule(Drop)}})
	}
	seen := map[ID]bool{}
	for name, c := range map[string]struct {
		change func(*Facts)
		want   []want
	}{
		"healthy":                  {func(*Facts) {}, nil},
		"Windows":                  {onWindows(nil), nil},
		"Windows, not elevated":    {onWindows(func(f *Facts) { f.Root = false }), []want{{Warning, NotRoot, "administrator"}}},
		"Windows, unread":          {onWindows(func(f *Facts) { f.Unread = []string{"port proxies: no"} }), []want{{Warning, Unread, "port proxies"}}},
		"no filtering platform":    {onWindows(func(f *Facts) { f.Windows.NoPlatform = "error 0x6d9" }), []want{{Problem, PlatformMissing, "sc start BFE"}}},
		"Windows Firewall stopped": {onWindows(func(f *Facts) { f.Windows.NoPolicy = "error 0x6d9" }), []want{{Warning, WindowsUnread, "MpsSvc"}}},
		"Windows, nothing guarded": {onWindows(func(f *Facts) { f.Guarded = nil }), []want{{Warning, NoPortGuarded, "22/tcp"}}},
		"Windows, guard changed":   {onWindows(func(f *Facts) { f.Agent.Intact = false }), []want{{Problem, GuardNotIntact, "guard.drift"}}},
		"Windows Firewall off":     {onWindows(func(f *Facts) { f.Windows.Policy.Profiles[1].On = false }), []want{{Note, WindowsOff, "off on private"}}},
		"Windows, not set up":      {onWindows(func(f *Facts) { f.Settings.Missing, f.Agent, f.Mode = true, Agent{}, observe }), []want{{Problem, NoSettings, "`notepad "}}},
		"Windows, no agent":        {onWindows(func(f *Facts) { f.Settings.Pinned, f.Agent = false, Agent{} }), []want{{Problem, NoTrustPin, "As administrator"}, {Problem, AgentNotRunning, "`net start jitgate`"}}},
		"off on another network":   {onWindows(func(f *Facts) { f.Windows.Policy.Profiles[2].On = false }), nil},
		"blocks everything":        {onWindows(func(f *Facts) { f.Windows.Policy.Profiles[1].BlocksAll = true }), []want{{Problem, WindowsBlocksAll, "private"}}},
		"a rule blocks":            {onWindows(windowsRule(winfw.PolicyRule{Name: "no SSH", Block: true, Protocol: 6, Ports: "20-25"})), []want{{Problem, WindowsBlocks, "no SSH"}}},
		"a rule blocks a program":  {onWindows(windowsRule(winfw.PolicyRule{Name: "sshd", Block: true, Protocol: 256, Program: "C:\\sshd.exe"})), []want{{Problem, WindowsBlocks, "sshd"}}},
		"a rule blocks elsewhere":  {onWindows(windowsRule(winfw.PolicyRule{Name: "no HTTP", Block: true, Protocol: 6, Ports: "80"}, winfw.PolicyRule{Name: "no GRE", Block: true, Protocol: 47})), nil},
		"a disabled rule": {onWindows(func(f *Facts) {
			f.Windows.Policy.Rules = append(f.Windows.Policy.Rules, winfw.PolicyRule{Name: "no SSH", Block: true, Protocol: 6, Ports: "22", Profiles: 7})
		}), nil},
		"a rule for other networks": {onWindows(func(f *Facts) {
			f.Windows.Policy.Rules = append(f.Windows.Policy.Rules, winfw.PolicyRule{Name: "no SSH", Enabled: true, Block: true, Protocol: 6, Ports: "22", Profiles: winfw.ProfilePublic})
		}), nil},
		"a rule allows": {onWindows(windowsRule(winfw.PolicyRule{Name: "OpenSSH", Protocol: 6, Ports: "22", Sources: "*"})), []want{{Note, WindowsAllows, "OpenSSH (*)"}}},
		"group policy":  {onWindows(func(f *Facts) { f.Windows.Policy.Modify = winfw.ModifyGroup }), []want{{Warning, WindowsGroupPolicy, "22/tcp, 22/udp"}}},
		"group policy, and a rule allows": {onWindows(func(f *Facts) {
			windowsRule(winfw.PolicyRule{Name: "OpenSSH", Protocol: 6, Ports: "22", Sources: "*"}, winfw.PolicyRule{Name: "QUIC", Protocol: 17, Ports: "22", Sources: "*"})(f)
			f.Windows.Policy.Modify = winfw.ModifyGroup
		}), []want{{Note, WindowsAllows, "QUIC (*)"}}},
		"group policy, all is let through": {onWindows(func(f *Facts) {
			f.Windows.Policy.Modify, f.Windows.Policy.Profiles[1].BlocksByDefault = winfw.ModifyGroup, false
		}), nil},
		"a port proxy":                       {onWindows(func(f *Facts) { f.Windows.Proxies = []PortProxy{{8022, "127.0.0.1", 22}} }), []want{{Problem, PortProxied, "from port 8022 to guarded port 22"}}},
		"a port proxy by the host's address": {onWindows(func(f *Facts) { f.Windows.Proxies = []PortProxy{{8022, "192.0.2.1", 22}} }), []want{{Problem, PortProxied, "8022/tcp"}}},
		"port proxies that do no harm": {onWindows(func(f *Facts) {
			f.Windows.Proxies = []PortProxy{{8080, "127.0.0.1", 80}, {8022, "192.0.2.99", 22}, {22, "127.0.0.1", 22}}
		}), nil},
		"other platform": {func(f *Facts) { *f = Facts{Unsupported: "no", Settings: f.Settings, Agent: f.Agent, Now: now} }, []want{{Problem, UnsupportedPlatform, "no"}}},
		"no root": {func(f *Facts) {
			f.Root, f.TablesRead, f.Tables, f.Features, f.Agent = false, false, nil, nil, Agent{Why: "permission denied"}
		},
			[]want{{Warning, NotRoot, "sudo jitgate doctor"}, {Warning, AgentNotAsked, "permission denied"}}},
		"something unread": {func(f *Facts) { f.Unread = []string{"nf_tables: broken"} }, []want{{Warning, Unread, "nf_tables: broken"}}},

		// The agent and its settings.
		"no settings": {func(f *Facts) { f.Settings.Missing, f.Settings.Pinned, f.Agent, f.Mode = true, false, Agent{}, observe },
			[]want{{Problem, NoSettings, "/etc/jitgate/agent.toml"}}},
		"bad settings":      {func(f *Facts) { f.Settings.Broken, f.Agent = "line 3: unknown key", Agent{} }, []want{{Problem, SettingsRefused, "line 3"}}},
		"writable settings": {func(f *Facts) { f.Settings.Writable = f.Settings.Path }, []want{{Problem, SettingsWritable, "chmod go-w /etc/jitgate/agent.toml"}}},
		"odd path":          {func(f *Facts) { f.Settings.Writable = "/etc/$(reboot)" }, []want{{Problem, SettingsWritable, "nobody else write it."}}},
		"no pin":            {func(f *Facts) { f.Settings.Pinned = false }, []want{{Problem, NoTrustPin, "jitgate trust install trust.json"}}},
		"host.json refused": {func(f *Facts) { f.Settings.HostRefused = "host.json: another machine" },
			[]want{{Warning, HostFileRefused, "jitgate host-id --write --config /etc/jitgate/agent.toml"}}},
		"no agent":            {func(f *Facts) { f.Agent = Agent{} }, []want{{Problem, AgentNotRunning, "jitgate agent run --config /etc/jitgate/agent.toml"}}},
		"agent in trouble":    {func(f *Facts) { f.Agent.Problem = "not-durable: disk full" }, []want{{Problem, AgentProblem, "disk full"}}},
		"observing":           {func(f *Facts) { f.Mode = observe }, []want{{Warning, ModeObserve, "jitgate arm"}}},
		"on trial":            {func(f *Facts) { f.Trial = time.Minute }, []want{{Warning, ModeTrial, "jitgate arm confirm"}}},
		"disarmed":            {func(f *Facts) { f.Mode, f.Tables = off, nil }, []want{{Warning, ModeOff, "jitgate arm"}}},
		"saved with the rest": {func(f *Facts) { f.Saved = []string{"/etc/nftables.conf"} }, []want{{Warning, SavedRuleset, "jitgate"}}},
		"no guard":            {func(f *Facts) { f.Tables = nil }, []want{{Problem, GuardMissing, "22/tcp"}}},
		"guard of our name":   {func(f *Facts) { f.Tables[0].Family = "ip"; f.Tables[0].Owner = 0 }, []want{{Problem, GuardMissing, ""}, {Problem, GrantShadowed, ""}}},
		"guard without base":  {func(f *Facts) { f.Tables[0].Chains[0].Hook = "" }, []want{{Problem, GuardMissing, ""}}},
		"guard not whole":     {func(f *Facts) { f.Agent.Intact = false }, []want{{Problem, GuardNotIntact, "guard.drift"}}},
		"guard asleep":        {func(f *Facts) { f.Tables[0].Dormant = true }, []want{{Problem, GuardDormant, ""}}},

		// Documents and clock.
		"blocked":                     {func(f *Facts) { f.Agent.Blocked = "stale-policy: no policy" }, []want{{Problem, NothingMayOpen, "stale-policy"}}},
		"refused":                     {func(f *Facts) { f.Agent.Documents[2].Refusal = "rollback" }, []want{{Warning, DocumentRefused, "version 1 stays in force"}}},
		"refused, none":               {func(f *Facts) { f.Agent.Documents[2] = Document{Name: "grants", Refusal: "bad-signature"} }, []want{{Problem, DocumentRefused, "list of grants"}}},
		"expired":                     {func(f *Facts) { f.Agent.Documents[1].Expires = now }, []want{{Problem, DocumentExpired, "policy document"}}},
		"expires soon":                {func(f *Facts) { f.Agent.Documents[0].Expires = now.Add(14*24*time.Hour - 1) }, []want{{Warning, DocumentExpiresSoon, "trust document"}}},
		"expired, and blocked for it": {func(f *Facts) { f.Agent.Documents[1].Expires, f.Agent.Blocked = now, "expired: the policy ended" }, []want{{Problem, DocumentExpired, ""}}},
		"expired grants":              {func(f *Facts) { f.Agent.Documents[2].Expires = now }, []want{{Note, DocumentExpired, "list of grants"}}},
		"short-lived grants":          {func(f *Facts) { f.Agent.Documents[2].Expires = now.Add(time.Hour) }, nil},
		"no grants yet":               {func(f *Facts) { f.Agent.Documents[2] = Document{Name: "grants"} }, nil},
		"expires later":               {func(f *Facts) { f.Agent.Documents[0].Expires = now.Add(14 * 24 * time.Hour) }, nil},
		"clock behind":                {func(f *Facts) { f.Agent.Documents[2].Issued = now.Add(2*time.Minute + 1) }, []want{{Problem, ClockBehind, "2m0s behind"}}},
		"clock before the build":      {func(f *Facts) { f.Agent.Blocked = "clock-behind: before the program was built" }, []want{{Problem, ClockBehind, "timedatectl"}}},
		"busy agent":                  {func(f *Facts) { f.Agent = Agent{Why: "the agent is busy"} }, []want{{Warning, AgentNotAsked, "jitgate status"}}},
		"guards nothing":              {func(f *Facts) { f.Guarded, f.Tables, f.Listeners = nil, nil, nil }, []want{{Warning, NoPortGuarded, "22/tcp"}}},
		"clock within skew":           {func(f *Facts) { f.Agent.Documents[2].Issued = now.Add(2 * time.Minute) }, nil},
		"clock unsynced":              {func(f *Facts) { f.Clock.Synchronised = false }, []want{{Warning, ClockNotSynchronised, "timedatectl"}}},
		"clock's state dark":          {func(f *Facts) { f.Clock = Clock{} }, nil},

		// Others who drop.
		"policy drop": {with(table("inet", "filter", dropping(input(rule(Accept, established), rule(Accept, eq(FieldInput, 1)), rule(Accept, tcp, port(80, 80)))))),
			[]want{{Problem, GrantShadowed, "A grant will not open 22/tcp: table inet filter chain input (input, priority 0) drops it (policy drop, and no accept for it)."}}},
		"policy drop, accepted": {with(table("inet", "filter", dropping(input(rule(Accept, tcp, port(20, 23)))))), nil},
		"accept for udp only":   {with(table("inet", "filter", dropping(input(rule(Accept, udp, port(22, 22)))))), []want{{Problem, GrantShadowed, "nft insert rule inet filter input tcp dport 22 accept"}}},
		"drop rule":             {with(table("inet", "filter", input(rule(Drop, tcp, port(22, 22))))), []want{{Problem, GrantShadowed, "handle 7"}}},
		"drop rule after accept": {with(table("inet", "filter", input(rule(Accept, tcp, port(22, 22)), rule(Drop)))),
			nil},
		"all but our port": {with(table("inet", "filter", input(rule(Drop, tcp, Match{Field: FieldPort, Values: []Range{{22, 22}}, Not: true})))), nil},
		"drop elsewhere":   {with(table("inet", "filter", input(rule(Drop, tcp, port(23, 23))))), nil},
		"output only":      {with(table("inet", "filter", Chain{Name: "out", Hook: "output", Type: "filter", Rules: []Rule{rule(Drop)}})), nil},
		"arp":              {with(table("arp", "filter", dropping(input()))), nil},
		"bridge":           {with(table("bridge", "filter", dropping(input()))), []want{{Warning, GrantShadowed, "table bridge filter"}}},
		"ingress": {with(table("netdev", "edge", Chain{Name: "in", Hook: "ingress", Type: "filter", Devices: []string{"eth0"}, Rules: []Rule{rule(Drop, eq(FieldFamily, 4), tcp, port(22, 22))}})),
			[]want{{Problem, GrantShadowed, "22/tcp (IPv4): table netdev edge chain in (ingress eth0, priority 0)"}}},
		"the family nobody serves": {func(f *Facts) {
			f.Listeners = []Listener{listener("sshd", "0.0.0.0", 22)}
			with(table("ip6", "filter", dropping(input())))(f)
		}, nil},
		"one address": {func(f *Facts) {
			f.Listeners = []Listener{listener("sshd", "fd00::1", 22)}
			with(table("ip", "filter", dropping(input())))(f)
		}, nil},
		"both by one listener": {func(f *Facts) {
			f.Listeners = []Listener{listener("sshd", "::", 22)}
			with(table("ip", "filter", dropping(input())))(f)
		}, []want{{Problem, GrantShadowed, "table ip filter"}}},
		"one family": {with(table("ip6", "filter", dropping(input()))), []want{{Problem, GrantShadowed, "table ip6 filter"}}},
		"for some":   {with(table("inet", "filter", dropping(input(rule(Accept, unknown, tcp, port(22, 22)))))), []want{{Warning, GrantShadowedForSome, "22/tcp"}}},
		"a queue":    {with(table("inet", "ids", input(rule(Queue)))), []want{{Warning, GrantShadowedForSome, "22/tcp"}}},
		"by a jump": {with(table("inet", "filter", input(jump("lan", unknown), jump("all", tcp)), Chain{Name: "lan", Rules: []Rule{rule(Return)}}, Chain{Name: "all", Rules: []Rule{rule(Drop, port(22, 22))}})),
			[]want{{Problem, GrantShadowed, "chain all"}}},
		"returned": {with(table("inet", "filter", input(jump("all")), Chain{Name: "all", Rules: []Rule{rule(Return, tcp), rule(Drop)}})), nil},
		"goto ends at the policy": {with(table("inet", "filter", dropping(input(Rule{Action: Goto, Target: "all"}, rule(Accept))), Chain{Name: "all"})),
			[]want{{Problem, GrantShadowed, "policy drop"}}},
		"jumps in a circle": {with(table("inet", "filter", input(jump("input")))), nil},
		"invalid dropped":   {with(table("inet", "filter", input(rule(Drop, eq(FieldState, StateInvalid))))), nil},
		"new ones accepted": {with(table("inet", "filter", dropping(input(rule(Accept, eq(FieldState, StateEstablished, StateNew)))))), nil},
		"rewritten only":    {with(table("inet", "filter", dropping(input(rule(Accept, eq(FieldStatus, 32)))))), []want{{Problem, GrantShadowed, ""}}},
		"not to this host":  {with(table("inet", "filter", input(rule(Drop, eq(FieldDest, 3, 5))))), nil},
		"asleep":            {with(Table{Family: "inet", Name: "old", Dormant: true, Chains: []Chain{dropping(input())}}), []want{{Note, TableDormant, "inet old"}}},
		"owned":             {with(Table{Family: "inet", Name: "theirs", Owner: 4242}), []want{{Note, TableOwned, "4242"}}},
		"ufw": {with(table("ip", "filter", dropping(Chain{Name: "INPUT", Hook: "input", Type: "filter"}), Chain{Name: "ufw-user-input"})),
			[]want{{Problem, GrantShadowed, "`ufw allow 22/tcp`"}}},
		"firewalld": {with(table("inet", "firewalld", Chain{Name: "filter_INPUT", Hook: "input", Priority: 10, Type: "filter", Rules: []Rule{rule(Drop)}})),
			[]want{{Problem, GrantShadowed, "`firewall-cmd --permanent --add-service=ssh && firewall-cmd --reload`"}}},
		"iptables":              {with(table("ip", "filter", dropping(Chain{Name: "INPUT", Hook: "input", Type: "filter"}))), []want{{Problem, GrantShadowed, "`iptables -I INPUT -p tcp --dport 22 -j ACCEPT`"}}},
		"fail2ban":              {with(table("inet", "f2b-table", Chain{Name: "f2b-chain", Hook: "input", Priority: -1, Type: "filter", Rules: []Rule{rule(Drop, tcp, port(22, 22), unknown)}})), []want{{Note, GrantShadowedForSome, "fail2ban-client"}}},
		"a name like an option": {with(table("inet", "-f", dropping(input()))), []want{{Problem, GrantShadowed, "its name is not one to type"}}},
		"an odd name":           {with(table("inet", "x; reboot", dropping(input()))), []want{{Problem, GrantShadowed, "its name is not one to type"}}},
		"legacy":                {func(f *Facts) { f.Legacy = []Legacy{{"ip", "filter"}} }, []want{{Warning, IPTablesLegacy, "iptables-legacy-save"}}},

		// Round the guard.
		"redirect": {with(table("ip", "nat", nat(to(rule(Redirect, tcp, port(8022, 8022)), "", 22)))), []want{{Problem, RedirectedToGuarded, "Port 8022 is led to guarded 22/tcp"}}},
		"redirect, looked again": {func(f *Facts) {
			secondLook(f)
			with(table("ip", "nat", nat(to(rule(Redirect, tcp, port(8022, 8022)), "", 22))))(f)
		}, []want{{Note, RedirectedToGuarded, "8022"}}},
		"redirect by a jump":   {with(table("ip", "nat", nat(jump("more", tcp, port(8022, 8022))), Chain{Name: "more", Rules: []Rule{to(rule(Redirect), "", 22)}})), []want{{Problem, RedirectedToGuarded, "Port 8022 is led to guarded 22/tcp by table ip nat chain more"}}},
		"redirect of udp":      {with(table("ip", "nat", nat(to(rule(Redirect, udp, port(8022, 8022)), "", 2022)))), nil},
		"redirect away":        {with(table("ip", "nat", nat(to(rule(Redirect, tcp, port(22, 22)), "", 2022)))), nil},
		"redirect from inside": {with(table("ip", "nat", nat(to(rule(Redirect, eq(FieldInput, 1), tcp, port(8022, 8022)), "", 22)))), nil},
		"dnat to our address":  {with(table("ip", "nat", nat(to(rule(DNAT, tcp, port(8022, 8022)), "192.0.2.1", 22)))), []want{{Problem, RedirectedToGuarded, ""}}},
		"tproxy, looked again": {func(f *Facts) {
			secondLook(f)
			with(table("ip", "mangle", Chain{Name: "pre", Hook: "prerouting", Priority: -150, Type: "filter", Rules: []Rule{to(rule(TProxy, tcp, port(8022, 8022)), "", 22)}}))(f)
		}, []want{{Problem, RedirectedToGuarded, ""}}},
		"written before":      {with(mangle(-300, 22, 2022)), []want{{Problem, RewrittenBeforeGuard, "2022"}}},
		"written after":       {with(mangle(-140, 8022, 22)), []want{{Problem, RedirectedToGuarded, "8022"}}},
		"written before, to":  {with(mangle(-300, 8022, 22)), nil},
		"nat runs after us":   {with(table("ip", "nat", Chain{Name: "pre", Hook: "prerouting", Type: "nat", Priority: -190, Rules: []Rule{to(rule(Redirect, tcp, port(22, 22)), "", 2022)}})), nil},
		"published":           {with(table("ip", "nat", nat(to(rule(DNAT, tcp, port(2222, 2222)), "172.17.0.2", 22)))), []want{{Warning, PublishedUnguarded, "2222/tcp"}}},
		"published guarded":   {with(table("ip", "nat", nat(to(rule(DNAT, tcp, port(22, 22)), "172.17.0.2", 22)))), nil},
		"published web":       {with(table("ip", "nat", nat(to(rule(DNAT, tcp, port(8080, 8080)), "172.17.0.2", 80)))), []want{{Note, PublishedPorts, "8080/tcp to 172.17.0.2:80"}}},
		"published who knows": {with(table("ip", "nat", nat(rule(DNAT, tcp)))), []want{{Note, RewriteUnreadable, "nft -a list ruleset"}}},
		"proxy":               {listening(listener("docker-proxy", "0.0.0.0", 8080)), []want{{Warning, PublishedByProxy, "8080/tcp"}}},
		"proxy of a dnat": {func(f *Facts) {
			with(table("ip", "nat", nat(to(rule(DNAT, tcp, port(8080, 8080)), "172.17.0.2", 80))))(f)
			listening(listener("docker-proxy", "0.0.0.0", 8080))(f)
		}, []want{{Note, PublishedPorts, ""}}},
		"proxy's query":    {listening(Listener{Protocol: firewall.UDP, Address: netip.IPv4Unspecified(), Port: 40000, Process: "slirp4netns"}), nil},
		"notrack":          {with(table("ip", "raw", Chain{Name: "PREROUTING", Hook: "prerouting", Type: "filter", Priority: -300, Rules: []Rule{rule(Notrack, tcp, port(22, 22))}})), []want{{Warning, NotTracked, "22/tcp"}}},
		"notrack of dns":   {with(table("ip", "raw", Chain{Name: "PREROUTING", Hook: "prerouting", Type: "filter", Priority: -300, Rules: []Rule{rule(Notrack, udp, port(53, 53))}})), nil},
		"flowtable":        {func(f *Facts) { f.Flowtables = []Flowtable{{"inet", "fast", "ft", []string{"eth0"}}} }, []want{{Warning, FlowtablePresent, "eth0"}}},
		"xdp":              {func(f *Facts) { f.Programs = []Program{{"eth0", 12}} }, []want{{Note, XDPProgram, "eth0"}}},
		"route_localnet":   {func(f *Facts) { f.RouteLocalnet = []string{"all"} }, []want{{Warning, RouteLocalnet, "`sysctl -w net/ipv4/conf/all/route_localnet=0`"}}},
		"among host's own": {func(f *Facts) { f.LocalPorts = Range{22, 60999} }, []want{{Note, GuardedInLocalRange, "22/tcp"}}},

		// Listeners.
		"rdp":             {listening(listener("xrdp", "0.0.0.0", 3389)), []want{{Warning, ManagementUnguarded, "Add 3389/tcp to the ports of the policy"}}},
		"rdp on loopback": {listening(listener("xrdp", "127.0.0.1", 3389), listener("xrdp", "::1", 3389)), nil},
		"web":             {listening(listener("nginx", "0.0.0.0", 443)), nil},
		"second sshd":     {listening(listener("sshd", "0.0.0.0", 2222)), []want{{Warning, SSHElsewhere, "2222/tcp"}}},
		"the sshd, two":   {listening(Listener{firewall.TCP, netip.IPv4Unspecified(), 2222, "sshd", 22}), []want{{Problem, SSHElsewhere, "2222/tcp"}}},
		"nobody":          {func(f *Facts) { f.Listeners = nil }, []want{{Note, NobodyListens, "22/tcp"}}},
		"before a policy": {func(f *Facts) {
			f.Agent = Agent{}
			f.Settings.Missing = true
			listening(listener("xrdp", "0.0.0.0", 3389))(f)
		}, []want{{Problem, NoSettings, ""}, {Warning, ManagementUnguarded, "Add \"3389/tcp\" to guard in /etc/jitgate/agent.toml"}}},
		"no owner":          {without(FeatureOwnerPersist), []want{{Note, FeatureOwnerPersist, "EOPNOTSUPP"}}},
		"no timeout update": {without(FeatureTimeoutUpdate), []want{{Note, FeatureTimeoutUpdate, ""}}},
		"no fib":            {without(FeatureFib), []want{{Problem, FeatureFib, "modprobe nft_fib_inet"}}},
		"no conntrack":      {without(FeatureConntrack), []want{{Problem, FeatureConntrack, "modprobe nft_ct"}}},
		"no sock_destroy":   {without(FeatureSocketDestroy), []want{{Note, FeatureSocketDestroy, ""}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.change(&f)
			var found []Finding
			for _, g := range Examine(f) {
				seen[g.ID] = true
				if g.Level != OK {
					found = append(found, g)
				}
			}
			for _, w := range c.want {
				i := slices.IndexFunc(found, func(g Finding) bool {
					return g.Level == w.level && g.ID == w.id && strings.Contains(g.What+" "+g.Detail+" "+g.Do, w.says)
				})
				if i < 0 {
					t.Errorf("not found: %v\nin %+v", w, found)
					continue
				}
				found = slices.Delete(found, i, i+1)
			}
			if len(found) > 0 {
				t.Errorf("found beyond that: %+v", found)
			}
		})
	}
	for _, id := range IDs {
		if !seen[id] {
			t.Errorf("no case finds %s", id)
		}
	}
}

// What is well is said too, and each finding says what to do, in sentences.
func TestFindingsAreWhole(t *testing.T) {
	f := healthy()
	var ok []ID
	for _, g := range Examine(f) {
		ok = append(ok, g.ID)
	}
	want := []ID{GrantNotShadowed, GuardedListeners, FeatureOwnerPersist, FeatureTimeoutUpdate, FeatureFib, FeatureConntrack, FeatureSocketDestroy, AgentAnswers, ClockSynchronised, DocumentsInForce}
	if !slices.Equal(ok, want) {
		t.Errorf("of a healthy host it says %v, want %v", ok, want)
	}

	bad := healthy()
	bad.Agent.Problem, bad.Mode, bad.Settings.Writable, bad.Clock.Synchronised = "x", observe, "/etc/x", false
	bad.RouteLocalnet, bad.Programs, bad.Listeners = []string{"all"}, []Program{{"eth0", 1}}, nil
	with(table("inet", "filter", dropping(input())))(&bad)
	last := 0
	for _, g := range Examine(bad) {
		if g.What == "" || g.Do == "" || !strings.HasSuffix(g.What, ".") || g.Level != OK && g.Do == nothing {
			t.Errorf("not whole: %+v", g)
		}
		if strings.Count(g.Do, "`")%2 != 0 {
			t.Errorf("a command without an end: %s", g.Do)
		}
		rank := slices.Index(levels, g.Level)
		if rank < last {
			t.Errorf("%s comes after findings of a lower level", g.ID)
		}
		last = rank
	}
}

func TestWindowsOrder(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*Facts)
		want   []string
	}{
		"as installed": {nil, []string{"jitgate accept guards 22/tcp, 22/udp", "private drop blocks what no rule allows"}},
		"observing":    {func(f *Facts) { f.Mode = observe }, []string{"jitgate accept observes 22/tcp, 22/udp", "private drop blocks what no rule allows"}},
		"off":          {func(f *Facts) { f.Mode = off; f.Windows.Policy.Profiles[1].On = false }, []string{"private accept is off"}},
		"no platform":  {func(f *Facts) { f.Windows.NoPlatform = "x"; f.Windows.Policy.Profiles[1].BlocksAll = true }, []string{"private drop blocks all that comes in"}},
		"two networks": {func(f *Facts) {
			f.Agent.Intact = false
			f.Windows.Policy.Profiles[2].Active = true
			f.Windows.Policy.Profiles[2].BlocksByDefault = false
		},
			[]string{"private drop blocks what no rule allows", "public accept lets through what is not blocked"}},
	} {
		f := healthy()
		onWindows(c.change)(&f)
		var got []string
		for _, s := range Order(f) {
			got = append(got, s.Chain+" "+s.Policy+" "+s.Says)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func TestParseProxy(t *testing.T) {
	for _, c := range []struct {
		name, data string
		want       PortProxy
		ok         bool
	}{
		{"0.0.0.0/8022", "127.0.0.1/22", PortProxy{8022, "127.0.0.1", 22}, true},
		{"*/443", "web.example.com/8443", PortProxy{443, "web.example.com", 8443}, true},
		{"0.0.0.0", "127.0.0.1/22", PortProxy{}, false},
		{"0.0.0.0/x", "127.0.0.1/22", PortProxy{}, false},
		{"0.0.0.0/1", "127.0.0.1/65536", PortProxy{}, false},
	} {
		if p, ok := parseProxy(c.name, c.data); ok != c.ok || ok && p != c.want {
			t.Errorf("%s = %s: %+v, %t", c.name, c.data, p, ok)
		}
	}
}

// The list in the docs is the list in the code.
func TestDocsListEveryFinding(t *testing.T) {
	text, err := os.ReadFile("../docs/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed []ID
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9-]+)` \\|").FindAllSubmatch(text, -1) {
		listed = append(listed, ID(m[1]))
	}
	for _, id := range IDs {
		if !slices.Contains(listed, id) {
			t.Errorf("docs/doctor.md does not list %s", id)
		}
	}
	if len(listed) != len(IDs) {
		t.Errorf("docs/doctor.md lists %d findings, the code has %d: %v", len(listed), len(IDs), listed)
	}
	// Nor does the code have one that is not on its list.
	code, err := os.ReadFile("examine.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t\w+ +ID += "([a-z0-9-]+)"`).FindAllSubmatch(code, -1)
	if len(declared) != len(IDs) {
		t.Errorf("examine.go declares %d kinds, IDs has %d", len(declared), len(IDs))
	}
}

// The order is that of the way of a packet: by hook, by where the kernel
// really runs a chain, and the later made first.
func TestOrder(t *testing.T) {
	f := healthy()
	chain := func(name, hook, kind string, priority int) Chain {
		return Chain{Name: name, Hook: hook, Type: kind, Priority: priority}
	}
	f.Tables = append(f.Tables,
		table("ip", "b", chain("late", "input", "filter", 10), chain("early", "input", "filter", -10), chain("forward", "forward", "filter", 0)),
		Table{Family: "ip", Name: "newer", Handle: 12, Chains: []Chain{chain("early", "input", "filter", -10)}},
		table("ip", "n", chain("nat", "prerouting", "nat", -190), chain("raw", "prerouting", "filter", -300), chain("after", "prerouting", "filter", -120)),
		table("netdev", "e", chain("in", "ingress", "filter", 500)),
		table("bridge", "br", chain("pre", "prerouting", "filter", 900)),
		table("arp", "a", chain("in", "input", "filter", 0)),
		Table{Family: "inet", Name: "asleep", Dormant: true, Chains: []Chain{chain("in", "input", "filter", 0)}},
	)
	f.Legacy = []Legacy{{"ip", "filter"}}
	var got []string
	for _, s := range Order(f) {
		got = append(got, s.Table+" "+s.Chain)
	}
	want := []string{"e in", "br pre", "n raw", "jitgate pre", "n after", "n nat", "newer early", "b early", "filter INPUT", "b late"}
	if !slices.Equal(got, want) {
		t.Errorf("the order is %v, want %v", got, want)
	}
	if steps := Order(Facts{}); steps == nil || len(steps) > 0 {
		t.Errorf("of nothing it is %v, want an empty list", steps)
	}
}

// What a chain says about the guarded ports, in the table for people.
func TestSays(t *testing.T) {
	for want, c := range map[string]Chain{
		"policy drop, no rule for 22/tcp":                       dropping(input(rule(Accept, tcp, port(80, 80)))),
		"drops 22/tcp":                                          input(rule(Drop, tcp, port(22, 22))),
		"drops some of 22/tcp":                                  input(rule(Drop, tcp, port(22, 22), unknown)),
		"accepts 22/tcp":                                        input(rule(Accept, tcp, port(22, 22))),
		"nothing about 22/tcp":                                  input(rule(Accept, tcp, port(80, 80))),
		"leads 8022 to 22":                                      nat(to(rule(Redirect, tcp, port(8022, 8022)), "", 22)),
		"publishes 2222 to [fd00::2]:22":                        nat(to(rule(DNAT, tcp, port(2222, 2222)), "fd00::2", 22)),
		"nothing about 22/tcp; does not track 22":               {Name: "raw", Hook: "prerouting", Rules: []Rule{rule(Notrack, port(22, 22))}},
		"drops 22/tcp (IPv6); accepts 22/tcp (IPv4)":            input(rule(Accept, eq(FieldFamily, 4), tcp), rule(Drop)),
		"publishes every port to 10.0.0.5":                      nat(Rule{Action: DNAT, To: netip.MustParseAddr("10.0.0.5")}),
		"leads every port to a place that is not readable here": nat(rule(Redirect)),
	} {
		f := healthy()
		got := says(table("inet", "x", c), c, guardedPackets(f))
		// The order of two families is that of the packets.
		if parts := strings.Split(got, "; "); !slices.Equal(sorted(parts), sorted(strings.Split(want, "; "))) {
			t.Errorf("it says %q, want %q", got, want)
		}
	}
}

func sorted(s []string) []string { slices.Sort(s); return s }

// The guard's own rules name guarded ports where nobody else does.
func TestGuardedByTheTable(t *testing.T) {
	f := healthy()
	f.Guarded = nil
	if got := list(Guarded(f)); got != "22/tcp" {
		t.Errorf("guarded is %s, want 22/tcp", got)
	}
	if got := guardSays(f, f.Tables[0].Chains[0]); got != "guards 22/tcp" {
		t.Errorf("the guard says %q", got)
	}
	f.Mode = observe
	if got := guardSays(f, f.Tables[0].Chains[0]); got != "counts 22/tcp" {
		t.Errorf("the guard says %q", got)
	}
}
