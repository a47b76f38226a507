package logins

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"
)

// written is an entry of sshd as journalctl writes it.
func written(cursor, message string, edit map[string]any) string {
	fields := map[string]any{"__CURSOR": cursor, "__REALTIME_TIMESTAMP": "1795348800000001", "__MONOTONIC_TIMESTAMP": "5", "_BOOT_ID": "b",
		"_UID": "0", "_COMM": "sshd", "_SYSTEMD_UNIT": "ssh.service", "MESSAGE": message}
	maps.Copy(fields, edit)
	text, err := json.Marshal(fields)
	if err != nil {
		panic(err)
	}
	return string(text) + "\n"
}

const in = "Accepted password for alice from 192.0.2.1 port 50000 ssh2"

// Whoever else writes that he is sshd is not believed.
func TestWhoIsBelieved(t *testing.T) {
	type fields = map[string]any
	for _, c := range []struct {
		edit fields
		want bool
	}{
		{nil, true},
		{fields{"_COMM": "sshd-session"}, true}, // since OpenSSH 9.8
		{fields{"_SYSTEMD_UNIT": "sshd.service"}, true},
		{fields{"_SYSTEMD_UNIT": "ssh@0-192.0.2.9:22-192.0.2.1:50000.service"}, true},
		{fields{"_SYSTEMD_UNIT": "sshd@7.service"}, true},

		{fields{"_UID": "1000"}, false}, // logger -t sshd
		{fields{"_UID": 0}, false},
		{fields{"_UID": nil}, false},
		{fields{"_UID": []string{"0", "1000"}}, false},
		{fields{"_COMM": "logger"}, false},
		{fields{"_COMM": nil}, false},
		{fields{"_SYSTEMD_UNIT": nil}, false},
		{fields{"_SYSTEMD_UNIT": "session-3.scope"}, false},
		{fields{"_SYSTEMD_UNIT": "docker-0123456789ab.scope"}, false}, // a container's root, with the journal's socket
		{fields{"_SYSTEMD_UNIT": "sshd-evil.service"}, false},
		{fields{"_SYSTEMD_UNIT": "ssh@x.scope"}, false},
		{fields{"_SYSTEMD_UNIT": "user@1000.service", "_SYSTEMD_USER_UNIT": "ssh.service"}, false},
		{fields{"MESSAGE": []string{in, in}}, false}, // a field that stands twice
		{fields{"MESSAGE": []int{65, 66}}, false},
		{fields{"MESSAGE": nil}, false},
		{fields{"__REALTIME_TIMESTAMP": "soon"}, false},
	} {
		var got []Entry
		err := Read(strings.NewReader(written("s=1;i=2", in, c.edit)), func(e Entry) { got = append(got, e) })
		if err != nil || len(got) != 1 || got[0].Cursor != "s=1;i=2" || (got[0].Login != nil) != c.want {
			t.Errorf("%v: %+v, %v", c.edit, got, err)
		}
		if c.want && len(got) == 1 && (got[0].Login.Account != "alice" || !got[0].Login.Time.Equal(time.UnixMicro(1795348800000001))) {
			t.Errorf("%v: %+v", c.edit, got[0].Login)
		}
	}
}

// What is no entry, and what is too long, is left out; what comes behind is
// read.
func TestReadGoesOn(t *testing.T) {
	var got []string
	text := "{\n" + written("", in, nil) + written("s=--help X", in, nil) + written("s=1", strings.Repeat("x", 3*maxEntry), nil) +
		"null\n[]\n" + written("s=2", "Failed password for a from 192.0.2.1 port 1 ssh2", nil) + written("s=3", in, nil) + `{"__CURSOR":"s=4"`
	err := Read(strings.NewReader(text), func(e Entry) { got = append(got, fmt.Sprint(e.Cursor, " ", e.Login != nil)) })
	if want := "[s=2 false s=3 true]"; err != nil || fmt.Sprint(got) != want {
		t.Errorf("%v, want %s; %v", got, want, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(written("s=1", in, nil)))
	f.Add([]byte("{\n\x00[]\n" + written("s=1", in, map[string]any{"_UID": "1000"})))
	f.Fuzz(func(t *testing.T, text []byte) {
		err := Read(strings.NewReader(string(text)), func(e Entry) {
			if !ValidCursor(e.Cursor) || e.Login != nil && e.Login.Time.IsZero() {
				t.Errorf("%+v", e)
			}
		})
		if err != nil {
			t.Error(err)
		}
	})
}
