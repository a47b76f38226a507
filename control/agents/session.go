package agents

import (
	"context"
	"crypto/x509"
	"errors"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// session is one agent that listens: on a WebSocket, or for the time of one
// poll.
//
// Ten thousand of them are idle at a time, so an idle one is small: a WebSocket
// has one goroutine, which reads, and gets another while there is something to
// write.
type session struct {
	line   *Line
	who    control.Recognised
	cert   *x509.Certificate // signed by the agents' authority
	socket *uplink.Socket    // nil: a poll
	cancel context.CancelFunc
	ctx    context.Context
	wake   chan struct{} // of a poll: something lies in a queue

	mu      sync.Mutex
	ready   bool                        // the agent has said what it has
	writing bool                        // somebody writes to the socket
	over    bool                        // nobody begins to
	have    uplink.Versions             // in force there
	held    []uplink.Held               // there, and not in force
	kinds   [len(uplink.Documents)]kind // in their order
	down    uplink.Down                 // what else there is to say
	spoken  bool                        // down has something
	looked  time.Time                   // when the certificate was looked at last
	writer  sync.WaitGroup
}

// kind is where a session stands with one kind of document.
type kind struct {
	sent sent      // the last one
	next *document // the newest that is not sent
}

// sent is a document that was sent; zero: none.
type sent struct{ version, seq uint64 }

// kind returns where the session stands with a kind of document.
func (s *session) kind(t policy.Type) *kind {
	return &s.kinds[slices.Index(uplink.Documents[:], t)]
}

// open makes a session and subscribes it; what is committed from now on
// reaches its queue. It is nil where the line is leaving.
func (l *Line) open(who control.Recognised, cert *x509.Certificate, socket *uplink.Socket) *session {
	ctx, cancel := context.WithCancel(context.Background())
	s := &session{line: l, who: who, cert: cert, socket: socket, ctx: ctx, cancel: cancel, looked: l.Now().Add(-rand.N(recheckEvery / 2))}
	if socket == nil {
		s.wake = make(chan struct{}, 1)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.leaving {
		cancel()
		return nil
	}
	key := who.VM.Key()
	l.sessions[key] = append(l.sessions[key], s)
	l.ending.Add(1)
	if socket != nil {
		l.metrics.connected.Inc()
	}
	return s
}

// close ends the subscription.
func (s *session) close() {
	s.cancel()
	l := s.line
	l.mu.Lock()
	defer l.mu.Unlock()
	key := s.who.VM.Key()
	if rest := slices.DeleteFunc(l.sessions[key], func(o *session) bool { return o == s }); len(rest) > 0 {
		l.sessions[key] = rest
	} else {
		delete(l.sessions, key)
	}
	if s.socket != nil {
		l.metrics.connected.Dec()
	}
	l.ending.Done()
}

// offer puts a document into the queue, in place of an older one of its type.
// Who was sent away gets none.
func (s *session) offer(d *document) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || !s.wants(d) {
		return
	}
	k := s.kind(d.Type)
	if k.next != nil && !d.newer(sent{k.next.Version, k.next.Seq}) {
		return
	}
	k.next = d
	s.signal()
}

// newer reports whether d comes after another document of its type. Of those a
// control plane wrote it is the one with the higher Seq; trust documents come
// by version, one by one.
func (d *document) newer(than sent) bool {
	if d.Type == policy.TypeTrust {
		return d.Version > than.version
	}
	return d.Seq > than.seq
}

// wants reports whether the agent has yet to get d.
func (s *session) wants(d *document) bool {
	if was := s.kind(d.Type).sent; was != (sent{}) && !d.newer(was) {
		return false
	}
	for _, h := range s.held {
		if h.Type == d.Type && h.Digest == d.digest {
			return false
		}
	}
	return !s.ready || d.Version > s.have.Of(d.Type)
}

// isNext reports whether a trust document is the next for the host. Where it is
// not, or is not known to be, those before it come first, as the host says what
// it has.
func (s *session) isNext(d *document) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ready && d.Version == s.have.Trust+1
}

// signal has what there is to say said. s.mu is held.
func (s *session) signal() {
	if s.socket == nil {
		select {
		case s.wake <- struct{}{}:
		default:
		}
		return
	}
	if !s.writing && !s.over {
		s.writing = true
		s.writer.Go(s.write)
	}
}

// say puts something into the next message.
func (s *session) say(change func(*uplink.Down)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.down)
	s.spoken = true
	s.signal()
}

