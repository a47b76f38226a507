package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/control/signer"
	"github.com/jitgate/jitgate/control/signer/keyvault"
	"github.com/jitgate/jitgate/policy"
)

func newKeys() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "keys",
		Short: "The keys of the realm: whose they are, where they are, how they change",
	}, newKeysList(), newKeysShow(), newKeysInstall(), newKeysRotateHelp())
}

// keyLine is one key of the trust document, as keys list shows it.
type keyLine struct {
	Role   policy.Role   `json:"role"`
	ID     policy.KeyID  `json:"id"`
	Scheme policy.Scheme `json:"scheme"`
	Name   string        `json:"name,omitempty"`
	Where  string        `json:"where"` // empty: not on this server
	Note   string        `json:"note,omitempty"`
}

func newKeysList() *cobra.Command {
	var o origin
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List the realm's keys by role, and which of them this server has",
		Long: `Lists what the trust document says: which key has which role. Where the private
half is on this server, it says where; the others are with people, or lost.`,
		Example: "  jitgate-control keys list\n  jitgate-control keys list --data ./control --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			s, d, err := o.existing(c)
			if err != nil {
				return err
			}
			_, v, err := d.trust()
			if err != nil {
				return err
			}
			lines := d.keyLines(c.Context(), s.realm, v.Document())
			rows := make([][]string, 0, len(lines))
			for _, l := range lines {
				where := cmp.Or(l.Where, "not here")
				if l.Note != "" {
					where += ": " + l.Note
				}
				rows = append(rows, []string{string(l.Role), string(l.ID), string(l.Scheme), cmp.Or(l.Name, "-"), where})
			}
			return table(c, asJSON, lines, "ROLE\tKEY\tSCHEME\tWHOSE\tWHERE", rows)
		},
	}
	o.dataFlags(c)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// keyLines holds the keys of a trust document against those this server has.
func (d directory) keyLines(ctx context.Context, s realmSettings, t policy.Trust) []keyLine {
	type place struct{ where, note string }
	have := map[policy.KeyID]place{}
	wrong := map[policy.Role]place{} // a key that is not of its role, or cannot be opened
	open := openKey(drivers())
	for _, k := range []struct {
		role       policy.Role
		spec, file string
		note       string
	}{
		{policy.RoleRoot, "", rootKeyFile, "move it off this machine"},
		{policy.RolePolicy, s.policy, policyKeyFile, ""},
		{policy.RoleGrant, s.grant, grantKeyFile, ""},
	} {
		spec := k.spec
		if spec == "" {
			if there, err := d.has(k.file); err == nil && !there {
				continue
			}
			spec = "file:" + d.path(k.file)
		}
		if spec == people {
			continue
		}
		key, err := open(ctx, spec)
		var public policy.Key
		if err == nil {
			public, err = policy.NewKey(key.Public())
		}
		role, _ := t.Role(k.role)
		switch {
		case err != nil:
			wrong[k.role] = place{spec, err.Error()}
		case !slices.Contains(role.Keys, public.ID):
			wrong[k.role] = place{spec, "trust.json does not give this key the role"}
		default:
			have[public.ID] = place{spec, k.note}
		}
	}
	var lines []keyLine
	for _, name := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		role, _ := t.Role(name)
		for _, id := range role.Keys {
			i := slices.IndexFunc(t.Keys, func(k policy.Key) bool { return k.ID == id })
			k := t.Keys[i] // a verified trust document has the keys of its roles
			p := have[id]
			lines = append(lines, keyLine{Role: name, ID: id, Scheme: k.Scheme, Name: k.Name, Where: p.where, Note: p.note})
		}
		if p, ok := wrong[name]; ok {
			lines = append(lines, keyLine{Role: name, ID: "-", Where: p.where, Note: p.note})
		}
	}
	return lines
}

// drivers are the keys that are opened by more than this package has.
func drivers() map[string]signer.Driver { return map[string]signer.Driver{"keyvault": keyvault.Open} }

func newKeysShow() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "show root|policy|grant",
		Short: "Print the public keys of a role",
		Long: `Prints the public keys of a role from the trust document, in PEM; those of
ssh-keygen as it writes them. Private keys are never printed.`,
		Example: "  jitgate-control keys show grant",
		Args:    usage.Args(1, 1, "one role"),
		RunE: func(c *cobra.Command, args []string) error {
			_, d, err := o.existing(c)
			if err != nil {
				return err
			}
			_, v, err := d.trust()
			if err != nil {
				return err
			}
			t := v.Document()
			role, ok := t.Role(policy.Role(args[0]))
			if !ok {
				return usage.Errorf("%q is not root, policy or grant", args[0])
			}
			for _, k := range t.Keys {
				if !slices.Contains(role.Keys, k.ID) {
					continue
				}
				fmt.Fprintf(c.OutOrStdout(), "# %s\n", strings.TrimSpace(string(k.ID)+" "+k.Name))
				if k.Scheme == policy.SSHSig {
					fmt.Fprintf(c.OutOrStdout(), "%s\n", k.Public())
					continue
				}
				der, err := base64.StdEncoding.DecodeString(k.Public())
				if err != nil {
					return err
				}
				if err := pem.Encode(c.OutOrStdout(), &pem.Block{Type: "PUBLIC KEY", Bytes: der}); err != nil {
					return err
				}
			}
			return nil
		},
	}
	o.dataFlags(c)
	return c
}

