package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// floorTable is where the floor adds its elements.
const floorTable = "floor"

// runFloor is the least a program can do between the rename of a file and an
// element in the kernel: a blocking inotify read and one sendto of a batch
// made beforehand. It reads no file and checks nothing. This is another
// process of the same program, as the agent is another process.
func runFloor(dir string) error {
	runtime.LockOSThread()
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_MOVED_TO); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	socket, err := openRawSocket()
	if err != nil {
		return err
	}
	first := sshFrom(floorSource(0))
	batch := addBatch(floorTable, []rawElement{{first, "floor"}})
	address := batch[bytes.Index(batch, first[:]):][:4]
	fmt.Println(floorReady)
	var buffer [4096]byte
	for n := uint32(1); ; n++ {
		if _, err := unix.Read(watch, buffer[:]); err != nil {
			return os.NewSyscallError("read", err)
		}
		if err := socket.commit(batch); err != nil {
			return err
		}
		next := floorSource(n).As4()
		copy(address, next[:])
	}
}

const floorReady = "ready"

// floorSource is the n-th address the floor opens for.
func floorSource(n uint32) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, 172<<24|16<<16+n)))
}

// floor is the benchmark's end of the floor process.
type floor struct {
	process *exec.Cmd
	dir     string // watched
	staged  string // the file that is renamed into it
	turns   uint32
}

func (w *world) startFloor(dir string) (*floor, error) {
	if err := w.nft(dir, plainTable(floorTable)); err != nil {
		return nil, err
	}
	f := &floor{dir: filepath.Join(dir, "floor"), staged: filepath.Join(dir, "floor.new")}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	program, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f.process = exec.Command(program, "-floor", f.dir)
	f.process.Stderr = os.Stderr
	out, err := f.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := w.start(f.process); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != floorReady+"\n" {
		stop(f.process)
		if errors.Is(err, io.EOF) {
			err = errors.New("it ended at once (its message stands above)")
		}
		return nil, fmt.Errorf("the floor process: %w", err)
	}
	return f, nil
}

// rename has the floor add its next element.
func (f *floor) rename() (from time.Duration, key elementKey, err error) {
	if err := os.WriteFile(f.staged, []byte("{}\n"), 0o600); err != nil {
		return 0, key, err
	}
	key = sshFrom(floorSource(f.turns))
	f.turns++
	target := filepath.Join(f.dir, "grants.json")
	from = monotonic()
	return from, key, os.NewSyscallError("rename", unix.Rename(f.staged, target))
}
