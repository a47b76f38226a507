// Package uplink is what both ends of the line between a control plane and a
// host's fetcher share: the join token, the messages, the paths and the
// WebSocket that carries them.
//
// What goes down are signed documents, which the fetcher does not judge: the
// agent does. What goes up is a report: which documents are in force, what is
// open, and the lines of the agent's record. Both directions are JSON, read
// strictly and within limits, the same on the WebSocket and on the poll.
package uplink

import (
	"bytes"
	"errors"
	"fmt"
	"io"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/jitgate/jitgate/policy"
)

// The routes of the line. All but the first two take the identity of the
// connection's certificate and no other.
const (
	PathCA        = "/agent/v1/ca.pem"     // GET: what the server's certificate is signed by
	PathEnroll    = "/agent/v1/enroll"     // POST: EnrollRequest → Certificate
	PathRenew     = "/agent/v1/renew"      // POST: RenewRequest → Certificate
	PathLine      = "/agent/v1/line"       // GET: a WebSocket of Up and Down
	PathPoll      = "/agent/v1/poll"       // POST: Up → Down
	PathDocuments = "/agent/v1/documents/" // GET: trust.json, policy.json, grants.json
)

// Proto is what a fetcher offers to speak besides HTTP when it connects (ALPN, RFC
// 7301). Nobody takes the offer: it tells a server whose handshake this is before
// it has worked on it.
const Proto = "jitgate-agent"

// Limits of what is read, in bytes.
const (
	MaxUp        = 2 << 20
	MaxDown      = 3 * MaxDocument
	MaxDocument  = policy.MaxEnvelope/3*4 + 1<<10 // as it stands in a Down, in base64
	MaxSmall     = 32 << 10                       // enrolment and renewal, asked; ca.pem
	MaxEnrolled  = policy.MaxEnvelope/3*4 + 64<<10
	MaxLine      = 256 << 10 // one line of a record: as long as the agent writes
	maxLines     = 1000      // of a record, in one Up
	maxListed    = policy.MaxGrants
	maxWord      = 256
	maxText      = 2 << 10
	MaxBackOff   = 3600 // seconds
	MaxWait      = 50   // seconds a poll waits at most
	maxDocuments = 3
)

// Versions are those of the documents in force on a host; 0 is none.
type Versions struct {
	Trust  uint64 `json:"trust,omitzero"`
	Policy uint64 `json:"policy,omitzero"`
	Grants uint64 `json:"grants,omitzero"`
}

// Of returns the version of one type.
func (v Versions) Of(t policy.Type) uint64 {
	switch t {
	case policy.TypeTrust:
		return v.Trust
	case policy.TypePolicy:
		return v.Policy
	case policy.TypeGrants:
		return v.Grants
	}
	return 0
}

// Head is the end of a chain of audit lines. The zero Head is before the
// first line.
type Head struct {
	Seq  uint64 `json:"seq"`
	Hash string `json:"hash"` // SHA-256 of the line, hexadecimal
}

// Up is what a fetcher says.
type Up struct {
	// Have are the versions in force, as the agent said when it last answered.
	Have Versions `json:"have,omitzero"`
	// Held are documents that were delivered and are not in force: they are not
	// sent again.
	Held   []Held  `json:"held,omitempty"`
	Status *Status `json:"status,omitempty"` // nil: the agent does not answer
	// Lines are those of the agent's record that follow the last Ack, byte by
	// byte as they stand in the file.
	Lines [][]byte `json:"lines,omitempty"`
	Head  Head     `json:"head,omitzero"` // of the agent's record
	Wait  int      `json:"wait,omitzero"` // seconds a poll may wait for something to say
}

// Held is a document that lies in the inbox and is not in force.
type Held struct {
	Type    policy.Type   `json:"type"`
	Version uint64        `json:"version"`
	Digest  policy.Digest `json:"digest"`            // of its payload
	Refusal string        `json:"refusal,omitempty"` // what the agent says of it; empty: nothing yet
}

// Status is the agent in short.
type Status struct {
	Mode    string   `json:"mode"`
	Version string   `json:"version,omitempty"` // of the program
	Install string   `json:"install,omitempty"`
	Open    []string `json:"open,omitempty"`    // ids of the grants in force
	Blocked string   `json:"blocked,omitempty"` // why nothing may open
	Problem string   `json:"problem,omitempty"`
}

