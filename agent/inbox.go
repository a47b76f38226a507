package agent

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

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

// readInbox reads one delivered document. A file that is not there gives
// nil. Anything but a plain file that only its owner, the agent, root or the
// inbox's owner can have written is refused unread, judged on the descriptor
// that is then read.
func readInbox(dir string, k Kind) ([]byte, error) {
	f, err := openInbox(dir, k.File())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, policy.Refuse(policy.Malformed, "%s: %v", filepath.Join(dir, k.File()), err)
	}
	defer f.Close()
	return readLimited(f)
}

func readLimited(f *os.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > policy.MaxEnvelope {
		return nil, policy.Refuse(policy.TooLarge, "%s has %d bytes, the limit is %d", f.Name(), info.Size(), policy.MaxEnvelope)
	}
	// One more byte than the file has, so that one read sees its end.
	b := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, policy.Refuse(policy.Malformed, "%v", err)
		case len(b) > policy.MaxEnvelope:
			return nil, policy.Refuse(policy.TooLarge, "%s grew past %d bytes", f.Name(), policy.MaxEnvelope)
		case len(b) == cap(b):
			b = append(b, 0)[:len(b)]
		}
	}
}

// writeFile replaces dir/name whole: a crash leaves the old file or the new
// one. The name is durable once the caller has synced dir.
func writeFile(dir, name string, data []byte, mode os.FileMode) (err error) {
	temporary := filepath.Join(dir, "."+name+".new")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
