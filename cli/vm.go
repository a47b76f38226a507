package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/client"
	"github.com/jitgate/jitgate/policy"
)

// The tabs that machines are under.
const (
	tabConfigured    = "Configured"
	tabNotConfigured = "NotConfigured"
	tabUnsupported   = "Unsupported"
)

var tabs = []struct{ name, title string }{{tabConfigured, "Configured"}, {tabNotConfigured, "Not configured"}, {tabUnsupported, "Unsupported"}}

// What a port is configured with unless it is said.
const (
	defaultLongest = 3 * time.Hour
	anySource      = "*"
	sshPort        = 22
	rdpPort        = 3389
)

// recommended are the management ports of any machine: SSH, RDP, WinRM.
var recommended = []uint16{sshPort, rdpPort, 5985, 5986}

func newVM() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "vm",
		Short: "See and configure the machines of a control plane",
		Long: `A machine is named by its name, by GROUP/NAME where several have it, or by its
whole id.`,
		Example: `  jitgate vm list
  jitgate vm enable web1 web2`,
	}, newVMList(), newVMShow(), newVMAdd(), newVMEnable(), newVMEdit(), newVMDisable())
}

func newVMList() *cobra.Command {
	var at controlFlags
	var f client.VMFilter
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use:   "list [WORD]",
		Short: "List machines: configured, not configured, unsupported",
		Example: `  jitgate vm list web
  jitgate vm list --tab NotConfigured --scope /subscriptions/S/resourceGroups/G`,
		Args: usage.Args(0, 1, "at most a part of a machine's id"),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				f.Search = args[0]
			}
			if f.Tab != "" && !slices.ContainsFunc(tabs, func(t struct{ name, title string }) bool { return strings.EqualFold(t.name, f.Tab) }) {
				return usage.Errorf("--tab %q is not Configured, NotConfigured or Unsupported", f.Tab)
			}
			if limit < 0 {
				return usage.Errorf("--limit %d is negative: 0 is no limit", limit)
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				return listVMs(ctx, c, control, f, limit, asJSON)
			})
		},
	}
	at.add(c)
	c.Flags().StringVar(&f.Tab, "tab", "", "only Configured, NotConfigured or Unsupported")
	c.Flags().StringVar(&f.Scope, "scope", "", "only below this subscription or resource group")
	c.Flags().IntVar(&limit, "limit", 200, "how many of each tab at most, 0 for all")
	jsonFlag(c, &asJSON)
	return c
}

func listVMs(ctx context.Context, c *cobra.Command, control *client.Client, f client.VMFilter, limit int, asJSON bool) error {
	out := c.OutOrStdout()
	all := []client.VM{}
	first := true
	for _, tab := range tabs {
		if f.Tab != "" && !strings.EqualFold(tab.name, f.Tab) {
			continue
		}
		some := f
		some.Tab = tab.name
		var list []client.VM
		more := false
		for vm, err := range control.VMs(ctx, some) {
			if err != nil {
				return err
			}
			if more = limit > 0 && len(list) == limit; more {
				break
			}
			list = append(list, vm)
		}
		if asJSON {
			all = append(all, list...)
			continue
		}
		if !first {
			fmt.Fprintln(out)
		}
		first = false
		count := strconv.Itoa(len(list))
		if more {
			count += " of more: --limit 0 shows all"
		}
		fmt.Fprintf(out, "%s (%s)\n", tab.title, count)
		if len(list) == 0 {
			continue
		}
		if err := vmTable(tab.name, list, time.Now()).print(out); err != nil {
			return err
		}
	}
	if asJSON {
		return printJSON(out, all)
	}
	return nil
}

func vmTable(tab string, list []client.VM, now time.Time) table {
	t := table{}
	switch tab {
	case tabConfigured:
		t.head = []string{"NAME", "GROUP", "PORTS", "OPEN", "REQUESTS 7d", "LAST ACCESS", "LAST USER", "ADDRESS", "AGENT"}
	case tabNotConfigured:
		t.head = []string{"NAME", "GROUP", "OS", "ADDRESS", "AGENT"}
	default:
		t.head = []string{"NAME", "GROUP", "REASON"}
	}
	for _, v := range list {
		address := plain(cmp.Or(v.PublicIPAddress, v.Address, "-"))
		switch tab {
		case tabConfigured:
			var ports []string
			for _, p := range v.Ports {
				ports = append(ports, strconv.Itoa(int(p.Number)))
			}
			open := plain("-")
			if n := len(v.Open); n > 0 {
				open = tinted(green, strconv.Itoa(n))
			}
			t.add(plain(v.Name), plain(v.ResourceGroup), plain(strings.Join(ports, ",")), open, plain(strconv.Itoa(v.ApprovedRequests)),
				plain(when(v.LastAccess, now)), plain(cmp.Or(v.LastUser, "-")), address, agentCell(v))
		case tabNotConfigured:
			t.add(plain(v.Name), plain(v.ResourceGroup), plain(cmp.Or(v.OS, "-")), address, agentCell(v))
		default:
			t.add(plain(v.Name), plain(v.ResourceGroup), plain(v.Reason))
		}
	}
	return t
}

