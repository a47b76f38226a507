package agent

import (
	"net"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a Unix socket: SO_PEERCRED, which the
// kernel took when the other side connected.
func peer(c net.Conn) (who caller) {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return caller{}
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return caller{}
	}
	_ = raw.Control(func(fd uintptr) { // unknown is all a failure means
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = caller{true, int(cred.Uid), int(cred.Pid)}
		}
	})
	return who
}
