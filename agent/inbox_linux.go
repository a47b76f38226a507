package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

func openInbox(dir, name string) (*os.File, error) {
	inbox, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(inbox)
	var in unix.Stat_t
	if err := unix.Fstat(inbox, &in); err != nil {
		return nil, err
	}
	if in.Mode&0o022 != 0 {
		return nil, fmt.Errorf("the directory is writable by group or others: chmod go-w %s", dir)
	}
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_BENEATH,
	}
	fd, err := unix.Openat2(inbox, name, &how)
	if errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) { // a seccomp filter without openat2
		fd, err = unix.Openat(inbox, name, int(how.Flags), 0)
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, errors.New("a symbolic link: only a plain file is read")
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), filepath.Join(dir, name))
	if err := plainFile(fd, in.Uid); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// plainFile judges the open file. owner is the uid of the inbox: whoever
// delivers.
func plainFile(fd int, owner uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return errors.New("not a plain file")
	case st.Nlink != 1:
		return fmt.Errorf("it has %d links: only a file with one name is read", st.Nlink)
	case st.Uid != 0 && st.Uid != owner && st.Uid != uint32(os.Geteuid()):
		return fmt.Errorf("it belongs to uid %d: only root and the inbox's owner deliver", st.Uid)
	case st.Mode&0o022 != 0:
		return errors.New("it is writable by group or others: chmod go-w it")
	}
	return nil
}
