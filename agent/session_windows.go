package agent

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/windows"
)

// OwnSessions returns the far ends of the TCP sessions this process was
// started through: those a parent process holds, as sshd does; else the one
// that SSH_CONNECTION says if it exists; and where this is a remote desktop,
// those from its client's address to the desktop's port.
func OwnSessions() []Session {
	var all []connection
	for _, family := range []uint32{windows.AF_INET, windows.AF_INET6} {
		all = append(all, parseTCPTable(tcpTable(family), family == windows.AF_INET6)...)
	}
	held := map[string]bool{}
	for pid, parents := uint32(os.Getpid()), parents(); pid != 0 && !held[ownedBy(pid)]; pid = parents[pid] {
		held[ownedBy(pid)] = true
	}
	return append(ownSessions(all, held, os.Getenv("SSH_CONNECTION")), desktopSessions(all, desktopClient())...)
}

var (
	iphlpapi                   = windows.NewLazySystemDLL("iphlpapi.dll")
	getExtendedTCPTable        = iphlpapi.NewProc("GetExtendedTcpTable")
	wtsapi32                   = windows.NewLazySystemDLL("wtsapi32.dll")
	wtsQuerySessionInformation = wtsapi32.NewProc("WTSQuerySessionInformationW")
	wtsFreeMemory              = wtsapi32.NewProc("WTSFreeMemory")
)

// tcpTable is the table of established connections with their owners, or nil.
func tcpTable(family uint32) []byte {
	const ownerPIDConnections = 4 // TCP_TABLE_OWNER_PID_CONNECTIONS
	size := uint32(64 << 10)
	for range 5 { // it may grow between two calls
		table := make([]byte, size)
		code, _, _ := getExtendedTCPTable.Call(uintptr(unsafe.Pointer(&table[0])), uintptr(unsafe.Pointer(&size)), 0, uintptr(family), ownerPIDConnections, 0)
		switch windows.Errno(code) {
		case 0:
			return table
		case windows.ERROR_INSUFFICIENT_BUFFER:
			size += 4 << 10
		default:
			return nil
		}
	}
	return nil
}

// parents are the processes by who started them.
func parents() map[uint32]uint32 {
	out := map[uint32]uint32{}
	h, err := windows.CreateToolhelp32Snapshot(windows.TH32CS_SNAPPROCESS, 0)
	if err != nil {
		return out
	}
	defer windows.CloseHandle(h)
	e := windows.ProcessEntry32{}
	e.Size = uint32(unsafe.Sizeof(e))
	for err = windows.Process32First(h, &e); err == nil; err = windows.Process32Next(h, &e) {
		out[e.ProcessID] = e.ParentProcessID
	}
	return out
}

// desktopClient is the address of whoever's remote desktop this is.
func desktopClient() netip.Addr {
	const (
		currentSession = 0xffffffff
		clientAddress  = 14 // WTSClientAddress: a family in 32 bits, then 20 bytes
	)
	var p *[24]byte
	var size uint32
	r, _, _ := wtsQuerySessionInformation.Call(0, currentSession, clientAddress, uintptr(unsafe.Pointer(&p)), uintptr(unsafe.Pointer(&size)))
	if r == 0 || p == nil {
		return netip.Addr{}
	}
	defer wtsFreeMemory.Call(uintptr(unsafe.Pointer(p)))
	if int(size) < len(p) {
		return netip.Addr{}
	}
	return parseClientAddress(*p)
}

// parseClientAddress reads a WTS_CLIENT_ADDRESS: an IPv4 address begins two
// bytes behind the family's, one of IPv6 right behind them.
func parseClientAddress(b [24]byte) netip.Addr {
	switch binary.LittleEndian.Uint32(b[:]) {
	case windows.AF_INET:
		return netip.AddrFrom4([4]byte(b[6:10]))
	case windows.AF_INET6:
		return netip.AddrFrom16([16]byte(b[4:20]))
	}
	return netip.Addr{}
}

// ownedBy is a process as the owner of a connection.
func ownedBy(pid uint32) string { return fmt.Sprintf("process %d", pid) }
