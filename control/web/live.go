package web

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
)

// livePath is where pages that change by themselves are followed.
const livePath = Prefix + "live"

const (
	// patience is how long one write of a stream may take: a browser that reads
	// no more is cut off.
	patience = 20 * time.Second
	// rest is how much longer than making a page the pause behind it is, so that
	// who follows a dear one, of a hundred thousand machines, costs little. It is
	// no longer than a beat: on a busy machine every page is dear.
	rest = 20
	// mostStreams one person has at a time, on one replica.
	mostStreams = 16
)

// live follows a page: it is made anew whenever something was committed, as if
// the browser had asked for it again, with the rights of that moment, and sent
// if it is another one than before. The first is sent in any case: something
// may have happened since the browser had its page, or lost the line. What
// somebody may not see they are not told to have changed.
func live(c *call) error {
	at, err := url.Parse(c.query("at"))
	if err != nil || at.Scheme != "" || at.Host != "" || !strings.HasPrefix(at.Path, Prefix) || path.Clean(at.Path) != at.Path || at.Path == livePath || strings.HasSuffix(at.Path, ".csv") {
		return control.Refuse(control.Invalid, "InvalidPage", "There is no such page.")
	}
	if !c.enter() {
		return control.Refuse(control.TooMany, "TooManyPages", "You have %d pages open that follow what happens. Close some.", mostStreams)
	}
	defer c.leave()
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no") // nginx holds it back otherwise
	changed := c.Store.Changed(c.ctx)
	beats := time.NewTicker(c.beat)
	defer beats.Stop()
	var last [sha256.Size]byte
	for {
		began := time.Now()
		status, page := c.again(at)
		cost := time.Since(began)
		switch {
		case status == http.StatusOK:
			text := []byte(": alive\n\n")
			if digest := sha256.Sum256(page); digest != last {
				last = digest
				encoded, err := json.Marshal(string(page))
				if err != nil {
					return err
				}
				text = append(append([]byte("data: "), encoded...), "\n\n"...)
			}
			if c.send(text) != nil {
				return nil // the browser went away
			}
		case status < 500 && status != http.StatusTooManyRequests:
			// The session has ended, or a right. The browser shows it by asking.
			c.send([]byte("event: gone\ndata: " + http.StatusText(status) + "\n\n"))
			return nil
		}
		if !pause(c.ctx, max(c.pause, min(rest*cost, c.beat))) {
			return nil
		}
		select {
		case <-c.ctx.Done():
			return nil
		case _, open := <-changed:
			if !open {
				changed = nil // the beats go on
			}
		case <-beats.C:
		}
	}
}

// pause waits, unless ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// enter takes one of a person's streams.
func (c *call) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[c.caller.ID] >= mostStreams {
		return false
	}
	c.streams[c.caller.ID]++
	return true
}

// leave gives it back.
func (c *call) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[c.caller.ID]--; c.streams[c.caller.ID] == 0 {
		delete(c.streams, c.caller.ID)
	}
}

// again asks for a page as the browser would.
func (c *call) again(at *url.URL) (status int, page []byte) {
	r := c.r.Clone(c.ctx)
	r.URL, r.RequestURI = at, at.RequestURI()
	kept := &kept{header: http.Header{}, status: http.StatusOK}
	c.Web.ServeHTTP(kept, r)
	return kept.status, kept.body.Bytes()
}

// kept is an answer that goes nowhere yet.
type kept struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) WriteHeader(status int)      { k.status = status }
func (k *kept) Write(b []byte) (int, error) { return k.body.Write(b) }

// send writes one piece of a stream.
func (c *call) send(text []byte) error {
	c.extend()
	if _, err := c.w.Write(text); err != nil {
		return err
	}
	return http.NewResponseController(c.w).Flush()
}

// extend gives the next write of a long answer its time: the server's limit is
// for answers that are soon over.
func (c *call) extend() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := http.NewResponseController(c.w).SetWriteDeadline(deadline); err != nil {
		c.Log.Error("a long answer keeps the limit of a short one", "call", c.id, "error", err)
	}
}
