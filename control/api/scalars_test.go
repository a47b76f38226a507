package api

import (
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
)

func TestInstant(t *testing.T) {
	for in, want := range map[string]string{
		"2026-11-22T18:55:15Z":                "2026-11-22T18:55:15Z",
		"2026-11-22T18:55:15.4Z":              "2026-11-22T18:55:15.4Z",
		"2026-11-22T18:57:29.101Z":            "2026-11-22T18:57:29.101Z",     // JavaScript
		"2026-11-22T18:55:15.4892057Z":        "2026-11-22T18:55:15.4892057Z", // .NET
		"2026-11-22T18:55:15.4892050Z":        "2026-11-22T18:55:15.489205Z",  // trailing zero
		"2026-11-22T18:55:15.0000000Z":        "2026-11-22T18:55:15Z",         //
		"2026-11-22T18:55:15.489205789Z":      "2026-11-22T18:55:15.4892057Z", // Go
		"2026-11-22T19:55:15.489205789+01:00": "2026-11-22T18:55:15.4892057Z", // Go, elsewhere
		"2026-11-22T00:30:00-23:59":           "2026-11-23T00:29:00Z",         //
		"1970-01-01T00:00:00+00:00":           "1970-01-01T00:00:00Z",         //
		"9999-12-31T23:59:59.999999999Z":      "9999-12-31T23:59:59.9999999Z", // cut, never rounded up
	} {
		got, err := parseInstant(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if b, _ := instant(got).MarshalText(); string(b) != want {
			t.Errorf("%s is written %s, want %s", in, b, want)
		}
	}
	for _, in := range []string{"", "now", "2026-11-22", "2026-11-22T18:55:15", "2026-11-22 18:55:15Z", "2026-11-22T18:55:15.Z", "2026-11-22T18:55:15.1234567890Z",
		"2026-11-22T18:55:15,5Z", "2026-02-30T00:00:00Z", "2026-11-22T25:00:00Z", "2026-11-22T18:55:60Z", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59-01:00",
		"2026-11-22T18:55:15Z ", "٢026-11-22T18:55:15Z", strings.Repeat("9", 1000)} {
		if got, err := parseInstant(in); err == nil {
			t.Errorf("%q is taken for %s", in, got)
		}
	}
}

func FuzzInstant(f *testing.F) {
	for _, s := range []string{"2026-11-22T18:55:15.489205789+01:00", "2026-11-22T18:55:15Z", "1970-01-01T00:00:00-23:59", "9999-12-31T23:59:59.999999999Z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseInstant(s)
		if err != nil {
			return
		}
		b, _ := instant(got).MarshalText()
		again, err := parseInstant(string(b))
		if err != nil || !again.Equal(got.Truncate(100*time.Nanosecond)) {
			t.Errorf("%q is written %s, which reads %s, %v", s, b, again, err)
		}
	})
}

func TestPortNumber(t *testing.T) {
	for in, want := range map[string]int{`22`: 22, `"22"`: 22, `0`: 0, `65535`: 65535, `"65535"`: 65535,
		`65536`: -1, `-1`: -1, `22.0`: -1, `2.2e1`: -1, `""`: -1, `" 22"`: -1, `"0x16"`: -1, `true`: -1, `[22]`: -1, `{}`: -1, `"+22"`: -1, `null`: 0} {
		var n portNumber
		err := json.Unmarshal([]byte(in), &n)
		if (err != nil) != (want < 0) || (err == nil && int(n) != want) {
			t.Errorf("%s: %d, %v", in, n, err)
		}
	}
}
