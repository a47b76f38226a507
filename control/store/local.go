package store

import "errors"

// errInUse is what a second process is told.
var errInUse = errors.New("another process has this database open: SQLite serves one jitgate-control; several need PostgreSQL")

// errRemote is said of a directory that the kernel says is on another machine.
var errRemote = errors.New("the directory is on a network file system, where SQLite's locks and shared memory cannot be trusted: use a local disk, or PostgreSQL")
