package watchdog

import (
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// hide has a command run without a console.
func hide(c *exec.Cmd) {
	c.SysProcAttr = &syscall.SysProcAttr{HideWindow: true, CreationFlags: windows.CREATE_NO_WINDOW}
}
