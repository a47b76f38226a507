package agent

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/audit"
)

// metrics is what an agent counts of itself. No label comes from a document or
// from whoever knocks: their number is bounded. They are written by hand, as the
// few lines they are: the usual library would take an eighth of the program and
// of its memory.
type metrics struct {
	events, documents, refused, ended map[string]uint64 // by labels, as they are written
	apply                             [len(applyBuckets) + 1]uint64
	applied                           float64 // seconds, all together
}

// applyBuckets are upper bounds in seconds.
var applyBuckets = [...]float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1}

func newMetrics() *metrics {
	m := &metrics{events: map[string]uint64{}, documents: map[string]uint64{}, refused: map[string]uint64{}, ended: map[string]uint64{}}
	// What alerts look for is there from the start: the first of its kind would
	// be no increase otherwise.
	for _, name := range []audit.Name{audit.GuardDrift, audit.GuardRepaired, audit.GuardLockdown, audit.GuardReverted, audit.ConnectionDeny} {
		m.events[label("event", string(name))] = 0
	}
	for _, outcome := range []string{Unused, Tried, Used} {
		m.ended[label("outcome", outcome)] = 0
	}
	return m
}

// label writes a label as the text format does.
func label(name, value string) string {
	return name + `="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(value) + `"`
}

// count takes note of events that were recorded.
func (m *metrics) count(events []audit.Event) {
	for _, e := range events {
		m.events[label("event", string(e.Name))]++
		switch e.Name {
		case audit.DocumentAdmit:
			m.documents[label("code", "admitted")+","+label("document", e.Document)]++
		case audit.DocumentRefused:
			m.documents[label("code", e.Code)+","+label("document", e.Document)]++
		case audit.GrantRefused:
			m.refused[label("code", e.Code)]++
		case audit.GrantUsed:
			m.ended[label("outcome", e.Code)]++
		}
	}
}

// took takes note of a change of the firewall.
func (m *metrics) took(d time.Duration) {
	i, _ := slices.BinarySearch(applyBuckets[:], d.Seconds())
	m.apply[i]++
	m.applied += d.Seconds()
}

// exposition is metrics in Prometheus' text format, version 0.0.4.
type exposition struct{ strings.Builder }

const expositionType = "text/plain; version=0.0.4; charset=utf-8"

// family begins a metric.
func (x *exposition) family(name, kind, help string) {
	fmt.Fprintf(x, "# HELP %s %s\n# TYPE %[1]s %[3]s\n", name, help, kind)
}

// sample writes one value; labels may be empty.
func (x *exposition) sample(name, labels string, value float64) {
	if labels != "" {
		labels = "{" + labels + "}"
	}
	fmt.Fprintf(x, "%s%s %s\n", name, labels, strconv.FormatFloat(value, 'g', -1, 64))
}

func (x *exposition) gauge(name, help string, value float64) {
	x.family(name, "gauge", help)
	x.sample(name, "", value)
}

func (x *exposition) counters(name, help string, values map[string]uint64) {
	if len(values) == 0 {
		return
	}
	x.family(name, "counter", help)
	for _, labels := range slices.Sorted(maps.Keys(values)) {
		x.sample(name, labels, float64(values[labels]))
	}
}

func (x *exposition) histogram(m *metrics) {
	const name = "jitgate_apply_seconds"
	x.family(name, "histogram", "How long changes of the firewall took.")
	sum := uint64(0)
	for i, n := range m.apply {
		sum += n
		bound := "+Inf"
		if i < len(applyBuckets) {
			bound = strconv.FormatFloat(applyBuckets[i], 'g', -1, 64)
		}
		x.sample(name+"_bucket", label("le", bound), float64(sum))
	}
	x.sample(name+"_sum", "", m.applied)
	x.sample(name+"_count", "", float64(sum))
}

