package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/store/storetest"
)

// start is the time of the tests.
var start = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// clock is a time that tests move.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time          { return start.Add(time.Duration(c.offset.Load())) }
func (c *clock) forward(d time.Duration) { c.offset.Add(int64(d)) }

// key is a key of an issuer.
type key struct {
	id        string
	algorithm jose.SignatureAlgorithm
	private   crypto.Signer
}

// keys are made once: RSA keys take their time.
var keys = sync.OnceValue(func() map[string]key {
	must := func(k crypto.Signer, err error) crypto.Signer {
		if err != nil {
			panic(err)
		}
		return k
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	return map[string]key{
		"rsa":     {"rsa", jose.RS256, must(rsa.GenerateKey(rand.Reader, 2048))},
		"pss":     {"pss", jose.PS512, must(rsa.GenerateKey(rand.Reader, 2048))},
		"ec":      {"ec", jose.ES256, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))},
		"ed":      {"ed", jose.EdDSA, must(ed, err)},
		"another": {"another", jose.ES256, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))},
		"thief":   {"ec", jose.ES256, must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}, // with the id of another
	}
})

// issuer is an OpenID Connect issuer on this machine, over TLS.
type issuer struct {
	*httptest.Server
	ca    string // file
	asked atomic.Int32

	mu    sync.Mutex
	keys  []any // of the key set
	calls string
	down  bool
}

