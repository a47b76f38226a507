package nft

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// TableName is the guard's table, of family inet.
const TableName = "jitgate"

const deniedCounter = "denied"

var (
	table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

	accept = nftables.ChainPolicyAccept

	// −199: right after conntrack (−200) and defragmentation (−400), and before
	// the destination of a published port is rewritten: by chains of type nat,
	// which run at −100 whatever priority they ask for, or without tracking in
	// mangle (−150).
	prerouting = newStage("", baseChain("pre", *nftables.ChainHookPrerouting, *nftables.ChainPriorityConntrack+1))
	// What this host takes for itself, by whatever way: a redirected port, an
	// address that only a policy route makes local. After every named
	// priority, so that the port is the one the socket is found by.
	input = newStage("in_", baseChain("in", *nftables.ChainHookInput, *nftables.ChainPriorityConntrackHelper+100))

	chainAdmit = &nftables.Chain{Table: table, Name: "admit"}
	chainDeny  = &nftables.Chain{Table: table, Name: "deny"}
	// Nothing comes here: that a rule asks for a connection's bytes is what has
	// the kernel count them, for every connection that begins from then on.
	chainAccount = &nftables.Chain{Table: table, Name: "account"}
	// In the order they are made: what a rule points to comes first.
	chains = slices.Concat([]*nftables.Chain{chainAccount, chainDeny, chainAdmit}, prerouting.chains(), input.chains())
)

func baseChain(name string, hook nftables.ChainHook, priority nftables.ChainPriority) *nftables.Chain {
	return &nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: &hook, Priority: &priority, Policy: &accept}
}

// stage is one of the two places where packets meet the guard, with the
// chains they go through there.
type stage struct {
	base *nftables.Chain // picks the transports with guarded ports
	// Pick the packets to guarded ports, each of its transport: a packet to any
	// other port is not asked for its transport once per port.
	tcp, udp *nftables.Chain
	others   *nftables.Chain // the same for transports beside TCP and UDP
	keep     *nftables.Chain // ports whose sessions are kept
	guard    *nftables.Chain // ports whose sessions are cut, and what keep does not let pass
	// The same two for ports the host may take for connections of its own.
	replyKeep, reply *nftables.Chain
}

func newStage(prefix string, base *nftables.Chain) stage {
	chain := func(name string) *nftables.Chain { return &nftables.Chain{Table: table, Name: prefix + name} }
	return stage{base: base, tcp: chain("tcp_ports"), udp: chain("udp_ports"), others: chain("others"), keep: chain("keep"), guard: chain("guard"), replyKeep: chain("reply_keep"), reply: chain("reply")}
}

func (s stage) chains() []*nftables.Chain {
	return []*nftables.Chain{s.guard, s.keep, s.reply, s.replyKeep, s.tcp, s.udp, s.others, s.base}
}

// transport is where packets over a protocol are held against its ports.
func (s stage) transport(p firewall.Protocol) *nftables.Chain {
	if p == firewall.UDP {
		return s.udp
	}
	return s.tcp
}

// target is where packets to a guarded port go.
func (s stage) target(p firewall.Port, own portRange) *nftables.Chain {
	switch mayBe := own.mayBe(p); {
	case p.Cut && mayBe:
		return s.reply
	case p.Cut:
		return s.guard
	case mayBe:
		return s.replyKeep
	}
	return s.keep
}

// setID names the set for sources of one family and prefix length.
type setID struct {
	kind kind
	v6   bool
	bits int
}

// kind is the first letter of a set's name.
type kind byte

const (
	granted kind = 'g' // source, protocol and port: lets packets in
	exempt  kind = 'x' // source alone: lets packets in
	revoked kind = 'r' // source, protocol and port: sessions not to be kept
	denied  kind = 'd' // source, protocol and port: what was denied, and how often
)

func setOf(d firewall.Door) setID {
	s := setID{kind: granted, v6: d.Source.Addr().Is6(), bits: d.Source.Bits()}
	if d.Protocol == 0 {
		s.kind = exempt
	}
	return s
}

// revoked is the set that takes sessions of a granted door back.
func (s setID) revoked() setID { s.kind = revoked; return s }

