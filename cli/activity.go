package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
)

// activityOrder is what jitgate activity is asked for.
type activityOrder struct {
	f                   client.ActivityFilter
	since               string
	limit               int
	csv, follow, asJSON bool
}

func newActivity() *cobra.Command {
	var at controlFlags
	var o activityOrder
	c := &cobra.Command{
		Use:   "activity [VM]",
		Short: "Show who did what: the activity log",
		Long: `Shows the activity log of one machine, or all that you may see, with the newest
line last. --csv prints all of it, for a spreadsheet; cells that it would take
for formulas begin with an apostrophe.`,
		Example: `  jitgate activity web1 --since 24h
  jitgate activity --event connection.denied --follow
  jitgate activity web1 --since 30d --csv > web1.csv`,
		Args: usage.Args(0, 1, "at most one machine"),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.csv && (o.follow || o.asJSON) {
				return usage.Errorf("--csv goes with neither --follow nor --json")
			}
			if o.f.From, err = sinceTime(o.since, time.Now()); err != nil {
				return err
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				if len(args) > 0 {
					v, _, err := findVM(ctx, control, args[0])
					if err != nil {
						return err
					}
					o.f.Scope = v.ID
				}
				return o.run(ctx, c, control)
			})
		},
	}
	at.add(c)
	c.Flags().StringVar(&o.since, "since", "", "only since: 24h, 7d, or a time like 2026-11-27T08:00:00Z")
	c.Flags().StringVar(&o.f.Event, "event", "", "only this event, like request.initiated")
	c.Flags().StringVar(&o.f.Actor, "actor", "", "only by this person")
	c.Flags().StringVar(&o.f.Scope, "scope", "", "only below this subscription or resource group")
	c.Flags().IntVar(&o.limit, "limit", 100, "how many of the newest lines, 0 for all")
	c.Flags().BoolVar(&o.csv, "csv", false, "print all lines as CSV")
	c.Flags().BoolVar(&o.follow, "follow", false, "go on with what is yet to come")
	jsonFlag(c, &o.asJSON)
	c.ValidArgsFunction = completeVMs(&at, "", 1)
	return c
}

func (o activityOrder) run(ctx context.Context, c *cobra.Command, control *client.Client) error {
	out := c.OutOrStdout()
	if o.csv {
		return control.ActivityCSV(ctx, o.f, out)
	}
	lines := []client.Activity{}
	for a, err := range control.Activities(ctx, o.f) {
		if err != nil {
			return err
		}
		if lines = append(lines, a); len(lines) == o.limit {
			break
		}
	}
	slices.Reverse(lines)
	if o.asJSON && !o.follow {
		return printJSON(out, lines)
	}
	one := json.NewEncoder(out) // one line each, where there is no end
	if o.asJSON {
		for _, a := range lines {
			if err := one.Encode(a); err != nil {
				return err
			}
		}
	} else if err := activityTable(lines, time.Now()).print(out); err != nil {
		return err
	}
	if !o.follow {
		return nil
	}
	after, err := o.last(ctx, control, lines)
	if err != nil {
		return err
	}
	for a, err := range control.Follow(ctx, o.f, after) {
		if err != nil {
			return err
		}
		if o.asJSON {
			err = one.Encode(a)
		} else {
			_, err = fmt.Fprintln(out, activityLine(a, time.Now()))
		}
		if err != nil {
			return err
		}
	}
	return errors.New("the stream ended")
}

// last is the line to go on after: the newest that was shown, or else the
// newest that there is, of whatever kind.
func (o activityOrder) last(ctx context.Context, control *client.Client, shown []client.Activity) (uint64, error) {
	if len(shown) > 0 {
		return shown[len(shown)-1].Seq, nil
	}
	for a, err := range control.Activities(ctx, client.ActivityFilter{Scope: o.f.Scope, PageSize: 1}) {
		return a.Seq, err
	}
	return 0, nil
}

func activityTable(lines []client.Activity, now time.Time) table {
	t := table{head: []string{"TIME", "EVENT", "BY", "MACHINE", "WHAT"}}
	for _, a := range lines {
		event := plain(a.Event)
		if failedActivity(a) {
			event = tinted(red, a.Event)
		}
		t.add(plain(when(a.Time, now)), event, plain(cmp.Or(a.Actor, "-")), plain(cmp.Or(nameOf(cmp.Or(a.VM, a.Scope)), "-")), plain(activityText(a)))
	}
	return t
}

func failedActivity(a client.Activity) bool { return a.Status == "Failed" }

// activityText is what a line says, in a sentence.
func activityText(a client.Activity) string {
	var parts []string
	if a.Port != 0 {
		parts = append(parts, fmt.Sprintf("port %d", a.Port))
	}
	if a.Source != "" {
		parts = append(parts, "from "+a.Source)
	}
	if !a.End.IsZero() {
		parts = append(parts, "until "+a.End.Local().Format("15:04:05"))
	}
	if failedActivity(a) {
		parts = append(parts, "refused")
	}
	if a.Reason != "" {
		parts = append(parts, a.Reason)
	}
	if a.Code != "" {
		parts = append(parts, "("+a.Code+")")
	}
	return strings.Join(parts, " ")
}

// activityLine is a line of a log that goes on, where nothing lines up.
func activityLine(a client.Activity, now time.Time) string {
	return printable(strings.Join([]string{when(a.Time, now), a.Event, cmp.Or(a.Actor, "-"), nameOf(cmp.Or(a.VM, a.Scope)), activityText(a)}, "  "))
}
