package cli

import (
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/fetch"
)

func newFetch() *cobra.Command {
	var config, level string
	c := &cobra.Command{
		Use:   "fetch",
		Short: "Bring documents from the control plane to the agent's inbox",
		Long: `Keeps one connection outwards to the control plane of the settings' table
[control], brings this host's signed documents to the inbox, and takes the
agent's record back. It goes through the proxy of the settings or of
HTTPS_PROXY; where no WebSocket gets through it polls; where nothing does it
looks for the same files at the places of fallback.

It needs no rights but to read its identity, write the inbox and speak to the
agent's socket. It judges nothing: the agent verifies what it brings. Enrol the
host first with jitgate enroll.`,
		Example: "  jitgate fetch --config /etc/jitgate/agent.toml",
		Args:    positional(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			settings, err := agent.LoadSettings(config)
			if err != nil {
				return err
			}
			if c := settings.Control; c == nil || c.URL == "" && len(c.Fallback) == 0 {
				return errors.New("the table [control] of the settings says nowhere where documents come from: jitgate enroll writes its url, or add a fallback")
			}
			if hclog.LevelFromString(level) == hclog.NoLevel {
				return usagef("--log-level %q is not error, warn, info or debug", level)
			}
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return fetcher(c, settings, level).Run(ctx)
		},
	}
	configFlag(c, &config)
	c.Flags().StringVar(&level, "log-level", "info", "error, warn, info or debug")
	return c
}

func fetcher(c *cobra.Command, s agent.Settings, level string) *fetch.Fetcher {
	return fetch.New(fetch.Config{
		URL: s.Control.URL, CA: s.Control.CA, IdentityDir: s.Control.IdentityDir, Proxy: s.Control.Proxy,
		Fallback: s.Control.Fallback, PollInterval: s.Control.PollInterval,
		InboxDir: s.InboxDir, Socket: s.Socket, Version: version,
		Log: hclog.New(&hclog.LoggerOptions{Name: "jitgate", Level: hclog.LevelFromString(level), Output: c.ErrOrStderr()}),
	})
}
