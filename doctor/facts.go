// Package doctor says what else on a host decides about the guarded ports,
// and what stands in the way of a grant or lets a packet in round the guard.
//
// Gather reads the host into Facts, a plain value; it changes nothing there.
// Order and Examine are pure: the same Facts give the same answer on every
// platform.
package doctor

import (
	"net/netip"
	"time"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// Facts is what is known of a host. The zero value knows nothing.
type Facts struct {
	Unsupported string // why Gather could not look at this platform; empty: it could
	Root        bool   // with every right it takes to look
	Unread      []string
	Kernel      string
	Now         time.Time

	Host     string
	Mode     string
	Trial    time.Duration   // left of an arming that is not confirmed; 0: none
	Guarded  []firewall.Port // as the agent says, else as the settings say
	Settings Settings
	Agent    Agent

	TablesRead bool // Tables is all there is
	Tables     []Table
	Legacy     []Legacy
	Flowtables []Flowtable
	Programs   []Program
	Listeners  []Listener
	Addresses  []netip.Addr // the host's own

	LocalPorts    Range // net.ipv4.ip_local_port_range; zero: unknown
	RouteLocalnet []string
	Saved         []string // files that load the guard's table with others'
	Clock         Clock
	Features      []Feature

	Windows *Windows // where the host is one
}

// Windows is what is known of a host with Windows, beside what every host has.
type Windows struct {
	NoPlatform string // why the filtering platform does not answer; empty: it does
	NoPolicy   string // why Windows Firewall does not answer
	Policy     winfw.Policy
	Proxies    []PortProxy
}

// PortProxy is a port that Windows listens on to connect on to another
// (netsh interface portproxy).
type PortProxy struct {
	Port   uint16
	To     string // an address or a name
	ToPort uint16
}

// Settings is what matters of the agent's settings and of their file.
type Settings struct {
	Path     string
	Missing  bool
	Broken   string // why they are not taken
	Writable string // the file or directory that others than root may write
	Pinned   bool   // a trust_pin is set
	// HostRefused says why host.json is not used although host_id is "auto".
	HostRefused string
}

// Agent is what the running agent said of itself, or why it said nothing.
type Agent struct {
	Running   bool
	Why       string // it could not be asked
	Firewall  string
	Intact    bool
	Blocked   string
	Problem   string
	Documents []Document
}

// Document is one kind of document, as the agent has it.
type Document struct {
	Name            string
	Version         uint64 // in force; 0: none
	Issued, Expires time.Time
	Refusal         string // why a delivered one is not in force
}

// Clock is whether the kernel believes its wall clock.
type Clock struct {
	Known        bool
	Synchronised bool
}

// Feature is one thing of the kernel that the guard uses where it is there.
type Feature struct {
	ID    ID
	Found bool
	Why   string // the kernel's answer where it is not
}

// Listener is a socket that takes packets.
type Listener struct {
	Protocol firewall.Protocol
	Address  netip.Addr // unspecified: on every address
	Port     uint16
	Process  string // empty where it could not be read
	PID      int
}

// Legacy is a table of iptables-legacy, whose rules nf_tables does not show.
type Legacy struct {
	Family string // ip or ip6
	Table  string
}

// Flowtable takes established connections round every hook.
type Flowtable struct {
	Family, Table, Name string
	Devices             []string
}

// Program is an XDP program: it sees packets before any hook.
type Program struct {
	Device string
	ID     uint32
}

// Table is a table of nf_tables.
type Table struct {
	Family, Name string
	Handle       uint64
	Owner        uint32 // netlink port of the owning socket, usually its process id; 0: none
	Persist      bool
	Dormant      bool
	Chains       []Chain
}

// Chain is a chain; Hook is empty unless it is a base chain.
type Chain struct {
	Name     string
	Hook     string
	Priority int
	Type     string
	Drops    bool     // its policy
	Devices  []string // of hook ingress
	Rules    []Rule
}

// Rule is a rule, less what does not matter here. A verdict map becomes
// several rules with one handle.
type Rule struct {
	Handle  uint64
	Matches []Match // all of them must hold
	Action  Action
	Target  string     // of jump and goto
	To      netip.Addr // of DNAT; invalid: not said or not readable
	Ports   Range      // to which ports a rewriting rule leads; zero: they stay, or are not readable
}

// Action is what a rule does with a packet it matches.
type Action string

// The actions.
const (
	Continue Action = ""
	Accept   Action = "accept"
	Drop     Action = "drop" // reject too
	Jump     Action = "jump"
	Goto     Action = "goto"
	Return   Action = "return"
	Queue    Action = "queue" // a program decides
	DNAT     Action = "dnat"
	Redirect Action = "redirect"
	TProxy   Action = "tproxy"
	SetPort  Action = "set-port" // writes another destination port into the packet
	Notrack  Action = "notrack"
)

// Field is what a match looks at.
type Field string

// The fields that are understood; any other match may or may not hold.
const (
	Unknown     Field = ""
	FieldFamily Field = "family"   // 4 or 6
	FieldProto  Field = "protocol" // IP protocol number
	FieldPort   Field = "port"     // destination port
	FieldState  Field = "state"    // any of the bits of any First
	FieldStatus Field = "status"   // of the connection: rewritten, confirmed, …
	FieldInput  Field = "input"    // 1: from this host itself
	FieldDest   Field = "dest"     // kind of the destination, RTN_*
	FieldKind   Field = "kind"     // of the frame, PACKET_*
	FieldWay    Field = "way"      // direction: 0 as the connection began
)

// Match holds for packets whose field is in one of the ranges, or with Not
// in none.
type Match struct {
	Field  Field
	Values []Range
	Not    bool
}

// Range is a range of numbers, both ends included.
type Range struct{ First, Last uint32 }

func (r Range) has(n uint32) bool { return r.First <= n && n <= r.Last }

// Bits of connection tracking's state.
const (
	StateInvalid     = 1
	StateEstablished = 2
	StateRelated     = 4
	StateNew         = 8
	StateUntracked   = 64
)

// destLocal is RTN_LOCAL: an address of this host.
const destLocal = 2
