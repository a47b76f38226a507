package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/cloud"
)

// fromAuto asks every cloud and falls back to the machine id.
const fromAuto = "auto"

func newHostID() *cobra.Command {
	var config, from string
	var write, asJSON bool
	c := &cobra.Command{
		Use:   "host-id",
		Short: "Ask the cloud's metadata service which machine this is",
		Long: `Asks the metadata services of Azure, EC2 and Compute Engine, all at once and for
two seconds at most, which virtual machine this is, and prints the id that
documents name in host.id. Where none answers it is the machine id.

With --write it is kept in host.json beside the settings, for host_id = "auto":
the agent itself never uses the network. Run it once, as root, when the machine
is set up, and restart the agent. An id that a service gave this machine is not
replaced by the machine id because no service answers now.`,
		Example: "  jitgate host-id\n  jitgate host-id --from azure --write",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			h, why, err := findHostID(c.Context(), from)
			if err != nil {
				return err
			}
			out := struct {
				ID   string `json:"id"`
				From string `json:"from"`
				File string `json:"file,omitempty"` // where it was written
			}{h.ID, h.From, ""}
			if write {
				out.File = agent.HostFilePath(config)
				if err := writeHostID(h, out.File, why); err != nil {
					return err
				}
			}
			if why != nil {
				fmt.Fprintf(c.ErrOrStderr(), "the machine id: %v\n", why)
			}
			if asJSON {
				return printJSON(c.OutOrStdout(), out)
			}
			fmt.Fprintln(c.OutOrStdout(), h.ID)
			return nil
		},
	}
	configFlag(c, &config)
	c.Flags().StringVar(&from, "from", fromAuto, "whom to ask: auto, azure, ec2, gce or machine-id")
	c.Flags().BoolVar(&write, "write", false, "keep it in host.json beside the settings")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// findHostID asks. why says why the id is only the machine's, where a service
// was asked.
func findHostID(ctx context.Context, from string) (h agent.HostFile, why, err error) {
	h = agent.HostFile{Machine: agent.ThisMachine(), Written: time.Now().UTC().Truncate(time.Second)}
	asked := cloud.Services
	switch {
	case from == agent.FromMachineID:
		asked = nil
	case from == fromAuto:
	case slices.Contains(cloud.Services, cloud.Service(from)):
		asked = []cloud.Service{cloud.Service(from)}
	default:
		return h, nil, usage.Errorf("--from %q is not auto, azure, ec2, gce or machine-id", from)
	}
	if asked != nil {
		found, err := cloud.Identify(ctx, asked...)
		if err == nil {
			h.ID, h.From = found.ID, string(found.From)
			return h, nil, nil
		}
		if from != fromAuto || !errors.Is(err, cloud.ErrNone) {
			return h, nil, err
		}
		why = err
	}
	h.From = agent.FromMachineID
	h.ID, err = agent.MachineID()
	return h, why, err
}

// writeHostID keeps h. A service that does not answer now does not undo what
// one said of this machine before.
func writeHostID(h agent.HostFile, path string, why error) error {
	if why != nil {
		if before, err := agent.LoadHostFile(path, h.Machine); err == nil && before.From != agent.FromMachineID {
			return fmt.Errorf("%s stays as it is, with the id from %s: --from machine-id replaces it: %w", path, before.From, why)
		}
	}
	err := h.Write(path)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %s", err, elevate)
	}
	return err
}
