package policy

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

var update = flag.Bool("update", false, "write testdata/vectors and testdata/keys anew")

// A vector is one delivery to one host, and what must come of it.
// testdata/README.md describes the fields.
type vector struct {
	Name     string          `json:"name"`
	File     string          `json:"file"`
	Pad      int             `json:"pad,omitzero"`
	As       string          `json:"as"`
	Pin      *Digest         `json:"pin,omitempty"`
	Trust    string          `json:"trust,omitzero"`
	Policy   string          `json:"policy,omitzero"`
	Facts    facts           `json:"facts"`
	Before   State           `json:"before"`
	After    State           `json:"after"`
	Code     Code            `json:"code"`
	Blocked  Code            `json:"blocked,omitzero"`
	Verdicts map[string]Code `json:"verdicts,omitempty"`
	Open     map[string]when `json:"open,omitempty"`
	Threat   string          `json:"threat,omitzero"`
	Why      string          `json:"why"`

	envelope []byte
}

type facts struct {
	Host    string    `json:"host"`
	Install string    `json:"install"`
	Now     time.Time `json:"now"`
	Built   time.Time `json:"built"`
}

type when = time.Time

// The rows of the threat table (docs/attack-surface.md) that this package decides.
const (
	rowEdits     = "on the path: edits any byte, cuts the file anywhere"
	rowReplay    = "on the path: replays an older list, same version with other bytes"
	rowWithholds = "on the path: withholds the new list; freezes only the policy"
	rowOtherVM   = "owner of VM A: gives A's grants to VM B, another realm's to ours"
	rowReinstall = "owner of VM A: reinstalls, restores old state, clones the image"
	rowGrantKey  = "control plane (grant key stolen): 0.0.0.0/0, a wider net, another port, 10 h, year 9999, back-dating, v4-mapped v6"
	rowOtherDoc  = "control plane (grant key stolen): signs a policy or trust file"
	rowCounter   = "control plane (grant key stolen): burns the counter"
	rowOneSigner = "one policy signer: alone; signs thrice; lists one key twice"
	rowOldRoot   = "thief of old root keys: rotates below threshold, skips a version"
	rowClock     = "clock: set back, set far ahead, suspended"
	rowCrafted   = "crafted JSON: repeated or case-folded names, null, depth, 20 signatures"
)

var threatRows = []string{rowEdits, rowReplay, rowWithholds, rowOtherVM, rowReinstall, rowGrantKey, rowOtherDoc,
	rowCounter, rowOneSigner, rowOldRoot, rowClock, rowCrafted}

const vectorDir = "testdata/vectors"

