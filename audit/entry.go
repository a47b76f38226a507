package audit

import (
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// field is one field of a journal entry.
type field struct{ name, value string }

// fields are what the journal gets of an entry. The names are constants: one
// that is taken from elsewhere could be forged. Fields that do not apply are
// left out.
func (e Entry) fields() []field {
	k, ok := kinds[e.Name]
	if !ok {
		k.priority = notice // an event that was added without a kind is seen all the same
	}
	list := []field{
		{"MESSAGE", e.Message},
		{"MESSAGE_ID", k.id},
		{"PRIORITY", strconv.Itoa(k.priority)},
		{"SYSLOG_FACILITY", "10"}, // authpriv
		{"SYSLOG_IDENTIFIER", "jitgate"},
		{"JITGATE_EVENT", string(e.Name)},
		{"JITGATE_SEQ", number(e.Seq)},
		{"JITGATE_PREV", e.Prev},
		{"JITGATE_HASH", e.Hash},
		{"JITGATE_TIME", moment(e.Time)},
		{"JITGATE_DOCUMENT", e.Document},
		{"JITGATE_VERSION", number(e.Version)},
		{"JITGATE_DIGEST", e.Digest},
		{"JITGATE_GRANT_ID", e.GrantID},
		{"JITGATE_PORT", number(uint64(e.Port))},
		{"JITGATE_PROTOCOL", e.Protocol},
		{"JITGATE_SOURCE", e.Source},
		{"JITGATE_END", moment(e.End)},
		{"JITGATE_REQUESTOR", e.Requestor},
		{"JITGATE_REASON", e.Reason},
		{"JITGATE_CODE", e.Code},
		{"JITGATE_PROCESS", e.Process},
		{"JITGATE_PID", number(uint64(max(e.PID, 0)))},
		{"JITGATE_INSTALL", e.Install},
		{"JITGATE_FORMER_INSTALL", e.FormerInstall},
		{"JITGATE_EXPOSED_MS", number(uint64(max(e.ExposedMS, 0)))},
		{"JITGATE_CONNECTIONS", number(e.Connections)},
		{"JITGATE_FIRST", moment(e.First)},
		{"JITGATE_LAST", moment(e.Last)},
		{"JITGATE_BYTES_IN", number(e.BytesIn)},
		{"JITGATE_BYTES_OUT", number(e.BytesOut)},
		{"JITGATE_PACKETS_IN", number(e.PacketsIn)},
		{"JITGATE_PACKETS_OUT", number(e.PacketsOut)},
		{"JITGATE_SESSIONS_CUT", number(e.SessionsCut)},
		{"JITGATE_LOGINS", number(e.Logins)},
		{"JITGATE_SOURCE_PORT", number(uint64(e.SourcePort))},
		{"JITGATE_ACCOUNT", e.Account},
		{"JITGATE_METHOD", e.Method},
		{"JITGATE_KEY", e.Key},
		{"JITGATE_CREDENTIAL", e.Credential},
		{"JITGATE_AT_LEAST", yes(e.AtLeast)},
		{"JITGATE_COUNT", number(e.Count)},
		{"JITGATE_HEAD", e.Head},
	}
	return slices.DeleteFunc(list, func(f field) bool { return f.value == "" })
}

func number(n uint64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatUint(n, 10)
}

func yes(b bool) string {
	if b {
		return "true"
	}
	return ""
}

func moment(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(timeLayout)
}

// maxValue bounds a value in the journal, in bytes: all long ones together fit
// into one datagram of a socket as the kernel makes it. The record has them
// whole.
const maxValue = 32 << 10

// datagram is an entry in the journal's native protocol. A value that is not
// plain text in one line goes with its length before it, so that nothing in it
// can pass for another field.
func (e Entry) datagram() []byte {
	var b []byte
	for _, f := range e.fields() {
		value := clip(f.value)
		b = append(b, f.name...)
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == utf8.RuneError }) {
			b = append(b, '\n')
			b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
		} else {
			b = append(b, '=')
		}
		b = append(b, value...)
		b = append(b, '\n')
	}
	return b
}

// clip cuts a value that is too long, and says so at its end.
func clip(s string) string {
	if len(s) <= maxValue {
		return s
	}
	s = s[:maxValue]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s[:max(0, len(s)-1)] + "…"
}
