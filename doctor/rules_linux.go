package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Missing in x/sys/unix: include/uapi/linux/netfilter/nf_tables.h.
const (
	tableHandle     = 4 // NFTA_TABLE_HANDLE
	tableOwner      = 7 // NFTA_TABLE_OWNER
	flagDormant     = 1
	flagPersist     = 4
	hookDevices     = 4 // NFTA_HOOK_DEVS
	getFlowtable    = 23
	elementEnd      = 1          // NFT_SET_ELEM_INTERVAL_END
	elementCatchAll = 2          // NFT_SET_ELEM_CATCHALL
	dataVerdict     = 0xffffff00 // NFT_DATA_VERDICT
)

var families = map[byte]string{unix.NFPROTO_INET: "inet", unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6",
	unix.NFPROTO_ARP: "arp", unix.NFPROTO_BRIDGE: "bridge", unix.NFPROTO_NETDEV: "netdev"}

// attributes are netlink attributes by kind; of several with one kind the
// last one.
type attributes map[uint16][]byte

// pairs calls f for each attribute in turn. What cannot be read ends it: the
// kernel's own answers always can.
func pairs(data []byte, f func(kind uint16, data []byte)) {
	list, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return
	}
	for _, a := range list {
		f(a.Type&^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a.Data)
	}
}

func parse(data []byte) attributes {
	out := attributes{}
	pairs(data, func(kind uint16, data []byte) { out[kind] = data })
	return out
}

func (a attributes) text(kind uint16) string { return strings.TrimRight(string(a[kind]), "\x00") }

func (a attributes) number(kind uint16) uint32 {
	if len(a[kind]) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(a[kind])
}

func (a attributes) long(kind uint16) uint64 {
	if len(a[kind]) != 8 {
		return 0
	}
	return binary.BigEndian.Uint64(a[kind])
}

// answer is one object of a dump.
type answer struct {
	family byte
	attributes
}

// reader reads nf_tables.
type reader struct {
	conn *netlink.Conn
	sets map[string]*set // by family, table and name
}

// dump lists objects of one kind. A change in between makes the kernel say
// so, and the list is read again.
func (r *reader) dump(kind uint16, family byte, query ...netlink.Attribute) ([]answer, error) {
	data, err := netlink.MarshalAttributes(query)
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		messages, err := r.conn.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | netlink.Dump},
			Data:   append([]byte{family, 0, 0, 0}, data...),
		})
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(messages, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) && try < 10 {
			continue
		}
		var out []answer
		for _, m := range messages {
			if len(m.Data) >= 4 {
				out = append(out, answer{m.Data[0], parse(m.Data[4:])})
			}
		}
		return out, nil
	}
}

// readTables reads every table with its chains and rules, and the flowtables.
func readTables() (tables []Table, flowtables []Flowtable, err error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	r := &reader{conn: conn, sets: map[string]*set{}}
	answers, err := r.dump(unix.NFT_MSG_GETTABLE, unix.NFPROTO_UNSPEC)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		flags := a.number(unix.NFTA_TABLE_FLAGS)
		tables = append(tables, Table{Family: families[a.family], Name: a.text(unix.NFTA_TABLE_NAME), Handle: a.long(tableHandle),
			Owner: a.number(tableOwner), Persist: flags&flagPersist != 0, Dormant: flags&flagDormant != 0})
	}
	table := func(family byte, name string) *Table {
		i := slices.IndexFunc(tables, func(t Table) bool { return t.Family == families[family] && t.Name == name })
		if i < 0 {
			return &Table{} // made in between: nobody asks for it
		}
		return &tables[i]
	}
	if answers, err = r.dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_UNSPEC); err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		t := table(a.family, a.text(unix.NFTA_CHAIN_TABLE))
		t.Chains = append(t.Chains, readChain(a))
	}
	if answers, err = r.dump(unix.NFT_MSG_GETSET, unix.NFPROTO_UNSPEC); err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		s := &set{family: a.family, table: a.text(unix.NFTA_SET_TABLE), name: a.text(unix.NFTA_SET_NAME),
			keyLen: int(a.number(unix.NFTA_SET_KEY_LEN)), interval: a.number(unix.NFTA_SET_FLAGS)&unix.NFT_SET_INTERVAL != 0,
			verdicts: a.number(unix.NFTA_SET_DATA_TYPE) == dataVerdict}
		r.sets[s.key()] = s
	}
	if answers, err = r.dump(unix.NFT_MSG_GETRULE, unix.NFPROTO_UNSPEC); err != nil {
		return nil, nil, err
	}
	for _, a := range answers {
		t := table(a.family, a.text(unix.NFTA_RULE_TABLE))
		i := slices.IndexFunc(t.Chains, func(c Chain) bool { return c.Name == a.text(unix.NFTA_RULE_CHAIN) })
		if i < 0 {
			continue
		}
		rules, err := r.translate(a)
		if err != nil {
			return nil, nil, fmt.Errorf("rules of table %s %s: %w", t.Family, t.Name, err)
		}
		t.Chains[i].Rules = append(t.Chains[i].Rules, rules...)
	}
	answers, err = r.dump(getFlowtable, unix.NFPROTO_UNSPEC)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) {
		return nil, nil, err
	}
	for _, a := range answers {
		f := Flowtable{Family: families[a.family], Table: a.text(1), Name: a.text(2)} // NFTA_FLOWTABLE_TABLE, _NAME
		pairs(parse(a.attributes[3])[3], func(_ uint16, name []byte) {                // _HOOK, _HOOK_DEVS
			f.Devices = append(f.Devices, strings.TrimRight(string(name), "\x00"))
		})
		flowtables = append(flowtables, f)
	}
	return tables, flowtables, nil
}

