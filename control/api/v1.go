package api

import (
	"net/http"
	"strconv"
	"time"

	"github.com/jitgate/jitgate/control"
	"github.com/jitgate/jitgate/policy"
)

// The bodies of /api/v1. Words are Azure's where Azure has one.
type (
	// list is a page; Next goes into after for the one behind it.
	list[T any] struct {
		Value []T    `json:"value"`
		Next  string `json:"next,omitzero"`
	}

	vmOut struct {
		ID              string            `json:"id"`
		Name            string            `json:"name"`
		Subscription    string            `json:"subscription"`
		Group           string            `json:"resourceGroup"`
		Location        string            `json:"location,omitzero"`
		OS              string            `json:"osType,omitzero"`
		Address         string            `json:"address,omitzero"`
		PublicIPAddress string            `json:"publicIpAddress,omitzero"`
		Tab             control.Tab       `json:"tab"`
		Reason          string            `json:"reason,omitzero"`
		AgentStatus     string            `json:"agentStatus"`
		Agent           *agentOut         `json:"agent,omitzero"`
		Requests        int               `json:"approvedRequests"`
		LastAccess      instant           `json:"lastAccess,omitzero"`
		LastUser        string            `json:"lastUser,omitzero"`
		Layers          []string          `json:"layers"` // known to be on: the host's, and those outside it
		Ports           []portRule        `json:"ports"`
		Policies        []string          `json:"policies"`
		State           control.Provision `json:"provisioningState,omitzero"`
		Open            []openOut         `json:"open"`
	}
	agentOut struct {
		Install  string  `json:"install,omitzero"`
		Version  string  `json:"version,omitzero"`
		Mode     string  `json:"mode,omitzero"`
		Enrolled instant `json:"enrolled"`
		Expires  instant `json:"certificateExpires"`
		Revoked  bool    `json:"revoked"`
		LastSeen instant `json:"lastSeen,omitzero"`
		Trust    uint64  `json:"trustVersion"`
		Policy   uint64  `json:"policyVersion"`
		Grants   uint64  `json:"grantsVersion"`
		Audit    uint64  `json:"auditSeq"`
		Note     string  `json:"note,omitzero"`
	}
	openOut struct {
		Request   string `json:"request"`
		Requestor string `json:"requestor"`
		portOut
	}
	vmIn struct {
		Location        string `json:"location,omitzero"`
		OS              string `json:"osType,omitzero"`
		Address         string `json:"address,omitzero"`
		PublicIPAddress string `json:"publicIpAddress,omitzero"`
		Unsupported     string `json:"unsupportedReason,omitzero"`
	}
	portsIn struct {
		Ports []portRule `json:"ports"`
	}
	counts struct {
		Configured    int `json:"configured"`
		NotConfigured int `json:"notConfigured"`
		Unsupported   int `json:"unsupported"`
	}

	requestVMIn struct {
		Ports         []initiatePort `json:"ports"`
		Justification string         `json:"justification,omitzero"`
	}
	requestOut struct {
		ID            string         `json:"id"`
		Policy        string         `json:"policy"`
		VMs           []requestVMOut `json:"virtualMachines"`
		Start         instant        `json:"startTimeUtc"`
		Requestor     string         `json:"requestor"`
		Principal     string         `json:"principal"`
		Justification string         `json:"justification,omitzero"`
		Open          bool           `json:"open"`
		Approval      *pendingReq    `json:"approval,omitzero"`
	}
	requestVMOut struct {
		ID    string    `json:"id"`
		Ports []portOut `json:"ports"`
	}
	portOut struct {
		Number     uint16               `json:"number"`
		One        string               `json:"allowedSourceAddressPrefix,omitzero"`
		Many       []string             `json:"allowedSourceAddressPrefixes,omitempty"`
		End        instant              `json:"endTimeUtc"`
		Duration   string               `json:"duration,omitzero"`
		Status     control.Status       `json:"status"`
		Reason     control.StatusReason `json:"statusReason"`
		MappedPort uint16               `json:"mappedPort,omitzero"`
		Grant      string               `json:"grant,omitzero"`
		Opened     instant              `json:"opened,omitzero"`
		Closed     instant              `json:"closed,omitzero"`
		Refused    string               `json:"refused,omitzero"`
		Outer      *control.Layer       `json:"outer,omitzero"`
	}
	pendingReq struct {
		control.Approval
		Until    instant      `json:"until"`
		Verdicts []verdictOut `json:"verdicts"`
	}
	verdictOut struct {
		Principal string  `json:"principal"`
		Name      string  `json:"name"`
		Approve   bool    `json:"approve"`
		Comment   string  `json:"comment,omitzero"`
		AtMost    string  `json:"atMost,omitzero"`
		Time      instant `json:"time"`
	}
	reasonIn struct {
		Reason string `json:"reason,omitzero"`
	}
	commentIn struct {
		Comment string `json:"comment,omitzero"`
	}
	extendIn struct {
		Duration string `json:"duration"`
		Reason   string `json:"reason,omitzero"`
	}
	approveIn struct {
		Comment string `json:"comment,omitzero"`
		AtMost  string `json:"atMost,omitzero"`
	}

	approvalOut struct {
		Policy   string            `json:"policy"`
		Approval *control.Approval `json:"approval,omitzero"`
	}
	pendingOut struct {
		VM      string  `json:"vm"`
		Version uint64  `json:"version"`
		Payload []byte  `json:"payload"`
		Partial []byte  `json:"partial,omitempty"`
		InForce []byte  `json:"inForce,omitempty"`
		Created instant `json:"created"`
		By      string  `json:"by"`
	}
	acceptedOut struct {
		VM      string `json:"vm"`
		Version uint64 `json:"version"`
		Done    bool   `json:"done"`
	}

	scopeIn struct {
		Scope   string `json:"scope"`
		Enabled bool   `json:"enabled"`
		Reason  string `json:"reason,omitzero"`
	}
	joinIn struct {
		Scope string `json:"scope"`
		Uses  int    `json:"uses,omitzero"`
		Valid string `json:"valid,omitzero"`
	}
	joinOut struct {
		ID      string        `json:"id"`
		Scope   control.Scope `json:"scope"`
		Uses    int           `json:"uses"`
		Expires instant       `json:"expires"`
		Created instant       `json:"created"`
		By      string        `json:"by"`
	}
	newJoinOut struct {
		Token string  `json:"token"`
		Join  joinOut `json:"join"`
	}

	roleIn struct {
		Description string   `json:"description,omitzero"`
		Actions     []string `json:"actions"`
		NotActions  []string `json:"notActions,omitempty"`
	}
	tokenIn struct {
		Principal string `json:"principal,omitzero"`
		Name      string `json:"name,omitzero"`
		Note      string `json:"note,omitzero"`
		Role      string `json:"role,omitzero"`
		Scope     string `json:"scope,omitzero"`
		Valid     string `json:"valid,omitzero"`
	}
	tokenOut struct {
		ID        string        `json:"id"`
		Principal string        `json:"principal"`
		Name      string        `json:"name"`
		Note      string        `json:"note,omitzero"`
		Role      string        `json:"role,omitzero"`
		Scope     control.Scope `json:"scope,omitzero"`
		Created   instant       `json:"created"`
		Expires   instant       `json:"expires,omitzero"`
		Revoked   bool          `json:"revoked"`
	}
	newTokenOut struct {
		Secret string   `json:"secret"`
		Token  tokenOut `json:"token"`
	}
	whoOut struct {
		ID      string     `json:"id"`
		Name    string     `json:"name"`
		Type    string     `json:"type"`
		Address string     `json:"address"`
		Rights  []rightOut `json:"rights"`
		Limits  []rightOut `json:"limits,omitempty"`
	}
	rightOut struct {
		Role  control.Role  `json:"role"`
		Scope control.Scope `json:"scope"`
	}
)

