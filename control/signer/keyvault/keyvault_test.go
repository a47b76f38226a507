package keyvault

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

const (
	vaultHost = "unit.vault.azure.net"
	keyName   = "grant"
	keyID     = "https://" + vaultHost + "/keys/" + keyName + "/" + current
	current   = "0123456789abcdef0123456789abcdef"
)

// vault is a stand-in for the REST of Key Vault that keeps a key and signs
// with it, over TLS, for whoever has answered its challenge.
type vault struct {
	key    *ecdsa.PrivateKey
	server *httptest.Server
	pool   *x509.CertPool

	mu    sync.Mutex
	calls []string
	next  func(w http.ResponseWriter, r *http.Request) bool // answers in place of the vault
}

const token = "vault-token"

// issue makes a certificate for the vault's own name, so that the client's
// check that the challenge is of that vault is on.
func newVault(t *testing.T) *vault {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v := &vault{key: key, pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{vaultHost}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	tlsKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, tlsKey.Public(), tlsKey)
	if err != nil {
		t.Fatal(err)
	}
	if !v.pool.AppendCertsFromPEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) {
		t.Fatal("no certificate")
	}
	v.server = httptest.NewUnstartedServer(v)
	v.server.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: tlsKey}}}
	v.server.StartTLS()
	t.Cleanup(v.server.Close)
	return v
}

// client reaches the vault by its name.
func (v *vault) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, v.server.Listener.Addr().String())
		},
		TLSClientConfig: &tls.Config{RootCAs: v.pool},
	}}
}

func (v *vault) open(t *testing.T, id string) (crypto.Signer, error) {
	t.Helper()
	return New(t.Context(), id, credential{}, v.client())
}

// instead has f answer the calls from now on; where it does not, the vault does.
func (v *vault) instead(f func(w http.ResponseWriter, r *http.Request) bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.next, v.calls = f, nil
}

func (v *vault) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	v.mu.Lock()
	next := v.next
	v.calls = append(v.calls, r.Method+" "+r.URL.Path)
	v.mu.Unlock()
	if next != nil && next(w, r) {
		return
	}
	if r.Header.Get("Authorization") != "Bearer "+token {
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/11111111-1111-1111-1111-111111111111", resource="https://vault.azure.net"`)
		fail(w, http.StatusUnauthorized, "Unauthorized")
		return
	}
	if r.URL.Query().Get("api-version") == "" {
		fail(w, http.StatusBadRequest, "BadParameter")
		return
	}
	b64 := base64.RawURLEncoding.EncodeToString
	switch path := "/keys/" + keyName + "/" + current; {
	case r.Method == http.MethodGet && r.URL.Path == path:
		point, err := v.key.PublicKey.Bytes()
		if err != nil {
			fail(w, http.StatusInternalServerError, "Internal")
			return
		}
		json.NewEncoder(w).Encode(map[string]any{"key": map[string]any{"kid": keyID, "kty": "EC", "crv": "P-256", "key_ops": []string{"sign", "verify"}, "x": b64(point[1:33]), "y": b64(point[33:])}})
	case r.Method == http.MethodPost && r.URL.Path == path+"/sign":
		var in struct{ Alg, Value string }
		digest, err := []byte(nil), json.NewDecoder(r.Body).Decode(&in)
		if err == nil {
			digest, err = base64.RawURLEncoding.DecodeString(in.Value)
		}
		if err != nil || in.Alg != "ES256" || len(digest) != sha256.Size {
			fail(w, http.StatusBadRequest, "BadParameter")
			return
		}
		x, y, err := ecdsa.Sign(rand.Reader, v.key, digest)
		if err != nil {
			fail(w, http.StatusInternalServerError, "Internal")
			return
		}
		var sig [64]byte
		x.FillBytes(sig[:32])
		y.FillBytes(sig[32:])
		json.NewEncoder(w).Encode(map[string]any{"kid": keyID, "value": b64(sig[:])})
	default:
		fail(w, http.StatusNotFound, "KeyNotFound")
	}
}

func fail(w http.ResponseWriter, status int, code string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": "of\nmany\nlines"}})
}

// credential is somebody the vault knows.
type credential struct{}

func (credential) GetToken(_ context.Context, o policy.TokenRequestOptions) (azcore.AccessToken, error) {
	if len(o.Scopes) != 1 || o.Scopes[0] != "https://vault.azure.net/.default" {
		return azcore.AccessToken{}, fmt.Errorf("asked for %v", o.Scopes)
	}
	return azcore.AccessToken{Token: token, ExpiresOn: time.Now().Add(time.Hour)}, nil
}

func sign(key crypto.Signer) error {
	digest := sha256.Sum256([]byte("document"))
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(key.Public().(*ecdsa.PublicKey), digest[:], sig) {
		return errors.New("the signature does not hold")
	}
	return nil
}

func TestSign(t *testing.T) {
	v := newVault(t)
	key, err := v.open(t, keyID)
	if err != nil {
		t.Fatal(err)
	}
	if !v.key.PublicKey.Equal(key.Public()) {
		t.Error("another public key than the vault's")
	}
	for range 50 { // r and s begin with a zero byte now and then
		if err := sign(key); err != nil {
			t.Fatal(err)
		}
	}
	digest := sha256.Sum256(nil)
	if _, err := key.Sign(nil, digest[:], crypto.SHA384); err == nil {
		t.Error("signed something said to be SHA-384")
	}
	if _, err := key.Sign(nil, digest[:20], crypto.SHA256); err == nil {
		t.Error("signed 20 bytes")
	}
}

