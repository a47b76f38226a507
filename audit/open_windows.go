package audit

import "os"

// nonBlocking has no meaning here: files are files.
const nonBlocking = 0

// openRecord opens the record to read and append, or makes it.
func openRecord(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
}
