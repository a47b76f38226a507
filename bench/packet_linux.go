package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// What may stand in a packet's way.
const (
	noRules       = "no rules"
	conntrackOnly = "conntrack"
	guarded       = "jitgate"
	guardedMany   = "jitgate, 20 ports"
	ufwLike       = "ufw-like"
)

const packetWarmUp = 5

// measurePacket compares what a packet to an unguarded port costs with
// different rules in its way. The kernel does the receiver's work within the
// sender's system call, so it is the sender's CPU time that tells.
func measurePacket(ctx context.Context, o options, r *report) error {
	lanes := map[string]*lane{}
	defer func() {
		for _, l := range lanes {
			l.close()
		}
	}()
	for name, rules := range map[string]string{noRules: "", conntrackOnly: conntrackRules, ufwLike: ufwRules(100)} {
		w, err := newWorld()
		if err != nil {
			return err
		}
		if err := w.nft(o.dir, rules); err != nil {
			w.close()
			return err
		}
		l, err := newLane(w)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		lanes[name] = l
	}
	several := []firewall.Port{ssh, {Protocol: firewall.TCP, First: 3389, Last: 3389}, {Protocol: firewall.TCP, First: 5985, Last: 5986, Cut: true}}
	many := slices.Clone(several)
	for n := uint16(4000); len(many) < 20; n++ {
		many = append(many, firewall.Port{Protocol: firewall.TCP, First: n, Last: n})
	}
	for name, ports := range map[string][]firewall.Port{guarded: several, guardedMany: many} {
		d, err := newDirect(full, ports...)
		if err != nil {
			return err
		}
		defer d.closeBackend()
		// As an agent does, which has conntrack tell of connections to these
		// ports: what of others costs belongs to the figure.
		if err := d.do(func() error { _, err := d.backend.Flows(ctx, false); return err }); err != nil {
			return err
		}
		l, err := newLane(d.world)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		lanes[name] = l
	}
	if err := packetRounds(ctx, lanes, o.runs); err != nil {
		return err
	}
	reportPacket(r, lanes, o.runs)
	return nil
}

func packetRounds(ctx context.Context, lanes map[string]*lane, rounds int) error {
	var names []string
	for name := range lanes {
		names = append(names, name)
	}
	for round := range packetWarmUp + rounds {
		rand.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		for _, name := range names {
			if round == packetWarmUp {
				lanes[name].costs = costs{}
			}
			if err := lanes[name].turn(); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

func reportPacket(r *report, lanes map[string]*lane, rounds int) {
	var results []result
	add := func(what, ours, other string, of func(costs) sample, bound string, holds func(ratio float64) bool) {
		x, y := of(lanes[ours].costs), of(lanes[other].costs)
		ratio, low, high := x.roundByRound(y)
		results = append(results, result{name: what, value: x.String(), ratio: ratio, bound: bound, ok: bound != "" && holds(ratio),
			beside: fmt.Sprintf("%s %s, %.2f to %.2f", other, span(y.median()), low, high)})
	}
	for _, kind := range []struct {
		name string
		of   func(costs) sample
	}{
		{"datagram", func(c costs) sample { return c.ofAnswered }},
		{"datagram, nobody answers", func(c costs) sample { return c.ofOneWay }},
		{"connection", func(c costs) sample { return c.ofConnect }},
	} {
		add(kind.name, guarded, conntrackOnly, kind.of, "≤ 1.08", func(ratio float64) bool { return ratio <= 1.08 })
		add(kind.name, guarded, ufwLike, kind.of, "< 1", func(ratio float64) bool { return ratio < 1 })
		add(kind.name, guarded, noRules, kind.of, "", nil)
		add(kind.name+", 20 ports", guardedMany, conntrackOnly, kind.of, "", nil)
	}
	r.add(fmt.Sprintf("%d rounds in random order, each %d datagrams of 64 bytes and %d new connections to ports not guarded; CPU time of the sending thread,\n"+
		"    which over veth does the receiver's work too, for one. The ratio is the median of the rounds' ratios, with p10 to p90. jitgate guards 22,\n"+
		"    3389 and 5985-5986/tcp, with %d openings; conntrack is one rule with ct state; ufw-like accepts what is established first, then\n"+
		"    asks 100 rules, the measured ports' last. Where nobody answers, no datagram is established.", rounds, burstDatagrams, burstConnects, full),
		results...)
}

// conntrackRules are the least that has the kernel track connections.
const conntrackRules = `table inet plain {
 chain in { type filter hook input priority filter; policy accept; ct state established accept; }
}
`

// ufwRules is what ufw's rules become in nftables: chain after chain, what is
// established first, a counter in each rule, and the user's n rules one by
// one, those for the measured ports last.
func ufwRules(n int) string {
	var user strings.Builder
	for i := range n - 3 {
		fmt.Fprintf(&user, "  ip saddr %s tcp dport 22 counter accept\n", source(i))
	}
	fmt.Fprintf(&user, "  tcp dport %d counter accept\n  udp dport %d counter accept\n  udp dport %d counter accept\n", connectPort, answeredPort, oneWayPort)
	return `table ip filter {
 chain ufw-user-input {
` + user.String() + ` }
 chain ufw-not-local {
  fib daddr type local counter return
  fib daddr type multicast counter return
  fib daddr type broadcast counter return
  counter drop
 }
 chain ufw-before-logging-input { }
 chain ufw-before-input {
  iifname "lo" counter accept
  ct state related,established counter accept
  ct state invalid counter drop
  icmp type destination-unreachable counter accept
  icmp type time-exceeded counter accept
  icmp type parameter-problem counter accept
  icmp type echo-request counter accept
  udp sport 67 udp dport 68 counter accept
  counter jump ufw-not-local
  ip daddr 224.0.0.251 udp dport 5353 counter accept
  ip daddr 239.255.255.250 udp dport 1900 counter accept
  counter jump ufw-user-input
 }
 chain INPUT {
  type filter hook input priority filter; policy drop;
  counter jump ufw-before-logging-input
  counter jump ufw-before-input
 }
}
`
}
