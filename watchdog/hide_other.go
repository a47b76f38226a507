//go:build !windows

package watchdog

import "os/exec"

// hide has a command run without a console, where commands have one.
func hide(*exec.Cmd) {}
