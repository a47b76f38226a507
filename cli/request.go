package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
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

// usualLength is how long access is asked for unless it is said, where the
// policy allows so much.
const usualLength = time.Hour

// requestOrder is what jitgate request is asked for.
type requestOrder struct {
	ports   []uint16
	sources []string
	length  string
	reason  string
	noWait  bool
	wait    time.Duration
	asJSON  bool
}

func newRequest() *cobra.Command {
	var at controlFlags
	var o requestOrder
	c := &cobra.Command{
		Use:   "request VM…",
		Short: "Ask for access to machines, and wait until it is there",
		Long: `Asks for ports of one machine or several, waits until their agents say that they
are open, and says how to connect.

Without --port it is the management port that is guarded: 22 or 3389, or the
only one. Without --source it is for the address that the control plane sees
you at. Without --for it is for an hour, or less where the policy says so.`,
		Example: `  jitgate request web1 --reason INC-1
  jitgate request web1 web2 --port 22,8443 --source 198.51.100.0/24 --for 2h --reason patching`,
		Args: usage.Args(1, -1, "a machine or several"),
		RunE: func(c *cobra.Command, args []string) error {
			return at.callRequest(c, o, args...)
		},
	}
	at.add(c)
	o.add(c)
	c.Flags().Var((*portList)(&o.ports), "port", "a port to open; may be repeated")
	c.Flags().BoolVar(&o.noWait, "no-wait", false, "do not wait until it is open")
	c.Flags().DurationVar(&o.wait, "wait", 2*time.Minute, "how long to wait for the agents; approvals are waited for as long as they may take")
	jsonFlag(c, &o.asJSON)
	c.ValidArgsFunction = completeVMs(&at, tabConfigured, 0)
	return c
}

// add adds the flags that all have who ask for access.
func (o *requestOrder) add(c *cobra.Command) {
	c.Flags().StringArrayVar(&o.sources, "source", nil, "address or network to open for, * for any; may be repeated (default: where the control plane sees you)")
	c.Flags().StringVar(&o.length, "for", "", "for how long, like 90m or PT1H30M (default: 1h, or less where the policy says so)")
	c.Flags().StringVar(&o.reason, "reason", "", "why, for whoever approves and for the record")
}

func (o requestOrder) run(ctx context.Context, c *cobra.Command, control *client.Client, args []string) error {
	vms, err := findVMs(ctx, control, args)
	if err != nil {
		return err
	}
	say := c.ErrOrStderr()
	in := client.InitiateRequest{Justification: o.reason}
	for _, v := range vms {
		vm, err := o.machine(v)
		if err != nil {
			return err
		}
		in.VMs = append(in.VMs, vm)
	}
	if len(o.sources) == 0 {
		who, err := control.WhoAmI(ctx)
		if err != nil {
			return err
		}
		for _, v := range vms {
			if doubt := doubtful(who.Address, v, localAddress(ctx, v), ownAddresses()); doubt != "" {
				fmt.Fprintf(say, "warning: %s\n", doubt)
				break // the remedy is the same for all
			}
		}
	}
	made, err := control.Request(ctx, in)
	if err != nil {
		return err
	}
	if !o.noWait {
		if made, err = await(ctx, control, made, o.wait, progress(say, vms)); err != nil {
			if ctx.Err() != nil {
				err = errors.New("interrupted")
			}
			return fmt.Errorf("%w: the request stands, jitgate requests revoke %s ends it", err, strings.Join(idsOf(made), " "))
		}
	}
	if o.asJSON {
		err = printJSON(c.OutOrStdout(), made)
	} else {
		err = showRequests(c.OutOrStdout(), made, vms, time.Now())
	}
	if err == nil && !o.noWait {
		err = failed(made)
	}
	return err
}

// callRequest asks for access as jitgate request does.
func (f controlFlags) callRequest(c *cobra.Command, o requestOrder, words ...string) error {
	return f.call(c, func(ctx context.Context, control *client.Client) error { return o.run(ctx, c, control, words) })
}

