package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

const (
	cutPort     = 22
	cutSessions = 8
	cutFirst    = 3 * time.Second // until the first session's end: the others' follow each second
	cutLong     = time.Second     // how long before its end a session begins
	cutAfter    = time.Second     // how long its client goes on after the end
	cutEvery    = time.Millisecond
)

// measureCut looks how long after the end of its grant a session is still
// heard, with the agent alive and with the agent killed before.
func measureCut(ctx context.Context, o options, r *report) error {
	alive, dead := &cutBench{}, &cutBench{killed: true}
	var both sync.WaitGroup
	errs := make([]error, 2)
	for i, b := range []*cutBench{alive, dead} {
		dir := filepath.Join(o.dir, fmt.Sprintf("cut-%d", i))
		both.Go(func() { errs[i] = b.run(ctx, o.jitgate, dir) })
	}
	both.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	limit := 100 * time.Millisecond
	line := func(name string, late sample) result {
		worst := slices.Max(late)
		return result{name: name, value: "p50 " + signed(late.median()) + ", max " + signed(worst), bound: "max ≤ 100 ms", ok: worst <= limit}
	}
	r.add(fmt.Sprintf("%d sessions over TCP and %d over UDP each, on a port with sessionsAtEnd cut; each client sends a byte every %s until %s after\n"+
		"    the end. From endTimeUtc to the arrival of the last message the server got, on the boot clock. Killed: SIGKILL once the\n"+
		"    grants are open, so the kernel alone ends them. What reads is on the same busy machine, and counts as late.", cutSessions, cutSessions, cutEvery, cutAfter),
		line("last TCP byte after the end", alive.tcp), line("last UDP datagram after the end", alive.udp),
		line("last TCP byte, agent killed", dead.tcp), line("last UDP datagram, agent killed", dead.udp),
		result{name: "reset seen by the server", value: "p50 " + signed(alive.server.median()) + ", max " + signed(slices.Max(alive.server))},
		result{name: "reset seen by the client", value: "p50 " + signed(alive.client.median()) + ", max " + signed(slices.Max(alive.client))})
	return nil
}

// signed writes a lateness: below zero the last message came before the end.
func signed(d time.Duration) string { return fmt.Sprintf("%+.1f ms", d.Seconds()*1e3) }

// cutBench is a host whose sessions are cut, and how late.
type cutBench struct {
	killed bool // the agent, before any grant ends

	tcp, udp       sample // the last message of each session, after its end
	server, client sample // when the ends of each TCP session knew of it

	mu    sync.Mutex
	heard map[netip.Addr]*heard
}

// heard is what the server had from one client.
type heard struct{ stream, datagram, reset firewall.BootTime }

