package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// Missing in x/sys/unix: linux/netfilter/nf_conntrack_common.h and
// nf_conntrack_tcp.h.
const (
	statusSeenReply, statusAssured = 1 << 1, 1 << 2 // IPS_…
	tcpCloseWait                   = 5              // TCP_CONNTRACK_CLOSE_WAIT
)

// isEstablished reports whether something came of the connection. Conntrack
// is assured of a TCP connection with the third packet of its handshake.
func (f entry) isEstablished() bool {
	if f.protocol == firewall.TCP {
		return f.status&statusAssured != 0
	}
	return f.status&statusSeenReply != 0
}

// isOpen reports whether the connection goes on. Of TCP that is what the
// state says; was is what it said before, where the kernel says nothing new.
func (f entry) isOpen(was bool) bool {
	switch {
	case f.protocol != firewall.TCP:
		return true
	case f.tcpState == 0:
		return was
	}
	return f.tcpState <= tcpCloseWait
}

// maxFlows bounds how many connections are known at once. Of more there is no
// count.
const maxFlows = 1 << 14

// tracker hears from conntrack of the connections to guarded ports.
type tracker struct {
	file  *os.File
	now   func() firewall.BootTime
	dump  *transport
	ports []firewall.Port // the kernel tells of connections to these
	// silent says that it tells of none: somebody switched that off.
	silent bool

	mu    sync.Mutex
	flows map[firewall.FlowID]*tracked
	lost  bool // since the last look: some may be missing
}

// tracked is a flow with what tells whether it is ours to speak of.
type tracked struct {
	flow    firewall.Flow
	raw     flow // as conntrack named it last
	changed bool // since it was last told
}

func newTracker(now func() firewall.BootTime) (*tracker, error) {
	dump, err := dial(unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		dump.close()
		return nil, os.NewSyscallError("socket", err)
	}
	groups := uint32(1<<(unix.NFNLGRP_CONNTRACK_NEW-1) | 1<<(unix.NFNLGRP_CONNTRACK_UPDATE-1) | 1<<(unix.NFNLGRP_CONNTRACK_DESTROY-1))
	// Nothing is queued before the filter stands.
	err = errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, monitorBuffer)),
		os.NewSyscallError("setsockopt", attach(fd, nil)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups})))
	if err != nil {
		dump.close()
		unix.Close(fd)
		return nil, err
	}
	t := &tracker{file: os.NewFile(uintptr(fd), "conntrack events"), now: now, dump: dump, flows: map[firewall.FlowID]*tracked{}}
	go t.run()
	return t, nil
}

func (t *tracker) close() error { return errors.Join(t.file.Close(), t.dump.close()) }

// listen has the kernel tell of connections to ports.
func (t *tracker) listen(ports []firewall.Port) error {
	raw, err := t.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = attach(int(fd), ports) }); err != nil || failed != nil {
		return errors.Join(err, os.NewSyscallError("setsockopt", failed))
	}
	t.ports, t.silent = ports, !eventsOn()
	return nil
}

// attach filters the socket's messages in the kernel: a host's other
// connections, however many, cost this process nothing.
func attach(fd int, ports []firewall.Port) error {
	program := flowFilter(ports)
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
}

// maxFilter is how many instructions a filter may have (BPF_MAXINSNS).
const maxFilter = 4096

// flowFilter passes messages about connections that came to one of ports, as
// their first packet had it or as their answers come from, where it was
// redirected. With too many ports it passes all.
func flowFilter(ports []firewall.Port) []unix.SockFilter {
	const (
		offset     = ^uint32(0x1000 - 1) // SKF_AD_OFF, −4096
		find       = offset + 12         // SKF_AD_NLATTR: the attribute X behind A
		findWithin = offset + 16         // SKF_AD_NLATTR_NEST: the attribute X in that at A
		first      = unix.NLMSG_HDRLEN + genericLen
		header     = 4 // of an attribute
	)
	statement := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	load := func(kind, at uint32) []unix.SockFilter {
		return []unix.SockFilter{statement(unix.BPF_LDX|unix.BPF_IMM, kind), statement(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, at)}
	}
	pass, drop := statement(unix.BPF_RET|unix.BPF_K, ^uint32(0)), statement(unix.BPF_RET|unix.BPF_K, 0)
	orElse := func(end unix.SockFilter) []unix.SockFilter {
		return []unix.SockFilter{{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1}, end}
	}
	var program []unix.SockFilter
	for _, of := range []struct{ tuple, port uint32 }{{ctTupleOrig, protoTargetPort}, {ctTupleReply, protoSourcePort}} {
		program = slices.Concat(program,
			[]unix.SockFilter{statement(unix.BPF_LD|unix.BPF_IMM, first)}, load(of.tuple, find), orElse(drop),
			load(tupleProto, findWithin), orElse(drop),
			load(of.port, findWithin), orElse(drop),
			[]unix.SockFilter{statement(unix.BPF_MISC|unix.BPF_TAX, 0), statement(unix.BPF_LD|unix.BPF_H|unix.BPF_IND, header)})
		for _, p := range numbers(ports) {
			program = append(program,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 2, K: uint32(p.First)},
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K, Jt: 1, K: uint32(p.Last)},
				pass)
		}
	}
	if program = append(program, drop); len(program) > maxFilter {
		return []unix.SockFilter{pass}
	}
	return program
}

