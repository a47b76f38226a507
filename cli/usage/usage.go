// Package usage is what the commands of jitgate and jitgate-control have in
// common: how many words they take, and how a mistake in them is told.
package usage

import (
	"fmt"

	"github.com/spf13/cobra"
)

// Error is a mistake in a command's words. A program ends with exit code 2 for
// it.
type Error struct{ error }

// Errorf makes an Error as fmt.Errorf does.
func Errorf(format string, args ...any) error { return Error{fmt.Errorf(format, args...)} }

// Unwrap is what went wrong.
func (e Error) Unwrap() error { return e.error }

// Group makes c a command that only holds others.
func Group(c *cobra.Command, children ...*cobra.Command) *cobra.Command {
	c.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Errorf("unknown command %q: see %s --help", args[0], c.CommandPath())
		}
		return nil
	}
	c.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	c.AddCommand(children...)
	return c
}

// Args checks how many arguments a command got: low to high, or more where
// high is negative. what says in words what was expected.
func Args(low, high int, what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < low || (high >= 0 && len(args) > high) {
			return Errorf("expected %s: see %s --help", what, c.CommandPath())
		}
		return nil
	}
}

// Required refuses a command that lacks one of these flags.
func Required(c *cobra.Command, names ...string) error {
	for _, name := range names {
		if !c.Flags().Changed(name) {
			return Errorf("--%s is missing: see %s --help", name, c.CommandPath())
		}
	}
	return nil
}

// OneOf refuses a command that has more than one of these flags.
func OneOf(c *cobra.Command, names ...string) error {
	said := ""
	for _, name := range names {
		if !c.Flags().Changed(name) {
			continue
		}
		if said != "" {
			return Errorf("--%s and --%s do not go together: see %s --help", said, name, c.CommandPath())
		}
		said = name
	}
	return nil
}
