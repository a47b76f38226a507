package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// One document of each type that says everything, to spell otherwise.
var fullDocuments = map[Type]string{
	TypeTrust:  string(trustDoc().Encode()),
	TypePolicy: string(policyDoc(func(p *Policy) { p.Host.Install = install }).Encode()),
	TypeGrants: string(grantsDoc(func(g *Grants) { g.Host.Install = install }).Encode()),
}

// Spellings that some JSON reader takes, and that ours must refuse in every
// document: two readers of signed bytes must not read two things.
func TestStrictJSON(t *testing.T) {
	for typ, full := range fullDocuments {
		parses(t, typ, []byte(full)) // or nothing below would mean anything
		for name, text := range map[string]string{
			"repeated name":          strings.Replace(full, `"version": 1`, `"version": 1, "version": 1`, 1),
			"repeated, escaped":      strings.Replace(full, `"version": 1`, `"version": 1, "\u0076ersion": 1`, 1),
			"unknown name":           strings.Replace(full, `"version": 1`, `"version": 1, "x": 1`, 1),
			"empty name":             strings.Replace(full, `"version": 1`, `"version": 1, "": 1`, 1),
			"case variant":           strings.Replace(full, `"version"`, `"Version"`, 1),
			"case variant beside":    strings.Replace(full, `"version": 1`, `"version": 1, "VERSION": 2`, 1),
			"folded name":            strings.Replace(full, `"version": 1`, `"ver`+"\u017f"+`ion": 1, "version": 1`, 1),
			"field name of Go":       strings.Replace(full, `"realm"`, `"Realm"`, 1),
			"embedded struct's name": strings.Replace(full, `"version": 1`, `"version": 1, "headerJSON": {}`, 1),
			"null":                   strings.Replace(full, `"version": 1`, `"version": null`, 1),
			"unknown null":           strings.Replace(full, `"version": 1`, `"version": 1, "x": null`, 1),
			"float":                  strings.Replace(full, `"version": 1`, `"version": 1.0`, 1),
			"exponent":               strings.Replace(full, `"version": 1`, `"version": 1e3`, 1),
			"exponent of nothing":    strings.Replace(full, `"version": 1`, `"version": 1e0`, 1),
			"string":                 strings.Replace(full, `"version": 1`, `"version": "1"`, 1),
			"negative":               strings.Replace(full, `"version": 1`, `"version": -1`, 1),
			"negative zero":          strings.Replace(full, `"version": 1`, `"version": -0`, 1),
			"zero":                   strings.Replace(full, `"version": 1`, `"version": 0`, 1),
			"leading zero":           strings.Replace(full, `"version": 1`, `"version": 01`, 1),
			"plus":                   strings.Replace(full, `"version": 1`, `"version": +1`, 1),
			"hexadecimal":            strings.Replace(full, `"version": 1`, `"version": 0x1`, 1),
			"2^53":                   strings.Replace(full, `"version": 1`, `"version": 9007199254740992`, 1),
			"2^64+1":                 strings.Replace(full, `"version": 1`, `"version": 18446744073709551617`, 1),
			"boolean":                strings.Replace(full, `"version": 1`, `"version": true`, 1),
			"array for a number":     strings.Replace(full, `"version": 1`, `"version": [1]`, 1),
			"number for a string":    strings.Replace(full, `"realm": "acme"`, `"realm": 1`, 1),
			"invalid UTF-8":          strings.Replace(full, "acme", "acm\xff", 1),
			"overlong UTF-8":         strings.Replace(full, "acme", "acm\xc0\xa5", 1),
			"lone surrogate":         strings.Replace(full, "acme", `acm\ud800`, 1),
			"control character":      strings.Replace(full, "acme", "acm\x01", 1),
			"trailing document":      full + "{}",
			"trailing null":          full + "null",
			"trailing NUL":           full + "\x00",
			"trailing comma":         strings.Replace(full, `"version": 1,`, `"version": 1,,`, 1),
			"comment":                "/* */" + full,
			"byte order mark":        "\ufeff" + full,
			"array":                  "[" + full + "]",
			"two lines":              full + full,
			"cut":                    full[:len(full)-3],
			"empty":                  "",
			"white space":            " \n",
			"null document":          "null",
			"string document":        `"{}"`,
			"empty object":           "{}",
			"single quotes":          strings.ReplaceAll(full, `"`, `'`),
		} {
			if text == full {
				t.Fatalf("%s: %s: nothing was replaced", typ, name)
			}
			if _, err := ParseDocument(typ, []byte(text)); CodeOf(err) != Malformed {
				t.Errorf("%s: %s: got %v", typ, name, err)
			}
		}
		for _, doc := range []string{" \n\t" + full + "\r\n ", strings.Replace(full, `"version"`, `"\u0076ersion"`, 1),
			strings.Replace(full, `"version": 1`, `"version": 9007199254740991`, 1)} {
			parses(t, typ, []byte(doc))
		}
	}
}

