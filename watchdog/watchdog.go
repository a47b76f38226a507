// Package watchdog has a second process end this one where it stands still.
//
// A service manager starts again what has ended. What hangs it does not notice,
// unless it is systemd, which has a watchdog of its own. A process that stands
// still as a whole (suspended, out of memory, its runtime deadlocked) can do
// nothing about it: another has to, and it has to be there before.
//
// The watched process calls Start, and says every now and then that it is alive.
// The watching one calls Watch.
package watchdog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync/atomic"
	"time"
)

// Within is how long a process may say nothing before it is ended: as
// WatchdogSec of the unit has it where there is systemd.
const Within = time.Minute

// looks are what Within is counted in, so that a machine that slept, or had no
// time for either process, has one more of them behind it and not all. So many in
// a row that heard nothing, after one that did, end a process: from Within to a
// quarter more after its last word.
const looks = 4

// startAgainAfter is how long a process goes unwatched whose watchdog ended.
const startAgainAfter = 10 * time.Second

// Start has this process watched by a command, which is to call Watch on its
// standard input. alive says that this one does not stand still, and never waits;
// it is watched from the first time on. A watchdog that ends is told of, and
// started again. stop ends it, and waits until it is gone, so that nothing holds
// its program.
func Start(say func(error), name string, args ...string) (alive, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	said, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if err := keep(ctx, said, exec.Command(name, args...)); err != nil {
				say(fmt.Errorf("its watchdog, started again in %s: %w", startAgainAfter, err))
			}
			select {
			case <-ctx.Done():
			case <-time.After(startAgainAfter):
			}
		}
	}()
	alive = func() {
		select {
		case said <- struct{}{}:
		default: // it has not been passed on yet, and says the same
		}
	}
	return alive, func() { cancel(); <-done }
}

// patience is how long a watchdog may take to end. It has nothing to do but that.
const patience = 5 * time.Second

// keep runs a watchdog, and passes on to it what is said. An error is why it
// ended before ctx did.
func keep(ctx context.Context, said <-chan struct{}, dog *exec.Cmd) error {
	hide(dog)
	words, err := dog.StdinPipe()
	if err != nil {
		return err
	}
	if err := dog.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- dog.Wait() }()
	running, end := context.WithCancel(ctx)
	defer end()
	go pass(running, said, words) // one that does not read holds up nobody but this
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("it ended by itself")
		}
		return err
	case <-ctx.Done():
	}
	select {
	case <-ended:
	case <-time.After(patience):
		dog.Process.Kill()
		<-ended
	}
	return nil
}

// pass writes a byte for each time something is said, and is silent for good in
// the end.
func pass(ctx context.Context, said <-chan struct{}, words io.WriteCloser) {
	defer words.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-said:
			if _, err := words.Write([]byte{'.'}); err != nil {
				return
			}
		}
	}
}

// Watch reads what the watched process says, and calls end where it said
// something once and then nothing for Within. It returns what end does, or nil
// once there is nobody to say anything.
func Watch(words io.Reader, end func() error) error {
	tick := time.NewTicker(Within / looks)
	defer tick.Stop()
	return watch(words, tick.C, end)
}

func watch(words io.Reader, look <-chan time.Time, end func() error) error {
	var heard atomic.Bool // since the last look
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for b := make([]byte, 64); ; {
			n, err := words.Read(b)
			if n > 0 {
				heard.Store(true)
			}
			if err != nil {
				return
			}
		}
	}()
	begun, silent := false, 0
	for {
		select {
		case <-gone:
			return nil
		case <-look:
		}
		switch {
		case heard.Swap(false):
			begun, silent = true, 0
		case begun:
			if silent++; silent == looks {
				return end()
			}
		}
	}
}
