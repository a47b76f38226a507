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
	state, verifier := rand.Text()+rand.Text(), rand.Text()+rand.Text()
	challenge := sha256.Sum256([]byte(verifier))

	came := make(chan returned, 1)
	server := &http.Server{ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 64 << 10, Handler: p.callback(state, came)}
	go server.Serve(listener)
	defer func() {
		// The browser shall have its page before the listener goes.
		last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(last) != nil {
			server.Close()
		}
	}()

	at, err := url.Parse(p.endpoints.Authorization)
	if err != nil {
		return Token{}, err
	}
	q := at.Query()
	for name, value := range map[string]string{
		"response_type": "code", "client_id": p.ClientID, "redirect_uri": back, "scope": p.scope(), "state": state,
		"code_challenge": base64.RawURLEncoding.EncodeToString(challenge[:]), "code_challenge_method": "S256",
	} {
		q.Set(name, value)
	}
	at.RawQuery = q.Encode()
	if err := open(at.String()); err != nil {
		return Token{}, err
	}
	select {
	case r := <-came:
		if r.err != nil {
			return Token{}, r.err
		}
		return p.token(ctx, url.Values{"grant_type": {"authorization_code"}, "code": {r.code}, "redirect_uri": {back}, "code_verifier": {verifier}})
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
		switch from := q.Get("iss"); {
		case from != "" && from != p.endpoints.Issuer: // RFC 9207
			answer.err = fmt.Errorf("the answer is from %s, not from %s", clip(from), p.URL)
		case q.Get("error") != "":
			answer.err = &Refusal{q.Get("error"), q.Get("error_description")}
		case q.Get("code") == "":
			answer.err = errors.New("the browser brought no code")
		default:
			answer.code = q.Get("code")
		}
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
