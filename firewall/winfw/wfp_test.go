package winfw

import (
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/jitgate/jitgate/firewall"
)

// The structures are laid out as a C compiler for 64-bit Windows does it.
func TestLayout(t *testing.T) {
	var (
		f filter0
		s session0
		p provider0
		l sublayer0
		e enumTemplate
		c condition
		r valueRange
		v v6Mask
	)
	for _, x := range []struct {
		what      string
		got, want uintptr
	}{
		{"FWPM_FILTER0", unsafe.Sizeof(f), 200},
		{".displayData", unsafe.Offsetof(f.display), 16},
		{".flags", unsafe.Offsetof(f.flags), 32},
		{".providerKey", unsafe.Offsetof(f.provider), 40},
		{".providerData", unsafe.Offsetof(f.data), 48},
		{".layerKey", unsafe.Offsetof(f.layer), 64},
		{".subLayerKey", unsafe.Offsetof(f.sublayer), 80},
		{".weight", unsafe.Offsetof(f.weight), 96},
		{".numFilterConditions", unsafe.Offsetof(f.numConditions), 112},
		{".filterCondition", unsafe.Offsetof(f.conditions), 120},
		{".action", unsafe.Offsetof(f.action), 128},
		{".rawContext", unsafe.Offsetof(f.context), 152},
		{".filterId", unsafe.Offsetof(f.id), 176},
		{".effectiveWeight", unsafe.Offsetof(f.effective), 184},
		{"FWPM_SESSION0", unsafe.Sizeof(s), 72},
		{".flags", unsafe.Offsetof(s.flags), 32},
		{".txnWaitTimeoutInMSec", unsafe.Offsetof(s.wait), 36},
		{".sid", unsafe.Offsetof(s.sid), 48},
		{".kernelMode", unsafe.Offsetof(s.kernelMode), 64},
		{"FWPM_PROVIDER0", unsafe.Sizeof(p), 64},
		{".flags", unsafe.Offsetof(p.flags), 32},
		{".providerData", unsafe.Offsetof(p.data), 40},
		{".serviceName", unsafe.Offsetof(p.service), 56},
		{"FWPM_SUBLAYER0", unsafe.Sizeof(l), 72},
		{".providerKey", unsafe.Offsetof(l.provider), 40},
		{".weight", unsafe.Offsetof(l.weight), 64},
		{"FWPM_FILTER_ENUM_TEMPLATE0", unsafe.Sizeof(e), 72},
		{".layerKey", unsafe.Offsetof(e.layer), 8},
		{".enumType", unsafe.Offsetof(e.enumType), 24},
		{".flags", unsafe.Offsetof(e.flags), 28},
		{".numFilterConditions", unsafe.Offsetof(e.numConditions), 40},
		{".actionMask", unsafe.Offsetof(e.actionMask), 56},
		{".calloutKey", unsafe.Offsetof(e.callout), 64},
		{"FWPM_FILTER_CONDITION0", unsafe.Sizeof(c), 40},
		{".conditionValue", unsafe.Offsetof(c.value), 24},
		{"FWP_RANGE0", unsafe.Sizeof(r), 32},
		{"FWP_V6_ADDR_AND_MASK", unsafe.Sizeof(v), 17},
		{"GUID", unsafe.Sizeof(GUID{}), 16},
	} {
		if x.got != x.want {
			t.Errorf("%s: %d, want %d", x.what, x.got, x.want)
		}
	}
}

