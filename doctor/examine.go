package doctor

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// Level says how bad a finding is.
type Level string

// The levels, worst first.
const (
	Problem Level = "problem" // a grant would not work, or a guarded port is reachable round the guard
	Warning Level = "warning"
	Note    Level = "note"
	OK      Level = "ok"
)

var levels = []Level{Problem, Warning, Note, OK}

// ID names a kind of finding. IDs are a contract: added, never renamed.
type ID string

// The kinds of finding. docs/doctor.md says what each means.
const (
	UnsupportedPlatform  ID = "unsupported-platform"
	NotRoot              ID = "not-root"
	Unread               ID = "unread"
	NoSettings           ID = "no-settings"
	SettingsRefused      ID = "settings-refused"
	SettingsWritable     ID = "settings-writable"
	NoTrustPin           ID = "no-trust-pin"
	HostFileRefused      ID = "host-file-refused"
	AgentNotRunning      ID = "agent-not-running"
	AgentNotAsked        ID = "agent-not-asked"
	AgentProblem         ID = "agent-problem"
	AgentAnswers         ID = "agent-answers"
	ModeObserve          ID = "mode-observe"
	ModeTrial            ID = "mode-trial"
	ModeOff              ID = "mode-off"
	NoPortGuarded        ID = "no-port-guarded"
	GuardMissing         ID = "guard-missing"
	GuardNotIntact       ID = "guard-not-intact"
	GuardDormant         ID = "guard-dormant"
	NothingMayOpen       ID = "nothing-may-open"
	DocumentRefused      ID = "document-refused"
	DocumentExpired      ID = "document-expired"
	DocumentExpiresSoon  ID = "document-expires-soon"
	DocumentsInForce     ID = "documents-in-force"
	ClockBehind          ID = "clock-behind"
	ClockNotSynchronised ID = "clock-not-synchronised"
	ClockSynchronised    ID = "clock-synchronised"
	GrantShadowed        ID = "grant-shadowed"
	GrantShadowedForSome ID = "grant-shadowed-for-some"
	GrantNotShadowed     ID = "grant-not-shadowed"
	IPTablesLegacy       ID = "iptables-legacy"
	TableDormant         ID = "table-dormant"
	TableOwned           ID = "table-owned"
	RedirectedToGuarded  ID = "redirected-to-guarded"
	RewrittenBeforeGuard ID = "rewritten-before-guard"
	RewriteUnreadable    ID = "rewrite-unreadable"
	PublishedUnguarded   ID = "published-unguarded"
	PublishedPorts       ID = "published-ports"
	PublishedByProxy     ID = "published-by-proxy"
	NotTracked           ID = "not-tracked"
	SavedRuleset         ID = "saved-ruleset"
	FlowtablePresent     ID = "flowtable"
	XDPProgram           ID = "xdp-program"
	ManagementUnguarded  ID = "management-port-unguarded"
	SSHElsewhere         ID = "ssh-elsewhere"
	NobodyListens        ID = "nobody-listens"
	GuardedListeners     ID = "guarded-listeners"
	RouteLocalnet        ID = "route-localnet"
	GuardedInLocalRange  ID = "guarded-port-in-local-range"
	FeatureOwnerPersist  ID = "feature-owner-persist"
	FeatureTimeoutUpdate ID = "feature-timeout-update"
	FeatureFib           ID = "feature-fib"
	FeatureConntrack     ID = "feature-conntrack"
	FeatureSocketDestroy ID = "feature-sock-destroy"
	PlatformMissing      ID = "filtering-platform-missing"
	WindowsUnread        ID = "windows-firewall-unread"
	WindowsOff           ID = "windows-firewall-off"
	WindowsBlocksAll     ID = "windows-firewall-blocks-all"
	WindowsBlocks        ID = "windows-firewall-blocks"
	WindowsGroupPolicy   ID = "windows-firewall-group-policy"
	WindowsAllows        ID = "windows-firewall-allows"
	WindowsNotInTheWay   ID = "windows-firewall-not-in-the-way"
	PortProxied          ID = "port-proxied"
)