// next takes what there is to say, or nothing: then the other end has all.
func (s *session) next() (uplink.Down, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	down, some := s.down, s.spoken
	s.down, s.spoken = uplink.Down{}, false
	if !s.ready {
		return down, some
	}
	for i, t := range uplink.Documents {
		k := &s.kinds[i]
		d := k.next
		k.next = nil
		if d == nil || !s.wants(d) {
			continue
		}
		k.sent = sent{d.Version, d.Seq}
		down.Documents, some = append(down.Documents, uplink.Document{Type: t, Version: d.Version, Signed: d.Signed}), true
		s.line.metrics.pushes.WithLabelValues(uplink.File(t)).Inc()
	}
	return down, some
}

// told takes over what the agent says it has, and returns whether it says so for
// the first time, and of which types the store is to be asked for newer ones. The
// session is subscribed by now, so that nothing falls between: what is committed
// from now on is offered by itself, and the store is asked for the rest once. It is
// asked again where the agent has something other than it had and was sent.
func (s *session) told(up uplink.Up) (first bool, ask []policy.Type) {
	s.mu.Lock()
	defer s.mu.Unlock()
	first = !s.ready
	for i, t := range uplink.Documents {
		has, had := up.Have.Of(t), s.have.Of(t)
		if has < had {
			s.kinds[i].sent = sent{} // the host lost what it had
		}
		// Trust documents come one by one: after each there may be a next.
		if first || has != had && (t == policy.TypeTrust || has != s.kinds[i].sent.version) {
			ask = append(ask, t)
		}
	}
	s.have, s.held, s.ready = up.Have, up.Held, true
	return first, ask
}

// untold has the same message, when it comes again, ask for all.
func (s *session) untold() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = false
}

// queue offers what the store has, and lets go what was offered before the agent
// said what it has.
func (s *session) queue(stored []control.Document) {
	for _, d := range stored {
		whole, err := digested(d)
		if err != nil {
			s.line.Log.Error("a document cannot be sent", "error", err)
			continue // the others can
		}
		s.offer(whole)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.signal()
}

// take deals with a message of the agent.
func (s *session) take(ctx context.Context, up uplink.Up) error {
	done, err := s.line.turn(ctx)
	if err != nil {
		return err
	}
	defer done()
	first, ask := s.told(up)
	reported, err := s.line.Engine.Report(ctx, s.who.VM, up, ask...)
	if refusal := control.AsError(err); refusal != nil && refusal.Code == "InvalidRecord" {
		// A record that a sick disk spoiled does not keep documents from its host.
		s.line.Log.Warn("lines of a record cannot be read", "vm", s.who.VM, "error", err)
		up.Lines = nil
		reported, err = s.line.Engine.Report(ctx, s.who.VM, up, ask...)
		reported.Refused = refusal.Message
	}
	if err != nil {
		if len(ask) > 0 {
			s.untold()
		}
		return err
	}
	s.line.metrics.reports.Inc()
	s.queue(reported.Documents)
	if first || len(up.Lines) > 0 || reported.Refused != "" {
		head := uplink.Head(reported.Head)
		due := s.who.Due(s.line.Now())
		s.say(func(d *uplink.Down) { d.Ack, d.Refused, d.Renew = &head, uplink.Trim(reported.Refused), due })
	}
	return nil
}

// serve is a WebSocket's life.
func (s *session) serve() {
	defer s.close()
	defer s.socket.Cut()
	err := s.read()
	s.cancel()
	s.mu.Lock()
	s.over = true
	s.mu.Unlock()
	s.writer.Wait()
	closed := &uplink.Closed{}
	switch refusal := control.AsError(err); {
	case refusal != nil:
		s.line.metrics.refused.WithLabelValues(refusal.Code).Inc()
		s.line.Log.Warn("an agent is sent away", "vm", s.who.VM, "error", err)
		s.socket.Close(uplink.CloseRefused, refusal.Message)
	case !errors.As(err, &closed):
		s.line.Log.Debug("the line to an agent broke", "vm", s.who.VM, "error", err)
	}
}

func (s *session) read() error {
	s.socket.Heard = func() { s.line.heard(s.who.VM) }
	for {
		text, err := s.socket.Read(uplink.MaxUp)
		if err != nil {
			return err
		}
		// In a goroutine of its own: what a message takes of the stack would stay
		// with the one that waits.
		taken := make(chan error, 1)
		go func() { taken <- s.insist(text) }()
		if err := <-taken; err != nil {
			return err
		}
	}
}

// insist takes a message, again and again while the store does not answer: an
// agent does not have to come anew for that.
func (s *session) insist(text []byte) error {
	s.line.metrics.bytes.WithLabelValues("up").Add(float64(len(text)))
	up, err := uplink.ParseUp(text)
	if err != nil {
		return malformed(err)
	}
	if err := s.line.limitsOf(s.who.VM).wait(s.ctx, len(up.Lines)); err != nil {
		return err
	}
	for wait := 250 * time.Millisecond; ; wait *= 2 {
		err := s.take(s.ctx, up)
		refusal := control.AsError(err)
		passes := err != nil && (refusal == nil || refusal.Kind == control.Unavailable)
		if !passes || wait > uplink.PingEvery {
			return err
		}
		s.line.putOff(s.who.VM, err)
		select {
		case <-s.ctx.Done():
			return s.ctx.Err()
		case <-time.After(wait):
		}
	}
}

// putOff notes that a report has to wait. Where one has to, thousands may: one of
// them is logged now and then, and the metric has all.
func (l *Line) putOff(vm control.VMID, err error) {
	l.metrics.putOff.Inc()
	level := hclog.Debug
	if l.warns.Allow() {
		level = hclog.Warn
	}
	l.Log.Log(level, "a report cannot be taken, trying again", "vm", vm, "error", err)
}

// recheck sends an agent away that has been revoked, or whose certificate is
// over, and says when that is due for renewal.
func (s *session) recheck() {
	who, err := s.line.recognise(s.ctx, s.cert, true)
	switch {
	case isGone(who, err):
		s.sendAway("the certificate is good no longer")
	case err == nil && who.Due(s.line.Now()):
		s.say(func(d *uplink.Down) { d.Renew = true })
	}
}

// sendAway closes the connection without waiting for it: an agent that does not
// read must not hold up the others.
func (s *session) sendAway(why string) {
	if s.socket != nil {
		go s.socket.Close(uplink.CloseRefused, why)
		time.AfterFunc(cutAfter, func() { s.socket.Cut() })
	}
	s.cancel()
}

// write says what there is to say, and ends when that is all.
func (s *session) write() {
	for {
		down, some := s.next()
		if !some && s.silent() || s.ctx.Err() != nil {
			return
		}
		if !some {
			continue
		}
		text := uplink.Encode(down)
		s.line.metrics.bytes.WithLabelValues("down").Add(float64(len(text)))
		if err := s.socket.Write(text); err != nil {
			s.socket.Cut() // the reader notices
			return
		}
		if down.BackOff > 0 {
			s.socket.Close(uplink.CloseGoing, "come back later")
			return
		}
	}
}

// silent reports whether there is nothing to say after all, and if so leaves the
// socket to the next who has.
func (s *session) silent() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	some := s.spoken
	for _, k := range s.kinds {
		some = some || s.ready && k.next != nil
	}
	s.writing = some
	return !some
}

