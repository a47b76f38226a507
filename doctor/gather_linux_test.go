package doctor

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/jitgate/jitgate/firewall/fwtest"
)

// run runs a command in the test's namespace.
func run(t *testing.T, input string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(args[0])
	if err != nil {
		if os.Getenv("JITGATE_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin = strings.NewReader(input)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s%s", args, err, input, out)
	}
}

// shown is a rule in one line, for comparing.
func shown(r Rule) string {
	var parts []string
	for _, m := range r.Matches {
		if m.Field == Unknown {
			parts = append(parts, "?")
			continue
		}
		var values []string
		for _, v := range m.Values {
			values = append(values, v.String())
		}
		sign := "="
		if m.Not {
			sign = "!="
		}
		parts = append(parts, string(m.Field)+sign+strings.Join(values, ","))
	}
	action := string(r.Action)
	if r.Target != "" {
		action += " " + r.Target
	}
	if r.To.IsValid() {
		action += " to " + r.To.String()
	}
	if r.Ports.Last != 0 {
		action += " port " + r.Ports.String()
	}
	return strings.TrimSpace(strings.Join(append(parts, action), " "))
}

func shownRules(t *testing.T, family, name, chain string) []string {
	t.Helper()
	tables, _, err := readTables()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, table := range tables {
		for _, c := range table.Chains {
			if table.Family == family && table.Name == name && c.Name == chain {
				for _, r := range c.Rules {
					out = append(out, shown(r))
				}
			}
		}
	}
	return out
}

