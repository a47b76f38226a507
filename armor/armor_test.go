package armor

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// list is a signed list with one grant, the same every time.
func list(t testing.TB) policy.Envelope {
	t.Helper()
	now := time.Date(2026, 11, 24, 3, 4, 5, 0, time.UTC)
	g := policy.Grants{
		Header: policy.Header{Realm: "acme", Version: 1188, Issued: now, Expires: now.Add(time.Hour)},
		Epoch:  1, Host: policy.Host{ID: "web1"},
		Grants: []policy.Grant{{ID: "GNQ4ZKJ3VYB2M7X5TR6WHCF2DA", Number: 22, Sources: []netip.Prefix{netip.MustParsePrefix("203.0.113.7/32")},
			Start: now, End: now.Add(time.Hour), Requestor: "alice@laptop", Justification: "INC-20391"}},
	}
	e := policy.Envelope{Type: policy.TypeGrants, Payload: g.Encode()}
	if err := e.Sign(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{7}, ed25519.SeedSize))); err != nil {
		t.Fatal(err)
	}
	return e
}

// noise is n bytes that do not deflate, the same every time.
func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func signatures(lengths ...int) []policy.Signature {
	out := []policy.Signature{}
	for i, n := range lengths {
		out = append(out, policy.Signature{KeyID: policy.KeyID(fmt.Sprintf("sha256:%064x", i)), Sig: noise(n)})
	}
	return out
}

func encodeLines(t testing.TB, e policy.Envelope) string {
	t.Helper()
	text, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestRoundTrip(t *testing.T) {
	for name, e := range map[string]policy.Envelope{
		"one grant":         list(t),
		"nothing":           {Type: policy.TypeTrust, Payload: []byte{}, Signatures: signatures()},
		"one byte":          {Type: policy.TypePolicy, Payload: []byte{0}, Signatures: signatures(0)},
		"sixteen signers":   {Type: policy.TypePolicy, Payload: []byte("{}"), Signatures: signatures(slices.Repeat([]int{71}, policy.MaxSignatures)...)},
		"not deflated":      {Type: policy.TypeGrants, Payload: noise(3000), Signatures: signatures(64)},
		"largest":           {Type: policy.TypeGrants, Payload: noise(policy.MaxPayload), Signatures: signatures(64)},
		"largest, deflated": {Type: policy.TypeGrants, Payload: make([]byte, policy.MaxPayload), Signatures: signatures(64)},
	} {
		t.Run(name, func(t *testing.T) {
			line, err := EncodeLine(e)
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{encodeLines(t, e), line} {
				if len(text) > MaxText/2 && name != "largest" {
					t.Errorf("%d bytes", len(text))
				}
				if odd := strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789: \n"); odd != "" {
					t.Errorf("the text has %q", odd[:1])
				}
				got, err := Decode([]byte(text))
				if err != nil || !reflect.DeepEqual(got, e) {
					t.Fatalf("%v, %.200v", err, got)
				}
			}
		})
	}
}

// One grant is typed in ten lines at the most, on a terminal of 80 columns.
func TestShort(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(encodeLines(t, list(t)), "\n"), "\n")
	if len(lines) > 10 {
		t.Errorf("%d lines", len(lines))
	}
	for _, l := range lines {
		if len(l) > 70 {
			t.Errorf("%d columns: %s", len(l), l)
		}
	}
}

