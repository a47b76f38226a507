package agents

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/jitgate/jitgate/uplink"
)

// handshakes is a server that does them and nothing else.
type handshakes struct {
	t    *testing.T
	at   string
	turn *Turns

	config *tls.Config
}

// newHandshakes is one that gives each handshake so long, as net/http does; zero:
// for ever.
func newHandshakes(t *testing.T, turn *Turns, within time.Duration) *handshakes {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, NextProtos: []string{"h2", "http/1.1"}, GetConfigForClient: turn.Take}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if within > 0 {
				c.SetDeadline(time.Now().Add(within))
			}
			go tls.Server(c, config).HandshakeContext(t.Context())
		}
	}()
	return &handshakes{t, l.Addr().String(), turn, config}
}

// client does a handshake in which it offers these protocols; nil: it was done.
func (h *handshakes) client(protos ...string) chan error {
	done := make(chan error, 1)
	go func() {
		d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, NextProtos: protos}}
		c, err := d.DialContext(h.t.Context(), "tcp", h.at)
		if err == nil {
			h.t.Cleanup(func() { c.Close() })
			if proto := c.(*tls.Conn).ConnectionState().NegotiatedProtocol; proto != protos[len(protos)-1] {
				h.t.Errorf("offered %v, they speak %q", protos, proto)
			}
		}
		done <- err
	}()
	return done
}

func (h *handshakes) done(what string, c chan error) {
	h.t.Helper()
	select {
	case err := <-c:
		if err != nil {
			h.t.Fatalf("%s: %v", what, err)
		}
	case <-time.After(30 * time.Second):
		h.t.Fatalf("%s: no handshake", what)
	}
}

// deaf is a connection on which nothing is ever heard.
type deaf struct {
	net.Conn
	ctx context.Context
}

func (d deaf) Read([]byte) (int, error) {
	<-d.ctx.Done()
	return 0, d.ctx.Err()
}

// stalls begins a handshake as an agent, and does not go on with it until it is
// told to end.
func (h *handshakes) stalls() (end func()) {
	h.t.Helper()
	c, err := net.Dial("tcp", h.at)
	if err != nil {
		h.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(h.t.Context())
	go tls.Client(deaf{c, ctx}, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{uplink.Proto, "http/1.1"}}).Handshake()
	return func() { cancel(); c.Close() }
}

// An agent waits for its turn; nobody else does.
func TestTurns(t *testing.T) {
	const never = time.Hour
	h := newHandshakes(t, &Turns{slots: make(chan struct{}, 1), lasts: never, patience: never, within: never}, 0)
	end := h.stalls()
	for len(h.turn.slots) == 0 {
		time.Sleep(time.Millisecond)
	}
	agent := h.client(uplink.Proto, "http/1.1")
	for range 10 {
		h.done("a caller of the API", h.client("h2"))
		h.done("another", h.client("http/1.1"))
	}
	select {
	case err := <-agent:
		t.Fatalf("an agent did not wait for its turn: %v", err)
	default:
	}
	end()
	h.done("an agent whose turn came", agent)
	h.done("the next", h.client(uplink.Proto, "http/1.1"))
}

// Who has waited for a turn is not cut off for that.
func TestTurnsAfterWaiting(t *testing.T) {
	const enough = 50 * time.Millisecond
	h := newHandshakes(t, &Turns{slots: make(chan struct{}, 1), lasts: time.Hour, patience: 4 * enough, within: time.Hour}, enough)
	h.turn.slots <- struct{}{}
	h.done("an agent", h.client(uplink.Proto, "http/1.1"))
}

// Who stalls holds nobody up for long, however many do.
func TestTurnsOfThoseWhoStall(t *testing.T) {
	for name, turn := range map[string]*Turns{
		"a turn ends":       {slots: make(chan struct{}, 1), lasts: time.Millisecond, patience: time.Hour, within: time.Hour},
		"so does the wait":  {slots: make(chan struct{}, 1), lasts: time.Hour, patience: time.Millisecond, within: time.Hour},
		"as they are built": NewTurns(time.Hour),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHandshakes(t, turn, 0)
			for range 20 {
				defer h.stalls()()
			}
			h.done("an agent", h.client(uplink.Proto, "http/1.1"))
		})
	}
}
