// Package agents is the control plane's end of the line to the hosts: it lets
// them enrol, gives each its own documents as soon as they are committed, and
// takes their reports.
//
// Who a connection belongs to is what its certificate says. No route names a
// machine, so that no agent can ask for another's. What is pushed is a matter
// of speed only: an agent that missed something is given it by the sweep, or
// when it comes again.
package agents

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gobwas/ws"
	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Config is what a Line needs. Engine, Store and Log are required.
type Config struct {
	Engine *control.Engine
	Store  control.Store
	Log    hclog.Logger
	// Registry gets the line's metrics; nil: nobody does.
	Registry *prometheus.Registry
	Now      func() time.Time // nil: time.Now
	// ServerCA is the PEM of the certificate that Engine.ServerCA is the digest
	// of; empty: the system's store knows the server's.
	ServerCA []byte
}

// The line's budgets. A storm of agents must leave the rest of the control
// plane room to work.
const (
	atOnce     = 16               // agents that say hello, poll or report
	queueFor   = 10 * time.Second // that one waits for its turn
	bodyWithin = 30 * time.Second // that one may take to send what it has to say
	enrolRate  = 10               // enrolments a second, over all
	enrolBurst = 40
	upRate     = 5 // messages a second of one agent
	upBurst    = 50
	lineRate   = 50 // lines of its record a second
	lineBurst  = 20_000
)

const (
	sweepEvery   = 5 * time.Second
	seenEvery    = 30 * time.Second
	recheckEvery = 10 * time.Minute
	recheckTick  = 10 * time.Second
	warnEvery    = 10 * time.Second
	pageSize     = 500
	// comeBack is over how long agents that are sent away spread their return.
	comeBack = 20 * time.Second
)

// Line is an http.Handler for everything below /agent/v1/. Run feeds it.
type Line struct {
	Config
	mux     *http.ServeMux
	turns   chan struct{}
	enrols  *rate.Limiter
	warns   *rate.Limiter // of reports that are put off
	metrics metrics

	resumes bool // sessions of TLS, as Resume has them

	placed chan struct{} // closed when Run knows from where on it follows

	mu       sync.Mutex
	sessions map[string][]*session // by Key of the machine
	limits   map[string]*limits    // the same
	seen     map[string]time.Time
	leaving  bool
	ending   sync.WaitGroup
}

// New makes a Line.
func New(c Config) *Line {
	if c.Now == nil {
		c.Now = time.Now
	}
	l := &Line{Config: c, mux: http.NewServeMux(), turns: make(chan struct{}, atOnce), enrols: rate.NewLimiter(enrolRate, enrolBurst), warns: rate.NewLimiter(rate.Every(warnEvery), 1),
		placed: make(chan struct{}), sessions: map[string][]*session{}, limits: map[string]*limits{}, seen: map[string]time.Time{}}
	l.metrics = newMetrics(c.Registry)
	l.mux.HandleFunc("GET "+uplink.PathCA, l.serveCA)
	l.mux.HandleFunc("POST "+uplink.PathEnroll, l.serveEnroll)
	l.mux.HandleFunc("POST "+uplink.PathRenew, l.serveRenew)
	l.mux.HandleFunc("GET "+uplink.PathLine, l.serveLine)
	l.mux.HandleFunc("POST "+uplink.PathPoll, l.servePoll)
	l.mux.HandleFunc("GET "+uplink.PathDocuments+"{name}", l.serveDocument)
	return l
}

// ServeHTTP implements http.Handler.
func (l *Line) ServeHTTP(w http.ResponseWriter, r *http.Request) { l.mux.ServeHTTP(w, r) }

// fail answers with an error, in one line of text. What is our own fault is
// logged, and not told.
func (l *Line) fail(w http.ResponseWriter, r *http.Request, err error) {
	refusal := control.AsError(err)
	if refusal == nil {
		if r.Context().Err() != nil {
			return // the other end is gone
		}
		l.Log.Error("the line to the agents", "path", r.URL.Path, "error", err)
		refusal = control.Refuse(control.Unavailable, "Unavailable", "The control plane cannot answer now. Try again.")
	}
	status := map[control.Kind]int{control.Invalid: http.StatusBadRequest, control.Unknown: http.StatusUnauthorized, control.Forbidden: http.StatusForbidden,
		control.NotFound: http.StatusNotFound, control.Conflict: http.StatusConflict, control.Precondition: http.StatusPreconditionFailed,
		control.TooMany: http.StatusTooManyRequests, control.Unavailable: http.StatusServiceUnavailable}[refusal.Kind]
	if status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests {
		w.Header().Set("Retry-After", strconv.Itoa(jitter()))
	}
	l.metrics.refused.WithLabelValues(refusal.Code).Inc()
	http.Error(w, refusal.Message, status)
}