// examples are filters of every kind of item.
func examples(t *testing.T) []Filter {
	var all []Filter
	door := firewall.Door{Source: netip.MustParsePrefix("10.1.2.0/23"), Protocol: firewall.UDP, Port: 3389}
	six := firewall.Door{Source: netip.MustParsePrefix("2001:db8::/33")}
	end := firewall.End{Until: 1<<62 + 7, Label: `ünïcode <&> "label"`}
	for _, i := range []item{
		{Kind: base, Mode: drop}, {Kind: base, Mode: watch}, {Kind: trial, Until: 5},
		{Kind: port, Mode: drop, Port: "22/tcp"}, {Kind: port, Mode: drop, Port: "5985-5986/tcp cut"}, {Kind: port, Mode: watch, Port: "1-65535/udp"}, {Kind: port, Mode: onTrial, Port: "22/tcp"},
		doorItem(opening, "", door, end), doorItem(opening, "", six, end), doorItem(opening, "", firewall.Door{Source: netip.MustParsePrefix("0.0.0.0/0"), Protocol: firewall.TCP, Port: 22}, end),
		doorItem(revoked, drop, door, end), doorItem(revoked, watch, door, end), doorItem(revoked, onTrial, door, end),
	} {
		list := i.filters()
		if len(list) == 0 {
			t.Errorf("%s has no filter", i.encode())
		}
		all = append(all, list...)
	}
	return all
}

// Every filter comes back from its C structure as it went in.
func TestEncode(t *testing.T) {
	for _, f := range examples(t) {
		var m memory
		c := m.encode(f)
		if !c.ours() {
			t.Errorf("%s: nobody would know it for ours", f.Name)
		}
		if got := decode(c); got != f {
			t.Errorf("got  %+v\nwant %+v", got, f)
		}
		m.Unpin()
	}
}

// What stands in the structure for one filter, field by field.
func TestEncodedFields(t *testing.T) {
	var m memory
	defer m.Unpin()
	f := item{Kind: port, Mode: drop, Port: "5985-5986/tcp cut"}.filters()[0]
	c := m.encode(f)
	if c.flags != 0x9 || c.action.typ != 0x1001 || *c.provider != ProviderKey || c.sublayer != SublayerKey || *target[uint64](&c.weight) != weightCut || c.numConditions != 2 {
		t.Errorf("a persistent block that nobody overrides: %+v", c)
	}
	list := unsafe.Slice(c.conditions, c.numConditions)
	r := target[valueRange](&list[1].value)
	if list[0].value != (value{1, 6}) || list[1].match != 5 || list[1].value.typ != 0x102 || r.low != (value{2, 5985}) || r.high != (value{2, 5986}) {
		t.Errorf("conditions: %+v, %+v", list, r)
	}
	f = doorItem(opening, "", firewall.Door{Source: netip.MustParsePrefix("10.1.2.0/23"), Protocol: firewall.UDP, Port: 3389}, firewall.End{Until: 1}).filters()[0]
	c = m.encode(f)
	list = unsafe.Slice(c.conditions, c.numConditions)
	if c.flags != 0 || c.action.typ != 0x1002 || len(list) != 3 {
		t.Fatalf("a dynamic permit that others may block: %+v", c)
	}
	if mask := *target[v4Mask](&list[2].value); mask != (v4Mask{0x0a010200, 0xfffffe00}) || list[2].value.typ != 0x100 {
		t.Errorf("source: %x", mask)
	}
	if list[1].value != (value{2, 3389}) || list[1].match != 0 {
		t.Errorf("port: %+v", list[1])
	}
}

