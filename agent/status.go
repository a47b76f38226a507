package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Status is what an agent says of itself on its socket. It is a copy.
type Status struct {
	Host     string           `json:"host"`
	Mode     Mode             `json:"mode"`
	Since    time.Time        `json:"since"`
	Guarded  []string         `json:"guarded"`
	Firewall string           `json:"firewall"`
	Intact   bool             `json:"intact"` // at the last look
	Denied   uint64           `json:"denied"` // packets dropped, or counted in mode observe
	Openings []OpeningStatus  `json:"openings"`
	Pending  []OpeningStatus  `json:"pending"`
	Refused  []OpeningStatus  `json:"refused"`
	Exempt   []string         `json:"exempt"`
	Docs     []DocumentStatus `json:"documents"`
	Blocked  string           `json:"blocked,omitempty"` // why nothing may open now
	Problem  string           `json:"problem,omitempty"` // what the last pass could not do
}

// OpeningStatus is one grant: open, waiting for its start, or refused.
type OpeningStatus struct {
	Grant       string    `json:"grant"`
	Port        uint16    `json:"port"`
	Protocol    string    `json:"protocol,omitempty"`
	Sources     []string  `json:"sources"`
	Start       time.Time `json:"start"`
	End         time.Time `json:"end"`
	SecondsLeft int       `json:"secondsLeft,omitempty"`
	Requestor   string    `json:"requestor"`
	Reason      string    `json:"reason,omitempty"`
	Refusal     string    `json:"refusal,omitempty"`
}

// DocumentStatus tells the document in force and the last one refused apart.
type DocumentStatus struct {
	Document string    `json:"document"`
	Version  uint64    `json:"version"` // in force; 0: none
	Issued   time.Time `json:"issued,omitzero"`
	Expires  time.Time `json:"expires,omitzero"`
	// Refusal says why what lies in the inbox is not in force.
	Refusal string    `json:"refusal,omitempty"`
	Refused time.Time `json:"refused,omitzero"`
}

// snapshot makes the status of now.
func (a *Agent) snapshot(ctx context.Context) Status {
	s := Status{
		Host: a.Settings.HostID, Mode: a.Settings.Mode, Since: a.started.UTC(), Guarded: formatPorts(a.guarded()),
		Firewall: a.Backend.Describe(), Intact: a.have.Intact,
		Openings: []OpeningStatus{}, Pending: []OpeningStatus{}, Refused: []OpeningStatus{}, Exempt: []string{},
	}
	denied, err := a.Backend.Denied(ctx)
	s.Denied = denied.Packets
	if err := errors.Join(a.problem, err); err != nil {
		s.Problem = err.Error()
	}
	if a.decision.Blocked != nil {
		s.Blocked = a.decision.Blocked.Error()
	} else {
		for _, p := range a.decision.Exempt {
			s.Exempt = append(s.Exempt, p.String())
		}
	}
	now := a.Clock.Boot()
	for _, v := range a.decision.Verdicts {
		o := OpeningStatus{Grant: v.Grant.ID, Port: v.Grant.Number, Protocol: string(v.Port.Protocol), Start: v.Grant.Start, End: v.Grant.End,
			Requestor: v.Grant.Requestor, Reason: v.Grant.Justification}
		for _, p := range v.Grant.Sources {
			o.Sources = append(o.Sources, p.String())
		}
		live, open := a.live[v.Grant.ID]
		switch {
		case v.Refusal != nil:
			o.Refusal = v.Refusal.Error()
			s.Refused = append(s.Refused, o)
		case open && live.until > now:
			o.SecondsLeft = int(live.until.Sub(now).Round(time.Second) / time.Second)
			s.Openings = append(s.Openings, o)
		case v.Phase == policy.PhasePending && !slices.Contains(a.mark.Void, v.Grant.ID):
			s.Pending = append(s.Pending, o)
		}
	}
	slices.SortStableFunc(s.Openings, func(a, b OpeningStatus) int { return cmp.Compare(a.SecondsLeft, b.SecondsLeft) })
	for k, h := range [kinds]policy.Header{a.docs.trust.Header, a.docs.policy.Header, a.docs.grants.Header} {
		d := DocumentStatus{Document: Kind(k).String(), Version: h.Version, Issued: h.Issued, Expires: h.Expires}
		if r := a.refusals[k]; r.err != nil {
			d.Refusal, d.Refused = r.err.Error(), r.when.UTC()
		}
		s.Docs = append(s.Docs, d)
	}
	return s
}

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

// handler is the local API. It has no call that opens anything.
func (a *Agent) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		var s Status
		if err := a.do(ctx, func() { s = a.snapshot(ctx) }); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(s) // a caller that went away is its own problem
	})
	mux.HandleFunc("POST /v1/lockdown", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), patience)
		defer cancel()
		var err error
		if busy := a.do(ctx, func() { err = a.endAll(ctx, caller(r)) }); busy != nil {
			err = busy
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	return mux
}

// listen opens the socket, in place of one a dead agent left. The lock on the
// state directory has made sure that it is dead. The socket gets its name
// only once it has its mode, so that nobody comes in between.
func listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	temporary := path + ".new"
	if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	l.SetUnlinkOnClose(false) // it goes by another name then
	if err := errors.Join(os.Chmod(temporary, 0o660), os.Rename(temporary, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// callerKey is where a request's context holds who calls.
type callerKey struct{}

// withCaller notes who is behind a connection, as the kernel says.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, callerKey{}, peer(c))
}

// caller is who called, as records show it; empty where the platform does not
// tell.
func caller(r *http.Request) string {
	who, _ := r.Context().Value(callerKey{}).(string)
	return who
}
