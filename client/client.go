// Package client calls the control plane: the operations of Azure's API and
// those of /api/v1 beside it. Nothing here decides anything; what a type means
// is said where the control plane has it.
package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Limits of what is taken from a server, and of patience with it.
const (
	maxAnswer = 32 << 20 // bytes of one answer
	maxError  = 64 << 10 // bytes of one that is an error
	maxHeader = 64 << 10
	callTime  = time.Minute      // for one try
	maxTries  = 4                // where the server says that it is busy
	maxWait   = 30 * time.Second // before the next try, whatever the server asks for
	firstWait = 500 * time.Millisecond
)

// Config is what a Client needs. URL is required, and Token or Bearer.
type Config struct {
	URL   string // of the control plane: https://jit.example.net:8443
	Token string // bearer token
	// Bearer, if not nil, is asked for the bearer token of every call: one of
	// an issuer does not last.
	Bearer func(context.Context) (string, error)
	CA     []byte // certificates to trust for it, in PEM; nil: the system's
	// UserAgent is who calls, for the server's log; empty is jitgate.
	UserAgent string
}

// Client calls one control plane as one caller. It is safe for concurrent
// use.
type Client struct {
	base   *url.URL
	bearer func(context.Context) (string, error) // nil: calls are nobody's
	agent  string
	http   *http.Client
	silent time.Duration // after which a stream counts as broken
	first  time.Duration // the pause before a second try; doubles
}

// New makes a Client. It does not call yet.
func New(c Config) (*Client, error) {
	if c.Bearer == nil {
		c.Bearer = func(context.Context) (string, error) { return c.Token, nil }
		if err := checkToken(c.Token); err != nil {
			return nil, err
		}
	}
	return newClient(c)
}

// checkToken keeps out of a header what is not for one.
func checkToken(token string) error {
	if token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("the token is not one line with a bearer token")
	}
	return nil
}

// newClient makes a Client that is nobody's if there is no Bearer.
func newClient(c Config) (*Client, error) {
	base, err := url.Parse(c.URL)
	if err != nil || base.Scheme != "https" || base.Host == "" || base.User != nil || base.RawQuery != "" || base.Fragment != "" {
		return nil, fmt.Errorf("%q is not the address of a control plane, like https://jit.example.net:8443 (a token goes over nothing but https)", clip(c.URL))
	}
	base.Path = strings.TrimRight(base.Path, "/")
	t := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:      true,
		IdleConnTimeout:        time.Minute,
		TLSHandshakeTimeout:    15 * time.Second,
		MaxResponseHeaderBytes: maxHeader,
	}
	if c.CA != nil {
		t.TLSClientConfig.RootCAs = x509.NewCertPool()
		if !t.TLSClientConfig.RootCAs.AppendCertsFromPEM(c.CA) {
			return nil, errors.New("there is no certificate in PEM to trust the control plane by")
		}
	}
	if c.UserAgent == "" {
		c.UserAgent = "jitgate"
	}
	return &Client{base: base, bearer: c.Bearer, agent: c.UserAgent, silent: silence, first: firstWait, http: &http.Client{
		Transport: t,
		// The control plane redirects nobody, and the token is for it alone.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// URL is the address of the control plane.
func (c *Client) URL() string { return c.base.String() }

// Close closes connections that are not in use.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Error is a refusal of the control plane.
type Error struct {
	Status     int
	Code       string        // PolicyNotFound
	Message    string        // for people
	RequestID  string        // finds the call in the server's log
	RetryAfter time.Duration // when to try again, if the server says so
}

func (e *Error) Error() string {
	s := e.Message
	if s == "" {
		s = fmt.Sprintf("the control plane answered %d %s", e.Status, http.StatusText(e.Status))
	}
	if e.Status >= 500 && e.RequestID != "" {
		s += " (request " + e.RequestID + ")"
	}
	return s
}

// IsNotFound reports whether err says that there is no such thing.
func IsNotFound(err error) bool { return statusOf(err) == http.StatusNotFound }

// IsPrecondition reports whether err says that somebody else changed it first.
func IsPrecondition(err error) bool { return statusOf(err) == http.StatusPreconditionFailed }

func statusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// call is one call.
type call struct {
	method string
	path   string // escaped, with a slash at its beginning
	query  url.Values
	header http.Header
	in     any  // encoded as the body; nil: none; json.RawMessage as it is
	once   bool // has an idempotency key, so that it can be repeated
	single bool // is never repeated: the answer holds a secret made for it
}

// reply is what came back, its body read.
type reply struct {
	status int
	etag   string
	body   []byte
}

// do makes a call, again where the server is busy, and decodes the answer
// into out unless that is nil.
func (c *Client) do(ctx context.Context, k call, out any) (reply, error) {
	var body []byte
	if k.in != nil {
		var err error
		if body, err = json.Marshal(k.in); err != nil {
			return reply{}, err
		}
	}
	if k.header == nil {
		k.header = http.Header{}
	}
	if k.once {
		k.header.Set("Idempotency-Key", rand.Text())
	}
	for try := 1; ; try++ {
		r, err := c.try(ctx, k, body)
		if err == nil && out != nil {
			if err = json.Unmarshal(r.body, out); err != nil {
				err = fmt.Errorf("the answer of %s cannot be read (is this a control plane?): %s", c.base.Host, clip(err.Error()))
			}
		}
		wait, again := c.retry(err, try)
		if k.single || !again {
			return r, err
		}
		if !pause(ctx, wait) {
			return r, err
		}
	}
}

// retry says whether a call that failed is worth another try, and when.
func (c *Client) retry(err error, try int) (time.Duration, bool) {
	e, ok := errors.AsType[*Error](err)
	if !ok || try >= maxTries {
		return 0, false
	}
	switch {
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusServiceUnavailable:
	case e.Status == http.StatusConflict && e.RetryAfter > 0: // our own first try is not answered yet
	default:
		return 0, false
	}
	if e.RetryAfter > maxWait {
		return 0, false // whoever calls decides about so long a wait
	}
	if e.RetryAfter > 0 {
		return e.RetryAfter, true
	}
	return backoff(c.first, try), true
}

// backoff is the pause before the next try: doubling, at most maxWait, and
// spread, so that those who were sent away together do not come back together.
func backoff(first time.Duration, try int) time.Duration {
	d := min(first<<min(max(try-1, 0), 10), maxWait)
	return d/2 + mathrand.N(d/2+1)
}

// pause waits, and reports whether ctx let it.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// try makes a call once and reads the answer.
func (c *Client) try(ctx context.Context, k call, body []byte) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	resp, err := c.send(ctx, k, body)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return reply{}, fmt.Errorf("the answer of %s did not come whole: %s", c.base.Host, clip(err.Error()))
	}
	if len(b) > maxAnswer {
		return reply{}, fmt.Errorf("the answer of %s has more than %d bytes", c.base.Host, maxAnswer)
	}
	return reply{resp.StatusCode, resp.Header.Get("ETag"), b}, nil
}

