package signer

import "io/fs"

// openToOthers is not known by the mode on Windows: the directory's access
// list says who can read a file.
func openToOthers(fs.FileMode) bool { return false }
