package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// maxPages ends a list whose pages lead in a circle.
const maxPages = 100_000

// escape writes a resource id, or another path below the API, as a path.
func escape(id string) (string, error) {
	parts := strings.Split(strings.Trim(id, "/"), "/")
	for i, p := range parts {
		if strings.Trim(p, ".") == "" {
			return "", fmt.Errorf("%q is not a resource id", clip(id))
		}
		parts[i] = url.PathEscape(p)
	}
	return "/" + strings.Join(parts, "/"), nil
}

// at is a call below a path, of a resource with an id.
func at(method, prefix, id, suffix string) (call, error) {
	path, err := escape(id)
	return call{method: method, path: prefix + path + suffix}, err
}

// query makes a query of what is not empty.
func query(pairs ...string) url.Values {
	q := url.Values{}
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			q.Set(pairs[i], pairs[i+1])
		}
	}
	return q
}

// number is n for a query; nothing for none.
func number(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}

// instant is t for a query; nothing for none.
func instant(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// list goes through all pages of a list of /api/v1.
func list[T any](ctx context.Context, c *Client, path string, q url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		for n := 0; ; n++ {
			var p page[T]
			_, err := c.do(ctx, call{method: http.MethodGet, path: path, query: q}, &p)
			if err == nil && n == maxPages {
				err = errors.New("the list does not end")
			}
			if err != nil {
				yield(zero, err)
				return
			}
			for _, v := range p.Value {
				if !yield(v, nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			q.Set("after", p.Next)
		}
	}
}

// --- Azure's API ---

const apiVersion = "2020-01-01"

const (
	securityPart = "/providers/Microsoft.Security"
	policiesPart = "/jitNetworkAccessPolicies"
)

// PolicyID is the resource id of a policy.
func PolicyID(subscription, group, location, name string) string {
	return "/subscriptions/" + subscription + "/resourceGroups/" + group + securityPart + "/locations/" + location + policiesPart + "/" + name
}

// azure makes a call of Azure's API below a resource id.
func (c *Client) azure(ctx context.Context, method, id, suffix string, header http.Header, in, out any) (reply, error) {
	k, err := at(method, "", id, suffix)
	if err != nil {
		return reply{}, err
	}
	k.query, k.header, k.in = query("api-version", apiVersion), header, in
	return c.do(ctx, k, out)
}

// Policies lists the policies of a subscription, of one of its groups, of a
// location, or of both. An empty group or location is any.
func (c *Client) Policies(ctx context.Context, subscription, group, location string) iter.Seq2[Policy, error] {
	return func(yield func(Policy, error) bool) {
		id := "/subscriptions/" + subscription
		if group != "" {
			id += "/resourceGroups/" + group
		}
		id += securityPart
		if location != "" {
			id += "/locations/" + location
		}
		q := query("api-version", apiVersion)
		path, err := escape(id + policiesPart)
		for n := 0; err == nil; n++ {
			var p azurePage[Policy]
			if _, err = c.do(ctx, call{method: http.MethodGet, path: path, query: q}, &p); err != nil {
				break
			}
			for _, v := range p.Value {
				if !yield(v, nil) {
					return
				}
			}
			if p.NextLink == "" {
				return
			}
			if n == maxPages {
				err = errors.New("the list does not end")
				break
			}
			// Only the query is taken from the link: it leads to no other host.
			next, wrong := url.Parse(p.NextLink)
			if wrong != nil {
				err = fmt.Errorf("the link to the next page cannot be read: %q", clip(p.NextLink))
				break
			}
			q = next.Query()
		}
		yield(Policy{}, err)
	}
}

// Policy returns a policy with its requests, and its ETag.
func (c *Client) Policy(ctx context.Context, id string) (p Policy, etag string, err error) {
	r, err := c.azure(ctx, http.MethodGet, id, "", nil, nil, &p)
	return p, r.etag, err
}

// PutPolicy creates a policy or replaces it whole. ifMatch, if not empty, is
// the ETag of what is edited, or "*" for any that is there.
func (c *Client) PutPolicy(ctx context.Context, id string, in Policy, ifMatch string) (p Policy, etag string, err error) {
	r, err := c.azure(ctx, http.MethodPut, id, "", matching(ifMatch), in, &p)
	return p, r.etag, err
}

// DeletePolicy ends the protection of a policy's machines. It reports whether
// there was such a policy.
func (c *Client) DeletePolicy(ctx context.Context, id string) (bool, error) {
	r, err := c.azure(ctx, http.MethodDelete, id, "", nil, nil, nil)
	return r.status == http.StatusOK, err
}

// Initiate asks for access under one policy, as Azure's clients do.
func (c *Client) Initiate(ctx context.Context, policy string, in InitiateRequest) (r PolicyRequest, err error) {
	_, err = c.azure(ctx, http.MethodPost, policy, "/initiate", nil, in, &r)
	return r, err
}

// matching is a header that has a change made only to what was read.
func matching(etag string) http.Header {
	h := http.Header{}
	if etag != "" {
		h.Set("If-Match", etag)
	}
	return h
}

// --- machines ---

const vmsPath = "/api/v1/vms"

// VMFilter selects machines; empty fields select all.
type VMFilter struct {
	Tab, Scope, Search string
	PageSize           int // 0: the server's
}

// VMs lists machines.
func (c *Client) VMs(ctx context.Context, f VMFilter) iter.Seq2[VM, error] {
	return list[VM](ctx, c, vmsPath, query("tab", f.Tab, "scope", f.Scope, "search", f.Search, "top", number(f.PageSize)))
}

// CountVMs counts machines by tab. An empty scope is everywhere.
func (c *Client) CountVMs(ctx context.Context, scope string) (n VMCounts, err error) {
	_, err = c.do(ctx, call{method: http.MethodGet, path: vmsPath + "/counts", query: query("scope", scope)}, &n)
	return n, err
}

// vm makes a call about one machine.
func (c *Client) vm(ctx context.Context, method, id, suffix string, change func(*call), out any) (reply, error) {
	k, err := at(method, vmsPath, id, suffix)
	if err != nil {
		return reply{}, err
	}
	if change != nil {
		change(&k)
	}
	return c.do(ctx, k, out)
}

// VM returns one machine, and the ETag of its ports.
func (c *Client) VM(ctx context.Context, id string) (v VM, etag string, err error) {
	r, err := c.vm(ctx, http.MethodGet, id, "", nil, &v)
	return v, r.etag, err
}

// PutVM puts a machine into the inventory, or changes what is said of it.
func (c *Client) PutVM(ctx context.Context, id string, in VMInput) (v VM, err error) {
	_, err = c.vm(ctx, http.MethodPut, id, "", func(k *call) { k.in = in }, &v)
	return v, err
}

// EditPorts replaces the ports of one machine. ifMatch, if not empty, is the
// ETag that VM returned.
func (c *Client) EditPorts(ctx context.Context, id string, ports []PortRule, ifMatch string) (v VM, etag string, err error) {
	in := struct {
		Ports []PortRule `json:"ports"`
	}{append([]PortRule{}, ports...)} // none is a list too: nothing is guarded
	r, err := c.vm(ctx, http.MethodPatch, id, "", func(k *call) { k.in, k.header, k.once = in, matching(ifMatch), true }, &v)
	return v, r.etag, err
}

// DeleteVM forgets a machine that no policy names.
func (c *Client) DeleteVM(ctx context.Context, id string) error {
	_, err := c.vm(ctx, http.MethodDelete, id, "", nil, nil)
	return err
}

// RequestVM asks for ports of one machine.
func (c *Client) RequestVM(ctx context.Context, id string, ports []InitiatePort, justification string) ([]Request, error) {
	in := struct {
		Ports         []InitiatePort `json:"ports"`
		Justification string         `json:"justification,omitempty"`
	}{ports, justification}
	var p page[Request]
	_, err := c.vm(ctx, http.MethodPost, id, "/request", func(k *call) { k.in, k.once = in, true }, &p)
	return p.Value, err
}

// RevokeAgent makes a machine's agent useless until it enrols again.
func (c *Client) RevokeAgent(ctx context.Context, id, reason string) error {
	_, err := c.vm(ctx, http.MethodPost, id, "/agent/revoke", func(k *call) { k.in, k.once = reasoned{reason}, true }, nil)
	return err
}

// --- requests ---

const requestsPath = "/api/v1/requests"

// RequestFilter selects requests; empty fields select all.
type RequestFilter struct {
	Scope, VM, Policy, Status string
	Mine, Open                bool
	Since                     time.Time
	PageSize                  int // 0: the server's
}

// Requests lists requests, the newest first.
func (c *Client) Requests(ctx context.Context, f RequestFilter) iter.Seq2[Request, error] {
	q := query("scope", f.Scope, "vm", f.VM, "policy", f.Policy, "status", f.Status, "since", instant(f.Since), "top", number(f.PageSize))
	if f.Mine {
		q.Set("mine", "true")
	}
	if f.Open {
		q.Set("open", "true")
	}
	return list[Request](ctx, c, requestsPath, q)
}

// Request asks for access to machines of any policies: one request for each.
func (c *Client) Request(ctx context.Context, in InitiateRequest) ([]Request, error) {
	var p page[Request]
	_, err := c.do(ctx, call{method: http.MethodPost, path: requestsPath, in: in, once: true}, &p)
	return p.Value, err
}

// GetRequest returns one request.
func (c *Client) GetRequest(ctx context.Context, id string) (Request, error) {
	return c.request(ctx, http.MethodGet, id, "", nil)
}

// request makes a call about one request.
func (c *Client) request(ctx context.Context, method, id, verb string, in any) (r Request, err error) {
	k := call{method: method, path: requestsPath + "/" + url.PathEscape(id) + verb, in: in, once: method == http.MethodPost}
	_, err = c.do(ctx, k, &r)
	return r, err
}

// Revoke closes a request's ports now.
func (c *Client) Revoke(ctx context.Context, id, reason string) (Request, error) {
	return c.request(ctx, http.MethodPost, id, "/revoke", reasoned{reason})
}

// Extend moves the end of a request's open ports to now + duration (ISO 8601).
func (c *Client) Extend(ctx context.Context, id, duration, reason string) (Request, error) {
	return c.request(ctx, http.MethodPost, id, "/extend", struct {
		Duration string `json:"duration"`
		reasoned
	}{duration, reasoned{reason}})
}

// Approve agrees to a pending request, for no longer than atMost (ISO 8601) if
// that is not empty.
func (c *Client) Approve(ctx context.Context, id, comment, atMost string) (Request, error) {
	return c.request(ctx, http.MethodPost, id, "/approve", struct {
		Comment string `json:"comment,omitempty"`
		AtMost  string `json:"atMost,omitempty"`
	}{comment, atMost})
}

// Deny ends a pending request.
func (c *Client) Deny(ctx context.Context, id, comment string) (Request, error) {
	return c.request(ctx, http.MethodPost, id, "/deny", struct {
		Comment string `json:"comment,omitempty"`
	}{comment})
}

// --- signing and approval ---

const pendingPath = "/api/v1/policies/pending"

// PendingPolicies lists policy documents that wait for a person's signature.
func (c *Client) PendingPolicies(ctx context.Context) iter.Seq2[PendingPolicy, error] {
	return list[PendingPolicy](ctx, c, pendingPath, url.Values{})
}

// PushPolicy brings a policy document back, signed by some or by all.
func (c *Client) PushPolicy(ctx context.Context, signed []byte) (a Accepted, err error) {
	_, err = c.do(ctx, call{method: http.MethodPost, path: pendingPath, in: envelope(signed), once: true}, &a)
	return a, err
}

// Trust returns the envelope of the trust document. Who calls must know by
// other means that it is the right one.
func (c *Client) Trust(ctx context.Context) ([]byte, error) {
	r, err := c.do(ctx, call{method: http.MethodGet, path: "/api/v1/trust.json"}, nil)
	return r.body, err
}

// approval makes a call about who must agree.
func (c *Client) approval(ctx context.Context, method, policy, ifMatch string, in any) (a *Approval, etag string, err error) {
	k, err := at(method, "/api/v1/policies", policy, "/approval")
	if err != nil {
		return nil, "", err
	}
	var said struct {
		Approval *Approval `json:"approval"`
	}
	var out any = &said
	if method == http.MethodDelete {
		out = nil
	}
	k.in, k.header = in, matching(ifMatch)
	r, err := c.do(ctx, k, out)
	return said.Approval, r.etag, err
}

// GetApproval returns who must agree to requests under a policy, nil for
// nobody, and the policy's ETag.
func (c *Client) GetApproval(ctx context.Context, policy string) (a *Approval, etag string, err error) {
	return c.approval(ctx, http.MethodGet, policy, "", nil)
}

// SetApproval says who must agree to requests under a policy; nil is nobody.
func (c *Client) SetApproval(ctx context.Context, policy string, a *Approval, ifMatch string) error {
	method, in := http.MethodPut, any(a)
	if a == nil {
		method, in = http.MethodDelete, nil
	}
	_, _, err := c.approval(ctx, method, policy, ifMatch, in)
	return err
}

// --- the activity log ---

const activityPath = "/api/v1/activity"

// ActivityFilter selects lines; empty fields select all.
type ActivityFilter struct {
	Scope, Event, Actor string
	From, To            time.Time // [From, To)
	Oldest              bool      // the oldest first
	PageSize            int       // 0: the server's
}

func (f ActivityFilter) query() url.Values {
	q := query("scope", f.Scope, "event", f.Event, "actor", f.Actor, "from", instant(f.From), "to", instant(f.To), "top", number(f.PageSize))
	if f.Oldest {
		q.Set("order", "oldest")
	}
	return q
}

// Activities lists lines of the activity log, the newest first.
func (c *Client) Activities(ctx context.Context, f ActivityFilter) iter.Seq2[Activity, error] {
	return list[Activity](ctx, c, activityPath, f.query())
}

// ActivityCSV writes the lines as CSV. After an error w has a part of them.
func (c *Client) ActivityCSV(ctx context.Context, f ActivityFilter, w io.Writer) error {
	q := f.query()
	q.Set("format", "csv")
	resp, err := c.send(ctx, call{method: http.MethodGet, path: activityPath, query: q, header: http.Header{"Accept": {"text/csv"}}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

// --- scopes, join tokens, roles, tokens ---

// Scopes lists where JIT is switched off, or on again.
func (c *Client) Scopes(ctx context.Context) iter.Seq2[ScopeSetting, error] {
	return list[ScopeSetting](ctx, c, "/api/v1/scopes", url.Values{})
}

// SetScope switches JIT off or on for a subscription or a resource group.
func (c *Client) SetScope(ctx context.Context, scope string, enabled bool, reason string) (s ScopeSetting, err error) {
	in := struct {
		Scope   string `json:"scope"`
		Enabled bool   `json:"enabled"`
		reasoned
	}{scope, enabled, reasoned{reason}}
	_, err = c.do(ctx, call{method: http.MethodPut, path: "/api/v1/scopes", in: in}, &s)
	return s, err
}

// Joins lists join tokens that could still be used.
func (c *Client) Joins(ctx context.Context) iter.Seq2[Join, error] {
	return list[Join](ctx, c, "/api/v1/joins", url.Values{})
}

// CreateJoin makes a join token, which is shown once.
func (c *Client) CreateJoin(ctx context.Context, in JoinInput) (token string, j Join, err error) {
	var out struct {
		Token string `json:"token"`
		Join  Join   `json:"join"`
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: "/api/v1/joins", in: in, single: true}, &out)
	return out.Token, out.Join, err
}

// RevokeJoin makes a join token useless.
func (c *Client) RevokeJoin(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: "/api/v1/joins/" + url.PathEscape(id)}, nil)
	return err
}

// Roles lists all roles, the built-in ones first.
func (c *Client) Roles(ctx context.Context) iter.Seq2[Role, error] {
	return list[Role](ctx, c, "/api/v1/roles", url.Values{})
}

// PutRole defines a role.
func (c *Client) PutRole(ctx context.Context, r Role) error {
	in := struct {
		Description string   `json:"description,omitempty"`
		Actions     []string `json:"actions"`
		NotActions  []string `json:"notActions,omitempty"`
	}{r.Description, r.Actions, r.NotActions}
	_, err := c.do(ctx, call{method: http.MethodPut, path: "/api/v1/roles/" + url.PathEscape(r.Name), in: in}, nil)
	return err
}

// DeleteRole removes a role that is given to nobody.
func (c *Client) DeleteRole(ctx context.Context, name string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: "/api/v1/roles/" + url.PathEscape(name)}, nil)
	return err
}