func TestIdentifiers(t *testing.T) {
	v := newVault(t)
	for _, c := range []struct{ id, want string }{
		{"https://" + vaultHost + "/keys/grant", "names no version"},
		{"http://" + vaultHost + "/keys/grant/" + current, "not a key's identifier"},
		{"https://" + vaultHost + "/secrets/grant/" + current, "not a key's identifier"},
		{"https://" + vaultHost + "/keys/grant/../x", "not a key's identifier"},
		{"https://" + vaultHost + "/keys/grant/" + current + "/sign", "not a key's identifier"},
		{"https://" + vaultHost + "/keys/gr%2Fant/" + current, "not a key's identifier"},
		{"https://u:p@" + vaultHost + "/keys/grant/" + current, "not a key's identifier"},
		{"https://" + vaultHost + "/keys/grant/" + current + "?x=1", "not a key's identifier"},
		{"keys/grant", "not a key's identifier"},
		{"https://" + vaultHost + "/keys/grant/ffffffffffffffffffffffffffffffff", "404 KeyNotFound: there is no such key, or not this version"},
		{"https://" + vaultHost + "/keys/other/" + current, "404 KeyNotFound"},
	} {
		if _, err := v.open(t, c.id); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", c.id, err, c.want)
		}
	}
}

// What a vault answers that has another kind of key, or one off the curve.
func TestForeignKeys(t *testing.T) {
	v := newVault(t)
	for _, key := range []string{
		`{"kty":"RSA","n":"AQAB","e":"AQAB"}`,
		`{"kty":"EC","crv":"P-384","x":"AQ","y":"AQ"}`,
		`{"kty":"EC","crv":"P-256","x":"AQ","y":"AQ"}`,
		`{"kty":"EC","crv":"P-256"}`,
		`{"kty":"EC","crv":"P-256","x":"` + strings.Repeat("A", 60) + `","y":"AQ"}`,
		`{}`,
	} {
		v.instead(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") == "" {
				return false
			}
			io.WriteString(w, `{"key":`+key+`}`)
			return true
		})
		if _, err := v.open(t, keyID); err == nil || !strings.Contains(err.Error(), "P-256") {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// What keeps a vault from signing is one line that says what to do.
func TestRefusals(t *testing.T) {
	v := newVault(t)
	key, err := v.open(t, keyID)
	if err != nil {
		t.Fatal(err)
	}
	answer := func(status int, code string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool { fail(w, status, code); return true }
	}
	for _, c := range []struct {
		name string
		f    func(http.ResponseWriter, *http.Request) bool
		want string
	}{
		{"forbidden", answer(403, "Forbidden"), "needs the permission keys/sign"},
		{"gone", answer(404, "KeyNotFound"), "there is no such key"},
		{"throttled", answer(429, "Throttled"), "too many calls"},
		{"down", answer(503, "ServiceUnavailable"), "answered 503"},
		{"short", func(w http.ResponseWriter, _ *http.Request) bool { io.WriteString(w, `{"value":"AAAA"}`); return true }, "signature of 3 bytes"},
		{"forged", func(w http.ResponseWriter, _ *http.Request) bool {
			io.WriteString(w, `{"value":"`+strings.Repeat("AQ", 43)[:86]+`"}`)
			return true
		}, "does not hold under the key"},
		{"no json", func(w http.ResponseWriter, _ *http.Request) bool { io.WriteString(w, `<html>`); return true }, "cannot sign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			v.instead(c.f)
			if err := sign(key); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v, want %q", err, c.want)
			}
			v.instead(nil)
			if err := sign(key); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	v.server.CloseClientConnections()
	v.server.Close()
	if err := sign(key); err == nil || !strings.Contains(err.Error(), "cannot be reached") || strings.Contains(err.Error(), "\n") {
		t.Errorf("outage: %v", err)
	}
}

// A vault that is busy is asked again.
func TestThrottledOnce(t *testing.T) {
	v := newVault(t)
	key, err := v.open(t, keyID)
	if err != nil {
		t.Fatal(err)
	}
	first := true
	v.instead(func(w http.ResponseWriter, _ *http.Request) bool {
		if !first {
			return false
		}
		first = false
		w.Header().Set("Retry-After", "1")
		fail(w, http.StatusTooManyRequests, "Throttled")
		return true
	})
	if err := sign(key); err != nil {
		t.Fatal(err)
	}
	if v.mu.Lock(); len(v.calls) != 2 {
		t.Errorf("calls: %v", v.calls)
	}
	v.mu.Unlock()
}

// A vault that does not answer does not keep a grant waiting for long.
func TestSlow(t *testing.T) {
	v := newVault(t)
	key, err := v.open(t, keyID)
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan struct{})
	defer close(end)
	v.instead(func(_ http.ResponseWriter, r *http.Request) bool {
		select {
		case <-end:
		case <-r.Context().Done():
		}
		return true
	})
	if err := sign(key); err == nil || !strings.Contains(err.Error(), "did not answer within") {
		t.Errorf("%v", err)
	}
}

// A page that pretends to be a vault in another domain gets no token.
func TestForeignChallenge(t *testing.T) {
	v := newVault(t)
	v.instead(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" {
			t.Error("a token was sent")
		}
		w.Header().Set("WWW-Authenticate", `Bearer authorization="https://login.microsoftonline.com/t", resource="https://evil.example"`)
		fail(w, http.StatusUnauthorized, "Unauthorized")
		return true
	})
	if _, err := v.open(t, keyID); err == nil {
		t.Error("opened")
	}
}

func FuzzParse(f *testing.F) {
	f.Add(keyID)
	f.Add("https://hsm.managedhsm.azure.net/keys/a/b")
	f.Add("https://x/keys//")
	f.Fuzz(func(t *testing.T, id string) {
		host, name, version, err := parse(id)
		if err == nil && (!strings.HasPrefix(host, "https://") || !plain(name) || !plain(version)) {
			t.Errorf("%q: %q %q %q", id, host, name, version)
		}
	})
}
