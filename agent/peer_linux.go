package agent

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"strconv"
	"strings"

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
			who = ofUID(int(cred.Uid), int(cred.Pid))
		}
	})
	return who
}

func ofUID(uid, pid int) caller {
	return caller{name: fmt.Sprintf("uid %d", uid), root: uid == 0, self: uid == os.Geteuid(), pid: pid, uid: uid}
}

// ownCaller is this process.
func ownCaller() caller { return ofUID(os.Getuid(), os.Getpid()) }

var errNotRoot = errors.New("only root may ask that of the agent: run this as root")

// process is the name of the caller's process and the login it descends from
// (loginuid of the audit subsystem), each empty if unknown. The caller waits
// for an answer, so his pid is still his.
func (c caller) process() (name, login string) {
	if c.name == "" {
		return "", ""
	}
	dir := fmt.Sprintf("/proc/%d/", c.pid)
	comm, _ := os.ReadFile(dir + "comm")
	uid, _ := os.ReadFile(dir + "loginuid") // absent without CONFIG_AUDIT
	return strings.TrimSuffix(string(comm), "\n"), loginText(strings.TrimSpace(string(uid)))
}

// user is the caller's name, as the host's own list has it. Empty: it has none.
func (c caller) user() string {
	if c.name == "" {
		return ""
	}
	u, err := user.LookupId(strconv.Itoa(c.uid))
	if err != nil {
		return ""
	}
	return u.Username
}

// loginText leaves out the value of a process nobody logged in for.
func loginText(uid string) string {
	const unset = "4294967295"
	if uid == "" || uid == unset {
		return ""
	}
	return ", login uid " + uid
}
