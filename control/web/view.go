package web

import (
	"bytes"
	"cmp"
	"fmt"
	"html/template"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// view is what a template gets.
type view struct {
	Title string
	Here  string // the part of the site it belongs to, for the menu
	// Section is the page of the settings it belongs to, Says what that is, and
	// Sections are those that the caller may see.
	Section, Says string
	Sections      []section
	Live          bool   // it changes by itself
	Name          string // of the caller; empty: nobody is signed in
	Path          string // of the page itself
	Now           time.Time
	Data          any
}

// pages are the templates, each with the layout around it.
var pages = []string{"activity", "approval", "ask", "error", "joining", "ports", "request", "requests", "roles", "scopes", "sign-in", "signing", "terms", "timeline", "vm", "vms"}

func parseTemplates() (map[string]*template.Template, error) {
	all := map[string]*template.Template{}
	for _, name := range pages {
		t, err := template.New("layout.html").Option("missingkey=error").Funcs(functions).ParseFS(files, "templates/layout.html", "templates/parts.html", "templates/"+name+".html")
		if err != nil {
			return nil, err
		}
		all[name] = t
	}
	return all, nil
}

// render answers with a page. It is made whole before the first byte goes out.
func (c *call) render(status int, name string, v view) {
	v.Name, v.Path, v.Now, v.Sections = cmp.Or(c.caller.Name, c.caller.ID), c.r.URL.RequestURI(), c.Now(), c.sections()
	var page bytes.Buffer
	if err := c.templates[name].Execute(&page, v); err != nil {
		panic(fmt.Errorf("template %s: %w", name, err)) // our own template and our own structs
	}
	h := c.w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(page.Len()))
	c.w.WriteHeader(status)
	c.w.Write(page.Bytes()) // a browser that went away is its own problem
}

// functions are those of the templates.
var functions = template.FuncMap{
	"time":     func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 MST") },
	"iso":      func(t time.Time) string { return t.UTC().Format(time.RFC3339) },
	"duration": humanDuration,
	"link":     link,
	"join":     strings.Join,
	"add":      func(a, b int) int { return a + b },
	"state":    stateOf,
	"spell":    spell,
	"last":     lastPart,
	"host":     func(address string) string { return strings.SplitN(strings.TrimPrefix(address, "https://"), "/", 2)[0] },
	"group": func(id control.VMID) string {
		return "/subscriptions/" + id.Subscription + "/resourceGroups/" + id.Group
	},
	"address": func(v control.VMView) string { return cmp.Or(v.PublicIPAddress, v.Address, v.ID.Name) },
	"clip":    clip,
	"fits":    func(wide int) int { return wide / 8 }, // letters of the picture's size
	"protocols": func() []string {
		return []string{string(policy.TCP), string(policy.UDP), string(policy.Both)}
	},
	"protocol": func(p any) string {
		if s := fmt.Sprint(p); s != string(policy.Both) {
			return s
		}
		return "TCP and UDP"
	},
	"longest": func(chosen string) []string {
		if chosen == "" || slices.Contains(lengths, chosen) {
			return lengths
		}
		return append([]string{chosen}, lengths...)
	},
	"events": func() []string { return eventNames },
	"wrong":  wrong,
	"brief":  brief,
}

// eventNames are offered where the log is filtered.
var eventNames = []string{"request.initiated", "request.approved", "request.denied", "request.revoked", "grant.opened", "grant.login", "grant.used", "grant.expired", "grant.revoked", "grant.refused",
	"policy.written", "policy.deleted", "connection.denied", "host.enrolled", "host.lost", "access.given", "access.taken"}

// wrong reports whether what was refused is about a field of that name.
func wrong(e *control.Error, field string) bool {
	return e != nil && strings.HasSuffix("."+e.Target, "."+field)
}

// clip keeps a text to n letters.
func clip(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:max(0, n-1)]) + "…"
	}
	return s
}

// link makes a path below Prefix with a query of pairs of names and values.
// Empty ones are left out.
func link(page string, pairs ...any) string {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if value := fmt.Sprint(pairs[i+1]); value != "" {
			q.Add(fmt.Sprint(pairs[i]), value)
		}
	}
	if len(q) == 0 {
		return Prefix + page
	}
	return Prefix + page + "?" + q.Encode()
}

func lastPart(s string) string { return s[strings.LastIndexByte(s, '/')+1:] }

// humanDuration says an ISO 8601 duration as people do.
func humanDuration(iso string) string {
	d, err := policy.ParseDuration(iso)
	if err != nil {
		return iso
	}
	return spell(d)
}

func spell(d time.Duration) string {
	var parts []string
	for _, unit := range []struct {
		of   time.Duration
		name string
	}{{time.Hour, "h"}, {time.Minute, "min"}, {time.Second, "s"}} {
		if n := d / unit.of; n > 0 {
			parts = append(parts, strconv.Itoa(int(n))+" "+unit.name)
			d -= n * unit.of
		}
	}
	if len(parts) == 0 {
		return "0 s"
	}
	return strings.Join(parts, " ")
}

// portState is where a port of a request stands, in words for people.
type portState struct {
	Word  string
	Class string // for its colour; the word alone says it too
	Until time.Time
}

// stateOf says where a port stands.
func stateOf(p control.RequestPort) portState {
	switch p.Status {
	case control.Pending:
		return portState{Word: "waits for approval", Class: "wait"}
	case control.Initiating:
		if p.Refused != "" {
			return portState{Word: "refused by the agent", Class: "bad"}
		}
		return portState{Word: "opening", Class: "wait", Until: p.Until}
	case control.Initiated:
		return portState{Word: "open", Class: "good", Until: p.Until}
	}
	switch {
	case p.Reason == control.Denied:
		return portState{Word: "denied", Class: "bad"}
	case p.Reason == control.Expired:
		return portState{Word: "closed: time is up", Class: "over"}
	case p.Reason == control.NewerRequestInitiated:
		return portState{Word: "replaced by a newer request", Class: "over"}
	case p.Refused != "":
		return portState{Word: "closed: outside the policy", Class: "bad"}
	}
	return portState{Word: "closed: revoked", Class: "over"}
}

// query reads a parameter of the query; more than one is as none.
func (c *call) query(name string) string {
	if all := c.r.URL.Query()[name]; len(all) == 1 {
		return all[0]
	}
	return ""
}

// vmOf reads a machine's id.
func vmOf(s string) (control.VMID, error) {
	id, err := control.ParseVMID(s)
	if err != nil {
		return id, control.Refuse(control.Invalid, "InvalidResourceId", "%v.", err)
	}
	return id, nil
}

// ok renders a page that went well.
func (c *call) ok(name string, v view) error {
	c.render(http.StatusOK, name, v)
	return nil
}
