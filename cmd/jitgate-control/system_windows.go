package main

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// reloadSignal never comes on Windows.
const reloadSignal = syscall.SIGHUP

// ownedByUs leaves it to the access list on Windows.
func ownedByUs(string, fs.FileInfo) error { return nil }

// descriptors are not bounded on Windows.
func descriptors() uint64 { return 0 }

// openToOthers is not known by the mode on Windows: access lists say it.
func openToOthers(fs.FileMode) bool { return false }

// syncDirectory has nothing to do on Windows: NTFS keeps a journal of names.
func syncDirectory(string) error { return nil }

// lock takes the directory for this process, until the file is closed or the
// process ends.
func (d directory) lock() (*os.File, error) {
	f, err := os.OpenFile(d.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	err = windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY, 0, 1, 0, new(windows.Overlapped))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("another jitgate-control serves from %s: %w", string(d), err)
	}
	return f, nil
}
