package agent

import (
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/nft"
)

// OpenBackend opens this host's firewall. warn is told what failed although
// the guard stands; nil drops it.
func OpenBackend(warn func(error)) (firewall.Backend, error) {
	b, err := nft.Open(BootNow)
	if err != nil {
		return nil, err
	}
	b.Warn = warn
	return b, nil
}

// bootRules is what closes ports before an agent has started.
func bootRules(ports []firewall.Port) []byte { return nft.Baseline(ports) }
