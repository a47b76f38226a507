package policy

import (
	"strings"
	"testing"
	"time"
)

// Every bound on the clock, at the instant it flips and beside it.
func TestClockBounds(t *testing.T) {
	trust, expires := trustDoc(), noon.Add(2*day)
	floored := State{Floor: noon.Add(time.Hour)}
	for _, c := range []struct {
		name   string
		state  State
		now    time.Time
		built  time.Time
		policy Code
		trust  Code // a trust document may be expired
	}{
		{"when issued", State{}, noon, here.Built, "", ""},
		{"issued skew ahead", State{}, noon.Add(-Skew), here.Built, "", ""},
		{"issued skew and a second ahead", State{}, noon.Add(-Skew - sec), here.Built, NotYet, NotYet},
		{"a second before expires", State{}, expires.Add(-sec), here.Built, "", ""},
		{"a nanosecond before expires", State{}, expires.Add(-1), here.Built, "", ""},
		{"at expires", State{}, expires, here.Built, Expired, ""},
		{"after expires", State{}, expires.Add(sec), here.Built, Expired, ""},
		{"at the floor less skew", floored, floored.Floor.Add(-Skew), here.Built, "", ""},
		{"a second below", floored, floored.Floor.Add(-Skew - sec), here.Built, ClockBehind, ClockBehind},
		{"at the build time less skew", State{}, noon.Add(time.Minute), noon.Add(time.Minute + Skew), "", ""},
		{"a second below the build time", State{}, noon.Add(time.Minute), noon.Add(time.Minute + Skew + sec), ClockBehind, ClockBehind},
		{"the later floor counts", floored, noon, here.Built, ClockBehind, ClockBehind},
		{"a clock at fault before a document ahead", floored, noon.Add(-day), here.Built, ClockBehind, ClockBehind},
		{"another time zone", State{}, noon.In(time.FixedZone("", 9*3600)), here.Built, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := Facts{Host: hostID, Now: c.now, Built: c.built}
			life := func(h *Header) { h.Expires = expires }

			p := policyDoc(func(p *Policy) { life(&p.Header) })
			_, err := AdmitPolicy(c.state, verified(p), trust, f)
			wantCode(t, err, c.policy)

			g := grantsDoc(func(g *Grants) { life(&g.Header) })
			_, err = AdmitGrants(c.state, verified(g), trust, p, f)
			wantCode(t, err, c.policy)

			d := trustDoc(func(t *Trust) { life(&t.Header) })
			_, err = AdmitTrust(c.state, verified(d), Trust{}, f)
			wantCode(t, err, c.trust)
		})
	}
}

// The floor rises to the newest issued time and never falls.
func TestFloor(t *testing.T) {
	trust := trustDoc()
	s := State{}
	for i, c := range []struct{ issued, want time.Time }{
		{noon, noon}, {noon.Add(-day), noon}, {noon.Add(time.Minute + Skew), noon.Add(time.Minute + Skew)},
	} {
		p := policyDoc(func(p *Policy) { p.Version, p.Issued = uint64(i+1), c.issued })
		var err error
		if s, err = AdmitPolicy(s, verified(p), trust, here); err != nil || !s.Floor.Equal(c.want) {
			t.Fatalf("issued %s: floor %s, %v, want %s", c.issued, s.Floor, err, c.want)
		}
	}
	// A document issued in the future by the most allowed does not turn the
	// clock that took it into one that is behind.
	if err := s.clockBehind(here); err != nil {
		t.Error(err)
	}
}

// A refusal leaves the state as it was, whatever it is for.
func TestRefusedDocumentsMoveNothing(t *testing.T) {
	before := State{Trust: Mark{Version: 4}, Policy: Mark{Version: 4}, Grants: Mark{Epoch: 1, Version: 4}, Floor: noon}
	ahead := func(h *Header) { h.Version, h.Issued = 5, here.Now.Add(time.Hour) }
	p, g, d := policyDoc(), grantsDoc(), trustDoc()
	ahead(&p.Header)
	ahead(&g.Header)
	ahead(&d.Header)
	for name, admit := range map[string]func() (State, error){
		"policy": func() (State, error) { return AdmitPolicy(before, verified(p), trustDoc(), here) },
		"grants": func() (State, error) { return AdmitGrants(before, verified(g), trustDoc(), policyDoc(), here) },
		"trust":  func() (State, error) { return AdmitTrust(before, verified(d), trustDoc(), here) },
	} {
		after, err := admit()
		wantCode(t, err, NotYet)
		if after != before {
			t.Errorf("%s: got %+v", name, after)
		}
	}
}