func TestForgiving(t *testing.T) {
	e := list(t)
	text := encodeLines(t, e)
	line, err := EncodeLine(e)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(string) string{
		"small letters":      strings.ToLower,
		"o for 0":            func(s string) string { return strings.ReplaceAll(s, "0", "o") },
		"l for 1":            func(s string) string { return strings.ReplaceAll(s, "1", "l") },
		"I for 1":            func(s string) string { return strings.ReplaceAll(s, "1", "I") },
		"no spaces":          func(s string) string { return strings.ReplaceAll(s, " ", "") },
		"tabs":               func(s string) string { return strings.ReplaceAll(s, " ", "\t ") },
		"CR LF":              func(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") },
		"blank lines":        func(s string) string { return strings.ReplaceAll(s, "\n", "\n \n\n") },
		"spaces at the end":  func(s string) string { return strings.ReplaceAll(s, "\n", "   \n") },
		"no newline":         func(s string) string { return strings.TrimSuffix(s, "\n") },
		"text before":        func(s string) string { return "Hi Bob,\n12: here it is\n\n" + s },
		"a prompt before":    func(s string) string { return "alice@laptop:~$ " + s },
		"text after":         func(s string) string { return strings.TrimSuffix(s, "\n") + "\nalice@laptop:~$ exit\n" },
		"numbers without 0":  func(s string) string { return strings.ReplaceAll(s, "\n0", "\n") },
		"points after them":  func(s string) string { return strings.ReplaceAll(s, ": ", ". ") },
		"bracketed paste":    func(s string) string { return "\x1b[200~" + s + "\x1b[201~" },
		"byte order mark":    func(s string) string { return "\ufeff" + s },
		"coloured":           func(s string) string { return strings.ReplaceAll(s, "0", "\x1b[1;31m0\x1b[0m") },
		"a marker elsewhere": func(s string) string { return "\x1b" + s + "\x1b" },
		"the word before":    func(s string) string { return "see JITGATE1 below: " + s },
	} {
		t.Run(name, func(t *testing.T) {
			for _, text := range []string{text, line} {
				got, err := Decode([]byte(change(text)))
				if err != nil || !reflect.DeepEqual(got, e) {
					t.Errorf("%v\n%q", err, change(text))
				}
			}
		})
	}
}

// wants requires that a text is refused, as malformed, with a sentence.
func wants(t *testing.T, text, sentence string) {
	t.Helper()
	_, err := Decode([]byte(text))
	if policy.CodeOf(err) != policy.Malformed || !strings.Contains(err.Error(), sentence) {
		t.Errorf("%v, want malformed: %s\n%s", err, sentence, text)
	}
}

// Every wrong character, everywhere, and every two neighbours swapped are
// found in their own line.
func TestWrongCharacters(t *testing.T) {
	lines := strings.Split(strings.TrimSuffix(encodeLines(t, list(t)), "\n"), "\n")
	with := func(n int, line string) string {
		changed := slices.Clone(lines)
		changed[n] = line
		return strings.Join(changed, "\n")
	}
	for n := 1; n < len(lines); n++ {
		l, sentence := lines[n], fmt.Sprintf("line %d does not match its checksum: type it again", n)
		for at := len("01: "); at < len(l); at++ {
			if l[at] == ' ' {
				continue
			}
			for _, c := range []byte(alphabet) {
				if c != l[at] {
					wants(t, with(n, l[:at]+string(c)+l[at+1:]), sentence)
				}
			}
			next := at + 1 + strings.IndexFunc(l[at+1:]+"x", func(r rune) bool { return r != ' ' })
			if next < len(l) && l[next] != l[at] {
				swapped := []byte(l)
				swapped[at], swapped[next] = l[next], l[at]
				wants(t, with(n, string(swapped)), sentence)
			}
			if n < len(lines)-1 {
				wants(t, with(n, l[:at]+l[at+1:]), fmt.Sprintf("line %d has 52 characters, not 53: type it again", n))
				wants(t, with(n, l[:at]+"7"+l[at:]), fmt.Sprintf("line %d has 54 characters, not 53: type it again", n))
			} else {
				wants(t, with(n, l[:at]+l[at+1:]), sentence)
			}
		}
		wants(t, with(n, l+" U"), fmt.Sprintf("line %d: 'U' is no character of it", n))
		// A wrong number makes a wrong line of it.
		wants(t, with(n, fmt.Sprintf("%02d%s", n%(len(lines)-1)+1, l[2:])), fmt.Sprintf("line %d ", n%(len(lines)-1)+1))
	}
	// The first line too.
	for _, first := range []string{"JITGATE1 GRANTS 7 F0S", "JITGATE1 GRANTS 9 F0S", "JITGATE1 GRANTS 88 F0S", "JITGATE1 GRANTS 8 F0T", "JITGATE1 POLICY 8 F0S",
		"JITGATE1 GRANTS 8", "JITGATE1 GRANTS", "JITGATE1 GRANTS 0 000", "JITGATE1 GRANTS 99999 000", "JITGATE1 GRANTS 99999999999999999999 000", "JITGATE1 GRANTS -1 000"} {
		wants(t, with(0, first), "the first line does not match its checksum")
	}
	wants(t, with(0, "JITGATE1 LEASES 8 F0S"), "the first line says none of TRUST, POLICY, GRANTS")
	wants(t, with(0, "JITGATE2 GRANTS 8 F0S"), "neither JSON nor text")
}

// Lines that are missing, doubled or swapped are named.
func TestWrongLines(t *testing.T) {
	lines := strings.SplitAfter(strings.TrimSuffix(encodeLines(t, list(t)), "\n"), "\n")
	last := len(lines) - 1
	lines[last] += "\n"
	join := func(parts ...[]string) string { return strings.Join(slices.Concat(parts...), "") }
	for n := 1; n < last; n++ {
		wants(t, join(lines[:n], lines[n+1:]), fmt.Sprintf("line %d is missing: line %d came in its place", n, n+1))
		wants(t, join(lines[:n], []string{lines[n+1], lines[n]}, lines[n+2:]), fmt.Sprintf("line %d is missing", n))
		// Swapped behind their numbers.
		number := len("01:")
		wants(t, join(lines[:n], []string{lines[n][:number] + lines[n+1][number:], lines[n+1][:number] + lines[n][number:]}, lines[n+2:]),
			map[bool]string{true: fmt.Sprintf("line %d does not match its checksum", n), false: fmt.Sprintf("line %d has ", n)}[n+1 < last])
	}
	wants(t, join(lines[:last]), fmt.Sprintf("line %d is missing: the text has %d lines", last, last))
	for n := 1; n <= last; n++ {
		wants(t, join(lines[:n+1], lines[n:]), fmt.Sprintf("line %d is there twice", n))
	}
	wants(t, join(lines[:2], lines), "a second text begins here")
	wants(t, join(lines, lines), "a second text begins here")
	wants(t, join(lines[:2], []string{"and so on\n"}, lines[2:]), "line 2 has no number: begin with 02: and go on")
	wants(t, join(lines[:2], []string{"99: 00000 000\n"}), fmt.Sprintf("line 99: there are only %d", last))
	wants(t, "", "neither JSON nor text")
	wants(t, "open sesame", "neither JSON nor text")
}

// Data may hold the word that begins a text.
func TestMagicInside(t *testing.T) {
	inside, err := letters.DecodeString(magic + normalize("GRANTS7Z"))
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for shift := range 8 {
		e := policy.Envelope{Type: policy.TypeGrants, Payload: slices.Concat(noise(shift), inside, noise(40)), Signatures: signatures()}
		line, err := EncodeLine(e)
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.Count(normalize(line), magic) == 2
		for _, text := range []string{line, encodeLines(t, e)} {
			if got, err := Decode([]byte(text)); err != nil || !reflect.DeepEqual(got, e) {
				t.Errorf("%v\n%s", err, text)
			}
		}
	}
	if !found {
		t.Error("no text has it")
	}
}

// A Reader keeps the good lines, and takes the bad one again.
func TestReader(t *testing.T) {
	e := list(t)
	lines := strings.Split(strings.TrimSuffix(encodeLines(t, e), "\n"), "\n")
	var r Reader
	if err := r.Line("yes?"); err != ErrNoHeader {
		t.Error(err)
	}
	for n, l := range lines {
		if next, _ := r.Next(); next != n || r.Done() {
			t.Fatalf("line %d is expected, not %d", next, n)
		}
		bad := strings.Replace(l, l[len(l)-1:], "Z", 1)
		if err := r.Line(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
		if _, err := r.Envelope(); err == nil {
			t.Error("an envelope too early")
		}
		if err := r.Line(l); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := r.Envelope(); err != nil || !r.Done() || !reflect.DeepEqual(got, e) {
		t.Error(err)
	}
}

// text makes the text of a binary form, with its digest, whatever that says.
func text(kind string, b []byte) string {
	sum := sha256.Sum256(b)
	return "JITGATE1" + kind + ":" + letters.EncodeToString(append(b, sum[:digestLength]...))
}

// Of the binary form every byte counts, and there is one spelling of each.
func TestStrict(t *testing.T) {
	id := make([]byte, 32)
	cat := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	wants(t, text("GRANTS", nil), "it ends too early")
	wants(t, text("GRANTS", []byte{3}), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 2, '{'}), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 1, '{'}), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 1, '{', 1}), "it ends too early")
	wants(t, text("GRANTS", cat([]byte{3, 1, '{', 1}, id, []byte{2, 0})), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 1, '{', 0, 0}), "bytes after its end")
	wants(t, text("GRANTS", []byte{3, 0x81, 0, '{', 0}), "a length with leading zeros")
	wants(t, text("GRANTS", binary.AppendUvarint([]byte{3}, 1<<62)), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255}), "it ends too early")
	wants(t, text("GRANTS", []byte{3, 1, '{', 17}), "17 signatures, the limit is 16")
	wants(t, text("GRANTS", []byte{4, 0, 0}), "document type 4 is unknown")
	wants(t, text("GRANTS", []byte{0, 0, 0}), "document type 0 is unknown")
	wants(t, text("GRANTS", []byte{0x23, 0, 0}), "is unknown")
	wants(t, text("POLICY", []byte{3, 0, 0}), "the first line says POLICY")
	wants(t, text("GRANTS", []byte{0x13, 1, 0xff, 0}), "cannot be inflated")

	deflated := func(b []byte) []byte {
		return cat(binary.AppendUvarint([]byte{0x13}, uint64(len(b))), b, []byte{0})
	}
	wants(t, text("GRANTS", deflated(deflate(noise(100)))), "although that does not shorten it")
	wants(t, text("GRANTS", deflated(append(deflate(make([]byte, 100)), 0))), "bytes after the deflated payload")
	wants(t, text("GRANTS", deflated(deflate(make([]byte, 100))[:3])), "cannot be inflated")
	wants(t, text("GRANTS", deflated(deflate(make([]byte, policy.MaxPayload+1)))), "inflates to more than 262144 bytes")
	wants(t, text("GRANTS", deflated(deflate(make([]byte, 100*policy.MaxPayload)))), "inflates to more than 262144 bytes")

	// A bomb is not held: what it asks for never becomes memory.
	bomb := text("GRANTS", deflated(deflate(make([]byte, 256*policy.MaxPayload))))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	wants(t, bomb, "inflates to more than 262144 bytes")
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 16*policy.MaxPayload {
		t.Errorf("%d bytes of text took %d bytes of memory", len(bomb), used)
	}

	good := cat([]byte{3, 1, '{', 1}, id, []byte{1, 0})
	whole := text("GRANTS", good)
	if _, err := Decode([]byte(whole)); err != nil {
		t.Fatal(err)
	}
	for at := len("JITGATE1GRANTS:"); at < len(whole); at++ {
		for _, c := range []byte(alphabet) {
			if c != whole[at] {
				wants(t, whole[:at]+string(c)+whole[at+1:], "the text is not whole")
			}
		}
		wants(t, whole[:at], "the text is not whole")
	}
	wants(t, whole+"0", "the text is not whole")
	wants(t, whole+"U", "'U' is no character of it")
}

