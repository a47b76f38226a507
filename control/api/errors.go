package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/jitgate/jitgate/control"
)

// refusal is an answer that is no success, as it goes out. The engine's
// refusals become one by status; those of HTTP itself are made here.
type refusal struct {
	status     int
	code       string
	message    string
	target     string
	retryAfter time.Duration // not zero: when to try again
}

func (e *refusal) Error() string { return e.message }

// refuse makes a *refusal.
func refuse(status int, code, format string, args ...any) *refusal {
	return &refusal{status: status, code: code, message: fmt.Sprintf(format, args...)}
}

// invalid is a refusal of what a request says.
func invalid(code, format string, args ...any) *refusal {
	return refuse(http.StatusBadRequest, code, format, args...)
}

// statuses are those of the engine's kinds of refusal.
var statuses = map[control.Kind]int{
	control.Invalid:      http.StatusBadRequest,
	control.Unknown:      http.StatusUnauthorized,
	control.Forbidden:    http.StatusForbidden,
	control.NotFound:     http.StatusNotFound,
	control.Conflict:     http.StatusConflict,
	control.Precondition: http.StatusPreconditionFailed,
	control.TooMany:      http.StatusTooManyRequests,
	control.Unavailable:  http.StatusServiceUnavailable,
}

// statusGone is logged and counted where the client went away before it got
// an answer. It is never sent.
const statusGone = 499

// refusalOf turns any failure into an answer. What is no refusal is our own
// fault: its text may hold anything, so it stays in the log, and ours is true.
func refusalOf(err error) (r *refusal, ours bool) {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r, false
	}
	if e := control.AsError(err); e != nil {
		status, known := statuses[e.Kind]
		if !known {
			status = http.StatusBadRequest
		}
		r := &refusal{status: status, code: e.Code, message: e.Message, target: e.Target}
		if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
			r.retryAfter = time.Second
		}
		return r, false
	}
	switch {
	case errors.Is(err, context.Canceled):
		return refuse(statusGone, "ClientClosedRequest", "The client closed the request."), false
	case errors.Is(err, context.DeadlineExceeded):
		return &refusal{status: http.StatusServiceUnavailable, code: "ServerBusy", message: "The server is busy. Try again later.", retryAfter: time.Second}, true
	}
	return refuse(http.StatusInternalServerError, "InternalServerError", "Internal server error has occurred. The x-ms-request-id header finds it in the server's log."), true
}

// errorBody is Azure's envelope of errors.
type errorBody struct {
	Error errorDetail `json:"error"`
}

type errorDetail struct {
	Code    string `json:"code"`
	Message string `json:"message"`
	Target  string `json:"target,omitempty"`
}

// refuse answers with a refusal.
func (c *call) refuse(r *refusal) {
	h := c.w.Header()
	h.Set("x-ms-error-code", r.code)
	if r.status == http.StatusUnauthorized {
		h.Set("WWW-Authenticate", c.challenge(r))
	}
	if r.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int((r.retryAfter+time.Second-1)/time.Second)))
	}
	c.write(r.status, errorBody{errorDetail{Code: r.code, Message: r.message, Target: r.target}})
}

// challenge says where tokens come from and, in RFC 6750's words, what is
// wrong with this one. A call without a token gets no error.
func (c *call) challenge(r *refusal) string {
	where := c.base() + "/"
	if c.api.TenantID != "" {
		where = "https://login.microsoftonline.com/" + c.api.TenantID
	}
	s := `Bearer authorization_uri="` + where + `"`
	if c.bearer == "" {
		return s
	}
	return s + `, error="invalid_token", error_description="` + quotable(r.message) + `"`
}

// quotable keeps of s what may stand in a quoted string of a header.
func quotable(s string) string {
	out := make([]byte, 0, len(s))
	for i := range len(s) {
		if b := s[i]; b >= ' ' && b < 0x7f && b != '"' && b != '\\' {
			out = append(out, b)
		}
	}
	return string(out)
}
