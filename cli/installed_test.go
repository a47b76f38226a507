package cli

import (
	"strings"
	"testing"

	"github.com/jitgate/jitgate/agent"
)

var (
	pinA = "sha256:" + strings.Repeat("a", 64)
	pinB = "sha256:" + strings.Repeat("b", 64)
)

func TestInstalledSettings(t *testing.T) {
	edited := "# mine\nhost_id = \"renamed\"\nmode = \"enforce\"\n\n[control]\nurl = \"https://mine\" # by hand\n"
	for name, c := range map[string]struct {
		text     string
		now, was installed
		id, url  string
		pin      string
		mode     agent.Mode
	}{
		"a first one, nothing given":       {"", installed{}, installed{}, "auto", "", "", agent.Observe},
		"a first one":                      {"", installed{"win1", "https://c", pinA, "acme"}, installed{}, "win1", "https://c", pinA, agent.Observe},
		"settings are gone, values stayed": {"", installed{"win1", "https://c", pinA, "acme"}, installed{"win1", "https://c", pinA, "acme"}, "win1", "https://c", pinA, agent.Observe},
		"an upgrade, edited since":         {edited, installed{"win1", "https://c", "", ""}, installed{"win1", "https://c", "", ""}, "renamed", "https://mine", "", agent.Enforce},
		"an upgrade, nothing given":        {edited, installed{}, installed{"win1", "https://c", "", ""}, "renamed", "https://mine", "", agent.Enforce},
		"an upgrade, given anew":           {edited, installed{"win2", "https://d", pinB, ""}, installed{"win1", "https://c", pinA, ""}, "win2", "https://d", pinB, agent.Enforce},
	} {
		text, err := c.now.settings(c.text, c.was)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		s, err := agent.ParseSettings([]byte(text))
		if err != nil {
			t.Fatalf("%s: %v in\n%s", name, err, text)
		}
		url, pin := "", ""
		if s.Control != nil {
			url = s.Control.URL
		}
		if c.pin != "" {
			pin = s.TrustPin.String()
		}
		if s.HostID != c.id && c.id != "auto" || url != c.url || pin != c.pin || s.Mode != c.mode {
			t.Errorf("%s: %s, %s, %s, %s in\n%s", name, s.HostID, url, pin, s.Mode, text)
		}
		if again, err := c.now.settings(text, c.now.over(c.was)); err != nil || again != text {
			t.Errorf("%s: the same again makes %v\n%s\nof\n%s", name, err, again, text)
		}
		if strings.HasPrefix(c.text, "# mine") && !strings.HasPrefix(text, "# mine") {
			t.Errorf("%s: a comment is gone", name)
		}
	}
}

func TestInstalledRefuses(t *testing.T) {
	for _, c := range []struct {
		text string
		now  installed
		want string
	}{
		{"", installed{trustPin: "sha256:abc"}, "--trust-pin"},
		{"", installed{controlURL: "http://c"}, "https://"},
		{"host_id = 5\n", installed{}, "1: "},
	} {
		if text, err := c.now.settings(c.text, installed{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q in\n%s", c.now, err, c.want, text)
		}
	}
	if got, want := (installed{hostID: "b"}).over(installed{"a", "https://c", pinA, "r"}), (installed{"b", "https://c", pinA, "r"}); got != want {
		t.Errorf("over: %+v", got)
	}
}