func readChain(a answer) Chain {
	c := Chain{Name: a.text(unix.NFTA_CHAIN_NAME), Type: a.text(unix.NFTA_CHAIN_TYPE)}
	hook, ok := a.attributes[unix.NFTA_CHAIN_HOOK]
	if !ok {
		return c
	}
	c.Drops = a.attributes[unix.NFTA_CHAIN_POLICY] != nil && a.number(unix.NFTA_CHAIN_POLICY) == 0 // NF_DROP
	h := parse(hook)
	c.Priority = int(int32(h.number(unix.NFTA_HOOK_PRIORITY)))
	names := []string{"prerouting", "input", "forward", "output", "postrouting", "ingress"}
	if a.family == unix.NFPROTO_NETDEV {
		names = []string{"ingress", "egress"}
	}
	if n := int(h.number(unix.NFTA_HOOK_HOOKNUM)); n < len(names) {
		c.Hook = names[n]
	}
	pairs(h[hookDevices], func(_ uint16, name []byte) { c.Devices = append(c.Devices, strings.TrimRight(string(name), "\x00")) })
	return c
}

// set is a set or map; its elements are read when a rule asks what is in it.
type set struct {
	family             byte
	table, name        string
	keyLen             int
	interval, verdicts bool

	read     bool
	elements []element
}

type element struct {
	key      []byte
	end, all bool // the end of an interval; the element for all other keys
	verdict  attributes
}

func (s *set) key() string { return string(s.family) + s.table + "\x00" + s.name }

func (r *reader) elements(s *set) ([]element, error) {
	if s.read {
		return s.elements, nil
	}
	s.read = true
	answers, err := r.dump(unix.NFT_MSG_GETSETELEM, s.family,
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(s.table + "\x00")},
		netlink.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(s.name + "\x00")})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil // gone since
	}
	if err != nil {
		return nil, err
	}
	for _, a := range answers {
		pairs(a.attributes[unix.NFTA_SET_ELEM_LIST_ELEMENTS], func(_ uint16, data []byte) {
			e := parse(data)
			flags := e.number(unix.NFTA_SET_ELEM_FLAGS)
			s.elements = append(s.elements, element{key: parse(e[unix.NFTA_SET_ELEM_KEY])[unix.NFTA_DATA_VALUE],
				end: flags&elementEnd != 0, all: flags&elementCatchAll != 0, verdict: parse(parse(e[unix.NFTA_SET_ELEM_DATA])[unix.NFTA_DATA_VERDICT])})
		})
	}
	return s.elements, nil
}

// register is what a rule has loaded so far.
type register struct {
	field Field
	width int                              // of the field, in bytes
	value func([]byte) (n uint32, ok bool) // reads a constant the field is compared with
	mask  []byte                           // of a field of bits
	data  []byte                           // an immediate value
}

