package web

import (
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/jitgate/jitgate/control"
)

// policiesShown are few: the engine tells the history of each.
const policiesShown = 20

// approvalsData is what the list of policies and their terms shows.
type approvalsData struct {
	Policies []control.PolicyView
	After    string
	Next     string
}

func approvalsPage(c *call) error {
	d := approvalsData{After: c.query("after")}
	var err error
	if d.Policies, d.Next, err = c.Engine.ListPolicies(c.ctx, c.caller, control.PolicyFilter{}, d.After, policiesShown); err != nil {
		return err
	}
	return c.settings("approval", nil, d)
}

// termsData is what the pane of one policy's terms shows.
type termsData struct {
	control.Policy
	MaySet        bool
	Roles         []string // whose holders may approve
	Asks          bool
	Approvers     string
	Role          string
	Justification bool
	Expires       string
	Lengths       []string
	Revision      string
	Error         *control.Error
}

// The terms that are offered where there are none yet.
const (
	approversDefault = "1"
	approverDefault  = "SecurityAdmin"
	waitDefault      = "PT1H"
)

// waits are how long a request may wait for approval.
var waits = []string{"PT15M", waitDefault, "PT4H", "PT8H", "P1D", "P3D", "P7D"}

// policyOf reads the policy that a query or a form names.
func policyOf(get func(string) string) (control.PolicyID, error) {
	id := control.PolicyID{Subscription: get("subscription"), Group: get("group"), Location: get("location"), Name: get("name")}
	if err := id.Check(); err != nil {
		return id, control.Refuse(control.Invalid, "InvalidResourceId", "%v.", err)
	}
	return id, nil
}

func termsPage(c *call) error {
	id, err := policyOf(c.query)
	if err != nil {
		return err
	}
	v, err := c.Engine.GetPolicy(c.ctx, c.caller, id)
	if err != nil {
		return err
	}
	d := termsData{Policy: v.Policy, Approvers: approversDefault, Role: approverDefault, Expires: waitDefault, Revision: strconv.FormatUint(v.Revision, 10)}
	if a := v.Approval; a != nil {
		d.Asks, d.Approvers, d.Role, d.Justification = true, strconv.Itoa(a.Approvers), a.Role, a.Justification
		if a.Expires != "" {
			d.Expires = a.Expires
		}
	}
	return c.showTerms(d)
}

func (c *call) showTerms(d termsData) error {
	d.MaySet = c.caller.May(control.ActionWrite, control.GroupScope(d.ID.Subscription, d.ID.Group))
	roles := control.BuiltinRoles()
	if c.caller.MaySomewhere(control.ActionRoles) {
		var err error
		if roles, err = c.Engine.ListRoles(c.ctx, c.caller); err != nil {
			return err
		}
	}
	for _, r := range roles {
		if r.Allows(control.ActionApprove) {
			d.Roles = append(d.Roles, r.Name)
		}
	}
	if !slices.ContainsFunc(d.Roles, func(name string) bool { return strings.EqualFold(name, d.Role) }) {
		d.Roles = append(d.Roles, d.Role)
	}
	d.Lengths = waits
	if !slices.Contains(waits, d.Expires) {
		d.Lengths = append([]string{d.Expires}, waits...)
	}
	status := http.StatusOK
	if d.Error != nil {
		status = statusOf(d.Error)
	}
	c.render(status, "terms", view{Title: "Approval under " + d.ID.Name, Here: "settings", Section: "approval", Data: d})
	return nil
}

func setTerms(c *call) error {
	f := c.r.PostForm
	id, err := policyOf(f.Get)
	if err != nil {
		return err
	}
	d := termsData{Policy: control.Policy{ID: id}, Asks: f.Get("asks") != "", Approvers: strings.TrimSpace(f.Get("approvers")), Role: f.Get("role"),
		Justification: f.Get("justification") != "", Expires: f.Get("expires"), Revision: f.Get("revision")}
	var terms *control.Approval
	if d.Asks {
		n, err := strconv.Atoi(d.Approvers)
		if err != nil {
			n = 0 // which is refused
		}
		terms = &control.Approval{Approvers: n, Role: d.Role, Justification: d.Justification, Expires: d.Expires}
	}
	if d.Revision == "" {
		err = errForm()
	} else {
		_, err = c.Engine.SetApproval(c.ctx, c.caller, id, terms, d.Revision)
	}
	if err != nil {
		if d.Error = c.refusal(err); wrong(d.Error, "approvers") {
			d.Error.Message = "Say how many have to agree, as a number: " + brief(d.Error) + "."
		}
		v, err := c.Engine.GetPolicy(c.ctx, c.caller, id)
		if err != nil {
			return d.Error
		}
		d.Policy = v.Policy
		return c.showTerms(d)
	}
	return c.see(link("settings/approval"))
}
