package nft

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Missing in x/sys/unix.
const (
	tableOwner    = 7  // NFTA_TABLE_OWNER
	setExpression = 17 // NFTA_SET_EXPR
	policyAccept  = 1  // NF_ACCEPT
)

// tableState is what the kernel says of the table itself.
type tableState struct {
	exists bool
	flags  uint32
	owner  uint32 // netlink port of the socket that owns it
}

func (t tableState) orphan() bool {
	return t.exists && t.flags&(flagOwner|flagPersist) == flagPersist
}

// table reads our table, and whether the one that closes ports at boot stands.
func (t *transport) table() (ours tableState, boot bool, err error) {
	answers, err := t.dump(unix.NFT_MSG_GETTABLE, unix.NFPROTO_INET, nil)
	if err != nil {
		return tableState{}, false, fmt.Errorf("list tables: %w", err)
	}
	for _, data := range answers {
		state, name := tableState{exists: true}, ""
		err := attributes(data, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_TABLE_NAME:
				name = ad.String()
			case unix.NFTA_TABLE_FLAGS:
				state.flags = ad.Uint32()
			case tableOwner:
				state.owner = ad.Uint32()
			}
		})
		if err != nil {
			return tableState{}, false, fmt.Errorf("read a table: %w", err)
		}
		switch name {
		case TableName:
			ours = state
		case BootTableName:
			boot = true
		}
	}
	return ours, boot, nil
}

// inTable asks for objects of our table only.
var inTable = []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(TableName + "\x00")}}

// chainState is a chain as the kernel has it.
type chainState struct {
	name, kind string
	hooked     bool
	hook       uint32
	priority   int32
	policy     uint32
}

func (t *transport) chains() (map[string]chainState, error) {
	// The kernel ignores the table's name when it lists chains.
	answers, err := t.dump(unix.NFT_MSG_GETCHAIN, unix.NFPROTO_INET, nil)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	out := map[string]chainState{}
	for _, data := range answers {
		var c chainState
		of := ""
		err := attributes(data, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_CHAIN_TABLE:
				of = ad.String()
			case unix.NFTA_CHAIN_NAME:
				c.name = ad.String()
			case unix.NFTA_CHAIN_TYPE:
				c.kind = ad.String()
			case unix.NFTA_CHAIN_POLICY:
				c.policy = ad.Uint32()
			case unix.NFTA_CHAIN_HOOK:
				c.hooked = true
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						switch ad.Type() {
						case unix.NFTA_HOOK_HOOKNUM:
							c.hook = ad.Uint32()
						case unix.NFTA_HOOK_PRIORITY:
							c.priority = ad.Int32()
						}
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read a chain: %w", err)
		}
		if of == TableName {
			out[c.name] = c
		}
	}
	return out, nil
}

// chainsIntact reports whether our chains are as they should be, and whether
// what is wrong can be mended in place: a base chain's hook cannot.
func chainsIntact(have map[string]chainState) (intact, mendable bool) {
	intact, mendable = true, true
	for _, c := range chains {
		h, ok := have[c.Name]
		switch {
		case !ok:
			intact = false
		case c.Hooknum == nil && h.hooked,
			c.Hooknum != nil && (!h.hooked || h.kind != string(c.Type) || h.hook != uint32(*c.Hooknum) || h.priority != int32(*c.Priority)):
			intact, mendable = false, false
		case c.Policy != nil && h.policy != policyAccept:
			intact = false
		}
	}
	return intact, mendable
}

// setState is a set as the kernel has it.
type setState struct {
	keyType, keyLen, flags, size uint32
	timeout                      uint64 // ms
	counts                       bool   // packets, for each element
}

