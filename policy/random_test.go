package policy

import (
	"crypto"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random documents; 0 picks one")

// random returns a source of documents, and says how to get the same again.
func random(t *testing.T) *rand.Rand {
	t.Helper()
	n := *seedFlag
	if n == 0 {
		n = rand.Uint64()
	}
	t.Logf("again with -seed %d", n)
	return rand.New(rand.NewPCG(n, 0))
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

// some returns n things, n at most limit.
func some[T any](r *rand.Rand, limit int, thing func() T) []T {
	list := make([]T, r.IntN(limit+1))
	for i := range list {
		list[i] = thing()
	}
	return list
}

// A small world in which things meet often: sources within a /29 and a /125,
// ports up to 12, times within a few seconds of a bound.

func randomPrefix(r *rand.Rand) netip.Prefix {
	addr, bits, short := netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(8))}), 32, []int{0, 1, 24, 29, 30, 31, 32}
	if r.IntN(2) == 0 {
		addr, bits, short = netip.AddrFrom16([16]byte{0: 0x20, 1: 1, 15: byte(r.IntN(8))}), 128, []int{0, 1, 64, 125, 126, 127, 128}
	}
	p, err := addr.Prefix(min(bits, pick(r, short...)))
	if err != nil {
		panic(err)
	}
	return p
}

func randomSources(r *rand.Rand) []netip.Prefix {
	return append(some(r, 2, func() netip.Prefix { return randomPrefix(r) }), randomPrefix(r))
}

func around(r *rand.Rand, d time.Duration) time.Duration { return d + time.Duration(r.IntN(3)-1)*sec }

func randomPolicy(r *rand.Rand) Policy {
	p := policyDoc()
	p.Version, p.Epoch = 1+r.Uint64N(3), r.Uint64N(3)
	p.Expires = here.Now.Add(around(r, pick(r, 0, day)))
	p.Issued = p.Expires.Add(-day)
	p.NarrowestPrefix4, p.NarrowestPrefix6 = pick(r, 0, 24, 30, 32), pick(r, 0, 64, 126, 128)
	p.MaxGrantsAge, p.MaxUnattended = pick(r, sec, time.Hour, maxDuration), pick(r, 0, time.Minute)
	p.ExemptSources = some(r, 2, func() netip.Prefix { return randomPrefix(r) })
	p.Ports = nil
	for n := uint16(1 + r.IntN(3)); n < 12; n += uint16(1 + r.IntN(3)) {
		end := n + uint16(r.IntN(3))
		p.Ports = append(p.Ports, Port{Number: n, EndNumber: end, Protocol: pick(r, TCP, UDP, Both), AllowedSources: randomSources(r),
			MaxRequestAccessDuration: pick(r, sec, time.Hour, 3*time.Hour), SessionsAtEnd: pick(r, Keep, Cut)})
		n = end
	}
	r.Shuffle(len(p.Ports), func(i, j int) { p.Ports[i], p.Ports[j] = p.Ports[j], p.Ports[i] })
	return p
}

