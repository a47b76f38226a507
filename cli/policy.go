package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/policy"
)

func newPolicy() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "policy",
		Short: "Sign the policies a control plane has written",
		Long: `Where the policy key is not on the control plane, what is configured there waits
for people to sign it. Until then the policy before it stays in force.`,
		Example: `  jitgate policy pending
  jitgate policy sign --ssh-key ~/.ssh/id_ed25519_sk.pub --all`,
	}, newPolicyPending(), newPolicySign(), newPolicyPush())
}

// pendingPolicy is a policy that waits, as it would be signed.
type pendingPolicy struct {
	client.PendingPolicy
	next     policy.Policy
	inForce  *policy.Policy // nil: none, or none that could be read
	envelope policy.Envelope
	tally    *policy.Tally // nil: there was no trust document to count by
}

// readPending judges what the control plane wants signed. Nothing of it is
// believed: it is read by the agents' parser, and is for the machine it is
// listed for.
func readPending(p client.PendingPolicy, trust *policy.Trust) (pendingPolicy, error) {
	out := pendingPolicy{PendingPolicy: p, envelope: policy.Envelope{Type: policy.TypePolicy, Payload: p.Payload}}
	document, err := policy.ParseDocument(policy.TypePolicy, p.Payload)
	if err != nil {
		return out, fmt.Errorf("%s: %w", printable(p.VM), err)
	}
	out.next = document.(policy.Policy)
	if !strings.EqualFold(out.next.Host.ID, p.VM) {
		return out, fmt.Errorf("%s: the document that waits is for %s: do not sign it", printable(p.VM), printable(out.next.Host.ID))
	}
	if len(p.Partial) > 0 {
		if out.envelope, err = policy.ParseEnvelope(p.Partial); err != nil {
			return out, fmt.Errorf("%s: %w", printable(p.VM), err)
		}
		if out.envelope.Type != policy.TypePolicy || string(out.envelope.Payload) != string(p.Payload) {
			return out, fmt.Errorf("%s: the signatures so far are of another document: do not sign it", printable(p.VM))
		}
	}
	if before, err := policy.ParseDocument(policy.TypePolicy, p.InForce); err == nil {
		b := before.(policy.Policy)
		out.inForce = &b
	}
	out.count(trust)
	return out, nil
}

// count counts the signatures, if there is a trust document to count by.
func (p *pendingPolicy) count(trust *policy.Trust) {
	if trust != nil {
		tally := p.envelope.Tally(*trust)
		p.tally = &tally
	}
}

// signatures is how far the signing has come, in words.
func (p pendingPolicy) signatures() string {
	if p.tally == nil {
		return fmt.Sprintf("%d signatures", len(p.envelope.Signatures))
	}
	return fmt.Sprintf("%d of %d signatures", len(p.tally.Signers), p.tally.Threshold)
}

// trustFor is the trust document that signatures are counted by: that of a
// file, or else the control plane's own. The latter only saves a signer from
// using the wrong key; agents go by theirs.
func trustFor(ctx context.Context, c *cobra.Command, control *client.Client, path string) (*policy.Trust, error) {
	if path != "" {
		_, v, err := trustFile(c, path, nil)
		if err != nil {
			return nil, err
		}
		trust := v.Document()
		return &trust, nil
	}
	signed, err := control.Trust(ctx)
	if client.IsNotFound(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	e, err := policy.ParseEnvelope(signed)
	if err != nil {
		return nil, fmt.Errorf("the control plane's trust document: %w", err)
	}
	v, err := policy.OpenPinnedTrust(signed, e.Digest())
	if err != nil {
		return nil, fmt.Errorf("the control plane's trust document: %w", err)
	}
	trust := v.Document()
	return &trust, nil
}

// pendingPolicies gets all that waits.
func pendingPolicies(ctx context.Context, control *client.Client) (all []client.PendingPolicy, err error) {
	for p, err := range control.PendingPolicies(ctx) {
		if err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b client.PendingPolicy) int {
		return strings.Compare(strings.ToLower(a.VM), strings.ToLower(b.VM))
	})
	return all, nil
}

