package cli

import (
	"testing"

	"github.com/jitgate/jitgate/agent"
)

// Setting a name in [control] leaves everything else as it was.
func TestSetControl(t *testing.T) {
	const url = `url = "https://c"`
	for in, want := range map[string]string{
		"":                             "\n[control]\n" + url + "\n",
		"host_id = \"a\"":              "host_id = \"a\"\n\n[control]\n" + url + "\n",
		"[control]":                    "[control]\n" + url,
		"[control]\n":                  "[control]\n" + url + "\n",
		"[ control ] # mine\nca = 1\n": "[ control ] # mine\n" + url + "\nca = 1\n",
		"a=1\n[control]\nurl = 'x' #y\n#z\n[other]\nurl = 2\n": "a=1\n[control]\n" + url + "\n#z\n[other]\nurl = 2\n",
		"a=1\r\n[control]\r\nca = 1\r\n":                       "a=1\r\n[control]\r\n" + url + "\nca = 1\r\n",
		"[other]\nurl = 1\n":                                   "[other]\nurl = 1\n\n[control]\n" + url + "\n",
		"url = 0\n[control]\n[other]\n":                        "url = 0\n[control]\n" + url + "\n[other]\n",
	} {
		if got := setControl(in, "url", "https://c"); got != want {
			t.Errorf("%q\nbecomes %q\nwant    %q", in, got, want)
		}
	}
}

// Who says which machine this is has host_id set too, and nothing else.
func TestEditControl(t *testing.T) {
	const control = "\n[control]\nurl = \"https://c\"\n"
	for in, want := range map[string]string{
		"# mine\nhost_id = \"auto\" # by itself\nguard = [22]\n": "# mine\nhost_id = \"/vm\"\nguard = [22]\n" + control,
		"host_id = \"/vm\"\n": "host_id = \"/vm\"\n" + control,
	} {
		if got, ok := editControl(in, "/vm", "https://c", ""); !ok || got != want {
			t.Errorf("%q\nbecomes %q, %v\nwant    %q", in, got, ok, want)
		}
	}
	for _, in := range []string{"host_id = \"\"\"\n[control]\n\"\"\"\n", "guard = 22\n"} {
		if got, ok := editControl(in, "/vm", "https://c", ""); ok {
			t.Errorf("%q becomes %q", in, got)
		}
	}
}

func FuzzEditControl(f *testing.F) {
	f.Add("host_id = \"a\"\n[control]\nurl = \"https://b\"\n")
	f.Add("host_id = \"a\"\n# [control]\n")
	f.Add("host_id = \"\"\"\n[control]\n\"\"\"\n[control]\nurl=\"https://c\"")
	f.Fuzz(func(t *testing.T, text string) {
		edited, ok := editControl(text, "", "https://c", "/ca.pem")
		if !ok {
			return
		}
		was, err := agent.ParseSettings([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		s, err := agent.ParseSettings([]byte(edited))
		if err != nil || s.HostID != was.HostID || s.Socket != was.Socket || s.Control.URL != "https://c" || s.Control.CA != "/ca.pem" {
			t.Errorf("%q becomes %q: %+v, %v", text, edited, s, err)
		}
	})
}