// jitter is in how many seconds somebody who is sent away may come back.
func jitter() int { return 1 + rand.IntN(int(comeBack/time.Second)) }

var (
	errBusy    = control.Refuse(control.Unavailable, "Busy", "Too many agents come at once. Come back later.")
	errLeaving = control.Refuse(control.Unavailable, "Stopping", "This replica stops. Come back later.")
	errNoCert  = control.Refuse(control.Unknown, "NoCertificate", "An agent shows its certificate here: enrol it with jitgate enroll.")
	errNoCA    = control.Refuse(control.NotFound, "NoCA", "The server's certificate is one that systems trust by themselves.")
)

// turn waits for a place among those that are served at once.
func (l *Line) turn(ctx context.Context) (done func(), err error) {
	enough := time.NewTimer(queueFor)
	defer enough.Stop()
	select {
	case l.turns <- struct{}{}:
		return func() { <-l.turns }, nil
	case <-enough.C:
		return nil, errBusy
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// limits are what one agent may send, by all its connections.
type limits struct{ ups, lines *rate.Limiter }

// limitsOf returns those of a machine.
func (l *Line) limitsOf(vm control.VMID) *limits {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := vm.Key()
	if l.limits[key] == nil {
		l.limits[key] = &limits{rate.NewLimiter(upRate, upBurst), rate.NewLimiter(lineRate, lineBurst)}
	}
	return l.limits[key]
}

// wait waits until a message with so many lines may be dealt with.
func (m *limits) wait(ctx context.Context, lines int) error {
	if err := m.ups.Wait(ctx); err != nil {
		return err
	}
	return m.lines.WaitN(ctx, lines)
}

// full reports whether nothing is known by them any more.
func (m *limits) full() bool { return m.ups.Tokens() >= upBurst && m.lines.Tokens() >= lineBurst }

// place waits until Run follows what is committed: a session that reads the
// store before could miss what comes next.
func (l *Line) place(ctx context.Context) error {
	enough := time.NewTimer(queueFor)
	defer enough.Stop()
	select {
	case <-l.placed:
		return nil
	case <-enough.C:
		return errBusy
	case <-ctx.Done():
		return ctx.Err()
	}
}

// recognise says who is at the other end, by a certificate that is known to be
// signed, or one that is not.
func (l *Line) recognise(ctx context.Context, cert *x509.Certificate, signed bool) (control.Recognised, error) {
	done, err := l.turn(ctx)
	if err != nil {
		return control.Recognised{}, err
	}
	defer done()
	if signed {
		return l.Engine.RecogniseSigned(ctx, cert)
	}
	return l.Engine.Recognise(ctx, cert)
}

// isGone reports whether an error of recognise is final: anything else passes.
func isGone(who control.Recognised, err error) bool {
	refusal := control.AsError(err)
	return err == nil && who.Expired || refusal != nil && refusal.Kind == control.Unknown
}

// certificate is the one the other end showed, now or when its session began. The
// TLS layer has made sure that it has the key.
func (l *Line) certificate(r *http.Request) (cert *x509.Certificate, signed bool, err error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil, false, errNoCert
	}
	return r.TLS.PeerCertificates[0], l.resumes && r.TLS.DidResume, nil
}

// agent is who asks; an expired certificate is good for nothing here.
func (l *Line) agent(r *http.Request) (control.Recognised, *x509.Certificate, error) {
	cert, signed, err := l.certificate(r)
	if err != nil {
		return control.Recognised{}, nil, err
	}
	who, err := l.recognise(r.Context(), cert, signed)
	if err == nil && who.Expired {
		err = control.Refuse(control.Forbidden, "CertificateExpired", "The certificate expired at %s: renew it.", who.Expires.UTC().Format(time.RFC3339))
	}
	return who, cert, err
}

// body reads a request's body whole, in a time of its own: the server's is for
// the admin's calls.
func body(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, error) {
	_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyWithin)) // where the connection has deadlines
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err != nil {
		return nil, control.Refuse(control.Invalid, "InvalidBody", "The body cannot be read, or is longer than %d bytes.", limit)
	}
	return b, nil
}

func malformed(err error) error {
	return control.Refuse(control.Invalid, "InvalidMessage", "%v", err)
}

func (l *Line) serveCA(w http.ResponseWriter, r *http.Request) {
	if len(l.ServerCA) == 0 {
		l.fail(w, r, errNoCA)
		return
	}
	w.Header().Set("Content-Type", "application/x-pem-file")
	w.Write(l.ServerCA)
}

func (l *Line) serveEnroll(w http.ResponseWriter, r *http.Request) {
	answer, err := l.enroll(w, r)
	if err != nil {
		l.fail(w, r, err)
		return
	}
	writeMessage(w, uplink.Encode(answer))
}

