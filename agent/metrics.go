package agent

import (
	"context"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"

	"github.com/jitgate/jitgate/audit"
)

// metrics is what an agent counts of itself. No label comes from a document or
// from whoever knocks: their number is bounded.
type metrics struct {
	events    *prometheus.CounterVec
	documents *prometheus.CounterVec
	refused   *prometheus.CounterVec
	ended     *prometheus.CounterVec
	apply     prometheus.Histogram
}

func newMetrics() metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := metrics{
		events:    counter("jitgate_events_total", "Events recorded since the agent started, by name.", "event"),
		documents: counter("jitgate_documents_total", "Documents judged, by kind and by code; admitted is one.", "document", "code"),
		refused:   counter("jitgate_grants_refused_total", "Grants outside the policy, by code.", "code"),
		ended:     counter("jitgate_grants_ended_total", "Grants that ended, by outcome: unused, tried or used.", "outcome"),
		apply: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "jitgate_apply_seconds", Help: "How long changes of the firewall took.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}}),
	}
	// What alerts look for is there from the start: the first of its kind would
	// be no increase otherwise.
	for _, name := range []audit.Name{audit.GuardDrift, audit.GuardRepaired, audit.GuardLockdown, audit.GuardReverted, audit.ConnectionDeny} {
		m.events.WithLabelValues(string(name))
	}
	for _, outcome := range []string{Unused, Tried, Used} {
		m.ended.WithLabelValues(outcome)
	}
	return m
}

// count takes note of events that were recorded.
func (m metrics) count(events []audit.Event) {
	for _, e := range events {
		m.events.WithLabelValues(string(e.Name)).Inc()
		switch e.Name {
		case audit.DocumentAdmit:
			m.documents.WithLabelValues(e.Document, "admitted").Inc()
		case audit.DocumentRefused:
			m.documents.WithLabelValues(e.Document, e.Code).Inc()
		case audit.GrantRefused:
			m.refused.WithLabelValues(e.Code).Inc()
		case audit.GrantUsed:
			m.ended.WithLabelValues(e.Code).Inc()
		}
	}
}

// now adds what a status says.
func (m metrics) now(s Status, seq uint64, head string, unrecorded int) (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	gauge := func(name, help string, value float64, labels prometheus.Labels) prometheus.Collector {
		g := prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help, ConstLabels: labels})
		g.Set(value)
		return g
	}
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	denied := prometheus.NewCounter(prometheus.CounterOpts{Name: "jitgate_denied_packets_total", Help: "Packets dropped, or that would be, since the guard was made."})
	denied.Add(float64(s.Denied))
	list := []prometheus.Collector{m.events, m.documents, m.refused, m.ended, m.apply, denied,
		gauge("jitgate_start_timestamp_seconds", "When the agent started.", float64(s.Since.Unix()), nil),
		gauge("jitgate_openings", "Grants in force.", float64(len(s.Openings)), nil),
		gauge("jitgate_denied_sources", "Sources denied in the last day that the firewall names, at most 100.", float64(len(s.Denials)), nil),
		gauge("jitgate_guard_enforces", "1 if the guard drops.", is(s.Mode == Enforce), nil),
		gauge("jitgate_guard_intact", "1 if the firewall was as wanted at the last look.", is(s.Intact), nil),
		gauge("jitgate_problem", "1 if the last pass could not do all it should.", is(s.Problem != ""), nil),
		gauge("jitgate_blocked", "1 if nothing may open.", is(s.Blocked != ""), nil),
		gauge("jitgate_audit_unrecorded_events", "Events that wait until the record can be written.", float64(unrecorded), nil),
		gauge("jitgate_audit_sequence", "The number of the last line of the record.", float64(seq), nil),
		gauge("jitgate_audit_head", "The first 13 digits of the SHA-256 of that line, as a number: noted elsewhere, a witness.", headNumber(head), nil),
	}
	for _, d := range s.Docs {
		labels := prometheus.Labels{"document": d.Document}
		list = append(list, gauge("jitgate_document_version", "The document in force; 0: none.", float64(d.Version), labels),
			gauge("jitgate_document_refused", "1 if what lies in the inbox is not in force.", is(d.Refusal != ""), labels))
		if d.Version > 0 {
			list = append(list, gauge("jitgate_document_issued_timestamp_seconds", "When the document in force was issued.", float64(d.Issued.Unix()), labels),
				gauge("jitgate_document_expires_timestamp_seconds", "When the document in force ends.", float64(d.Expires.Unix()), labels))
		}
	}
	for _, c := range list {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// headDigits is how many digits of a digest a float64 holds whole.
const headDigits = 13

func headNumber(head string) float64 {
	n, err := strconv.ParseUint(head[:min(len(head), headDigits)], 16, 64)
	if err != nil {
		return 0 // there is no line yet
	}
	return float64(n)
}

// gather makes the metrics of now.
func (a *Agent) gather(ctx context.Context) (*prometheus.Registry, error) {
	var seq uint64
	var head string
	if file, ok := a.Audit.(record); ok {
		var err error
		if seq, head, err = file.End(); err != nil {
			return nil, err
		}
	}
	return a.metrics.now(a.snapshot(ctx), seq, head, len(a.pending))
}

// serveMetrics answers Prometheus.
func (a *Agent) serveMetrics(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	var all *prometheus.Registry
	var err error
	if busy := a.do(ctx, func() { all, err = a.gather(ctx) }); busy != nil {
		http.Error(w, busy.Error(), http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	families, err := all.Gather()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	text := expfmt.NewFormat(expfmt.TypeTextPlain)
	w.Header().Set("Content-Type", string(text))
	encoder := expfmt.NewEncoder(w, text)
	for _, f := range families {
		if encoder.Encode(f) != nil {
			return // a caller that went away is its own problem
		}
	}
}
