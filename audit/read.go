package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// Changed returns a channel that is closed when the next event is recorded.
func (l *File) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	return l.changed
}

// End returns the number and the digest of the last line that is durable; zero
// and genesis where there is none.
func (l *File) End() (seq uint64, hash string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		return l.head.seq, l.head.hash, nil
	}
	// Nothing was recorded by this run yet.
	numbers, err := readDir(l.dir)
	if err != nil {
		return 0, "", fmt.Errorf("audit: %w", err)
	}
	h, err := endOf(l.dir, numbers)
	if err != nil {
		return 0, "", fmt.Errorf("audit: %w", err)
	}
	return h.seq, h.hash, nil
}

// After returns lines as they stand in the files, without their newlines:
// those with a higher number than seq, in order, no more than most and no more
// bytes than size, but one line in any case. It holds up nobody who records.
func (l *File) After(seq uint64, most, size int) (lines [][]byte, err error) {
	end, _, err := l.End() // what is behind it may not be durable
	if err != nil || end <= seq {
		return nil, err
	}
	p := page{after: seq, end: end, most: most, size: size}
	// Old files may be removed between the look and the reading.
	for range 3 {
		if err = p.read(l.dir); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return p.lines, nil
}

// page collects lines.
type page struct {
	after, end uint64
	most, size int
	lines      [][]byte
	total      int
	full       bool
}

// read fills the page, from the newest file that begins no later than it.
func (p *page) read(dir string) error {
	p.lines, p.total, p.full = nil, 0, false
	numbers, err := fileNumbers(dir)
	if err != nil {
		return err
	}
	first := len(numbers) - 1
	for ; first > 0; first-- {
		begins, err := firstOf(filepath.Join(dir, fileName(numbers[first])))
		if err != nil {
			return err
		}
		if begins > 0 && begins <= p.after+1 {
			break
		}
	}
	for _, n := range numbers[max(first, 0):] {
		if err := p.readFile(filepath.Join(dir, fileName(n))); err != nil || p.full {
			return err
		}
	}
	return nil
}

func (p *page) readFile(path string) error {
	f, err := openToRead(path)
	if err != nil {
		return err
	}
	defer f.Close()
	from, err := find(f, p.after)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if _, err := f.Seek(from, io.SeekStart); err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, 64<<10)
	for !p.full {
		text, err := readLine(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		n, err := seqOf(text)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		p.total += len(text)
		if n > p.end || len(p.lines) > 0 && p.total > p.size {
			p.full = true
			return nil
		}
		p.lines = append(p.lines, text)
		p.full = len(p.lines) >= p.most
	}
	return nil
}

// firstOf is the number of a file's first line; 0 if it has none.
func firstOf(path string) (uint64, error) {
	f, err := openToRead(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	text, err := readLine(bufio.NewReader(f))
	if errors.Is(err, io.EOF) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	n, err := seqOf(text)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return n, nil
}

// find returns where the first line with a higher number than seq begins, or
// the end of the file. Numbers rise, so it halves.
func find(f *os.File, seq uint64) (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	low, high := int64(0), info.Size()
	for low < high {
		middle := low + (high-low)/2
		_, text, err := lineFrom(f, middle)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		beyond := err != nil // no whole line begins there
		if !beyond {
			n, err := seqOf(text)
			if err != nil {
				return 0, err
			}
			beyond = n > seq
		}
		if beyond {
			high = middle
		} else {
			low = middle + 1
		}
	}
	start, _, err := lineFrom(f, low)
	if errors.Is(err, io.EOF) {
		return info.Size(), nil
	}
	return start, err
}

// lineFrom reads the first line that begins at or after an offset.
func lineFrom(f *os.File, offset int64) (start int64, text []byte, err error) {
	skip := int64(0)
	if offset > 0 {
		skip = 1 // a line begins at offset if the byte before ends one
	}
	in := bufio.NewReader(io.NewSectionReader(f, offset-skip, 3*maxLine))
	start = offset - skip
	if skip > 0 {
		rest, err := readLine(in)
		if err != nil {
			return 0, nil, err
		}
		start += int64(len(rest)) + 1
	}
	text, err = readLine(in)
	return start, text, err
}

// readLine reads to a newline. What has none is no line yet: io.EOF.
func readLine(in *bufio.Reader) ([]byte, error) {
	var text []byte
	for {
		part, err := in.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case err == nil:
			return text[:len(text)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		case len(text) > maxLine:
			return nil, fmt.Errorf("a line of more than %d bytes", maxLine)
		}
	}
}

func seqOf(text []byte) (uint64, error) {
	var l struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(text, &l); err != nil || l.Seq == 0 {
		return 0, fmt.Errorf("a line that has no number: %q", bytes.TrimSpace(text[:min(len(text), 80)]))
	}
	return l.Seq, nil
}
