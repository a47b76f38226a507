// Package signin signs a person in at an OpenID Connect issuer: from a program
// on their own machine, by a code they type in any browser (RFC 8628) or by the
// browser beside the program (RFC 8252: authorization code with PKCE, to a
// loopback address), or from a page, by the browser that shows it.
//
// What comes back is a bearer token for somebody else, who verifies it.
// Nothing here looks into it to decide anything.
package signin

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
)

// Limits of what is taken from an issuer.
const (
	maxAnswer = 1 << 20
	callTime  = 30 * time.Second
)

// Issuer is where to sign in, and as what program. All but Discovery and CA
// are required.
type Issuer struct {
	URL       string   // as its tokens say it
	Discovery string   // where its configuration is, if not below URL
	ClientID  string   // of this program
	Secret    string   // of the client; empty: none, what people run themselves has none
	Scopes    []string // asked for
	CA        []byte   // certificates to trust for it, PEM; nil: the system's
}

// Token is what an issuer gives.
type Token struct {
	Bearer  string    // to call with
	Refresh string    // to get the next one with; empty: there is none
	Expires time.Time // of Bearer; zero: the issuer does not say
}

// Provider is an issuer that has said where its endpoints are.
type Provider struct {
	Issuer
	client *http.Client
	now    func() time.Time

	endpoints endpoints
}

// endpoints are what of a configuration is used.
type endpoints struct {
	Issuer        string `json:"issuer"`
	Token         string `json:"token_endpoint"`
	Authorization string `json:"authorization_endpoint"`
	Device        string `json:"device_authorization_endpoint"`
}

// Open reads the issuer's configuration.
func Open(ctx context.Context, i Issuer) (*Provider, error) {
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if len(i.CA) > 0 {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(i.CA) {
			return nil, errors.New("there is no certificate in PEM to trust the issuer by")
		}
	}
	p := &Provider{Issuer: i, now: time.Now, client: &http.Client{Transport: t, Timeout: callTime,
		// Codes and refresh tokens go where the configuration says, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
	base := i.Discovery
	if base == "" {
		base = i.URL
	}
	if err := secure(base); err != nil {
		return nil, err
	}
	if i.ClientID == "" {
		return nil, errors.New("the issuer knows no client id for this program")
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimRight(base, "/")+"/.well-known/openid-configuration", nil)
	if err != nil {
		return nil, err
	}
	if err := p.call(r, &p.endpoints); err != nil {
		return nil, err
	}
	// Mix-up: a configuration must be of the issuer that was asked for, unless
	// somebody said that it stands elsewhere.
	if i.Discovery == "" && p.endpoints.Issuer != i.URL {
		return nil, fmt.Errorf("the configuration at %s is of %s", i.URL, clip(p.endpoints.Issuer))
	}
	if err := secure(p.endpoints.Token); err != nil {
		return nil, fmt.Errorf("the token endpoint: %w", err)
	}
	return p, nil
}

// secure refuses an address that secrets must not go to.
func secure(address string) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.Fragment != "" {
		return fmt.Errorf("%q is not an address beginning with https://", clip(address))
	}
	return nil
}

// Refusal is what an issuer answers in place of a token (RFC 6749, 5.2).
type Refusal struct {
	Code        string `json:"error"`
	Description string `json:"error_description"`
}

func (r *Refusal) Error() string {
	if r.Description != "" {
		return fmt.Sprintf("the issuer refuses: %s (%s)", clip(r.Description), clip(r.Code))
	}
	return "the issuer refuses: " + clip(r.Code)
}

// call makes one call and decodes its answer.
func (p *Provider) call(r *http.Request, out any) error {
	r.Header.Set("Accept", "application/json")
	answer, err := p.client.Do(r)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // its address may have a code in it
		}
		return fmt.Errorf("cannot reach the issuer at %s: %w", r.URL.Host, err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, maxAnswer+1))
	if err != nil {
		return fmt.Errorf("the answer of %s did not come whole: %w", r.URL.Host, err)
	}
	if len(body) > maxAnswer {
		return fmt.Errorf("the answer of %s has more than %d bytes", r.URL.Host, maxAnswer)
	}
	if answer.StatusCode != http.StatusOK {
		var refusal Refusal
		if json.Unmarshal(body, &refusal) == nil && refusal.Code != "" {
			return &refusal
		}
		return fmt.Errorf("%s answers %s", r.URL.Host, answer.Status)
	}
	if err := json.Unmarshal(body, out); err != nil {
		return fmt.Errorf("the answer of %s cannot be read: %s", r.URL.Host, clip(err.Error()))
	}
	return nil
}

// post sends a form.
func (p *Provider) post(ctx context.Context, address string, form url.Values, out any) error {
	form.Set("client_id", p.ClientID)
	if p.Secret != "" {
		form.Set("client_secret", p.Secret)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, address, strings.NewReader(form.Encode()))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return p.call(r, out)
}

// tokens is an answer of the token endpoint.
type tokens struct {
	Access  string  `json:"access_token"`
	ID      string  `json:"id_token"`
	Refresh string  `json:"refresh_token"`
	Expires float64 `json:"expires_in"`
}

// token asks the token endpoint.
func (p *Provider) token(ctx context.Context, form url.Values) (Token, error) {
	asked := p.now()
	var t tokens
	if err := p.post(ctx, p.endpoints.Token, form, &t); err != nil {
		return Token{}, err
	}
	return t.bearer(asked)
}

// bearer is the token to call with: the access token where that can be
// verified by somebody else, being a JWT, or else the one that says who signed
// in.
func (t tokens) bearer(asked time.Time) (Token, error) {
	out := Token{Bearer: t.Access, Refresh: t.Refresh}
	if t.Expires > 0 && t.Expires < 1e9 {
		out.Expires = asked.Add(time.Duration(t.Expires * float64(time.Second)))
	}
	if !isJWT(t.Access) {
		if !isJWT(t.ID) {
			return Token{}, errors.New("the issuer gave no token that can be verified: neither the access token nor the id token is a JWT")
		}
		out.Bearer = t.ID
		if end := expiry(t.ID); !end.IsZero() {
			out.Expires = end
		}
	}
	return out, nil
}

// isJWT tells a signed token from one that is only a reference.
func isJWT(s string) bool {
	parts := strings.Split(s, ".")
	if len(parts) != 3 || slices.Contains(parts, "") {
		return false
	}
	header, err := base64.RawURLEncoding.DecodeString(parts[0])
	return err == nil && json.Valid(header) && header[0] == '{'
}

// expiry is when a JWT says that it ends.
func expiry(s string) time.Time {
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(s, ".")[1])
	if err != nil {
		return time.Time{}
	}
	var claims struct {
		Expires float64 `json:"exp"`
	}
	if json.Unmarshal(payload, &claims) != nil || claims.Expires <= 0 || claims.Expires > 1e12 {
		return time.Time{}
	}
	return time.Unix(int64(claims.Expires), 0)
}

// Refresh gets the next token. Issuers that let a refresh token be used once
// give the next one with it.
func (p *Provider) Refresh(ctx context.Context, refresh string) (Token, error) {
	t, err := p.token(ctx, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {refresh}, "scope": {p.scope()}})
	if err == nil && t.Refresh == "" {
		t.Refresh = refresh
	}
	return t, err
}

func (p *Provider) scope() string { return strings.Join(p.Scopes, " ") }

// clip makes one printable line of what an issuer sent, short enough for a
// message.
func clip(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if r := []rune(s); len(r) > 300 {
		return string(r[:300]) + "…"
	}
	return s
}
