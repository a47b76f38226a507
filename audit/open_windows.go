package audit

import (
	"os"

	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/acl"
)

// nonBlocking has no meaning here: files are files.
const nonBlocking = 0

// openRecord opens the record to read and append, or makes it, itself and not
// what it may lead to. What is open is judged: a file that others can change or
// know by another name is no record.
func openRecord(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND|windows.FILE_FLAG_OPEN_REPARSE_POINT, 0o600)
	if err != nil {
		return nil, err
	}
	o, err := acl.Of(windows.Handle(f.Fd()))
	if err == nil {
		err = acl.Judge(o, path, acl.TheFile, acl.Self(), acl.Terms{})
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func syncDir(dir string) error { return acl.SyncDir(dir) }