// strict decodes the body of a call; with none, v stays as it is where the
// route lets it be left out.
func (c *call) strict(v any) error {
	if len(c.body) == 0 && c.route.mayLack {
		return nil
	}
	return decodeStrict(c.body, v)
}

// duration reads an ISO 8601 duration that may be left out.
func duration(name, s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	d, err := policy.ParseDuration(s)
	if err != nil || d <= 0 {
		r := invalid("InvalidDuration", "%s: %q is not a duration like PT1H.", name, clip(s))
		r.target = name
		return 0, r
	}
	return d, nil
}

// listed is a page of views, never null. next is empty on the last one.
func listed[T, O any](page []T, next string, view func(T) O) list[O] {
	out := list[O]{Value: make([]O, 0, len(page)), Next: next}
	for _, v := range page {
		out.Value = append(out.Value, view(v))
	}
	return out
}

func vmView(v control.VMView) vmOut {
	out := vmOut{
		ID: v.ID.String(), Name: v.ID.Name, Subscription: v.ID.Subscription, Group: v.ID.Group, Location: v.Location, OS: v.OS,
		Address: v.Address, PublicIPAddress: v.PublicIPAddress, Tab: v.Tab, Reason: v.Reason, AgentStatus: v.Agent,
		Requests: v.Requests, LastAccess: instant(v.LastAccess), LastUser: v.LastUser, Layers: v.Layers, Ports: portRules(v.Ports),
		Policies: make([]string, 0, len(v.Policies)), State: v.Provision, Open: make([]openOut, 0, len(v.Open)),
	}
	if a := v.VM.Agent; a != nil {
		out.Agent = &agentOut{Install: a.Install, Version: a.Version, Mode: a.Mode, Enrolled: instant(a.Enrolled), Expires: instant(a.Expires),
			Revoked: a.Revoked, LastSeen: instant(a.LastSeen), Trust: a.Versions.Trust, Policy: a.Versions.Policy, Grants: a.Versions.Grants,
			Audit: a.Head.Seq, Note: a.Note}
	}
	for _, id := range v.Policies {
		out.Policies = append(out.Policies, id.String())
	}
	for _, o := range v.Open {
		out.Open = append(out.Open, openOut{o.Request, o.Requestor, portView(o.RequestPort)})
	}
	return out
}

