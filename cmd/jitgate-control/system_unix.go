//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// reloadSignal asks a running server to read its certificate anew.
const reloadSignal = syscall.SIGHUP

// ownedByUs refuses a directory that belongs to another user, who could
// exchange everything in it.
func ownedByUs(path string, info fs.FileInfo) error {
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user (%d, this is %d): run as that user, or name another with --data", path, st.Uid, os.Geteuid())
	}
	return nil
}

// descriptors is how many this process may have; 0: that is not known.
func descriptors() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return uint64(limit.Cur) // as many as the hard limit has: Go raises this one
}

// openToOthers reports whether more than the owner can read or write.
func openToOthers(m fs.FileMode) bool { return m.Perm()&0o077 != 0 }

// syncDirectory makes names in a directory durable.
func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// lock takes the directory for this process, until the file is closed or the
// process ends.
func (d directory) lock() (*os.File, error) {
	f, err := os.OpenFile(d.path(lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("another jitgate-control serves from %s", string(d))
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}