func (t *tracker) run() {
	buffer := make([]byte, 64<<10)
	for {
		n, err := t.file.Read(buffer)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			t.mu.Lock()
			t.lost = true
			t.mu.Unlock()
			if !errors.Is(err, unix.ENOBUFS) {
				time.Sleep(again)
			}
			continue
		}
		t.mu.Lock()
		t.read(buffer[:n])
		t.mu.Unlock()
	}
}

// read takes note of what messages of conntrack say. What is not understood
// counts as lost.
func (t *tracker) read(b []byte) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length := int(binary.NativeEndian.Uint32(b))
		if length < unix.NLMSG_HDRLEN || length > len(b) {
			t.lost = true
			return
		}
		kind, flags := binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:])
		f, ok, err := readFlow(b[unix.NLMSG_HDRLEN:length])
		t.lost = t.lost || err != nil
		if ok {
			t.note(f, flags&unix.NLM_F_CREATE != 0, kind == uint16(conntrackType(msgDelete)), true)
		}
		b = b[min(len(b), (length+3)&^3):]
	}
}

// note takes note of a connection: that it began, or that it is gone.
func (t *tracker) note(f entry, begins, gone, changed bool) {
	id := firewall.FlowID{Protocol: f.protocol, From: f.from, To: f.to, Number: f.number}
	known, ok := t.flows[id]
	if !ok {
		if len(t.flows) >= maxFlows {
			t.lost = true
			return
		}
		known = &tracked{flow: firewall.Flow{FlowID: id, Open: true}}
		t.flows[id] = known
	}
	k := &known.flow
	if k.Gone && !begins {
		return // a look that was under way
	}
	f.identity = nil // it is not asked for again
	known.raw = f.flow
	known.changed = known.changed || changed
	if begins {
		k.Began = t.now()
	}
	k.Established = k.Established || f.isEstablished()
	k.Gone = gone
	k.Open = !gone && f.isOpen(k.Open)
	// An event of a connection that goes on says nothing of these.
	if f.in.Packets >= k.In.Packets {
		k.In, k.Out = f.in, f.out
	}
}

// take returns what changed, or all, and forgets what is gone and what is not
// to the host from outside.
func (t *tracker) take(all bool, own map[netip.Addr]bool) (out []firewall.Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, known := range t.flows {
		port, ours := known.raw.guardedPort(t.ports)
		if ours = ours && isOwn(own, id.To.Addr()) && !isOwn(own, id.From.Addr()); !ours || known.flow.Gone {
			delete(t.flows, id)
		}
		if ours && (all || known.changed) {
			known.flow.Port = port
			out = append(out, known.flow)
		}
		known.changed = false
	}
	return out
}

// guardedPort is the guarded port a connection came to.
func (f flow) guardedPort(ports []firewall.Port) (uint16, bool) {
	for _, port := range []uint16{f.to.Port(), f.answersFrom.Port()} {
		if _, ok := guarding(ports, f.protocol, port); ok {
			return port, true
		}
	}
	return 0, false
}

// look reads conntrack's whole table. A connection that is known and not there
// is gone; its event may be under way, unless some were lost.
func (t *tracker) look() error {
	t.silent = !eventsOn()
	seen := map[firewall.FlowID]bool{}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		err := t.dump.read(conntrackType(msgGet), generic(family, 0), func(data []byte) error {
			f, ok, err := readFlow(data)
			if err != nil {
				return fmt.Errorf("read a connection: %w", err)
			}
			if _, guarded := f.guardedPort(t.ports); !ok || !guarded {
				return nil
			}
			seen[firewall.FlowID{Protocol: f.protocol, From: f.from, To: f.to, Number: f.number}] = true
			t.mu.Lock()
			t.note(f, false, false, false)
			t.mu.Unlock()
			return nil
		})
		if err != nil && !errors.Is(err, errInterrupted) {
			return fmt.Errorf("list connections: %w", err)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lost {
		for id, known := range t.flows {
			if !seen[id] {
				known.flow.Gone, known.flow.Open, known.changed = true, false, true
			}
		}
	}
	return nil
}

// Flows implements firewall.Backend.
func (b *Backend) Flows(_ context.Context, look bool) (out firewall.Flows, err error) {
	if b.tracker == nil {
		if b.tracker, err = newTracker(b.now); err != nil {
			return out, err
		}
	}
	t := b.tracker
	if !slices.Equal(t.ports, b.guarded) {
		if err := t.listen(slices.Clone(b.guarded)); err != nil {
			return out, err
		}
	}
	if look {
		if err := t.look(); err != nil {
			return firewall.Flows{Incomplete: true}, err
		}
	}
	t.mu.Lock()
	out.Incomplete = t.lost || t.silent
	t.lost = t.lost && !look
	nothing := !look && !t.anyChanged()
	t.mu.Unlock()
	if nothing { // as before nearly every opening, which waits for this
		return out, nil
	}
	own, err := ownAddresses()
	if err != nil {
		return firewall.Flows{Incomplete: true}, err
	}
	out.List = t.take(look, own)
	return out, nil
}

func (t *tracker) anyChanged() bool {
	for _, known := range t.flows {
		if known.changed {
			return true
		}
	}
	return false
}

// eventsOn reports whether conntrack tells of connections to those who listen.
func eventsOn() bool {
	text, err := os.ReadFile("/proc/sys/net/netfilter/nf_conntrack_events")
	return err != nil || strings.TrimSpace(string(text)) != "0"
}