func TestLimits(t *testing.T) {
	for name, c := range map[string]struct {
		e    policy.Envelope
		code policy.Code
	}{
		"payload":      {policy.Envelope{Type: policy.TypeGrants, Payload: make([]byte, policy.MaxPayload+1)}, policy.TooLarge},
		"signatures":   {policy.Envelope{Type: policy.TypeGrants, Signatures: signatures(make([]int, 17)...)}, policy.Malformed},
		"all together": {policy.Envelope{Type: policy.TypeGrants, Signatures: signatures(policy.MaxEnvelope)}, policy.TooLarge},
		"type":         {policy.Envelope{Type: "application/json"}, policy.WrongType},
		"key id":       {policy.Envelope{Type: policy.TypeGrants, Signatures: []policy.Signature{{KeyID: "alice"}}}, policy.Malformed},
		"capital id":   {policy.Envelope{Type: policy.TypeGrants, Signatures: []policy.Signature{{KeyID: policy.KeyID("sha256:" + strings.Repeat("A", 64))}}}, policy.Malformed},
	} {
		_, err := Encode(c.e)
		if _, other := EncodeLine(c.e); policy.CodeOf(err) != c.code || policy.CodeOf(other) != c.code {
			t.Errorf("%s: %v, %v, want %s", name, err, other, c.code)
		}
	}
	// What Encode refuses, Decode does not return either.
	b := binary.AppendUvarint([]byte{3}, 0)
	b = append(append(b, 1), make([]byte, 32)...)
	b = append(binary.AppendUvarint(b, 400<<10), make([]byte, 400<<10)...)
	wants(t, text("GRANTS", b), "too-large")
	if _, err := Decode(make([]byte, MaxText+1)); policy.CodeOf(err) != policy.TooLarge {
		t.Error(err)
	}
}

