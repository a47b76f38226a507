package agent

import (
	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/firewall"
)

// bootID has no counterpart here yet: a restarted agent draws its ends anew.
func bootID() string { return "" }

// BootNow reads the time since boot, sleep included (GetTickCount64).
func BootNow() firewall.BootTime { return firewall.BootTime(windows.DurationSinceBoot()) }
