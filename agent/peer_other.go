//go:build !linux && !windows

package agent

import (
	"errors"
	"net"
	"os"
)

// peer is who is at the other end; this platform is not asked yet.
func peer(net.Conn) caller { return caller{} }

// ownCaller is this process.
func ownCaller() caller { return caller{pid: os.Getpid()} }

var errNotRoot = errors.New("only root may ask that of the agent, which cannot tell here who asks")

func (c caller) process() (name, login string) { return "", "" }

func (c caller) user() string { return "" }