func (t *transport) sets() (map[string]setState, error) {
	answers, err := t.dump(unix.NFT_MSG_GETSET, unix.NFPROTO_INET, inTable)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	out := map[string]setState{}
	for _, data := range answers {
		var s setState
		name := ""
		err := attributes(data, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_SET_NAME:
				name = ad.String()
			case unix.NFTA_SET_FLAGS:
				s.flags = ad.Uint32()
			case unix.NFTA_SET_KEY_TYPE:
				s.keyType = ad.Uint32()
			case unix.NFTA_SET_KEY_LEN:
				s.keyLen = ad.Uint32()
			case unix.NFTA_SET_TIMEOUT:
				s.timeout = ad.Uint64()
			case setExpression:
				name, _, _ := expression(ad.Bytes())
				s.counts = name == "counter"
			case unix.NFTA_SET_DESC:
				ad.Nested(func(ad *netlink.AttributeDecoder) error {
					for ad.Next() {
						if ad.Type() == unix.NFTA_SET_DESC_SIZE {
							s.size = ad.Uint32()
						}
					}
					return nil
				})
			}
		})
		if err != nil {
			return nil, fmt.Errorf("read a set: %w", err)
		}
		out[name] = s
	}
	return out, nil
}

// mine reports whether a set is as we would make it. The kernel refuses to add
// a set again that differs in any of this.
func mine(want *nftables.Set, have setState) bool {
	state := setState{keyType: want.KeyType.GetNFTMagic(), keyLen: want.KeyType.Bytes, flags: unix.NFT_SET_TIMEOUT,
		size: want.Size, timeout: uint64(want.Timeout.Milliseconds()), counts: want.Counter}
	if want.Concatenation {
		state.flags |= nftables.NFT_SET_CONCAT
	}
	if want.Dynamic {
		state.flags |= unix.NFT_SET_EVAL
	}
	return have == state
}

// element is a set element as the kernel has it.
type element struct {
	key     []byte
	end     firewall.End // Until is Never where it has none
	packets uint64       // of its counter, if it has one
}

// elements reads the elements of one set and hands each to f. now is the boot
// clock before the kernel is asked.
func (t *transport) elements(set string, now firewall.BootTime, f func(element)) error {
	answers, err := t.dump(unix.NFT_MSG_GETSETELEM, unix.NFPROTO_INET, []netlink.Attribute{
		{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(set + "\x00")},
	})
	if err != nil {
		return fmt.Errorf("list elements of %s: %w", set, err)
	}
	for _, data := range answers {
		err := attributes(data, func(ad *netlink.AttributeDecoder) {
			if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				return
			}
			ad.Nested(func(list *netlink.AttributeDecoder) error {
				for list.Next() {
					list.Nested(func(ad *netlink.AttributeDecoder) error {
						f(parseElement(ad, now))
						return nil
					})
				}
				return nil
			})
		})
		if err != nil {
			return fmt.Errorf("read elements of %s: %w", set, err)
		}
	}
	return nil
}

func parseElement(ad *netlink.AttributeDecoder, now firewall.BootTime) element {
	e := element{end: firewall.End{Until: firewall.Never}}
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_DATA_VALUE {
						e.key = ad.Bytes()
					}
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_EXPIRATION:
			e.end.Until = now.Add(time.Duration(ad.Uint64()) * time.Millisecond)
		case unix.NFTA_SET_ELEM_USERDATA:
			e.end.Label, _ = userdata.GetString(ad.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		case unix.NFTA_SET_ELEM_EXPR:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.NFTA_EXPR_DATA {
						e.packets = counterPackets(ad)
					}
				}
				return nil
			})
		}
	}
	return e
}

// counterPackets reads the packets of a nested counter.
func counterPackets(ad *netlink.AttributeDecoder) (packets uint64) {
	ad.Nested(func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			if ad.Type() == unix.NFTA_COUNTER_PACKETS {
				packets = ad.Uint64()
			}
		}
		return nil
	})
	return packets
}

// openings reads the doors of one set, when they close, and what those that
// count have let in.
func (t *transport) openings(id setID, into map[firewall.Door]firewall.End, passed map[firewall.Door]uint64, now firewall.BootTime) error {
	return t.elements(id.String(), now, func(e element) {
		if door, ok := id.door(e.key); ok {
			into[door] = e.end
			if e.packets > 0 {
				passed[door] = e.packets
			}
		}
	})
}

// trial reads when the guard on trial stops dropping. Where it has stopped, or
// drops one family only, that is now: no trial anybody asks for.
func (t *transport) trial(now firewall.BootTime) (until firewall.BootTime, err error) {
	families := 0
	err = t.elements(armedSet, now, func(e element) {
		if families++; families == 1 || e.end.Until < until {
			until = e.end.Until
		}
	})
	if families < len(armedElements(0)) {
		until = now
	}
	return until, err
}

