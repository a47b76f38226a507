package cli

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/cli/usage"
)

func newAgent() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "agent",
		Short: "The daemon that guards this host",
	}, append([]*cobra.Command{newAgentRun(), newAgentReload(), newAgentStep(), newAgentMetrics(), newAgentLogins()}, agentCommands()...)...)
}

func newAgentRun() *cobra.Command {
	var config, level string
	var service asService
	c := &cobra.Command{
		Use:   "run",
		Short: "Guard this host, in the foreground or as a service",
		Long: `Guards the ports of the settings, or of the policy once there is one, and opens
what admitted grants say. Stopping it leaves the guard in place; what is open
closes on time all the same. SIGHUP has it read its settings again, as jitgate
agent reload does.`,
		Example: "  jitgate agent run --config /etc/jitgate/agent.toml",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return service.run(c.Context(), agentService, func(ctx context.Context, ready func()) error {
				a, err := openAgent(c, config, level, service)
				if err != nil {
					return err
				}
				supervisor, unsupervised := service.supervisor(agentService, a.Log)
				defer unsupervised() // last: what ends may stand still too
				a.Supervisor = supervisor
				defer a.Backend.Close()
				defer toJournal(a)()
				return runUntil(ctx, a, ready)
			})
		},
	}
	configFlag(c, &config)
	service.flag(c)
	c.Flags().StringVar(&level, "log-level", "info", "error, warn, info or debug")
	return c
}

func configFlag(c *cobra.Command, config *string) {
	c.Flags().StringVar(config, "config", agent.DefaultConfig, "the agent's settings")
}

// agentService and fetchService are the names of the two processes of a host
// where services have names.
const (
	agentService = "jitgate"
	fetchService = "jitgate-fetch"
)

func openAgent(c *cobra.Command, config, level string, service asService) (*agent.Agent, error) {
	if hclog.LevelFromString(level) == hclog.NoLevel {
		return nil, usage.Errorf("--log-level %q is not error, warn, info or debug", level)
	}
	log := service.logTo(c, hclog.LevelFromString(level))
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return nil, err
	}
	backend, err := openFirewall(func(err error) { log.Warn("the guard stands, but not all is as it should be", "error", err) })
	if err != nil {
		return nil, err
	}
	record := audit.NewFile(filepath.Join(settings.StateDir, "audit"))
	record.Full = settings.Audit.FileSize
	return &agent.Agent{
		Settings: settings,
		Backend:  backend,
		Audit:    record,
		Log:      log,
		Clock:    agent.SystemClock(),
		Machine:  agent.ThisMachine(),
		Built:    builtTime(),
		Reread:   func() (agent.Settings, error) { return agent.LoadSettings(config) },
	}, nil
}

// journalPatience is how long the end waits for the journal.
const journalPatience = 2 * time.Second

// toJournal has an agent's record copied to the journal, and its end told
// there; without a journal to the text for operators. What it returns ends
// that.
func toJournal(a *agent.Agent) (end func()) {
	record, ok := a.Audit.(*audit.File)
	if !ok {
		return func() {}
	}
	journal := systemLog(
		func(what string, err error) { a.Log.Warn(what, "error", err) },
		func(e audit.Entry) { a.Log.Info(audit.Plain(e.Message), eventArgs(e)...) })
	record.Copy, a.Heads = journal.Copy, journal.Head
	return func() { journal.Close(journalPatience) }
}

// eventArgs are an event's fields for a log that people read.
func eventArgs(e audit.Entry) []any {
	args := []any{"event", e.Name, "seq", e.Seq, "hash", e.Hash}
	for _, f := range []struct{ name, value string }{{"grant", e.GrantID}, {"requestor", e.Requestor}, {"reason", e.Reason}, {"code", e.Code}} {
		if f.value != "" {
			args = append(args, f.name, audit.Plain(f.value))
		}
	}
	return args
}

// runUntil runs the agent until somebody ends it. SIGHUP has it read its settings
// again.
func runUntil(ctx context.Context, a *agent.Agent, ready func()) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	go func() {
		for {
			select {
			case <-again:
				reload(ctx, a)
			case <-ctx.Done():
				return
			}
		}
	}()
	return a.Run(ctx, ready)
}

// reload has the agent read its settings again. It logs what comes of it.
func reload(ctx context.Context, a *agent.Agent) {
	ctx, cancel := context.WithTimeout(ctx, reloadPatience)
	defer cancel()
	if err := a.Reload(ctx); err != nil {
		a.Log.Error("the settings stay as they are", "error", err)
	}
}

// reloadPatience is how long a SIGHUP waits for a pass to end.
const reloadPatience = 10 * time.Second

func newAgentReload() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running agent read its settings again",
		Long: `The agent takes mode and guard from its settings at once, and touches no opening.
Settings that are wrong are refused with the line, and those in force stay. Who
the host is and where the agent keeps its state changes only when it starts.`,
		Example: "  jitgate agent reload",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return callAgent(c.Context(), config, http.MethodPost, "/v1/reload", nil, nil)
		},
	}
	configFlag(c, &config)
	return c
}

func newAgentStep() *cobra.Command {
	var config string
	var dryRun bool
	c := &cobra.Command{
		Use:   "step",
		Short: "One pass: read, verify, plan, apply",
		Long: `Does one pass of the agent and ends. With --dry-run it prints the plan and
changes nothing; that also works beside a running agent.`,
		Example: "  jitgate agent step --dry-run",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := openAgent(c, config, "error", asService{})
			if err != nil {
				return err
			}
			defer a.Backend.Close()
			if dryRun {
				return dryStep(c, a)
			}
			defer toJournal(a)()
			return a.Once(c.Context())
		},
	}
	configFlag(c, &config)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "print the plan and change nothing")
	return c
}

func dryStep(c *cobra.Command, a *agent.Agent) error {
	a.Load()
	plan, refused, err := a.DryRun(c.Context())
	for _, r := range refused {
		fmt.Fprintf(c.OutOrStdout(), "refused %v\n", r)
	}
	if err != nil {
		return err
	}
	fmt.Fprint(c.OutOrStdout(), plan.Describe(a.Clock.Boot()))
	return nil
}
