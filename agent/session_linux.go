package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OwnSessions returns the far ends of the TCP sessions this process was
// started through: those a parent process, up to the first, holds a socket of,
// as sshd does. Where there is none, as below a terminal multiplexer, what
// SSH_CONNECTION says counts if such a session exists.
func OwnSessions() []Session {
	var all []connection
	for _, name := range []string{"tcp", "tcp6"} {
		text, err := os.ReadFile("/proc/self/net/" + name)
		if err == nil { // a host without IPv6 has no tcp6
			all = append(all, parseConnections(string(text))...)
		}
	}
	held := map[string]bool{}
	for pid := os.Getpid(); pid > 1; pid = parent(pid) {
		links, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid)) // the pattern is well formed
		for _, link := range links {
			if target, err := os.Readlink(link); err == nil {
				held[target] = true
			}
		}
	}
	return ownSessions(all, held, os.Getenv("SSH_CONNECTION"))
}

// parent returns the process that started pid, or 0.
func parent(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name before it is in parentheses and may hold anything.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, err := strconv.Atoi(fields[1])
	if err != nil {
		return 0
	}
	return n
}
