package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// record is a sink whose lines can be read: the file.
type record interface {
	Changed() <-chan struct{}
	End() (seq uint64, hash string, err error)
	After(seq uint64, most, size int) ([][]byte, error)
}

// The headers that an answer of /v1/events has: the end of the record when it
// was made.
const (
	HeaderSeq  = "Jitgate-Seq"
	HeaderHash = "Jitgate-Hash"
)

const (
	eventsMost  = 500 // lines of one answer
	eventsSize  = 256 << 10
	eventsWait  = time.Minute
	eventsCalls = 8 // that read or wait at once
)

// eventsCall is what /v1/events was asked for.
type eventsCall struct {
	after uint64
	has   bool // whoever asks keeps the lines up to after
	wait  time.Duration
}

func parseEventsCall(query string) (c eventsCall, err error) {
	q, err := url.ParseQuery(query)
	if err != nil {
		return c, err
	}
	if q.Has("after") && q.Has("from") {
		return c, errors.New("after and from are two ways to say the same")
	}
	for name, values := range q {
		var v uint64
		if v, err = strconv.ParseUint(values[0], 10, 53); err != nil || len(values) > 1 {
			return c, fmt.Errorf("%s is not one number", name)
		}
		switch name {
		case "after":
			c.after, c.has = v, true
		case "from":
			c.after = v
		case "wait":
			c.wait = time.Duration(min(v, uint64(eventsWait/time.Second))) * time.Second
		default:
			return c, fmt.Errorf("%q is neither after, from nor wait", name)
		}
	}
	return c, nil
}

// serveEvents gives the lines of the record behind a number, as they stand in
// the file. Who asks for those after a number keeps what is up to it, so that
// it may go by the record's limits; who asks from one only reads. Where there are none yet it waits for as many seconds as it was
// asked, beside the passes and not between them.
func (a *Agent) serveEvents(w http.ResponseWriter, r *http.Request) {
	file, ok := a.Audit.(record)
	if !ok {
		http.Error(w, "this agent keeps no record that can be read", http.StatusNotFound)
		return
	}
	q, err := parseEventsCall(r.URL.RawQuery)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	select {
	case a.readers <- struct{}{}:
		defer func() { <-a.readers }()
	default:
		http.Error(w, "too many read the record at once", http.StatusServiceUnavailable)
		return
	}
	seq, hash, lines, err := readEvents(r.Context(), file, q)
	if err == nil && q.has && q.after <= seq {
		a.collect(q.after)
	}
	if err != nil {
		if r.Context().Err() == nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	w.Header().Set(HeaderSeq, strconv.FormatUint(seq, 10))
	w.Header().Set(HeaderHash, hash)
	if len(lines) > 0 {
		w.Write(append(bytes.Join(lines, []byte("\n")), '\n')) // a caller that went away is its own problem
	}
}

func readEvents(ctx context.Context, file record, q eventsCall) (seq uint64, hash string, lines [][]byte, err error) {
	enough := time.NewTimer(q.wait)
	defer enough.Stop()
	for {
		changed := file.Changed() // before the look, so that nothing falls between
		if seq, hash, err = file.End(); err != nil {
			return 0, "", nil, err
		}
		if seq > q.after {
			lines, err = file.After(q.after, eventsMost, eventsSize)
			return seq, hash, lines, err
		}
		select {
		case <-changed:
		case <-enough.C:
			return seq, hash, nil, nil
		case <-ctx.Done():
			return 0, "", nil, errors.New("the caller is gone")
		}
	}
}
