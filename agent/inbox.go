package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/jitgate/jitgate/policy"
)

// Kind is one of the three documents, in the order they depend on each other.
type Kind int

// The documents.
const (
	Trust Kind = iota
	Policy
	Grants
	kinds
)

func (k Kind) String() string { return [...]string{"trust", "policy", "grants"}[k] }

// File is the document's name in the inbox and in the state directory.
func (k Kind) File() string { return k.String() + ".json" }

// kindOf returns the kind of a document of a type.
func kindOf(typ policy.Type) (Kind, bool) {
	for k, t := range [kinds]policy.Type{policy.TypeTrust, policy.TypePolicy, policy.TypeGrants} {
		if t == typ {
			return Kind(k), true
		}
	}
	return 0, false
}

// inbox reads what was delivered. A file system behind it that never answers
// (NFS, FUSE) holds up the reader of a document, never the pass: what is in
// force stays, leases are renewed, and what ends is closed. The zero inbox is
// ready.
type inbox struct {
	patience time.Duration   // how long a look waits; zero: inboxPatience
	out      [kinds]*reading // those that have no answer yet
}

// reading is one reader at work.
type reading struct {
	since  time.Time
	answer chan answer
}

// answer is what a look at one document in the inbox found: nil and no error
// where nothing lies there.
type answer struct {
	raw    []byte
	byHand bool // root put it where somebody else delivers
	err    error
	none   bool // it has not come yet
	late   bool // that, or it is that of an earlier look and may be old
}

const (
	// inboxPatience is how long a pass waits for the inbox. The shortest lease
	// is one second, and is renewed when half of it has passed.
	inboxPatience = 250 * time.Millisecond
	// inboxSilence is after how long it is told that none comes.
	inboxSilence = 2 * time.Second
)

// look looks at all documents. No more than one reader waits for each.
func (i *inbox) look(dir string) (found [kinds]answer) {
	for k := range kinds {
		if found[k].late = i.out[k] != nil; found[k].late {
			continue
		}
		r := &reading{time.Now(), make(chan answer, 1)}
		i.out[k] = r
		go func() {
			raw, byHand, err := readInbox(dir, k)
			r.answer <- answer{raw: raw, byHand: byHand, err: err}
		}()
	}
	enough, cancel := context.WithTimeout(context.Background(), cmp.Or(i.patience, inboxPatience))
	defer cancel()
	for k := range kinds {
		late := found[k].late
		if !late {
			select {
			case found[k] = <-i.out[k].answer:
				i.out[k] = nil
				continue
			case <-enough.Done():
			}
		}
		select { // of an earlier look, or while another document was waited for
		case found[k] = <-i.out[k].answer:
			found[k].late = late
			i.out[k] = nil
		default:
			found[k] = answer{late: true, none: true}
			if silent := time.Since(i.out[k].since); silent >= inboxSilence {
				found[k].err = policy.Refuse(policy.Malformed, "%s: no answer from the file system it is on: mend or unmount that", filepath.Join(dir, k.File()))
			}
		}
	}
	return found
}

// readInbox reads one delivered document. A file that is not there gives nil.
// byHand says that root put it where somebody else delivers.
func readInbox(dir string, k Kind) (raw []byte, byHand bool, err error) {
	f, err := openFile(filepath.Join(dir, k.File()), inboxTerms)
	if err == nil {
		defer f.Close()
		byHand = rootsOwn(f, dir)
		raw, err = readLimited(f, inboxTerms.limit)
	}
	var large tooLarge
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, nil
	case errors.As(err, &large):
		return nil, byHand, policy.Refuse(policy.TooLarge, "%v", err)
	case err != nil:
		return nil, byHand, policy.Refuse(policy.Malformed, "%v", err)
	}
	return raw, byHand, nil
}

// makeInbox makes the directory. The file system it is to be on may hang.
func makeInbox(dir string) error {
	made := make(chan error, 1)
	go func() { made <- makeInboxDir(dir) }()
	select {
	case err := <-made:
		return err
	case <-time.After(inboxSilence):
		return fmt.Errorf("%s: no answer within %s", dir, inboxSilence)
	}
}
