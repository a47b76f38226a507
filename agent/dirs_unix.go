//go:build !windows

package agent

import (
	"fmt"
	"os"
)

// makePrivateDir makes a directory for the agent alone.
func makePrivateDir(path string) error { return os.MkdirAll(path, 0o700) }

// makeInboxDir makes a directory that all may read.
func makeInboxDir(path string) error { return os.MkdirAll(path, 0o755) }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
