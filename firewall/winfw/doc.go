// Package winfw keeps the guard in the Windows Filtering Platform (Windows 8
// and Server 2012 or newer), the engine under Windows Firewall.
//
// One provider and one sublayer of the highest weight hold everything, at the
// two layers where Windows decides about what comes in
// (FWPM_LAYER_ALE_AUTH_RECV_ACCEPT_V4 and _V6). Within the sublayer the first
// filter that matches decides, by weight:
//
//	base     permit  from this host to itself             persistent, boot-time
//	open     permit  one source to one port               dynamic
//	exempt   permit  one source                           dynamic
//	revoked  block   reauthorized flows of one source     until the next boot
//	cut      block   a port whose sessions are cut        persistent, boot-time
//	keep     permit  reauthorized flows to a port         persistent
//	guard    block   a port whose sessions are kept       persistent, boot-time
//	watch    permit  a port that is only observed         persistent
//
// A permit here only says that the guard has no objection: Windows Firewall
// and everybody else still have theirs. A block is final (it clears the action
// right), whatever another sublayer says.
//
// Persistent filters stand before the agent runs and when it never does; their
// boot-time twins stand until the engine's service does. Dynamic filters are
// gone with the process: a dead agent's openings are closed. A platform timer
// there is not: the Backend closes what is over itself, by the boot clock,
// whatever the rest of the agent does (Start).
//
// On trial the blocks are dynamic too, beside the filters of an observed port:
// the guard goes back with the process, if not before.
//
// Flows that the platform has let in are asked about again when filters change
// (ALE reauthorization). That is how a session is cut, and why one that may go
// on needs a filter that says so.
//
// Each filter carries in its provider data what it stands for (item), and its
// key is made from all it says: the same filter has the same key on every
// host, and one with that key is that filter.
//
// Where nobody else's rule lets a granted source through Windows Firewall, the
// rule group jitgate does (Rules): one rule for each guarded port.
package winfw
