package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/jitgate/jitgate/firewall"
)

// BootNow reads CLOCK_BOOTTIME, which goes on while the machine sleeps and
// which nobody can set.
func BootNow() firewall.BootTime {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(fmt.Sprintf("clock_gettime(CLOCK_BOOTTIME): %v", err)) // cannot fail since Linux 2.6.39
	}
	return firewall.BootTime(ts.Nano())
}

// bootID is the kernel's name for this boot.
func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(id))
}

// alarm fires once at a time on the boot clock. Go's own timers count
// CLOCK_MONOTONIC, which stands still while the machine sleeps: an opening
// that ended meanwhile would be noticed late by the whole time asleep.
type alarm struct {
	C    chan struct{}
	file *os.File
}

func newAlarm() (*alarm, error) {
	file, err := newTimer(unix.CLOCK_BOOTTIME)
	if err != nil {
		return nil, err
	}
	a := &alarm{C: make(chan struct{}, 1), file: file}
	go func() {
		defer close(a.C)
		var expirations [8]byte
		for {
			if _, err := a.file.Read(expirations[:]); err != nil {
				return // closed
			}
			tell(a.C)
		}
	}()
	return a, nil
}

func newTimer(clock int) (*os.File, error) {
	fd, err := unix.TimerfdCreate(clock, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return os.NewFile(uintptr(fd), "timerfd"), nil
}

// set arms the alarm for at, in place of any earlier time.
func (a *alarm) set(at firewall.BootTime) error {
	// A value of zero would disarm it.
	return setTimer(a.file, unix.TFD_TIMER_ABSTIME, max(int64(at), 1))
}

func (a *alarm) close() error { return a.file.Close() }

func setTimer(file *os.File, flags int, nanoseconds int64) error {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(nanoseconds)}
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = conn.Control(func(fd uintptr) {
		setErr = unix.TimerfdSettime(int(fd), flags, &spec, nil)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("timerfd_settime", setErr)
}

// stepWatch tells when somebody set the wall clock, and when the machine
// wakes from a sleep: a timer on CLOCK_REALTIME is cancelled then
// (TFD_TIMER_CANCEL_ON_SET, Linux 3.0).
type stepWatch struct {
	C    chan struct{}
	file *os.File
}

func newStepWatch() (*stepWatch, error) {
	file, err := newTimer(unix.CLOCK_REALTIME)
	if err != nil {
		return nil, err
	}
	// It never rings: 1<<62 ns lie in the year 2116.
	if err := setTimer(file, unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, 1<<62); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	w := &stepWatch{C: make(chan struct{}, 1), file: file}
	go func() {
		var expirations [8]byte
		for {
			_, err := w.file.Read(expirations[:])
			if err != nil && !errors.Is(err, unix.ECANCELED) {
				return // closed
			}
			tell(w.C)
		}
	}()
	return w, nil
}

func (w *stepWatch) close() error { return w.file.Close() }