func (s setID) String() string {
	family := "4"
	if s.v6 {
		family = "6"
	}
	return fmt.Sprintf("%c%s_%d", s.kind, family, s.bits)
}

func parseSetID(name string) (s setID, ok bool) {
	head, bits, ok := strings.Cut(name, "_")
	if !ok || len(head) != 2 || !strings.ContainsRune("gxrd", rune(head[0])) {
		return setID{}, false
	}
	n, err := strconv.Atoi(bits)
	s = setID{kind: kind(head[0]), v6: head[1] == '6', bits: n}
	return s, err == nil && n >= 0 && n <= s.addressLen()*8 && s.String() == name
}

func (s setID) compare(o setID) int {
	return cmp.Compare(s.String(), o.String())
}

func (s setID) addressLen() int {
	if s.v6 {
		return 16
	}
	return 4
}

// commonSets exist from the start, so that the usual grant, a single host,
// costs one element and no rule. The kernel itself writes into the others.
var commonSets = append([]setID{{kind: granted, bits: 32}, {kind: granted, bits: 128, v6: true}}, deniedSets...)

var deniedSets = []setID{{kind: denied, bits: 32}, {kind: denied, bits: 128, v6: true}}

// maxDenied bounds how many sources and ports each of these sets remembers,
// and deniedFor for how long after the last packet. When it is full, further
// ones are only counted.
const (
	maxDenied = 8192
	deniedFor = 24 * time.Hour
)

// armedSet holds the families whose packets a guard on trial drops. Its
// elements end, and then the guard only observes.
const (
	armedSet   = "armed"
	armedSetID = 1 // within a batch
)

func newArmedSet() *nftables.Set {
	return &nftables.Set{Table: table, Name: armedSet, ID: armedSetID, KeyType: nftables.TypeNFProto, HasTimeout: true}
}

// armedElements are the elements of a trial that has left to go.
func armedElements(left time.Duration) []nftables.SetElement {
	return []nftables.SetElement{{Key: []byte{unix.NFPROTO_IPV4}, Timeout: left}, {Key: []byte{unix.NFPROTO_IPV6}, Timeout: left}}
}

func (s setID) set() *nftables.Set {
	address := nftables.TypeIPAddr
	if s.v6 {
		address = nftables.TypeIP6Addr
	}
	set := &nftables.Set{Table: table, Name: s.String(), KeyType: address, HasTimeout: true, KeyByteOrder: binaryutil.BigEndian}
	if s.kind != exempt {
		set.KeyType = nftables.MustConcatSetType(address, nftables.TypeInetProto, nftables.TypeInetService)
		set.Concatenation = true
	}
	// The kernel gives every element of such a set a counter of its own.
	set.Counter = s.kind == granted
	if s.kind == denied {
		set.Dynamic, set.Size, set.Timeout = true, maxDenied, deniedFor
	}
	return set
}

