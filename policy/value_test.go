package policy

import (
	"encoding/json"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"PT3H": 3 * time.Hour, "P1D": day, "PT1H30M": 90 * time.Minute, "P1DT1S": day + sec,
		"P2DT3H4M5S": 2*day + 3*time.Hour + 4*time.Minute + 5*sec, "PT0S": 0, "P0D": 0, "PT90M": 90 * time.Minute,
		"PT007S": 7 * sec, "P3660D": maxDuration, "PT87840H": maxDuration, "PT316224000S": maxDuration,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("%s: got %v, %v, want %v", s, got, err, want)
		}
	}
	for _, s := range []string{
		"", "P", "PT", "P1DT", "3H", "T3H", "PT3", "P3", "PT3h", "pt3h", "+PT3H", "-PT3H", "PT-3H", "PT+3H", "PT3H ", " PT3H",
		"PT1.5H", "PT1,5H", "PT.5H", "P1Y", "P1M", "P1W", "P1H", "PT1D", "PT1S1H", "PT1H1H", "P1D1D", "P1DT1D", "PTT1H", "PT1HT1M",
		"P1DTT1H", "PT0x1H", "PT1_0H", "PT\u0661H", "PT1\u017f", "PT1H\x00", "3h", "P3661D", "P3660DT1S", "PT87841H", "PT316224001S",
		"PT9999999999S", "PT99999999999999999999H",
		// Times its unit these overflow 64 bits: the first to 25 minutes, the
		// others beside it and around again.
		"P213504D", "P213505D", "P427008D", "PT5124096H", "P999999999D", "PT999999999H", "PT307445735M",
	} {
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("%q: accepted as %v", s, got)
		}
	}
}