// IDs is every kind of finding.
var IDs = []ID{UnsupportedPlatform, NotRoot, Unread, NoSettings, SettingsRefused, SettingsWritable, NoTrustPin, HostFileRefused, AgentNotRunning, AgentNotAsked,
	AgentProblem, AgentAnswers, ModeObserve, ModeTrial, ModeOff, NoPortGuarded, GuardMissing, GuardNotIntact, GuardDormant, NothingMayOpen, DocumentRefused, DocumentExpired,
	DocumentExpiresSoon, DocumentsInForce, ClockBehind, ClockNotSynchronised, ClockSynchronised, GrantShadowed, GrantShadowedForSome,
	GrantNotShadowed, IPTablesLegacy, TableDormant, TableOwned, RedirectedToGuarded, RewrittenBeforeGuard, RewriteUnreadable, PublishedUnguarded,
	PublishedPorts, PublishedByProxy, NotTracked, SavedRuleset, FlowtablePresent, XDPProgram, ManagementUnguarded, SSHElsewhere, NobodyListens,
	GuardedListeners, RouteLocalnet, GuardedInLocalRange, FeatureOwnerPersist, FeatureTimeoutUpdate, FeatureFib, FeatureConntrack, FeatureSocketDestroy,
	PlatformMissing, WindowsUnread, WindowsOff, WindowsBlocksAll, WindowsBlocks, WindowsGroupPolicy, WindowsAllows, WindowsNotInTheWay, PortProxied}

const (
	soon    = 14 * 24 * time.Hour // an end that is worth a warning
	skew    = 2 * time.Minute     // as far as a clock may lie behind a signed time
	observe = "observe"           // the mode that drops nothing
	off     = "off"               // and the one without a guard
	nothing = "nothing"           // to do
)

// Finding is one thing found. Its texts may hold names that others chose:
// whoever prints them keeps control characters out.
type Finding struct {
	Level  Level  `json:"level"`
	ID     ID     `json:"id"`
	What   string `json:"what"`
	Detail string `json:"detail,omitempty"`
	// Do says what to do; what stands between backquotes is to be typed.
	Do string `json:"do"`
}

// Examine returns what is to be said of a host, worst first.
func Examine(f Facts) []Finding {
	e := examination{Facts: f, ports: Guarded(f)}
	if f.Unsupported != "" {
		e.add(Problem, UnsupportedPlatform, "Nothing was looked at: "+f.Unsupported+".", "",
			"Look at this host's firewall by hand; there is no guard for this platform yet.")
	} else if f.Windows != nil {
		e.windows(*f.Windows)
	} else {
		e.access()
		e.guard()
		e.order()
		e.rewriting()
		e.around()
		e.listening()
		e.kernel()
	}
	e.agent()
	e.documents()
	slices.SortStableFunc(e.findings, func(a, b Finding) int {
		return cmp.Compare(slices.Index(levels, a.Level), slices.Index(levels, b.Level))
	})
	return e.findings
}

// examination collects findings.
type examination struct {
	Facts
	ports     []firewall.Port
	published []published
	findings  []Finding
}

// published is a port that leads elsewhere.
type published struct {
	protocol firewall.Protocol
	port     Range
}

func (e *examination) add(level Level, id ID, what, detail, do string) {
	e.findings = append(e.findings, Finding{Level: level, ID: id, What: what, Detail: detail, Do: do})
}

// access says what could not be seen.
func (e *examination) access() {
	if !e.Root {
		e.add(Warning, NotRoot, "Without root the rules, other users' processes and the kernel's features were not seen.", "", "Run it as root: `sudo jitgate doctor`")
	}
	if len(e.Unread) > 0 {
		do := "Run it as root."
		if e.Root {
			do = "Look by hand at what is named here; on a kernel without it there is nothing to do."
		}
		e.add(Warning, Unread, "Not everything could be read.", strings.Join(e.Unread, "; "), do)
	}
}

// guardMore says how ports come to be guarded too.
func (e *examination) guardMore(ports ...string) string {
	for _, d := range e.Agent.Documents {
		if d.Name == "policy" && d.Version > 0 {
			return fmt.Sprintf("add %s to the ports of the policy, sign it and deliver it", strings.Join(ports, ", "))
		}
	}
	return fmt.Sprintf("add \"%s\" to guard in %s and restart the agent", strings.Join(ports, `", "`), e.Settings.Path)
}

