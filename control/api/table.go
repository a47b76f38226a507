package api

import (
	"net/http"

	"github.com/jitgate/jitgate/control"
)

// route is one call that the API answers: how it is found, what it is, and
// what OpenAPI says of it.
type route struct {
	method  string
	path    string
	pattern pattern
	id      string // the operation, in documents, logs and metrics
	summary string
	run     func(*call) error

	query   []query
	in      any // a zero value of the body's type; nil: there is none
	mayLack bool
	answers []answer
	azure   bool // Azure's: passes over what it does not know
	version bool // wants an api-version
	public  bool // needs no token
	once    bool // takes an Idempotency-Key
	secret  bool // answers with a secret
	stream  bool // goes on until somebody ends it
	long    bool // may take as long as it writes
	match   bool // takes If-Match
}

// query is a parameter of a query.
type query struct {
	name, kind, description string
}

// answer is one that is a success.
type answer struct {
	status int
	body   any    // a zero value of the body's type; nil: there is none
	media  string // of a body that is no JSON
}

const batchID = "Batch"

// raw is a body that is JSON of somebody else's making.
type raw struct{}

func get(path, id, summary string, run func(*call) error, out any, q ...query) *route {
	return &route{method: http.MethodGet, path: path, id: id, summary: summary, run: run, query: q, answers: []answer{{status: http.StatusOK, body: out}}}
}

func send(method, path, id, summary string, run func(*call) error, in any, status int, out any) *route {
	return &route{method: method, path: path, id: id, summary: summary, run: run, in: in, answers: []answer{{status: status, body: out}},
		once: method == http.MethodPost || method == http.MethodPatch}
}

// The modifiers of a route, for the table to read well.
func (r *route) ofAzure() *route    { r.azure, r.version, r.once = true, true, false; return r }
func (r *route) ofAny() *route      { r.version = false; return r }
func (r *route) forAll() *route     { r.public = true; return r }
func (r *route) withSecret() *route { r.secret = true; return r }
func (r *route) matching() *route   { r.match = true; return r }
func (r *route) takingLong() *route { r.long = true; return r }
func (r *route) bodyless() *route   { r.mayLack = true; return r }
func (r *route) or(a answer) *route { r.answers = append(r.answers, a); return r }

// Parameters that several routes have.
var (
	queryTop   = query{"top", "integer", "How many at most, to 1000."}
	queryAfter = query{"after", "string", "next of the page before."}
	queryScope = query{"scope", "string", "Only this scope and what is below: /subscriptions/S, /subscriptions/S/resourceGroups/G or a machine's id."}
	azureTop   = query{"$top", "integer", "How many at most, to 1000."}
	azureSkip  = query{"$skiptoken", "string", "The page, as nextLink has it."}
)