func TestTrustVersions(t *testing.T) {
	doc := func(version uint64, edits ...func(*Trust)) Trust {
		return trustDoc(append(edits, func(t *Trust) { t.Version = version })...)
	}
	mark := func(d Trust) Mark { return Mark{Version: d.Version, Digest: sha(d.Encode())} }
	other := func(t *Trust) { t.Expires = noon.Add(day) }
	for _, c := range []struct {
		name string
		had  Mark
		next Trust
		want Code
	}{
		{"first", Mark{}, doc(1), ""},
		{"first of a later version", Mark{}, doc(7), ""},
		{"N again", mark(doc(3)), doc(3), ""},
		{"N, other bytes", mark(doc(3)), doc(3, other), Equivocation},
		{"N-1", mark(doc(3)), doc(2), Rollback},
		{"N+1", mark(doc(3)), doc(4), ""},
		{"N+2", mark(doc(3)), doc(5), NotYet},
		{"the last one", mark(doc(MaxVersion - 1)), doc(MaxVersion), ""},
		{"after a burnt counter", mark(doc(1)), doc(MaxVersion), NotYet},
		{"other realm", mark(doc(3)), doc(4, func(t *Trust) { t.Realm = "Acme" }), WrongRealm},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := AdmitTrust(State{Trust: c.had}, verified(c.next), trustDoc(), here)
			wantCode(t, err, c.want)
			if want := mark(c.next); err == nil && s.Trust != want {
				t.Errorf("mark is %+v, want %+v", s.Trust, want)
			}
		})
	}
}

// The first trust document has no predecessor whose realm it could keep.
func TestFirstTrustSetsTheRealm(t *testing.T) {
	_, err := AdmitTrust(State{}, verified(trustDoc(func(t *Trust) { t.Realm = "any" })), Trust{}, here)
	wantCode(t, err, "")
}

// Root keys hand over only together: a threshold of the old and of the new.
func TestTrustHandover(t *testing.T) {
	newA, newB := edKey("new root a"), p256Key("new root b")
	next := trustDoc(func(t *Trust) {
		t.Version = 2
		t.Keys = append(t.Keys, describe(newA), describe(newB))
		t.Roles[0].Keys = ids(newA, newB)
	})
	for name, c := range map[string]struct {
		envelope []byte
		want     Code
	}{
		"old only":            {seal(next, rootA, rootB), BadSignature},
		"new only":            {seal(next, newA, newB), BadSignature},
		"one of each":         {seal(next, rootA, newA), BadSignature},
		"old and one new":     {seal(next, rootA, rootB, newA), BadSignature},
		"new and one old":     {seal(next, newA, newB, rootA), BadSignature},
		"one old twice":       {seal(next, newA, newB, rootA, rootA), BadSignature},
		"both":                {seal(next, rootA, rootB, newA, newB), ""},
		"both, and a witness": {seal(next, mallory, newB, rootA, newA, rootB), ""},
		"nobody":              {seal(next), Unsigned},
	} {
		v, err := OpenTrust(c.envelope, trustDoc())
		if wantCode(t, err, c.want); t.Failed() {
			t.Fatal(name)
		}
		if err == nil && v.Document().Version != 2 || err != nil && v.Document().Version != 0 {
			t.Errorf("%s: document version %d", name, v.Document().Version)
		}
	}
	if _, err := OpenTrust(seal(next, newA, newB), Trust{}); err == nil {
		t.Error("a host that trusts nobody takes a self-signed trust document")
	}
}

