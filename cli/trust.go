package cli

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

func newTrust() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "trust",
		Short: "Make a realm, or make a host part of one",
	}, newTrustInit(), newTrustNext(), newTrustInstall())
}

// keyFile is where trust init leaves the key of a role.
func keyFile(role policy.Role) string { return string(role) + ".key" }

// newRealm is what trust init was asked for.
type newRealm struct {
	realm, dir, scheme string
	valid              time.Duration
	people             rotation // keys that others have, and thresholds
}

func newTrustInit() *cobra.Command {
	var n newRealm
	c := &cobra.Command{
		Use:   "init --realm NAME --out DIR",
		Short: "Make a new realm: root, policy and grant keys, and a signed trust.json",
		Long: `Makes a new realm in DIR: root.key, policy.key and grant.key (PKCS#8, mode
0600) and trust.json, which says what each key may sign. Keep root.key offline:
it is needed again only to change keys.

A role that --add gives to people's keys gets no key of its own here. Where that
is the root role, trust.json is not signed yet: they sign it in turn.`,
		Example: `  jitgate trust init --realm acme --out keys
  jitgate trust init --realm acme --out keys --add root=alice.pub --add root=bob.pub --threshold root=2
  jitgate sign --ssh-key ~/.ssh/id_ed25519 keys/trust.json -o keys/trust.json`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := usage.Required(c, "realm", "out"); err != nil {
				return err
			}
			return n.run(c)
		},
	}
	c.Flags().StringVar(&n.realm, "realm", "", "name of the realm, one for an organisation")
	c.Flags().StringVar(&n.dir, "out", "", "directory for the keys and trust.json")
	c.Flags().StringVar(&n.scheme, "scheme", string(policy.Ed25519), "of the keys made here: ed25519 or ecdsa-p256-sha256")
	c.Flags().StringArrayVar(&n.people.add, "add", nil, "ROLE=FILE: give a role to a public key; may be repeated")
	c.Flags().StringArrayVar(&n.people.threshold, "threshold", nil, "ROLE=N: how many different keys must sign")
	c.Flags().DurationVar(&n.valid, "valid", 5*365*24*time.Hour, "how long the trust document is valid")
	return c
}

func (n newRealm) run(c *cobra.Command) error {
	now := time.Now().UTC().Truncate(time.Second)
	t := policy.Trust{Header: policy.Header{Realm: n.realm, Version: 1, Issued: now, Expires: now.Add(n.valid)}, Roles: []policy.RoleKeys{
		{Name: policy.RolePolicy, Threshold: 1}, {Name: policy.RoleGrant, Threshold: 1, Epoch: 1}, {Name: policy.RoleRoot, Threshold: 1}}}
	if err := n.people.edit(&t); err != nil {
		return err
	}
	private := map[policy.Role]crypto.Signer{}
	for _, role := range []policy.Role{policy.RolePolicy, policy.RoleGrant, policy.RoleRoot} {
		if holds, _ := t.Role(role); len(holds.Keys) > 0 {
			continue
		}
		signer, err := newKey(policy.Scheme(n.scheme))
		if err != nil {
			return err
		}
		key, err := policy.NewKey(signer.Public())
		if err == nil {
			err = t.Give(role, key)
		}
		if err != nil {
			return err
		}
		private[role] = signer
	}
	envelope := policy.Envelope{Type: policy.TypeTrust, Payload: t.Encode()}
	if _, err := policy.ParseDocument(envelope.Type, envelope.Payload); err != nil {
		return err
	}
	if root := private[policy.RoleRoot]; root != nil {
		if err := envelope.Sign(root); err != nil {
			return err
		}
	}
	if err := n.write(envelope, private); err != nil {
		return err
	}
	trust := filepath.Join(n.dir, agent.Trust.File())
	fmt.Fprintf(c.OutOrStdout(), "Realm %s is in %s. Its trust document is %s.\n", n.realm, n.dir, envelope.Digest())
	if private[policy.RoleRoot] == nil {
		root, _ := t.Role(policy.RoleRoot)
		fmt.Fprintf(c.OutOrStdout(), "It is not signed yet. %d of its root keys sign it, in turn:\n  jitgate sign --ssh-key KEY %s -o %[2]s\nThen, ", root.Threshold, trust)
	} else {
		fmt.Fprint(c.OutOrStdout(), "Keep root.key offline. ")
	}
	fmt.Fprintf(c.OutOrStdout(), "on each host, as root:\n  jitgate trust install --pin %s %s\n", envelope.Digest(), trust)
	return nil
}

// write makes the realm's files, and never one that is there.
func (n newRealm) write(trust policy.Envelope, private map[policy.Role]crypto.Signer) error {
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return err
	}
	for _, role := range []policy.Role{policy.RoleRoot, policy.RolePolicy, policy.RoleGrant} {
		if private[role] == nil {
			continue
		}
		text, err := encodeKey(private[role])
		if err != nil {
			return err
		}
		if err := createNew(filepath.Join(n.dir, keyFile(role)), text, 0o600); err != nil {
			return err
		}
	}
	return createNew(filepath.Join(n.dir, agent.Trust.File()), trust.Encode(), 0o644)
}

