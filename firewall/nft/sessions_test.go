//go:build linux

package nft

import (
	"net/netip"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

func TestSessions(t *testing.T) {
	const now = firewall.BootTime(time.Hour)
	door := func(source string) firewall.Door {
		return firewall.Door{Source: netip.MustParsePrefix(source), Protocol: firewall.TCP, Port: 22}
	}
	a, any4 := door("10.0.0.1/32"), door("0.0.0.0/0")
	full := map[firewall.Door]firewall.End{any4: {}, a: {}}
	for i := range maxRevoked {
		full[firewall.Door{Source: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 1, byte(i >> 8), byte(i)}), 32), Protocol: firewall.TCP, Port: 22}] = firewall.End{}
	}
	later := now.Add(time.Minute)
	for name, c := range map[string]struct {
		revoked   map[firewall.Door]firewall.End
		plan      firewall.Plan
		cut, free []firewall.Door
	}{
		"taken back":            {nil, firewall.Plan{Close: []firewall.Closing{{Door: a, Was: later}}}, []firewall.Door{a}, nil},
		"ran out":               {nil, firewall.Plan{Close: []firewall.Closing{{Door: a, Was: now}}}, nil, nil},
		"an exempt source":      {nil, firewall.Plan{Close: []firewall.Closing{{Door: firewall.Door{Source: a.Source}, Was: later}}}, nil, nil},
		"cut in any case":       {nil, firewall.Plan{Ports: []firewall.Port{{Protocol: firewall.TCP, First: 20, Last: 30, Cut: true}}, Close: []firewall.Closing{{Door: a, Was: later}}}, nil, nil},
		"granted":               {nil, firewall.Plan{Open: []firewall.Change{{Door: a}}}, nil, nil},
		"granted again":         {map[firewall.Door]firewall.End{a: {}}, firewall.Plan{Open: []firewall.Change{{Door: a}}}, nil, []firewall.Door{a}},
		"any source again":      {map[firewall.Door]firewall.End{any4: {}}, firewall.Plan{Open: []firewall.Change{{Door: any4}}}, nil, []firewall.Door{any4}},
		"too many":              {full, firewall.Plan{Close: []firewall.Closing{{Door: a, Was: later}, {Door: door("fd00::1/128"), Was: later}}}, []firewall.Door{any4, door("::/0")}, nil},
		"too many, granted":     {full, firewall.Plan{Open: []firewall.Change{{Door: a}}}, nil, []firewall.Door{a}},
		"too many, any granted": {full, firewall.Plan{Open: []firewall.Change{{Door: any4}}}, nil, nil},
	} {
		got := (&Backend{revoked: c.revoked}).sessions(c.plan, now)
		if len(got.cut) != len(c.cut) || len(got.free) != len(c.free) {
			t.Errorf("%s: %+v, want %v cut and %v free", name, got, c.cut, c.free)
		}
		for _, d := range c.cut {
			if got.cut[d].Until != now.Add(remembered) {
				t.Errorf("%s: %v is not cut: %+v", name, d, got)
			}
		}
	}
}

// A session is over if no opening covers it that still goes on: one that has
// run out does not, though nobody has closed it yet.
func TestOver(t *testing.T) {
	const now = firewall.BootTime(time.Hour)
	door := func(source string) firewall.Door {
		return firewall.Door{Source: netip.MustParsePrefix(source), Protocol: firewall.TCP, Port: 22}
	}
	open := index{doors: map[firewall.Door]firewall.End{}, now: now}
	for d, until := range map[firewall.Door]firewall.BootTime{door("10.0.0.0/8"): now, door("10.1.0.0/16"): now.Add(time.Minute), door("fd00::/16"): now.Add(time.Minute)} {
		open.doors[d] = firewall.End{Until: until}
		open.addLength(setOf(d))
	}
	e := endedBy([]firewall.Closing{{Door: door("10.0.0.1/32"), Was: firewall.Never}, {Door: door("10.1.0.1/32"), Was: firewall.Never}},
		[]firewall.Port{{Protocol: firewall.TCP, First: 22, Last: 23}}, open, now)
	for source, want := range map[string]bool{"10.0.0.1": true, "10.1.0.1": false, "10.0.0.2": false, "fd00::1": false, "::a00:1": false} {
		if e.over(netip.MustParseAddr(source), firewall.TCP, 22) != want {
			t.Errorf("%s: over: %t", source, !want)
		}
	}
	if a := netip.MustParseAddr("10.0.0.1"); e.over(a, firewall.TCP, 23) || e.over(a, firewall.UDP, 22) {
		t.Error("another service is over")
	}
}
