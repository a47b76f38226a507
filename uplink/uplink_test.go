package uplink

import (
	"encoding/base64"
	"reflect"
	"strings"
	"testing"

	"github.com/jitgate/jitgate/policy"
)

func TestJoin(t *testing.T) {
	for _, ca := range []policy.Digest{{}, {7}} {
		j := NewJoin(policy.Digest{1}, ca)
		if other := NewJoin(policy.Digest{1}, ca); other.Secret == j.Secret {
			t.Error("two tokens with one secret")
		}
		got, err := ParseJoin(j.String())
		if err != nil || got != j || !strings.HasPrefix(j.String(), "jgj_") {
			t.Errorf("%v, %v; want %v", got, err, j)
		}
	}
}

func TestJoinRefused(t *testing.T) {
	good := NewJoin(policy.Digest{1}, policy.Digest{2}).String()
	spell := func(b []byte) string { return joinPrefix + base64.RawURLEncoding.EncodeToString(b) }
	long := make([]byte, 85)
	long[0], long[21] = 1, 1
	for what, s := range map[string]string{
		"nothing":           "",
		"no prefix":         strings.TrimPrefix(good, "jgj_"),
		"a space":           good + " ",
		"a line break":      good[:20] + "\n" + good[20:],
		"cut":               good[:len(good)-4],
		"more":              good + "AAAA",
		"padding":           good + "=",
		"stray bits":        good[:len(good)-1] + string(good[len(good)-1]+1),
		"no pin":            spell(append([]byte{1}, make([]byte, 52)...)),
		"an empty CA":       spell(long),
		"a newer version":   spell(append([]byte{2}, make([]byte, 84)...)),
		"nothing behind it": joinPrefix,
	} {
		if j, err := ParseJoin(s); err == nil {
			t.Errorf("%s: taken as %v", what, j)
		}
	}
}

func FuzzParseJoin(f *testing.F) {
	f.Add(NewJoin(policy.Digest{1}, policy.Digest{}).String())
	f.Add(NewJoin(policy.Digest{1}, policy.Digest{2}).String())
	f.Add("jgj_")
	f.Fuzz(func(t *testing.T, s string) {
		if j, err := ParseJoin(s); err == nil && j.String() != s {
			t.Errorf("%q is also spelt %q", s, j)
		}
	})
}

// hash is that of some line.
var hash = strings.Repeat("0a", 32)

func wholeUp() Up {
	return Up{Have: Versions{1, 2, 3}, Head: Head{7, hash}, Wait: 50, Lines: [][]byte{[]byte(`{"seq":1}`)},
		Held:   []Held{{Type: policy.TypeGrants, Version: 4, Digest: policy.Digest{9}, Refusal: "rollback: no"}},
		Status: &Status{Mode: "enforce", Version: "v1", Install: "i", Open: []string{"g1"}, Blocked: "b", Problem: "p"}}
}

func TestUp(t *testing.T) {
	for _, u := range []Up{{}, wholeUp()} {
		if got, err := ParseUp(Encode(u)); err != nil || !reflect.DeepEqual(got, u) {
			t.Errorf("%+v, %v; want %+v", got, err, u)
		}
	}
}

func TestUpRefused(t *testing.T) {
	changed := func(change func(*Up)) string {
		u := wholeUp()
		change(&u)
		return string(Encode(u))
	}
	for what, text := range map[string]string{
		"nothing":           "",
		"no object":         "[]",
		"null":              "null",
		"an unknown name":   `{"have":{},"vm":"/other"}`,
		"a repeated name":   `{"wait":1,"wait":2}`,
		"another letter":    `{"Wait":1}`,
		"data behind":       `{} {}`,
		"bad UTF-8":         "{\"head\":{\"seq\":1,\"hash\":\"\xff\"}}",
		"too long":          `{"wait":1` + strings.Repeat(" ", MaxUp) + `}`,
		"an endless wait":   changed(func(u *Up) { u.Wait = MaxWait + 1 }),
		"a wait below zero": changed(func(u *Up) { u.Wait = -1 }),
		"a head of nothing": changed(func(u *Up) { u.Head.Hash = "" }),
		"capitals":          changed(func(u *Up) { u.Head.Hash = strings.ToUpper(hash) }),
		"an empty line":     changed(func(u *Up) { u.Lines = append(u.Lines, nil) }),
		"two lines in one":  changed(func(u *Up) { u.Lines = append(u.Lines, []byte("a\nb")) }),
		"many lines":        changed(func(u *Up) { u.Lines = make([][]byte, maxLines+1); fill(u.Lines) }),
		"a long line":       changed(func(u *Up) { u.Lines = [][]byte{make([]byte, MaxLine+1)} }),
		"many held":         changed(func(u *Up) { u.Held = append(u.Held, u.Held[0], u.Held[0], u.Held[0]) }),
		"an unknown type":   changed(func(u *Up) { u.Held[0].Type = "text/plain" }),
		"a control char":    changed(func(u *Up) { u.Status.Mode = "a\x1b[0m" }),
		"a long refusal":    changed(func(u *Up) { u.Held[0].Refusal = strings.Repeat("x", maxText+1) }),
		"many open":         changed(func(u *Up) { u.Status.Open = make([]string, maxListed+1) }),
		"a huge version":    changed(func(u *Up) { u.Have.Grants = policy.MaxVersion + 1 }),
	} {
		if u, err := ParseUp([]byte(text)); err == nil {
			t.Errorf("%s: taken as %+v", what, u)
		}
	}
}

