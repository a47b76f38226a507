package cli

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

var documentTypes = map[string]policy.Type{"trust": policy.TypeTrust, "policy": policy.TypePolicy, "grants": policy.TypeGrants}

func newSign() *cobra.Command {
	var kind, trust, out string
	var keys, sshKeys, signatures []string
	var toBeSigned bool
	c := &cobra.Command{
		Use:   "sign --type trust|policy|grants --key|--ssh-key KEY… IN -o OUT",
		Short: "Sign a document, or add a signature to a signed one",
		Long: `Signs a JSON document. It is first read by the agent's own parser; what an agent
would not read is not signed. If IN is signed already, the signature is added to
it, so several people can sign one file in turn. "-" stands for standard input
and output.

--key signs with a PKCS#8 file. --ssh-key has ssh-keygen sign: with a private key
file, or for a .pub file with ssh-agent or a FIDO2 token that holds the private
half. Where there is no jitgate, --to-be-signed writes what is signed there
("ssh-keygen -Y sign -n jitgate.v1 -f KEY FILE"), and --add-signature takes the
FILE.sig that comes back. A signature that does not hold is not added.`,
		Example: `  jitgate sign --type policy --key keys/policy.key policy.in.json -o policy.json
  jitgate sign --key bob.key policy.json -o policy.json      # a second signature
  jitgate sign --ssh-key ~/.ssh/id_ed25519_sk.pub --trust trust.json policy.json -o policy.json
  jitgate sign --to-be-signed policy.json -o policy.tbs      # for somebody without jitgate
  jitgate sign --add-signature policy.tbs.sig policy.json -o policy.json`,
		Args: usage.Args(1, 1, "one file to sign"),
		RunE: func(c *cobra.Command, args []string) error {
			if len(keys)+len(sshKeys)+len(signatures) == 0 && !toBeSigned {
				return usage.Errorf("--key is missing, or --ssh-key, --add-signature, --to-be-signed: see %s --help", c.CommandPath())
			}
			if len(keys)+len(sshKeys)+len(signatures) > 0 && toBeSigned {
				return usage.Errorf("--to-be-signed signs nothing: leave the keys and signatures out")
			}
			if err := usage.Required(c, "out"); err != nil {
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
			// Before anybody is asked for a passphrase or a touch.
			if _, err := policy.ParseDocument(envelope.Type, envelope.Payload); err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			if toBeSigned {
				return writeOutput(c, out, policy.PAE(envelope.Type, envelope.Payload), 0o644)
			}
			var sides []side
			if trust != "" {
				if sides, err = sidesOf(c, envelope, trust); err != nil {
					return err
				}
			}
			if err := addSignatures(c, &envelope, sides, keys, sshKeys, signatures); err != nil {
				return err
			}
			return writeOutput(c, out, envelope.Encode(), 0o644)
		},
	}
	c.Flags().StringVar(&kind, "type", "", "trust, policy or grants; needed where IN is not signed yet")
	c.Flags().StringArrayVar(&keys, "key", nil, "private key file, PKCS#8 PEM; may be repeated")
	c.Flags().StringArrayVar(&sshKeys, "ssh-key", nil, "SSH key for ssh-keygen -Y sign: private key file, or .pub file; may be repeated")
	c.Flags().StringArrayVar(&signatures, "add-signature", nil, "signature file of ssh-keygen -Y sign; may be repeated")
	c.Flags().BoolVar(&toBeSigned, "to-be-signed", false, "write the bytes that are signed, and sign nothing")
	c.Flags().StringVar(&trust, "trust", "", "trust document: refuse keys that may not sign this type")
	c.Flags().StringVarP(&out, "out", "o", "", "file to write")
	must(c.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"trust", "policy", "grants"}, cobra.ShellCompDirectiveNoFileComp)))
	return c
}

