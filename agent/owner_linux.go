package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// handBack gives what root has written into a state directory of somebody else
// to him: the agent whose directory it is has to read it. It follows no link
// out of the directory.
func handBack(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	owner, _, err := ownerOf(root, ".")
	if err != nil || os.Geteuid() != 0 || owner.Uid == 0 {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		// Another name of a file of root's is not what root has written here.
		st, plain, err := ownerOf(root, path)
		if err != nil || st.Uid != 0 || !d.IsDir() && (!plain || st.Nlink > 1) {
			return err
		}
		return root.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
}

func ownerOf(root *os.Root, path string) (st *syscall.Stat_t, plain bool, err error) {
	info, err := root.Lstat(path)
	if err != nil {
		return nil, false, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, false, fmt.Errorf("%s: %w", path, errors.ErrUnsupported)
	}
	return st, info.Mode().IsRegular(), nil
}
