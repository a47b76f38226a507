package winfw

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"

	"github.com/jitgate/jitgate/firewall"
)

// Layer is where the platform asks its filters.
type Layer uint8

// The layers that authorize what comes in.
const (
	AcceptV4 Layer = 4 // FWPM_LAYER_ALE_AUTH_RECV_ACCEPT_V4
	AcceptV6 Layer = 6 // FWPM_LAYER_ALE_AUTH_RECV_ACCEPT_V6
)

var layers = []Layer{AcceptV4, AcceptV6}

// Lifetime is how long a filter stands.
type Lifetime uint8

// The lifetimes.
const (
	Dynamic    Lifetime = iota // as long as the process
	Persistent                 // until it is deleted, while the engine's service runs
	BootTime                   // until it is deleted, before that service runs
)

func (l Lifetime) String() string { return [...]string{"dynamic", "persistent", "boot-time"}[l] }

// Flags of a classification (FWP_CONDITION_FLAG_…).
const (
	IsLoopback    uint32 = 0x1 // from this host to itself
	IsReauthorize uint32 = 0x4 // the flow was let in before
)

// Filter is one filter of the platform. Two filters that say the same are
// equal, and have one key.
type Filter struct {
	Key      GUID
	Name     string
	Layer    Layer
	Weight   uint64
	Lifetime Lifetime
	Block    bool // finally; else permit, and others may still block

	// What must hold of a packet. The zero values ask nothing.
	Protocol    firewall.Protocol
	First, Last uint16       // local port
	Source      netip.Prefix // never /0
	Flags       uint32       // one of them

	Data string // what it stands for
}

// text is all that f says but its key, which is made from it.
func (f Filter) text() string {
	return fmt.Sprintf("%d %d %d %t %d %d-%d %s %d %q %s", f.Layer, f.Weight, f.Lifetime, f.Block, f.Protocol, f.First, f.Last, f.Source, f.Flags, f.Name, f.Data)
}

// Matches reports whether f is asked about a packet with the flags, at its
// layer.
func (f Filter) Matches(packet firewall.Door, flags uint32) bool {
	return (f.Layer == AcceptV4) == packet.Source.Addr().Is4() &&
		(f.Protocol == 0 || f.Protocol == packet.Protocol) &&
		(f.Last == 0 || f.First <= packet.Port && packet.Port <= f.Last) &&
		(!f.Source.IsValid() || f.Source.Contains(packet.Source.Addr())) &&
		(f.Flags == 0 || f.Flags&flags != 0)
}

// The weights in the sublayer; the package comment says what each is for.
const (
	weightWatch = 10 * (1 + iota)
	weightGuard
	weightKeep
	weightCut
	weightRevoked
	weightOpen
	weightBase
)

// kind is what an item is.
type kind string

const (
	base    kind = "base"  // a guard stands, in its mode
	port    kind = "port"  // a guarded port
	trial   kind = "trial" // the guard drops until then
	opening kind = "open"
	revoked kind = "revoked" // an opening taken back early: its sessions are not kept
)

// mode is how an item works.
type mode string

const (
	drop    mode = "drop"
	watch   mode = "watch"    // nothing is dropped
	onTrial mode = "on-trial" // beside watch: dropped as long as the process lives
)

// item is one thing the guard holds. It is written in the provider data of the
// filters it is made of, and is all there is to know of them.
type item struct {
	Kind     kind              `json:"kind"`
	Mode     mode              `json:"mode,omitempty"`
	Port     string            `json:"port,omitempty"` // as firewall.Port has it
	Source   netip.Prefix      `json:"source,omitzero"`
	Protocol firewall.Protocol `json:"protocol,omitempty"`
	Number   uint16            `json:"number,omitempty"`
	Until    firewall.BootTime `json:"until,omitempty"` // nanoseconds since boot
	Label    string            `json:"label,omitempty"`
}

func doorItem(k kind, m mode, d firewall.Door, e firewall.End) item {
	return item{Kind: k, Mode: m, Source: d.Source, Protocol: d.Protocol, Number: d.Port, Until: e.Until, Label: e.Label}
}

func (i item) door() firewall.Door {
	return firewall.Door{Source: i.Source, Protocol: i.Protocol, Port: i.Number}
}

func (i item) encode() string {
	text, err := json.Marshal(i)
	if err != nil {
		panic(err) // plain values
	}
	return string(text)
}

// item is what a filter says that it stands for; zero where that is nothing.
func (f Filter) item() (i item) {
	if json.Unmarshal([]byte(f.Data), &i) != nil {
		return item{}
	}
	return i
}

// dynamic reports whether the item is gone with the process.
func (i item) dynamic() bool { return i.Kind == opening || i.Kind == trial || i.Mode == onTrial }

