package api

import (
	"context"
	"encoding/csv"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/go-json-experiment/json"

	"github.com/jitgate/jitgate/control"
)

// activityFilter reads what lines of the log a call is about.
func (c *call) activityFilter() (f control.ActivityFilter, err error) {
	if f.Scope, err = c.scope(); err != nil {
		return f, err
	}
	if f.Event, err = c.one("event"); err != nil {
		return f, err
	}
	if f.Actor, err = c.one("actor"); err != nil {
		return f, err
	}
	if f.From, err = c.when("from"); err != nil {
		return f, err
	}
	f.To, err = c.when("to")
	return f, err
}

// seq reads the Seq of a line.
func seq(name, s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, invalid("InvalidQueryParameter", "%s=%s: say the seq of a line.", name, clip(s))
	}
	return n, nil
}

func listActivity(c *call) error {
	f, err := c.activityFilter()
	if err != nil {
		return err
	}
	order, err := c.one("order")
	if err != nil {
		return err
	}
	switch order {
	case "", "newest":
		f.Newest = true
	case "oldest":
	default:
		return invalid("InvalidQueryParameter", "order=%s: say newest or oldest.", clip(order))
	}
	after, err := c.one("after")
	if err != nil {
		return err
	}
	if f.After, err = seq("after", after); err != nil {
		return err
	}
	format, err := c.one("format")
	if err != nil {
		return err
	}
	if format == "" && strings.Contains(c.r.Header.Get("Accept"), "text/csv") {
		format = "csv"
	}
	switch format {
	case "csv":
		return c.activityCSV(f)
	case "", "json":
	default:
		return invalid("InvalidQueryParameter", "format=%s: say json or csv.", clip(format))
	}
	if f.Limit, err = c.top("top", 100); err != nil {
		return err
	}
	page, next, err := c.api.Engine.ListActivity(c.ctx, c.caller, f)
	if err != nil {
		return err
	}
	out := list[control.Activity]{Value: page}
	if next != 0 {
		out.Next = strconv.FormatUint(next, 10)
	}
	return c.ok(out)
}

// patience is how long one write of a stream may take: a client that reads no
// more is cut off.
const patience = 20 * time.Second

// extend gives the next write of a stream its time: the server's WriteTimeout
// is for calls that are soon over.
func (c *call) extend() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	deadline, _ := ctx.Deadline()
	if err := http.NewResponseController(c.w).SetWriteDeadline(deadline); err != nil {
		c.api.Log.Error("a stream keeps the limit of a short call", "call", c.id, "error", err)
	}
}

// activityCSV sends every line the filter selects, page by page as the store
// gives them. A failure on the way cuts the connection, so that nobody takes
// half of the log for all of it.
func (c *call) activityCSV(f control.ActivityFilter) error {
	f.Limit = maxPage
	var w *csv.Writer
	for {
		page, next, err := c.api.Engine.ListActivity(c.ctx, c.caller, f)
		if err != nil {
			if w == nil {
				return err
			}
			c.api.Log.Error("a download of the activity log was cut short", "call", c.id, "error", err)
			panic(http.ErrAbortHandler)
		}
		c.extend()
		if w == nil {
			h := c.w.Header()
			h.Set("Content-Type", "text/csv; charset=utf-8; header=present")
			h.Set("Content-Disposition", `attachment; filename="activity-`+c.api.Now().UTC().Format("20060102T150405Z")+`.csv"`)
			c.w.WriteHeader(http.StatusOK)
			w = csv.NewWriter(c.w)
			w.UseCRLF = true
			w.Write(control.ActivityColumns()) // its error stays in w
		}
		for _, a := range page {
			w.Write(a.Cells())
		}
		w.Flush()
		if w.Error() != nil || next == 0 {
			return nil // the client went away, or that was all
		}
		f.After = next
	}
}

// retry is how long a client waits before it comes again, in milliseconds.
const retry = 2000

// followActivity sends lines of the log as they come, after the one the caller
// had last. The id of each is its Seq, from which a client that was cut off
// goes on.
func followActivity(c *call) error {
	f, err := c.activityFilter()
	if err != nil {
		return err
	}
	name, text := "Last-Event-ID", c.r.Header.Get("Last-Event-ID")
	if text == "" {
		name = "after"
		if text, err = c.one(name); err != nil {
			return err
		}
	}
	after, err := seq(name, text)
	if err != nil {
		return err
	}
	// A refusal needs a status, so it is asked for before the stream begins.
	// Who does not say where to begin gets what is yet to come.
	newest := f
	newest.Newest, newest.Limit = true, 1
	last, _, err := c.api.Engine.ListActivity(c.ctx, c.caller, newest)
	if err != nil {
		return err
	}
	if text == "" && len(last) > 0 {
		after = last[0].Seq
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/event-stream; charset=utf-8")
	h.Set("X-Accel-Buffering", "no") // nginx holds it back otherwise
	c.w.WriteHeader(http.StatusOK)
	s := &stream{c: c}
	if err := s.send(fmt.Sprintf("retry: %d\n\n", retry)); err != nil {
		return nil // the client went away
	}
	ctx, cancel := context.WithCancel(c.ctx)
	var beats sync.WaitGroup
	beats.Go(func() { defer cancel(); s.beat(ctx) })
	err = c.api.Engine.FollowActivity(ctx, c.caller, f, after, s.line)
	if ctx.Err() == nil {
		c.api.Log.Error("a stream of the activity log ended", "call", c.id, "error", err)
	}
	cancel()
	beats.Wait() // the writer is gone once we return
	return nil
}

// stream is the answer of followActivity. Lines and heartbeats come from two
// goroutines.
type stream struct {
	c  *call
	mu sync.Mutex
}

// send writes one piece of the stream.
func (s *stream) send(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.c.extend()
	if _, err := io.WriteString(s.c.w, text); err != nil {
		return err
	}
	return http.NewResponseController(s.c.w).Flush()
}

func (s *stream) line(a control.Activity) error {
	b, err := json.Marshal(a)
	if err != nil {
		return err
	}
	return s.send(fmt.Sprintf("id: %d\nevent: %s\ndata: %s\n\n", a.Seq, a.Event, b))
}

// beat keeps the stream alive until the client is gone or its token is no
// good any more.
func (s *stream) beat(ctx context.Context) {
	ticks := time.NewTicker(s.c.api.heartbeat)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		if _, err := s.c.api.Identity.Authenticate(ctx, s.c.bearer); err != nil {
			return
		}
		if err := s.send(": alive\n\n"); err != nil {
			return
		}
	}
}
