package web

import (
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// --- asking ---

// askData is what the pane to request access shows.
type askData struct {
	VMs           []askVM
	Mine          string // the caller's address; empty: not known
	Private       bool   // it is one that others have too
	Justification string
	JustError     string
	Error         *control.Error
}

// Placed reports whether what was refused is said beside what it is about.
func (d askData) Placed() bool {
	return d.JustError != "" || slices.ContainsFunc(d.VMs, func(v askVM) bool {
		return v.Error != "" || slices.ContainsFunc(v.Ports, func(p askPort) bool { return p.Error != "" })
	})
}

// askVM is a machine of the pane.
type askVM struct {
	control.VMView
	Ports []askPort
	Error string
}

// askPort is a port of it.
type askPort struct {
	Rule    control.PortRule
	On      bool
	Own     bool   // from the caller's address
	Range   string // else from these
	For     string
	Lengths []string
	Error   string
}

// lengths are offered as far as the policy lets through.
var lengths = []string{"PT15M", "PT30M", "PT1H", "PT2H", "PT3H", "PT4H", "PT6H", "PT8H", "PT12H", "P1D"}

// lengthsUpTo lists lengths of time that are no longer than the longest, and
// the longest.
func lengthsUpTo(longest string) []string {
	most, err := policy.ParseDuration(longest)
	if err != nil {
		return nil
	}
	var out []string
	for _, l := range lengths {
		if d, err := policy.ParseDuration(l); err == nil && d < most {
			out = append(out, l)
		}
	}
	return append(out, longest)
}

// cgnat is what providers put between their customers and the internet.
var cgnat = netip.MustParsePrefix("100.64.0.0/10")

// askFor makes the pane as it is before anybody typed.
func (c *call) askFor(views []control.VMView) askData {
	d := askData{}
	if a := c.caller.Address; a.IsValid() {
		d.Mine = a.String()
		d.Private = a.IsPrivate() || a.IsLoopback() || a.IsLinkLocalUnicast() || cgnat.Contains(a)
	}
	for _, v := range views {
		vm := askVM{VMView: v}
		for i, rule := range v.Ports {
			p := askPort{Rule: rule, On: i == 0, Own: true, Lengths: lengthsUpTo(rule.MaxDuration)}
			if n := len(p.Lengths); n > 0 {
				p.For = p.Lengths[min(2, n-1)]
			}
			vm.Ports = append(vm.Ports, p)
		}
		d.VMs = append(d.VMs, vm)
	}
	return d
}

func askPage(c *call) error {
	views, err := c.chosenVMs(c.r.URL.Query()["vm"])
	if err != nil {
		return err
	}
	return c.showAsk(http.StatusOK, c.askFor(views))
}

func (c *call) showAsk(status int, d askData) error {
	c.render(status, "ask", view{Title: "Request access", Here: "vms", Data: d})
	return nil
}

// ask is the form of askPage. What the policy refuses is said where it was
// asked for, and nothing is recorded of it but that it was refused.
func ask(c *call) error {
	f := c.r.PostForm
	views, err := c.chosenVMs(f["vm"])
	if err != nil {
		return err
	}
	d := c.askFor(views)
	d.Justification = f.Get("justification")
	in := control.InitiateInput{Justification: d.Justification}
	type place struct{ vm, port int }
	var places [][]place // in d, of what is in the input
	for i := range d.VMs {
		vm := &d.VMs[i]
		asked := control.InitiateVM{ID: vm.ID.String()}
		var of []place
		for j := range vm.Ports {
			p := &vm.Ports[j]
			at := fmt.Sprintf(".%d.%d", i, p.Rule.Number)
			p.On, p.Own, p.Range, p.For = f.Get("on"+at) != "", f.Get("source"+at) != "range", strings.TrimSpace(f.Get("range"+at)), f.Get("for"+at)
			if !p.On {
				continue
			}
			port := control.InitiatePort{Number: p.Rule.Number, Duration: p.For}
			if !p.Own {
				if port.Prefixes = prefixesOf(p.Range); len(port.Prefixes.All()) == 0 {
					p.Error = "Say which addresses: 198.51.100.7, or 198.51.100.0/24."
					d.Error = control.Refuse(control.Invalid, "NoSource", "%s, port %d: %s", vm.ID.Name, p.Rule.Number, p.Error)
				}
			}
			asked.Ports = append(asked.Ports, port)
			of = append(of, place{i, j})
		}
		if len(asked.Ports) > 0 {
			in.VMs, places = append(in.VMs, asked), append(places, of)
		}
	}
	if len(in.VMs) == 0 {
		d.Error = control.Refuse(control.Invalid, "NoPort", "Tick at least one port.")
	}
	if d.Error != nil {
		return c.showAsk(http.StatusBadRequest, d)
	}
	made, err := c.Engine.InitiateVM(c.ctx, c.caller, in)
	if err == nil {
		if len(made) == 1 {
			return c.see(Prefix + "requests/" + made[0].ID)
		}
		return c.see(link("requests"))
	}
	d.Error = c.refusal(err)
	switch i, ok := index(d.Error.Target, "virtualMachines"); {
	case d.Error.Target == "justification":
		d.JustError = brief(d.Error)
	case ok && i < len(places):
		if j, ok := index(d.Error.Target, "ports"); ok && j < len(places[i]) {
			d.VMs[places[i][j].vm].Ports[places[i][j].port].Error = brief(d.Error)
		} else {
			d.VMs[places[i][0].vm].Error = brief(d.Error)
		}
	default:
		d.markPort(d.Error)
	}
	return c.showAsk(statusOf(d.Error), d)
}

// brief is a refusal as it is said beside what it is about: without the names
// of what it is about.
func brief(e *control.Error) string {
	says := e.Message
	if i := strings.LastIndex(says, "': "); i >= 0 && strings.EqualFold(e.Target, vmNamed(says[:i])) {
		says = says[i+len("': "):]
	}
	return strings.TrimPrefix(says, e.Target+": ")
}

// vmNamed is what a message names last.
func vmNamed(says string) string { return says[strings.LastIndexByte(says, '\'')+1:] }

// portNamed is how the engine names the port that is outside a policy.
var portNamed = regexp.MustCompile(`[Pp]ort (\d+)`)

// markPort puts a refusal beside the port it is about.
func (d *askData) markPort(e *control.Error) {
	number := ""
	if m := portNamed.FindStringSubmatch(e.Message); m != nil {
		number = m[1]
	}
	for i := range d.VMs {
		vm := &d.VMs[i]
		if !strings.EqualFold(e.Target, vm.ID.String()) && !strings.Contains(e.Message, "'"+vm.ID.String()+"'") {
			continue
		}
		for j := range vm.Ports {
			if p := &vm.Ports[j]; p.On && strconv.Itoa(int(p.Rule.Number)) == number {
				p.Error = brief(e)
				return
			}
		}
		vm.Error = brief(e)
	}
}

// --- what was asked ---

// requestsData is what the list of requests shows.
type requestsData struct {
	Show     string // open, waiting or all
	Requests []control.Request
	Next     string
}

// shown are the lists there are.
var shown = []struct{ Name, Label string }{{"open", "Open"}, {"waiting", "Waiting for approval"}, {"all", "All"}}

// Lists are the lists there are.
func (requestsData) Lists() []struct{ Name, Label string } { return shown }

func requestsPage(c *call) error {
	d := requestsData{Show: c.query("show")}
	f := control.RequestFilter{Newest: true, After: c.query("after"), Limit: pageRows}
	switch d.Show {
	case "waiting":
		f.Status, f.Open = control.Pending, true
	case "all":
	default:
		d.Show, f.Open = "open", true
	}
	var err error
	if d.Requests, d.Next, err = c.Engine.ListRequests(c.ctx, c.caller, f); err != nil {
		return err
	}
	return c.ok("requests", view{Title: "Requests", Here: "requests", Live: true, Data: d})
}

// requestData is what the page of one request shows.
type requestData struct {
	control.Request
	Waits      bool
	MayJudge   bool
	MayRevoke  bool
	MayExtend  bool
	Lengths    []string
	Lines      []control.Activity // of the log, about it
	Used       []control.Activity // those that say what it was used for
	Error      *control.Error
	Ways       []waysTo
	MayRead    bool
	Comment    string
	ErrorAbout string // the form that was refused
}

// waysTo are how to connect to a machine of a request.
type waysTo struct {
	VM   control.VMID
	Ways []way
}

// Says is where the request stands in one sentence, for who cannot see it
// change.
func (d requestData) Says() string {
	var all []string
	for _, vm := range d.VMs {
		for _, p := range vm.Ports {
			all = append(all, fmt.Sprintf("%s port %d: %s", vm.ID.Name, p.Number, stateOf(p).Word))
		}
	}
	return strings.Join(all, ", ")
}

func requestPage(c *call) error {
	r, err := c.Engine.GetRequest(c.ctx, c.caller, c.r.PathValue("id"))
	if err != nil {
		return err
	}
	return c.showRequest(http.StatusOK, r, requestData{})
}

// linesShown are how many lines of the log a request shows.
const linesShown = 200

func (c *call) showRequest(status int, r control.Request, d requestData) error {
	d.Request = r
	own := r.Principal == c.caller.ID
	all := func(a control.Action) bool {
		return !slices.ContainsFunc(r.VMs, func(v control.RequestVM) bool { return !c.caller.May(a, v.ID.Scope()) })
	}
	longest := time.Duration(0)
	for _, vm := range r.VMs {
		for _, p := range vm.Ports {
			d.Waits = d.Waits || p.Status == control.Pending
			longest = max(longest, p.Length, p.End.Sub(r.Start))
		}
	}
	d.MayJudge = d.Waits && !own && all(control.ActionApprove)
	d.MayRevoke = r.Open() && (own || all(control.ActionRevoke))
	d.MayExtend = r.Open() && own && r.Approval == nil
	for _, l := range lengths {
		if by, err := policy.ParseDuration(l); err == nil && (by <= longest || !d.Waits) {
			d.Lengths = append(d.Lengths, l)
		}
	}
	for _, vm := range r.VMs {
		if err := c.tellVM(vm, &d); err != nil {
			return err
		}
	}
	c.render(status, "request", view{Title: "Request by " + strings.TrimSpace(r.Requestor+" ") + " of " + r.Start.UTC().Format("2006-01-02 15:04 MST"), Here: "requests", Live: d.Error == nil, Data: d})
	return nil
}

// tellVM adds what is known of one machine of a request: how to connect, and
// what the log has about it. Who may not read that is shown the rest.
func (c *call) tellVM(vm control.RequestVM, d *requestData) error {
	if c.caller.May(control.ActionVMRead, vm.ID.Scope()) {
		v, err := c.Engine.GetVM(c.ctx, c.caller, vm.ID)
		if e := control.AsError(err); err != nil && (e == nil || e.Kind != control.NotFound) {
			return err
		}
		to := waysTo{VM: vm.ID}
		for _, rule := range v.Ports {
			if slices.ContainsFunc(vm.Ports, func(p control.RequestPort) bool {
				return p.Number == rule.Number && p.Status == control.Initiated
			}) {
				to.Ways = append(to.Ways, way{Rule: rule, Commands: commands(v, rule)})
			}
		}
		if len(to.Ways) > 0 {
			d.Ways = append(d.Ways, to)
		}
	}
	if !c.caller.May(control.ActionActivity, vm.ID.Scope()) {
		return nil
	}
	d.MayRead = true
	f := control.ActivityFilter{Scope: vm.ID.Scope(), From: d.Start.Add(-time.Minute), Limit: linesShown}
	lines, _, err := c.Engine.ListActivity(c.ctx, c.caller, f)
	if err != nil {
		return err
	}
	for _, l := range lines {
		if l.Request == d.ID || slices.ContainsFunc(vm.Ports, func(p control.RequestPort) bool { return p.GrantID != "" && l.Grant == p.GrantID }) {
			d.Lines = append(d.Lines, l)
			if l.Event == "grant.used" {
				d.Used = append(d.Used, l)
			}
		}
	}
	return nil
}

// change does one thing to a request and shows it, with the refusal if it was
// refused.
func (c *call) change(about string, f func(id string) (control.Request, error)) error {
	id := c.r.PathValue("id")
	r, err := f(id)
	if err == nil {
		return c.see(Prefix + "requests/" + r.ID)
	}
	e := c.refusal(err)
	r, err = c.Engine.GetRequest(c.ctx, c.caller, id)
	if err != nil {
		return e
	}
	return c.showRequest(statusOf(e), r, requestData{Error: e, ErrorAbout: about, Comment: c.r.PostForm.Get("comment")})
}

// length reads a length of time from a form; nothing is 0.
func length(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := policy.ParseDuration(s)
	if err != nil {
		return 0, control.Refuse(control.Invalid, "InvalidDuration", "%v.", err)
	}
	return d, nil
}

func approve(c *call) error {
	return c.change("approve", func(id string) (control.Request, error) {
		atMost, err := length(c.r.PostForm.Get("atMost"))
		if err != nil {
			return control.Request{}, err
		}
		return c.Engine.Approve(c.ctx, c.caller, id, c.r.PostForm.Get("comment"), atMost)
	})
}

func deny(c *call) error {
	return c.change("deny", func(id string) (control.Request, error) {
		return c.Engine.Deny(c.ctx, c.caller, id, c.r.PostForm.Get("comment"))
	})
}

func revoke(c *call) error {
	return c.change("revoke", func(id string) (control.Request, error) {
		return c.Engine.Revoke(c.ctx, c.caller, id, c.r.PostForm.Get("comment"))
	})
}

func extend(c *call) error {
	return c.change("extend", func(id string) (control.Request, error) {
		by, err := length(c.r.PostForm.Get("by"))
		if err != nil {
			return control.Request{}, err
		}
		return c.Engine.Extend(c.ctx, c.caller, id, by, c.r.PostForm.Get("comment"))
	})
}