// documents writes one metric of each document that has it.
func (x *exposition) documents(name, help string, docs []DocumentStatus, value func(DocumentStatus) (float64, bool)) {
	begun := false
	for _, d := range docs {
		v, has := value(d)
		if !has {
			continue
		}
		if !begun {
			x.family(name, "gauge", help)
			begun = true
		}
		x.sample(name, label("document", d.Document), v)
	}
}

// expose writes all there is, with what a status says.
func (m *metrics) expose(s Status, seq uint64, head string, unrecorded int) string {
	var x exposition
	is := func(b bool) float64 {
		if b {
			return 1
		}
		return 0
	}
	x.counters("jitgate_events_total", "Events recorded since the agent started, by name.", m.events)
	x.counters("jitgate_documents_total", "Documents judged, by kind and by code; admitted is one.", m.documents)
	x.counters("jitgate_grants_refused_total", "Grants outside the policy, by code.", m.refused)
	x.counters("jitgate_grants_ended_total", "Grants that ended, by outcome: unused, tried or used.", m.ended)
	x.histogram(m)
	x.family("jitgate_denied_packets_total", "counter", "Packets dropped, or that would be, since the guard was made.")
	x.sample("jitgate_denied_packets_total", "", float64(s.Denied))
	x.gauge("jitgate_start_timestamp_seconds", "When the agent started.", float64(s.Since.Unix()))
	x.gauge("jitgate_openings", "Grants in force.", float64(len(s.Openings)))
	x.gauge("jitgate_denied_sources", "Sources denied in the last day that the firewall names, at most 100.", float64(len(s.Denials)))
	x.gauge("jitgate_guard_enforces", "1 if the guard drops.", is(s.Mode == Enforce))
	x.gauge("jitgate_guard_intact", "1 if the firewall was as wanted at the last look.", is(s.Intact))
	x.gauge("jitgate_problem", "1 if the last pass could not do all it should.", is(s.Problem != ""))
	x.gauge("jitgate_blocked", "1 if nothing may open.", is(s.Blocked != ""))
	x.gauge("jitgate_audit_unrecorded_events", "Events that wait until the record can be written.", float64(unrecorded))
	x.gauge("jitgate_audit_sequence", "The number of the last line of the record.", float64(seq))
	x.gauge("jitgate_audit_head", "The first 13 digits of the SHA-256 of that line, as a number: noted elsewhere, a witness.", headNumber(head))
	x.documents("jitgate_document_version", "The document in force; 0: none.", s.Docs, func(d DocumentStatus) (float64, bool) { return float64(d.Version), true })
	x.documents("jitgate_document_refused", "1 if what lies in the inbox is not in force.", s.Docs, func(d DocumentStatus) (float64, bool) { return is(d.Refusal != ""), true })
	x.documents("jitgate_document_issued_timestamp_seconds", "When the document in force was issued.", s.Docs, func(d DocumentStatus) (float64, bool) {
		return float64(d.Issued.Unix()), d.Version > 0
	})
	x.documents("jitgate_document_expires_timestamp_seconds", "When the document in force ends.", s.Docs, func(d DocumentStatus) (float64, bool) {
		return float64(d.Expires.Unix()), d.Version > 0
	})
	return x.String()
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

// exposed is the metrics of now.
func (a *Agent) exposed(ctx context.Context) (string, error) {
	var seq uint64
	var head string
	if file, ok := a.Audit.(record); ok {
		var err error
		if seq, head, err = file.End(); err != nil {
			return "", err
		}
	}
	return a.metrics.expose(a.snapshot(ctx), seq, head, len(a.pending)), nil
}

// serveMetrics answers Prometheus.
func (a *Agent) serveMetrics(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	var text string
	var err error
	if busy := a.do(ctx, func() { text, err = a.exposed(ctx) }); busy != nil {
		http.Error(w, busy.Error(), http.StatusServiceUnavailable)
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", expositionType)
	io.WriteString(w, text) // a caller that went away is its own problem
}