// machine is what is asked of one machine.
func (o requestOrder) machine(v client.VM) (client.InitiateVM, error) {
	vm := client.InitiateVM{ID: v.ID}
	if v.Tab != tabConfigured {
		return vm, fmt.Errorf("%s has no guarded port: jitgate vm enable %s configures it, by somebody who may", printable(v.Name), printable(v.Name))
	}
	numbers := o.ports
	if len(numbers) == 0 {
		n, err := usualPort(v)
		if err != nil {
			return vm, err
		}
		numbers = []uint16{n}
	}
	for _, n := range numbers {
		p := client.InitiatePort{Number: n, AllowedSourceAddressPrefixes: o.sources}
		length, err := o.lengthFor(v, n)
		if err != nil {
			return vm, err
		}
		p.Duration = policy.FormatDuration(length)
		vm.Ports = append(vm.Ports, p)
	}
	return vm, nil
}

// lengthFor is how long a port is asked for: what was said, for the control
// plane to judge, or what is usual within the policy.
func (o requestOrder) lengthFor(v client.VM, port uint16) (time.Duration, error) {
	if o.length != "" {
		return isoDuration("--for", o.length)
	}
	if r := ruleOf(v, port); r != nil {
		if longest, err := policy.ParseDuration(r.MaxRequestAccessDuration); err == nil {
			return min(usualLength, longest), nil
		}
	}
	return usualLength, nil
}

// ruleOf is the rule for a port of a machine, nil for none.
func ruleOf(v client.VM, port uint16) *client.PortRule {
	i := slices.IndexFunc(v.Ports, func(p client.PortRule) bool { return p.Number == port })
	if i < 0 {
		return nil
	}
	return &v.Ports[i]
}

// usualPort is the port that somebody means who names none.
func usualPort(v client.VM) (uint16, error) {
	first, second := uint16(sshPort), uint16(rdpPort)
	if strings.EqualFold(v.OS, "windows") {
		first, second = second, first
	}
	switch {
	case len(v.Ports) == 1:
		return v.Ports[0].Number, nil
	case ruleOf(v, first) != nil:
		return first, nil
	case ruleOf(v, second) != nil:
		return second, nil
	}
	var numbers portList
	for _, p := range v.Ports {
		numbers = append(numbers, p.Number)
	}
	return 0, usage.Errorf("%s guards %s: say which with --port", printable(v.Name), numbers.String())
}

// carrierGrade is what providers put their customers behind (RFC 6598).
var carrierGrade = netip.MustParsePrefix("100.64.0.0/10")

// doubtful says why the address that the control plane sees may not be the one
// that the machine will see, with the remedy; empty where nothing speaks for
// that. local is the address of this machine towards the other, if it is known,
// own are all that this machine has.
func doubtful(seen string, v client.VM, local netip.Addr, own []netip.Addr) string {
	at, err := netip.ParseAddr(seen)
	if err != nil {
		return "the control plane does not know where you come from: say it with --source"
	}
	const remedy = ": if you do not get in, name your address or your organization's range with --source"
	private := func(a netip.Addr) bool { return a.IsPrivate() || a.IsLinkLocalUnicast() }
	switch mine := slices.Contains(own, at); {
	case mine && local.IsValid() && local != at && local.Is4() == at.Is4():
		return fmt.Sprintf("the control plane sees you at %s, but this machine reaches %s from %s: if you do not get in, use --source %s", at, printable(v.Name), local, local)
	case at.IsLoopback() && !(local.IsValid() && local.IsLoopback()):
		return fmt.Sprintf("the control plane sees you at %s, which is itself, or a proxy on it%s", at, remedy)
	case carrierGrade.Contains(at):
		return fmt.Sprintf("the control plane sees you at %s, behind your provider's shared address (CGNAT): the machine may see another%s", at, remedy)
	case private(at) && !mine:
		return fmt.Sprintf("the control plane sees you at %s, which is private and not this machine's: a proxy stands between%s", at, remedy)
	case local.IsValid() && private(local) && !mine && !private(at):
		return fmt.Sprintf("the control plane sees you at %s, but this machine reaches %s from %s: if you do not get in, use --source %s", at, printable(v.Name), local, local)
	}
	return ""
}

// localAddress is where this machine's packets to another come from, if that
// has an address inside and there is a way. Nothing is sent.
func localAddress(ctx context.Context, v client.VM) netip.Addr {
	to, err := netip.ParseAddr(v.Address)
	if err != nil {
		return netip.Addr{}
	}
	return towards(ctx, to)
}