// agent says how the agent and its settings are.
func (e *examination) agent() {
	s := e.Settings
	own := func(text, onWindows string) string {
		if e.Windows != nil {
			return onWindows
		}
		return text
	}
	switch {
	case s.Missing:
		e.add(Problem, NoSettings, fmt.Sprintf("There are no settings (%s): jitgate is not set up here.", s.Path), "What follows assumes the defaults: port 22, mode observe.",
			fmt.Sprintf("Write them; one line, host_id = \"…\", is enough: `%s %s`", own("${EDITOR:-vi}", "notepad"), s.Path))
	case s.Broken != "":
		e.add(Problem, SettingsRefused, "The settings are not taken: the agent would not start.", s.Broken, "Mend what is named there.")
	}
	if s.Writable != "" {
		do := fmt.Sprintf("Take it from them: `chown root %s && chmod go-w %s`", s.Writable, s.Writable)
		if !plain.MatchString(s.Writable) {
			do = "Give it to root and let nobody else write it."
		}
		e.add(Problem, SettingsWritable, fmt.Sprintf("Others than root may write %s, and so turn the guard off.", s.Writable), "", do)
	}
	if !s.Missing && s.Broken == "" && !s.Pinned {
		e.add(Problem, NoTrustPin, "No trust document is pinned: none is taken, and nothing opens.", "", own("As root", "As administrator")+", with the realm's first trust document: `jitgate trust install trust.json`")
	}
	if s.HostRefused != "" {
		e.add(Warning, HostFileRefused, "host.json is not used: this host goes by its machine id, and documents for its cloud's id are refused.", s.HostRefused,
			fmt.Sprintf("Make it anew and restart the agent: `jitgate host-id --write --config %s`", s.Path))
	}
	a := e.Agent
	switch {
	case a.Running:
		e.add(OK, AgentAnswers, "The agent runs and answers.", a.Firewall, nothing)
	case a.Why != "":
		do := own("Run it as root: `sudo jitgate doctor`", "Run it as administrator.")
		if e.Root {
			do = "Look at what the agent's log says, and ask again: `jitgate status`"
		}
		e.add(Warning, AgentNotAsked, "The agent could not be asked.", a.Why, do)
	case !s.Missing && s.Broken == "":
		e.add(Problem, AgentNotRunning, "No agent is running: no grant opens anything.", "What was guarded stays guarded, and what is open closes on time.",
			own(fmt.Sprintf("Start it: `jitgate agent run --config %s`", s.Path), "Start its service: `net start jitgate`"))
	}
	switch {
	case s.Missing || s.Broken != "":
	case e.Mode == off:
		e.add(Warning, ModeOff, "The guard was disarmed: nothing is closed.", "", "Bring it back, on trial first: `jitgate arm`")
	case e.Mode == observe:
		e.add(Warning, ModeObserve, own("The guard only counts what it would drop", "The guard drops nothing")+" (mode observe): the ports are not closed.", "",
			"Once the grants you need are there, close them, on trial first: `jitgate arm`")
	case e.Trial > 0:
		e.add(Warning, ModeTrial, fmt.Sprintf("The guard drops on trial: unless somebody confirms, that ends in %s.", e.Trial.Round(time.Second)), "",
			"Open a new session; if that works: `jitgate arm confirm`")
	}
	if a.Problem != "" {
		e.add(Problem, AgentProblem, "The agent's last pass did not succeed.", a.Problem, "Do what its message says; it tries again by itself.")
	}
}

// documents says how far the signed documents and the clock carry.
func (e *examination) documents() {
	a := e.Agent
	if e.Clock.Known && !e.Clock.Synchronised {
		e.add(Warning, ClockNotSynchronised, "The kernel's clock is not synchronised: grants may begin and documents expire at the wrong time.", "",
			"Let a time service set it: `timedatectl set-ntp true`")
	} else if e.Clock.Known {
		e.add(OK, ClockSynchronised, "The clock is synchronised.", "", nothing)
	}
	if !a.Running {
		return
	}
	var newest time.Time
	var names []string
	over := false
	for _, d := range a.Documents {
		if d.Issued.After(newest) {
			newest = d.Issued
		}
		// Lists of grants are short-lived, and a host may well be without one.
		lasting := d.Name != "grants"
		left := d.Expires.Sub(e.Now)
		renew := fmt.Sprintf("Sign a newer %s and deliver it to the inbox.", document(d.Name))
		again := "Mend what the refusal says, sign it again and deliver it: `jitgate verify` checks it first."
		switch {
		case d.Refusal != "" && d.Version == 0:
			e.add(Problem, DocumentRefused, fmt.Sprintf("The delivered %s is refused, and none is in force.", document(d.Name)), d.Refusal, again)
		case d.Refusal != "":
			e.add(Warning, DocumentRefused, fmt.Sprintf("The delivered %s is refused; version %d stays in force.", document(d.Name), d.Version), d.Refusal, again)
		}
		if d.Version == 0 {
			continue
		}
		end := d.Expires.Format(time.RFC3339)
		switch {
		case left <= 0 && lasting:
			over = true
			e.add(Problem, DocumentExpired, fmt.Sprintf("The %s expired at %s: nothing opens under it.", document(d.Name), end), "", renew)
		case left <= 0:
			e.add(Note, DocumentExpired, fmt.Sprintf("The %s expired at %s: its grants open nothing any more.", document(d.Name), end), "", renew)
		case left < soon && lasting:
			e.add(Warning, DocumentExpiresSoon, fmt.Sprintf("The %s expires at %s, within 14 days; from then on nothing opens under it.", document(d.Name), end), "", renew)
		}
		names = append(names, fmt.Sprintf("%s version %d", d.Name, d.Version))
	}
	switch behind := newest.Sub(e.Now); {
	case behind > skew:
		e.add(Problem, ClockBehind, fmt.Sprintf("The clock is %s behind a signed time: nothing new opens.", behind.Round(time.Second)), "", e.setClock())
	case strings.HasPrefix(a.Blocked, "clock-behind"): // behind the time the agent was built, for one
		e.add(Problem, ClockBehind, "The clock is behind a time it must be after: nothing new opens.", a.Blocked, e.setClock())
	case over: // said already
	case a.Blocked != "":
		e.add(Problem, NothingMayOpen, "Nothing may open now.", a.Blocked, "Deliver what its sentence says is missing or over to the inbox: `jitgate status` shows each document.")
	default:
		e.add(OK, DocumentsInForce, "Trust and policy are in force: grants may open.", strings.Join(names, ", "), nothing)
	}
}

