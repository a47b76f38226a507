package control

import (
	"errors"
	"fmt"
)

// Kind is what sort of refusal an Error is; the API turns each into a status.
type Kind int

// The kinds of refusal.
const (
	Invalid      Kind = iota // the input is wrong: 400
	Unknown                  // no valid credentials: 401
	Forbidden                // the caller may not: 403
	NotFound                 // 404
	Conflict                 // somebody else changed it, or it stands already: 409
	Precondition             // If-Match does not hold: 412
	TooMany                  // rate or quota: 429
	Unavailable              // nothing is wrong with the request; try again: 503
)

// Error is a refusal: nothing was changed. Message is for the caller and says
// what to do; Code is a fixed word of Azure's where Azure has one.
type Error struct {
	Kind    Kind
	Code    string
	Message string
	Target  string // the part of the input it is about, if one
}

func (e *Error) Error() string { return e.Message }

// Refuse makes an *Error.
func Refuse(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// AsError returns the *Error in err's chain, or nil: then the failure is ours.
func AsError(err error) *Error {
	e, _ := errors.AsType[*Error](err)
	return e
}

// ErrNotFound is what a Store returns for what it does not have.
var ErrNotFound = errors.New("not in the store")
