package audit

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// File is the record of truth: JSON lines, each with a sequence number and
// the SHA-256 of the line before it, so that a line edited, removed or moved
// shows. It is safe for concurrent use.
//
// A line that a crash cut short is set aside beside the file at the next
// start, and the line that follows names its digest.
type File struct {
	Now func() time.Time

	dir     string
	mu      sync.Mutex
	f       *os.File
	head    head
	changed chan struct{} // closed when something was recorded; nil: nobody asked
}

type head struct {
	seq  uint64
	hash string
}

// line is an event as it stands in the file.
type line struct {
	Seq  uint64 `json:"seq"`
	Prev string `json:"prev"` // of the line before, without its newline
	Time string `json:"time"` // in place of the event's: of one width
	Event
	Torn string `json:"torn,omitempty"` // digest of bytes set aside before this line
}

const timeLayout = "2006-01-02T15:04:05.000Z"

// genesis stands for the line before the first.
var genesis = hex.EncodeToString(make([]byte, sha256.Size))

const fileName = "000001.jsonl"

// NewFile keeps the record in dir, which it makes when the first event
// arrives. It touches nothing until then, so a disk that is not writable does
// not keep an agent from starting closed.
func NewFile(dir string) *File { return &File{Now: time.Now, dir: dir} }

// Record implements Sink. After an error the next call opens the file anew
// and goes on behind the last whole line.
func (l *File) Record(_ context.Context, events ...Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	torn := ""
	if l.f == nil {
		var err error
		if torn, err = l.open(); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	next, text := l.head, bytes.Buffer{}
	for _, e := range events {
		if e.Time.IsZero() {
			e.Time = l.Now()
		}
		entry, err := json.Marshal(line{Seq: next.seq + 1, Prev: next.hash, Time: e.Time.UTC().Format(timeLayout), Event: e, Torn: torn})
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		torn = ""
		next = head{next.seq + 1, digest(entry)}
		text.Write(entry)
		text.WriteByte('\n')
	}
	_, err := l.f.Write(text.Bytes())
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		err = errors.Join(err, l.f.Close())
		l.f = nil
		return fmt.Errorf("audit: %w", err)
	}
	l.head = next
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
	return nil
}

// Close closes the file.
func (l *File) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	return err
}

// open finds the end of the chain. It returns the digest of a torn line it
// set aside.
func (l *File) open() (torn string, err error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return "", err
	}
	path := filepath.Join(l.dir, fileName)
	f, err := openRecord(path)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, last, tail, err := lastLine(f)
	if err != nil {
		return "", err
	}
	h := head{hash: genesis}
	if last != nil {
		var entry line
		if err := json.Unmarshal(last, &entry); err != nil {
			return "", fmt.Errorf("%s: the last line cannot be read (%w): move the file away to start a new chain", path, err)
		}
		h = head{entry.Seq, digest(last)}
	}
	if len(tail) > 0 {
		torn = digest(tail)
		if err := setAside(path+".torn-"+torn[:16], tail); err != nil {
			return "", err
		}
		if err := f.Truncate(size - int64(len(tail))); err != nil {
			return "", err
		}
	}
	if err := syncDir(l.dir); err != nil {
		return "", err
	}
	l.f, l.head = f, h
	return torn, nil
}

// setAside writes a file of its own, in place of one that a crash left or
// somebody planted.
func setAside(path string, data []byte) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// maxLine bounds one line, hostile texts in it included.
const maxLine = 256 << 10

// lastLine returns the file's size, its last whole line without the newline
// (nil if there is none), and what stands behind it.
func lastLine(f *os.File) (size int64, last, tail []byte, err error) {
	info, err := f.Stat()
	if err != nil {
		return 0, nil, nil, err
	}
	size = info.Size()
	from := max(0, size-2*maxLine)
	b, err := io.ReadAll(io.NewSectionReader(f, from, size-from))
	if err != nil {
		return 0, nil, nil, err
	}
	end := bytes.LastIndexByte(b, '\n')
	tail = b[end+1:]
	if end < 0 {
		if from > 0 {
			return 0, nil, nil, fmt.Errorf("%s: no line ends in its last %d bytes", f.Name(), 2*maxLine)
		}
		return size, nil, tail, nil
	}
	start := bytes.LastIndexByte(b[:end], '\n') + 1
	return size, b[start:end], tail, nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
