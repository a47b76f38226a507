//go:build linux

package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
)

const (
	here, there = "192.0.2.1", "10.0.0.7"
)

func end(address string, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(address), port)
}

// plainFlow is a connection whose addresses nobody rewrites.
func plainFlow(from, to netip.AddrPort) flow {
	return flow{protocol: firewall.TCP, from: from, to: to, answersFrom: to, answersTo: from}
}

// What is destroyed and what is forgotten, for one socket with what conntrack
// and the other sockets say about it. Port 22 is over for all of 10.0.0.0/8.
func TestJudge(t *testing.T) {
	client, port := end(there, 50000), end(here, 22)
	connected := func(local, remote netip.AddrPort) socket {
		return socket{session: session{firewall.TCP, local, remote}, connected: true}
	}
	listener := socket{session: session{firewall.TCP, end("0.0.0.0", 22), end("0.0.0.0", 0)}}
	published := flow{firewall.TCP, client, port, end("172.30.0.2", 2222), client, nil}
	redirected := flow{firewall.TCP, client, port, end(here, 8022), client, nil}
	remnant := connected(port, client)
	remnant.remnant = true
	for name, c := range map[string]struct {
		flow           flow
		sockets        []socket // the last is asked about
		cut, forgotten bool
	}{
		"began outside":                        {plainFlow(client, port), []socket{connected(port, client)}, true, false},
		"began here":                           {plainFlow(port, client), []socket{listener, connected(port, client)}, false, false},
		"no entry, a listener":                 {flow{}, []socket{listener, connected(port, client)}, true, false},
		"no entry, a listener found later":     {flow{}, []socket{connected(port, client), listener, connected(port, client)}, true, false},
		"no entry, no listener":                {flow{}, []socket{connected(port, client)}, false, false},
		"no entry, a listener elsewhere":       {flow{}, []socket{{session: session{firewall.TCP, end("0.0.0.0", 23), netip.AddrPort{}}}, connected(port, client)}, false, false},
		"the listener itself":                  {flow{}, []socket{listener}, false, false},
		"another source":                       {plainFlow(end("11.0.0.1", 50000), port), []socket{listener, connected(port, end("11.0.0.1", 50000))}, false, false},
		"another port":                         {plainFlow(client, end(here, 23)), []socket{listener, connected(end(here, 23), client)}, false, false},
		"the client's port is the door's":      {plainFlow(end(here, 50000), end(there, 22)), []socket{listener, connected(end(here, 50000), end(there, 22))}, false, false},
		"this host to itself":                  {plainFlow(end("10.9.9.9", 50000), port), []socket{listener, connected(port, end("10.9.9.9", 50000))}, false, false},
		"loopback":                             {flow{}, []socket{listener, connected(port, end("127.0.0.2", 50000))}, false, false},
		"somebody else's address (TPROXY)":     {plainFlow(client, end("203.0.113.5", 22)), []socket{listener, connected(end("203.0.113.5", 22), client)}, false, false},
		"somebody else's address, no entry":    {flow{}, []socket{listener, connected(end("203.0.113.5", 22), client)}, false, false},
		"a remnant":                            {plainFlow(client, port), []socket{listener, remnant}, false, false},
		"published":                            {published, []socket{listener}, false, true},
		"published by a host to itself":        {flow{firewall.TCP, end("10.9.9.9", 50000), port, end("172.30.0.2", 2222), end("10.9.9.9", 50000), nil}, []socket{listener}, false, false},
		"routed":                               {plainFlow(client, end("203.0.113.5", 22)), []socket{listener}, false, false},
		"redirected":                           {redirected, []socket{connected(end(here, 8022), client)}, true, false},
		"redirected from a port that is open":  {flow{firewall.TCP, client, end(here, 8022), port, client, nil}, []socket{listener, connected(port, client)}, false, false},
		"this host's own, redirected on a way": {flow{firewall.TCP, port, client, end("203.0.113.5", 22), port, nil}, []socket{listener, connected(port, client)}, false, false},
	} {
		j := &judge{
			over: func(source netip.Addr, p firewall.Protocol, port uint16) bool {
				return netip.MustParsePrefix("10.0.0.0/8").Contains(source) && p == firewall.TCP && port == 22 ||
					netip.MustParsePrefix("127.0.0.0/8").Contains(source) && port == 22
			},
			own:       map[netip.Addr]bool{netip.MustParseAddr(here): true, netip.MustParseAddr("10.9.9.9"): true},
			seen:      map[session]bool{},
			listening: map[service]bool{},
		}
		if forgotten := c.flow.from.IsValid() && j.flow(c.flow); forgotten != c.forgotten {
			t.Errorf("%s: conntrack forgets it: %t", name, forgotten)
		}
		var suspect bool
		for _, s := range c.sockets {
			suspect = j.suspects(s)
		}
		if cut := suspect && j.condemns(c.sockets[len(c.sockets)-1]); cut != c.cut {
			t.Errorf("%s: destroyed: %t", name, cut)
		}
	}
}

