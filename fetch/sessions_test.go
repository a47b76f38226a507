package fetch

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// enrolledAs is an identity whose certificate it signed itself.
func enrolledAs(t *testing.T, serial int64) identity {
	t.Helper()
	who, err := newIdentity("")
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, who.key.Public(), who.key)
	if err != nil {
		t.Fatal(err)
	}
	if who, err = who.certified(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
		t.Fatal(err)
	}
	return who
}

// Who comes back goes on with the session of TLS it had, and with another
// certificate begins one.
func TestSessionsGoOn(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		fmt.Fprint(w, r.TLS.DidResume)
	}))
	defer s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	f := New(Config{URL: s.URL, Log: hclog.NewNullLogger()})
	one, other := enrolledAs(t, 1), enrolledAs(t, 2)
	for i, turn := range []struct {
		who  identity
		want string
	}{{one, "false"}, {one, "true"}, {one, "true"}, {other, "false"}, {other, "true"}, {one, "false"}} {
		tr, err := newTransport(s.URL, "", roots, turn.who.forTLS(), way{f.sessions(turn.who), f.dial()})
		if err != nil {
			t.Fatal(err)
		}
		got, err := tr.call(t.Context(), http.MethodPost, "/", nil, 100)
		tr.close()
		if err != nil || string(got) != turn.want {
			t.Errorf("connection %d went on: %s, %v; want %s", i, got, err, turn.want)
		}
	}
}

// A server to which a whole fleet comes back may let one wait for its turn, and
// one that never answers is left.
func TestHandshakeMayWait(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	s.Close()
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	for waits, want := range map[time.Duration]error{2 * dialWithin: nil, time.Hour: context.DeadlineExceeded} {
		synctest.Test(t, func(t *testing.T) {
			here, there := net.Pipe()
			over := make(chan struct{})
			defer close(over)
			go func() {
				select {
				case <-time.After(waits):
				case <-over:
				}
				tls.Server(there, &tls.Config{Certificates: s.TLS.Certificates}).Handshake() // the other end tells
				there.Close()
			}()
			tr, err := newTransport("https://example.com", "", roots, nil, way{dial: func(context.Context, string, string) (net.Conn, error) { return here, nil }})
			if err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			conn, err := tr.dial(t.Context(), "tcp", "example.com:443")
			if !errors.Is(err, want) || time.Since(begin) != min(waits, greetWithin) {
				t.Errorf("a handshake that waits for %s: %v after %s", waits, err, time.Since(begin))
			}
			if err == nil {
				conn.Close()
			}
		})
	}
}

// Plain files are not kept waiting by a server that takes a connection and then
// says nothing.
func TestFallbackBesideASilentServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		keys, inbox, files := disk(t.TempDir()), disk(t.TempDir()), t.TempDir()
		if err := errors.Join(enrolledAs(t, 1).save(keys, identityFile),
			os.WriteFile(filepath.Join(files, uplink.File(policy.TypeGrants)), grants("r", 1, 1, signer()), 0o600)); err != nil {
			t.Fatal(err)
		}
		f := New(Config{URL: "https://example.com", Fallback: []string{files}, PollInterval: time.Minute, Log: hclog.NewNullLogger(),
			Host: &Host{Identity: keys, Inbox: inbox, Agent: &keeper{}, Dial: func(context.Context, string, string) (net.Conn, error) {
				here, _ := net.Pipe()
				return here, nil
			}}})
		var running sync.WaitGroup
		running.Go(func() { f.Run(ctx) })
		time.Sleep(dialWithin + time.Second)
		if _, err := inbox.Read(uplink.File(policy.TypeGrants), policy.MaxEnvelope); err != nil {
			t.Errorf("%s after the start: %v", dialWithin, err)
		}
		cancel()
		running.Wait()
	})
}

// A control plane that has too much to do is not asked by polls as well; where
// something does not let a WebSocket through, it is.
func TestBusyIsNotPolled(t *testing.T) {
	for status, polls := range map[int]bool{503: false, 429: false, 404: true, 400: true} {
		var polled atomic.Bool
		s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == uplink.PathPoll {
				polled.Store(true)
				http.Error(w, "enough", http.StatusTeapot)
				return
			}
			http.Error(w, "no", status)
		}))
		roots := x509.NewCertPool()
		roots.AddCert(s.Certificate())
		dir := t.TempDir()
		f := New(Config{URL: s.URL, Log: hclog.NewNullLogger(), Host: &Host{Identity: disk(dir), Inbox: disk(dir), Agent: newGuard(dir), Roots: roots}})
		if err := enrolledAs(t, 1).save(f.keys, identityFile); err != nil {
			t.Fatal(err)
		}
		err := f.connect(t.Context())
		s.Close() // the server is done: polled is ours
		want := status
		if polls {
			want = http.StatusTeapot
		}
		if polled.Load() != polls || !isStatus(err, want) {
			t.Errorf("%d: polled %v, %v", status, polled.Load(), err)
		}
	}
}

// A WebSocket is tried again soon, and later more rarely.
func TestPollFor(t *testing.T) {
	f := New(Config{Log: hclog.NewNullLogger()})
	last := time.Duration(0)
	for n := range 70 {
		d := f.pollFor()
		if n == 0 && d != shortestPoll || d < last || d > longestPoll {
			t.Fatalf("%d: %s after %s", n, d, last)
		}
		last = d
	}
	if last != longestPoll {
		t.Errorf("%s at last", last)
	}
}