// agentConnected is what the control plane calls an agent it has a line to.
const agentConnected = "connected"

func agentCell(v client.VM) cell {
	if v.AgentStatus == agentConnected {
		return tinted(green, v.AgentStatus)
	}
	return tinted(yellow, v.AgentStatus)
}

func newVMShow() *cobra.Command {
	var at controlFlags
	var asJSON bool
	c := &cobra.Command{
		Use:     "show VM",
		Short:   "Show one machine: its ports, who has what open, how to connect",
		Example: "  jitgate vm show web1",
		Args:    usage.Args(1, 1, "a machine"),
		RunE: func(c *cobra.Command, args []string) error {
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				v, _, err := findVM(ctx, control, args[0])
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), v)
				}
				return showVM(c.OutOrStdout(), v, time.Now())
			})
		},
	}
	at.add(c)
	jsonFlag(c, &asJSON)
	c.ValidArgsFunction = completeVMs(&at, "", 1)
	return c
}

func showVM(out io.Writer, v client.VM, now time.Time) error {
	t := table{head: []string{"machine", printable(v.ID)}}
	row := func(name string, c cell) {
		if c.text != "" {
			t.add(plain(name), c)
		}
	}
	row("os", plain(v.OS))
	row("location", plain(v.Location))
	row("address", plain(v.Address))
	row("public address", plain(v.PublicIPAddress))
	row("agent", agentCell(v))
	if v.Agent != nil {
		row("mode", plain(v.Agent.Mode))
		row("note", plain(v.Agent.Note))
	}
	state := v.Tab
	if v.Reason != "" {
		state += ": " + v.Reason
	}
	row("just in time", plain(state))
	if v.ProvisioningState != "" && v.ProvisioningState != "Succeeded" {
		row("policy", plain(v.ProvisioningState+": waits for a signature"))
	}
	row("requests", plain(fmt.Sprintf("%d in the last seven days", v.ApprovedRequests)))
	if !v.LastAccess.IsZero() {
		row("last access", plain(when(v.LastAccess, now)+" by "+v.LastUser))
	}
	if err := t.print(out); err != nil {
		return err
	}
	if len(v.Ports) > 0 {
		fmt.Fprintln(out)
		t = table{head: []string{"PORT", "PROTOCOL", "SOURCES", "LONGEST", "AT THE END", "CONNECT"}}
		for _, p := range v.Ports {
			t.add(plain(strconv.Itoa(int(p.Number))), plain(p.Protocol), plain(sourcesOf(p.AllowedSourceAddressPrefix, p.AllowedSourceAddressPrefixes)),
				plain(span(p.MaxRequestAccessDuration)), plain("sessions "+cmp.Or(p.SessionsAtEnd, "keep")), plain(connectBy(v, p.Number, p.MappedPort)))
		}
		if err := t.print(out); err != nil {
			return err
		}
	}
	if len(v.Open) == 0 {
		return nil
	}
	fmt.Fprintln(out)
	t = table{head: []string{"REQUEST", "PORT", "STATE", "SOURCES", "LEFT", "BY"}}
	for _, o := range v.Open {
		t.add(plain(o.Request), plain(strconv.Itoa(int(o.Number))), statusCell(o.RequestPort), plain(sourcesOf(o.AllowedSourceAddressPrefix, o.AllowedSourceAddressPrefixes)),
			plain(left(o.RequestPort, now)), plain(o.Requestor))
	}
	return t.print(out)
}