// servePoll is the line without a WebSocket: it takes a report, and answers as
// soon as there is something to say, or after as long as the fetcher asked.
func (l *Line) servePoll(w http.ResponseWriter, r *http.Request) {
	l.metrics.polls.Inc()
	down, err := l.poll(w, r)
	if err != nil {
		l.fail(w, r, err)
		return
	}
	text := uplink.Encode(down)
	l.metrics.bytes.WithLabelValues("down").Add(float64(len(text)))
	writeMessage(w, text)
}

func (l *Line) poll(w http.ResponseWriter, r *http.Request) (uplink.Down, error) {
	who, cert, err := l.agent(r)
	if err == nil {
		err = l.place(r.Context())
	}
	if err != nil {
		return uplink.Down{}, err
	}
	text, err := body(w, r, uplink.MaxUp)
	if err != nil {
		return uplink.Down{}, err
	}
	l.metrics.bytes.WithLabelValues("up").Add(float64(len(text)))
	up, err := uplink.ParseUp(text)
	if err != nil {
		return uplink.Down{}, malformed(err)
	}
	l.heard(who.VM)
	s := l.open(who, cert, nil)
	if s == nil {
		return uplink.Down{}, errLeaving
	}
	defer s.close()
	if err := l.limitsOf(who.VM).wait(r.Context(), len(up.Lines)); err != nil {
		return uplink.Down{}, err
	}
	if err := s.take(r.Context(), up); err != nil {
		return uplink.Down{}, err
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(time.Duration(up.Wait)*time.Second + bodyWithin))
	// The acknowledgement alone is no reason to answer at once.
	down, _ := s.next()
	enough := time.NewTimer(time.Duration(up.Wait) * time.Second)
	defer enough.Stop()
	for len(down.Documents) == 0 && len(up.Lines) == 0 && down.BackOff == 0 {
		select {
		case <-enough.C:
			l.heard(who.VM)
			return down, nil
		case <-r.Context().Done():
			return uplink.Down{}, r.Context().Err()
		case <-s.ctx.Done(): // revoked meanwhile
			return uplink.Down{}, control.Refuse(control.Unknown, "InvalidCertificate", "The agent was revoked: enrol again with jitgate enroll.")
		case <-s.wake:
		}
		more, _ := s.next()
		down.Documents, down.BackOff = more.Documents, more.BackOff
	}
	return down, nil
}

var _ http.Handler = (*Line)(nil)
