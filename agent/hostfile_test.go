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

func TestHostID(t *testing.T) {
	const file, id = `{"id":"arn:x","from":"ec2","machine":{}}`, "11111111111111111111111111111111"
	here := Machine{MachineID: fact("machine-id", id)}
	for name, c := range map[string]struct{ host, id, from, reason string }{
		"no file":             {"", id, FromMachineID, ""},
		"a file":              {file, "arn:x", "ec2", ""},
		"this machine's":      {`{"id":"arn:x","from":"ec2","machine":{"machineID":"` + here.MachineID + `"}}`, "arn:x", "ec2", ""},
		"another machine's":   {`{"id":"arn:x","from":"ec2","machine":{"machineID":"` + fact("machine-id", "x") + `"}}`, id, FromMachineID, "another machine"},
		"not JSON":            {"arn:x", id, FromMachineID, "invalid character"},
		"nothing":             {"null", id, FromMachineID, "host.id is empty"},
		"no origin":           {`{"id":"arn:x"}`, id, FromMachineID, "where the id is from"},
		"an id nobody names":  {`{"id":"büro","from":"azure"}`, id, FromMachineID, "ASCII"},
		"513 bytes":           {`{"id":"` + strings.Repeat("x", 513) + `","from":"azure"}`, id, FromMachineID, "513 bytes"},
		"larger than 16 KiB":  {file + strings.Repeat(" ", int(hostFileTerms.limit)), id, FromMachineID, "the limit is 16384"},
		"something behind it": {file + file, id, FromMachineID, "invalid character"},
	} {
		path := filepath.Join(t.TempDir(), hostFile)
		if c.host != "" {
			if err := os.WriteFile(path, []byte(c.host), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		i, err := identify(path, here, func() (string, error) { return id, nil })
		if err != nil || i.id != c.id || i.from != c.from || strings.Contains(i.note, "jitgate host-id --write") != (c.from == FromMachineID) ||
			!strings.Contains(i.refused, c.reason) || (c.reason == "") != (i.refused == "") {
			t.Errorf("%s: %v, %+v", name, err, i)
		}
	}
	nowhere := func() (string, error) { return "", errors.New("none") }
	if i, err := identify(filepath.Join(t.TempDir(), hostFile), here, nowhere); err == nil || !strings.Contains(err.Error(), "set host_id") {
		t.Errorf("without a machine id: %+v, %v", i, err)
	}
}

// What is written in the settings counts, and beside auto what host.json says.
func TestHostIDInSettings(t *testing.T) {
	config := filepath.Join(t.TempDir(), "agent.toml")
	if err := (HostFile{ID: "arn:x", From: "ec2"}).Write(HostFilePath(config)); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string][2]string{`host_id = "web1"`: {"web1", FromSettings}, `host_id = "auto"`: {"arn:x", "ec2"}} {
		if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if s, err := LoadSettings(config); err != nil || s.HostID != want[0] || s.HostFrom != want[1] || s.HostNote != "" {
			t.Errorf("%s: %+v, %v", text, s, err)
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