func TestPinnedTrust(t *testing.T) {
	d := trustDoc()
	pin := sha(d.Encode())
	for name, c := range map[string]struct {
		envelope []byte
		pin      Digest
		want     Code
	}{
		"pinned":                      {seal(d, rootA, rootB), pin, ""},
		"other pin":                   {seal(d, rootA, rootB), Digest{1}, BadSignature},
		"no pin":                      {seal(d, rootA, rootB), Digest{}, BadSignature},
		"pin of other bytes":          {seal(d, rootA, rootB), sha(append(d.Encode(), '\n')), BadSignature},
		"below threshold":             {seal(d, rootA), pin, BadSignature},
		"unsigned":                    {seal(d), pin, Unsigned},
		"by others":                   {seal(d, policyA, policyB), pin, BadSignature},
		"bare":                        {d.Encode(), pin, Unsigned},
		"another type, the same pin":  {sealBytes(TypePolicy, d.Encode(), rootA, rootB), pin, WrongType},
		"pinned, yet malformed":       {sealBytes(TypeTrust, []byte("{}"), rootA), sha([]byte("{}")), Malformed},
		"pinned, yet a policy inside": {sealBytes(TypeTrust, policyDoc().Encode(), rootA), sha(policyDoc().Encode()), Malformed},
	} {
		v, err := OpenPinnedTrust(c.envelope, c.pin)
		if wantCode(t, err, c.want); t.Failed() {
			t.Fatal(name)
		}
		if err == nil && (v.Digest() != pin || len(v.Signers()) != 2) {
			t.Errorf("%s: got %s by %s", name, v.Digest(), v.Signers())
		}
	}
}

func TestPolicyVersions(t *testing.T) {
	had := policyDoc(func(p *Policy) { p.Version = 5 })
	s := State{Policy: Mark{Version: 5, Digest: sha(had.Encode())}}
	for version, want := range map[uint64]Code{1: Rollback, 4: Rollback, 6: "", 7: "", MaxVersion: ""} {
		_, err := AdmitPolicy(s, verified(policyDoc(func(p *Policy) { p.Version = version })), trustDoc(), here)
		wantCode(t, err, want)
	}
	_, err := AdmitPolicy(s, verified(had), trustDoc(), here)
	wantCode(t, err, "")
	had.NarrowestPrefix4--
	_, err = AdmitPolicy(s, verified(had), trustDoc(), here)
	wantCode(t, err, Equivocation)
}

// A thief of policy keys may have signed the largest version: the epoch
// restarts the count.
func TestPolicyEpochs(t *testing.T) {
	doc := func(epoch, version uint64) Policy {
		return policyDoc(func(p *Policy) { p.Epoch, p.Version = epoch, version })
	}
	mark := func(epoch, version uint64) Mark { return Mark{epoch, version, sha(doc(epoch, version).Encode())} }
	for _, c := range []struct {
		name  string
		had   Mark
		trust uint64 // the policy role's epoch
		next  Policy
		want  Code
	}{
		{"none anywhere", mark(0, 5), 0, doc(0, 6), ""},
		{"epoch raised restarts the count", mark(0, MaxVersion), 1, doc(1, 1), ""},
		{"epoch below the trust document's", mark(0, 5), 1, doc(0, 6), Rollback},
		{"epoch above the trust document's", mark(0, 5), 0, doc(1, 6), StalePolicy},
		{"within the new epoch", mark(1, 5), 1, doc(1, 4), Rollback},
		{"within the new epoch, next", mark(1, 5), 1, doc(1, 6), ""},
		{"epoch lowered by the trust document", mark(1, 1), 0, doc(0, 6), Rollback},
	} {
		t.Run(c.name, func(t *testing.T) {
			trust := trustDoc(func(t *Trust) { t.Roles[1].Epoch = c.trust })
			s, err := AdmitPolicy(State{Policy: c.had}, verified(c.next), trust, here)
			wantCode(t, err, c.want)
			if want := mark(c.next.Epoch, c.next.Version); err == nil && s.Policy != want {
				t.Errorf("mark is %+v, want %+v", s.Policy, want)
			}
		})
	}
}

