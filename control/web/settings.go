package web

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jitgate/jitgate/control"
)

// section is a page of the settings, for whom one of the actions is allowed
// somewhere.
type section struct {
	Name, Label, Says string
	needs             []control.Action
}

var sections = []section{
	{"approval", "Approval", "Whether somebody else has to agree before a request opens anything, and who.", []control.Action{control.ActionRead}},
	{"scopes", "On and off", "Where just-in-time access is switched off. There no port can be configured and nothing requested; what is guarded stays guarded. Of several scopes around a machine the narrowest counts.",
		[]control.Action{control.ActionScopes}},
	{"joining", "Joining", "Tokens that let machines join this control plane.", []control.Action{control.ActionEnroll}},
	{"roles", "Roles", "Who may do what, and where.", []control.Action{control.ActionRoles}},
	{"signing", "Signing", "Policies that agents do not obey yet, because people have to sign them.", []control.Action{control.ActionRead, control.ActionSign}},
}

// sections are those that the caller has something to see in.
func (c *call) sections() []section {
	return slices.DeleteFunc(slices.Clone(sections), func(s section) bool {
		return !slices.ContainsFunc(s.needs, c.caller.MaySomewhere)
	})
}

// settingsPage leads to the first page of them.
func settingsPage(c *call) error {
	all := c.sections()
	if len(all) == 0 {
		return c.caller.Must(control.ActionRead, control.Everywhere)
	}
	return c.see(Prefix + "settings/" + all[0].Name)
}

// settings renders a page of the settings, for who has a part in it: well if e
// is nil, else with what was refused.
func (c *call) settings(name string, e *control.Error, data any) error {
	named := func(s section) bool { return s.Name == name }
	i := slices.IndexFunc(sections, named)
	if !slices.ContainsFunc(c.sections(), named) {
		return c.caller.Must(sections[i].needs[0], control.Everywhere)
	}
	status := http.StatusOK
	if e != nil {
		status = statusOf(e)
	}
	c.render(status, name, view{Title: sections[i].Label, Here: "settings", Section: name, Says: sections[i].Says, Live: e == nil, Data: data})
	return nil
}

// list is the part of a long list that a page shows.
type list[T any] struct {
	All   int
	Shown []T
	Next  int // where the next page begins; 0: there is none
}

// shownOf is the part that begins where the query says.
func shownOf[T any](c *call, all []T) list[T] {
	from, err := strconv.Atoi(c.query("from"))
	if err != nil || from < 0 || from > len(all) {
		from = 0
	}
	l := list[T]{All: len(all), Shown: all[from:min(len(all), from+pageRows)]}
	if end := from + len(l.Shown); end < len(all) {
		l.Next = end
	}
	return l
}

// --- on and off ---

// scopesData is what the page of switched scopes shows.
type scopesData struct {
	list[scopeRow]
	MaySet        bool // somewhere
	Scope, Reason string
	Error         *control.Error
}

type scopeRow struct {
	control.ScopeSetting
	MaySet bool
}

func scopesPage(c *call) error { return c.showScopes(scopesData{Scope: c.query("scope")}) }

func (c *call) showScopes(d scopesData) error {
	all, err := c.Engine.ScopeSettings(c.ctx, c.caller)
	if err != nil {
		return err
	}
	var rows []scopeRow
	for _, s := range all {
		rows = append(rows, scopeRow{s, c.caller.May(control.ActionScope, s.Scope)})
	}
	d.list, d.MaySet = shownOf(c, rows), c.caller.MaySomewhere(control.ActionScope)
	return c.settings("scopes", d.Error, d)
}

func setScope(c *call) error {
	f := c.r.PostForm
	d := scopesData{Scope: strings.TrimSpace(f.Get("scope")), Reason: f.Get("reason")}
	var err error
	switch do := f.Get("do"); do {
	case "on", "off":
		_, err = c.Engine.SetScope(c.ctx, c.caller, control.Scope(strings.TrimSuffix(d.Scope, "/")), do == "on", d.Reason)
	default:
		err = errForm()
	}
	if err != nil {
		d.Error = c.refusal(err)
		return c.showScopes(d)
	}
	return c.see(link("settings/scopes"))
}

func errForm() error {
	return control.Refuse(control.Invalid, "InvalidForm", "The form is not one of this page.")
}

// --- roles ---

// rolesData is what the page of who has which role shows.
type rolesData struct {
	list[control.Assignment]
	Search string
	Roles  []control.Role
	Given  control.Assignment // that was to be given
	Error  *control.Error
}

func rolesPage(c *call) error {
	return c.showRoles(rolesData{Search: strings.TrimSpace(c.query("q")), Given: control.Assignment{Scope: control.Scope(c.query("scope"))}})
}

