package cli

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
)

func newAgent() *cobra.Command {
	return group(&cobra.Command{
		Use:   "agent",
		Short: "The daemon that guards this host",
	}, newAgentRun(), newAgentReload(), newAgentStep(), newAgentMetrics(), newAgentLogins())
}

func newAgentRun() *cobra.Command {
	var config, level string
	c := &cobra.Command{
		Use:   "run",
		Short: "Guard this host, in the foreground or as a service",
		Long: `Guards the ports of the settings, or of the policy once there is one, and opens
what admitted grants say. Stopping it leaves the guard in place; what is open
closes on time all the same. SIGHUP has it read its settings again, as jitgate
agent reload does.`,
		Example: "  jitgate agent run --config /etc/jitgate/agent.toml",
		Args:    positional(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := openAgent(c, config, level)
			if err != nil {
				return err
			}
			defer a.Backend.Close()
			a.Supervisor = agent.Supervised()
			defer toJournal(a)()
			return runService(a)
		},
	}
	configFlag(c, &config)
	c.Flags().StringVar(&level, "log-level", "info", "error, warn, info or debug")
	return c
}

func configFlag(c *cobra.Command, config *string) {
	c.Flags().StringVar(config, "config", agent.DefaultConfig, "the agent's settings")
}

func openAgent(c *cobra.Command, config, level string) (*agent.Agent, error) {
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return nil, err
	}
	if hclog.LevelFromString(level) == hclog.NoLevel {
		return nil, usagef("--log-level %q is not error, warn, info or debug", level)
	}
	log := hclog.New(&hclog.LoggerOptions{Name: "jitgate", Level: hclog.LevelFromString(level), Output: c.ErrOrStderr()})
	backend, err := agent.OpenBackend(func(err error) { log.Warn("the guard stands, but not all is as it should be", "error", err) })
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
	journal := audit.NewJournal(audit.JournalSocket,
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

// program is the agent as kardianos/service sees it.
type program struct {
	agent  *agent.Agent
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Start must not block: the service manager waits for it.
func (p *program) Start(service.Service) error {
	ctx, cancel := context.WithCancel(context.Background())
	p.cancel = cancel
	go func() {
		defer close(p.done)
		p.err = p.agent.Run(ctx, nil)
		if p.err != nil && !service.Interactive() && service.Platform() == "windows-service" {
			// Nothing else tells the Windows service manager.
			p.agent.Log.Error("the agent failed", "error", p.err)
			os.Exit(exitFailed)
		}
	}()
	return nil
}

func (p *program) Stop(service.Service) error {
	p.cancel()
	<-p.done
	return nil
}

// wait returns when the service manager wants the program to stop, or when it
// has stopped by itself.
func (p *program) wait() {
	signals, again := make(chan os.Signal, 1), make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(signals)
	defer signal.Stop(again)
	for {
		select {
		case <-again:
			go p.reload()
		case <-signals:
			return
		case <-p.done:
			return
		}
	}
}

// reload has the agent read its settings again. It logs what comes of it.
func (p *program) reload() {
	ctx, cancel := context.WithTimeout(context.Background(), reloadPatience)
	defer cancel()
	if err := p.agent.Reload(ctx); err != nil {
		p.agent.Log.Error("the settings stay as they are", "error", err)
	}
}

// reloadPatience is how long a SIGHUP waits for a pass to end.
const reloadPatience = 10 * time.Second

func runService(a *agent.Agent) error {
	p := &program{agent: a, done: make(chan struct{})}
	s, err := service.New(p, &service.Config{
		Name: "jitgate", DisplayName: "jitgate agent", Description: "Just-in-time access to management ports",
		Arguments: []string{"agent", "run"},
		Option:    service.KeyValue{"RunWait": p.wait},
	})
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return errors.Join(s.Run(), p.err)
}

func newAgentReload() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "reload",
		Short: "Have the running agent read its settings again",
		Long: `The agent takes mode and guard from its settings at once, and touches no opening.
Settings that are wrong are refused with the line, and those in force stay. Who
the host is and where the agent keeps its state changes only when it starts.`,
		Example: "  jitgate agent reload",
		Args:    positional(0, 0, "no argument"),
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
		Args:    positional(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			a, err := openAgent(c, config, "error")
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