func newPolicyPending() *cobra.Command {
	var at controlFlags
	var trust string
	var asJSON bool
	c := &cobra.Command{
		Use:   "pending",
		Short: "List the policies that wait for signatures",
		Example: `  jitgate policy pending --control https://jit.example.net:8443 --ca ca.pem --token-file token
  jitgate policy pending --json`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				by, err := trustFor(ctx, c, control, trust)
				if err != nil {
					return err
				}
				all, err := pendingPolicies(ctx, control)
				if err != nil {
					return err
				}
				if asJSON {
					return printPendingJSON(c.OutOrStdout(), all, by)
				}
				return printPending(c.OutOrStdout(), all, by)
			})
		},
	}
	at.add(c)
	c.Flags().StringVar(&trust, "trust", "", "trust document to count signatures by; the control plane's unless given")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// pendingJSON is an element of what policy pending --json prints.
type pendingJSON struct {
	client.PendingPolicy
	Threshold int            `json:"threshold,omitempty"`
	Signed    []policy.KeyID `json:"signed"`
	Missing   []inspectedKey `json:"missing"`
	Refusal   string         `json:"refusal,omitempty"` // why it should not be signed
}

func printPendingJSON(out io.Writer, all []client.PendingPolicy, trust *policy.Trust) error {
	list := []pendingJSON{}
	for _, p := range all {
		j := pendingJSON{PendingPolicy: p, Signed: []policy.KeyID{}, Missing: []inspectedKey{}}
		read, err := readPending(p, trust)
		if err != nil {
			j.Refusal = err.Error()
		} else if t := read.tally; t != nil {
			j.Threshold, j.Signed = t.Threshold, append(j.Signed, t.Signers...)
			for _, k := range t.Missing {
				j.Missing = append(j.Missing, inspectKey(k))
			}
		}
		list = append(list, j)
	}
	return printJSON(out, list)
}

func printPending(out io.Writer, all []client.PendingPolicy, trust *policy.Trust) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "nothing waits for a signature")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "VIRTUAL MACHINE\tVERSION\tWRITTEN\tBY\tSIGNED")
	for _, p := range all {
		signed := ""
		if read, err := readPending(p, trust); err != nil {
			signed = "cannot be signed: " + err.Error()
		} else {
			signed = read.signatures()
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\n", printable(p.VM), p.Version, policy.FormatTime(p.Created), printable(p.By), printable(signed))
	}
	return w.Flush()
}

func newPolicySign() *cobra.Command {
	var at controlFlags
	var trust string
	var keys, sshKeys []string
	var every, yes bool
	c := &cobra.Command{
		Use:   "sign --key|--ssh-key KEY… [VM…|--all]",
		Short: "Sign policies that wait, and send them back",
		Long: `Shows what the policies that wait would change on their machines, asks, signs
them and sends them back. Once a policy has signatures enough it is in force.

VM is a machine's id, or the name at its end where only one that waits has it.
What is shown is what is signed: it is read here, by the agent's own parser, from
the bytes the signature is made over. Where several people have to sign, each
does so in turn, in any order; signatures add up.`,
		Example: `  jitgate policy sign --ssh-key ~/.ssh/id_ed25519_sk.pub web1
  jitgate policy sign --key policy.key --all --yes --control https://jit.example.net:8443 --token-file token`,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(keys)+len(sshKeys) == 0:
				return usage.Errorf("--key is missing, or --ssh-key: see %s --help", c.CommandPath())
			case every == (len(args) > 0):
				return usage.Errorf("expected virtual machines, or --all: see %s --help", c.CommandPath())
			case !yes && !onTerminal(c.InOrStdin()):
				return usage.Errorf("--yes is missing: there is no terminal to ask at")
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				by, err := trustFor(ctx, c, control, trust)
				if err != nil {
					return err
				}
				all, err := pendingPolicies(ctx, control)
				if err != nil {
					return err
				}
				if !every {
					if all, err = choose(all, args); err != nil {
						return err
					}
				}
				if len(all) == 0 {
					_, err := fmt.Fprintln(c.OutOrStdout(), "nothing waits for a signature")
					return err
				}
				var chosen []pendingPolicy
				for _, p := range all {
					read, err := readPending(p, by)
					if err != nil {
						return err
					}
					chosen = append(chosen, read)
				}
				for _, p := range chosen {
					printChange(c.OutOrStdout(), p)
				}
				if !yes {
					agreed, err := confirm(ctx, c, fmt.Sprintf("Sign %s? [y/N] ", count(len(chosen), "policy", "policies")))
					if err != nil {
						return err
					}
					if !agreed {
						return errors.New("nothing was signed")
					}
				}
				var failures []error
				for _, p := range chosen {
					if err := signAndPush(ctx, c, control, p, by, keys, sshKeys); err != nil {
						failures = append(failures, fmt.Errorf("%s: %w", printable(p.VM), err))
					}
					if ctx.Err() != nil {
						break
					}
				}
				return errors.Join(failures...)
			})
		},
	}
	at.add(c)
	c.Flags().StringArrayVar(&keys, "key", nil, "private key file, PKCS#8 PEM; may be repeated")
	c.Flags().StringArrayVar(&sshKeys, "ssh-key", nil, "SSH key for ssh-keygen -Y sign: private key file, or .pub file; may be repeated")
	c.Flags().StringVar(&trust, "trust", "", "trust document: refuse keys that may not sign policies; the control plane's unless given")
	c.Flags().BoolVar(&every, "all", false, "all that wait")
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c
}