// table is everything there is.
func table() []*route {
	const (
		subscription = "/~subscriptions/{subscription}/"
		group        = subscription + "~resourceGroups/{group}/"
		security     = "~providers/~Microsoft.Security/"
		location     = "~locations/{location}/"
		policies     = "~jitNetworkAccessPolicies"
		one          = group + security + location + policies + "/{policy}"
	)
	all := []*route{
		get(subscription+security+policies, "JitNetworkAccessPolicies_List", "Policies of a subscription", listPolicies, azList{}, azureTop, azureSkip).ofAzure(),
		get(subscription+security+location+policies, "JitNetworkAccessPolicies_ListByRegion", "Policies of a location", listPolicies, azList{}, azureTop, azureSkip).ofAzure(),
		get(group+security+policies, "JitNetworkAccessPolicies_ListByResourceGroup", "Policies of a resource group", listPolicies, azList{}, azureTop, azureSkip).ofAzure(),
		get(group+security+location+policies, "JitNetworkAccessPolicies_ListByResourceGroupAndRegion", "Policies of a resource group in a location", listPolicies, azList{}, azureTop, azureSkip).ofAzure(),
		get(one, "JitNetworkAccessPolicies_Get", "One policy with its requests", getPolicy, azPolicy{}).ofAzure(),
		send(http.MethodPut, one, "JitNetworkAccessPolicies_CreateOrUpdate", "Create a policy or replace it whole", putPolicy, azPolicyIn{}, http.StatusOK, azPolicy{}).ofAzure().matching(),
		send(http.MethodDelete, one, "JitNetworkAccessPolicies_Delete", "End the protection of a policy's machines", deletePolicy, nil, http.StatusOK, nil).ofAzure().or(answer{status: http.StatusNoContent}),
		send(http.MethodPost, one+"/~initiate", "JitNetworkAccessPolicies_Initiate", "Ask for access", initiate, initiateIn{}, http.StatusAccepted, azRequest{}).ofAzure(),
		send(http.MethodPost, "/batch", batchID, "Several calls of the Azure API in one, as Azure's portal sends them", batch, batchIn{}, http.StatusOK, batchOut{}).ofAzure().ofAny(),

		get("/api/v1/vms", "ListVMs", "Machines, by tab", listVMs, list[vmOut]{},
			query{"tab", "string", "Configured, NotConfigured or Unsupported."}, queryScope, query{"search", "string", "Part of the id."}, queryTop, queryAfter),
		get("/api/v1/vms/counts", "CountVMs", "How many machines are in each tab", countVMs, counts{}, queryScope),
		get("/api/v1/vms/{vm...}", "GetVM", "One machine", getVM, vmOut{}),
		send(http.MethodPut, "/api/v1/vms/{vm...}", "PutVM", "Put a machine into the inventory", putVM, vmIn{}, http.StatusOK, vmOut{}),
		send(http.MethodPatch, "/api/v1/vms/{vm...}", "EditPorts", "Replace the ports of one machine and leave all others alone", patchVM, portsIn{}, http.StatusOK, vmOut{}).matching(),
		send(http.MethodDelete, "/api/v1/vms/{vm...}", "DeleteVM", "Forget a machine", deleteVM, nil, http.StatusNoContent, nil),
		send(http.MethodPost, "/api/v1/vms/{vm...}/request", "RequestVM", "Ask for access to one machine", requestVM, requestVMIn{}, http.StatusAccepted, list[requestOut]{}),
		send(http.MethodPost, "/api/v1/vms/{vm...}/agent/revoke", "RevokeAgent", "Make a machine's agent useless until it enrols again", revokeAgent, reasonIn{}, http.StatusNoContent, nil).bodyless(),

		get("/api/v1/requests", "ListRequests", "Requests, newest first", listRequests, list[requestOut]{},
			queryScope, query{"vm", "string", "Only for this machine."}, query{"policy", "string", "Only under this policy."}, query{"mine", "boolean", "Only the caller's own."},
			query{"open", "boolean", "Only those that are not over."}, query{"status", "string", "Pending, Initiating, Initiated or Revoked."},
			query{"since", "string", "Only those made at this time or later."}, queryTop, queryAfter),
		send(http.MethodPost, "/api/v1/requests", "Request", "Ask for access to machines of any policies", request, initiateIn{}, http.StatusAccepted, list[requestOut]{}),
		get("/api/v1/requests/{request}", "GetRequest", "One request", getRequest, requestOut{}),
		send(http.MethodPost, "/api/v1/requests/{request}/revoke", "RevokeRequest", "Close a request's ports now", revokeRequest, reasonIn{}, http.StatusOK, requestOut{}).bodyless(),
		send(http.MethodPost, "/api/v1/requests/{request}/extend", "ExtendRequest", "Move the end of a request", extendRequest, extendIn{}, http.StatusOK, requestOut{}),
		send(http.MethodPost, "/api/v1/requests/{request}/approve", "ApproveRequest", "Agree to a pending request", approveRequest, approveIn{}, http.StatusOK, requestOut{}).bodyless(),
		send(http.MethodPost, "/api/v1/requests/{request}/deny", "DenyRequest", "End a pending request", denyRequest, commentIn{}, http.StatusOK, requestOut{}).bodyless(),

		get("/api/v1/policies/{policy...}/approval", "GetApproval", "Who must agree to requests under a policy", getApproval, approvalOut{}),
		send(http.MethodPut, "/api/v1/policies/{policy...}/approval", "PutApproval", "Say who must agree to requests under a policy", putApproval, control.Approval{}, http.StatusOK, approvalOut{}).matching(),
		send(http.MethodDelete, "/api/v1/policies/{policy...}/approval", "DeleteApproval", "Let requests under a policy be granted without anybody", deleteApproval, nil, http.StatusNoContent, nil).matching(),
		get("/api/v1/policies/pending", "ListPendingPolicies", "Policy documents that wait for a person's signature", pendingPolicies, list[pendingOut]{}),
		send(http.MethodPost, "/api/v1/policies/pending", "AcceptPolicy", "Bring a signed policy document back: the body is its envelope", acceptPolicy, raw{}, http.StatusOK, acceptedOut{}),

		get("/api/v1/activity", "ListActivity", "The activity log, newest first", listActivity, list[control.Activity]{},
			queryScope, query{"event", "string", "Only this event: request.initiated."}, query{"actor", "string", "Only by this person."},
			query{"from", "string", "This time and later."}, query{"to", "string", "Before this time."}, query{"order", "string", "newest or oldest first."},
			query{"format", "string", "json or csv; csv is everything, without pages."}, queryTop, queryAfter).or(answer{status: http.StatusOK, media: "text/csv"}).takingLong(),
		get("/api/v1/activity/stream", "FollowActivity", "The activity log as it grows, as server-sent events", followActivity, nil,
			queryScope, query{"event", "string", "Only this event."}, query{"actor", "string", "Only by this person."}, query{"after", "string", "The seq to go on after, 0 for the whole log; left out: what is yet to come. Last-Event-ID goes before it."}).streams(),

		get("/api/v1/scopes", "ListScopes", "Where JIT is switched off, or on again", listScopes, list[control.ScopeSetting]{}),
		send(http.MethodPut, "/api/v1/scopes", "SetScope", "Switch JIT off or on for a subscription or resource group", setScope, scopeIn{}, http.StatusOK, control.ScopeSetting{}),
		get("/api/v1/joins", "ListJoins", "Join tokens that could still be used", listJoins, list[joinOut]{}),
		send(http.MethodPost, "/api/v1/joins", "CreateJoin", "Make a join token, shown once", createJoin, joinIn{}, http.StatusCreated, newJoinOut{}).withSecret(),
		send(http.MethodDelete, "/api/v1/joins/{join}", "RevokeJoin", "Make a join token useless", revokeJoin, nil, http.StatusNoContent, nil),

		get("/api/v1/roles", "ListRoles", "All roles, the built-in ones first", listRoles, list[control.Role]{}),
		send(http.MethodPut, "/api/v1/roles/{role}", "PutRole", "Define a role", putRole, roleIn{}, http.StatusOK, control.Role{}),
		send(http.MethodDelete, "/api/v1/roles/{role}", "DeleteRole", "Remove a role that is given to nobody", deleteRole, nil, http.StatusNoContent, nil),
		get("/api/v1/assignments", "ListAssignments", "Who has which role where", listAssignments, list[control.Assignment]{}, queryScope),
		send(http.MethodPost, "/api/v1/assignments", "Assign", "Give a role", assign, control.Assignment{}, http.StatusCreated, control.Assignment{}),
		{method: http.MethodDelete, path: "/api/v1/assignments", id: "Unassign", summary: "Take a role away", run: unassign, answers: []answer{{status: http.StatusNoContent}},
			query: []query{{"principal", "string", "Who has it."}, {"role", "string", "Which role."}, {"scope", "string", "Where."}}},
		get("/api/v1/tokens", "ListTokens", "Local tokens, without what makes them work", listTokens, list[tokenOut]{}),
		send(http.MethodPost, "/api/v1/tokens", "CreateToken", "Make a local token, shown once", createToken, tokenIn{}, http.StatusCreated, newTokenOut{}).withSecret(),
		send(http.MethodDelete, "/api/v1/tokens/{token}", "RevokeToken", "Make a token useless", revokeToken, nil, http.StatusNoContent, nil),
		get("/api/v1/whoami", "WhoAmI", "The caller as the server sees them", whoAmI, whoOut{}),
		get("/api/v1/login", "GetLogin", "Where people sign in", getLogin, loginOut{}).forAll(),
		get("/api/v1/trust.json", "GetTrust", "The signed trust document", getTrust, raw{}).forAll(),

		get("/openapi.json", "OpenAPI", "This document", openAPIDocument, raw{}).forAll(),
		get("/healthz", "Health", "The process lives", healthz, health{}).forAll(),
		get("/readyz", "Readiness", "Calls can be answered", readyz, health{}).forAll(),
		{method: http.MethodGet, path: "/metrics", id: "Metrics", summary: "For Prometheus, by a token of its own or ActionMetrics", run: scrape, public: true,
			answers: []answer{{status: http.StatusOK, media: "text/plain"}}},
	}
	for _, r := range all {
		r.pattern = parsePattern(r.path)
	}
	return all
}

func (r *route) streams() *route {
	r.stream, r.long, r.answers = true, true, []answer{{status: http.StatusOK, media: "text/event-stream"}}
	return r
}