func (l *Line) enroll(w http.ResponseWriter, r *http.Request) (uplink.Certificate, error) {
	if !l.enrols.Allow() {
		return uplink.Certificate{}, errBusy
	}
	text, err := body(w, r, uplink.MaxSmall)
	if err != nil {
		return uplink.Certificate{}, err
	}
	q, err := uplink.ParseEnrollRequest(text)
	if err != nil {
		return uplink.Certificate{}, malformed(err)
	}
	done, err := l.turn(r.Context())
	if err != nil {
		return uplink.Certificate{}, err
	}
	defer done()
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	e, err := l.Engine.Enrol(r.Context(), control.EnrolInput{Token: q.Token, HostID: q.Host, CSR: q.CSR, Install: q.Install, Version: q.Version, Address: host})
	if err != nil {
		return uplink.Certificate{}, err
	}
	return uplink.Certificate{Host: e.VM.String(), Chain: e.Chain, Trust: e.Trust}, nil
}

func (l *Line) serveRenew(w http.ResponseWriter, r *http.Request) {
	answer, err := l.renew(w, r)
	if err != nil {
		l.fail(w, r, err)
		return
	}
	writeMessage(w, uplink.Encode(answer))
}

func (l *Line) renew(w http.ResponseWriter, r *http.Request) (uplink.Certificate, error) {
	cert, signed, err := l.certificate(r)
	if err != nil {
		return uplink.Certificate{}, err
	}
	who, err := l.recognise(r.Context(), cert, signed)
	if err != nil {
		return uplink.Certificate{}, err
	}
	text, err := body(w, r, uplink.MaxSmall)
	if err != nil {
		return uplink.Certificate{}, err
	}
	q, err := uplink.ParseRenewRequest(text)
	if err != nil {
		return uplink.Certificate{}, malformed(err)
	}
	chain, err := l.Engine.Renew(r.Context(), who, q.CSR)
	return uplink.Certificate{Host: who.VM.String(), Chain: chain}, err
}

func writeMessage(w http.ResponseWriter, message []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(message)
}

// serveDocument gives an agent one of its own documents as a file.
func (l *Line) serveDocument(w http.ResponseWriter, r *http.Request) {
	who, _, err := l.agent(r)
	if err != nil {
		l.fail(w, r, err)
		return
	}
	for _, t := range uplink.Documents {
		if uplink.File(t) != r.PathValue("name") {
			continue
		}
		stored, err := l.Engine.DocumentsFor(r.Context(), who.VM, control.Versions{}, t)
		if err == nil && len(stored) == 0 {
			break
		}
		var d *document
		if err == nil {
			d, err = digested(stored[0])
		}
		if err != nil {
			l.fail(w, r, err)
			return
		}
		tag := strconv.Quote(fmt.Sprintf("%d-%s", d.Version, d.digest))
		w.Header().Set("ETag", tag)
		w.Header().Set("Cache-Control", "private, no-cache")
		l.heard(who.VM)
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(http.StatusNotModified)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(d.Signed)
		return
	}
	l.fail(w, r, control.Refuse(control.NotFound, "DocumentNotFound", "There is no such document for this machine."))
}

// document is a stored document with the digest of its payload.
type document struct {
	control.Document
	digest policy.Digest
}

func digested(d control.Document) (*document, error) {
	e, err := policy.ParseEnvelope(d.Signed)
	if err != nil {
		return nil, fmt.Errorf("stored %s of %s: %w", d.Type, d.VM, err)
	}
	return &document{d, e.Digest()}, nil
}

// heard notes that a machine was heard of. It is written with others, not one
// by one.
func (l *Line) heard(vm control.VMID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seen[vm.Key()] = l.Now().UTC()
}

// serveLine is the WebSocket.
func (l *Line) serveLine(w http.ResponseWriter, r *http.Request) {
	who, cert, err := l.agent(r)
	if err == nil {
		err = l.place(r.Context())
	}
	if err == nil && l.isLeaving() {
		err = errLeaving
	}
	if err != nil {
		l.fail(w, r, err)
		return
	}
	conn, rw, _, err := ws.HTTPUpgrader{Timeout: queueFor}.Upgrade(r, w)
	if err != nil {
		return // the upgrader has answered
	}
	socket := uplink.NewSocket(conn, rw.Reader, false)
	s := l.open(who, cert, socket)
	if s == nil {
		if socket.Write(uplink.Encode(uplink.Down{BackOff: jitter()})) == nil {
			socket.Close(uplink.CloseGoing, "this replica stops")
		}
		socket.Cut()
		return
	}
	// Not in this goroutine: net/http keeps its buffers for as long as that lives.
	go s.serve()
}

func (l *Line) isLeaving() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leaving
}