func towards(ctx context.Context, to netip.Addr) netip.Addr {
	conn, err := new(net.Dialer).DialContext(ctx, "udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer conn.Close()
	from, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return from.Addr().Unmap().WithZone("")
}

// ownAddresses are those of this machine.
func ownAddresses() (own []netip.Addr) {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return nil
	}
	for _, a := range all {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			own = append(own, p.Addr().Unmap().WithZone(""))
		}
	}
	return own
}

// Between two looks at a request there is this long, at first and at last.
const (
	firstLook = 40 * time.Millisecond
	lastLook  = 2 * time.Second
)

// await looks at requests until each port of them is open, or will not be. It
// waits as long as wait for agents, and for approval as long as that may take.
// What it returns is the newest it knows, with an error too.
func await(ctx context.Context, control *client.Client, all []client.Request, wait time.Duration, tell func(vm string, p client.RequestPort)) ([]client.Request, error) {
	all = slices.Clone(all)
	asked := time.Now()
	for pause := firstLook; ; pause = min(pause*3/2, lastLook) {
		undecided, unapproved := false, false
		for _, r := range all {
			for _, vm := range r.VMs {
				for _, p := range vm.Ports {
					tell(vm.ID, p)
					undecided = undecided || p.Status == "Initiating" && p.Refused == ""
					unapproved = unapproved || p.Status == "Pending"
				}
			}
		}
		if !undecided && !unapproved {
			return all, nil
		}
		if unapproved {
			asked = time.Now()
		}
		if time.Since(asked) > wait {
			return all, fmt.Errorf("no agent said within %s that it is open", short(wait))
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return all, ctx.Err()
		}
		for i := range all {
			r, err := control.GetRequest(ctx, all[i].ID)
			if err != nil {
				return all, err
			}
			all[i] = r
		}
	}
}

// progress says what becomes of a request, each change once.
func progress(out io.Writer, vms []client.VM) func(string, client.RequestPort) {
	last := map[string]string{}
	return func(id string, p client.RequestPort) {
		key := id + " " + strconv.Itoa(int(p.Number))
		state := statusCell(p).text
		if last[key] == state {
			return
		}
		last[key] = state
		name, note := id, ""
		for _, v := range vms {
			if strings.EqualFold(v.ID, id) {
				name = v.Name
				if p.Status == "Initiating" && v.AgentStatus != agentConnected {
					note = " (agent: " + v.AgentStatus + ")"
				}
			}
		}
		fmt.Fprintf(out, "%s port %d: %s%s\n", printable(name), p.Number, state, printable(note))
	}
}

func idsOf(all []client.Request) (ids []string) {
	for _, r := range all {
		ids = append(ids, r.ID)
	}
	return ids
}

// failed says that not all was opened that was asked for.
func failed(all []client.Request) error {
	var wrong []string
	for _, r := range all {
		for _, vm := range r.VMs {
			for _, p := range vm.Ports {
				if p.Status != "Initiated" {
					wrong = append(wrong, fmt.Sprintf("port %d of %s: %s", p.Number, nameOf(vm.ID), statusCell(p).text))
				}
			}
		}
	}
	if wrong == nil {
		return nil
	}
	return errors.New("not opened: " + strings.Join(wrong, ", "))
}

// nameOf is the name at the end of a machine's id.
func nameOf(id string) string { return printable(id[strings.LastIndex(id, "/")+1:]) }

// showRequests shows requests, and how to connect where the machines are known.
func showRequests(out io.Writer, all []client.Request, vms []client.VM, now time.Time) error {
	t := table{head: []string{"REQUEST", "MACHINE", "PORT", "STATE", "SOURCES", "LEFT", "BY", "REASON"}}
	if vms != nil {
		t.head = append(t.head[:6], "CONNECT")
	}
	for _, r := range all {
		for _, vm := range r.VMs {
			for _, p := range vm.Ports {
				row := []cell{plain(r.ID), plain(nameOf(vm.ID)), plain(strconv.Itoa(int(p.Number))), statusCell(p),
					plain(sourcesOf(p.AllowedSourceAddressPrefix, p.AllowedSourceAddressPrefixes)), plain(left(p, now))}
				if vms == nil {
					row = append(row, plain(cmp.Or(r.Requestor, r.Principal)), plain(r.Justification))
				} else {
					i := slices.IndexFunc(vms, func(v client.VM) bool { return strings.EqualFold(v.ID, vm.ID) })
					row = append(row, plain(directly(vms[i], p)))
				}
				t.add(row...)
			}
		}
	}
	return t.print(out)
}

