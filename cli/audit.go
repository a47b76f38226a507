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
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/local"
)

func newAudit() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "audit",
		Short: "The record: what was opened, for whom, and what became of it",
	}, newAuditList(), newAuditExport(), newAuditTimeline(), newAuditVerify())
}

// recordFlags say which record is read, and what of it.
type recordFlags struct {
	config, dir  string
	socket       bool
	since, until string
	port         uint16
	grant        string
	requestor    string
	events       []string
}

func (f *recordFlags) add(c *cobra.Command) {
	configFlag(c, &f.config)
	c.Flags().StringVar(&f.dir, "dir", "", "the record's directory, or a copy of it (default that of the settings)")
	c.Flags().BoolVar(&f.socket, "socket", false, "ask the running agent instead of reading the files")
	c.Flags().StringVar(&f.since, "since", "", "from then on: 2026-11-22, 2026-11-22T12:00:00Z, or how long ago, like 36h or 7d")
	c.Flags().StringVar(&f.until, "until", "", "before then")
	c.Flags().Uint16Var(&f.port, "port", 0, "about this port")
	c.Flags().StringVar(&f.grant, "grant", "", "about this grant")
	c.Flags().StringVar(&f.requestor, "requestor", "", "about what this requestor had or did")
	c.Flags().StringSliceVar(&f.events, "event", nil, "of this name, like grant.opened, or all of grant")
}

// check is what is wrong with the flags of c.
func (f *recordFlags) check(c *cobra.Command) error { return usage.OneOf(c, "dir", "socket") }

func (f *recordFlags) filter(now time.Time) (audit.Filter, error) {
	out := audit.Filter{Port: f.port, Grant: f.grant, Requestor: f.requestor, Events: f.events}
	var err error
	if out.Since, err = parseMoment("since", f.since, now); err != nil {
		return out, err
	}
	out.Until, err = parseMoment("until", f.until, now)
	return out, err
}

var days = regexp.MustCompile(`^([0-9]{1,5})d$`)

// parseMoment reads a time, a day (in local time), or how long ago.
func parseMoment(flag, s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d := days.FindStringSubmatch(s); d != nil {
		n, err := strconv.Atoi(d[1])
		return now.AddDate(0, 0, -n), err
	}
	if d, err := time.ParseDuration(s); err == nil && d >= 0 {
		return now.Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	for _, layout := range []string{time.DateOnly, "2006-01-02T15:04", "2006-01-02 15:04", time.DateTime} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage.Errorf("--%s %q is neither a time like 2026-11-22, 2026-11-22 15:04 or 2026-11-22T12:00:00Z, nor how long ago, like 36h or 7d", flag, s)
}

// recordDir is where the record is.
func recordDir(config, dir string) (string, error) {
	if dir != "" {
		return dir, nil
	}
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return "", err
	}
	return filepath.Join(settings.StateDir, "audit"), nil
}

// read hands over what the filter takes. Lines that cannot be read are left
// out, and are the error at the end.
func (f *recordFlags) read(ctx context.Context, take func(audit.Line) error) error {
	filter, err := f.filter(time.Now())
	if err != nil {
		return err
	}
	chosen := func(l audit.Line) error {
		if !filter.Takes(l.Event) {
			return nil
		}
		return take(l)
	}
	if f.socket {
		return recordOfAgent(ctx, f.config, chosen)
	}
	dir, err := recordDir(f.config, f.dir)
	if err != nil {
		return err
	}
	faults, err := audit.ReadDir(dir, chosen)
	if err != nil {
		return explain(err)
	}
	if len(faults) > 0 {
		return fmt.Errorf("%s: run jitgate audit verify", faults[0])
	}
	return nil
}

func explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s, or with --socket", err, elevate)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: no record yet, or another directory: see --dir", err)
	}
	return err
}

// recordOfAgent reads the record through the running agent.
func recordOfAgent(ctx context.Context, config string, take func(audit.Line) error) error {
	settings, err := agent.LoadSettings(config)
	if err != nil {
		return err
	}
	client := http.Client{Timeout: 15 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return local.Dial(ctx, settings.Socket)
		},
	}}
	defer client.CloseIdleConnections()
	for after := uint64(0); ; {
		page, err := recordPage(ctx, &client, after)
		if err != nil {
			return fmt.Errorf("%s: %w", settings.Socket, err)
		}
		before := after
		for text := range bytes.Lines(page) {
			l, err := audit.ParseLine(bytes.TrimSuffix(text, []byte("\n")))
			if err != nil {
				return fmt.Errorf("the line after number %d: %w: run jitgate audit verify", after, err)
			}
			after = max(after, l.Seq)
			if err := take(l); err != nil {
				return err
			}
		}
		if after == before {
			return nil
		}
	}
}

// maxPage bounds what an agent may answer at once.
const maxPage = 4 << 20

func recordPage(ctx context.Context, client *http.Client, after uint64) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://agent/v1/events?from=%d", after), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(io.LimitReader(response.Body, maxPage))
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(strings.TrimSpace(string(page)))
	}
	return page, err
}

// outputs are the formats of list and export.
var outputs = map[string]func(io.Writer, string) (lineWriter, error){
	"table": func(w io.Writer, _ string) (lineWriter, error) { return newLineTable(w), nil },
	"json":  func(w io.Writer, _ string) (lineWriter, error) { return jsonLines{w}, nil },
	"csv":   func(w io.Writer, _ string) (lineWriter, error) { return audit.NewCSV(w) },
	"ocsf":  func(w io.Writer, host string) (lineWriter, error) { return ocsfLines{json.NewEncoder(w), host}, nil },
}