func TestVectors(t *testing.T) {
	made := makeVectors()
	if *update {
		writeVectors(t, made)
	}
	index, err := os.ReadFile(filepath.Join(vectorDir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	var vectors []vector
	d := json.NewDecoder(bytes.NewReader(index))
	d.DisallowUnknownFields()
	if err := d.Decode(&vectors); err != nil {
		t.Fatal(err)
	}

	codes, rows := map[Code]bool{}, map[string]bool{}
	for i, v := range vectors {
		t.Run(v.Name, func(t *testing.T) {
			v.envelope = readVector(t, v.File)
			if i >= len(made) || made[i].Name != v.Name || !bytes.Equal(made[i].envelope, v.envelope) {
				t.Errorf("the file is not what the keys and documents of this test make: run with -update and review")
			}
			got := v.run(t)
			if !reflect.DeepEqual(got, v) {
				t.Errorf("got  %s\nwant %s", asJSON(t, got), asJSON(t, v))
			}
			if v.Code != "" && v.After != v.Before {
				t.Error("a refused document moves the state")
			}
		})
		codes[v.Code], rows[v.Threat] = true, true
		for _, c := range v.Verdicts {
			codes[c] = true
		}
	}

	// A directory that went missing must not pass.
	if len(vectors) < 130 || len(vectors) != len(made) {
		t.Errorf("%d vectors in the index, %d made here, 130 are the least", len(vectors), len(made))
	}
	for _, c := range []Code{"", Unsigned, BadSignature, WrongType, Malformed, TooLarge, WrongRealm, WrongHost, Rollback, Equivocation, Expired,
		NotYet, StalePolicy, ClockBehind, PortNotInPolicy, SourceRefused, TooLong, TooWide} { // NotDurable is the agent's
		if !codes[c] {
			t.Errorf("no vector for code %q", c)
		}
	}
	for _, row := range threatRows {
		if !rows[row] {
			t.Errorf("no vector for the threat %q", row)
		}
	}
	files, err := filepath.Glob(vectorDir + "/*.json")
	if err != nil || len(files) != len(vectors)+1 {
		t.Errorf("%d files for %d vectors and their index (%v)", len(files), len(vectors), err)
	}
}

// run delivers the vector and returns it with what came of it.
func (v vector) run(t *testing.T) vector {
	t.Helper()
	trust, policy := Trust{}, Policy{}
	if v.Trust != "" {
		trust = inForce(t, v.Trust).(Trust)
	}
	if v.Policy != "" {
		policy = inForce(t, v.Policy).(Policy)
	}
	f := Facts{v.Facts.Host, v.Facts.Install, v.Facts.Now, v.Facts.Built}
	envelope := append(slices.Clone(v.envelope), bytes.Repeat([]byte(" "), v.Pad)...)

	var err error
	var d Decision
	switch v.As {
	case "pinned-trust", "trust":
		var doc Verified[Trust]
		if v.As == "trust" {
			doc, err = OpenTrust(envelope, trust)
		} else {
			doc, err = OpenPinnedTrust(envelope, *v.Pin)
		}
		v.After = v.Before
		if err == nil {
			v.After, err = AdmitTrust(v.Before, doc, trust, f)
		}
	case "policy":
		doc, e := OpenPolicy(envelope, trust)
		v.After, err = v.Before, e
		if err == nil {
			v.After, err = AdmitPolicy(v.Before, doc, trust, f)
		}
		d = Evaluate(v.After, trust, doc.Document(), Grants{}, f)
	case "grants":
		doc, e := OpenGrants(envelope, trust)
		v.After, err = v.Before, e
		if err == nil {
			v.After, err = AdmitGrants(v.Before, doc, trust, policy, f)
		}
		d = Evaluate(v.After, trust, policy, doc.Document(), f)
	default:
		t.Fatalf("as %q?", v.As)
	}

	v.Code, v.Blocked, v.Verdicts, v.Open = CodeOf(err), "", nil, nil
	if err != nil {
		if v.Code == "" {
			t.Errorf("refused without a code: %v", err)
		}
		return v
	}
	v.Blocked = CodeOf(d.Blocked)
	for _, x := range d.Verdicts {
		if v.Verdicts == nil {
			v.Verdicts = map[string]Code{}
		}
		v.Verdicts[x.Grant.ID] = CodeOf(x.Refusal)
		end := x.Grant.End
		for _, l := range d.Limits {
			end = slices.MinFunc([]time.Time{end, l.At}, time.Time.Compare)
		}
		if d.Blocked == nil && x.Refusal == nil && x.Phase == PhaseActive && f.Now.Before(end) {
			if v.Open == nil {
				v.Open = map[string]when{}
			}
			v.Open[x.Grant.ID] = end
		}
	}
	return v
}

func readVector(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(vectorDir, file))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// inForce reads the document of another vector as the one in force.
func inForce(t *testing.T, file string) any {
	t.Helper()
	e, err := ParseEnvelope(readVector(t, file))
	if err != nil {
		t.Fatal(err)
	}
	return parses(t, e.Type, e.Payload)
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// writeVectors writes the files. What is expected it takes from the table, and
// only what a table cannot say well (state, ends) from the code under test: review it.
func writeVectors(t *testing.T, vectors []vector) {
	t.Helper()
	write := func(name string, b []byte) {
		if err := os.WriteFile(name, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	old, _ := filepath.Glob(vectorDir + "/*.json")
	for _, f := range old {
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range vectors {
		write(filepath.Join(vectorDir, v.File), v.envelope)
	}
	for i, v := range vectors {
		got := v.run(t)
		if got.Code != v.Code || got.Blocked != v.Blocked || v.Verdicts != nil && !maps.Equal(got.Verdicts, v.Verdicts) {
			t.Errorf("%s: got %q, %q, %v, the table says %q, %q, %v", v.Name, got.Code, got.Blocked, got.Verdicts, v.Code, v.Blocked, v.Verdicts)
			if got.Code = v.Code; v.Code != "" { // the table is right, the code is not
				got.After, got.Blocked, got.Verdicts, got.Open = v.Before, "", nil, nil
			}
		}
		vectors[i] = got
	}
	write(filepath.Join(vectorDir, "index.json"), asJSON(t, vectors))
	for name, s := range testKeys {
		der, err := x509.MarshalPKCS8PrivateKey(plainKey(s))
		if err != nil {
			t.Fatal(err)
		}
		write("testdata/keys/"+name+".pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	}
}

func plainKey(s crypto.Signer) crypto.Signer {
	switch s := s.(type) {
	case deterministic:
		return s.PrivateKey
	case sshSigner:
		return plainKey(s.Signer)
	}
	return s
}

// The published keys are the ones that sign the vectors.
func TestPublishedKeys(t *testing.T) {
	for name, s := range testKeys {
		b, err := os.ReadFile("testdata/keys/" + name + ".pem")
		if err != nil {
			t.Fatal(err)
		}
		block, rest := pem.Decode(b)
		if block == nil || len(rest) != 0 {
			t.Fatalf("%s: not one PEM block", name)
		}
		k, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		same := false
		switch k := k.(type) {
		case ed25519.PrivateKey:
			same = k.Equal(plainKey(s))
		case *ecdsa.PrivateKey:
			same = k.Equal(plainKey(s))
		}
		if !same {
			t.Errorf("%s: another key than this test's", name)
		}
	}
}

// makeVectors builds every case. A zero As, Trust, Policy, Facts or Before is
// the usual one for the payload's type: a host at noon and one minute, with
// trust and policy version 1 in force.
func makeVectors() []vector {
	var (
		trust1   = trustDoc()
		policy1  = policyDoc()
		pin      = sha(trust1.Encode())
		afresh   = State{}
		hasTrust = State{Trust: Mark{Version: 1, Digest: pin}, Floor: noon}
		hasBoth  = State{Trust: hasTrust.Trust, Policy: Mark{Version: 1, Digest: sha(policy1.Encode())}, Floor: noon}
		at       = func(now time.Time) facts { return facts{hostID, install, now, here.Built} }
		has      = func(s State, edit func(*State)) State { edit(&s); return s }
		seen5    = has(hasBoth, func(s *State) {
			s.Grants = Mark{Epoch: 1, Version: 5, Digest: sha(grantsDoc(func(g *Grants) { g.Version = 5 }).Encode())}
		})

		bothPolicy = []crypto.Signer{policyA, policyB}
		bothRoot   = []crypto.Signer{rootA, rootB}
		trust      = func(edits ...func(*Trust)) []byte { return seal(trustDoc(edits...), bothRoot...) }
		trust2     = func(edits ...func(*Trust)) Trust {
			return trustDoc(append([]func(*Trust){func(t *Trust) { t.Version = 2 }}, edits...)...)
		}
		policy = func(edits ...func(*Policy)) []byte { return seal(policyDoc(edits...), bothPolicy...) }
		grants = func(edits ...func(*Grants)) []byte { return seal(grantsDoc(edits...), grantA) }
		list   = func(gs ...Grant) []byte { return grants(func(g *Grants) { g.Grants = gs }) }
		// spelled signs the usual grants in another spelling.
		spelled = func(old, new string) []byte {
			return sealBytes(TypeGrants, replaced(grantsDoc().Encode(), old, new), grantA)
		}
		spelledPolicy = func(old, new string) []byte {
			return sealBytes(TypePolicy, replaced(policyDoc().Encode(), old, new), bothPolicy...)
		}
		newRoot       = func(t *Trust) { t.Roles[0].Keys = append(ids(rootNew), t.Roles[0].Keys[1]) }
		newGrantKey   = func(t *Trust) { t.Roles[2] = RoleKeys{RoleGrant, ids(grantNew), 1, 2} }
		newPolicyKeys = func(t *Trust) { t.Roles[1] = RoleKeys{RolePolicy, ids(policyB), 1, 1} }

		hasSSH    = State{Trust: Mark{Version: 1, Digest: sha(sshTrustDoc().Encode())}, Floor: noon}
		sshRoots  = []crypto.Signer{sshSKEd, sshSKEC}
		sshTrust2 = func(edits ...func(*Trust)) Trust {
			return sshTrustDoc(append([]func(*Trust){func(t *Trust) { t.Version = 2 }}, edits...)...)
		}
		// sshTrustWith is version 2 with another blob in place of Bob's key.
		sshTrustWith = func(blob []byte) []byte {
			return sealBytes(TypeTrust, replaced(sshTrust2().Encode(), describe(sshEC).Public(), base64.StdEncoding.EncodeToString(blob)), sshRoots...)
		}
		byCarol = func(edit func(*sshSigner)) []byte { return seal(policy1, sshSKEd.with(edit)) }
		// resigned edits the signature blob of a policy by Carol.
		resigned = func(edit func([]byte) []byte) []byte {
			return reenveloped(seal(policy1, sshSKEd), func(e *Envelope) { e.Signatures[0].Sig = edit(e.Signatures[0].Sig) })
		}
	)

	vectors := []vector{
		// Trust.
		{Name: "trust-first", As: "pinned-trust", Before: afresh, envelope: trust(), Why: "the first trust document of a host, held against the pin"},
		{Name: "trust-first-again", As: "pinned-trust", Before: hasTrust, envelope: trust(), Why: "the same bytes may come again"},
		{Name: "trust-first-expired", As: "pinned-trust", Before: afresh, Facts: at(noon.AddDate(2, 0, 0)), envelope: trust(),
			Why: "an old image may start from an expired trust document, to walk forward from it; nothing opens under it"},
		{Name: "trust-other-pin", As: "pinned-trust", Before: afresh, Pin: &Digest{}, Code: BadSignature, envelope: trust(), Why: "not the document the host was told to take"},
		{Name: "trust-pinned-unsigned", As: "pinned-trust", Before: afresh, Code: Unsigned, envelope: sealBytes(TypeTrust, trust1.Encode()),
			Why: "the pin alone is not enough: it must carry a threshold of its own root keys"},
		{Name: "trust-pinned-one-signature", As: "pinned-trust", Before: afresh, Code: BadSignature, Threat: rowOldRoot, envelope: seal(trust1, rootA), Why: "one of the two signatures its own root role asks for"},
		{Name: "trust-pinned-policy", As: "pinned-trust", Before: afresh, Code: WrongType, envelope: policy(), Why: "a policy where a trust document is expected"},
		{Name: "trust-next", Before: hasTrust, envelope: seal(trust2(), bothRoot...), Why: "version 2 after 1, by a threshold of the root keys"},
		{Name: "trust-next-without-new-root", Before: hasTrust, Code: BadSignature, Threat: rowOldRoot, envelope: seal(trust2(newRoot), bothRoot...),
			Why: "two of two old root keys, but one of two new ones: the new root key did not sign"},
		{Name: "trust-next-without-old-root", Before: hasTrust, Code: BadSignature, Threat: rowOldRoot, envelope: seal(trust2(newRoot), rootNew, rootB),
			Why: "two of two new root keys, but one of two old ones: a thief of one old key adds his own"},
		{Name: "trust-next-root-rotated", Before: hasTrust, envelope: seal(trust2(newRoot), rootA, rootB, rootNew), Why: "a threshold of the old root keys and one of the new"},
		{Name: "trust-next-below-threshold", Before: hasTrust, Code: BadSignature, Threat: rowOldRoot, envelope: seal(trust2(), rootB), Why: "one of two root keys"},
		{Name: "trust-next-one-key-twice", Before: hasTrust, Code: BadSignature, Threat: rowOldRoot, envelope: seal(trust2(), rootA, rootA), Why: "one key that signs twice counts once"},
		{Name: "trust-next-threshold-lowered-by-one-key", Before: hasTrust, Code: BadSignature, Threat: rowOldRoot,
			envelope: seal(trust2(func(t *Trust) { t.Roles[0].Threshold = 1 }), rootA), Why: "a threshold is lowered by the old threshold, not by the new one"},
		{Name: "trust-skips-a-version", Before: hasTrust, Code: NotYet, Threat: rowOldRoot, envelope: trust(func(t *Trust) { t.Version = 3 }), Why: "trust documents are taken one by one: a removed key may not come back through a gap"},
		{Name: "trust-older", Before: has(hasTrust, func(s *State) { s.Trust.Version = 2 }), Code: Rollback, Threat: rowReplay, envelope: trust(), Why: "version 1 after 2"},
		{Name: "trust-equivocation", Before: hasTrust, Code: Equivocation, Threat: rowReplay,
			envelope: trust(func(t *Trust) { t.Expires = noon.Add(day) }), Why: "version 1 again with other bytes"},
		{Name: "trust-other-realm", Before: hasTrust, Code: WrongRealm, Threat: rowOtherVM, envelope: seal(trust2(func(t *Trust) { t.Realm = "other" }), bothRoot...), Why: "a realm does not change its name"},
		{Name: "trust-clock-behind", Before: hasTrust, Code: ClockBehind, Threat: rowClock, Facts: at(noon.Add(-Skew - sec)), envelope: seal(trust2(), bothRoot...), Why: "a clock that fails the floor is at fault, not the document issued ahead of it"},
		{Name: "trust-by-grant-key", Before: hasTrust, Code: BadSignature, Threat: rowOtherDoc, envelope: seal(trust2(), grantA), Why: "the grant key is not in role root"},
		{Name: "trust-grant-key-is-policy-key", Before: hasTrust, Code: Malformed, Threat: rowOtherDoc,
			envelope: trust(func(t *Trust) { t.Version = 2; t.Roles[2].Keys = ids(policyA) }), Why: "a grant key may have no other role"},
		{Name: "trust-key-twice-in-role", Before: hasTrust, Code: Malformed, Threat: rowOneSigner,
			envelope: trust(func(t *Trust) { t.Version = 2; t.Roles[1].Keys = ids(policyA, policyA) }), Why: "one key listed twice would reach a threshold of two alone"},
		{Name: "trust-key-under-chosen-id", Before: hasTrust, Code: Malformed, Threat: rowOneSigner,
			envelope: trust(func(t *Trust) {
				t.Version = 2
				t.Keys[3].ID = KeyID("sha256:" + strings.Repeat("0", 64))
				t.Roles[1].Keys = []KeyID{t.Keys[3].ID, idOf(policyB)}
			}), Why: "a key's id is computed from the key: two names for one key would count twice"},
		{Name: "trust-low-order-key", Before: hasTrust, Code: Malformed, Threat: rowOneSigner,
			envelope: sealBytes(TypeTrust, replaced(trust2().Encode(), describe(rootNew).Public(), zeroKey()), bothRoot...), Why: "anyone can sign for an Ed25519 key of low order"},
		{Name: "trust-without-epoch", Before: hasTrust, Code: Malformed, envelope: sealBytes(TypeTrust, replaced(trust2().Encode(), ",\n      \"epoch\": 1", ""), bothRoot...), Why: "role grant has an epoch"},
		{Name: "trust-two-roles", Before: hasTrust, Code: Malformed, envelope: trust(func(t *Trust) { t.Version = 2; t.Roles = t.Roles[:2] }), Why: "every trust document has all three roles"},

		// Policy.
		{Name: "policy-first", Before: hasTrust, envelope: policy(), Why: "the first policy of a host, by two of two policy keys"},
		{Name: "policy-again", envelope: policy(), Why: "the same bytes may come again"},
		{Name: "policy-scope", Before: hasTrust, envelope: policy(func(p *Policy) { p.Host.ID = strings.ToUpper(scope) + "/*" }), Why: "a scope names every host below it, letter case aside"},
		{Name: "policy-other-scope", Before: hasTrust, Code: WrongHost, envelope: policy(func(p *Policy) { p.Host.ID = scope + "/web1/*" }), Why: "a scope does not name itself"},
		{Name: "policy-one-signer", Before: hasTrust, Code: BadSignature, Threat: rowOneSigner, envelope: seal(policy1, policyA), Why: "one of two policy keys"},
		{Name: "policy-one-signer-thrice", Before: hasTrust, Code: BadSignature, Threat: rowOneSigner, envelope: seal(policy1, policyA, policyA, policyA), Why: "one key counts once, however often it signs"},
		{Name: "policy-one-signer-and-stranger", Before: hasTrust, Code: BadSignature, Threat: rowOneSigner, envelope: seal(policy1, policyA, mallory), Why: "a key outside the trust document counts for nothing"},
		{Name: "policy-stranger-beside", Before: hasTrust, envelope: seal(policy1, mallory, policyB, policyA), Why: "a signature of a stranger does no harm beside enough valid ones"},
		{Name: "policy-by-grant-key", Before: hasTrust, Code: BadSignature, Threat: rowOtherDoc, envelope: seal(policy1, grantA), Why: "the grant key cannot widen the policy"},
		{Name: "policy-by-root-keys", Before: hasTrust, Code: BadSignature, envelope: seal(policy1, bothRoot...), Why: "root keys sign trust documents and nothing else"},
		{Name: "policy-retyped", Before: hasTrust, Code: BadSignature, Threat: rowOtherDoc, envelope: replaced(sealBytes(TypeGrants, policy1.Encode(), bothPolicy...), string(TypeGrants), string(TypePolicy)),
			Why: "the type is signed with the payload: a document cannot be passed off as another"},
		{Name: "policy-overlapping-ports", Before: hasTrust, Code: Malformed, envelope: policy(func(p *Policy) { p.Ports[0].EndNumber = 5985 }), Why: "22-5985 and 5985-5986: a number must lead to one entry"},
		{Name: "policy-older", Code: Rollback, Threat: rowWithholds, Before: has(hasBoth, func(s *State) { s.Policy.Version = 2 }), envelope: policy(), Why: "version 1 after 2"},
		{Name: "policy-skips-versions", envelope: policy(func(p *Policy) { p.Version = 9 }), Why: "a policy is complete: the ones between may be missed"},
		{Name: "policy-equivocation", Code: Equivocation, Threat: rowReplay, envelope: policy(func(p *Policy) { p.NarrowestPrefix4 = 0 }), Why: "version 1 again with other bytes"},
		{Name: "policy-expired", Before: hasTrust, Code: Expired, Facts: at(noon.Add(90 * day)), envelope: policy(), Why: "at the instant expires a document is over"},
		{Name: "policy-last-second", Before: hasTrust, Facts: at(noon.Add(90*day - sec)), envelope: policy(), Why: "one second before expires it holds"},
		{Name: "policy-issued-at-skew", Before: State{Trust: hasTrust.Trust}, Facts: at(noon.Add(-Skew)), envelope: policy(), Why: "issued exactly two minutes ahead of the host's clock"},
		{Name: "policy-issued-beyond-skew", Before: State{Trust: hasTrust.Trust}, Code: NotYet, Facts: at(noon.Add(-Skew - sec)), envelope: policy(), Why: "issued a second more than two minutes ahead"},
		{Name: "policy-zero-age", Before: hasTrust, Code: Malformed, envelope: spelledPolicy(`"maxGrantsAge": "PT24H"`, `"maxGrantsAge": "PT0S"`), Why: "no grant could ever open a port: a mistake, said loudly"},
		{Name: "policy-overflowing-duration", Before: hasTrust, Code: Malformed, envelope: spelledPolicy(`"maxGrantsAge": "PT24H"`, `"maxGrantsAge": "P213504D"`), Why: "584 years, and 25 minutes to whoever counts nanoseconds in 64 bits without looking"},
		{Name: "policy-under-expired-trust", Before: hasTrust, Facts: at(noon.Add(365 * day)), Code: Expired, envelope: policy(func(p *Policy) { p.Expires = noon.Add(400 * day) }), Why: "an expired trust document is walked past, not worked on: its keys may be in other hands"},
		{Name: "policy-empty-install", Before: hasTrust, Code: Malformed, envelope: spelledPolicy(`"host": {`, `"host": { "install": "",`), Why: "an empty install id would read as any where somebody meant one"},

		// Grants.
		{Name: "grants-first", envelope: grants(), Verdicts: map[string]Code{"g1": ""}, Why: "one grant inside the policy"},
		{Name: "grants-minimal", envelope: sealBytes(TypeGrants, bytes.Replace([]byte(minimalGrants), []byte("vm1"), []byte(hostID), 1), grantA), Why: "every optional name left out, no white space, nothing granted"},
		{Name: "grants-url-base64", envelope: urlAlphabet(grants(func(g *Grants) { g.Grants[0].Requestor = "\u00ff\u00fe>>??~~\u00ff" })), Why: "base64 in the URL alphabet, as DSSE asks of verifiers"},
		{Name: "grants-again", Before: seen5, envelope: version(5, grants), Why: "the same bytes may come again"},
		{Name: "grants-skip-versions", Before: seen5, envelope: version(9, grants), Why: "a list is complete: the ones between may be missed"},
		{Name: "grants-revoke", Before: seen5, envelope: version(6, grants, func(g *Grants) { g.Grants = nil }), Why: "an empty list revokes"},
		{Name: "grants-for-any-policy", envelope: grants(func(g *Grants) { g.PolicyVersion = 0 }), Verdicts: map[string]Code{"g1": ""}, Why: "policyVersion left out means any"},
		{Name: "grants-host-in-capitals", envelope: grants(func(g *Grants) { g.Host.ID = strings.ToUpper(hostID) }), Why: "host.id is compared without letter case"},
		{Name: "grants-this-install", envelope: grants(func(g *Grants) { g.Host.Install = install }), Why: "made for this installation of the host"},
		{Name: "grants-stranger-beside", envelope: seal(grantsDoc(), mallory, grantA), Why: "a signature of a stranger does no harm beside enough valid ones"},

		{Name: "grants-without-envelope", Code: Unsigned, envelope: grantsDoc().Encode(), Why: "a document somebody forgot to sign"},
		{Name: "grants-no-signatures", Code: Unsigned, envelope: sealBytes(TypeGrants, grantsDoc().Encode()), Why: "an envelope with an empty list of signatures"},
		{Name: "grants-by-stranger", Code: BadSignature, Threat: rowEdits, envelope: seal(grantsDoc(), mallory), Why: "a key outside the trust document"},
		{Name: "grants-by-policy-keys", Code: BadSignature, envelope: seal(grantsDoc(), bothPolicy...), Why: "policy keys sign no grants"},
		{Name: "grants-strangers-signature-under-our-id", Code: BadSignature, Threat: rowEdits, envelope: replaced(seal(grantsDoc(), mallory), string(idOf(mallory)), string(idOf(grantA))), Why: "the key id picks the key, and the key says no"},
		{Name: "grants-key-id-in-capitals", Code: BadSignature, envelope: replaced(grants(), string(idOf(grantA)), strings.ToUpper(string(idOf(grantA)))), Why: "key ids are compared byte by byte"},
		{Name: "grants-key-of-next-trust", Code: BadSignature, envelope: seal(grantsDoc(), grantNew), Why: "a key that stands among the keys but in no role"},
		{Name: "grants-payload-edited", Code: BadSignature, Threat: rowEdits, envelope: reenveloped(grants(), func(e *Envelope) { e.Payload = replaced(e.Payload, "203.0.113.7", "203.0.113.8") }), Why: "another source than the signed one"},
		{Name: "grants-signature-edited", Code: BadSignature, Threat: rowEdits, envelope: reenveloped(grants(), func(e *Envelope) { e.Signatures[0].Sig[20] ^= 1 }), Why: "one bit of the signature"},
		{Name: "grants-type-of-policy", Code: WrongType, Threat: rowOtherDoc, envelope: policy(), Why: "a policy where grants are expected"},
		{Name: "grants-type-unknown", Code: WrongType, envelope: sealBytes("application/vnd.jitgate.grants.v2+json", grantsDoc().Encode(), grantA), Why: "a version of the format this agent does not know"},
		{Name: "grants-policy-inside", Code: Malformed, Threat: rowOtherDoc, envelope: sealBytes(TypeGrants, policy1.Encode(), grantA), Why: "a policy signed as grants is no list of grants"},
		{Name: "grants-cut", Code: Malformed, Threat: rowEdits, envelope: grants()[:len(grants())-40], Why: "the last bytes are missing: half a copy"},
		{Name: "grants-empty-file", Code: Malformed, Threat: rowEdits, envelope: []byte{}, Why: "a file of no bytes"},
		{Name: "grants-twice-in-file", Code: Malformed, envelope: append(grants(), grants()...), Why: "data after the envelope"},

		{Name: "grants-envelope-at-limit", Pad: MaxEnvelope - len(grants()), envelope: grants(), Why: "white space up to exactly 512 KiB"},
		{Name: "grants-envelope-too-large", Pad: MaxEnvelope - len(grants()) + 1, Code: TooLarge, envelope: grants(), Why: "a byte more than 512 KiB, refused before it is read"},
		{Name: "grants-17-signatures", Code: Malformed, Threat: rowCrafted, envelope: reenveloped(grants(), func(e *Envelope) { e.Signatures = slices.Repeat(e.Signatures, 17) }), Why: "16 signatures are the limit"},
		{Name: "grants-base64-unpadded", Code: Malformed, envelope: oddBase64("e30", grantA), Why: "base64 is padded"},
		{Name: "grants-base64-stray-bits", Code: Malformed, envelope: oddBase64("e31=", grantA), Why: "bits that no byte holds: a second spelling of one payload"},
		{Name: "grants-base64-line-break", Code: Malformed, envelope: oddBase64(`e3\n0=`, grantA), Why: "a line break within base64: another second spelling"},
		{Name: "grants-envelope-unknown-name", Code: Malformed, Threat: rowCrafted, envelope: replaced(grants(), `"payload"`, `"extra": 1, "payload"`), Why: "an envelope has three names"},
		{Name: "grants-envelope-repeated-name", Code: Malformed, Threat: rowCrafted, envelope: replaced(grants(), `"signatures"`, `"payloadType": "`+string(TypeGrants)+`", "signatures"`), Why: "two values for one name: readers differ in which one they take"},

		{Name: "grants-repeated-name", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": 1, "version": 2`), Why: "two values for one name"},
		{Name: "grants-repeated-name-escaped", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": 1, "\u0076ersion": 2`), Why: "an escape spells the same name"},
		{Name: "grants-case-folded-name", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"Version": 1`), Why: "names are compared exactly"},
		{Name: "grants-unknown-name", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": 1, "extra": 1`), Why: "what the agent does not know it cannot obey"},
		{Name: "grants-null", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"justification": "INC-1"`, `"justification": null`), Why: "null is neither a value nor its absence"},
		{Name: "grants-deep", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"INC-1"`, `[[[[{}]]]]`), Why: "depth 7 or more"},
		{Name: "grants-trailing-data", Code: Malformed, Threat: rowCrafted, envelope: sealBytes(TypeGrants, append(grantsDoc().Encode(), "{}"...), grantA), Why: "data after the document"},
		{Name: "grants-invalid-utf8", Code: Malformed, Threat: rowCrafted, envelope: spelled("INC-1", "INC-\xff"), Why: "not UTF-8"},
		{Name: "grants-lone-surrogate", Code: Malformed, Threat: rowCrafted, envelope: spelled("INC-1", `INC-\ud800`), Why: "an escape that stands for no character"},
		{Name: "grants-byte-order-mark", Code: Malformed, Threat: rowCrafted, envelope: sealBytes(TypeGrants, append([]byte("\ufeff"), grantsDoc().Encode()...), grantA), Why: "a byte order mark is not JSON"},
		{Name: "grants-version-float", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": 1.0`), Why: "a whole number is written as one"},
		{Name: "grants-version-exponent", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": 1e3`), Why: "a whole number is written as one"},
		{Name: "grants-version-string", Code: Malformed, Threat: rowCrafted, envelope: spelled(`"version": 1`, `"version": "1"`), Why: "a number is not a string"},
		{Name: "grants-version-zero", Code: Malformed, envelope: spelled(`"version": 1`, `"version": 0`), Why: "versions begin at 1"},
		{Name: "grants-version-2-53", Code: Malformed, Threat: rowCounter, envelope: spelled(`"version": 1`, `"version": 9007199254740992`), Why: "beyond 2^53-1 readers lose digits"},
		{Name: "grants-time-fraction", Code: Malformed, envelope: spelled(`"2026-11-22T13:00:00Z"`, `"2026-11-22T13:00:00.5Z"`), Why: "times are whole seconds"},
		{Name: "grants-time-offset", Code: Malformed, envelope: spelled(`"2026-11-22T13:00:00Z"`, `"2026-11-22T14:00:00+01:00"`), Why: "times end in Z"},
		{Name: "grants-ends-at-start", Code: Malformed, envelope: list(grant("g1", func(g *Grant) { g.End = g.Start })), Why: "a grant of no time"},
		{Name: "grants-v4-mapped", Code: Malformed, Threat: rowGrantKey, envelope: spelled("203.0.113.7/32", "::ffff:203.0.113.7/128"), Why: "an IPv4 source in IPv6 clothes passes no IPv4 bound"},
		{Name: "grants-host-bits", Code: Malformed, Threat: rowGrantKey, envelope: spelled("203.0.113.7/32", "203.0.113.7/24"), Why: "is it one host or 256? the signer must say"},
		{Name: "grants-bare-address", Code: Malformed, envelope: spelled("203.0.113.7/32", "203.0.113.7"), Why: "a prefix has a length"},
		{Name: "grants-id-twice", Code: Malformed, envelope: list(grant("g1"), grant("g1")), Why: "an id names one grant"},
		{Name: "grants-for-scope", Code: Malformed, Threat: rowOtherVM, envelope: grants(func(g *Grants) { g.Host.ID = scope + "/*" }), Why: "a list of grants is for one host"},

		{Name: "grants-other-realm", Code: WrongRealm, Threat: rowOtherVM, envelope: grants(func(g *Grants) { g.Realm = "other" }), Why: "another realm that shares a key"},
		{Name: "grants-other-host", Code: WrongHost, Threat: rowOtherVM, envelope: grants(func(g *Grants) { g.Host.ID = scope + "/web2" }), Why: "web2's grants on web1"},
		{Name: "grants-longer-host", Code: WrongHost, Threat: rowOtherVM, envelope: grants(func(g *Grants) { g.Host.ID = hostID + "0" }), Why: "web10 is not web1"},
		{Name: "grants-former-install", Code: WrongHost, Threat: rowReinstall, envelope: grants(func(g *Grants) { g.Host.Install = strings.Repeat("0", 32) }), Before: has(hasBoth, func(s *State) { s.Grants = Mark{} }),
			Why: "made for this host before it was installed anew, when no mark is left to call it old"},
		{Name: "grants-install-of-clone", Code: WrongHost, Threat: rowReinstall, Facts: facts{hostID, "", here.Now, here.Built}, envelope: grants(func(g *Grants) { g.Host.Install = install }), Why: "a host without an install id is not the one named"},
		{Name: "grants-older", Code: Rollback, Threat: rowReplay, Before: seen5, envelope: version(4, grants), Why: "version 4 after 5 would bring back what 5 revoked"},
		{Name: "grants-equivocation", Code: Equivocation, Threat: rowReplay, Before: seen5, envelope: version(5, grants, func(g *Grants) { g.Grants = append(g.Grants, grant("g2")) }), Why: "version 5 again with other bytes"},
		{Name: "grants-older-epoch", Code: Rollback, Threat: rowCounter, Trust: "trust-next-grant-key.json", envelope: seal(grantsDoc(func(g *Grants) { g.Version = MaxVersion }), grantNew), Why: "epoch 1 where the trust document says 2"},
		{Name: "grants-newer-epoch", Code: StalePolicy, envelope: grants(func(g *Grants) { g.Epoch = 2 }), Why: "epoch 2 where the trust document says 1: the host misses the newer one"},
		{Name: "grants-counter-restarts", Threat: rowCounter, Trust: "trust-next-grant-key.json", Before: has(hasBoth, func(s *State) { s.Grants = Mark{Epoch: 1, Version: MaxVersion, Digest: Digest{1}} }),
			envelope: seal(grantsDoc(func(g *Grants) { g.Epoch = 2 }), grantNew), Why: "version 1 of epoch 2 after the largest version of epoch 1, which a thief signed"},
		{Name: "grants-lost-key", Code: BadSignature, Threat: rowCounter, Trust: "trust-next-grant-key.json", envelope: grants(), Why: "the lost key signs no more"},
		{Name: "grants-issued-beyond-skew", Code: NotYet, Threat: rowClock, envelope: grants(func(g *Grants) { g.Issued = here.Now.Add(Skew + sec) }), Why: "issued a second more than two minutes ahead"},
		{Name: "grants-issued-at-skew", envelope: grants(func(g *Grants) { g.Issued = here.Now.Add(Skew) }), Why: "issued exactly two minutes ahead of the host's clock"},
		{Name: "grants-expired", Code: Expired, Threat: rowWithholds, Facts: at(noon.Add(2 * day)), envelope: grants(), Why: "at the instant expires a document is over"},
		{Name: "grants-clock-behind-floor", Code: ClockBehind, Threat: rowClock, Before: has(hasBoth, func(s *State) { s.Floor = here.Now.Add(Skew + sec) }), envelope: grants(), Why: "a clock set back to make an old list young again"},
		{Name: "grants-clock-at-floor", Before: has(hasBoth, func(s *State) { s.Floor = here.Now.Add(Skew) }), envelope: grants(), Why: "a clock exactly two minutes behind the newest signed time"},
		{Name: "grants-clock-before-program", Code: ClockBehind, Threat: rowClock, Facts: facts{hostID, install, here.Now, here.Now.Add(Skew + sec)}, envelope: grants(), Why: "the clock says a time at which this program was not yet built"},
		{Name: "grants-clock-far-ahead", Code: Expired, Threat: rowClock, Facts: at(noon.AddDate(20, 0, 0)), envelope: grants(), Why: "a clock that runs ahead only closes"},
		{Name: "grants-for-newer-policy", Code: StalePolicy, Threat: rowWithholds, envelope: grants(func(g *Grants) { g.PolicyVersion = 2 }), Why: "somebody holds back the policy the signer saw"},
		{Name: "grants-without-policy", Code: StalePolicy, Policy: "-", Before: hasTrust, envelope: grants(), Why: "no policy, no bounds, no grants"},
		{Name: "grants-withheld-beyond-age", Threat: rowWithholds, Facts: at(noon.Add(day)), envelope: list(grant("g1", func(g *Grant) { g.Start, g.End = noon.Add(day-time.Hour), noon.Add(day+time.Hour) })), Verdicts: map[string]Code{"g1": ""},
			Why: "admitted, but nothing is open at issued + maxGrantsAge: a newer list may be held back"},
		{Name: "grants-withheld-last-second", Threat: rowWithholds, Facts: at(noon.Add(day - sec)), envelope: list(grant("g1", func(g *Grant) { g.Start, g.End = noon.Add(day-time.Hour), noon.Add(day+time.Hour) })), Verdicts: map[string]Code{"g1": ""},
			Why: "open one second before that, and it closes then"},

		// Single grants: the list is admitted, what is outside the policy is dropped alone.
		{Name: "grant-beside-refused-ones", Threat: rowGrantKey, Why: "a stolen grant key asks for everything: only what the policy allows opens",
			envelope: list(
				grant("good"),
				grant("other-port", func(g *Grant) { g.Number = 3389 }),
				grant("any-v4", func(g *Grant) { g.Sources = prefixes("0.0.0.0/0") }),
				grant("wider-v4", func(g *Grant) { g.Sources = prefixes("203.0.112.0/23") }),
				grant("wider-v6", func(g *Grant) { g.Sources = prefixes("2001:db8::/47") }),
				grant("other-net", func(g *Grant) { g.Sources = prefixes("198.51.100.1/32") }),
				grant("one-of-two", func(g *Grant) { g.Sources = prefixes("203.0.113.7/32", "198.51.100.1/32") }),
				grant("ten-hours", func(g *Grant) { g.End = noon.Add(10 * time.Hour) }),
				grant("year-9999", func(g *Grant) { g.End = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC) }),
				grant("back-dated", func(g *Grant) { g.Start = noon.Add(-3 * time.Hour) }),
				grant("since-year-0", func(g *Grant) { g.Start = time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC) }),
			),
			Verdicts: map[string]Code{"good": "", "other-port": PortNotInPolicy, "any-v4": TooWide, "wider-v4": TooWide, "wider-v6": TooWide,
				"other-net": SourceRefused, "one-of-two": SourceRefused, "ten-hours": TooLong, "year-9999": TooLong, "back-dated": TooLong, "since-year-0": TooLong}},
		{Name: "grant-range-bounds", Why: "a number at either end of 5985-5986, and the ones beside",
			envelope: list(number(5984), number(5985), number(5986), number(5987)),
			Verdicts: map[string]Code{"n5984": PortNotInPolicy, "n5985": "", "n5986": "", "n5987": PortNotInPolicy}},
		{Name: "grant-phases", Why: "a grant holds from its start, and at its end it no longer does",
			envelope: list(
				grant("starts-now", func(g *Grant) { g.Start = here.Now }),
				grant("starts-in-a-second", func(g *Grant) { g.Start = here.Now.Add(sec) }),
				grant("ends-now", func(g *Grant) { g.End = here.Now }),
				grant("ends-in-a-second", func(g *Grant) { g.End = here.Now.Add(sec) })),
			Verdicts: map[string]Code{"starts-now": "", "starts-in-a-second": "", "ends-now": "", "ends-in-a-second": ""}},
		{Name: "grant-bounds", Why: "exactly as long, and as wide, as the policy allows",
			envelope: list(
				grant("three-hours", func(g *Grant) { g.End = noon.Add(3 * time.Hour) }),
				grant("three-hours-one-second", func(g *Grant) { g.End = noon.Add(3*time.Hour + sec) }),
				grant("v4-24", func(g *Grant) { g.Sources = prefixes("203.0.113.0/24") }),
				grant("v6-48", func(g *Grant) { g.Sources = prefixes("2001:db8:ffff::/48") })),
			Verdicts: map[string]Code{"three-hours": "", "three-hours-one-second": TooLong, "v4-24": "", "v6-48": ""}},
		{Name: "grant-any-source", Policy: "policy-any-v4.json", Before: has(hasBoth, func(s *State) { s.Policy = Mark{Version: 1, Digest: sha(policyAny4().Encode())} }), Threat: rowGrantKey,
			envelope: list(grant("any", func(g *Grant) { g.Sources = prefixes("*") }), grant("any-v4", func(g *Grant) { g.Sources = prefixes("0.0.0.0/0") })),
			Verdicts: map[string]Code{"any": SourceRefused, "any-v4": ""}, Why: `"*" is IPv4 and IPv6; the policy allows 0.0.0.0/0 only`},
		{Name: "policy-any-v4", Before: hasTrust, envelope: seal(policyAny4(), bothPolicy...), Why: "any IPv4 source, and no bound on its width"},
		{Name: "trust-next-policy-key", Before: hasTrust, Threat: rowCounter, envelope: seal(trust2(newPolicyKeys), bothRoot...), Why: "after a theft of policy keys: other keys, and epoch 1 of role policy"},
		{Name: "policy-counter-restarts", Threat: rowCounter, Trust: "trust-next-policy-key.json", Before: has(hasTrust, func(s *State) { s.Policy = Mark{Version: MaxVersion, Digest: Digest{1}} }),
			envelope: seal(policyDoc(func(p *Policy) { p.Epoch = 1 }), policyB), Why: "version 1 of epoch 1 after the largest version of epoch 0, which thieves signed"},
		{Name: "policy-older-epoch", Code: Rollback, Threat: rowCounter, Trust: "trust-next-policy-key.json", Before: hasTrust,
			envelope: seal(policyDoc(func(p *Policy) { p.Version = MaxVersion }), policyB), Why: "epoch 0 where the trust document says 1, signed by a key that stayed"},
		{Name: "policy-newer-epoch", Code: StalePolicy, Before: hasTrust, envelope: policy(func(p *Policy) { p.Epoch = 1 }), Why: "epoch 1 where the trust document says none: the host misses the newer one"},
		{Name: "trust-lower-policy-epoch", Code: Rollback, Threat: rowOldRoot, Trust: "trust-next-policy-key.json", Before: hasTrust,
			envelope: seal(trust2(func(t *Trust) { t.Version = 3 }), bothRoot...), Why: "epoch 0 of role policy after 1"},
		{Name: "trust-next-grant-key", Before: hasTrust, Threat: rowCounter, envelope: seal(trust2(newGrantKey), bothRoot...), Why: "after a theft: a new grant key, and epoch 2"},

		// Scheme sshsig.
		{Name: "trust-sshsig-first", As: "pinned-trust", Before: afresh, envelope: seal(sshTrustDoc(), sshRoots...), Why: "SSH keys of every kind, with names; signed on two tokens"},
		{Name: "trust-sshsig-next", Before: hasSSH, envelope: seal(sshTrust2(), sshRoots...), Why: "a threshold of two root keys on tokens"},
		{Name: "trust-sshsig-next-below-threshold", Before: hasSSH, Code: BadSignature, Threat: rowOldRoot, envelope: seal(sshTrust2(), sshSKEC, sshSKEC), Why: "one token that signs twice counts once"},
		{Name: "trust-sshsig-key-under-two-schemes", Before: hasSSH, Code: Malformed, Threat: rowOneSigner,
			envelope: seal(sshTrust2(func(t *Trust) { t.Keys[4] = describe(sshEd.Signer) }), sshRoots...), Why: "the id is that of the key itself: one key cannot stand twice, as sshsig and as ed25519"},
		{Name: "trust-sshsig-key-under-two-applications", Before: hasSSH, Code: Malformed, Threat: rowOneSigner,
			envelope: seal(sshTrust2(func(t *Trust) {
				t.Keys[4] = describe(sshSKEd.with(func(s *sshSigner) { s.application = "ssh:second" }))
			}), sshRoots...), Why: "nor with another application"},
		{Name: "trust-sshsig-rsa", Before: hasSSH, Code: Malformed, envelope: sshTrustWith(rsaBlob()), Why: "RSA keys are not taken"},
		{Name: "trust-sshsig-p384", Before: hasSSH, Code: Malformed, envelope: sshTrustWith(bytes.Replace(sshEC.blob(), []byte("nistp256"), []byte("nistp384"), 2)), Why: "another curve"},
		{Name: "trust-sshsig-other-curve-inside", Before: hasSSH, Code: Malformed, envelope: sshTrustWith(replaced(sshEC.blob(), "\x08nistp256", "\x08nistp384")), Why: "the kind says one curve, the key another"},
		{Name: "trust-sshsig-trailing-byte", Before: hasSSH, Code: Malformed, Threat: rowOneSigner, envelope: sshTrustWith(append(sshEC.blob(), 0)), Why: "a second spelling of a key"},
		{Name: "trust-sshsig-low-order", Before: hasSSH, Code: Malformed, Threat: rowOneSigner,
			envelope: sshTrustWith(ssh.Marshal(struct {
				Kind string
				Key  [32]byte
			}{Kind: "ssh-ed25519"})), Why: "anyone can sign for an Ed25519 key of low order"},
		{Name: "trust-sshsig-application-of-web-site", Before: hasSSH, Code: Malformed,
			envelope: sshTrustWith(sshSKEC.with(func(s *sshSigner) { s.Signer, s.application = p256Key("ssh-p256"), "example.com" }).blob()), Why: "a token's key for a web site"},
		{Name: "trust-sshsig-public-as-der", Before: hasSSH, Code: Malformed, envelope: sshTrustWith(describe(sshEC).der), Why: "the scheme says SSH wire format"},
		{Name: "trust-name-at-limit", Before: hasSSH, envelope: seal(sshTrust2(func(t *Trust) { t.Keys[0].Name = strings.Repeat("n", 128) }), sshRoots...), Why: "a key's name of 128 bytes"},
		{Name: "trust-name-too-long", Before: hasSSH, Code: Malformed, envelope: seal(sshTrust2(func(t *Trust) { t.Keys[0].Name = strings.Repeat("n", 129) }), sshRoots...), Why: "a key's name of 129 bytes"},
		{Name: "trust-name-empty", Before: hasSSH, Code: Malformed, envelope: sealBytes(TypeTrust, replaced(sshTrust2().Encode(), "Alice, laptop", ""), sshRoots...), Why: "a name is left out, not left empty"},

		{Name: "policy-sshsig-ed25519", Before: hasSSH, envelope: seal(policy1, sshEd), Why: "signed with an Ed25519 key in a file"},
		{Name: "policy-sshsig-p256", Before: hasSSH, envelope: seal(policy1, sshEC), Why: "signed with an ECDSA key"},
		{Name: "policy-sshsig-sk-ed25519", Before: hasSSH, envelope: seal(policy1, sshSKEd), Why: "signed with an Ed25519 key on a token"},
		{Name: "policy-sshsig-sk-p256", Before: hasSSH, envelope: seal(policy1, sshSKEC), Why: "signed with an ECDSA key on a token"},
		{Name: "policy-sshsig-sha256", Before: hasSSH, envelope: seal(policy1, sshEd.with(func(s *sshSigner) { s.hash = "sha256" })), Why: "hashed with SHA-256"},
		{Name: "policy-sshsig-user-verified", Before: hasSSH, envelope: byCarol(func(s *sshSigner) { s.flags = 5 }), Why: "user presence, and a PIN"},
		{Name: "policy-sshsig-no-presence", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.flags = 0 }), Why: "nobody touched the token"},
		{Name: "policy-sshsig-verified-without-presence", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.flags = 4 }), Why: "a PIN is no touch"},
		{Name: "policy-sshsig-other-namespace", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.namespace = "file" }), Why: "what the key signs elsewhere is not ours"},
		{Name: "policy-sshsig-other-hash", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.hash = "sha384" }), Why: "a hash that PROTOCOL.sshsig does not have"},
		{Name: "policy-sshsig-reserved", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.reserved = "x" }), Why: "the reserved field is empty"},
		{Name: "policy-sshsig-version-2", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.version = 2 }), Why: "another version of the format"},
		{Name: "policy-sshsig-trailing-byte", Before: hasSSH, Code: BadSignature, envelope: resigned(func(b []byte) []byte { return append(b, 0) }), Why: "something behind the signature"},
		{Name: "policy-sshsig-cut", Before: hasSSH, Code: BadSignature, Threat: rowEdits, envelope: resigned(func(b []byte) []byte { return b[:len(b)-1] }), Why: "the last byte is missing"},
		{Name: "policy-sshsig-armoured", Before: hasSSH, Code: BadSignature, envelope: resigned(armour), Why: "the signature without its armour is what is carried"},
		{Name: "policy-sshsig-other-application", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.application, s.signedFor = "ssh:other", "ssh:other" }), Why: "the application is part of the key"},
		{Name: "policy-sshsig-signed-for-other-application", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.signedFor = "example.com" }), Why: "a signature for a web site by the same token"},
		{Name: "policy-sshsig-other-kind-inside", Before: hasSSH, Code: BadSignature, envelope: byCarol(func(s *sshSigner) { s.innerKind = sshEd25519 }), Why: "the kind of the signature is that of the key"},
		{Name: "policy-sshsig-other-key-inside", Before: hasSSH, Code: BadSignature, envelope: replaced(seal(policy1, sshEC), string(idOf(sshEC)), string(idOf(sshEd))), Why: "the key id picks the key, not the blob"},
		{Name: "policy-sshsig-other-document", Before: hasSSH, Code: BadSignature, Threat: rowEdits, envelope: reenveloped(seal(policy1, sshSKEC), func(e *Envelope) { e.Payload = replaced(e.Payload, "203.0.113.0", "203.0.114.0") }), Why: "another document than the signed one"},
		{Name: "policy-sshsig-raw-signature", Before: hasSSH, Code: BadSignature, envelope: seal(policy1, sshEd.Signer), Why: "by the same key, but in the form of another scheme"},
		{Name: "policy-sshsig-for-plain-key", Before: hasTrust, Code: BadSignature, Trust: "trust-first.json", envelope: seal(policy1, sshKey(sshEd25519, policyA), policyB), Why: "the scheme comes from the trust document: ed25519 there"},
	}

	for i := range vectors {
		v := &vectors[i]
		v.File = v.Name + ".json"
		kind, _, _ := strings.Cut(v.Name, "-")
		if kind == "grant" {
			kind = "grants"
		}
		v.As = cmp.Or(v.As, kind)
		if v.As == "pinned-trust" && v.Pin == nil {
			v.Pin = new(sha(payloadOf(v.envelope)))
		}
		if v.As != "pinned-trust" {
			v.Trust = cmp.Or(v.Trust, "trust-first.json")
			if v.Before == hasSSH {
				v.Trust = "trust-sshsig-first.json"
			}
		}
		if v.As == "grants" {
			v.Policy = cmp.Or(v.Policy, "policy-first.json")
		}
		if v.Policy == "-" {
			v.Policy = ""
		}
		v.Facts = cmp.Or(v.Facts, at(here.Now))
		if v.Before == (State{}) && v.As != "pinned-trust" {
			v.Before = hasBoth
		}
		switch v.Trust {
		case "trust-next-grant-key.json":
			v.Before.Trust = Mark{Version: 2, Digest: sha(trust2(newGrantKey).Encode())}
		case "trust-next-policy-key.json":
			v.Before.Trust = Mark{Version: 2, Digest: sha(trust2(newPolicyKeys).Encode())}
		}
	}
	return vectors
}

