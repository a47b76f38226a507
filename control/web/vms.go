package web

import (
	"cmp"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// vmsData is what the list of machines shows.
type vmsData struct {
	Tabs   []tabData
	Tab    control.Tab
	Search string
	Scope  string
	After  string // this page is behind this Key
	Next   string // and the next one behind this; empty: there is none
	VMs    []vmRow
	Error  *control.Error // the filter cannot be read
}

// vmRow is a machine of the list, and what the caller is offered.
type vmRow struct {
	control.VMView
	MayEdit, MayRead bool
}

type tabData struct {
	Tab   control.Tab
	Label string
	Says  string // what is in it
	Count int
}

var tabs = []tabData{
	{Tab: control.Configured, Label: "Configured", Says: "Just-in-time access guards these: nobody connects to a guarded port without a request."},
	{Tab: control.NotConfigured, Label: "Not configured", Says: "These can be guarded and are not."},
	{Tab: control.Unsupported, Label: "Unsupported", Says: "These cannot be guarded, or just-in-time access is switched off around them."},
}

// Says is what is in the tab that is shown.
func (d vmsData) Says() string {
	return tabs[slices.IndexFunc(tabs, func(t tabData) bool { return t.Tab == d.Tab })].Says
}

func vmsPage(c *call) error {
	d := vmsData{Tab: control.Tab(c.query("tab")), Search: strings.TrimSpace(c.query("q")), Scope: strings.TrimSpace(c.query("scope")), After: c.query("after")}
	if !slices.ContainsFunc(tabs, func(t tabData) bool { return t.Tab == d.Tab }) {
		d.Tab = control.Configured
	}
	scope, err := scopeOf(d.Scope)
	if err != nil {
		d.Error = control.AsError(err)
		d.Tabs = tabs
		c.render(http.StatusBadRequest, "vms", view{Title: "Virtual machines", Here: "vms", Data: d})
		return nil
	}
	counts, err := c.Engine.CountVMs(c.ctx, c.caller, scope)
	if err != nil {
		return err
	}
	for _, t := range tabs {
		t.Count = counts[t.Tab]
		d.Tabs = append(d.Tabs, t)
	}
	page, next, err := c.Engine.ListVMs(c.ctx, c.caller, control.VMFilter{Scope: scope, Tab: d.Tab, Search: d.Search, After: d.After, Limit: pageRows})
	if err != nil {
		return err
	}
	d.Next = next
	for _, v := range page {
		d.VMs = append(d.VMs, vmRow{v, c.mayEdit(v.ID.Scope()), c.caller.May(control.ActionActivity, v.ID.Scope())})
	}
	return c.ok("vms", view{Title: "Virtual machines", Here: "vms", Live: true, Data: d})
}

// scopeOf reads a scope that a person typed; nothing is Everywhere.
func scopeOf(s string) (control.Scope, error) {
	if s == "" {
		return control.Everywhere, nil
	}
	scope, err := control.ParseScope(strings.TrimSuffix(s, "/"))
	if s == "/" || err == nil {
		return cmp.Or(scope, control.Everywhere), nil
	}
	e := control.Refuse(control.Invalid, "InvalidScope", "%v.", err)
	e.Target = "scope"
	return "", e
}

// vmData is what the page of one machine shows.
type vmData struct {
	control.VMView
	Ways     []way
	Requests []control.Request // the newest
	MayAsk   bool
	MayEdit  bool
	MayRead  bool // its activity
	// MayEnroll says that it has no agent, and that the caller may have one join.
	MayEnroll bool
}

// way is how to connect to a port.
type way struct {
	Rule     control.PortRule
	Commands []command
	Open     []control.OpenPort
}

type command struct{ Name, Text string }

func vmPage(c *call) error {
	id, err := vmOf(c.query("id"))
	if err != nil {
		return err
	}
	v, err := c.Engine.GetVM(c.ctx, c.caller, id)
	if err != nil {
		return err
	}
	scope := v.ID.Scope()
	d := vmData{VMView: v, MayEdit: c.mayEdit(scope), MayRead: c.caller.May(control.ActionActivity, scope)}
	d.MayAsk = c.caller.May(control.ActionInitiate, scope) || slices.ContainsFunc(v.Policies, func(p control.PolicyID) bool { return c.caller.May(control.ActionInitiate, p.Scope()) })
	d.MayEnroll = v.VM.Agent == nil && c.caller.May(control.ActionEnroll, scope)
	for _, rule := range v.Ports {
		w := way{Rule: rule, Commands: commands(v, rule)}
		for _, o := range v.Open {
			if o.Number == rule.Number {
				w.Open = append(w.Open, o)
			}
		}
		d.Ways = append(d.Ways, w)
	}
	if d.Requests, _, err = c.Engine.ListRequests(c.ctx, c.caller, control.RequestFilter{VM: &id, Newest: true, Limit: 10}); err != nil {
		return err
	}
	return c.ok("vm", view{Title: v.ID.Name, Here: "vms", Live: true, Data: d})
}

// mayEdit reports whether the caller may say which ports of a machine are
// guarded.
func (c *call) mayEdit(s control.Scope) bool {
	return c.caller.May(control.ActionWrite, s) && c.caller.May(control.ActionVMWrite, s)
}

// commands are what connects to a port, to be copied. Nothing in them is other
// than the engine lets through as an address or a name.
func commands(v control.VMView, rule control.PortRule) []command {
	port := rule.Number
	host := cmp.Or(v.PublicIPAddress, v.Address, v.ID.Name)
	if v.PublicIPAddress != "" && rule.MappedPort != 0 {
		port = rule.MappedPort
	}
	switch rule.Number {
	case 22:
		ssh := "ssh " + host
		if port != 22 {
			ssh = "ssh -p " + strconv.Itoa(int(port)) + " " + host
		}
		return []command{{"ssh", ssh}, {"jitgate", "jitgate ssh " + v.ID.Name}}
	case 3389:
		if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
			host = "[" + host + "]"
		}
		if port != 3389 {
			host += ":" + strconv.Itoa(int(port))
		}
		return []command{{"mstsc", "mstsc /v:" + host}, {"jitgate", "jitgate rdp " + v.ID.Name}}
	case 5985, 5986:
		ps := "Enter-PSSession -ComputerName " + host + " -Port " + strconv.Itoa(int(port))
		if rule.Number == 5986 {
			ps += " -UseSSL"
		}
		return []command{{"PowerShell", ps}}
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return []command{{"address", netip.AddrPortFrom(a, port).String()}}
	}
	return []command{{"address", host + ":" + strconv.Itoa(int(port))}}
}

