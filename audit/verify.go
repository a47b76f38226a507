package audit

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
)

// Head is the end of a record: the number of its last line and that line's
// digest. Kept elsewhere it shows whether the record was cut or written anew.
type Head struct {
	Seq  uint64
	Hash string
}

func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// ParseHead reads SEQ:HASH.
func ParseHead(s string) (Head, error) {
	number, hash, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(number, 10, 53)
	if !ok || err != nil || !isHash(hash) || seq == 0 != (hash == genesis) {
		return Head{}, fmt.Errorf("%q is not NUMBER:DIGEST, as audit verify prints it", s)
	}
	return Head{seq, hash}, nil
}

func isHash(s string) bool {
	return len(s) == len(genesis) && strings.Trim(s, "0123456789abcdef") == ""
}

// Fault is one thing that is wrong with a record.
type Fault struct {
	File string // name in the directory
	Line int    // in that file, from 1; 0: the file as a whole
	What string
}

func (f Fault) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.What
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.What)
}

// Verdict is what became of a verification.
type Verdict struct {
	Files int
	Lines uint64
	Bytes int64
	First uint64 // number of the first line; more than 1: the lines before were pruned
	Head  Head
	Torn  int // bytes behind the last line, of one that a crash cut short or that is being written
	// Unchecked are heads of lines that were pruned since.
	Unchecked []Head
	Faults    []Fault
	More      int // faults beyond those listed
}

// Whole reports whether nothing is wrong.
func (v Verdict) Whole() bool { return len(v.Faults) == 0 }

// maxFaults bounds what is listed: after the first few it is the same fault.
const maxFaults = 20

// Verify reads the record in dir and checks that each line follows the one
// before, that it begins at its beginning or where it says it was pruned, that
// it has the lines that heads, noted elsewhere, name, and that what was set
// aside is there. It needs nothing but the files. An error means that they
// could not be read.
func Verify(dir string, heads ...Head) (v Verdict, err error) {
	// A running agent may remove old files between the look and the reading.
	for range 3 {
		if v, err = verify(dir, heads); !errors.Is(err, errGone) {
			break
		}
	}
	return v, err
}

// errGone is of a file that was there a moment ago.
var errGone = errors.New("was removed meanwhile")

func verify(dir string, heads []Head) (Verdict, error) {
	numbers, err := fileNumbers(dir)
	if err != nil {
		return Verdict{}, err
	}
	if len(numbers) == 0 {
		return Verdict{}, fmt.Errorf("%s holds no record: no 000001.jsonl", dir)
	}
	v := verifying{dir: dir, heads: map[uint64][]Head{}, passed: map[uint64]string{}, last: Head{0, genesis}}
	for _, h := range heads {
		v.heads[h.Seq] = append(v.heads[h.Seq], h)
	}
	for i, n := range numbers {
		if err := v.file(fileName(n), i == len(numbers)-1); err != nil {
			return Verdict{}, err
		}
	}
	v.end()
	v.Files = len(numbers)
	return v.Verdict, nil
}

// verifying is a verification under way.
type verifying struct {
	Verdict
	dir   string
	heads map[uint64][]Head // by number, until their line was seen
	last  Head              // the line before
	at    Fault             // where that is
	begun Fault             // where the first line is, if it is not number 1
	prior Head              // the line it says it follows
	// pruned are the ends that lines about removed files name.
	pruned []Head
	passed map[uint64]string // digests of the last lines of files, which the pruned name
}

func (v *verifying) fault(line int, what string, args ...any) {
	v.faultAt(Fault{File: v.at.File, Line: line}, what, args...)
}

func (v *verifying) faultAt(at Fault, what string, args ...any) {
	at.What = fmt.Sprintf(what, args...)
	if len(v.Faults) < maxFaults {
		v.Faults = append(v.Faults, at)
	} else {
		v.More++
	}
}