func big(b []byte) (uint32, bool) {
	switch len(b) {
	case 1:
		return uint32(b[0]), true
	case 2:
		return uint32(binary.BigEndian.Uint16(b)), true
	case 4:
		return binary.BigEndian.Uint32(b), true
	}
	return 0, false
}

func native(b []byte) (uint32, bool) {
	if len(b) == 4 {
		return binary.NativeEndian.Uint32(b), true
	}
	return big(b)
}

// strange is a value no packet of ours has.
const strange = 1 << 31

func protocolFamily(b []byte) (uint32, bool) {
	n, ok := big(b)
	switch n {
	case unix.NFPROTO_IPV4:
		return 4, ok
	case unix.NFPROTO_IPV6:
		return 6, ok
	}
	return strange, ok
}

func etherType(b []byte) (uint32, bool) {
	n, ok := big(b)
	switch n {
	case unix.ETH_P_IP:
		return 4, ok
	case unix.ETH_P_IPV6:
		return 6, ok
	}
	return strange, ok
}

// loopbackDevice knows one device: packets from outside come by another, and
// which is not known.
func loopbackDevice(b []byte) (uint32, bool) {
	if len(b) == 4 {
		return 1, binary.NativeEndian.Uint32(b) == 1
	}
	return 1, strings.TrimRight(string(b), "\x00") == "lo"
}

// loopbackAddress likewise: packets to loopback addresses come from this host.
func loopbackAddress(b []byte) (uint32, bool) {
	if a, ok := netip.AddrFromSlice(b); ok {
		return 1, a.IsLoopback()
	}
	return 1, len(b) > 0 && len(b) < 4 && b[0] == 127
}

// translation is one rule on its way from expressions to what is kept of it.
type translation struct {
	reader    *reader
	family    byte
	table     string
	registers map[uint32]register // by the number the kernel lists, always the same one
	rule      Rule
	out       []Rule
}

// translate returns the rules that stand for one of the kernel's.
func (r *reader) translate(a answer) ([]Rule, error) {
	t := &translation{reader: r, family: a.family, table: a.text(unix.NFTA_RULE_TABLE), registers: map[uint32]register{},
		rule: Rule{Handle: a.long(unix.NFTA_RULE_HANDLE)}}
	var failed error
	pairs(a.attributes[unix.NFTA_RULE_EXPRESSIONS], func(_ uint16, data []byte) {
		e := parse(data)
		if err := t.expression(e.text(unix.NFTA_EXPR_NAME), parse(e[unix.NFTA_EXPR_DATA])); err != nil && failed == nil {
			failed = err
		}
	})
	if t.rule.Action != Continue || len(t.out) == 0 {
		t.out = append(t.out, t.rule)
	}
	return t.out, failed
}

func (t *translation) load(a attributes, kind uint16, r register) { t.registers[a.number(kind)] = r }

func (t *translation) match(m Match) { t.rule.Matches = append(slices.Clone(t.rule.Matches), m) }

// does sets the rule's action; a rule ends with its first.
func (t *translation) does(action Action) {
	if t.rule.Action == Continue {
		t.rule.Action = action
	}
}

