// Package identity finds out who asks: it turns a bearer token into a
// control.Caller with its rights. Tokens are local ones, of which the store
// has the hash, or those of OpenID Connect issuers, such as Entra ID.
//
// Nothing that decides is kept between calls but issuers' public keys: rights,
// roles and revocations are read from the store each time, so that what was
// taken away is gone with the next call, on every replica.
package identity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/jitgate/jitgate/control"
)

// Config is what an Identity needs. Store is required.
type Config struct {
	Store control.Store
	OIDC  []Issuer
	Rate  float64          // calls a second of one identity; 0: 20
	Burst int              // calls at once of one identity; 0: 60
	Now   func() time.Time // nil: time.Now
}

// Limits of what comes in and of how often.
const (
	maxToken      = 16 << 10 // bytes; an Entra ID token with 200 groups has about 10,000
	defaultRate   = 20
	defaultBurst  = 60
	failureRate   = 1  // failed authentications a second of one address
	failureBurst  = 20 // and at once
	maxIdentities = 50_000
	maxAddresses  = 50_000
)

// Identity knows callers. It is safe for concurrent use.
type Identity struct {
	store    control.Store
	issuers  map[string]*provider // by URL
	now      func() time.Time
	calls    *limiter[string]
	failures *limiter[netip.Prefix]
}

