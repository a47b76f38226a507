package api

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// maxHops bounds how many entries of a forwarding header are looked at.
const maxHops = 32

// ClientAddress is where a call comes from: the peer of its connection, or,
// where that is one of our own proxies, the last address before our proxies
// that they name. Anything further left was written by the client, and is
// never looked at. What cannot be read ends the search at the proxy that
// passed it on, which is the last address that is known.
func ClientAddress(r *http.Request, trusted []netip.Prefix) netip.Addr {
	peer, _ := hostAddress(r.RemoteAddr)
	if !within(trusted, peer) {
		return peer
	}
	// A proxy writes one of the two. Where both are there one of them may have
	// come from the client, so that neither can be believed.
	forwarded, given := r.Header.Values("Forwarded"), r.Header.Values("X-Forwarded-For")
	var hops []string
	switch {
	case len(forwarded) > 0 && len(given) > 0:
		return peer
	case len(forwarded) > 0:
		hops = forwardedFor(strings.Join(forwarded, ","))
	default:
		hops = strings.Split(strings.Join(given, ","), ",")
	}
	at := peer
	for n := 0; n < maxHops && n < len(hops); n++ {
		hop, ok := hostAddress(strings.TrimSpace(hops[len(hops)-1-n]))
		if !ok {
			return at
		}
		if at = hop; !within(trusted, hop) {
			return hop
		}
	}
	return at
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// hostAddress reads an address as connections and proxies write it: bare or
// with a port, IPv6 with or without brackets. A zone says nothing to anybody
// else and is dropped; an IPv4 address mapped into IPv6 is that IPv4 address.
func hostAddress(s string) (netip.Addr, bool) {
	if p, err := netip.ParseAddrPort(s); err == nil {
		return p.Addr().WithZone("").Unmap(), true
	}
	if inner, ok := strings.CutPrefix(s, "["); ok {
		if inner, ok = strings.CutSuffix(inner, "]"); !ok {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(inner)
		return a.WithZone("").Unmap(), err == nil && !a.Is4()
	}
	a, err := netip.ParseAddr(s)
	return a.WithZone("").Unmap(), err == nil
}

// forwardedFor lists the for= of each element of an RFC 7239 Forwarded
// header; "" for an element without one, or one that is not well formed.
func forwardedFor(header string) []string {
	var hops []string
	for _, element := range splitQuoted(header, ',') {
		hop, seen := "", false
		for _, pair := range splitQuoted(element, ';') {
			name, value, _ := strings.Cut(pair, "=")
			if !strings.EqualFold(strings.TrimSpace(name), "for") {
				continue
			}
			if seen { // twice: which one is it?
				hop = ""
				break
			}
			hop, seen = unquote(strings.TrimSpace(value)), true
		}
		hops = append(hops, hop)
	}
	return hops
}

// splitQuoted splits s at sep outside of quoted strings.
func splitQuoted(s string, sep byte) []string {
	var parts []string
	quoted, start := false, 0
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == sep && !quoted:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

// unquote reads a token or a quoted string; "" for neither.
func unquote(s string) string {
	inner, ok := strings.CutPrefix(s, `"`)
	if !ok {
		return s
	}
	inner, ok = strings.CutSuffix(inner, `"`)
	if !ok || strings.ContainsAny(inner, `"\`) { // no address has either
		return ""
	}
	return inner
}
