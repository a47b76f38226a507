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
	fleet           *fleet
	number          int
	id              string
	identity, inbox *memory
	from            net.IP // its own address

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

func newHost(f *fleet, number int) *host {
	h := &host{fleet: f, number: number, id: machine(number), identity: newMemory(), inbox: newMemory(),
		from:     net.IPv4(127, 0, byte(1+number%64), byte(1+number/64%250)),
		refusals: map[policy.Type]error{}, open: map[string]netip.Prefix{}, head: uplink.Head{Hash: uplink.Genesis}, changed: make(chan struct{})}
	h.inbox.written = h.admit
	h.record(audit.Event{Name: audit.AgentStarted})
	return h
}

// fetcher is the real one, with this host in the place of a machine.
func (h *host) fetcher(url string) *fetch.Fetcher {
	return fetch.New(fetch.Config{URL: url, PollInterval: time.Minute, Version: "fleet", Log: h.fleet.quiet, Host: &fetch.Host{
		Identity: h.identity, Inbox: h.inbox, Agent: h, Roots: h.fleet.roots, Dial: h.dial,
	}})
}

// dial connects from an address of the host's own: one address has too few
// ports for a fleet.
func (h *host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	return (&net.Dialer{LocalAddr: &net.TCPAddr{IP: h.from}}).DialContext(ctx, network, address)
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
	mark := h.mark(t)
	h.record(audit.Event{Name: audit.DocumentAdmit, Document: word[t], Version: mark.Version, Digest: mark.Digest.String()})
	h.evaluate(time.Now())
	h.fleet.ledger.admitted(h, t, time.Now())
}

var word = map[policy.Type]string{policy.TypeTrust: "trust", policy.TypePolicy: "policy", policy.TypeGrants: "grants"}

func (h *host) mark(t policy.Type) policy.Mark {
	switch t {
	case policy.TypeTrust:
		return h.state.Trust
	case policy.TypePolicy:
		return h.state.Policy
	}
	return h.state.Grants
}

func (h *host) facts(now time.Time) policy.Facts { return policy.Facts{Host: h.id, Now: now} }

func (h *host) admitTrust(raw []byte, now time.Time) error {
	var v policy.Verified[policy.Trust]
	var err error
	if h.trust.Version == 0 {
		v, err = policy.OpenPinnedTrust(raw, h.fleet.pin)
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
	now = now.UTC()
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
		h.fleet.ledger.opened(h, g.Sources[0].Addr(), now)
		e := audit.Event{Name: audit.GrantOpening, GrantID: g.ID, Port: g.Number, Source: g.Sources[0].String(), End: g.End, Requestor: g.Requestor}
		h.record(e)
		e.Name = audit.GrantOpened
		h.record(e)
	}
	for id, source := range h.open {
		if !listed[id] {
			delete(h.open, id)
			h.fleet.ledger.closed(h, source.Addr(), now)
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
	s := fetch.Status{Mode: "enforce", Install: fmt.Sprintf("%032x", h.number)}
	for id := range h.open {
		s.Openings = append(s.Openings, fetch.StatusGrant{Grant: id})
	}
	for _, t := range uplink.Documents {
		d := fetch.StatusDocument{Document: word[t], Version: h.mark(t).Version}
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

// holds reports whether the host has a version of a document in force.
func (h *host) holds(t policy.Type, version uint64, digest policy.Digest) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if m := h.mark(t); m.Version != version || m.Digest != digest {
		return fmt.Errorf("machine %d has version %d of its %s, and version %d is stored", h.number, m.Version, word[t], version)
	}
	return nil
}
