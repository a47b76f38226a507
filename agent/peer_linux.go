package agent

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// peer is who is at the other end of a Unix socket: SO_PEERCRED, which the
// kernel took when the other side connected.
func peer(c net.Conn) string {
	socket, ok := c.(*net.UnixConn)
	if !ok {
		return ""
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return ""
	}
	who := ""
	_ = raw.Control(func(fd uintptr) { // unknown is all a failure means
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			who = fmt.Sprintf("uid %d, pid %d", cred.Uid, cred.Pid)
		}
	})
	return who
}
