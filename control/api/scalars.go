package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"
)

// instant is a date as Azure writes it: UTC, at most the seven digits of a
// .NET tick, trailing zeros dropped. The zero instant is none.
type instant time.Time

const instantLayout = "2006-01-02T15:04:05.9999999Z"

// parseInstant reads RFC 3339 with any offset and up to nine digits of a
// second.
func parseInstant(s string) (time.Time, error) {
	bad := fmt.Errorf("%q is not a date like 2026-11-22T18:55:15Z", clip(s))
	t, err := time.Parse(time.RFC3339Nano, s)
	// time.Parse would also take a comma, and digits it then drops.
	_, fraction, _ := strings.Cut(s, ".")
	digits := strings.IndexFunc(fraction, func(r rune) bool { return r < '0' || r > '9' })
	if err != nil || digits > 9 || strings.Contains(s, ",") {
		return time.Time{}, bad
	}
	if t = t.UTC(); t.Year() < 1970 || t.Year() > 9999 {
		return time.Time{}, bad
	}
	return t, nil
}

// IsZero reports whether there is none.
func (i instant) IsZero() bool { return time.Time(i).IsZero() }

// MarshalText writes what Azure would.
func (i instant) MarshalText() ([]byte, error) {
	return time.Time(i).UTC().AppendFormat(nil, instantLayout), nil
}

// UnmarshalText reads what parseInstant does.
func (i *instant) UnmarshalText(b []byte) error {
	t, err := parseInstant(string(b))
	*i = instant(t)
	return err
}

// portNumber is a port that may come as a number or, as some clients send it,
// a string of digits.
type portNumber uint16

// UnmarshalJSONFrom reads either form.
func (n *portNumber) UnmarshalJSONFrom(d *jsontext.Decoder) error {
	t, err := d.ReadToken()
	if err != nil {
		return err
	}
	s := t.String()
	switch t.Kind() {
	case 'n':
		return nil // null is as good as nothing
	case '0', '"':
	default:
		return errors.New("a port is a number from 0 to 65535")
	}
	p, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return fmt.Errorf("%q is not a port from 0 to 65535", clip(s))
	}
	*n = portNumber(p)
	return nil
}

// clip keeps what a stranger sent short enough for a message.
func clip(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// time is the instant as a time.Time.
func (i instant) time() time.Time { return time.Time(i) }
