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
