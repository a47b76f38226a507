package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/audit"
	"github.com/jitgate/jitgate/cli/usage"
)

// lineTable shows lines to people as they come.
type lineTable struct {
	w      io.Writer
	begun  bool
	denied map[string]uint64 // packets, by source
}

func newLineTable(w io.Writer) *lineTable { return &lineTable{w: w, denied: map[string]uint64{}} }

const tableRow = "%-19s  %-18s  %5s  %-20s  %-20s  %s\n"

func (t *lineTable) Write(l audit.Line) error {
	if !t.begun {
		t.begun = true
		if _, err := fmt.Fprintf(t.w, tableRow, "TIME", "EVENT", "PORT", "SOURCE", "REQUESTOR", "WHAT"); err != nil {
			return err
		}
	}
	if l.Name == audit.ConnectionDeny {
		source := l.Source
		if source == "" {
			source = "others, too many to name"
		}
		t.denied[source] += l.Count
	}
	port := ""
	if l.Port > 0 {
		port = fmt.Sprint(l.Port)
	}
	what := audit.Plain(l.Message)
	if l.Reason != "" {
		what += " (" + audit.Plain(l.Reason) + ")"
	}
	if l.GrantID != "" {
		what += " [" + audit.Plain(l.GrantID) + "]"
	}
	_, err := fmt.Fprintf(t.w, tableRow, l.Time.Local().Format(time.DateTime), audit.Plain(string(l.Name)), port, audit.Plain(l.Source), audit.Plain(l.Requestor), what)
	return err
}

// topSources is how many of those who knock are named.
const topSources = 5

func (t *lineTable) Flush() error {
	if !t.begun {
		_, err := fmt.Fprintln(t.w, "nothing is recorded")
		return err
	}
	if len(t.denied) == 0 {
		return nil
	}
	var sources []string
	for s := range t.denied {
		sources = append(sources, s)
	}
	slices.SortFunc(sources, func(a, b string) int {
		return cmp.Or(cmp.Compare(t.denied[b], t.denied[a]), cmp.Compare(a, b))
	})
	fmt.Fprintf(t.w, "\ndenied most often, of %d sources:\n", len(sources))
	for _, s := range sources[:min(len(sources), topSources)] {
		if _, err := fmt.Fprintf(t.w, "%10d packets  %s\n", t.denied[s], audit.Plain(s)); err != nil {
			return err
		}
	}
	return nil
}

func newAuditTimeline() *cobra.Command {
	var f recordFlags
	c := &cobra.Command{
		Use:   "timeline",
		Short: "Show who had what open, and when",
		Long: `Shows each opening with when it began and ended, how it ended and what it was
used for, and between them when the guard itself was changed.`,
		Example: `  jitgate audit timeline --since 7d
  jitgate audit timeline --requestor alice@example.com`,
		Args: usage.Args(0, 0, "no argument"),
	}
	f.add(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if err := f.check(c); err != nil {
			return err
		}
		var events []audit.Event
		err := f.read(c.Context(), func(l audit.Line) error {
			if strings.HasPrefix(string(l.Name), "grant.") || strings.HasPrefix(string(l.Name), "guard.") {
				events = append(events, l.Event)
			}
			return nil
		})
		if err != nil {
			return err
		}
		return printTimeline(c.OutOrStdout(), events)
	}
	return c
}

// printTimeline prints rows by when they begin.
func printTimeline(out io.Writer, events []audit.Event) error {
	type row struct {
		at    time.Time
		cells []string
	}
	var rows []row
	for _, p := range audit.Timeline(events) {
		rows = append(rows, row{p.From, periodCells(p)})
	}
	for _, e := range events {
		if strings.HasPrefix(string(e.Name), "guard.") {
			what := audit.Plain(e.Message)
			if e.ExposedMS > 0 {
				what += fmt.Sprintf(", after %s", time.Duration(e.ExposedMS)*time.Millisecond)
			}
			rows = append(rows, row{e.Time, []string{"", "", "", "", audit.Plain(e.Requestor), what, "", ""}})
		}
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(out, "nothing was open")
		return err
	}
	slices.SortStableFunc(rows, func(a, b row) int { return a.at.Compare(b.at) })
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "FROM\tTO\tOPEN\tPORT\tSOURCE\tWHO\tENDED\tUSE\tWHY")
	day := ""
	for _, r := range rows {
		at := r.at.Local()
		if d := at.Format(time.DateOnly); d != day {
			fmt.Fprintf(w, "%s\t\t\t\t\t\t\t\t\n", d)
			day = d
		}
		fmt.Fprintf(w, "%s\t%s\n", at.Format(time.TimeOnly), strings.Join(r.cells, "\t"))
	}
	return w.Flush()
}

// periodCells are the cells of an opening, behind when it began.
func periodCells(p audit.Period) []string {
	to, length, ended := "", "", "still open"
	switch {
	case !p.To.IsZero():
		to, length = clock(p.To, p.From), p.To.Sub(p.From).Round(time.Second).String()
		ended = map[audit.Name]string{audit.GrantExpired: "on time", audit.GrantRevoked: "revoked", "": "replaced"}[p.Ended]
	case !p.Until.IsZero():
		to = "until " + clock(p.Until, p.From)
	}
	return []string{to, length, fmt.Sprint(p.Port), audit.Plain(p.Source), audit.Plain(p.Requestor), ended, strings.Join(slices.DeleteFunc([]string{useText(p.Use), loginsText(p.Logins)}, func(s string) bool { return s == "" }), "; "), audit.Plain(p.Reason)}
}

// clock is a time, with its day where that is another.
func clock(t, from time.Time) string {
	t, from = t.Local(), from.Local()
	if t.Format(time.DateOnly) == from.Format(time.DateOnly) {
		return t.Format(time.TimeOnly)
	}
	return t.Format(time.DateTime)
}

// useText is the proof of use in a few words.
func useText(e *audit.Event) string {
	switch {
	case e == nil:
		return ""
	case e.Connections == 0: // unused, or tried
		return audit.Plain(e.Code)
	}
	text := fmt.Sprintf("%d connections, %s in, %s out", e.Connections, amount(e.BytesIn), amount(e.BytesOut))
	if e.Connections == 1 {
		text = strings.Replace(text, "connections", "connection", 1)
	}
	if e.SessionsCut > 0 {
		text += fmt.Sprintf(", %d cut", e.SessionsCut)
	}
	if e.AtLeast {
		text = "at least " + text
	}
	return text
}

// maxAccounts is how many of those who logged in are named with an opening.
const maxAccounts = 4

// loginsText says as whom somebody logged in, and with which key.
func loginsText(logins []audit.Event) string {
	var who []string
	for _, l := range logins {
		name := "as " + audit.Plain(l.Account)
		if with := cmp.Or(l.Key, l.Method); with != "" {
			name += " with " + audit.Plain(with)
		}
		if !slices.Contains(who, name) {
			who = append(who, name)
		}
	}
	if more := len(who) - maxAccounts; more > 0 {
		who = append(who[:maxAccounts], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(who, ", ")
}

// amount is a number of bytes for people.
func amount(n uint64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	value := float64(n)
	for ; value >= 1000 && len(units) > 1; units = units[1:] {
		value /= 1000
	}
	if units[0] == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", value, units[0])
}
