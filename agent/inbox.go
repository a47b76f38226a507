package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
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

// inbox reads what was delivered. A file system behind it that never answers
// (NFS, FUSE) holds up the reader of a document, never the pass: what is in
// force stays, leases are renewed, and what ends is closed. The zero inbox is
// ready.
type inbox struct {
	reading [kinds]atomic.Bool // a reader is out, perhaps of an earlier pass
}

// answer is what one look at a document in the inbox found: nil and no
// error where there is none.
type answer struct {
	kind Kind
	raw  []byte
	err  error
}

// inboxPatience is how long one pass waits for the inbox. It is less than a
// caller on the socket waits for a pass.
const inboxPatience = 2 * time.Second

// read looks at all documents. One that an earlier pass has not got an answer
// for is neither waited for nor asked for again. An answer that comes late is
// not used: the next pass reads anew.
func (i *inbox) read(dir string) (found [kinds]answer) {
	answers := make(chan answer, kinds)
	waiting := 0
	for k := range kinds {
		found[k] = answer{kind: k, err: policy.Refuse(policy.Malformed, "%s: no answer within %s: see to the file system it is on",
			filepath.Join(dir, k.File()), inboxPatience)}
		if !i.reading[k].CompareAndSwap(false, true) {
			continue
		}
		waiting++
		go func() {
			raw, err := readInbox(dir, k)
			i.reading[k].Store(false)
			answers <- answer{k, raw, err}
		}()
	}
	enough := time.NewTimer(inboxPatience)
	defer enough.Stop()
	for ; waiting > 0; waiting-- {
		select {
		case d := <-answers:
			found[d.kind] = d
		case <-enough.C:
			return found
		}
	}
	return found
}

// readInbox reads one delivered document. A file that is not there gives nil.
func readInbox(dir string, k Kind) ([]byte, error) {
	raw, err := readFile(filepath.Join(dir, k.File()), inboxTerms)
	var large tooLarge
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.As(err, &large):
		return nil, policy.Refuse(policy.TooLarge, "%v", err)
	case err != nil:
		return nil, policy.Refuse(policy.Malformed, "%v", err)
	}
	return raw, nil
}

// makeInbox makes the directory. The file system it is to be on may hang.
func makeInbox(dir string) error {
	made := make(chan error, 1)
	go func() { made <- os.MkdirAll(dir, 0o755) }()
	select {
	case err := <-made:
		return err
	case <-time.After(inboxPatience):
		return fmt.Errorf("%s: no answer within %s", dir, inboxPatience)
	}
}
