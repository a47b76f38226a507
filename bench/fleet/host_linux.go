package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/fetch"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// memory is a directory of files that is nowhere else. written, if not nil, is
// told of each file that was.
type memory struct {
	mu      sync.Mutex
	files   map[string][]byte
	written func(name string, data []byte)
}

func newMemory() *memory { return &memory{files: map[string][]byte{}} }

// Read implements fetch.Files.
func (m *memory) Read(name string, most int64) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return data[:min(int64(len(data)), most)], nil
}

// Replace implements fetch.Files.
func (m *memory) Replace(name string, data []byte, _ fs.FileMode) error {
	m.mu.Lock()
	m.files[name] = data
	m.mu.Unlock()
	if m.written != nil {
		m.written(name, data)
	}
	return nil
}

// Rename implements fetch.Files.
func (m *memory) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	data, ok := m.files[from]
	if !ok {
		return fs.ErrNotExist
	}
	m.files[to] = data
	delete(m.files, from)
	return nil
}

// Remove implements fetch.Files.
func (m *memory) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.files, name)
	return nil
}

// host is a simulated machine: its fetcher is the real one, and its agent does
// with documents what a real one does, up to the firewall. It verifies, admits
// and evaluates them with the same code, keeps a chained record, and reports.
type host struct {
	crew            *crew
	number          int
	id              string
	identity, inbox *memory

	mu       sync.Mutex
	trust    policy.Trust
	policy   policy.Policy
	grants   policy.Grants
	state    policy.State
	refusals map[policy.Type]error
	open     map[string]netip.Prefix // grants in force, by id
	lines    [][]byte                // of the record
	head     uplink.Head
	changed  chan struct{} // closed at the next line
}

func newHost(c *crew, number int, identity []byte) (*host, error) {
	h := &host{crew: c, number: number, id: machine(number), identity: newMemory(), inbox: newMemory(),
		refusals: map[policy.Type]error{}, open: map[string]netip.Prefix{}, head: uplink.Head{Hash: uplink.Genesis}, changed: make(chan struct{})}
	h.inbox.written = h.admit
	h.record(audit.Event{Name: audit.AgentStarted})
	return h, h.identity.Replace("identity.pem", identity, 0o600)
}

// installOf is what a machine says of its agent's installation.
func installOf(machine int) string { return fmt.Sprintf("%032x", machine) }

// homeOf is a machine's own address: one address has too few ports for a
// fleet.
func homeOf(machine int) net.IP {
	return net.IPv4(127, 0, byte(1+machine%64), byte(1+machine/64%250))
}

// fetcher is the real one, with this host in the place of a machine.
func (h *host) fetcher() *fetch.Fetcher {
	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: homeOf(h.number)}}
	return fetch.New(fetch.Config{URL: "https://" + h.crew.Replicas[0], PollInterval: time.Minute, Version: "fleet", Log: h.crew.quiet, Host: &fetch.Host{
		Identity: h.identity, Inbox: h.inbox, Agent: h, Roots: h.crew.roots, Dial: balanced(from, h.crew.Replicas, h.number),
	}})
}

// admit is what an agent does with a document that was delivered.
func (h *host) admit(name string, raw []byte) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	switch name {
	case uplink.File(policy.TypeTrust):
		h.judge(policy.TypeTrust, h.admitTrust(raw, now))
	case uplink.File(policy.TypePolicy):
		h.judge(policy.TypePolicy, h.admitPolicy(raw, now))
		if h.refusals[policy.TypeGrants] != nil {
			if raw, err := h.inbox.Read(uplink.File(policy.TypeGrants), policy.MaxEnvelope); err == nil {
				h.judge(policy.TypeGrants, h.admitGrants(raw, now))
			}
		}
	case uplink.File(policy.TypeGrants):
		h.judge(policy.TypeGrants, h.admitGrants(raw, now))
	}
}

// judge keeps what became of a document.
func (h *host) judge(t policy.Type, err error) {
	h.refusals[t] = err
	if err != nil {
		h.record(audit.Event{Name: audit.DocumentRefused, Document: word[t], Code: string(policy.CodeOf(err)), Message: err.Error()})
		return
	}
	mark := markOf(h.state, t)
	h.record(audit.Event{Name: audit.DocumentAdmit, Document: word[t], Version: mark.Version, Digest: mark.Digest.String()})
	h.evaluate(time.Now())
	if t == policy.TypePolicy && len(h.policy.Ports) > 0 {
		h.tell(news{Event: admitted, Longest: h.policy.Ports[0].MaxRequestAccessDuration})
	}
}

// tell tells whoever measures.
func (h *host) tell(n news) {
	n.Machine, n.At = h.number, time.Now()
	h.crew.tell(n)
}

var word = map[policy.Type]string{policy.TypeTrust: "trust", policy.TypePolicy: "policy", policy.TypeGrants: "grants"}

