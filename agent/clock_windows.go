package agent

import (
	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/firewall"
)

// BootNow reads the time since boot, sleep included (GetTickCount64).
func BootNow() firewall.BootTime { return firewall.BootTime(windows.DurationSinceBoot()) }
