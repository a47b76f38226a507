package signin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"time"
)

// HasBrowser reports whether the issuer lets people sign in by the browser.
func (p *Provider) HasBrowser() bool { return secure(p.endpoints.Authorization) == nil }

// returned is what the browser brings back.
type returned struct {
	code string
	err  error
}

// Begun is a signing in that a browser has yet to come back from. All of it but
// Address is for who began it and nobody else.
type Begun struct {
	Address  string // to lead the browser to
	Back     string // where it comes back to, and the issuer knows so
	State    string // what it brings back
	Verifier string // what the code is of use with
}

// Begin begins to sign in by a browser that comes back to an address of ours.
func (p *Provider) Begin(back string) (Begun, error) {
	if !p.HasBrowser() {
		return Begun{}, errors.New("the issuer has no sign-in by the browser")
	}
	at, err := url.Parse(p.endpoints.Authorization)
	if err != nil {
		return Begun{}, err
	}
	b := Begun{Back: back, State: rand.Text() + rand.Text(), Verifier: rand.Text() + rand.Text()}
	challenge := sha256.Sum256([]byte(b.Verifier))
	q := at.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": p.ClientID, "redirect_uri": back, "scope": p.scope(), "state": b.State,
		"code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256",
	} {
		q.Set(name, value)
	}
	at.RawQuery = q.Encode()
	b.Address = at.String()
	return b, nil
}

// Finish gets the token for what the browser brought back.
func (p *Provider) Finish(ctx context.Context, b Begun, q url.Values) (Token, error) {
	if b.State == "" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(b.State)) != 1 {
		return Token{}, errors.New("the browser came back from what was not begun here: begin again")
	}
	code, err := p.code(q)
	if err != nil {
		return Token{}, err
	}
	return p.redeem(ctx, b, code)
}

// code is what the issuer sends by the browser.
func (p *Provider) code(q url.Values) (string, error) {
	switch from := q.Get("iss"); {
	case from != "" && from != p.endpoints.Issuer: // RFC 9207
		return "", fmt.Errorf("the answer is from %s, not from %s", clip(from), p.URL)
	case q.Get("error") != "":
		return "", &Refusal{q.Get("error"), q.Get("error_description")}
	case q.Get("code") == "":
		return "", errors.New("the browser brought no code")
	}
	return q.Get("code"), nil
}

func (p *Provider) redeem(ctx context.Context, b Begun, code string) (Token, error) {
	return p.token(ctx, url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {b.Back}, "code_verifier": {b.Verifier}})
}

// Browser signs in by the browser of this machine. open is called once, with
// the address to show. The answer is taken on a loopback address, which only
// this machine reaches; whoever else gets hold of the code has no use for it
// without the verifier, which never leaves this process.
func (p *Provider) Browser(ctx context.Context, open func(address string) error) (Token, error) {
	if !p.HasBrowser() {
		return Token{}, errors.New("the issuer has no sign-in by the browser")
	}
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return Token{}, fmt.Errorf("nothing can listen on 127.0.0.1 for the browser's answer: %w", err)
	}
	// Entra ID takes any port of localhost by this name, others by either.
	back := fmt.Sprintf("http://localhost:%d/", listener.Addr().(*net.TCPAddr).Port)
	b, err := p.Begin(back)
	if err != nil {
		return Token{}, err
	}

	came := make(chan returned, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10, Handler: p.callback(b.State, came)}
	go server.Serve(listener)
	defer func() {
		// The browser shall have its page before the listener goes.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	}()

	if err := open(b.Address); err != nil {
		return Token{}, err
	}
	select {
	case r := <-came:
		if r.err != nil {
			return Token{}, r.err
		}
		return p.redeem(ctx, b, r.code)
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return Token{}, errors.New("nobody signed in in time: begin again")
		}
		return Token{}, ctx.Err()
	}
}

// callback takes the browser's answer, once. What does not have the state is
// not an answer to us, and changes nothing.
func (p *Provider) callback(state string, came chan<- returned) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("Referrer-Policy", "no-referrer")
		q := r.URL.Query()
		if r.Method != http.MethodGet || r.URL.Path != "/" || subtle.ConstantTimeCompare([]byte(q.Get("state")), []byte(state)) != 1 {
			http.Error(w, "This is not an answer to what was asked here.", http.StatusBadRequest)
			return
		}
		var answer returned
		answer.code, answer.err = p.code(q)
		select {
		case came <- answer:
		default: // a second one
		}
		if answer.err != nil {
			http.Error(w, "Signing in failed: see the terminal.", http.StatusBadRequest)
			return
		}
		fmt.Fprintln(w, "You are signed in. This window can be closed.")
	})
}