func policyAny4() Policy {
	return policyDoc(func(p *Policy) {
		p.Ports[0].AllowedSources, p.NarrowestPrefix4, p.NarrowestPrefix6 = prefixes("0.0.0.0/0"), 0, 0
	})
}

// version makes grants of another version.
func version(n uint64, grants func(...func(*Grants)) []byte, edits ...func(*Grants)) []byte {
	return grants(append(edits, func(g *Grants) { g.Version = n })...)
}

func number(n uint16) Grant {
	return grant("n"+strconv.Itoa(int(n)), func(g *Grant) { g.Number = n })
}

// rsaBlob has the form of an RSA key of 2048 bits.
func rsaBlob() []byte {
	n := new(big.Int).SetBytes(bytes.Repeat(seed("rsa"), 8))
	return ssh.Marshal(struct {
		Kind string
		E, N *big.Int
	}{"ssh-rsa", big.NewInt(65537), n.SetBit(n.SetBit(n, 2047, 1), 0, 1)})
}

// zeroKey is the SubjectPublicKeyInfo of the all-zero Ed25519 key.
func zeroKey() string {
	der := slices.Clone(describe(rootNew).der)
	clear(der[len(der)-ed25519.PublicKeySize:])
	return base64.StdEncoding.EncodeToString(der)
}

// reenveloped changes an envelope after it was signed.
func reenveloped(envelope []byte, edit func(*Envelope)) []byte {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		panic(err)
	}
	edit(&e)
	return e.Encode()
}

func payloadOf(envelope []byte) []byte {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		panic(err)
	}
	return e.Payload
}

// oddBase64 signs the payload {} and spells it as text.
func oddBase64(text string, signer crypto.Signer) []byte {
	return replaced(sealBytes(TypeGrants, []byte("{}"), signer), `"e30="`, `"`+text+`"`)
}

// urlAlphabet spells an envelope's base64 with - and _.
func urlAlphabet(envelope []byte) []byte {
	e, err := ParseEnvelope(envelope)
	if err != nil {
		panic(err)
	}
	std, url := base64.StdEncoding.EncodeToString(e.Payload), base64.URLEncoding.EncodeToString(e.Payload)
	if std == url {
		panic("the payload's base64 has neither + nor /")
	}
	return replaced(envelope, std, url)
}
