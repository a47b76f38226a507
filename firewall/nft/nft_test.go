//go:build linux

package nft_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/fwtest"
	"github.com/jitgate/jitgate/firewall/nft"
)

func bootNow() firewall.BootTime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err)
	}
	return firewall.BootTime(ts.Nano())
}

func open(t testing.TB) *nft.Backend {
	t.Helper()
	b, err := nft.Open(bootNow)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func apply(t testing.TB, b firewall.Backend, want firewall.Ruleset) {
	t.Helper()
	have, err := b.Observe(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Apply(context.Background(), firewall.Diff(have, want)); err != nil {
		t.Fatal(err)
	}
}

// The suite the fake passes, on the kernel.
func TestKernelConforms(t *testing.T) {
	fwtest.Run(t, bootNow, func(t *testing.T, again bool) firewall.Backend {
		if !again {
			fwtest.Isolate(t)
		}
		return open(t)
	})
}

func nftOutput(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Logf("nft %v: %v: %s", args, err, out)
	}
	return string(out)
}

var ssh = []string{"22/tcp"}

// What an administrator sees is what the package comment promises.
func TestListing(t *testing.T) {
	fwtest.Isolate(t)
	b := open(t)
	until := bootNow().Add(time.Hour)
	apply(t, b, firewall.Ruleset{
		Ports: fwtest.Ports(t, "22/tcp", "5985-5986/tcp cut", "3389/udp"),
		Openings: map[firewall.Door]firewall.End{
			fwtest.Door(t, "10.1.2.0/24", "22/tcp"):      {Until: until, Label: "01JD9V3K7Q"},
			fwtest.Door(t, "fd77::/64", "5986/tcp"):      {Until: until, Label: "01JD9V3K7R"},
			fwtest.Door(t, "10.9.0.4/32", ""):            {Until: until, Label: "exempt"},
			fwtest.Door(t, "203.0.113.255/32", "22/tcp"): {Until: until, Label: "host"},
		},
	})
	// Without /etc/protocols nft knows no names.
	listing := strings.NewReplacer(" . 6 . ", " . tcp . ", "l4proto > 17 ", "l4proto > udp ").Replace(nftOutput(t, "list", "table", "inet", "jitgate"))
	for _, want := range []string{
		"type filter hook prerouting priority -199; policy accept;",
		"type filter hook input priority 400; policy accept;",
		"meta l4proto tcp goto tcp_ports",
		"meta l4proto udp goto udp_ports",
		"meta l4proto tcp goto in_tcp_ports",
		"meta l4proto > udp goto others",
		`th dport 5985-5986 goto guard comment "5985-5986/tcp cut"`,
		`th dport 22 goto keep comment "22/tcp"`,
		`th dport 22 goto in_keep comment "22/tcp"`,
		`th dport 3389 goto keep comment "3389/udp"`,
		"update @d4_32 { ip saddr . meta l4proto . th dport counter }",
		"ct state established accept",
		`iif "lo" accept`,
		"fib daddr type unicast fib daddr . iif type unicast accept",
		"fib daddr type unreachable fib daddr . iif type unreachable accept",
		"ip saddr & 255.255.255.0 . meta l4proto . th dport @g4_24 accept",
		"ip6 saddr & ffff:ffff:ffff:ffff:: . meta l4proto . th dport @g6_64 accept",
		"ip saddr @x4_32 accept",
		"counter name \"denied\"",
		"10.1.2.0 . tcp . 22 counter packets 0 bytes 0 timeout",
		`comment "01JD9V3K7Q"`,
	} {
		if !strings.Contains(listing, want) {
			t.Errorf("no %q in\n%s", want, listing)
		}
	}
	// Every element ends: a timeout of zero would be open for ever. Of the
	// rules, those of three ports have a comment.
	if elements, timeouts := strings.Count(listing, "comment \"")-2*3, strings.Count(listing, "expires"); elements != timeouts {
		t.Errorf("%d elements, %d of them end:\n%s", elements, timeouts, listing)
	}
}

// oneOpening is a guard with something to lose: rules and an opening.
func oneOpening(t *testing.T) firewall.Ruleset {
	t.Helper()
	return firewall.Ruleset{Ports: fwtest.Ports(t, ssh...), Openings: map[firewall.Door]firewall.End{
		fwtest.Door(t, "203.0.113.7/32", "22/tcp"): {Until: bootNow().Add(time.Hour)},
	}}
}

// owned reports whether the kernel keeps strangers from the table.
func owned(b *nft.Backend) bool { return strings.Contains(b.Describe(), ", owned") }

// Strangers cannot change the guard while its owner lives, and where the
// kernel lets them, the backend hears of it.
func TestStrangers(t *testing.T) {
	attacks := map[string]string{
		"flush ruleset":   "flush ruleset",
		"delete table":    "delete table inet jitgate",
		"flush chain":     "flush chain inet jitgate pre",
		"delete rules":    "flush table inet jitgate",
		"accept first":    "insert rule inet jitgate pre accept",
		"another accept":  "add rule inet jitgate guard accept",
		"flush set":       "flush set inet jitgate g4_32",
		"add element":     "add element inet jitgate g4_32 { 192.0.2.66 . tcp . 22 }",
		"dormant":         "add table inet jitgate { flags dormant; }",
		"replace counter": "reset counter inet jitgate denied",
	}
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			fwtest.Isolate(t)
			b := open(t)
			want := oneOpening(t)
			apply(t, b, want)
			nftOutput(t, attack)
			have, err := b.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if owned(b) {
				if left := firewall.Diff(have, want); !left.Empty() {
					t.Errorf("the attack changed something:\n%s", left.Describe(bootNow()))
				}
				return
			}
			repair(t, b, have, want)
		})
	}
}

