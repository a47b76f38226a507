package firewall

import "net/netip"

// Count is an amount of traffic, as the network layer has it.
type Count struct {
	Packets uint64 `json:"packets,omitzero"`
	Bytes   uint64 `json:"bytes,omitzero"`
}

// Plus returns the sum.
func (c Count) Plus(o Count) Count { return Count{c.Packets + o.Packets, c.Bytes + o.Bytes} }

// FlowID tells one connection from every other: a later one between the same
// ends has another number.
type FlowID struct {
	Protocol Protocol       `json:"protocol"`
	From     netip.AddrPort `json:"from"`
	To       netip.AddrPort `json:"to"` // as its first packet had it
	Number   uint32         `json:"number"`
}

// Flow is a connection that came from outside to a guarded port and was let
// in: an entry in the platform's table of connections.
type Flow struct {
	FlowID
	Port  uint16   // the guarded one it came to
	Began BootTime // 0: before anybody looked
	// Established says that something came of it: a TCP handshake was
	// completed, a datagram was answered.
	Established bool
	Open        bool // neither end has closed it, and the platform knows it
	Gone        bool // the platform has forgotten it: the counts are final
	In, Out     Count
}

// Door is the narrowest opening that would let the flow in.
func (f Flow) Door() Door {
	a := f.From.Addr()
	return Door{Source: netip.PrefixFrom(a, a.BitLen()), Protocol: f.Protocol, Port: f.Port}
}

// Flows is what a Backend knows of connections.
type Flows struct {
	List []Flow
	// Incomplete says that some may be missing, or that their beginnings are:
	// there were too many, or the platform tells of none.
	Incomplete bool
}