// Down is what a control plane says.
type Down struct {
	Documents []Document `json:"documents,omitempty"`
	// Ack is the newest line the control plane has of this host's record, said
	// first on every connection and after every Up with lines.
	Ack *Head `json:"ack,omitempty"`
	// Refused says why lines were not taken, nor will be on this connection.
	Refused string `json:"refused,omitempty"`
	// BackOff asks the fetcher to go, and to come back no earlier than this
	// many seconds from now.
	BackOff int  `json:"backOff,omitzero"`
	Renew   bool `json:"renew,omitzero"` // the certificate is due for renewal
}

// Document is a signed document on its way.
type Document struct {
	Type    policy.Type `json:"type"`
	Version uint64      `json:"version"`
	Signed  []byte      `json:"signed"` // the envelope
}

// EnrollRequest asks for a first certificate.
type EnrollRequest struct {
	Token   string `json:"token"`
	Host    string `json:"host"`              // host_id of the settings
	CSR     []byte `json:"csr"`               // PKCS#10, DER
	Install string `json:"install,omitempty"` // of the agent, where it runs already
	Version string `json:"version,omitempty"` // of the program
}

// RenewRequest asks for a certificate for a new key.
type RenewRequest struct {
	CSR []byte `json:"csr"` // PKCS#10, DER
}

// Certificate is the answer to both.
type Certificate struct {
	Host  string `json:"host"`            // the machine's id, as the control plane spells it
	Chain []byte `json:"chain"`           // PEM
	Trust []byte `json:"trust,omitempty"` // on enrolment: the trust document's envelope
}

// errText says what makes text unfit.
var errText = errors.New("holds control characters or is too long")

// Documents are the three types in the order they depend on each other.
var Documents = [...]policy.Type{policy.TypeTrust, policy.TypePolicy, policy.TypeGrants}

// File is a document's name, in an inbox and below PathDocuments.
func File(t policy.Type) string {
	switch t {
	case policy.TypeTrust:
		return "trust.json"
	case policy.TypePolicy:
		return "policy.json"
	case policy.TypeGrants:
		return "grants.json"
	}
	return ""
}

// ParseUp reads an Up, at most MaxUp bytes of it.
func ParseUp(data []byte) (Up, error) {
	var u Up
	if err := decode(data, MaxUp, &u); err != nil {
		return Up{}, err
	}
	return u, u.check()
}

func (u Up) check() error {
	if len(u.Lines) > maxLines {
		return fmt.Errorf("%d lines, the limit is %d", len(u.Lines), maxLines)
	}
	for i, l := range u.Lines {
		if len(l) == 0 || len(l) > MaxLine || bytes.ContainsAny(l, "\n\r") {
			return fmt.Errorf("lines[%d] is not one line of at most %d bytes", i, MaxLine)
		}
	}
	if len(u.Held) > maxDocuments {
		return fmt.Errorf("%d documents are held, the limit is %d", len(u.Held), maxDocuments)
	}
	for i, h := range u.Held {
		if File(h.Type) == "" {
			return fmt.Errorf("held[%d]: %q is none of the documents", i, clip(string(h.Type)))
		}
		if !fits(h.Refusal, maxText) {
			return fmt.Errorf("held[%d].refusal %w", i, errText)
		}
	}
	for _, v := range []uint64{u.Have.Trust, u.Have.Policy, u.Have.Grants} {
		if v > policy.MaxVersion {
			return fmt.Errorf("version %d is more than 2^53-1", v)
		}
	}
	if u.Wait < 0 || u.Wait > MaxWait {
		return fmt.Errorf("wait %d is outside 0 to %d", u.Wait, MaxWait)
	}
	if err := u.Head.check(); err != nil {
		return fmt.Errorf("head: %w", err)
	}
	return u.Status.check()
}

func (s *Status) check() error {
	if s == nil {
		return nil
	}
	for _, w := range append([]string{s.Mode, s.Version, s.Install}, s.Open...) {
		if !fits(w, maxWord) {
			return fmt.Errorf("status: %q %w", clip(w), errText)
		}
	}
	if len(s.Open) > maxListed {
		return fmt.Errorf("status: %d open grants, the limit is %d", len(s.Open), maxListed)
	}
	if !fits(s.Blocked, maxText) || !fits(s.Problem, maxText) {
		return fmt.Errorf("status: a text %w", errText)
	}
	return nil
}

