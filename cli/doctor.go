package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/doctor"
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/policy"
)

// errProblems makes the exit code of a doctor that found some.
var errProblems = errors.New("the doctor found problems")

func newDoctor() *cobra.Command {
	var config string
	var asJSON bool
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Show what else decides about the guarded ports, and what is wrong",
		Long: `Shows which chains decide about the guarded ports, and in which order, what
stands in the way of a grant, what gets in round the guard, and how agent,
documents, clock and kernel are. Each finding says what to do.

It changes nothing on the host, and works with the agent running or not. Root
sees all; without root it says what it could not see.

Exit code 0: no problem was found (there may be warnings); 1: there is one.`,
		Example: "  jitgate doctor\n  jitgate doctor --json",
		Args:    usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) error {
			r := examine(c, config)
			if asJSON {
				if err := printJSON(c.OutOrStdout(), r); err != nil {
					return err
				}
			} else if err := printReport(c.OutOrStdout(), r); err != nil {
				return err
			}
			problems := 0
			for _, f := range r.Findings {
				if f.Level == doctor.Problem {
					problems++
				}
			}
			if problems > 0 {
				return fmt.Errorf("%w: %d; do what each says", errProblems, problems)
			}
			return nil
		},
	}
	configFlag(c, &config)
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// report is what the doctor says. The names are a contract.
type report struct {
	Host     string           `json:"host"`
	Mode     string           `json:"mode"`
	Kernel   string           `json:"kernel"`
	Firewall string           `json:"firewall"`
	Guarded  []string         `json:"guarded"`
	Order    []doctor.Step    `json:"order"`
	Findings []doctor.Finding `json:"findings"`
}

// examine gathers the facts of this host. What keeps it from one of them is
// itself a finding.
func examine(c *cobra.Command, config string) report {
	f := doctor.Gather(config)
	settings, err := agent.LoadSettings(config)
	if err != nil {
		f.Settings.Missing = errors.Is(err, fs.ErrNotExist)
		f.Settings.Broken = err.Error()
		if f.Settings.Missing {
			f.Settings.Broken = ""
		}
		// The defaults, less the one key that has none.
		if settings, err = agent.ParseSettings([]byte(`host_id = "not set"`)); err != nil {
			panic(err) // the settings' own tests hold them to this
		}
	} else {
		var s agent.Status
		err := callAgent(c.Context(), config, http.MethodGet, "/v1/status", nil, &s)
		if err == nil {
			f.Agent = said(s)
			f.Mode, f.Guarded = string(s.Mode), ports(s.Guarded)
			if s.Trial != nil {
				f.Trial = time.Duration(s.Trial.SecondsLeft) * time.Second
			}
		} else if !errors.Is(err, errNoAgent) {
			f.Agent.Why = err.Error()
		}
	}
	f.Host = settings.HostID
	f.Settings.HostRefused = settings.HostRefused
	f.Settings.Pinned = settings.TrustPin != policy.Digest{}
	if !f.Agent.Running {
		f.Mode, f.Guarded = string(settings.Mode), settings.Guard
	}
	r := report{Host: f.Host, Mode: f.Mode, Kernel: f.Kernel, Firewall: f.Agent.Firewall, Guarded: []string{}, Order: doctor.Order(f), Findings: doctor.Examine(f)}
	if r.Firewall == "" {
		r.Firewall = "not asked"
	}
	for _, p := range doctor.Guarded(f) {
		r.Guarded = append(r.Guarded, p.String())
	}
	return r
}

// said is an agent's status in the doctor's words.
func said(s agent.Status) doctor.Agent {
	a := doctor.Agent{Running: true, Firewall: s.Firewall, Intact: s.Intact, Blocked: s.Blocked, Problem: s.Problem}
	for _, d := range s.Docs {
		a.Documents = append(a.Documents, doctor.Document{Name: d.Document, Version: d.Version, Issued: d.Issued, Expires: d.Expires, Refusal: d.Refusal})
	}
	return a
}

// ports reads the ports of a status. An agent of another version may name
// some this one does not know.
func ports(list []string) []firewall.Port {
	var out []firewall.Port
	for _, s := range list {
		if p, err := firewall.ParsePort(s); err == nil {
			out = append(out, p)
		}
	}
	return out
}

func printReport(out io.Writer, r report) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	guarded := strings.Join(r.Guarded, ", ")
	if guarded == "" {
		guarded = "no port"
	}
	for _, row := range [][2]string{{"host", r.Host}, {"mode", r.Mode}, {"guarded", guarded}, {"kernel", r.Kernel}, {"firewall", r.Firewall}} {
		fmt.Fprintf(w, "%s\t%s\n", row[0], printable(row[1]))
	}
	fmt.Fprintf(w, "\nWho decides about the guarded ports, in order\n\n")
	if err := w.Flush(); err != nil {
		return err
	}
	if len(r.Order) == 0 {
		fmt.Fprintln(out, "  nobody that could be seen")
	} else {
		fmt.Fprintln(w, "  HOOK\tPRIORITY\tFAMILY\tTABLE\tCHAIN\tPOLICY\tSAYS")
		for _, s := range r.Order {
			mark := " "
			if s.Ours {
				mark = "*"
			}
			says := s.Says
			if s.By != "" && !s.Ours {
				says += " (" + s.By + ")"
			}
			hook := strings.Join(append([]string{s.Hook}, s.Devices...), " ")
			fmt.Fprintf(w, "%s %s\t%d\t%s\t%s\t%s\t%s\t%s\n", mark, printable(hook), s.Priority, s.Family, printable(s.Table), printable(s.Chain), s.Policy, printable(says))
		}
		fmt.Fprintf(w, "\n* the guard's own\n")
		if err := w.Flush(); err != nil {
			return err
		}
	}
	for _, f := range r.Findings {
		fmt.Fprintf(out, "\n%-8s %s [%s]\n", f.Level, printable(f.What), f.ID)
		if f.Detail != "" {
			fmt.Fprintf(out, "         %s\n", printable(f.Detail))
		}
		if f.Level != doctor.OK {
			fmt.Fprintf(out, "         do: %s\n", printable(f.Do))
		}
	}
	return nil
}