// What nft writes is read back as what it means.
func TestReadsRules(t *testing.T) {
	for rule, want := range map[string]string{
		"tcp dport 22 drop":                                      "protocol=6 port=22 drop",
		"udp dport 5985-5986 accept":                             "protocol=17 port=5985-5986 accept",
		"tcp dport != 22 accept":                                 "protocol=6 port!=22 accept",
		"tcp dport != 20-23 accept":                              "protocol=6 port!=20-23 accept",
		"tcp dport < 1024 drop":                                  "protocol=6 port!=1024-4294967295 drop",
		"tcp dport { 22, 80, 5000-5010 } drop":                   "protocol=6 port=22-22,80-80,5000-5010 drop",
		"tcp dport != { 22, 80 } drop":                           "protocol=6 port!=22,80 drop",
		"tcp dport @ports drop":                                  "protocol=6 port=22-30,80 drop",
		"meta l4proto { tcp, udp } th dport 22 drop":             "protocol=6,17 port=22 drop",
		"ip protocol tcp tcp dport 22 drop":                      "family=4 protocol=6 port=22 drop",
		"meta nfproto ipv6 drop":                                 "family=6 drop",
		"ct state established,related accept":                    "state=6 accept",
		"tcp dport 22 ct state { new, untracked } accept":        "protocol=6 port=22 state=8,64 accept",
		"ct state new drop":                                      "state=8 drop",
		"ct state invalid drop":                                  "state=1 drop",
		"ct state vmap { established : accept, invalid : drop }": "state=1 drop|state=2 accept",
		"ct status dnat accept":                                  "status=32 accept",
		"iif lo accept":                                          "input=1 accept",
		`iifname "lo" accept`:                                    "input=1 accept",
		`iifname "eth0" accept`:                                  "? accept",
		"ip daddr 127.0.0.1 drop":                                "family=4 input=1 drop",
		"ip daddr 127.0.0.0/8 drop":                              "family=4 input=1 drop",
		"ip6 daddr ::1 drop":                                     "family=6 input=1 drop",
		"ip daddr 10.0.0.1 drop":                                 "family=4 ? drop",
		"ip saddr 10.0.0.0/8 tcp dport 22 accept":                "family=4 ? protocol=6 port=22 accept",
		"ip saddr . tcp dport { 10.0.0.1 . 22 } drop":            "family=4 protocol=6 ? drop",
		"fib daddr type local accept":                            "dest=2 accept",
		"fib daddr type != { local, broadcast } drop":            "dest!=2,3 drop",
		"fib saddr . iif oif missing drop":                       "? drop",
		"meta pkttype { broadcast, multicast } drop":             "kind=1,2 drop",
		"tcp dport vmap { 22 : drop, 80 : goto other }":          "protocol=6 port=22 drop|protocol=6 port=80 goto other",
		`iifname vmap { "lo" : accept, "eth0" : jump other }`:    "input=1 accept|? jump other",
		"jump other":                                             "jump other",
		"return":                                                 "return",
		"counter":                                                "",
		"limit rate 3/second accept":                             "? accept",
		"tcp dport 22 reject":                                    "protocol=6 port=22 drop",
		"tcp dport 22 reject with tcp reset":                     "protocol=6 port=22 drop",
		"notrack":                                                "notrack",
		"tcp dport 22 tcp dport set 2022":                        "protocol=6 port=22 set-port port 2022",
		"meta mark set 1":                                        "",
		"meta l4proto tcp tproxy to :22":                         "protocol=6 tproxy port 22",
		"log prefix \"x\" drop":                                  "drop",
	} {
		t.Run(rule, func(t *testing.T) {
			fwtest.Isolate(t)
			run(t, "table inet x {\n set ports { type inet_service; flags interval; elements = { 22-30, 80 }\n }\n chain other {\n }\n chain in { type filter hook prerouting priority 0\n "+rule+"\n }\n}\n", "nft", "-f", "-")
			got := strings.Join(shownRules(t, "inet", "x", "in"), "|")
			// Sets come back in an order of the kernel's own.
			if normal(got) != normal(want) {
				t.Errorf("%s is read as\n%q, want\n%q", rule, got, want)
			}
		})
	}
	for rule, want := range map[string]string{
		"tcp dport 8022 redirect to :22":             "protocol=6 port=8022 redirect port 22",
		"tcp dport 8022 redirect":                    "protocol=6 port=8022 redirect",
		"tcp dport 2222 dnat to 172.17.0.2:22":       "protocol=6 port=2222 dnat to 172.17.0.2 port 22",
		"tcp dport 2222 dnat to 172.17.0.2":          "protocol=6 port=2222 dnat to 172.17.0.2",
		"tcp dport 2200-2210 dnat to 10.0.0.1:30-40": "protocol=6 port=2200-2210 dnat to 10.0.0.1 port 30-40",
		"dnat to tcp dport map { 80 : 10.0.0.2 }":    "protocol=6 port=80 dnat",
		"ip daddr 127.0.0.1 tcp dport 80 redirect":   "input=1 protocol=6 port=80 redirect",
	} {
		t.Run(rule, func(t *testing.T) {
			fwtest.Isolate(t)
			run(t, "table ip x {\n chain in { type nat hook prerouting priority -100\n "+rule+"\n }\n}\n", "nft", "-f", "-")
			if got := strings.Join(shownRules(t, "ip", "x", "in"), "|"); got != want {
				t.Errorf("%s is read as\n%q, want\n%q", rule, got, want)
			}
		})
	}
}

// normal sorts what the kernel may order as it likes.
func normal(s string) string {
	s = strings.ReplaceAll(s, "22-22", "22")
	s = strings.ReplaceAll(s, "80-80", "80")
	parts := strings.Split(s, "|")
	slices.Sort(parts)
	return strings.Join(parts, "|")
}

