package agents_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/control/agents"
	"github.com/jitgate/jitgate/uplink"
)

// asks is a client with a certificate that keeps its sessions of TLS, and no
// connections.
type asks struct {
	t      *testing.T
	client *http.Client
}

func (w *world) asks(t *testing.T, cert tls.Certificate) asks {
	c := &tls.Config{RootCAs: w.roots, MinVersion: tls.VersionTLS13, ClientSessionCache: tls.NewLRUClientSessionCache(1),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil }}
	return asks{t, &http.Client{Transport: &http.Transport{TLSClientConfig: c, DisableKeepAlives: true}, Timeout: 20 * time.Second}}
}

// again asks for the machine's own document, and says what the answer is and
// whether a session went on.
func (a asks) again(url string) (status int, resumed bool) {
	a.t.Helper()
	answer := must(a.client.Get(url + uplink.PathDocuments + "trust.json"))(a.t)
	defer answer.Body.Close()
	must(io.ReadAll(answer.Body))(a.t) // the ticket comes before it
	return answer.StatusCode, answer.TLS.DidResume
}

// A machine's session goes on, on another replica too. One that began with a
// certificate of somebody else's does not, whatever name and key that has: else
// it would be asked once who signed it, and never again.
func TestResumedSessions(t *testing.T) {
	w := newWorld(t)
	h := w.host("web1")
	if out, code := h.enroll(w, w.join(h.vm.Scope(), 1)); code != 0 {
		t.Fatal(out)
	}
	own := h.identity()
	own.Leaf = must(x509.ParseCertificate(own.Certificate[0]))(t)
	// For the same machine and key, and for longer than the control plane gives it.
	ca, caKey := authority(t, "agents")
	forged := own
	forged.Leaf = nil
	forged.Certificate = [][]byte{must(x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(7), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(50, 0, 0),
		URIs: own.Leaf.URIs}, ca, own.PrivateKey.(*ecdsa.PrivateKey).Public(), caKey))(t)}

	serve := func(e *control.Engine, resume bool) string {
		l := agents.New(agents.Config{Engine: e, Store: w.store, Log: hclog.NewNullLogger()})
		s := httptest.NewUnstartedServer(l)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{w.serverCert}, ClientAuth: tls.RequestClientCert, NextProtos: []string{"http/1.1"}}
		s.TLS.SetSessionTicketKeys([][32]byte{{1}})
		if resume {
			l.Resume(s.TLS)
		}
		s.StartTLS()
		t.Cleanup(s.Close)
		return s.URL
	}
	anew := w.engine.Config
	anew.CA, anew.CAKey = ca, caKey
	one, other, plain, next := serve(w.engine, true), serve(w.engine, true), serve(w.engine, false), serve(control.New(anew), true)
	type step struct {
		url     string
		status  int
		resumed bool
	}
	for what, c := range map[string]struct {
		cert  tls.Certificate
		steps []step
	}{
		"the machine":       {own, []step{{one, 200, false}, {one, 200, true}, {other, 200, true}, {one, 200, true}}},
		"a forged one":      {forged, []step{{one, 401, false}, {one, 401, false}, {other, 401, false}}},
		"as it was before":  {own, []step{{plain, 200, false}, {plain, 200, true}, {one, 200, false}, {one, 200, true}}},
		"the same, forged":  {forged, []step{{plain, 401, false}, {plain, 401, true}, {one, 401, false}, {one, 401, false}}},
		"forged, went back": {forged, []step{{one, 401, false}, {plain, 401, true}, {one, 401, false}}},
		"another authority": {own, []step{{one, 200, false}, {one, 200, true}, {next, 401, false}, {next, 401, false}}},
	} {
		t.Run(what, func(t *testing.T) {
			a := w.asks(t, c.cert)
			for i, s := range c.steps {
				if status, resumed := a.again(s.url); status != s.status || resumed != s.resumed {
					t.Errorf("step %d: %d, resumed: %t, and not %d, %t", i, status, resumed, s.status, s.resumed)
				}
			}
		})
	}

	// Whose session goes on is looked up as ever.
	a := w.asks(t, own)
	if status, _ := a.again(one); status != 200 {
		t.Fatal(status)
	}
	if err := w.engine.RevokeAgent(t.Context(), w.owner, h.vm, "stolen"); err != nil {
		t.Fatal(err)
	}
	if status, resumed := a.again(one); status != 401 || !resumed {
		t.Errorf("revoked: %d, resumed: %t", status, resumed)
	}
}
