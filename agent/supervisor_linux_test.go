package agent

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/jitgate/jitgate/firewall"
)

// A supervisor hears that the guard is in place, then, from the loop, that the
// agent lives, and that it goes.
func TestSupervisorHears(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	hear := func() string {
		t.Helper()
		l.SetReadDeadline(time.Now().Add(10 * time.Second))
		b := make([]byte, 64)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))

	w := newWorld(t)
	w.Clock = SystemClock()
	w.Settings.Socket = filepath.Join(t.TempDir(), "agent.sock")
	w.fake.Now = BootNow
	w.Supervisor = Supervised()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx, nil) }()
	if first := hear(); first != "READY=1" {
		t.Fatalf("it says %q first", first)
	}
	var whole bool
	if err := w.do(ctx, func() { whole = w.fake.Whole() }); err != nil || !whole {
		t.Error("ready, and there is no guard")
	}
	for range 3 { // with nothing else to do
		if s := hear(); s != "WATCHDOG=1" {
			t.Errorf("it says %q", s)
		}
	}
	// A pass that does not end is no life.
	hold, held := make(chan struct{}), make(chan struct{})
	go func() { held <- struct{}{}; _ = w.do(ctx, func() { <-hold }) }()
	<-held
	until := time.Now().Add(500 * time.Millisecond)
	silent := false
	for time.Now().Before(until) && !silent {
		l.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		_, err := l.Read(make([]byte, 64))
		silent = err != nil
	}
	if !silent {
		t.Error("it says that it lives, and does not go on")
	}
	close(hold)
	cancel()
	for s := hear(); s != "STOPPING=1"; s = hear() {
		if s != "WATCHDOG=1" {
			t.Fatalf("it says %q", s)
		}
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
}

func TestWatchdogOfAnotherProcess(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/nowhere")
	t.Setenv("WATCHDOG_USEC", "60000")
	t.Setenv("WATCHDOG_PID", "1")
	if s := Supervised(); s.Within != 0 || s.Tell == nil {
		t.Errorf("a watchdog of process 1: %+v", s)
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if s := Supervised(); s.Tell != nil {
		t.Error("no socket, and somebody to tell")
	}
	notify("/nowhere", "READY=1") // fails, and is nobody's problem
}

// deaf is a firewall that does not answer which connections there are.
type deaf struct {
	firewall.Backend
	answer chan struct{}
}

func (d deaf) Flows(ctx context.Context, look bool) (firewall.Flows, error) {
	<-d.answer
	return d.Backend.Flows(ctx, look)
}

// Who waits for the guard does not wait for a look at the connections, nor for
// anything else that comes after it.
func TestReadyOnceTheGuardStands(t *testing.T) {
	w := newWorld(t)
	w.Clock = SystemClock()
	w.Settings.Socket = filepath.Join(t.TempDir(), "agent.sock")
	w.fake.Now = BootNow
	d := deaf{w.fake, make(chan struct{})}
	w.Backend = d
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
		ended <- nil
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Error("not ready before the connections were looked at")
	}
	close(d.answer)
	var whole bool
	if err := w.do(ctx, func() { whole = w.fake.Whole() }); err != nil || !whole {
		t.Errorf("ready, and there is no guard: %v", err)
	}
}
