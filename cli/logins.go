package cli

import (
	"context"
	"net/http"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/logins"
)

func newAgentLogins() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "logins",
		Short: "Tell the agent whom sshd lets in",
		Long: `Follows systemd's journal, and tells the agent on its socket of each login that
sshd accepted: the agent records by which grant it came. It is a process of its
own, so that the agent neither reads what others write nor starts programs. It
runs until it is stopped.`,
		Example: "  jitgate agent logins --config /etc/jitgate/agent.toml",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			log := hclog.New(&hclog.LoggerOptions{Name: "jitgate", Output: c.ErrOrStderr()})
			const path = "/v1/logins"
			f := logins.Follower{
				From: func(ctx context.Context) (string, error) {
					var r agent.LoginsReport
					err := callAgent(ctx, config, http.MethodGet, path, nil, &r)
					return r.Cursor, err
				},
				Tell: func(ctx context.Context, cursor string, list []logins.Login) error {
					return callAgent(ctx, config, http.MethodPost, path, agent.LoginsReport{Cursor: cursor, Logins: list}, nil)
				},
				Say: func(err error) {
					if err == nil {
						log.Info("the agent takes logins again")
						return
					}
					log.Warn("the agent takes no logins; they wait in the journal", "error", err)
				},
			}
			return f.Run(c.Context())
		},
	}
	configFlag(c, &config)
	return c
}