// Every name is needed unless docs/formats.md says it is optional.
func TestRequiredNames(t *testing.T) {
	optional := []string{"endNumber", "sessionsAtEnd", "exemptSourceAddressPrefixes", "maxGrantsAge", "maxUnattended", "narrowestPrefix4",
		"narrowestPrefix6", "install", "policyVersion", "justification"}
	left := 0
	for typ, full := range fullDocuments {
		for i, line := range strings.Split(full, "\n") {
			name, _, ok := strings.Cut(strings.TrimSpace(line), `": `)
			if !ok {
				continue
			}
			name = strings.TrimPrefix(name, `"`)
			// Renamed, a name is both missing and unknown; so cut it out.
			text, ok := without(full, i)
			if !ok {
				continue
			}
			left++
			_, err := ParseDocument(typ, []byte(text))
			if want := slices.Contains(optional, name); (err == nil) != want {
				t.Errorf("%s without %s: %v", typ, name, err)
			}
			if err != nil && !strings.Contains(err.Error(), name) {
				t.Errorf("%s without %s: the error does not name it: %v", typ, name, err)
			}
		}
	}
	if left < 60 {
		t.Errorf("only %d names were left out", left)
	}
}

// without is indented JSON without the member that begins at a line.
func without(text string, line int) (string, bool) {
	lines := strings.Split(text, "\n")
	indent := len(lines[line]) - len(strings.TrimLeft(lines[line], " "))
	end := line
	if last := lines[line][len(lines[line])-1]; last == '{' || last == '[' {
		for end++; len(lines[end])-len(strings.TrimLeft(lines[end], " ")) != indent; end++ {
		}
	}
	comma := strings.HasSuffix(lines[end], ",")
	out := slices.Concat(lines[:line], lines[end+1:])
	if !comma { // the last member: the one before loses its comma
		before, ok := strings.CutSuffix(lines[line-1], ",")
		if !ok {
			return "", false // the only member
		}
		out[line-1] = before
	}
	return strings.Join(out, "\n"), true
}

func TestDefaults(t *testing.T) {
	text := strings.Replace(minimalPolicy, `"ports":[]`,
		`"ports":[{"number":22,"protocol":"*","allowedSourceAddressPrefixes":["*"],"maxRequestAccessDuration":"PT3H"}]`, 1)
	p := parses(t, TypePolicy, []byte(text)).(Policy)
	q := p.Ports[0]
	if DefaultMaxGrantsAge != 24*time.Hour || p.MaxGrantsAge != DefaultMaxGrantsAge || p.MaxUnattended != 0 || p.NarrowestPrefix4 != 0 || p.NarrowestPrefix6 != 0 ||
		len(p.ExemptSources) != 0 || p.Host.Install != "" || q.EndNumber != 22 || q.SessionsAtEnd != Keep || !slices.Equal(q.AllowedSources, prefixes("*")) {
		t.Errorf("got %+v", p)
	}
	g := parses(t, TypeGrants, []byte(minimalGrants)).(Grants)
	if g.PolicyVersion != 0 || g.Host.Install != "" || len(g.Grants) != 0 {
		t.Errorf("got %+v", g)
	}
}

