package signin

import (
	"context"
	"errors"
	"net/url"
	"time"
)

// Bounds of what an issuer may say about how often it is asked.
const (
	defaultInterval = 5 * time.Second
	longestWait     = 15 * time.Minute // for somebody to type the code
)

// Prompt is what a person is shown: where to go, and what to type there.
type Prompt struct {
	Address  string // https
	Code     string
	Complete string // the address with the code in it; empty: the issuer has none
	Expires  time.Time
}

// HasDevice reports whether the issuer lets people sign in by a code.
func (p *Provider) HasDevice() bool { return secure(p.endpoints.Device) == nil }

// Device signs in by a code that is typed in any browser, on any machine. show
// is called once, with what to tell the person.
func (p *Provider) Device(ctx context.Context, show func(Prompt)) (Token, error) {
	if !p.HasDevice() {
		return Token{}, errors.New("the issuer has no sign-in by a code: sign in with the browser on this machine")
	}
	var began struct {
		Device   string  `json:"device_code"`
		User     string  `json:"user_code"`
		Address  string  `json:"verification_uri"`
		Old      string  `json:"verification_url"` // as some said before the RFC
		Complete string  `json:"verification_uri_complete"`
		Expires  float64 `json:"expires_in"`
		Interval float64 `json:"interval"`
	}
	if err := p.post(ctx, p.endpoints.Device, url.Values{"scope": {p.scope()}}, &began); err != nil {
		return Token{}, err
	}
	if began.Address == "" {
		began.Address = began.Old
	}
	if began.Device == "" || began.User == "" || secure(began.Address) != nil {
		return Token{}, errors.New("the issuer gave no code to sign in by")
	}
	if secure(began.Complete) != nil {
		began.Complete = ""
	}
	wait := longestWait
	if began.Expires > 0 {
		wait = min(wait, time.Duration(began.Expires*float64(time.Second)))
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	show(Prompt{Address: clip(began.Address), Code: clip(began.User), Complete: clip(began.Complete), Expires: p.now().Add(wait)})

	interval := defaultInterval
	if began.Interval > 0 {
		interval = min(time.Duration(began.Interval*float64(time.Second)), time.Minute)
	}
	for {
		select {
		case <-time.After(interval):
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return Token{}, errors.New("nobody typed the code in time: begin again")
			}
			return Token{}, ctx.Err()
		}
		t, err := p.token(ctx, url.Values{"grant_type": {"urn:ietf:params:oauth:grant-type:device_code"}, "device_code": {began.Device}})
		refusal, ok := errors.AsType[*Refusal](err)
		switch {
		case ok && refusal.Code == "authorization_pending":
		case ok && refusal.Code == "slow_down":
			interval += defaultInterval
		default:
			return t, err
		}
	}
}