func newKeysInstall() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "install FILE",
		Short: "Put the next trust document in place",
		Long: `Takes the trust document that follows the one in force (jitgate trust next, signed
by a threshold of the root keys before it and of its own). A running server
follows it when it is restarted; hosts get it then.`,
		Example: "  jitgate-control keys install trust.2.json",
		Args:    usage.Args(1, 1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			s, d, err := o.existing(c)
			if err != nil {
				return err
			}
			signed, err := readLimited(args[0], policy.MaxEnvelope)
			if err != nil {
				return err
			}
			next, err := d.follow(c.Context(), s.realm, signed, time.Now())
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			fmt.Fprintf(c.OutOrStdout(), "Version %d of realm %s is in place. Restart the server to follow it.\n", next.Version, next.Realm)
			return nil
		},
	}
	o.dataFlags(c)
	return c
}

// follow puts the next trust document in place, if this server could go on
// under it: its grant key must still be one.
func (d directory) follow(ctx context.Context, s realmSettings, signed []byte, now time.Time) (policy.Trust, error) {
	_, have, err := d.trust()
	if err != nil {
		return policy.Trust{}, err
	}
	v, err := policy.OpenTrust(signed, have.Document())
	if err != nil {
		return policy.Trust{}, err
	}
	before, next := have.Document(), v.Document()
	switch {
	case v.Digest() == have.Digest():
		return next, nil
	case next.Realm != before.Realm:
		return policy.Trust{}, fmt.Errorf("it is of realm %s, this server's is %s", next.Realm, before.Realm)
	case next.Version != before.Version+1:
		return policy.Trust{}, fmt.Errorf("it is version %d, and %d is due: hosts take them one by one", next.Version, before.Version+1)
	case !next.Expires.After(now):
		return policy.Trust{}, fmt.Errorf("it was over at %s", policy.FormatTime(next.Expires))
	}
	if _, err := d.grantKey(ctx, s, openKey(drivers()), next); err != nil {
		return policy.Trust{}, err
	}
	if _, _, err := d.policyKey(ctx, s, openKey(drivers()), next); err != nil {
		return policy.Trust{}, err
	}
	return next, d.replace(trustFile, signed, 0o644)
}

func newKeysRotateHelp() *cobra.Command {
	var o origin
	c := &cobra.Command{
		Use:   "rotate-help",
		Short: "Say, step by step, how keys of this realm change",
		Long: `Prints the commands that give this realm another grant or policy key, or only a
later end. Nothing is done: the root key has to sign, and it is not here.`,
		Example: "  jitgate-control keys rotate-help",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			_, d, err := o.existing(c)
			if err != nil {
				return err
			}
			_, v, err := d.trust()
			if err != nil {
				return err
			}
			t := v.Document()
			grant, _ := t.Role(policy.RoleGrant)
			root, _ := t.Role(policy.RoleRoot)
			fmt.Fprintf(c.OutOrStdout(), `Realm %[1]s, trust document version %[2]d, until %[3]s.
Root keys sign: %[4]d of %[5]d needed.

A new grant key, here:
  openssl genpkey -algorithm ed25519 -out %[6]s.new && chmod 600 %[6]s.new
  jitgate trust next %[7]s --remove grant=%[8]s --add grant=%[6]s.new -o next.json
  (after a theft add --restart grant: lists then begin anew, whatever the thief signed)
Where the root key is:
  jitgate sign --type trust --key root.key next.json -o trust.next.json
Here again, with the server stopped:
  mv %[6]s.new %[6]s
  jitgate-control keys install trust.next.json --data %[9]s
  jitgate-control serve --data %[9]s
A policy key changes in the same way, with policy in the place of grant. For a
later end alone: jitgate trust next without --remove and --add. See docs/keys.md.
`, t.Realm, t.Version, policy.FormatTime(t.Expires), root.Threshold, len(root.Keys), d.path(grantKeyFile), d.path(trustFile), grant.Keys[0], string(d))
			return nil
		},
	}
	o.dataFlags(c)
	return c
}