func portView(p control.RequestPort) portOut {
	out := portOut{Number: p.Number, One: p.One, Many: p.Many, End: instant(p.End), Status: p.Status, Reason: p.Reason, MappedPort: p.MappedPort,
		Grant: p.GrantID, Opened: instant(p.Opened), Closed: instant(p.Closed), Refused: p.Refused, Outer: p.Outer}
	if p.Length > 0 {
		out.Duration = policy.FormatDuration(p.Length)
	}
	return out
}

func requestView(r control.Request) requestOut {
	out := requestOut{ID: r.ID, Policy: r.Policy.String(), VMs: make([]requestVMOut, 0, len(r.VMs)), Start: instant(r.Start),
		Requestor: r.Requestor, Principal: r.Principal, Justification: r.Justification, Open: r.Open()}
	for _, vm := range r.VMs {
		ports := make([]portOut, 0, len(vm.Ports))
		for _, p := range vm.Ports {
			ports = append(ports, portView(p))
		}
		out.VMs = append(out.VMs, requestVMOut{vm.ID.String(), ports})
	}
	if a := r.Approval; a != nil {
		out.Approval = &pendingReq{Approval: a.Approval, Until: instant(a.Until), Verdicts: make([]verdictOut, 0, len(a.Verdicts))}
		for _, v := range a.Verdicts {
			o := verdictOut{Principal: v.Principal, Name: v.Name, Approve: v.Approve, Comment: v.Comment, Time: instant(v.Time)}
			if v.AtMost > 0 {
				o.AtMost = policy.FormatDuration(v.AtMost)
			}
			out.Approval.Verdicts = append(out.Approval.Verdicts, o)
		}
	}
	return out
}

