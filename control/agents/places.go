package agents

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
)

// Places are the connections that a server has room for. A process may have so
// many descriptors. Where connections take them all it opens no file and no
// connection of its own any more, and nobody reaches it, by its own socket
// neither; and a fleet that comes to the replicas that are left takes what there
// is. So some are left for files, and some that agents do not get: people come in
// while agents go elsewhere, or wait.
type Places struct {
	all, agents int64
	log         hclog.Logger
	warns       *rate.Limiter
	refused     *prometheus.CounterVec

	taken, byAgents atomic.Int64
}

const (
	// forFiles is how many descriptors are no connections: the database's, which
	// are 18 to PostgreSQL or some 60 files of SQLite, and all that is opened for a
	// moment.
	forFiles = 256
	// fewest is how many connections there are in any case.
	fewest = 16
	// Of ten connections agents have nine.
	ofAgents, ofAll = 9, 10
)

// NewPlaces makes places for a process that may have so many descriptors; 0: it is
// not bounded. registry may be nil.
func NewPlaces(descriptors uint64, log hclog.Logger, registry *prometheus.Registry) *Places {
	p := &Places{log: log, warns: rate.NewLimiter(rate.Every(warnEvery), 1),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "jitgate_control_connections_refused_total", Help: "Connections there was no room for, from agents or from anybody."}, []string{"from"})}
	const plenty = 1 << 30
	p.all = plenty
	if descriptors > 0 {
		p.all = max(fewest, int64(min(descriptors, plenty))-forFiles)
	}
	p.agents = p.all * ofAgents / ofAll
	if registry != nil {
		registry.MustRegister(p.refused,
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "jitgate_control_connections", Help: "Connections of agents and of people."}, func() float64 { return float64(p.taken.Load()) }),
			prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "jitgate_control_connections_max", Help: "Connections there is room for."}, func() float64 { return float64(p.all) }))
	}
	return p
}

// Listen takes connections from l as long as there is room. Those beyond it are
// closed at once, so that who comes can go elsewhere, and not left to wait in the
// kernel.
func (p *Places) Listen(l net.Listener) net.Listener { return &placing{l, p} }

type placing struct {
	net.Listener
	places *Places
}

// Accept implements net.Listener.
func (l *placing) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.places.take(&l.places.taken, l.places.all, "anybody") {
			return &place{Conn: conn, of: l.places}, nil
		}
		conn.Close() // whatever it says, it is over
	}
}

// take takes one more, or counts a refusal.
func (p *Places) take(n *atomic.Int64, most int64, from string) bool {
	if n.Add(1) <= most {
		return true
	}
	n.Add(-1)
	p.refused.WithLabelValues(from).Inc()
	if p.warns.Allow() {
		p.log.Warn("there is no room for more connections: allow the process more descriptors (LimitNOFILE), or have more replicas", "from", from, "most", most)
	}
	return false
}

// place is a connection that has one.
type place struct {
	net.Conn
	of *Places

	mu    sync.Mutex
	agent bool // it is one of those
	over  bool
}

var errFull = errors.New("no room for more agents")

// forAgent notes that an agent has it, or returns an error where there is no room
// for one more.
func (p *place) forAgent() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over || p.agent {
		return nil
	}
	if !p.of.take(&p.of.byAgents, p.of.agents, "agents") {
		return errFull
	}
	p.agent = true
	return nil
}

// Close implements net.Conn.
func (p *place) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.over = true
		p.of.taken.Add(-1)
		if p.agent {
			p.of.byAgents.Add(-1)
		}
	}
	return p.Conn.Close()
}

// NetConn is the connection itself, as tls.Conn has it.
func (p *place) NetConn() net.Conn { return p.Conn }