// denials reads who was denied from one set.
func (t *transport) denials(id setID, d *firewall.Denied, now firewall.BootTime) error {
	return t.elements(id.String(), now, func(e element) {
		if door, ok := id.door(e.key); ok {
			d.By = append(d.By, firewall.Denial{Door: door, Packets: e.packets, Last: e.end.Until.Add(-deniedFor)})
		}
	})
}

// ruleState is a rule as the kernel has it or as we would send it.
type ruleState struct {
	chain       string
	userdata    []byte
	expressions []byte
}

func parseRule(data []byte) (r ruleState, err error) {
	err = attributes(data, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_RULE_CHAIN:
			r.chain = ad.String()
		case unix.NFTA_RULE_USERDATA:
			r.userdata = ad.Bytes()
		case unix.NFTA_RULE_EXPRESSIONS:
			r.expressions = ad.Bytes()
		}
	})
	return r, err
}

// rules reads the rules by their chains, and the digest of all of them.
func (t *transport) rules() (out map[string][]ruleState, digest [sha256.Size]byte, err error) {
	answers, err := t.dump(unix.NFT_MSG_GETRULE, unix.NFPROTO_INET, inTable)
	if err != nil {
		return nil, digest, fmt.Errorf("list rules: %w", err)
	}
	out = map[string][]ruleState{}
	sum := sha256.New()
	for _, data := range answers {
		sum.Write(binary.NativeEndian.AppendUint32(nil, uint32(len(data))))
		sum.Write(data)
		r, err := parseRule(data)
		if err != nil {
			return nil, digest, fmt.Errorf("read a rule: %w", err)
		}
		out[r.chain] = append(out[r.chain], r)
	}
	return out, [sha256.Size]byte(sum.Sum(nil)), nil
}

// portsOf reads the guarded ports, in Union's order, from the comments of the
// rules for each. They are claims until the rules were compared with what the
// ports ask for.
func portsOf(have map[string][]ruleState) ([]firewall.Port, bool) {
	var ports []firewall.Port
	for _, r := range slices.Concat(have[prerouting.tcp.Name], have[prerouting.udp.Name]) {
		comment, _ := userdata.GetString(r.userdata, userdata.TypeComment)
		p, err := firewall.ParsePort(comment)
		if err != nil {
			return nil, false
		}
		ports = append(ports, p)
	}
	return firewall.Union(ports, nil), true
}

// drop is when the guard drops what it denies.
type drop int

const (
	dropNever drop = iota
	dropOnTrial
	dropAlways
)

// dropOf reads it from the last rule of the deny chain: as with the ports, a
// claim.
func dropOf(deny []ruleState) drop {
	if len(deny) == 0 {
		return dropNever
	}
	names := expressionNames(deny[len(deny)-1].expressions)
	switch {
	case !slices.Contains(names, "immediate"): // no verdict
		return dropNever
	case slices.Contains(names, "lookup"):
		return dropOnTrial
	}
	return dropAlways
}

func expressionNames(expressions []byte) (names []string) {
	list, err := split(expressions)
	if err != nil {
		return nil
	}
	for _, e := range list {
		if name, _, ok := expression(e.data); ok {
			names = append(names, name)
		}
	}
	return names
}

// rulesIntact holds the kernel's rules against those the ruleset asks for.
func (e *encoder) rulesIntact(have map[string][]ruleState, r firewall.Ruleset, ids []setID) (bool, error) {
	sets := e.setsOf(ids)
	byChain := rules(r, sets, e.own)
	for _, c := range chains {
		list := byChain[c]
		if len(have[c.Name]) != len(list) {
			return false, nil
		}
		for _, rule := range list {
			e.conn.AddRule(rule)
		}
		messages, err := e.take()
		if err != nil {
			return false, err
		}
		for i, m := range messages {
			want, err := parseRule(m.Data[genericLen:])
			if err != nil {
				return false, err
			}
			got := have[c.Name][i]
			if !bytes.Equal(want.userdata, got.userdata) || !sameExpressions(want.expressions, got.expressions) {
				return false, nil
			}
		}
	}
	return true, nil
}

