package cli

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/fetch"
	"github.com/jitgate/jitgate/policy"
	"github.com/jitgate/jitgate/uplink"
)

// enrolling is one run of jitgate enroll.
type enrolling struct {
	config, url, token, ca, host string
	replace, asJSON              bool
}

// enrollResult is what jitgate enroll --json prints.
type enrollResult struct {
	Host     string        `json:"host"`
	URL      string        `json:"url"`
	Realm    string        `json:"realm"`
	Trust    policy.Digest `json:"trust"`
	Settings string        `json:"settings"`
	Identity string        `json:"identity"`
	// RestartAgent says that a running agent does not know the realm yet, or its
	// own name.
	RestartAgent bool `json:"restartAgent"`
}

func newEnroll() *cobra.Command {
	var e enrolling
	c := &cobra.Command{
		Use:   "enroll --control URL --token T",
		Short: "On a host, as root: make it known to a control plane",
		Long: `Shows the control plane a join token, once, and gets for it a certificate for
the key that is made here, and the realm's trust document. The token says which
trust document that has to be, and which certificate the server's is signed by,
if it is not one that this system trusts: nothing else is believed.

The trust document is installed as jitgate trust install does it, the address is
written to the settings, and the key to the fetcher's directory. The same
command again does no harm. --token - reads the token from standard input, where
no list of processes shows it.

A control plane knows machines by their resource ids. Where neither the settings
nor the cloud (jitgate host-id) say which machine this is, --host-id does, and
is written to the settings too.`,
		Example: `  jitgate enroll --control https://control.example.net --token jgj_AfGz0…
  jitgate enroll --control https://control.example.net --token - < token
  jitgate enroll --control https://control.example.net --token - --host-id /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/web1 < token`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			if err := usage.Required(c, "control", "token"); err != nil {
				return err
			}
			return e.run(c)
		},
	}
	configFlag(c, &e.config)
	c.Flags().StringVar(&e.url, "control", "", "the control plane: https://NAME or https://NAME:PORT")
	c.Flags().StringVar(&e.token, "token", "", "the join token, or - to read it from standard input")
	c.Flags().StringVar(&e.host, "host-id", "", "which machine this is: its resource id; unless given, what the settings say")
	c.Flags().StringVar(&e.ca, "ca", "", "file with the certificate that the server's is signed by, in PEM; unless given, the one the token names")
	c.Flags().BoolVar(&e.replace, "replace", false, "leave the realm this host belongs to")
	c.Flags().BoolVar(&e.asJSON, "json", false, "print JSON")
	return c
}

func (e enrolling) run(c *cobra.Command) error {
	url, err := fetch.CheckURL(e.url)
	if err != nil {
		return usage.Errorf("--control %w", err)
	}
	token := e.token
	if token == "-" {
		text, err := readUpTo(c, "-", uplink.MaxSmall)
		if err != nil {
			return err
		}
		token = strings.TrimSpace(string(text))
	}
	join, err := uplink.ParseJoin(token)
	if err != nil {
		return usage.Errorf("--token: %w", err)
	}
	settings, err := agent.LoadSettings(e.config)
	if err != nil {
		return err
	}
	host := settings.HostID
	if e.host != "" {
		if settings.HostFrom == agent.FromSettings && host != e.host {
			return fmt.Errorf("%s says that this is %s: change host_id there, or leave --host-id out", e.config, host)
		}
		host = e.host
	}
	// Before the token is used up: what would be refused afterwards.
	if err := mayPin(settings, e.config, join.Pin, e.replace); err != nil {
		return err
	}
	control := settings.Control
	if control == nil {
		s, err := agent.ParseSettings([]byte("host_id = \"x\"\n[control]\nurl = \"" + url + "\"\n"))
		if err != nil {
			return err
		}
		control = s.Control
	}
	var ca []byte
	if e.ca != "" {
		if ca, err = os.ReadFile(e.ca); err != nil {
			return err
		}
	}
	ctx := c.Context()
	got, err := fetch.Enrolment{URL: url, Token: token, CA: ca, Proxy: control.Proxy, IdentityDir: control.IdentityDir,
		Host: host, Install: e.install(ctx), Version: version}.Enroll(ctx)
	if err != nil {
		return fmt.Errorf("%w; nothing was changed here, and the same command may be tried again", err)
	}
	v, err := policy.OpenPinnedTrust(got.Trust, got.Pin)
	if err != nil {
		return err
	}
	already, err := installTrust(c, e.config, got.Trust, v, e.replace, got.Deliver)
	if err != nil {
		return err
	}
	if err := e.writeControl(c, url, got.CA); err != nil {
		return err
	}
	if err := got.Keep(); err != nil {
		return err
	}
	return e.say(c, enrollResult{Host: got.Host, URL: url, Realm: v.Document().Realm, Trust: v.Digest(), Settings: e.config,
		Identity: control.IdentityDir, RestartAgent: !already || host != settings.HostID})
}