// setClock says how.
func (e *examination) setClock() string {
	if e.Windows != nil {
		return "Set the clock right: `w32tm /resync`"
	}
	return "Set the clock right: `timedatectl set-ntp true`"
}

// document is a kind of document in a sentence.
func document(name string) string {
	if name == "grants" {
		return "list of grants"
	}
	return name + " document"
}

// guard says whether the guard's own table stands.
func (e *examination) guard() {
	if !e.TablesRead {
		return
	}
	i := slices.IndexFunc(e.Tables, ours)
	stood := i >= 0 && slices.ContainsFunc(e.Tables[i].Chains, func(c Chain) bool { return c.Hook == "prerouting" })
	restart := fmt.Sprintf("Start the agent: `jitgate agent run --config %s`", e.Settings.Path)
	if e.Agent.Running {
		restart = "Restart the agent in this network namespace, and look at what its log says."
	}
	switch {
	case e.Mode == off: // said with the agent
	case len(e.ports) == 0:
		e.add(Warning, NoPortGuarded, "No port is guarded.", "", upper(e.guardMore("22/tcp"))+".")
	case !stood:
		e.add(Problem, GuardMissing, fmt.Sprintf("Nothing guards %s: this network namespace has no table inet %s with a chain in prerouting.", list(e.ports), ourTable), "", restart)
	case e.Tables[i].Dormant:
		e.add(Problem, GuardDormant, fmt.Sprintf("The table inet %s is dormant: it guards nothing.", ourTable), "", restart)
	case e.Agent.Running && !e.Agent.Intact:
		e.add(Problem, GuardNotIntact, "The guard was not whole when the agent last looked: somebody changed it.", "", "Look for who did it in the record (guard.drift) and in `jitgate status`; the agent repairs it by itself.")
	}
}

// plain is a name that can be typed into a shell as it is.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./][A-Za-z0-9_./-]*$`)

func (s Step) String() string {
	hook := strings.Join(append([]string{s.Hook}, s.Devices...), " ")
	text := fmt.Sprintf("table %s %s chain %s (%s, priority %d)", s.Family, s.Table, s.Chain, hook, s.Priority)
	if s.By != "" {
		return fmt.Sprintf("%s made by %s", text, s.By)
	}
	return text
}

// order says which other chains stand in the way of a grant.
func (e *examination) order() {
	shadowed := false
	packets := guardedPackets(e.Facts)
	for _, s := range Order(e.Facts) {
		if s.Ours || s.legacy {
			continue
		}
		var all, some []packet
		var by drop
		for _, p := range packets {
			if !s.table.sees(p) {
				continue
			}
			f := s.chain.decide(s.table, p)
			switch {
			case f.dropped && !f.accepted:
				all = append(all, p)
			case f.dropped:
				some = append(some, p)
			}
			if f.dropped && by == (drop{}) {
				by = f.by
			}
		}
		why := "policy drop, and no accept for it"
		if by.handle != 0 {
			why = fmt.Sprintf("rule with handle %d of chain %s", by.handle, by.chain)
		}
		detail := "An accept there does not open the port by itself: what the guard drops is dropped for good."
		if e.Mode == observe {
			detail = "While the guard only counts, an accept there opens the port to everybody."
		}
		if len(all) > 0 {
			shadowed = true
			level := Problem
			if s.Family == "bridge" {
				level = Warning // only what comes in through a bridge
			}
			e.add(level, GrantShadowed, fmt.Sprintf("A grant will not open %s: %s drops it (%s).", services(s.table, all), s, why), detail, s.allow(all))
		}
		if len(some) > 0 {
			shadowed = true
			level, do := Warning, s.allow(some)
			if s.By == "fail2ban" {
				level, do = Note, "Look whether the source you grant is banned: `fail2ban-client banned`"
			}
			e.add(level, GrantShadowedForSome, fmt.Sprintf("A grant may not open %s for every source: %s drops some of it.", services(s.table, some), s), detail, do)
		}
	}
	for _, family := range []string{"ip", "ip6"} {
		var names []string
		for _, l := range e.Legacy {
			if l.Family == family {
				names = append(names, l.Table)
			}
		}
		if len(names) > 0 {
			tool := map[string]string{"ip": "iptables-legacy", "ip6": "ip6tables-legacy"}[family]
			e.add(Warning, IPTablesLegacy, fmt.Sprintf("Rules of %s decide here too, and are not readable here (tables %s).", tool, strings.Join(names, ", ")), "",
				fmt.Sprintf("See whether they drop or rewrite a guarded port: `%s-save`", tool))
		}
	}
	for _, t := range e.Tables {
		if ours(t) {
			continue
		}
		if t.Dormant {
			e.add(Note, TableDormant, fmt.Sprintf("The table %s %s is dormant: its rules do nothing until somebody wakes it.", t.Family, t.Name), "", "Wake it and run this again, or leave it.")
		}
		if t.Owner != 0 {
			e.add(Note, TableOwned, fmt.Sprintf("The table %s %s belongs to the process behind netlink port %d: nobody else can change it.", t.Family, t.Name, t.Owner), "", "Change it through that program only.")
		}
	}
	if !shadowed && e.TablesRead && len(packets) > 0 && len(e.Legacy) == 0 {
		e.add(OK, GrantNotShadowed, "No other table drops what a grant opens.", "", nothing)
	}
}