func (t *translation) expression(name string, a attributes) error {
	switch name {
	case "meta":
		if _, sets := a[unix.NFTA_META_SREG]; !sets {
			t.load(a, unix.NFTA_META_DREG, metaField(a.number(unix.NFTA_META_KEY)))
		}
	case "ct":
		if _, sets := a[unix.NFTA_CT_SREG]; !sets {
			t.load(a, unix.NFTA_CT_DREG, ctField(a.number(unix.NFTA_CT_KEY)))
		}
	case "payload":
		t.payload(a)
	case "fib":
		r := register{}
		if a.number(unix.NFTA_FIB_RESULT) == unix.NFT_FIB_RESULT_ADDRTYPE && a.number(unix.NFTA_FIB_FLAGS)&unix.NFTA_FIB_F_DADDR != 0 {
			r = register{field: FieldDest, width: 4, value: native}
		}
		t.load(a, unix.NFTA_FIB_DREG, r)
	case "immediate":
		data := parse(a[unix.NFTA_IMMEDIATE_DATA])
		if verdict, ok := data[unix.NFTA_DATA_VERDICT]; ok {
			t.verdict(parse(verdict))
		} else {
			t.load(a, unix.NFTA_IMMEDIATE_DREG, register{data: data[unix.NFTA_DATA_VALUE]})
		}
	case "bitwise":
		r := t.registers[a.number(unix.NFTA_BITWISE_SREG)]
		switch r.field {
		case FieldState, FieldStatus:
			r.mask = parse(a[unix.NFTA_BITWISE_MASK])[unix.NFTA_DATA_VALUE]
		case FieldInput: // a prefix of loopback addresses is one still
		default:
			r = register{}
		}
		t.load(a, unix.NFTA_BITWISE_DREG, r)
	case "cmp":
		t.compare(t.registers[a.number(unix.NFTA_CMP_SREG)], a.number(unix.NFTA_CMP_OP), parse(a[unix.NFTA_CMP_DATA])[unix.NFTA_DATA_VALUE])
	case "range":
		t.between(a)
	case "lookup":
		return t.lookup(a)
	case "reject", "fwd":
		t.does(Drop) // fwd sends it out by another device
	case "queue":
		t.does(Queue)
	case "nat":
		if a.number(unix.NFTA_NAT_TYPE) == unix.NFT_NAT_DNAT {
			t.does(DNAT)
			t.rule.To, _ = netip.AddrFromSlice(t.registers[a.number(unix.NFTA_NAT_REG_ADDR_MIN)].data)
			t.leads(a, unix.NFTA_NAT_REG_PROTO_MIN, unix.NFTA_NAT_REG_PROTO_MAX)
		}
	case "redir":
		t.does(Redirect)
		t.leads(a, unix.NFTA_REDIR_REG_PROTO_MIN, unix.NFTA_REDIR_REG_PROTO_MAX)
	case "tproxy":
		t.does(TProxy)
		t.leads(a, 3, 3) // NFTA_TPROXY_REG_PORT
	case "notrack":
		t.does(Notrack)
	case "match":
		t.xtMatch(a.text(1), a.number(2), a[3]) // NFTA_MATCH_NAME, _REV, _INFO
	case "target":
		t.xtTarget(a.text(1), a.number(2), a[3]) // NFTA_TARGET_NAME, _REV, _INFO
	case "counter", "log", "dup", "masq", "last", "flow_offload":
	case "limit", "connlimit", "quota", "dynset", "synproxy", "objref":
		if name != "objref" || a.number(unix.NFTA_OBJREF_IMM_TYPE) != unix.NFT_OBJECT_COUNTER {
			t.match(Match{})
		}
	default:
		// It may load a register, and which is not known.
		t.registers = map[uint32]register{}
	}
	return nil
}

// leads takes the ports a rewriting rule leads to from its registers.
func (t *translation) leads(a attributes, low, high uint16) {
	first, ok := big(t.registers[a.number(low)].data)
	if !ok || a[low] == nil {
		return
	}
	last := first
	if n, ok := big(t.registers[a.number(high)].data); ok && a[high] != nil {
		last = n
	}
	t.rule.Ports = Range{first, last}
}

func metaField(key uint32) register {
	switch key {
	case unix.NFT_META_NFPROTO:
		return register{field: FieldFamily, width: 1, value: protocolFamily}
	case unix.NFT_META_PROTOCOL:
		return register{field: FieldFamily, width: 2, value: etherType}
	case unix.NFT_META_L4PROTO:
		return register{field: FieldProto, width: 1, value: big}
	case unix.NFT_META_IIF:
		return register{field: FieldInput, width: 4, value: loopbackDevice}
	case unix.NFT_META_IIFNAME:
		return register{field: FieldInput, width: unix.IFNAMSIZ, value: loopbackDevice}
	case unix.NFT_META_PKTTYPE:
		return register{field: FieldKind, width: 1, value: big}
	}
	return register{}
}

func ctField(key uint32) register {
	switch key {
	case unix.NFT_CT_STATE:
		return register{field: FieldState, width: 4, value: native}
	case unix.NFT_CT_STATUS:
		return register{field: FieldStatus, width: 4, value: native}
	case unix.NFT_CT_DIRECTION:
		return register{field: FieldWay, width: 1, value: big}
	}
	return register{}
}

