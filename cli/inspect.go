package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/policy"
)

func newInspect() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "inspect FILE",
		Short:   "Show what a signed document says, without checking it",
		Example: "  jitgate inspect grants.json",
		Args:    positional(1, 1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			raw, err := readFile(c, args[0])
			if err != nil {
				return err
			}
			e, err := policy.ParseEnvelope(raw)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			_, readable := policy.ParseDocument(e.Type, e.Payload)
			return inspect(c, e, readable, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// inspected is what inspect --json prints.
type inspected struct {
	Type     policy.Type     `json:"type"`
	Digest   policy.Digest   `json:"digest"`
	Signers  []policy.KeyID  `json:"signers"`
	Refusal  string          `json:"refusal,omitempty"` // why an agent could not read it
	Document json.RawMessage `json:"document,omitempty"`
}

func inspect(c *cobra.Command, e policy.Envelope, readable error, asJSON bool) error {
	i := inspected{Type: e.Type, Digest: e.Digest(), Signers: []policy.KeyID{}}
	for _, s := range e.Signatures {
		i.Signers = append(i.Signers, s.KeyID)
	}
	if readable != nil {
		i.Refusal = readable.Error()
	}
	if json.Valid(e.Payload) {
		i.Document = e.Payload
	}
	if asJSON {
		return printJSON(c.OutOrStdout(), i)
	}
	out := c.OutOrStdout()
	fmt.Fprintf(out, "type     %s\ndigest   %s\n", i.Type, i.Digest)
	for _, id := range i.Signers {
		fmt.Fprintf(out, "signed   %s (not checked)\n", id)
	}
	if i.Refusal != "" {
		fmt.Fprintf(out, "refusal  %s\n", i.Refusal)
	}
	var text bytes.Buffer
	if json.Indent(&text, e.Payload, "", "  ") == nil {
		fmt.Fprintf(out, "\n%s\n", bytes.TrimSpace(text.Bytes()))
	}
	return nil
}

func newVerify() *cobra.Command {
	var trust, host, install, at string
	c := &cobra.Command{
		Use:   "verify --trust FILE [--host ID] FILE…",
		Short: "Check signed documents as an agent would",
		Long: `Checks documents as an agent that follows the given trust document would, in the
order trust, policy, grants. Without --host it is not checked whom they are for;
without a policy, grants are not held against one. Exit code 0 only if an agent
would take every file and every grant.`,
		Example: "  jitgate verify --trust trust.json --host web1 policy.json grants.json",
		Args:    positional(1, -1, "at least one file"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := required(c, "trust"); err != nil {
				return err
			}
			now := time.Now()
			if at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, at); err != nil {
					return usagef("--at: %q is not a time like 2026-11-22T12:00:00Z", at)
				}
			}
			_, anchor, err := trustFile(c, trust)
			if err != nil {
				return err
			}
			v := verifier{c: c, trust: anchor.Document(), facts: policy.Facts{Host: host, Install: install, Now: now, Built: builtTime()}, anyHost: host == ""}
			if v.state, err = policy.AdmitTrust(v.state, anchor, policy.Trust{}, v.facts); err != nil {
				return fmt.Errorf("%s: %w", trust, err)
			}
			return v.files(args)
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "the trust document the host has")
	c.Flags().StringVar(&host, "host", "", "the host's id")
	c.Flags().StringVar(&install, "install", "", "the host's install id")
	c.Flags().StringVar(&at, "at", "", "judge times as of this instant (default now)")
	return c
}

// verifier is an agent without a host.
type verifier struct {
	c       *cobra.Command
	facts   policy.Facts
	anyHost bool
	state   policy.State
	trust   policy.Trust
	policy  policy.Policy
}

func (v *verifier) files(paths []string) error {
	byType := map[policy.Type][]string{}
	raws := map[string][]byte{}
	for _, path := range paths {
		raw, err := readFile(v.c, path)
		if err != nil {
			return err
		}
		e, err := policy.ParseEnvelope(raw)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		byType[e.Type] = append(byType[e.Type], path)
		raws[path] = raw
	}
	var problems []error
	for _, typ := range []policy.Type{policy.TypeTrust, policy.TypePolicy, policy.TypeGrants} {
		for _, path := range byType[typ] {
			note, err := v.file(typ, raws[path])
			if err != nil {
				problems = append(problems, fmt.Errorf("%s: %w", path, err))
				continue
			}
			fmt.Fprintf(v.c.OutOrStdout(), "%s: ok, %s\n", path, note)
		}
		delete(byType, typ)
	}
	for typ, paths := range byType {
		problems = append(problems, fmt.Errorf("%s: %w", paths[0], policy.Refuse(policy.WrongType, "payloadType %q is none of jitgate's", typ)))
	}
	return errors.Join(problems...)
}

// file checks one document and says what was found.
func (v *verifier) file(typ policy.Type, raw []byte) (note string, err error) {
	switch typ {
	case policy.TypeTrust:
		return v.trustFile(raw)
	case policy.TypePolicy:
		d, err := policy.OpenPolicy(raw, v.trust)
		if err == nil {
			v.state, err = policy.AdmitPolicy(v.state, d, v.trust, v.hostOf(d.Document().Host))
		}
		if err != nil {
			return "", err
		}
		v.policy = d.Document()
		return fmt.Sprintf("policy version %d for %s", v.policy.Version, v.policy.Host.ID), nil
	default:
		return v.grantsFile(raw)
	}
}

func (v *verifier) trustFile(raw []byte) (string, error) {
	if e, err := policy.ParseEnvelope(raw); err == nil && e.Digest() == v.state.Trust.Digest {
		if !v.facts.Now.Before(v.trust.Expires) {
			return "", policy.Refuse(policy.Expired, "at %s", policy.FormatTime(v.trust.Expires))
		}
		return fmt.Sprintf("trust version %d of realm %s", v.trust.Version, v.trust.Realm), nil
	}
	d, err := policy.OpenTrust(raw, v.trust)
	if err == nil {
		v.state, err = policy.AdmitTrust(v.state, d, v.trust, v.facts)
	}
	if err != nil {
		return "", err
	}
	v.trust = d.Document()
	return fmt.Sprintf("trust version %d of realm %s, the next one", v.trust.Version, v.trust.Realm), nil
}

func (v *verifier) grantsFile(raw []byte) (string, error) {
	d, err := policy.OpenGrants(raw, v.trust)
	if err != nil {
		return "", err
	}
	g, f := d.Document(), v.hostOf(d.Document().Host)
	held := v.policy
	if held.Version == 0 {
		held.Version = max(g.PolicyVersion, 1) // no policy was given to hold it against
	}
	if v.state, err = policy.AdmitGrants(v.state, d, v.trust, held, f); err != nil {
		return "", err
	}
	note := fmt.Sprintf("grants version %d for %s, %d on the list", g.Version, g.Host.ID, len(g.Grants))
	if v.policy.Version == 0 {
		return note + ", not held against a policy", nil
	}
	var refused []error
	for _, verdict := range policy.Evaluate(v.state, v.trust, v.policy, g, f).Verdicts {
		if verdict.Refusal != nil {
			refused = append(refused, fmt.Errorf("grant %s: %w", verdict.Grant.ID, verdict.Refusal))
		}
	}
	return note, errors.Join(refused...)
}

// hostOf is who we are: the host given, or whoever the document is for.
func (v *verifier) hostOf(h policy.Host) policy.Facts {
	f := v.facts
	if v.anyHost {
		f.Host, f.Install = h.ID+"any", h.Install
		if len(h.ID) == 0 || h.ID[len(h.ID)-1] != '*' {
			f.Host = h.ID
		}
	}
	return f
}