// Counts up to the largest that nine digits hold agree with arithmetic that
// cannot overflow.
func TestParseDurationOverflow(t *testing.T) {
	limit := big.NewInt(int64(maxDuration))
	for _, u := range []struct {
		prefix, letter string
		unit           time.Duration
	}{{"P", "D", day}, {"PT", "H", time.Hour}, {"PT", "M", time.Minute}, {"PT", "S", sec}} {
		for n := int64(1); n < 1_000_000_000; n += 1 + n/300 {
			s := u.prefix + big.NewInt(n).String() + u.letter
			want := new(big.Int).Mul(big.NewInt(n), big.NewInt(int64(u.unit)))
			got, err := ParseDuration(s)
			if ok := want.Cmp(limit) <= 0; ok != (err == nil) || ok && int64(got) != want.Int64() {
				t.Errorf("%s: got %v, %v, want %v ns", s, got, err, want)
				break
			}
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"PT0S": 0, "PT1S": sec + sec/2, "PT1M": time.Minute, "PT3H": 3 * time.Hour, "PT24H": day, "PT1H1S": time.Hour + sec,
		"PT25H1M1S": 25*time.Hour + time.Minute + sec,
	} {
		if got := FormatDuration(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	for _, s := range []string{"2026-11-22T12:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2024-02-29T00:00:00Z"} {
		if got, err := parseTime(s); err != nil || FormatTime(got) != s {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
	for _, s := range []string{
		"", "2026-11-22", "2026-11-22T12:00Z", "2026-11-22T12:00:00", "2026-11-22T12:00:00z", "2026-11-22t12:00:00Z",
		"2026-11-22 12:00:00Z", "2026-11-22T12:00:00.0Z", "2026-11-22T12:00:00.5Z", "2026-11-22T12:00:00,5Z",
		"2026-11-22T12:00:00+00:00", "2026-11-22T12:00:00-00:00", "2026-11-22T13:00:00+01:00", "2026-11-22T24:00:00Z",
		"2026-12-31T23:59:60Z", "2026-02-29T00:00:00Z", "2026-13-01T00:00:00Z", "2026-11-22T1:00:00Z", "+2026-11-22T12:00:00Z",
		"10000-01-01T00:00:00Z", "2026-11-22T12:00:00Z ", " 2026-11-22T12:00:00Z", "1795262400",
	} {
		if got, err := parseTime(s); err == nil {
			t.Errorf("%q: accepted as %v", s, got)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for _, s := range []string{"0.0.0.0/0", "203.0.113.7/32", "10.0.0.0/8", "::/0", "2001:db8::/32", "2001:db8::1/128", "fe80::/10"} {
		if got, err := parsePrefix(s); err != nil || got.String() != s {
			t.Errorf("%s: got %v, %v", s, got, err)
		}
	}
	for why, list := range map[string][]string{
		"no length":          {"203.0.113.7", "2001:db8::1"},
		"host bits":          {"203.0.113.7/24", "2001:db8::1/64", "0.0.0.1/0", "::1/0"},
		"not canonical":      {"010.0.0.0/8", "10.0.0.0/08", "10.0.0.0/+8", "2001:DB8::/32", "2001:db8:0::/48", "2001:0db8::/32", "0:0:0:0:0:0:0:0/0"},
		"v4-mapped":          {"::ffff:203.0.113.7/128", "::ffff:cb00:7107/128", "::ffff:0.0.0.0/96"},
		"zone":               {"fe80::1%eth0/128", "fe80::%1/64", "fe80::1%eth0"},
		"length":             {"10.0.0.0/33", "2001:db8::/129", "10.0.0.0/-1", "10.0.0.0/"},
		"other ways to say":  {"10/8", "0/0", "0x0a000000/8", "10.0.0.0/255.0.0.0", "10.0.0.0-10.0.0.9", "any", "Internet", "**", "", " *", "* "},
		"spaces":             {" 10.0.0.0/8", "10.0.0.0/8 ", "10.0.0.0 /8", "10.0.0.0/8,11.0.0.0/8", "10.0.0.0/8\n"},
		"digits not of ours": {"\u0661\u0660.0.0.0/8", "１0.0.0.0/8"},
	} {
		for _, s := range list {
			if got, err := parsePrefix(s); err == nil {
				t.Errorf("%s: %q: accepted as %v", why, s, got)
			}
		}
	}
}

func TestCovers(t *testing.T) {
	for _, c := range []struct {
		allowed, source string
		want            bool
	}{
		{"203.0.113.0/24", "203.0.113.0/24", true},
		{"203.0.113.0/24", "203.0.113.255/32", true},
		{"203.0.113.0/24", "203.0.112.0/23", false}, // contains the allowed net
		{"203.0.113.0/24", "203.0.114.0/32", false},
		{"203.0.113.0/25", "203.0.113.0/24", false}, // begins like it
		{"0.0.0.0/0", "0.0.0.0/0", true},
		{"0.0.0.0/0", "203.0.113.7/32", true},
		{"0.0.0.0/0", "::/0", false},
		{"0.0.0.0/0", "2001:db8::1/128", false},
		{"::/0", "203.0.113.7/32", false},
		{"::/0", "2001:db8::1/128", true},
		{"2001:db8::/32", "2001:db8:ffff::/48", true},
		{"2001:db8::/32", "2001:db9::/48", false},
	} {
		if got := covers(prefixes(c.allowed), netip.MustParsePrefix(c.source)); got != c.want {
			t.Errorf("%s covers %s: got %t", c.allowed, c.source, got)
		}
	}
	// Two halves are not the whole: one entry must contain the source.
	if covers(prefixes("0.0.0.0/1", "128.0.0.0/1"), any4) {
		t.Error("0.0.0.0/0 is within two halves")
	}
	if covers(nil, any4) {
		t.Error("an empty list covers something")
	}
}

func TestToken(t *testing.T) {
	for s, ok := range map[string]bool{
		"a": true, "~!": true, strings.Repeat("x", 8): true, strings.Repeat("x", 9): false, "": false, "a b": false, "a\t": false,
		"a\n": false, "a\x7f": false, "é": false, "a\u202eb": false, "a\x00": false,
	} {
		if err := token("name", s, 8); (err == nil) != ok {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestParseDigest(t *testing.T) {
	digits := strings.Repeat("0a", 32)
	d, err := ParseDigest("sha256:" + digits)
	if err != nil || d.String() != "sha256:"+digits {
		t.Fatalf("got %v, %v", d, err)
	}
	for _, s := range []string{
		"", digits, "sha256:", "sha256:" + digits[2:], "sha256:" + digits + "00", "sha256:" + strings.ToUpper(digits),
		"SHA256:" + digits, "sha512:" + digits, "sha256:" + digits[:62] + "0g", " sha256:" + digits,
	} {
		if d, err := ParseDigest(s); err == nil || d != (Digest{}) {
			t.Errorf("%q: got %v, %v", s, d, err)
		}
	}
}

// The agent writes its state with encoding/json.
func TestStateRoundTrip(t *testing.T) {
	for _, want := range []State{
		{},
		{Trust: Mark{Version: 3, Digest: Digest{1}}, Policy: Mark{Version: MaxVersion}, Grants: Mark{Epoch: 2, Version: 7, Digest: Digest{31: 9}}, Floor: noon},
	} {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got State
		if err := json.Unmarshal(b, &got); err != nil || got != want {
			t.Errorf("got %+v, %v, want %+v from %s", got, err, want, b)
		}
	}
}

func TestPortString(t *testing.T) {
	for want, p := range map[string]Port{
		"22/tcp":        {Number: 22, EndNumber: 22, Protocol: TCP},
		"53/udp":        {Number: 53, EndNumber: 53, Protocol: UDP},
		"3389":          {Number: 3389, EndNumber: 3389, Protocol: Both},
		"5985-5986/tcp": {Number: 5985, EndNumber: 5986, Protocol: TCP},
	} {
		if got := p.String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}
