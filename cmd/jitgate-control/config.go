package main

import (
	_ "embed"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
)

// defaultConfig is every setting there is, commented out, with its default.
//
//go:embed default.toml
var defaultConfig string

func newConfig() *cobra.Command {
	return &cobra.Command{
		Use:   "config",
		Short: "Print a settings file with everything in it, commented out",
		Long: `Prints a settings file that says nothing yet: every setting there is, with what
it is if it is left out, and what it is for.`,
		Example: `  jitgate-control config > control.toml
  jitgate-control serve --config control.toml`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := c.OutOrStdout().Write([]byte(defaultConfig))
			return err
		},
	}
}
