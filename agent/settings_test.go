package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jitgate/jitgate/audit"
)

func TestParseSettings(t *testing.T) {
	s, err := ParseSettings([]byte(`
host_id   = "web1"
mode      = "enforce"
guard     = [22, "3389/udp", "5985-5986/tcp"]
inbox_dir = "/a"
state_dir = "/b"
socket    = "/c"
trust_pin = "sha256:` + strings.Repeat("0a", 32) + `"
[control]
url = "https://control.example.net"
`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := formatPorts(s.Guard), []string{"22/tcp", "5985-5986/tcp", "22/udp", "3389/udp"}; !slices.Equal(got, want) {
		t.Errorf("guard %v, want %v", got, want)
	}
	if s.HostID != "web1" || s.Mode != Enforce || s.InboxDir != "/a" || s.StateDir != "/b" || s.Socket != "/c" || s.TrustPin[0] != 0x0a {
		t.Errorf("%+v", s)
	}
}

// Installing changes nothing: what is not said does not drop.
func TestDefaults(t *testing.T) {
	s, err := ParseSettings([]byte(`host_id = "web1"`))
	if err != nil {
		t.Fatal(err)
	}
	if got := formatPorts(s.Guard); s.Mode != Observe || !slices.Equal(got, []string{"22/tcp", "22/udp"}) || s.InboxDir != defaultInboxDir {
		t.Errorf("%+v", s)
	}
}

func TestControlSettings(t *testing.T) {
	s, err := ParseSettings([]byte("host_id = \"a\"\n[control]\nurl = \"https://control.example.net:8443/\"\n"))
	if err != nil || s.Control.URL != "https://control.example.net:8443" || s.Control.IdentityDir != defaultIdentityDir || s.Control.PollInterval != time.Minute || s.Control.CA != "" {
		t.Errorf("%+v, %v", s.Control, err)
	}
	s, err = ParseSettings([]byte(`host_id = "a"
[control]
ca = "/etc/ca.pem"
identity_dir = "/i"
proxy = "http://user:pass@proxy:3128"
fallback = ["https://bucket.example/web1", "/mnt/share/web1"]
poll_interval = "5s"
`))
	if err != nil || s.Control.URL != "" || s.Control.CA != "/etc/ca.pem" || s.Control.IdentityDir != "/i" || s.Control.Proxy != "http://user:pass@proxy:3128" || len(s.Control.Fallback) != 2 || s.Control.PollInterval != 5*time.Second {
		t.Errorf("%+v, %v", s.Control, err)
	}
	if s, err := ParseSettings([]byte(`host_id = "a"`)); err != nil || s.Control != nil {
		t.Errorf("%+v, %v", s.Control, err)
	}
	// As editors of Windows write it.
	if s, err := ParseSettings([]byte("\ufeffhost_id = \"a\"\r\n[control]\r\nurl = \"https://b\"\r\n")); err != nil || s.Control == nil || s.Control.URL != "https://b" {
		t.Errorf("%+v, %v", s.Control, err)
	}
	// Written before jitgate enroll, which adds the url.
	if s, err := ParseSettings([]byte("host_id = \"a\"\n[control]\n")); err != nil || s.Control == nil || s.Control.URL != "" {
		t.Errorf("%+v, %v", s.Control, err)
	}
	for line, want := range map[string]string{
		`url = "http://a"`:                                      "is not https://",
		`url = "https://a/path"`:                                "is not https://",
		`url = "https://u:p@a"`:                                 "is not https://",
		`url = 5`:                                               "3: ",
		`urls = "https://a"`:                                    `unknown key "control.urls"`,
		`fallback = ["bucket"]`:                                 "fallback[0]",
		`fallback = ["ftp://a"]`:                                "fallback[0]",
		"fallback = [\"/a\"]\nca=\"x\"":                         "ca \"x\" is not an absolute path",
		"fallback = [\"/a\"]\nidentity_dir=\"\"":                "identity_dir",
		"fallback = [\"/a\"]\npoll_interval=\"1s\"":             "poll_interval",
		"fallback = [\"/a\"]\npoll_interval=\"often\"":          "poll_interval",
		"fallback = [\"/a\"]\nproxy=\"socks5://user:secret@a\"": "proxy is not http://",
		"fallback = [\"/1\",\"/2\",\"/3\",\"/4\",\"/5\",\"/6\",\"/7\",\"/8\",\"/9\"]": "9 entries",
	} {
		_, err := ParseSettings([]byte("host_id = \"a\"\n[control]\n" + line))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v, want %s", line, err, want)
		}
	}
}

func TestAuditSettings(t *testing.T) {
	for text, want := range map[string]AuditSettings{
		"": {16 << 20, audit.Keep{Bytes: 1 << 30}},
		"[audit]\nfile_mib = 1\nkeep_mib = 0\nkeep_days = 400\n": {1 << 20, audit.Keep{For: 400 * 24 * time.Hour}},
	} {
		if s, err := ParseSettings([]byte("host_id = \"a\"\n" + text)); err != nil || s.Audit != want {
			t.Errorf("%q: %+v, %v", text, s.Audit, err)
		}
	}
	for line, want := range map[string]string{
		"file_mib = 0": "file_mib 0 is not from 1", "file_mib = 1025": "file_mib 1025", "keep_mib = -1": "keep_mib -1", "keep_mib = 31": "less than two files",
		"keep_days = -1": "keep_days -1", "keep_mib = 9223372036854775807": "keep_mib", "keep = 1": `unknown key "audit.keep"`,
	} {
		if _, err := ParseSettings([]byte("host_id = \"a\"\n[audit]\n" + line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", line, err, want)
		}
	}
}

func TestSettingsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"host_id = \"a\"\n\ngaurd = [22]":               `3: unknown key "gaurd"`,
		"host_id = \"a\"\n[control]\nurll = \"x\"":      `3: unknown key "control.urll"`,
		"host_id = \"a\"\nhost_id = \"b\"":              "2: ",
		"host_id = 5":                                   "1: ",
		"host_id":                                       "1: ",
		"mode = \"observe\"":                            "host_id is missing",
		"host_id = \"a\"\nmode = \"on\"":                `mode "on" is not observe or enforce`,
		"host_id = \"a\"\nguard = [\"22/sctp\"]":        "guard[0]",
		"host_id = \"a\"\nguard = [22, 70000]":          "guard[1]",
		"host_id = \"a\"\nmetrics = \"0.0.0.0:9477\"":   "is not a port of this host alone",
		"host_id = \"a\"\nmetrics = \"10.0.0.1:9477\"":  "is not a port of this host alone",
		"host_id = \"a\"\nmetrics = \"localhost:9477\"": "is not a port of this host alone",
		"host_id = \"a\"\nmetrics = \"127.0.0.1:0\"":    "is not a port of this host alone",
		"host_id = \"a\"\nguard = [22.5]":               "guard[0]",
		"host_id = \"a\"\nguard = [\"22/tcp cut\"]":     "guard[0]",
		"host_id = \"a\"\ninbox_dir = \"inbox\"":        `inbox_dir "inbox" is not an absolute path`,
		"host_id = \"a\"\ntrust_pin = \"sha256:00\"":    "trust_pin",
	} {
		_, err := ParseSettings([]byte(text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than one line: %v", text, err)
		}
	}
}

func FuzzParseSettings(f *testing.F) {
	f.Add([]byte("host_id = \"a\"\nguard = [22, \"3389/udp\"]"))
	f.Add([]byte("[control]\nurl = 1"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := ParseSettings(text)
		if err == nil && (s.HostID == "" || s.Mode != Observe && s.Mode != Enforce) {
			t.Errorf("accepted %+v", s)
		}
	})
}
