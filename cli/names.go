package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/policy"
)

const machinePart = "/virtualMachines/"

// findVM finds the one machine that a word means: its whole id, its name, or
// GROUP/NAME where others have the same name. etag is that of its ports.
func findVM(ctx context.Context, control *client.Client, word string) (v client.VM, etag string, err error) {
	if strings.HasPrefix(word, "/") {
		return control.VM(ctx, word)
	}
	group, name, ok := strings.Cut(word, "/")
	if !ok {
		group, name = "", word
	}
	if name == "" || strings.Contains(name, "/") {
		return v, "", usage.Errorf("%q is not a machine: write its name, GROUP/NAME or its whole id", word)
	}
	var found []client.VM
	for vm, err := range control.VMs(ctx, client.VMFilter{Search: machinePart + name}) {
		if err != nil {
			return v, "", err
		}
		if strings.EqualFold(vm.Name, name) && (group == "" || strings.EqualFold(vm.ResourceGroup, group)) {
			found = append(found, vm)
		}
	}
	switch len(found) {
	case 0:
		return v, "", fmt.Errorf("there is no virtual machine %s that you may see: jitgate vm list shows those there are", printable(word))
	case 1:
		return control.VM(ctx, found[0].ID)
	}
	var ids []string
	for _, vm := range found {
		ids = append(ids, printable(vm.ID))
	}
	return v, "", fmt.Errorf("%s is %d machines: write GROUP/NAME or one of %s", printable(word), len(found), abridge(ids))
}

// findVMs finds all machines, or none.
func findVMs(ctx context.Context, control *client.Client, words []string) (all []client.VM, err error) {
	for _, w := range words {
		v, _, err := findVM(ctx, control, w)
		if err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, nil
}

// Completion does not keep anybody waiting.
const (
	completionTime = 2 * time.Second
	completionMost = 100
)

// completeVMs completes names of machines, with tab of a filter.
func completeVMs(at *controlFlags, tab string, most int) cobra.CompletionFunc {
	return func(c *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp
		if most > 0 && len(args) >= most {
			return nil, directive
		}
		config, err := at.config(c)
		if err != nil {
			return nil, directive
		}
		control, err := client.New(config)
		if err != nil {
			return nil, directive
		}
		defer control.Close()
		ctx, cancel := context.WithTimeout(c.Context(), completionTime)
		defer cancel()
		var words []string
		search := machinePart + typed
		if group, name, ok := strings.Cut(typed, "/"); ok && group != "" {
			search = "/" + group + "/providers/Microsoft.Compute" + machinePart + name
		}
		for vm, err := range control.VMs(ctx, client.VMFilter{Tab: tab, Search: search, PageSize: completionMost}) {
			if err != nil || len(words) == completionMost {
				break
			}
			word := vm.Name
			if strings.Contains(typed, "/") {
				word = vm.ResourceGroup + "/" + vm.Name
			}
			words = append(words, cobra.CompletionWithDesc(printable(word), printable(vm.ResourceGroup)))
		}
		return words, directive
	}
}

// isoDuration reads a length of time as people write it, 90m, or as the API
// does, PT1H30M.
func isoDuration(name, s string) (time.Duration, error) {
	if strings.HasPrefix(s, "P") {
		d, err := policy.ParseDuration(s)
		if err != nil || d <= 0 {
			return 0, usage.Errorf("%s %q is not a length of time, like 90m or PT1H30M", name, s)
		}
		return d, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < time.Second {
		return 0, usage.Errorf("%s %q is not a length of time, like 90m or PT1H30M", name, s)
	}
	return d.Truncate(time.Second), nil
}

// span shows an ISO 8601 duration as people write it.
func span(iso string) string {
	d, err := policy.ParseDuration(iso)
	if err != nil {
		return printable(iso)
	}
	return short(d)
}

// short is a length of time without the parts that are nothing: 3h, 1h30m.
func short(d time.Duration) string {
	s := d.Round(time.Second).String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// when shows a time for people: in their own zone, with the day only where it
// is not today.
func when(t, now time.Time) string {
	if t.IsZero() {
		return "-"
	}
	t, now = t.Local(), now.Local()
	if t.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return t.Format("15:04:05")
	}
	return t.Format("2006-01-02 15:04")
}

// sourcesOf are the sources of a rule or request, in words.
func sourcesOf(one string, many []string) string {
	if one != "" {
		many = append([]string{one}, many...)
	}
	var out []string
	for _, s := range many {
		// One address is an address.
		if p, err := netip.ParsePrefix(s); err == nil && p.IsSingleIP() {
			s = p.Addr().String()
		}
		out = append(out, printable(s))
	}
	return abridge(out)
}