// allow says how to let packets through a foreign chain, in the words of who
// writes it.
func (s Step) allow(packets []packet) string {
	var commands []string
	command := func(format string, args ...any) {
		if c := fmt.Sprintf(format, args...); !slices.Contains(commands, c) {
			commands = append(commands, c)
		}
	}
	filter := s.Hook == "input" && s.Table == "filter" && s.Chain == "INPUT"
	for _, p := range packets {
		switch {
		case s.By == "ufw":
			command("ufw allow %s", p.service())
		case s.By == "firewalld" && p.service() == "22/tcp":
			command("firewall-cmd --permanent --add-service=ssh")
		case s.By == "firewalld":
			command("firewall-cmd --permanent --add-port=%s", p.service())
		case s.Family == "ip" && filter:
			command("iptables -I INPUT -p %s --dport %d -j ACCEPT", p.protocol, p.port)
		case s.Family == "ip6" && filter:
			command("ip6tables -I INPUT -p %s --dport %d -j ACCEPT", p.protocol, p.port)
		case plain.MatchString(s.Table) && plain.MatchString(s.Chain):
			command("nft insert rule %s %s %s %s dport %d accept", s.Family, s.Table, s.Chain, p.protocol, p.port)
		}
	}
	if s.By == "firewalld" {
		command("firewall-cmd --reload")
	}
	if len(commands) == 0 {
		return "Insert a rule that accepts it at the top of that chain; its name is not one to type."
	}
	return "Let it through there" + typed(commands)
}

// typed is commands at the end of a sentence, if there are any.
func typed(commands []string) string {
	if len(commands) == 0 {
		return "."
	}
	return ": `" + strings.Join(commands, " && ") + "`"
}

// remove says how to take a rule out.
func (r rewrite) remove() string {
	if !plain.MatchString(r.table.Name) || !plain.MatchString(r.chain) {
		return fmt.Sprintf("take out the rule with handle %d of that chain", r.rule.Handle)
	}
	return fmt.Sprintf("take the rule out: `nft delete rule %s %s %s handle %d`", r.table.Family, r.table.Name, r.chain, r.rule.Handle)
}

