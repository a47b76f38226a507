//go:build linux

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"html/template"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// issuer is a small OpenID Connect provider on the loopback address of a
// namespace: authorization code with PKCE (RFC 7636), and a code to be typed
// elsewhere (RFC 8628). Whoever says a name is believed.
type issuer struct {
	*httptest.Server
	t   *testing.T
	key *ecdsa.PrivateKey

	mu      sync.Mutex
	codes   map[string]url.Values // what was asked for with each, and by whom
	devices map[string]string     // by the code to type: who has allowed it
}

const clientID = "jitgate"

func newIssuer(t *testing.T, place *namespace) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i := &issuer{t: t, key: key, codes: map[string]url.Values{}, devices: map[string]string{}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		i.write(w, http.StatusOK, object{"issuer": i.URL, "jwks_uri": i.URL + "/keys", "token_endpoint": i.URL + "/token", "authorization_endpoint": i.URL + "/authorize",
			"device_authorization_endpoint": i.URL + "/device"})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		i.write(w, http.StatusOK, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "1", Algorithm: string(jose.ES256), Use: "sig"}}})
	})
	mux.HandleFunc("GET /authorize", i.page)
	mux.HandleFunc("POST /authorize", i.authorize)
	mux.HandleFunc("POST /device", i.device)
	mux.HandleFunc("GET /code", i.page)
	mux.HandleFunc("POST /code", i.typed)
	mux.HandleFunc("POST /token", i.token)
	i.Server = httptest.NewUnstartedServer(mux)
	var listener net.Listener
	place.do(func() { listener, err = net.Listen("tcp", "127.0.0.1:0") })
	if err != nil {
		t.Fatal(err)
	}
	i.Listener.Close()
	i.Listener = listener
	i.Config.ErrorLog = log.New(io.Discard, "", 0) // a browser tries, before it takes the certificate
	i.StartTLS()
	t.Cleanup(i.Close)
	return i
}

func (i *issuer) write(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(v); err != nil {
		i.t.Error(err)
	}
}

var issuerPage = template.Must(template.New("").Parse(`<!doctype html><html lang="en"><title>Issuer</title><link rel="icon" href="data:,">
<form method="post"><p><label>Name <input name="name"></label></p>
{{if eq .Path "/code"}}<p><label>Code <input name="code"></label></p>{{end}}<p><button>Allow</button></p></form></html>`))

// page asks a person for their name, and where it is one for the code.
func (i *issuer) page(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if err := issuerPage.Execute(w, r.URL); err != nil {
		i.t.Error(err)
	}
}

// authorize sends a person back to where they came from, with a code.
func (i *issuer) authorize(w http.ResponseWriter, r *http.Request) {
	asked := r.URL.Query()
	if asked.Get("client_id") != clientID || asked.Get("response_type") != "code" || asked.Get("code_challenge_method") != "S256" {
		i.t.Errorf("the issuer is asked for %v", asked)
	}
	asked.Set("name", r.PostFormValue("name"))
	code := rand.Text()
	i.mu.Lock()
	i.codes[code] = asked
	i.mu.Unlock()
	http.Redirect(w, r, asked.Get("redirect_uri")+"?"+url.Values{"code": {code}, "state": {asked.Get("state")}, "iss": {i.URL}}.Encode(), http.StatusSeeOther)
}

// device begins to sign in a program that has no browser.
func (i *issuer) device(w http.ResponseWriter, _ *http.Request) {
	code := rand.Text()[:8]
	i.mu.Lock()
	i.devices[code] = ""
	i.mu.Unlock()
	i.write(w, http.StatusOK, object{"device_code": code, "user_code": code, "verification_uri": i.URL + "/code", "expires_in": 600, "interval": 1})
}

// typed is the form of the page to type a code at.
func (i *issuer) typed(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, there := i.devices[r.PostFormValue("code")]; !there {
		http.Error(w, "There is no such code.", http.StatusNotFound)
		return
	}
	i.devices[r.PostFormValue("code")] = r.PostFormValue("name")
	fmt.Fprintln(w, "Go back to where you came from.")
}

// token gives a token for a code: once, and to whom began.
func (i *issuer) token(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	defer i.mu.Unlock()
	var name string
	switch r.PostFormValue("grant_type") {
	case "authorization_code":
		asked := i.codes[r.PostFormValue("code")]
		delete(i.codes, r.PostFormValue("code"))
		sum := sha256.Sum256([]byte(r.PostFormValue("code_verifier")))
		if asked != nil && r.PostFormValue("redirect_uri") == asked.Get("redirect_uri") && base64.RawURLEncoding.EncodeToString(sum[:]) == asked.Get("code_challenge") {
			name = asked.Get("name")
		}
	case "urn:ietf:params:oauth:grant-type:device_code":
		allowed, there := i.devices[r.PostFormValue("device_code")]
		if there && allowed == "" {
			i.write(w, http.StatusBadRequest, object{"error": "authorization_pending"})
			return
		}
		name = allowed
		delete(i.devices, r.PostFormValue("device_code"))
	}
	if name == "" || r.PostFormValue("client_id") != clientID {
		i.write(w, http.StatusBadRequest, object{"error": "invalid_grant"})
		return
	}
	i.write(w, http.StatusOK, object{"access_token": i.signed(name), "token_type": "Bearer", "expires_in": 3600})
}

