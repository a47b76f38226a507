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

	defaultIdentityDir = "/var/lib/jitgate/fetch"
)

// productUUID is what the firmware calls this machine, or empty: only root may
// read it, and not every machine has one.
func productUUID() string {
	for _, path := range []string{"/sys/class/dmi/id/product_uuid", uuidForAgent} {
		if b, err := os.ReadFile(path); err == nil {
			return string(b)
		}
	}
	return ""
}

// uuidForAgent is where jitgate.service puts it for an agent that is not root.
const uuidForAgent = "/run/jitgate/product_uuid"

// MachineID is the id of this machine, the fallback of host_id = "auto".
func MachineID() (string, error) {
	b, err := os.ReadFile("/etc/machine-id")
	id := strings.TrimSpace(string(b))
	if err == nil && id == "" {
		err = errors.New("/etc/machine-id is empty")
	}
	return id, err
}
