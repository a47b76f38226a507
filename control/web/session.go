package web

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/identity"
)

// A session is a random secret, which the browser has as a cookie, and the
// bearer token that was signed in with, which the store has. It is sealed with
// the secret, of which the store has only a digest: the cookie is of no use
// without the store, and the store of none without the cookie. Replicas share
// it as they share the store.
type session struct {
	key    string // in the store
	bearer string
}

const (
	cookieName = "__Host-jitgate"
	// sessionLasts at most, if its token does not end before.
	sessionLasts = 12 * time.Hour
	secretBytes  = 32
)

// errNoSession is the answer to a call without a session.
func errNoSession() error {
	return control.Refuse(control.Unknown, "SignedOut", "You are not signed in.")
}

// sessionKeys are what the store knows the session of a secret by, and what it
// is sealed with.
func sessionKeys(secret []byte) (key string, seal cipher.AEAD) {
	derive := func(info string) []byte {
		out, err := hkdf.Key(sha256.New, secret, nil, "jitgate web session: "+info, 32)
		if err != nil {
			panic(err) // it refuses lengths far from ours
		}
		return out
	}
	block, err := aes.NewCipher(derive("seal"))
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	seal, err = cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		panic(err) // AES has the right blocks
	}
	return hex.EncodeToString(derive("key")), seal
}

// findSession finds the session of the call's cookie.
func (c *call) findSession() (session, error) {
	cookies := c.r.CookiesNamed(cookieName)
	if len(cookies) != 1 {
		return session{}, errNoSession()
	}
	secret, err := base64.RawURLEncoding.Strict().DecodeString(cookies[0].Value)
	if err != nil || len(secret) != secretBytes {
		return session{}, errNoSession()
	}
	key, seal := sessionKeys(secret)
	var kept control.Session
	err = c.Store.View(c.ctx, func(tx control.Tx) error {
		kept, err = tx.Session(key)
		return err
	})
	switch {
	case errors.Is(err, control.ErrNotFound):
		return session{}, errNoSession()
	case err != nil:
		return session{}, err
	case !c.Now().Before(kept.Ends):
		return session{}, errNoSession()
	}
	bearer, err := seal.Open(nil, nil, kept.Sealed, []byte(key))
	if err != nil {
		return session{}, errNoSession()
	}
	return session{key: key, bearer: string(bearer)}, nil
}

// begin begins a session with a token that was found good. Its secret is new,
// whatever cookie the browser came with: nobody can choose another's session.
func (c *call) begin(bearer string) error {
	if err := c.end(); err != nil {
		return err
	}
	secret := make([]byte, secretBytes)
	rand.Read(secret)
	key, seal := sessionKeys(secret)
	now := c.Now()
	kept := control.Session{Key: key, Sealed: seal.Seal(nil, nil, []byte(bearer), []byte(key)), Began: now, Ends: now.Add(sessionLasts)}
	if err := c.Store.Update(c.ctx, func(tx control.Tx) error { return tx.PutSession(kept) }); err != nil {
		return err
	}
	http.SetCookie(c.w, &http.Cookie{Name: cookieName, Value: base64.RawURLEncoding.EncodeToString(secret), Path: "/",
		MaxAge: int(sessionLasts.Seconds()), Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return nil
}

// end ends the session the browser has, if it has one: here, so that a copy of
// the cookie is worth nothing, and there.
func (c *call) end() error {
	http.SetCookie(c.w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	s, err := c.findSession()
	if e := control.AsError(err); e != nil && e.Kind == control.Unknown {
		return nil
	}
	if err != nil {
		return err
	}
	err = c.Store.Update(c.ctx, func(tx control.Tx) error { return tx.DeleteSession(s.key) })
	if errors.Is(err, control.ErrNotFound) {
		return nil // ended elsewhere, meanwhile
	}
	return err
}

// signInData is what the page to sign in shows.
type signInData struct {
	Next   string
	Error  *control.Error
	Logins []identity.Login
}

// ownPath is a path of the page that somebody may be led to, or where
// everybody begins. Whoever makes a link cannot have it lead elsewhere.
func ownPath(s string) string {
	const begin = Prefix + "vms"
	u, err := url.Parse(s)
	// Browsers read a backslash as a slash.
	if err != nil || strings.ContainsAny(s, "\\\r\n") || u.Scheme != "" || u.Host != "" || u.User != nil || u.Opaque != "" ||
		!strings.HasPrefix(u.Path, Prefix) || path.Clean(u.Path) != u.Path {
		return begin
	}
	return (&url.URL{Path: u.Path, RawQuery: u.RawQuery}).String()
}

// askToSignIn leads to the page to sign in, and from there back. A form that
// was sent without a session is lost: nothing is done later that somebody else
// may have wanted.
func (c *call) askToSignIn() error {
	next := c.r.URL.RequestURI()
	if c.r.Method != http.MethodGet {
		next = ""
	}
	return c.see(Prefix + "sign-in?next=" + url.QueryEscape(next))
}

func signInPage(c *call) error {
	if err := c.authenticate(); err == nil {
		return c.see(ownPath(c.r.URL.Query().Get("next")))
	}
	return c.showSignIn(http.StatusOK, ownPath(c.r.URL.Query().Get("next")), nil)
}

func (c *call) showSignIn(status int, next string, e *control.Error) error {
	c.render(status, "sign-in", view{Title: "Sign in", Data: signInData{Next: next, Error: e, Logins: c.Identity.Logins()}})
	return nil
}

// signIn begins a session for whom a token is of.
func signIn(c *call) error {
	bearer := strings.TrimSpace(c.r.PostForm.Get("token"))
	next := ownPath(c.r.PostForm.Get("next"))
	_, err := c.Identity.Authenticate(c.ctx, bearer)
	if bearer == "" {
		err = control.Refuse(control.Unknown, "InvalidAuthenticationToken", "Paste a token.")
	}
	if err == nil {
		err = c.begin(bearer)
	}
	if err != nil {
		return c.notSignedIn(next, err)
	}
	return c.see(next)
}

// notSignedIn says why. Addresses that keep failing are told to wait.
func (c *call) notSignedIn(next string, err error) error {
	e := c.refusal(err)
	if e.Kind == control.Unknown {
		if wait := c.Identity.AllowAddress(c.Address(c.r)); wait > 0 {
			e = control.AsError(c.tooMany(wait))
		}
	}
	return c.showSignIn(statusOf(e), next, e)
}

func signOut(c *call) error {
	if err := c.end(); err != nil {
		return err
	}
	return c.see(Prefix + "sign-in")
}