// CRC-15/CAN's check value (reveng's catalogue), on the bits of "123456789".
func TestCRC15(t *testing.T) {
	var bits []int
	for _, c := range []byte("123456789") {
		for i := 7; i >= 0; i-- {
			bits = append(bits, int(c>>i&1))
		}
	}
	// Five bits a symbol: zeros in front change nothing.
	bits = append(make([]int, (5-len(bits)%5)%5), bits...)
	var c crc15
	for i := 0; i < len(bits); i += 5 {
		symbol := 0
		for _, b := range bits[i : i+5] {
			symbol = symbol<<1 | b
		}
		c.add(symbol)
	}
	if c != 0x059e {
		t.Errorf("%#x", uint16(c))
	}
}

// docs/formats.md has the dictionary to the byte, and an example that is read.
func TestFormats(t *testing.T) {
	page, err := os.ReadFile("../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, chapter, ok := strings.Cut(string(page), "\n## Text for consoles (armor)\n")
	if !ok {
		t.Fatal("docs/formats.md has no chapter about this")
	}
	chapter, _, _ = strings.Cut(chapter, "\n## ")
	blocks := regexp.MustCompile("(?s)```[a-z]*\n(.*?)```").FindAllStringSubmatch(chapter, -1)
	if len(blocks) != 3 {
		t.Fatalf("%d blocks", len(blocks))
	}
	if blocks[0][1] != dictionary {
		t.Errorf("the dictionary is\n%s", blocks[0][1])
	}
	for _, b := range blocks[1:] {
		if got, err := Decode([]byte(b[1])); err != nil || !reflect.DeepEqual(got, list(t)) {
			t.Errorf("%v\n%s", err, b[1])
		}
	}
	if !strings.Contains(chapter, fmt.Sprintf("The payload is `%s`", list(t).Digest())) {
		t.Errorf("the payload is %s", list(t).Digest())
	}
}

// Whatever text is accepted means one envelope, which has a text of its own.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(encodeLines(f, list(f))))
	line, _ := EncodeLine(list(f))
	f.Add([]byte(line))
	f.Add([]byte(encodeLines(f, policy.Envelope{Type: policy.TypeTrust, Payload: noise(40), Signatures: signatures(64, 71)})))
	f.Add([]byte("x\nJITGATE1 GRANTS 2 000\n01: 0\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		e, err := Decode(text)
		if err != nil {
			if policy.CodeOf(err) == "" {
				t.Errorf("no code: %v", err)
			}
			return
		}
		if again, err := Decode([]byte(encodeLines(t, e))); err != nil || !reflect.DeepEqual(e, again) {
			t.Errorf("%v: %v, then %v", err, e, again)
		}
	})
}