func TestDepth(t *testing.T) {
	for depth, ok := range map[int]bool{1: true, MaxDepth: true, MaxDepth + 1: false, 20_000: false} {
		for _, pair := range [][2]string{{`{"a":`, "}"}, {"[", "]"}} {
			text := `{"a":` + strings.Repeat(pair[0], depth-1) + "1" + strings.Repeat(pair[1], depth-1) + "}"
			if err := scan([]byte(text)); (err == nil) != ok {
				t.Errorf("depth %d of %s: %v", depth, pair[0], err)
			}
		}
	}
	// No document needs as much as the limit.
	for typ, full := range fullDocuments {
		depth, deepest := 0, 0
		for _, c := range full { // none has a brace within a string
			switch c {
			case '{', '[':
				depth++
			case '}', ']':
				depth--
			}
			deepest = max(deepest, depth)
		}
		if deepest >= MaxDepth {
			t.Errorf("%s is %d deep", typ, deepest)
		}
	}
}

// Values that parse as JSON and are still not what the format says.
func TestMalformedValues(t *testing.T) {
	for _, c := range []struct {
		typ      Type
		old, new string
	}{
		{TypePolicy, `"expires": "2027-02-20T12:00:00Z"`, `"expires": "2026-11-22T12:00:00Z"`}, // = issued
		{TypePolicy, `"realm": "acme"`, `"realm": ""`},
		{TypePolicy, `"realm": "acme"`, `"realm": "ac me"`},
		{TypePolicy, `"realm": "acme"`, `"realm": "acmé"`},
		{TypePolicy, `"number": 22`, `"number": 0`},
		{TypePolicy, `"number": 22`, `"number": 65536`},
		{TypePolicy, `"number": 22`, `"number": -22`},
		{TypePolicy, `"number": 22`, `"number": "22"`},
		{TypePolicy, `"endNumber": 22`, `"endNumber": 21`},
		{TypePolicy, `"endNumber": 22`, `"endNumber": 0`},
		{TypePolicy, `"endNumber": 22`, `"endNumber": 65536`},
		{TypePolicy, `"protocol": "TCP"`, `"protocol": "tcp"`},
		{TypePolicy, `"protocol": "TCP"`, `"protocol": ""`},
		{TypePolicy, `"protocol": "TCP"`, `"protocol": "SCTP"`},
		{TypePolicy, `"sessionsAtEnd": "keep"`, `"sessionsAtEnd": "Keep"`},
		{TypePolicy, `"sessionsAtEnd": "keep"`, `"sessionsAtEnd": ""`},
		{TypePolicy, `"maxRequestAccessDuration": "PT3H"`, `"maxRequestAccessDuration": "PT0S"`},
		{TypePolicy, `"maxRequestAccessDuration": "PT3H"`, `"maxRequestAccessDuration": "3h"`},
		{TypePolicy, `"maxRequestAccessDuration": "PT3H"`, `"maxRequestAccessDuration": 10800`},
		{TypePolicy, `"maxGrantsAge": "PT24H"`, `"maxGrantsAge": "PT0S"`},
		{TypePolicy, `"maxGrantsAge": "PT24H"`, `"maxGrantsAge": ""`},
		{TypePolicy, `"narrowestPrefix4": 24`, `"narrowestPrefix4": 33`},
		{TypePolicy, `"narrowestPrefix4": 24`, `"narrowestPrefix4": -1`},
		{TypePolicy, `"narrowestPrefix6": 48`, `"narrowestPrefix6": 129`},
		{TypePolicy, `"narrowestPrefix6": 48`, `"narrowestPrefix6": -1`},
		{TypePolicy, `"10.9.0.4/32"`, `"10.9.0.4"`},
		{TypePolicy, `"10.9.0.4/32"`, `"10.9.0.4/24"`},
		{TypePolicy, `"203.0.113.0/24"`, `"203.0.113.1/24"`},
		{TypePolicy, `"` + install + `"`, `"a b"`},
		{TypeGrants, `"epoch": 1`, `"epoch": 0`},
		{TypeGrants, `"epoch": 1`, `"epoch": 9007199254740992`},
		{TypePolicy, `"host"`, `"epoch": 9007199254740992, "host"`},
		{TypeGrants, `"policyVersion": 1`, `"policyVersion": 9007199254740992`},
		{TypeGrants, `"policyVersion": 1`, `"policyVersion": -1`},
		{TypeGrants, `"id": "` + hostID + `"`, `"id": ""`},
		{TypeGrants, `"id": "` + hostID + `"`, `"id": "web\t1"`},
		{TypeGrants, `"id": "` + hostID + `"`, `"id": "` + scope + `/*"`},
		{TypeGrants, `"id": "` + hostID + `"`, `"id": "*"`},
		{TypeGrants, `"id": "g1"`, `"id": ""`},
		{TypeGrants, `"id": "g1"`, `"id": "g 1"`},
		{TypeGrants, `"id": "g1"`, `"id": "` + strings.Repeat("g", 65) + `"`},
		{TypeGrants, `"number": 22`, `"number": 0`},
		{TypeGrants, `"number": 22`, `"number": 65536`},
		{TypeGrants, `"number": 22`, `"number": "ssh"`},
		{TypeGrants, `"203.0.113.7/32"`, `"fe80::1%eth0/128"`},
		{TypeGrants, `"203.0.113.7/32"`, `"::ffff:203.0.113.7/128"`},
		{TypeGrants, `"203.0.113.7/32"`, `203`},
		{TypeGrants, `"endTimeUtc": "2026-11-22T13:00:00Z"`, `"endTimeUtc": "2026-11-22T12:00:00Z"`}, // = start
		{TypeGrants, `"endTimeUtc": "2026-11-22T13:00:00Z"`, `"endTimeUtc": "2026-11-22T13:00:00+00:00"`},
		{TypeGrants, `"requestor": "alice@example.com"`, `"requestor": ""`},
		{TypeGrants, `"requestor": "alice@example.com"`, `"requestor": "` + strings.Repeat("a", 257) + `"`},
		{TypeGrants, `"INC-1"`, `"` + strings.Repeat("a", 2049) + `"`},
	} {
		_, err := ParseDocument(c.typ, replaced([]byte(fullDocuments[c.typ]), c.old, c.new))
		if CodeOf(err) != Malformed {
			t.Errorf("%s for %s: got %v", c.new, c.old, err)
		}
	}
}

