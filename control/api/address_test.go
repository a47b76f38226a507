package api

import (
	"net/http/httptest"
	"net/netip"
	"testing"
)

var proxies = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}

func TestClientAddress(t *testing.T) {
	for _, c := range []struct {
		name, peer       string
		given, forwarded []string
		want             string
	}{
		{"direct", "203.0.113.7:50000", nil, nil, "203.0.113.7"},
		{"direct IPv6", "[2001:db8::7]:50000", nil, nil, "2001:db8::7"},
		{"direct IPv6 with zone", "[fe80::1%eth0]:50000", nil, nil, "fe80::1"},
		{"mapped", "[::ffff:203.0.113.7]:50000", nil, nil, "203.0.113.7"},
		{"a client that claims to be a proxy", "203.0.113.7:50000", []string{"198.51.100.1"}, nil, "203.0.113.7"},
		{"the same with Forwarded", "203.0.113.7:50000", nil, []string{"for=198.51.100.1"}, "203.0.113.7"},
		{"proxy", "10.0.0.2:1", []string{"198.51.100.1"}, nil, "198.51.100.1"},
		{"proxy without header", "10.0.0.2:1", nil, nil, "10.0.0.2"},
		{"spoofed entry on the left", "10.0.0.2:1", []string{"192.0.2.66, 198.51.100.1"}, nil, "198.51.100.1"},
		{"spoofed trusted entry on the left", "10.0.0.2:1", []string{"10.9.9.9, 198.51.100.1"}, nil, "198.51.100.1"},
		{"two proxies", "10.0.0.2:1", []string{"192.0.2.66, 198.51.100.1, 10.0.0.3"}, nil, "198.51.100.1"},
		{"several headers", "10.0.0.2:1", []string{"192.0.2.66", "198.51.100.1"}, nil, "198.51.100.1"},
		{"only proxies", "10.0.0.2:1", []string{"10.0.0.4, 10.0.0.3"}, nil, "10.0.0.4"},
		{"port", "10.0.0.2:1", []string{"198.51.100.1:4711"}, nil, "198.51.100.1"},
		{"IPv6 bare", "10.0.0.2:1", []string{"2001:db8::7"}, nil, "2001:db8::7"},
		{"IPv6 brackets", "10.0.0.2:1", []string{"[2001:db8::7]"}, nil, "2001:db8::7"},
		{"IPv6 brackets and port", "10.0.0.2:1", []string{"[2001:db8::7]:4711"}, nil, "2001:db8::7"},
		{"rubbish is nobody", "10.0.0.2:1", []string{"198.51.100.1, unknown"}, nil, "10.0.0.2"},
		{"rubbish behind a proxy", "10.0.0.2:1", []string{"198.51.100.1, <script>, 10.0.0.3"}, nil, "10.0.0.3"},
		{"Forwarded", "10.0.0.2:1", nil, []string{`for=192.0.2.66, for="198.51.100.1:80";proto=https;by=10.0.0.2`}, "198.51.100.1"},
		{"Forwarded IPv6", "[fd00::2]:1", nil, []string{`Proto=https; For="[2001:db8::7]:4711"`}, "2001:db8::7"},
		{"Forwarded with a comma in quotes", "10.0.0.2:1", nil, []string{`for="198.51.100.1, 192.0.2.66"`}, "10.0.0.2"},
		{"Forwarded hidden", "10.0.0.2:1", nil, []string{`for=198.51.100.1, for=_hidden`}, "10.0.0.2"},
		{"Forwarded twice in one element", "10.0.0.2:1", nil, []string{`for=198.51.100.1;for=192.0.2.66`}, "10.0.0.2"},
		{"Forwarded without for", "10.0.0.2:1", nil, []string{`for=198.51.100.1, proto=https`}, "10.0.0.2"},
		{"both headers", "10.0.0.2:1", []string{"192.0.2.66"}, []string{"for=198.51.100.1"}, "10.0.0.2"},
		{"mapped proxy", "[::ffff:10.0.0.2]:1", []string{"198.51.100.1"}, nil, "198.51.100.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest("GET", "/", nil)
			r.RemoteAddr = c.peer
			for _, v := range c.given {
				r.Header.Add("X-Forwarded-For", v)
			}
			for _, v := range c.forwarded {
				r.Header.Add("Forwarded", v)
			}
			if got := ClientAddress(r, proxies); got.String() != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// Whatever a header says, the address is one that our proxies vouch for: the
// peer, or an entry with nothing but our proxies to its right.
func FuzzForwarded(f *testing.F) {
	for _, s := range []string{`for=192.0.2.60;proto=http`, `for="[2001:db8::1]:80"`, `for=a, for="\"", for=10.0.0.1`, `"`, `for="`, "198.51.100.1, 10.0.0.1", "[::1", "fe80::1%x"} {
		f.Add(s, true)
		f.Add(s, false)
	}
	f.Fuzz(func(t *testing.T, header string, rfc bool) {
		r := httptest.NewRequest("GET", "/", nil)
		name := "X-Forwarded-For"
		if rfc {
			name = "Forwarded"
		}
		r.Header[name] = []string{header}
		r.RemoteAddr = "203.0.113.7:1"
		if a := ClientAddress(r, proxies); a.String() != "203.0.113.7" {
			t.Errorf("a stranger became %s", a)
		}
		r.RemoteAddr = "10.0.0.2:1"
		if a := ClientAddress(r, proxies); !a.IsValid() || a.Zone() != "" || a.Is4In6() {
			t.Errorf("%s", a)
		}
		r.Header[name] = []string{header + ", " + map[bool]string{true: "for="}[rfc] + "198.51.100.1"}
		a := ClientAddress(r, proxies)
		open := rfc && len(splitQuoted(header+", x", ',')) < 2 // an open quote swallows what the proxy added
		if !open && a.String() != "198.51.100.1" && a.String() != "10.0.0.2" {
			t.Errorf("what stands left of the proxy's entry made it %s", a)
		}
	})
}