// send sends a call and returns the answer, whose body is the caller's to
// close, or the *Error it is.
func (c *Client) send(ctx context.Context, k call, body []byte) (*http.Response, error) {
	u := *c.base
	u.RawPath = u.EscapedPath() + k.path
	path, err := url.PathUnescape(u.RawPath)
	if err != nil {
		return nil, err
	}
	u.Path, u.RawQuery = path, k.query.Encode()
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, k.method, u.String(), reader)
	if err != nil {
		return nil, err
	}
	for name, values := range k.header {
		req.Header[name] = values
	}
	if c.bearer != nil {
		token, err := c.bearer(ctx)
		if err == nil {
			err = checkToken(token)
		}
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Header.Set("User-Agent", c.agent)
	if req.Header.Get("Accept") == "" {
		req.Header.Set("Accept", "application/json")
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the address, which is long and said already
		}
		return nil, fmt.Errorf("cannot reach the control plane at %s: %w", c.base.Host, err)
	}
	if resp.StatusCode >= 200 && resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, errorOf(resp)
}

// errorOf reads an answer that is no success.
func errorOf(resp *http.Response) *Error {
	e := &Error{Status: resp.StatusCode, Code: clip(resp.Header.Get("x-ms-error-code")), RequestID: clip(resp.Header.Get("x-ms-request-id")),
		RetryAfter: retryAfter(resp.Header)}
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxError))
	if err != nil {
		return e
	}
	var said struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(b, &said) == nil {
		e.Message = clip(said.Error.Message)
		if said.Error.Code != "" {
			e.Code = clip(said.Error.Code)
		}
	}
	return e
}

// retryAfter reads Retry-After: seconds, or a date held against the answer's
// own.
func retryAfter(h http.Header) time.Duration {
	s := h.Get("Retry-After")
	if n, err := strconv.Atoi(s); err == nil && n > 0 {
		return time.Duration(min(n, 24*3600)) * time.Second
	}
	at, err := http.ParseTime(s)
	if err != nil {
		return 0
	}
	now, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), 24*time.Hour)
}

// clip makes one printable line of what a server sent, short enough for a
// message.
func clip(s string) string {
	s = strings.Join(strings.FieldsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || !unicode.IsPrint(r) }), " ")
	if r := []rune(s); len(r) > 1000 {
		return string(r[:1000]) + "…"
	}
	return s
}
