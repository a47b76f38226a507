package api

import (
	"context"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/jitgate/jitgate/control"
)

// call is one call while it is answered.
type call struct {
	api     *API
	w       http.ResponseWriter
	r       *http.Request
	ctx     context.Context
	id      string
	address netip.Addr
	route   *route
	params  map[string]string
	query   url.Values
	bearer  string
	caller  control.Caller
	body    []byte
}

// base is the server's address as the client knows it, without a slash at
// the end.
func (c *call) base() string {
	if c.api.PublicURL != "" {
		return c.api.PublicURL
	}
	scheme := "https"
	if c.r.TLS == nil {
		scheme = "http"
	}
	return scheme + "://" + c.r.Host
}

// write sends v as JSON.
func (c *call) write(status int, v any) {
	b, err := json.Marshal(v, json.Deterministic(true))
	if err != nil {
		panic("api: encoding an answer: " + err.Error()) // our own plain structs
	}
	c.writeJSON(status, b)
}

func (c *call) writeJSON(status int, b []byte) {
	h := c.w.Header()
	h.Set("Content-Type", "application/json; charset=utf-8")
	h.Set("Content-Length", strconv.Itoa(len(b)))
	c.w.WriteHeader(status)
	c.w.Write(b) // a client that went away is its own problem
}

// empty answers without a body.
func (c *call) empty(status int) error {
	c.w.WriteHeader(status)
	return nil
}

// ok answers 200 with v.
func (c *call) ok(v any) error {
	c.write(http.StatusOK, v)
	return nil
}

// policyID is the policy that the path names.
func (c *call) policyID() control.PolicyID {
	return control.PolicyID{Subscription: c.params["subscription"], Group: c.params["group"], Location: c.params["location"], Name: c.params["policy"]}
}

// vmID is the machine that the path names.
func (c *call) vmID() (control.VMID, error) {
	id, err := control.ParseVMID("/subscriptions/" + c.params["subscription"] + "/resourceGroups/" + c.params["group"] +
		"/providers/" + c.params["namespace"] + "/" + c.params["type"] + "/" + c.params["vm"])
	if err != nil {
		return id, invalid("InvalidResourceId", "%v.", err)
	}
	return id, nil
}

// one returns a parameter of the query that may stand there once. Azure takes
// their names in any letter case.
func (c *call) one(name string) (string, error) {
	var found []string
	for key, values := range c.query {
		if strings.EqualFold(key, name) {
			found = append(found, values...)
		}
	}
	switch len(found) {
	case 0:
		return "", nil
	case 1:
		return found[0], nil
	}
	return "", invalid("InvalidQueryParameter", "The query parameter %q is given more than once.", name)
}

// maxPage is the most a page may have.
const maxPage = 1000

// top reads how long a page shall be.
func (c *call) top(name string, otherwise int) (int, error) {
	s, err := c.one(name)
	if err != nil || s == "" {
		return otherwise, err
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, invalid("InvalidQueryParameter", "%s=%s: say a number from 1 to %d.", name, clip(s), maxPage)
	}
	return min(n, maxPage), nil
}

// revision is the revision in If-Match, which is one ETag or "*".
func (c *call) revision() (string, error) {
	values := c.r.Header.Values("If-Match")
	switch {
	case len(values) == 0:
		return "", nil
	case len(values) > 1 || strings.Contains(values[0], ","):
		return "", invalid("InvalidHeader", "If-Match takes one ETag.")
	}
	s := strings.TrimSpace(values[0])
	if s == "*" {
		return s, nil
	}
	inner, opened := strings.CutPrefix(s, `"`)
	inner, closed := strings.CutSuffix(inner, `"`)
	if n, err := strconv.ParseUint(inner, 10, 64); opened && closed && err == nil && strconv.FormatUint(n, 10) == inner {
		return inner, nil
	}
	// Weak, or never one of ours: it cannot match.
	return "", refuse(http.StatusPreconditionFailed, "PreconditionFailed", "The ETag %s is none of this resource. Get it again and edit that.", clip(s))
}

// absent reports whether the caller wants there to be none yet.
func (c *call) absent() (bool, error) {
	switch s := c.r.Header.Get("If-None-Match"); s {
	case "":
		return false, nil
	case "*":
		return true, nil
	default:
		return false, invalid("InvalidHeader", `If-None-Match takes only "*" here.`)
	}
}

// etag says what revision the answer is of.
func (c *call) etag(revision uint64) {
	c.w.Header().Set("ETag", `"`+strconv.FormatUint(revision, 10)+`"`)
}
