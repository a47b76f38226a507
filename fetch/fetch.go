// Package fetch is the last mile: the process on a host that brings documents
// from a control plane to the agent's inbox, and the agent's record back.
//
// It opens one connection outwards and accepts none. It judges nothing: what
// it carries is signed, and the agent verifies it. Whoever takes it over can
// withhold documents and deliver old ones, which the agent bounds, and read
// what it carries. Its own key shows the control plane which host it is, and
// opens nothing here.
//
// A WebSocket is tried first, then a poll, and while neither reaches a control
// plane the same signed files are looked for at plain places. Nothing that
// comes from outside, and no clock, makes it throw away a key or a document.
package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Config is what a Fetcher needs. InboxDir, Socket and Log are required, and
// URL or Fallback.
type Config struct {
	URL          string // of the control plane: https://NAME[:PORT]
	CA           string // file with the certificate the server's is signed by; empty: the system's
	IdentityDir  string
	Proxy        string // empty: as the environment says
	Fallback     []string
	PollInterval time.Duration // of looks at Fallback
	InboxDir     string
	Socket       string // the agent's
	Version      string // of this program
	Log          hclog.Logger
	// Alive is called every AlivePace, if that is not zero: the fetcher does not
	// stand still.
	Alive     func()
	AlivePace time.Duration
	// Host takes the place of IdentityDir, InboxDir and Socket, and of the
	// network; nil: this machine has them. It is for whoever keeps many hosts in
	// one process.
	Host *Host
}

// Host is what a Fetcher needs of a host. All but Dial and Roots are required.
type Host struct {
	Identity, Inbox Files
	Agent           Agent
	Dial            func(ctx context.Context, network, address string) (net.Conn, error)
	Roots           *x509.CertPool // who may sign the server's certificate, in place of CA
}

// Times of reconnecting. Which of them applies is drawn by lot, so that hosts
// that lost a server together do not come back together.
const (
	shortestBackOff = 2 * time.Second
	longestBackOff  = time.Minute
	refusedBackOff  = 5 * time.Minute // a control plane that says no means it
	lookBackOff     = 10 * time.Second
	renewEvery      = time.Hour // that a renewal is tried
)

// Fetcher carries documents to one agent.
type Fetcher struct {
	Config
	keys  Files
	inbox inbox
	agent Agent
	lost  chan struct{} // the control plane was not reached
	// Of keepLine's goroutine: how often in a row there was no WebSocket, and
	// whether the last attempt at one ended without an answer.
	polls      int
	unanswered bool

	mu      sync.Mutex
	status  *Status // nil: the agent does not answer
	have    uplink.Versions
	head    uplink.Head
	changed chan struct{} // closed when one of these changes
	reached bool          // a control plane talks to us
	renewed time.Time     // when a renewal was tried last

	resume   tls.ClientSessionCache // of the connections with one certificate
	resumeOf string                 // that certificate
}

// New makes a Fetcher.
func New(c Config) *Fetcher {
	f := &Fetcher{Config: c, lost: make(chan struct{}, 1), changed: make(chan struct{})}
	if c.Host != nil {
		f.keys, f.inbox.dir, f.agent = c.Host.Identity, c.Host.Inbox, c.Host.Agent
	} else {
		f.keys, f.inbox.dir, f.agent = disk(c.IdentityDir), disk(c.InboxDir), newGuard(c.Socket)
	}
	return f
}

// Run fetches until ctx ends. It never gives up: what cannot be reached now is
// tried again.
func (f *Fetcher) Run(ctx context.Context) error {
	var all sync.WaitGroup
	all.Go(func() { f.observe(ctx) })
	if f.AlivePace > 0 {
		all.Go(func() { f.sayAlive(ctx) })
	}
	if len(f.Fallback) > 0 {
		all.Go(func() { f.lookAtPlain(ctx) })
	}
	if f.URL != "" {
		all.Go(func() { f.keepLine(ctx) })
	}
	all.Wait()
	return nil
}

