package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

const timeLayout = "2006-01-02T15:04:05Z"

// parseTime reads exactly YYYY-MM-DDTHH:MM:SSZ. time.Parse alone would also
// take fractions of a second, which a second reader might round the other way.
func parseTime(s string) (time.Time, error) {
	t, err := time.Parse(timeLayout, s)
	if err != nil || t.Format(timeLayout) != s {
		return time.Time{}, fmt.Errorf("%q is not a time like 2026-11-22T12:00:00Z", s)
	}
	return t, nil
}

// FormatTime writes t the way documents do.
func FormatTime(t time.Time) string { return t.UTC().Format(timeLayout) }

const maxDuration = 10 * 366 * 24 * time.Hour

// ParseDuration reads an ISO 8601 duration of days, hours, minutes and
// seconds in whole numbers: PT3H, P1D, PT1H30M. Months and years have no
// fixed length and are refused.
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration like PT3H or P1D", s)
	rest, ok := strings.CutPrefix(s, "P")
	if !ok || rest == "" {
		return 0, bad
	}
	units := []struct {
		letter byte
		unit   time.Duration
	}{{'D', 24 * time.Hour}, {'T', 0}, {'H', time.Hour}, {'M', time.Minute}, {'S', time.Second}}
	var total time.Duration
	next, inTime, empty := 0, false, true
	for rest != "" {
		if rest[0] == 'T' && !inTime {
			inTime, empty, next, rest = true, true, 2, rest[1:]
			continue
		}
		n := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if n < 1 || n > 9 {
			return 0, bad
		}
		count, err := strconv.ParseInt(rest[:n], 10, 64)
		if err != nil {
			return 0, bad
		}
		for next < len(units) && units[next].letter != rest[n] {
			next++
		}
		if next == len(units) || units[next].unit == 0 || (next > 1) != inTime {
			return 0, bad
		}
		// Held against the limit before it is multiplied: P213504D overflows
		// 64 bits to 25 minutes.
		if time.Duration(count) > (maxDuration-total)/units[next].unit {
			return 0, fmt.Errorf("%q is longer than ten years", s)
		}
		total += time.Duration(count) * units[next].unit
		next, empty, rest = next+1, false, rest[n+1:]
	}
	if empty {
		return 0, bad
	}
	return total, nil
}

// FormatDuration writes d, cut to whole seconds, in ISO 8601.
func FormatDuration(d time.Duration) string {
	d = d.Truncate(time.Second)
	var b strings.Builder
	b.WriteString("PT")
	for _, u := range []struct {
		letter string
		unit   time.Duration
	}{{"H", time.Hour}, {"M", time.Minute}, {"S", time.Second}} {
		if n := d / u.unit; n > 0 || (u.letter == "S" && b.Len() == 2) {
			fmt.Fprintf(&b, "%d%s", n, u.letter)
			d %= u.unit
		}
	}
	return b.String()
}

var (
	any4 = netip.MustParsePrefix("0.0.0.0/0")
	any6 = netip.MustParsePrefix("::/0")
)

// parsePrefix reads one canonical CIDR. Host bits, zones, IPv4-mapped
// addresses and other spellings of the same network are refused: what the
// signer read is what the kernel gets.
func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return p, fmt.Errorf("%q has no prefix length: write %s/%d", s, s, a.BitLen())
		}
		return p, fmt.Errorf("%q is not a prefix like 203.0.113.7/32 or *", s)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is an IPv4 address written as IPv6", s)
	case p != p.Masked():
		return p, fmt.Errorf("%q has host bits set: write %s", s, p.Masked())
	case p.String() != s:
		return p, fmt.Errorf("%q is not in canonical form: write %s", s, p)
	}
	return p, nil
}

// parsePrefixes reads a list of source address prefixes; "*" stands for every
// IPv4 and every IPv6 address.
func parsePrefixes(name string, list []string, limit int) ([]netip.Prefix, error) {
	if len(list) > limit {
		return nil, fmt.Errorf("%s has %d prefixes, the limit is %d", name, len(list), limit)
	}
	out := make([]netip.Prefix, 0, len(list))
	for i, s := range list {
		if s == "*" {
			out = append(out, any4, any6)
			continue
		}
		p, err := parsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%s[%d]: %w", name, i, err)
		}
		out = append(out, p)
	}
	if len(out) > limit {
		return nil, fmt.Errorf(`%s has %d prefixes ("*" counts as 0.0.0.0/0 and ::/0), the limit is %d`, name, len(out), limit)
	}
	return out, nil
}

func formatPrefixes(list []netip.Prefix) []string {
	out := make([]string, len(list))
	for i, p := range list {
		out[i] = p.String()
	}
	return out
}

// covers reports whether one of nets contains all of p.
func covers(nets []netip.Prefix, p netip.Prefix) bool {
	for _, n := range nets {
		if n.Bits() <= p.Bits() && n.Contains(p.Addr()) {
			return true
		}
	}
	return false
}

// Protocol is what a policy may guard: TCP, UDP or both.
type Protocol string

// The protocols of a policy's port.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	Both Protocol = "*"
)

func parseProtocol(s string) (Protocol, error) {
	switch p := Protocol(s); p {
	case TCP, UDP, Both:
		return p, nil
	}
	return "", fmt.Errorf(`protocol %q is not TCP, UDP or "*"`, s)
}

// token checks a name that ends up in records and terminal lines: printable
// ASCII without spaces, from 1 to limit bytes.
func token(name, s string, limit int) error {
	if s == "" {
		return fmt.Errorf("%s is empty", name)
	}
	if len(s) > limit {
		return fmt.Errorf("%s has %d bytes, the limit is %d", name, len(s), limit)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return fmt.Errorf("%s %q has a character outside printable ASCII", name, s)
		}
	}
	return nil
}

// text checks a sentence people wrote: any UTF-8 up to limit bytes.
func text(name, s string, limit int) error {
	if len(s) > limit {
		return fmt.Errorf("%s has %d bytes, the limit is %d", name, len(s), limit)
	}
	return nil
}

var errMissing = errors.New("is missing")

// need returns what a required name holds.
func need[T any](name string, p *T) (T, error) {
	if p == nil {
		var zero T
		return zero, fmt.Errorf("%s %w", name, errMissing)
	}
	return *p, nil
}
