package cli

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

// rotation is what trust next was asked for.
type rotation struct {
	remove, add, threshold, restart []string
	valid                           time.Duration
	out                             string
}

func newTrustNext() *cobra.Command {
	var r rotation
	c := &cobra.Command{
		Use:   "next TRUST -o OUT",
		Short: "Write the next trust document, for its root keys to sign",
		Long: `Writes the trust document that follows TRUST, with other keys, thresholds or
epochs, or only a later end. It is not signed yet: a threshold of the root keys
in TRUST and a threshold of its own must sign it before hosts take it.

Hosts take trust documents one by one. What a removed key signed stops counting
when they take this one: openings under it end. After a theft --restart the role
too, because the thief may have signed the largest version.`,
		Example: `  jitgate trust next trust.json --remove grant=9f86d081 --add grant=new.pem --restart grant -o next.json
  jitgate trust next trust.json --add root=bob.pem --add root=carol.pem --threshold root=2 -o next.json
  jitgate trust next trust.json --add policy=alice.pub -o next.json     # her SSH key
  jitgate sign --type trust --key root.key next.json -o trust.2.json`,
		Args: usage.Args(1, 1, "the trust document in force"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.Required(c, "out"); err != nil {
				return err
			}
			return r.run(c, args[0])
		},
	}
	c.Flags().StringArrayVar(&r.remove, "remove", nil, "ROLE=KEY: take a role from a key: its name, its id, or how that begins")
	c.Flags().StringArrayVar(&r.add, "add", nil, "ROLE=FILE: give a role to a public key in PEM, or in a .pub file of ssh-keygen")
	c.Flags().StringArrayVar(&r.threshold, "threshold", nil, "ROLE=N: how many different keys must sign")
	c.Flags().StringArrayVar(&r.restart, "restart", nil, "policy or grant: raise the role's epoch, so that its versions begin anew")
	c.Flags().DurationVar(&r.valid, "valid", 5*365*24*time.Hour, "how long the document is valid")
	c.Flags().StringVarP(&r.out, "out", "o", "", "file to write")
	must(c.RegisterFlagCompletionFunc("restart", cobra.FixedCompletions([]string{"policy", "grant"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

func (r rotation) run(c *cobra.Command, path string) error {
	_, v, err := trustFile(c, path, nil)
	if err != nil {
		return err
	}
	before := v.Document()
	next := before.Next(time.Now(), r.valid)
	if next.Issued.Before(before.Issued) {
		return fmt.Errorf("%s was issued at %s, the clock here says %s: set the clock", path, policy.FormatTime(before.Issued), policy.FormatTime(next.Issued))
	}
	if err := r.edit(&next); err != nil {
		return err
	}
	if _, err := policy.ParseDocument(policy.TypeTrust, next.Encode()); err != nil {
		return err
	}
	if err := writeOutput(c, r.out, next.Encode(), 0o644); err != nil {
		return err
	}
	old, _ := before.Role(policy.RoleRoot)
	own, _ := next.Role(policy.RoleRoot)
	fmt.Fprintf(c.ErrOrStderr(), "Version %d of realm %s needs the signatures of %d of the root keys in %s and of %d of its own: jitgate sign --type trust\n",
		next.Version, next.Realm, old.Threshold, path, own.Threshold)
	return nil
}

// edit removes before it adds, so that --remove finds the keys that were there.
func (r rotation) edit(t *policy.Trust) error {
	for _, change := range []struct {
		flag  string
		words []string
		make  func(role policy.Role, value string) error
	}{
		{"remove", r.remove, func(role policy.Role, value string) error {
			id, err := t.Find(role, value)
			if err != nil {
				return err
			}
			return t.Take(role, id)
		}},
		{"add", r.add, func(role policy.Role, value string) error {
			key, err := readPublicKey(value)
			if err != nil {
				return err
			}
			return t.Give(role, key)
		}},
		{"threshold", r.threshold, func(role policy.Role, value string) error {
			n, err := strconv.Atoi(value)
			if err != nil {
				return fmt.Errorf("%q is not a number", value)
			}
			return t.SetThreshold(role, n)
		}},
	} {
		for _, word := range change.words {
			role, value, ok := strings.Cut(word, "=")
			if !ok {
				return usage.Errorf("--%s: %q has no value: write ROLE=VALUE", change.flag, word)
			}
			if err := change.make(policy.Role(role), value); err != nil {
				return fmt.Errorf("--%s %s: %w", change.flag, word, err)
			}
		}
	}
	for _, role := range r.restart {
		if err := t.Restart(policy.Role(role)); err != nil {
			return fmt.Errorf("--restart %s: %w", role, err)
		}
	}
	return nil
}