// sameExpressions compares a list of expressions as sent with one as dumped.
// The kernel reports every attribute it was sent, in an order of its own, and
// adds others it holds at zero.
func sameExpressions(sent, got []byte) bool {
	s, err := split(sent)
	if err != nil {
		return false
	}
	g, err := split(got)
	if err != nil || len(s) != len(g) {
		return false
	}
	for i := range s {
		name, body, ok := expression(s[i].data)
		gotName, gotBody, gotOK := expression(g[i].data)
		if !ok || !gotOK || name != gotName {
			return false
		}
		switch name {
		case "lookup":
			body = withoutSetID(body, unix.NFTA_LOOKUP_SET_ID)
		case "dynset":
			body = withoutSetID(body, unix.NFTA_DYNSET_SET_ID)
			for i := range body {
				// The library nests the counter without saying so.
				body[i].nested = body[i].nested || body[i].kind == unix.NFTA_DYNSET_EXPR
			}
		}
		if !covers(body, gotBody) {
			return false
		}
	}
	return true
}

// withoutSetID drops the number that stands for a set that is new in the same
// batch. The kernel does not report it.
func withoutSetID(body []attribute, kind uint16) []attribute {
	return slices.DeleteFunc(body, func(a attribute) bool { return a.kind == kind })
}

func expression(data []byte) (name string, body []attribute, ok bool) {
	parts, err := split(data)
	if err != nil {
		return "", nil, false
	}
	for _, a := range parts {
		switch a.kind {
		case unix.NFTA_EXPR_NAME:
			name = string(bytes.TrimRight(a.data, "\x00"))
		case unix.NFTA_EXPR_DATA:
			if body, err = split(a.data); err != nil {
				return "", nil, false
			}
		}
	}
	return name, body, name != ""
}

// covers reports whether got holds every attribute of sent, and beyond these
// only zeros.
func covers(sent, got []attribute) bool {
	rest := slices.Clone(got)
	for _, s := range sent {
		i := slices.IndexFunc(rest, func(g attribute) bool { return g.kind == s.kind })
		if i < 0 {
			if !zero(s.data) {
				return false
			}
			continue
		}
		g := rest[i]
		rest = slices.Delete(rest, i, i+1)
		if s.nested {
			inner, err := split(s.data)
			if err != nil {
				return false
			}
			gotInner, err := split(g.data)
			if err != nil || !covers(inner, gotInner) {
				return false
			}
			continue
		}
		// Names may come back with the final NUL they were sent without.
		if tail, ok := bytes.CutPrefix(g.data, s.data); !ok || len(tail) > 1 || !zero(tail) {
			return false
		}
	}
	return !slices.ContainsFunc(rest, func(g attribute) bool { return !zero(g.data) })
}

func zero(b []byte) bool {
	return len(bytes.Trim(b, "\x00")) == 0
}

// attribute is a netlink attribute with its flags taken off its type. Those
// we send say whether they nest others; those the kernel sends may not.
type attribute struct {
	kind   uint16
	nested bool
	data   []byte
}

func split(data []byte) ([]attribute, error) {
	list, err := netlink.UnmarshalAttributes(data)
	out := make([]attribute, len(list))
	for i, a := range list {
		out[i] = attribute{kind: a.Type & ^uint16(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), nested: a.Type&unix.NLA_F_NESTED != 0, data: a.Data}
	}
	return out, err
}

// attributes calls f for every attribute of data.
func attributes(data []byte, f func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(data)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		f(ad)
	}
	return ad.Err()
}

// deniedPackets reads the counter of dropped packets.
func (t *transport) deniedPackets() (packets uint64, err error) {
	answers, err := t.dump(unix.NFT_MSG_GETOBJ, unix.NFPROTO_INET, inTable)
	if err != nil {
		return 0, fmt.Errorf("list counters: %w", err)
	}
	for _, data := range answers {
		var name string
		var count uint64
		err := attributes(data, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_OBJ_NAME:
				name = ad.String()
			case unix.NFTA_OBJ_DATA:
				count = counterPackets(ad)
			}
		})
		if err != nil {
			return 0, fmt.Errorf("read a counter: %w", err)
		}
		if name == deniedCounter {
			return count, nil
		}
	}
	return 0, nil
}