// connectBy is the command that connects to a port.
func connectBy(v client.VM, port, mapped uint16) string {
	address := cmp.Or(v.PublicIPAddress, v.Address, v.Name)
	switch to := cmp.Or(mapped, port); {
	case port == sshPort && to == sshPort:
		return "jitgate ssh " + v.Name
	case port == sshPort:
		return fmt.Sprintf("jitgate ssh %s -- -p %d", v.Name, port)
	case port == rdpPort:
		return "jitgate rdp " + v.Name
	default:
		return joinPort(address, to)
	}
}

func joinPort(address string, port uint16) string {
	if a, err := netip.ParseAddr(address); err == nil {
		return netip.AddrPortFrom(a, port).String()
	}
	return address + ":" + strconv.Itoa(int(port))
}

func newVMAdd() *cobra.Command {
	var at controlFlags
	var in client.VMInput
	var asJSON bool
	c := &cobra.Command{
		Use:   "add ID",
		Short: "Put a machine into the inventory, or change what is said of it",
		Long: `Puts a machine into the inventory by its whole id. Of one that is there already
only what is given changes.`,
		Example: "  jitgate vm add /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/web1 --location here --os Linux --address 10.0.0.4",
		Args:    usage.Args(1, 1, "the whole id of a machine"),
		RunE: func(c *cobra.Command, args []string) error {
			if !strings.HasPrefix(args[0], "/") {
				return usage.Errorf("%q is not the whole id of a machine: /subscriptions/S/resourceGroups/G/providers/Microsoft.Compute/virtualMachines/NAME", args[0])
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				v, _, err := control.VM(ctx, args[0])
				if err != nil && !client.IsNotFound(err) {
					return err
				}
				if v, err = control.PutVM(ctx, args[0], over(v, in)); err != nil {
					return err
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), v)
				}
				return showVM(c.OutOrStdout(), v, time.Now())
			})
		},
	}
	at.add(c)
	c.Flags().StringVar(&in.Location, "location", "", "where it is: a policy is for one location")
	c.Flags().StringVar(&in.OS, "os", "", "Linux or Windows")
	c.Flags().StringVar(&in.Address, "address", "", "where people connect to it inside: address or name")
	c.Flags().StringVar(&in.PublicIPAddress, "public-address", "", "or from outside")
	jsonFlag(c, &asJSON)
	return c
}

// over is what the inventory says of a machine with something new.
func over(v client.VM, in client.VMInput) client.VMInput {
	out := client.VMInput{Location: cmp.Or(in.Location, v.Location), OS: cmp.Or(in.OS, v.OS), Address: cmp.Or(in.Address, v.Address),
		PublicIPAddress: cmp.Or(in.PublicIPAddress, v.PublicIPAddress)}
	if v.Tab == tabUnsupported {
		out.UnsupportedReason = v.Reason
	}
	return out
}

// portSpec is a port as --port says it: what is not said stays.
type portSpec struct {
	number  uint16
	rule    client.PortRule // of what was said
	sources bool
}

// parsePortSpec reads NUMBER[/PROTOCOL][:LONGEST[:SOURCE,…]].
func parsePortSpec(s string) (portSpec, error) {
	const form = "NUMBER[/PROTOCOL][:LONGEST[:SOURCE,…]], like 22/tcp:PT2H:10.0.0.0/8"
	fields := strings.SplitN(s, ":", 3) // an IPv6 source has colons of its own
	number, protocol, hasProtocol := strings.Cut(fields[0], "/")
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n == 0 {
		return portSpec{}, usage.Errorf("--port %q is not %s", s, form)
	}
	p := portSpec{number: uint16(n), rule: client.PortRule{Number: uint16(n)}}
	if hasProtocol {
		p.rule.Protocol = strings.ToUpper(protocol)
		if !slices.Contains([]string{string(policy.TCP), string(policy.UDP), string(policy.Both)}, p.rule.Protocol) {
			return portSpec{}, usage.Errorf("--port %q: %q is not tcp, udp or *", s, protocol)
		}
	}
	if len(fields) > 1 && fields[1] != "" {
		d, err := isoDuration("--port "+s+":", fields[1])
		if err != nil {
			return portSpec{}, err
		}
		p.rule.MaxRequestAccessDuration = policy.FormatDuration(d)
	}
	if len(fields) > 2 {
		p.sources = true
		p.rule.AllowedSourceAddressPrefixes = strings.Split(fields[2], ",")
	}
	return p, nil
}

