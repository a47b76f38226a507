package audit

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// Keep bounds what is kept of a record. Zero is without a bound.
type Keep struct {
	Bytes int64         // of all files together
	For   time.Duration // since a file was full
}

// Prune removes the oldest files that are more than keep says: whole ones, and
// only such as end no later than the line told. That line's digest is kept
// elsewhere, so that what is removed could still be proved, and not one that
// nobody has heard of disappears. The record first says how far it goes; a
// record that begins later without that was cut.
func (l *File) Prune(ctx context.Context, keep Keep, told uint64) error {
	old, end, err := l.beyond(keep, told)
	if err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	if len(old) == 0 {
		return nil
	}
	head := fmt.Sprintf("%d:%s", end.seq, end.hash)
	err = l.Record(ctx, Event{Name: AuditPruned, Message: fmt.Sprintf("what the record has up to line %d is removed, by its limits", end.seq), Head: head})
	if err != nil {
		return err
	}
	for _, path := range old { // the oldest first: what is left has no hole
		torn, err := filepath.Glob(path + ".torn-*")
		for _, p := range append(torn, path) {
			err = errors.Join(err, os.Remove(p))
		}
		if err != nil {
			return fmt.Errorf("audit: %w", err)
		}
	}
	if err := syncDir(l.dir); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

// beyond lists the files to remove, and where the last of them ends.
func (l *File) beyond(keep Keep, told uint64) (paths []string, end head, err error) {
	numbers, err := readDir(l.dir)
	if err != nil || len(numbers) < 2 {
		return nil, head{}, err
	}
	infos := make([]os.FileInfo, len(numbers))
	total := int64(0)
	for i, n := range numbers {
		if infos[i], err = os.Lstat(filepath.Join(l.dir, fileName(n))); err != nil {
			return nil, head{}, err
		}
		total += infos[i].Size()
	}
	now := l.Now()
	for i, n := range numbers[:len(numbers)-1] {
		large := keep.Bytes > 0 && total > keep.Bytes
		aged := keep.For > 0 && now.Sub(infos[i].ModTime()) > keep.For
		if !large && !aged {
			break
		}
		path := filepath.Join(l.dir, fileName(n))
		h, err := endOfFile(path)
		if err != nil {
			return nil, head{}, err
		}
		if h.seq > told {
			break
		}
		total -= infos[i].Size()
		paths = append(paths, path)
		if h.seq > 0 {
			end = h
		}
	}
	return paths, end, nil
}
