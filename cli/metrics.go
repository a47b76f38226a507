package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/local"
)

func newAgentMetrics() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "metrics",
		Short: "Offer the agent's metrics to Prometheus on loopback",
		Long: `Answers GET /metrics on the address that metrics in the settings names, which is
one of this host alone, with what the agent says on its socket. It is a process
of its own: the agent has no socket of the network, and this one no capability.`,
		Example: "  jitgate agent metrics --config /etc/jitgate/agent.toml",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			settings, err := agent.LoadSettings(config)
			if err != nil {
				return err
			}
			if !settings.Metrics.IsValid() {
				return fmt.Errorf(`%s names no address: add metrics = "127.0.0.1:9477"`, config)
			}
			l, err := net.Listen("tcp", settings.Metrics.String())
			if err != nil {
				return err
			}
			return offerMetrics(c.Context(), l, settings.Socket)
		},
	}
	configFlag(c, &config)
	return c
}

const (
	metricsPatience = 15 * time.Second
	maxMetrics      = 4 << 20
)

// offerMetrics serves until ctx ends. It passes on one answer of the agent's
// socket and nothing else.
func offerMetrics(ctx context.Context, l net.Listener, socket string) error {
	client := http.Client{Timeout: metricsPatience, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return local.Dial(ctx, socket)
		},
		DisableKeepAlives: true,
	}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		if !fromLoopback(r.Host) {
			http.Error(w, "ask for this host by its loopback address", http.StatusMisdirectedRequest)
			return
		}
		q, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://agent/metrics", nil)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		answer, err := client.Do(q)
		if err != nil {
			http.Error(w, "no agent answers", http.StatusBadGateway)
			return
		}
		defer answer.Body.Close()
		text, err := io.ReadAll(io.LimitReader(answer.Body, maxMetrics))
		if err != nil {
			http.Error(w, "the agent's answer broke off", http.StatusBadGateway)
			return
		}
		w.Header().Set("Content-Type", answer.Header.Get("Content-Type"))
		w.WriteHeader(answer.StatusCode)
		w.Write(text) // a caller that went away is its own problem
	})
	server := &http.Server{Handler: mux, ReadTimeout: metricsPatience, WriteTimeout: 2 * metricsPatience, MaxHeaderBytes: 16 << 10}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// fromLoopback reports whether a request names this host as only somebody on
// it would: a page of somebody else's whose name was made to point here does
// not.
func fromLoopback(host string) bool {
	name, _, err := net.SplitHostPort(host)
	if err != nil {
		name = host
	}
	if name == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.IsLoopback()
}
