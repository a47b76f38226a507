package agent

import (
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/winfw"
)

// OpenBackend opens this host's firewall. warn is told what failed although
// the guard stands; nil drops it.
func OpenBackend(warn func(error)) (firewall.Backend, error) {
	b, err := winfw.Open(BootNow, warn)
	if err != nil {
		return nil, err // and no typed nil
	}
	return b, nil
}

// bootRules is nil: what closes ports before an agent has started is in the
// filtering platform itself.
func bootRules([]firewall.Port) []byte { return nil }