// --- which ports are guarded ---

// recommended are the ports that should be guarded wherever something listens.
var recommended = []struct {
	number uint16
	says   string
}{{22, "SSH"}, {3389, "RDP"}, {5985, "WinRM"}, {5986, "WinRM over TLS"}}

const (
	defaultLongest = "PT3H"
	spareRows      = 2 // for ports that are not recommended
	maxRows        = 120
)

// portsData is what the pane of guarded ports shows.
type portsData struct {
	VMs      []control.VMView
	Rows     []portRow
	Location string // that is to be given to machines without one
	Lacks    bool   // one has none
	Revision string // of the one machine that is edited
	Error    *control.Error
	Failed   []failure
}

// failure is a machine whose ports stayed as they were.
type failure struct {
	Name   string
	Error  *control.Error
	Placed bool // it is said beside what it is about
}

// portRow is a line of the form.
type portRow struct {
	On       bool
	Number   string
	Says     string
	Protocol string
	Sources  string
	Longest  string
	Sessions string
	Error    string
}

// chosenVMs are the machines that the query or the form names.
func (c *call) chosenVMs(names []string) ([]control.VMView, error) {
	if len(names) == 0 {
		return nil, control.Refuse(control.Invalid, "NothingChosen", "Choose at least one virtual machine.")
	}
	if len(names) > pageRows {
		return nil, control.Refuse(control.Invalid, "TooMany", "Choose at most %d virtual machines at once.", pageRows)
	}
	var views []control.VMView
	for _, name := range names {
		id, err := vmOf(name)
		if err != nil {
			return nil, err
		}
		v, err := c.Engine.GetVM(c.ctx, c.caller, id)
		if err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(views, func(o control.VMView) bool { return o.ID.Key() == v.ID.Key() }) {
			views = append(views, v)
		}
	}
	return views, nil
}

// defaults are what a machine's operating system lets one expect: one port, for
// three hours, from anywhere.
func defaults(v control.VMView) []control.PortRule {
	number := uint16(22)
	if v.OS == "Windows" {
		number = 3389
	}
	return []control.PortRule{{Number: number, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "*"}, MaxDuration: defaultLongest}}
}

func rowOf(r control.PortRule, on bool) portRow {
	return portRow{On: on, Number: strconv.Itoa(int(r.Number)), Protocol: string(r.Protocol), Sources: strings.Join(r.All(), ", "), Longest: r.MaxDuration,
		Sessions: string(cmp.Or(r.Sessions, policy.Keep))}
}

func portsPage(c *call) error {
	views, err := c.chosenVMs(c.r.URL.Query()["vm"])
	if err != nil {
		return err
	}
	d := portsData{VMs: views}
	rules := views[0].Ports
	if len(rules) == 0 {
		rules = defaults(views[0])
	}
	if len(views) > 1 {
		rules = nil // each has its own: what is saved is for all
	} else {
		d.Revision = strconv.FormatUint(views[0].Revision, 10)
	}
	for _, r := range rules {
		d.Rows = append(d.Rows, rowOf(r, true))
	}
	for _, r := range recommended {
		n := strconv.Itoa(int(r.number))
		i := slices.IndexFunc(d.Rows, func(row portRow) bool { return row.Number == n })
		if i < 0 {
			i = len(d.Rows)
			d.Rows = append(d.Rows, rowOf(control.PortRule{Number: r.number, Protocol: policy.TCP, Prefixes: control.Prefixes{One: "*"}, MaxDuration: defaultLongest}, len(views) > 1))
		}
		d.Rows[i].Says = r.says
	}
	for range spareRows {
		d.Rows = append(d.Rows, portRow{Protocol: string(policy.TCP), Sources: "*", Longest: defaultLongest, Sessions: string(policy.Keep)})
	}
	return c.showPorts(http.StatusOK, d)
}

