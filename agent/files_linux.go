package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links one path may lead through, as in the
// kernel.
const maxLinks = 40

// openFile opens a file for reading that nobody but root, the agent's own user
// and, where t allows it, the inbox's owner can have put there or written:
// neither the file nor any directory on the way to it.
//
// It goes from the root one name at a time and judges what it has opened, so
// there is nothing that could be exchanged between a look and a use. A name at
// a time openat with O_NOFOLLOW resolves nothing that openat2 would refuse.
func openFile(path string, t terms) (*os.File, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s is not an absolute path", path)
	}
	w, err := walkFromRoot()
	if err != nil {
		return nil, err
	}
	defer func() { unix.Close(w.fd) }()
	links := 0
	todo := components(path)
	for len(todo) > 0 {
		name, rest := todo[0], todo[1:]
		if len(rest) == 0 {
			f, err := w.open(name, t)
			if !t.linked || !errors.Is(err, unix.ELOOP) {
				return f, w.explain(name, err)
			}
		} else if err := w.enter(name, t.carried && len(rest) == 1); !errors.Is(err, unix.ENOTDIR) {
			if err != nil {
				return nil, err
			}
			todo = rest
			continue
		}
		// Only a symbolic link is neither.
		target, err := w.follow(name)
		if err != nil {
			return nil, err
		}
		if links++; links > maxLinks {
			return nil, fmt.Errorf("%s leads through more than %d symbolic links", path, maxLinks)
		}
		if filepath.IsAbs(target) {
			if err := w.restart(); err != nil {
				return nil, err
			}
		}
		todo = append(components(target), rest...)
	}
	return nil, fmt.Errorf("%s is not a plain file", path)
}

// components are the names in a path. "..", after a symbolic link, is one the
// kernel has to resolve.
func components(path string) []string {
	var names []string
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// walk is a directory on the way to a file. All up to it were judged.
type walk struct {
	fd    int
	path  string // with no symbolic link in it
	owner uint32
}

const directory = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func walkFromRoot() (*walk, error) {
	fd, err := unix.Open("/", directory, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	w := &walk{fd: fd, path: "/"}
	if err := w.judge(false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return w, nil
}

func (w *walk) restart() error {
	root, err := walkFromRoot()
	if err != nil {
		return err
	}
	unix.Close(w.fd)
	*w = *root
	return nil
}

// enter goes down into a directory. It fails with ENOTDIR at a symbolic link.
func (w *walk) enter(name string, carried bool) error {
	path := filepath.Join(w.path, name)
	fd, err := openat(w.fd, name, directory)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	unix.Close(w.fd)
	w.fd, w.path = fd, path
	return w.judge(carried)
}

// judge says whether others could exchange what is in the directory.
func (w *walk) judge(carried bool) error {
	st, err := stat(w.fd)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: w.path, Err: err}
	}
	w.owner = st.Uid
	// In a sticky directory, like /tmp, only its owner renames or removes what
	// is not his, and what others make there is judged by its owner.
	sticky := st.Mode&unix.S_ISVTX != 0 && !carried
	switch {
	case !own(st.Uid) && !carried:
		return ofAnother(w.path, st.Uid)
	case writable(st) && !sticky:
		return fmt.Errorf("%s is writable by group or others: chmod go-w %[1]s", w.path)
	}
	return nil
}

// follow reads a symbolic link that nobody else can have made.
func (w *walk) follow(name string) (target string, err error) {
	path := filepath.Join(w.path, name)
	fd, err := openat(w.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	st, err := stat(fd)
	if err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFLNK:
		return "", fmt.Errorf("%s is not a directory", path)
	case !own(st.Uid):
		return "", fmt.Errorf("%s is a symbolic link of uid %d: chown -h root %[1]s, if it leads where you want it to", path, st.Uid)
	}
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", b)
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: path, Err: err}
	}
	return string(b[:n]), nil
}