// key is the set element for a door: each field padded to four bytes.
func (s setID) key(d firewall.Door) []byte {
	key := d.Source.Addr().AsSlice()
	if s.kind == exempt {
		return key
	}
	key = append(key, byte(d.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(key, d.Port), 0, 0)
}

// door is the inverse of key.
func (s setID) door(key []byte) (d firewall.Door, ok bool) {
	n := s.addressLen()
	want := n
	if s.kind != exempt {
		want += 8
	}
	if len(key) != want {
		return d, false
	}
	address, _ := netip.AddrFromSlice(key[:n])
	d.Source = netip.PrefixFrom(address, s.bits)
	if s.kind != exempt {
		d.Protocol = firewall.Protocol(key[n])
		d.Port = binary.BigEndian.Uint16(key[n+4:])
	}
	return d, true
}

// portRange is a range of ports, both ends included.
type portRange struct{ first, last uint16 }

func (p portRange) overlaps(q firewall.Port) bool { return q.First <= p.last && p.first <= q.Last }

// mayBe reports whether the host may have taken a port in q as the source of a
// connection of its own: from the range it takes them from by itself, p, or
// because a program insists on it.
func (p portRange) mayBe(q firewall.Port) bool {
	return p.overlaps(q) || slices.ContainsFunc([]portRange{
		{123, 123},               // NTP
		{500, 500}, {4500, 4500}, // IKE
		{512, 1023}, // bindresvport(3): NFS, and all that takes "reserved" ports for a proof
	}, func(r portRange) bool { return r.overlaps(q) })
}

// rules returns every rule of the guard, chain by chain, in order. own is
// the range the host takes the source ports of its own connections from.
func rules(r firewall.Ruleset, sets map[setID]*nftables.Set, own portRange) map[*nftables.Chain][]*nftables.Rule {
	out := map[*nftables.Chain][]*nftables.Rule{}
	add := func(c *nftables.Chain, comment string, parts ...[]expr.Any) {
		rule := &nftables.Rule{Table: table, Chain: c, Exprs: slices.Concat(parts...)}
		if comment != "" {
			rule.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
		}
		out[c] = append(out[c], rule)
	}
	ids := slices.SortedFunc(maps.Keys(sets), setID.compare)
	for _, s := range []stage{prerouting, input} {
		for _, p := range r.Ports {
			// The comment tells a later process which port the rule is for; what
			// it says is held against the rule (observe).
			add(s.transport(p.Protocol), p.String(), portMatch(p), jump(s.target(p, own)))
		}
		for _, p := range []firewall.Protocol{firewall.TCP, firewall.UDP} {
			if len(out[s.transport(p)]) > 0 {
				add(s.base, "", over(p), jump(s.transport(p)))
			}
		}
		if len(r.Ports) > 0 {
			add(s.base, "", beyondUDP(), jump(s.others))
		}
		// A guarded number is closed for every transport that has ports: no
		// grant is for SCTP, DCCP or UDP-Lite.
		for _, gap := range withoutPorts {
			add(s.others, "", gap.match(), verdict(expr.VerdictReturn))
		}
		for _, p := range numbers(r.Ports) {
			add(s.others, "", portMatch(p), jump(s.target(p, own)))
		}

		for _, id := range ids {
			if id.kind == revoked {
				add(s.keep, "", id.lookup(sets[id]), jump(s.guard))
			}
		}
		add(s.keep, "", established(), verdict(expr.VerdictAccept))
		add(s.keep, "", jump(s.guard))

		// Answers to the host's own connections may come to a guarded port where
		// that is one of those the host takes for itself, also from a source
		// whose grant was taken back. Elsewhere nobody but a client speaks to it,
		// and the less is accepted the better.
		add(s.reply, "", established(), answer(), verdict(expr.VerdictAccept))
		add(s.reply, "", jump(s.guard))
		add(s.replyKeep, "", established(), answer(), verdict(expr.VerdictAccept))
		add(s.replyKeep, "", jump(s.keep))
		add(s.guard, "", loopback(), verdict(expr.VerdictAccept))
	}
	add(prerouting.guard, "", elsewhere(unix.RTN_UNICAST), verdict(expr.VerdictAccept))
	add(prerouting.guard, "", elsewhere(unix.RTN_UNREACHABLE), verdict(expr.VerdictAccept))
	if r.Observe {
		// Counted before the route was found, and not dropped.
		add(input.guard, "", seen(), verdict(expr.VerdictAccept))
	}
	add(prerouting.guard, "", jump(chainAdmit))
	add(input.guard, "", jump(chainAdmit))

	for _, id := range ids {
		if id.kind == granted || id.kind == exempt {
			add(chainAdmit, "", id.lookup(sets[id]), verdict(expr.VerdictAccept))
		}
	}
	add(chainAdmit, "", jump(chainDeny))

	add(chainAccount, "", counted())

	for _, id := range deniedSets {
		add(chainDeny, "", id.count(sets[id]))
	}
	add(chainDeny, "", []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: deniedCounter}})
	switch {
	case r.Observe:
	case r.Trial != 0:
		add(chainDeny, "", onTrial(), verdict(expr.VerdictDrop))
	default:
		add(chainDeny, "", verdict(expr.VerdictDrop))
	}
	return out
}

