package fetch

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gobwas/ws"

	"github.com/jitgate/jitgate/uplink"
)

// Times of a connection.
const (
	dialWithin   = 20 * time.Second // proxy included
	greetWithin  = time.Minute      // the handshake of TLS: a server to which its whole fleet comes back has agents take turns
	answerWithin = 30 * time.Second
)

// transport makes connections to the control plane, all by the same way.
type transport struct {
	base  string // https://NAME[:PORT]
	tls   *tls.Config
	proxy func(*http.Request) (*url.URL, error)
	reach dialer
	http  *http.Client
}

// dialer makes a connection to an address.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// way is how connections are made. The zero way is the usual one: sessions of
// TLS last as long as the transport.
type way struct {
	sessions tls.ClientSessionCache
	dial     dialer
}

// newTransport makes one. The system's roots are believed where roots is nil.
// An identity that is nil shows no certificate.
func newTransport(base, proxy string, roots *x509.CertPool, identity *tls.Certificate, w way) (*transport, error) {
	t := &transport{base: base, proxy: http.ProxyFromEnvironment, reach: w.dial}
	if t.reach == nil {
		t.reach = (&net.Dialer{}).DialContext
	}
	if w.sessions == nil {
		w.sessions = tls.NewLRUClientSessionCache(4)
	}
	if proxy != "" {
		u, err := url.Parse(proxy)
		if err != nil {
			return nil, errors.New("the proxy's address cannot be read")
		}
		t.proxy = http.ProxyURL(u)
	}
	t.tls = &tls.Config{
		MinVersion:         tls.VersionTLS13,
		NextProtos:         []string{uplink.Proto, "http/1.1"},
		RootCAs:            roots,
		ClientSessionCache: w.sessions,
	}
	if identity != nil {
		// Whatever the server says of the issuers it knows: there is one.
		t.tls.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return identity, nil }
	}
	t.http = &http.Client{
		Transport: &http.Transport{DialTLSContext: t.dial, MaxIdleConnsPerHost: 2, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10},
		// A control plane redirects nobody; a captive portal does.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return t, nil
}

func (t *transport) close() { t.http.CloseIdleConnections() }

// dial connects to addr, through a proxy if there is one, and does the
// handshake of TLS.
func (t *transport) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	within, cancel := context.WithTimeout(ctx, dialWithin)
	defer cancel()
	via, err := t.proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: addr}})
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	to := addr
	if via != nil {
		to = via.Host
		if via.Port() == "" {
			to = net.JoinHostPort(via.Hostname(), "80")
		}
	}
	conn, err := t.reach(within, network, to)
	if err != nil {
		return nil, err
	}
	if via != nil {
		err = connect(within, conn, addr, via.User)
	}
	if err == nil {
		config := t.tls.Clone()
		config.ServerName, _, _ = net.SplitHostPort(addr)
		secured := tls.Client(conn, config)
		within, cancel := context.WithTimeout(ctx, greetWithin)
		defer cancel()
		if err = secured.HandshakeContext(within); err == nil {
			return secured, nil
		}
		err = explained(err)
	}
	conn.Close()
	return nil, err
}

// explained says what a control plane means by the one alert it can end a
// handshake with before it has looked at a certificate. crypto/tls has no type
// for alerts that came over TCP.
func explained(err error) error {
	var remote *net.OpError
	if errors.As(err, &remote) && remote.Op == "remote error" && remote.Err.Error() == "tls: internal error" {
		return fmt.Errorf("the control plane takes no more hosts at present, and its log says why: %w", err)
	}
	return err
}

// connect asks an HTTP proxy for a tunnel.
func connect(ctx context.Context, conn net.Conn, addr string, user *url.Userinfo) error {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request := "CONNECT " + addr + " HTTP/1.1\r\nHost: " + addr + "\r\n"
	if user != nil {
		password, _ := user.Password()
		request += "Proxy-Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user.Username()+":"+password)) + "\r\n"
	}
	if _, err := io.WriteString(conn, request+"\r\n"); err != nil {
		return fmt.Errorf("proxy: %w", err)
	}
	in := bufio.NewReader(io.LimitReader(conn, 64<<10))
	answer, err := http.ReadResponse(in, &http.Request{Method: http.MethodConnect})
	switch {
	case err != nil:
		return fmt.Errorf("proxy: %w", err)
	case answer.StatusCode != http.StatusOK:
		return fmt.Errorf("the proxy makes no connection to %s: %s", addr, answer.Status)
	case in.Buffered() > 0:
		return errors.New("the proxy speaks before the server was asked anything")
	}
	return nil
}

// statusError is an answer other than the one hoped for.
type statusError struct {
	status  int
	message string
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the control plane answers %d: %s", e.status, e.message)
}

// call sends a message, or nothing, and returns the answer, at most limit
// bytes of it.
func (t *transport) call(ctx context.Context, method, path string, message []byte, limit int64) ([]byte, error) {
	var in io.Reader
	if message != nil {
		in = bytes.NewReader(message)
	}
	request, err := http.NewRequestWithContext(ctx, method, t.base+path, in)
	if err != nil {
		return nil, err
	}
	if message != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	response, err := t.http.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	answer, err := readUpTo(response.Body, limit)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, &statusError{response.StatusCode, uplink.Trim(strings.TrimSpace(string(answer)))}
	}
	return answer, nil
}

// readUpTo reads all, and refuses more than limit.
func readUpTo(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("the answer has more than %d bytes", limit)
	}
	return b, err
}

// upgradeError says that something on the way, or the server, does not let a
// WebSocket through.
type upgradeError struct {
	err      error
	answered bool // in HTTP
}

func (e upgradeError) Error() string { return "no WebSocket: " + e.err.Error() }
func (e upgradeError) Unwrap() error { return e.err }

// busy reports whether a status says that whoever answers has too much to do. A
// poll would be more of it.
func busy(status int) bool {
	return status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests
}

// webSocket opens the line.
func (t *transport) webSocket(ctx context.Context) (*uplink.Socket, error) {
	u, err := url.Parse(t.base + uplink.PathLine)
	if err != nil {
		return nil, err
	}
	addr := u.Host
	if u.Port() == "" {
		addr = net.JoinHostPort(u.Hostname(), "443")
	}
	conn, err := t.dial(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	u.Scheme = "wss"
	conn.SetDeadline(time.Now().Add(answerWithin))
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	early, _, err := ws.Dialer{}.Upgrade(struct{ io.ReadWriter }{conn}, u)
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		conn.Close()
		status, answered := errors.AsType[ws.StatusError](err)
		if answered {
			err = &statusError{int(status), "no switch to a WebSocket"}
			if busy(int(status)) {
				return nil, err
			}
		}
		return nil, upgradeError{err, answered}
	}
	return uplink.NewSocket(conn, early, true), nil
}