// What iptables-nft writes, in its own expressions or in those of xtables.
func TestReadsIPTables(t *testing.T) {
	for args, want := range map[string]string{
		"-t filter -A INPUT -p tcp --dport 22 -j DROP":                                            "protocol=6 port=22 drop",
		"-t filter -A INPUT -p tcp -m tcp ! --dport 22 -j REJECT":                                 "protocol=6 port!=22 drop",
		"-t filter -A INPUT -p udp --dport 1000:2000 -j ACCEPT":                                   "protocol=17 port=1000-2000 accept",
		"-t filter -A INPUT -p tcp -m multiport --dports 22,80:90 -j ACCEPT":                      "protocol=6 port=22,80-90 accept",
		"-t filter -A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT":                 "state=6 accept",
		"-t filter -A INPUT -m state --state INVALID -j DROP":                                     "state=1 drop",
		"-t filter -A INPUT -m addrtype --dst-type LOCAL -j RETURN":                               "dest=2 return",
		"-t filter -A INPUT -m addrtype ! --dst-type LOCAL -j DROP":                               "dest!=2 drop",
		"-t filter -A INPUT -i lo -j ACCEPT":                                                      "input=1 accept",
		"-t filter -A INPUT -s 10.0.0.0/8 -m comment --comment hello -j ACCEPT":                   "? accept",
		"-t filter -A INPUT -m limit --limit 3/min -j LOG":                                        "?",
		"-t nat -A PREROUTING -p tcp --dport 8022 -j REDIRECT --to-ports 22":                      "protocol=6 port=8022 redirect port 22",
		"-t nat -A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination 172.17.0.2:22":         "protocol=6 port=2222 dnat to 172.17.0.2 port 22",
		"-t nat -A PREROUTING -p tcp -d 127.0.0.1 --dport 2222 -j DNAT --to-destination 10.0.0.2": "protocol=6 input=1 port=2222 dnat to 10.0.0.2",
		"-t mangle -A PREROUTING -p tcp --dport 8022 -j TPROXY --on-port 22 --tproxy-mark 1":      "protocol=6 port=8022 tproxy port 22",
		"-t raw -A PREROUTING -p tcp --dport 22 -j CT --notrack":                                  "protocol=6 port=22 notrack",
		"-t raw -A PREROUTING -p tcp --dport 22 -j NOTRACK":                                       "protocol=6 port=22 notrack",
	} {
		t.Run(args, func(t *testing.T) {
			fwtest.Isolate(t)
			words := strings.Fields(args)
			run(t, "", append([]string{"iptables-nft"}, words...)...)
			if got := normal(strings.Join(shownRules(t, "ip", words[1], words[3]), "|")); got != want {
				t.Errorf("it is read as\n%q, want\n%q", got, want)
			}
		})
	}
	t.Run("ip6tables", func(t *testing.T) {
		fwtest.Isolate(t)
		run(t, "", strings.Fields("ip6tables-nft -t nat -A PREROUTING -p tcp --dport 2222 -j DNAT --to-destination [fd00::2]:22")...)
		want := []string{"protocol=6 port=2222 dnat to fd00::2 port 22"}
		if got := shownRules(t, "ip6", "nat", "PREROUTING"); !slices.Equal(got, want) {
			t.Errorf("it is read as %q, want %q", got, want)
		}
	})
}