// lineWriter writes lines in one format.
type lineWriter interface {
	Write(audit.Line) error
	Flush() error
}

// jsonLines are lines as they stand in the record.
type jsonLines struct{ w io.Writer }

func (j jsonLines) Write(l audit.Line) error {
	_, err := j.w.Write(append(l.Text[:len(l.Text):len(l.Text)], '\n'))
	return err
}

func (j jsonLines) Flush() error { return nil }

type ocsfLines struct {
	out  *json.Encoder
	host string
}

func (o ocsfLines) Write(l audit.Line) error { return o.out.Encode(audit.ToOCSF(o.host, l)) }

func (o ocsfLines) Flush() error { return nil }

func newAuditList() *cobra.Command {
	return newAuditOutput("table", &cobra.Command{
		Use:   "list",
		Short: "Show the record",
		Long: `Shows what the record has, oldest first. Reading it needs root, or --socket and
the group of the agent's socket. It does not check the record: audit verify does.`,
		Example: `  jitgate audit list --since 24h
  jitgate audit list --event grant --requestor alice@example.com
  jitgate audit list --event connection.denied --port 22`,
	})
}

func newAuditExport() *cobra.Command {
	return newAuditOutput("json", &cobra.Command{
		Use:   "export",
		Short: "Write the record for other programs",
		Long: `Writes what the record has: json, its lines as they are; csv, as RFC 4180 says,
with no cell that a spreadsheet takes for a formula; ocsf, events of the Open
Cybersecurity Schema Framework 1.2.0, one a line.`,
		Example: `  jitgate audit export --format csv --since 30d >access.csv
  jitgate audit export --format ocsf --host web1 > events.json`,
	})
}

func newAuditOutput(format string, c *cobra.Command) *cobra.Command {
	var f recordFlags
	var host string
	c.Args = usage.Args(0, 0, "no argument")
	f.add(c)
	c.Flags().StringVar(&format, "format", format, "table, json, csv or ocsf")
	c.Flags().StringVar(&host, "host", "", "what ocsf calls the host (default as in the settings)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		make, ok := outputs[format]
		if !ok {
			return usage.Errorf("--format %q is not table, json, csv or ocsf", format)
		}
		if format == "ocsf" && host == "" {
			settings, err := agent.LoadSettings(f.config)
			if err != nil {
				return fmt.Errorf("%w; or name the host with --host", err)
			}
			host = settings.HostID
		}
		out, err := make(c.OutOrStdout(), host)
		if err != nil {
			return err
		}
		err = f.read(c.Context(), out.Write)
		return errors.Join(err, out.Flush())
	}
	return c
}

func newAuditVerify() *cobra.Command {
	var config, dir string
	var heads []string
	var asJSON bool
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check that nobody changed the record",
		Long: `Checks the record with nothing but its files: that each line follows the one
before it, across files, from the beginning or from where the record says that it
was pruned. What is wrong is named with file and line.

That the end was cut off, or all of it written anew, shows only against a head that
was noted elsewhere: the journal has one every five minutes (journalctl
JITGATE_EVENT=audit.head), the control plane one with every heartbeat, and this
command prints one.`,
		Example: `  jitgate audit verify
  jitgate audit verify --dir /mnt/evidence/audit --head 1187:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			var noted []audit.Head
			for _, h := range heads {
				head, err := audit.ParseHead(h)
				if err != nil {
					return usage.Errorf("--head: %w", err)
				}
				noted = append(noted, head)
			}
			dir, err := recordDir(config, dir)
			if err != nil {
				return err
			}
			v, err := audit.Verify(dir, noted...)
			if err != nil {
				return explain(err)
			}
			if err := printVerdict(c.OutOrStdout(), v, asJSON); err != nil || v.Whole() {
				return err
			}
			return fmt.Errorf("the record in %s is not whole", dir)
		},
	}
	configFlag(c, &config)
	c.Flags().StringVar(&dir, "dir", "", "the record's directory, or a copy of it (default that of the settings)")
	c.Flags().StringArrayVar(&heads, "head", nil, "NUMBER:DIGEST, noted elsewhere; may be repeated")
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printVerdict(out io.Writer, v audit.Verdict, asJSON bool) error {
	if asJSON {
		faults := []map[string]any{}
		for _, f := range v.Faults {
			faults = append(faults, map[string]any{"file": f.File, "line": f.Line, "what": f.What})
		}
		return printJSON(out, map[string]any{"whole": v.Whole(), "files": v.Files, "lines": v.Lines, "first": v.First, "head": v.Head.String(),
			"tornBytes": v.Torn, "faults": faults, "moreFaults": v.More, "uncheckedHeads": len(v.Unchecked)})
	}
	for _, f := range v.Faults {
		fmt.Fprintln(out, printable(f.String()))
	}
	if v.More > 0 {
		fmt.Fprintf(out, "and %d more\n", v.More)
	}
	for _, h := range v.Unchecked {
		fmt.Fprintf(out, "not checked: line %d was pruned, by the limits of the settings\n", h.Seq)
	}
	if v.Torn > 0 {
		fmt.Fprintf(out, "note: %d bytes of a line without an end stand at the end: it is being written, or a crash cut it short\n", v.Torn)
	}
	if v.Whole() {
		fmt.Fprintf(out, "whole: lines %d to %d in %d files\n", v.First, v.Head.Seq, v.Files)
	}
	_, err := fmt.Fprintf(out, "head %s\n", v.Head)
	return err
}
