package uplink

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Genesis is the hash that stands for the line before the first.
var Genesis = hex.EncodeToString(make([]byte, sha256.Size))

// Line is a line of an agent's record, as far as a control plane reads it.
type Line struct {
	Seq  uint64
	Prev string // hash of the line before; Genesis before the first
	Hash string // of this line
	Text []byte

	Event     string
	Time      time.Time
	Message   string
	Document  string
	Version   uint64
	Digest    string // of the document's payload
	Grant     string
	Port      uint16
	Source    string
	End       time.Time
	Requestor string
	Reason    string
	Code      string
}

// lineJSON has the names of the audit format. Others are let through: the
// record may say more than this program knows of.
type lineJSON struct {
	Seq       uint64    `json:"seq"`
	Prev      string    `json:"prev"`
	Time      time.Time `json:"time"`
	Event     string    `json:"event"`
	Message   string    `json:"message"`
	Document  string    `json:"document"`
	Version   uint64    `json:"version"`
	Digest    string    `json:"digest"`
	Grant     string    `json:"grant"`
	Port      uint16    `json:"port"`
	Source    string    `json:"source"`
	End       time.Time `json:"end"`
	Requestor string    `json:"requestor"`
	Reason    string    `json:"reason"`
	Code      string    `json:"code"`
}

// ParseLine reads a line of a record as it stands in the file, without its
// newline. Texts in it come out trimmed.
func ParseLine(text []byte) (Line, error) {
	if len(text) > MaxLine {
		return Line{}, fmt.Errorf("the line has %d bytes, the limit is %d", len(text), MaxLine)
	}
	// As the agent's own record is read: encoding/json takes what it wrote.
	var raw lineJSON
	if err := json.Unmarshal(text, &raw); err != nil {
		return Line{}, fmt.Errorf("the line cannot be read: %w", err)
	}
	sum := sha256.Sum256(text)
	l := Line{Seq: raw.Seq, Prev: raw.Prev, Hash: hex.EncodeToString(sum[:]), Text: text,
		Event: raw.Event, Time: raw.Time.UTC(), Message: Trim(raw.Message), Document: Trim(raw.Document), Version: raw.Version, Digest: Trim(raw.Digest),
		Grant: Trim(raw.Grant), Port: raw.Port, Source: Trim(raw.Source), End: raw.End.UTC(),
		Requestor: Trim(raw.Requestor), Reason: Trim(raw.Reason), Code: Trim(raw.Code)}
	switch {
	case l.Seq == 0 || l.Seq > policy.MaxVersion || !isHash(l.Prev):
		return Line{}, fmt.Errorf("the line has no place in a record: seq %d after %q", l.Seq, clip(l.Prev))
	case l.Time.IsZero() || l.Time.Year() > 9999:
		return Line{}, fmt.Errorf("line %d has no time", l.Seq)
	case l.Event == "" || !fits(l.Event, maxWord):
		return Line{}, fmt.Errorf("line %d names no event", l.Seq)
	}
	if raw.End.IsZero() {
		l.End = time.Time{}
	}
	return l, nil
}

// Head is the end of a record that ends with l.
func (l Line) Head() Head { return Head{l.Seq, l.Hash} }

func isHash(s string) bool {
	return len(s) == 2*sha256.Size && strings.Trim(s, "0123456789abcdef") == ""
}