func (b *cutBench) run(ctx context.Context, program, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	h, err := newHost(program, dir, dir, guardedPort(cutPort, policy.Both, policy.Cut))
	if err != nil {
		return err
	}
	defer h.close()
	outside, err := h.newOutside()
	if err != nil {
		return err
	}
	defer outside.close()
	stopServing, err := b.serve(h.world)
	if err != nil {
		return err
	}
	defer stopServing()
	if err := h.startAgent(); err != nil {
		return err
	}
	// One instant on both clocks. Documents have whole seconds.
	wall, boot := time.Now(), agent.BootNow()
	first := wall.Truncate(time.Second).Add(cutFirst)
	clients := make([]client, cutSessions)
	var list []policy.Grant
	for i := range clients {
		g := h.realm.grant(grantID(i), source(i+1))
		g.End = first.Add(time.Duration(i) * time.Second).UTC()
		list = append(list, g)
		clients[i] = client{address: source(i + 1), end: boot.Add(g.End.Sub(wall))}
	}
	// Each is open for TCP and for UDP.
	if _, err := h.deliver(ctx, list, 2*cutSessions, anyAdded(agentTable)); err != nil {
		return err
	}
	if b.killed {
		h.killAgent()
	}
	var all sync.WaitGroup
	errs := make([]error, cutSessions)
	for i := range clients {
		all.Go(func() { errs[i] = clients[i].talk(ctx, outside) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return b.judge(clients)
}

// judge takes the latenesses. A session that fell silent before its end shows
// nothing.
func (b *cutBench) judge(clients []client) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range clients {
		h := b.heard[c.address]
		if h == nil || c.end.Sub(min(h.stream, h.datagram)) > cutLong/2 {
			return fmt.Errorf("the session of %s was silent before its end: %+v, end %v", c.address, h, c.end)
		}
		b.tcp, b.udp = append(b.tcp, h.stream.Sub(c.end)), append(b.udp, h.datagram.Sub(c.end))
		if b.killed {
			continue
		}
		if h.reset == 0 || c.reset == 0 {
			return fmt.Errorf("the session of %s was not reset at both ends", c.address)
		}
		b.server, b.client = append(b.server, h.reset.Sub(c.end)), append(b.client, c.reset.Sub(c.end))
	}
	return nil
}

// serve stamps what arrives at the port.
func (b *cutBench) serve(w *world) (stop func(), err error) {
	b.heard = map[netip.Addr]*heard{}
	at := net.JoinHostPort(insideAddress.String(), fmt.Sprint(cutPort))
	var l net.Listener
	var p net.PacketConn
	err = w.do(func() (err error) {
		if l, err = net.Listen("tcp4", at); err != nil {
			return err
		}
		p, err = net.ListenPacket("udp4", at)
		return err
	})
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go b.read(c)
		}
	}()
	go func() {
		for buffer := make([]byte, 64); ; {
			_, from, err := p.ReadFrom(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				b.stamp(from, func(h *heard, now firewall.BootTime) { h.datagram = now })
			}
		}
	}()
	return func() { l.Close(); p.Close() }, nil
}

func (b *cutBench) read(c net.Conn) {
	defer c.Close()
	_ = c.SetReadDeadline(time.Now().Add(2 * (cutLong + cutAfter))) // it is not closed yet
	for buffer := make([]byte, 64); ; {
		_, err := c.Read(buffer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		if err != nil {
			b.stamp(c.RemoteAddr(), func(h *heard, now firewall.BootTime) { h.reset = now })
			return
		}
		b.stamp(c.RemoteAddr(), func(h *heard, now firewall.BootTime) { h.stream = now })
	}
}

func (b *cutBench) stamp(from net.Addr, what func(*heard, firewall.BootTime)) {
	now := agent.BootNow()
	address := netip.MustParseAddrPort(from.String()).Addr()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.heard[address] == nil {
		b.heard[address] = &heard{}
	}
	what(b.heard[address], now)
}

// client is one that goes on talking when its grant has ended.
type client struct {
	address    netip.Addr
	end, reset firewall.BootTime
}

func (c *client) talk(ctx context.Context, outside *world) error {
	if err := pause(ctx, c.end.Sub(agent.BootNow())-cutLong); err != nil {
		return err
	}
	var stream, datagrams net.Conn
	err := outside.do(func() (err error) {
		d := net.Dialer{Timeout: cutLong / 2, LocalAddr: &net.TCPAddr{IP: c.address.AsSlice()}}
		if stream, err = d.Dial("tcp4", net.JoinHostPort(insideAddress.String(), fmt.Sprint(cutPort))); err != nil {
			return err
		}
		datagrams, err = net.DialUDP("udp4", &net.UDPAddr{IP: c.address.AsSlice()}, &net.UDPAddr{IP: insideAddress.AsSlice(), Port: cutPort})
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", c.address, err)
	}
	defer stream.Close()
	defer datagrams.Close()
	// Nobody tells a client whose packets are dropped, and what it cannot send
	// fills its buffer.
	if err := stream.SetDeadline(time.Now().Add(cutLong + cutAfter)); err != nil {
		return err
	}
	reset := make(chan firewall.BootTime, 1)
	go func() {
		// The server says nothing. That it is gone may be told to a write, and
		// then the read only ends.
		if _, err := stream.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			reset <- agent.BootNow()
		}
		close(reset)
	}()
	tick := time.NewTicker(cutEvery)
	defer tick.Stop()
	for agent.BootNow() < c.end.Add(cutAfter) {
		// Both fail once the other end is gone: that is what is measured.
		_, _ = stream.Write([]byte{0})
		_, _ = datagrams.Write([]byte{0})
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.reset = <-reset
	return nil
}
