package nft

import (
	"encoding/binary"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// monitor tells of changes others make to the table. It is only needed where
// the kernel lets them: an owned table changes by nobody's hand but ours.
type monitor struct {
	file    *os.File
	changes chan struct{}
}

// newMonitor listens for changes that do not come from the socket own.
func newMonitor(own uint32) (*monitor, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.NFNLGRP_NFTABLES - 1)}); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	m := &monitor{file: os.NewFile(uintptr(fd), "nftables monitor"), changes: make(chan struct{}, 1)}
	go m.run(own)
	return m, nil
}

func (m *monitor) run(own uint32) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := m.file.Read(buffer)
		// The queue ran over: what was lost may have been about us.
		overflow := errors.Is(err, unix.ENOBUFS)
		if err != nil && !overflow {
			return // closed
		}
		if overflow || concerns(buffer[:n], own) {
			select {
			case m.changes <- struct{}{}:
			default: // one is waiting to be seen
			}
		}
	}
}

// concerns reports whether one of the events is about our table and comes
// from somebody else.
func concerns(b []byte, own uint32) bool {
	for len(b) >= unix.NLMSG_HDRLEN {
		length, sender := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint32(b[12:])
		if length < unix.NLMSG_HDRLEN+genericLen || length > len(b) {
			return true // not understood
		}
		// In every message of nf_tables about an object of a table, and about
		// the table, attribute 1 is the table's name.
		parts, err := split(b[unix.NLMSG_HDRLEN+genericLen : length])
		if sender != own && err == nil {
			for _, a := range parts {
				if a.kind == unix.NFTA_TABLE_NAME && string(a.data) == TableName+"\x00" {
					return true
				}
			}
		}
		b = b[min(len(b), (length+3)&^3):]
	}
	return false
}

func (m *monitor) close() error { return m.file.Close() }
