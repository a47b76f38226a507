package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/armor"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

func newInbox() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "inbox",
		Short: "Deliver a document by hand",
	}, newInboxPut())
}

// put is one delivery by hand.
type put struct {
	config         string
	wait           time.Duration
	dryRun, asJSON bool

	kind     agent.Kind
	envelope policy.Envelope
	file     []byte // what goes into the inbox
	from     string
	result   putResult
}

// putResult is what inbox put --json prints.
type putResult struct {
	Document string        `json:"document"`
	Version  uint64        `json:"version"`
	Digest   policy.Digest `json:"digest"`
	Written  string        `json:"written,omitempty"` // the file in the inbox, once it is there
	Agent    string        `json:"agent"`             // not-asked, not-running, would-take, in-force or refused
	Refusal  string        `json:"refusal,omitempty"`
	// Openings, Pending, Refused and Revoked are what the agent said would
	// become of the grants, or has.
	Openings []agent.OpeningStatus `json:"openings"`
	Pending  []agent.OpeningStatus `json:"pending"`
	Refused  []agent.OpeningStatus `json:"refused"`
	Revoked  []agent.OpeningStatus `json:"revoked"`
}

func newInboxPut() *cobra.Command {
	var p put
	c := &cobra.Command{
		Use:   "put FILE|-",
		Short: "On a host, as root: put a signed document into the inbox",
		Long: `Puts a signed document into the agent's inbox and says what the agent makes of
it. FILE is JSON, or text as jitgate grant --armor makes it. With - it is typed
or pasted at the terminal: a wrong line is asked for again, and the last one ends
it. Before that nothing is written, and Ctrl-C changes nothing.

The agent is asked first. What it would refuse does not take the place of what
lies in the inbox. A list of grants is complete: what is open now and not on it
is closed; that is said before it is done, and with --dry-run not done.

The delivery is recorded with who made it.`,
		Example: `  jitgate inbox put -
  jitgate inbox put --dry-run /mnt/usb/grants.json`,
		Args: usage.Args(1, 1, "one file, or - for standard input"),
		RunE: func(c *cobra.Command, args []string) error {
			if os.Geteuid() > 0 {
				return errors.New("only root puts documents into the inbox: run this as root")
			}
			if p.wait < 0 {
				return usage.Errorf("--wait %s is less than nothing", p.wait)
			}
			err := p.run(c, args[0])
			if p.asJSON && p.result.Document != "" {
				return errors.Join(err, printJSON(c.OutOrStdout(), p.result))
			}
			return err
		},
	}
	configFlag(c, &p.config)
	c.Flags().DurationVar(&p.wait, "wait", 10*time.Second, "how long to wait for the agent's verdict")
	c.Flags().BoolVar(&p.dryRun, "dry-run", false, "say what would open and what would be closed, and change nothing")
	c.Flags().BoolVar(&p.asJSON, "json", false, "print JSON")
	return c
}

func (p *put) run(c *cobra.Command, path string) error {
	settings, err := agent.LoadSettings(p.config)
	if err != nil {
		return err
	}
	if err := p.read(c, path); err != nil {
		return err
	}
	running, err := p.ask(c)
	if err != nil {
		return err
	}
	if p.dryRun {
		return p.sayDry(c, running)
	}
	before, err := p.announce(c, running)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(settings.InboxDir, 0o755); err != nil {
		return err
	}
	target := filepath.Join(settings.InboxDir, p.kind.File())
	if err := writeOutput(c, target, p.file, 0o644); err != nil {
		return err
	}
	p.result.Written = target
	switch {
	case !running:
		p.say(c, "%s version %d is in the inbox. The agent is not running: it will be read when it starts, and nothing has recorded who put it there", p.kind, p.result.Version)
		return nil
	case p.wait == 0:
		p.say(c, "%s version %d is in the inbox. What the agent makes of it: jitgate status", p.kind, p.result.Version)
		return nil
	}
	return p.verdict(c, before)
}

