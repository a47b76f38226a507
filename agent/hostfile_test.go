package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jitgate/jitgate/policy"
)

func TestContradicts(t *testing.T) {
	for name, c := range map[string]struct {
		a, b Machine
		want bool
	}{
		"nothing known":                 {Machine{}, Machine{}, false},
		"nothing known then":            {Machine{}, Machine{"a", "b"}, false},
		"nothing known now":             {Machine{"a", "b"}, Machine{}, false},
		"the same":                      {Machine{"a", "b"}, Machine{"a", "b"}, false},
		"another machine id":            {Machine{"a", "b"}, Machine{"x", "b"}, true},
		"another board":                 {Machine{"a", "b"}, Machine{"a", "x"}, true},
		"one of each":                   {Machine{"a", ""}, Machine{"", "b"}, false},
		"the id alone differs":          {Machine{"a", ""}, Machine{"x", "b"}, true},
		"the board alone differs":       {Machine{"", "b"}, Machine{"a", "x"}, true},
		"the id of one, the other's":    {Machine{"a", "b"}, Machine{"b", "a"}, true},
		"the same id, board unreadable": {Machine{"a", "b"}, Machine{"a", ""}, false},
	} {
		if got := c.a.contradicts(c.b); got != c.want || c.b.contradicts(c.a) != got {
			t.Errorf("%s: %t, want %t", name, got, c.want)
		}
	}
}

// The facts are hashes, each of its own kind; letter case and the newline are
// no part of one.
func TestFact(t *testing.T) {
	// printf 'jitgate machine 1\0machine-id\0%s' … | sha256sum
	const want = "80fc1acb55bf9e05d58919cd632fc750816c9a3e41f7035617187faf0be20b9b"
	id := strings.Repeat("1", 32)
	got := fact("machine-id", id+"\n")
	if got != want {
		t.Errorf("the fact of %s is %s", id, got)
	}
	if fact("product-uuid", "4C4C4544-0035") != fact("product-uuid", "4c4c4544-0035\n") {
		t.Error("letter case counts")
	}
	if got == fact("product-uuid", id) {
		t.Error("facts of two kinds are alike")
	}
	if fact("machine-id", " \n") != "" {
		t.Error("an empty value is a fact")
	}
}

// loadHost is what the settings make of host.json.
func loadHost(t *testing.T, settings, host string) (Settings, error) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "agent.toml")
	if err := os.WriteFile(config, []byte(settings), 0o644); err != nil {
		t.Fatal(err)
	}
	if host != "" {
		if err := os.WriteFile(HostFilePath(config), []byte(host), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return LoadSettings(config)
}

func TestHostID(t *testing.T) {
	id, err := MachineID()
	if err != nil {
		t.Skip(err)
	}
	const file = `{"id":"arn:x","from":"ec2","machine":{}}`
	for name, c := range map[string]struct {
		settings, host         string
		id, from, note, reason string
	}{
		"written down":        {`host_id = "web1"`, file, "web1", FromSettings, "", ""},
		"auto, no file":       {`host_id = "auto"`, "", id, FromMachineID, "jitgate host-id --write", ""},
		"auto, a file":        {`host_id = "auto"`, file, "arn:x", "ec2", "", ""},
		"this machine's":      {`host_id = "auto"`, `{"id":"arn:x","from":"ec2","machine":{"machineID":"` + fact("machine-id", id) + `"}}`, "arn:x", "ec2", "", ""},
		"another machine's":   {`host_id = "auto"`, `{"id":"arn:x","from":"ec2","machine":{"machineID":"` + fact("machine-id", "x") + `"}}`, id, FromMachineID, "jitgate host-id --write", "another machine"},
		"not JSON":            {`host_id = "auto"`, "arn:x", id, FromMachineID, "jitgate host-id --write", "invalid character"},
		"nothing":             {`host_id = "auto"`, "null", id, FromMachineID, "jitgate host-id --write", "host.id is empty"},
		"no origin":           {`host_id = "auto"`, `{"id":"arn:x"}`, id, FromMachineID, "jitgate host-id --write", "where the id is from"},
		"an id nobody names":  {`host_id = "auto"`, `{"id":"büro","from":"azure"}`, id, FromMachineID, "jitgate host-id --write", "ASCII"},
		"513 bytes":           {`host_id = "auto"`, `{"id":"` + strings.Repeat("x", 513) + `","from":"azure"}`, id, FromMachineID, "jitgate host-id --write", "513 bytes"},
		"larger than 16 KiB":  {`host_id = "auto"`, file + strings.Repeat(" ", maxHostFile), id, FromMachineID, "jitgate host-id --write", "more than 16384 bytes"},
		"something behind it": {`host_id = "auto"`, file + file, id, FromMachineID, "jitgate host-id --write", "invalid character"},
	} {
		s, err := loadHost(t, c.settings, c.host)
		if err != nil || s.HostID != c.id || s.HostFrom != c.from || !strings.Contains(s.HostNote, c.note) || (c.note == "") != (s.HostNote == "") ||
			!strings.Contains(s.HostRefused, c.reason) || (c.reason == "") != (s.HostRefused == "") {
			t.Errorf("%s: %v, %+v", name, err, s)
		}
	}
}

// What was written is what is read, by all, and whole.
func TestHostFileWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), hostFile)
	if _, err := LoadHostFile(path, Machine{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	h := HostFile{ID: "arn:x", From: "ec2", Machine: Machine{"a", "b"}, Written: noon}
	for range 2 {
		if err := h.Write(path); err != nil {
			t.Fatal(err)
		}
		if got, err := LoadHostFile(path, Machine{"a", ""}); err != nil || got != h {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
		t.Errorf("the directory holds %v", left)
	}
}

func FuzzParseHostFile(f *testing.F) {
	f.Add([]byte(`{"id":"arn:x","from":"ec2","machine":{"machineID":"a","productUUID":"b"},"written":"2026-11-22T12:00:00Z"}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if h, err := parseHostFile(text); err == nil && (policy.CheckHostID(h.ID) != nil || h.From == "") {
			t.Errorf("accepted %+v", h)
		}
	})
}
