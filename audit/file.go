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
// It is written into 000001.jsonl until that is full, then into 000002.jsonl,
// and so on; the chain goes on across files. A line that a crash cut short is
// set aside beside its file at the next start, and the line that follows names
// its digest.
type File struct {
	Now func() time.Time
	// Full is from how many bytes on another file is begun.
	Full int64
	// Copy, if not nil, is told what has become durable, in order. It must not
	// wait for anything.
	Copy func([]Entry)

	dir     string
	mu      sync.Mutex
	f       *os.File
	number  uint64 // of the file f
	size    int64  // of it
	torn    string // digest of what was set aside, until a line names it
	head    head
	changed chan struct{} // closed when something was recorded; nil: nobody asked
}

// Entry is an event with its place in the record.
type Entry struct {
	Seq  uint64
	Prev string // SHA-256 of the line before
	Hash string // and of this one
	Event
}

// DefaultFull is the size of the record's files unless File.Full says another.
const DefaultFull = 16 << 20

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

// NewFile keeps the record in dir, which it makes when the first event
// arrives. It touches nothing until then, so a disk that is not writable does
// not keep an agent from starting closed.
func NewFile(dir string) *File { return &File{Now: time.Now, Full: DefaultFull, dir: dir} }

// Record implements Sink. After an error the next call opens the file anew
// and goes on behind the last whole line.
func (l *File) Record(_ context.Context, events ...Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		if err := l.open(); err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	next, torn, text := l.head, l.torn, bytes.Buffer{}
	entries := make([]Entry, 0, len(events))
	for _, e := range events {
		if e.Time.IsZero() {
			e.Time = l.Now()
		}
		entry, err := json.Marshal(line{Seq: next.seq + 1, Prev: next.hash, Time: e.Time.UTC().Format(timeLayout), Event: e, Torn: torn})
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
		torn = ""
		before := next.hash
		next = head{next.seq + 1, digest(entry)}
		entries = append(entries, Entry{next.seq, before, next.hash, e})
		text.Write(entry)
		text.WriteByte('\n')
	}
	err := l.turn(int64(text.Len()))
	if err == nil {
		_, err = l.f.Write(text.Bytes())
	}
	if err == nil {
		err = l.f.Sync()
	}
	if err != nil {
		err = errors.Join(err, l.f.Close())
		l.f = nil
		return fmt.Errorf("audit: %w", err)
	}
	l.head, l.torn = next, ""
	l.size += int64(text.Len())
	if l.Copy != nil {
		l.Copy(entries)
	}
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

// turn begins the next file if more bytes would be too many for this one. What
// is recorded at once stays together.
func (l *File) turn(more int64) error {
	if l.size == 0 || l.size+more <= l.Full {
		return nil
	}
	f, err := openRecord(filepath.Join(l.dir, fileName(l.number+1)))
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() > 0 {
		err = fmt.Errorf("%s is there already, and not of this chain: move it away", f.Name())
	}
	if err = errors.Join(err, syncDir(l.dir)); err != nil {
		return errors.Join(err, f.Close())
	}
	// It was synced line by line, so that closing it can lose nothing.
	l.f.Close()
	l.f, l.number, l.size = f, l.number+1, 0
	return nil
}

// open finds the end of the chain, and sets aside a line that is torn.
func (l *File) open() (err error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	numbers, err := fileNumbers(l.dir)
	if err != nil {
		return err
	}
	if len(numbers) == 0 {
		numbers = []uint64{1}
	}
	newest := numbers[len(numbers)-1]
	path := filepath.Join(l.dir, fileName(newest))
	f, err := openRecord(path)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, last, tail, err := lastLine(f)
	if err != nil {
		return err
	}
	h, err := headOf(path, last)
	if err == nil && last == nil { // a crash as it was begun
		h, err = endOf(l.dir, numbers[:len(numbers)-1])
	}
	if err != nil {
		return fmt.Errorf("%w: move the file away to start a new chain", err)
	}
	if len(tail) > 0 {
		torn := digest(tail)
		if err := setAside(tornName(path, torn), tail); err != nil {
			return err
		}
		if err := f.Truncate(size - int64(len(tail))); err != nil {
			return err
		}
		l.torn = torn
	}
	if err := syncDir(l.dir); err != nil {
		return err
	}
	l.f, l.number, l.size, l.head = f, newest, size-int64(len(tail)), h
	return nil
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
