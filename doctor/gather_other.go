//go:build !linux && !windows

package doctor

import (
	"runtime"
	"time"
)

// Gather reads what the platform says of this host. Here that is not
// supported yet, and the Facts say so.
func Gather(settings string) Facts {
	return Facts{Unsupported: "the doctor does not know " + runtime.GOOS + " yet", Now: time.Now(), Settings: Settings{Path: settings}}
}
