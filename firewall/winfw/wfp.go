package winfw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"unicode/utf16"
	"unsafe"

	"github.com/jitgate/jitgate/firewall"
)

//lint:file-ignore U1000 The structures are C's: they have fields that nobody here reads.

// This file is the platform's C structures (fwpmtypes.h, fwptypes.h, 64-bit)
// and what becomes of a Filter in them and back. It touches no platform: it is
// tested wherever there is 64-bit memory.

type displayData struct{ name, description *uint16 }

type byteBlob struct {
	size uint32
	data *byte
}

// value is FWP_VALUE0 and FWP_CONDITION_VALUE0: a small number, or a pointer to
// anything else.
type value struct {
	typ   uint32
	union uintptr
}

type condition struct {
	field GUID
	match uint32
	value value
}

type action struct {
	typ  uint32
	guid GUID
}

// filter0 is FWPM_FILTER0.
type filter0 struct {
	key           GUID
	display       displayData
	flags         uint32
	provider      *GUID
	data          byteBlob
	layer         GUID
	sublayer      GUID
	weight        value
	numConditions uint32
	conditions    *condition
	action        action
	context       [2]uint64 // a UINT64 or a GUID
	_             *GUID
	id            uint64
	effective     value
}

// session0 is FWPM_SESSION0.
type session0 struct {
	key        GUID
	display    displayData
	flags      uint32
	wait       uint32 // for a transaction to begin, in milliseconds
	processID  uint32
	sid        unsafe.Pointer
	username   *uint16
	kernelMode int32
}

// provider0 is FWPM_PROVIDER0.
type provider0 struct {
	key     GUID
	display displayData
	flags   uint32
	data    byteBlob
	service *uint16
}

// sublayer0 is FWPM_SUBLAYER0.
type sublayer0 struct {
	key      GUID
	display  displayData
	flags    uint32
	provider *GUID
	data     byteBlob
	weight   uint16
}

// enumTemplate is FWPM_FILTER_ENUM_TEMPLATE0.
type enumTemplate struct {
	provider      *GUID
	layer         GUID
	enumType      uint32
	flags         uint32
	context       unsafe.Pointer
	numConditions uint32
	conditions    *condition
	actionMask    uint32
	callout       *GUID
}

type valueRange struct{ low, high value }

type v4Mask struct{ address, mask uint32 } // in the order of the host

type v6Mask struct {
	address [16]byte
	bits    uint8
}

// Constants of fwptypes.h and fwpmtypes.h.
const (
	typeUint8  = 1
	typeUint16 = 2
	typeUint32 = 3
	typeUint64 = 4
	typeV4Mask = 0x100
	typeV6Mask = 0x101
	typeRange  = 0x102

	matchEqual       = 0
	matchRange       = 5
	matchFlagsAnySet = 7

	actionBlock  = 0x1001
	actionPermit = 0x1002

	flagPersistent       = 0x1 // of providers, sublayers and filters
	flagBootTime         = 0x2
	flagClearActionRight = 0x8
	flagDisabled         = 0x20
)

// Keys of fwpmu.h.
var (
	layerKeys = map[Layer]GUID{
		AcceptV4: {0xe1cd9fe7, 0xf4b5, 0x4273, [8]byte{0x96, 0xc0, 0x59, 0x2e, 0x48, 0x7b, 0x86, 0x50}},
		AcceptV6: {0xa3b42c97, 0x9f04, 0x4672, [8]byte{0xb8, 0x7e, 0xce, 0xe9, 0xc4, 0x83, 0x25, 0x7f}},
	}
	fieldProtocol = GUID{0x3971ef2b, 0x623e, 0x4f9a, [8]byte{0x8c, 0xb1, 0x6e, 0x79, 0xb8, 0x06, 0xb9, 0xa7}}
	fieldPort     = GUID{0x0c1ba1af, 0x5765, 0x453f, [8]byte{0xaf, 0x22, 0xa8, 0xf7, 0x91, 0xac, 0x77, 0x5b}}
	fieldSource   = GUID{0xb235ae9a, 0x1d64, 0x49b8, [8]byte{0xa4, 0x4c, 0x5f, 0xf3, 0xd9, 0x09, 0x50, 0x45}}
	fieldFlags    = GUID{0x632ce23b, 0x5167, 0x435c, [8]byte{0x86, 0xd7, 0xe9, 0x03, 0x68, 0x4a, 0xa8, 0x0c}}
)

