//go:build !windows

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/kardianos/service"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/firewall"
)

// asService is whether the service manager of Windows has started this.
type asService struct{}

func (asService) flag(*cobra.Command) {}

// logTo makes the log of a command that goes on for long.
func (asService) logTo(c *cobra.Command, level hclog.Level) hclog.Logger {
	return hclog.New(&hclog.LoggerOptions{Name: "jitgate", Level: level, Output: c.ErrOrStderr()})
}

// run runs f under the service manager of this system, which ends it with a
// signal, or in the foreground.
func (asService) run(ctx context.Context, name string, f func(ctx context.Context, ready func()) error) error {
	p := &program{f: f, done: make(chan struct{})}
	p.ctx, p.stop = signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer p.stop()
	s, err := service.New(p, &service.Config{Name: name, Option: service.KeyValue{"RunWait": p.wait}})
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return errors.Join(s.Run(), p.err)
}

// supervisor is who wants to hear that a service is alive, and what ends that.
func (asService) supervisor(string, hclog.Logger) (agent.Supervisor, func()) {
	return agent.Supervised(), func() {}
}

// program is what a service does.
type program struct {
	f    func(ctx context.Context, ready func()) error
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}
	err  error // after done
}

// Start implements service.Interface: it must not block.
func (p *program) Start(service.Service) error {
	go func() {
		defer close(p.done)
		p.err = p.f(p.ctx, nil)
	}()
	return nil
}

// Stop implements service.Interface.
func (p *program) Stop(service.Service) error {
	p.stop()
	<-p.done
	return nil
}

// wait waits until the work ends by itself, or is to end.
func (p *program) wait() {
	select {
	case <-p.done:
	case <-p.ctx.Done():
	}
}

// openFirewall opens this host's firewall, without which no agent starts.
func openFirewall(warn func(error)) (firewall.Backend, error) { return agent.OpenBackend(warn) }

// systemLog copies the record to the log of this system.
func systemLog(say func(what string, err error), instead func(audit.Entry)) *audit.Journal {
	return audit.NewJournal(audit.JournalSocket, say, instead)
}

// elevate says how a command gets the rights that it lacks.
const elevate = "run this as root"

// agentCommands are the commands of the agent that this platform has more.
func agentCommands() []*cobra.Command { return nil }

// hostCommands are other commands that this platform has more.
func hostCommands() []*cobra.Command { return nil }
