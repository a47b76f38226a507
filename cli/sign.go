package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/policy"
)

var documentTypes = map[string]policy.Type{"trust": policy.TypeTrust, "policy": policy.TypePolicy, "grants": policy.TypeGrants}

var signingRole = map[policy.Type]policy.Role{policy.TypeTrust: policy.RoleRoot, policy.TypePolicy: policy.RolePolicy, policy.TypeGrants: policy.RoleGrant}

func newSign() *cobra.Command {
	var kind, trust, out string
	var keys []string
	c := &cobra.Command{
		Use:   "sign --type trust|policy|grants --key KEY… IN -o OUT",
		Short: "Sign a document, or add a signature to a signed one",
		Long: `Signs a JSON document. It is first read by the agent's own parser; what an agent
would not read is not signed. If IN is signed already, the signature is added to
it, so several people can sign one file in turn. "-" stands for standard input
and output.`,
		Example: `  jitgate sign --type policy --key keys/policy.key policy.in.json -o policy.json
  jitgate sign --key bob.key policy.json -o policy.json      # a second signature`,
		Args: positional(1, 1, "one file to sign"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "key", "out"); err != nil {
				return err
			}
			in, err := readFile(c, args[0])
			if err != nil {
				return err
			}
			envelope, err := toSign(in, kind)
			if err != nil {
				return err
			}
			for _, path := range keys {
				signer, err := readKey(path)
				if err != nil {
					return err
				}
				if trust != "" {
					key, err := policy.NewKey(signer.Public())
					if err != nil {
						return fmt.Errorf("%s: %w", path, err)
					}
					if err := maySign(c, trust, envelope.Type, key.ID); err != nil {
						return fmt.Errorf("%s: %w", path, err)
					}
				}
				if err := envelope.Sign(signer); err != nil {
					return fmt.Errorf("%s: %w", args[0], err)
				}
			}
			return writeOutput(c, out, envelope.Encode(), 0o644)
		},
	}
	c.Flags().StringVar(&kind, "type", "", "trust, policy or grants; needed where IN is not signed yet")
	c.Flags().StringArrayVar(&keys, "key", nil, "private key file, PKCS#8 PEM; may be repeated")
	c.Flags().StringVar(&trust, "trust", "", "trust document: refuse keys that may not sign this type")
	c.Flags().StringVarP(&out, "out", "o", "", "file to write")
	must(c.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"trust", "policy", "grants"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

// toSign returns in as an envelope to sign: its own, or a new one around it.
func toSign(in []byte, kind string) (policy.Envelope, error) {
	want, known := documentTypes[kind]
	if kind != "" && !known {
		return policy.Envelope{}, usagef("--type %q is not trust, policy or grants", kind)
	}
	envelope, err := policy.ParseEnvelope(in)
	switch {
	case err == nil && known && envelope.Type != want:
		return policy.Envelope{}, fmt.Errorf("the file is signed as %q, not as %q", envelope.Type, want)
	case err == nil:
		return envelope, nil
	case policy.CodeOf(err) != policy.Unsigned:
		return policy.Envelope{}, err
	case !known:
		return policy.Envelope{}, usagef("--type is missing: the file is not signed yet")
	}
	return policy.Envelope{Type: want, Payload: in}, nil
}

func maySign(c *cobra.Command, trust string, typ policy.Type, id policy.KeyID) error {
	_, v, err := trustFile(c, trust)
	if err != nil {
		return err
	}
	role, _ := v.Document().Role(signingRole[typ])
	if !slices.Contains(role.Keys, id) {
		return fmt.Errorf("%s does not have role %s in %s", id, signingRole[typ], trust)
	}
	return nil
}

// must is for what only a mistake in this package can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