func (c *call) showPorts(status int, d portsData) error {
	d.Lacks = slices.ContainsFunc(d.VMs, func(v control.VMView) bool { return v.Location == "" && len(v.Ports) == 0 })
	title := fmt.Sprintf("Just-in-time access to %d virtual machines", len(d.VMs))
	if len(d.VMs) == 1 {
		title = "Just-in-time access to " + d.VMs[0].ID.Name
	}
	c.render(status, "ports", view{Title: title, Here: "vms", Data: d})
	return nil
}

// savePorts is the form of portsPage.
func savePorts(c *call) error {
	f := c.r.PostForm
	views, err := c.chosenVMs(f["vm"])
	if err != nil {
		return err
	}
	d := portsData{VMs: views, Location: strings.TrimSpace(f.Get("location")), Revision: f.Get("revision")}
	rows, err := strconv.Atoi(f.Get("rows"))
	if err != nil || rows < 0 || rows > maxRows {
		return control.Refuse(control.Invalid, "InvalidForm", "The form is not one of this page.")
	}
	var rules []control.PortRule
	var of []int // the row of each rule
	for i := range rows {
		at := "." + strconv.Itoa(i)
		row := portRow{On: f.Get("on"+at) != "", Number: strings.TrimSpace(f.Get("number" + at)), Protocol: f.Get("protocol" + at), Sources: strings.TrimSpace(f.Get("sources" + at)),
			Longest: f.Get("longest" + at), Sessions: f.Get("sessions" + at)}
		for _, r := range recommended {
			if row.Number == strconv.Itoa(int(r.number)) {
				row.Says = r.says
			}
		}
		d.Rows = append(d.Rows, row)
		if !row.On {
			continue
		}
		number, err := strconv.ParseUint(row.Number, 10, 16)
		if err != nil {
			number = 0 // the engine says what is wrong with it
		}
		rules = append(rules, control.PortRule{Number: uint16(number), Protocol: policy.Protocol(row.Protocol), Prefixes: prefixesOf(row.Sources),
			MaxDuration: row.Longest, Sessions: policy.Sessions(row.Sessions)})
		of = append(of, i)
	}
	do := f.Get("do")
	if do == "save" && len(rules) == 0 {
		d.Error = control.Refuse(control.Invalid, "NoPort", "Tick at least one port. To let everybody connect again, switch just-in-time access off.")
		return c.showPorts(http.StatusBadRequest, d)
	}
	for _, v := range views {
		mine := rules
		switch do {
		case "off":
			mine = nil
		case "defaults":
			mine = defaults(v)
		}
		if err := c.editPorts(v, mine, d); err != nil {
			e := c.refusal(err)
			i, ok := index(e.Target, "ports")
			if ok = ok && do == "save" && i < len(of); ok {
				d.Rows[of[i]].Error = brief(e)
			}
			d.Failed = append(d.Failed, failure{v.ID.Name, e, ok})
		}
	}
	if len(d.Failed) > 0 {
		return c.showPorts(statusOf(d.Failed[0].Error), d)
	}
	if len(views) == 1 {
		return c.see(link("vm", "id", views[0].ID))
	}
	return c.see(link("vms"))
}

// editPorts replaces the ports of one machine, and first says where it is if
// nobody did: policies are by location.
func (c *call) editPorts(v control.VMView, rules []control.PortRule, d portsData) error {
	if v.Location == "" && len(v.Ports) == 0 && d.Location != "" && len(rules) > 0 {
		in := control.VMInput{Location: d.Location, OS: v.OS, Address: v.Address, PublicIPAddress: v.PublicIPAddress, Unsupported: v.Unsupported}
		if _, err := c.Engine.PutVM(c.ctx, c.caller, v.ID, in); err != nil {
			return err
		}
	}
	rules = slices.Clone(rules)
	for i := range rules { // what the form has no word for stays as it is
		for _, was := range v.Ports {
			if was.Number == rules[i].Number {
				rules[i].MappedPort = was.MappedPort
			}
		}
	}
	_, err := c.Engine.EditPorts(c.ctx, c.caller, v.ID, rules, d.Revision)
	return err
}

// prefixesOf reads sources as people write them, between commas or spaces.
func prefixesOf(s string) control.Prefixes {
	all := strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' || r == '\n' || r == '\r' || r == '\t' || r == ';' })
	switch len(all) {
	case 0:
		return control.Prefixes{}
	case 1:
		return control.Prefixes{One: all[0]}
	}
	return control.Prefixes{Many: all}
}

// index reads the index in a target of the engine's: 3 of "ports[3].number"
// for ports.
func index(target, of string) (int, bool) {
	_, rest, found := strings.Cut(target, of+"[")
	digits, _, closed := strings.Cut(rest, "]")
	n, err := strconv.Atoi(digits)
	return n, found && closed && err == nil
}
