package audit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// fileName is the name of the record's n-th file.
func fileName(n uint64) string { return fmt.Sprintf("%06d.jsonl", n) }

// fileNumbers are the numbers of the record's files in dir, rising. What has
// another name is none of them.
func fileNumbers(dir string) ([]uint64, error) {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var numbers []uint64
	for _, d := range list {
		digits, ok := strings.CutSuffix(d.Name(), ".jsonl")
		n, err := strconv.ParseUint(digits, 10, 64)
		if ok && err == nil && n > 0 && fileName(n) == d.Name() {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	return numbers, nil
}

// tornName is where what a crash left of a line in a file is kept.
func tornName(path, digest string) string { return path + ".torn-" + digest[:16] }

// headOf is the end of a record whose last line this is; its beginning if there
// is none.
func headOf(path string, last []byte) (head, error) {
	if last == nil {
		return head{hash: genesis}, nil
	}
	var entry line
	if err := json.Unmarshal(last, &entry); err != nil {
		return head{}, fmt.Errorf("%s: the last line cannot be read (%w)", path, err)
	}
	return head{entry.Seq, digest(last)}, nil
}

// endOf is the end of the record in the files of these numbers: of the newest
// that has a line.
func endOf(dir string, numbers []uint64) (head, error) {
	for _, n := range slices.Backward(numbers) {
		h, err := endOfFile(filepath.Join(dir, fileName(n)))
		if err != nil || h.seq > 0 {
			return h, err
		}
	}
	return head{hash: genesis}, nil
}

func endOfFile(path string) (head, error) {
	f, err := openToRead(path)
	if err != nil {
		return head{}, err
	}
	defer f.Close()
	_, last, _, err := lastLine(f)
	if err != nil {
		return head{}, err
	}
	return headOf(path, last)
}

// openToRead opens a file of a record, maybe somebody else's. What is not a
// plain file must not hold anybody up.
func openToRead(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonBlocking, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, fmt.Errorf("%s is not a plain file", path), f.Close())
	}
	return f, nil
}

// readDir is fileNumbers of a record that may not have been begun.
func readDir(dir string) ([]uint64, error) {
	numbers, err := fileNumbers(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return numbers, err
}