// A filter that differs in anything is not taken for the one it says it is.
func TestDecodeStrange(t *testing.T) {
	for name, change := range map[string]func(*filter0, []condition){
		"action":              func(c *filter0, _ []condition) { c.action.typ = actionPermit },
		"callout":             func(c *filter0, _ []condition) { c.action.typ = 0x5003 },
		"may be overridden":   func(c *filter0, _ []condition) { c.flags &^= flagClearActionRight },
		"disabled":            func(c *filter0, _ []condition) { c.flags |= flagDisabled },
		"lifetime":            func(c *filter0, _ []condition) { c.flags &^= flagPersistent },
		"weight":              func(c *filter0, _ []condition) { *target[uint64](&c.weight) = 1 },
		"automatic weight":    func(c *filter0, _ []condition) { c.weight = value{typeUint8, 3} },
		"layer":               func(c *filter0, _ []condition) { c.layer.Data1++ },
		"sublayer":            func(c *filter0, _ []condition) { c.sublayer.Data1++ },
		"provider":            func(c *filter0, _ []condition) { c.provider = nil },
		"key":                 func(c *filter0, _ []condition) { c.key.Data1++ },
		"name":                func(c *filter0, _ []condition) { c.display.name = nil },
		"data":                func(c *filter0, _ []condition) { c.data = byteBlob{} },
		"one condition fewer": func(c *filter0, _ []condition) { c.numConditions-- },
		"another port":        func(_ *filter0, l []condition) { l[1].value.union = 23 },
		"another match":       func(_ *filter0, l []condition) { l[1].match = matchFlagsAnySet },
		"another field":       func(_ *filter0, l []condition) { l[1].field.Data1++ },
		"the same twice":      func(_ *filter0, l []condition) { l[1] = l[0] },
	} {
		t.Run(name, func(t *testing.T) {
			all := (item{Kind: port, Mode: drop, Port: "22/tcp"}).filters()
			var m memory
			defer m.Unpin()
			c := m.encode(all[0])
			change(c, unsafe.Slice(c.conditions, c.numConditions))
			found := []Filter{decode(c)}
			s := read(append(found, all[1:]...), nil)
			if len(s.items) > 0 || !slices.Contains(s.strange, found[0]) {
				t.Errorf("taken for what it says: %+v", s)
			}
		})
	}
}

// Whatever the platform holds, reading it neither fails nor makes a guard of
// what is none.
func TestReadRandom(t *testing.T) {
	all := examples(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 500 {
		var found []Filter
		mine := map[GUID]firewall.BootTime{}
		for _, f := range all {
			if r.IntN(3) > 0 {
				found = append(found, f)
				if r.IntN(4) > 0 {
					mine[f.Key] = 0
				}
			}
		}
		s := read(found, mine)
		told := len(s.strange)
		for i := range s.items {
			for _, f := range i.filters() {
				_, ours := mine[f.Key]
				if f.Lifetime != BootTime && (!slices.Contains(found, f) || f.Lifetime == Dynamic && !ours) {
					t.Fatalf("seed %d: %s counts, and %q is not there", seed, i.encode(), f.Name)
				}
				if slices.Contains(found, f) {
					told++
				}
			}
		}
		if told != len(found) {
			t.Fatalf("seed %d: %d filters found, %d accounted for", seed, len(found), told)
		}
	}
}

func TestErrors(t *testing.T) {
	for code, want := range map[uint32]struct {
		text        string
		unavailable bool
	}{
		codeAccessDenied:     {"run as an administrator", false},
		codeTimeout:          {"another program holds", false},
		codeSublayerNotFound: {"somebody removed", false},
		codeNotSupported:     {"start the service BFE", true},
		codeNoEndpoints:      {"start the service BFE", true},
		codeCannotSupport:    {"start the service BFE", true},
		0x80320012 + 1:       {"0x80320013", false},
	} {
		err := &Error{"FwpmEngineOpen0", code}
		if !strings.Contains(err.Error(), want.text) || errors.Is(err, ErrUnavailable) != want.unavailable {
			t.Errorf("%x: %q, unavailable: %t", code, err, errors.Is(err, ErrUnavailable))
		}
	}
}

// Keys are stable: filters of an earlier version are known for what they are.
func TestKeys(t *testing.T) {
	if got, want := (GUID{0x6ba7b810, 0x9dad, 0x11d1, [8]byte{0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}}).named("www.example.com").String(), "{2ed6657d-e927-568b-95e1-2665a8aea6a2}"; got != want {
		t.Errorf("version 5 of www.example.com is %s, want %s (RFC 9562, A.4)", got, want)
	}
	keys := map[GUID]string{}
	for _, f := range examples(t) {
		if was, there := keys[f.Key]; there {
			t.Errorf("%q and %q have one key", was, f.Name)
		}
		keys[f.Key] = f.Name
	}
}
