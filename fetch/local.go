package fetch

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/local"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// Agent is a host's agent.
type Agent interface {
	Status(context.Context) (Status, error)
	// Events returns lines of the record behind a number, and where it ends. Who
	// asks keeps those before: the agent may remove them.
	Events(ctx context.Context, after uint64) (lines [][]byte, head uplink.Head, err error)
	// Head returns where the record ends, once it is longer than a number or
	// the wait is over. Nothing is kept by it.
	Head(ctx context.Context, than uint64, wait time.Duration) (uplink.Head, error)
}

// guard is the agent on this host, behind its socket.
type guard struct {
	client *http.Client
}

func newGuard(socket string) guard {
	return guard{&http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return local.Dial(ctx, socket)
		},
		MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second,
	}}}
}

// maxStatus bounds what is read of the agent's answers, in bytes.
const maxStatus = 8 << 20

func (l guard) get(ctx context.Context, path string) (http.Header, []byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent"+path, nil)
	if err != nil {
		return nil, nil, err
	}
	response, err := l.client.Do(request)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	answer, err := readUpTo(response.Body, maxStatus)
	if err == nil && response.StatusCode != http.StatusOK {
		err = &agentError{response.StatusCode, strings.TrimSpace(string(answer))}
	}
	return response.Header, answer, err
}

// agentError is an answer other than the one hoped for.
type agentError struct {
	status  int
	message string
}

func (e *agentError) Error() string {
	return fmt.Sprintf("the agent answers %d: %s", e.status, e.message)
}

// Status is what the agent says of itself, as far as it goes up.
type Status struct {
	Install  string           `json:"install"`
	Mode     string           `json:"mode"`
	Openings []StatusGrant    `json:"openings"`
	Docs     []StatusDocument `json:"documents"`
	Blocked  string           `json:"blocked"`
	Problem  string           `json:"problem"`
}

// StatusGrant is a grant in force.
type StatusGrant struct {
	Grant string `json:"grant"`
}

// StatusDocument is what is in force of one kind of document, and what is said of
// the one that lies in the inbox.
type StatusDocument struct {
	Document string `json:"document"`
	Version  uint64 `json:"version"`
	Refusal  string `json:"refusal"`
}

// of is what the agent says of one type of document.
func (s Status) of(t policy.Type) StatusDocument {
	for _, d := range s.Docs {
		if d.Document+".json" == uplink.File(t) {
			return d
		}
	}
	return StatusDocument{}
}

// Status implements Agent.
func (l guard) Status(ctx context.Context) (s Status, err error) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	_, text, err := l.get(ctx, "/v1/status")
	if err == nil {
		err = json.Unmarshal(text, &s)
	}
	return s, err
}

// Events implements Agent.
func (l guard) Events(ctx context.Context, after uint64) (lines [][]byte, head uplink.Head, err error) {
	return l.events(ctx, fmt.Sprintf("after=%d", after), 0)
}

// Head implements Agent.
func (l guard) Head(ctx context.Context, than uint64, wait time.Duration) (uplink.Head, error) {
	_, head, err := l.events(ctx, fmt.Sprintf("from=%d&wait=%d", than, int(wait/time.Second)), wait)
	return head, err
}

func (l guard) events(ctx context.Context, query string, wait time.Duration) (lines [][]byte, head uplink.Head, err error) {
	ctx, cancel := context.WithTimeout(ctx, wait+15*time.Second)
	defer cancel()
	header, text, err := l.get(ctx, "/v1/events?"+query)
	if err != nil {
		return nil, head, err
	}
	head.Hash = header.Get("Jitgate-Hash")
	if head.Seq, err = strconv.ParseUint(header.Get("Jitgate-Seq"), 10, 53); err != nil {
		return nil, uplink.Head{}, errors.New("the agent does not say where its record ends")
	}
	if head.Seq == 0 {
		return nil, uplink.Head{}, nil
	}
	for line := range bytes.Lines(text) {
		lines = append(lines, bytes.TrimSuffix(line, []byte("\n")))
	}
	return lines, head, nil
}