// choose picks those that names name.
func choose(all []client.PendingPolicy, names []string) (chosen []client.PendingPolicy, err error) {
	taken := map[int]bool{}
	for _, name := range names {
		var found []int
		for i, p := range all {
			last := p.VM[strings.LastIndexByte(p.VM, '/')+1:]
			if strings.EqualFold(p.VM, name) || strings.EqualFold(last, name) {
				found = append(found, i)
			}
		}
		switch {
		case len(found) == 0:
			return nil, fmt.Errorf("nothing waits for %s: see jitgate policy pending", name)
		case len(found) > 1:
			return nil, fmt.Errorf("%d machines named %s wait: give the id", len(found), name)
		case !taken[found[0]]:
			taken[found[0]] = true
			chosen = append(chosen, all[found[0]])
		}
	}
	return chosen, nil
}

// signAndPush signs a policy with every key and sends it back.
func signAndPush(ctx context.Context, c *cobra.Command, control *client.Client, p pendingPolicy, trust *policy.Trust, keys, sshKeys []string) error {
	var sides []side
	if trust != nil {
		sides = []side{{"the trust document", *trust}}
	}
	if err := addSignatures(c, &p.envelope, sides, keys, sshKeys, nil); err != nil {
		return err
	}
	p.count(trust)
	return push(ctx, c, control, p.envelope, p.tally)
}

// push sends a signed policy back and says what became of it.
func push(ctx context.Context, c *cobra.Command, control *client.Client, e policy.Envelope, tally *policy.Tally) error {
	accepted, err := control.PushPolicy(ctx, e.Encode())
	if err != nil {
		return err
	}
	outcome := "in force"
	if !accepted.Done {
		outcome = "sent, and waits for more signatures"
		if tally != nil && !tally.Enough() {
			var missing []string
			for _, k := range tally.Missing {
				missing = append(missing, inspectKey(k).who())
			}
			outcome += fmt.Sprintf(": %d of %d, not yet: %s", len(tally.Signers), tally.Threshold, strings.Join(missing, "; "))
		}
	}
	_, err = fmt.Fprintf(c.OutOrStdout(), "%s version %d: %s\n", printable(accepted.VM), accepted.Version, outcome)
	return err
}

func newPolicyPush() *cobra.Command {
	var at controlFlags
	c := &cobra.Command{
		Use:   "push FILE…",
		Short: "Send policies back that were signed elsewhere",
		Long: `Sends signed policies back to the control plane they wait on: what jitgate sign
wrote, as JSON or as text. One with too few signatures is kept there, and its
signatures add up with others.`,
		Example: `  jitgate policy push policy.json --control https://jit.example.net:8443 --ca ca.pem --token-file token`,
		Args:    usage.Args(1, -1, "at least one signed file"),
		RunE: func(c *cobra.Command, args []string) error {
			var envelopes []policy.Envelope
			for _, path := range args {
				e, _, err := readSigned(c, path)
				if err != nil {
					return err
				}
				if e.Type != policy.TypePolicy {
					return fmt.Errorf("%s is not a policy: its type is %s", path, printable(string(e.Type)))
				}
				envelopes = append(envelopes, e)
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				var failures []error
				for i, e := range envelopes {
					if err := push(ctx, c, control, e, nil); err != nil {
						failures = append(failures, fmt.Errorf("%s: %w", args[i], err))
					}
				}
				return errors.Join(failures...)
			})
		},
	}
	at.add(c)
	return c
}

