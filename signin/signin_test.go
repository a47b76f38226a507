package signin

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"
)

// jwt is a token in form; nobody here looks at its signature.
func jwt(claims string) string {
	encode := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	return encode(`{"alg":"ES256"}`) + "." + encode(claims) + "." + encode("signature")
}

// issuer is one that does as a test says.
type issuer struct {
	*httptest.Server
	mu       sync.Mutex
	config   map[string]any
	pending  []string // codes of refusals before the device's token comes
	answer   map[string]any
	forms    []url.Values // what the token endpoint got
	verifier string       // of the challenge that came with the browser
}

func newIssuer(t *testing.T) *issuer {
	t.Helper()
	i := &issuer{answer: map[string]any{"access_token": jwt(`{}`), "refresh_token": "r1", "expires_in": 3600, "token_type": "Bearer"}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) { i.write(w, 200, i.config) })
	mux.HandleFunc("POST /device", func(w http.ResponseWriter, _ *http.Request) {
		i.write(w, 200, map[string]any{"device_code": "d", "user_code": "ABCD-EFGH", "verification_uri": i.URL + "/code", "expires_in": 600, "interval": 0.01})
	})
	mux.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		i.mu.Lock()
		defer i.mu.Unlock()
		r.ParseForm()
		i.forms = append(i.forms, r.PostForm)
		switch {
		case r.PostForm.Get("grant_type") == "refresh_token" && r.PostForm.Get("refresh_token") != "r1":
			i.write(w, 400, map[string]any{"error": "invalid_grant", "error_description": "used\nbefore"})
		case r.PostForm.Get("grant_type") == "authorization_code" && challenge(r.PostForm.Get("code_verifier")) != i.verifier:
			i.write(w, 400, map[string]any{"error": "invalid_grant"})
		case len(i.pending) > 0:
			code := i.pending[0]
			i.pending = i.pending[1:]
			i.write(w, 400, map[string]any{"error": code})
		default:
			i.write(w, 200, i.answer)
		}
	})
	i.Server = httptest.NewTLSServer(mux)
	t.Cleanup(i.Close)
	i.config = map[string]any{"issuer": i.URL, "token_endpoint": i.URL + "/token", "authorization_endpoint": i.URL + "/authorize?a=b", "device_authorization_endpoint": i.URL + "/device"}
	return i
}

func challenge(verifier string) string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (i *issuer) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (i *issuer) last() url.Values {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.forms[len(i.forms)-1]
}

func (i *issuer) settings() Issuer {
	return Issuer{URL: i.URL, ClientID: "jitgate", Scopes: []string{"openid", "offline_access"},
		CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})}
}

