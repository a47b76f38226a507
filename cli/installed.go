package cli

import (
	"cmp"
	"fmt"
	"regexp"

	"github.com/jitgate/jitgate/agent"
	"github.com/jitgate/jitgate/cli/usage"
	"github.com/jitgate/jitgate/policy"
)

// installed is what an installation was given; empty: not given.
type installed struct{ hostID, controlURL, trustPin, realm string }

// firstSettings are those of a host that has none. Nothing is dropped until
// somebody runs jitgate arm.
const firstSettings = `# The settings of the jitgate agent. After a change run: jitgate agent reload
# What says who this host is takes a restart of the service jitgate.
host_id = "auto"      # as documents name this host; auto: found by itself
mode    = "observe"   # until somebody runs jitgate arm; drops nothing
guard   = [3389, 22, "5985-5986/tcp"]   # guarded until a policy says which ports
`

var hostIDLine = regexp.MustCompile(`(?m)^[ \t]*host_id[ \t]*=.*$`)

// settings is the text of settings with what is given here and was not given
// before: people and other commands edit them, and that stands. Empty text is
// that of a host that has none.
func (i installed) settings(text string, was installed) (string, error) {
	if text == "" {
		text, was = firstSettings, installed{}
		i.hostID = cmp.Or(i.hostID, "auto")
	}
	given := func(now, before string) bool { return now != "" && now != before }
	if given(i.hostID, was.hostID) {
		text = setTop(text, hostIDLine, fmt.Sprintf("host_id = %q", i.hostID))
	}
	if given(i.trustPin, was.trustPin) {
		pin, err := policy.ParseDigest(i.trustPin)
		if err != nil {
			return "", usage.Errorf("--trust-pin: %w", err)
		}
		text = setPin(text, pin)
	}
	if given(i.controlURL, was.controlURL) {
		text = setControl(text, "url", i.controlURL)
	}
	if _, err := agent.ParseSettings([]byte(text)); err != nil {
		return "", fmt.Errorf("the settings:%w", err)
	}
	return text, nil
}

// over is what was given at any time, and here last.
func (i installed) over(was installed) installed {
	return installed{cmp.Or(i.hostID, was.hostID), cmp.Or(i.controlURL, was.controlURL), cmp.Or(i.trustPin, was.trustPin), cmp.Or(i.realm, was.realm)}
}