func (h Head) check() error {
	if h == (Head{}) {
		return nil
	}
	if h.Seq == 0 || h.Seq > policy.MaxVersion || !isHash(h.Hash) {
		return fmt.Errorf("seq %d with hash %q is no line of a record", h.Seq, clip(h.Hash))
	}
	return nil
}

// ParseDown reads a Down, at most MaxDown bytes of it. The envelopes in it are
// not read.
func ParseDown(data []byte) (Down, error) {
	var d Down
	if err := decode(data, MaxDown, &d); err != nil {
		return Down{}, err
	}
	if len(d.Documents) > maxDocuments {
		return Down{}, fmt.Errorf("%d documents, the limit is %d", len(d.Documents), maxDocuments)
	}
	for i, doc := range d.Documents {
		if File(doc.Type) == "" || len(doc.Signed) > policy.MaxEnvelope {
			return Down{}, fmt.Errorf("documents[%d], %d bytes of type %q, is none of the documents", i, len(doc.Signed), clip(string(doc.Type)))
		}
	}
	if d.Ack != nil {
		if err := d.Ack.check(); err != nil {
			return Down{}, fmt.Errorf("ack: %w", err)
		}
	}
	if d.BackOff < 0 || d.BackOff > MaxBackOff {
		return Down{}, fmt.Errorf("back-off %d is outside 0 to %d", d.BackOff, MaxBackOff)
	}
	if !fits(d.Refused, maxText) {
		return Down{}, fmt.Errorf("refused %w", errText)
	}
	return d, nil
}

// ParseEnrollRequest reads an EnrollRequest, at most MaxSmall bytes of it.
func ParseEnrollRequest(data []byte) (q EnrollRequest, err error) {
	if err = decode(data, MaxSmall, &q); err != nil {
		return EnrollRequest{}, err
	}
	for _, w := range []string{q.Install, q.Version} {
		if !fits(w, maxWord) {
			return EnrollRequest{}, fmt.Errorf("%q %w", clip(w), errText)
		}
	}
	return q, nil
}

// ParseRenewRequest reads a RenewRequest, at most MaxSmall bytes of it.
func ParseRenewRequest(data []byte) (q RenewRequest, err error) {
	if err = decode(data, MaxSmall, &q); err != nil {
		return RenewRequest{}, err
	}
	return q, nil
}

// ParseCertificate reads a Certificate, at most MaxEnrolled bytes of it.
func ParseCertificate(data []byte) (c Certificate, err error) {
	if err = decode(data, MaxEnrolled, &c); err != nil {
		return Certificate{}, err
	}
	return c, nil
}

// Encode writes a message as the Parse functions read it. Text that is not
// UTF-8 comes out with U+FFFD in place of what it was.
func Encode[M Up | Down | EnrollRequest | RenewRequest | Certificate](m M) []byte {
	b, err := json.Marshal(m, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic("uplink: encoding: " + err.Error()) // our own plain structs
	}
	return b
}

// Trim makes text fit a message: no control characters, no more than fits.
func Trim(s string) string {
	clean := bytes.Map(func(r rune) rune {
		if control(r) {
			return ' '
		}
		return r
	}, []byte(s))
	if len(clean) > maxText {
		clean = bytes.ToValidUTF8(clean[:maxText], nil)
	}
	return string(clean)
}

// decode reads one JSON object strictly: repeated, unknown and differently
// spelled names, invalid UTF-8 and data behind the end are refused.
func decode(data []byte, limit int, v any) error {
	if len(data) > limit {
		return fmt.Errorf("the message has %d bytes, the limit is %d", len(data), limit)
	}
	d := jsontext.NewDecoder(bytes.NewReader(data))
	if d.PeekKind() != '{' {
		return errors.New("the message is not a JSON object")
	}
	if err := json.UnmarshalDecode(d, v, json.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("the message cannot be read: %w", err)
	}
	if _, err := d.ReadToken(); !errors.Is(err, io.EOF) {
		return errors.New("the message goes on behind its end")
	}
	return nil
}

func fits(s string, limit int) bool {
	if len(s) > limit {
		return false
	}
	for _, r := range s {
		if control(r) {
			return false
		}
	}
	return true
}

func control(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}
