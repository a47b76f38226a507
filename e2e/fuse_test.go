//go:build linux

package e2e_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// remote is a file system whose server, here, can do what a file server on a
// bad day does. It speaks the kernel's FUSE protocol (fuse.h, 7.31): one
// directory of plain files, read only.
type remote struct {
	dir string
	fd  int

	mu     sync.Mutex
	files  map[string][]byte
	day    badDay
	parked [][]byte          // requests that were not answered
	opened map[uint64][]byte // what a file had when it was opened, by handle
	handle uint64            // the last one
}

// badDay is what the server does wrong.
type badDay struct {
	silent  bool       // answers nothing
	open    unix.Errno // of every open
	read    unix.Errno // of every read but the first bytes of a file
	short   bool       // a few bytes each time
	endless bool       // files have no end
	size    uint64     // what it says of every file; 0: the truth
	empty   bool       // says that every file is empty
	owner   uint32     // of files
	inbox   uint32     // owner of the directory
}

// mountRemote puts a file system with the same files over a directory.
func mountRemote(t *testing.T, dir string) *remote {
	t.Helper()
	r := &remote{dir: dir, files: map[string][]byte{}, opened: map[uint64][]byte{}}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if r.files[e.Name()], err = os.ReadFile(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
	r.fd, err = unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
	case os.Getenv("JITGATE_CI") != "":
		t.Fatalf("/dev/fuse: %v: modprobe fuse", err)
	default:
		t.Skipf("/dev/fuse: %v: modprobe fuse", err)
	}
	if err := unix.Mount("jitgate-test", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40755,user_id=0,group_id=0", r.fd)); err != nil {
		t.Fatalf("mount: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.serve()
	}()
	t.Cleanup(func() {
		_ = unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) // every request fails, and the server ends
		<-ended
		unix.Close(r.fd)
	})
	return r
}

// has changes the day, and answers what waits for an answer if it is not a
// silent one.
func (r *remote) has(day badDay) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.day = day
	if !day.silent {
		if len(r.parked) > 0 {
			clear(r.opened) // whoever waited gets what lies there now
		}
		for _, request := range r.parked {
			r.answer(request)
		}
		r.parked = nil
	}
}

// put changes a file, as somebody on another machine does: the kernel here is
// not told. Whoever has it open reads on in the one before, so that no read that
// began on a good day gets what was put there on a bad one.
func (r *remote) put(name string, content []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[name] = content
}

// waiting is how many requests have no answer.
func (r *remote) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.parked)
}

const (
	fuseLookup, fuseForget, fuseGetattr, fuseSetattr    = 1, 2, 3, 4
	fuseOpen, fuseRead, fuseRelease, fuseFlush          = 14, 15, 18, 25
	fuseInit, fuseInterrupt, fuseBatchForget, fuseInLen = 26, 36, 42, 40
)

func (r *remote) serve() {
	for buffer := make([]byte, 1<<18); ; {
		n, err := unix.Read(r.fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT): // the request was taken back
			continue
		case err != nil:
			return // unmounted
		}
		request := append([]byte(nil), buffer[:n]...)
		r.mu.Lock()
		switch binary.NativeEndian.Uint32(request[4:]) {
		case fuseForget, fuseBatchForget, fuseInterrupt: // none has an answer
		default:
			if r.day.silent {
				r.parked = append(r.parked, request)
			} else {
				r.answer(request)
			}
		}
		r.mu.Unlock()
	}
}

// answer carries out a request. A node's number is its place among the names,
// from 2 on; the directory is 1.
func (r *remote) answer(request []byte) {
	opcode, unique, node := binary.NativeEndian.Uint32(request[4:]), binary.NativeEndian.Uint64(request[8:]), binary.NativeEndian.Uint64(request[16:])
	body := request[fuseInLen:]
	names := []string{"", "", "trust.json", "policy.json", "grants.json"}
	var out []byte
	var failed unix.Errno
	number := func(list ...uint64) { // each in its eight bytes
		for _, v := range list {
			out = binary.NativeEndian.AppendUint64(out, v)
		}
	}
	word := func(list ...uint32) {
		for _, v := range list {
			out = binary.NativeEndian.AppendUint32(out, v)
		}
	}
	attributes := func(node uint64) {
		size, mode, links, owner := uint64(0), uint32(unix.S_IFDIR|0o755), uint32(2), r.day.inbox
		if node > 1 {
			size, mode, links, owner = uint64(len(r.files[names[node]])), unix.S_IFREG|0o644, 1, r.day.owner
			if r.day.size != 0 {
				size = r.day.size
			}
			if r.day.empty {
				size = 0
			}
		}
		number(node, size, (size+511)/512, 0, 0, 0)
		word(0, 0, 0, mode, links, owner, owner, 0, 4096, 0)
	}
	switch opcode {
	case fuseInit:
		word(7, 31, 0, 0, 0, 4096, 0, 0, 0)
		out = append(out, make([]byte, 64-len(out))...)
	case fuseLookup:
		name := string(body[:len(body)-1])
		failed = unix.ENOENT
		for i := 2; i < len(names); i++ {
			if _, ok := r.files[name]; ok && names[i] == name {
				failed = 0
				number(uint64(i), 0, 0, 0) // nothing is to be remembered
				word(0, 0)
				attributes(uint64(i))
			}
		}
	case fuseGetattr, fuseSetattr:
		number(0)
		word(0, 0)
		attributes(node)
	case fuseOpen:
		if failed = r.day.open; failed == 0 {
			r.handle++
			r.opened[r.handle] = r.files[names[node]]
		}
		number(r.handle)
		word(1, 0) // FOPEN_DIRECT_IO: the size does not say where a file ends
	case fuseRead:
		content, ok := r.opened[binary.NativeEndian.Uint64(body)]
		if !ok {
			content = r.files[names[node]]
		}
		from, size := binary.NativeEndian.Uint64(body[8:]), uint64(binary.NativeEndian.Uint32(body[16:]))
		if r.day.read != 0 && from > 0 || r.day.short {
			size = min(size, 100)
		}
		switch {
		case r.day.read != 0 && from > 0:
			failed = r.day.read
		case r.day.read != 0:
			out = content[:min(size, 100)]
		case r.day.endless:
			out = make([]byte, size)
		case from < uint64(len(content)):
			out = content[from:min(from+size, uint64(len(content)))]
		}
	case fuseRelease:
		delete(r.opened, binary.NativeEndian.Uint64(body))
	case fuseFlush:
	default:
		failed = unix.ENOSYS
	}
	if failed != 0 {
		out = nil
	}
	reply := binary.NativeEndian.AppendUint32(nil, uint32(16+len(out)))
	reply = binary.NativeEndian.AppendUint32(reply, uint32(-int32(failed)))
	reply = binary.NativeEndian.AppendUint64(reply, unique)
	_, _ = unix.Write(r.fd, append(reply, out...)) // fails if the request was taken back
}