const assignmentsPath = "/api/v1/assignments"

// Assignments lists who has which role at a scope and below; an empty scope is
// everywhere.
func (c *Client) Assignments(ctx context.Context, scope string) iter.Seq2[Assignment, error] {
	return list[Assignment](ctx, c, assignmentsPath, query("scope", scope))
}

// Assign gives a role.
func (c *Client) Assign(ctx context.Context, a Assignment) error {
	_, err := c.do(ctx, call{method: http.MethodPost, path: assignmentsPath, in: a, once: true}, nil)
	return err
}

// Unassign takes a role away.
func (c *Client) Unassign(ctx context.Context, a Assignment) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: assignmentsPath, query: query("principal", a.Principal, "role", a.Role, "scope", a.Scope)}, nil)
	return err
}

// Tokens lists local tokens.
func (c *Client) Tokens(ctx context.Context) iter.Seq2[Token, error] {
	return list[Token](ctx, c, "/api/v1/tokens", url.Values{})
}

// CreateToken makes a local token, which is shown once.
func (c *Client) CreateToken(ctx context.Context, in TokenInput) (secret string, t Token, err error) {
	var out struct {
		Secret string `json:"secret"`
		Token  Token  `json:"token"`
	}
	_, err = c.do(ctx, call{method: http.MethodPost, path: "/api/v1/tokens", in: in, single: true}, &out)
	return out.Secret, out.Token, err
}

// RevokeToken makes a token useless.
func (c *Client) RevokeToken(ctx context.Context, id string) error {
	_, err := c.do(ctx, call{method: http.MethodDelete, path: "/api/v1/tokens/" + url.PathEscape(id)}, nil)
	return err
}

// Discover asks a control plane how people sign in. It needs no token.
func Discover(ctx context.Context, config Config) (l Login, err error) {
	config.Bearer = nil
	c, err := newClient(config)
	if err != nil {
		return l, err
	}
	defer c.Close()
	_, err = c.do(ctx, call{method: http.MethodGet, path: "/api/v1/login"}, &l)
	return l, err
}

// WhoAmI returns the caller as the server sees them.
func (c *Client) WhoAmI(ctx context.Context) (w Who, err error) {
	_, err = c.do(ctx, call{method: http.MethodGet, path: "/api/v1/whoami"}, &w)
	return w, err
}