// The sizes of struct inet_diag_req_v2, inet_diag_msg and inet_diag_sockid
// (linux/inet_diag.h).
func TestSocketStructures(t *testing.T) {
	if n := len(socketRequest(unix.AF_INET, firewall.TCP, [idLen]byte{})); n != 56 || socketAnswerLen != 72 || idLen != 48 {
		t.Errorf("a request of %d bytes, an answer of %d, an id of %d", n, socketAnswerLen, idLen)
	}
}

// answerOf is struct inet_diag_msg.
func answerOf(family, state byte, local, remote netip.AddrPort) []byte {
	b := make([]byte, socketAnswerLen)
	b[0], b[1] = family, state
	binary.BigEndian.PutUint16(b[4:], local.Port())
	binary.BigEndian.PutUint16(b[6:], remote.Port())
	copy(b[8:], local.Addr().AsSlice())
	copy(b[24:], remote.Addr().AsSlice())
	return b
}

func TestReadSocket(t *testing.T) {
	const established = 1
	mapped := func(a string, port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom16(netip.MustParseAddr(a).As16()), port)
	}
	for name, c := range map[string]struct {
		data          []byte
		local, remote netip.AddrPort
		connected     bool
	}{
		"IPv4":        {answerOf(unix.AF_INET, established, end(here, 22), end(there, 5)), end(here, 22), end(there, 5), true},
		"IPv6":        {answerOf(unix.AF_INET6, established, end("fd00::1", 22), end("fd00::2", 5)), end("fd00::1", 22), end("fd00::2", 5), true},
		"mapped":      {answerOf(unix.AF_INET6, established, mapped(here, 22), mapped(there, 5)), end(here, 22), end(there, 5), true},
		"listening":   {answerOf(unix.AF_INET, stateListen, end(here, 22), end("0.0.0.0", 0)), end(here, 22), end("0.0.0.0", 0), false},
		"unconnected": {answerOf(unix.AF_INET6, 7, end("::", 22), end("::", 0)), end("::", 22), end("::", 0), false},
		"no address":  {answerOf(unix.AF_INET6, 7, end("::", 22), end("::", 5)), end("::", 22), end("::", 5), false},
		"no port":     {answerOf(unix.AF_INET, 7, end(here, 22), end(there, 0)), end(here, 22), end(there, 0), false},
	} {
		s, err := readSocket(c.data, firewall.UDP)
		if err != nil || s.local != c.local || s.remote != c.remote || s.connected != c.connected || s.protocol != firewall.UDP {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	for n := range socketAnswerLen {
		if _, err := readSocket(make([]byte, n), firewall.TCP); err == nil {
			t.Errorf("an answer of %d bytes was read", n)
		}
	}
}

func nested(t testing.TB, typ uint16, parts ...netlink.Attribute) netlink.Attribute {
	t.Helper()
	data, err := netlink.MarshalAttributes(parts)
	if err != nil {
		t.Fatal(err)
	}
	return netlink.Attribute{Type: typ, Data: data}
}

func flowAnswer(t testing.TB) []byte {
	t.Helper()
	tuple := func(typ uint16, from, to string, fromPort, toPort uint16) netlink.Attribute {
		return nested(t, typ|unix.NLA_F_NESTED,
			nested(t, tupleIP|unix.NLA_F_NESTED, netlink.Attribute{Type: ipV4Src, Data: netip.MustParseAddr(from).AsSlice()}, netlink.Attribute{Type: ipV4Dst, Data: netip.MustParseAddr(to).AsSlice()}),
			nested(t, tupleProto|unix.NLA_F_NESTED, netlink.Attribute{Type: protoNumber, Data: []byte{6}},
				netlink.Attribute{Type: protoSourcePort, Data: port(fromPort)}, netlink.Attribute{Type: protoTargetPort, Data: port(toPort)}))
	}
	all := nested(t, 0,
		tuple(ctTupleOrig, there, here, 50000, 2222), tuple(ctTupleReply, "172.30.0.2", there, 22, 50000),
		netlink.Attribute{Type: 3, Data: []byte{0, 0, 0, 14}}, netlink.Attribute{Type: ctID, Data: []byte{1, 2, 3, 4}})
	return append(generic(unix.AF_INET, 0), all.Data...)
}

func TestReadFlow(t *testing.T) {
	whole := flowAnswer(t)
	f, ok, err := readFlow(whole)
	if err != nil || !ok || f.protocol != firewall.TCP || f.from != end(there, 50000) || f.to != end(here, 2222) ||
		f.answersFrom != end("172.30.0.2", 22) || f.answersTo != end(there, 50000) {
		t.Fatalf("%+v, %t, %v", f, ok, err)
	}
	// It is named by what came first and by its number, and by no more.
	named, _, err := readFlow(append(generic(unix.AF_INET, 0), f.identity...))
	if err != nil || named.from != f.from || named.to != f.to || named.answersFrom.IsValid() || len(f.identity) != 52+8 {
		t.Errorf("named by %d bytes: %+v, %v", len(f.identity), named, err)
	}
	for n := range whole {
		if f, ok, _ := readFlow(whole[:n]); ok && (f.from != end(there, 50000) || f.answersFrom != end("172.30.0.2", 22)) {
			t.Errorf("cut at %d: %+v", n, f)
		}
	}
}

// Whatever an answer holds, reading it does not panic, and what is read of it
// is whole.
func FuzzSocketAnswer(f *testing.F) {
	f.Add(answerOf(unix.AF_INET, 1, end(here, 22), end(there, 5)))
	f.Add(answerOf(unix.AF_INET6, stateListen, end("::", 22), end("::", 0)))
	f.Add(flowAnswer(f))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := readSocket(data, firewall.TCP); err == nil && s.connected && (!s.remote.IsValid() || s.remote.Port() == 0) {
			t.Errorf("connected to nobody: %+v", s)
		}
		if c, ok, err := readFlow(data); err == nil && ok {
			for _, e := range []netip.AddrPort{c.from, c.to, c.answersFrom, c.answersTo} {
				if !e.IsValid() || e.Port() == 0 {
					t.Errorf("a connection with half its ends: %+v", c)
				}
			}
		}
	})
}