// rewriting says which rules lead packets to a guarded port past the guard,
// and what is published.
func (e *examination) rewriting() {
	var elsewhere, unreadable []string
	before := e.guardPriority()
	second := e.guardsInput()
	for _, t := range e.Tables {
		if ours(t) || t.Dormant {
			continue
		}
		for _, c := range t.Chains {
			if c.Hook != "prerouting" && c.Hook != "ingress" {
				continue
			}
			early := c.Hook == "ingress" || c.runs() < before
			for _, r := range rewrites(t, c) {
				place := fmt.Sprintf("table %s %s chain %s", t.Family, t.Name, r.chain)
				protocols := r.protocols()
				target := []Range{r.rule.Ports}
				if r.rule.Ports.Last == 0 {
					target = r.from
				}
				var from, to []string // guarded
				for _, protocol := range protocols {
					from = append(from, e.guardedIn(protocol, r.from)...)
					to = append(to, e.guardedIn(protocol, target)...)
				}
				whole := e.allGuarded(protocols, r.from)
				local := r.rule.Action != DNAT || e.local(r.rule.To)
				switch {
				case r.rule.Action == SetPort && early:
					if len(from) > 0 && len(to) == 0 {
						e.add(Problem, RewrittenBeforeGuard, fmt.Sprintf("The guard sees %s only after %s has written port %s into its packets.", strings.Join(from, ", "), place, r.leads()), "", upper(r.remove()))
					}
				case local && len(to) > 0 && !whole:
					level, detail := Problem, ""
					if second && r.rule.Action != TProxy { // which leaves the packet as it is
						level, detail = Note, "The guard looks again in the input hook, after rewriting: it takes a grant for the port it leads to."
					}
					e.add(level, RedirectedToGuarded, fmt.Sprintf("%s is led to guarded %s by %s, past the guard in prerouting.", upper(r.ports()), strings.Join(to, ", "), place), detail,
						fmt.Sprintf("Guard it too (%s), or %s", e.guardMore(r.services()...), r.remove()))
				case local || whole:
					e.publish(protocols, r.from)
				case r.leads() == rewrite{}.leads():
					unreadable = append(unreadable, place)
				case len(to) > 0 || len(r.from) > 0 && slices.ContainsFunc(protocols, func(p firewall.Protocol) bool { return management(p, r.from) || management(p, target) }):
					e.publish(protocols, r.from)
					e.add(Warning, PublishedUnguarded, fmt.Sprintf("%s is published to %s by %s, and not guarded.", upper(r.ports()), r.leads(), place), "",
						fmt.Sprintf("Guard it too if it must not be open: %s.", e.guardMore(r.services()...)))
				default:
					e.publish(protocols, r.from)
					elsewhere = append(elsewhere, fmt.Sprintf("%s to %s", strings.Join(r.services(), ", "), r.leads()))
				}
			}
		}
	}
	if len(elsewhere) > 0 {
		e.add(Note, PublishedPorts, "Ports are published that are not guarded.", unique(elsewhere), "Guard those that must not be open: "+e.guardMore("the port")+".")
	}
	if len(unreadable) > 0 {
		e.add(Note, RewriteUnreadable, "Rules rewrite destinations in a way that is not readable here.", unique(unreadable), "See whether one of them leads to a guarded port: `nft -a list ruleset`")
	}
}

// maxListed bounds a list in a sentence: a cluster publishes thousands.
const maxListed = 20

func unique(list []string) string {
	slices.Sort(list)
	list = slices.Compact(list)
	if len(list) > maxListed {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxListed], ", "), len(list)-maxListed)
	}
	return strings.Join(list, ", ")
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// services is the ports a rewriting rule is for, as settings name them.
func (r rewrite) services() []string {
	var out []string
	for _, p := range r.from {
		name := p.String()
		if protocols := r.protocols(); len(protocols) == 1 {
			name += "/" + protocols[0].String()
		}
		out = append(out, name)
	}
	if out == nil {
		out = []string{"every port"}
	}
	return out
}

// protocols are those a rewriting rule is for.
func (r rewrite) protocols() []firewall.Protocol {
	var out []firewall.Protocol
	for _, p := range []firewall.Protocol{firewall.TCP, firewall.UDP} {
		if len(r.protos) == 0 || slices.ContainsFunc(r.protos, func(v Range) bool { return v.has(uint32(p)) }) {
			out = append(out, p)
		}
	}
	return out
}

func (e *examination) publish(protocols []firewall.Protocol, ports []Range) {
	for _, protocol := range protocols {
		for _, r := range ports {
			e.published = append(e.published, published{protocol, r})
		}
	}
}

func (e *examination) isPublished(protocol firewall.Protocol, port uint16) bool {
	return slices.ContainsFunc(e.published, func(p published) bool { return p.protocol == protocol && p.port.has(uint32(port)) })
}

// guardedIn lists the guarded ports of a protocol that lie in ranges.
func (e *examination) guardedIn(protocol firewall.Protocol, ranges []Range) []string {
	var out []string
	for _, p := range e.ports {
		for _, r := range ranges {
			if p.Protocol == protocol && uint32(p.First) <= r.Last && r.First <= uint32(p.Last) {
				p.Cut = false
				out = append(out, p.String())
			}
		}
	}
	return out
}

// allGuarded reports whether all of the ports are guarded.
func (e *examination) allGuarded(protocols []firewall.Protocol, ranges []Range) bool {
	for _, protocol := range protocols {
		for _, r := range ranges {
			if !slices.ContainsFunc(e.ports, func(p firewall.Port) bool {
				return p.Protocol == protocol && uint32(p.First) <= r.First && r.Last <= uint32(p.Last)
			}) {
				return false
			}
		}
	}
	return len(ranges) > 0
}

// local reports whether an address is this host's own.
func (e *examination) local(a netip.Addr) bool {
	return a.IsValid() && (a.IsLoopback() || slices.Contains(e.Addresses, a))
}

// guardPriority is where the guard's chain in prerouting runs.
func (e *examination) guardPriority() int {
	for _, t := range e.Tables {
		for _, c := range t.Chains {
			if ours(t) && c.Hook == "prerouting" {
				return c.Priority
			}
		}
	}
	return -150
}