// memory holds what a C structure points to where it is until it is freed.
type memory struct{ runtime.Pinner }

// at puts v into m and returns where it is.
func at[T any](m *memory, v T) *T {
	p := new(T)
	*p = v
	m.Pin(p)
	return p
}

func (m *memory) text(s string) *uint16 {
	u := utf16.Encode([]rune(s + "\x00"))
	m.Pin(&u[0])
	return &u[0]
}

func (m *memory) bytes(s string) byteBlob {
	if s == "" {
		return byteBlob{}
	}
	b := []byte(s)
	m.Pin(&b[0])
	return byteBlob{uint32(len(b)), &b[0]}
}

// pointer is a value that points to v.
func pointer[T any](m *memory, typ uint32, v T) value {
	return value{typ, uintptr(unsafe.Pointer(at(m, v)))}
}

// encode makes the C structure of a filter.
func (m *memory) encode(f Filter) *filter0 {
	var list []condition
	if f.Protocol != 0 {
		list = append(list, condition{fieldProtocol, matchEqual, value{typeUint8, uintptr(f.Protocol)}})
	}
	switch {
	case f.Last == 0:
	case f.First == f.Last:
		list = append(list, condition{fieldPort, matchEqual, value{typeUint16, uintptr(f.First)}})
	default:
		ends := valueRange{value{typeUint16, uintptr(f.First)}, value{typeUint16, uintptr(f.Last)}}
		list = append(list, condition{fieldPort, matchRange, pointer(m, typeRange, ends)})
	}
	if f.Source.IsValid() {
		v := value{}
		if a := f.Source.Addr(); a.Is4() {
			four := a.As4()
			v = pointer(m, typeV4Mask, v4Mask{binary.BigEndian.Uint32(four[:]), ^uint32(0) << (32 - f.Source.Bits())})
		} else {
			v = pointer(m, typeV6Mask, v6Mask{a.As16(), uint8(f.Source.Bits())})
		}
		list = append(list, condition{fieldSource, matchEqual, v})
	}
	if f.Flags != 0 {
		list = append(list, condition{fieldFlags, matchFlagsAnySet, value{typeUint32, uintptr(f.Flags)}})
	}
	out := filter0{
		key: f.Key, display: displayData{name: m.text(f.Name)}, provider: at(m, ProviderKey), data: m.bytes(f.Data),
		layer: layerKeys[f.Layer], sublayer: SublayerKey, weight: pointer(m, typeUint64, f.Weight), action: action{typ: actionPermit},
	}
	if len(list) > 0 {
		m.Pin(&list[0])
		out.numConditions, out.conditions = uint32(len(list)), &list[0]
	}
	if f.Block {
		out.action.typ = actionBlock
		out.flags |= flagClearActionRight
	}
	switch f.Lifetime {
	case Persistent:
		out.flags |= flagPersistent
	case BootTime:
		out.flags |= flagBootTime
	}
	return at(m, out)
}

// ours reports whether a filter stands in jitgate's sublayer, or says that it
// is jitgate's.
func (f *filter0) ours() bool {
	return f.sublayer == SublayerKey || f.provider != nil && *f.provider == ProviderKey
}

// decode reads a filter that is ours. One that says what no Filter can is
// given a name that no filter of jitgate's has.
func decode(f *filter0) Filter {
	out := Filter{Key: f.key, Name: textAt(f.display.name), Data: string(unsafe.Slice(f.data.data, f.data.size)), Block: f.action.typ == actionBlock}
	for layer, key := range layerKeys {
		if f.layer == key {
			out.Layer = layer
		}
	}
	switch {
	case f.flags&flagPersistent != 0:
		out.Lifetime = Persistent
	case f.flags&flagBootTime != 0:
		out.Lifetime = BootTime
	}
	if f.weight.typ == typeUint64 {
		out.Weight = *target[uint64](&f.weight)
	}
	plain := f.sublayer == SublayerKey && f.provider != nil && *f.provider == ProviderKey &&
		(f.action.typ == actionBlock || f.action.typ == actionPermit) && (f.flags&flagClearActionRight != 0) == out.Block && f.flags&flagDisabled == 0
	for _, c := range unsafe.Slice(f.conditions, f.numConditions) {
		plain = out.ask(&c) && plain
	}
	if !plain {
		out.Name = "not as jitgate writes it: " + out.Name
	}
	return out
}

