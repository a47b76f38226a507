package fetch

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Files is a directory of small files, as a Fetcher needs one for its identity
// and one for the inbox. What it returns is not changed by anybody.
type Files interface {
	// Read reads a file, at most most bytes of it. One that is not there is
	// fs.ErrNotExist.
	Read(name string, most int64) ([]byte, error)
	// Replace writes a file whole: a crash leaves the old one or the new one.
	Replace(name string, data []byte, mode fs.FileMode) error
	// Rename gives a file another name, in place of what has that name.
	Rename(from, to string) error
	// Remove removes a file, if it is there.
	Remove(name string) error
}

// disk is a directory of the machine's.
type disk string

func (d disk) path(name string) string { return filepath.Join(string(d), name) }

// Read implements Files. A FIFO or a device is not waited for.
func (d disk) Read(name string, most int64) ([]byte, error) {
	return readPlainFile(d.path(name), most)
}

func readPlainFile(path string, most int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a plain file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

// Replace implements Files. In the directory of somebody else, made by root,
// the file becomes theirs.
func (d disk) Replace(name string, data []byte, mode fs.FileMode) error {
	temporary := d.path("." + name + ".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	err = giveTo(f, string(d))
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Chmod(mode) // whatever the umask took away
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, d.path(name))
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return syncDir(string(d))
}

// Rename implements Files.
func (d disk) Rename(from, to string) error {
	if err := os.Rename(d.path(from), d.path(to)); err != nil {
		return err
	}
	return syncDir(string(d))
}

// Remove implements Files.
func (d disk) Remove(name string) error {
	err := os.Remove(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
