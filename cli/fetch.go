package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/fetch"
)

func newFetch() *cobra.Command {
	var config, level string
	var service asService
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
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return service.run(c.Context(), fetchService, func(ctx context.Context, ready func()) error {
				return fetchUntil(ctx, c, config, level, service, ready)
			})
		},
	}
	configFlag(c, &config)
	c.Flags().StringVar(&level, "log-level", "info", "error, warn, info or debug")
	service.flag(c)
	return c
}

func fetchUntil(ctx context.Context, c *cobra.Command, config, level string, service asService, ready func()) error {
	if hclog.LevelFromString(level) == hclog.NoLevel {
		return usage.Errorf("--log-level %q is not error, warn, info or debug", level)
	}
	log := service.logTo(c, hclog.LevelFromString(level))
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return err
	}
	if ready != nil {
		ready()
	}
	if c := settings.Control; c == nil || c.URL == "" && len(c.Fallback) == 0 {
		if ready != nil { // a service that has nothing to do ends in good order
			log.Info("the table [control] of the settings says nowhere where documents come from: jitgate enroll writes its url")
			return nil
		}
		return errors.New("the table [control] of the settings says nowhere where documents come from: jitgate enroll writes its url, or add a fallback")
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	supervisor, unsupervised := service.supervisor(fetchService, log)
	defer unsupervised()
	return fetch.New(fetch.Config{
		URL: settings.Control.URL, CA: settings.Control.CA, IdentityDir: settings.Control.IdentityDir, Proxy: settings.Control.Proxy,
		Fallback: settings.Control.Fallback, PollInterval: settings.Control.PollInterval,
		InboxDir: settings.InboxDir, Socket: settings.Socket, Version: version, Log: log,
		Alive: supervisor.Alive, AlivePace: supervisor.Pace(),
	}).Run(ctx)
}