// onTerminal reports whether a person can answer at in.
func onTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// confirm asks a person. Anything but yes is no.
func confirm(ctx context.Context, c *cobra.Command, question string) (bool, error) {
	fmt.Fprint(c.ErrOrStderr(), question)
	type reply struct {
		line string
		err  error
	}
	// Nothing interrupts a read of a terminal: it stays behind.
	answered := make(chan reply, 1)
	go func() {
		line, err := bufio.NewReader(io.LimitReader(c.InOrStdin(), 1<<10)).ReadString('\n')
		answered <- reply{line, err}
	}()
	select {
	case <-ctx.Done():
		return false, ctx.Err()
	case r := <-answered:
		if r.err != nil && !errors.Is(r.err, io.EOF) {
			return false, r.err
		}
		answer := strings.ToLower(strings.TrimSpace(r.line))
		return answer == "y" || answer == "yes", nil
	}
}

// count is a number with its noun.
func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// printChange shows a policy against the one in force: every line it will
// have, marked where it is new, and in front of it what it replaces.
func printChange(out io.Writer, p pendingPolicy) {
	before := "there is none in force"
	var old []fact
	if p.inForce != nil {
		before = fmt.Sprintf("in force: version %d", p.inForce.Version)
		old = facts(*p.inForce)
	}
	fmt.Fprintf(out, "%s\n  version %d (%s), written %s by %s, %s\n", printable(p.next.Host.ID), p.next.Version, before, policy.FormatTime(p.Created), printable(p.By), p.signatures())
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, line := range changes(old, facts(p.next)) {
		fmt.Fprintf(w, "  %c\t%s\t%s\n", line.mark, line.name, line.text)
	}
	w.Flush()
	fmt.Fprintln(out)
}

// fact is one thing a policy says, by the name it is compared by.
type fact struct{ name, text string }

// facts are all things a policy says, but for its version. The parser has let
// nothing through that a terminal would act on.
func facts(p policy.Policy) (all []fact) {
	for _, port := range p.Ports {
		text := fmt.Sprintf("from %s\tup to %s\tsessions at the end: %s", sources(port.AllowedSources), brief(port.MaxRequestAccessDuration), port.SessionsAtEnd)
		all = append(all, fact{port.String(), text})
	}
	if len(p.Ports) == 0 {
		all = append(all, fact{"ports", "none: nothing is guarded"})
	}
	if len(p.ExemptSources) > 0 {
		all = append(all, fact{"exempt", "always admitted: " + sources(p.ExemptSources)})
	}
	if p.Host.Install != "" {
		all = append(all, fact{"install", "only the installation " + p.Host.Install})
	}
	if p.MaxGrantsAge != policy.DefaultMaxGrantsAge {
		all = append(all, fact{"grants", "at most " + brief(p.MaxGrantsAge) + " old"})
	}
	if p.MaxUnattended != 0 {
		all = append(all, fact{"unattended", "openings outlive the agent by " + brief(p.MaxUnattended)})
	}
	all = append(all, fact{"narrowest", fmt.Sprintf("/%d of IPv4, /%d of IPv6", p.NarrowestPrefix4, p.NarrowestPrefix6)})
	if p.Epoch != 0 {
		all = append(all, fact{"epoch", fmt.Sprint(p.Epoch)})
	}
	return append(all, fact{"realm", p.Realm}, fact{"expires", policy.FormatTime(p.Expires)})
}

// change is a fact with what becomes of it: ' ' stays, '+' comes, '-' goes.
type change struct {
	mark rune
	fact
}

// changes holds facts against earlier ones of the same name.
func changes(old, next []fact) (lines []change) {
	named := func(all []fact, name string) *fact {
		for i := range all {
			if all[i].name == name {
				return &all[i]
			}
		}
		return nil
	}
	for _, f := range next {
		was := named(old, f.name)
		switch {
		case was != nil && *was == f:
			lines = append(lines, change{' ', f})
			continue
		case was != nil:
			lines = append(lines, change{'-', *was})
		}
		lines = append(lines, change{'+', f})
	}
	for _, f := range old {
		if named(next, f.name) == nil {
			lines = append(lines, change{'-', f})
		}
	}
	return lines
}

// sources lists prefixes as people write them.
func sources(prefixes []netip.Prefix) string {
	var all []string
	for _, p := range prefixes {
		switch {
		case p.IsSingleIP():
			all = append(all, p.Addr().String())
		default:
			all = append(all, p.String())
		}
	}
	if len(all) == 0 {
		return "nowhere"
	}
	return strings.Join(all, ", ")
}

// brief is a duration without zeros at its end: 3h, 1h30m.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
