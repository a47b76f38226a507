// Package policy decides what may be open. It is pure: bytes, a clock reading
// and the host's own name go in; a decision with reasons comes out. It touches
// no file, no kernel and no clock, and imports no other package of jitgate.
//
// A document travels one way through it:
//
//	envelope ─ Open ─► Verified ─ Admit ─► State ─ Evaluate ─► Decision
//
// Open is the only maker of a Verified document: it checks the signatures
// over the bytes as sent and decodes exactly those bytes. Admit holds a
// verified document against this host, the realm, the durable marks and the
// clock. Evaluate says which ports are guarded and judges each grant against
// the policy. Every refusal is a *Refusal with one Code.
//
// The signing side uses the same types and the same parser (Sign), so nothing
// can be published that an agent would not read.
package policy

import (
	"errors"
	"fmt"
)

// Limits of every document, checked before and after verification.
const (
	MaxEnvelope   = 512 << 10 // bytes of an envelope file
	MaxPayload    = 256 << 10 // bytes of the payload inside
	MaxSignatures = 16
	MaxDepth      = 6 // nesting of JSON objects and arrays
	MaxGrants     = 1024
	MaxPorts      = 256
	MaxPrefixes   = 256       // in a policy's lists: allowed sources of a port, exempt sources
	MaxKeys       = 64        // in a trust document
	MaxVersion    = 1<<53 - 1 // the largest integer every JSON reader keeps exactly
)

// A Code names why a document or a grant was refused. The list is part of the
// audit format: codes are added, never renamed.
type Code string

// The refusal codes.
const (
	Unsigned        Code = "unsigned"           // no signature, or nothing on this host that could check one
	BadSignature    Code = "bad-signature"      // fewer valid signatures than the role asks for
	WrongType       Code = "wrong-type"         // a document of another type than the one expected here
	Malformed       Code = "malformed"          // not the format, or not readable as it should be
	TooLarge        Code = "too-large"          // beyond a size limit
	WrongRealm      Code = "wrong-realm"        // signed for another realm
	WrongHost       Code = "wrong-host"         // signed for another host or another installation
	Rollback        Code = "rollback"           // older than what was admitted before
	Equivocation    Code = "equivocation"       // the version admitted before, with other bytes
	Expired         Code = "expired"            // its end has passed
	NotYet          Code = "not-yet"            // issued in the future, or a version too far ahead
	StalePolicy     Code = "stale-policy"       // grants made for a newer policy or trust than this host has
	ClockBehind     Code = "clock-behind"       // this host's clock is behind a signed time
	PortNotInPolicy Code = "port-not-in-policy" // the grant names a port the policy does not guard
	SourceRefused   Code = "source-not-allowed" // a source outside the policy's allowed prefixes
	TooLong         Code = "too-long"           // longer than maxRequestAccessDuration
	TooWide         Code = "too-wide"           // a source prefix shorter than narrowestPrefix4 or 6
	NotDurable      Code = "not-durable"        // the mark or the record could not be written
)

// A Refusal says why something was refused, in a code for machines and a
// sentence for people that names the bound and the value that broke it.
type Refusal struct {
	Code   Code
	Detail string
}

func (r *Refusal) Error() string { return string(r.Code) + ": " + r.Detail }

// Refuse makes a *Refusal.
func Refuse(code Code, format string, args ...any) error {
	return &Refusal{Code: code, Detail: fmt.Sprintf(format, args...)}
}

// CodeOf returns the code of err if a Refusal is in its chain, else "".
func CodeOf(err error) Code {
	if r, ok := errors.AsType[*Refusal](err); ok {
		return r.Code
	}
	return ""
}
