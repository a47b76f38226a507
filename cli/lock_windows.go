package cli

import (
	"errors"
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/windows"
)

// lockKind is how a file is locked.
type lockKind uint32

const (
	shared    lockKind = 0
	exclusive lockKind = windows.LOCKFILE_EXCLUSIVE_LOCK
)

// lockFile locks a file, which is made if it is not there, and waits until it
// can. The lock ends with the file's Close, or with the process.
func lockFile(path string, kind lockKind) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := windows.LockFileEx(windows.Handle(f.Fd()), uint32(kind), 0, 1, 0, new(windows.Overlapped)); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// onlyHolder turns a shared lock into an exclusive one, and reports whether
// nobody else had it. The shared lock is gone afterwards.
func onlyHolder(f *os.File) bool {
	h := windows.Handle(f.Fd())
	if windows.UnlockFileEx(h, 0, 1, 0, new(windows.Overlapped)) != nil {
		return false
	}
	return windows.LockFileEx(h, windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped)) == nil
}

// ownSession keeps the console's signals from a child.
func ownSession() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: windows.CREATE_NEW_PROCESS_GROUP | windows.DETACHED_PROCESS}
}

// become runs a program to its end, and returns its exit code.
func become(path string, args []string) (int, error) {
	cmd := exec.Command(path, args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return failed.ExitCode(), nil
	}
	return exitFailed, err
}
