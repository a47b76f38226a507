package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"mime"
	"net/http"
	"strconv"
	"time"
)

const (
	maxEvent = 1 << 20 // bytes of one line of a stream
	// silence is how long a stream may say nothing: the server sends a sign of
	// life four times as often.
	silence = time.Minute
)

// Follow lists the lines of the activity log after the Seq after, and goes on
// with those that are yet to come, until ctx ends or the server refuses. A
// stream that breaks is taken up again where it was.
func (c *Client) Follow(ctx context.Context, f ActivityFilter, after uint64) iter.Seq2[Activity, error] {
	return func(yield func(Activity, error) bool) {
		stopped := false
		for try := 1; ; try++ {
			err := c.follow(ctx, f, after, func(a Activity) bool {
				if a.Seq > after { // what was seen before the break comes once
					after, try = a.Seq, 0
					stopped = !yield(a, nil)
				}
				return !stopped
			})
			if stopped {
				return
			}
			if ctx.Err() != nil {
				yield(Activity{}, ctx.Err())
				return
			}
			wait := backoff(c.first, try)
			if e, ok := errors.AsType[*Error](err); ok {
				if e.Status < 500 && e.Status != http.StatusTooManyRequests {
					yield(Activity{}, err)
					return
				}
				wait = max(wait, min(e.RetryAfter, maxWait))
			}
			if !pause(ctx, wait) {
				yield(Activity{}, ctx.Err())
				return
			}
		}
	}
}

// errStopped ends a stream whose reader wants no more.
var errStopped = errors.New("enough")

// follow reads one stream until it breaks or each returns false.
func (c *Client) follow(ctx context.Context, f ActivityFilter, after uint64, each func(Activity) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(c.silent, func() { cancel(errors.New("the stream went silent")) })
	defer watchdog.Stop()
	k := call{method: http.MethodGet, path: activityPath + "/stream", query: query("scope", f.Scope, "event", f.Event, "actor", f.Actor),
		header: http.Header{"Accept": {"text/event-stream"}, "Last-Event-Id": {strconv.FormatUint(after, 10)}}}
	resp, err := c.send(ctx, k, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type")); err != nil || t != "text/event-stream" {
		return fmt.Errorf("%s is no stream of events", c.base.Host)
	}
	return events(resp.Body, func() { watchdog.Reset(c.silent) }, func(data []byte) error {
		var a Activity
		if err := json.Unmarshal(data, &a); err != nil {
			return fmt.Errorf("an event cannot be read: %s", clip(err.Error()))
		}
		if !each(a) {
			return errStopped
		}
		return nil
	})
}

// events reads server-sent events and calls each with the data of every one.
// alive is called with each line, also one that says nothing.
//
// https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
func events(r io.Reader, alive func(), each func(data []byte) error) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxEvent)
	var data []byte
	has := false
	for lines.Scan() {
		alive()
		line := lines.Bytes() // without its end, which may be CR LF
		if len(line) == 0 {
			if has {
				if err := each(data); err != nil {
					return err
				}
			}
			data, has = nil, false
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if string(name) != "data" {
			continue // the id is in the data too, a comment only shows life
		}
		if has {
			data = append(data, '\n')
		}
		data, has = append(data, bytes.TrimPrefix(value, []byte(" "))...), true
		if len(data) > maxEvent {
			return fmt.Errorf("an event has more than %d bytes", maxEvent)
		}
	}
	if err := lines.Err(); err != nil {
		return err
	}
	return io.ErrUnexpectedEOF // a stream has no end of its own
}
