package main

import (
	"encoding/binary"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// The least code that adds elements to a set. It is what jitgate is held
// against, so it shares none of jitgate's.

// hostSet is the name jitgate gives the set of single IPv4 hosts.
const hostSet = "g4_32"

// elementKey is the kernel's key of an opening for one IPv4 host: address,
// protocol and port, each padded to four bytes.
type elementKey [12]byte

// sshFrom is the key of an opening of port 22 over TCP.
func sshFrom(a netip.Addr) (key elementKey) {
	address := a.As4()
	copy(key[:], address[:])
	key[4] = unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(key[8:], 22)
	return key
}

// rawElement is an element with its comment. All have the same timeout.
type rawElement struct {
	key     elementKey
	comment string
}

const (
	rawTimeout  = 2 * 60 * 60 * 1000 // ms
	genericLen  = 4                  // struct nfgenmsg
	maxElements = 400                // a message's list is one attribute of at most 64 KiB
)

func messageType(t uint16) uint16 { return unix.NFNL_SUBSYS_NFTABLES<<8 | t }

// addBatch is the whole transaction that adds elements to table's hostSet.
func addBatch(table string, elements []rawElement) []byte {
	b := batchMark(nil, unix.NFNL_MSG_BATCH_BEGIN)
	for len(elements) > 0 {
		n := min(len(elements), maxElements)
		b = setMessage(b, unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE, table, elements[:n])
		elements = elements[n:]
	}
	return batchMark(b, unix.NFNL_MSG_BATCH_END)
}

// deleteBatch is the transaction that deletes a table.
func deleteBatch(table string) []byte {
	b := batchMark(nil, unix.NFNL_MSG_BATCH_BEGIN)
	b = tableMessage(b, unix.NFT_MSG_DELTABLE, table, "")
	return batchMark(b, unix.NFNL_MSG_BATCH_END)
}

// emptyBatch is the transaction that takes a chain's rules out, and every
// element of table's hostSet.
func emptyBatch(table, chain string) []byte {
	b := batchMark(nil, unix.NFNL_MSG_BATCH_BEGIN)
	b = tableMessage(b, unix.NFT_MSG_DELRULE, table, chain)
	b = setMessage(b, unix.NFT_MSG_DELSETELEM, 0, table, nil)
	return batchMark(b, unix.NFNL_MSG_BATCH_END)
}

// tableMessage is about a table or, if chain names one, about its rules.
func tableMessage(b []byte, typ uint16, table, chain string) []byte {
	return message(b, messageType(typ), 0, unix.NFPROTO_INET, 0, func(b []byte) []byte {
		// Attribute 1 names the table in messages about either.
		b = attribute(b, unix.NFTA_TABLE_NAME, append([]byte(table), 0))
		if chain != "" {
			b = attribute(b, unix.NFTA_RULE_CHAIN, append([]byte(chain), 0))
		}
		return b
	})
}

// flushBatch is the transaction that empties table's hostSet.
func flushBatch(table string) []byte {
	b := batchMark(nil, unix.NFNL_MSG_BATCH_BEGIN)
	b = setMessage(b, unix.NFT_MSG_DELSETELEM, 0, table, nil)
	return batchMark(b, unix.NFNL_MSG_BATCH_END)
}

func batchMark(b []byte, typ uint16) []byte {
	return message(b, typ, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, func(b []byte) []byte { return b })
}

func setMessage(b []byte, typ, flags uint16, table string, elements []rawElement) []byte {
	return message(b, messageType(typ), flags, unix.NFPROTO_INET, 0, func(b []byte) []byte {
		b = attribute(b, unix.NFTA_SET_ELEM_LIST_TABLE, append([]byte(table), 0))
		b = attribute(b, unix.NFTA_SET_ELEM_LIST_SET, append([]byte(hostSet), 0))
		if elements == nil {
			return b
		}
		return nested(b, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(b []byte) []byte {
			for _, e := range elements {
				b = nested(b, unix.NFTA_LIST_ELEM, e.append)
			}
			return b
		})
	})
}

func (e rawElement) append(b []byte) []byte {
	b = nested(b, unix.NFTA_SET_ELEM_KEY, func(b []byte) []byte {
		return attribute(b, unix.NFTA_DATA_VALUE, e.key[:])
	})
	b = attribute(b, unix.NFTA_SET_ELEM_TIMEOUT, binary.BigEndian.AppendUint64(nil, rawTimeout))
	if e.comment == "" {
		return b
	}
	// libnftnl's form of a comment: kind 0, length, text with its NUL.
	text := append([]byte{0, byte(len(e.comment) + 1)}, e.comment...)
	return attribute(b, unix.NFTA_SET_ELEM_USERDATA, append(text, 0))
}

func message(b []byte, typ, flags uint16, family byte, resource uint16, body func([]byte) []byte) []byte {
	start := len(b)
	b = append(b, make([]byte, unix.NLMSG_HDRLEN)...)
	b = binary.BigEndian.AppendUint16(append(b, family, 0), resource)
	b = body(b)
	header := b[start:]
	binary.NativeEndian.PutUint32(header, uint32(len(header)))
	binary.NativeEndian.PutUint16(header[4:], typ)
	binary.NativeEndian.PutUint16(header[6:], flags|unix.NLM_F_REQUEST)
	return b
}

func attribute(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.NLA_HDRLEN+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	return append(b, make([]byte, aligned(len(value))-len(value))...)
}

func nested(b []byte, kind uint16, body func([]byte) []byte) []byte {
	start := len(b)
	b = body(attribute(b, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

// rawSocket is a lasting NETLINK_NETFILTER socket. It asks for no answers:
// that the elements came is seen by the listener.
type rawSocket struct{ fd int }

func openRawSocket() (rawSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return rawSocket{}, os.NewSyscallError("socket", err)
	}
	s := rawSocket{fd}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil { // a batch of 10,000 elements is one datagram
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 16<<20)
	}
	if err != nil {
		s.close()
		return rawSocket{}, os.NewSyscallError("netlink socket", err)
	}
	return s, nil
}

// commit sends a transaction. The kernel carries it out within the call.
func (s rawSocket) commit(batch []byte) error {
	return os.NewSyscallError("sendto", unix.Sendto(s.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}))
}

func (s rawSocket) close() { unix.Close(s.fd) }
