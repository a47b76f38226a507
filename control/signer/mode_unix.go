//go:build unix

package signer

import "io/fs"

// openToOthers reports whether more than the file's owner can read or write it.
func openToOthers(m fs.FileMode) bool { return m.Perm()&0o077 != 0 }
