package agent

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/windows/registry"
)

var programData = filepath.Join(os.Getenv("ProgramData"), "jitgate")

// DefaultConfig is where the settings are unless --config says otherwise.
var DefaultConfig = filepath.Join(programData, "agent.toml")

var (
	defaultInboxDir = filepath.Join(programData, "inbox")
	defaultStateDir = filepath.Join(programData, "state")
	defaultSocket   = filepath.Join(programData, "agent.sock")

	defaultIdentityDir = filepath.Join(programData, "fetch")
)

// productUUID is not asked for here.
func productUUID() string { return "" }

// MachineID is the id of this machine, the fallback of host_id = "auto".
func MachineID() (string, error) {
	k, err := registry.OpenKey(registry.LOCAL_MACHINE, `SOFTWARE\Microsoft\Cryptography`, registry.QUERY_VALUE|registry.WOW64_64KEY)
	if err != nil {
		return "", err
	}
	defer k.Close()
	id, _, err := k.GetStringValue("MachineGuid")
	return id, err
}