// directly is how to connect to a port that is open.
func directly(v client.VM, p client.RequestPort) string {
	address, port := cmp.Or(v.PublicIPAddress, v.Address, v.Name), cmp.Or(p.MappedPort, p.Number)
	switch {
	case p.Number == sshPort && port == sshPort:
		return "ssh " + address
	case p.Number == sshPort:
		return fmt.Sprintf("ssh -p %d %s", port, address)
	case p.Number == rdpPort:
		return "jitgate rdp " + v.Name
	}
	return joinPort(address, port)
}

func newRequests() *cobra.Command {
	return usage.Group(&cobra.Command{
		Use:   "requests",
		Short: "See requests for access, and approve, deny, extend or end them",
		Example: `  jitgate requests list --open
  jitgate requests approve 01JD9V3K7Q8Z`,
	}, newRequestsList(), newRequestsShow(), newRequestsApprove(), newRequestsDeny(), newRequestsRevoke(), newRequestsExtend())
}

func newRequestsList() *cobra.Command {
	var at controlFlags
	var f client.RequestFilter
	var vm, since string
	var limit int
	var asJSON bool
	c := &cobra.Command{
		Use:   "list",
		Short: "List requests, the newest first",
		Example: `  jitgate requests list --status Pending
  jitgate requests list --vm web1 --since 24h --json`,
		Args: usage.Args(0, 0, "no argument"),
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if f.Since, err = sinceTime(since, time.Now()); err != nil {
				return err
			}
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				if vm != "" {
					v, _, err := findVM(ctx, control, vm)
					if err != nil {
						return err
					}
					f.VM = v.ID
				}
				all := []client.Request{}
				for r, err := range control.Requests(ctx, f) {
					if err != nil {
						return err
					}
					if all = append(all, r); len(all) == limit {
						break
					}
				}
				if asJSON {
					return printJSON(c.OutOrStdout(), all)
				}
				return showRequests(c.OutOrStdout(), all, nil, time.Now())
			})
		},
	}
	at.add(c)
	c.Flags().StringVar(&vm, "vm", "", "only for this machine")
	c.Flags().StringVar(&f.Scope, "scope", "", "only below this subscription or resource group")
	c.Flags().StringVar(&f.Status, "status", "", "only Pending, Initiating, Initiated or Revoked")
	c.Flags().BoolVar(&f.Mine, "mine", false, "only your own")
	c.Flags().BoolVar(&f.Open, "open", false, "only those that are not over")
	c.Flags().StringVar(&since, "since", "", "only those made since: 24h, or a time like 2026-11-27T08:00:00Z")
	c.Flags().IntVar(&limit, "limit", 100, "how many at most, 0 for all")
	jsonFlag(c, &asJSON)
	// The flag is there.
	_ = c.RegisterFlagCompletionFunc("vm", completeVMs(&at, tabConfigured, 0))
	return c
}

// sinceTime reads a time, or how long ago it was; nothing is none.
func sinceTime(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			return now.AddDate(0, 0, -int(n)), nil
		}
	}
	d, err := isoDuration("--since", s)
	if err != nil {
		return time.Time{}, usage.Errorf("--since %q is not a length of time like 24h or 7d, nor a time like 2026-11-27T08:00:00Z", s)
	}
	return now.Add(-d), nil
}

// verb is a command about requests by their ids. Each is done by itself: the
// error is of the first that failed, after all were tried.
func verb(use, short, example string, most int, flags func(*cobra.Command), each func(context.Context, *client.Client, string) (client.Request, error)) *cobra.Command {
	var at controlFlags
	var asJSON bool
	c := &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args:    usage.Args(1, most, "the id of a request"),
		RunE: func(c *cobra.Command, ids []string) error {
			return at.call(c, func(ctx context.Context, control *client.Client) error {
				done := []client.Request{}
				var wrong error
				for _, id := range ids {
					r, err := each(ctx, control, id)
					if err != nil {
						wrong = errors.Join(wrong, fmt.Errorf("%s: %w", printable(id), err))
						continue
					}
					done = append(done, r)
				}
				if len(done) > 0 || wrong == nil {
					err := printRequests(c, done, asJSON)
					wrong = errors.Join(wrong, err)
				}
				return wrong
			})
		},
	}
	at.add(c)
	flags(c)
	jsonFlag(c, &asJSON)
	c.ValidArgsFunction = completeRequests(&at)
	return c
}

