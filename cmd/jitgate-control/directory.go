package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// directory is the data directory: everything a control plane is, but for a
// database elsewhere and keys elsewhere.
type directory string

// The files in it.
const (
	adminTokenFile   = "admin.token"
	metricsTokenFile = "metrics.token"
	trustFile        = "trust.json"
	databaseFile     = "control.db"
	policyKeyFile    = "keys/policy.key"
	grantKeyFile     = "keys/grant.key"
	rootKeyFile      = "offline/root.key"
	lockFile         = "lock"
)

// ours are the first parts of the names in a data directory.
var ours = []string{adminTokenFile, metricsTokenFile, trustFile, databaseFile, lockFile, "keys", "offline", "tls", "agents"}

func (d directory) path(name string) string {
	return filepath.Join(string(d), filepath.FromSlash(name))
}

// openDirectory makes the data directory, or makes sure that it is ours and
// nobody else's. Nothing in it is touched.
func openDirectory(path string) (directory, error) {
	whole, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	d := directory(whole)
	if err := os.MkdirAll(whole, 0o700); err != nil {
		return "", err
	}
	info, err := os.Stat(whole)
	if err != nil {
		return "", err
	}
	if err := ownedByUs(whole, info); err != nil {
		return "", err
	}
	entries, err := os.ReadDir(whole)
	if err != nil {
		return "", err
	}
	stranger := ""
	known := false
	for _, e := range entries {
		name := e.Name()
		switch {
		case slices.Contains(ours, name):
			known = true
		case strings.HasPrefix(name, ".") || name == "lost+found" || filepath.Ext(name) == ".toml":
		default:
			stranger = name
		}
	}
	if stranger != "" && !known {
		return "", fmt.Errorf("%s is no data directory: %s is in it; name an empty one with --data", whole, stranger)
	}
	if openToOthers(info.Mode()) {
		// Whoever could write here may have put a key of his own in place.
		if known && info.Mode().Perm()&0o022 != 0 {
			return "", fmt.Errorf("%s can be written by others (mode %04o): see what is in it, then chmod 700 it", whole, info.Mode().Perm())
		}
		if err := os.Chmod(whole, 0o700); err != nil {
			return "", err
		}
	}
	return d, nil
}

// existing is a data directory that a command looks into and does not make.
func existing(path string) (directory, error) {
	whole, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	d := directory(whole)
	if _, err := os.Stat(d.path(trustFile)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("%s is no data directory yet: jitgate-control serve makes one; name another with --data", whole)
		}
		return "", err
	}
	return d, nil
}

// has reports whether the file is there. A file that cannot be looked at is an
// error: it must not be taken for one that is missing, and made anew.
func (d directory) has(name string) (bool, error) {
	_, err := os.Lstat(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// maxFile is more than any file here but the database may have.
const maxFile = 1 << 20

// read reads a file of the directory.
func (d directory) read(name string) ([]byte, error) { return readLimited(d.path(name), maxFile) }

// readSecret reads a file that nobody else may read.
func (d directory) readSecret(name string) ([]byte, error) {
	info, err := os.Stat(d.path(name))
	if err != nil {
		return nil, err
	}
	if openToOthers(info.Mode()) {
		return nil, fmt.Errorf("%s can be read by others (mode %04o): chmod 600 it, and replace what is in it if they had the time to read it", d.path(name), info.Mode().Perm())
	}
	return d.read(name)
}

func readLimited(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return text, err
}

// create writes a file that is not there yet. It is there whole or not at all,
// and durable when create returns.
func (d directory) create(name string, data []byte, mode fs.FileMode) error {
	there, err := d.has(name)
	if err != nil {
		return err
	}
	if there {
		return fmt.Errorf("%s is there already", d.path(name))
	}
	return d.replace(name, data, mode)
}

// replace writes a file whole: after a crash there is the old one or the new.
func (d directory) replace(name string, data []byte, mode fs.FileMode) error {
	return writeWhole(d.path(name), data, mode)
}

// writeWhole writes path whole and durably, and makes its directory.
func writeWhole(path string, data []byte, mode fs.FileMode) error {
	dir, name := filepath.Split(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temporary := filepath.Join(dir, "."+name+".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	// The name of a new directory is durable with its parent.
	return errors.Join(syncDirectory(dir), syncDirectory(filepath.Dir(filepath.Clean(dir))))
}
