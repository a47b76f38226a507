package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/windows"
)

// openSSH finds a program of OpenSSH, also where Windows puts its own: a prompt
// that is older than its installation does not have that in its PATH.
func openSSH(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	system, err := windows.GetSystemDirectory()
	if err != nil {
		return "", err
	}
	path := filepath.Join(system, "OpenSSH", name+".exe")
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("there is no %s here: install OpenSSH with Add-WindowsCapability -Online -Name OpenSSH.Client~~~~0.0.1.0", name)
	}
	return path, nil
}
