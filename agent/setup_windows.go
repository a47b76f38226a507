package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/windows/registry"

	"github.com/jitgate/jitgate/acl"
)

// RegistryKey is jitgate's own below HKEY_LOCAL_MACHINE.
const RegistryKey = `SOFTWARE\jitgate`

// bootKey lies below it. It is volatile: it is gone with the boot it was made
// in.
const bootKey = RegistryKey + `\Boot`

// SettleDirs makes the directories of an agent with the settings at their
// default place, or gives them back the access lists they should have.
func SettleDirs() error {
	for _, d := range []struct{ path, list string }{
		{programData, acl.Settings}, {defaultInboxDir, acl.Delivered}, {defaultStateDir, acl.Private}, {defaultIdentityDir, acl.Delivered},
	} {
		if err := acl.Settle(d.path, d.list); err != nil {
			return err
		}
	}
	return nil
}

// RemoveAll removes what SettleDirs and an agent have made: directories with
// everything in them, and what is remembered in the registry.
func RemoveAll() error {
	err := os.RemoveAll(programData)
	for _, key := range []string{bootKey, RegistryKey} {
		if keyErr := registry.DeleteKey(registry.LOCAL_MACHINE, key); keyErr != nil && !errors.Is(keyErr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("registry key %s: %w", key, keyErr))
		}
	}
	return err
}
