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

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// TableName is the guard's table, of family inet. Whatever closes ports
// before the agent runs must use another name: a table made without flags
// cannot be adopted.
const TableName = "jitgate"

// LogGroup is the NFLOG group that gets the head of some denied packets.
const LogGroup = 5

const deniedCounter = "denied"

var (
	table = &nftables.Table{Name: TableName, Family: nftables.TableFamilyINet}

	accept = nftables.ChainPolicyAccept
	// −150: after conntrack (−200) and defragmentation (−400), before the
	// destination of a published container port is rewritten (−100).
	chainPre = &nftables.Chain{Table: table, Name: "pre", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle, Policy: &accept}
	chainKeep  = &nftables.Chain{Table: table, Name: "keep"}
	chainReply = &nftables.Chain{Table: table, Name: "reply"}
	chainGuard = &nftables.Chain{Table: table, Name: "guard"}
	chainDeny  = &nftables.Chain{Table: table, Name: "deny"}
	// In the order they are made: what a rule points to comes first.
	chains = []*nftables.Chain{chainDeny, chainGuard, chainReply, chainKeep, chainPre}
)

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
	if !ok || len(head) != 2 || !strings.ContainsRune("gxr", rune(head[0])) {
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
// costs one element and no rule.
var commonSets = []setID{{kind: granted, bits: 32}, {kind: granted, bits: 128, v6: true}}

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

// rules returns every rule of the guard, chain by chain, in order. local is
// the range the host takes the source ports of its own connections from.
func rules(r firewall.Ruleset, sets map[setID]*nftables.Set, local portRange) map[*nftables.Chain][]*nftables.Rule {
	out := map[*nftables.Chain][]*nftables.Rule{}
	add := func(c *nftables.Chain, comment string, parts ...[]expr.Any) {
		rule := &nftables.Rule{Table: table, Chain: c, Exprs: slices.Concat(parts...)}
		if comment != "" {
			rule.UserData = userdata.AppendString(nil, userdata.TypeComment, comment)
		}
		out[c] = append(out[c], rule)
	}
	for _, p := range r.Ports {
		target := chainKeep
		switch {
		case p.Cut && local.overlaps(p):
			target = chainReply
		case p.Cut:
			target = chainGuard
		}
		// The comment tells a later process which port the rule is for; what
		// it says is held against the rule (observe).
		add(chainPre, p.String(), portMatch(p), jump(target))
	}
	ids := slices.SortedFunc(maps.Keys(sets), setID.compare)
	for _, id := range ids {
		if id.kind == revoked {
			add(chainKeep, "", id.lookup(sets[id]), jump(chainGuard))
		}
	}
	add(chainKeep, "", established(), verdict(expr.VerdictAccept))
	add(chainKeep, "", jump(chainGuard))

	// Answers to the host's own connections may come to a guarded port where
	// that is one of those the host takes for itself. Elsewhere nobody but a
	// client speaks to it, and the less is accepted the better.
	add(chainReply, "", established(), answer(), verdict(expr.VerdictAccept))
	add(chainReply, "", jump(chainGuard))

	add(chainGuard, "", loopback(), verdict(expr.VerdictAccept))
	add(chainGuard, "", forwarded(), verdict(expr.VerdictAccept))
	for _, id := range ids {
		if id.kind != revoked {
			add(chainGuard, "", id.lookup(sets[id]), verdict(expr.VerdictAccept))
		}
	}
	add(chainGuard, "", jump(chainDeny))

	add(chainDeny, "", logSome())
	add(chainDeny, "", []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: deniedCounter}})
	if !r.Observe {
		add(chainDeny, "", verdict(expr.VerdictDrop))
	}
	return out
}

func portMatch(p firewall.Port) []expr.Any {
	match := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, equal(1, []byte{byte(p.Protocol)}),
		destinationPort(1),
	}
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

// answer matches packets against the direction in which a connection began.
func answer() []expr.Any {
	const reply = 1 // IP_CT_DIR_REPLY
	return []expr.Any{&expr.Ct{Register: 1, Key: expr.CtKeyDIRECTION}, equal(1, []byte{reply})}
}

func loopback() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, equal(1, binaryutil.NativeEndian.PutUint32(1))}
}

// forwarded matches what this host would only pass on: the destination is
// plain unicast in the main tables (weak host model) and as seen from the
// input device (VRF). Local, broadcast and multicast destinations do not
// match and stay guarded; "type != local" would let the latter two through.
func forwarded() []expr.Any {
	unicast := binaryutil.NativeEndian.PutUint32(unix.RTN_UNICAST)
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true}, equal(1, unicast),
		&expr.Fib{Register: 1, FlagDADDR: true, FlagIIF: true, ResultADDRTYPE: true}, equal(1, unicast),
	}
}

// lookup loads the key of set s and looks it up. Registers count in words of
// four bytes from 8; 1 to 4 are the older names of 8, 12, 16 and 20. The
// kernel reports multiples of four by their older names, so we use these.
func (s setID) lookup(set *nftables.Set) []expr.Any {
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
	return append(match, &expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID})
}

// logSome copies the head of up to 50 denied packets a second to whoever
// listens on the group; with nobody listening it costs next to nothing.
func logSome() []expr.Any {
	return []expr.Any{
		&expr.Limit{Type: expr.LimitTypePkts, Rate: 50, Unit: expr.LimitTimeSecond, Burst: 100},
		&expr.Log{Key: 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_PREFIX,
			Group: LogGroup, Snaplen: 96, Data: []byte("jitgate-deny ")},
	}
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