func (t *translation) payload(a attributes) {
	base, offset, length := a.number(unix.NFTA_PAYLOAD_BASE), a.number(unix.NFTA_PAYLOAD_OFFSET), a.number(unix.NFTA_PAYLOAD_LEN)
	port := base == unix.NFT_PAYLOAD_TRANSPORT_HEADER && offset == 2 && length == 2
	if _, writes := a[unix.NFTA_PAYLOAD_SREG]; writes {
		if n, ok := big(t.registers[a.number(unix.NFTA_PAYLOAD_SREG)].data); ok && port {
			t.does(SetPort)
			t.rule.Ports = Range{n, n}
		}
		return
	}
	var r register
	network := base == unix.NFT_PAYLOAD_NETWORK_HEADER
	switch {
	case port:
		r = register{field: FieldPort, width: 2, value: big}
	case network && length == 1 && (offset == 9 || offset == 6): // protocol, next header
		r = register{field: FieldProto, width: 1, value: big}
	case network && (offset == 16 && length <= 4 || offset == 24 && length == 16): // destination
		r = register{field: FieldInput, width: int(length), value: loopbackAddress}
	case base == unix.NFT_PAYLOAD_LL_HEADER && offset == 12 && length == 2:
		r = register{field: FieldFamily, width: 2, value: etherType}
	}
	t.load(a, unix.NFTA_PAYLOAD_DREG, r)
}

const most = 1<<32 - 1

// compare adds what a comparison asks for.
func (t *translation) compare(r register, op uint32, data []byte) {
	if r.field == Unknown {
		t.match(Match{})
		return
	}
	n, ok := r.value(data)
	if !ok {
		t.match(Match{})
		return
	}
	m := Match{Field: r.field}
	if r.mask != nil {
		mask, ok := native(r.mask)
		if !ok || n != 0 && n != mask {
			t.match(Match{})
			return
		}
		// Any of the bits: bits != 0. One bit that is set: bits == it.
		m.Values, m.Not = []Range{{mask, mask}}, (op == unix.NFT_CMP_EQ) == (n == 0)
		t.match(m)
		return
	}
	switch op {
	case unix.NFT_CMP_EQ, unix.NFT_CMP_NEQ:
		m.Values, m.Not = []Range{{n, n}}, op == unix.NFT_CMP_NEQ
	case unix.NFT_CMP_LT:
		m.Values, m.Not = []Range{{n, most}}, true
	case unix.NFT_CMP_LTE:
		m.Values = []Range{{0, n}}
	case unix.NFT_CMP_GT:
		m.Values, m.Not = []Range{{0, n}}, true
	case unix.NFT_CMP_GTE:
		m.Values = []Range{{n, most}}
	}
	// "at least" and "at most" of one field are a range.
	if last := len(t.rule.Matches) - 1; last >= 0 && op == unix.NFT_CMP_LTE {
		before := t.rule.Matches[last]
		if before.Field == r.field && !before.Not && len(before.Values) == 1 && before.Values[0].Last == most {
			t.rule.Matches = t.rule.Matches[:last]
			m.Values = []Range{{before.Values[0].First, n}}
		}
	}
	t.match(m)
}

func (t *translation) between(a attributes) {
	r := t.registers[a.number(unix.NFTA_RANGE_SREG)]
	if r.field != Unknown && r.mask == nil {
		first, ok1 := r.value(parse(a[unix.NFTA_RANGE_FROM_DATA])[unix.NFTA_DATA_VALUE])
		last, ok2 := r.value(parse(a[unix.NFTA_RANGE_TO_DATA])[unix.NFTA_DATA_VALUE])
		if ok1 && ok2 {
			t.match(Match{Field: r.field, Values: []Range{{first, last}}, Not: a.number(unix.NFTA_RANGE_OP) == unix.NFT_RANGE_NEQ})
			return
		}
	}
	t.match(Match{})
}

