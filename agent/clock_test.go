//go:build linux

package agent

import (
	"context"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall/fwtest"
)

// Setting the wall clock wakes the agent, again and again. Here it is set to
// what it is.
func TestStepWatch(t *testing.T) {
	fwtest.Privileged(t)
	w, err := newStepWatch()
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	select {
	case <-w.C:
		t.Fatal("woken with nothing set")
	case <-time.After(50 * time.Millisecond):
	}
	for i := range 3 {
		setClockToItself(t)
		select {
		case <-w.C:
		case <-time.After(10 * time.Second):
			t.Fatalf("not woken the %d. time", i+1)
		}
	}
}

// An agent hears at once that the wall clock was set, and closes what is over
// by the new time. Here the clock it reads jumps, and the host's is set to
// what it is.
func TestSetClockWakesTheAgent(t *testing.T) {
	fwtest.Privileged(t)
	w := newWorld(t)
	var ahead atomic.Int64
	w.fake.Now = BootNow
	began := BootNow()
	w.Clock = Clock{Boot: BootNow, BootID: "this boot", Wall: func() time.Time {
		return noon.Add(BootNow().Sub(began) + time.Duration(ahead.Load()))
	}}
	w.Settings.Socket = filepath.Join(t.TempDir(), "agent.sock")
	w.deliver()
	w.list(w.grant("a", alice, 0, time.Hour))
	ctx, cancel := context.WithCancel(t.Context())
	ended, ready := make(chan error, 1), make(chan struct{})
	go func() { ended <- w.Run(ctx, func() { close(ready) }) }()
	defer func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	open := func() (open bool) {
		if err := w.do(t.Context(), func() { open = w.open(alice) }); err != nil {
			t.Fatal(err)
		}
		return open
	}
	if !open() {
		t.Fatal("the grant opened nothing")
	}
	ahead.Store(int64(24 * time.Hour))
	setClockToItself(t)
	for i := 0; open(); i++ {
		if i == 1000 {
			t.Fatal("open ten seconds after the clock was set to a day later")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// setClockToItself is a set clock to whoever watches for one.
func setClockToItself(t *testing.T) {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		t.Fatal(err)
	}
}