// filters returns the filters an item is made of. An item that makes no sense
// has none.
func (i item) filters() []Filter {
	var out []Filter
	add := func(name string, f Filter) {
		f.Name, f.Data = "jitgate: "+name, i.encode()
		both := layers
		if i.Source.IsValid() {
			both = layers[:1]
			if i.Source.Addr().Is6() {
				both = layers[1:]
			}
			if i.Source.Bits() > 0 {
				f.Source = i.Source
			}
		}
		for _, f.Layer = range both {
			f.Key = space.named(f.text())
			out = append(out, f)
		}
	}
	lasting := func(name string, f Filter) {
		f.Lifetime = Persistent
		add(name, f)
		f.Lifetime = BootTime
		add(name+", at boot", f)
	}
	switch i.Kind {
	case base:
		lasting("from this host to itself", Filter{Weight: weightBase, Flags: IsLoopback})
	case trial:
		add("on trial", Filter{Weight: weightBase, Flags: IsLoopback})
	case port:
		p, err := firewall.ParsePort(i.Port)
		if err != nil {
			return nil
		}
		f := Filter{Protocol: p.Protocol, First: p.First, Last: p.Last, Weight: weightGuard, Block: true}
		if p.Cut {
			f.Weight = weightCut
		}
		keep := f
		keep.Block, keep.Weight, keep.Flags = false, weightKeep, IsReauthorize
		switch i.Mode {
		case drop:
			lasting("guard "+i.Port, f)
			keep.Lifetime = Persistent
		case watch:
			f.Block, f.Weight, f.Lifetime = false, weightWatch, Persistent
			add("observe "+i.Port, f)
			return out
		case onTrial:
			add("guard "+i.Port+", on trial", f)
		}
		if !p.Cut {
			add("keep sessions of "+i.Port, keep)
		}
	case opening:
		if i.Source.IsValid() {
			add("open "+i.door().String(), Filter{Weight: weightOpen, Protocol: i.Protocol, First: i.Number, Last: i.Number})
		}
	case revoked:
		if i.Source.IsValid() {
			f := Filter{Weight: weightRevoked, Block: true, Flags: IsReauthorize, Protocol: i.Protocol, First: i.Number, Last: i.Number}
			switch i.Mode {
			case drop:
				f.Lifetime = Persistent
			case watch:
				f.Block, f.Weight, f.Lifetime = false, weightWatch, Persistent
			}
			add("cut sessions of "+i.door().String(), f)
		}
	}
	return out
}

// state is what the filters that were found say.
type state struct {
	items   map[item]bool
	strange []Filter // of no item, or of one that is not whole
}

// read makes sense of filters. mine tells the dynamic filters of this process:
// those of another are on their way out, or somebody else's work.
func read(found []Filter, mine map[GUID]firewall.BootTime) state {
	s := state{items: map[item]bool{}}
	there := map[Filter]bool{}
	claimed := map[item]bool{}
	for _, f := range found {
		there[f] = true
		if i := f.item(); i.encode() == f.Data {
			claimed[i] = true
		}
	}
	whole := map[Filter]bool{}
	for i := range claimed {
		all := i.filters()
		missing := slices.ContainsFunc(all, func(f Filter) bool {
			// What holds before the engine's service runs may not be told of while it does.
			_, ours := mine[f.Key]
			return f.Lifetime != BootTime && (!there[f] || f.Lifetime == Dynamic && !ours)
		})
		if s.items[i] = !missing && len(all) > 0; !s.items[i] {
			delete(s.items, i)
			continue
		}
		for _, f := range all {
			whole[f] = true
		}
	}
	for f := range there {
		if !whole[f] {
			s.strange = append(s.strange, f)
		}
	}
	return s
}

// rules returns the items of a guard beside its openings.
func rules(r firewall.Ruleset, taken map[firewall.Door]firewall.BootTime) map[item]bool {
	out := map[item]bool{}
	every := func(m mode) {
		for _, p := range r.Ports {
			out[item{Kind: port, Mode: m, Port: p.String()}] = true
		}
		for d, until := range taken {
			out[doorItem(revoked, m, d, firewall.End{Until: until})] = true
		}
	}
	switch {
	case r.Observe:
		out[item{Kind: base, Mode: watch}] = true
		every(watch)
	case r.Trial != 0:
		out[item{Kind: base, Mode: watch}] = true
		out[item{Kind: trial, Until: r.Trial}] = true
		every(watch)
		every(onTrial)
	default:
		out[item{Kind: base, Mode: drop}] = true
		every(drop)
	}
	return out
}

// ruleset says which guard the items are, and which doors were taken back.
func (s state) ruleset() (r firewall.Ruleset, taken map[firewall.Door]firewall.BootTime) {
	r.Openings, taken = map[firewall.Door]firewall.End{}, map[firewall.Door]firewall.BootTime{}
	// Where somebody took a part away, what is left that drops counts.
	stands := watch
	for i := range s.items {
		if i.Mode == drop {
			stands = drop
		}
	}
	r.Observe = stands == watch && s.items[item{Kind: base, Mode: watch}]
	var ports []firewall.Port
	for i := range s.items {
		switch {
		case i.Kind == trial:
			r.Trial, r.Observe = i.Until, false
		case i.Kind == opening:
			if had := r.Openings[i.door()]; i.Until > had.Until {
				r.Openings[i.door()] = firewall.End{Until: i.Until, Label: i.Label}
			}
		case i.Kind == port && i.Mode == stands:
			if p, err := firewall.ParsePort(i.Port); err == nil {
				ports = append(ports, p)
			}
		case i.Kind == revoked && i.Mode == stands:
			taken[i.door()] = max(taken[i.door()], i.Until)
		}
	}
	r.Ports = firewall.Union(ports, nil)
	return r, taken
}

// observed is the state as a Backend tells it.
func (s state) observed() firewall.Observed {
	r, taken := s.ruleset()
	o := firewall.Observed{Ruleset: r, Intact: len(s.strange) == 0}
	want := rules(r, taken)
	for d, e := range r.Openings {
		want[doorItem(opening, "", d, e)] = true
	}
	o.Intact = o.Intact && len(want) == len(s.items)
	for i := range want {
		o.Intact = o.Intact && s.items[i]
	}
	return o
}
