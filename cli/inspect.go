package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

func newInspect() *cobra.Command {
	var trust string
	var asJSON bool
	var as asText
	c := &cobra.Command{
		Use:   "inspect FILE [--trust FILE]",
		Short: "Show what a document says, who signed it, and who has not yet",
		Long: `Shows what a document says and what its signatures are worth, also while it is
passed from signer to signer: whether each holds, how many the role asks for, and
who has not signed. The keys are those of --trust. A trust document is held
against its own keys as well: it needs enough signatures of both. Realm, host,
versions and times are not checked: jitgate verify does.

FILE is JSON, or the text that --armor makes of it, which can be typed at a
console.`,
		Example: `  jitgate inspect grants.json
  jitgate inspect --trust trust.json policy.json
  jitgate inspect --armor policy.json`,
		Args: usage.Args(1, 1, "one file"),
		RunE: func(c *cobra.Command, args []string) error {
			if asJSON && as.wanted() {
				return usage.Errorf("--json and --armor or --qr do not go together")
			}
			e, _, err := readSigned(c, args[0])
			if err != nil {
				return err
			}
			if as.wanted() {
				return as.write(c, "-", e)
			}
			_, readable := policy.ParseDocument(e.Type, e.Payload)
			sides, err := sidesOf(c, e, trust)
			if err != nil {
				return err
			}
			return inspect(c, e, sides, readable, asJSON)
		},
	}
	c.Flags().StringVar(&trust, "trust", "", "the trust document whose keys sign")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	as.flags(c)
	return c
}

// inspected is what inspect --json prints.
type inspected struct {
	Type       policy.Type     `json:"type"`
	Digest     policy.Digest   `json:"digest"`
	Signatures []inspectedSig  `json:"signatures"`
	Roles      []inspectedRole `json:"roles"`
	Refusal    string          `json:"refusal,omitempty"` // why an agent could not read it
	Document   json.RawMessage `json:"document,omitempty"`
}

// inspectedKey is a key as people know it.
type inspectedKey struct {
	ID          policy.KeyID  `json:"keyid"`
	Name        string        `json:"name,omitempty"`
	Scheme      policy.Scheme `json:"scheme,omitempty"`      // empty: a key nobody here knows
	Fingerprint string        `json:"fingerprint,omitempty"` // as ssh-keygen -l prints it
}

type inspectedSig struct {
	inspectedKey
	Holds  *bool `json:"holds,omitempty"` // absent: there was no key to check it with
	inRole bool
}

// inspectedRole is what the signatures come to on one side.
type inspectedRole struct {
	Role      policy.Role    `json:"role"`
	Of        string         `json:"of"` // the file of --trust, or "itself"
	Threshold int            `json:"threshold"`
	Signed    []inspectedKey `json:"signed"`
	Missing   []inspectedKey `json:"missing"`
	Enough    bool           `json:"enough"`
}

func inspectKey(k policy.Key) inspectedKey {
	return inspectedKey{k.ID, k.Name, k.Scheme, k.SSHFingerprint()}
}

// who is the key in words.
func (k inspectedKey) who() string {
	if k.Name == "" {
		return printable(string(k.ID))
	}
	return printable(k.Name)
}

func inspect(c *cobra.Command, e policy.Envelope, sides []side, readable error, asJSON bool) error {
	i := inspected{Type: e.Type, Digest: e.Digest(), Signatures: make([]inspectedSig, len(e.Signatures)), Roles: []inspectedRole{}}
	for n, s := range e.Signatures {
		i.Signatures[n].ID = s.KeyID
	}
	for _, s := range sides {
		tally := e.Tally(s.trust)
		if tally.Role == "" {
			continue // none of jitgate's types: the refusal says so
		}
		role := inspectedRole{tally.Role, s.name, tally.Threshold, []inspectedKey{}, []inspectedKey{}, tally.Enough()}
		for n, standing := range tally.Signatures {
			sig := &i.Signatures[n]
			sig.inRole = sig.inRole || standing.InRole
			// Each side may have the key with a scheme of its own.
			if known := standing.Key.Scheme != ""; known && (sig.Holds == nil || standing.Holds) {
				sig.inspectedKey, sig.Holds = inspectKey(standing.Key), &standing.Holds
			}
		}
		for _, id := range tally.Signers {
			n := slices.IndexFunc(tally.Signatures, func(s policy.Standing) bool { return s.KeyID == id })
			role.Signed = append(role.Signed, inspectKey(tally.Signatures[n].Key))
		}
		for _, k := range tally.Missing {
			role.Missing = append(role.Missing, inspectKey(k))
		}
		i.Roles = append(i.Roles, role)
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
	i.print(c.OutOrStdout())
	return nil
}

// print writes for people. Whoever wrote the document may be hostile.
func (i inspected) print(out io.Writer) {
	fmt.Fprintf(out, "type     %s\ndigest   %s\n", printable(string(i.Type)), i.Digest)
	for _, s := range i.Signatures {
		verdict := "not checked"
		switch {
		case s.Holds == nil && len(i.Roles) > 0:
			verdict = "unknown key"
		case s.Holds != nil && !*s.Holds:
			verdict = "does not hold"
		case s.Holds != nil && !s.inRole:
			verdict = "holds, but the key does not have the role"
		case s.Holds != nil:
			verdict = "holds"
		}
		fmt.Fprintf(out, "signed   %s (%s)\n", s.line(), verdict)
	}
	for _, r := range i.Roles {
		fmt.Fprintf(out, "role     %s of %s: %d of %d signed", r.Role, r.Of, len(r.Signed), r.Threshold)
		if len(r.Missing) > 0 {
			var missing []string
			for _, k := range r.Missing {
				missing = append(missing, k.who())
			}
			fmt.Fprintf(out, ", not yet: %s", strings.Join(missing, "; "))
		}
		fmt.Fprintln(out)
	}
	if i.Refusal != "" {
		fmt.Fprintf(out, "refusal  %s\n", printable(i.Refusal))
	}
	var text bytes.Buffer
	if json.Indent(&text, i.Document, "", "  ") == nil {
		fmt.Fprintln(out)
		for line := range strings.Lines(string(bytes.TrimSpace(text.Bytes()))) {
			fmt.Fprintln(out, printable(strings.TrimSuffix(line, "\n")))
		}
	}
}

// line is all that is known of the key.
func (k inspectedKey) line() string {
	text := printable(string(k.ID))
	for _, word := range []string{string(k.Scheme), k.Fingerprint, k.Name} {
		if word != "" {
			text += "  " + printable(word)
		}
	}
	return text
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
		Args:    usage.Args(1, -1, "at least one file"),
		RunE: func(c *cobra.Command, args []string) error {
			if err := usage.Required(c, "trust"); err != nil {
				return err
			}
			now := time.Now()
			if at != "" {
				var err error
				if now, err = time.Parse(time.RFC3339, at); err != nil {
					return usage.Errorf("--at: %q is not a time like 2026-11-22T12:00:00Z", at)
				}
			}
			_, anchor, err := trustFile(c, trust, nil)
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

// hostOf is who we are: the host and installation given, or whoever the
// document is for.
func (v *verifier) hostOf(h policy.Host) policy.Facts {
	f := v.facts
	if v.anyHost {
		f.Host = h.ID + "any"
		if f.Install == "" {
			f.Install = h.Install
		}
		if len(h.ID) == 0 || h.ID[len(h.ID)-1] != '*' {
			f.Host = h.ID
		}
	}
	return f
}