// Lists at their limit, and one beyond.
func TestListLimits(t *testing.T) {
	many := func(n int, sources ...string) (list []string) {
		for len(list) < n {
			list = append(list, sources...)
		}
		return list[:n]
	}
	for _, c := range []struct {
		name string
		make func(n int) interface{ Encode() []byte }
		max  int
	}{
		{"grants", func(n int) interface{ Encode() []byte } {
			return grantsDoc(func(g *Grants) {
				g.Grants = nil
				for i := range n {
					g.Grants = append(g.Grants, grant(fmt.Sprint("g", i), func(g *Grant) { g.Requestor, g.Justification = "a", "" }))
				}
			})
		}, 1024},
		{"ports", func(n int) interface{ Encode() []byte } {
			return policyDoc(func(p *Policy) {
				one := p.Ports[0]
				p.Ports = nil
				for i := range n {
					one.Number, one.EndNumber = uint16(i+1), uint16(i+1)
					p.Ports = append(p.Ports, one)
				}
			})
		}, 256},
		{"allowed sources", func(n int) interface{ Encode() []byte } {
			return policyDoc(func(p *Policy) { p.Ports[0].AllowedSources = prefixes(many(n, "10.0.0.0/8")...) })
		}, 256},
		{"exempt sources", func(n int) interface{ Encode() []byte } {
			return policyDoc(func(p *Policy) { p.ExemptSources = prefixes(many(n, "10.0.0.0/8")...) })
		}, 256},
		{"keys", func(n int) interface{ Encode() []byte } {
			return trustDoc(func(t *Trust) {
				for i := len(t.Keys); i < n; i++ {
					t.Keys = append(t.Keys, describe(edKey(fmt.Sprint("spare", i))))
				}
			})
		}, 64},
	} {
		t.Run(c.name, func(t *testing.T) {
			for n, want := range map[int]Code{c.max: "", c.max + 1: Malformed} {
				doc := c.make(n)
				_, err := ParseDocument(typeOf(doc), compact(t, doc.Encode()))
				wantCode(t, err, want)
			}
		})
	}
}