// addSignatures signs e with every key and adds every signature of a file. If
// there are sides, each has to count on one of them.
func addSignatures(c *cobra.Command, e *policy.Envelope, sides []side, keys, sshKeys, signatures []string) error {
	for _, list := range []struct {
		paths []string
		sign  func(*cobra.Command, *policy.Envelope, string) (policy.Key, error)
	}{{keys, signWithKey}, {sshKeys, signWithSSH}, {signatures, addSignature}} {
		for _, path := range list.paths {
			key, err := list.sign(c, e, path)
			if err == nil && sides != nil {
				err = counts(*e, sides, key)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
	}
	return nil
}

// toSign returns in as an envelope to sign: its own, or a new one around it.
func toSign(in []byte, kind string) (policy.Envelope, error) {
	want, known := documentTypes[kind]
	if kind != "" && !known {
		return policy.Envelope{}, usage.Errorf("--type %q is not trust, policy or grants", kind)
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
		return policy.Envelope{}, usage.Errorf("--type is missing: the file is not signed yet")
	}
	return policy.Envelope{Type: want, Payload: in}, nil
}

func signWithKey(_ *cobra.Command, e *policy.Envelope, path string) (policy.Key, error) {
	signer, err := readKey(path)
	if err != nil {
		return policy.Key{}, err
	}
	key, err := policy.NewKey(signer.Public())
	if err != nil {
		return policy.Key{}, err
	}
	return key, e.Sign(signer)
}

func addSignature(c *cobra.Command, e *policy.Envelope, path string) (policy.Key, error) {
	armoured, err := readFile(c, path)
	if err != nil {
		return policy.Key{}, err
	}
	return e.AddSSHSignature(armoured)
}

// signWithSSH has ssh-keygen sign: it knows keys in files, in ssh-agent and
// on tokens, and asks people for passphrases and touches. A private key is
// never read here.
func signWithSSH(c *cobra.Command, e *policy.Envelope, path string) (key policy.Key, err error) {
	if _, err := os.Stat(path); err != nil {
		return key, err
	}
	where := "is this an SSH private key, and the passphrase right?"
	if filepath.Ext(path) == ".pub" {
		line, err := os.ReadFile(path)
		if err != nil {
			return key, err
		}
		if _, _, err := policy.ParseSSHPublicKey(line); err != nil {
			return key, err
		}
		where = "is the private half in ssh-agent (ssh-add -L), or beside this file?"
	}
	program, err := openSSH("ssh-keygen")
	if err != nil {
		return key, fmt.Errorf("%w, or sign elsewhere with --to-be-signed", err)
	}
	dir, err := os.MkdirTemp("", "jitgate-sign-")
	if err != nil {
		return key, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	document := filepath.Join(dir, "document")
	if err := os.WriteFile(document, policy.PAE(e.Type, e.Payload), 0o600); err != nil {
		return key, err
	}
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt) // or the directory would stay
	defer stop()
	sign := exec.CommandContext(ctx, program, "-q", "-Y", "sign", "-n", policy.SSHNamespace, "-f", path, document)
	sign.Stdin = c.InOrStdin()
	// A person is asked on the terminal; without one, what ssh-keygen has to
	// say becomes part of the one line of our error.
	var said bytes.Buffer
	sign.Stderr = &said
	if f, ok := c.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		sign.Stderr = f
	}
	if err := sign.Run(); err != nil {
		cause := err.Error()
		if words := strings.Fields(said.String()); len(words) > 0 {
			cause = strings.Join(words, " ")
		}
		return key, fmt.Errorf("ssh-keygen did not sign (%s): %s", printable(cause), where)
	}
	armoured, err := os.ReadFile(document + ".sig")
	if err != nil {
		return key, err
	}
	return e.AddSSHSignature(armoured)
}

// side is a trust document whose keys a document is held against.
type side struct {
	name  string // for people
	trust policy.Trust
}

// sidesOf is what e is held against: the trust document in a file, and for a
// trust document also itself. Without a file, itself alone.
func sidesOf(c *cobra.Command, e policy.Envelope, path string) (sides []side, err error) {
	var digest policy.Digest
	if path != "" {
		_, v, err := trustFile(c, path, nil)
		if err != nil {
			return nil, err
		}
		sides, digest = append(sides, side{path, v.Document()}), v.Digest()
	}
	if own, err := policy.ParseDocument(e.Type, e.Payload); err == nil && e.Type == policy.TypeTrust && e.Digest() != digest {
		sides = append(sides, side{"itself", own.(policy.Trust)})
	}
	return sides, nil
}

// counts checks that key's signature counts on one of the sides at least.
func counts(e policy.Envelope, sides []side, key policy.Key) error {
	var why error
	for _, s := range sides {
		tally := e.Tally(s.trust)
		if slices.Contains(tally.Signers, key.ID) {
			return nil
		}
		if why != nil {
			continue
		}
		why = fmt.Errorf("%s does not have role %s in %s", key.ID, tally.Role, s.name)
		for _, k := range tally.Missing {
			if k.ID == key.ID {
				why = fmt.Errorf("%s has this key with scheme %s: sign with %s", s.name, k.Scheme, flagOf(k.Scheme))
			}
		}
	}
	return why
}

// flagOf is the flag that signs with keys of a scheme.
func flagOf(scheme policy.Scheme) string {
	if scheme == policy.SSHSig {
		return "--ssh-key"
	}
	return "--key"
}

// must is for what only a mistake in this package can make fail.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
