package winfw

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/firewall"
)

var iphlpapi = windows.NewLazySystemDLL("iphlpapi.dll")

// Sockets reads the platform's tables of sockets.
func Sockets() (out []Socket, err error) {
	for _, t := range tables {
		b, err := t.read()
		if err != nil {
			return nil, err
		}
		list, err := t.parse(b)
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// read has the table filled in.
func (t table) read() ([]byte, error) {
	name, class := "GetExtendedTcpTable", uintptr(5) // TCP_TABLE_OWNER_PID_ALL
	if t.protocol == firewall.UDP {
		name, class = "GetExtendedUdpTable", 1 // UDP_TABLE_OWNER_PID
	}
	family := uintptr(windows.AF_INET)
	if t.family == 6 {
		family = windows.AF_INET6
	}
	size := uint32(1 << 14)
	for range 8 { // it grows while it is asked for
		b := make([]byte, size)
		code, _, _ := iphlpapi.NewProc(name).Call(uintptr(unsafe.Pointer(&b[0])), uintptr(unsafe.Pointer(&size)), 0, family, class, 0)
		switch windows.Errno(code) {
		case 0:
			return b, nil
		case windows.ERROR_INSUFFICIENT_BUFFER:
			size += size / 4
		default:
			return nil, fmt.Errorf("%s: %w", name, windows.Errno(code))
		}
	}
	return nil, fmt.Errorf("%s: it grows faster than it is read", name)
}
