//go:build !linux && !windows

package agent

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/jitgate/jitgate/firewall"
)

// OpenBackend opens this host's firewall.
func OpenBackend(func(error)) (firewall.Backend, error) {
	return nil, fmt.Errorf("no firewall backend for %s: %w", runtime.GOOS, errors.ErrUnsupported)
}

// bootRules is nil: nothing closes ports here before an agent has started.
func bootRules([]firewall.Port) []byte { return nil }