// sayAlive says that the process runs and that f.mu is free, which all of the
// fetcher needs. What it waits for beyond that has an end of its own, or is a disk,
// for which the next one would wait too.
func (f *Fetcher) sayAlive(ctx context.Context) {
	pace := time.NewTicker(f.AlivePace)
	defer pace.Stop()
	for {
		f.isReached()
		f.Alive()
		select {
		case <-ctx.Done():
			return
		case <-pace.C:
		}
	}
}

// keepLine connects, again and again.
func (f *Fetcher) keepLine(ctx context.Context) {
	for failures, said := 0, ""; ; failures++ {
		err := f.connect(ctx)
		if ctx.Err() != nil {
			return
		}
		if f.setReached(false) {
			failures, said = 0, ""
		}
		wait := backOff(failures, err)
		if text := err.Error(); text != said {
			said = text
			f.Log.Warn("no line to the control plane", "error", err, "again", wait.Round(100*time.Millisecond))
		}
		select {
		case f.lost <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// backOff is how long to wait after a number of failures, the last of which
// was err.
func backOff(failures int, err error) time.Duration {
	if sent, ok := errors.AsType[sentAway](err); ok {
		least := time.Duration(sent) * time.Second
		return least + rand.N(least/4+time.Second)
	}
	if errors.Is(err, errRenewed) {
		return 0
	}
	most := min(longestBackOff, shortestBackOff<<min(failures, 10))
	switch {
	case isStatus(err, http.StatusUnauthorized):
		most = refusedBackOff
	case errors.Is(err, errNotEnrolled): // nobody is asked
		most = min(most, lookBackOff)
	}
	return rand.N(most)
}

// sentAway is the error of a control plane that asks to come back later, in so
// many seconds.
type sentAway int

func (s sentAway) Error() string {
	return fmt.Sprintf("the control plane asks to come back in %d seconds", int(s))
}

var (
	errNotEnrolled = errors.New("this host has not enrolled: run jitgate enroll")
	errRenewed     = errors.New("the certificate is renewed: connecting with the new one")
	errEnough      = errors.New("polled long enough: trying a WebSocket again")
)

func isStatus(err error, status int) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && e.status == status
}

// connect connects once, and returns why the connection ended.
func (f *Fetcher) connect(ctx context.Context) error {
	current, err := loadIdentity(f.keys, identityFile)
	if err == nil && current.leaf == nil {
		err = fmt.Errorf("%s has no certificate", filepath.Join(f.IdentityDir, identityFile))
	}
	next, nextErr := loadIdentity(f.keys, nextFile)
	if nextErr == nil && next.leaf != nil {
		gone := f.converse(ctx, next, nextFile)
		if !isStatus(gone, http.StatusUnauthorized) || err != nil {
			return gone
		}
		f.Log.Warn("the control plane does not know the renewed certificate: back to the one before", "error", gone)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errNotEnrolled, err)
	}
	return f.converse(ctx, current, identityFile)
}

// converse connects with one identity, which lies in the file called name.
func (f *Fetcher) converse(ctx context.Context, who identity, name string) error {
	roots, err := f.roots()
	if err != nil {
		return err
	}
	t, err := newTransport(f.URL, f.Proxy, roots, who.forTLS(), way{f.sessions(who), f.dial()})
	if err != nil {
		return err
	}
	defer t.close()
	c := &conversation{Fetcher: f, transport: t, identity: who, file: name, wake: make(chan struct{}, 1)}
	err = c.line(ctx)
	if refused, ok := errors.AsType[upgradeError](err); ok && f.pollsAfter(refused) {
		f.Log.Debug("polling", "because", err)
		err = c.poll(ctx)
	}
	if isStatus(err, http.StatusForbidden) { // the certificate is over; what for else it is good
		return c.renew(ctx)
	}
	return err
}

// roots are who may sign the server's certificate.
func (f *Fetcher) roots() (*x509.CertPool, error) {
	if f.Host != nil && f.Host.Roots != nil {
		return f.Host.Roots, nil
	}
	if f.CA == "" {
		return nil, nil
	}
	text, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("ca: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("ca: %s holds no certificate in PEM", f.CA)
	}
	return pool, nil
}

// sessions are those of TLS that a new connection may go on with: a fleet that
// comes back to a server is spared the most of its handshakes. They belong to
// the certificate they began with.
func (f *Fetcher) sessions(who identity) tls.ClientSessionCache {
	f.mu.Lock()
	defer f.mu.Unlock()
	if of := string(who.leaf.Raw); f.resume == nil || f.resumeOf != of {
		f.resume, f.resumeOf = tls.NewLRUClientSessionCache(sessionsKept), of
	}
	return f.resume
}

// sessionsKept is how many sessions are kept: one for each name of the server
// would do.
const sessionsKept = 2

// dial makes connections; nil: as usual.
func (f *Fetcher) dial() dialer {
	if f.Host == nil {
		return nil
	}
	return f.Host.Dial
}

// setReached notes whether a control plane talks to us, and returns whether
// one did.
func (f *Fetcher) setReached(now bool) (before bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	before, f.reached = f.reached, now
	return before
}

func (f *Fetcher) isReached() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reached
}

