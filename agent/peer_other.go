//go:build !linux

package agent

import "net"

// peer is who is at the other end; no other platform is asked yet.
func peer(net.Conn) caller { return caller{} }

func (c caller) process() (name, login string) { return "", "" }

func (c caller) isUser(string) bool { return false }