// file checks one file. newest may end in half a line.
func (v *verifying) file(name string, newest bool) error {
	f, err := openToRead(filepath.Join(v.dir, name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s %w", name, errGone)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	before := v.at
	v.at = Fault{File: name}
	in := bufio.NewReaderSize(f, 256<<10)
	for {
		text, rest, err := nextLine(in)
		switch {
		case errors.Is(err, io.EOF):
			if v.Torn = rest; rest > 0 && !newest {
				v.fault(v.at.Line+1, "%d bytes of a line without an end, and another file follows: it was cut, or written to", rest)
			}
			if v.passed[v.last.Seq] = v.last.Hash; v.at.Line == 0 {
				if !newest {
					v.fault(0, "is empty, and another file follows: it was cut")
				}
				v.at = before
			}
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", name, err)
		}
		v.Bytes += int64(len(text)) + 1
		v.line(text, before)
	}
}

var (
	prunedMark = []byte(`"event":"` + string(AuditPruned) + `"`)
	tornMark   = []byte(`"torn":"`)
)

// line checks that text follows what was read.
func (v *verifying) line(text []byte, before Fault) {
	v.at.Line++
	v.Lines++
	hash := digest(text)
	seq, prev, ok := place(text)
	if !ok {
		v.fault(v.at.Line, "has no place in a record: it was edited, or is none of its lines")
		v.last = Head{v.last.Seq + 1, hash}
		return
	}
	former := fmt.Sprintf("line %d", v.at.Line-1)
	if v.at.Line == 1 && before.File != "" {
		former = fmt.Sprintf("%s:%d", before.File, before.Line)
	}
	switch {
	case v.Lines == 1:
		v.First = seq
		if seq != 1 {
			v.begun, v.prior = v.at, Head{seq - 1, prev}
		} else if prev != genesis {
			v.fault(v.at.Line, "number 1 follows %s: it was edited, or lines before it removed", prev)
		}
	case seq > v.last.Seq+1:
		v.fault(v.at.Line, "number %d comes after %d (%s): %s", seq, v.last.Seq, former, missing(v.last.Seq+1, seq-1))
	case seq <= v.last.Seq:
		v.fault(v.at.Line, "number %d comes after %d (%s): it was moved, copied, or is of another record", seq, v.last.Seq, former)
	case prev != v.last.Hash:
		v.fault(v.at.Line, "number %d does not follow %s as that stands there: that one was edited, or this one is of another record (a fork)", seq, former)
	}
	for _, h := range v.heads[seq] {
		if h.Hash != hash {
			v.fault(v.at.Line, "number %d is %s, and was %s when its head was noted: it was edited, or the record written anew (a fork)", seq, hash, h.Hash)
		}
	}
	delete(v.heads, seq)
	v.last = Head{seq, hash}
	// Quotes inside a text are escaped: these stand for names of the line.
	if bytes.Contains(text, prunedMark) || bytes.Contains(text, tornMark) {
		v.remark(text)
	}
}

// remark checks what a line says of the record itself.
func (v *verifying) remark(text []byte) {
	var l struct {
		Event Name   `json:"event"`
		Head  string `json:"head"`
		Torn  string `json:"torn"`
	}
	if err := json.Unmarshal(text, &l); err != nil {
		v.fault(v.at.Line, "cannot be read: %v", err)
		return
	}
	if h, err := ParseHead(l.Head); err == nil && l.Event == AuditPruned {
		v.pruned = append(v.pruned, h)
	}
	if l.Torn != "" {
		v.aside(l.Torn)
	}
}

// aside checks that what a crash left of a line is beside a file: this one, or
// the one before, where this one was begun by the line after it.
func (v *verifying) aside(torn string) {
	if !isHash(torn) {
		v.fault(v.at.Line, "names %q as what was set aside, which is no digest", torn)
		return
	}
	list, err := filepath.Glob(filepath.Join(v.dir, "*.jsonl.torn-"+torn[:16]))
	if err != nil || len(list) == 0 {
		v.fault(v.at.Line, "a line was cut short before this one; what was left of it should be in %s, which is not there", tornName(v.at.File, torn))
		return
	}
	for _, path := range list {
		if text, err := readAside(path); err == nil && digest(text) == torn {
			return
		}
	}
	v.fault(v.at.Line, "%s is not what was set aside: it was edited", filepath.Base(list[0]))
}

// readAside reads the bytes of a torn line.
func readAside(path string) ([]byte, error) {
	f, err := openToRead(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 4*maxLine))
}

// end checks what only shows once all was read.
func (v *verifying) end() {
	v.Head = v.last
	for seq, heads := range v.heads {
		for _, h := range heads {
			switch {
			case seq == 0: // before anything was recorded
			case seq > v.last.Seq:
				v.faultAt(v.at, "the record ends with number %d, and %s was noted: it was cut", v.last.Seq, h)
			case seq+1 == v.First && v.prior.Hash != h.Hash:
				v.faultAt(v.begun, "number %d follows %s, and %s was noted: the record was written anew (a fork)", v.First, v.prior.Hash, h)
			case seq+1 < v.First:
				v.Unchecked = append(v.Unchecked, h)
			case seq+1 > v.First:
				v.faultAt(v.at, "number %d is not there, and %s was noted", seq, h)
			}
		}
	}
	if v.First > 1 && !v.wasPruned() {
		v.faultAt(v.begun, "the record begins with number %d, and no line of it says that those before were removed: it was cut at the front", v.First)
	}
}

// wasPruned reports whether a line says that the record was pruned at least up
// to where it begins. A pruning that a crash ended early left more than it says.
func (v *verifying) wasPruned() bool {
	for _, p := range v.pruned {
		if p == v.prior || p.Seq > v.prior.Seq && v.passed[p.Seq] == p.Hash {
			return true
		}
	}
	return false
}

func missing(from, to uint64) string {
	if from == to {
		return fmt.Sprintf("number %d is missing", from)
	}
	return fmt.Sprintf("numbers %d to %d are missing", from, to)
}

// place reads a line's number and the digest of the line before it, which it
// begins with.
func place(text []byte) (seq uint64, prev string, ok bool) {
	rest, ok := bytes.CutPrefix(text, []byte(`{"seq":`))
	if !ok {
		return 0, "", false
	}
	digits, rest, ok := bytes.Cut(rest, []byte(`,"prev":"`))
	if !ok || len(rest) < len(genesis)+1 || rest[len(genesis)] != '"' {
		return 0, "", false
	}
	seq, err := strconv.ParseUint(string(digits), 10, 53)
	prev = string(rest[:len(genesis)])
	return seq, prev, err == nil && seq > 0 && digits[0] != '0' && isHash(prev) && json.Valid(text)
}

// nextLine reads a line without its newline. At the end it says how many bytes
// stand behind the last one.
func nextLine(in *bufio.Reader) (text []byte, rest int, err error) {
	text, err = in.ReadSlice('\n')
	if err == nil {
		return text[:len(text)-1], 0, nil
	}
	long := bytes.Clone(text)
	for errors.Is(err, bufio.ErrBufferFull) {
		if len(long) > 8*maxLine {
			return nil, 0, fmt.Errorf("a line of more than %d bytes", 8*maxLine)
		}
		text, err = in.ReadSlice('\n')
		long = append(long, text...)
	}
	if err != nil {
		return nil, len(long), err
	}
	return long[:len(long)-1], 0, nil
}