// lookup adds what a set asks for, or a rule for each verdict of a map.
func (t *translation) lookup(a attributes) error {
	s := t.reader.sets[(&set{family: t.family, table: t.table, name: a.text(unix.NFTA_LOOKUP_SET)}).key()]
	if s == nil {
		t.match(Match{})
		return nil
	}
	r := t.registers[a.number(unix.NFTA_LOOKUP_SREG)]
	// A key of several fields is longer than the first of them.
	known := r.field != Unknown && r.mask == nil && s.keyLen == r.width
	if !known && !s.verdicts {
		if _, loads := a[unix.NFTA_LOOKUP_DREG]; loads {
			t.load(a, unix.NFTA_LOOKUP_DREG, register{})
		}
		t.match(Match{})
		return nil
	}
	elements, err := t.reader.elements(s)
	if err != nil {
		return err
	}
	if !s.verdicts {
		m := Match{Field: r.field, Not: a.number(unix.NFTA_LOOKUP_FLAGS)&unix.NFT_LOOKUP_F_INV != 0}
		for _, e := range ranges(r, s, elements) {
			m.Values = append(m.Values, e.Range)
			if e.unknown {
				m = Match{}
				break
			}
		}
		if _, loads := a[unix.NFTA_LOOKUP_DREG]; loads {
			t.load(a, unix.NFTA_LOOKUP_DREG, register{})
		}
		t.match(m)
		return nil
	}
	seen := map[string]bool{}
	before := t.rule
	for _, e := range ranges(r, s, elements) {
		m := Match{Field: r.field, Values: []Range{e.Range}}
		if e.unknown || !known {
			m = Match{}
		}
		t.rule = before
		t.match(m)
		t.verdict(e.verdict)
		if id := fmt.Sprint(m, t.rule.Action, t.rule.Target); !seen[id] {
			seen[id] = true
			t.out = append(t.out, t.rule)
		}
	}
	t.rule = before
	return nil
}

// span is the keys of one element.
type span struct {
	Range
	unknown bool // the keys are not known
	verdict attributes
}

// ranges turns a set's elements into ranges. The kernel lists the start and
// the end of an interval as two elements, in any order.
func ranges(r register, s *set, elements []element) []span {
	type point struct {
		n  uint32
		ok bool
		element
	}
	var points []point
	for _, e := range elements {
		p := point{element: e}
		if r.value != nil && !e.all {
			p.n, p.ok = r.value(e.key)
		}
		points = append(points, p)
	}
	slices.SortStableFunc(points, func(a, b point) int {
		switch {
		case a.n != b.n:
			return int(int64(a.n) - int64(b.n))
		case a.end == b.end:
			return 0
		case a.end:
			return -1
		}
		return 1
	})
	var out []span
	for i, p := range points {
		if p.end {
			continue
		}
		e := span{Range: Range{p.n, p.n}, unknown: !p.ok, verdict: p.verdict}
		if s.interval && p.ok {
			e.Last = most
			if i+1 < len(points) {
				e.Last = points[i+1].n - 1
			}
		}
		out = append(out, e)
	}
	return out
}

func (t *translation) verdict(a attributes) {
	code := int32(a.number(unix.NFTA_VERDICT_CODE))
	switch code {
	case unix.NFT_JUMP:
		t.does(Jump)
	case unix.NFT_GOTO:
		t.does(Goto)
	case unix.NFT_RETURN:
		t.does(Return)
	default:
		switch code & 0xff { // NF_VERDICT_MASK
		case 0:
			t.does(Drop)
		case 1:
			t.does(Accept)
		case 3:
			t.does(Queue)
		}
	}
	t.rule.Target = a.text(unix.NFTA_VERDICT_CHAIN)
}

