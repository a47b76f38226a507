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

// terms are what a file has to keep to, beside what all have to, before the
// agent believes it.
type terms struct {
	limit int64 // bytes
	// linked allows that the last name is a symbolic link, as configuration
	// management makes them.
	linked bool
	// named allows more than one hard link.
	named bool
	// carried allows that file and directory belong to whoever delivers.
	carried bool
}

var (
	// The store of NixOS links equal files to each other. More names change
	// nothing in who may write a file: that is the inode's owner and mode.
	settingsTerms = terms{limit: 64 << 10, linked: true, named: true}
	stateTerms    = terms{limit: 1 << 20}
	inboxTerms    = terms{limit: policy.MaxEnvelope, carried: true}
)

// tooLarge is the error of a file that is larger than its limit.
type tooLarge string

func (e tooLarge) Error() string { return string(e) }

// readFile reads a file that keeps to t. It is judged on the descriptor that is
// then read. An error names the file, or the directory on the way to it, that
// does not, and what to do.
func readFile(path string, t terms) ([]byte, error) {
	f, err := openFile(path, t)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, t.limit)
}

// readLimited reads to the end, whatever size the file says it has.
func readLimited(f *os.File, limit int64) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > limit {
		return nil, tooLarge(fmt.Sprintf("%s has %d bytes, the limit is %d", f.Name(), info.Size(), limit))
	}
	// One more byte than the file has, so that one read sees its end.
	b := make([]byte, 0, info.Size()+1)
	for {
		n, err := f.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		switch {
		case int64(len(b)) > limit:
			return nil, tooLarge(fmt.Sprintf("%s grew past %d bytes", f.Name(), limit))
		case errors.Is(err, io.EOF):
			return b, nil
		case err != nil:
			return nil, err
		case len(b) == cap(b):
			b = append(b, 0)[:len(b)]
		}
	}
}

// writeFile replaces dir/name whole: a crash leaves the old file or the new
// one. With flush it is the new one once the caller has synced dir. What lies
// under the temporary name, left by a crash or a planted link, is not written
// to.
func writeFile(dir, name string, data []byte, flush bool) error {
	temporary := filepath.Join(dir, "."+name+".new")
	if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil && flush {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(temporary))
	}
	return os.Rename(temporary, filepath.Join(dir, name))
}
