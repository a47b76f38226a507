package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socketBuffer holds the largest batch: 20,000 elements take some 2 MB.
const socketBuffer = 16 << 20

// transport is one lasting netlink socket. The kernel carries out a request
// inside sendto, so every answer is queued when it returns and nothing here
// ever waits.
type transport struct {
	fd   int
	port uint32 // the socket's netlink port: what a table's owner is known by
	seq  uint32
	out  []byte
	in   []byte
}

// dial opens a socket of a netlink protocol, NETLINK_NETFILTER for one.
func dial(protocol int) (*transport, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	t := &transport{fd: fd, in: make([]byte, 64<<10)}
	if err := t.setUp(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return t, nil
}

func (t *transport) setUp() error {
	if err := unix.Bind(t.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	address, err := unix.Getsockname(t.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	t.port = address.(*unix.SockaddrNetlink).Pid
	for _, option := range []int{unix.SO_SNDBUFFORCE, unix.SO_RCVBUFFORCE} {
		if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, option, socketBuffer); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	// Errors carry the offending message's header only: a large batch must
	// not come back whole.
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(t.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1))
}

// close closes the socket, once: the number may be another file's by the time
// it is called again.
func (t *transport) close() error {
	fd := t.fd
	if t.fd = -1; fd < 0 {
		return nil
	}
	return unix.Close(fd)
}

// put appends one message to the buffer that send sends.
func (t *transport) put(typ netlink.HeaderType, flags netlink.HeaderFlags, data []byte) {
	t.seq++
	t.out = binary.NativeEndian.AppendUint32(t.out, uint32(unix.NLMSG_HDRLEN+len(data)))
	t.out = binary.NativeEndian.AppendUint16(t.out, uint16(typ))
	t.out = binary.NativeEndian.AppendUint16(t.out, uint16(flags))
	t.out = binary.NativeEndian.AppendUint32(t.out, t.seq)
	t.out = binary.NativeEndian.AppendUint32(t.out, 0)
	t.out = append(t.out, data...)
	for len(t.out)%unix.NLMSG_ALIGNTO != 0 {
		t.out = append(t.out, 0)
	}
}

func (t *transport) send() error {
	err := unix.Sendto(t.fd, t.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if cap(t.out) > 1<<20 {
		t.out = nil // a rare large batch does not stay in memory
	}
	return os.NewSyscallError("sendto", err)
}

var errNoAnswer = errors.New("the kernel did not answer")

// commit sends messages as one transaction. nil means that the kernel carried
// out all of it; an error, that it carried out none of it or that nobody
// knows, which only reading back can tell apart.
func (t *transport) commit(messages []netlink.Message) error {
	if len(messages) == 0 {
		return nil
	}
	if err := t.drain(); err != nil {
		return err
	}
	t.out = t.out[:0]
	subsystem := generic(unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	t.put(unix.NFNL_MSG_BATCH_BEGIN, netlink.Request, subsystem)
	for i, m := range messages {
		flags := m.Header.Flags &^ (netlink.Acknowledge | netlink.Echo)
		if i == len(messages)-1 {
			flags |= netlink.Acknowledge
		}
		t.put(m.Header.Type, flags, m.Data)
	}
	last := t.seq
	t.put(unix.NFNL_MSG_BATCH_END, netlink.Request, subsystem)
	if err := t.send(); err != nil {
		return err
	}
	acknowledged := false
	var failed error
	err := t.receive(func(h unix.NlMsghdr, data []byte) (bool, error) {
		if h.Type != unix.NLMSG_ERROR {
			return true, nil
		}
		errno, err := errorOf(data)
		switch {
		case err != nil:
			return false, err
		case errno != 0 && failed == nil:
			failed = errno
		case errno == 0 && h.Seq == last:
			acknowledged = true
		}
		return true, nil
	})
	switch {
	case failed != nil:
		return failed
	case errors.Is(err, errNoAnswer) && acknowledged:
		return nil // the queue is empty and the one answer was in it
	case err != nil:
		return err
	}
	return errNoAnswer
}

// drain throws away answers an earlier, failed exchange left behind.
func (t *transport) drain() error {
	err := t.receive(func(unix.NlMsghdr, []byte) (bool, error) { return true, nil })
	if errors.Is(err, errNoAnswer) {
		return nil
	}
	return err
}

var errInterrupted = errors.New("the dump was interrupted by a change")

// dump sends one read request and returns the payloads of the answers, less
// their generic header. An object that does not exist gives no answer and no
// error.
func (t *transport) dump(typ uint16, family byte, attributes []netlink.Attribute) ([][]byte, error) {
	for try := 0; ; try++ {
		answers, err := t.dumpOnce(typ, family, attributes)
		if !errors.Is(err, errInterrupted) || try == 10 {
			return answers, err
		}
	}
}

func (t *transport) dumpOnce(typ uint16, family byte, attributes []netlink.Attribute) ([][]byte, error) {
	data, err := netlink.MarshalAttributes(attributes)
	if err != nil {
		return nil, err
	}
	var answers [][]byte
	err = t.read(messageType(typ), append(generic(family, 0), data...), func(data []byte) error {
		if len(data) < genericLen {
			return fmt.Errorf("an answer of %d bytes", len(data))
		}
		answers = append(answers, append([]byte(nil), data[genericLen:]...))
		return nil
	})
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return answers, err
}

// read sends one read request and hands the payload of each answer to f,
// which must not keep it.
func (t *transport) read(typ netlink.HeaderType, request []byte, f func(data []byte) error) error {
	if err := t.drain(); err != nil {
		return err
	}
	t.out = t.out[:0]
	t.put(typ, netlink.Request|netlink.Dump, request)
	seq := t.seq
	if err := t.send(); err != nil {
		return err
	}
	interrupted := false
	err := t.receive(func(h unix.NlMsghdr, data []byte) (bool, error) {
		if h.Seq != seq {
			return true, nil
		}
		interrupted = interrupted || h.Flags&unix.NLM_F_DUMP_INTR != 0
		switch h.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			errno, err := errorOf(data)
			if err == nil && errno != 0 {
				err = errno
			}
			return false, err
		}
		return true, f(data)
	})
	if err == nil && interrupted {
		err = errInterrupted
	}
	return err
}

// atOnce bounds the requests of one sendto: their answers have to fit into
// the socket's buffer.
const atOnce = 1000

// each sends requests that the kernel carries out one by one, and returns how
// many it did. What is gone by then is no error; after any other the rest is
// tried all the same, and the first is returned.
func (t *transport) each(typ netlink.HeaderType, requests [][]byte) (done int, err error) {
	for some := range slices.Chunk(requests, atOnce) {
		if err := t.drain(); err != nil {
			return done, err
		}
		t.out = t.out[:0]
		for _, r := range some {
			t.put(typ, netlink.Request|netlink.Acknowledge, r)
		}
		last := t.seq
		if err := t.send(); err != nil {
			return done, err
		}
		failed := t.receive(func(h unix.NlMsghdr, data []byte) (bool, error) {
			if h.Type != unix.NLMSG_ERROR {
				return true, nil
			}
			switch errno, broken := errorOf(data); {
			case broken != nil:
				return false, broken
			case errno == 0:
				done++
			case errno != unix.ENOENT && err == nil:
				err = errno
			}
			return h.Seq != last, nil
		})
		if failed != nil {
			return done, failed
		}
	}
	return done, err
}

// receive hands every queued message to f until f says it was the last one
// (false). When the queue runs dry first, receive returns errNoAnswer.
func (t *transport) receive(f func(h unix.NlMsghdr, data []byte) (more bool, err error)) error {
	for {
		n, _, err := unix.Recvfrom(t.fd, t.in, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return errNoAnswer
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return os.NewSyscallError("recvfrom", err)
		}
		for b := t.in[:n]; len(b) >= unix.NLMSG_HDRLEN; {
			h := unix.NlMsghdr{
				Len:   binary.NativeEndian.Uint32(b),
				Type:  binary.NativeEndian.Uint16(b[4:]),
				Flags: binary.NativeEndian.Uint16(b[6:]),
				Seq:   binary.NativeEndian.Uint32(b[8:]),
			}
			if h.Len < unix.NLMSG_HDRLEN || int(h.Len) > len(b) {
				return fmt.Errorf("a message of %d bytes in %d", h.Len, len(b))
			}
			more, err := f(h, b[unix.NLMSG_HDRLEN:h.Len])
			if err != nil || !more {
				return err
			}
			b = b[min(len(b), (int(h.Len)+3)&^3):]
		}
	}
}

// errorOf reads the code of an NLMSG_ERROR or NLMSG_DONE; 0 is success.
func errorOf(data []byte) (unix.Errno, error) {
	if len(data) < 4 {
		return 0, fmt.Errorf("an answer of %d bytes", len(data))
	}
	return unix.Errno(-int32(binary.NativeEndian.Uint32(data))), nil
}

const genericLen = 4

// generic is struct nfgenmsg: family, version 0, resource id.
func generic(family byte, resource uint16) []byte {
	return binary.BigEndian.AppendUint16([]byte{family, 0}, resource)
}

func messageType(t uint16) netlink.HeaderType {
	return netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | t)
}
