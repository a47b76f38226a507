package acl

import (
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"unicode/utf16"
)

const (
	everyone = "S-1-1-0"
	users    = "S-1-5-32-545"
	authed   = "S-1-5-11"
	me       = "S-1-5-21-1-2-3-1001"

	read    = 0x1200a9
	full    = 0x1f01ff
	modify  = 0x1301bf
	fileAdd = 0x2
	dirAdd  = 0x4
)

func file(owner string, allow ...Entry) Object { return Object{Links: 1, Owner: owner, Allow: allow} }

func dir(owner string, allow ...Entry) Object {
	return Object{Directory: true, Links: 1, Owner: owner, Allow: allow}
}

func allow(sid string, mask uint32) Entry { return Entry{SID: sid, Mask: mask} }

func below(sid string, mask uint32) Entry { return Entry{sid, mask, true} }

func TestJudge(t *testing.T) {
	carried := Terms{Carriers: []string{LocalService, Fetcher}}
	own := []Entry{allow(System, full), allow(Administrators, full)}
	for name, c := range map[string]struct {
		o    Object
		at   Place
		t    Terms
		want string // part of the refusal; empty: believed
	}{
		"of administrators":            {file(Administrators, own...), TheFile, Terms{}, ""},
		"of SYSTEM":                    {file(System, own...), TheFile, Terms{}, ""},
		"of Windows":                   {dir(TrustedInstaller, allow(users, read)), OnTheWay, Terms{}, ""},
		"of the agent's user":          {file(me, allow(me, full)), TheFile, Terms{}, ""},
		"all may read":                 {file(System, allow(everyone, read)), TheFile, Terms{}, ""},
		"its owner's rights":           {file(System, allow(OwnerRights, full)), TheFile, Terms{}, ""},
		"nobody may do anything":       {file(System), TheFile, Terms{}, ""},
		"of users":                     {file(users, own...), TheFile, Terms{}, "belongs to " + users},
		"of nobody":                    {Object{}, TheFile, Terms{}, "belongs to nobody known"},
		"no list":                      {Object{Links: 1, Owner: System, NoList: true}, TheFile, Terms{}, "no access list"},
		"a condition":                  {Object{Links: 1, Owner: System, Strange: true}, TheFile, Terms{}, "conditions"},
		"users write":                  {file(System, allow(users, modify)), TheFile, Terms{}, "changed by " + users},
		"users append":                 {file(System, allow(users, dirAdd)), TheFile, Terms{}, "changed by " + users},
		"users remove":                 {file(System, allow(users, 0x10000)), TheFile, Terms{}, "changed by"},
		"users rewrite the list":       {file(System, allow(users, 0x40000)), TheFile, Terms{}, "changed by"},
		"users take it":                {file(System, allow(users, 0x80000)), TheFile, Terms{}, "changed by"},
		"generic write":                {file(System, allow(users, 0x40000000)), TheFile, Terms{}, "changed by"},
		"generic all":                  {file(System, allow(users, 0x10000000)), TheFile, Terms{}, "changed by"},
		"a link":                       {Object{Links: 1, Owner: System, Reparse: true}, TheFile, Terms{}, "link to elsewhere"},
		"a junction on the way":        {Object{Directory: true, Owner: System, Reparse: true}, OnTheWay, Terms{}, "link to elsewhere"},
		"a directory for a file":       {dir(System), TheFile, Terms{}, "not a plain file"},
		"a file for a directory":       {file(System), Holding, Terms{}, "not a directory"},
		"two names":                    {Object{Links: 2, Owner: System}, TheFile, Terms{}, "2 hard links"},
		"two names, allowed":           {Object{Links: 2, Owner: System}, TheFile, Terms{Named: true}, ""},
		"C: as it is installed":        {dir(TrustedInstaller, allow(authed, dirAdd), below(authed, modify), allow(users, read)), OnTheWay, Terms{}, ""},
		"ProgramData as installed":     {dir(System, allow(users, 0x116), allow(users, read), below("S-1-3-0", full)), OnTheWay, Terms{}, ""},
		"files straight in there":      {dir(System, allow(users, 0x116)), Holding, Terms{}, "changed by " + users},
		"users may add a file":         {dir(System, allow(users, fileAdd)), Holding, Terms{}, "changed by"},
		"users may exchange it":        {dir(System, allow(users, 0x40)), OnTheWay, Terms{}, "changed by"},
		"users may move it":            {dir(System, allow(users, 0x10000)), OnTheWay, Terms{}, "changed by"},
		"a carrier's":                  {file(LocalService, allow(Fetcher, modify)), TheFile, carried, ""},
		"a carrier's, elsewhere":       {file(LocalService, allow(Fetcher, modify)), TheFile, Terms{}, "belongs to " + LocalService},
		"a carrier writes, elsewhere":  {dir(System, allow(Fetcher, modify)), Holding, Terms{}, "changed by " + Fetcher},
		"somebody beside the carriers": {dir(System, allow(Fetcher, modify), allow(users, modify)), Holding, carried, "changed by " + users},
	} {
		err := Judge(c.o, `C:\x`, c.at, me, c.t)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}

// Without a user of its own a process believes no object without an owner, and
// no entry without a name.
func TestJudgeUnknownSelf(t *testing.T) {
	if err := Judge(file(""), `C:\x`, TheFile, "", Terms{}); err == nil {
		t.Error("a file of nobody is believed")
	}
	if err := Judge(file(System, allow("", full)), `C:\x`, TheFile, "", Terms{}); err == nil {
		t.Error("a file that somebody unnamed may change is believed")
	}
}

// What is believed has no entry by which a stranger could change it, whatever
// else is said of it; and no right that is taken away makes a difference for
// the worse.
func FuzzJudge(f *testing.F) {
	f.Add(uint8(0), uint8(0), uint32(full), uint32(read), uint8(1))
	f.Add(uint8(3), uint8(2), uint32(0x10000000), uint32(0x40), uint8(6))
	f.Fuzz(func(t *testing.T, flags, at uint8, mask, other uint32, who uint8) {
		sids := []string{System, Administrators, TrustedInstaller, me, users, everyone, "", LocalService}
		sid := sids[int(who)%len(sids)]
		stranger := sid == users || sid == everyone || sid == "" || sid == LocalService
		place := Place(at % 3)
		o := Object{Directory: flags&1 != 0, Reparse: flags&2 != 0, Links: 1, Owner: sids[int(flags>>4)%4], NoList: flags&4 != 0, Strange: flags&8 != 0,
			Allow: []Entry{{System, other, false}, {sid, mask, who&0x80 != 0}}}
		err := Judge(o, "x", place, me, Terms{})
		if err != nil {
			return
		}
		if o.Reparse || o.NoList || o.Strange || o.Directory != (place != TheFile) {
			t.Fatalf("believed: %+v", o)
		}
		const anywhere = 0x10000 | 0x40000 | 0x80000 | 0x10000000
		if stranger && who&0x80 == 0 && mask&anywhere != 0 {
			t.Fatalf("believed although %s has %#x", sid, mask)
		}
		if stranger && who&0x80 == 0 && place != OnTheWay && mask&0x40000006 != 0 {
			t.Fatalf("believed although %s has %#x", sid, mask)
		}
		o.Allow = o.Allow[:1]
		if err := Judge(o, "x", place, me, Terms{}); err != nil {
			t.Fatalf("with less allowed: %v", err)
		}
	})
}

// The SID of a service is made of its name.
func TestFetcherSID(t *testing.T) {
	var name []byte
	for _, u := range utf16.Encode([]rune(strings.ToUpper("jitgate-fetch"))) {
		name = binary.LittleEndian.AppendUint16(name, u)
	}
	sum := sha1.Sum(name)
	sid := "S-1-5-80"
	for i := 0; i < len(sum); i += 4 {
		sid += fmt.Sprintf("-%d", binary.LittleEndian.Uint32(sum[i:]))
	}
	if sid != Fetcher {
		t.Errorf("the service is %s", sid)
	}
}