func randomGrants(r *rand.Rand) Grants {
	g := grantsDoc()
	g.Realm, g.Host.ID, g.Host.Install = pick(r, realm, realm, realm, "other"), pick(r, hostID, hostID, strings.ToUpper(hostID), hostID+"0"), pick(r, "", install, "other")
	g.Version, g.Epoch, g.PolicyVersion = 1+r.Uint64N(4), 1+r.Uint64N(3), r.Uint64N(4)
	g.Issued = here.Now.Add(around(r, pick(r, 0, Skew, -day)))
	g.Expires = g.Issued.Add(day)
	i := 0
	g.Grants = some(r, 3, func() Grant {
		i++
		return grant(fmt.Sprint("g", i), func(x *Grant) {
			x.Number, x.Sources = uint16(1+r.IntN(13)), randomSources(r)
			x.Start = here.Now.Add(around(r, pick(r, 0, -time.Hour, time.Hour)))
			x.End = x.Start.Add(max(sec, around(r, pick(r, sec, time.Hour, 3*time.Hour))))
			x.Requestor, x.Justification = pick(r, "alice", "böb\n", "=1+1"), pick(r, "", "\u202e", `"\`)
		})
	})
	return g
}

func randomTrust(r *rand.Rand) Trust {
	signers := []string{"root-a", "root-b", "root-new", "policy-a", "policy-b", "grant-a", "grant-new", "mallory"}
	r.Shuffle(len(signers), func(i, j int) { signers[i], signers[j] = signers[j], signers[i] })
	t := Trust{Header: header(1+r.Uint64N(MaxVersion), time.Duration(1+r.IntN(1000))*sec)}
	keys := make([]KeyID, len(signers))
	for i, name := range signers {
		t.Keys = append(t.Keys, describe(testKeys[name]))
		keys[i] = t.Keys[i].ID
	}
	role := func(name Role, keys []KeyID) RoleKeys {
		return RoleKeys{Name: name, Keys: keys, Threshold: 1 + r.IntN(len(keys))}
	}
	t.Roles = []RoleKeys{role(RoleRoot, keys[:3]), role(RolePolicy, keys[2:5]), role(RoleGrant, keys[5:7])} // root and policy share one
	t.Roles[1].Epoch, t.Roles[2].Epoch = r.Uint64N(MaxVersion), 1+r.Uint64N(MaxVersion)
	r.Shuffle(3, func(i, j int) { t.Roles[i], t.Roles[j] = t.Roles[j], t.Roles[i] })
	return t
}

// bits spells a prefix in ones and zeros, after its family. A prefix contains
// another if the other's bits begin with its own.
func bits(p netip.Prefix) string {
	var b strings.Builder
	fmt.Fprint(&b, p.Addr().BitLen(), ":")
	for i := range p.Bits() {
		raw := p.Addr().AsSlice()
		b.WriteByte('0' + raw[i/8]>>(7-i%8)&1)
	}
	return b.String()
}

// inside is the slow oracle of a single grant: it counts ports one by one,
// seconds as integers and addresses as strings of bits.
func inside(p Policy, g Grant) bool {
	for _, q := range p.Ports {
		for n := int(q.Number); n <= int(q.EndNumber); n++ {
			if n != int(g.Number) {
				continue
			}
			if g.End.Unix()-g.Start.Unix() > int64(q.MaxRequestAccessDuration)/int64(sec) {
				return false
			}
			for _, source := range g.Sources {
				shortest := map[int]int{32: p.NarrowestPrefix4, 128: p.NarrowestPrefix6}[source.Addr().BitLen()]
				contained := false
				for _, allowed := range q.AllowedSources {
					contained = contained || strings.HasPrefix(bits(source), bits(allowed))
				}
				if !contained || len(strings.SplitN(bits(source), ":", 2)[1]) < shortest {
					return false
				}
			}
			return true
		}
	}
	return false
}

func TestEvaluateAgainstOracle(t *testing.T) {
	r, trust := random(t), trustDoc()
	count := map[bool]int{}
	for count[true]+count[false] < 30_000 {
		p, g := randomPolicy(r), randomGrants(r)
		d := Evaluate(State{}, trust, p, g, here)
		if len(d.Verdicts) != len(g.Grants) {
			t.Fatalf("%d verdicts for %d grants", len(d.Verdicts), len(g.Grants))
		}
		if over := p.Expires.Unix() <= here.Now.Unix(); (d.Blocked != nil) != over {
			t.Fatalf("blocked: %v, and the policy ends at %s", d.Blocked, p.Expires)
		}
		for i, v := range d.Verdicts {
			want := inside(p, g.Grants[i])
			if (v.Refusal == nil) != want || !reflect.DeepEqual(v.Grant, g.Grants[i]) {
				t.Fatalf("got %v, the oracle says inside is %t:\n%+v\n%+v", v.Refusal, want, g.Grants[i], p)
			}
			now := here.Now.Unix()
			if active := g.Grants[i].Start.Unix() <= now && now < g.Grants[i].End.Unix(); (v.Phase == PhaseActive) != active {
				t.Fatalf("phase %s of %+v", v.Phase, g.Grants[i])
			}
			count[want]++
		}
	}
	// A world in which one answer hardly occurs would test nothing.
	if count[true] < 1_000 || count[false] < 1_000 {
		t.Errorf("%d grants inside, %d outside", count[true], count[false])
	}
}

func TestAdmitAgainstOracle(t *testing.T) {
	r := random(t)
	count := map[bool]int{}
	for range 30_000 {
		g, trust, p := randomGrants(r), trustDoc(), randomPolicy(r)
		trust.Roles[2].Epoch = 1 + r.Uint64N(3)
		before := State{Floor: here.Now.Add(around(r, pick(r, 0, Skew)))}
		digest := sha(g.Encode())
		if r.IntN(3) > 0 {
			before.Grants = Mark{1 + r.Uint64N(3), 1 + r.Uint64N(4), pick(r, digest, Digest{1})}
		}

		now, m := here.Now.Unix(), before.Grants
		order := func(epoch, version uint64) uint64 { return epoch*1000 + version } // no version here reaches 1000
		fresh := order(g.Epoch, g.Version) > order(m.Epoch, m.Version)
		again := order(g.Epoch, g.Version) == order(m.Epoch, m.Version) && digest == m.Digest
		want := g.Realm == "acme" &&
			strings.EqualFold(g.Host.ID, hostID) &&
			slices.Contains([]string{"", install}, g.Host.Install) &&
			g.Epoch == trust.Roles[2].Epoch &&
			(fresh || again) &&
			g.Issued.Unix() <= now+120 && now < g.Expires.Unix() &&
			now >= before.Floor.Unix()-120 && now >= here.Built.Unix()-120 &&
			g.PolicyVersion <= p.Version

		after, err := AdmitGrants(before, verified(g), trust, p, here)
		if (err == nil) != want {
			t.Fatalf("got %v, the oracle says %t:\n%+v\n%+v", err, want, before, g)
		}
		wantState := before
		if want {
			wantState.Grants = Mark{g.Epoch, g.Version, digest}
			wantState.Floor = time.Unix(max(before.Floor.Unix(), g.Issued.Unix()), 0).UTC()
		}
		if after != wantState {
			t.Fatalf("got state %+v, want %+v", after, wantState)
		}
		count[want]++
	}
	if count[true] < 200 {
		t.Errorf("%d lists admitted of %d", count[true], count[true]+count[false])
	}
}

// What is encoded is read back as the same document, signed and opened.
func TestRoundTrip(t *testing.T) {
	r, trust := random(t), trustDoc()
	for i := range 1_000 {
		for _, doc := range []interface{ Encode() []byte }{randomTrust(r), randomPolicy(r), randomGrants(r)} {
			got := parses(t, typeOf(doc), doc.Encode())
			if !reflect.DeepEqual(got, doc) {
				t.Fatalf("got  %+v\nwant %+v", got, doc)
			}
			if again := got.(interface{ Encode() []byte }).Encode(); string(again) != string(doc.Encode()) {
				t.Fatalf("encodes once as\n%s\nand then as\n%s", doc.Encode(), again)
			}
		}
		if i%20 > 0 {
			continue // signatures are slow
		}
		roundTripSigned(t, randomPolicy(r), trust, OpenPolicy, policyA, policyB)
		roundTripSigned(t, randomGrants(r), trust, OpenGrants, grantA)
		d := randomTrust(r)
		d.Roles = trust.Roles
		d.Keys = trust.Keys
		roundTripSigned(t, d, trust, OpenTrust, rootB, rootA)
	}
}

func roundTripSigned[D interface {
	Trust | Policy | Grants
	Encode() []byte
}](t *testing.T, doc D, trust Trust, open func([]byte, Trust) (Verified[D], error), signers ...crypto.Signer) {
	t.Helper()
	e := Envelope{Type: typeOf(doc), Payload: doc.Encode()}
	for _, s := range signers {
		if err := e.Sign(s); err != nil {
			t.Fatal(err)
		}
	}
	parsed, err := ParseEnvelope(e.Encode())
	if err != nil || !reflect.DeepEqual(parsed, e) {
		t.Fatalf("got %+v, %v, want %+v", parsed, err, e)
	}
	v, err := open(e.Encode(), trust)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(v.Document(), doc) || v.Digest() != sha(e.Payload) || v.Digest() != parsed.Digest() || !slices.Equal(v.Signers(), ids(signers...)) {
		t.Fatalf("got %+v by %s, want %+v", v.Document(), v.Signers(), doc)
	}
}
