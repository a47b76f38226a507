package agent

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// row makes a row of Windows's table of connections by its documentation.
func row(state uint32, local, remote netip.AddrPort, pid uint32) []byte {
	var b []byte
	u32 := func(n uint32) { b = binary.LittleEndian.AppendUint32(b, n) }
	port := func(p uint16) { b = append(b, byte(p>>8), byte(p), 0xaa, 0xbb) } // the rest may hold anything
	if local.Addr().Is4() {
		u32(state)
		b = append(b, local.Addr().AsSlice()...)
		port(local.Port())
		b = append(b, remote.Addr().AsSlice()...)
		port(remote.Port())
		u32(pid)
		return b
	}
	for _, a := range []netip.AddrPort{local, remote} {
		b = append(b, a.Addr().AsSlice()...)
		u32(7) // scope
		port(a.Port())
	}
	u32(state)
	u32(pid)
	return b
}

func table(rows ...[]byte) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(rows))), slices.Concat(rows...)...)
}

func TestTCPTable(t *testing.T) {
	at := netip.MustParseAddrPort
	four := table(
		row(5, at("10.0.0.4:3389"), at("203.0.113.7:50001"), 1000),
		row(2, at("10.0.0.4:3389"), at("203.0.113.8:50001"), 1000), // listens
		row(5, at("10.0.0.4:22"), at("203.0.113.9:50002"), 42))
	got := parseTCPTable(four, false)
	if want := []connection{{at("10.0.0.4:3389"), at("203.0.113.7:50001"), "process 1000"}, {at("10.0.0.4:22"), at("203.0.113.9:50002"), "process 42"}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	six := parseTCPTable(table(row(5, at("[2001:db8::1]:22"), at("[2001:db8::2]:50001"), 42), row(5, at("[::ffff:10.0.0.4]:3389"), at("[::ffff:203.0.113.7]:50003"), 9)), true)
	if want := []connection{{at("[2001:db8::1]:22"), at("[2001:db8::2]:50001"), "process 42"}, {at("10.0.0.4:3389"), at("203.0.113.7:50003"), "process 9"}}; !slices.Equal(six, want) {
		t.Errorf("%v, want %v", six, want)
	}
	if s := ownSessions(got, map[string]bool{"process 42": true}, ""); !slices.Equal(s, []Session{{netip.MustParseAddr("203.0.113.9"), 22}}) {
		t.Errorf("below sshd: %v", s)
	}
	for client, want := range map[string][]Session{"203.0.113.7": {{netip.MustParseAddr("203.0.113.7"), 3389}}, "203.0.113.9": nil, "192.0.2.1": nil} {
		if s := desktopSessions(got, netip.MustParseAddr(client)); !slices.Equal(s, want) {
			t.Errorf("a desktop of %s: %v", client, s)
		}
	}
	if s := desktopSessions(got, netip.Addr{}); s != nil {
		t.Errorf("no desktop: %v", s)
	}
}

// A table cut short anywhere gives the rows before.
func FuzzTCPTable(f *testing.F) {
	f.Add(table(row(5, netip.MustParseAddrPort("10.0.0.4:22"), netip.MustParseAddrPort("10.0.0.5:5"), 1)), false)
	f.Add([]byte{255, 255, 255, 255, 5, 0, 0, 0}, true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		if got := parseTCPTable(b, v6); len(got) > len(b)/24 {
			t.Fatalf("%d connections in %d bytes", len(got), len(b))
		}
	})
}