func printRequests(c *cobra.Command, all []client.Request, asJSON bool) error {
	if asJSON {
		return printJSON(c.OutOrStdout(), all)
	}
	return showRequests(c.OutOrStdout(), all, nil, time.Now())
}

// completeRequests completes ids of requests that are not over.
func completeRequests(at *controlFlags) cobra.CompletionFunc {
	return func(c *cobra.Command, _ []string, typed string) (words []string, directive cobra.ShellCompDirective) {
		directive = cobra.ShellCompDirectiveNoFileComp
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
		for r, err := range control.Requests(ctx, client.RequestFilter{Open: true, PageSize: completionMost}) {
			if err != nil || len(words) == completionMost {
				break
			}
			if strings.HasPrefix(r.ID, typed) && len(r.VMs) > 0 {
				words = append(words, cobra.CompletionWithDesc(r.ID, nameOf(r.VMs[0].ID)+" by "+printable(r.Requestor)))
			}
		}
		return words, directive
	}
}

func newRequestsShow() *cobra.Command {
	return verb("show ID…", "Show requests", "  jitgate requests show 01JD9V3K7Q8Z --json", -1, func(*cobra.Command) {},
		func(ctx context.Context, control *client.Client, id string) (client.Request, error) {
			return control.GetRequest(ctx, id)
		})
}

func newRequestsApprove() *cobra.Command {
	var comment, most string
	return verb("approve ID…", "Agree to requests that wait for it", "  jitgate requests approve 01JD9V3K7Q8Z --at-most 30m --comment fine", -1,
		func(c *cobra.Command) {
			c.Flags().StringVar(&comment, "comment", "", "what to say, for the record")
			c.Flags().StringVar(&most, "at-most", "", "for no longer than this, like 30m")
		},
		func(ctx context.Context, control *client.Client, id string) (client.Request, error) {
			iso := ""
			if most != "" {
				d, err := isoDuration("--at-most", most)
				if err != nil {
					return client.Request{}, err
				}
				iso = policy.FormatDuration(d)
			}
			return control.Approve(ctx, id, comment, iso)
		})
}

func newRequestsDeny() *cobra.Command {
	var comment string
	return verb("deny ID…", "End requests that wait for approval", "  jitgate requests deny 01JD9V3K7Q8Z --comment 'use web2'", -1,
		func(c *cobra.Command) {
			c.Flags().StringVar(&comment, "comment", "", "why, for who asked and for the record")
		},
		func(ctx context.Context, control *client.Client, id string) (client.Request, error) {
			return control.Deny(ctx, id, comment)
		})
}

func newRequestsRevoke() *cobra.Command {
	var reason string
	return verb("revoke ID…", "Close the ports of requests now, and end their sessions", "  jitgate requests revoke 01JD9V3K7Q8Z --reason done", -1,
		func(c *cobra.Command) { c.Flags().StringVar(&reason, "reason", "", "why, for the record") },
		func(ctx context.Context, control *client.Client, id string) (client.Request, error) {
			return control.Revoke(ctx, id, reason)
		})
}

func newRequestsExtend() *cobra.Command {
	var length, reason string
	return verb("extend ID", "Let a request of your own end later", "  jitgate requests extend 01JD9V3K7Q8Z --for 1h --reason 'more to do'", 1,
		func(c *cobra.Command) {
			c.Flags().StringVar(&length, "for", "", "until so long from now, like 1h")
			c.Flags().StringVar(&reason, "reason", "", "why, for the record")
		},
		func(ctx context.Context, control *client.Client, id string) (client.Request, error) {
			if length == "" {
				return client.Request{}, usage.Errorf("--for is missing: see jitgate requests extend --help")
			}
			d, err := isoDuration("--for", length)
			if err != nil {
				return client.Request{}, err
			}
			return control.Extend(ctx, id, policy.FormatDuration(d), reason)
		})
}