func (i *issuer) signed(name string) string {
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: i.key, KeyID: "1"}}, nil)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	now := time.Now()
	claims, err := json.Marshal(object{"iss": i.URL, "aud": "api://jitgate", "sub": name, "preferred_username": name, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix()})
	if err != nil {
		i.t.Error(err)
		return ""
	}
	token, err := signer.Sign(claims)
	if err != nil {
		i.t.Error(err)
		return ""
	}
	text, err := token.CompactSerialize()
	if err != nil {
		i.t.Error(err)
	}
	return text
}

// People sign in at an issuer with a real browser: at the page, and for
// jitgate login, by the browser and by a code. Who comes back with another's
// answer is not signed in, and a session that was ended is over.
func TestSignIn(t *testing.T) {
	t.Parallel()
	privileged(t)
	place := newNamespace(t)
	place.run(t, "ip", "link", "set", "lo", "up")
	place.run(t, "ip", "addr", "add", control4+"/32", "dev", "lo") // another site than the issuer
	i := newIssuer(t, place)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"issuer.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.Certificate().Raw})),
		"control.toml": fmt.Sprintf("[[oidc]]\nissuer = %q\naudience = [\"api://jitgate\"]\nclient_id = %q\nca_file = %q\n",
			i.URL, clientID, filepath.Join(dir, "issuer.pem")),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := newPlane(t, place, control4+":8443", "--config", filepath.Join(dir, "control.toml"))
	p.start()
	admin := p.read("admin.token")
	for _, name := range []string{"dora", "erik"} {
		p.want(http.StatusCreated, admin, "POST", "/api/v1/assignments", object{"principal": i.URL + "#" + name, "role": "Reader", "scope": "/"})
	}

	program, err := jitgate()
	if err != nil {
		t.Fatal(err)
	}
	command := func(args ...string) *exec.Cmd {
		cmd := exec.Command(program, args...)
		cmd.Env = append(os.Environ(), "HOME="+dir, "XDG_CONFIG_HOME=", "XDG_CACHE_HOME=", "PATH="+dir) // no browser of its own
		return cmd
	}
	var login *exec.Cmd
	var out bytes.Buffer
	// logsIn starts jitgate login and waits until it has told where to go.
	logsIn := func(told *regexp.Regexp, args ...string) string {
		out.Reset()
		login = command(append([]string{"login", p.url(""), "--ca", p.path("tls", "ca.pem")}, args...)...)
		login.Stdout = &out
		words, err := login.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := place.start(login); err != nil {
			t.Fatal(err)
		}
		said := ""
		for lines := bufio.NewScanner(words); lines.Scan(); {
			said += lines.Text() + "\n"
			if m := told.FindStringSubmatch(said); m != nil {
				go io.Copy(io.Discard, words)
				return strings.Join(m[1:], " ")
			}
		}
		t.Fatalf("jitgate login says %q, then %v", said, login.Wait())
		return ""
	}
	loggedIn := func(name string) func(string) string {
		return func(string) string {
			if err := login.Wait(); err != nil || !strings.Contains(out.String(), " as "+name+" ") {
				t.Errorf("jitgate login: %v, %s", err, &out)
			}
			list := command("vm", "list", "--json")
			var said, complaints bytes.Buffer
			list.Stdout, list.Stderr = &said, &complaints
			if err := place.start(list); err != nil {
				t.Error(err)
			} else if err := list.Wait(); err != nil {
				t.Errorf("signed in as %s: %v: %s", name, err, &complaints)
			}
			return ""
		}
	}
	browse(t, place, "signin.mjs", []string{"URL=" + p.url(""), "ISSUER=" + i.URL}, map[string]func(string) string{
		"login by the browser": func(string) string { return logsIn(regexp.MustCompile(`\n  (https://\S+)\n`), "--browser") },
		"logged in":            loggedIn("dora"),
		"login by a code": func(string) string {
			return logsIn(regexp.MustCompile(`\n  (https://\S+)\n\nand type the code  (\S+)`), "--device")
		},
		"logged in by the code": loggedIn("erik"),
	})
}
