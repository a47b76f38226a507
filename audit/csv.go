package audit

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// columns are those of CSV, named as in the record.
var columns = []struct {
	name string
	cell func(Line) string
}{
	{"seq", func(l Line) string { return strconv.FormatUint(l.Seq, 10) }},
	{"time", func(l Line) string { return moment(l.Time) }},
	{"event", func(l Line) string { return plain(string(l.Name)) }},
	{"port", func(l Line) string { return number(uint64(l.Port)) }},
	{"protocol", func(l Line) string { return plain(l.Protocol) }},
	{"source", func(l Line) string { return plain(l.Source) }},
	{"end", func(l Line) string { return moment(l.End) }},
	{"grant", func(l Line) string { return plain(l.GrantID) }},
	{"requestor", func(l Line) string { return plain(l.Requestor) }},
	{"reason", func(l Line) string { return plain(l.Reason) }},
	{"code", func(l Line) string { return plain(l.Code) }},
	{"message", func(l Line) string { return plain(l.Message) }},
	{"connections", func(l Line) string { return number(l.Connections) }},
	{"first", func(l Line) string { return moment(l.First) }},
	{"last", func(l Line) string { return moment(l.Last) }},
	{"bytesIn", func(l Line) string { return number(l.BytesIn) }},
	{"bytesOut", func(l Line) string { return number(l.BytesOut) }},
	{"packetsIn", func(l Line) string { return number(l.PacketsIn) }},
	{"packetsOut", func(l Line) string { return number(l.PacketsOut) }},
	{"sessionsCut", func(l Line) string { return number(l.SessionsCut) }},
	{"logins", func(l Line) string { return number(l.Logins) }},
	{"sourcePort", func(l Line) string { return number(uint64(l.SourcePort)) }},
	{"account", func(l Line) string { return plain(l.Account) }},
	{"method", func(l Line) string { return plain(l.Method) }},
	{"key", func(l Line) string { return plain(l.Key) }},
	{"credential", func(l Line) string { return plain(l.Credential) }},
	{"atLeast", func(l Line) string { return yes(l.AtLeast) }},
	{"count", func(l Line) string { return number(l.Count) }},
	{"document", func(l Line) string { return plain(l.Document) }},
	{"version", func(l Line) string { return number(l.Version) }},
	{"digest", func(l Line) string { return plain(l.Digest) }},
	{"process", func(l Line) string { return plain(l.Process) }},
	{"pid", func(l Line) string { return number(uint64(max(l.PID, 0))) }},
	{"install", func(l Line) string { return plain(l.Install) }},
	{"formerInstall", func(l Line) string { return plain(l.FormerInstall) }},
	{"exposedMs", func(l Line) string { return number(uint64(max(l.ExposedMS, 0))) }},
	{"head", func(l Line) string { return plain(l.Event.Head) }},
	{"torn", func(l Line) string { return plain(l.Torn) }},
	{"prev", func(l Line) string { return plain(l.Prev) }},
	{"hash", func(l Line) string { return plain(l.Hash) }},
}

// CSV writes lines as RFC 4180 says, the first row with the names. Cells are
// made such that no spreadsheet takes one for a formula.
type CSV struct{ w *csv.Writer }

// NewCSV writes the first row.
func NewCSV(w io.Writer) (CSV, error) {
	c := CSV{csv.NewWriter(w)}
	c.w.UseCRLF = true
	var names []string
	for _, col := range columns {
		names = append(names, col.name)
	}
	return c, c.w.Write(names)
}

// Write writes a row.
func (c CSV) Write(l Line) error {
	row := make([]string, len(columns))
	for i, col := range columns {
		row[i] = col.cell(l)
	}
	return c.w.Write(row)
}

// Flush ends it.
func (c CSV) Flush() error {
	c.w.Flush()
	return c.w.Error()
}

// Plain is a text that others wrote as it may go onto a terminal, in one line:
// without control characters, and without such as turn the direction of
// writing around or cannot be seen. Tabs and newlines are spaces.
func Plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\t' || r == '\n' || r == '\r' || r == '\u2028' || r == '\u2029':
			return ' '
		case unicode.IsControl(r), unicode.Is(unicode.Cf, r), unicode.Is(unicode.Co, r), unicode.Is(unicode.Variation_Selector, r), r == '\u115f', r == '\u1160', r == '\u3164', r == '\uffa0':
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, "\ufffd"))
}

// formula are the characters that make a spreadsheet calculate, also where
// they stand in their full width.
const formula = "=+-@|%＝＋－＠｜％"

// plain is a text as a cell.
func plain(s string) string {
	s = Plain(s)
	if text := strings.TrimLeftFunc(s, unicode.IsSpace); strings.IndexAny(text, formula) == 0 {
		return "'" + s
	}
	return s
}