// onto puts what was said over a rule; before is nil for a new one.
func (p portSpec) onto(before *client.PortRule) client.PortRule {
	r := client.PortRule{Number: p.number, Protocol: string(policy.TCP), AllowedSourceAddressPrefix: anySource, MaxRequestAccessDuration: policy.FormatDuration(defaultLongest)}
	if before != nil {
		r = *before
	}
	r.Protocol = cmp.Or(p.rule.Protocol, r.Protocol)
	r.MaxRequestAccessDuration = cmp.Or(p.rule.MaxRequestAccessDuration, r.MaxRequestAccessDuration)
	r.SessionsAtEnd = cmp.Or(p.rule.SessionsAtEnd, r.SessionsAtEnd)
	if p.sources {
		r.AllowedSourceAddressPrefix, r.AllowedSourceAddressPrefixes = "", p.rule.AllowedSourceAddressPrefixes
	}
	return r
}

// ruleFlags are the ports that enable and edit are told.
type ruleFlags struct {
	specs []string
	cut   bool
}

func (f *ruleFlags) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&f.specs, "port", nil, "a port: NUMBER[/PROTOCOL][:LONGEST[:SOURCE,…]], like 22/tcp:PT2H:10.0.0.0/8; may be repeated")
	c.Flags().BoolVar(&f.cut, "cut", false, "end sessions on these ports when the time is up (else they are kept)")
}

func (f ruleFlags) parse() (all []portSpec, err error) {
	for _, s := range f.specs {
		p, err := parsePortSpec(s)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(q portSpec) bool { return q.number == p.number }) {
			return nil, usage.Errorf("--port %d is there twice", p.number)
		}
		if f.cut {
			p.rule.SessionsAtEnd = "cut"
		}
		all = append(all, p)
	}
	return all, nil
}

func newVMEnable() *cobra.Command {
	var at controlFlags
	var rules ruleFlags
	var all, asJSON bool
	var location string
	c := &cobra.Command{
		Use:   "enable VM…",
		Short: "Guard the ports of machines that are not configured yet",
		Long: `Guards the management port of a machine: 22 on Linux, 3389 on Windows, opened
for three hours at most and for any source; or the ports that --port says; or
with --recommended 22, 3389, 5985 and 5986.`,
		Example: `  jitgate vm enable web1 web2
  jitgate vm enable web1 --port 22/tcp:PT2H:10.0.0.0/8 --port 5985`,
		Args: usage.Args(1, -1, "a machine or several"),
		RunE: func(c *cobra.Command, args []string) error {
			specs, err := rules.parse()
			if err != nil {
				return err
			}
			for _, n := range recommended {
				if all && !slices.ContainsFunc(specs, func(p portSpec) bool { return p.number == n }) {
					specs = append(specs, portSpec{number: n})
				}
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				vms, err := findVMs(ctx, control, args)
				if err != nil {
					return err
				}
				// All are looked at before the first is changed.
				ports := make([][]client.PortRule, len(vms))
				for i, v := range vms {
					if ports[i], err = enabling(v, specs, location); err != nil {
						return err
					}
				}
				var done []client.VM
				for i, v := range vms {
					if v.Location == "" && location != "" {
						if _, err := control.PutVM(ctx, v.ID, over(v, client.VMInput{Location: location})); err != nil {
							return partly(done, v, err)
						}
					}
					v, err := editPorts(ctx, control, v.ID, func(now client.VM) ([]client.PortRule, error) {
						if now.Tab == tabConfigured {
							return nil, errConfigured(now)
						}
						return ports[i], nil
					})
					if err != nil {
						return partly(done, vms[i], err)
					}
					done = append(done, v)
				}
				return printConfigured(c, done, asJSON)
			})
		},
	}
	at.add(c)
	rules.add(c)
	c.Flags().BoolVar(&all, "recommended", false, "guard 22, 3389, 5985 and 5986")
	c.Flags().StringVar(&location, "location", "", "where the machine is, if the inventory does not say")
	jsonFlag(c, &asJSON)
	c.ValidArgsFunction = completeVMs(&at, tabNotConfigured, 0)
	return c
}

// partly says what an error has left done.
func partly(done []client.VM, at client.VM, err error) error {
	err = fmt.Errorf("%s: %w", printable(at.Name), err)
	if len(done) == 0 {
		return err
	}
	var names []string
	for _, v := range done {
		names = append(names, printable(v.Name))
	}
	return fmt.Errorf("%w; done before: %s", err, abridge(names))
}

func errConfigured(v client.VM) error {
	return fmt.Errorf("%s is configured already: change it with jitgate vm edit", printable(v.Name))
}