// xtMatch reads a match of iptables: what include/uapi/linux/netfilter says of
// its bytes.
func (t *translation) xtMatch(name string, revision uint32, info []byte) {
	u16 := func(offset int) uint16 { return binary.NativeEndian.Uint16(info[offset:]) }
	protocol := map[string]firewall.Protocol{"tcp": firewall.TCP, "udp": firewall.UDP}[name]
	switch {
	case name == "comment":
	case protocol != 0 && len(info) >= 9:
		t.match(Match{Field: FieldProto, Values: []Range{{uint32(protocol), uint32(protocol)}}})
		if u16(0) != 0 || u16(2) != 65535 {
			t.match(Match{}) // source ports
		}
		inverted := info[8]
		if protocol == firewall.TCP {
			if len(info) < 12 {
				t.match(Match{})
				return
			}
			inverted = info[11]
			if info[8] != 0 || info[9] != 0 {
				t.match(Match{}) // options, flags
			}
		}
		if u16(4) != 0 || u16(6) != 65535 {
			t.match(Match{Field: FieldPort, Values: []Range{{uint32(u16(4)), uint32(u16(6))}}, Not: inverted&2 != 0})
		}
	case name == "multiport" && revision == 1 && len(info) >= 48 && info[0] == 1 && info[1] <= 15: // destination ports
		m := Match{Field: FieldPort, Not: info[47] != 0}
		for i := 0; i < int(info[1]); i++ {
			first, last := u16(2+2*i), u16(2+2*i)
			if info[32+i] != 0 && i+1 < int(info[1]) { // a range: the next is its end
				i++
				last = u16(2 + 2*i)
			}
			m.Values = append(m.Values, Range{uint32(first), uint32(last)})
		}
		t.match(m)
	case name == "conntrack" && revision >= 2 && len(info) >= 152:
		const state, alias = 1, 1 << 13 // XT_CONNTRACK_STATE, _STATE_ALIAS: it was written as "state"
		flags, inverted := u16(146)&^alias, u16(148)
		if flags != state {
			t.match(Match{})
		}
		if flags&state != 0 {
			t.match(Match{Field: FieldState, Values: []Range{{uint32(u16(150)), uint32(u16(150))}}, Not: inverted&state != 0})
		}
	case name == "state" && len(info) >= 4:
		n := binary.NativeEndian.Uint32(info)
		t.match(Match{Field: FieldState, Values: []Range{{n, n}}})
	case name == "addrtype" && revision == 1 && len(info) >= 8 && u16(0) == 0:
		const invertDestination = 2
		m := Match{Field: FieldDest, Not: binary.NativeEndian.Uint32(info[4:])&invertDestination != 0}
		for bit := range 12 {
			if u16(2)&(1<<bit) != 0 {
				m.Values = append(m.Values, Range{uint32(bit), uint32(bit)})
			}
		}
		t.match(m)
	default:
		t.match(Match{})
	}
}

// xtTarget reads a target of iptables.
func (t *translation) xtTarget(name string, revision uint32, info []byte) {
	switch name {
	case "REJECT", "DROP":
		t.does(Drop)
	case "ACCEPT":
		t.does(Accept)
	case "NFQUEUE":
		t.does(Queue)
	case "NOTRACK":
		t.does(Notrack)
	case "CT":
		if len(info) >= 2 && binary.NativeEndian.Uint16(info)&1 != 0 { // XT_CT_NOTRACK
			t.does(Notrack)
		}
	case "DNAT", "REDIRECT":
		t.does(map[string]Action{"DNAT": DNAT, "REDIRECT": Redirect}[name])
		t.natRange(revision, info)
	case "TPROXY":
		t.does(TProxy)
		offset := 12 // two marks, an IPv4 address
		if revision == 1 {
			offset = 24
		}
		if len(info) >= offset+2 {
			n := uint32(binary.BigEndian.Uint16(info[offset:]))
			t.rule.Ports = Range{n, n}
		}
	case "NETMAP":
		t.does(DNAT)
	case "SYNPROXY", "TARPIT", "STEAL":
		t.does(Queue) // something else answers
	}
}

// natRange reads where a target of iptables leads to. IPv4 of revision 0 has
// a list with one range; all others hold addresses of 16 bytes.
func (t *translation) natRange(revision uint32, info []byte) {
	const addresses, ports = 1, 2 // NF_NAT_RANGE_MAP_IPS, _PROTO_SPECIFIED
	width, at := 16, 4
	flags := func() uint32 { return binary.NativeEndian.Uint32(info[at-4:]) }
	if t.family == unix.NFPROTO_IPV4 && revision == 0 {
		width, at = 4, 8
	}
	if len(info) < at+2*width+4 {
		return
	}
	if flags()&addresses != 0 {
		address := info[at : at+width]
		if t.family == unix.NFPROTO_IPV4 {
			address = address[:4]
		}
		t.rule.To, _ = netip.AddrFromSlice(address)
	}
	if flags()&ports != 0 {
		p := info[at+2*width:]
		t.rule.Ports = Range{uint32(binary.BigEndian.Uint16(p)), uint32(binary.BigEndian.Uint16(p[2:]))}
	}
}
