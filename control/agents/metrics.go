package agents

import "github.com/prometheus/client_golang/prometheus"

// metrics are what operators watch of the line.
type metrics struct {
	connected prometheus.Gauge
	pushes    *prometheus.CounterVec // by document
	bytes     *prometheus.CounterVec // by direction
	polls     prometheus.Counter
	reports   prometheus.Counter
	putOff    prometheus.Counter
	refused   *prometheus.CounterVec // by code
}

func newMetrics(r *prometheus.Registry) metrics {
	counter := func(name, text string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: text}, labels)
	}
	m := metrics{
		connected: prometheus.NewGauge(prometheus.GaugeOpts{Name: "jitgate_agents_connected", Help: "Agents that hold a WebSocket to this replica."}),
		pushes:    counter("jitgate_agent_documents_total", "Documents sent to agents.", "document"),
		bytes:     counter("jitgate_agent_bytes_total", "Bytes of messages from (up) and to (down) agents.", "direction"),
		polls:     prometheus.NewCounter(prometheus.CounterOpts{Name: "jitgate_agent_polls_total", Help: "Polls of agents without a WebSocket."}),
		reports:   prometheus.NewCounter(prometheus.CounterOpts{Name: "jitgate_agent_reports_total", Help: "Reports of agents taken."}),
		putOff:    prometheus.NewCounter(prometheus.CounterOpts{Name: "jitgate_agent_reports_put_off_total", Help: "Times that a report waited because too many came at once, or the store did not answer."}),
		refused:   counter("jitgate_agent_refused_total", "Calls of agents refused, by code.", "code"),
	}
	if r != nil {
		r.MustRegister(m.connected, m.pushes, m.bytes, m.polls, m.reports, m.putOff, m.refused)
	}
	return m
}