func createNew(path string, content []byte, mode os.FileMode) error {
	err := createFile(path, content, mode)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s is there already: a realm is never overwritten, choose another --out", path)
	}
	return err
}

func newTrustInstall() *cobra.Command {
	var config, pin string
	var replace bool
	c := &cobra.Command{
		Use:   "install FILE",
		Short: "On a host, as root: put the first trust document in place and pin it",
		Long: `Puts a realm's trust document into the agent's inbox and writes its digest as
trust_pin into the settings. From then on the host follows that realm only. A
running agent reads the pin when it is restarted.

With --pin the document is installed only if that is its digest: FILE may then
come from anywhere, as long as the pin came by a way you trust. "-" is standard
input. A host that follows the realm already is left as it is, also where later
trust documents have replaced the first one since.`,
		Example: `  jitgate trust install keys/trust.json
  jitgate trust install --pin sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae trust.json`,
		Args: usage.Args(1, 1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			// An empty pin is a variable nobody set, not a wish to go without.
			var want *policy.Digest
			if c.Flags().Changed("pin") {
				d, err := policy.ParseDigest(pin)
				if err != nil {
					return usage.Errorf("--pin: %w", err)
				}
				want = &d
			}
			raw, v, err := trustFile(c, args[0], want)
			if err != nil {
				return err
			}
			already, err := installTrust(c, config, raw, v, replace, func(inbox string) error {
				return writeOutput(c, filepath.Join(inbox, agent.Trust.File()), raw, 0o644)
			})
			switch {
			case err != nil:
				return err
			case already:
				fmt.Fprintf(c.OutOrStdout(), "This host trusts realm %s (%s) already.\n", v.Document().Realm, v.Digest())
			default:
				fmt.Fprintf(c.OutOrStdout(), "This host trusts realm %s (%s). Restart the agent if it is running.\n", v.Document().Realm, v.Digest())
			}
			return nil
		},
	}
	c.Flags().StringVar(&config, "config", agent.DefaultConfig, "the agent's settings")
	c.Flags().StringVar(&pin, "pin", "", "digest the document must have, sha256: and 64 hex digits")
	c.Flags().BoolVar(&replace, "replace", false, "leave the realm this host belongs to")
	return c
}

// installTrust makes a host part of a realm: it has the trust document put into
// the inbox and pins it. A host of another realm stays there unless replace
// says otherwise; one of this realm is left as it is.
func installTrust(c *cobra.Command, config string, raw []byte, v policy.Verified[policy.Trust], replace bool, put func(inbox string) error) (already bool, err error) {
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return false, err
	}
	if err := mayPin(settings, config, v.Digest(), replace); err != nil {
		return false, err
	}
	if settings.Trusts(v.Digest()) || follows(settings, raw, v) {
		return true, nil
	}
	if err := os.MkdirAll(settings.InboxDir, 0o755); err != nil {
		return false, err
	}
	if err := writePin(c, config, v.Digest()); err != nil {
		return false, err
	}
	return false, put(settings.InboxDir)
}

// mayPin refuses to take a host out of its realm by the way.
func mayPin(s agent.Settings, config string, pin policy.Digest, replace bool) error {
	if none := (policy.Digest{}); s.TrustPin == none || s.TrustPin == pin || s.Trusts(pin) || replace {
		return nil
	}
	return fmt.Errorf("%s already pins %s: --replace makes this host part of the other realm", config, s.TrustPin)
}

// follows reports whether the document was installed before: it is pinned, and
// lies in the inbox, or the agent has it or a later one in force. Delivering
// the first one again would only be refused as older.
func follows(s agent.Settings, raw []byte, v policy.Verified[policy.Trust]) bool {
	if s.TrustPin != v.Digest() {
		return false
	}
	there, err := os.ReadFile(filepath.Join(s.InboxDir, agent.Trust.File()))
	return err == nil && bytes.Equal(there, raw) || s.Followed()
}

var (
	pinLine   = regexp.MustCompile(`(?m)^[ \t]*trust_pin[ \t]*=.*$`)
	tableLine = regexp.MustCompile(`(?m)^[ \t]*\[`)
)

// writePin sets trust_pin in a settings file and leaves everything else of
// it, comments included, as it was.
func writePin(c *cobra.Command, path string, pin policy.Digest) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	edited := setPin(string(text), pin)
	if s, err := agent.ParseSettings([]byte(edited)); err != nil || s.TrustPin != pin {
		return fmt.Errorf("%s: trust_pin cannot be set here: write trust_pin = %q by hand", path, pin)
	}
	return writeOutput(c, path, []byte(edited), info.Mode().Perm())
}

func setPin(text string, pin policy.Digest) string {
	return setTop(text, pinLine, fmt.Sprintf("trust_pin = %q", pin))
}

// setTop replaces a line above all tables, or adds it there.
func setTop(text string, is *regexp.Regexp, line string) string {
	// Names after the first table header belong to that table.
	top, tables := text, ""
	if at := tableLine.FindStringIndex(text); at != nil {
		top, tables = text[:at[0]], text[at[0]:]
	}
	if is.MatchString(top) {
		return is.ReplaceAllLiteralString(top, line) + tables
	}
	if top != "" && !strings.HasSuffix(top, "\n") {
		top += "\n"
	}
	return top + line + "\n" + tables
}
