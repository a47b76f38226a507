package agent

import (
	"github.com/jitgate/jitgate/firewall"
	"github.com/jitgate/jitgate/firewall/nft"
)

// OpenBackend opens this host's firewall.
func OpenBackend() (firewall.Backend, error) { return nft.Open(BootNow) }