// read takes the document, and refuses what no agent would read.
func (p *put) read(c *cobra.Command, path string) (err error) {
	in, isFile := c.InOrStdin().(*os.File)
	switch {
	case path != "-":
		p.from = "file"
	case isFile && term.IsTerminal(int(in.Fd())):
		p.from = "terminal"
	default:
		p.from = "standard input"
	}
	if p.from == "terminal" {
		p.envelope, p.file, err = typed(in, c.ErrOrStderr())
	} else {
		p.envelope, p.file, err = readSigned(c, path)
	}
	if err != nil {
		return err
	}
	document, err := policy.ParseDocument(p.envelope.Type, p.envelope.Payload)
	if err != nil {
		return fmt.Errorf("nothing was changed: %w", err)
	}
	var header policy.Header
	switch d := document.(type) {
	case policy.Trust:
		p.kind, header = agent.Trust, d.Header
	case policy.Policy:
		p.kind, header = agent.Policy, d.Header
	case policy.Grants:
		p.kind, header = agent.Grants, d.Header
	}
	p.result = putResult{Document: p.kind.String(), Version: header.Version, Digest: p.envelope.Digest(), Agent: "not-asked",
		Openings: []agent.OpeningStatus{}, Pending: []agent.OpeningStatus{}, Refused: []agent.OpeningStatus{}, Revoked: []agent.OpeningStatus{}}
	return nil
}

// typed reads a document at a terminal, line by line, and ends with its last.
// The good lines stay when one is wrong.
func typed(in io.Reader, out io.Writer) (e policy.Envelope, file []byte, err error) {
	fmt.Fprintln(out, "Type or paste the text, from the line that begins with JITGATE1 on. Ctrl-C changes nothing.")
	var text armor.Reader
	var object []byte // of JSON that was pasted
	size := 0
	for lines := bufio.NewReader(in); !text.Done(); {
		if next, count := text.Next(); len(object) == 0 && count > 0 {
			fmt.Fprintf(out, "%d of %d> ", next, count)
		} else if len(object) == 0 {
			fmt.Fprint(out, "> ")
		}
		line, err := lines.ReadString('\n')
		if size += len(line); size > armor.MaxText {
			return e, nil, policy.Refuse(policy.TooLarge, "more than %d bytes were typed", armor.MaxText)
		}
		if _, count := text.Next(); len(object) > 0 || count == 0 && beginsJSON([]byte(line)) {
			if object = append(object, line...); json.Valid(object) {
				return parseSigned(object)
			}
		} else if wrong := text.Line(line); wrong != nil {
			fmt.Fprintln(out, wrong)
		}
		if err != nil && !text.Done() {
			fmt.Fprintln(out)
			if len(object) > 0 {
				_, _, err = parseSigned(object)
			} else if errors.Is(err, io.EOF) {
				_, err = text.Envelope()
			}
			return e, nil, fmt.Errorf("the input ended, nothing was changed: %w", err)
		}
	}
	if e, err = text.Envelope(); err != nil {
		return e, nil, err
	}
	return e, e.Encode(), nil
}

// ask has the agent look at the document, and fails if it would refuse it, or
// every grant on it: whoever wants to close something takes refused grants off
// the list.
func (p *put) ask(c *cobra.Command) (running bool, err error) {
	var would agent.Check
	err = callAgent(c.Context(), p.config, http.MethodPost, "/v1/check", agent.CheckRequest{Envelope: p.file}, &would)
	if errors.Is(err, errNoAgent) {
		p.result.Agent = "not-running"
		return false, nil
	}
	if err != nil {
		return false, err
	}
	p.result.Agent = "would-take"
	p.result.Openings, p.result.Pending, p.result.Refused, p.result.Revoked = would.Openings, would.Pending, would.Refused, would.Revoked
	switch {
	case would.Refusal != "":
		p.result.Agent, p.result.Refusal = "refused", would.Refusal
		return true, fmt.Errorf("the agent would refuse it, the inbox is as it was: %s", would.Refusal)
	case p.kind == agent.Grants && len(would.Refused) > 0 && len(would.Openings)+len(would.Pending) == 0:
		p.result.Agent, p.result.Refusal = "refused", refusedText(would.Refused)
		return true, fmt.Errorf("it would open nothing, the inbox is as it was: %s", p.result.Refusal)
	case would.Blocked != "":
		fmt.Fprintf(c.ErrOrStderr(), "nothing may open here now: %s\n", would.Blocked)
	}
	for _, o := range would.Revoked {
		fmt.Fprintf(c.ErrOrStderr(), "this closes before its time: %s, %s\n", openingText(o), printable(o.Requestor))
	}
	return true, nil
}