// The same attacks where the kernel gives no protection: on a table that an
// earlier program made without flags, which nobody can own.
func TestRepair(t *testing.T) {
	attacks := map[string]string{
		"flush ruleset":      "flush ruleset",
		"delete table":       "delete table inet jitgate",
		"flush chain":        "flush chain inet jitgate pre",
		"flush ports":        "flush chain inet jitgate tcp_ports",
		"ports past us":      "insert rule inet jitgate tcp_ports accept",
		"delete rules":       "flush table inet jitgate",
		"accept first":       "insert rule inet jitgate pre accept",
		"accept at the end":  "add rule inet jitgate guard accept",
		"flush set":          "flush set inet jitgate g4_32",
		"add element":        "add element inet jitgate g4_32 { 192.0.2.66 . tcp . 22 timeout 1h }",
		"permanent element":  "add element inet jitgate g4_32 { 192.0.2.66 . tcp . 22 }",
		"permanent instead":  "delete element inet jitgate g4_32 { 203.0.113.7 . tcp . 22 }; add element inet jitgate g4_32 { 203.0.113.7 . tcp . 22 }",
		"dormant":            "add table inet jitgate { flags dormant; }",
		"other hook":         "delete table inet jitgate; add table inet jitgate; add chain inet jitgate pre { type filter hook output priority 0; }",
		"other policy":       "add chain inet jitgate pre { policy drop; }",
		"other kind of set":  "delete table inet jitgate; add table inet jitgate; add set inet jitgate g4_32 { type ipv4_addr; flags interval; }",
		"other size of set":  "delete table inet jitgate; add table inet jitgate; add set inet jitgate d4_32 { type ipv4_addr . inet_proto . inet_service; size 4; flags dynamic,timeout; timeout 24h; }",
		"other end of set":   "delete table inet jitgate; add table inet jitgate; add set inet jitgate d4_32 { type ipv4_addr . inet_proto . inet_service; size 8192; flags dynamic,timeout; timeout 1s; }",
		"other kind of arm":  "delete table inet jitgate; add table inet jitgate; add set inet jitgate armed { type ipv4_addr; flags timeout; }",
		"input let in":       "insert rule inet jitgate in accept",
		"a set of our name":  "add set inet jitgate g4_31 { type ipv4_addr . inet_proto . inet_service; flags timeout; }",
		"comment that lies":  "flush chain inet jitgate tcp_ports; add rule inet jitgate tcp_ports tcp dport 2222 goto keep comment \"22/tcp\"",
		"rule that is wider": "flush chain inet jitgate keep; add rule inet jitgate keep ct state established,new accept; add rule inet jitgate keep goto guard",
		"drop taken out":     "flush chain inet jitgate deny; add rule inet jitgate deny accept",
	}
	for name, attack := range attacks {
		t.Run(name, func(t *testing.T) {
			fwtest.Isolate(t)
			nftOutput(t, "add table inet jitgate")
			b := open(t)
			want := oneOpening(t)
			apply(t, b, want)
			if owned(b) {
				t.Fatal("a table made without flags was adopted: the kernel has learnt something, use it")
			}
			if out, err := exec.Command("nft", attack).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v: %s", attack, err, out)
			}
			select {
			case by := <-b.Changes():
				if by.Process != "nft" || by.PID == 0 || by.At == 0 || by.At > bootNow() {
					t.Errorf("the monitor says %+v did it", by)
				}
			case <-time.After(10 * time.Second):
				t.Fatal("the monitor did not tell")
			}
			have, err := b.Observe(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if firewall.Diff(have, want).Empty() {
				t.Fatal("the attack is not seen")
			}
			if name == "flush chain" && !slices.Equal(have.Ports, want.Ports) {
				t.Errorf("the base chain is empty, and the ports are forgotten: %v", have.Ports)
			}
			repair(t, b, have, want)
		})
	}
}

func repair(t *testing.T, b *nft.Backend, have firewall.Observed, want firewall.Ruleset) {
	t.Helper()
	if err := b.Apply(t.Context(), firewall.Diff(have, want)); err != nil {
		t.Fatal(err)
	}
	have, err := b.Observe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if left := firewall.Diff(have, want); !left.Empty() {
		t.Errorf("not repaired:\n%s", left.Describe(bootNow()))
	}
}

