package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// monitor tells of changes others make to the table. It is only needed where
// the kernel lets them: an owned table changes by nobody's hand but ours.
type monitor struct {
	file    *os.File
	own     uint32 // our own netlink port
	now     func() firewall.BootTime
	changes chan firewall.Alteration
}

// monitorBuffer holds the events of some 100,000 changes.
const monitorBuffer = 8 << 20

// newMonitor listens for changes that do not come from the socket own.
func newMonitor(own uint32, now func() firewall.BootTime) (*monitor, error) {
	m, err := listen(own, now, monitorBuffer)
	if err == nil {
		go m.run()
	}
	return m, err
}

func listen(own uint32, now func() firewall.BootTime, buffer int) (*monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return &monitor{file: os.NewFile(uintptr(fd), "nftables monitor"), own: own, now: now, changes: make(chan firewall.Alteration, 1)}, nil
}

// again is how long the monitor waits after an error it does not know.
const again = time.Second

func (m *monitor) run() {
	buffer := make([]byte, 64<<10)
	var t transaction
	for {
		n, err := m.file.Read(buffer)
		switch {
		case errors.Is(err, os.ErrClosed):
			return
		case err != nil:
			// The queue ran over, mostly (ENOBUFS): what was lost may have been
			// about us, and only a look at the whole table tells. The socket
			// goes on, and what is queued still counts.
			t = transaction{}
			m.tell(firewall.Alteration{At: m.now()})
			if !errors.Is(err, unix.ENOBUFS) {
				time.Sleep(again)
			}
			continue
		}
		for _, by := range t.read(buffer[:n], m.own) {
			by.At = m.now()
			m.tell(by)
		}
	}
}

func (m *monitor) tell(a firewall.Alteration) {
	select {
	case m.changes <- a:
	default: // one is waiting to be seen
	}
}

// transaction is what was seen of the kernel's current one: it tells of every
// object changed, and at the end who did it.
type transaction struct{ ours bool }

// read reads messages and returns who changed our table, for each transaction
// that ends in them.
func (t *transaction) read(b []byte, own uint32) (ended []firewall.Alteration) {
	for len(b) >= unix.NLMSG_HDRLEN {
		length, sender := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[12:])
		if length < unix.NLMSG_HDRLEN+genericLen || length > len(b) {
			return append(ended, firewall.Alteration{}) // not understood
		}
		typ := binary.NativeEndian.Uint16(b[4:])
		parts, err := split(b[unix.NLMSG_HDRLEN+genericLen : length])
		switch {
		case err != nil:
			t.ours = true
		case typ == uint16(messageType(unix.NFT_MSG_NEWGEN)):
			if t.ours {
				ended = append(ended, author(parts))
			}
			t.ours = false
		case sender != own && namesTable(parts):
			t.ours = true
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return ended
}

// namesTable reports whether an event is about our table: in every message of
// nf_tables about an object of a table, and about the table, attribute 1 is
// the table's name.
func namesTable(parts []attribute) bool {
	return slices.ContainsFunc(parts, func(a attribute) bool {
		return a.kind == unix.NFTA_TABLE_NAME && string(a.data) == TableName+"\x00"
	})
}

// author reads the process from the message that ends a transaction (4.14).
func author(parts []attribute) (a firewall.Alteration) {
	for _, p := range parts {
		switch {
		case p.kind == unix.NFTA_GEN_PROC_PID && len(p.data) == 4:
			a.PID = int(binary.BigEndian.Uint32(p.data))
		case p.kind == unix.NFTA_GEN_PROC_NAME:
			a.Process = string(bytes.TrimRight(p.data, "\x00"))
		}
	}
	return a
}

func (m *monitor) close() error { return m.file.Close() }