// ask adds a condition that was read, and reports whether it is one of those
// jitgate writes.
func (f *Filter) ask(c *condition) bool {
	v := &c.value
	switch kind := [2]uint32{v.typ, c.match}; {
	case c.field == fieldProtocol && kind == [2]uint32{typeUint8, matchEqual} && f.Protocol == 0:
		f.Protocol = firewall.Protocol(v.union)
	case c.field == fieldPort && kind == [2]uint32{typeUint16, matchEqual} && f.Last == 0:
		f.First, f.Last = uint16(v.union), uint16(v.union)
	case c.field == fieldPort && kind == [2]uint32{typeRange, matchRange} && f.Last == 0:
		r := target[valueRange](v)
		f.First, f.Last = uint16(r.low.union), uint16(r.high.union)
	case c.field == fieldSource && kind == [2]uint32{typeV4Mask, matchEqual} && !f.Source.IsValid():
		r := target[v4Mask](v)
		bits := 0
		for m := r.mask; m&0x80000000 != 0; m <<= 1 {
			bits++
		}
		f.Source = netip.PrefixFrom(netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, r.address))), bits)
		return r.mask == ^uint32(0)<<(32-bits)
	case c.field == fieldSource && kind == [2]uint32{typeV6Mask, matchEqual} && !f.Source.IsValid():
		r := target[v6Mask](v)
		f.Source = netip.PrefixFrom(netip.AddrFrom16(r.address), int(r.bits))
	case c.field == fieldFlags && kind == [2]uint32{typeUint32, matchFlagsAnySet} && f.Flags == 0:
		f.Flags = uint32(v.union)
	default:
		return false
	}
	return true
}

// target is what a value points to.
func target[T any](v *value) *T { return *(**T)(unsafe.Pointer(&v.union)) }

// textAt reads UTF-16 up to its end.
func textAt(p *uint16) string {
	if p == nil {
		return ""
	}
	n := 0
	for *(*uint16)(unsafe.Add(unsafe.Pointer(p), 2*n)) != 0 {
		n++
	}
	return string(utf16.Decode(unsafe.Slice(p, n)))
}

// Error is what the platform answered.
type Error struct {
	Call string // its function
	Code uint32 // FWP_E_…, or of Win32
}

// Codes of fwpmu.h and winerror.h.
const (
	codeProviderNotFound = 0x80320005
	codeSublayerNotFound = 0x80320007
	codeTimeout          = 0x80320012

	codeAccessDenied      = 5
	codeNotSupported      = 50
	codeNotImplemented    = 120
	codeServiceNotActive  = 1062
	codeServerUnavailable = 1722
	codeCallFailed        = 1726
	codeNoEndpoints       = 1753
	codeCannotSupport     = 1764 // what Wine says
)

// ErrUnavailable says that there is no filtering platform, or that its service
// does not run.
var ErrUnavailable = errors.New("the Windows Filtering Platform does not answer: start the service BFE (Base Filtering Engine)")

func (e *Error) Error() string {
	text := ""
	switch e.Code {
	case codeAccessDenied:
		text = ": access denied, run as an administrator or as the service"
	case codeTimeout:
		text = ": another program holds the filters locked"
	case codeSublayerNotFound, codeProviderNotFound:
		text = ": somebody removed jitgate's sublayer or provider"
	}
	if errors.Is(e, ErrUnavailable) {
		text = ": " + ErrUnavailable.Error()
	}
	return fmt.Sprintf("%s: error 0x%x%s", e.Call, e.Code, text)
}

// Unwrap tells a platform that is not there from one that refuses.
func (e *Error) Unwrap() error {
	switch e.Code {
	case codeNotSupported, codeNotImplemented, codeServiceNotActive, codeServerUnavailable, codeCallFailed, codeNoEndpoints, codeCannotSupport:
		return ErrUnavailable
	}
	return nil
}

// Is tells a system that has no filtering platform at all (errors.ErrUnsupported),
// and so no filters, from one whose service does not run.
func (e *Error) Is(target error) bool {
	return target == errors.ErrUnsupported && slices.Contains([]uint32{codeNotSupported, codeNotImplemented, codeCannotSupport}, e.Code)
}
