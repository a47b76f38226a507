package nft

import (
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Flags of a table, include/uapi/linux/netfilter/nf_tables.h.
const (
	flagDormant = 1
	flagOwner   = 2 // others cannot change it while its owner's socket is open (5.12)
	flagPersist = 4 // it outlives its owner (6.9)
)

// maxElements is how many elements go in one message: the list is one
// attribute, whose length has 16 bits, and what does not fit is lost without
// an error.
const maxElements = 400

// encoder makes netlink messages with google/nftables: a connection whose
// other end only collects what is sent.
type encoder struct {
	conn     *nftables.Conn
	messages []netlink.Message
	sets     map[setID]*nftables.Set
	own      portRange // net.ipv4.ip_local_port_range as last read
}

func newEncoder() (*encoder, error) {
	e := &encoder{sets: map[setID]*nftables.Set{}}
	success := []netlink.Message{{Header: netlink.Header{Type: netlink.Error}, Data: make([]byte, 4)}}
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithTestDial(func(sent []netlink.Message) ([]netlink.Message, error) {
		for _, m := range sent {
			if m.Header.Type>>8 == unix.NFNL_SUBSYS_NFTABLES {
				e.messages = append(e.messages, m)
			}
		}
		return success, nil
	}))
	if err != nil {
		return nil, fmt.Errorf("nftables encoder: %w", err)
	}
	e.conn = conn
	return e, nil
}

// take returns the messages queued since the last call.
func (e *encoder) take() ([]netlink.Message, error) {
	if err := e.conn.Flush(); err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	messages := e.messages
	e.messages = nil
	return messages, nil
}

// set returns the library's description of a set, the same one every time, so
// that rules and elements refer to it by one id.
func (e *encoder) set(id setID) *nftables.Set {
	if s, ok := e.sets[id]; ok {
		return s
	}
	s := id.set()
	// The library counts in a variable all its users share, goroutines and all.
	s.ID = armedSetID + 1 + uint32(len(e.sets))
	e.sets[id] = s
	return s
}

// writeRules queues everything of the guard but its openings. What is there
// already stays: chains and sets by name, openings untouched; rules are
// replaced within the batch, and so is the time a trial has left, seen from
// now.
func (e *encoder) writeRules(r firewall.Ruleset, ids []setID, now firewall.BootTime) error {
	// A timeout under a millisecond would be for ever.
	if r.Trial != 0 && r.Trial.Sub(now) < time.Millisecond {
		r.Observe, r.Trial = true, 0
	}
	sets := e.setsOf(ids)
	e.conn.AddObj(&nftables.CounterObj{Table: table, Name: deniedCounter})
	for _, s := range sets {
		if err := e.conn.AddSet(s, nil); err != nil {
			return fmt.Errorf("set %s: %w", s.Name, err)
		}
	}
	armed := newArmedSet()
	if err := e.conn.AddSet(armed, nil); err != nil {
		return fmt.Errorf("set %s: %w", armedSet, err)
	}
	e.conn.FlushSet(armed)
	if r.Trial != 0 {
		if err := e.conn.SetAddElements(armed, armedElements(r.Trial.Sub(now))); err != nil {
			return fmt.Errorf("set %s: %w", armedSet, err)
		}
	}
	byChain := rules(r, sets, e.own)
	for _, c := range chains {
		e.conn.AddChain(c)
	}
	for _, c := range chains {
		e.conn.FlushChain(c)
		for _, rule := range byChain[c] {
			e.conn.AddRule(rule)
		}
	}
	return nil
}

func (e *encoder) setsOf(ids []setID) map[setID]*nftables.Set {
	sets := make(map[setID]*nftables.Set, len(ids))
	for _, id := range ids {
		sets[id] = e.set(id)
	}
	return sets
}

// writeElements queues the plan's openings and closings, seen from now.
//
// An element's timeout cannot be changed in place before 6.12 (adding it
// again is ignored), and deleting one that has just expired fails the whole
// batch. So a deletion always adds first and a change adds, deletes and adds:
// inside a batch nothing of that shows.
func (e *encoder) writeElements(p firewall.Plan, s sessions, now firewall.BootTime) error {
	fresh, gone := map[setID][]nftables.SetElement{}, map[setID][]nftables.SetElement{}
	for _, c := range p.Close {
		id := setOf(c.Door)
		gone[id] = append(gone[id], nftables.SetElement{Key: id.key(c.Door), Timeout: time.Second})
	}
	for d, end := range s.cut {
		id := setOf(d).revoked()
		fresh[id] = append(fresh[id], nftables.SetElement{Key: id.key(d), Timeout: end.Until.Sub(now)})
	}
	for _, d := range s.free {
		id := setOf(d).revoked()
		gone[id] = append(gone[id], nftables.SetElement{Key: id.key(d), Timeout: time.Second})
	}
	for _, c := range p.Open {
		left := c.Until.Sub(now)
		id := setOf(c.Door)
		element := nftables.SetElement{Key: id.key(c.Door), Timeout: left, Comment: c.Label}
		// The kernel stores a timeout of zero as "for ever", and so does a
		// timeout under a millisecond become.
		ended := left < time.Millisecond
		if c.Was != 0 || ended {
			gone[id] = append(gone[id], nftables.SetElement{Key: element.Key, Timeout: time.Second})
		}
		if !ended {
			fresh[id] = append(fresh[id], element)
		}
	}
	for id, elements := range gone {
		if err := e.elements(id, elements, e.conn.SetAddElements); err != nil {
			return err
		}
		if err := e.elements(id, elements, e.conn.SetDeleteElements); err != nil {
			return err
		}
	}
	for id, elements := range fresh {
		if err := e.elements(id, elements, e.conn.SetAddElements); err != nil {
			return err
		}
	}
	return nil
}

func (e *encoder) elements(id setID, elements []nftables.SetElement, queue func(*nftables.Set, []nftables.SetElement) error) error {
	set := e.set(id)
	for len(elements) > 0 {
		n := min(len(elements), maxElements)
		if err := queue(set, elements[:n]); err != nil {
			return fmt.Errorf("elements of set %s: %w", id, err)
		}
		elements = elements[n:]
	}
	return nil
}

// newTable makes the table or, where it is an orphan, takes it over. The
// library has no way to set a table's flags.
func newTable(flags uint32) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(TableName + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binaryutil.BigEndian.PutUint32(flags)},
	})
	return netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_NEWTABLE), Flags: netlink.Request | netlink.Create},
		Data:   append(generic(unix.NFPROTO_INET, 0), data...),
	}, err
}

func deleteTable(name string) (netlink.Message, error) {
	data, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(name + "\x00")},
	})
	return netlink.Message{
		Header: netlink.Header{Type: messageType(unix.NFT_MSG_DELTABLE), Flags: netlink.Request},
		Data:   append(generic(unix.NFPROTO_INET, 0), data...),
	}, err
}
