package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// monotonic reads CLOCK_MONOTONIC, the one clock of every figure.
func monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // no Linux lacks it
	}
	return time.Duration(ts.Nano())
}

// event is one set element that the kernel says came or went.
type event struct {
	at    time.Duration // when we had received it
	added bool
	table string
	key   elementKey // zero if it is not an IPv4 host's
}

// listener receives what nf_tables tells of every change in a world. The
// kernel sends it once the change is in force, so its arrival is the end of
// every time measured here. The reader has an OS thread to itself: what it
// costs to wake it is the same for everything compared.
type listener struct {
	fd      int
	events  chan event
	closing atomic.Bool
	done    chan struct{}
	err     error // why it ended; read it after done
}

const (
	nftablesGroup  = 7        // NFNLGRP_NFTABLES
	listenerBuffer = 64 << 20 // the news of several times 10,000 elements
)

func (w *world) listen() (*listener, error) {
	l := &listener{events: make(chan event, 1<<16), done: make(chan struct{})}
	err := w.do(func() (err error) {
		l.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		// The timeout is how soon the reader notices that it shall end.
		timeout := unix.NsecToTimeval((200 * time.Millisecond).Nanoseconds())
		err = errors.Join(
			unix.Bind(l.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (nftablesGroup - 1)}),
			unix.SetsockoptInt(l.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, listenerBuffer),
			unix.SetsockoptTimeval(l.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout))
		if err != nil {
			unix.Close(l.fd)
			return fmt.Errorf("listen to nf_tables: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	go l.read()
	return l, nil
}

func (l *listener) close() {
	l.closing.Store(true)
	<-l.done
}

func (l *listener) read() {
	runtime.LockOSThread()
	defer close(l.done)
	defer unix.Close(l.fd)
	buffer := make([]byte, 256<<10)
	names := map[string]string{}
	for !l.closing.Load() {
		n, err := unix.Read(l.fd, buffer)
		at := monotonic()
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			l.err = fmt.Errorf("events of nf_tables: %w", err)
			return
		}
		for typ, body := range messages(buffer[:n]) {
			added := typ == messageType(unix.NFT_MSG_NEWSETELEM)
			if added || typ == messageType(unix.NFT_MSG_DELSETELEM) {
				l.elements(event{at: at, added: added}, body, names)
			}
		}
	}
}

// elements passes on every element of one message. names keeps the tables'
// names: an allocation per event would slow the reader down.
func (l *listener) elements(e event, body []byte, names map[string]string) {
	for kind, value := range attributes(body[genericLen:]) {
		switch kind {
		case unix.NFTA_SET_ELEM_LIST_TABLE:
			name := value[:len(value)-1] // less its NUL
			if _, ok := names[string(name)]; !ok {
				names[string(name)] = string(name)
			}
			e.table = names[string(name)]
		case unix.NFTA_SET_ELEM_LIST_ELEMENTS:
			for _, element := range attributes(value) {
				e.key = keyOf(element)
				l.events <- e
			}
		}
	}
}

func keyOf(element []byte) (key elementKey) {
	for kind, value := range attributes(element) {
		if kind != unix.NFTA_SET_ELEM_KEY {
			continue
		}
		for kind, value := range attributes(value) {
			if kind == unix.NFTA_DATA_VALUE && len(value) == len(key) {
				key = elementKey(value)
			}
		}
	}
	return key
}

// messages yields type and body of each netlink message in b.
func messages(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			n := int(binary.NativeEndian.Uint32(b))
			if n < unix.NLMSG_HDRLEN+genericLen || n > len(b) ||
				!yield(binary.NativeEndian.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:n]) {
				return
			}
			b = b[min(len(b), aligned(n)):]
		}
	}
}

// attributes yields kind and value of each netlink attribute in b.
func attributes(b []byte) func(yield func(uint16, []byte) bool) {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= unix.NLA_HDRLEN {
			n := int(binary.NativeEndian.Uint16(b))
			kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
			if n < unix.NLA_HDRLEN || n > len(b) || !yield(kind, b[unix.NLA_HDRLEN:n]) {
				return
			}
			b = b[min(len(b), aligned(n)):]
		}
	}
}

func aligned(n int) int { return (n + 3) &^ 3 }

// patience is how long any one change may take before the benchmark gives up.
const patience = 20 * time.Second

// await returns when the n-th event that matches had arrived.
func (l *listener) await(ctx context.Context, n int, matches func(event) bool) (time.Duration, error) {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for found := 0; ; {
		select {
		case e := <-l.events:
			if !matches(e) {
				continue
			}
			if found++; found == n {
				return e.at, nil
			}
		case <-l.done:
			return 0, l.err
		case <-timeout.C:
			return 0, fmt.Errorf("%d of %d elements came within %s", found, n, patience)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// quiet throws away what arrives until nothing has for d, and returns it.
func (l *listener) quiet(ctx context.Context, d time.Duration) (seen []event, err error) {
	for {
		select {
		case e := <-l.events:
			seen = append(seen, e)
		case <-time.After(d):
			return seen, nil
		case <-l.done:
			return seen, l.err
		case <-ctx.Done():
			return seen, ctx.Err()
		}
	}
}

func added(table string, key elementKey) func(event) bool {
	return func(e event) bool { return e.added && e.table == table && e.key == key }
}

func anyAdded(table string) func(event) bool {
	return func(e event) bool { return e.added && e.table == table }
}

func anyDeleted(table string) func(event) bool {
	return func(e event) bool { return !e.added && e.table == table }
}

// pause sleeps, so that whatever was measured is idle when the next turn
// wakes it: waking up counts.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
