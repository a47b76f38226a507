package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// errCannotReset says that the kernel lacks what tells the ends of a session.
// The guard drops its packets all the same.
var errCannotReset = errors.New("this kernel cannot end sessions at once, only drop their packets")

// cutter ends sessions the guard does not let through any more: both ends of
// a session of this host are told with a reset, one that is passed on to a
// container is forgotten. Its sockets are opened when first needed. The zero
// cutter is ready.
type cutter struct {
	sockets   *transport // NETLINK_SOCK_DIAG
	conntrack *transport // NETLINK_NETFILTER
	// That the kernel cannot has been said.
	saidReset, saidConntrack bool
}

func (c *cutter) close() (err error) {
	for _, t := range []*transport{c.sockets, c.conntrack} {
		if t != nil {
			err = errors.Join(err, t.close())
		}
	}
	return err
}

// cut ends every session that e says is over, and returns how many sockets
// were destroyed and how many connections that pass through were forgotten.
// An error does not stop it from doing the rest.
func (c *cutter) cut(e ended) (sockets, flows int, err error) {
	own, err := ownAddresses()
	if err != nil {
		return 0, 0, err
	}
	j := &judge{over: e.over, own: own, seen: map[session]bool{}, listening: map[service]bool{}}
	flows, err = c.forget(e, j)
	sockets, destroyErr := c.destroy(e, j)
	return sockets, flows, errors.Join(err, destroyErr)
}

// forget shows conntrack's entries to j and deletes those of sessions that
// only pass through this host. Their next packet is looked up like that of a
// new connection, and what a flowtable (Linux 4.16) passes on beside the
// guard comes back before it.
func (c *cutter) forget(e ended, j *judge) (flows int, err error) {
	if c.conntrack == nil {
		if c.conntrack, err = dial(unix.NETLINK_NETFILTER); err != nil {
			return 0, fmt.Errorf("open netlink: %w", err)
		}
	}
	var requests [][]byte
	for _, family := range e.families() {
		err := c.conntrack.read(conntrackType(msgGet), generic(family, 0), func(data []byte) error {
			f, ok, err := readFlow(data)
			if err != nil {
				return fmt.Errorf("read a connection: %w", err)
			}
			if ok && j.flow(f.flow) {
				requests = append(requests, append(generic(family, 0), f.identity...))
			}
			return nil
		})
		if lacks(err) {
			return 0, once(&c.saidConntrack, fmt.Errorf("%w: no conntrack over netlink, try modprobe nf_conntrack_netlink: %w", errCannotReset, err))
		}
		if err != nil {
			return 0, fmt.Errorf("list connections: %w", err)
		}
	}
	if flows, err = c.conntrack.each(conntrackType(msgDelete), requests); err != nil {
		err = fmt.Errorf("delete connections: %w", err)
	}
	return flows, err
}

// destroy has the kernel reset the sockets j condemns.
func (c *cutter) destroy(e ended, j *judge) (sockets int, err error) {
	cannot := func(err error) error {
		return once(&c.saidReset, fmt.Errorf("%w: it lacks INET_DIAG_DESTROY, or try modprobe tcp_diag udp_diag: %w", errCannotReset, err))
	}
	if c.sockets == nil {
		c.sockets, err = dial(unix.NETLINK_SOCK_DIAG)
		if lacks(err) {
			return 0, cannot(err)
		}
		if err != nil {
			return 0, fmt.Errorf("open netlink: %w", err)
		}
	}
	var suspects []socket
	for _, protocol := range e.protocols() {
		for _, family := range socketFamilies(e.families()) {
			err := c.sockets.read(unix.SOCK_DIAG_BY_FAMILY, socketRequest(family, protocol, [idLen]byte{}), func(data []byte) error {
				s, err := readSocket(data, protocol)
				if err == nil && j.suspects(s) {
					suspects = append(suspects, s)
				}
				return err
			})
			if errors.Is(err, unix.ENOENT) || lacks(err) {
				return 0, cannot(err)
			}
			if err != nil {
				return 0, fmt.Errorf("list %s sockets: %w", protocol, err)
			}
		}
	}
	var requests [][]byte
	for _, s := range suspects {
		if j.condemns(s) {
			requests = append(requests, socketRequest(s.family, s.protocol, s.id))
		}
	}
	sockets, err = c.sockets.each(unix.SOCK_DESTROY, requests)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP) && sockets > 0:
		return sockets, nil // the kernel can; that one was closed meanwhile
	case errors.Is(err, unix.EOPNOTSUPP):
		return 0, cannot(err)
	case err != nil:
		return sockets, fmt.Errorf("destroy sockets: %w", err)
	}
	return sockets, nil
}

// socketFamilies are those of sockets that peers of families have: a socket
// for both takes IPv4 peers under mapped addresses.
func socketFamilies(families []byte) []byte {
	if slices.Contains(families, unix.AF_INET6) {
		return families
	}
	return append(families, unix.AF_INET6)
}