// guardsInput reports whether the guard looks at packets again after their
// destination was rewritten.
func (e *examination) guardsInput() bool {
	return slices.ContainsFunc(e.Tables, func(t Table) bool {
		return ours(t) && slices.ContainsFunc(t.Chains, func(c Chain) bool { return c.Hook == "input" })
	})
}

// around says what passes the hooks by or takes connections out of tracking.
func (e *examination) around() {
	packets := guardedPackets(e.Facts)
	for _, t := range e.Tables {
		for _, c := range t.Chains {
			if c.Hook != "prerouting" || ours(t) || t.Dormant {
				continue
			}
			for _, r := range reached(t, c, Notrack) {
				hit := slices.DeleteFunc(slices.Clone(packets), func(p packet) bool { return !t.sees(p) || !r.about(p) })
				if len(hit) > 0 {
					e.add(Warning, NotTracked, fmt.Sprintf("Connections to %s are not tracked (table %s %s chain %s): their sessions end with the grant even where they are to be kept.", services(t, hit), t.Family, t.Name, r.chain), "", upper(r.remove()))
				}
			}
		}
	}
	for _, path := range e.Saved {
		do := "Take `table inet jitgate` out of it."
		e.add(Warning, SavedRuleset, fmt.Sprintf("%s loads the table inet %s: a whole ruleset was saved there.", path, ourTable),
			"While the agent runs, the kernel refuses the whole file; while none does, openings of the day it was saved come back.", do)
	}
	for _, f := range e.Flowtables {
		e.add(Warning, FlowtablePresent, fmt.Sprintf("The flowtable %s of table %s %s takes established connections round the guard: sessions through a published port do not end with a grant.", f.Name, f.Family, f.Table),
			"Devices: "+strings.Join(f.Devices, ", "), "Leave the guarded ports out of its flow rules: `nft -a list ruleset`")
	}
	for _, p := range e.Programs {
		e.add(Note, XDPProgram, fmt.Sprintf("An XDP program (id %d) on %s sees packets before any hook.", p.ID, p.Device), "", fmt.Sprintf("Make sure that it does not drop or redirect a guarded port: `bpftool prog show id %d`", p.ID))
	}
	if len(e.RouteLocalnet) > 0 {
		var commands []string
		for _, d := range e.RouteLocalnet {
			if plain.MatchString(d) {
				commands = append(commands, fmt.Sprintf("sysctl -w net/ipv4/conf/%s/route_localnet=0", d))
			}
		}
		e.add(Warning, RouteLocalnet, fmt.Sprintf("Neighbours can reach what listens on 127.0.0.1 only (route_localnet of %s).", strings.Join(e.RouteLocalnet, ", ")),
			"Container engines and kube-proxy turn it on for published ports on loopback.", "Turn it off where nothing needs it"+typed(commands))
	}
}

// managed are the ports that administer a machine: whoever gets through there
// commands it. Databases and web pages are not among them.
var managed = map[uint16]string{
	22: "ssh", 23: "telnet", 3389: "remote desktop", 5900: "VNC", 5985: "WinRM", 5986: "WinRM",
	2375: "docker API", 2376: "docker API", 6443: "kubernetes API", 10250: "kubelet API",
}

// management reports whether ranges hold a management port.
func management(protocol firewall.Protocol, ranges []Range) bool {
	return slices.ContainsFunc(slices.Collect(maps.Keys(managed)), func(port uint16) bool {
		return managedBy(protocol, port) != "" && slices.ContainsFunc(ranges, func(r Range) bool { return r.has(uint32(port)) })
	})
}

// managedBy is what a management port is for; empty: it is none.
func managedBy(protocol firewall.Protocol, port uint16) string {
	if protocol == firewall.UDP && port != 3389 {
		return ""
	}
	return managed[port]
}

// proxies are programs that listen in the place of a container.
var proxies = []string{"docker-proxy", "rootlessport", "rootlesskit", "slirp4netns", "pasta", "pasta.avx2", "passt", "gvproxy", "conmon"}

