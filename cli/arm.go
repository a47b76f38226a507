package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
)

func newArm() *cobra.Command {
	var config string
	var within time.Duration
	var asJSON bool
	c := &cobra.Command{
		Use:   "arm",
		Short: "Let the guard drop, and go back by itself unless confirmed",
		Long: `The guard begins to drop what is not granted, for a trial: unless jitgate arm
confirm follows within the time given, it goes back to what it was by itself,
also if the agent is killed or the machine restarts meanwhile.

The session this command is run through stays admitted for that time, and from
the same address new ones come in. So arm, open a second session the way you
will from now on, and confirm from there.`,
		Example: `  jitgate arm --confirm-within 10m
  jitgate arm confirm`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if within < agent.MinConfirm || within > agent.MaxConfirm {
				return usage.Errorf("--confirm-within %s is not between %s and %s", within, agent.MinConfirm, agent.MaxConfirm)
			}
			var result agent.Arming
			request := agent.ArmRequest{ConfirmWithin: int(within / time.Second), Sessions: agent.OwnSessions()}
			if err := callAgent(c.Context(), config, http.MethodPost, "/v1/arm", request, &result); err != nil {
				return err
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), result)
			}
			return printArming(c.OutOrStdout(), result)
		},
	}
	configFlag(c, &config)
	c.Flags().DurationVar(&within, "confirm-within", 5*time.Minute, "how long to wait for jitgate arm confirm")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.AddCommand(newArmConfirm())
	return c
}

func printArming(out io.Writer, a agent.Arming) error {
	guarded := strings.Join(a.Guarded, ", ")
	if a.Until.IsZero() {
		_, err := fmt.Fprintf(out, "the guard drops already, for good: %s\n", guarded)
		return err
	}
	fmt.Fprintf(out, "armed: what is not granted is dropped on %s\n", guarded)
	for _, s := range a.Admitted {
		fmt.Fprintf(out, "admitted until then: %s, this session\n", s)
	}
	if len(a.Admitted) == 0 {
		fmt.Fprintln(out, "no remote session to a guarded port was found behind this terminal: nothing is admitted for it")
	}
	if err := printDenials(out, "would have been dropped in the last day:", a.Denied, 10); err != nil {
		return err
	}
	_, err := fmt.Fprintf(out, "open a new session now; if that works, run: jitgate arm confirm\nwithout it the guard goes back to %s at %s\n",
		a.Back, a.Until.Local().Format(time.DateTime))
	return err
}

// printDenials shows who was denied most.
func printDenials(out io.Writer, title string, list []agent.Denial, most int) error {
	if len(list) == 0 {
		return nil
	}
	fmt.Fprintln(out, title)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  SOURCE\tPORT\tPACKETS\tLAST")
	for _, d := range list[:min(len(list), most)] {
		fmt.Fprintf(w, "  %s\t%d/%s\t%d\t%s\n", d.Source, d.Port, d.Protocol, d.Packets, d.Last.Format(time.RFC3339))
		if d.Differs != "" {
			fmt.Fprintf(w, "    %s\n", printable(d.Differs))
		}
	}
	if len(list) > most {
		fmt.Fprintf(w, "  and %d more: jitgate status --json\n", len(list)-most)
	}
	return w.Flush()
}

func newArmConfirm() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:     "confirm",
		Short:   "Let the guard drop for good",
		Long:    "Makes what jitgate arm began stand for good, over restarts of the agent and of the machine.",
		Example: "  jitgate arm confirm",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := callAgent(c.Context(), config, http.MethodPost, "/v1/arm/confirm", nil, nil); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.OutOrStdout(), "confirmed: the guard drops for good; jitgate disarm takes it away")
			return err
		},
	}
	configFlag(c, &config)
	return c
}

func newDisarm() *cobra.Command {
	var config string
	var observe bool
	c := &cobra.Command{
		Use:   "disarm",
		Short: "Stop dropping and take the guard away",
		Long: `Removes the guard: every port is as the rest of the host's firewall has it, and
the ruleset is what it was without jitgate. That stands, over restarts of the
agent and of the machine, until jitgate arm. With --observe the guard stays and
counts what it would drop.

It works without a running agent too.`,
		Example: `  jitgate disarm
  jitgate disarm --observe`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			err := callAgent(c.Context(), config, http.MethodPost, "/v1/disarm", agent.DisarmRequest{Observe: observe}, nil)
			if errors.Is(err, errNoAgent) {
				err = disarmAlone(c, config, agent.DisarmRequest{Observe: observe})
			}
			if err != nil {
				return err
			}
			what := "disarmed: the guard is gone"
			if observe {
				what = "disarmed: the guard counts what it would drop, and drops nothing"
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), what+"; jitgate arm brings it back")
			return err
		},
	}
	configFlag(c, &config)
	c.Flags().BoolVar(&observe, "observe", false, "go on counting what would be dropped")
	return c
}

// disarmAlone does what a running agent would.
func disarmAlone(c *cobra.Command, config string, request agent.DisarmRequest) error {
	a, err := openAgent(c, config, "error", asService{})
	if err != nil {
		return err
	}
	defer a.Backend.Close()
	return a.DisarmOnce(c.Context(), request)
}