func requestList(page []control.Request, next string) list[requestOut] {
	return listed(page, next, requestView)
}

// scope reads a scope of a query or a body; none is as it is.
func scope(s string) (control.Scope, error) {
	if s == "" {
		return "", nil
	}
	sc, err := control.ParseScope(s)
	if err != nil {
		r := invalid("InvalidScope", "%v.", err)
		r.target = "scope"
		return "", r
	}
	return sc, nil
}

func (c *call) scope() (control.Scope, error) {
	s, err := c.one("scope")
	if err != nil {
		return "", err
	}
	return scope(s)
}

// flag reads a parameter that is true or false.
func (c *call) flag(name string) (bool, error) {
	s, err := c.one(name)
	if err != nil || s == "" {
		return false, err
	}
	b, err := strconv.ParseBool(s)
	if err != nil {
		return false, invalid("InvalidQueryParameter", "%s=%s: say true or false.", name, clip(s))
	}
	return b, nil
}

// when reads a parameter that is a date.
func (c *call) when(name string) (time.Time, error) {
	s, err := c.one(name)
	if err != nil || s == "" {
		return time.Time{}, err
	}
	t, err := parseInstant(s)
	if err != nil {
		return t, invalid("InvalidQueryParameter", "%s: %v.", name, err)
	}
	return t, nil
}

// --- machines ---

func listVMs(c *call) error {
	var f control.VMFilter
	tab, err := c.one("tab")
	if err != nil {
		return err
	}
	switch f.Tab = control.Tab(tab); f.Tab {
	case "", control.Configured, control.NotConfigured, control.Unsupported:
	default:
		return invalid("InvalidQueryParameter", "tab=%s: say Configured, NotConfigured or Unsupported.", clip(tab))
	}
	if f.Scope, err = c.scope(); err != nil {
		return err
	}
	if f.Search, err = c.one("search"); err != nil {
		return err
	}
	if f.After, err = c.one("after"); err != nil {
		return err
	}
	if f.Limit, err = c.top("top", 100); err != nil {
		return err
	}
	page, next, err := c.api.Engine.ListVMs(c.ctx, c.caller, f)
	if err != nil {
		return err
	}
	return c.ok(listed(page, next, vmView))
}

func countVMs(c *call) error {
	s, err := c.scope()
	if err != nil {
		return err
	}
	n, err := c.api.Engine.CountVMs(c.ctx, c.caller, s)
	if err != nil {
		return err
	}
	return c.ok(counts{n[control.Configured], n[control.NotConfigured], n[control.Unsupported]})
}

// answerVM answers with a machine, whose ETag is that of its ports.
func (c *call) answerVM(v control.VMView, err error) error {
	if err != nil {
		return err
	}
	c.etag(v.Revision)
	return c.ok(vmView(v))
}

func getVM(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	return c.answerVM(c.api.Engine.GetVM(c.ctx, c.caller, id))
}

func putVM(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	var in vmIn
	if err := c.strict(&in); err != nil {
		return err
	}
	return c.answerVM(c.api.Engine.PutVM(c.ctx, c.caller, id, control.VMInput{
		Location: in.Location, OS: in.OS, Address: in.Address, PublicIPAddress: in.PublicIPAddress, Unsupported: in.Unsupported}))
}

func patchVM(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	var in portsIn
	if err := c.strict(&in); err != nil {
		return err
	}
	if in.Ports == nil {
		return missing("ports")
	}
	ports, err := rules("", in.Ports)
	if err != nil {
		return err
	}
	match, err := c.revision()
	if err != nil {
		return err
	}
	return c.answerVM(c.api.Engine.EditPorts(c.ctx, c.caller, id, ports, match))
}