func newIssuer(t *testing.T, of ...string) *issuer {
	t.Helper()
	i := &issuer{}
	i.publish(of...)
	i.Server = httptest.NewTLSServer(i)
	t.Cleanup(i.Close)
	i.ca = filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(i.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

// publish makes these the issuer's keys.
func (i *issuer) publish(of ...string) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = []any{map[string]string{"kty": "of the future", "kid": "future"}}
	for _, name := range of {
		k := keys()[name]
		i.keys = append(i.keys, jose.JSONWebKey{Key: k.private.Public(), KeyID: k.id, Algorithm: string(k.algorithm), Use: "sig"})
	}
}

func (i *issuer) set(f func()) {
	i.mu.Lock()
	defer i.mu.Unlock()
	f()
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	switch {
	case i.down:
		http.Error(w, "down", http.StatusServiceUnavailable)
	case r.URL.Path == openidConfig:
		i.asked.Add(1)
		name := i.URL
		if i.calls != "" {
			name = i.calls
		}
		json.NewEncoder(w).Encode(map[string]any{"issuer": name, "jwks_uri": i.URL + "/keys", "id_token_signing_alg_values_supported": []string{"none", "HS256"}})
	case r.URL.Path == "/keys":
		json.NewEncoder(w).Encode(map[string]any{"keys": i.keys})
	default:
		http.NotFound(w, r)
	}
}

// config is the issuer as one trusts it.
func (i *issuer) config() Issuer {
	return Issuer{URL: i.URL, Audience: []string{"api://jitgate", "jitgate-cli"}, CAFile: i.ca}
}

// claimed are good claims, changed as said; nil takes one out.
func (i *issuer) claimed(changes map[string]any) map[string]any {
	c := map[string]any{"iss": i.URL, "sub": "alice", "aud": "api://jitgate", "exp": start.Add(time.Hour).Unix(), "nbf": start.Unix(), "iat": start.Unix()}
	maps.Copy(c, changes)
	maps.DeleteFunc(c, func(_ string, v any) bool { return v == nil })
	return c
}

// sign signs claims with a key.
func sign(t testing.TB, name string, claims any) string {
	t.Helper()
	k := keys()[name]
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: k.algorithm, Key: jose.JSONWebKey{Key: k.private, KeyID: k.id}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := json.Marshal(claims)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := s.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	token, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// refusal is what Authenticate refuses a token with.
func refusal(t *testing.T, id *Identity, token string) *control.Error {
	t.Helper()
	c, err := id.Authenticate(t.Context(), token)
	if err == nil {
		t.Fatalf("taken as %+v", c)
	}
	refused := control.AsError(err)
	if refused == nil {
		t.Fatalf("not a refusal: %v", err)
	}
	if c.ID != "" || c.Rights != nil {
		t.Errorf("refused, and yet a caller: %+v", c)
	}
	return refused
}

// put writes into a store.
func put(t *testing.T, s control.Store, f func(control.Tx) error) {
	t.Helper()
	if err := s.Update(t.Context(), f); err != nil {
		t.Fatal(err)
	}
}

func TestIssuersTokens(t *testing.T) {
	here := newIssuer(t, "rsa", "pss", "ec", "ed")
	store := storetest.SQLite(t)
	put(t, store, func(tx control.Tx) error {
		for _, a := range []control.Assignment{
			{Principal: here.URL + "#alice", Role: "reader", Scope: "/subscriptions/s1"},
			{Principal: "group:ops", Role: "Requesters", Scope: "/subscriptions/s2"},
			{Principal: "group:ops", Role: "no such role", Scope: control.Everywhere},
			{Principal: "group:others", Role: "Owner", Scope: control.Everywhere},
			{Principal: "role:Admins", Role: "Contributor", Scope: "/subscriptions/s3"},
		} {
			if err := tx.PutAssignment(a); err != nil {
				return err
			}
		}
		return tx.PutRole(control.Role{Name: "Requesters", Actions: []string{string(control.ActionInitiate)}})
	})
	c := &clock{}
	id, err := New(Config{Store: store, OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"rsa", "pss", "ec", "ed"} {
		for _, aud := range []any{"api://jitgate", []string{"x", "jitgate-cli"}} {
			who, err := id.Authenticate(t.Context(), sign(t, k, here.claimed(map[string]any{"aud": aud, "groups": []string{"ops"}, "roles": "Admins", "email": "alice@example.com"})))
			if err != nil {
				t.Fatalf("%s: %v", k, err)
			}
			if who.ID != here.URL+"#alice" || who.Name != "alice@example.com" || who.Type != control.TypeUser || who.Limits != nil {
				t.Errorf("%s: %+v", k, who)
			}
			for _, right := range []struct {
				action control.Action
				scope  control.Scope
				may    bool
			}{
				{control.ActionRead, "/subscriptions/s1", true}, {control.ActionInitiate, "/subscriptions/s1", false},
				{control.ActionInitiate, "/subscriptions/s2", true}, {control.ActionRead, "/subscriptions/s2", false},
				{control.ActionWrite, "/subscriptions/s3", true}, {control.ActionRoles, "/subscriptions/s3", false},
				{control.ActionRead, control.Everywhere, false},
			} {
				if who.May(right.action, right.scope) != right.may {
					t.Errorf("%s: may %s at %s: %v", k, right.action, right.scope, !right.may)
				}
			}
		}
	}
	good := sign(t, "ec", here.claimed(nil))
	if _, err := id.Authenticate(t.Context(), good); err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(good, ".")
	encode := func(v any) string {
		b, _ := json.Marshal(v)
		return base64.RawURLEncoding.EncodeToString(b)
	}
	unsigned := func(alg string) string {
		return encode(map[string]string{"alg": alg, "kid": "ec"}) + "." + parts[1] + "."
	}
	public, _ := keys()["rsa"].private.Public().(*rsa.PublicKey)
	secret := jose.SigningKey{Algorithm: jose.HS256, Key: public.N.Bytes()}
	s, err := jose.NewSigner(secret, (&jose.SignerOptions{}).WithHeader("kid", "rsa"))
	if err != nil {
		t.Fatal(err)
	}
	mac, _ := s.Sign([]byte(`{"iss":"` + here.URL + `"}`))
	confused, _ := mac.CompactSerialize()
	pss := keys()["rsa"] // the key set says it is for RS256
	pss.algorithm = jose.PS256
	other, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.PS256, Key: jose.JSONWebKey{Key: pss.private, KeyID: "rsa"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	payload, _ := json.Marshal(here.claimed(nil))
	wrong, _ := other.Sign(payload)
	wrongAlgorithm, _ := wrong.CompactSerialize()
	flattened := wrong.FullSerialize()
	for name, token := range map[string]string{
		"none":                 "",
		"rubbish":              "rubbish",
		"dots":                 "..",
		"a space":              good + " ",
		"unsigned":             unsigned("none"),
		"unsigned NONE":        unsigned("NoNe") + "AAAA",
		"no signature":         parts[0] + "." + parts[1] + ".AAAA",
		"other claims":         parts[0] + "." + encode(here.claimed(map[string]any{"sub": "bob"})) + "." + parts[2],
		"public key as secret": confused,
		"wrong algorithm":      wrongAlgorithm,
		"as JSON":              flattened,
		"a stranger's key":     sign(t, "another", here.claimed(nil)),
		"a thief's key":        sign(t, "thief", here.claimed(nil)),
		"another issuer":       sign(t, "ec", here.claimed(map[string]any{"iss": "https://evil.example"})),
		"no issuer":            sign(t, "ec", here.claimed(map[string]any{"iss": nil})),
		"issuer with a slash":  sign(t, "ec", here.claimed(map[string]any{"iss": here.URL + "/"})),
		"another audience":     sign(t, "ec", here.claimed(map[string]any{"aud": "api://other"})),
		"no audience":          sign(t, "ec", here.claimed(map[string]any{"aud": nil})),
		"expired":              sign(t, "ec", here.claimed(map[string]any{"exp": start.Add(-skew).Unix()})),
		"no end":               sign(t, "ec", here.claimed(map[string]any{"exp": nil})),
		"not yet":              sign(t, "ec", here.claimed(map[string]any{"nbf": start.Add(skew + time.Second).Unix()})),
		"nbf is no time":       sign(t, "ec", here.claimed(map[string]any{"nbf": "soon"})),
		"no subject":           sign(t, "ec", here.claimed(map[string]any{"sub": nil})),
		"subject of two lines": sign(t, "ec", here.claimed(map[string]any{"sub": "alice\nbob"})),
		"claims are a list":    sign(t, "ec", []string{"x"}),
		"huge":                 strings.Repeat("a", maxToken+1),
		"huge and signed":      sign(t, "ec", here.claimed(map[string]any{"x": strings.Repeat("a", maxToken)})),
	} {
		t.Run(name, func(t *testing.T) {
			if r := refusal(t, id, token); r.Kind != control.Unknown || r.Code != "InvalidAuthenticationToken" || !strings.HasSuffix(r.Message, ".") || len(r.Message) > 300 {
				t.Errorf("%+v", r)
			}
		})
	}
	for name, changes := range map[string]map[string]any{
		"just expired": {"exp": start.Add(-skew + time.Second).Unix()},
		"almost valid": {"nbf": start.Add(skew).Unix()},
		"no nbf":       {"nbf": nil},
	} {
		if _, err := id.Authenticate(t.Context(), sign(t, "ec", here.claimed(changes))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClaims(t *testing.T) {
	const tid, oid = "11111111-AAAA-2222-3333-444444444444", "55555555-6666-7777-8888-999999999999"
	entra := map[string]any{"iss": "i", "sub": "pairwise", "tid": tid, "oid": oid}
	for name, test := range map[string]struct {
		issuer Issuer
		claims map[string]any
		want   person
		err    bool
	}{
		"Entra ID, a person": {
			Issuer{URL: "https://e", Entra: true},
			map[string]any{"scp": "access", "preferred_username": "alice@contoso.com", "email": "a@c", "name": "Alice", "groups": []string{"g2", "g1", "g1"}, "roles": []string{"r"}},
			person{"https://e#" + strings.ToLower(tid) + "/" + oid, "alice@contoso.com", control.TypeUser, []string{"group:g1", "group:g2", "role:r"}}, false,
		},
		"Entra ID, version 1": {
			Issuer{URL: "https://e", Entra: true}, map[string]any{"scp": "access", "upn": "alice@contoso.com", "unique_name": "x"},
			person{"https://e#" + strings.ToLower(tid) + "/" + oid, "alice@contoso.com", control.TypeUser, nil}, false,
		},
		"Entra ID, an application": {
			Issuer{URL: "https://e", Entra: true}, map[string]any{"idtyp": "app", "scp": "access", "app_displayname": "deployer"},
			person{"https://e#" + strings.ToLower(tid) + "/" + oid, "deployer", control.TypeApplication, nil}, false,
		},
		"Entra ID, an application without idtyp": {
			Issuer{URL: "https://e", Entra: true}, nil,
			person{"https://e#" + strings.ToLower(tid) + "/" + oid, strings.ToLower(tid) + "/" + oid, control.TypeApplication, nil}, false,
		},
		"Entra ID without an object": {Issuer{URL: "https://e", Entra: true}, map[string]any{"oid": nil}, person{}, true},
		"Entra ID without a tenant":  {Issuer{URL: "https://e", Entra: true}, map[string]any{"tid": nil}, person{}, true},
		"allowed tenant": {
			Issuer{URL: "https://e", Entra: true, AllowedTenants: []string{"x", strings.ToLower(tid)}}, map[string]any{"scp": "x", "name": "A"},
			person{"https://e#" + strings.ToLower(tid) + "/" + oid, "A", control.TypeUser, nil}, false,
		},
		"other tenant": {Issuer{URL: "https://e", Entra: true, AllowedTenants: []string{"x"}}, nil, person{}, true},
		"elsewhere oid means nothing": {
			Issuer{URL: "https://o"}, map[string]any{"email": "x@y", "email_verified": false, "name": "Bob"},
			person{"https://o#pairwise", "Bob", control.TypeUser, nil}, false,
		},
		"verified as a string": {
			Issuer{URL: "https://o"}, map[string]any{"email": "x@y", "email_verified": "false"},
			person{"https://o#pairwise", "pairwise", control.TypeUser, nil}, false,
		},
		"claims of one's own": {
			Issuer{URL: "https://o", NameClaim: "nick", GroupsClaim: "https://o/groups", GroupPrefix: "corp/"},
			map[string]any{"nick": "b\x1b[0mob\n", "groups": "no", "https://o/groups": []string{"a", ""}},
			person{"https://o#pairwise", "b[0mob", control.TypeUser, []string{"group:corp/a"}}, false,
		},
		"a client of its own": {
			Issuer{URL: "https://o"}, map[string]any{"client_id": "pairwise"},
			person{"https://o#pairwise", "pairwise", control.TypeApplication, nil}, false,
		},
		"groups of no form": {
			Issuer{URL: "https://o"}, map[string]any{"groups": map[string]any{"a": 1}, "roles": []any{1, 2}},
			person{"https://o#pairwise", "pairwise", control.TypeUser, nil}, false,
		},
	} {
		all := maps.Clone(entra)
		maps.Copy(all, test.claims)
		maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
		text, _ := json.Marshal(all)
		var c claims
		if err := json.Unmarshal(text, &c); err != nil {
			t.Fatal(err)
		}
		got, err := test.issuer.person(c)
		if (err != nil) != test.err || fmt.Sprint(got) != fmt.Sprint(test.want) {
			t.Errorf("%s: %+v, %v; want %+v", name, got, err, test.want)
		}
	}
	for url, want := range map[string]bool{"https://login.microsoftonline.com/t/v2.0": true, "https://sts.windows.net/t/": true,
		"https://login.microsoftonline.com.evil.example/": false, "https://evil.example/login.microsoftonline.com": false} {
		if isMicrosoft(url) != want {
			t.Errorf("%s: %v", url, !want)
		}
	}
}

// An issuer's keys change, and the issuer is away for a while.
func TestRotationAndOutage(t *testing.T) {
	here := newIssuer(t, "rsa")
	here.set(func() { here.down = true })
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatalf("an issuer that is down stops the start: %v", err)
	}
	long := map[string]any{"exp": start.Add(1000 * time.Hour).Unix()}
	first, second := sign(t, "rsa", here.claimed(long)), sign(t, "ec", here.claimed(long))
	taken := func(what, token string, want bool) {
		t.Helper()
		if _, err := id.Authenticate(t.Context(), token); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	if r := refusal(t, id, first); r.Kind != control.Unavailable {
		t.Errorf("nothing is known: %+v", r)
	}
	here.set(func() { here.down = false })
	taken("asked again too soon", first, false)
	c.forward(askAgain)
	taken("the issuer is back", first, true)

	asked := here.asked.Load()
	for range 50 { // whoever sends ids of keys that are not there does not make us ask
		taken("unknown key", second, false)
	}
	if n := here.asked.Load(); n != asked {
		t.Errorf("asked %d times for unknown keys", n-asked)
	}
	if r := refusal(t, id, second); r.Kind != control.Unknown {
		t.Errorf("unknown key: %+v", r)
	}
	here.publish("rsa", "ec")
	c.forward(askAgain)
	taken("a key that came", second, true)

	here.publish("ec")
	c.forward(keysFresh)
	taken("the key that is due", first, true) // it is asked meanwhile
	settle(t, id)
	taken("a key that was withdrawn", first, false)
	taken("the one that stayed", second, true)

	here.set(func() { here.down = true })
	c.forward(keysUsable - time.Second)
	taken("while the issuer is away", second, true)
	settle(t, id)
	taken("and again", second, true)
	c.forward(time.Second)
	if r := refusal(t, id, second); r.Kind != control.Unavailable {
		t.Errorf("after a day: %+v", r)
	}
	settle(t, id)
	here.set(func() { here.down = false })
	c.forward(askAgain)
	taken("back after a day", second, true)

	here.set(func() { here.calls = "https://evil.example" })
	c.forward(keysUsable)
	if r := refusal(t, id, second); r.Kind != control.Unavailable {
		t.Errorf("it calls itself otherwise: %+v", r)
	}
}

// settle waits until no issuer is being asked.
func settle(t *testing.T, id *Identity) {
	t.Helper()
	for _, p := range id.issuers {
		p.mu.Lock()
		loading := p.loading
		p.mu.Unlock()
		if loading != nil {
			select {
			case <-loading:
			case <-time.After(askingTakes + time.Second):
				t.Fatal("still asking")
			}
		}
	}
}

// Many who come at once while nothing is known ask the issuer once.
func TestIssuerIsAskedOnce(t *testing.T) {
	here := newIssuer(t, "ec")
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	token := sign(t, "ec", here.claimed(nil))
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := id.Authenticate(context.Background(), token); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := here.asked.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
}

// The issuer's own server must be who it says.
func TestIssuerOfAnotherCA(t *testing.T) {
	here, other := newIssuer(t, "ec"), newIssuer(t, "ec")
	config := here.config()
	config.CAFile = ""
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), OIDC: []Issuer{config, other.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if r := refusal(t, id, sign(t, "ec", here.claimed(nil))); r.Kind != control.Unavailable {
		t.Errorf("%+v", r)
	}
	if _, err := id.Authenticate(t.Context(), sign(t, "ec", other.claimed(nil))); err != nil {
		t.Errorf("the other issuer's people: %v", err)
	}
}

func TestWeakKeys(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		key  jose.JSONWebKey
		want bool
	}{
		"good":       {jose.JSONWebKey{Key: keys()["rsa"].private.Public()}, true},
		"for both":   {jose.JSONWebKey{Key: keys()["ec"].private.Public(), Use: "sig"}, true},
		"small":      {jose.JSONWebKey{Key: small.Public()}, false},
		"encryption": {jose.JSONWebKey{Key: keys()["rsa"].private.Public(), Use: "enc"}, false},
		"symmetric":  {jose.JSONWebKey{Key: []byte("secret")}, false},
		"private":    {jose.JSONWebKey{Key: keys()["rsa"].private}, false},
	} {
		if verifies(test.key) != test.want {
			t.Errorf("%s: %v", name, !test.want)
		}
	}
}

// Of an issuer that publishes nothing a token may be signed with, nothing is known.
func TestIssuerWithoutGoodKeys(t *testing.T) {
	here := newIssuer(t)
	public := keys()["ec"].private.Public()
	here.set(func() { here.keys = append(here.keys, jose.JSONWebKey{Key: public, KeyID: "ec", Use: "enc"}) })
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if r := refusal(t, id, sign(t, "ec", here.claimed(nil))); r.Kind != control.Unavailable {
		t.Errorf("%+v", r)
	}
}

// The one message says what is wrong.
func TestRefusalsSayWhy(t *testing.T) {
	here := newIssuer(t, "ec")
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	for words, changes := range map[string]map[string]any{
		"no 'exp'":         {"exp": nil},
		"expired at 2026-": {"exp": start.Add(-time.Hour).Unix()},
		"another audience": {"aud": "x"},
		"not valid yet":    {"nbf": start.Add(time.Hour).Unix()},
		"no 'sub'":         {"sub": nil},
	} {
		if r := refusal(t, id, sign(t, "ec", here.claimed(changes))); !strings.Contains(r.Message, words) {
			t.Errorf("%q does not say %q", r.Message, words)
		}
	}
}

func TestBadConfig(t *testing.T) {
	store := storetest.SQLite(t)
	good := Issuer{URL: "https://i.example", Audience: []string{"a"}}
	with := func(f func(*Issuer)) Config {
		i := good
		f(&i)
		return Config{Store: store, OIDC: []Issuer{i}}
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"no store":       {},
		"negative rate":  {Store: store, Rate: -1},
		"negative burst": {Store: store, Burst: -1},
		"no URL":         with(func(i *Issuer) { i.URL = "" }),
		"not https":      with(func(i *Issuer) { i.URL = "http://i.example" }),
		"a query":        with(func(i *Issuer) { i.URL += "?x" }),
		"discovery":      with(func(i *Issuer) { i.Discovery = "http://i.example" }),
		"no audience":    with(func(i *Issuer) { i.Audience = nil }),
		"an empty one":   with(func(i *Issuer) { i.Audience = []string{"a", ""} }),
		"no such CA":     with(func(i *Issuer) { i.CAFile = empty + "x" }),
		"no certificate": with(func(i *Issuer) { i.CAFile = empty }),
		"twice the same": {Store: store, OIDC: []Issuer{good, good}},
	} {
		if _, err := New(c); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if _, err := New(Config{Store: store, OIDC: []Issuer{good}}); err != nil {
		t.Error(err)
	}
}

func TestLocalTokens(t *testing.T) {
	store := storetest.SQLite(t)
	c := &clock{}
	id, err := New(Config{Store: store, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	token, hash := NewToken()
	if !strings.HasPrefix(token, "jgt_") || len(token) != 47 || len(hash) != 64 || strings.Contains(token, hash) {
		t.Errorf("token %q, hash %q", token, hash)
	}
	if again, _ := NewToken(); again == token {
		t.Error("the same token twice")
	}
	stored := control.Token{Hash: hash, ID: hash[:12], Principal: "local:alice", Name: "Alice", Created: start, Expires: start.Add(time.Hour)}
	put(t, store, func(tx control.Tx) error {
		if err := tx.PutAssignment(control.Assignment{Principal: "local:alice", Role: "Owner", Scope: "/subscriptions/s1"}); err != nil {
			return err
		}
		return tx.PutToken(stored)
	})
	who, err := id.Authenticate(t.Context(), token)
	if err != nil {
		t.Fatal(err)
	}
	if who.ID != "local:alice" || who.Name != "Alice" || who.Type != control.TypeUser || !who.May(control.ActionWrite, "/subscriptions/s1") || who.May(control.ActionRead, "/subscriptions/s2") {
		t.Errorf("%+v", who)
	}
	for name, bad := range map[string]string{"another": token[:46] + "x", "longer": token + "x", "shorter": token[:46], "the hash": hash, "prefix and hash": "jgt_" + hash, "other case": strings.ToUpper(token)} {
		if bad == token {
			bad = token[:46] + "y"
		}
		if r := refusal(t, id, bad); r.Kind != control.Unknown || r.Code != "InvalidAuthenticationToken" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	bounded := func(role string, scope control.Scope) control.Caller {
		stored.Role, stored.Scope = role, scope
		put(t, store, func(tx control.Tx) error { return tx.PutToken(stored) })
		who, err := id.Authenticate(t.Context(), token)
		if err != nil {
			t.Fatal(err)
		}
		return who
	}
	vm := control.Scope("/subscriptions/s1/resourcegroups/g")
	if who := bounded("jitrequester", vm); !who.May(control.ActionInitiate, vm) || who.May(control.ActionWrite, vm) || who.May(control.ActionInitiate, "/subscriptions/s1") {
		t.Error("bound to a role and a scope")
	}
	if who := bounded("", vm); !who.May(control.ActionWrite, vm) || who.May(control.ActionWrite, "/subscriptions/s1") || !who.Holds("Owner", vm) {
		t.Error("bound to a scope")
	}
	if who := bounded("Reader", ""); !who.May(control.ActionRead, "/subscriptions/s1") || who.May(control.ActionWrite, vm) || who.May(control.ActionRead, "/subscriptions/s2") {
		t.Error("bound to a role")
	}
	if who := bounded("gone", ""); who.May(control.ActionRead, "/subscriptions/s1") {
		t.Error("bound to a role that is gone")
	}
	c.forward(time.Hour)
	if r := refusal(t, id, token); r.Kind != control.Unknown || !strings.Contains(r.Message, "expired") {
		t.Errorf("expired: %+v", r)
	}
	stored.Expires = time.Time{}
	bounded("", "")
	stored.Revoked = true
	put(t, store, func(tx control.Tx) error { return tx.PutToken(stored) })
	if r := refusal(t, id, token); r.Kind != control.Unknown || !strings.Contains(r.Message, "revoked") {
		t.Errorf("revoked: %+v", r)
	}
}

// While the store is away nobody is let in, and nobody is told their token is bad.
func TestStoreAway(t *testing.T) {
	store := storetest.SQLite(t)
	here := newIssuer(t, "ec")
	c := &clock{}
	id, err := New(Config{Store: store, OIDC: []Issuer{here.config()}, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	local, _ := NewToken()
	for _, token := range []string{local, sign(t, "ec", here.claimed(nil))} {
		if r := refusal(t, id, token); r.Kind != control.Unavailable {
			t.Errorf("%+v", r)
		}
	}
}

func TestRates(t *testing.T) {
	c := &clock{}
	id, err := New(Config{Store: storetest.SQLite(t), Rate: 2, Burst: 3, Now: c.now})
	if err != nil {
		t.Fatal(err)
	}
	use := func(n int) (let int, last time.Duration) {
		for range n {
			if last = id.Allow("local:alice"); last == 0 {
				let++
			}
		}
		return let, last
	}
	if let, wait := use(10); let != 3 || wait != 500*time.Millisecond {
		t.Errorf("%d calls at once, then wait %v", let, wait)
	}
	if id.Allow("local:bob") != 0 {
		t.Error("one's calls count for another")
	}
	c.forward(time.Second)
	if let, _ := use(10); let != 2 {
		t.Errorf("%d calls after a second", let)
	}

	for range failureBurst {
		if id.AllowAddress(netip.MustParseAddr("2001:db8::1")) != 0 {
			t.Fatal("refused too early")
		}
	}
	for a, limited := range map[string]bool{"2001:db8::ffff:1%eth0": true, "2001:db8:0:1::1": false, "192.0.2.1": false, "::ffff:192.0.2.1": false} {
		if got := id.AllowAddress(netip.MustParseAddr(a)) != 0; got != limited {
			t.Errorf("%s: limited %v", a, got)
		}
	}
	for range failureBurst - 2 { // two are taken: the mapped address is the same
		if id.AllowAddress(netip.MustParseAddr("192.0.2.1")) != 0 {
			t.Fatal("refused too early")
		}
	}
	if id.AllowAddress(netip.MustParseAddr("::ffff:192.0.2.1")) == 0 || id.AllowAddress(netip.MustParseAddr("192.0.2.2")) != 0 {
		t.Error("IPv4 by address")
	}
	for range failureBurst {
		id.AllowAddress(netip.Addr{})
	}
	if id.AllowAddress(netip.Addr{}) == 0 {
		t.Error("without an address there is no limit")
	}
}

// A flood of keys takes no more memory than said, and frees nobody.
func TestRatesInBoundedMemory(t *testing.T) {
	now := start
	l := newLimiter[int](1, 2, 10)
	for range 5 {
		l.take(0, now)
	}
	if l.take(0, now) == 0 {
		t.Fatal("not limited")
	}
	refused := 0
	for k := range 1000 {
		if l.take(k+1, now) > 0 {
			refused++
		}
		if len(l.keys) > 10 {
			t.Fatalf("%d keys are kept", len(l.keys))
		}
	}
	if refused != 1000-9-2 {
		t.Errorf("%d refused: those without room share one allowance", refused)
	}
	if l.take(0, now) == 0 {
		t.Error("the flood freed one who is limited")
	}
	now = now.Add(10 * time.Second) // all are full, and forgotten
	if l.take(5000, now) > 0 || len(l.keys) != 1 {
		t.Errorf("%d keys are kept after a pause", len(l.keys))
	}
}

func FuzzAuthenticate(f *testing.F) {
	k := keys()["ec"]
	config := Issuer{URL: "https://i.example", Audience: []string{"a"}}
	p, err := newProvider(config, func() time.Time { return start })
	if err != nil {
		f.Fatal(err)
	}
	p.keys, p.loaded = []jose.JSONWebKey{{Key: k.private.Public(), KeyID: "ec"}}, start
	id := &Identity{issuers: map[string]*provider{config.URL: p}, now: p.now}
	good := sign(f, "ec", map[string]any{"iss": config.URL, "sub": "s", "aud": "a", "exp": start.Add(time.Hour).Unix()})
	if who, err := p.verify(f.Context(), good); err != nil || who.id != "https://i.example#s" {
		f.Fatalf("%+v, %v", who, err)
	}
	p.asked = start.Add(time.Hour) // it asks nobody
	for _, seed := range []string{good, "", ".", "..", "a.b.c", good[:len(good)-1], "e30.e30.e30", "eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2kuZXhhbXBsZSJ9.", "{}", "jgt"} {
		f.Add(seed)
	}
	parts := strings.Split(good, ".")
	f.Fuzz(func(t *testing.T, token string) {
		if strings.HasPrefix(token, control.TokenPrefix) {
			return // one look into the store
		}
		url, err := issuerOf(token)
		if err != nil {
			if r := control.AsError(err); r == nil || r.Kind != control.Unknown {
				t.Fatalf("%v", err)
			}
			return
		}
		if p := id.issuers[url]; p != nil {
			who, err := p.verify(context.Background(), token)
			if err == nil && !slices.Equal(strings.Split(token, ".")[:2], parts[:2]) {
				t.Fatalf("taken as %+v", who)
			}
			if r := control.AsError(err); err != nil && (r == nil || r.Kind != control.Unknown) {
				t.Fatalf("%v", err)
			}
		}
	})
}