// Matches and targets of xtables, as their bytes, for an iptables that still
// writes what newer ones translate.
func TestReadsXtables(t *testing.T) {
	tcpInfo := make([]byte, 12)
	copy(tcpInfo, []byte{0, 0, 255, 255, 22, 0, 22, 0})
	udpInfo := []byte{0, 0, 255, 255, 53, 0, 54, 0, 2, 0}
	multi := make([]byte, 48)
	copy(multi, []byte{1, 3, 22, 0, 80, 0, 90, 0})
	multi[33] = 1 // 80 begins a range
	states := make([]byte, 160)
	states[146], states[150] = 1, 6
	redirect := []byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 22, 0, 22}
	destination := []byte{1, 0, 0, 0, 3, 0, 0, 0, 172, 17, 0, 2, 172, 17, 0, 2, 0, 22, 0, 22}
	wide := make([]byte, 40)
	wide[0] = 3
	copy(wide[4:], []byte{172, 17, 0, 2})
	copy(wide[36:], []byte{0, 22, 0, 22})
	match := func(name string, revision uint32, info []byte) func(*translation) {
		return func(t *translation) { t.xtMatch(name, revision, info) }
	}
	target := func(name string, revision uint32, info []byte) func(*translation) {
		return func(t *translation) { t.xtTarget(name, revision, info) }
	}
	for name, c := range map[string]struct {
		read func(*translation)
		want string
	}{
		"tcp":              {match("tcp", 0, tcpInfo), "protocol=6 port=22"},
		"tcp, short":       {match("tcp", 0, tcpInfo[:10]), "protocol=6 ?"},
		"udp":              {match("udp", 0, udpInfo), "protocol=17 port!=53-54"},
		"multiport":        {match("multiport", 1, multi), "port=22,80-90"},
		"multiport, short": {match("multiport", 1, multi[:40]), "?"},
		"conntrack":        {match("conntrack", 3, states), "state=6"},
		"state":            {match("state", 0, []byte{8, 0, 0, 0}), "state=8"},
		"unheard of":       {match("moonphase", 0, nil), "?"},
		"REDIRECT":         {target("REDIRECT", 0, redirect), "redirect port 22"},
		"DNAT":             {target("DNAT", 0, destination), "dnat to 172.17.0.2 port 22"},
		"DNAT, revision 2": {target("DNAT", 2, wide), "dnat to 172.17.0.2 port 22"},
		"DNAT, short":      {target("DNAT", 0, destination[:10]), "dnat"},
		"CT":               {target("CT", 0, []byte{1, 0}), "notrack"},
		"CT, a helper":     {target("CT", 0, []byte{0, 0}), ""},
		"REJECT":           {target("REJECT", 0, nil), "drop"},
		"MARK":             {target("MARK", 2, nil), ""},
	} {
		rules := &translation{family: 2}
		c.read(rules)
		if got := normal(shown(rules.rule)); got != c.want {
			t.Errorf("%s is read as %q, want %q", name, got, c.want)
		}
	}
}

