package acl

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Of describes what is open, which needs the right to read its access list.
func Of(h windows.Handle) (Object, error) {
	var info windows.ByHandleFileInformation
	if err := windows.GetFileInformationByHandle(h, &info); err != nil {
		return Object{}, fmt.Errorf("GetFileInformationByHandle: %w", err)
	}
	o := Object{
		Directory: info.FileAttributes&windows.FILE_ATTRIBUTE_DIRECTORY != 0,
		Reparse:   info.FileAttributes&windows.FILE_ATTRIBUTE_REPARSE_POINT != 0,
		Links:     info.NumberOfLinks,
	}
	d, err := windows.GetSecurityInfo(h, windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION)
	if err != nil {
		return Object{}, fmt.Errorf("GetSecurityInfo: %w", err)
	}
	if owner, _, err := d.Owner(); err == nil && owner != nil {
		o.Owner = owner.String()
	}
	list, _, err := d.DACL()
	if err != nil || list == nil {
		o.NoList = true
		return o, nil
	}
	for i := range list.AceCount {
		var e *windows.ACCESS_ALLOWED_ACE
		if err := windows.GetAce(list, uint32(i), &e); err != nil {
			return Object{}, fmt.Errorf("GetAce: %w", err)
		}
		switch e.Header.AceType {
		case windows.ACCESS_ALLOWED_ACE_TYPE:
			sid := (*windows.SID)(unsafe.Pointer(&e.SidStart))
			o.Allow = append(o.Allow, Entry{sid.String(), uint32(e.Mask), e.Header.AceFlags&windows.INHERIT_ONLY_ACE != 0})
		case windows.ACCESS_DENIED_ACE_TYPE:
		default:
			o.Strange = true
		}
	}
	return o, nil
}

// Self is the SID of the user this process runs as.
var Self = sync.OnceValue(func() string {
	user, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return ""
	}
	return user.User.Sid.String()
})

// MakeDir makes a directory, and those above it that are not there, with an
// access list in the security descriptor definition language. One that is
// there stays as it is.
func MakeDir(path, list string) error {
	d, err := windows.SecurityDescriptorFromString(list)
	if err != nil {
		return fmt.Errorf("access list %s: %w", list, err)
	}
	attributes := &windows.SecurityAttributes{SecurityDescriptor: d}
	attributes.Length = uint32(unsafe.Sizeof(*attributes))
	return makeDir(filepath.Clean(path), attributes)
}

func makeDir(path string, attributes *windows.SecurityAttributes) error {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	err = windows.CreateDirectory(name, attributes)
	if errors.Is(err, windows.ERROR_PATH_NOT_FOUND) && filepath.Dir(path) != path {
		if err := makeDir(filepath.Dir(path), attributes); err != nil {
			return err
		}
		err = windows.CreateDirectory(name, attributes)
	}
	if errors.Is(err, windows.ERROR_ALREADY_EXISTS) {
		info, statErr := os.Lstat(path)
		if statErr == nil && info.IsDir() {
			return nil
		}
	}
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: path, Err: err}
	}
	return nil
}

// Settle makes a directory with an access list, or gives it to the one that is
// there, if that was not put there by somebody else: in a directory like
// ProgramData everybody may make one before its owner does.
func Settle(path, list string) error {
	if err := MakeDir(path, list); err != nil {
		return err
	}
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	h, err := windows.CreateFile(name, windows.FILE_READ_ATTRIBUTES|windows.READ_CONTROL, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE,
		nil, windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	o, err := Of(h)
	windows.CloseHandle(h)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	o.NoList, o.Strange, o.Allow = false, false, nil // about to be replaced
	if err := Judge(o, path, Holding, Self(), Terms{}); err != nil {
		return fmt.Errorf("somebody else made it, move it away: %w", err)
	}
	return Protect(path, list)
}

// Protect gives a directory or a file that is there an access list, and makes
// administrators its owner.
func Protect(path, list string) error {
	d, err := windows.SecurityDescriptorFromString("O:BA" + list)
	if err != nil {
		return fmt.Errorf("access list %s: %w", list, err)
	}
	owner, _, err := d.Owner()
	if err != nil {
		return err
	}
	entries, _, err := d.DACL()
	if err != nil {
		return err
	}
	err = windows.SetNamedSecurityInfo(path, windows.SE_FILE_OBJECT,
		windows.OWNER_SECURITY_INFORMATION|windows.DACL_SECURITY_INFORMATION|windows.PROTECTED_DACL_SECURITY_INFORMATION, owner, nil, entries, nil)
	if err != nil {
		return &fs.PathError{Op: "protect", Path: path, Err: err}
	}
	return nil
}

// SyncDir makes names given in a directory durable, where its file system can.
func SyncDir(dir string) error {
	name, err := windows.UTF16PtrFromString(dir)
	if err != nil {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	h, err := windows.CreateFile(name, windows.FILE_WRITE_DATA, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil,
		windows.OPEN_EXISTING, windows.FILE_FLAG_BACKUP_SEMANTICS, 0)
	if err != nil {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	defer windows.CloseHandle(h)
	if err := windows.FlushFileBuffers(h); err != nil && !errors.Is(err, windows.ERROR_INVALID_FUNCTION) {
		return &fs.PathError{Op: "sync", Path: dir, Err: err}
	}
	return nil
}
