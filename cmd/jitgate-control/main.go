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

// usageError is a mistake in the command's words.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

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
	if _, ok := errors.AsType[usageError](err); ok {
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
				return usagef("unknown command %q: see jitgate-control --help", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usagef("%w: see %s --help", err, c.CommandPath())
	})
	root.AddCommand(newServe(), newUser(), newToken(), newRole(), newJoin(), newKeys(), newBackup(), newRestore(), newMigrate(), newConfig(), newVersion())
	return root
}

// group is a command that only holds others.
func group(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("unknown command %q: see %s --help", args[0], c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.AddCommand(children...)
	return c
}

// positional checks how many arguments a command got.
func positional(low, high int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < low || (high >= 0 && len(args) > high) {
			return usagef("expected %s: see %s --help", what, c.CommandPath())
		}
		return nil
	}
}

// required makes missing flags a mistake in usage with one clear line.
func required(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if !c.Flags().Changed(name) {
			return usagef("--%s is missing: see %s --help", name, c.CommandPath())
		}
	}
	return nil
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
		Args:    positional(0, 0, "no argument"),
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
