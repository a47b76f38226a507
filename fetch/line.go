package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/jitgate/jitgate/uplink"
)

const (
	// How long polling goes on before a WebSocket is tried again: the first time,
	// when it may have been the server that was slow, and at most.
	shortestPoll = time.Minute
	longestPoll  = 15 * time.Minute
	// ackWithin is how long an acknowledgement is waited for before lines are
	// sent again.
	ackWithin = time.Minute
	// breath is the least time between two messages, but for what it takes to
	// settle: a document that was delivered is in force a moment later, and both
	// are said in one message.
	breath = 150 * time.Millisecond
	settle = 50 * time.Millisecond
)

// conversation is one connection to a control plane, by one of the two ways.
type conversation struct {
	*Fetcher
	transport *transport
	identity  identity
	file      string        // where the identity lies
	wake      chan struct{} // acked, refused or asked to renew

	mu      sync.Mutex
	heard   bool
	acked   *uplink.Head // nil: not said yet
	refused bool
	flight  time.Time // when lines were sent that are not acknowledged; zero: none
	askedTo bool      // renew
}

// line talks on a WebSocket until that ends.
func (c *conversation) line(ctx context.Context) error {
	socket, err := c.transport.webSocket(ctx)
	if err != nil {
		return err
	}
	c.polls, c.unanswered = 0, false
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { socket.Cut() })
	defer stop()
	var reader sync.WaitGroup
	defer reader.Wait()
	defer socket.Cut()
	reader.Go(func() {
		for {
			text, err := socket.Read(uplink.MaxDown)
			if err == nil {
				err = c.hear(text, true)
			}
			if err != nil {
				cancel(err)
				return
			}
		}
	})
	c.Log.Info("connected to the control plane", "url", c.URL)
	return c.talk(ctx, func(up uplink.Up) error { return socket.Write(uplink.Encode(up)) }, socket.Ping)
}

// poll talks by calls until it is time to try a WebSocket again.
func (c *conversation) poll(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	enough := time.AfterFunc(c.pollFor(), func() { cancel(errEnough) })
	defer enough.Stop()
	var listener sync.WaitGroup
	defer listener.Wait()
	defer cancel(nil)
	listener.Go(func() {
		for {
			up := c.report()
			up.Wait = uplink.MaxWait
			// What it acknowledges is from when it was asked.
			if err := c.ask(ctx, up, false); err != nil {
				cancel(err)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(breath + settle):
			}
		}
	})
	return c.talk(ctx, func(up uplink.Up) error { return c.ask(ctx, up, true) }, func() error { return nil })
}

// pollsAfter reports whether to poll after an attempt at a WebSocket that ended so.
// What lets none through may end it without a word, and so does a server that is
// killed or has too much to do: without an answer it is tried once more.
func (f *Fetcher) pollsAfter(e upgradeError) bool {
	before := f.unanswered
	f.unanswered = !e.answered
	return e.answered || before
}

// pollFor is how long to poll this time.
func (f *Fetcher) pollFor() time.Duration {
	d := min(longestPoll, shortestPoll<<min(f.polls, 10))
	f.polls++
	return d
}

// ask is one poll. fresh says that what it acknowledges counts.
func (c *conversation) ask(ctx context.Context, up uplink.Up, fresh bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(up.Wait)*time.Second+answerWithin)
	defer cancel()
	text, err := c.transport.call(ctx, http.MethodPost, uplink.PathPoll, uplink.Encode(up), uplink.MaxDown)
	if err != nil {
		return err
	}
	return c.hear(text, fresh)
}

// talk says what there is to say, whenever that changes.
func (c *conversation) talk(ctx context.Context, send func(uplink.Up) error, ping func() error) error {
	ticks := time.NewTicker(uplink.PingEvery)
	defer ticks.Stop()
	var last []byte
	for {
		changed := c.changes() // before the look, so that nothing falls between
		if err := c.renewIfDue(ctx); err != nil {
			return err
		}
		up := c.report()
		plain := uplink.Encode(up)
		up.Lines = c.lines(ctx, up.Head)
		if len(up.Lines) > 0 || !bytes.Equal(plain, last) {
			if err := send(up); err != nil {
				return why(ctx, err)
			}
			last = plain
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(breath): // what changes in one breath is said in one
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-changed:
		case <-c.wake:
		case <-ticks.C:
			if err := ping(); err != nil {
				return why(ctx, err)
			}
			continue
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(settle):
		}
	}
}