func deleteVM(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	if err := c.api.Engine.DeleteVM(c.ctx, c.caller, id); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func requestVM(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	var in requestVMIn
	if err := c.strict(&in); err != nil {
		return err
	}
	ports, err := initiatePorts("", in.Ports)
	if err != nil {
		return err
	}
	return c.initiateVM(control.InitiateInput{VMs: []control.InitiateVM{{ID: id.String(), Ports: ports}}, Justification: in.Justification})
}

func (c *call) initiateVM(in control.InitiateInput) error {
	made, err := c.api.Engine.InitiateVM(c.ctx, c.caller, in)
	if err != nil {
		return err
	}
	c.write(http.StatusAccepted, requestList(made, ""))
	return nil
}

func revokeAgent(c *call) error {
	id, err := c.vmID()
	if err != nil {
		return err
	}
	var in reasonIn
	if err := c.strict(&in); err != nil {
		return err
	}
	if err := c.api.Engine.RevokeAgent(c.ctx, c.caller, id, in.Reason); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// --- requests ---

func listRequests(c *call) error {
	f := control.RequestFilter{Newest: true}
	var err error
	if f.Scope, err = c.scope(); err != nil {
		return err
	}
	vm, err := c.one("vm")
	if err != nil {
		return err
	}
	if vm != "" {
		id, err := control.ParseVMID(vm)
		if err != nil {
			return invalid("InvalidQueryParameter", "vm: %v.", err)
		}
		f.VM = &id
	}
	of, err := c.one("policy")
	if err != nil {
		return err
	}
	if of != "" {
		id, err := parsePolicyID(of)
		if err != nil {
			return err
		}
		f.Policy = &id
	}
	mine, err := c.flag("mine")
	if err != nil {
		return err
	}
	if mine {
		f.Principal = c.caller.ID
	}
	if f.Open, err = c.flag("open"); err != nil {
		return err
	}
	status, err := c.one("status")
	if err != nil {
		return err
	}
	switch f.Status = control.Status(status); f.Status {
	case "", control.Pending, control.Initiating, control.Initiated, control.Revoked:
	default:
		return invalid("InvalidQueryParameter", "status=%s: say Pending, Initiating, Initiated or Revoked.", clip(status))
	}
	if f.Since, err = c.when("since"); err != nil {
		return err
	}
	if f.After, err = c.one("after"); err != nil {
		return err
	}
	if f.Limit, err = c.top("top", 100); err != nil {
		return err
	}
	page, next, err := c.api.Engine.ListRequests(c.ctx, c.caller, f)
	if err != nil {
		return err
	}
	return c.ok(requestList(page, next))
}

var policyRoute = parsePattern("/{policy...}")

// parsePolicyID reads the resource id of a policy.
func parsePolicyID(s string) (control.PolicyID, error) {
	var id control.PolicyID
	segments, err := splitID(s)
	if err == nil {
		params, ok := policyRoute.match(segments)
		id = control.PolicyID{Subscription: params["subscription"], Group: params["group"], Location: params["location"], Name: params["policy"]}
		if ok && id.Check() == nil {
			return id, nil
		}
	}
	return id, invalid("InvalidResourceId", "%q is not a policy's id.", clip(s))
}

func request(c *call) error {
	var in initiateIn
	if err := c.strict(&in); err != nil {
		return err
	}
	ask, err := in.input()
	if err != nil {
		return err
	}
	return c.initiateVM(ask)
}

// answerRequest answers with a request.
func (c *call) answerRequest(r control.Request, err error) error {
	if err != nil {
		return err
	}
	return c.ok(requestView(r))
}

func getRequest(c *call) error {
	return c.answerRequest(c.api.Engine.GetRequest(c.ctx, c.caller, c.params["request"]))
}

func revokeRequest(c *call) error {
	var in reasonIn
	if err := c.strict(&in); err != nil {
		return err
	}
	return c.answerRequest(c.api.Engine.Revoke(c.ctx, c.caller, c.params["request"], in.Reason))
}

func extendRequest(c *call) error {
	var in extendIn
	if err := c.strict(&in); err != nil {
		return err
	}
	if in.Duration == "" {
		return missing("duration")
	}
	by, err := duration("duration", in.Duration)
	if err != nil {
		return err
	}
	return c.answerRequest(c.api.Engine.Extend(c.ctx, c.caller, c.params["request"], by, in.Reason))
}

func approveRequest(c *call) error {
	var in approveIn
	if err := c.strict(&in); err != nil {
		return err
	}
	atMost, err := duration("atMost", in.AtMost)
	if err != nil {
		return err
	}
	return c.answerRequest(c.api.Engine.Approve(c.ctx, c.caller, c.params["request"], in.Comment, atMost))
}

func denyRequest(c *call) error {
	var in commentIn
	if err := c.strict(&in); err != nil {
		return err
	}
	return c.answerRequest(c.api.Engine.Deny(c.ctx, c.caller, c.params["request"], in.Comment))
}

// --- policies ---

// answerApproval answers with who must agree under a policy.
func (c *call) answerApproval(p control.PolicyView, err error) error {
	if err != nil {
		return err
	}
	c.etag(p.Revision)
	return c.ok(approvalOut{p.ID.String(), p.Approval})
}

func getApproval(c *call) error {
	return c.answerApproval(c.api.Engine.GetPolicy(c.ctx, c.caller, c.policyID()))
}

func putApproval(c *call) error {
	var in control.Approval
	if err := c.strict(&in); err != nil {
		return err
	}
	match, err := c.revision()
	if err != nil {
		return err
	}
	return c.answerApproval(c.api.Engine.SetApproval(c.ctx, c.caller, c.policyID(), &in, match))
}

func deleteApproval(c *call) error {
	match, err := c.revision()
	if err != nil {
		return err
	}
	p, err := c.api.Engine.SetApproval(c.ctx, c.caller, c.policyID(), nil, match)
	if err != nil {
		return err
	}
	c.etag(p.Revision)
	return c.empty(http.StatusNoContent)
}

func pendingPolicies(c *call) error {
	all, err := c.api.Engine.PendingPolicies(c.ctx, c.caller)
	if err != nil {
		return err
	}
	out := list[pendingOut]{Value: make([]pendingOut, 0, len(all))}
	for _, p := range all {
		out.Value = append(out.Value, pendingOut{p.VM.String(), p.Version, p.Payload, p.Partial, p.InForce, instant(p.Created), p.By})
	}
	return c.ok(out)
}

func acceptPolicy(c *call) error {
	if len(c.body) == 0 {
		return badBody("there is none: send the envelope of the policy.")
	}
	p, done, err := c.api.Engine.AcceptPolicy(c.ctx, c.caller, c.body)
	if err != nil {
		return err
	}
	return c.ok(acceptedOut{p.VM.String(), p.Version, done})
}

// --- scopes and joins ---

func listScopes(c *call) error {
	all, err := c.api.Engine.ScopeSettings(c.ctx, c.caller)
	if err != nil {
		return err
	}
	return c.ok(list[control.ScopeSetting]{Value: all})
}

func setScope(c *call) error {
	var in scopeIn
	if err := c.strict(&in); err != nil {
		return err
	}
	if in.Scope == "" {
		return missing("scope")
	}
	s, err := scope(in.Scope)
	if err != nil {
		return err
	}
	set, err := c.api.Engine.SetScope(c.ctx, c.caller, s, in.Enabled, in.Reason)
	if err != nil {
		return err
	}
	return c.ok(set)
}

func joinView(j control.Join) joinOut {
	return joinOut{j.ID, j.Scope, j.Uses, instant(j.Expires), instant(j.Created), j.By}
}

func listJoins(c *call) error {
	all, err := c.api.Engine.ListJoins(c.ctx, c.caller)
	if err != nil {
		return err
	}
	return c.ok(listed(all, "", joinView))
}

func createJoin(c *call) error {
	var in joinIn
	if err := c.strict(&in); err != nil {
		return err
	}
	if in.Scope == "" {
		return missing("scope")
	}
	s, err := scope(in.Scope)
	if err != nil {
		return err
	}
	valid, err := duration("valid", in.Valid)
	if err != nil {
		return err
	}
	token, j, err := c.api.Engine.CreateJoin(c.ctx, c.caller, s, in.Uses, valid)
	if err != nil {
		return err
	}
	c.write(http.StatusCreated, newJoinOut{token, joinView(j)})
	return nil
}

func revokeJoin(c *call) error {
	if err := c.api.Engine.RevokeJoin(c.ctx, c.caller, c.params["join"]); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// --- who may what ---

func listRoles(c *call) error {
	all, err := c.api.Engine.ListRoles(c.ctx, c.caller)
	if err != nil {
		return err
	}
	return c.ok(list[control.Role]{Value: all})
}

func putRole(c *call) error {
	var in roleIn
	if err := c.strict(&in); err != nil {
		return err
	}
	r, err := c.api.Engine.PutRole(c.ctx, c.caller, control.Role{Name: c.params["role"], Description: in.Description, Actions: in.Actions, NotActions: in.NotActions})
	if err != nil {
		return err
	}
	return c.ok(r)
}

func deleteRole(c *call) error {
	if err := c.api.Engine.DeleteRole(c.ctx, c.caller, c.params["role"]); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func listAssignments(c *call) error {
	s, err := c.scope()
	if err != nil {
		return err
	}
	all, err := c.api.Engine.ListAssignments(c.ctx, c.caller, s)
	if err != nil {
		return err
	}
	return c.ok(list[control.Assignment]{Value: all})
}

func assign(c *call) error {
	var in control.Assignment
	if err := c.strict(&in); err != nil {
		return err
	}
	var err error
	if in.Scope, err = scope(string(in.Scope)); err != nil {
		return err
	}
	if err := c.api.Engine.Assign(c.ctx, c.caller, in); err != nil {
		return err
	}
	c.write(http.StatusCreated, in)
	return nil
}

func unassign(c *call) error {
	var a control.Assignment
	var err error
	if a.Principal, err = c.one("principal"); err != nil {
		return err
	}
	if a.Role, err = c.one("role"); err != nil {
		return err
	}
	if a.Scope, err = c.scope(); err != nil {
		return err
	}
	if err := c.api.Engine.Unassign(c.ctx, c.caller, a); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func tokenView(t control.Token) tokenOut {
	return tokenOut{t.ID, t.Principal, t.Name, t.Note, t.Role, t.Scope, instant(t.Created), instant(t.Expires), t.Revoked}
}

func listTokens(c *call) error {
	all, err := c.api.Engine.ListTokens(c.ctx, c.caller)
	if err != nil {
		return err
	}
	return c.ok(listed(all, "", tokenView))
}

func createToken(c *call) error {
	var in tokenIn
	if err := c.strict(&in); err != nil {
		return err
	}
	s, err := scope(in.Scope)
	if err != nil {
		return err
	}
	valid, err := duration("valid", in.Valid)
	if err != nil {
		return err
	}
	secret, t, err := c.api.Engine.CreateToken(c.ctx, c.caller, control.TokenInput{
		Principal: in.Principal, Name: in.Name, Note: in.Note, Role: in.Role, Scope: s, Valid: valid})
	if err != nil {
		return err
	}
	c.write(http.StatusCreated, newTokenOut{secret, tokenView(t)})
	return nil
}

func revokeToken(c *call) error {
	if err := c.api.Engine.RevokeToken(c.ctx, c.caller, c.params["token"]); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func rightViews(rights []control.Right) []rightOut {
	out := make([]rightOut, 0, len(rights))
	for _, r := range rights {
		out = append(out, rightOut{r.Role, r.Scope})
	}
	return out
}

func whoAmI(c *call) error {
	out := whoOut{ID: c.caller.ID, Name: c.caller.Name, Type: c.caller.Type, Address: c.address.String(), Rights: rightViews(c.caller.Rights)}
	if c.caller.Limits != nil {
		out.Limits = rightViews(c.caller.Limits)
	}
	return c.ok(out)
}
