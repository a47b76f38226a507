package agent

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Supervised returns the systemd this process was started by, or the zero
// Supervisor.
func Supervised() Supervisor {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return Supervisor{}
	}
	s := Supervisor{Tell: func(state string) { notify(path, state) }}
	if usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64); err == nil && forThisProcess(os.Getenv("WATCHDOG_PID")) {
		s.Within = time.Duration(usec) * time.Microsecond
	}
	return s
}

func forThisProcess(pid string) bool { return pid == "" || pid == strconv.Itoa(os.Getpid()) }

// notify sends one datagram. Where that fails the supervisor finds out by
// itself: it waits, and then starts the agent anew.
func notify(path, state string) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// A supervisor that does not read must not hold a pass up.
	timeout := unix.NsecToTimeval(int64(time.Second))
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &timeout)
	_ = unix.Sendto(fd, []byte(state), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
}
