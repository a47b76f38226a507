package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/local"
)

// errNoAgent says that nobody answers on the agent's socket.
var errNoAgent = errors.New("no agent is running")

// callAgent speaks to the running agent's socket. in is sent as JSON, and the
// answer is decoded into out, unless they are nil.
func callAgent(ctx context.Context, config, method, path string, in, out any) error {
	settings, err := agent.LoadSettings(config)
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: %s", err, elevate)
	}
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return local.Dial(ctx, settings.Socket)
		},
		DisableKeepAlives: true,
	}}
	var body io.Reader
	if in != nil {
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://agent"+path, body)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w behind %s: start it with jitgate agent run; what is guarded stays guarded meanwhile", errNoAgent, settings.Socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied: %s", settings.Socket, elevate)
	case err != nil:
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(response.Body, 64<<20))
	if err != nil {
		return err
	}
	if response.StatusCode >= 300 {
		return errors.New(strings.TrimSpace(string(answer)))
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer, out)
}

func newStatus() *cobra.Command {
	var config string
	var asJSON, watch bool
	c := &cobra.Command{
		Use:     "status",
		Short:   "Show what is guarded, what is open and for how long",
		Example: "  jitgate status --watch",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			for {
				var s agent.Status
				if err := callAgent(c.Context(), config, http.MethodGet, "/v1/status", nil, &s); err != nil {
					return err
				}
				if err := printStatus(c.OutOrStdout(), s, asJSON, watch); err != nil || !watch {
					return err
				}
				select {
				case <-time.After(time.Second):
				case <-c.Context().Done():
					return nil
				}
			}
		},
	}
	configFlag(c, &config)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVar(&watch, "watch", false, "show it again every second")
	return c
}

func printStatus(out io.Writer, s agent.Status, asJSON, watch bool) error {
	if asJSON && watch {
		return json.NewEncoder(out).Encode(s) // one line each
	}
	if asJSON {
		return printJSON(out, s)
	}
	if f, ok := out.(*os.File); ok && watch && term.IsTerminal(int(f.Fd())) {
		fmt.Fprint(out, "\033[H\033[2J") // home, clear
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	host := printable(s.Host)
	if s.HostFrom != agent.FromSettings && s.HostFrom != "" {
		host += " (from " + printable(s.HostFrom) + ")"
	}
	fmt.Fprintf(w, "host\t%s\n", host)
	install := s.Install
	if install == "" {
		install = "not known: documents that name one are refused"
	}
	fmt.Fprintf(w, "install\t%s\n", printable(install))
	fmt.Fprintf(w, "mode\t%s\n", modeText(s))
	guarded := strings.Join(s.Guarded, ", ")
	if guarded == "" {
		guarded = "no port"
	}
	fmt.Fprintf(w, "guarded\t%s\n", guarded)
	fmt.Fprintf(w, "firewall\t%s\n", s.Firewall)
	what := "dropped"
	if s.Mode != agent.Enforce {
		what = "seen that would be dropped"
	}
	fmt.Fprintf(w, "denied\t%d packets %s\n", s.Denied, what)
	for _, d := range s.Docs {
		text := "none in force"
		if d.Version > 0 {
			text = fmt.Sprintf("version %d, until %s", d.Version, d.Expires.Format(time.RFC3339))
		}
		fmt.Fprintf(w, "%s\t%s\n", d.Document, text)
		if d.Refusal != "" {
			fmt.Fprintf(w, "\trefused: %s\n", d.Refusal)
		}
	}
	if len(s.Exempt) > 0 {
		fmt.Fprintf(w, "exempt\t%s\n", strings.Join(s.Exempt, ", "))
	}
	if s.Blocked != "" {
		fmt.Fprintf(w, "blocked\t%s\n", s.Blocked)
	}
	if s.Problem != "" {
		fmt.Fprintf(w, "problem\t%s\n", strings.ReplaceAll(s.Problem, "\n", "; "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := printOpenings(out, s); err != nil {
		return err
	}
	title := "denied in the last day:"
	if s.Mode != agent.Enforce {
		title = "would be denied:"
	}
	return printDenials(out, "\n"+title, s.Denials, 5)
}

func modeText(s agent.Status) string {
	switch {
	case s.Trial != nil:
		return fmt.Sprintf("%s on trial: back to %s in %s unless jitgate arm confirm", s.Mode, s.Trial.Back, time.Duration(s.Trial.SecondsLeft)*time.Second)
	case s.Mode == agent.Off:
		return "off: nothing is guarded until jitgate arm"
	}
	return string(s.Mode)
}

func printOpenings(out io.Writer, s agent.Status) error {
	if len(s.Openings)+len(s.Pending)+len(s.Refused) == 0 {
		fmt.Fprintln(out, "\nnothing is open")
		return nil
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "STATE\tPORT\tSOURCE\tLEFT\tREQUESTOR\tREASON\tGRANT")
	row := func(state string, o agent.OpeningStatus, left string) {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\t%s\n", state, o.Port, abridge(o.Sources), left, printable(o.Requestor), printable(o.Reason), o.Grant)
	}
	for _, o := range s.Openings {
		row("open", o, (time.Duration(o.SecondsLeft) * time.Second).String())
	}
	for _, o := range s.Pending {
		row("pending", o, "from "+o.Start.Format(time.RFC3339))
	}
	for _, o := range s.Refused {
		row("refused", o, o.Refusal)
	}
	return w.Flush()
}

func abridge(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ","), len(list)-most)
	}
	return strings.Join(list, ",")
}

// printable keeps what others wrote from steering the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

func newLockdown() *cobra.Command {
	var config string
	c := &cobra.Command{
		Use:   "lockdown",
		Short: "Close every opening now",
		Long: `Closes every opening now. The grants that made them do not open anything again,
nor do listed grants that have not begun; new grants do.`,
		Example: "  jitgate lockdown",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := callAgent(c.Context(), config, http.MethodPost, "/v1/lockdown", nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "every opening is closed; exempt sources of the policy stay")
			return nil
		},
	}
	configFlag(c, &config)
	return c
}
