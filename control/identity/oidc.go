package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/go-jose/go-jose/v4"
)

// Issuer is an OpenID Connect issuer whose tokens are taken.
type Issuer struct {
	// URL is what its tokens say as "iss", to the letter. It is https.
	URL string
	// Discovery is where /.well-known/openid-configuration is, if that is not
	// below URL, as with Entra ID's tokens of version 1.
	Discovery string
	// Audience is what its tokens must say as "aud": one of these.
	Audience []string
	// NameClaim is what people are known by; empty: preferred_username, upn,
	// unique_name, email or name, the first there is.
	NameClaim string
	// GroupsClaim has the caller's groups; empty: groups.
	GroupsClaim string
	// GroupPrefix is put before the names of groups and roles, which keeps
	// those of two issuers apart: "corp/" makes group:corp/admins.
	GroupPrefix string
	// AllowedTenants are the "tid" taken; empty: any the issuer signs for.
	AllowedTenants []string
	// ClientID is what people's programs are known as at the issuer, which lets
	// them sign in; empty: they bring a token from elsewhere.
	ClientID string
	// ClientSecretFile has what this server proves to the issuer who it is with,
	// where that wants it of a page; programs that people run have none.
	ClientSecretFile string
	// Scopes are what those programs ask for; empty: openid, profile and
	// offline_access.
	Scopes []string
	// Entra says that the issuer is Entra ID; Microsoft's own hosts need not.
	Entra bool
	// CAFile has the certificates of who vouches for the issuer's server; empty:
	// those of the system.
	CAFile string
}

// How long an issuer's keys are believed and how often it is asked.
const (
	keysFresh    = time.Hour        // then they are fetched again, and meanwhile used
	keysUsable   = 24 * time.Hour   // without the issuer answering
	askAgain     = 10 * time.Second // no sooner, whatever is asked for
	askingTakes  = 10 * time.Second // at most
	maxAnswer    = 1 << 20
	maxKeys      = 200
	smallestRSA  = 2048
	skew         = time.Minute // between the issuer's clock and ours
	openidConfig = "/.well-known/openid-configuration"
)

// algorithms are those a key that is public can verify. What a token says
// about itself chooses among them and never beyond.
var algorithms = []jose.SignatureAlgorithm{
	jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512,
	jose.ES256, jose.ES384, jose.ES512, jose.EdDSA,
}

// algorithmNames are the same as go-oidc wants them.
var algorithmNames = func() (names []string) {
	for _, a := range algorithms {
		names = append(names, string(a))
	}
	return names
}()

// provider is an issuer with its keys.
type provider struct {
	Issuer
	now    func() time.Time
	client *http.Client
	ca     []byte // the text of CAFile
	secret string // what is in ClientSecretFile

	mu      sync.Mutex
	keys    []jose.JSONWebKey
	loaded  time.Time     // when keys came
	asked   time.Time     // when they were last asked for
	failure error         // of the last time; nil: they came
	loading chan struct{} // closed when the issuer has answered; nil: it is not being asked
}

func newProvider(i Issuer, now func() time.Time) (*provider, error) {
	for _, u := range []string{i.URL, i.Discovery} {
		if u == "" && i.URL != "" {
			continue
		}
		parsed, err := url.Parse(u)
		if err != nil || parsed.Scheme != "https" || parsed.Host == "" || parsed.User != nil || parsed.RawQuery != "" || parsed.Fragment != "" {
			return nil, fmt.Errorf("%q is not an https URL without query", u)
		}
	}
	if len(i.Audience) == 0 || slices.Contains(i.Audience, "") {
		return nil, errors.New("an audience is required: without one, tokens meant for others would do")
	}
	i.Entra = i.Entra || isMicrosoft(i.URL)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	var pem []byte
	if i.CAFile != "" {
		var err error
		pem, err = os.ReadFile(i.CAFile)
		if err != nil {
			return nil, err
		}
		transport.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !transport.TLSClientConfig.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s has no certificate", i.CAFile)
		}
	}
	secret := ""
	if i.ClientSecretFile != "" {
		text, err := os.ReadFile(i.ClientSecretFile)
		if err != nil {
			return nil, err
		}
		if secret = strings.TrimSpace(string(text)); secret == "" || strings.ContainsAny(secret, "\r\n") {
			return nil, fmt.Errorf("%s is not one line with a secret", i.ClientSecretFile)
		}
	}
	p := &provider{Issuer: i, now: now, ca: pem, secret: secret, client: &http.Client{
		Transport: transport,
		Timeout:   askingTakes,
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Scheme != "https" || len(via) > 3 {
				return errors.New("redirected away from https, or too often")
			}
			return nil
		},
	}}
	return p, nil
}

