package store

import (
	"path/filepath"

	"golang.org/x/sys/windows"
)

// checkLocal refuses a directory on a network drive.
func checkLocal(dir string) error {
	root, err := windows.UTF16PtrFromString(filepath.VolumeName(dir) + `\`)
	if err != nil {
		return err
	}
	if windows.GetDriveType(root) == windows.DRIVE_REMOTE {
		return errRemote
	}
	return nil
}
