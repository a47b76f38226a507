package cli

import (
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/jitgate/jitgate/client"
)

func TestTable(t *testing.T) {
	tab := table{head: []string{"NAME", "", "WHAT"}}
	tab.add(plain("web1"), tinted(green, "open"), plain("a\x1b[31mb\n"))
	tab.add(plain("größer"), plain(""), plain(""))
	want := "NAME          WHAT\nweb1    open  a?[31mb?\ngrößer\n"
	if got := tab.format(0, false); got != want {
		t.Errorf("%q", got)
	}
	if got := tab.format(0, true); got != strings.Replace(want, "open", "\033[32mopen\033[0m", 1) {
		t.Errorf("%q", got)
	}
	tab.add(plain(strings.Repeat("x", 50)), plain("y"), plain(strings.Repeat("ü", 100)))
	for _, width := range []int{120, 80, 40} {
		for line := range strings.Lines(tab.format(width, false)) {
			if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > width {
				t.Errorf("%d characters in %d: %s", n, width, line)
			}
		}
	}
	if got := tab.format(80, false); !strings.Contains(got, "x…") || !strings.Contains(got, "ü…") || !strings.Contains(got, "web1    open") && !strings.Contains(got, "web1") {
		t.Errorf("%s", got)
	}
	// No terminal is too narrow to say anything.
	if got := tab.format(1, false); !strings.Contains(got, "web1") {
		t.Errorf("%s", got)
	}
}

// A port as it is written.
func TestPortSpec(t *testing.T) {
	before := client.PortRule{Number: 22, Protocol: "UDP", AllowedSourceAddressPrefix: "10.0.0.0/8", MaxRequestAccessDuration: "PT1H", SessionsAtEnd: "cut"}
	for in, want := range map[string]struct{ fresh, over string }{
		"22":                      {"22 TCP [*] PT3H ", "22 UDP [10.0.0.0/8] PT1H cut"},
		"22/tcp":                  {"22 TCP [*] PT3H ", "22 TCP [10.0.0.0/8] PT1H cut"},
		"22/*:PT2H":               {"22 * [*] PT2H ", "22 * [10.0.0.0/8] PT2H cut"},
		"22:90m:fd00::/8,1.2.3.4": {"22 TCP [fd00::/8 1.2.3.4] PT1H30M ", "22 UDP [fd00::/8 1.2.3.4] PT1H30M cut"},
		"22::*":                   {"22 TCP [*] PT3H ", "22 UDP [*] PT1H cut"},
	} {
		p, err := parsePortSpec(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		show := func(r client.PortRule) string {
			sources := r.AllowedSourceAddressPrefixes
			if r.AllowedSourceAddressPrefix != "" {
				sources = append(sources, r.AllowedSourceAddressPrefix)
			}
			return strings.Join([]string{"22", r.Protocol, "[" + strings.Join(sources, " ") + "]", r.MaxRequestAccessDuration, r.SessionsAtEnd}, " ")
		}
		if got := show(p.onto(nil)); got != want.fresh {
			t.Errorf("%s: a new one is %q", in, got)
		}
		if got := show(p.onto(&before)); got != want.over {
			t.Errorf("%s: over another it is %q", in, got)
		}
	}
}

// When the address that the control plane sees may be the wrong one.
func TestDoubtful(t *testing.T) {
	inside := client.VM{Name: "web1", Address: "10.0.0.4"}
	addr := func(s string) netip.Addr {
		a, _ := netip.ParseAddr(s)
		return a
	}
	for name, c := range map[string]struct {
		seen, local string
		own         []string
		want        string
	}{
		"behind a router at home":      {"203.0.113.7", "", []string{"192.168.1.5"}, ""},
		"on the same network":          {"10.0.0.9", "10.0.0.9", []string{"10.0.0.9"}, ""},
		"a public address of its own":  {"203.0.113.7", "", []string{"203.0.113.7"}, ""},
		"IPv6 of its own, the VM IPv4": {"2001:db8::7", "10.0.0.9", []string{"2001:db8::7", "10.0.0.9"}, ""},
		"CGNAT":                        {"100.72.1.2", "", []string{"192.168.1.5"}, "CGNAT"},
		"a proxy inside":               {"10.1.1.1", "", []string{"10.0.0.9"}, "a proxy stands between"},
		"a proxy on the control plane": {"127.0.0.1", "10.0.0.9", []string{"10.0.0.9", "127.0.0.1"}, "10.0.0.9"},
		"another way to the machine":   {"10.8.0.2", "10.0.0.9", []string{"10.8.0.2", "10.0.0.9"}, "use --source 10.0.0.9"},
		"a VPN to the machine":         {"203.0.113.7", "10.8.0.2", []string{"192.168.1.5", "10.8.0.2"}, "use --source 10.8.0.2"},
		"not known":                    {"", "", nil, "does not know where you come from"},
	} {
		t.Run(name, func(t *testing.T) {
			var own []netip.Addr
			for _, s := range c.own {
				own = append(own, addr(s))
			}
			got := doubtful(c.seen, inside, addr(c.local), own)
			if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
				t.Errorf("%q", got)
			}
		})
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{3 * time.Hour: "3h", 90 * time.Minute: "1h30m", 50 * time.Second: "50s", time.Hour + time.Second: "1h0m1s", 0: "0s"} {
		if got := short(d); got != want {
			t.Errorf("%s is %q", d, got)
		}
	}
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	for in, want := range map[string]time.Time{"": {}, "24h": now.Add(-24 * time.Hour), "PT1H": now.Add(-time.Hour), "7d": now.AddDate(0, 0, -7), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got, err := sinceTime(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%s is %s, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{"web1": "'web1'", "a b": "'a b'", "100%": "'100%%'", "it's": `'it'\''s'`, "$(id)": "'$(id)'"} {
		if got := forProxyCommand(in); got != want {
			t.Errorf("%s is quoted as %s", in, got)
		}
	}
	if got := string(rdpFile("10.0.0.4:3389", "alice\r\nevil:s:1")); got != "full address:s:10.0.0.4:3389\r\nprompt for credentials:i:1\r\nusername:s:alice??evil:s:1\r\n" {
		t.Errorf("%q", got)
	}
}

// What an operator's own file says is taken, or refused with its name.
func FuzzContexts(f *testing.F) {
	f.Add([]byte(`{"current":"a","contexts":{"a":{"url":"https://x","token":"t"}}}`))
	f.Add([]byte(`{"contexts":null}`))
	f.Add([]byte(`{"contexts":{"a":{"issuer":{"expires":"2026-11-27T12:00:00Z"}}}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := parseContexts("here", text)
		if err != nil && !strings.HasPrefix(err.Error(), "here: ") {
			t.Errorf("%v", err)
		}
		if err == nil && c.Contexts == nil {
			t.Error("no place for contexts")
		}
	})
}

// A port that is written any way is read or refused, and never widened.
func FuzzPortSpec(f *testing.F) {
	f.Add("22/tcp:PT2H:10.0.0.0/8")
	f.Add("65536::,")
	f.Fuzz(func(t *testing.T, s string) {
		p, err := parsePortSpec(s)
		if err == nil && (p.number == 0 || p.onto(nil).Number != p.number || p.sources && p.onto(nil).AllowedSourceAddressPrefix != "") {
			t.Errorf("%q is %+v", s, p)
		}
	})
}