// What the parser takes it takes again after Encode, although "*" is written
// as two prefixes there.
func TestAnySourceAtTheLimit(t *testing.T) {
	list := `"*"` + strings.Repeat(`,"10.0.0.0/8"`, MaxPrefixes-1)
	text := strings.Replace(minimalPolicy, `"ports"`, `"exemptSourceAddressPrefixes":[`+list+`],"ports"`, 1)
	doc, err := ParseDocument(TypePolicy, []byte(text))
	if err != nil {
		return // counted as the two it is
	}
	if _, err := ParseDocument(TypePolicy, doc.(Policy).Encode()); err != nil {
		t.Errorf("accepted, but its own encoding is not: %v", err)
	}
}

func TestOverlappingPorts(t *testing.T) {
	for _, c := range []struct {
		a, b [2]uint16
		ok   bool
	}{
		{[2]uint16{22, 22}, [2]uint16{23, 23}, true},
		{[2]uint16{22, 22}, [2]uint16{22, 22}, false},
		{[2]uint16{20, 30}, [2]uint16{31, 40}, true},
		{[2]uint16{20, 30}, [2]uint16{30, 40}, false},
		{[2]uint16{30, 40}, [2]uint16{20, 30}, false},
		{[2]uint16{20, 40}, [2]uint16{25, 26}, false},
		{[2]uint16{25, 26}, [2]uint16{20, 40}, false},
		{[2]uint16{1, 65535}, [2]uint16{65535, 65535}, false},
		{[2]uint16{1, 65534}, [2]uint16{65535, 65535}, true},
	} {
		p := policyDoc(func(p *Policy) {
			p.Ports[0].Number, p.Ports[0].EndNumber = c.a[0], c.a[1]
			p.Ports[1].Number, p.Ports[1].EndNumber = c.b[0], c.b[1]
			p.Ports[0].Protocol, p.Ports[1].Protocol = TCP, UDP // no excuse: a grant names no protocol
		})
		if _, err := ParseDocument(TypePolicy, p.Encode()); (err == nil) != c.ok {
			t.Errorf("%d and %d: %v", c.a, c.b, err)
		}
	}
}

