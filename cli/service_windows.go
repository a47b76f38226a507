package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/eventlog"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/watchdog"
)

// asService is whether the service manager of Windows has started this. It is
// said by an argument: what Windows tells of a process (its session) is another
// thing, and Wine tells nothing.
type asService struct{ set bool }

func (s *asService) flag(c *cobra.Command) {
	c.Flags().BoolVar(&s.set, "service", false, "the service manager starts this")
}

// logTo makes the log of a command that goes on for long. A service has nowhere
// to write to but the event log.
func (s asService) logTo(c *cobra.Command, level hclog.Level) hclog.Logger {
	options := &hclog.LoggerOptions{Name: "jitgate", Level: level, Output: c.ErrOrStderr()}
	if source, err := eventlog.Open(audit.EventSource); s.set && err == nil {
		options.DisableTime = true
		options.Output = hclog.NewLeveledWriter(textLine(source.Info), map[hclog.Level]io.Writer{
			hclog.Warn: textLine(source.Warning), hclog.Error: textLine(source.Error)})
	}
	return hclog.New(options)
}

// textLine writes lines for operators to the event log.
type textLine func(id uint32, message string) error

func (report textLine) Write(line []byte) (int, error) {
	return len(line), report(audit.TextEventID, strings.ReplaceAll(strings.TrimSpace(string(line)), "\x00", "\ufffd"))
}

// run calls f and, as a service, tells the service manager how it goes.
func (s asService) run(ctx context.Context, name string, f func(ctx context.Context, ready func()) error) error {
	if !s.set {
		return f(ctx, nil)
	}
	work := &work{f: f}
	if err := svc.Run(name, work); err != nil {
		return fmt.Errorf("the service manager did not start this (it alone uses --service): %w", err)
	}
	return work.err
}

// supervisor is who wants to hear that a service is alive: a process beside it that
// ends it where it stands still, so that an agent's openings go with it and the
// service manager starts it again. The second result ends that process.
func (s asService) supervisor(name string, log hclog.Logger) (agent.Supervisor, func()) {
	if !s.set {
		return agent.Supervisor{}, func() {}
	}
	warn := func(err error) { log.Warn("nobody ends this process where it stands still", "error", err) }
	program, err := os.Executable()
	if err != nil {
		warn(err)
		return agent.Supervisor{}, func() {}
	}
	alive, stop := watchdog.Start(warn, program, "watchdog", name)
	return agent.Supervisor{Tell: func(string) { alive() }, Within: watchdog.Within}, stop
}

// newWatchdog is what a service starts beside itself.
func newWatchdog() *cobra.Command {
	return &cobra.Command{
		Use:    "watchdog SERVICE",
		Short:  "End the service that started this where it stands still",
		Args:   usage.Args(1, 1, "the service's name"),
		Hidden: true, // services start it, and speak to it alone
		RunE: func(c *cobra.Command, args []string) error {
			watched, err := os.FindProcess(os.Getppid())
			if err != nil {
				return err
			}
			return watchdog.Watch(c.InOrStdin(), func() error {
				err := watched.Kill() // first: what tells of it may stand still too
				if err == nil {
					say(fmt.Errorf("the service %s said nothing for %s and was ended: the service manager starts it again", args[0], watchdog.Within))
				}
				return err
			})
		},
	}
}

// work is a service.
type work struct {
	f   func(ctx context.Context, ready func()) error
	err error
}

// startWithin is how long the service manager waits for a start, or a stop,
// before it takes it for stuck.
const startWithin = time.Minute

// Execute is called by the service manager. The exit code 1 of a service that
// failed has its recovery actions carried out.
func (w *work) Execute(_ []string, asked <-chan svc.ChangeRequest, tell chan<- svc.Status) (specific bool, code uint32) {
	hint := uint32(startWithin / time.Millisecond)
	tell <- svc.Status{State: svc.StartPending, WaitHint: hint}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- w.f(ctx, func() { close(ready) }) }()
	running := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	for {
		select {
		case <-ready:
			ready = nil
			tell <- running
		case w.err = <-ended:
			if w.err != nil {
				say(w.err)
				return true, exitFailed
			}
			return false, exitDone
		case q := <-asked:
			switch q.Cmd {
			case svc.Interrogate:
				tell <- q.CurrentStatus
			case svc.Stop, svc.Shutdown:
				tell <- svc.Status{State: svc.StopPending, WaitHint: hint}
				cancel()
			}
		}
	}
}

// say tells the event log why a service ends: nobody reads what it prints.
func say(err error) {
	if source, openErr := eventlog.Open(audit.EventSource); openErr == nil {
		defer source.Close()
		textLine(source.Error).Write([]byte("jitgate: " + err.Error())) // what cannot be said here is said nowhere
	}
}

// openFirewall opens this host's firewall, or as soon as that can be done: the
// engine behind it is a service that may start later or be restarted.
func openFirewall(warn func(error)) (firewall.Backend, error) {
	return agent.Await(func() (firewall.Backend, error) { return agent.OpenBackend(warn) }), nil
}

// systemLog copies the record to the log of this system.
func systemLog(say func(what string, err error), instead func(audit.Entry)) *audit.Journal {
	return audit.NewEventLog(say, instead)
}

// agentCommands are the commands of the agent that this platform has more.
func agentCommands() []*cobra.Command { return []*cobra.Command{newAgentSetup(), newAgentRemove()} }

// hostCommands are other commands that this platform has more.
func hostCommands() []*cobra.Command { return []*cobra.Command{newWatchdog()} }

// elevate says how a command gets the rights that it lacks.
const elevate = "run this in a prompt opened as administrator"

var errNotElevated = errors.New("this takes an administrator: " + elevate)
