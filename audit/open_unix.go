//go:build unix

package audit

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// nonBlocking keeps a FIFO from holding up whoever opens it.
const nonBlocking = syscall.O_NONBLOCK

// openRecord opens the record to read and append, or makes it. What is open is
// judged: a file that others can write or know by another name is no record.
// O_NONBLOCK: a FIFO must not hold the agent up.
func openRecord(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil {
		st, ok := info.Sys().(*syscall.Stat_t)
		switch {
		case !info.Mode().IsRegular(), ok && st.Nlink > 1:
			err = fmt.Errorf("%s is not a plain file with one name: move it away to start a new chain", path)
		case ok && st.Uid != 0 && int(st.Uid) != os.Geteuid() && !rootMayBelieve(st.Uid, path):
			err = fmt.Errorf("%s belongs to uid %d: chown root %[1]s, or move it away to start a new chain", path, st.Uid)
		case info.Mode().Perm()&0o022 != 0:
			err = fmt.Errorf("%s is writable by group or others: chmod go-w %[1]s", path)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// rootMayBelieve reports whether this process is root and the file belongs to
// who owns its directory, and could exchange it anyway: an agent that does not
// run as root.
func rootMayBelieve(uid uint32, path string) bool {
	info, err := os.Lstat(filepath.Dir(path))
	if err != nil || os.Geteuid() != 0 {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && info.IsDir() && st.Uid == uid
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