// enabling are the ports that a machine gets.
func enabling(v client.VM, specs []portSpec, location string) ([]client.PortRule, error) {
	switch {
	case v.Tab == tabConfigured:
		return nil, errConfigured(v)
	case v.Tab == tabUnsupported:
		return nil, fmt.Errorf("%s is unsupported: %s", printable(v.Name), printable(v.Reason))
	case v.Location == "" && location == "":
		return nil, usage.Errorf("%s has no location in the inventory, and policies are by location: say --location", printable(v.Name))
	}
	if len(specs) == 0 {
		switch strings.ToLower(v.OS) {
		case "windows":
			specs = []portSpec{{number: rdpPort}}
		case "linux", "": // an agent on anything else says so
			specs = []portSpec{{number: sshPort}}
		default:
			return nil, usage.Errorf("%s runs %s: say which ports with --port", printable(v.Name), printable(v.OS))
		}
	}
	var ports []client.PortRule
	for _, p := range specs {
		ports = append(ports, p.onto(nil))
	}
	return ports, nil
}

func printConfigured(c *cobra.Command, done []client.VM, asJSON bool) error {
	if asJSON {
		return printJSON(c.OutOrStdout(), done)
	}
	for i, v := range done {
		if i > 0 {
			fmt.Fprintln(c.OutOrStdout())
		}
		if err := showVM(c.OutOrStdout(), v, time.Now()); err != nil {
			return err
		}
	}
	return nil
}

// maxEdits is how often an edit is made anew because somebody else was faster.
const maxEdits = 5

// editPorts changes the ports of a machine from what they are to what change
// makes of them. Nothing that somebody else did meanwhile is lost.
func editPorts(ctx context.Context, control *client.Client, id string, change func(client.VM) ([]client.PortRule, error)) (client.VM, error) {
	for try := 1; ; try++ {
		v, etag, err := control.VM(ctx, id)
		if err != nil {
			return v, err
		}
		ports, err := change(v)
		if err != nil {
			return v, err
		}
		next, _, err := control.EditPorts(ctx, v.ID, ports, etag)
		if !client.IsPrecondition(err) || try == maxEdits {
			return next, err
		}
	}
}

func newVMEdit() *cobra.Command {
	var at controlFlags
	var rules ruleFlags
	var remove []uint16
	var asJSON bool
	c := &cobra.Command{
		Use:   "edit VM",
		Short: "Add, change or remove ports of a machine, and leave the others alone",
		Long: `Adds the ports that --port says, or changes them where they are there: what is
not said of a port stays as it is. All other ports stay as they are.`,
		Example: `  jitgate vm edit web1 --port 22:PT1H
  jitgate vm edit web1 --port 8443/tcp:PT8H:198.51.100.0/24 --remove 5985`,
		Args: usage.Args(1, 1, "a machine"),
		RunE: func(c *cobra.Command, args []string) error {
			specs, err := rules.parse()
			if err != nil {
				return err
			}
			if len(specs)+len(remove) == 0 {
				return usage.Errorf("--port or --remove is missing: see %s --help", c.CommandPath())
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				v, _, err := findVM(ctx, control, args[0])
				if err != nil {
					return err
				}
				v, err = editPorts(ctx, control, v.ID, func(v client.VM) ([]client.PortRule, error) { return edited(v, specs, remove) })
				if err != nil {
					return err
				}
				return printConfigured(c, []client.VM{v}, asJSON)
			})
		},
	}
	at.add(c)
	rules.add(c)
	c.Flags().Var((*portList)(&remove), "remove", "a port that is guarded no more; may be repeated")
	jsonFlag(c, &asJSON)
	c.ValidArgsFunction = completeVMs(&at, tabConfigured, 1)
	return c
}

// edited are the ports of a machine with some changed and some removed.
func edited(v client.VM, specs []portSpec, remove []uint16) ([]client.PortRule, error) {
	if v.Tab != tabConfigured {
		return nil, fmt.Errorf("%s is not configured: jitgate vm enable does that", printable(v.Name))
	}
	ports := slices.Clone(v.Ports)
	at := func(n uint16) int {
		return slices.IndexFunc(ports, func(p client.PortRule) bool { return p.Number == n })
	}
	for _, n := range remove {
		i := at(n)
		if i < 0 {
			return nil, fmt.Errorf("port %d of %s is not guarded: there is nothing to remove", n, printable(v.Name))
		}
		ports = slices.Delete(ports, i, i+1)
	}
	if len(ports)+len(specs) == 0 {
		return nil, fmt.Errorf("that would guard no port of %s: jitgate vm disable does that", printable(v.Name))
	}
	for _, p := range specs {
		if i := at(p.number); i >= 0 {
			ports[i] = p.onto(&ports[i])
		} else {
			ports = append(ports, p.onto(nil))
		}
	}
	return ports, nil
}

