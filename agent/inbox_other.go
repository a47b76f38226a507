//go:build !linux

package agent

import (
	"errors"
	"os"
	"path/filepath"
)

func openInbox(dir, name string) (*os.File, error) {
	path := filepath.Join(dir, name)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a plain file")
	}
	return os.Open(path)
}
