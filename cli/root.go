// Package cli is the jitgate command line. A command parses its arguments,
// calls what does the work and prints the outcome; it holds no rule of its
// own.
//
// Exit codes: 0 done, 1 refused or failed, 2 wrong usage. Errors are one line
// on standard error that says what to do.
package cli

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

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
	built   = "" // the commit's time, RFC 3339: no honest clock is before it
)

// Main runs the command line and returns its exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	fmt.Fprintf(stderr, "jitgate: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	if _, ok := errors.AsType[usage.Error](err); ok {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "jitgate",
		Short: "Just-in-time access to management ports",
		Long: `jitgate keeps the management ports of a machine closed, and opens one, for one
source, for a bounded time, when a signed grant says so.`,
		Example: `  jitgate trust init --realm acme --out keys     # a new realm
  jitgate trust install keys/trust.json          # on a host, as root
  jitgate grant --dir keys --host web1 --port 22 --source 203.0.113.7 --for 1h -o grants.json
  jitgate status
  jitgate login https://jit.example.net          # an operator of a control plane
  jitgate ssh web1`,
		SilenceUsage:  true,
		SilenceErrors: true,
		// A word that is no command is a mistake, not a wish for help.
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage.Errorf("unknown command %q: see jitgate --help", args[0])
			}
			return nil
		},
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage.Errorf("%w: see %s --help", err, c.CommandPath())
	})
	root.AddCommand(
		newAgent(), newStatus(), newArm(), newDisarm(), newLockdown(), newAudit(), newDoctor(), newHostID(), newInbox(), newEnroll(), newFetch(),
		newTrust(), newSign(), newGrant(), newInspect(), newVerify(),
		newPolicy(), newLogin(), newLogout(), newContext(), newVM(), newRequest(), newRequests(), newActivity(), newSSH(), newSSHConfig(), newHold(), newRDP(),
		newVersion())
	root.AddCommand(hostCommands()...)
	return root
}

func newVersion() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Example: "  jitgate version --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			v := map[string]string{"version": version, "commit": commit, "built": built,
				"go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
			if asJSON {
				return printJSON(c.OutOrStdout(), v)
			}
			fmt.Fprintf(c.OutOrStdout(), "jitgate %s %s %s %s\n", version, v["commit"], v["go"], v["platform"])
			return nil
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// builtTime is when the program was built, or zero.
func builtTime() time.Time {
	t, err := time.Parse(time.RFC3339, built)
	if err != nil {
		return time.Time{}
	}
	return t
}