// New makes an Identity. It asks no issuer yet: one that is down stops neither
// the start nor anybody but its own people.
func New(c Config) (*Identity, error) {
	if c.Store == nil {
		return nil, errors.New("identity: a store is required")
	}
	if c.Rate < 0 || c.Burst < 0 {
		return nil, errors.New("identity: rate and burst are not negative")
	}
	if c.Rate == 0 {
		c.Rate = defaultRate
	}
	if c.Burst == 0 {
		c.Burst = defaultBurst
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	id := &Identity{
		store:    c.Store,
		issuers:  make(map[string]*provider),
		now:      c.Now,
		calls:    newLimiter[string](rate.Limit(c.Rate), c.Burst, maxIdentities),
		failures: newLimiter[netip.Prefix](failureRate, failureBurst, maxAddresses),
	}
	for _, issuer := range c.OIDC {
		if id.issuers[issuer.URL] != nil {
			return nil, fmt.Errorf("identity: issuer %s is there twice", issuer.URL)
		}
		p, err := newProvider(issuer, c.Now)
		if err != nil {
			return nil, fmt.Errorf("identity: issuer %q: %w", issuer.URL, err)
		}
		id.issuers[issuer.URL] = p
	}
	return id, nil
}

// NewToken makes a local token and the hash the store keeps of it.
func NewToken() (token, hash string) { return control.NewToken() }

// refused is the answer to credentials that are not good.
func refused(format string, args ...any) error {
	return control.Refuse(control.Unknown, "InvalidAuthenticationToken", format, args...)
}

// unavailable is the answer while they cannot be judged.
func unavailable(what string, err error) error {
	return fmt.Errorf("%w (%w)", control.Refuse(control.Unavailable, "ServiceUnavailable", "%s cannot be reached now. Try again.", what), err)
}

// Authenticate finds who a bearer token is of, and what they may. It fails
// with a *control.Error: Unknown where the token is not good, Unavailable
// where that cannot be told now.
func (id *Identity) Authenticate(ctx context.Context, bearer string) (control.Caller, error) {
	switch {
	case bearer == "":
		return control.Caller{}, refused("The access token is missing. Send it as 'Authorization: Bearer TOKEN'.")
	case len(bearer) > maxToken:
		return control.Caller{}, refused("The access token is longer than %d bytes.", maxToken)
	case strings.HasPrefix(bearer, control.TokenPrefix):
		return id.local(ctx, bearer)
	}
	return id.foreign(ctx, bearer)
}

// local finds the owner of a local token.
func (id *Identity) local(ctx context.Context, bearer string) (control.Caller, error) {
	var caller control.Caller
	err := id.store.View(ctx, func(tx control.Tx) error {
		t, err := tx.Token(control.HashToken(bearer))
		switch {
		case errors.Is(err, control.ErrNotFound):
			return refused("The access token is not known.")
		case err != nil:
			return err
		case t.Revoked:
			return refused("The access token was revoked.")
		case !t.Expires.IsZero() && !id.now().Before(t.Expires):
			return refused("The access token expired at %s.", t.Expires.UTC().Format(time.RFC3339))
		}
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		given, err := tx.Assignments(t.Principal)
		if err != nil {
			return err
		}
		caller = control.Caller{
			ID: t.Principal, Name: t.Name, Type: control.TypeUser,
			Rights: control.ResolveRights(given, defined),
			Limits: control.TokenLimits(t, defined),
		}
		return nil
	})
	return caller, storeError(err)
}

// foreign finds who an issuer's token is of.
func (id *Identity) foreign(ctx context.Context, bearer string) (control.Caller, error) {
	url, err := issuerOf(bearer)
	if err != nil {
		return control.Caller{}, err
	}
	p := id.issuers[url]
	if p == nil {
		return control.Caller{}, refused("The access token is of an issuer that is not trusted here.")
	}
	who, err := p.verify(ctx, bearer)
	if err != nil {
		return control.Caller{}, err
	}
	caller := control.Caller{ID: who.id, Name: who.name, Type: who.kind}
	err = id.store.View(ctx, func(tx control.Tx) error {
		defined, err := tx.Roles()
		if err != nil {
			return err
		}
		given, err := tx.Assignments(append([]string{who.id}, who.groups...)...)
		caller.Rights = control.ResolveRights(given, defined)
		return err
	})
	if err != nil {
		return control.Caller{}, storeError(err)
	}
	return caller, nil
}

// storeError makes what the store says an answer.
func storeError(err error) error {
	if err == nil || control.AsError(err) != nil {
		return err
	}
	return unavailable("The store", err)
}

// Allow takes one call from an identity's allowance. It returns 0, or how long
// to wait. callerID is control.Caller.ID.
func (id *Identity) Allow(callerID string) (retryAfter time.Duration) {
	return id.calls.take(callerID, id.now())
}

// AllowAddress takes one failed authentication from the allowance of where it
// came from, an IPv4 address or an IPv6 /64, which is one household. It
// returns 0, or how long to wait: then the answer to bad credentials is 429.
// It is asked after a failure only, since good credentials from behind the
// same address must always get in.
func (id *Identity) AllowAddress(a netip.Addr) (retryAfter time.Duration) {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	from, err := a.Prefix(bits)
	if err != nil {
		from = netip.Prefix{} // no address: all such share one allowance
	}
	return id.failures.take(from, id.now())
}

// Login is an issuer that people can sign in at from their own machine.
type Login struct {
	Issuer    string   `json:"issuer"`
	Discovery string   `json:"discovery,omitempty"` // where its configuration is, if not below Issuer
	ClientID  string   `json:"clientId"`
	Scopes    []string `json:"scopes"`
	CA        string   `json:"ca,omitempty"` // certificates to trust for it, PEM; none: the system's
}

// Logins are the issuers that know people's programs by a client id, in the
// order of their addresses. Nothing of it is a secret: such programs have none.
func (id *Identity) Logins() []Login {
	logins := []Login{}
	for _, url := range slices.Sorted(maps.Keys(id.issuers)) {
		p := id.issuers[url]
		if p.ClientID == "" {
			continue
		}
		l := Login{Issuer: p.URL, Discovery: p.Discovery, ClientID: p.ClientID, Scopes: p.Scopes, CA: string(p.ca)}
		if len(l.Scopes) == 0 {
			l.Scopes = []string{"openid", "profile", "offline_access"}
		}
		logins = append(logins, l)
	}
	return logins
}

// ClientSecret is what this server has to prove to an issuer who it is with,
// as the client of Logins; empty: nothing.
func (id *Identity) ClientSecret(issuer string) string {
	if p := id.issuers[issuer]; p != nil {
		return p.secret
	}
	return ""
}
