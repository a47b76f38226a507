// Package armor turns a signed envelope into text that a person can type from
// paper or another screen, and back: for a host that only a serial or web
// console reaches. docs/formats.md has the format.
//
//	envelope ─ binary, deflated ─► base32 ─► numbered lines, each with a checksum
//
// It is pure and checks no signature: whatever it returns is judged by the
// agent like any other delivery. The checksums find mistakes, not forgeries.
package armor

import (
	"bytes"
	"encoding/base32"
	"errors"
	"fmt"
	"strings"

	"github.com/jitgate/jitgate/policy"
)

// MaxText is how many bytes of text hold the largest envelope, with room for
// what stands before the first line.
const MaxText = 1 << 20

const (
	lineData = 50 // characters of data in every line but the last
	group    = 5  // characters between two spaces
	// maxLines is what an envelope of policy.MaxEnvelope bytes would take. It
	// also bounds a line's number to the 15 bits its checksum has for it.
	maxLines = policy.MaxEnvelope*8/5/lineData + 1
)

// alphabet is Crockford's: no I, L, O and U. In it 0 and O, and 1, I and L, are
// one character each.
const alphabet = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"

var (
	letters = base32.NewEncoding(alphabet).WithPadding(base32.NoPadding)
	// magic begins the first line, as normalize leaves it.
	magic = normalize("JITGATE1")
)

// kinds are the documents by their number in the binary form, from 1.
var kinds = [...]struct {
	name string
	typ  policy.Type
}{{"TRUST", policy.TypeTrust}, {"POLICY", policy.TypePolicy}, {"GRANTS", policy.TypeGrants}}

// kindOf returns a type's number, or 0.
func kindOf(typ policy.Type) int {
	for i, k := range kinds {
		if k.typ == typ {
			return i + 1
		}
	}
	return 0
}

// Encode returns the envelope as lines to read aloud and type. It refuses an
// envelope that no agent would read.
func Encode(e policy.Envelope) (string, error) {
	data, err := encodeData(e)
	if err != nil {
		return "", err
	}
	kind, count := kindOf(e.Type), (len(data)+lineData-1)/lineData
	var b strings.Builder
	fmt.Fprintf(&b, "JITGATE1 %s %d %s\n", kinds[kind-1].name, count, headerSum(kind, count))
	for n := 1; n <= count; n++ {
		line := data[(n-1)*lineData : min(n*lineData, len(data))]
		fmt.Fprintf(&b, "%02d:", n)
		for at := 0; at < len(line); at += group {
			b.WriteString(" " + line[at:min(at+group, len(line))])
		}
		b.WriteString(" " + lineSum(n, line) + "\n")
	}
	return b.String(), nil
}

// EncodeLine returns the envelope as one line without spaces, for a QR code.
// Decode reads it too.
func EncodeLine(e policy.Envelope) (string, error) {
	data, err := encodeData(e)
	if err != nil {
		return "", err
	}
	return "JITGATE1" + kinds[kindOf(e.Type)-1].name + ":" + data, nil
}

func encodeData(e policy.Envelope) (string, error) {
	b, err := marshal(e)
	if err != nil {
		return "", err
	}
	return letters.EncodeToString(b), nil
}

// Decode reads what Encode and EncodeLine write, and text around it. An error
// names the first line that is wrong.
func Decode(text []byte) (policy.Envelope, error) {
	if len(text) > MaxText {
		return policy.Envelope{}, policy.Refuse(policy.TooLarge, "the text has %d bytes or more, the limit is %d", len(text), MaxText)
	}
	var r Reader
	for line := range bytes.Lines(text) {
		if err := r.Line(string(line)); err != nil && !errors.Is(err, ErrNoHeader) {
			return policy.Envelope{}, policy.Refuse(policy.Malformed, "%v", err)
		}
	}
	return r.Envelope()
}

// A Reader takes the text line by line. What it refuses changes nothing: the
// line can be given again. The zero Reader is ready.
type Reader struct {
	kind, count int // of the header; count 0: not read yet
	next        int // number of the line that is expected
	data        strings.Builder
}

// ErrNoHeader is returned for text before the first line.
var ErrNoHeader = errors.New("the first line begins with JITGATE1")

// Line reads one line. Empty lines are passed over, and so is what follows the
// last one, unless it is a line of such a text.
func (r *Reader) Line(s string) error {
	s = normalize(s)
	if s == "" {
		return nil
	}
	number, rest, ok := strings.Cut(s, ":")
	if !ok {
		number, rest, ok = strings.Cut(s, ".") // easier to find on another keyboard's layout
	}
	n, isNumber := parseNumber(number)
	switch {
	case r.count > 0 && ok && isNumber: // before anything else: data may look like the magic word
		return r.body(n, rest)
	case strings.Contains(s, magic) && r.count > 0:
		return errors.New("a second text begins here: give one at a time")
	case strings.Contains(s, magic):
		return r.header(s)
	case r.count == 0:
		return ErrNoHeader
	case r.Done():
		return nil
	}
	return fmt.Errorf("line %d has no number: begin with %02d: and go on", r.next, r.next)
}