func (c *call) showRoles(d rolesData) error {
	all, err := c.Engine.ListAssignments(c.ctx, c.caller, control.Everywhere)
	if err != nil {
		return err
	}
	d.Given.Role = cmp.Or(d.Given.Role, "JITRequester") // nobody gives more by not choosing
	if d.Roles, err = c.Engine.ListRoles(c.ctx, c.caller); err != nil {
		return err
	}
	wanted := strings.ToLower(d.Search)
	d.list = shownOf(c, slices.DeleteFunc(all, func(a control.Assignment) bool {
		return !strings.Contains(strings.ToLower(a.Principal+" "+a.Role+" "+string(a.Scope)), wanted)
	}))
	return c.settings("roles", d.Error, d)
}

// changeRole gives a role, or takes one away.
func changeRole(c *call) error {
	f := c.r.PostForm
	a := control.Assignment{Principal: strings.TrimSpace(f.Get("principal")), Role: f.Get("role"), Scope: control.Scope(strings.TrimSpace(f.Get("scope")))}
	d := rolesData{}
	var err error
	switch f.Get("do") {
	case "give":
		d.Given = a
		err = c.Engine.Assign(c.ctx, c.caller, a)
	case "take":
		err = c.Engine.Unassign(c.ctx, c.caller, a)
	default:
		err = errForm()
	}
	if err != nil {
		d.Error = c.refusal(err)
		return c.showRoles(d)
	}
	return c.see(link("settings/roles"))
}

// --- joining ---

// joiningData is what the page of join tokens shows.
type joiningData struct {
	list[control.Join]
	Scope, Uses, Valid string
	Made               *madeJoin // shown once
	Error              *control.Error
}

// madeJoin is a join token that was made just now, and what to do with it.
type madeJoin struct {
	control.Join
	One      bool // it is for one machine, which the command names
	Commands []command
}

// joinValid are how long a token may be good for; joinDefault is offered.
var joinValid = []string{"PT15M", "PT1H", "PT8H", "P1D", "P7D", "P30D"}

const joinDefault = "PT1H"

// Lengths are how long a token may be good for.
func (joiningData) Lengths() []string { return joinValid }

func joiningPage(c *call) error {
	return c.showJoining(joiningData{Scope: c.query("scope")})
}

func (c *call) showJoining(d joiningData) error {
	all, err := c.Engine.ListJoins(c.ctx, c.caller)
	if err != nil {
		return err
	}
	slices.Reverse(all) // the newest first
	d.list = shownOf(c, all)
	d.Uses, d.Valid = cmp.Or(d.Uses, "1"), cmp.Or(d.Valid, joinDefault)
	return c.settings("joining", d.Error, d)
}

// changeJoining makes a token, or makes one useless.
func changeJoining(c *call) error {
	f := c.r.PostForm
	d := joiningData{}
	var err error
	switch f.Get("do") {
	case "make":
		d = joiningData{Scope: strings.TrimSpace(f.Get("scope")), Uses: strings.TrimSpace(f.Get("uses")), Valid: f.Get("valid")}
		made, err := c.makeJoin(d)
		if err != nil {
			d.Error = c.refusal(err)
			return c.showJoining(d)
		}
		return c.showJoining(joiningData{Made: made})
	case "revoke":
		err = c.Engine.RevokeJoin(c.ctx, c.caller, f.Get("id"))
	default:
		err = errForm()
	}
	if err != nil {
		d.Error = c.refusal(err)
		return c.showJoining(d)
	}
	return c.see(link("settings/joining"))
}

func (c *call) makeJoin(d joiningData) (*madeJoin, error) {
	if d.Scope == "" {
		e := control.Refuse(control.Invalid, "InvalidScope", "Say for which machine, or for the machines of which resource group or subscription.")
		e.Target = "scope"
		return nil, e
	}
	scope, err := scopeOf(d.Scope)
	if err != nil {
		return nil, err
	}
	uses, err := strconv.Atoi(d.Uses)
	if err != nil || uses < 1 {
		e := control.Refuse(control.Invalid, "InvalidUses", "Say for how many machines the token is good: a number.")
		e.Target = "uses"
		return nil, e
	}
	var valid time.Duration
	if valid, err = length(d.Valid); err != nil {
		return nil, err
	}
	token, j, err := c.Engine.CreateJoin(c.ctx, c.caller, scope, uses, valid)
	if err != nil {
		return nil, err
	}
	enroll := "jitgate enroll --control " + c.PublicURL + " --token " + token
	id, err := control.ParseVMID(d.Scope)
	one := err == nil
	if one {
		enroll += " --host-id " + id.String()
	}
	return &madeJoin{Join: j, One: one, Commands: []command{{"enroll", enroll}, {"systemctl", "systemctl restart jitgate && systemctl start jitgate-fetch"}}}, nil
}
