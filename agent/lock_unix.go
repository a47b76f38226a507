//go:build unix

package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// lock takes the state directory for this process. The kernel lets go of it
// when the process dies. It is the directory itself that is locked: a disk
// that takes no writes must not keep an agent from starting closed.
func lock(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: another agent is running with this state directory", dir)
		}
		return nil, err
	}
	return func() { f.Close() }, nil
}