// header reads the first line from its first magic word with a kind behind it.
func (r *Reader) header(s string) error {
	for at := strings.Index(s, magic); at >= 0; at = strings.Index(s, magic) {
		s = s[at+len(magic):]
		for i, k := range kinds {
			if rest, ok := strings.CutPrefix(s, normalize(k.name)); ok {
				return r.begin(i+1, rest)
			}
		}
	}
	return errors.New("the first line says none of TRUST, POLICY, GRANTS after JITGATE1: type it again")
}

// begin reads what follows the kind: "9ABC", or ":DATA" where that is all.
func (r *Reader) begin(kind int, s string) error {
	if data, ok := strings.CutPrefix(s, ":"); ok {
		if err := inAlphabet(data); err != nil {
			return fmt.Errorf("the line after %s: %w", kinds[kind-1].name, err)
		}
		r.kind, r.count, r.next = kind, 1, 2
		r.data.WriteString(data)
		return nil
	}
	digits, sum := cutSum(s)
	n, ok := parseNumber(digits)
	if !ok || n > maxLines || sum != headerSum(kind, n) {
		return errors.New("the first line does not match its checksum: type it again")
	}
	r.kind, r.count, r.next = kind, n, 1
	return nil
}

// body reads line n without its number.
func (r *Reader) body(n int, s string) error {
	if n > r.count {
		return fmt.Errorf("line %d: there are only %d", n, r.count)
	}
	data, sum := cutSum(s)
	if err := inAlphabet(s); err != nil {
		return fmt.Errorf("line %d: %w: type it again", n, err)
	}
	switch {
	case n < r.count && len(data) != lineData:
		return fmt.Errorf("line %d has %d characters, not %d: type it again", n, len(s), lineData+sumLength)
	case data == "" || len(data) > lineData || sum != lineSum(n, data):
		return fmt.Errorf("line %d does not match its checksum: type it again", n)
	case n < r.next:
		return fmt.Errorf("line %d is there twice", n)
	case n > r.next:
		return fmt.Errorf("line %d is missing: line %d came in its place", r.next, n)
	}
	r.data.WriteString(data)
	r.next++
	return nil
}

// Next is the number of the line that is expected, of count: 0 for the first
// one, which says count.
func (r *Reader) Next() (next, count int) { return r.next, r.count }

// Done reports whether the last line was read.
func (r *Reader) Done() bool { return r.count != 0 && r.next > r.count }

// Envelope returns what was read, once it is Done. Nothing in it was verified.
func (r *Reader) Envelope() (policy.Envelope, error) {
	switch {
	case r.count == 0:
		return policy.Envelope{}, policy.Refuse(policy.Malformed, "neither JSON nor text that begins with JITGATE1")
	case !r.Done():
		return policy.Envelope{}, policy.Refuse(policy.Malformed, "line %d is missing: the text has %d lines", r.next, r.count)
	}
	e, err := r.envelope()
	if err != nil {
		return policy.Envelope{}, policy.Refuse(policy.Malformed, "the text is not whole: %v", err)
	}
	return e, nil
}

func (r *Reader) envelope() (policy.Envelope, error) {
	data := r.data.String()
	b, err := letters.DecodeString(data)
	if err != nil {
		return policy.Envelope{}, err
	}
	if letters.EncodeToString(b) != data { // stray bits in the last character
		return policy.Envelope{}, errors.New("its last character has bits that mean nothing")
	}
	e, err := unmarshal(b)
	if err == nil && kindOf(e.Type) != r.kind {
		err = fmt.Errorf("the first line says %s, the text is %q", kinds[r.kind-1].name, e.Type)
	}
	return e, err
}

// parseNumber reads up to five digits.
func parseNumber(s string) (n int, ok bool) {
	if len(s) < 1 || len(s) > 5 {
		return 0, false
	}
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, n > 0
}

func inAlphabet(s string) error {
	for _, c := range s {
		if !strings.ContainsRune(alphabet, c) {
			return fmt.Errorf("%q is no character of it", c)
		}
	}
	return nil
}

// normalize makes one spelling of a line: no white space and no control
// sequences, capitals, 0 for O, 1 for I and L.
func normalize(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == 0x1b:
			i += sequence(s[i:]) - 1
			continue
		case c <= ' ' || c == 0x7f:
			continue
		case 'a' <= c && c <= 'z':
			c -= 'a' - 'A'
		}
		switch c {
		case 'O':
			c = '0'
		case 'I', 'L':
			c = '1'
		}
		b.WriteByte(c)
	}
	return b.String()
}

// sequence is the length of the control sequence s begins with (ECMA-48, 5.4):
// terminals put a pasted text between two of them.
func sequence(s string) int {
	if !strings.HasPrefix(s, "\x1b[") {
		return 1
	}
	for i := 2; i < len(s); i++ {
		if c := s[i]; c >= 0x40 && c <= 0x7e {
			return i + 1
		} else if c < 0x20 || c > 0x7e {
			return i
		}
	}
	return len(s)
}
