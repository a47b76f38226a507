package audit

import (
	"encoding/json"
	"strings"
	"unicode/utf8"
)

// maxString bounds a string of Windows's event log, in UTF-16 units:
// ReportEventW takes 31,839.
const maxString = 31_000

// eventStrings are what the event log gets of an entry: its sentence, and the
// line of the record as JSON. One of the latter that is too long is left to the
// record, and named. A zero unit would end a string early.
func (e Entry) eventStrings() [2]string {
	text, err := json.Marshal(line{Seq: e.Seq, Prev: e.Prev, Time: e.Time.UTC().Format(timeLayout), Event: e.Event})
	if err != nil || units(string(text)) > maxString {
		text, _ = json.Marshal(line{Seq: e.Seq, Prev: e.Prev, Time: e.Time.UTC().Format(timeLayout), Event: Event{Name: e.Name, Message: "too long for this log: the record has it"}})
	}
	sentence := strings.ReplaceAll(e.Message, "\x00", "\ufffd")
	for units(sentence) > maxString {
		_, size := utf8.DecodeLastRuneInString(sentence)
		sentence = sentence[:len(sentence)-max(size, len(sentence)/4)]
	}
	return [2]string{strings.ToValidUTF8(sentence, "\ufffd"), string(text)}
}

// units is how long a string is in UTF-16, at most.
func units(s string) int {
	n := 0
	for _, r := range s {
		n++
		if r > 0xffff {
			n++
		}
	}
	return n
}

// eventID is the id of an entry in the event log. One that was added without an
// id is seen all the same.
func (e Entry) eventID() uint32 {
	if k, ok := kinds[e.Name]; ok {
		return k.event
	}
	return TextEventID
}
