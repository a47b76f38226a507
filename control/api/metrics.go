package api

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/jitgate/jitgate/control"
)

// metrics are those of the calls. Labels come from the table of routes and
// from the code, never from a caller: their number is bounded.
type metrics struct {
	calls    *prometheus.CounterVec
	latency  *prometheus.HistogramVec
	refusals *prometheus.CounterVec
}

func newMetrics(r *prometheus.Registry) (metrics, error) {
	m := metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "jitgate_api_requests_total", Help: "Calls of the REST API by route, method and status."}, []string{"route", "method", "status"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "jitgate_api_request_seconds", Help: "How long calls of the REST API took, by route.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10}}, []string{"route"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "jitgate_api_refusals_total", Help: "Calls of the REST API that were no success, by code."}, []string{"code"}),
	}
	for _, c := range []prometheus.Collector{m.calls, m.latency, m.refusals} {
		if err := r.Register(c); err != nil {
			return m, err
		}
	}
	return m, nil
}

func (m metrics) observe(c *call, status int, seconds float64) {
	method := "other"
	if c.route != nil {
		method = c.route.method
	}
	m.calls.WithLabelValues(c.name(), method, strconv.Itoa(status)).Inc()
	if c.route == nil || !c.route.stream {
		m.latency.WithLabelValues(c.name()).Observe(seconds)
	}
}

func (m metrics) refused(r *refusal) { m.refusals.WithLabelValues(r.code).Inc() }

// healthz says that the process lives.
func healthz(c *call) error { return c.ok(health{Status: "ok"}) }

// readyz says that calls can be answered.
func readyz(c *call) error {
	if err := c.api.Store.Ping(c.ctx); err != nil {
		c.api.Log.Error("the store does not answer", "call", c.id, "error", err)
		return &refusal{status: http.StatusServiceUnavailable, code: "StoreUnavailable", message: "The store does not answer.", retryAfter: 1e9}
	}
	return c.ok(health{Status: "ok"})
}

type health struct {
	Status string `json:"status"`
}

// scrape answers Prometheus, which has a token of its own.
func scrape(c *call) error {
	if !c.scraper() {
		if err := c.authenticate(); err != nil {
			return err
		}
		if err := c.caller.Must(control.ActionMetrics, control.Everywhere); err != nil {
			return err
		}
	}
	c.api.scrape.ServeHTTP(c.w, c.r)
	return nil
}

// scraper reports whether the call has the token of metrics. Digests are
// compared, so that neither length nor beginning of the token shows in time.
func (c *call) scraper() bool {
	_, token, _ := strings.Cut(c.r.Header.Get("Authorization"), " ")
	want, got := sha256.Sum256([]byte(c.api.MetricsToken)), sha256.Sum256([]byte(strings.TrimSpace(token)))
	return c.api.MetricsToken != "" && subtle.ConstantTimeCompare(want[:], got[:]) == 1
}
