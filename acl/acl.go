// Package acl says who may change a file on Windows: the counterpart of owner
// and mode, which decide that elsewhere.
//
// Judge decides over a plain description, on every platform. Reading that
// description from what is open, and making directories that pass and that are
// durable, is all that touches Windows.
package acl

import (
	"fmt"
	"slices"
)

// SIDs that name the same on every Windows (well-known SIDs, [MS-DTYP]
// 2.4.2.4).
const (
	System           = "S-1-5-18"
	Administrators   = "S-1-5-32-544"
	LocalService     = "S-1-5-19"
	TrustedInstaller = "S-1-5-80-956008885-3418522649-1831038044-1853292631-2271478464"
	// OwnerRights stands for whoever owns the object, who is judged as its
	// owner.
	OwnerRights = "S-1-3-4"
	// Fetcher is the service jitgate-fetch: S-1-5-80 and the SHA-1 of its name
	// in capitals, in UTF-16.
	Fetcher = "S-1-5-80-2371301836-924641669-236697401-3707769037-376522225"
)

// Rights that let somebody change a file, or exchange what is in a directory
// ([MS-DTYP] 2.4.3).
const (
	writeData    = 0x2 // of a directory: add a file
	appendData   = 0x4 // of a directory: add a directory
	deleteChild  = 0x40
	remove       = 0x10000
	writeDAC     = 0x40000
	writeOwner   = 0x80000
	genericAll   = 0x10000000
	genericWrite = 0x40000000

	exchange = deleteChild | remove | writeDAC | writeOwner | genericAll
	add      = writeData | appendData | genericWrite
	change   = remove | writeDAC | writeOwner | genericAll | writeData | appendData | genericWrite
)

// Object is a file or a directory as Windows describes it. The zero Object has
// no owner, and is refused.
type Object struct {
	Directory bool
	Reparse   bool   // a symbolic link, a junction, or a file that lies elsewhere
	Links     uint32 // names of the file
	Owner     string // SID
	// NoList says that there is no access list: everybody may do anything.
	NoList bool
	Allow  []Entry // of the access list; what it denies does not count
	// Strange says that the list has entries that allow something and are of a
	// kind that is not understood.
	Strange bool
}

// Entry allows somebody something.
type Entry struct {
	SID  string
	Mask uint32
	// InheritOnly says that it is about what will be made in the directory.
	InheritOnly bool
}

// Place is what an object is to what is read.
type Place int

// The places.
const (
	OnTheWay Place = iota // a directory further up
	Holding               // the directory the file is in
	TheFile
)

// Terms are what an object has to keep to beside what all have to.
type Terms struct {
	// Named allows that a file has more than one name.
	Named bool
	// Carriers may change it too: who delivers to the inbox.
	Carriers []string
}

// Judge says why what is read at a path cannot be believed: because somebody
// else than SYSTEM, administrators, Windows itself, self and the carriers could
// have changed or exchanged it. self is the user this process runs as. The
// error says what to do.
func Judge(o Object, path string, at Place, self string, t Terms) error {
	believed := append([]string{System, Administrators, TrustedInstaller, OwnerRights, self}, t.Carriers...)
	believes := func(sid string) bool { return sid != "" && slices.Contains(believed, sid) }
	switch {
	case o.Reparse:
		return fmt.Errorf("%s is a link to elsewhere: only a plain file is read, copy it to its place", path)
	case at == TheFile && o.Directory:
		return fmt.Errorf("%s is not a plain file: remove it", path)
	case at != TheFile && !o.Directory:
		return fmt.Errorf("%s is not a directory", path)
	case at == TheFile && o.Links > 1 && !t.Named:
		return fmt.Errorf("%s has %d hard links: only a file with one name is read, copy it to its place", path, o.Links)
	case !believes(o.Owner):
		return fmt.Errorf(`%s belongs to %s, who could change what is read: icacls "%[1]s" /setowner *%[3]s`, path, name(o.Owner), Administrators)
	case o.NoList:
		return fmt.Errorf("%s has no access list, so everybody may change it: %s", path, mend(path))
	case o.Strange:
		return fmt.Errorf("%s has an access list with conditions, which say nothing certain: %s", path, mend(path))
	}
	bad := uint32(change)
	switch at {
	case OnTheWay:
		bad = exchange
	case Holding:
		bad = exchange | add
	}
	for _, e := range o.Allow {
		if !e.InheritOnly && e.Mask&bad != 0 && !believes(e.SID) {
			return fmt.Errorf("%s may be changed by %s: %s", path, name(e.SID), mend(path))
		}
	}
	return nil
}

func name(sid string) string {
	if sid == "" {
		return "nobody known"
	}
	return sid
}

// mend is the command after which SYSTEM and administrators alone may change an
// object.
func mend(path string) string {
	return fmt.Sprintf(`icacls "%s" /inheritance:r /grant:r *%s:F *%s:F`, path, System, Administrators)
}

// Access lists, in the security descriptor definition language, of what jitgate
// makes: nothing comes down from above.
const (
	// Private is for SYSTEM and administrators.
	Private = "D:P(A;OICI;FA;;;SY)(A;OICI;FA;;;BA)"
	// Settings lets the fetcher read the files in it, and not what is in the
	// directories below.
	Settings = Private + "(A;;0x1200a9;;;" + Fetcher + ")(A;OINPIO;FR;;;" + Fetcher + ")"
	// Delivered lets the fetcher write.
	Delivered = Private + "(A;OICI;0x1301bf;;;" + Fetcher + ")"
	// Pipe is that of the agent's local API.
	Pipe = "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GRGW;;;" + Fetcher + ")"
)