func TestGrantsEpochsAndVersions(t *testing.T) {
	doc := func(epoch, version uint64) Grants {
		return grantsDoc(func(g *Grants) { g.Epoch, g.Version = epoch, version })
	}
	mark := func(epoch, version uint64) Mark { return Mark{epoch, version, sha(doc(epoch, version).Encode())} }
	for _, c := range []struct {
		name  string
		had   Mark
		trust uint64 // the grant role's epoch
		next  Grants
		want  Code
	}{
		{"first", Mark{}, 1, doc(1, 1), ""},
		{"same again", mark(1, 5), 1, doc(1, 5), ""},
		{"next", mark(1, 5), 1, doc(1, 6), ""},
		{"skipping", mark(1, 5), 1, doc(1, 60), ""},
		{"older", mark(1, 5), 1, doc(1, 4), Rollback},
		{"other bytes", Mark{1, 5, Digest{1}}, 1, doc(1, 5), Equivocation},
		{"epoch below the trust document's", mark(1, 5), 2, doc(1, 6), Rollback},
		{"epoch above the trust document's", mark(1, 5), 1, doc(2, 6), StalePolicy},
		{"epoch raised restarts the count", mark(1, MaxVersion), 2, doc(2, 1), ""},
		{"epoch raised, same version", mark(1, 5), 2, doc(2, 5), ""},
		{"epoch raised by more than one", mark(1, 5), 9, doc(9, 1), ""},
		{"within the new epoch", mark(2, 5), 2, doc(2, 4), Rollback},
		// A trust document that lowers the epoch brings no old list back.
		{"epoch lowered by the trust document", mark(2, 1), 1, doc(1, 6), Rollback},
	} {
		t.Run(c.name, func(t *testing.T) {
			trust := trustDoc(func(t *Trust) { t.Roles[2].Epoch = c.trust })
			s, err := AdmitGrants(State{Grants: c.had}, verified(c.next), trust, policyDoc(), here)
			wantCode(t, err, c.want)
			if want := mark(c.next.Epoch, c.next.Version); err == nil && s.Grants != want {
				t.Errorf("mark is %+v, want %+v", s.Grants, want)
			}
		})
	}
}

func TestPolicyVersionOfGrants(t *testing.T) {
	for _, c := range []struct {
		name      string
		has, asks uint64
		want      Code
	}{
		{"any", 3, 0, ""}, {"older", 3, 2, ""}, {"equal", 3, 3, ""}, {"newer", 3, 4, StalePolicy},
		{"no policy", 0, 1, StalePolicy}, {"no policy, any", 0, 0, StalePolicy},
	} {
		p := Policy{}
		if c.has > 0 {
			p = policyDoc(func(p *Policy) { p.Version = c.has })
		}
		g := grantsDoc(func(g *Grants) { g.PolicyVersion = c.asks })
		t.Run(c.name, func(t *testing.T) {
			_, err := AdmitGrants(State{}, verified(g), trustDoc(), p, here)
			wantCode(t, err, c.want)
		})
	}
}

func TestMeantForThisHost(t *testing.T) {
	const below = "/subs/s1/vms"
	for _, c := range []struct {
		doc  Host
		host string
		inst string
		want Code
	}{
		{Host{ID: "vm1"}, "vm1", "", ""},
		{Host{ID: "VM1"}, "vm1", "", ""},
		{Host{ID: "vm1"}, "Vm1", "", ""},
		{Host{ID: "vm1"}, "vm10", "", WrongHost},
		{Host{ID: "vm10"}, "vm1", "", WrongHost},
		{Host{ID: "vm1"}, "", "", WrongHost},
		{Host{ID: below + "/*"}, below + "/web1", "", ""},
		{Host{ID: "/SUBS/S1/VMs/*"}, below + "/Web1", "", ""},
		{Host{ID: below + "/*"}, below + "/a/b/c", "", ""}, // every VM below, however deep
		{Host{ID: below + "/*"}, below + "/", "", WrongHost},
		{Host{ID: below + "/*"}, below, "", WrongHost},
		{Host{ID: below + "/*"}, below + "2/web1", "", WrongHost},
		{Host{ID: below + "/*"}, "/x" + below + "/web1", "", WrongHost},
		{Host{ID: below + "/*"}, "", "", WrongHost},
		{Host{ID: "/*"}, "/anything", "", ""},
		{Host{ID: "*"}, "vm1", "", WrongHost}, // not a scope: it has no slash
		{Host{ID: "vm*"}, "vm1", "", WrongHost},
		{Host{ID: "/*/web1"}, below + "/web1", "", WrongHost},
		{Host{ID: "vm1", Install: "i1"}, "vm1", "i1", ""},
		{Host{ID: "vm1", Install: "i1"}, "vm1", "I1", WrongHost},
		{Host{ID: "vm1", Install: "i1"}, "vm1", "", WrongHost},
		{Host{ID: "vm1"}, "vm1", "i1", ""},
		{Host{ID: below + "/*", Install: "i1"}, below + "/web1", "i2", WrongHost},
	} {
		f := here
		f.Host, f.Install = c.host, c.inst
		_, err := AdmitPolicy(State{}, verified(policyDoc(func(p *Policy) { p.Host = c.doc })), trustDoc(), f)
		if CodeOf(err) != c.want {
			t.Errorf("policy for %+v on %q, installation %q: got %v, want %q", c.doc, c.host, c.inst, err, c.want)
		}
		if strings.HasSuffix(c.doc.ID, "*") {
			continue // refused in grants by the parser
		}
		_, err = AdmitGrants(State{}, verified(grantsDoc(func(g *Grants) { g.Host = c.doc })), trustDoc(), policyDoc(), f)
		if CodeOf(err) != c.want {
			t.Errorf("grants for %+v on %q, installation %q: got %v, want %q", c.doc, c.host, c.inst, err, c.want)
		}
	}
}

