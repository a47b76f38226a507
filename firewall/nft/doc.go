// Package nft keeps the guard in nftables (Linux 5.10 and newer).
//
// One table, inet jitgate, holds everything:
//
//	table inet jitgate {
//	  flags owner, persist                     # where the kernel has both (6.9)
//	  set g4_32 { ipv4_addr . inet_proto . inet_service; flags timeout; counter }
//	  set g6_64 { … }                          # one per prefix length in use
//	  set x4_32 { ipv4_addr; flags timeout }   # sources exempt on every guarded port
//	  set r4_32 { … }                          # made when first needed: grants taken back early
//	  set d4_32 { …; size 8192; flags dynamic, timeout }    # who was denied, with counters
//	  set armed { nf_proto; flags timeout }    # families dropped while on trial
//	  chain pre    { type filter hook prerouting priority -199; policy accept;
//	                 meta l4proto tcp goto tcp_ports
//	                 meta l4proto > udp goto others }
//	  chain tcp_ports { th dport 5985-5986 goto guard   # sessions cut at the end
//	                    th dport 22 goto keep }         # sessions kept
//	  chain udp_ports { … }                             # pre goes there if one is guarded
//	  chain others { meta l4proto 34-131 return …       # what has no ports
//	                 th dport 5985-5986 goto guard; th dport 22 goto guard }
//	  chain keep   { ip saddr . meta l4proto . th dport @r4_32 goto guard
//	                 ct state established accept; goto guard }
//	  chain reply  { ct state established ct direction reply accept; goto guard }
//	  chain reply_keep { … goto keep }         # ports the host may take for connections of its own
//	  chain guard  { iif lo accept
//	                 fib daddr type unicast fib daddr . iif type unicast accept    # and unreachable
//	                 goto admit }
//	  chain in     { type filter hook input priority 400; … the same with in_keep, … }
//	  chain in_guard { iif lo accept; goto admit }
//	  chain admit  { ip saddr @x4_32 accept
//	                 ip saddr & 255.255.255.0 . meta l4proto . th dport @g4_24 accept
//	                 goto deny }
//	  chain deny   { update @d4_32 { ip saddr . meta l4proto . th dport counter }
//	                 counter name denied
//	                 drop }           # on trial: meta nfproto @armed drop; observing: absent
//	  chain account { ct bytes != 0 }  # never reached: has the kernel count
//	}
//
// Every opening is a set element with a timeout, so the kernel closes it with
// the agent dead or alive. A hash set per prefix length has no overlaps; the
// kernel's interval sets refuse some and, worse, accept others and keep
// addresses open that nobody granted (docs/adr/0003-nftables-layout.md).
//
// Packets meet the guard twice. In prerouting, before any destination is
// rewritten, so that published container ports are guarded; there the two fib
// tests let traffic pass that this host only forwards. And in input, after
// everything else, so that nothing reaches a guarded port of this host by
// another way: a redirect from a port that is not guarded, or an address that
// only a policy route makes the host's own.
//
// What is for no guarded port is most of a host's traffic. Its transport is
// asked for once, not once per port: with twenty ports that would be a tenth
// of what the kernel spends on a packet (docs/performance.md).
//
// The base chains are made once and never deleted and made again: a packet in
// between would pass. Rules and elements change in place, in one batch.
//
// When the table has begun to drop a session's packets, its sockets are
// destroyed and conntrack forgets it, so that its ends do not hang (cutter,
// docs/adr/0014-sessions-end-with-a-reset.md).
//
// google/nftables builds the messages. Sending is ours (transport): one
// acknowledgement for a whole batch, held against its sequence number. The
// library asks for one per message, and a full receive buffer then turns a
// committed batch into an error and leaves stale answers behind.
package nft