// announce has the agent record the delivery, and returns how it stood before.
// One that cannot be recorded is made all the same: it may be one that closes,
// and the agent opens nothing without its own record.
func (p *put) announce(c *cobra.Command, running bool) (before agent.DocumentStatus, err error) {
	if !running {
		return before, nil
	}
	var s agent.Status
	if err := callAgent(c.Context(), p.config, http.MethodGet, "/v1/status", nil, &s); err != nil {
		return before, err
	}
	d := agent.Delivery{Document: p.result.Document, Version: p.result.Version, Digest: p.result.Digest, From: p.from}
	if err := callAgent(c.Context(), p.config, http.MethodPost, "/v1/delivering", d, nil); err != nil {
		fmt.Fprintf(c.ErrOrStderr(), "the delivery is not recorded: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	return s.Docs[p.kind], nil
}

// verdict waits until the agent has looked at the file, and says what came of
// it.
func (p *put) verdict(c *cobra.Command, before agent.DocumentStatus) error {
	for deadline := time.Now().Add(p.wait); ; {
		var s agent.Status
		if err := callAgent(c.Context(), p.config, http.MethodGet, "/v1/status", nil, &s); err != nil {
			return fmt.Errorf("%s version %d is in the inbox, but the agent does not answer: %w", p.kind, p.result.Version, err)
		}
		now := s.Docs[p.kind]
		switch {
		case now.Refusal == "" && now.Version == p.result.Version:
			return p.sayInForce(c, s)
		case now.Refusal != "" && !now.Refused.Equal(before.Refused):
			p.result.Agent, p.result.Refusal = "refused", now.Refusal
			return fmt.Errorf("the agent refused it: %s", now.Refusal)
		case time.Now().After(deadline):
			return fmt.Errorf("%s version %d is in the inbox, and the agent has said nothing within %s: see jitgate status", p.kind, p.result.Version, p.wait)
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-c.Context().Done():
			return c.Context().Err()
		}
	}
}

func (p *put) sayInForce(c *cobra.Command, s agent.Status) error {
	p.result.Agent, p.result.Openings, p.result.Pending, p.result.Refused = "in-force", s.Openings, s.Pending, s.Refused
	p.say(c, "in force: %s version %d; %s%s", p.kind, p.result.Version, openingsText(s.Openings, s.Pending), modeRemark(s))
	switch {
	case s.Problem != "":
		return fmt.Errorf("the agent has a problem: %s", s.Problem)
	case p.kind == agent.Grants && s.Blocked != "":
		return fmt.Errorf("nothing may open: %s", s.Blocked)
	case p.kind == agent.Grants && len(s.Refused) > 0:
		return errors.New(refusedText(s.Refused))
	}
	return nil
}

func (p *put) sayDry(c *cobra.Command, running bool) error {
	if !running {
		return fmt.Errorf("%w: nobody can say what it would do", errNoAgent)
	}
	p.say(c, "nothing was changed; with %s version %d %s", p.kind, p.result.Version, openingsText(p.result.Openings, p.result.Pending))
	if p.kind == agent.Grants && len(p.result.Refused) > 0 {
		return errors.New(refusedText(p.result.Refused))
	}
	return nil
}

// say is the one line for people.
func (p *put) say(c *cobra.Command, format string, args ...any) {
	if !p.asJSON {
		fmt.Fprintf(c.OutOrStdout(), format+"\n", args...)
	}
}

func modeRemark(s agent.Status) string {
	switch s.Mode {
	case agent.Enforce:
		return ""
	case agent.Off:
		return "; mode off: this host guards nothing"
	}
	return "; mode observe: this host drops nothing"
}

// openingsText says what is open, for whom and until when.
func openingsText(openings, pending []agent.OpeningStatus) string {
	var parts []string
	for _, o := range openings {
		parts = append(parts, openingText(o))
	}
	for _, o := range pending {
		parts = append(parts, fmt.Sprintf("port %d will open for %s at %s", o.Port, abridge(o.Sources), policy.FormatTime(o.Start)))
	}
	if len(parts) == 0 {
		return "nothing is open"
	}
	return strings.Join(parts, ", ")
}

func openingText(o agent.OpeningStatus) string {
	left := time.Duration(o.SecondsLeft) * time.Second
	return fmt.Sprintf("port %d is open for %s until %s (%s)", o.Port, abridge(o.Sources), policy.FormatTime(time.Now().Add(left)), left)
}

func refusedText(list []agent.OpeningStatus) string {
	var parts []string
	for _, o := range list {
		parts = append(parts, fmt.Sprintf("grant %s is refused: %s", o.Grant, o.Refusal))
	}
	return strings.Join(parts, "; ")
}
