package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/acl"
)

// openFile opens a file for reading that nobody but SYSTEM, administrators, the
// user this process runs as and, where t allows it, whoever delivers to the
// inbox can have put there or written: neither the file nor any directory on
// the way to it.
//
// It goes from the drive one name at a time, each opened in the directory that
// was opened before, and judges what it has opened, so there is nothing that
// could be exchanged between a look and a use. Nothing that leads elsewhere is
// followed.
func openFile(path string, t terms) (*os.File, error) {
	drive := filepath.VolumeName(path)
	if len(drive) != 2 || drive[1] != ':' || !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s is not a path on a drive of this machine, like C:\\ProgramData\\jitgate\\agent.toml", path)
	}
	names := strings.FieldsFunc(filepath.Clean(path)[len(drive):], func(r rune) bool { return r == '\\' })
	if len(names) == 0 {
		return nil, fmt.Errorf("%s is not a plain file", path)
	}
	terms := acl.Terms{Named: t.named}
	if t.carried {
		terms.Carriers = []string{acl.LocalService, acl.Fetcher}
	}
	at := drive + `\`
	h, err := openName(0, `\??\`+at, at, wayAccess)
	if err != nil {
		return nil, err
	}
	for i, name := range names {
		access, place := uint32(wayAccess), acl.OnTheWay
		if i == len(names)-1 {
			access, place = windows.FILE_GENERIC_READ, acl.Holding
		}
		next, err := descend(h, name, at, place, access, &terms)
		windows.CloseHandle(h)
		if err != nil {
			return nil, err
		}
		h, at = next, filepath.Join(at, name)
	}
	o, err := acl.Of(h)
	if err == nil {
		err = acl.Judge(o, at, acl.TheFile, acl.Self(), terms)
	}
	if err != nil {
		windows.CloseHandle(h)
		return nil, err
	}
	return os.NewFile(uintptr(h), path), nil
}

// descend judges an open directory and opens a name in it.
func descend(dir windows.Handle, name, at string, place acl.Place, access uint32, t *acl.Terms) (windows.Handle, error) {
	if strings.ContainsRune(name, ':') {
		return 0, fmt.Errorf("%s names a stream: only a plain file is read", filepath.Join(at, name))
	}
	o, err := acl.Of(dir)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", at, err)
	}
	if place == acl.Holding && len(t.Carriers) > 0 {
		t.Carriers = append(t.Carriers, o.Owner) // whoever the inbox belongs to delivers
	}
	terms := acl.Terms{}
	if place == acl.Holding {
		terms = *t
	}
	if err := acl.Judge(o, at, place, acl.Self(), terms); err != nil {
		return 0, err
	}
	return openName(dir, name, filepath.Join(at, name), access)
}

// wayAccess is what judging a directory, and opening a name in it, takes.
const wayAccess = windows.FILE_READ_ATTRIBUTES | windows.READ_CONTROL | windows.FILE_TRAVERSE | windows.SYNCHRONIZE

// openName opens a name in a directory that is open, itself and not what it may
// lead to; or a whole path where dir is 0.
func openName(dir windows.Handle, name, path string, access uint32) (windows.Handle, error) {
	text, err := windows.NewNTUnicodeString(name)
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	what := &windows.OBJECT_ATTRIBUTES{RootDirectory: dir, ObjectName: text, Attributes: windows.OBJ_CASE_INSENSITIVE}
	what.Length = uint32(unsafe.Sizeof(*what))
	var h windows.Handle
	var status windows.IO_STATUS_BLOCK
	const share = windows.FILE_SHARE_READ | windows.FILE_SHARE_WRITE | windows.FILE_SHARE_DELETE
	err = windows.NtCreateFile(&h, access, what, &status, nil, 0, share, windows.FILE_OPEN,
		windows.FILE_OPEN_REPARSE_POINT|windows.FILE_SYNCHRONOUS_IO_NONALERT, 0, 0)
	if nt, ok := errors.AsType[windows.NTStatus](err); ok {
		err = nt.Errno()
	}
	if err != nil {
		return 0, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return h, nil
}

// rootsOwn: the inbox belongs to administrators here, as everything in it may.
func rootsOwn(*os.File, string) bool { return false }

// makePrivateDir makes a directory for SYSTEM and administrators.
func makePrivateDir(path string) error { return acl.MakeDir(path, acl.Private) }

// makeInboxDir makes a directory that the fetcher may write to.
func makeInboxDir(path string) error { return acl.MakeDir(path, acl.Delivered) }

// syncDir makes names given in a directory durable.
func syncDir(dir string) error { return acl.SyncDir(dir) }
