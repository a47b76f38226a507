package agent

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/registry"

	"github.com/jitgate/jitgate/firewall"
)

// BootNow reads the time since boot, sleep included (GetTickCount64).
func BootNow() firewall.BootTime { return firewall.BootTime(windows.DurationSinceBoot()) }

// bootID names this boot. Windows has no name for it; a volatile key in the
// registry lives exactly as long, and holds one. With the hibernated kernel of
// a fast start both it and the clock go on. Without the right to make the key
// there is no name, and a restarted agent draws its ends anew.
func bootID() string {
	parent, _, err := registry.CreateKey(registry.LOCAL_MACHINE, RegistryKey, registry.CREATE_SUB_KEY|registry.WOW64_64KEY)
	if err != nil {
		return ""
	}
	defer parent.Close()
	k, err := createVolatile(parent, "Boot")
	if err != nil {
		return ""
	}
	defer k.Close()
	id, _, err := k.GetStringValue("ID")
	if errors.Is(err, fs.ErrNotExist) {
		id = rand.Text()
		err = k.SetStringValue("ID", id)
	}
	if err != nil {
		return ""
	}
	return id
}

var regCreateKeyEx = advapi32.NewProc("RegCreateKeyExW")

// createVolatile opens a key, or makes it for as long as the machine runs.
func createVolatile(parent registry.Key, name string) (registry.Key, error) {
	const volatile = 1 // REG_OPTION_VOLATILE
	text, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	var k windows.Handle
	code, _, _ := regCreateKeyEx.Call(uintptr(parent), uintptr(unsafe.Pointer(text)), 0, 0, volatile,
		registry.QUERY_VALUE|registry.SET_VALUE|registry.WOW64_64KEY, 0, uintptr(unsafe.Pointer(&k)), 0)
	if code != 0 {
		return 0, windows.Errno(code)
	}
	return registry.Key(k), nil
}
