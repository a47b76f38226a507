package web

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
	"github.com/jitgate/jitgate/signin"
)

const (
	// callbackPath is where people come back to from an issuer.
	callbackPath = Prefix + "callback"
	beganCookie  = "__Host-jitgate-began"
	beganLasts   = 10 * time.Minute
	openedLasts  = time.Hour
	askAgain     = 5 * time.Second // an issuer that did not answer, no sooner
)

// opened is an issuer that was asked where its endpoints are.
type opened struct {
	provider *signin.Provider
	err      error
	at       time.Time
}

// began is what a browser keeps while its person signs in at an issuer. It is
// bound to that browser: what another one brings back is not taken.
type began struct {
	Issuer   string `json:"issuer"`
	State    string `json:"state"`
	Verifier string `json:"verifier"`
	Next     string `json:"next"`
}

// issuer opens an issuer that people may sign in at.
func (c *call) issuer(name string) (*signin.Provider, error) {
	logins := c.Identity.Logins()
	i := slices.IndexFunc(logins, func(l identity.Login) bool { return l.Issuer == name })
	if i < 0 {
		return nil, control.Refuse(control.Unknown, "UnknownIssuer", "Nobody signs in here by that issuer.")
	}
	l := logins[i]
	c.mu.Lock()
	o, there := c.issuers[name]
	c.mu.Unlock()
	if age := c.Now().Sub(o.at); !there || age > openedLasts || o.err != nil && age > askAgain {
		// Two at once ask twice, which does no harm.
		o.provider, o.err = signin.Open(c.ctx, signin.Issuer{URL: l.Issuer, Discovery: l.Discovery, ClientID: l.ClientID, Secret: c.Identity.ClientSecret(name), Scopes: l.Scopes, CA: []byte(l.CA)})
		o.at = c.Now()
		if errors.Is(o.err, context.Canceled) {
			return nil, o.err // this browser went away: the issuer is not to blame
		}
		c.mu.Lock()
		c.issuers[name] = o
		c.mu.Unlock()
	}
	if o.err != nil {
		c.Log.Warn("an issuer cannot be asked", "issuer", name, "error", o.err)
		return nil, control.Refuse(control.Unavailable, "IssuerUnavailable", "%s cannot be reached now. Try again, or paste a token.", name)
	}
	return o.provider, nil
}

// back is the address of callbackPath as the issuer knows it.
func (c *call) back() string { return c.PublicURL + callbackPath }

// goToIssuer leads to where a person signs in. It is a link and no form: the
// policy of the pages lets forms lead nowhere else.
func goToIssuer(c *call) error {
	b := began{Issuer: c.query("issuer"), Next: ownPath(c.query("next"))}
	p, err := c.issuer(b.Issuer)
	if err != nil {
		return c.notSignedIn(b.Next, err)
	}
	s, err := p.Begin(c.back())
	if err != nil {
		return c.notSignedIn(b.Next, control.Refuse(control.Unavailable, "IssuerUnavailable", "%v.", err))
	}
	b.State, b.Verifier = s.State, s.Verifier
	text, err := json.Marshal(b)
	if err != nil {
		return err
	}
	c.keepBegan(base64.RawURLEncoding.EncodeToString(text), beganLasts)
	return c.see(s.Address)
}

// keepBegan has the browser keep what was begun; for no time it forgets it.
func (c *call) keepBegan(value string, lasts time.Duration) {
	age := int(lasts.Seconds())
	if age == 0 {
		age = -1
	}
	// Lax, since the browser comes back from another site.
	http.SetCookie(c.w, &http.Cookie{Name: beganCookie, Value: value, Path: "/", MaxAge: age, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
}

// comeBack begins the session of who has signed in at an issuer. Once is all
// that an answer is good for.
func comeBack(c *call) error {
	var b began
	cookies := c.r.CookiesNamed(beganCookie)
	c.keepBegan("", 0)
	text := []byte{}
	if len(cookies) == 1 {
		text, _ = base64.RawURLEncoding.DecodeString(cookies[0].Value) // what cannot be read has no state
	}
	if json.Unmarshal(text, &b) != nil || b.State == "" {
		return c.notSignedIn(ownPath(""), control.Refuse(control.Unknown, "NotBegun", "You came back from an issuer to which nobody was sent from this browser, or it took too long. Begin again."))
	}
	next := ownPath(b.Next)
	p, err := c.issuer(b.Issuer)
	if err != nil {
		return c.notSignedIn(next, err)
	}
	token, err := p.Finish(c.ctx, signin.Begun{Back: c.back(), State: b.State, Verifier: b.Verifier}, c.r.URL.Query())
	if err != nil {
		return c.notSignedIn(next, control.Refuse(control.Unknown, "SignInFailed", "Signing in did not work: %v.", err))
	}
	if _, err := c.Identity.Authenticate(c.ctx, token.Bearer); err != nil {
		return c.notSignedIn(next, err)
	}
	if err := c.begin(token.Bearer); err != nil {
		return c.notSignedIn(next, err)
	}
	return c.see(next)
}
