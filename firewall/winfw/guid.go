package winfw

import (
	"crypto/sha1"
	"fmt"
)

// GUID is a Windows GUID, laid out as the C structure is: the first field in
// the order of the host.
type GUID struct {
	Data1 uint32
	Data2 uint16
	Data3 uint16
	Data4 [8]byte
}

func (g GUID) String() string {
	return fmt.Sprintf("{%08x-%04x-%04x-%x-%x}", g.Data1, g.Data2, g.Data3, g.Data4[:2], g.Data4[2:])
}

// space is what names are hashed in: the version 5 UUID of "jitgate.dev" in
// the DNS name space (RFC 9562, 5.5).
var space = GUID{0x6ba7b810, 0x9dad, 0x11d1, [8]byte{0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}}.named("jitgate.dev")

// named is the version 5 UUID of a name in the space g.
func (g GUID) named(name string) GUID {
	b := []byte{byte(g.Data1 >> 24), byte(g.Data1 >> 16), byte(g.Data1 >> 8), byte(g.Data1), byte(g.Data2 >> 8), byte(g.Data2), byte(g.Data3 >> 8), byte(g.Data3)}
	h := sha1.Sum(append(append(b, g.Data4[:]...), name...))
	out := GUID{
		Data1: uint32(h[0])<<24 | uint32(h[1])<<16 | uint32(h[2])<<8 | uint32(h[3]),
		Data2: uint16(h[4])<<8 | uint16(h[5]),
		Data3: (uint16(h[6])<<8|uint16(h[7]))&0x0fff | 0x5000,
	}
	copy(out.Data4[:], h[8:16])
	out.Data4[0] = out.Data4[0]&0x3f | 0x80
	return out
}

// The objects that every filter belongs to.
var (
	ProviderKey = space.named("provider")
	SublayerKey = space.named("sublayer")
)