// once returns err the first time.
func once(said *bool, err error) error {
	if *said {
		return nil
	}
	*said = true
	return err
}

// lacks reports whether err is netlink's for a subsystem it has not.
func lacks(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// ownAddresses are those of this network namespace.
func ownAddresses() (map[netip.Addr]bool, error) {
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list own addresses: %w", err)
	}
	own := map[netip.Addr]bool{}
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				own[ip.Unmap()] = true
			}
		}
	}
	return own, nil
}

// session is a connection as its socket on this host sees it.
type session struct {
	protocol      firewall.Protocol
	local, remote netip.AddrPort
}

// service is what somebody listens on.
type service struct {
	protocol firewall.Protocol
	port     uint16
}

// judge decides what is cut: what came from outside to a port of this host
// through a door that is over. That is what the guard drops, and no more: the
// host's own connections, those to itself and those it only routes go on.
// Show it every flow first, then every socket, then ask about the suspects.
type judge struct {
	over func(source netip.Addr, protocol firewall.Protocol, port uint16) bool
	own  map[netip.Addr]bool
	// seen is what conntrack knows of a session: whether it is to be cut.
	seen      map[session]bool
	listening map[service]bool
}

func (j *judge) isOwn(a netip.Addr) bool { return isOwn(j.own, a) }

func isOwn(own map[netip.Addr]bool, a netip.Addr) bool { return a.IsLoopback() || own[a] }

// flow takes note of a connection and reports whether conntrack is to forget
// it: whether it passes through this host to one behind it.
func (j *judge) flow(f flow) bool {
	ended := j.isOwn(f.to.Addr()) && !j.isOwn(f.from.Addr()) && j.over(f.from.Addr(), f.protocol, f.to.Port())
	// The socket of a connection from outside has the addresses the answers
	// have: a redirected port is guarded under the number the client used.
	in := session{f.protocol, f.answersFrom, f.answersTo}
	if ended || j.over(in.remote.Addr(), f.protocol, in.local.Port()) {
		j.seen[in] = ended
	}
	// The socket of one this host began has those of the question.
	out := session{f.protocol, f.from, f.to}
	if j.over(out.remote.Addr(), f.protocol, out.local.Port()) {
		j.seen[out] = false
	}
	return ended && !j.isOwn(f.answersFrom.Addr())
}

// suspects takes note of a socket and reports whether to ask about it once
// all are known.
func (j *judge) suspects(s socket) bool {
	if !s.connected {
		j.listening[service{s.protocol, s.local.Port()}] = true
		return false
	}
	// Nobody holds what remains of a closed socket, and older kernels refuse
	// to destroy it.
	if s.remnant || !j.isOwn(s.local.Addr()) || j.isOwn(s.remote.Addr()) {
		return false
	}
	_, seen := j.seen[s.session]
	return seen || j.over(s.remote.Addr(), s.protocol, s.local.Port())
}

// condemns reports whether a suspect is to be destroyed. Conntrack knows who
// began; where it does not know the session, it came from outside if somebody
// listens on its port.
func (j *judge) condemns(s socket) bool {
	if cut, seen := j.seen[s.session]; seen {
		return cut
	}
	return j.listening[service{s.protocol, s.local.Port()}]
}

// socket is a socket as the kernel lists it.
type socket struct {
	session
	connected bool
	remnant   bool // in TIME_WAIT, or FIN_WAIT2 without its socket
	family    byte
	id        [idLen]byte // struct inet_diag_sockid, with the cookie that tells it from a later one
}

// Missing in x/sys/unix: linux/inet_diag.h, net/tcp_states.h.
const (
	idLen            = 48 // struct inet_diag_sockid
	socketRequestLen = 8 + idLen
	socketAnswerLen  = 4 + idLen + 20
	stateSynSent     = 2
	stateTimeWait    = 6
	stateListen      = 10
	timerTimeWait    = 3
)

// socketRequest is struct inet_diag_req_v2, for all sockets or for one. Left
// out are SYN_SENT, which only a client has, and TIME_WAIT, which nobody
// holds any more.
func socketRequest(family byte, protocol firewall.Protocol, id [idLen]byte) []byte {
	b := make([]byte, 0, socketRequestLen)
	b = append(b, family, byte(protocol), 0, 0)
	b = binary.NativeEndian.AppendUint32(b, ^uint32(1<<stateSynSent|1<<stateTimeWait))
	return append(b, id[:]...)
}

// readSocket reads struct inet_diag_msg.
func readSocket(data []byte, protocol firewall.Protocol) (s socket, err error) {
	if len(data) < socketAnswerLen {
		return s, fmt.Errorf("a socket of %d bytes", len(data))
	}
	s.family, s.protocol = data[0], protocol
	s.remnant = data[2] == timerTimeWait
	copy(s.id[:], data[4:])
	end := func(port, address []byte) netip.AddrPort {
		a := netip.AddrFrom16([16]byte(address))
		if s.family == unix.AF_INET {
			a = netip.AddrFrom4([4]byte(address))
		}
		return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(port))
	}
	s.local, s.remote = end(s.id[0:], s.id[4:20]), end(s.id[2:], s.id[20:36])
	s.connected = data[1] != stateListen && s.remote.Port() != 0 && !s.remote.Addr().IsUnspecified()
	return s, nil
}