// The same from the binary form on, which a fuzzer does not get to through a
// digest.
func FuzzBinary(f *testing.F) {
	b, err := marshal(list(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:len(b)-digestLength])
	f.Add([]byte{3, 1, '{', 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > policy.MaxEnvelope {
			return
		}
		e, err := Decode([]byte(text(kinds[(max(1, int(slices.Concat(b, []byte{0})[0]&15))-1)%len(kinds)].name, b)))
		if err != nil {
			return
		}
		if len(e.Payload) > policy.MaxPayload || len(e.Signatures) > policy.MaxSignatures {
			t.Fatal("beyond the limits")
		}
		if again, err := Decode([]byte(encodeLines(t, e))); err != nil || !reflect.DeepEqual(e, again) {
			t.Errorf("%v: %v, then %v", err, e, again)
		}
	})
}

func FuzzEncode(f *testing.F) {
	f.Add(uint8(3), []byte("{}"), []byte("sig"), uint8(1))
	f.Fuzz(func(t *testing.T, kind uint8, payload, sig []byte, count uint8) {
		e := policy.Envelope{Type: kinds[kind%3].typ, Payload: append([]byte{}, payload...), Signatures: []policy.Signature{}}
		for i := range count % (policy.MaxSignatures + 1) {
			e.Signatures = append(e.Signatures, policy.Signature{KeyID: policy.KeyID(policy.Digest(sha256.Sum256([]byte{i})).String()), Sig: append([]byte{}, sig...)})
		}
		lines, err := Encode(e)
		if err != nil {
			return
		}
		line, err := EncodeLine(e)
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range []string{lines, line} {
			if got, err := Decode([]byte(text)); err != nil && len(text) <= MaxText || err == nil && !reflect.DeepEqual(got, e) {
				t.Errorf("%v: %v", err, got)
			}
		}
	})
}
