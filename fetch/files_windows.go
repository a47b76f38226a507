package fetch

import "os"

// giveTo does nothing: a file gets the rights of its directory.
func giveTo(*os.File, string) error { return nil }

// syncDir does nothing: the file system orders a rename after what it renames.
func syncDir(string) error { return nil }
