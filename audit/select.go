package audit

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"
)

// Line is a line of a record as it was read.
type Line struct {
	Entry
	Text []byte // as it stands in the file, without the newline
	Torn string // digest of what a crash left of a line before it
}

// ParseLine reads a line of a record. It does not judge the chain: Verify does.
func ParseLine(text []byte) (Line, error) {
	var raw line
	if err := json.Unmarshal(text, &raw); err != nil {
		return Line{}, fmt.Errorf("it cannot be read: %w", err)
	}
	at, err := time.Parse(time.RFC3339Nano, raw.Time)
	if err != nil || raw.Seq == 0 || raw.Name == "" {
		return Line{}, errors.New("it has no time, no number or no event")
	}
	raw.Event.Time = at.UTC()
	return Line{Entry{raw.Seq, raw.Prev, digest(text), raw.Event}, text, raw.Torn}, nil
}

// ReadDir hands over the lines of the record in dir, in order. Lines that
// cannot be read are named in faults, and left out.
func ReadDir(dir string, take func(Line) error) (faults []Fault, err error) {
	numbers, err := fileNumbers(dir)
	if err != nil {
		return nil, err
	}
	for _, n := range numbers {
		more, err := readFile(dir, fileName(n), take)
		faults = append(faults, more...)
		if err != nil {
			return faults, err
		}
	}
	return faults, nil
}

func readFile(dir, name string, take func(Line) error) (faults []Fault, err error) {
	f, err := openToRead(filepath.Join(dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // removed by its limits, a moment ago
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 256<<10)
	for row := 1; ; row++ {
		text, _, err := nextLine(in)
		if errors.Is(err, io.EOF) { // half a line is being written, or torn
			return faults, nil
		}
		if err != nil {
			return faults, fmt.Errorf("%s:%d: %w", name, row, err)
		}
		l, err := ParseLine(append([]byte(nil), text...))
		if err != nil {
			if len(faults) < maxFaults {
				faults = append(faults, Fault{name, row, err.Error()})
			}
			continue
		}
		if err := take(l); err != nil {
			return faults, err
		}
	}
}

// Filter chooses events. What is zero chooses all.
type Filter struct {
	Since, Until time.Time // from, and before
	Port         uint16
	Grant        string
	Requestor    string   // without case
	Events       []string // names, or what is before their dot
}

// Takes reports whether an event is chosen.
func (f Filter) Takes(e Event) bool {
	named := len(f.Events) == 0
	for _, n := range f.Events {
		named = named || n == string(e.Name) || strings.HasPrefix(string(e.Name), n+".")
	}
	return named &&
		!e.Time.Before(f.Since) && (f.Until.IsZero() || e.Time.Before(f.Until)) &&
		(f.Port == 0 || e.Port == f.Port) &&
		(f.Grant == "" || e.GrantID == f.Grant) &&
		(f.Requestor == "" || strings.EqualFold(e.Requestor, f.Requestor))
}
