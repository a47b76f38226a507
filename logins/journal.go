package logins

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"time"
)

// Entry is one that was read in the journal.
type Entry struct {
	Cursor string // the journal's name for it
	Login  *Login // nil: it tells of none
}

// maxEntry bounds an entry, in bytes: longer ones are left out. sshd's are
// shorter, and nobody else's count.
const maxEntry = 16 << 10

// MaxCursor bounds the journal's name for an entry, in bytes.
const MaxCursor = 512

// Read hands over the entries that journalctl writes with --output=json, one a
// line. It returns when they end.
func Read(r io.Reader, take func(Entry)) error {
	in := bufio.NewReaderSize(r, maxEntry)
	for {
		line, err := in.ReadSlice('\n')
		for errors.Is(err, bufio.ErrBufferFull) {
			line = nil
			_, err = in.ReadSlice('\n')
		}
		if errors.Is(err, io.EOF) {
			return nil // half an entry is none
		}
		if err != nil {
			return err
		}
		if e := entry(line); e.Cursor != "" {
			take(e)
		}
	}
}

// entry reads one. What it cannot read is the zero entry.
func entry(line []byte) Entry {
	// Of a field that stands twice, and of one that is no text, journalctl
	// makes a list: that is no string, and so not believed.
	var fields map[string]any
	if json.Unmarshal(line, &fields) != nil {
		return Entry{}
	}
	text := func(name string) string { s, _ := fields[name].(string); return s }
	e := Entry{Cursor: text("__CURSOR")}
	if !ValidCursor(e.Cursor) {
		return Entry{}
	}
	if !ofSSHD(text("_UID"), text("_COMM"), text("_SYSTEMD_UNIT")) {
		return e
	}
	l, ok := Parse(text("MESSAGE"))
	micros, err := strconv.ParseInt(text("__REALTIME_TIMESTAMP"), 10, 64)
	if !ok || err != nil {
		return e
	}
	l.Time = time.UnixMicro(micros).UTC()
	e.Login = &l
	return e
}

// ofSSHD reports whether sshd itself wrote an entry. The journal's daemon takes
// all three from the kernel: the user, the program, and the unit by its control
// group, which a container's root does not share. Since OpenSSH 9.8 a process
// of another name speaks for each connection.
func ofSSHD(uid, program, unit string) bool {
	name, _, _ := strings.Cut(strings.TrimSuffix(unit, ".service"), "@") // ssh@… where systemd has the socket
	return uid == "0" && (program == "sshd" || program == "sshd-session") && (name == "ssh" || name == "sshd") && strings.HasSuffix(unit, ".service")
}

// ValidCursor reports whether s may be a cursor of the journal.
func ValidCursor(s string) bool {
	return s != "" && len(s) <= MaxCursor && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789;=") == ""
}
