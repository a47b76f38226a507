package web

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

// issuer is a small one that does what RFC 6749 and RFC 7636 say: its codes are
// good once, for who began.
type issuer struct {
	*httptest.Server
	t     *testing.T
	site  *site
	codes map[string]url.Values // what was asked for with each
	name  string                // of its person
	down  atomic.Bool
}

const clientSecret = "only the server knows"

func newIssuer(t *testing.T, s *site) *issuer {
	t.Helper()
	i := &issuer{t: t, site: s, codes: map[string]url.Values{}, name: "Dora"}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key := jose.JSONWebKey{Key: private, KeyID: "k1", Algorithm: string(jose.ES256), Use: "sig"}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	write := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		if i.down.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		write(w, 200, map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "token_endpoint": i.URL + "/token", "authorization_endpoint": i.URL + "/authorize"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		write(w, 200, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		asked := i.codes[r.PostForm.Get("code")]
		delete(i.codes, r.PostForm.Get("code"))
		sum := sha256.Sum256([]byte(r.PostForm.Get("code_verifier")))
		if asked == nil || r.PostForm.Get("client_secret") != clientSecret || r.PostForm.Get("redirect_uri") != asked.Get("redirect_uri") || base64.RawURLEncoding.EncodeToString(sum[:]) != asked.Get("code_challenge") {
			write(w, 400, map[string]any{"error": "invalid_grant", "error_description": "<b>no</b>"})
			return
		}
		now := s.clock.Now()
		claims, err := json.Marshal(map[string]any{"iss": i.URL, "aud": "jitgate", "sub": "dora", "name": i.name, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
		if err != nil {
			t.Error(err)
		}
		signed, err := signer.Sign(claims)
		if err != nil {
			t.Error(err)
		}
		token, err := signed.CompactSerialize()
		if err != nil {
			t.Error(err)
		}
		write(w, 200, map[string]any{"access_token": token, "token_type": "Bearer", "expires_in": 3600})
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(clientSecret+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.web.Identity, err = identity.New(identity.Config{Store: s.store, Now: s.clock.Now, Rate: 10000, Burst: 10000,
		OIDC: []identity.Issuer{{URL: i.URL, Audience: []string{"jitgate"}, ClientID: "jitgate", ClientSecretFile: secret, Scopes: []string{"openid"}, CAFile: ca}}})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// send has a browser begin, and its person sign in; it returns where the issuer
// then leads the browser.
func (i *issuer) send(b *browser, next string) string {
	i.t.Helper()
	at, err := url.Parse(led(i.t, b.get("/ui/sign-in/issuer?issuer="+url.QueryEscape(i.URL)+"&next="+url.QueryEscape(next))))
	if err != nil {
		i.t.Fatal(err)
	}
	q := at.Query()
	if !strings.HasPrefix(at.String(), i.URL+"/authorize?") || q.Get("redirect_uri") != here+"/ui/callback" || q.Get("code_challenge_method") != "S256" || q.Get("client_id") != "jitgate" || q.Get("response_type") != "code" {
		i.t.Errorf("the browser is led to %s", at)
	}
	code := rand.Text()
	i.codes[code] = q
	return "/ui/callback?" + url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {i.URL}}.Encode()
}

func TestIssuer(t *testing.T) {
	s := newSite(t)
	i := newIssuer(t, s)
	if err := s.engine.Assign(t.Context(), s.admin, control.Assignment{Principal: i.URL + "#dora", Role: "Reader", Scope: control.Everywhere}); err != nil {
		t.Fatal(err)
	}
	b := s.browser()
	page := b.page("/ui/sign-in?next=%2Fui%2Frequests")
	has(t, page, "Sign in at 127.0.0.1:")
	lacks(t, page, clientSecret)
	back := i.send(b, "/ui/requests")
	cookie := b.cookies[beganCookie]
	if !cookie.Secure || !cookie.HttpOnly || cookie.SameSite != http.SameSiteLaxMode || cookie.MaxAge != 600 {
		t.Errorf("the cookie is %v", cookie)
	}
	if to := led(t, b.get(back)); to != "/ui/requests" {
		t.Errorf("signed in one is led to %s", to)
	}
	if b.cookies[beganCookie] != nil {
		t.Error("what was begun is kept after its end")
	}
	has(t, b.page("/ui/requests"), ">Dora</span>")
	// The session ends with the token, which is good for an hour and the clocks.
	s.clock.forward(time.Hour + 2*time.Minute)
	if w := b.get("/ui/requests"); w.Code != http.StatusSeeOther {
		t.Errorf("after the end of its token the session answers %d", w.Code)
	}
	// An issuer that is down stops nobody else.
	i.down.Store(true)
	s.clock.forward(openedLasts)
	w := b.get("/ui/sign-in/issuer?issuer=" + url.QueryEscape(i.URL))
	if w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "cannot be reached now") {
		t.Errorf("with the issuer down: %d %s", w.Code, w.Body)
	}
	s.signedIn(s.owner)
}

// Nobody is signed in as another by what they are made to click, and no answer
// is good twice.
func TestThreatSignsInAnother(t *testing.T) {
	s := newSite(t)
	i := newIssuer(t, s)
	refused := func(what string, b *browser, path string) {
		t.Helper()
		if w := b.get(path); w.Code != http.StatusUnauthorized || b.cookies[cookieName] != nil {
			t.Errorf("%s: %d, %v", what, w.Code, b.cookies)
		} else {
			harmlessPage(t, what, w.Body.String())
		}
	}
	mallory, victim := s.browser(), s.browser()
	refused("with mallory's answer, a victim who began nothing", victim, i.send(mallory, ""))
	i.send(victim, "")
	refused("with mallory's answer, a victim who has begun", victim, i.send(mallory, ""))
	answer := i.send(victim, "")
	began := victim.cookies[beganCookie]
	led(t, victim.get(answer))
	again := s.browser()
	again.cookies[beganCookie] = began
	refused("a code a second time", again, answer)
	b := s.browser()
	back := i.send(b, "")
	refused("from another issuer", b, strings.Replace(back, url.QueryEscape(i.URL), "https%3A%2F%2Fevil.example", 1))
	b = s.browser()
	i.send(b, "")
	refused("a refusal", b, "/ui/callback?error=access_denied&error_description=%3Cscript%3E&state="+url.QueryEscape(stateOfBegan(t, b)))
	for _, value := range []string{"", "e30", "!", strings.Repeat("A", 3000)} {
		b := s.browser()
		b.cookies[beganCookie] = &http.Cookie{Name: beganCookie, Value: value}
		refused("a cookie that is none", b, "/ui/callback?code=x&state=")
	}
	for _, other := range []string{"https://evil.example", "", i.URL + "/"} {
		if w := s.browser().get("/ui/sign-in/issuer?issuer=" + url.QueryEscape(other)); w.Code != http.StatusUnauthorized {
			t.Errorf("an issuer that is not ours, %q: %d", other, w.Code)
		}
	}
	// The way on is a page of ours, whatever a link says.
	b = s.browser()
	if to := led(t, b.get(i.send(b, "https://evil.example/"))); to != "/ui/vms" {
		t.Errorf("signed in one is led to %s", to)
	}
}

// stateOfBegan is the state that a browser keeps.
func stateOfBegan(t *testing.T, b *browser) string {
	t.Helper()
	text, err := base64.RawURLEncoding.DecodeString(b.cookies[beganCookie].Value)
	var began began
	if err == nil {
		err = json.Unmarshal(text, &began)
	}
	if err != nil {
		t.Fatal(err)
	}
	return began.State
}

// A secret that is not there, or not one, is told at the start.
func TestClientSecret(t *testing.T) {
	s := newSite(t)
	file := filepath.Join(t.TempDir(), "secret")
	start := func() error {
		_, err := identity.New(identity.Config{Store: s.store, OIDC: []identity.Issuer{{URL: "https://a.example", Audience: []string{"b"}, ClientID: "c", ClientSecretFile: file}}})
		return err
	}
	if start() == nil {
		t.Error("no file")
	}
	for text, good := range map[string]bool{"": false, "\n": false, "a\nb\n": false, "s3cret\n": true} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := start(); (err == nil) != good {
			t.Errorf("%q: %v", text, err)
		}
	}
}