// Our own changes do not wake the monitor.
func TestMonitorIgnoresItself(t *testing.T) {
	fwtest.Isolate(t)
	nftOutput(t, "add table inet jitgate")
	b := open(t)
	door := fwtest.Door(t, "203.0.113.7/32", "22/tcp")
	for i := range 20 {
		apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, ssh...), Openings: map[firewall.Door]firewall.End{
			door: {Until: bootNow().Add(time.Duration(i+1) * time.Hour)},
		}})
	}
	nftOutput(t, "add table inet somebody")
	select {
	case <-b.Changes():
		t.Error("woken by our own change or by another table's")
	case <-time.After(200 * time.Millisecond):
	}
}

// Where the kernel can keep strangers out, it is asked to (6.9 has both flags).
func TestOwnedWhereTheKernelCan(t *testing.T) {
	fwtest.Isolate(t)
	b := open(t)
	apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, ssh...)})
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	release := unix.ByteSliceToString(u.Release[:])
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		t.Fatalf("%q: %v", release, err)
	}
	if can := major > 6 || major == 6 && minor >= 9; owned(b) != can {
		t.Errorf("kernel %s: %s", release, b.Describe())
	}
}

// A commit that is held up, by a module to load or a busy machine, does not
// leave an opening open for longer.
func TestLateCommit(t *testing.T) {
	fwtest.Isolate(t)
	late, calls := time.Duration(0), 0
	b, err := nft.Open(func() firewall.BootTime {
		if calls--; calls == 0 {
			late = 2 * time.Second
		}
		return bootNow().Add(late)
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	ports := fwtest.Ports(t, ssh...)
	apply(t, b, firewall.Ruleset{Ports: ports})
	door, until := fwtest.Door(t, "203.0.113.7/32", "22/tcp"), bootNow().Add(time.Minute)
	calls = 3 // when it began, when it was encoded, and now it is two seconds later
	if err := b.Apply(t.Context(), firewall.Plan{Ports: ports, Open: []firewall.Change{{Door: door, End: firewall.End{Until: until}}}}); err != nil {
		t.Fatal(err)
	}
	have, err := b.Observe(t.Context())
	if err != nil || late == 0 {
		t.Fatalf("%v, late by %v", err, late)
	}
	if off := have.Openings[door].Until.Sub(until); off.Abs() > firewall.Slack {
		t.Errorf("open %v longer than asked", off)
	}
}

// A second process is told, and changes nothing.
func TestOwnedByAnother(t *testing.T) {
	fwtest.Isolate(t)
	first := open(t)
	want := firewall.Ruleset{Ports: fwtest.Ports(t, ssh...)}
	apply(t, first, want)
	if !owned(first) {
		t.Log("this kernel has no owner flag: nothing keeps a second process out")
		return
	}
	second := open(t)
	have, err := second.Observe(t.Context())
	if err != nil || !have.Intact {
		t.Fatalf("a second process may look: %v, intact %t", err, have.Intact)
	}
	err = second.Apply(t.Context(), firewall.Plan{Rules: true})
	if !errors.Is(err, nft.ErrOwned) {
		t.Fatalf("got %v, want ErrOwned", err)
	}
	if have, err = first.Observe(t.Context()); err != nil || !firewall.Diff(have, want).Empty() {
		t.Errorf("the first one's guard changed: %v, %+v", err, have)
	}
}

// Removing leaves the host's ruleset as it was, to the byte.
func TestRemoveLeavesNothing(t *testing.T) {
	fwtest.Isolate(t)
	nftOutput(t, "add table ip filter; add chain ip filter input { type filter hook input priority 0; policy accept; }; add rule ip filter input tcp dport 80 accept")
	before := nftOutput(t, "list", "ruleset")
	b := open(t)
	apply(t, b, firewall.Ruleset{Ports: fwtest.Ports(t, ssh...)})
	if nftOutput(t, "list", "ruleset") == before {
		t.Fatal("the guard does not show")
	}
	if err := b.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := nftOutput(t, "list", "ruleset"); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// One opening more is one message with one element, whatever else is open.
func TestOneChangeIsOneElement(t *testing.T) {
	fwtest.Isolate(t)
	b := open(t)
	want := firewall.Ruleset{Ports: fwtest.Ports(t, ssh...), Openings: map[firewall.Door]firewall.End{}}
	for i := range 10_000 {
		want.Openings[host(t, i)] = firewall.End{Until: bootNow().Add(time.Hour)}
	}
	apply(t, b, want)
	events, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	if err := events.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	want.Openings[host(t, 10_000)] = firewall.End{Until: bootNow().Add(time.Hour)}
	apply(t, b, want)
	if err := events.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var kinds []netlink.HeaderType
	size := 0
	// The kernel ends every transaction with the number of the generation.
	for len(kinds) == 0 || kinds[len(kinds)-1] != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
		messages, err := events.Receive()
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range messages {
			kinds = append(kinds, m.Header.Type)
			size = max(size, len(m.Data))
		}
	}
	if len(kinds) != 2 || kinds[0] != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWSETELEM || size > 200 {
		t.Errorf("one new opening made events %v of up to %d bytes, want one NEWSETELEM with one element", kinds, size)
	}
}