// Ten thousand doors and as many sockets and flows are no reason to wait.
func TestManyDoorsManySockets(t *testing.T) {
	const n = 10_000
	now := firewall.BootTime(time.Hour)
	ports := []firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 22}}
	var closings []firewall.Closing
	open := index{doors: map[firewall.Door]firewall.End{}, now: now}
	address := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}) }
	for i := range n {
		d := firewall.Door{Source: netip.PrefixFrom(address(i), 8+i%25).Masked(), Protocol: firewall.TCP, Port: 22}
		closings = append(closings, firewall.Closing{Door: d, Was: now.Add(time.Minute)})
		d.Source = netip.PrefixFrom(address(2*i), 32)
		open.doors[d] = firewall.End{Until: now.Add(time.Minute)}
		open.addLength(setOf(d))
	}
	began := time.Now()
	e := endedBy(closings, ports, open, now)
	j := &judge{over: e.over, own: map[netip.Addr]bool{netip.MustParseAddr(here): true}, seen: map[session]bool{}, listening: map[service]bool{}}
	for i := range n {
		j.flow(plainFlow(netip.AddrPortFrom(address(i), 50000), end(here, 22)))
	}
	cut := 0
	for i := range n {
		s := socket{session: session{firewall.TCP, end(here, 22), netip.AddrPortFrom(address(i), 50000)}, connected: true}
		if j.suspects(s) && j.condemns(s) {
			cut++
		}
	}
	if took := time.Since(began); took > time.Second {
		t.Errorf("it took %v", took)
	}
	if cut != n/2 {
		t.Errorf("%d of %d were cut, want every other one", cut, n)
	}
}

// What a kernel lacks is said once.
func TestOnce(t *testing.T) {
	said, err := false, fmt.Errorf("no")
	if once(&said, err) != err || once(&said, err) != nil {
		t.Error("not said once")
	}
}

// A socket that is gone when its turn comes is no error; that the kernel
// cannot do what it is asked is, and the rest is done all the same.
func TestGoneIsNoError(t *testing.T) {
	fwtest.Isolate(t)
	s, err := dial(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	gone := socketRequest(unix.AF_INET, firewall.TCP, [idLen]byte{1: 22, 3: 5})
	if done, err := s.each(unix.SOCK_DESTROY, [][]byte{gone, gone}); done != 0 || err != nil {
		t.Errorf("%d done, %v", done, err)
	}
	if _, err := s.each(unix.SOCK_DESTROY, [][]byte{gone, {unix.AF_INET}, gone}); err == nil {
		t.Error("half a request was taken")
	}
}
