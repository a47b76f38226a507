//go:build !windows

package cli

import (
	"fmt"
	"os/exec"
)

// openSSH finds a program of OpenSSH.
func openSSH(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("there is no %s here (%w): install OpenSSH's client", name, err)
	}
	return path, nil
}
