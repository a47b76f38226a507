package web

import (
	"cmp"

	"github.com/jitgate/jitgate/control"
)

// vmsData is what the list of machines shows.
type vmsData struct {
	Tabs    []tabData
	Tab     control.Tab
	Search  string
	Scope   string
	VMs     []control.VMView
	Next    string // the page behind this one, after this Key
	After   string
	Error   *control.Error // the filter cannot be read
	Ask     bool           // somebody who may ask for access
	Enable  bool
	Address string
}

type tabData struct {
	Tab   control.Tab
	Label string
	Count int
}

var tabs = []tabData{{Tab: control.Configured, Label: "Configured"}, {Tab: control.NotConfigured, Label: "Not configured"}, {Tab: control.Unsupported, Label: "Unsupported"}}

func vmsPage(c *call) error {
	d := vmsData{Tab: control.Tab(cmp.Or(c.query("tab"), string(control.Configured))), Search: c.query("q"), Scope: c.query("scope"), After: c.query("after")}
	known := false
	for _, t := range tabs {
		known = known || t.Tab == d.Tab
	}
	if !known {
		d.Tab = control.Configured
	}
	scope := control.Everywhere
	if d.Scope != "" {
		var err error
		if scope, err = control.ParseScope(d.Scope); err != nil {
			d.Error = control.Refuse(control.Invalid, "InvalidScope", "%v.", err)
		}
	}
	if d.Error == nil {
		counts, err := c.Engine.CountVMs(c.ctx, c.caller, scope)
		if err != nil {
			return err
		}
		for _, t := range tabs {
			t.Count = counts[t.Tab]
			d.Tabs = append(d.Tabs, t)
		}
		d.VMs, d.Next, err = c.Engine.ListVMs(c.ctx, c.caller, control.VMFilter{Scope: scope, Tab: d.Tab, Search: d.Search, After: d.After, Limit: pageRows})
		if err != nil {
			return err
		}
	} else {
		d.Tabs = tabs
	}
	return c.ok("vms", view{Title: "Virtual machines", Here: "vms", Live: true, Data: d})
}