// why is the reason for which ctx was ended, or err.
func why(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// lines are those of the agent's record that the control plane has yet to get.
func (c *conversation) lines(ctx context.Context, head uplink.Head) [][]byte {
	c.mu.Lock()
	acked, wait := c.acked, c.refused || !c.flight.IsZero() && time.Since(c.flight) < ackWithin
	c.mu.Unlock()
	if acked == nil || wait || head.Seq <= acked.Seq {
		return nil
	}
	lines, _, err := c.agent.Events(ctx, acked.Seq)
	if err != nil {
		return nil // the agent stopped: it is observed
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.flight = time.Now()
	return lines
}

// hear deals with a message of the control plane. Where it is not fresh, what it
// acknowledges is of no account.
func (c *conversation) hear(text []byte, fresh bool) error {
	down, err := uplink.ParseDown(text)
	if err != nil {
		return fmt.Errorf("what the control plane says cannot be read: %w", err)
	}
	if err := c.hearFirst(); err != nil {
		return err
	}
	for _, t := range uplink.Documents {
		i := slices.IndexFunc(down.Documents, func(d uplink.Document) bool { return d.Type == t })
		if i < 0 {
			continue
		}
		// What could not be written is sent again after a new connection.
		if err := c.deliver(t, down.Documents[i].Signed, c.URL); err != nil {
			return err
		}
	}
	c.mu.Lock()
	if down.Ack != nil && fresh {
		c.acked, c.flight = down.Ack, time.Time{}
	}
	if down.Refused != "" && !c.refused {
		c.refused = true
		c.Log.Error("the control plane does not take the record of this host", "because", down.Refused)
	}
	c.askedTo = c.askedTo || down.Renew
	c.mu.Unlock()
	select {
	case c.wake <- struct{}{}:
	default:
	}
	if down.BackOff > 0 {
		return sentAway(down.BackOff)
	}
	return nil
}

// hearFirst notes that the control plane knows this identity. A renewed one
// then takes the place of the one before.
func (c *conversation) hearFirst() error {
	c.mu.Lock()
	first := !c.heard
	c.heard = true
	c.mu.Unlock()
	if !first {
		return nil
	}
	c.setReached(true)
	if c.file == nextFile {
		if err := c.keys.Rename(nextFile, identityFile); err != nil {
			return fmt.Errorf("the renewed identity: %w", err)
		}
		c.file = identityFile
		c.Log.Info("the renewed certificate is in use", "until", c.identity.leaf.NotAfter.UTC().Format(time.RFC3339))
		return nil
	}
	// The one in use is known, so one that was renewed to and is not was never
	// taken over.
	return c.keys.Remove(nextFile)
}

// renewIfDue renews the certificate when the control plane says that it is
// time, at most once an hour. This host's own clock is not asked: it may be
// anywhere.
func (c *conversation) renewIfDue(ctx context.Context) error {
	now := time.Now()
	c.mu.Lock()
	due := c.heard && c.askedTo
	c.mu.Unlock()
	c.Fetcher.mu.Lock()
	due = due && now.Sub(c.renewed).Abs() >= renewEvery
	c.Fetcher.mu.Unlock()
	if !due {
		return nil
	}
	if err := c.renew(ctx); errors.Is(err, errRenewed) {
		return err
	} else if err != nil {
		c.Log.Warn("the certificate cannot be renewed now", "error", err)
	}
	return nil
}

// renew gets a certificate for a new key, and returns errRenewed once it is on
// the disk. The one in use stays until the new one has worked.
func (c *conversation) renew(ctx context.Context) error {
	c.Fetcher.mu.Lock()
	c.renewed = time.Now()
	c.Fetcher.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	next, err := newIdentity("")
	if err != nil {
		return err
	}
	csr, err := next.request()
	if err != nil {
		return err
	}
	text, err := c.transport.call(ctx, http.MethodPost, uplink.PathRenew, uplink.Encode(uplink.RenewRequest{CSR: csr}), uplink.MaxEnrolled)
	if err != nil {
		return fmt.Errorf("renewal: %w", err)
	}
	answer, err := uplink.ParseCertificate(text)
	if err == nil {
		next, err = next.certified(answer.Chain)
	}
	if err != nil {
		return fmt.Errorf("renewal: %w", err)
	}
	if err := next.save(c.keys, nextFile); err != nil {
		return fmt.Errorf("renewal: %w", err)
	}
	return errRenewed
}