// markOf is what a state says of one kind of document.
func markOf(s policy.State, t policy.Type) policy.Mark {
	switch t {
	case policy.TypeTrust:
		return s.Trust
	case policy.TypePolicy:
		return s.Policy
	}
	return s.Grants
}

func (h *host) facts(now time.Time) policy.Facts { return policy.Facts{Host: h.id, Now: now} }

func (h *host) admitTrust(raw []byte, now time.Time) error {
	var v policy.Verified[policy.Trust]
	var err error
	if h.trust.Version == 0 {
		v, err = policy.OpenPinnedTrust(raw, h.crew.Pin)
	} else {
		v, err = policy.OpenTrust(raw, h.trust)
	}
	if err != nil {
		return err
	}
	if h.state, err = policy.AdmitTrust(h.state, v, h.trust, h.facts(now)); err == nil {
		h.trust = v.Document()
	}
	return err
}

func (h *host) admitPolicy(raw []byte, now time.Time) error {
	v, err := policy.OpenPolicy(raw, h.trust)
	if err != nil {
		return err
	}
	if h.state, err = policy.AdmitPolicy(h.state, v, h.trust, h.facts(now)); err == nil {
		h.policy = v.Document()
	}
	return err
}

func (h *host) admitGrants(raw []byte, now time.Time) error {
	v, err := policy.OpenGrants(raw, h.trust)
	if err != nil {
		return err
	}
	if h.state, err = policy.AdmitGrants(h.state, v, h.trust, h.policy, h.facts(now)); err == nil {
		h.grants = v.Document()
	}
	return err
}

// evaluate opens and closes what the documents in force say.
func (h *host) evaluate(now time.Time) {
	d := policy.Evaluate(h.state, h.trust, h.policy, h.grants, h.facts(now))
	listed := map[string]bool{}
	for _, v := range d.Verdicts {
		if d.Blocked != nil || v.Refusal != nil || v.Phase != policy.PhaseActive || len(v.Grant.Sources) == 0 {
			continue
		}
		g := v.Grant
		listed[g.ID] = true
		if _, ok := h.open[g.ID]; ok {
			continue
		}
		h.open[g.ID] = g.Sources[0]
		h.tell(news{Event: opened, Request: numberOf(g.Sources[0].Addr())})
		e := audit.Event{Name: audit.GrantOpening, GrantID: g.ID, Port: g.Number, Source: g.Sources[0].String(), End: g.End, Requestor: g.Requestor}
		h.record(e)
		e.Name = audit.GrantOpened
		h.record(e)
	}
	for id, source := range h.open {
		if !listed[id] {
			delete(h.open, id)
			h.tell(news{Event: closed, Request: numberOf(source.Addr())})
			h.record(audit.Event{Name: audit.GrantRevoked, GrantID: id, Source: source.String()})
		}
	}
}

// recordLine is an event as it stands in an agent's record.
type recordLine struct {
	Seq  uint64 `json:"seq"`
	Prev string `json:"prev"`
	audit.Event
}

func (h *host) record(e audit.Event) {
	e.Time = time.Now().UTC()
	text, err := json.Marshal(recordLine{h.head.Seq + 1, h.head.Hash, e})
	if err != nil {
		panic(err) // our own plain struct
	}
	sum := sha256.Sum256(text)
	h.lines = append(h.lines, text)
	h.head = uplink.Head{Seq: h.head.Seq + 1, Hash: hex.EncodeToString(sum[:])}
	close(h.changed)
	h.changed = make(chan struct{})
}

// Status implements fetch.Agent.
func (h *host) Status(context.Context) (fetch.Status, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := fetch.Status{Mode: "enforce", Install: installOf(h.number)}
	for id := range h.open {
		s.Openings = append(s.Openings, fetch.StatusGrant{Grant: id})
	}
	for _, t := range uplink.Documents {
		d := fetch.StatusDocument{Document: word[t], Version: markOf(h.state, t).Version}
		if err := h.refusals[t]; err != nil {
			d.Refusal = err.Error()
		}
		s.Docs = append(s.Docs, d)
	}
	return s, nil
}

// Events implements fetch.Agent.
func (h *host) Events(_ context.Context, after uint64) ([][]byte, uplink.Head, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.behind(after), h.head, nil
}

// Head implements fetch.Agent.
func (h *host) Head(ctx context.Context, than uint64, wait time.Duration) (uplink.Head, error) {
	enough := time.NewTimer(wait)
	defer enough.Stop()
	for {
		h.mu.Lock()
		head, changed := h.head, h.changed
		h.mu.Unlock()
		if head.Seq > than || wait == 0 {
			return head, nil
		}
		select {
		case <-changed:
		case <-enough.C:
			return head, nil
		case <-ctx.Done():
			return head, ctx.Err()
		}
	}
}

// behind are the lines after a number, a copy of the list.
func (h *host) behind(after uint64) [][]byte {
	if after >= h.head.Seq {
		return nil
	}
	return slices.Clone(h.lines[after:])
}
