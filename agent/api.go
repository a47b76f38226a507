package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// do runs f between two passes and waits for it.
func (a *Agent) do(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case a.calls <- func() { f(); close(done) }:
		<-done
		return nil
	case <-ctx.Done():
		return errors.New("the agent is busy")
	}
}

// patience is how long a caller on the socket waits for a pass to end.
const patience = 10 * time.Second

// handler is the local API. It has no call that opens anything but to the
// session that arms a guard which has let everybody in so far. A document is
// checked and announced here; it comes in by the inbox all the same.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", call(a, func(ctx context.Context, _ caller, _ nothing) (any, error) {
		return a.snapshot(ctx), nil
	}))
	mux.HandleFunc("GET /v1/events", a.serveEvents)
	mux.HandleFunc("GET /metrics", a.serveMetrics)
	mux.HandleFunc("POST /v1/lockdown", call(a, func(ctx context.Context, by caller, _ nothing) (any, error) {
		return nil, a.endAll(ctx, by.String())
	}))
	mux.HandleFunc("POST /v1/arm", call(a, func(ctx context.Context, by caller, q ArmRequest) (any, error) {
		if err := by.mustBeRoot(); err != nil {
			return nil, err
		}
		return a.arm(ctx, by.String(), time.Duration(q.ConfirmWithin)*time.Second, q.Sessions)
	}))
	mux.HandleFunc("POST /v1/arm/confirm", call(a, func(ctx context.Context, by caller, _ nothing) (any, error) {
		if err := by.mustBeRoot(); err != nil {
			return nil, err
		}
		return nil, a.confirm(ctx, by.String())
	}))
	mux.HandleFunc("POST /v1/disarm", call(a, func(ctx context.Context, by caller, q DisarmRequest) (any, error) {
		if err := by.mustBeRoot(); err != nil {
			return nil, err
		}
		return nil, a.disarm(ctx, by.String(), q.mode())
	}))
	mux.HandleFunc("POST /v1/check", callUpTo(maxCheck, a, func(_ context.Context, by caller, q CheckRequest) (any, error) {
		if err := by.mustBeRoot(); err != nil {
			return nil, err
		}
		return a.check(q.Envelope), nil
	}))
	mux.HandleFunc("POST /v1/delivering", call(a, func(ctx context.Context, by caller, q Delivery) (any, error) {
		if err := by.mustBeRoot(); err != nil {
			return nil, err
		}
		return nil, a.delivering(ctx, by, q)
	}))
	mux.HandleFunc("GET /v1/logins", call(a, func(_ context.Context, by caller, _ nothing) (any, error) {
		if err := by.mustTellLogins(); err != nil {
			return nil, err
		}
		return LoginsReport{Cursor: a.loginsUpTo}, nil
	}))
	mux.HandleFunc("POST /v1/logins", call(a, func(ctx context.Context, by caller, q LoginsReport) (any, error) {
		if err := by.mustTellLogins(); err != nil {
			return nil, err
		}
		return nil, a.loggedIn(ctx, q)
	}))
	mux.HandleFunc("POST /v1/reload", a.reloading)
	return confine(mux)
}

// Users of processes that come with the agent.
const (
	loginsUser  = "jitgate-logins"
	metricsUser = "jitgate-metrics"
)

// confined are users that have business with one path alone. They are in the
// socket's group, whose people may ask and end more than that.
var confined = map[string]string{loginsUser: "/v1/logins", metricsUser: "/metrics"}

// confine keeps a confined user to his path.
func confine(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := callerOf(r).user()
		if path, ok := confined[name]; ok && r.URL.Path != path {
			http.Error(w, fmt.Sprintf("%s may ask for %s alone", name, path), http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// ArmRequest asks for a trial.
type ArmRequest struct {
	ConfirmWithin int       `json:"confirmWithin"` // seconds
	Sessions      []Session `json:"sessions"`      // of whoever asks: admitted meanwhile
}

// DisarmRequest asks to stop dropping.
type DisarmRequest struct {
	Observe bool `json:"observe"` // and to go on counting
}

func (q DisarmRequest) mode() Mode {
	if q.Observe {
		return Observe
	}
	return Off
}

// nothing is the body of a request that has none.
type nothing struct{}

// What the body of a request may have, in bytes: of most, and of one that
// holds an envelope in base64.
const (
	maxRequest = 64 << 10
	maxCheck   = policy.MaxEnvelope/3*4 + maxRequest
)

// call makes a handler of f, which runs between two passes. What it returns
// is the answer; an error is one line of text.
func call[Q any](a *Agent, f func(context.Context, caller, Q) (any, error)) http.HandlerFunc {
	return callUpTo(maxRequest, a, f)
}

func callUpTo[Q any](limit int64, a *Agent, f func(context.Context, caller, Q) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		var q Q
		body := json.NewDecoder(http.MaxBytesReader(w, r.Body, limit))
		body.DisallowUnknownFields()
		if err := body.Decode(&q); err != nil && !errors.Is(err, io.EOF) {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		by := callerOf(r)
		var answer any
		var err error
		if busy := a.do(ctx, func() { answer, err = f(ctx, by, q) }); busy != nil {
			http.Error(w, busy.Error(), http.StatusServiceUnavailable)
			return
		}
		switch {
		case errors.Is(err, errNotRoot):
			http.Error(w, err.Error(), http.StatusForbidden)
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		case answer == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(answer) // a caller that went away is its own problem
		}
	}
}

// caller is who is at the other end of a connection, as the kernel says. The
// zero caller is unknown, and may ask for nothing that changes anything.
type caller struct {
	name string // as records show him; empty: unknown
	root bool   // root; on Windows SYSTEM or an administrator
	self bool   // the user the agent runs as
	pid  int
	uid  int // where there are such, and the name is known
}

// String is the caller as records show him.
func (c caller) String() string {
	if c.name == "" {
		return ""
	}
	return fmt.Sprintf("%s, pid %d", c.name, c.pid)
}

func (c caller) mustBeRoot() error {
	if !c.root {
		return errNotRoot
	}
	return nil
}

// mustBeOfTheAgent lets the agent's own user in too, as which its service runs
// what reloads it.
func (c caller) mustBeOfTheAgent() error {
	if c.self {
		return nil
	}
	return c.mustBeRoot()
}

// callerKey is where a request's context holds who calls.
type callerKey struct{}

// withCaller notes whom to ask for who is behind a connection.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, sync.OnceValue(func() caller { return peer(c) }))
}

// callerOf is who sent a request. Of a pipe that is known only once something
// was read from it.
func callerOf(r *http.Request) caller {
	if who, ok := r.Context().Value(callerKey{}).(func() caller); ok {
		return who()
	}
	return caller{}
}