// flow is a connection conntrack knows.
type flow struct {
	protocol               firewall.Protocol
	from, to               netip.AddrPort // as the first packet had them
	answersFrom, answersTo netip.AddrPort // other than those reversed where addresses are rewritten
	identity               []byte         // the attributes that name it
}

// entry is a flow with what conntrack says of it.
type entry struct {
	flow
	number   uint32
	status   uint32 // IPS_… bits
	tcpState byte   // TCP_CONNTRACK_…; 0: not said
	in, out  firewall.Count
}

// Missing in x/sys/unix: linux/netfilter/nfnetlink_conntrack.h.
const (
	msgGet, msgDelete = 1, 2 // IPCTNL_MSG_CT_…

	ctTupleOrig, ctTupleReply, ctID, ctZone       = 1, 2, 12, 18 // CTA_…
	ctStatus, ctProtoInfo, ctCountIn, ctCountOut  = 3, 4, 9, 10
	countPackets, countBytes                      = 1, 2       // CTA_COUNTERS_…
	protoInfoTCP, tcpState                        = 1, 1       // CTA_PROTOINFO_…
	tupleIP, tupleProto                           = 1, 2       // CTA_TUPLE_…
	ipV4Src, ipV4Dst, ipV6Src, ipV6Dst            = 1, 2, 3, 4 // CTA_IP_…
	protoNumber, protoSourcePort, protoTargetPort = 1, 2, 3    // CTA_PROTO_…
)

func conntrackType(t uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | t)
}

// readFlow reads a connection; not ok if it has no ports.
func readFlow(data []byte) (f entry, ok bool, err error) {
	if len(data) < genericLen {
		return f, false, fmt.Errorf("an answer of %d bytes", len(data))
	}
	var identity []netlink.Attribute
	err = attributes(data[genericLen:], func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case ctTupleOrig:
			identity = append(identity, netlink.Attribute{Type: ctTupleOrig | unix.NLA_F_NESTED, Data: ad.Bytes()})
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				f.protocol, f.from, f.to = readTuple(ad)
				return nil
			})
		case ctTupleReply:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				_, f.answersFrom, f.answersTo = readTuple(ad)
				return nil
			})
		case ctID:
			f.number = ad.Uint32()
			identity = append(identity, netlink.Attribute{Type: ad.Type(), Data: ad.Bytes()})
		case ctZone:
			identity = append(identity, netlink.Attribute{Type: ad.Type(), Data: ad.Bytes()})
		case ctStatus:
			f.status = ad.Uint32()
		case ctProtoInfo:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == protoInfoTCP {
						ad.Nested(f.readTCP)
					}
				}
				return nil
			})
		case ctCountIn:
			ad.Nested(countInto(&f.in))
		case ctCountOut:
			ad.Nested(countInto(&f.out))
		}
	})
	if err != nil {
		return f, false, err
	}
	for _, end := range []netip.AddrPort{f.from, f.to, f.answersFrom, f.answersTo} {
		if !end.IsValid() || end.Port() == 0 {
			return f, false, nil
		}
	}
	f.identity, err = netlink.MarshalAttributes(identity)
	return f, err == nil, err
}

func (e *entry) readTCP(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		if ad.Type() == tcpState {
			e.tcpState = ad.Uint8()
		}
	}
	return nil
}

func countInto(c *firewall.Count) func(*netlink.AttributeDecoder) error {
	return func(ad *netlink.AttributeDecoder) error {
		for ad.Next() {
			switch ad.Type() {
			case countPackets:
				c.Packets = ad.Uint64()
			case countBytes:
				c.Bytes = ad.Uint64()
			}
		}
		return nil
	}
}

func readTuple(ad *netlink.AttributeDecoder) (protocol firewall.Protocol, from, to netip.AddrPort) {
	var source, target netip.Addr
	var sourcePort, targetPort uint16
	for ad.Next() {
		switch ad.Type() {
		case tupleIP:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case ipV4Src, ipV6Src:
						source, _ = netip.AddrFromSlice(ad.Bytes())
					case ipV4Dst, ipV6Dst:
						target, _ = netip.AddrFromSlice(ad.Bytes())
					}
				}
				return nil
			})
		case tupleProto:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					switch ad.Type() {
					case protoNumber:
						protocol = firewall.Protocol(ad.Uint8())
					case protoSourcePort:
						sourcePort = ad.Uint16()
					case protoTargetPort:
						targetPort = ad.Uint16()
					}
				}
				return nil
			})
		}
	}
	return protocol, netip.AddrPortFrom(source, sourcePort), netip.AddrPortFrom(target, targetPort)
}
