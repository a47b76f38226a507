package agent

import (
	"errors"

	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// OpenBackend opens this host's firewall. warn is told what failed although
// the guard stands; nil drops it. Where there is no filtering platform the
// agent is to stay up and say so.
func OpenBackend(warn func(error)) (firewall.Backend, error) {
	b, err := winfw.Open(BootNow, warn)
	if errors.Is(err, winfw.ErrUnavailable) {
		return &winfw.Absent{Why: err}, nil
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// bootRules is nil: what closes ports before an agent has started is in the
// filtering platform itself.
func bootRules([]firewall.Port) []byte { return nil }