// Realms are compared exactly: a realm is no host name.
func TestRealm(t *testing.T) {
	for name, want := range map[string]Code{realm: "", "Acme": WrongRealm, "acme2": WrongRealm, "acm": WrongRealm} {
		_, err := AdmitPolicy(State{}, verified(policyDoc(func(p *Policy) { p.Realm = name })), trustDoc(), here)
		wantCode(t, err, want)
		_, err = AdmitGrants(State{}, verified(grantsDoc(func(g *Grants) { g.Realm = name })), trustDoc(), policyDoc(), here)
		wantCode(t, err, want)
	}
}

// The order of checks is part of the format: two implementations name the
// same code for a document with two faults.
func TestOrderOfChecks(t *testing.T) {
	g := grantsDoc(func(g *Grants) {
		g.Realm, g.Host.ID, g.Version, g.Issued, g.Expires, g.PolicyVersion = "other", "vm9", 1, noon.Add(-2*day), noon.Add(-day), 9
	})
	s := State{Grants: Mark{Epoch: 1, Version: 5}}
	for _, mend := range []struct {
		want Code
		fix  func()
	}{
		{WrongRealm, func() { g.Realm = realm }},
		{WrongHost, func() { g.Host.ID = hostID }},
		{Rollback, func() { g.Version = 6 }},
		{Expired, func() { g.Expires = noon.Add(day) }},
		{StalePolicy, func() { g.PolicyVersion = 1 }},
		{"", func() {}},
	} {
		_, err := AdmitGrants(s, verified(g), trustDoc(), policyDoc(), here)
		wantCode(t, err, mend.want)
		mend.fix()
	}
}

// What nobody signed permits nothing.
func TestZeroVerified(t *testing.T) {
	if _, err := AdmitPolicy(State{}, Verified[Policy]{}, trustDoc(), here); err == nil {
		t.Error("the zero policy is admitted")
	}
	if _, err := AdmitGrants(State{}, Verified[Grants]{}, trustDoc(), policyDoc(), here); err == nil {
		t.Error("the zero grants are admitted")
	}
	for name, open := range map[string]func() error{
		"policy": func() error { _, err := OpenPolicy(seal(policyDoc(), policyA, policyB), Trust{}); return err },
		"grants": func() error { _, err := OpenGrants(seal(grantsDoc(), grantA), Trust{}); return err },
		"trust":  func() error { _, err := OpenTrust(seal(trustDoc(), rootA, rootB), Trust{}); return err },
	} {
		if open() == nil {
			t.Errorf("%s: opens under the zero trust document", name)
		}
	}
}

// A lowered epoch would let documents under the lost key count again.
func TestTrustKeepsTheEpochs(t *testing.T) {
	for _, role := range []int{1, 2} {
		t.Run(string(trustDoc().Roles[role].Name), func(t *testing.T) { keepsTheEpoch(t, role) })
	}
}

func keepsTheEpoch(t *testing.T, role int) {
	current := trustDoc(func(d *Trust) { d.Roles[role].Epoch = 5 })
	state := State{Trust: Mark{Version: current.Version, Digest: sha(current.Encode())}}
	for epoch, want := range map[uint64]Code{4: Rollback, 5: "", 6: ""} {
		next := trustDoc(func(d *Trust) { d.Version, d.Roles[role].Epoch = current.Version+1, epoch })
		v := Verified[Trust]{doc: next, digest: sha(next.Encode())}
		if _, err := AdmitTrust(state, v, current, here); CodeOf(err) != want {
			t.Errorf("epoch %d after 5: %v, want %q", epoch, err, want)
		}
	}
}
