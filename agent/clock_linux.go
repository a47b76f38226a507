package agent

import (
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
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	a := &alarm{C: make(chan struct{}, 1), file: os.NewFile(uintptr(fd), "timerfd")}
	go func() {
		defer close(a.C)
		var expirations [8]byte
		for {
			if _, err := a.file.Read(expirations[:]); err != nil {
				return // closed
			}
			select {
			case a.C <- struct{}{}:
			default:
			}
		}
	}()
	return a, nil
}

// set arms the alarm for at, in place of any earlier time.
func (a *alarm) set(at firewall.BootTime) error {
	// A value of zero would disarm it.
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(max(int64(at), 1))}
	conn, err := a.file.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = conn.Control(func(fd uintptr) {
		setErr = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME, &spec, nil)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("timerfd_settime", setErr)
}

func (a *alarm) close() error { return a.file.Close() }