// listening says who listens on guarded ports, and who on others that ought
// to be guarded.
func (e *examination) listening() {
	behind := map[string]bool{} // who serves guarded ports
	var serving []string
	for _, l := range e.Listeners {
		if isGuarded(e.ports, l.Protocol, l.Port) && !l.Address.IsLoopback() {
			serving = append(serving, l.String())
			behind[l.identity()] = true
		}
	}
	if len(serving) > 0 {
		e.add(OK, GuardedListeners, "Somebody listens on guarded ports.", unique(serving), nothing)
	}
	for _, p := range e.ports {
		n := slices.IndexFunc(e.Listeners, func(l Listener) bool { return p.First <= l.Port && l.Port <= p.Last && !l.Address.IsLoopback() })
		if n >= 0 || e.isPublished(p.Protocol, p.First) || p.Protocol == firewall.UDP && isGuarded(e.ports, firewall.TCP, p.First) {
			continue
		}
		p.Cut = false
		e.add(Note, NobodyListens, fmt.Sprintf("Nobody listens on guarded %s.", p), "", "Nothing, if that is meant; else start the service or guard the port it is on.")
	}
	said := map[string]bool{}
	for _, l := range e.Listeners {
		service := fmt.Sprintf("%d/%s", l.Port, l.Protocol)
		if l.Address.IsLoopback() || isGuarded(e.ports, l.Protocol, l.Port) || said[service] {
			continue
		}
		do := upper(e.guardMore(service)) + "."
		switch purpose := managedBy(l.Protocol, l.Port); {
		case l.Protocol == firewall.TCP && purpose != "ssh" && (l.Process == "sshd" || l.Process == "dropbear"):
			level := Warning
			if behind[l.identity()] {
				level = Problem // the same service as behind the guard
			}
			e.add(level, SSHElsewhere, fmt.Sprintf("%s listens on %s, which is not guarded.", l.Process, service), "", do)
		case purpose != "":
			e.add(Warning, ManagementUnguarded, fmt.Sprintf("%s listens on %s (%s), which is not guarded.", l.who(), service, purpose), "", do)
		case slices.Contains(proxies, l.Process) && !e.isPublished(l.Protocol, l.Port) && !(l.Protocol == firewall.UDP && e.LocalPorts.has(uint32(l.Port))):
			// A UDP port among those the host takes for itself is a query on
			// its way, not a service.
			e.add(Warning, PublishedByProxy, fmt.Sprintf("%s publishes %s, which is not guarded.", l.Process, service), "", "Guard it if it must not be open: "+e.guardMore(service)+".")
		default:
			continue
		}
		said[service] = true
	}
}

func (l Listener) who() string {
	if l.Process == "" {
		return "A process that could not be seen"
	}
	return l.Process
}

func (l Listener) identity() string { return fmt.Sprintf("%s %d", l.Process, l.PID) }

func (l Listener) String() string {
	return fmt.Sprintf("%d/%s on %s: %s (pid %d)", l.Port, l.Protocol, l.Address, l.who(), l.PID)
}

// features is what the guard does with a feature of the kernel, and what to do
// without it.
var features = []struct {
	id               ID
	level            Level // where it is missing
	found, not, then string
}{
	{FeatureOwnerPersist, Note, "The kernel lets the agent own its table: nobody else can change it.", "Others can change the guard's table; the agent watches it and repairs it.", "Nothing, or run Linux 6.9 or newer."},
	{FeatureTimeoutUpdate, Note, "The kernel moves the end of an opening in place.", "The kernel does not move the end of an opening in place; the agent deletes it and adds it again in one batch.", "Nothing, or run Linux 6.12 or newer."},
	{FeatureFib, Problem, "The kernel tells packets to this host from those it forwards (fib).", "The kernel cannot tell packets to this host from those it forwards (fib): the guard cannot be made.", "Load the module: `modprobe nft_fib_inet`"},
	{FeatureConntrack, Problem, "The kernel tracks connections.", "The kernel does not track connections for nf_tables: the guard cannot be made.", "Load the module: `modprobe nft_ct`"},
	{FeatureSocketDestroy, Note, "The kernel can end a socket from outside (SOCK_DESTROY).", "The kernel cannot end a socket from outside (SOCK_DESTROY): sessions that are cut hang until they give up.", "Nothing, or run a kernel with CONFIG_INET_DIAG_DESTROY."},
}

// kernel says what the kernel can do, and which of its settings matter.
func (e *examination) kernel() {
	for _, f := range features {
		i := slices.IndexFunc(e.Features, func(g Feature) bool { return g.ID == f.id })
		switch {
		case i < 0:
		case e.Features[i].Found:
			e.add(OK, f.id, f.found, "", nothing)
		default:
			e.add(f.level, f.id, f.not, e.Features[i].Why, f.then)
		}
	}
	var within []string
	for _, p := range e.ports {
		if e.LocalPorts.Last != 0 && uint32(p.First) <= e.LocalPorts.Last && e.LocalPorts.First <= uint32(p.Last) {
			p.Cut = false
			within = append(within, p.String())
		}
	}
	if len(within) > 0 {
		e.add(Note, GuardedInLocalRange, fmt.Sprintf("The host may take guarded %s for connections of its own (ip_local_port_range %s).", strings.Join(within, ", "), e.LocalPorts), "",
			"Add it to net.ipv4.ip_local_reserved_ports, in a file of /etc/sysctl.d.")
	}
}