// numbers returns the guarded ranges whatever their protocol, each once. Their
// sessions are never kept.
func numbers(ports []firewall.Port) []firewall.Port {
	var out []firewall.Port
	for _, p := range ports {
		n := firewall.Port{First: p.First, Last: p.Last, Cut: true}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// withoutPorts are the protocols beyond UDP that have no ports: all but DCCP
// (33), SCTP (132) and UDP-Lite (136).
var withoutPorts = []portRange{{34, 131}, {133, 135}, {137, 255}}

// match matches the range as protocol numbers.
func (p portRange) match() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{byte(p.first)}},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{byte(p.last)}},
	}
}

// beyondUDP matches, in one step, what is neither TCP, UDP nor ICMP.
func beyondUDP() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpGt, Register: 1, Data: []byte{byte(firewall.UDP)}}}
}

func over(p firewall.Protocol) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(1, []byte{byte(p)})}
}

func portMatch(p firewall.Port) []expr.Any {
	match := []expr.Any{destinationPort(1)}
	if p.First == p.Last {
		return append(match, equal(1, port(p.First)))
	}
	return append(match,
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: port(p.First)},
		&expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: port(p.Last)})
}

func established() []expr.Any {
	state := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: state, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// counted matches packets of connections the kernel counts the bytes of.
func counted() []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeyBYTES},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 8)},
	}
}

// answer matches packets against the direction in which a connection began.
func answer() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, equal(1, []byte{reply})}
}

func loopback() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, equal(1, binaryutil.NativeEndian.PutUint32(1))}
}

// elsewhere matches what is for another machine: the destination is of that
// type in the main tables (weak host model) and as seen from the input device
// (VRF). Plain unicast is what the host may forward. Unreachable is what it has
// no route to and passes between the ports of a bridge (br_netfilter), with
// IPv6; with IPv4 the kernel calls that unicast too. Local, broadcast and
// multicast destinations do not match and stay guarded; "type != local" would
// let the latter two through. What comes to this host all the same meets the
// guard in input.
func elsewhere(kind uint32) []expr.Any {
	want := binaryutil.NativeEndian.PutUint32(kind)
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, equal(1, want),
		&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: true, ResultADDRTYPE: true}, equal(1, want),
	}
}

// seen matches what the prerouting stage has judged by the same port: its
// destination was not rewritten and is the host's own.
func seen() []expr.Any {
	const rewritten = 1 << 5 // IPS_DST_NAT
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATUS},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(rewritten), Xor: make([]byte, 4)},
		equal(1, make([]byte, 4)),
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)},
	}
}

// onTrial matches as long as the guard on trial drops.
func onTrial() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: armedSet},
	}
}

// count counts the packet under its key in set s. Where that is full, nothing
// of it shows, and the chain goes on.
func (s setID) count(set *nftables.Set) []expr.Any {
	return append(s.load(), &expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID,
		Operation: unix.NFT_DYNSET_OP_UPDATE, Exprs: []expr.Any{&expr.Counter{}}})
}

// lookup looks the key of set s up.
func (s setID) lookup(set *nftables.Set) []expr.Any {
	return append(s.load(), &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

// load loads the key of set s, for packets of its family. Registers count in words of
// four bytes from 8; 1 to 4 are the older names of 8, 12, 16 and 20. The
// kernel reports multiples of four by their older names, so we use these.
func (s setID) load() []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	protocolRegister, portRegister := uint32(9), uint32(10)
	if s.v6 {
		family, offset = unix.NFPROTO_IPV6, 8
		protocolRegister, portRegister = 2, 13
	}
	n := s.addressLen()
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, equal(1, []byte{family}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(n)},
	}
	if s.bits < n*8 {
		match = append(match, &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: uint32(n), Mask: mask(s.bits, n), Xor: make([]byte, n)})
	}
	if s.kind != exempt {
		match = append(match, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: protocolRegister}, destinationPort(portRegister))
	}
	return match
}

func destinationPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func equal(register uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: data}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }

func jump(to *nftables.Chain) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: to.Name}}
}

func port(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func mask(bits, bytes int) []byte {
	m := make([]byte, bytes)
	for i := range bits {
		m[i/8] |= 0x80 >> (i % 8)
	}
	return m
}