func TestRoles(t *testing.T) {
	for name, c := range map[string]struct {
		edit func(*Trust)
		ok   bool
	}{
		"as it is":                     {func(*Trust) {}, true},
		"root may sign policies":       {func(t *Trust) { t.Roles[1].Keys = ids(rootA, policyB) }, true},
		"grant key in role policy":     {func(t *Trust) { t.Roles[1].Keys = ids(policyA, grantA) }, false},
		"grant key in role root":       {func(t *Trust) { t.Roles[0].Keys = ids(rootA, grantA) }, false},
		"policy key in role grant":     {func(t *Trust) { t.Roles[2].Keys = ids(grantA, policyA) }, false},
		"grant first, then policy":     {func(t *Trust) { slices.Reverse(t.Roles); t.Roles[1].Keys = ids(policyA, grantA) }, false},
		"roles in another order":       {func(t *Trust) { slices.Reverse(t.Roles) }, true},
		"key twice in a role":          {func(t *Trust) { t.Roles[0].Keys = ids(rootA, rootA) }, false},
		"key twice among the keys":     {func(t *Trust) { t.Keys = append(t.Keys, t.Keys[0]) }, false},
		"key not among the keys":       {func(t *Trust) { t.Roles[0].Keys = ids(rootA, mallory) }, false},
		"threshold zero":               {func(t *Trust) { t.Roles[0].Threshold = 0 }, false},
		"threshold negative":           {func(t *Trust) { t.Roles[0].Threshold = -1 }, false},
		"threshold above the keys":     {func(t *Trust) { t.Roles[0].Threshold = 3 }, false},
		"no keys":                      {func(t *Trust) { t.Roles[0].Keys = []KeyID{} }, false},
		"no role grant":                {func(t *Trust) { t.Roles = t.Roles[:2] }, false},
		"role twice":                   {func(t *Trust) { t.Roles[1].Name = RoleRoot }, false},
		"fourth role":                  {func(t *Trust) { t.Roles = append(t.Roles, RoleKeys{Name: "admin", Keys: ids(rootA), Threshold: 1}) }, false},
		"role in capitals":             {func(t *Trust) { t.Roles[0].Name = "Root" }, false},
		"epoch zero":                   {func(t *Trust) { t.Roles[2].Epoch = 0 }, false},
		"epoch 2^53":                   {func(t *Trust) { t.Roles[2].Epoch = MaxVersion + 1 }, false},
		"a key's id in capitals":       {func(t *Trust) { t.Keys[0].ID = KeyID(strings.ToUpper(string(t.Keys[0].ID))) }, false},
		"another key's id":             {func(t *Trust) { t.Keys[0].ID = t.Keys[1].ID }, false},
		"scheme of the other kind":     {func(t *Trust) { t.Keys[0].Scheme = ECDSAP256SHA256 }, false},
		"no keys at all, nor in roles": {func(t *Trust) { t.Keys = nil }, false},
	} {
		_, err := ParseDocument(TypeTrust, trustDoc(c.edit).Encode())
		if (err == nil) != c.ok || err != nil && CodeOf(err) != Malformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, c := range []struct {
		role, epoch string
		want        Code
	}{
		{"root", "1", Malformed}, {"root", "0", Malformed},
		{"policy", "0", ""}, {"policy", "1", ""}, {"policy", "9007199254740991", ""}, {"policy", "9007199254740992", Malformed},
	} {
		text := replaced(trustDoc().Encode(), `"name": "`+c.role+`",`, `"name": "`+c.role+`", "epoch": `+c.epoch+`,`)
		if _, err := ParseDocument(TypeTrust, text); CodeOf(err) != c.want {
			t.Errorf("role %s with epoch %s: %v", c.role, c.epoch, err)
		}
	}
}

// Errors are read by the person who wrote the document: they name the place
// and no Go type.
func TestErrorsNameThePlace(t *testing.T) {
	for want, text := range map[string][]byte{
		`policy: ports[1]: 5985 to 5984 is not a range of ports`:                                   replaced([]byte(fullDocuments[TypePolicy]), `"endNumber": 5986`, `"endNumber": 5984`),
		`policy: unknown name "colour"`:                                                            replaced([]byte(fullDocuments[TypePolicy]), `"protocol"`, `"colour": 1, "protocol"`),
		`policy: /ports/0/number is null: leave the name out instead`:                              replaced([]byte(fullDocuments[TypePolicy]), `"number": 22`, `"number": null`),
		`policy: version is missing`:                                                               replaced([]byte(fullDocuments[TypePolicy]), "\n  \"version\": 1,", ""),
		`policy: the JSON text ends too early`:                                                     []byte(fullDocuments[TypePolicy][:100]),
		`policy: data after the end of the object`:                                                 []byte(fullDocuments[TypePolicy] + "x"),
		`policy: exemptSourceAddressPrefixes[0]: "10.9.0.4/8" has host bits set: write 10.0.0.0/8`: replaced([]byte(fullDocuments[TypePolicy]), "10.9.0.4/32", "10.9.0.4/8"),
	} {
		_, err := ParseDocument(TypePolicy, text)
		if err == nil || err.Error() != "malformed: "+want {
			t.Errorf("got  %v\nwant malformed: %s", err, want)
		}
	}
	_, err := ParseDocument(TypePolicy, replaced([]byte(fullDocuments[TypePolicy]), `"number": 22`, `"number": "22"`))
	if err == nil || !strings.Contains(err.Error(), "/ports/0/number") || strings.Contains(err.Error(), "JSON") && strings.Contains(err.Error(), "policy.port") {
		t.Errorf("got %v", err)
	}
}