// verify checks a token of this issuer and says who it is of.
func (p *provider) verify(ctx context.Context, bearer string) (person, error) {
	keys := signature{provider: p}
	token, err := oidc.NewVerifier(p.URL, &keys, &oidc.Config{
		SupportedSigningAlgs: algorithmNames,
		SkipClientIDCheck:    true, // the audience may be one of several,
		SkipExpiryCheck:      true, // and the times have a skew of our own: both below
	}).Verify(ctx, bearer)
	if keys.unreachable != nil {
		return person{}, unavailable("The issuer "+p.URL, keys.unreachable)
	}
	if err != nil {
		return person{}, refused("The access token is not validly signed by %s.", p.URL)
	}
	var all claims
	if err := token.Claims(&all); err != nil {
		return person{}, refused(notAToken)
	}
	var notBefore float64
	if raw := all["nbf"]; raw != nil && json.Unmarshal(raw, &notBefore) != nil {
		return person{}, refused("The 'nbf' of the access token is not a time.")
	}
	now := p.now()
	switch {
	case !slices.ContainsFunc(token.Audience, func(a string) bool { return slices.Contains(p.Audience, a) }):
		return person{}, refused("The access token is for another audience.")
	case token.Expiry.IsZero():
		return person{}, refused("The access token has no 'exp'.")
	case !now.Before(token.Expiry.Add(skew)):
		return person{}, refused("The access token expired at %s.", token.Expiry.UTC().Format(time.RFC3339))
	case float64(now.Add(skew).Unix()) < notBefore:
		return person{}, refused("The access token is not valid yet.")
	}
	return p.person(all)
}

// signature is oidc.KeySet for one token of an issuer.
type signature struct {
	provider    *provider
	unreachable error // why the issuer's keys are not known
}

// VerifySignature checks the signature of a token with the issuer's keys and
// returns the payload.
func (s *signature) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	signed, err := jose.ParseSignedCompact(token, algorithms)
	if err != nil {
		return nil, err
	}
	header := signed.Signatures[0].Header
	keys, err := s.provider.keysFor(ctx, header.KeyID, header.Algorithm)
	if err != nil {
		s.unreachable = err
		return nil, err
	}
	for _, k := range keys {
		if payload, err := signed.Verify(k.Key); err == nil {
			return payload, nil
		}
	}
	return nil, errors.New("no key of the issuer's verifies it")
}

// keysFor finds the keys a token with this header may be signed with, asking
// the issuer where that can tell more.
func (p *provider) keysFor(ctx context.Context, id, algorithm string) ([]jose.JSONWebKey, error) {
	p.mu.Lock()
	found, age := p.find(id, algorithm)
	known := len(found) > 0 && age < keysUsable
	if known && age < keysFresh {
		p.mu.Unlock()
		return found, nil
	}
	if p.loading == nil && (p.asked.IsZero() || p.now().Sub(p.asked) >= askAgain) {
		p.asked = p.now()
		p.loading = make(chan struct{})
		go p.load(p.loading)
	}
	loading := p.loading
	p.mu.Unlock()
	if known {
		return found, nil // nobody waits for what may be the same again
	}
	if loading != nil {
		select {
		case <-loading:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	found, age = p.find(id, algorithm)
	if age >= keysUsable {
		return nil, fmt.Errorf("no keys of %s: %w", p.URL, p.failure)
	}
	return found, nil
}

// find looks among the keys there are, which came age ago. The caller has mu.
func (p *provider) find(id, algorithm string) (found []jose.JSONWebKey, age time.Duration) {
	if p.loaded.IsZero() {
		return nil, keysUsable
	}
	for _, k := range p.keys {
		if (id == "" || k.KeyID == id) && (k.Algorithm == "" || k.Algorithm == algorithm) {
			found = append(found, k)
		}
	}
	return found, p.now().Sub(p.loaded)
}

// load asks the issuer for its keys and closes done.
func (p *provider) load(done chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), askingTakes)
	defer cancel()
	keys, err := p.fetch(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failure = err
	if err == nil {
		p.keys, p.loaded = keys, p.now()
	}
	p.loading = nil
	close(done)
}

// fetch gets the issuer's configuration and the keys it names.
func (p *provider) fetch(ctx context.Context) ([]jose.JSONWebKey, error) {
	var config oidc.ProviderConfig
	base := p.URL
	if p.Discovery != "" {
		base = p.Discovery
	}
	if err := p.get(ctx, strings.TrimSuffix(base, "/")+openidConfig, &config); err != nil {
		return nil, err
	}
	if config.IssuerURL != p.URL {
		return nil, fmt.Errorf("it calls itself %q", config.IssuerURL)
	}
	if !strings.HasPrefix(config.JWKSURL, "https://") {
		return nil, fmt.Errorf("its keys are at %q, which is not https", config.JWKSURL)
	}
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := p.get(ctx, config.JWKSURL, &set); err != nil {
		return nil, err
	}
	var keys []jose.JSONWebKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey // one of a kind not known yet does not spoil the others
		if k.UnmarshalJSON(raw) == nil && verifies(k) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 || len(keys) > maxKeys {
		return nil, fmt.Errorf("%s has %d keys that can verify", config.JWKSURL, len(keys))
	}
	return keys, nil
}

// verifies reports whether a key is one that tokens may be signed with: public,
// for signatures, and strong enough.
func verifies(k jose.JSONWebKey) bool {
	if !k.Valid() || k.Use != "" && k.Use != "sig" {
		return false
	}
	switch key := k.Key.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= smallestRSA
	case *ecdsa.PublicKey, ed25519.PublicKey:
		return true
	}
	return false
}

// get reads a JSON document of bounded size.
func (p *provider) get(ctx context.Context, from string, into any) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return err
	}
	answer, err := p.client.Do(r)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", from, answer.Status)
	}
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(body) > maxAnswer {
		return fmt.Errorf("%s has more than %d bytes", from, maxAnswer)
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return nil
}