// Tables and base chains, of every family.
func TestReadsTables(t *testing.T) {
	fwtest.Isolate(t)
	run(t, "", "ip", "link", "set", "lo", "up")
	run(t, `table netdev e {
 chain in { type filter hook ingress device "lo" priority 5; policy drop
 }
}
table bridge b {
 chain pre { type filter hook prerouting priority -300
 }
}
table ip6 n {
 chain nat { type nat hook prerouting priority -190
 }
}
table inet s {
 flags dormant
 chain in { type filter hook input priority 0; policy drop
 }
 chain ing { type filter hook ingress device "lo" priority 7
 }
}
`, "nft", "-f", "-")
	tables, _, err := readTables()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, table := range tables {
		for _, c := range table.Chains {
			got = append(got, fmt.Sprintf("%s %s %t %s %s %s %d %t %v", table.Family, table.Name, table.Dormant, c.Name, c.Type, c.Hook, c.Priority, c.Drops, c.Devices))
		}
		if table.Handle == 0 {
			t.Errorf("table %s has no handle", table.Name)
		}
	}
	slices.Sort(got)
	want := []string{
		"bridge b false pre filter prerouting -300 false []",
		"inet s true in filter input 0 true []",
		"inet s true ing filter ingress 7 false [lo]",
		"ip6 n false nat nat prerouting -190 false []",
		"netdev e false in filter ingress 5 true [lo]",
	}
	if !slices.Equal(got, want) {
		t.Errorf("read\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Gather reads a namespace, and leaves it as it was.
func TestGather(t *testing.T) {
	fwtest.Isolate(t)
	run(t, "", "ip", "link", "set", "lo", "up")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, text := range map[string]string{"conf/lo/route_localnet": "1", "conf/all/route_localnet": "1", "ip_local_port_range": "40000 50000"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+path, []byte(text), 0); err != nil {
			t.Fatal(err)
		}
	}
	settings := filepath.Join(t.TempDir(), "agent.toml")
	if err := os.WriteFile(settings, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f := Gather(settings)
	if len(f.Unread) > 0 || !f.TablesRead || !f.Root || f.Kernel == "" || f.Now.IsZero() {
		t.Errorf("gathered %+v", f)
	}
	address := l.Addr().(*net.TCPAddr).AddrPort()
	want := Listener{Protocol: 6, Address: address.Addr(), Port: address.Port(), Process: "doctor.test", PID: os.Getpid()}
	if !slices.Equal(f.Listeners, []Listener{want}) {
		t.Errorf("listeners are %v, want %v", f.Listeners, want)
	}
	if !slices.Equal(f.RouteLocalnet, []string{"all"}) || f.LocalPorts != (Range{40000, 50000}) || !f.Clock.Known {
		t.Errorf("route_localnet of %v, local ports %v, clock %v", f.RouteLocalnet, f.LocalPorts, f.Clock)
	}
	if !slices.Contains(f.Addresses, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("addresses are %v", f.Addresses)
	}
	// Every kernel these tests run on tells forwarded packets and tracks.
	if len(f.Features) != len(features) {
		t.Errorf("features are %v", f.Features)
	}
	for _, k := range f.Features {
		if (k.ID == FeatureFib || k.ID == FeatureConntrack) && !k.Found {
			t.Errorf("%s is not found: %s", k.ID, k.Why)
		}
		if !k.Found && k.Why == "" {
			t.Errorf("%s is not found, and why is not said", k.ID)
		}
	}
	if tables, _, err := readTables(); err != nil || len(tables) > 0 {
		t.Errorf("afterwards there are tables %v, %v", tables, err)
	}
}

func TestWritable(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "agent.toml")
	for _, c := range []struct {
		dir, file os.FileMode
		want      string
	}{
		{0o755, 0o644, ""}, {0o755, 0o664, file}, {0o755, 0o602, file}, {0o775, 0o644, dir}, {0o777 | os.ModeSticky, 0o600, ""},
	} {
		for _, err := range []error{os.WriteFile(file, nil, 0o600), os.Chmod(file, c.file), os.Chmod(dir, c.dir)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if got := writable(file); got != c.want {
			t.Errorf("with %v and %v, %q is writable, want %q", c.dir, c.file, got, c.want)
		}
	}
	above := filepath.Join(dir, "above")
	for _, err := range []error{os.MkdirAll(filepath.Join(above, "etc"), 0o755), os.Chmod(above, 0o777)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if got := writable(filepath.Join(above, "etc", "agent.toml")); got != above {
		t.Errorf("above it: %q is writable, want %q", got, above)
	}
	if os.Geteuid() == 0 {
		if err := os.Chown(file, 4242, -1); err != nil {
			t.Fatal(err)
		}
		if got := writable(file); got != file {
			t.Errorf("a stranger's file: %q is writable", got)
		}
	}
	if got := writable(filepath.Join(dir, "missing", "agent.toml")); got != "" {
		t.Errorf("what is not there is writable: %q", got)
	}
}

func TestSocketAddress(t *testing.T) {
	for s, want := range map[string]string{
		"0100007F:0016":                         "127.0.0.1:22",
		"00000000000000000000000001000000:0D3D": "[::1]:3389",
		"0000000000000000FFFF00000100007F:0016": "[::ffff:127.0.0.1]:22",
	} {
		if got, err := socketAddress(s); err != nil || got.String() != want {
			t.Errorf("%s is %s, %v, want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"", "0100007F", "01007F:0016", "0100007F:1FFFF", "zz00007F:0016"} {
		if got, err := socketAddress(s); err == nil {
			t.Errorf("%q is taken as %s", s, got)
		}
	}
}

func TestSavedRulesets(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"whole.nft":   "flush ruleset\ntable inet filter {\n}\ntable inet jitgate { # progname jitgate\n\tflags owner\n}\n",
		"theirs.nft":  "table inet filter {\n\tcomment \"not table inet jitgate\"\n}\n",
		"similar.nft": "table inet jitgate_boot {\n}\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	whole := filepath.Join(dir, "whole.nft")
	for _, paths := range [][]string{{dir}, {filepath.Join(dir, "missing"), whole}} {
		if found, err := savedRulesets(paths...); err != nil || !slices.Equal(found, []string{whole}) {
			t.Errorf("%v: %v, %v", paths, found, err)
		}
	}
}
