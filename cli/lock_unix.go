//go:build unix

package cli

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// lockKind is how a file is locked.
type lockKind int

const (
	shared    lockKind = unix.LOCK_SH
	exclusive lockKind = unix.LOCK_EX
)

// lockFile locks a file, which is made if it is not there, and waits until it
// can. The lock ends with the file's Close, or with the process.
func lockFile(path string, kind lockKind) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), int(kind)); !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// onlyHolder turns a shared lock into an exclusive one, and reports whether
// nobody else had it. The shared lock may be gone afterwards.
func onlyHolder(f *os.File) bool {
	return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil
}

// ownSession keeps the terminal's signals, and its end, from a child.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

// become runs a program in place of this one.
func become(path string, args []string) (int, error) {
	return exitFailed, syscall.Exec(path, args, os.Environ())
}