func fill(lines [][]byte) {
	for i := range lines {
		lines[i] = []byte("x")
	}
}

func TestDown(t *testing.T) {
	whole := Down{Documents: []Document{{policy.TypeTrust, 1, []byte("{}")}}, Ack: &Head{1, hash}, Refused: "no", BackOff: 5, Renew: true}
	for _, d := range []Down{{}, {Ack: &Head{}}, whole} {
		if got, err := ParseDown(Encode(d)); err != nil || !reflect.DeepEqual(got, d) {
			t.Errorf("%+v, %v; want %+v", got, err, d)
		}
	}
	// Three of the largest documents fit.
	for range 2 {
		whole.Documents = append(whole.Documents, whole.Documents[0])
	}
	for i := range whole.Documents {
		whole.Documents[i].Signed = make([]byte, policy.MaxEnvelope)
	}
	if _, err := ParseDown(Encode(whole)); err != nil {
		t.Error(err)
	}
	for what, d := range map[string]Down{
		"a document too many": {Documents: append(whole.Documents, Document{Type: policy.TypeTrust})},
		"one too large":       {Documents: []Document{{policy.TypeTrust, 1, make([]byte, policy.MaxEnvelope+1)}}},
		"no type":             {Documents: []Document{{"", 1, nil}}},
		"a bad head":          {Ack: &Head{Seq: 1}},
		"a year":              {BackOff: MaxBackOff + 1},
		"less than nothing":   {BackOff: -1},
		"a control character": {Refused: "\r\n"},
	} {
		if _, err := ParseDown(Encode(d)); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
}

func FuzzParseUp(f *testing.F) {
	f.Add(Encode(Up{}))
	f.Add(Encode(wholeUp()))
	f.Add([]byte(`{"held":[],"status":{"mode":"","open":[]},"lines":[]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		u, err := ParseUp(text)
		if err != nil {
			return
		}
		// An empty list is as good as none.
		if len(u.Held) == 0 {
			u.Held = nil
		}
		if len(u.Lines) == 0 {
			u.Lines = nil
		}
		if u.Status != nil && len(u.Status.Open) == 0 {
			u.Status.Open = nil
		}
		if again, err := ParseUp(Encode(u)); err != nil || !reflect.DeepEqual(again, u) {
			t.Errorf("%s comes back as %s, %v", Encode(u), Encode(again), err)
		}
	})
}

func FuzzParseDown(f *testing.F) {
	f.Add(Encode(Down{Ack: &Head{}}))
	f.Add(Encode(Down{Documents: []Document{{policy.TypePolicy, 1, []byte("{}")}}, BackOff: 5, Renew: true}))
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := ParseDown(text)
		if err != nil {
			return
		}
		if _, err := ParseDown(Encode(d)); err != nil {
			t.Errorf("%+v does not come back: %v", d, err)
		}
	})
}

func FuzzParseRequests(f *testing.F) {
	f.Add(Encode(EnrollRequest{Token: "jgj_", Host: "/x", CSR: []byte{1}}))
	f.Add(Encode(RenewRequest{CSR: []byte{1}}))
	f.Add(Encode(Certificate{Host: "/x", Chain: []byte("-----BEGIN")}))
	f.Fuzz(func(t *testing.T, text []byte) {
		if q, err := ParseEnrollRequest(text); err == nil {
			if again, err := ParseEnrollRequest(Encode(q)); err != nil || again.Token != q.Token {
				t.Errorf("%+v does not come back: %v", q, err)
			}
		}
		_, _ = ParseRenewRequest(text)
		_, _ = ParseCertificate(text)
	})
}

func TestParseLine(t *testing.T) {
	text := []byte(`{"seq":2,"prev":"` + hash + `","time":"2026-11-22T12:00:00.000Z","event":"grant.opened","grant":"g1","port":22,"source":"203.0.113.7/32","end":"2026-11-22T13:00:00Z","requestor":"a\u001b[31mlice","new":[1]}`)
	l, err := ParseLine(text)
	if err != nil || l.Seq != 2 || l.Prev != hash || l.Grant != "g1" || l.Port != 22 || l.Requestor != "a [31mlice" || l.End.Hour() != 13 {
		t.Errorf("%+v, %v", l, err)
	}
	for what, text := range map[string]string{
		"nothing":   "",
		"no number": `{"prev":"` + hash + `","time":"2026-11-22T12:00:00.000Z","event":"x"}`,
		"no place":  `{"seq":2,"prev":"","time":"2026-11-22T12:00:00.000Z","event":"x"}`,
		"no time":   `{"seq":2,"prev":"` + hash + `","event":"x"}`,
		"no event":  `{"seq":2,"prev":"` + hash + `","time":"2026-11-22T12:00:00.000Z"}`,
		"an escape": `{"seq":2,"prev":"` + hash + `","time":"2026-11-22T12:00:00.000Z","event":"\u001b"}`,
	} {
		if l, err := ParseLine([]byte(text)); err == nil {
			t.Errorf("%s: taken as %+v", what, l)
		}
	}
}

func FuzzParseLine(f *testing.F) {
	f.Add([]byte(`{"seq":2,"prev":"` + hash + `","time":"2026-11-22T12:00:00.000Z","event":"grant.opened"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		l, err := ParseLine(text)
		if err == nil && (l.Seq == 0 || !isHash(l.Prev) || !isHash(l.Hash) || !fits(l.Message, maxText) || !fits(l.Requestor, maxText)) {
			t.Errorf("taken as %+v", l)
		}
	})
}