// install is the id of the agent's installation, if it runs.
func (e enrolling) install(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var s agent.Status
	if callAgent(ctx, e.config, http.MethodGet, "/v1/status", nil, &s) != nil {
		return ""
	}
	return s.Install
}

func (e enrolling) say(c *cobra.Command, r enrollResult) error {
	if e.asJSON {
		return printJSON(c.OutOrStdout(), r)
	}
	out := c.OutOrStdout()
	fmt.Fprintf(out, "%s is enrolled with %s, and trusts realm %s (%s).\nNext:\n", r.Host, r.URL, r.Realm, r.Trust)
	if r.RestartAgent {
		fmt.Fprintln(out, "  restart the agent if it is running, so that it reads its settings")
	}
	_, err := fmt.Fprintf(out, "  start the fetcher: jitgate fetch --config %s\n  see what has arrived: jitgate status --config %[1]s\n", r.Settings)
	return err
}

// caFile is where the certificate that the server's is signed by is kept,
// beside the settings.
const caFile = "control-ca.pem"

// writeControl sets url and ca in the settings, and host_id where that was
// given, and leaves everything else of them, comments included, as it was.
func (e enrolling) writeControl(c *cobra.Command, url string, ca []byte) error {
	info, err := os.Stat(e.config)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(e.config)
	if err != nil {
		return err
	}
	path := ""
	if len(ca) > 0 {
		if path, err = filepath.Abs(filepath.Join(filepath.Dir(e.config), caFile)); err != nil {
			return err
		}
		if err := writeOutput(c, path, ca, 0o644); err != nil {
			return err
		}
	}
	edited, ok := editControl(string(text), e.host, url, path)
	if !ok {
		return fmt.Errorf("%s: [control] cannot be set here: write url = %q and ca = %q below [control] by hand", e.config, url, path)
	}
	if edited == string(text) {
		return nil
	}
	return writeOutput(c, e.config, []byte(edited), info.Mode().Perm())
}

// editControl is the settings with url and ca set, and with a host's id if there
// is one, if that can be done and changes nothing else.
func editControl(text, host, url, ca string) (edited string, ok bool) {
	was, err := agent.ParseSettings([]byte(text))
	if err != nil {
		return "", false
	}
	edited = setControl(text, "url", url)
	if ca != "" || was.Control != nil && was.Control.CA != "" {
		edited = setControl(edited, "ca", ca)
	}
	if host != "" && was.HostID != host {
		edited = setTop(edited, hostIDLine, fmt.Sprintf("host_id = %q", host))
	}
	now, err := agent.ParseSettings([]byte(edited))
	if err != nil || now.Control == nil || now.Control.URL != url || now.Control.CA != ca {
		return "", false
	}
	was.Control, now.Control = nil, nil
	if host != "" && now.HostID == host {
		was.HostID, was.HostFrom, was.HostNote, was.HostRefused = now.HostID, now.HostFrom, now.HostNote, now.HostRefused
	}
	return edited, reflect.DeepEqual(was, now)
}

var controlLine = regexp.MustCompile(`(?m)^[ \t]*\[[ \t]*control[ \t]*\][ \t]*(#.*)?\r?$`)

// setControl sets a name in the table [control] of a settings text.
func setControl(text, name, value string) string {
	line := fmt.Sprintf("%s = %q", name, value)
	at := controlLine.FindStringIndex(text)
	if at == nil {
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		return text + "\n[control]\n" + line + "\n"
	}
	head, table, rest := text[:at[1]], text[at[1]:], ""
	if next := tableLine.FindStringIndex(table); next != nil {
		table, rest = table[:next[0]], table[next[0]:]
	}
	known := regexp.MustCompile(`(?m)^[ \t]*` + name + `[ \t]*=.*$`)
	if known.MatchString(table) {
		return head + known.ReplaceAllLiteralString(table, line) + rest
	}
	return head + "\n" + line + table + rest
}