// portList is a flag that lists port numbers.
type portList []uint16

func (l *portList) Type() string { return "port" }

func (l *portList) String() string {
	var words []string
	for _, n := range *l {
		words = append(words, strconv.Itoa(int(n)))
	}
	return strings.Join(words, ",")
}

// Set adds the ports of one word.
func (l *portList) Set(s string) error {
	for word := range strings.SplitSeq(s, ",") {
		n, err := strconv.ParseUint(word, 10, 16)
		if err != nil || n == 0 {
			return fmt.Errorf("%q is not a port, 1 to 65535", word)
		}
		if slices.Contains(*l, uint16(n)) {
			return fmt.Errorf("port %d is there twice", n)
		}
		*l = append(*l, uint16(n))
	}
	return nil
}

func newVMDisable() *cobra.Command {
	var at controlFlags
	var yes, asJSON bool
	c := &cobra.Command{
		Use:   "disable VM…",
		Short: "Stop guarding the ports of machines",
		Long: `Takes machines out of their policies: their ports are guarded no more, and are
open to whatever else stands before them lets through.`,
		Example: "  jitgate vm disable web1 --yes",
		Args:    usage.Args(1, -1, "a machine or several"),
		RunE: func(c *cobra.Command, args []string) error {
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				vms, err := findVMs(ctx, control, args)
				if err != nil {
					return err
				}
				var names []string
				for _, v := range vms {
					names = append(names, printable(v.Name))
				}
				if !yes {
					if err := agree(ctx, c, fmt.Sprintf("the ports of %s will be guarded no more", strings.Join(names, ", "))); err != nil {
						return err
					}
				}
				done := []client.VM{}
				for _, v := range vms {
					next, err := editPorts(ctx, control, v.ID, func(client.VM) ([]client.PortRule, error) { return nil, nil })
					if err != nil {
						return partly(done, v, err)
					}
					done = append(done, next)
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), done)
				}
				fmt.Fprintf(c.OutOrStdout(), "guarded no more: %s\n", strings.Join(names, ", "))
				return nil
			})
		},
	}
	at.add(c)
	c.Flags().BoolVar(&yes, "yes", false, "do not ask")
	jsonFlag(c, &asJSON)
	c.ValidArgsFunction = completeVMs(&at, tabConfigured, 0)
	return c
}

// agree asks a person at a terminal; elsewhere --yes is needed.
func agree(ctx context.Context, c *cobra.Command, what string) error {
	if _, ok := terminalOf(c.InOrStdin()); !ok {
		return usage.Errorf("%s: say --yes", what)
	}
	yes, err := confirm(ctx, c, what+". Go on? [y/N] ")
	if err == nil && !yes {
		err = errors.New("nothing was changed")
	}
	return err
}

// takenOver is the reason of a request in whose place its requestor made
// another.
const takenOver = "NewerRequestInitiated"

// statusCell is where a port of a request stands, in words.
func statusCell(p client.RequestPort) cell {
	switch {
	case p.Status == "Initiated" && !p.Closed.IsZero():
		return tinted(yellow, "closed by the agent")
	case p.Status == "Initiated":
		return tinted(green, "open")
	case p.Status == "Initiating" && p.Refused != "":
		return tinted(red, "refused: "+p.Refused)
	case p.Status == "Initiating":
		return tinted(yellow, "opening")
	case p.Status == "Pending":
		return tinted(yellow, "waits for approval")
	case p.StatusReason == "Expired":
		return plain("expired")
	case p.StatusReason == "Denied":
		return plain("denied")
	case p.StatusReason == takenOver:
		return plain("taken over")
	}
	return plain("revoked")
}

// left is the time that a port has.
func left(p client.RequestPort, now time.Time) string {
	switch {
	case p.Status == "Revoked":
		return "-"
	case p.Status == "Pending" && p.Duration != "":
		return span(p.Duration)
	}
	return short(max(p.End.Sub(now), 0))
}