func open(t *testing.T, i *issuer) *Provider {
	t.Helper()
	p, err := Open(t.Context(), i.settings())
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDevice(t *testing.T) {
	i := newIssuer(t)
	p := open(t, i)
	i.pending = []string{"authorization_pending", "authorization_pending"}
	shown := 0
	token, err := p.Device(t.Context(), func(q Prompt) {
		shown++
		if q.Code != "ABCD-EFGH" || q.Address != i.URL+"/code" || q.Complete != "" || time.Until(q.Expires) < 9*time.Minute {
			t.Errorf("%+v", q)
		}
	})
	if err != nil || shown != 1 || token.Refresh != "r1" || token.Bearer != jwt(`{}`) || time.Until(token.Expires) < 59*time.Minute {
		t.Fatalf("%+v, %v, shown %d times", token, err, shown)
	}
	if f := i.last(); f.Get("device_code") != "d" || f.Get("client_id") != "jitgate" || f.Get("grant_type") != "urn:ietf:params:oauth:grant-type:device_code" {
		t.Errorf("%v", f)
	}

	i.pending = []string{"access_denied"}
	if _, err := p.Device(t.Context(), func(Prompt) {}); err == nil || !strings.Contains(err.Error(), "access_denied") {
		t.Errorf("denied: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := p.Device(ctx, func(Prompt) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

// visit is a browser that comes back with what change makes of the answer.
func visit(t *testing.T, i *issuer, change func(url.Values)) func(string) error {
	return func(address string) error {
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		q := u.Query()
		if q.Get("a") != "b" || q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" || q.Get("scope") != "openid offline_access" || len(q.Get("state")) < 32 {
			t.Errorf("asked by %s", address)
		}
		i.mu.Lock()
		i.verifier = q.Get("code_challenge")
		i.mu.Unlock()
		back := url.Values{"code": {"c"}, "state": {q.Get("state")}}
		change(back)
		// A stranger on this machine gets nothing, and disturbs nobody.
		for _, wrong := range []string{"?code=evil", "?code=evil&state=guess", "other?code=evil&state=" + url.QueryEscape(q.Get("state"))} {
			answer, err := http.Get(q.Get("redirect_uri") + wrong)
			if err != nil {
				return err
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusBadRequest {
				t.Errorf("%s is answered %s", wrong, answer.Status)
			}
		}
		answer, err := http.Get(q.Get("redirect_uri") + "?" + back.Encode())
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		text, _ := io.ReadAll(answer.Body)
		if strings.Contains(string(text), "<") {
			t.Errorf("the page says %q", text)
		}
		return nil
	}
}

func TestBrowser(t *testing.T) {
	i := newIssuer(t)
	p := open(t, i)
	token, err := p.Browser(t.Context(), visit(t, i, func(url.Values) {}))
	if err != nil || token.Bearer != jwt(`{}`) {
		t.Fatalf("%+v, %v", token, err)
	}
	if f := i.last(); f.Get("code") != "c" || !strings.HasPrefix(f.Get("redirect_uri"), "http://localhost:") || len(f.Get("code_verifier")) < 43 {
		t.Errorf("%v", f)
	}
	for name, c := range map[string]struct {
		change func(url.Values)
		want   string
	}{
		"refused":        {func(q url.Values) { q.Set("error", "access_denied"); q.Set("error_description", "no\x1b[31m") }, "the issuer refuses: no[31m (access_denied)"},
		"no code":        {func(q url.Values) { q.Del("code") }, "no code"},
		"another issuer": {func(q url.Values) { q.Set("iss", "https://evil.example") }, "not from"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := p.Browser(t.Context(), visit(t, i, c.change)); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), " [", "["), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := p.Browser(t.Context(), func(string) error { return errors.New("no screen") }); err == nil || err.Error() != "no screen" {
		t.Errorf("%v", err)
	}
}

func TestRefresh(t *testing.T) {
	i := newIssuer(t)
	p := open(t, i)
	delete(i.answer, "refresh_token")
	token, err := p.Refresh(t.Context(), "r1")
	if err != nil || token.Refresh != "r1" {
		t.Fatalf("%+v, %v", token, err)
	}
	_, err = p.Refresh(t.Context(), "r0")
	if r, ok := errors.AsType[*Refusal](err); !ok || r.Code != "invalid_grant" || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
}

// Which of the tokens is the one to call with.
func TestBearer(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	id := jwt(`{"exp":1800000600}`)
	for name, c := range map[string]struct {
		in      tokens
		bearer  string
		expires time.Time
	}{
		"an access token that can be verified": {tokens{Access: jwt(`{"a":1}`), ID: id, Expires: 60}, jwt(`{"a":1}`), now.Add(time.Minute)},
		"a reference":                          {tokens{Access: "opaque", ID: id, Expires: 60}, id, now.Add(10 * time.Minute)},
		"dots alone are no token":              {tokens{Access: "a.b.c", ID: id}, id, now.Add(10 * time.Minute)},
		"no end":                               {tokens{Access: jwt(`{}`)}, jwt(`{}`), time.Time{}},
		"an end beyond all reason":             {tokens{Access: jwt(`{}`), Expires: 1e300}, jwt(`{}`), time.Time{}},
		"none":                                 {tokens{Access: "opaque", ID: "opaque"}, "", time.Time{}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.in.bearer(now)
			if (err == nil) != (c.bearer != "") || got.Bearer != c.bearer || !got.Expires.Equal(c.expires) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// What an issuer may not be, or say.
func TestOpen(t *testing.T) {
	i := newIssuer(t)
	for name, c := range map[string]struct {
		settings func(*Issuer)
		config   func(map[string]any)
		want     string
	}{
		"not https":            {func(s *Issuer) { s.URL = "http" + strings.TrimPrefix(s.URL, "https") }, nil, "https"},
		"no client id":         {func(s *Issuer) { s.ClientID = "" }, nil, "no client id"},
		"unknown authority":    {func(s *Issuer) { s.CA = nil }, nil, "certificate"},
		"no authority":         {func(s *Issuer) { s.CA = []byte("x") }, nil, "no certificate"},
		"another issuer":       {nil, func(c map[string]any) { c["issuer"] = "https://evil.example" }, "evil.example"},
		"tokens over http":     {nil, func(c map[string]any) { c["token_endpoint"] = "http://x/token" }, "token endpoint"},
		"no token endpoint":    {nil, func(c map[string]any) { delete(c, "token_endpoint") }, "token endpoint"},
		"tokens to a user":     {nil, func(c map[string]any) { c["token_endpoint"] = "https://a@x/token" }, "token endpoint"},
		"not a configuration":  {nil, func(c map[string]any) { c["issuer"] = 1 }, "cannot be read"},
		"a configuration huge": {nil, func(c map[string]any) { c["x"] = strings.Repeat("x", maxAnswer) }, "more than"},
	} {
		t.Run(name, func(t *testing.T) {
			settings := i.settings()
			before := i.config
			defer func() { i.config = before }()
			i.config = map[string]any{}
			for k, v := range before {
				i.config[k] = v
			}
			if c.settings != nil {
				c.settings(&settings)
			}
			if c.config != nil {
				c.config(i.config)
			}
			if _, err := Open(t.Context(), settings); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v", err)
			}
		})
	}
	// Said to stand elsewhere, it may be another's: Entra ID's is.
	settings := i.settings()
	settings.URL, settings.Discovery = "https://sts.example/", i.URL
	if _, err := Open(t.Context(), settings); err != nil {
		t.Error(err)
	}
	// Without an endpoint there is no such way.
	delete(i.config, "device_authorization_endpoint")
	i.config["authorization_endpoint"] = "http://x"
	p := open(t, i)
	if p.HasDevice() || p.HasBrowser() {
		t.Error("there is no way, and it says there is")
	}
	if _, err := p.Device(t.Context(), nil); err == nil {
		t.Error("signed in without an endpoint")
	}
	if _, err := p.Browser(t.Context(), nil); err == nil {
		t.Error("signed in without an endpoint")
	}
}

// A redirect leads a code nowhere.
func TestNoRedirect(t *testing.T) {
	i := newIssuer(t)
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("was led here") }))
	defer elsewhere.Close()
	p := open(t, i)
	p.endpoints.Token = i.URL + "/moved"
	i.Config.Handler.(*http.ServeMux).HandleFunc("POST /moved", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
	})
	if _, err := p.Refresh(t.Context(), "r1"); err == nil || !strings.Contains(err.Error(), "307") {
		t.Errorf("%v", err)
	}
}

// Whatever an issuer answers, there is a token or an error, and what is said
// of it is one printable line.
func FuzzToken(f *testing.F) {
	f.Add([]byte(`{"access_token":"a.b.c","expires_in":1}`))
	f.Add(fmt.Appendf(nil, `{"access_token":"x","id_token":%q,"expires_in":-1}`, jwt(`{"exp":1e11}`)))
	f.Add([]byte(`{"error":"x","error_description":"\u001b[31m\n"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var in tokens
		if json.Unmarshal(text, &in) == nil {
			if got, err := in.bearer(time.Unix(0, 0)); (err == nil) != isJWT(got.Bearer) {
				t.Errorf("%+v, %v", got, err)
			}
		}
		var r Refusal
		if json.Unmarshal(text, &r) == nil && strings.ContainsAny(r.Error(), "\n\r\x1b") {
			t.Errorf("%q", r.Error())
		}
	})
}
