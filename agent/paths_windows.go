package agent

import (
	"path/filepath"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"
)

// programData is where Windows says it is: the environment is whoever's starts
// the program.
var programData = filepath.Join(knownProgramData(), "jitgate")

func knownProgramData() string {
	path, err := windows.KnownFolderPath(windows.FOLDERID_ProgramData, windows.KF_FLAG_DEFAULT)
	if err != nil {
		return `C:\ProgramData`
	}
	return path
}

// DefaultConfig is where the settings are unless --config says otherwise.
var DefaultConfig = filepath.Join(programData, "agent.toml")

var (
	defaultInboxDir = filepath.Join(programData, "inbox")
	defaultStateDir = filepath.Join(programData, "state")
	// Only administrators make pipes below this name, so nobody else can stand
	// in for the agent.
	defaultSocket = `\\.\pipe\ProtectedPrefix\Administrators\jitgate`

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
