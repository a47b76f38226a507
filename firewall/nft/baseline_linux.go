package nft

import (
	"fmt"
	"strings"

	"github.com/jitgate/jitgate/firewall"
)

// BootTableName is the table that closes ports from the start of the machine
// until the guard stands. It has a name of its own because the kernel lets
// nobody adopt a table that was made without flags, as nft(8) makes them.
const BootTableName = "jitgate_boot"

// Baseline is a file for nft(8) that closes ports in table inet jitgate_boot,
// in the same two places as the guard. Nothing opens them but a Backend that
// writes its rules, which takes that table away in the same transaction: there
// is no packet that meets neither, and none that meets both.
//
// Protocols are numbers: a machine without /etc/protocols has no names.
// Sessions that live are let be where their port keeps them, for the case that
// the file is loaded on a machine that runs; answers to the host's own
// connections always.
func Baseline(ports []firewall.Port) []byte {
	var rules strings.Builder
	for _, p := range ports {
		target := "kept"
		if p.Cut {
			target = "closed"
		}
		number := fmt.Sprint(p.First)
		if p.First != p.Last {
			number = fmt.Sprintf("%d-%d", p.First, p.Last)
		}
		fmt.Fprintf(&rules, "\t\tmeta l4proto %d th dport %s goto %s\n", p.Protocol, number, target)
		// DCCP, SCTP and UDP-Lite have the same ports, as the guard has it.
		fmt.Fprintf(&rules, "\t\tmeta l4proto { 33, 132, 136 } th dport %s goto closed\n", number)
	}
	return fmt.Appendf(nil, `# Closes the guarded ports from the start of the machine until the jitgate agent
# has its guard in place. The agent writes this file while the guard drops for
# good, and removes it when it does not: jitgate disarm.
# At a console: nft delete table inet %[1]s
table inet %[1]s
delete table inet %[1]s
table inet %[1]s {
	chain closed {
		ct state established ct direction reply accept
		drop
	}
	chain kept {
		ct state established accept
		drop
	}
	chain pre {
		type filter hook prerouting priority -199; policy accept;
		iif lo accept
		fib daddr type unicast fib daddr . iif type unicast accept
%[2]s	}
	chain in {
		type filter hook input priority 400; policy accept;
		iif lo accept
%[2]s	}
}
`, BootTableName, rules.String())
}