// open opens the file itself and judges it. It fails with ELOOP at a symbolic
// link.
func (w *walk) open(name string, t terms) (*os.File, error) {
	path := filepath.Join(w.path, name)
	// O_NONBLOCK: opening a FIFO must not wait for a writer.
	fd, err := openat(w.fd, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if err := w.plain(fd, name, t); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// plain judges the open file.
func (w *walk) plain(fd int, name string, t terms) error {
	path := filepath.Join(w.path, name)
	st, err := stat(fd)
	if err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return notPlain(path)
	case st.Nlink > 1 && !t.named:
		return fmt.Errorf("%s has %d hard links: only a file with one name is read, copy it to its place", path, st.Nlink)
	case !own(st.Uid) && st.Uid != w.owner: // of the inbox, else the directory was refused
		return ofAnother(path, st.Uid)
	case writable(st):
		return fmt.Errorf("%s is writable by group or others: chmod go-w %[1]s", path)
	}
	if t.named {
		return nil
	}
	return w.still(fd, name)
}

// still reports whether the one name that an open file has is this one. It may
// have had two, and this one been removed before they were counted. One with no
// name was replaced just now, and is what had been delivered: that is looked at
// last.
func (w *walk) still(fd int, name string) error {
	there, err := statat(w.fd, name)
	st, failed := stat(fd)
	switch {
	case failed != nil:
		err = failed
	case st.Nlink == 0, err == nil && there.Dev == st.Dev && there.Ino == st.Ino:
		return nil
	case err == nil:
		err = unix.ENOENT // whatever is there now is told of by itself
	}
	return &fs.PathError{Op: "stat", Path: filepath.Join(w.path, name), Err: err}
}

// explain says what an error at the file itself is about.
func (w *walk) explain(name string, err error) error {
	path := filepath.Join(w.path, name)
	switch {
	case errors.Is(err, unix.ELOOP):
		return fmt.Errorf("%s is a symbolic link: only a plain file is read, copy it to its place", path)
	case errors.Is(err, unix.ENXIO): // a socket
		return notPlain(path)
	}
	return err
}

// openat, stat and statat go on after a signal: the runtime sends some, and what a file
// server has to answer can end with them.
func openat(dir int, name string, flags int) (fd int, err error) {
	for {
		if fd, err = unix.Openat(dir, name, flags, 0); !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func stat(fd int) (st unix.Stat_t, err error) {
	for {
		if err = unix.Fstat(fd, &st); !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

func statat(dir int, name string) (st unix.Stat_t, err error) {
	for {
		if err = unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); !errors.Is(err, unix.EINTR) {
			return st, err
		}
	}
}

// rootsOwn reports whether an open file is root's in somebody else's directory.
func rootsOwn(f *os.File, dir string) bool {
	var file, around unix.Stat_t
	return unix.Fstat(int(f.Fd()), &file) == nil && unix.Stat(dir, &around) == nil && file.Uid == 0 && around.Uid != 0
}

func notPlain(path string) error {
	return fmt.Errorf("%s is not a plain file: remove it", path)
}

func ofAnother(path string, uid uint32) error {
	return fmt.Errorf("%s belongs to uid %d, who could change what is read: chown root %[1]s", path, uid)
}

// own reports whether what uid owns is believed: root's, and the agent's. root
// believes the user its agents run as too.
func own(uid uint32) bool {
	self := uint32(os.Geteuid())
	return uid == 0 || uid == self || self == 0 && isAgentUser(uid)
}

// AgentUser is who the agent runs as where its service does not run as root.
const AgentUser = "jitgate"

// isAgentUser is asked for every directory on every way: who it is does not
// change while a process lives.
func isAgentUser(uid uint32) bool {
	id, known := agentUser()
	return known && uid == id
}

var agentUser = sync.OnceValues(func() (uid uint32, known bool) {
	u, err := user.Lookup(AgentUser)
	if err != nil {
		return 0, false
	}
	id, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(id), err == nil
})

func writable(st unix.Stat_t) bool { return st.Mode&0o022 != 0 }
