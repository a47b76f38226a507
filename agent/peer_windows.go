package agent

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/windows"

	"github.com/jitgate/jitgate/acl"
)

var (
	advapi32                   = windows.NewLazySystemDLL("advapi32.dll")
	impersonateNamedPipeClient = advapi32.NewProc("ImpersonateNamedPipeClient")
)

// peer is who is at the other end of a pipe: who called when he wrote what was
// read last, not who has his process id by now.
func peer(c net.Conn) caller {
	pipe, ok := c.(interface{ Fd() uintptr })
	if !ok {
		return caller{}
	}
	h := windows.Handle(pipe.Fd())
	answer := make(chan caller)
	go func() {
		runtime.LockOSThread() // which is the client's for a moment
		if r, _, _ := impersonateNamedPipeClient.Call(uintptr(h)); r == 0 {
			runtime.UnlockOSThread()
			answer <- caller{}
			return
		}
		who := ofThread()
		if windows.RevertToSelf() == nil {
			runtime.UnlockOSThread()
		} // else the thread ends with this goroutine
		var pid uint32
		if who.name != "" && windows.GetNamedPipeClientProcessId(h, &pid) == nil {
			who.pid = int(pid)
		}
		answer <- who
	}()
	return <-answer
}

// ofThread is whom this thread acts for.
func ofThread() caller {
	var token windows.Token
	if windows.OpenThreadToken(windows.CurrentThread(), windows.TOKEN_QUERY, true, &token) != nil {
		return caller{}
	}
	defer token.Close()
	return ofToken(token)
}

// ofToken is who an impersonation token is of. That of an administrator who has
// not elevated has the group for denying only, and is not of one.
func ofToken(token windows.Token) caller {
	user, err := token.GetTokenUser()
	if err != nil {
		return caller{}
	}
	sid := user.User.Sid
	who := caller{name: sid.String(), self: sid.String() == acl.Self(), root: sid.String() == acl.System}
	if account, domain, _, err := sid.LookupAccount(""); err == nil {
		who.name = domain + `\` + account
	}
	administrators, err := windows.StringToSid(acl.Administrators)
	if err == nil && !who.root {
		who.root, err = token.IsMember(administrators)
		who.root = who.root && err == nil
	}
	return who
}

// ownCaller is this process.
func ownCaller() caller {
	answer := make(chan caller)
	go func() {
		runtime.LockOSThread()
		who := caller{}
		if windows.ImpersonateSelf(windows.SecurityIdentification) == nil {
			who = ofThread()
			if windows.RevertToSelf() == nil {
				runtime.UnlockOSThread()
			}
		}
		who.pid = os.Getpid()
		answer <- who
	}()
	return <-answer
}

// Administers reports whether this process acts for SYSTEM or an administrator
// who has elevated.
func Administers() bool { return ownCaller().root }

var errNotRoot = errors.New("only an administrator may ask that of the agent: run this in a prompt opened as administrator")

// process is the name of the caller's program. He waits for an answer, so his
// process id is still his.
func (c caller) process() (name, login string) {
	h, err := windows.OpenProcess(windows.PROCESS_QUERY_LIMITED_INFORMATION, false, uint32(c.pid))
	if err != nil {
		return "", ""
	}
	defer windows.CloseHandle(h)
	path := make([]uint16, windows.MAX_LONG_PATH)
	size := uint32(len(path))
	if windows.QueryFullProcessImageName(h, 0, &path[0], &size) != nil {
		return "", ""
	}
	return filepath.Base(windows.UTF16ToString(path[:size])), ""
}

// user is asked of who reads the journal, which Windows has not.
func (c caller) user() string { return "" }
