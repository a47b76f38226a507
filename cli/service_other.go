//go:build !windows

package cli

import (
	"context"

	"github.com/hashicorp/go-hclog"
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

// run calls f: the service manager here is told by signals.
func (asService) run(ctx context.Context, _ string, f func(ctx context.Context, ready func()) error) error {
	return f(ctx, nil)
}

// openFirewall opens this host's firewall, without which no agent starts.
func openFirewall(warn func(error)) (firewall.Backend, error) { return agent.OpenBackend(warn) }

// systemLog copies the record to the log of this system.
func systemLog(say func(what string, err error), instead func(audit.Entry)) *audit.Journal {
	return audit.NewJournal(audit.JournalSocket, say, instead)
}

// agentCommands are the commands of the agent that this platform has more.
func agentCommands() []*cobra.Command { return nil }