// observe follows the agent: its record tells when there is something new.
func (f *Fetcher) observe(ctx context.Context) {
	const beyond = policy.MaxVersion // no record has a line there
	head, err := f.agent.Head(ctx, beyond, 0)
	for said := ""; ; {
		var now Status
		if err == nil {
			now, err = f.agent.Status(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			if said != "" {
				f.Log.Info("the agent answers")
				said = ""
			}
			f.publish(&now, head)
			head, err = f.agent.Head(ctx, head.Seq, uplink.MaxWait*time.Second)
			continue
		}
		if text := err.Error(); text != said && ctx.Err() == nil {
			said = text
			f.Log.Warn("the agent does not answer: documents are delivered all the same", "error", err)
		}
		f.publish(nil, uplink.Head{})
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Second):
		}
		head, err = f.agent.Head(ctx, beyond, 0)
	}
}

// publish takes over what the agent says.
func (f *Fetcher) publish(s *Status, head uplink.Head) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status, f.head = s, head
	if s != nil { // else it has what it had
		f.have = uplink.Versions{Trust: s.of(policy.TypeTrust).Version, Policy: s.of(policy.TypePolicy).Version, Grants: s.of(policy.TypeGrants).Version}
	}
	f.tell()
}

// tell wakes whoever waits for a change. f.mu is held.
func (f *Fetcher) tell() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// changes is closed at the next change.
func (f *Fetcher) changes() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

// report is what there is to say of this host, without lines of the record.
func (f *Fetcher) report() uplink.Up {
	lies := f.inbox.look()
	f.mu.Lock()
	defer f.mu.Unlock()
	up := uplink.Up{Have: f.have, Head: f.head}
	var now Status
	if f.status != nil {
		now = *f.status
		up.Status = &uplink.Status{Mode: now.Mode, Version: f.Version, Install: now.Install, Blocked: uplink.Trim(now.Blocked), Problem: uplink.Trim(now.Problem)}
		for _, o := range now.Openings {
			up.Status.Open = append(up.Status.Open, o.Grant)
		}
	}
	for _, t := range uplink.Documents {
		i, there := lies[t]
		said := now.of(t)
		if there && (f.status == nil || said.Version != i.version || said.Refusal != "") {
			up.Held = append(up.Held, uplink.Held{Type: t, Version: i.version, Digest: i.digest, Refusal: uplink.Trim(said.Refusal)})
		}
	}
	return up
}

// deliver brings a document to the inbox. An error means that it could not be
// written; one that is old, or is none, is left.
func (f *Fetcher) deliver(want policy.Type, raw []byte, from string) error {
	i, err := f.inbox.deliver(want, raw)
	if failed, ok := errors.AsType[writeError](err); ok {
		return failed
	}
	switch {
	case errors.Is(err, errOld):
		f.Log.Debug("a document is not delivered", "document", uplink.File(want), "version", i.version, "from", from, "because", err)
	case err != nil:
		f.Log.Error("a document cannot be delivered", "document", uplink.File(want), "from", from, "error", err)
	default:
		f.Log.Info("delivered", "document", uplink.File(want), "version", i.version, "from", from)
		f.mu.Lock()
		f.tell()
		f.mu.Unlock()
	}
	return nil
}
