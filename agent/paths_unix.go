//go:build !windows

package agent

import (
	"errors"
	"os"
	"strings"
)

// DefaultConfig is where the settings are unless --config says otherwise.
const DefaultConfig = "/etc/jitgate/agent.toml"

const (
	defaultInboxDir = "/var/lib/jitgate/inbox"
	defaultStateDir = "/var/lib/jitgate/state"
	defaultSocket   = "/run/jitgate/agent.sock"
)

// machineID is the fallback of host_id = "auto".
func machineID() (string, error) {
	b, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(b))
	if err == nil && id == "" {
		err = errors.New("/etc/machine-id is empty")
	}
	return id, err
}
