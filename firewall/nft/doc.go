// Package nft keeps the guard in nftables (Linux 5.10 and newer).
//
// One table, inet jitgate, holds everything:
//
//	table inet jitgate {
//	  flags owner, persist                     # where the kernel has both (6.9)
//	  set g4_32 { ipv4_addr . inet_proto . inet_service; flags timeout }
//	  set g6_64 { … }                          # one per prefix length in use
//	  set x4_32 { ipv4_addr; flags timeout }   # sources exempt on every guarded port
//	  chain pre   { type filter hook prerouting priority mangle; policy accept;
//	                tcp dport 5985-5986 goto guard     # sessions cut at the end
//	                tcp dport 22 goto keep }           # sessions kept
//	  set r4_32 { … }                          # made when first needed: grants taken back early
//	  chain keep  { ip saddr . meta l4proto . th dport @r4_32 goto guard
//	                ct state established accept; goto guard }
//	  chain reply { ct state established ct direction reply accept; goto guard }  # cut ports the host
//	                                           # may take for connections of its own
//	  chain guard { iif lo accept
//	                fib daddr type unicast fib daddr . iif type unicast accept
//	                ip saddr @x4_32 accept
//	                ip saddr & 255.255.255.0 . meta l4proto . th dport @g4_24 accept
//	                goto deny }
//	  chain deny  { limit rate 50/second burst 100 packets log prefix "jitgate-deny " group 5 snaplen 96
//	                counter name denied
//	                drop }                             # absent while only observing
//	}
//
// Every opening is a set element with a timeout, so the kernel closes it with
// the agent dead or alive. A hash set per prefix length has no overlaps; the
// kernel's interval sets refuse some and, worse, accept others and keep
// addresses open that nobody granted (docs/adr/0003-nftables-layout.md).
//
// The hook is prerouting, so that published container ports are guarded, and
// the two fib tests let traffic pass that this host only forwards.
//
// The base chain is made once and never deleted and made again: a packet in
// between would pass. Rules and elements change in place, in one batch.
//
// google/nftables builds the messages. Sending is ours (transport): one
// acknowledgement for a whole batch, held against its sequence number. The
// library asks for one per message, and a full receive buffer then turns a
// committed batch into an error and leaves stale answers behind.
package nft
