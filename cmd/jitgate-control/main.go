// Command jitgate-control is the control plane of jitgate: it decides who may
// have which port opened, signs the documents that agents obey, and keeps the
// record of it. One program, one port, one data directory.
//
// Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Errors are one line
// on standard error that says what to do.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
)

// Exit codes.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// Set by the linker: see the Makefile.
var (
	version = "dev"
	commit  = ""
	built   = "" // the commit's time, RFC 3339
)

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run runs the command line and returns its exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.WithValue(context.Background(), argsKey{}, args))
	if err == nil {
		return exitDone
	}
	fmt.Fprintf(stderr, "jitgate-control: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if _, ok := errors.AsType[usage.Error](err); ok {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "jitgate-control",
		Short: "The control plane of jitgate",
		Long: `jitgate-control decides who may have which port of which machine opened, signs
the documents that agents obey, and keeps the record of it. It answers Azure's
JIT API, so that Azure's own tools and SDKs work with it.`,
		Example: `  jitgate-control serve                          # makes what is missing, and serves
  jitgate-control user add alice@example.com --role JITRequester --scope /subscriptions/S
  jitgate-control join create --scope /subscriptions/S --uses 20`,
		SilenceUsage:  true,
		SilenceErrors: true,
		// A word that is no command is a mistake, not a wish for help.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage.Errorf("unknown command %q: see jitgate-control --help", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage.Errorf("%w: see %s --help", err, c.CommandPath())
	})
	root.AddCommand(newServe(), newUser(), newToken(), newRole(), newJoin(), newKeys(), newBackup(), newRestore(), newMigrate(), newConfig(), newVersion())
	return root
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(v)
}

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  jitgate-control version --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "commit": commit, "built": built,
				"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return printJSON(c.OutOrStdout(), v)
			}
			fmt.Fprintf(c.OutOrStdout(), "jitgate-control %s %s %s %s\n", version, v["commit"], v["go"], v["platform"])
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}
